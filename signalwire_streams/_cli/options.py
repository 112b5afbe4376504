"""Options that several commands share: the account, JSON, and the fields of a start."""

import asyncio
import functools
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

import click
from attrs import evolve, fields, frozen

from signalwire_streams import InvalidRequestError, SignedTokens, StartConferenceStream, StreamsClient
from signalwire_streams._cli.output import Failure, verbose_option
from signalwire_streams.models._requests import SCOPE, WIRE_NAME
from signalwire_streams.models._validation import CODEC_NAMES, SECRET

SPACE, PROJECT, TOKEN = "SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"
BEARER = "SIGNALWIRE_STREAMS_TOKEN"
"""The bearer tokens of streams, for the commands at the other end of them."""

_Result = TypeVar("_Result")
Decorator = Callable[[Callable[..., None]], Callable[..., None]]

ENVIRONMENT = f"""\b
Environment:
  {SPACE}        the Space: example, example.signalwire.com
                          or, for tests, a URL such as http://127.0.0.1:8080
  {PROJECT}   the Project ID
  {TOKEN}    the API token; there is no option for it, since
                          others on this machine can read a command line
"""


def adding(*options: Decorator) -> Decorator:
    """Combine options, which ``--help`` shows in this order, into one decorator."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def passing(argument: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """Add options, and pass the command one argument that is made of their values."""
    add = adding(*options)
    names = [str(option.name) for option in click.command(add(lambda: None)).params if option.expose_value]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @add
        @functools.wraps(command)
        def with_argument(**values: object) -> None:
            made = make(**{name: values.pop(name) for name in names})
            command(**{argument: made}, **values)

        return with_argument

    return decorate


_WANTS_JSON = "signalwire_streams.wants_json"


def wants_json(context: click.Context) -> bool:
    return bool(context.meta.get(_WANTS_JSON))


def json_option(help_text: str) -> Decorator:
    """Return the option ``--json``. It also decides how an error of the command is written."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001  (click's signature)
        context.meta[_WANTS_JSON] = value
        return value

    return click.option("--json", "as_json", is_flag=True, callback=remember, help=help_text)


def command_line(words: str, *arguments: str, options: Sequence[str] = ()) -> str:
    separator = ["--"] if any(argument.startswith("-") for argument in arguments) else []
    return shlex.join(["signalwire-streams", *words.split(), *options, *separator, *arguments])


@frozen
class Account:
    """Space, project and output format of a command, and which of them its command line named."""

    space: str | None
    project: str | None
    as_json: bool
    options: tuple[str, ...] = ()

    def client(self, **options: Any) -> StreamsClient:  # noqa: ANN401  (the client's own)
        token = os.environ.get(TOKEN)
        found = {f"{SPACE} (or --space)": self.space, f"{PROJECT} (or --project)": self.project, TOKEN: token}
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise InvalidRequestError(f"set {', '.join(missing)} in the environment: your Space's API page shows them")
        return StreamsClient(space=self.space, project=self.project, token=token, **options)

    def run(self, work: Callable[[StreamsClient], Awaitable[_Result]], **options: Any) -> _Result:  # noqa: ANN401
        async def with_client() -> _Result:
            async with self.client(**options) as client:
                return await work(client)

        return asyncio.run(with_client())

    def command(self, words: str, *arguments: str) -> str:
        return command_line(words, *arguments, options=self.options)

    def or_else(self, *, space: str, project: str) -> "Account":
        """Return an account with these values where the command line and the environment have none."""
        return evolve(self, space=self.space or space, project=self.project or project)


def make_account(*, space: str | None, project: str | None, as_json: bool) -> Account:
    context = click.get_current_context()
    options: list[str] = []
    for name, value in (("space", space), ("project", project)):
        if value and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            options += f"--{name}", value
    return Account(space, project, as_json, tuple(options))


ACCOUNT: Decorator = adding(
    click.option("--space", envvar=SPACE, metavar="SPACE", help=f"The Space; overrides {SPACE}."),
    click.option("--project", envvar=PROJECT, metavar="ID", help=f"The Project ID; overrides {PROJECT}."),
    json_option("Write JSON, one object per line, errors included."),
    verbose_option,
)
account_options = passing("account", make_account, ACCOUNT)


def create_directory(directory: Path, option: str) -> None:
    """Create the directory of an option unless it exists, and check that files can be created in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise Failure(f"can't write to {directory}: {error.strerror}: name another {option}") from None


def reject_password(url: str | None, variable: str) -> None:
    """Raise if the URL of an option has a password, which belongs in an environment variable."""
    try:
        has_password = url is not None and urlsplit(url).password is not None
    except ValueError:
        has_password = "@" in (url or "")
    if has_password:
        raise click.UsageError(f"others on this machine can read a command line: put the password into {variable}")


class FiniteRange(click.FloatRange):
    """A range of numbers without nan and inf: nan is in every range, since it is neither below nor above a limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number: write one such as 60", param, ctx)
        return number


STANDARD_INPUT = "-"
_INPUT_IS_TAKEN = "signalwire_streams.input_is_taken"
_TOKEN_KEY_FILE = "--token-key-file"  # noqa: S105  (an option)


def read_input(source: str, option: str, kind: str = "file") -> bytes:
    """Read the file of an option, or standard input for ``-``.

    An error names the option, not the file, whose name may be a secret that was passed by mistake.
    """
    try:
        if source != STANDARD_INPUT:
            return Path(source).read_bytes()
        if sys.stdin is None:  # the shell closed it
            raise click.UsageError(f"{option} can't be read: standard input is closed: name a FILE, or pipe it in")
        buffer = getattr(sys.stdin, "buffer", None)
        return buffer.read() if buffer is not None else sys.stdin.read().encode()
    except OSError as error:
        raise click.UsageError(f"{option} can't be read: {error.strerror}") from None
    except ValueError:  # a name that no file can have
        raise click.UsageError(f"{option} can't be read: write the name of a {kind}, or -") from None


def read_secret_file(source: str, option: str = "--bearer-token-file") -> str:
    try:
        return read_input(source, option, "text file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError(f"{option} can't be read: write the name of a text file, or -") from None


def token_is_on_standard_input() -> bool:
    return bool(click.get_current_context().meta.get(_INPUT_IS_TAKEN))


def read_token_keys(source: str) -> SignedTokens:
    """Read the file of ``--token-key-file``: a key, or several, the first of which signs."""
    try:
        return SignedTokens(read_secret_file(source, _TOKEN_KEY_FILE).split())
    except (InvalidRequestError, ModuleNotFoundError) as error:
        raise click.UsageError(f"{_TOKEN_KEY_FILE}: {error}") from None


def _remember_token_keys(context: click.Context, _: click.Parameter, source: str | None) -> None:
    context.meta[_TOKEN_KEY_FILE] = source


def _token_from_file(context: click.Context, _: click.Parameter, source: str | None) -> str | SignedTokens | None:
    keys = context.meta.get(_TOKEN_KEY_FILE)
    if keys is not None and source is not None:
        raise click.UsageError(f"--bearer-token-file and {_TOKEN_KEY_FILE} contradict each other: write one of the two")
    if STANDARD_INPUT in {keys, source}:
        context.meta[_INPUT_IS_TAKEN] = True
    if keys is not None:
        return read_token_keys(keys)
    return None if source is None else read_secret_file(source).strip()


def _parameters(_: click.Context, __: click.Parameter, words: Sequence[str]) -> dict[str, str]:
    """Split each NAME=VALUE. An error does not repeat it: a value may be a secret."""
    parameters: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise click.UsageError("a --parameter has no name or no '=': write it as NAME=VALUE")
        if name in parameters:
            raise click.UsageError(f"--parameter {name} is given twice: give each value its own name")
        parameters[name] = value
    return parameters


FIELDS: Mapping[str, Any] = {attribute.name: attribute for attribute in fields(StartConferenceStream)}
"""The fields of a start, by name. Options, columns of a file and a dry run follow from them."""

SWITCHES = frozenset(name for name, attribute in FIELDS.items() if bool in {attribute.type, *get_args(attribute.type)})
CONFERENCE_ONLY = frozenset(name for name, attribute in FIELDS.items() if SCOPE in attribute.metadata)
SECRETS = tuple(name for name, attribute in FIELDS.items() if SECRET in attribute.metadata)
"""The fields that a journal leaves out, or stores only in part."""

_SHARED = [name for name in FIELDS if name not in {"url", "name", "conference_sid", *CONFERENCE_ONLY}]
_HELP = {
    "url": "URL of the WebSocket server that receives the audio; no query string.",
    "name": "Name of the stream, unique on its conference or call; generated by default.",
    "unnamed": "Send no name. Such a start is never retried once it may have been executed.",
    "track": "Which side is streamed; both by default.",
    "status_callback": "URL that receives status callbacks.",
    "status_callback_method": "HTTP method of status callbacks; POST by default.",
    "parameters": "A value for the WebSocket server; repeatable.",
    "authorization_bearer_token": "File with the token that the WebSocket server expects; - reads standard input.",
    "codec": f"{', '.join(CODEC_NAMES[:-1])} or {CODEC_NAMES[-1]}, optionally with sample rate and packet time: "
    "L16@24000h@40i.",
}
_METAVARS = {"url": "wss://...", "status_callback": "URL"}


_token_key_option = click.option(
    _TOKEN_KEY_FILE,
    is_eager=True,  # so that the other option's callback knows it
    expose_value=False,
    callback=_remember_token_keys,
    metavar="FILE",
    help="File with a key that signs a token for each stream, instead of --bearer-token-file; - reads standard input.",
)


def field_option(name: str, **settings: Any) -> Decorator:  # noqa: ANN401  (click's own)
    attribute = FIELDS[name]
    types = get_args(attribute.type)
    choices = next((kind for kind in types if isinstance(kind, type) and issubclass(kind, StrEnum)), None)
    option = "--" + name.replace("_", "-")
    found: dict[str, Any] = {"help": _HELP.get(name, f"The API's {attribute.metadata.get(WIRE_NAME)}.")}
    if name == "parameters":
        option = "--parameter"
        found |= {"multiple": True, "metavar": "NAME=VALUE", "callback": _parameters}
    elif name == "authorization_bearer_token":  # others on this machine can read a command line
        found |= {"metavar": "FILE", "callback": _token_from_file}
        return adding(click.option("--bearer-token-file", name, **found | settings), _token_key_option)
    elif attribute.type is bool:
        found["is_flag"] = True
    elif bool in types:
        option, found["default"] = f"{option}/--no-{name.replace('_', '-')}", None
    elif choices is not None and str not in types:
        found["type"] = click.Choice([word.value for word in choices])
    else:
        found["metavar"] = _METAVARS.get(name, name.upper())
    return click.option(option, name, **found | settings)


def conference_options(*, hidden: bool = False) -> Decorator:
    return adding(*(field_option(name, hidden=hidden) for name in FIELDS if name in CONFERENCE_ONLY))


def reject_conference_options(given: Mapping[str, Any], where: str) -> None:
    for name in sorted(CONFERENCE_ONLY):
        if given[name] is not None:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} is for conference streams only: omit it on {where}")


start_options: Decorator = adding(
    field_option("url", required=True),
    field_option("name"),
    *map(field_option, _SHARED),
    click.option(
        "--may-be-running",
        is_flag=True,
        help="A stream with this --name may be running already: then it counts as started. Stop it by its name.",
    ),
    click.option("--deadline", type=float, metavar="SECONDS", help="Time limit of the whole start, retries included."),
)
"""The options of a single start."""

bulk_start_options: Decorator = adding(
    field_option("url", help=f"{_HELP['url']} A line may override it."),
    field_option("name", help="The same name for all; by default each stream gets a generated one."),
    *map(field_option, _SHARED),
    conference_options(),
)
"""The options of a run for all of its starts."""


def _host(_: click.Context, __: click.Parameter, host: str) -> str:
    if not host:  # which would be all addresses
        raise click.BadParameter("empty: write an address such as 127.0.0.1, or 0.0.0.0 for all")
    return host


address_options: Decorator = adding(
    click.option("--host", default="127.0.0.1", callback=_host, metavar="ADDRESS", help="The address to listen on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=0,
        metavar="N",
        help="The port to listen on; 0 chooses a free one.",
    ),
)
"""The options of a server."""
