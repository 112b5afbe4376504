"""The command ``simulate``: a Space on this machine, until Ctrl-C."""

import asyncio
import contextlib
import re
import ssl
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import click
from attrs import fields

from signalwire_streams._cli.options import Decorator, address_options, json_option
from signalwire_streams._cli.output import listening_errors, write_json
from signalwire_streams._signals import on_signals
from signalwire_streams.simulator import FaultKind, FaultSettings, Silence, SimulatedSpace, Sound, Tone, WavFile

_TYPES: "Mapping[Any, click.ParamType[Any]]" = {str: click.STRING, bool: click.BOOL, int: click.INT, float: click.FLOAT}
_LIMIT = re.compile("[1-9][0-9]{0,8}")


def _type_of(hint: Any) -> "click.ParamType[Any] | None":  # noqa: ANN401  (a type)
    """Return the type of an option for values of a type; None if they cannot be written in one word."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((found for kind, found in _TYPES.items() if kind in kinds), None)


_SETTINGS = {
    attribute.name.removesuffix("_"): found  # that of "as_" keeps it from being a Python keyword
    for attribute in fields(FaultSettings)
    if (found := _type_of(attribute.type)) is not None
}
_FAULT_OPTIONS: "Mapping[str, click.ParamType[Any]]" = {
    "on": click.STRING,
    "target": click.STRING,
    "times": click.INT,
    "every_nth": click.INT,
    "per_target": click.INT,
    "executed": click.BOOL,
    **_SETTINGS,
}


def parse_fault(spec: str) -> tuple[str, dict[str, Any]]:
    kind, separator, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for pair in rest.split(",") if separator else ():
        name, _, text = pair.partition("=")
        if not text:
            raise ValueError(f"{pair!r} is not an option: write it as key=value, with a comma between two")
        if name not in _FAULT_OPTIONS:
            raise ValueError(f"{name!r} is not an option: write one of {', '.join(_FAULT_OPTIONS)}")
        if name in options:
            raise ValueError(f"{name} is given twice")
        try:
            options[name] = _FAULT_OPTIONS[name].convert(text, None, None)
        except click.BadParameter as error:
            reason = error.message.split(". ")[0].rstrip(".")  # without the list of all words for true and false
            raise ValueError(f"{name}: {reason}") from None
    if "as" in options:
        options["as_"] = options.pop("as")
    return kind, options


def describe_kinds(kinds: Iterable[FaultKind]) -> str:
    kinds_by_settings: dict[tuple[str, ...], list[str]] = {}
    for kind in kinds:
        names = (name.removesuffix("_") for name in kind.settings)
        kinds_by_settings.setdefault(tuple(name for name in names if name in _SETTINGS), []).append(kind)
    lines = []
    for settings, names_of_kinds in kinds_by_settings.items():
        words = (f"{name}={_word_of(_SETTINGS[name])}" for name in settings)
        lines.append(textwrap.indent(textwrap.fill(", ".join(names_of_kinds), 74, break_on_hyphens=False), "  "))
        lines.append(f"    {'  '.join(words) or 'no settings'}")
    return "\n".join(lines)


def _word_of(kind: "click.ParamType[Any]") -> str:
    return "|".join(kind.choices) if isinstance(kind, click.Choice) else kind.name.upper()


def parse_sound(_: click.Context, __: click.Parameter, text: str | None) -> Sound | None:
    if text is None:
        return None
    if text in {"tone", "silence"}:
        return Tone() if text == "tone" else Silence()
    if Path(text).exists() and not Path(text).is_file():
        raise click.BadParameter(f"{text!r} is not a regular file: write tone, silence or a WAV file")
    try:
        return WavFile(Path(text))
    except OSError as error:
        raise click.BadParameter(f"{text!r}: {error.strerror}; write tone, silence or a WAV file") from None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _ca_file(_: click.Context, __: click.Parameter, path: str | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise click.BadParameter(f"{path!r} contains no PEM certificate: name the file of a CA") from None
    except OSError as error:
        raise click.BadParameter(f"{path!r} can't be read: {error.strerror}") from None


ca_file_option = click.option(
    "--ca-file",
    "ssl_context",
    metavar="FILE",
    callback=_ca_file,
    help="Trust only WebSocket servers with a certificate of this CA (PEM).",
)


def _rate_limit(_: click.Context, __: click.Parameter, text: str) -> int | None:
    if text == "none":
        return None
    if not _LIMIT.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not a limit: write a number above 0, or none")
    return int(text)


def space_option(name: str, help_text: str, **settings: Any) -> Decorator:  # noqa: ANN401  (click's own)
    attribute = getattr(fields(SimulatedSpace), name)
    option = "--" + name.replace("_", "-")
    if attribute.default is True:
        option += f"/--no-{option.removeprefix('--')}"
    found = {"type": _type_of(attribute.type), "is_flag": attribute.type is bool, "default": attribute.default}
    return click.option(option, help=help_text, **found | settings)


@click.command(
    short_help="Run a simulated Space on this machine.",
    epilog=f"""\b
A fault is KIND[:key=value[,key=value...]]. Conditions:
  on=start|stop|end|list|get|any   times=N   every_nth=N   per_target=N
  target=SID                       of a conference or call
  executed=true|false              whether the request is executed anyway
Faults of callbacks take on=stream-started|stream-stopped|stream-error.

\b
Kinds, and their settings:
{describe_kinds(FaultKind)}

\b
Examples:
  signalwire-streams simulate --conferences 200
  signalwire-streams simulate \\
      --fault reset:on=start,executed=true,every_nth=10
  signalwire-streams simulate --fault 503:on=start,times=1 \\
      --fault latency:seconds=0.2
  signalwire-streams simulate --audio speech.wav --ca-file authority.pem \\
      --fault frames-lost:every=50

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read, but printed.
""",
)
@space_option("conferences", "Live conferences.", type=click.IntRange(min=0), default=10, metavar="N")
@space_option("calls", "Live calls.", type=click.IntRange(min=0), default=5, metavar="N")
@address_options
@space_option("seed", "Seed of all sids, numbers and faults.", metavar="N")
@space_option(
    "rate_limit", "POST requests in any 10 seconds.", type=click.STRING, callback=_rate_limit, metavar="N|none"
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="SPEC",
    help="A fault, as described below. Repeatable: the first matching fault applies.",
)
@space_option(
    "duplicate_names",
    "How to respond to a start whose name is already in use: with a stream that fails, a 422, or a second stream.",
)
@space_option(
    "audio",
    "The audio of every call: a 16-bit WAV file, mono or with one channel per track.",
    callback=parse_sound,
    metavar="FILE|tone|silence",
)
@space_option("real_time", "Send audio in real time, or as fast as it is accepted.")
@space_option("dialect", "The vendor whose frames are sent.")
@space_option("bidirectional", "Play the audio that streams receive.")
@space_option("realtime_bidirectional", "Play received audio on conference streams that were started with realtime.")
@ca_file_option
@space_option("allow_ws", "Accept ws:// URLs on loopback, too, which SignalWire rejects.")
@space_option("callbacks", "Post signed status callbacks.")
@click.option("--no-request-log", is_flag=True, help="Count requests without logging them.")
@json_option("Write one line of JSON when the Space is ready, and nothing else.")
def simulate(*, faults: Sequence[str], no_request_log: bool, as_json: bool, **settings: Any) -> None:  # noqa: ANN401
    """Simulate a Space on this machine: its REST API with conferences and calls.

    With --audio, the Space connects to the WebSocket server of each stream that starts, and sends audio in real time.

    It runs until Ctrl-C or SIGTERM. It prints the settings that a client needs; the token is valid nowhere else.
    GET /_space/streams and /_space/requests return its streams and the received requests.
    """
    space = SimulatedSpace(log_requests=not no_request_log, **settings)
    for spec in faults:
        try:
            _add_fault(space, spec)
        except ValueError as error:
            raise click.UsageError(f"--fault {spec}: {error}") from None
    # If the loop supports no signal handlers (Windows), Ctrl-C raises an exception.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(space, as_json=as_json))


def _add_fault(space: SimulatedSpace, spec: str) -> None:
    kind, options = parse_fault(spec)
    rule = space.faults.add(kind, **options)
    if rule.kind.requires_callbacks and not space.callbacks:
        raise ValueError("there are no callbacks, so write --callbacks too")
    if rule.kind.requires_audio and space.audio is None:
        raise ValueError("there are no audio sockets, so write --audio too")


async def _serve(space: SimulatedSpace, *, as_json: bool) -> None:
    ended = asyncio.Event()
    with on_signals(lambda _: ended.set()):
        with listening_errors(space.host, space.port):
            await space.start()
        try:
            _announce(space, as_json=as_json)
            await ended.wait()
        finally:
            await space.close()
    if not as_json:
        streams = space.streams
        click.echo(
            f"\nEnded. Requests: {space.requests.count()}, streams: {len(streams)}, "
            f"still running: {len(streams.active())}, duplicate streams: {len(streams.duplicates())}."
        )


def _announce(space: SimulatedSpace, *, as_json: bool) -> None:
    if as_json:
        names = ("base_url", "project", "token", "signing_key")
        write_json({name: getattr(space, name) for name in names})
        return
    click.echo(
        f"A simulated Space listens on {space.base_url}\n"
        f"(live conferences: {space.conferences}, live calls: {space.calls}).\n"
        "In another terminal:\n\n"
        f"  export SIGNALWIRE_SPACE={space.base_url}\n"
        f"  export SIGNALWIRE_PROJECT_ID={space.project}\n"
        f"  export SIGNALWIRE_API_TOKEN={space.token}\n\n"
        "  signalwire-streams conferences list\n\n"
        "Press Ctrl-C to stop."
    )
