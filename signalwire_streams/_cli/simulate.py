"""The command ``simulate``: a Space on this machine, until Ctrl-C."""

import asyncio
import contextlib
import re
import ssl
import textwrap
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import click

from signalwire_streams._cli.options import json_option
from signalwire_streams._cli.output import cannot_listen, write_json
from signalwire_streams._cli.progress import on_signals
from signalwire_streams.simulator import (
    Dialect,
    FaultKind,
    FaultSettings,
    Silence,
    SimulatedSpace,
    Sound,
    Tone,
    WavFile,
)

DuplicateNames = Literal["stream-error", "http-error", "allow"]
Fault = tuple[str, Mapping[str, Any]]
"""The kind of a fault rule and its settings, parsed but not yet checked against each other."""


def parse_fault(spec: str) -> Fault:
    kind, separator, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for pair in rest.split(",") if separator else ():
        key, equals, text = pair.partition("=")
        if not equals or not text:
            raise ValueError(f"{pair!r} is not an option: write it as key=value, with a comma between two")
        parse = _PARSERS.get(key)
        if parse is None:
            raise ValueError(f"{key!r} is not an option: write one of {', '.join(_PARSERS)}")
        name = "as_" if key == "as" else key  # a keyword of Python
        if name in options:
            raise ValueError(f"{key} is given twice")
        try:
            options[name] = parse(text)
        except ValueError as error:
            raise ValueError(f"{key} must be {error}, not {text!r}") from None
    return kind, options


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0 or not isfinite(seconds):
        raise ValueError("a number of seconds")
    return seconds


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("true or false")
    return text == "true"


_BY_TYPE: Mapping[object, Callable[[str], object]] = {
    bool: _flag,
    int: _whole,
    float: _seconds,
    int | None: _whole,
}
_PARSERS: Mapping[str, Callable[[str], object]] = {
    "on": str,
    "target": str,
    "times": _whole,
    "every_nth": _whole,
    "per_target": _whole,
    "executed": _flag,
    **{
        setting.name.rstrip("_"): _BY_TYPE.get(setting.type, str)
        for setting in attrs.fields(FaultSettings)
        if setting.name != "headers"
    },
}
_KINDS = textwrap.indent(textwrap.fill(", ".join(FaultKind), 72, break_on_hyphens=False), "  ")
_LIMIT = re.compile("[1-9][0-9]{0,8}")


def _sound(_: click.Context, __: click.Parameter, text: str | None) -> Sound | None:
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
    except (OSError, ssl.SSLError) as error:
        raise click.BadParameter(f"{path!r} contains no PEM certificate: {error.strerror}") from None


def _faults(_: click.Context, __: click.Parameter, specs: Sequence[str]) -> list[Fault]:
    faults = []
    for spec in specs:
        try:
            faults.append(parse_fault(spec))
        except ValueError as error:
            raise click.BadParameter(f"{spec!r}: {error}") from None
    return faults


def _rate_limit(_: click.Context, __: click.Parameter, text: str) -> int | None:
    if text == "none":
        return None
    if not _LIMIT.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not a limit: write a number above 0, or none")
    return int(text)


@click.command(
    short_help="Run a simulated Space on this machine.",
    epilog=f"""\b
A fault is KIND[:key=value[,key=value...]]. Conditions:
  on=start|stop|list|get|any   times=N   every_nth=N   per_target=N
  executed=true|false          whether the request is executed nevertheless
Settings, for the kinds that have them:
  seconds=0.2   status=418   retry_after=1   body=api|html|empty   code=20429
  every=10, after=10 or frames=10, in media frames
Faults of callbacks take on=stream-started|stream-stopped|stream-error.

\b
Kinds:
{_KINDS}

\b
Examples:
  signalwire-streams simulate --conferences 200
  signalwire-streams simulate \\
      --fault reset:on=start,executed=true,every_nth=10
  signalwire-streams simulate --fault 503:on=start,times=1 \\
      --fault latency:seconds=0.2
  signalwire-streams simulate --audio speech.wav --ca-file authority.pem \\
      --fault frames-lost:every=50

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read: they are printed.
""",
)
@click.option(
    "--conferences", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="Live conferences."
)
@click.option("--calls", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Live calls.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="N",
    help="The port to listen on; 0 chooses a free one.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of all ids, numbers and faults."
)
@click.option(
    "--rate-limit",
    callback=_rate_limit,
    metavar="N|none",
    default="13800",
    show_default=True,
    help="POST requests in any 10 seconds.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    callback=_faults,
    metavar="SPEC",
    help="A fault, as described below. Repeatable: the first matching fault applies.",
)
@click.option(
    "--duplicate-names",
    type=click.Choice(get_args(DuplicateNames)),
    default="stream-error",
    show_default=True,
    help="How to answer a start whose name is already in use: with a stream that fails, a 422, or a second stream.",
)
@click.option(
    "--audio",
    metavar="FILE|tone|silence",
    callback=_sound,
    help="The audio of every call: a 16-bit WAV file, mono or with one channel per track.",
)
@click.option(
    "--real-time/--no-real-time",
    default=True,
    show_default=True,
    help="Send audio in real time, or as fast as it is accepted.",
)
@click.option(
    "--dialect",
    type=click.Choice(get_args(Dialect)),
    default="signalwire",
    show_default=True,
    help="The vendor whose frames are sent.",
)
@click.option("--bidirectional", is_flag=True, help="Play the audio that streams receive.")
@click.option(
    "--ca-file",
    "ssl_context",
    metavar="FILE",
    callback=_ca_file,
    help="Trust only WebSocket servers with a certificate of this CA (PEM).",
)
@click.option("--allow-ws", is_flag=True, help="Accept ws:// URLs on loopback, too, which SignalWire refuses.")
@click.option("--callbacks", is_flag=True, help="Post signed status callbacks.")
@click.option("--no-request-log", is_flag=True, help="Count requests without logging them.")
@json_option("Write one line of JSON when it is ready, and nothing else.")
def simulate(
    *,
    faults: Sequence[Fault],
    no_request_log: bool,
    as_json: bool,
    **settings: Any,  # noqa: ANN401  (the Space's own)
) -> None:
    """Simulate a Space on this machine: its REST API with conferences and calls.

    With --audio it connects to the WebSocket server of each stream that starts, and sends audio in real time.

    It runs until Ctrl-C or SIGTERM. It prints the settings that a client needs; the token is valid nowhere else.
    GET /_space/streams and /_space/requests return its streams and the received requests.
    """
    space = SimulatedSpace(log_requests=not no_request_log, **settings)
    for kind, _ in faults:
        if kind.startswith("callback-") and not settings["callbacks"]:
            raise click.UsageError(f"--fault {kind}: there are no callbacks, so write --callbacks too")
        if kind.startswith(("socket-", "frames-", "no-stop")) and settings["audio"] is None:
            raise click.UsageError(f"--fault {kind}: there are no audio sockets, so write --audio too")
    try:
        for kind, options in faults:
            space.faults.add(kind, **options)
    except ValueError as error:
        raise click.UsageError(f"--fault: {error}") from None
    # Where the loop takes no signal handlers (Windows), Ctrl-C comes as an exception.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(space, as_json=as_json))


async def _serve(space: SimulatedSpace, *, as_json: bool) -> None:
    ended = asyncio.Event()
    with on_signals(lambda _: ended.set()):
        try:
            await space.start()
        except (OSError, UnicodeError) as error:
            raise cannot_listen(space.host, space.port, error) from None
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
