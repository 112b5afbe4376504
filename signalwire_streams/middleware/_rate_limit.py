"""The rate limit: acquire a connection slot, then a token of the rate limiter, then send immediately.

The order matters: holding a token while waiting for a slot causes bursts, which is what exceeds the Space's limit.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Protocol, runtime_checkable

from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError, Phase
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._retry import SERVED
from signalwire_streams.models import AttemptResult, Operation, Priority

__all__ = ["RateLimiter"]

_LOG = logging.getLogger("signalwire_streams.rate_limit")

# Looked up once: Python 3.11 looks up each member of an enum in Python.
_QUEUED = Phase.QUEUED
_READ = Operation.READ
_THROTTLED = AttemptResult.THROTTLED
_INTERACTIVE = Priority.INTERACTIVE
BURST_SHARE = 0.005  # of the limit may go out at once, unless the caller says otherwise
LEAST_RATE = 0.5  # requests per window that are let through in any case
_CUT = 0.7  # CUBIC's multiplicative decrease. Source: RFC 9438, which the growth constant is from as well
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 20.0
_GROWTH = 0.4


def next_pause(last: float) -> float:
    """Return the seconds to pause after a 429 without ``Retry-After``; *last* is 0 if a request was served since."""
    return min(2 * last, _LONGEST_PAUSE) if last else _FIRST_PAUSE


def recovered_rate(before: float, elapsed: float, *, window: float, ceiling: float) -> float:
    """Return the rate that CUBIC allows *elapsed* seconds after a cut; it grows beyond the rate *before* the cut."""
    plateau_at: float = ((before * (1 - _CUT)) / _GROWTH) ** (1 / 3)
    grown: float = _GROWTH * (elapsed - plateau_at) ** 3
    return min(max(grown + before, before * _CUT, LEAST_RATE / window), ceiling)


class TokenBucket:
    """A token bucket that slows down after a 429 and recovers. It does no I/O and has no clock."""

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self._burst = float(limit.burst or max(1, round(limit.max_requests * BURST_SHARE)))
        self._ceiling = max((limit.max_requests - self._burst) / limit.window, LEAST_RATE / limit.window)
        self._tokens = self._burst
        self._filled_at = float("-inf")
        self._cut_at: float | None = None
        self._rate_before_cut = 0.0
        self._pause = 0.0
        self._closed_until = float("-inf")
        self.rate = self._ceiling  # requests per second that are let through now

    def time_until_open(self, now: float) -> float:
        """Return the seconds for which no request at all is let through."""
        return max(0.0, self._closed_until - now)

    def try_acquire(self, now: float) -> float:
        """Take a token and return 0, or return the seconds after which to try again."""
        if now < self._closed_until:
            return self._closed_until - now
        if self._cut_at is not None:
            self._recover(now, self._cut_at)
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + self.rate * (now - self._filled_at))
            self._filled_at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def refund(self) -> None:
        self._tokens = min(self._burst, self._tokens + 1.0)

    def on_throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Pause and slow down after a 429; one of a request from before the last cut does not cut the rate again."""
        pause = retry_after
        if self._cut_at is None or sent_at > self._cut_at:
            if self._cut_at is not None:
                self._recover(now, self._cut_at)
            self._rate_before_cut, self._cut_at = self.rate, now
            self._recover(now, now)
            self._pause = next_pause(self._pause)
            pause = self._pause if retry_after is None else retry_after
        if pause is not None:
            self._closed_until = max(self._closed_until, now + pause)

    def on_success(self) -> None:
        """Start with a short pause again at the next 429."""
        self._pause = 0.0

    def _recover(self, now: float, cut_at: float) -> None:
        elapsed, window = now - cut_at, self.limit.window
        self.rate = recovered_rate(self._rate_before_cut, elapsed, window=window, ceiling=self._ceiling)
        if self.rate >= self._ceiling:
            self._cut_at = None


class PriorityQueue:
    """Requests that wait for a grant. A grant is the time until which it may be used."""

    def __init__(self, refund: Callable[[float], object]) -> None:
        self._refund = refund  # called with a grant that arrived just as its wait was cancelled
        self._waiting: dict[Priority, dict[asyncio.Future[float], None]] = {priority: {} for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def ahead(self, priority: Priority) -> int:
        """Return the number of requests that would be served before a new one of that priority."""
        return len(self._waiting[_INTERACTIVE]) if priority is _INTERACTIVE else len(self)

    def head(self) -> tuple[Priority, int]:
        """Return the priority that is served next and how many of it wait; 0 if none does."""
        heads = ((priority, len(turns)) for priority, turns in self._waiting.items() if turns)
        return next(heads, (Priority.BULK, 0))

    def add(self, priority: Priority) -> asyncio.Future[float]:
        """Append a turn, for `wait`."""
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[priority][turn] = None
        return turn

    async def wait(self, turn: asyncio.Future[float], timeout: float) -> float | None:  # noqa: ASYNC109  (it may be 0)
        """Wait for a turn and return its grant, or None on timeout."""
        try:
            async with asyncio.timeout(timeout):
                return await turn
        except TimeoutError:
            return turn.result() if _was_granted(turn) else None
        except asyncio.CancelledError:
            if _was_granted(turn) and turn.exception() is None:
                self._refund(turn.result())
            raise
        finally:
            for turns in self._waiting.values():
                turns.pop(turn, None)

    def grant(self, usable_until: float = float("inf")) -> bool:
        """Grant the next turn. Return False if no request is waiting."""
        turn = self._next()
        if turn is None:
            return False
        turn.set_result(usable_until)
        return True

    def reject(self, error: Exception) -> None:
        while (turn := self._next()) is not None:
            turn.set_exception(copy(error))  # each raises its own, or their tracebacks would become one

    def _next(self) -> asyncio.Future[float] | None:
        for turns in self._waiting.values():
            while turns:
                turn = next(iter(turns))
                del turns[turn]
                if not turn.done():  # otherwise its wait was cancelled and has not ended yet
                    return turn
        return None


def _was_granted(turn: asyncio.Future[float]) -> bool:
    return turn.done() and not turn.cancelled()


class PrioritySemaphore:
    """A semaphore whose free slots go to interactive requests first."""

    def __init__(self, free: int) -> None:
        self.free = free
        self._queue = PriorityQueue(lambda _: self.release())

    def try_acquire(self) -> bool:
        if self.free > 0:
            self.free -= 1
            return True
        return False

    async def acquire(self, priority: Priority, timeout: float) -> bool:  # noqa: ASYNC109  (it may be 0)
        if self.try_acquire():
            return True
        if timeout <= 0:
            return False
        return await self._queue.wait(self._queue.add(priority), timeout) is not None

    def release(self) -> None:
        if self.free > 0 or not self._queue.grant():  # nobody waits while one is free
            self.free += 1


class RateLimiter(Protocol):
    """Decides when a request may be sent. All clients that share a Space's limit share one."""

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (a longer wait is not begun)
        """Wait until one POST may be sent.

        Args:
            priority: interactive requests go before bulk ones.
            timeout: seconds that the caller will wait.

        Returns:
            0 if the request may be sent now, and is counted. Otherwise the seconds that it would have to wait, if these
            are more than *timeout*; then nothing is counted.
        """
        ...

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (a longer wait is not begun)
        """Wait while the Space accepts no requests at all. For reads, which do not count against the limit.

        Returns:
            as `acquire` does.
        """
        ...

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        """Called when the Space rejected a request with "too many requests". *sent_at* is on the client's clock."""
        ...

    def on_success(self) -> None:
        """Called when the Space accepted a request."""
        ...


@runtime_checkable
class SpaceRateLimiter(RateLimiter, Protocol):
    """A rate limiter that is shared beyond its process, and has to know which Space's limit it is."""

    @property
    def rate(self) -> float:
        """Requests per second that all who share it may send now, as far as it knows."""
        ...

    def bind(self, origin: str) -> None:
        """Called by a client with the scheme, host and port of its Space."""
        ...


class LocalRateLimiter:
    """The rate limiter of one process."""

    _TICK = 0.004

    def __init__(self, bucket: TokenBucket, clock: Clock) -> None:
        self.bucket = bucket
        self._clock = clock
        self._queue = self._new_queue()
        self._serving: asyncio.Task[None] | None = None

    def _new_queue(self) -> PriorityQueue:
        return PriorityQueue(lambda _: self.bucket.refund())

    @property
    def rate(self) -> float:
        """Requests per second that may be sent now."""
        return self.bucket.rate

    @property
    def rate_limit(self) -> RateLimit:
        return self.bucket.limit

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (a longer wait is not begun)
        now = self._clock.now()
        ahead = self._queue.ahead(priority)
        wait = self.bucket.time_until_open(now) if ahead else self.bucket.try_acquire(now)
        if not (ahead or wait):
            return 0.0
        if self._drop_closed_loop():
            return await self.acquire(priority, timeout)
        least = max(wait, ahead / self.bucket.rate)
        if least >= timeout:
            return least
        turn = self._queue.add(priority)
        # It is not the task that resets this: an eager one may end before it is assigned.
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return timeout if await self._queue.wait(turn, timeout) is None else 0.0

    def _drop_closed_loop(self) -> bool:
        """Drop the requests that waited in an event loop that was closed; return False if there is none.

        Raises:
            ClientStateError: requests are waiting in another event loop, which would not wake those of this one.
        """
        if self._serving is None or self._serving.done():
            return False
        loop = self._serving.get_loop()
        if loop is asyncio.get_running_loop():
            return False
        if not loop.is_closed():
            raise ClientStateError(
                "requests of another event loop are waiting for this rate limiter: let only clients of one loop share "
                "it, and pass the others a part of the limit, as in rate_limit=RateLimit(utilization=0.4)"
            )
        self._queue, self._serving = self._new_queue(), None
        return True

    async def _serve(self) -> None:
        while self._queue:
            wait = self.bucket.try_acquire(self._clock.now())
            if wait:
                await self._clock.sleep(max(wait, self._TICK))
            elif not self._queue.grant():
                self.bucket.refund()

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (a longer wait is not begun)
        while 0.0 < (wait := self.bucket.time_until_open(self._clock.now())) < timeout:
            await self._clock.sleep(wait)
            timeout -= wait
        return wait

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        now = self._clock.now()
        with logged_pause(self.bucket.time_until_open, now):
            self.bucket.on_throttled(now, sent_at, retry_after)

    def on_success(self) -> None:
        self.bucket.on_success()


@contextmanager
def logged_pause(time_until_open: Callable[[float], float], now: float) -> Iterator[None]:
    """Log the pause that begins within the block; one that only becomes longer was logged before."""
    was_open = not time_until_open(now)
    yield
    pause = time_until_open(now)
    if was_open and pause:
        _LOG.warning("too many requests (429): all requests pause for %.1f s", pause)


def choose_rate_limiter(
    origin: str, shared: RateLimiter | None, rate_limit: RateLimit | None, clock: Clock
) -> RateLimiter:
    """Return the caller's rate limiter, bound to the Space, or create one of the client's own."""
    if isinstance(shared, SpaceRateLimiter):
        shared.bind(origin)
    return shared or LocalRateLimiter(TokenBucket(rate_limit or RateLimit()), clock)


class RateLimitMiddleware:
    _MAX_HOLD = 0.1  # seconds that a token may be held for what is done before sending

    def __init__(self, slots: PrioritySemaphore, rate_limiter: RateLimiter, clock: Clock) -> None:
        self._slots = slots
        self._rate_limiter = rate_limiter
        self._clock = clock

    async def __call__(self, request: Request, send: Handler) -> Result:
        """Wait for a slot and a token, then send the request, unless that would exceed its deadline."""
        state, now = request.state, self._clock.now
        state.phase = _QUEUED
        slots = self._slots
        if not (slots.try_acquire() or await slots.acquire(request.priority, state.deadline_at - now())):
            return _deadline_exceeded("no connection became free in time", None)
        try:
            try:
                wait = await self._acquire(request)
            except Exception as error:  # its own, and of any kind
                if state.sent == "no":
                    raise
                return _failed(error)  # which must not hide that an earlier attempt may have been carried out
            if state.before_sending is not None and not wait:
                granted_at = now()
                await state.before_sending()
                state.before_sending = None
                if now() - granted_at > self._MAX_HOLD:  # the token would be used in a later window
                    wait = await self._acquire(request)
            if wait:
                return _deadline_exceeded("the wait for the rate limiter would exceed the call's deadline", wait)
            state.acquired_at = sent_at = now()
            if sent_at >= state.deadline_at:  # this process was suspended for a while
                return _deadline_exceeded("the call's deadline passed before it was sent", None)
            state.attempts += 1
            result = await send(request)
        finally:
            slots.release()
        self._record(result, sent_at)
        return result

    def _record(self, result: Result, sent_at: float) -> None:
        try:
            if result.attempt_result is _THROTTLED:
                self._rate_limiter.on_throttled(sent_at, result.retry_after)
            elif result.attempt_result in SERVED:
                self._rate_limiter.on_success()
        except Exception:  # noqa: BLE001  (a broken rate limiter must not lose a stream that was just started)
            _LOG.exception("the rate limiter raised an exception after a request, which is ignored")

    def _acquire(self, request: Request) -> Awaitable[float]:
        timeout = request.state.deadline_at - self._clock.now()
        if request.operation is _READ:
            return self._rate_limiter.wait_until_allowed(timeout)
        return self._rate_limiter.acquire(request.priority, timeout)


def _failed(error: Exception) -> Result:
    why = f"the rate limiter raised {type(error).__name__}"
    return Result(attempt_result=AttemptResult.UNRETRYABLE, phase=_QUEUED, detail=why, cause=error)


def _deadline_exceeded(why: str, retry_after: float | None) -> Result:
    return Result(attempt_result=AttemptResult.DEADLINE_EXCEEDED, phase=_QUEUED, detail=why, retry_after=retry_after)
