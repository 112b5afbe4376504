"""The options of ``simulate`` that give the Space a voice: what is heard, how it goes out, and callbacks."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar, get_args

import click

from signalwire_streams.simulator import Dialect, Silence, Sound, Tone, WavFile

_Command = TypeVar("_Command", bound=Callable[..., object])


class Sounding(TypedDict):
    """Those options, as a Space takes them."""

    audio: Sound | None
    real_time: bool
    dialect: Dialect
    bidirectional: bool
    trust: ssl.SSLContext | None
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
