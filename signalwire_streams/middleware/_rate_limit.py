"""Waiting for a turn: a connection slot first, then the pacer's leave, then the request goes at once.

In that order, because a leave that is held while something else is waited for would let requests bunch up
afterwards, and a bunch is what breaks the Space's limit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from attrs import define, field

from signalwire_streams._http.error_bodies import advertised_limit
from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase, StreamsError
from signalwire_streams.middleware._logs import log_pause
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._queueing import PrioritySemaphore, was_granted
from signalwire_streams.models import AttemptResult, Operation, Priority

BURST_SHARE = 0.005
"""The part of the limit that may go out at once, unless the caller says otherwise."""
CUT = 0.7
"""CUBIC's multiplicative decrease. Source: RFC 9438, which the growth constant is from as well."""
LEAST_RATE = 0.5
"""Requests per window that are let through in any case."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0
"""Seconds for which the gate closes when the Space did not say how long; it doubles from the first to the longest."""
_GROWTH = 0.4


def recovered_rate(before: float, elapsed: float) -> float:
    """Give the rate that CUBIC allows some time after a cut; it goes on beyond the rate before.

    Args:
        before: requests per second before the cut.
        elapsed: seconds since the cut.
    """
    turn: float = ((before * (1 - CUT)) / _GROWTH) ** (1 / 3)
    grown: float = _GROWTH * (elapsed - turn) ** 3
    return grown + before


@define(eq=False)
class TokenBucket:
    """The state of the pacing, without a clock of its own.

    Attributes:
        limit: the Space's limit and this client's share of it.
        rate: requests per second that are let through now.
        closed_until: the gate's time; until then nothing at all is let through.
    """

    limit: RateLimit
    rate: float = field(init=False)
    closed_until: float = field(init=False, default=float("-inf"))
    _burst: float = field(init=False)
    _ceiling: float = field(init=False)
    _tokens: float = field(init=False)
    _filled_at: float = field(init=False, default=float("-inf"))
    _cut_at: float | None = field(init=False, default=None)
    _rate_before_cut: float = field(init=False, default=0.0)
    _pause: float = field(init=False, default=FIRST_PAUSE)
    _advertised: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._advertised = self.limit.requests
        self._aim_at(self.limit.max_requests, self.limit.burst)
        self.rate = self._ceiling
        self._tokens = self._burst

    def _aim_at(self, most: int, burst: int | None) -> None:
        self._burst = float(burst or max(1, round(most * BURST_SHARE)))
        self._ceiling = max((most - self._burst) / self.limit.window, LEAST_RATE / self.limit.window)

    def time_until_open(self, now: float) -> float:
        """Seconds until the gate is open; 0 when it is."""
        return max(0.0, self.closed_until - now)

    def try_acquire(self, now: float) -> float:
        """Take leave for one request.

        Returns:
            0 when it may go now (and it is counted), else the seconds after which to ask again.
        """
        wait = self.time_until_open(now)
        if wait:
            return wait
        self._recover(now)
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + self.rate * min(now - self._filled_at, 1e6))
            self._filled_at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def refund(self) -> None:
        """Return the leave of a request that was not sent after all."""
        self._tokens = min(self._burst, self._tokens + 1.0)

    def on_throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Note that the Space said "too many requests": close the gate and slow down.

        Args:
            now: the time.
            sent_at: when the refused request was sent. Refusals of requests from before the last cut tell
                nothing new, so they close the gate but do not cut again.
            retry_after: seconds that the Space asked to wait.
        """
        if self._cut_at is None or sent_at > self._cut_at:
            self._recover(now)
            self._rate_before_cut = self.rate
            self.rate = max(self.rate * CUT, LEAST_RATE / self.limit.window)
            self._cut_at = now
            pause = self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self.closed_until = max(self.closed_until, now + (pause if retry_after is None else 0.0))
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)

    def on_success(self) -> None:
        """Note that the Space took a request: the next pause starts small again."""
        self._pause = FIRST_PAUSE

    def advertised(self, requests: int) -> None:
        """Follow the limit that the Space's headers tell. It can only lower the configured one."""
        requests = min(requests, self.limit.requests)
        if requests == self._advertised:
            return
        self._advertised = requests
        most = max(1, int(requests * self.limit.utilization))
        self._aim_at(most, min(self.limit.burst, most) if self.limit.burst else None)
        self.rate = self._ceiling if self._cut_at is None else min(self.rate, self._ceiling)
        self._tokens = min(self._tokens, self._burst)

    def _recover(self, now: float) -> None:
        if self._cut_at is None:
            return
        grown = recovered_rate(self._rate_before_cut, now - self._cut_at)
        self.rate = min(max(grown, self.rate), self._ceiling)
        if self.rate >= self._ceiling:
            self._cut_at = None


_TICK = 0.004
_FRESH = 0.1  # seconds that a leave may be held for what is done before sending


class RateLimiter(Protocol):
    """Decides when a request may go out. One is shared by everything that shares a Space's limit."""

    async def acquire(self, priority: Priority, timeout: float) -> float:
        """Wait until one POST may go out.

        Args:
            lane: interactive requests go before bulk ones.
            patience: seconds that the caller will wait.

        Returns:
            0 when the request may go now, and is counted; otherwise the seconds it would have had to wait,
            when that is more than the caller's patience, and nothing is counted.
        """
        ...

    async def wait_until_allowed(self, timeout: float) -> float:
        """Wait while the Space takes no requests at all; for reads, which the limit does not count."""
        ...

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        """Hear that the Space refused a request, sent at that time of the client's clock, as too many."""
        ...

    def on_success(self, advertised: int | None) -> None:
        """Hear that the Space took a request, and which limit its headers told, if any."""
        ...


@runtime_checkable
class SpaceRateLimiter(RateLimiter, Protocol):
    """A pacer that is shared beyond its process, and wants to know which Space it paces."""

    @property
    def rate(self) -> float:
        """Requests per second that all who share it may make now, as far as it knows."""
        ...

    def bind(self, origin: str) -> None:
        """Hear the scheme, host and port of the Space that a client is made for."""
        ...


def choose_rate_limiter(
    origin: str, pacer: RateLimiter | None, rate_limit: RateLimit | None, clock: Clock
) -> RateLimiter:
    """Take the caller's pacer, telling it the Space if it asks; or make one of this client's own."""
    if isinstance(pacer, SpaceRateLimiter):
        pacer.bind(origin)
    return pacer or LocalRateLimiter(TokenBucket(rate_limit or RateLimit()), clock)


@define(eq=False)
class LocalRateLimiter:
    """Paces the requests of one process.

    Attributes:
        pace: the decisions.
        clock: where time and waiting come from.
    """

    bucket: TokenBucket
    clock: Clock
    _waiting: dict[Priority, dict[asyncio.Future[None], None]] = field(init=False)
    _pump: asyncio.Task[None] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._waiting = {lane: {} for lane in Priority}

    async def acquire(self, priority: Priority, timeout: float) -> float:
        """See `RateLimiter.acquire`."""
        now = self.clock.now()
        ahead = len(self._waiting[Priority.INTERACTIVE])
        if priority is Priority.BULK:
            ahead += len(self._waiting[Priority.BULK])
        wait = self.bucket.time_until_open(now) if ahead else self.bucket.try_acquire(now)
        if not (ahead or wait):
            return 0.0
        least = max(wait, ahead / self.bucket.rate)
        if least >= timeout:
            return least
        return await self._turn(priority, timeout)

    async def _turn(self, lane: Priority, patience: float) -> float:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane][turn] = None
        # It is not the task that resets this: an eager one may end before it is assigned.
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve())
        try:
            async with asyncio.timeout(patience):
                await turn
        except TimeoutError:
            if not was_granted(turn):
                return patience
        except asyncio.CancelledError:
            if was_granted(turn):
                self.bucket.refund()
            raise
        finally:
            self._waiting[lane].pop(turn, None)
        return 0.0

    async def _serve(self) -> None:
        """Grant turns, interactive ones first, until nobody waits."""
        while (turn := self._next()) is not None:
            wait = self.bucket.try_acquire(self.clock.now())
            if wait:
                await self.clock.sleep(max(wait, _TICK))
            else:
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        for waiting in self._waiting.values():
            while waiting:
                turn = next(iter(waiting))
                if not turn.done():
                    return turn
                del waiting[turn]
        return None

    async def wait_until_allowed(self, timeout: float) -> float:
        """See `RateLimiter.wait_until_allowed`."""
        wait = self.bucket.time_until_open(self.clock.now())
        if not wait:
            return 0.0
        if wait >= timeout:
            return wait
        await self.clock.sleep(wait)
        return await self.wait_until_allowed(timeout - wait)

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        """See `RateLimiter.throttled`."""
        now = self.clock.now()
        was_open = not self.bucket.time_until_open(now)
        self.bucket.on_throttled(now, sent_at, retry_after)
        pause = self.bucket.time_until_open(now)
        if was_open and pause:
            log_pause(pause)

    def on_success(self, advertised: int | None) -> None:
        """See `RateLimiter.served`."""
        self.bucket.on_success()
        if advertised is not None:
            self.bucket.advertised(advertised)


@define(eq=False)
class RateLimitMiddleware:
    """The middleware that makes an exchange wait for its turn.

    Attributes:
        slots: how many exchanges may be under way at once, at most as many as the pool has connections.
        pacer: who gives leave.
        clock: where the time comes from.
    """

    slots: PrioritySemaphore
    rate_limiter: RateLimiter
    clock: Clock

    async def __call__(self, exchange: Request, send: Handler) -> Result:
        """Wait for a turn, then send; or say that there was none in time."""
        progress = exchange.state
        progress.phase = Phase.QUEUED
        if not await self.slots.acquire(exchange.priority, progress.deadline_at - self.clock.now()):
            return _expired("no connection became free in time", None)
        try:
            missed = await self._turn(exchange)
            prepare = progress.before_sending
            if prepare is not None and not missed:
                missed = await self._prepare(exchange, prepare)
            if missed:
                return _expired("the pacer would have held it longer than the call may take", missed)
            progress.acquired_at = sent_at = self.clock.now()
            outcome = await send(exchange)
        finally:
            self.slots.release()
        self._report(outcome, sent_at)
        return outcome

    async def _turn(self, exchange: Request) -> float:
        patience = exchange.state.deadline_at - self.clock.now()
        if exchange.operation is Operation.READ:
            return await self.rate_limiter.wait_until_allowed(patience)
        return await self.rate_limiter.acquire(exchange.priority, patience)

    async def _prepare(self, exchange: Request, prepare: Callable[[], Awaitable[None]]) -> float:
        granted_at = self.clock.now()
        try:
            await prepare()
        except StreamsError:
            exchange.state.attempts -= 1  # this one is not made, and the next one is to be prepared as well
            raise
        exchange.state.before_sending = None
        # A leave that was held for long would be used in a window of others.
        return await self._turn(exchange) if self.clock.now() - granted_at > _FRESH else 0.0

    def _report(self, outcome: Result, sent_at: float) -> None:
        if outcome.attempt_result is AttemptResult.THROTTLED:
            self.rate_limiter.on_throttled(sent_at, outcome.retry_after)
        elif outcome.response is not None:
            self.rate_limiter.on_success(advertised_limit(outcome.response.headers))


def _expired(why: str, retry_after: float | None) -> Result:
    return Result(
        attempt_result=AttemptResult.DEADLINE_EXCEEDED, phase=Phase.QUEUED, detail=why, retry_after=retry_after
    )
