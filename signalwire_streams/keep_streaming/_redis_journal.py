"""The journal of a keeper in Redis, for several hosts: one of them holds its lease, and the others are on standby.

Redis expires the lease unless it is renewed. The keeper that has it trusts it for a shorter time, and its requests have
to end by then; so nothing is under way when the lease passes on. That time has passed once either of two clocks says
so: the monotonic one, which may stand still while the machine is suspended, or the wall clock, which may be set. Each
tenure has an id of its own, which fences the records: what an earlier tenure writes late is not written.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from math import inf
from secrets import token_hex
from typing import Any, Self

from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError, StreamsError
from signalwire_streams.keep_streaming._records import KeeperOwner, KeptTarget, LeaseLostError, Target
from signalwire_streams.models import TargetKind
from signalwire_streams.models._validation import masks_secrets
from signalwire_streams.redis_rate_limit._store import RedisLink, RedisUnavailableError, decode

# Fractions of a lease.
_EXPIRY = 0.9  # in Redis; the others need a moment to take over
_TRUSTED = 0.65  # from when its renewal was sent
_LEAST = 0.2  # that has to be left when a request is sent
_RENEWAL = 0.2
_LEAST_LEASE = 1.0  # seconds; a shorter one is over before Redis has responded
_RETENTION = 30 * 24 * 3600  # seconds until Redis forgets a keeper that does not come back
_MOST_AT_ONCE = 500
_PAUSE = 0.25  # seconds until Redis is tried again
_CANCEL_AGAIN = 0.1  # seconds

SCRIPT = """
local known, new, lease, retention, names = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local theirs = redis.call('HGET', KEYS[2], 'names')
if theirs and theirs ~= names then return {'names', theirs} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= known and holder ~= new then return {'taken', redis.call('PTTL', KEYS[1])} end
local last = redis.call('HGET', KEYS[2], 'tenure')
local tenure = last == known and known or new
if last == new then last = redis.call('HGET', KEYS[2], 'before') end
if lease > 0 then redis.call('SET', KEYS[1], tenure, 'PX', lease) else redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[2], 'tenure', tenure, 'names', names, 'before', last or '')
redis.call('EXPIRE', KEYS[2], retention)
if not last or last == '' then return {'empty'} end
if last ~= known then return {'new', redis.call('HGETALL', KEYS[2])} end
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[2], ARGV[i])
  else redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
end
return {'ok'}
"""
"""Take, renew or (with a lease of 0) release the lease, and write if this tenure is the last one that there was.

The tenure before that one is stored too, so that the reply to a call whose reply was lost is the same.

Keys: lease, records. Arguments: tenure, the one to begin if another keeper had one since, milliseconds of the lease,
seconds of the records, how names are formed, then targets and records, of which an empty one is removed.
"""


class _Link(RedisLink):
    script, failure, response_timeout = SCRIPT, JournalError, 5.0


class RedisJournal:
    """The records of a keeper, and its lease."""

    targets: dict[Target, KeptTarget]
    is_lost: bool

    @masks_secrets
    def __init__(self, url: str, owner: KeeperOwner, *, lease: float, clock: Clock) -> None:
        if lease < _LEAST_LEASE:
            raise InvalidRequestError(
                f"lease must be at least {_LEAST_LEASE:g} second, not {lease!r}: it is in seconds"
            )
        self._link, self._owner, self._lease, self._clock = _Link(url), owner, lease, clock
        name = f"signalwire-streams:{{{owner.origin.partition('://')[2]}:{owner.project}:{owner.name}}}:keep-1"
        self._keys = f"{name}:lease", f"{name}:targets"
        self.targets = {}
        self._tenure, self._next_tenure = token_hex(16), token_hex(16)
        self._trusted_until = self._renewed_at = -inf  # the latter by the wall clock
        self._losses = 0
        self.is_lost = True
        self._has_records = False  # which are those of the last tenure
        self._is_ending = False
        self._failure: Exception | None = None
        self._why = ""
        self._records: dict[str, str] = {}
        self._queue: dict[str, str] = {}
        self._saving: dict[str, asyncio.Future[None]] = {}
        self._queued, self._news = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None]
        self._closing: asyncio.Task[None]

    async def open(self) -> Self:
        """Ask for the lease, again and again until `aclose`.

        Raises:
            InvalidRequestError: its streams have names of another kind.
            JournalError: Redis can't be reached or used.
        """
        try:
            wait = await self._exchange()
        except BaseException as error:
            await self._link.aclose()
            if isinstance(error, RedisUnavailableError):
                raise JournalError(f"can't reach the Redis at {self._link.address}: {error}") from None
            raise
        self._task = asyncio.create_task(self._run(wait))
        return self

    @property
    def obstacle(self) -> str | None:
        return None if self._left > 0 else self._why

    @property
    def _left(self) -> float:
        """Seconds for which the lease is still trusted."""
        by_wall_clock = self._renewed_at + self._lease * _TRUSTED - self._clock.wall_time()
        return min(self._trusted_until - self._clock.now(), by_wall_clock)

    async def acquire(self) -> bool:
        while self.obstacle is not None:
            await self._wait_for_news()
        was_lost, self.is_lost = self.is_lost, False
        return was_lost

    async def permit(self) -> float:
        losses = self._losses
        while not self.is_lost and losses == self._losses:
            if (left := self._left) > self._lease * _LEAST:
                return self._clock.now() + left
            if self._is_ending:
                break
            await self._wait_for_news()
        raise LeaseLostError

    async def _wait_for_news(self) -> None:
        if self._failure is None:
            self._queued.set()  # not only when a renewal is due
            await self._news.wait()
        if self._failure is not None:
            raise self._failure

    async def save(self, target: Target, kept: KeptTarget) -> None:
        if self.is_lost or (self._is_ending and self.obstacle is not None):
            raise LeaseLostError
        if self._failure is not None:
            raise self._failure
        name = ":".join(target)
        self._write(name, kept.encode())
        saved = self._saving.setdefault(name, asyncio.get_running_loop().create_future())
        await asyncio.shield(saved)

    def save_later(self, target: Target, kept: KeptTarget) -> None:
        name, text = ":".join(target), kept.encode()
        if self._records.get(name) != text:
            self._write(name, text)

    def forget(self, target: Target) -> None:
        self._write(":".join(target), "")

    def _write(self, name: str, text: str) -> None:
        if self.is_lost:  # it is of a tenure that is over
            return
        if text:
            self._records[name] = text
        else:
            self._records.pop(name, None)
        self._queue[name] = text
        self._queued.set()

    def stop_waiting(self) -> None:
        self._is_ending = True
        self._end_waits()

    async def aclose(self) -> None:
        # Also if this is cancelled: a renewal that goes on would keep the other hosts on standby for ever.
        self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._stop_renewing()
        with suppress(RedisUnavailableError, StreamsError):
            while self.obstacle is None:
                is_last = len(self._queue) <= _MOST_AT_ONCE
                await self._exchange(lease=0 if is_last else None)
                if is_last and not self._queue:  # else Redis has just lost its memory
                    self._trusted_until = -inf
        self._drop_saves(LeaseLostError())
        await self._link.aclose()

    async def _stop_renewing(self) -> None:
        while not self._task.done():  # a cancellation may be lost in redis-py, or in Python 3.11's `wait_for`
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CANCEL_AGAIN)

    # --- The lease

    async def _run(self, wait: float) -> None:
        is_away = False
        try:
            while True:
                if is_away or self._trusted_until == -inf:
                    await self._clock.sleep(wait)
                elif not self._queue:
                    self._queued.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._queued.wait(), wait)
                try:
                    wait, is_away = await self._exchange(), False
                except RedisUnavailableError as error:
                    wait, is_away = _PAUSE, True
                    self._why = f"Redis is unavailable: {error}"
                    if self._is_ending:
                        self._end_waits()
        except Exception as error:  # noqa: BLE001  (those who wait get it, whatever it is)
            self._failure, self._trusted_until = error, -inf
            self._drop_saves(error)
            self._wake_waiters()

    async def _exchange(self, *, lease: int | None = None) -> float:
        """Renew the lease and write what is queued. Return the seconds until it is to be renewed, or asked for."""
        batch = dict(islice(self._queue.items(), _MOST_AT_ONCE))
        milliseconds = round(self._lease * _EXPIRY * 1000) if lease is None else lease
        arguments = [self._tenure, self._next_tenure, milliseconds, _RETENTION, self._owner.names]
        arguments += [part for item in batch.items() for part in item]
        asked_at, renewed_at = self._clock.now(), self._clock.wall_time()
        status, *rest = await self._link.call(*self._keys, arguments=arguments)
        match decode(status):
            case "names":
                place, names = f"the journal in the Redis at {self._link.address}", decode(rest[0])
                self._owner.check_names(place, names, instead="pass another name=")
            case "taken":
                self._why = "another keeper has the lease"
                self._lose()
                return min(int(rest[0]) / 1000 + 0.01, self._lease * _RENEWAL)
            case "empty" if self._has_records:  # Redis has lost its memory, and this keeper has not
                self._queue = self._records | {name: "" for name, text in self._queue.items() if not text}
                self._begin_tenure()
            case "empty" | "new":
                self._lose()
                self._begin_tenure()
                self._read(rest[0] if rest else ())
            case _:
                self._confirm(batch)
        self._why = "the lease was not renewed in time"
        self._trusted_until, self._renewed_at = asked_at + self._lease * _TRUSTED, renewed_at
        self._wake_waiters()
        return self._lease * _RENEWAL

    def _begin_tenure(self) -> None:
        self._tenure, self._next_tenure, self._has_records = self._next_tenure, token_hex(16), True

    def _read(self, reply: Sequence[Any]) -> None:
        try:
            texts = [decode(text) for text in reply]
        except UnicodeDecodeError as error:
            raise JournalError("a record in Redis is not in this version's format") from error
        records = {name: text for name, text in zip(texts[::2], texts[1::2], strict=True) if ":" in name}
        self.targets, self._records = {}, records
        for name, text in records.items():
            kind, _, sid = name.partition(":")
            try:
                self.targets[TargetKind(kind), sid] = KeptTarget.decode(text)
            except (ValueError, TypeError, LookupError) as error:
                raise JournalError(f"the record {name!r} in Redis is not in this version's format") from error

    def _confirm(self, batch: dict[str, str]) -> None:
        for name, text in batch.items():
            if self._queue.get(name) == text:  # else a later one follows
                del self._queue[name]
                if (saved := self._saving.pop(name, None)) is not None:
                    saved.set_result(None)

    def _lose(self) -> None:
        self._trusted_until = -inf
        if self._has_records:
            self.is_lost, self._has_records = True, False
            self._losses += 1
            self._records, self._queue = {}, {}
            self._drop_saves(LeaseLostError())
            self._wake_waiters()

    def _end_waits(self) -> None:
        if self.obstacle is not None:
            self._drop_saves(LeaseLostError())
            self._wake_waiters()

    def _drop_saves(self, error: Exception) -> None:
        for saved in self._saving.values():
            saved.set_exception(error)
            saved.exception()  # who waited for it may have been cancelled
        self._saving.clear()

    def _wake_waiters(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
