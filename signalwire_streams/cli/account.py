"""Which Space and project a command talks to, and the run of one command with a client of theirs."""

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
from attrs import frozen

from signalwire_streams import InvalidRequestError, StreamsClient, StreamsError
from signalwire_streams.cli.failures import Interruption, failure_of
from signalwire_streams.cli.logs import verbose_option

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
