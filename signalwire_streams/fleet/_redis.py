"""The way to the fleet's Redis: one connection pool, and patience with a Redis that goes away and comes back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen
from docket import Docket
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from signalwire_streams.errors import FleetError, InvalidRequestError
from signalwire_streams.redis_rate_limit._store import client_of

_LOG = logging.getLogger("signalwire_streams.fleet")

_SCHEMES = ("redis", "rediss", "unix", "memory")
_ANSWER_WITHIN = 10.0  # seconds
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
# The engine takes one connection for each task at times, and the pool's own cap of 100 would starve it.
_CONNECTIONS = 1_000


@frozen
class Command:
    """One command to Redis.

    Attributes:
        name: the client's method.
        values: what it takes.
        options: what it takes by name.
    """

    name: str
    values: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(factory=dict)


def command(name: str, *values: Any, **options: Any) -> Command:  # noqa: ANN401  (whatever the method takes)
    """Spell a command."""
    return Command(name, values, options)


@define(eq=False)
class Connection:
    """Carries out commands, again and again while Redis is away. What is carried out must bear to be repeated.

    Attributes:
        client: the client, a pool in itself.
        patience: seconds that a Redis may be away.
    """

    client: Any
    patience: float
    _is_away: bool = field(init=False, default=False)

    async def one(self, single: Command) -> Any:  # noqa: ANN401  (the command's own)
        """Carry out one command.

        Raises:
            FleetError: Redis stayed away, or refused.
        """
        return (await self.all([single]))[0]

    async def all(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one go, in their order, but not as one.

        Raises:
            FleetError: Redis stayed away, or refused.
        """
        clock = asyncio.get_running_loop()
        began = clock.time()
        pause = _FIRST_PAUSE
        while True:
            try:
                answers = await self._once(commands)
            except (RedisError, OSError) as error:
                if _is_refusal(error):
                    raise FleetError(f"Redis refuses this user or password: {_words(error)}") from None
                if clock.time() + pause - began > self.patience:
                    raise FleetError(f"Redis can't be used: {_words(error)}") from None
                if not self._is_away:  # once, however many are waiting for it
                    self._is_away = True
                    _LOG.warning("the fleet's Redis can't be used, and is asked again: %s", _words(error))
            else:
                if self._is_away:
                    self._is_away = False
                    _LOG.warning("the fleet's Redis is back")
                return answers
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            [single] = commands
            return [await getattr(self.client, single.name)(*single.values, **single.options)]
        pipeline = self.client.pipeline(transaction=False) if isinstance(self.client, Redis) else self.client.pipeline()
        for each in commands:
            getattr(pipeline, each.name)(*each.values, **each.options)
        return list(await pipeline.execute())


def check_url(url: object) -> str:
    """Check the address of a Redis; the message does not repeat it, since it may hold a password.

    Raises:
        InvalidRequestError: it is none.
    """
    if not isinstance(url, str) or not _is_address(url):
        raise InvalidRequestError(
            "the fleet's Redis is not an address, or has an option that can't be: write it as 'redis://host:6379/0', "
            "'rediss://...' or 'unix:///path'"
        )
    return url


def _is_address(url: str) -> bool:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        return False
    return "://" in url and (scheme == "memory" or (scheme in _SCHEMES and client_of(url) is not None))


def engine_url(url: str) -> str:
    """Give the address as the engine is to have it."""
    parts = urlsplit(url)
    if parts.scheme == "memory" or "max_connections" in parse_qs(parts.query):
        return url
    return f"{url}{'&' if parts.query else '?'}max_connections={_CONNECTIONS}"


async def make_sure(url: str, patience: float) -> None:
    """Make sure that a Redis answers; the engine itself would wait for it without end.

    Raises:
        FleetError: it does not answer within so many seconds, or refuses.
    """
    if urlsplit(url).scheme != "memory":
        async with Redis.from_url(url, retry=None, socket_connect_timeout=patience, socket_timeout=patience) as client:
            await Connection(client, patience).one(command("ping"))


@asynccontextmanager
async def connected(url: str, docket: Docket, patience: float) -> AsyncIterator[Connection]:
    """Open a way to a Redis, or to the engine's in-memory one."""
    if urlsplit(url).scheme == "memory":
        async with docket.redis() as memory:
            yield Connection(memory, patience)
        return
    options: dict[str, Any] = {"socket_timeout": _ANSWER_WITHIN, "socket_connect_timeout": _ANSWER_WITHIN}
    client = Redis.from_url(url, retry=None, **options)
    try:
        yield Connection(client, patience)
    finally:
        await client.aclose()


def _is_refusal(error: Exception) -> bool:
    # Some of redis-py's versions raise a wrong password as a ConnectionError.
    return isinstance(error, AuthenticationError | NoPermissionError) or any(
        words in str(error) for words in ("invalid username-password", "Authentication required")
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
