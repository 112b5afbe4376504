"""The options that a start has on a conference and on a call, each named as the client's argument is."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import click

from signalwire_streams import CallbackMethod, Track

_STANDARD_INPUT = "-"


class StartFields(TypedDict):
    """What the options give, ready to be handed to ``start_stream``."""

    url: str
    name: str | None
    unnamed: bool
    track: str | None
    status_callback: str | None
    status_callback_method: str | None
    parameters: dict[str, str]
    authorization_bearer_token: str | None
    deadline: float | None


def _parameters(_: click.Context, __: click.Parameter, words: Sequence[str]) -> dict[str, str]:
    """Take NAME=VALUE apart. What is refused is not repeated: a value may be a secret."""
    parameters: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise click.UsageError("a --parameter has no name or no '=': write it as NAME=VALUE")
        if name in parameters:
            raise click.UsageError(f"--parameter {name} is given twice: give each value a name of its own")
        parameters[name] = value
    return parameters


def _bearer_token(_: click.Context, __: click.Parameter, source: str | None) -> str | None:
    """Read the token. The file's name is not repeated: it may be the token itself, put there by mistake."""
    if source is None:
        return None
    try:
        text = _standard_input() if source == _STANDARD_INPUT else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--bearer-token-file can't be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name that no file can have
        raise click.UsageError("--bearer-token-file can't be read: write the name of a text file, or -") from None
    return text.strip()


def _standard_input() -> str:
    return sys.stdin.read() if sys.stdin is not None else ""  # None where the shell closed it


def start_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every start has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--url", required=True, metavar="wss://...", help="The WebSocket server that gets the audio; no query string."
    ),
    click.option("--name", metavar="NAME", help="Unique on its conference or call; one is made up if left out."),
    click.option("--unnamed", is_flag=True, help="Send no name. Such a start is never sent twice."),
    click.option("--track", type=click.Choice([word.value for word in Track]), help="Which side; both by default."),
    click.option("--status-callback", metavar="URL", help="An address that hears of the stream."),
    click.option(
        "--status-callback-method",
        type=click.Choice([word.value for word in CallbackMethod]),
        help="How it is called; POST by default.",
    ),
    click.option(
        "--parameter",
        "parameters",
        multiple=True,
        callback=_parameters,
        metavar="NAME=VALUE",
        help="A value for the WebSocket server; repeat it for more.",
    ),
    click.option(
        "--bearer-token-file",
        "authorization_bearer_token",
        callback=_bearer_token,
        metavar="FILE",
        help="Holds the token that the WebSocket server expects; - reads it from standard input.",
    ),
    click.option("--deadline", type=float, metavar="SECONDS", help="For the whole start, repeated attempts included."),
)
