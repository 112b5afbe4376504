"""The shared tokens and state in Redis: the only place that talks to it.

The limiter is throttled-py's GCRA, which reads Redis' own clock. Its script is run as it is, but within a transaction
with the state, so that each answer tells whether the bucket behind the tokens is one that began empty: to the script
a key that is missing is a full bucket, and after a FLUSHALL that would be a burst on top of what went out before.
(Its own store has no transactions, rounds rates to whole requests in whole seconds, and keeps connection pools by
their URL, password included, for the life of the process.)
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

from attrs import define, field, frozen
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    InvalidResponse,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    WatchError,
)
from throttled.asyncio.rate_limiter.gcra import RedisLimitAtomicAction

from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.models._validation import redact_url, secrets_in
from signalwire_streams.redis_rate_limit._state import State


@define(eq=False, slots=False, str=False)
class RateLimiterError(StreamsError):
    """The limit can't be shared through this Redis: it refuses the user, is no Redis, or holds something else there.

    Waiting does not help. Nothing was sent, and the message holds no password.
    """


class RedisAwayError(Exception):
    """Redis can't be reached or does not answer in time, which may pass; never raised to a caller of the package."""


_LIFE = 24 * 3600
"""Seconds after which what nobody asks for is forgotten; what is asked for lives on."""
_CONNECT, _ANSWER = 2.0, 1.0
_MAY_PASS = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError)
_Change: TypeAlias = Callable[[State, float], State]


@frozen(kw_only=True)
class Leased:
    """What Redis answered.

    Attributes:
        state: the shared state, or None where Redis knows of none; tokens are void then.
        redis_now: the time there.
        tokens: how many were leased; 0 when there were fewer than asked for.
        left: how many there were.
        wait: seconds until there are as many as asked for.
        wait_for_one: seconds until there is one.
    """

    state: State | None
    redis_now: float
    tokens: int = 0
    left: int = 0
    wait: float = 0.0
    wait_for_one: float = 0.0


@define(eq=False)
class Store:
    """One connection to Redis, and what one Space's clients keep there.

    Attributes:
        url: where Redis is; it may hold a password.
        address: the part of it that can be shown.
    """

    url: str = field(repr=False)
    address: str = field(init=False)
    _redis: Redis = field(init=False, repr=False)
    _one_at_a_time: asyncio.Lock = field(factory=asyncio.Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise InvalidRequestError(f"url must be a str, not {type(self.url).__name__}")
        self.address = redact_url(self.url)
        client = client_of(self.url)
        if client is None:
            raise InvalidRequestError(
                f"{self.address!r} is no address of a Redis, or has an option that can't be: write it as "
                "'redis://host:6379/0', 'rediss://user:password@host' for TLS, or 'unix:///path'"
            )
        self._redis = client

    async def lease(self, space: str, rate: float, burst: int, tokens: int) -> Leased:
        """Ask for tokens, without waiting for them.

        Args:
            space: whose.
            rate: tokens per second that flow into the bucket.
            burst: tokens that it may hold for this purpose.
            tokens: how many are wanted.

        Raises:
            RedisAwayError: Redis did not answer.
            RateLimiterError: it refused.
        """
        async with self._exchange() as pipe:
            pipe.getex(_state_key(space), ex=_LIFE)
            pipe.time()
            pipe.eval(RedisLimitAtomicAction.SCRIPTS, 1, _tokens_key(space), 1 / rate, burst, tokens)
            text, time, (limited, left, empty_after, wait) = await pipe.execute()
            state, redis_now = _read(text), _seconds(time)
        if state is None or not limited:
            return Leased(state=state, redis_now=redis_now, tokens=tokens if state is not None else 0)
        return Leased(
            state=state,
            redis_now=redis_now,
            left=max(0, left),
            wait=float(wait),
            wait_for_one=max(0.0, float(empty_after) - (burst - 1) / rate),
        )

    async def found(self, space: str, rate: float, burst: int) -> None:
        """Begin anew where Redis knows nothing, with an empty bucket; unless somebody else just did.

        An empty bucket can only be too strict: whatever went out before is counted as if it had been all.

        Raises:
            RedisAwayError: Redis did not answer.
            RateLimiterError: it refused.
        """
        async with self._exchange() as pipe:
            pipe.set(_state_key(space), State().text(), nx=True, ex=_LIFE)
            pipe.delete(_tokens_key(space))
            pipe.eval(RedisLimitAtomicAction.SCRIPTS, 1, _tokens_key(space), 1 / rate, burst, burst)
            await pipe.execute()

    async def look(self, space: str) -> Leased:
        """Ask for the state alone.

        Raises:
            RedisAwayError: Redis did not answer.
            RateLimiterError: it refused.
        """
        async with self._exchange() as pipe:
            pipe.getex(_state_key(space), ex=_LIFE)
            pipe.time()
            text, time = await pipe.execute()
            return Leased(state=_read(text), redis_now=_seconds(time))

    async def change(self, space: str, change: _Change) -> Leased:
        """Change the state, whoever else does so at the same time; nothing happens where there is none.

        Args:
            space: whose.
            change: makes the new state of the one that is there and the time there.

        Raises:
            RedisAwayError: Redis did not answer.
            RateLimiterError: it refused.
        """
        key = _state_key(space)
        async with self._exchange() as pipe:
            while True:
                await pipe.watch(key)
                state, redis_now = _read(await pipe.get(key)), _seconds(await pipe.time())
                if state is None:
                    return Leased(state=None, redis_now=redis_now)
                changed = change(state, redis_now)
                pipe.multi()
                pipe.set(key, changed.text(), ex=_LIFE)
                with suppress(WatchError):
                    await pipe.execute()
                    return Leased(state=changed, redis_now=redis_now)

    async def aclose(self) -> None:
        """Close the connection."""
        # A Redis that went away needs no farewell.
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    # Any, since redis-py's types say that a command is to be awaited, which those that a pipeline queues are not.
    @asynccontextmanager
    async def _exchange(self) -> AsyncIterator[Any]:
        """Hold the connection for one exchange, and say in this package's words what goes wrong."""
        async with self._one_at_a_time:
            try:
                async with self._redis.pipeline(transaction=True) as pipe:
                    yield pipe
            except (RedisError, OSError) as error:
                wrong = self._wrong(error)
            except ValueError:
                wrong = RateLimiterError(f"the Redis at {self.address} holds something else under this package's keys")
            else:
                return
        # Outside of the handler: the library's error, whose text may hold anything, is not to be seen with this one.
        raise wrong

    def _wrong(self, error: BaseException) -> Exception:
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        for one in chain:  # redis-py wraps what it meets while it connects
            if isinstance(one, InvalidResponse):
                return RateLimiterError(f"what answers at {self.address} is no Redis")
            if isinstance(one, AuthenticationError):
                return RateLimiterError(f"the Redis at {self.address} wants another user or password in its URL")
            if isinstance(one, _MAY_PASS):
                break
            if isinstance(one, ssl.SSLError | ResponseError):
                return RateLimiterError(f"the Redis at {self.address} can't be used: {self._shown(one)}")
        return RedisAwayError(self._shown(error))

    def _shown(self, error: BaseException) -> str:
        words = str(error).rpartition(" of pipeline caused error: ")[2] or type(error).__name__
        for secret in secrets_in(self.url):
            words = words.replace(secret, "…")
        return " ".join(words.split())[:200]


def client_of(url: str) -> "Redis | None":
    """Make a client, which connects when it is first used; None where the address, or an option in it, can't be."""
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT,
            socket_timeout=_ANSWER,
            # What is sent again may count twice, and whether Redis is there is decided here.
            retry=Retry(NoBackoff(), 0),
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # or an option that is none would come up at the first request
    except (ValueError, TypeError):
        return None
    return client


# The braces make a Redis cluster keep both keys in one place.
def _state_key(space: str) -> str:
    return f"signalwire-streams:{{{space}}}:state"


def _tokens_key(space: str) -> str:
    return f"signalwire-streams:{{{space}}}:tokens"


def _read(text: bytes | str | None) -> State | None:
    return None if text is None else State.read(text)


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6
