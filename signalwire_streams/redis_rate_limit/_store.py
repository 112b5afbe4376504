"""Shared tokens and state in Redis: one hash per Space, one Lua script, and the only code here that talks to Redis."""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any

from attrs import astuple, define, frozen
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.models._validation import kind_of, masks_secrets, redact_url, secrets_in
from signalwire_streams.redis_rate_limit._state import NO_UPDATE, State, StateUpdate


@define(eq=False, slots=False, str=False)
class RateLimiterError(StreamsError):
    """The limit can't be shared: Redis denies access, the server is not Redis, or the key holds other data.

    Retrying does not help. Nothing was sent, and the message contains no password.
    """


class RedisUnavailableError(Exception):
    """Redis can't be reached or does not respond in time, which may pass; never raised to a caller of the package."""


SCRIPT = """
local life, new_epoch = ARGV[1], ARGV[2]
local rate, burst, reserve, wanted = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local known_epoch, known = ARGV[7], {}
for i = 1, 5 do known[i] = tonumber(ARGV[7 + i]) end
local throttled_after, new_pause, closed_for = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local fields = redis.call('HMGET', KEYS[1], 'epoch', 'cuts', 'closed_until', 'cut_at', 'rate_before', 'pause',
  'tokens', 'filled_at')
-- Whatever was sent before Redis began to count, or lost its memory, counts as a full burst: the bucket starts empty.
if redis.call('EXISTS', KEYS[1]) == 0 then fields = {new_epoch, 0, 0, 0, 0, 0, 0, now} end
for i = 1, 8 do
  if i > 1 then fields[i] = tonumber(fields[i]) end
  if not fields[i] then return redis.error_reply('WRONGTYPE not the state of a rate limiter') end
end
local epoch, cuts, closed_until, cut_at, rate_before, pause, tokens, filled_at = unpack(fields)

-- A clock that was set back must neither hold the gate closed nor stop the refill until it has caught up.
if now < filled_at then
  local step = filled_at - now
  closed_until, cut_at, filled_at = closed_until - step, cut_at - step, now
end

-- What this client knows, and Redis has lost.
if known_epoch ~= '' and (known_epoch ~= epoch or cuts < known[1]) then
  if known[3] > cut_at then cut_at, rate_before, pause = known[3], known[4], known[5] end
  cuts, closed_until = math.max(cuts, known[1]), math.max(closed_until, known[2])
end

tokens = math.min(burst, tokens + (now - filled_at) * rate)
-- 429s that come in together cut the rate once: the others do not know of that cut yet.
if throttled_after == cuts then
  cuts, cut_at, rate_before = cuts + 1, now, rate
  if new_pause > 0 then pause = new_pause end
  closed_until = math.max(closed_until, now + new_pause)
end
if closed_for then closed_until = math.max(closed_until, now + closed_for) end

local granted = 0
if now >= closed_until then granted = math.max(0, math.min(wanted, math.floor(tokens - reserve))) end
tokens = tokens - granted
redis.call('HSET', KEYS[1], 'epoch', epoch, 'cuts', cuts, 'closed_until', closed_until, 'cut_at', cut_at,
  'rate_before', rate_before, 'pause', pause, 'tokens', tokens, 'filled_at', now)
redis.call('EXPIRE', KEYS[1], life)
local reply = {epoch}
for i, number in ipairs({cuts, closed_until, cut_at, rate_before, pause, now, granted, tokens - reserve}) do
  reply[i + 1] = string.format('%.17g', number)
end
return reply
"""
"""One round trip, by Redis' own clock: refill the bucket, apply the update, lease tokens, and return the state."""

_LIFETIME = 24 * 3600  # seconds until the state of an idle Space expires
_CONNECT_TIMEOUT, _RESPONSE_TIMEOUT = 2.0, 1.0
# NoScriptError: redis-py failed while it loaded the script, so that failure counts.
_TRANSIENT = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError, NoScriptError)
# Redis before 7 wraps the error of a command within the script in a message of its own.
_TRANSIENT_CODES = re.compile(r"\b(?:OOM|READONLY|MISCONF|LOADING|BUSY|NOREPLICAS)\b")


@frozen
class LeaseReply:
    """The state, Redis' time, the tokens granted, and how many are left (if negative, how many are missing)."""

    state: State
    redis_now: float
    tokens: int
    left: float


class RedisLink:
    """A connection to one Redis, and the one script that is run there.

    Attributes:
        script: its text.
        failure: the error to raise if that Redis can't be used.
        response_timeout: seconds.
        address: its URL, without what is secret.
    """

    script: str
    failure: type[StreamsError]
    response_timeout: float = _RESPONSE_TIMEOUT

    @masks_secrets
    def __init__(self, url: str) -> None:
        """Check the URL; the connection is opened by the first request."""
        if not isinstance(url, str):
            raise InvalidRequestError(f"url must be a str, not {kind_of(url)}")
        self._url = url
        self.address = redact_url(url)
        client = create_client(url, self.response_timeout)
        if client is None:
            raise InvalidRequestError(
                f"{self.address!r} is not a Redis URL, or has an invalid option: write it as "
                "'redis://host:6379/0', 'rediss://user:password@host' for TLS, or 'unix:///path'"
            )
        self._redis = client
        self._script = client.register_script(self.script)
        self._lock = asyncio.Lock()

    async def call(self, *keys: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401  (redis-py's own type)
        """Run the script.

        Raises:
            RedisUnavailableError: Redis does not respond.
            StreamsError: it can't be used; see `failure`.
        """
        return await self._run(partial(self._script, keys=keys, args=arguments))

    async def ping(self) -> None:
        await self._run(self._redis.ping)

    async def aclose(self) -> None:
        with suppress(RedisError, OSError):  # the server may be gone
            await self._redis.aclose()

    async def _run(self, send: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401  (redis-py's own type)
        async with self._lock:
            try:
                return await send()
            except (RedisError, OSError) as error:
                translated = self._translate(error)
        # Raised outside the handler: redis-py's error, whose text may hold anything, must not become its context.
        raise translated

    def _translate(self, error: BaseException) -> Exception:
        one: BaseException | None = error
        while one is not None:  # redis-py wraps errors that occur while it connects
            if isinstance(one, InvalidResponse):
                return self.failure(f"the server at {self.address} is not a Redis server")
            if isinstance(one, AuthenticationError):
                return self.failure(f"the Redis at {self.address} requires a different user or password in its URL")
            if isinstance(one, AskError | ClusterCrossSlotError):  # a MovedError is an AskError
                return self.failure(f"the Redis at {self.address} is a Redis Cluster, which is not supported")
            if isinstance(one, _TRANSIENT) or (isinstance(one, ResponseError) and _TRANSIENT_CODES.search(str(one))):
                break
            if "WRONGTYPE" in str(one):
                return self.failure(f"the Redis at {self.address} has other data under this package's key")
            if isinstance(one, ssl.SSLError | ResponseError):
                return self.failure(f"the Redis at {self.address} can't be used: {describe_error(one, self._url)}")
            one = one.__cause__ or one.__context__
        return RedisUnavailableError(describe_error(error, self._url))


class Store(RedisLink):
    script, failure = SCRIPT, RateLimiterError

    async def exchange(
        self,
        space: str,
        known: State,
        *,
        rate: float,
        burst: int,
        reserve: int = 0,
        tokens: int = 0,
        update: StateUpdate = NO_UPDATE,
        now: float = 0.0,
    ) -> LeaseReply:
        """Report *update*, lease up to *tokens* tokens but leave *reserve* of them, and return the state.

        *known* is the state as this client knows it, and *now* the client's time, which *update* refers to. Raises
        `RedisUnavailableError` if Redis does not respond, and `RateLimiterError` if it can't be used.
        """
        closed_for = "" if update.closed_until is None else update.closed_until - now
        throttled_after = "" if update.throttled_after is None else update.throttled_after
        arguments: list[Any] = [_LIFETIME, token_hex(8), rate, burst, reserve, tokens]
        arguments += [*astuple(known), throttled_after, update.pause, closed_for]
        reply = await self.call(f"signalwire-streams:{{{space}}}:state", arguments=arguments)
        epoch, *state, redis_now, granted, left = map(decode, reply)
        return LeaseReply(State(epoch, *state), redis_now=float(redis_now), tokens=int(granted), left=float(left))


def describe_error(error: BaseException, url: str) -> str:
    """Return the text of an error on one line, without what is secret in the URL, which a server may repeat."""
    text = str(error) or type(error).__name__
    for secret in secrets_in(url):
        text = text.replace(secret, "…")
    return " ".join(text.split())[:200]


def decode(reply: Any) -> str:  # noqa: ANN401  (bytes, or text if the URL says so)
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def create_client(url: str, response_timeout: float = _RESPONSE_TIMEOUT) -> "Redis | None":
    """Create a client, which connects on first use; None if the URL or one of its options is invalid."""
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            socket_timeout=response_timeout,
            # A lease that is repeated may count twice, and the lease loop decides whether Redis is available.
            retry=Retry(NoBackoff(), 0),
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # otherwise an unknown option would fail the first request
    except (ValueError, TypeError, RedisError):  # the last one is for an unknown protocol
        return None
    return client
