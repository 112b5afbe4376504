"""Which Redis a command goes to, and the run of one command with the fleet there."""

import asyncio
import functools
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from signalwire_streams import InvalidRequestError, StreamsError
from signalwire_streams.cli.account import Account
from signalwire_streams._cli.bulk.runner import Knobs, rate_option
from signalwire_streams.cli.failures import Misuse, failure_of
from signalwire_streams._cli.options import Decorator

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet

_Result = TypeVar("_Result")

shared_rate_option: Decorator = rate_option(" of all workers and stops together, so say the same to all")
"""Add the option that says how fast the whole fleet goes."""

_REDIS = "SIGNALWIRE_FLEET_REDIS"

FLEET_ENVIRONMENT = f"""\b
  {_REDIS}  the Redis that the fleet shares: redis://host:6379/0,
                          rediss://user:password@host, unix:///path
"""


def redis_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--redis``, and hand the address to the command."""

    @click.option(
        "--redis",
        "url_of_redis",
        metavar="URL",
        help=f"The Redis that the fleet shares; instead of {_REDIS}, where one with a password belongs.",
    )
    @functools.wraps(command)
    def with_redis(*, url_of_redis: str | None, **fields: object) -> None:
        if url_of_redis is not None and "@" in url_of_redis and not _has_no_password(url_of_redis):
            raise click.UsageError(f"others on this machine can read a command line: put the password into {_REDIS}")
        command(url_of_redis=url_of_redis or os.environ.get(_REDIS), **fields)

    return with_redis


def _has_no_password(url: str) -> bool:
    try:
        return urlsplit(url).password is None
    except ValueError:
        return False


def the_fleet_room() -> Any:  # noqa: ANN401  (a module)
    """Import what needs the extra.

    Raises:
        Misuse: it is not installed.
    """
    # The engine's own words are for its developers; a Redis that is away is told by ours.
    logging.getLogger("docket").setLevel(logging.CRITICAL)
    try:
        return import_module("signalwire_streams.fleet")
    except ModuleNotFoundError as error:
        raise Misuse(str(error)) from None


def check_redis(url: str | None) -> str:
    """Check that an address was said.

    Raises:
        InvalidRequestError: it was not.
    """
    if not url:
        raise InvalidRequestError(f"set {_REDIS} (or --redis) to the Redis that the fleet shares")
    return url


async def paced_client(stack: AsyncExitStack, account: Account, redis: str, knobs: Knobs, **options: Any) -> Any:  # noqa: ANN401  (a client, and what it takes)
    """Give a client that shares the Space's limit, or the rate that was said, with all others of the fleet.

    Raises:
        SharedPacerError: the Redis can't be used.
    """
    shared = import_module("signalwire_streams.redis_rate_limit")
    pacer = await stack.enter_async_context(shared.RedisPacer(redis, rate_limit=knobs.limit))
    return await stack.enter_async_context(account.client(pacer=pacer, **options))


def with_fleet(account: Account, url: str | None, work: "Callable[[Fleet], Awaitable[_Result]]") -> _Result:
    """Do a piece of work with the fleet of an account's project.

    Raises:
        Failure: it did not succeed.
    """
    room = the_fleet_room()

    async def with_it() -> _Result:
        if not account.space or not account.project:
            raise InvalidRequestError("set SIGNALWIRE_SPACE (or --space) and SIGNALWIRE_PROJECT_ID (or --project)")
        async with room.Fleet(check_redis(url), space=account.space, project=account.project) as fleet:
            return await work(fleet)

    try:
        return asyncio.run(with_it())
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None
