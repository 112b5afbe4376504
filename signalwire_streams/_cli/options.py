"""The options that a start has on a conference and on a call, each named as the client's argument is."""

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import click
from attrs import frozen

from signalwire_streams import CallbackMethod, InvalidRequestError, StreamsClient, StreamsError, Track
from signalwire_streams._cli.output import Interruption, failure_of, verbose_option
from signalwire_streams.models._validation import check_codec

_SPACE, _PROJECT, _TOKEN = "SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"

_Result = TypeVar("_Result")

ENVIRONMENT = f"""\b
Environment:
  {_SPACE}        the Space: example, example.signalwire.com
                          or, for tests, an address such as http://127.0.0.1:8080
  {_PROJECT}   the Project ID
  {_TOKEN}    the API token; there is no option for it, since
                          others on this machine can read a command line
"""


@frozen
class Account:
    """Where a command goes, as far as the command line and the environment say.

    Attributes:
        space: the Space's name, host or loopback address.
        project: the Project ID.
        as_json: whether the answer, and an error, is to be JSON.
        options: the options that were written out, to be repeated in a command that is shown.
    """

    space: str | None
    project: str | None
    as_json: bool
    options: tuple[str, ...] = ()

    def client(self, **options: Any) -> StreamsClient:  # noqa: ANN401  (the client's own)
        """Make a client, with further options of its own.

        Raises:
            InvalidRequestError: something is missing, or can't be right.
        """
        token = os.environ.get(_TOKEN)
        found = {f"{_SPACE} (or --space)": self.space, f"{_PROJECT} (or --project)": self.project, _TOKEN: token}
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise InvalidRequestError(f"set {', '.join(missing)} in the environment: your Space's API page shows them")
        return StreamsClient(space=self.space, project=self.project, token=token, **options)

    def perform(self, work: Callable[[StreamsClient], Awaitable[_Result]], **options: Any) -> _Result:  # noqa: ANN401
        """Do a piece of work with a client, made with these options, that is closed at its end, however it ends.

        Raises:
            Failure: it did not succeed.
            Interruption: Ctrl-C ended it.
        """

        async def with_client() -> _Result:
            async with self.client(**options) as client:
                return await work(client)

        try:
            return asyncio.run(with_client())
        except StreamsError as error:
            raise failure_of(error, as_json=self.as_json) from None
        except KeyboardInterrupt:
            raise Interruption(as_json=self.as_json) from None


def account_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--space``, ``--project`` and ``--json``, and hand them to the command as its `Account`."""

    @click.option("--space", envvar=_SPACE, metavar="SPACE", help=f"The Space; instead of {_SPACE}.")
    @click.option("--project", envvar=_PROJECT, metavar="ID", help=f"The Project ID; instead of {_PROJECT}.")
    @click.option("--json", "as_json", is_flag=True, help="Write JSON, one object per line; errors as well.")
    @verbose_option
    @functools.wraps(command)
    def with_account(*, space: str | None, project: str | None, as_json: bool, **fields: object) -> None:
        command(Account(space, project, as_json, _written_out(space=space, project=project)), **fields)

    return with_account


def _written_out(**values: str | None) -> tuple[str, ...]:
    context = click.get_current_context()
    return tuple(
        word
        for name, value in values.items()
        if value and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        for word in (f"--{name}", value)
    )


STANDARD_INPUT = "-"
_BYTE_ORDER_MARK = "\ufeff"
_INPUT_IS_TAKEN = "signalwire_streams.input_is_taken"


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
    may_be_running: bool
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


def _bearer_token(context: click.Context, __: click.Parameter, source: str | None) -> str | None:
    """Read the token. The file's name is not repeated: it may be the token itself, put there by mistake."""
    if source is None:
        return None
    context.meta[_INPUT_IS_TAKEN] = source == STANDARD_INPUT
    try:
        text = read_text(source)
    except OSError as error:
        raise click.UsageError(f"--bearer-token-file can't be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a name that no file can have
        raise click.UsageError("--bearer-token-file can't be read: write the name of a text file, or -") from None
    return text.strip()


def read_text(source: str) -> str:
    """Read a text file, or standard input for ``-``.

    Raises:
        OSError: it can't be read.
        ValueError: it is not UTF-8, or has a name that no file can have.
    """
    if source != STANDARD_INPUT:
        return Path(source).read_text(encoding="utf-8-sig")
    # Standard input is None where the shell closed it.
    return "" if sys.stdin is None else sys.stdin.read().removeprefix(_BYTE_ORDER_MARK)


def _codec(_: click.Context, __: click.Parameter, word: str | None) -> str | None:
    """Check the codec before the targets of a run are read."""
    try:
        return None if word is None else check_codec(word)
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from None


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def token_is_on_standard_input() -> bool:
    """Whether standard input is used up, since the bearer token came from there."""
    return bool(click.get_current_context().meta.get(_INPUT_IS_TAKEN))


def adding(options: Sequence[Decorator]) -> Decorator:
    """Make a decorator that adds options, shown in this order."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_URL_HELP = "The WebSocket server that gets the audio; no query string."
_PARAMETER = click.option(
    "--parameter",
    "parameters",
    multiple=True,
    callback=_parameters,
    metavar="NAME=VALUE",
    help="A value for the WebSocket server; repeat it for more.",
)
_BEARER_TOKEN = click.option(
    "--bearer-token-file",
    "authorization_bearer_token",
    callback=_bearer_token,
    metavar="FILE",
    help="Holds the token that the WebSocket server expects; - reads it from standard input.",
)
_CALLBACK = click.option("--status-callback", metavar="URL", help="An address that hears of the stream.")
_FIELDS = (
    click.option("--unnamed", is_flag=True, help="Send no name. Such a start is never sent twice."),
    click.option("--track", type=click.Choice([word.value for word in Track]), help="Which side; both by default."),
    _CALLBACK,
    click.option(
        "--status-callback-method",
        type=click.Choice([word.value for word in CallbackMethod]),
        help="How it is called; POST by default.",
    ),
    _PARAMETER,
    _BEARER_TOKEN,
)

conference_options: Decorator = adding(
    (
        click.option(
            "--codec",
            callback=_codec,
            metavar="CODEC",
            help="How the audio is encoded: PCMU, PCMA, L16 or G722, with sample rate and packet time if wanted, as in "
            "L16@24000h@40i.",
        ),
        click.option("--realtime/--no-realtime", default=None, help="The API's StreamRealTime."),
    )
)
"""Add the options that only a conference's start has."""

start_options: Decorator = adding(
    (
        click.option("--url", required=True, metavar="wss://...", help=_URL_HELP),
        click.option("--name", metavar="NAME", help="Unique on its conference or call; one is made up if left out."),
        *_FIELDS,
        click.option(
            "--may-be-running",
            is_flag=True,
            help="A stream of this --name may be running: start it again, and stop it by its name.",
        ),
        click.option(
            "--deadline", type=float, metavar="SECONDS", help="For the whole start, repeated attempts included."
        ),
    )
)
"""Add the options that every single start has."""

bulk_start_options: Decorator = adding(
    (
        click.option("--url", metavar="wss://...", help=f"{_URL_HELP} A line may name another."),
        click.option("--name", metavar="NAME", help="The same for all; each gets one of its own if left out."),
        *_FIELDS,
    )
)
"""Add the options that all starts of a run share."""

secret_options: Decorator = adding((_PARAMETER, _BEARER_TOKEN, _CALLBACK))
"""Add the options that give what no journal keeps."""
