"""``signalwire-streams simulate``: a Space on this machine, until it is told to end."""

import asyncio
import contextlib
import re
import signal
import ssl
import textwrap
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args

import click
from attrs import frozen

from signalwire_streams._cli.output import Failure, clean, write_json
from signalwire_streams.simulator import Dialect, FaultKind, Faults, Silence, SimulatedSpace, Sound, Tone, WavFile


@frozen
class FaultSpec:
    """A fault rule, read but not yet checked against what its kind takes.

    Attributes:
        kind: what happens.
        options: when, and how.
    """

    kind: str
    options: Mapping[str, Any]

    def add_to(self, faults: Faults) -> None:
        """Add the rule.

        Raises:
            ValueError: the kind is unknown, or an option does not fit it.
        """
        faults.add(self.kind, **self.options)


def read_fault(spec: str) -> FaultSpec:
    """Read one spec.

    Raises:
        ValueError: it is not spelled as a spec is.
    """
    kind, separator, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for pair in rest.split(",") if separator else ():
        key, equals, text = pair.partition("=")
        if not equals or not text:
            raise ValueError(f"{pair!r} is no option: write it as key=value, with a comma between two")
        read = _READERS.get(key)
        if read is None:
            raise ValueError(f"{key!r} is no option: write one of {', '.join(_READERS)}")
        name = _NAMES.get(key, key)
        if name in options:
            raise ValueError(f"{key} is given twice")
        try:
            options[name] = read(text)
        except ValueError as error:
            raise ValueError(f"{key} must be {error}, not {text!r}") from None
    return FaultSpec(kind, options)


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


_READERS: Mapping[str, Callable[[str], object]] = {
    "on": str,
    "target": str,
    "times": _whole,
    "one_in": _whole,
    "per_target": _whole,
    "created": _flag,
    "seconds": _seconds,
    "read_body": _flag,
    "status": _whole,
    "body": str,
    "code": _whole,
    "retry_after": str,
    "location": str,
    "as": str,
    "after": _whole,
    "every": _whole,
    "frames": _whole,
}
_NAMES = {"as": "as_"}  # a keyword of Python's


_Command = TypeVar("_Command", bound=Callable[..., object])


class Sounding(TypedDict):
    """Those options, as a Space takes them."""

    audio: Sound | None
    real_time: bool
    dialect: Dialect
    bidirectional: bool
    ssl_context: ssl.SSLContext | None
    allow_ws: bool
    callbacks: bool


def _sound(_: click.Context, __: click.Parameter, text: str | None) -> Sound | None:
    if text is None:
        return None
    if text in {"tone", "silence"}:
        return Tone() if text == "tone" else Silence()
    try:
        return WavFile(Path(text))
    except OSError as error:
        raise click.BadParameter(f"{text!r}: {error.strerror}; write tone, silence or a WAV file") from None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _authority(_: click.Context, __: click.Parameter, path: str | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise click.BadParameter(f"{path!r} holds no certificate in PEM: {error.strerror}") from None


_OPTIONS = (
    click.option(
        "--audio",
        metavar="FILE|tone|silence",
        callback=_sound,
        help="What is heard on every call: a WAV file of 16 bits, mono or with a channel for each track.",
    ),
    click.option(
        "--real-time/--blast",
        "real_time",
        default=True,
        show_default=True,
        help="Audio as it is spoken, or as fast as it is taken.",
    ),
    click.option(
        "--dialect",
        type=click.Choice(get_args(Dialect)),
        default="signalwire",
        show_default=True,
        help="Whose frames are sent.",
    ),
    click.option("--bidirectional", is_flag=True, help="Play what the streams are sent."),
    click.option(
        "--trust",
        "ssl_context",
        metavar="FILE",
        callback=_authority,
        help="Trust servers that this authority vouches for (PEM), and no others.",
    ),
    click.option("--allow-ws", is_flag=True, help="Take ws:// addresses on loopback too, which SignalWire refuses."),
    click.option("--callbacks", is_flag=True, help="Post signed status callbacks."),
)


def audio_options(command: _Command) -> _Command:
    """Add these options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def refuse_faults_of_nothing(kinds: Sequence[str], *, audio: Sound | None, callbacks: bool, **_: object) -> None:
    """Refuse faults of what the Space was not told to do.

    Raises:
        click.UsageError: one of them could never happen.
    """
    for kind in kinds:
        if kind.startswith("callback-") and not callbacks:
            raise click.UsageError(f"--fault {kind}: nobody is called back, so write --callbacks too")
        if kind.startswith(("socket-", "frames-", "no-stop")) and audio is None:
            raise click.UsageError(f"--fault {kind}: nobody is dialled, so write --audio too")


DuplicateNames = Literal["stream-error", "http-error", "allow"]


_KINDS = textwrap.indent(textwrap.fill(", ".join(FaultKind), 72, break_on_hyphens=False), "  ")


_LIMIT = re.compile("[1-9][0-9]{0,8}")


def _faults(_: click.Context, __: click.Parameter, specs: Sequence[str]) -> list[FaultSpec]:
    return [_fault(spec) for spec in specs]


def _fault(spec: str) -> FaultSpec:
    try:
        return read_fault(spec)
    except ValueError as error:
        raise click.BadParameter(f"{spec!r}: {error}") from None


def _rate_limit(_: click.Context, __: click.Parameter, text: str) -> int | None:
    if text == "none":
        return None
    if not _LIMIT.fullmatch(text):
        raise click.BadParameter(f"{text!r} is no limit: write a number above 0, or none")
    return int(text)


@click.command(
    short_help="Run a simulated Space on this machine.",
    epilog=f"""\b
A fault is KIND[:key=value[,key=value...]]. When it happens:
  on=start|stop|list|get|any   times=N   one_in=N   per_target=N
  created=true|false           whether the request is carried out nevertheless
How it happens, for the kinds that can be told:
  seconds=0.2   status=418   retry_after=1   body=api|html|empty   code=20429
  every=10, after=10 or frames=10, in media frames
Those of callbacks take on=stream-started|stream-stopped|stream-error.

\b
Kinds:
{_KINDS}

\b
Examples:
  signalwire-streams simulate --conferences 200
  signalwire-streams simulate --fault reset:on=start,created=true,one_in=10
  signalwire-streams simulate --fault 503:on=start,times=1 --fault latency:seconds=0.2
  signalwire-streams simulate --audio speech.wav --trust authority.pem --fault frames-lost:every=50

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not read: they are printed.
""",
)
@click.option(
    "--conferences", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="Live conferences."
)
@click.option("--calls", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Live calls.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, metavar="N", help="0 takes a free one."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Decides every id, number and fault.")
@click.option(
    "--rate-limit",
    callback=_rate_limit,
    metavar="N|none",
    default="13800",
    show_default=True,
    help="Requests that change something, in any 10 seconds.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    callback=_faults,
    metavar="SPEC",
    help="What goes wrong; see below. Repeatable: the first that fits a request is the one it gets.",
)
@click.option(
    "--duplicate-names",
    type=click.Choice(get_args(DuplicateNames)),
    default="stream-error",
    show_default=True,
    help="What a second start of a name gets that is taken: a stream that never lives, a 422, or a second stream.",
)
@audio_options
@click.option("--quiet-requests", is_flag=True, help="Count the requests, but do not keep them.")
@click.option("--json", "as_json", is_flag=True, help="Write one line of JSON once it listens, and nothing else.")
def simulate(
    *,
    conferences: int,
    calls: int,
    host: str,
    port: int,
    seed: int,
    rate_limit: int | None,
    faults: Sequence[FaultSpec],
    duplicate_names: DuplicateNames,
    quiet_requests: bool,
    as_json: bool,
    **sounding: Unpack[Sounding],
) -> None:
    """Simulate a Space on this machine: its REST API with conferences and calls.

    With --audio it dials the WebSocket server of each stream that starts, and what is heard goes out in real time.

    It runs until Ctrl-C or SIGTERM. What it prints is all that a client needs; the token is good for nothing
    else. GET /_space/streams and /_space/requests tell what it really holds and received.
    """
    space = SimulatedSpace(
        conferences=conferences,
        calls=calls,
        host=host,
        port=port,
        seed=seed,
        rate_limit=rate_limit,
        duplicate_names=duplicate_names,
        log_requests=not quiet_requests,
        **sounding,
    )
    refuse_faults_of_nothing([fault.kind for fault in faults], **sounding)
    try:
        for fault in faults:
            fault.add_to(space.faults)
    except ValueError as error:
        raise click.UsageError(f"--fault: {error}") from None
    # Where signals can't be given to the loop (Windows), Ctrl-C comes as an exception and is as good an end.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(space, as_json=as_json))


async def _serve(space: SimulatedSpace, *, as_json: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # Windows' loops take no signals; Ctrl-C reaches Python there
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
    try:
        await space.start()
    except (OSError, UnicodeError) as error:
        why = clean(getattr(error, "strerror", None) or error)
        raise Failure(f"can't listen on {space.host} port {space.port}: {why}") from None
    try:
        _announce(space, as_json=as_json)
        await ended.wait()
    finally:
        await space.close()
    if not as_json:
        _take_leave(space)


def _announce(space: SimulatedSpace, *, as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "base_url": space.base_url,
                "project": space.project,
                "token": space.token,
                "signing_key": space.signing_key,
            }
        )
        return
    click.echo(
        f"A simulated Space listens on {space.base_url}\n"
        f"(live conferences: {space.conferences}, live calls: {space.calls}).\n"
        "In another terminal:\n\n"
        f"  export SIGNALWIRE_SPACE={space.base_url}\n"
        f"  export SIGNALWIRE_PROJECT_ID={space.project}\n"
        f"  export SIGNALWIRE_API_TOKEN={space.token}\n\n"
        "  signalwire-streams conferences list\n\n"
        "Ctrl-C ends it."
    )


def _take_leave(space: SimulatedSpace) -> None:
    streams = space.streams
    click.echo(
        f"\nEnded. Requests: {space.requests.count()}, streams: {len(streams)}, "
        f"still alive: {len(streams.active())}, ever doubled: {len(streams.duplicates())}."
    )
