"""Running an operation on many items: reading them, concurrent tasks, a bounded queue of outcomes, shutdown."""

import asyncio
import sys
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from contextvars import Context
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._operations import Operation, Send
from signalwire_streams.bulk._results import (
    BulkOutcome,
    BulkReport,
    BulkStatus,
    ReportBuilder,
    create_outcome,
    to_status,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import (
    AuthenticationError,
    CircuitOpenError,
    ClientStateError,
    JournalError,
    PermissionDeniedError,
    Phase,
    RateLimitedError,
    RunCancelledError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.models import AttemptResult, CallStream, ConferenceStream, Priority
from signalwire_streams.models._requests import each
from signalwire_streams.models._validation import check_patience

_Item = TypeVar("_Item")
_Result: TypeAlias = ConferenceStream | CallStream | StreamsError

MIN_CONCURRENCY, MAX_CONCURRENCY = 8, 256
_DECREASE = 0.7
_SLOW_FACTOR, _SLOW_MARGIN = 2.0, 0.02
_BASELINE_DRIFT = 1.02

SHUTDOWN_TIMEOUT = 5.0
"""Seconds that requests in flight get when a run ends early."""

_MAX_OUTCOMES = 64
_MAX_OUTAGE, _MAX_THROTTLING = 60.0, 300.0
"""Seconds after which an item gives up on a Space that keeps failing, or keeps responding with 429."""
_MIN_PAUSE = 0.05
# Looked up once: Python 3.11 looks up each member of an enum in Python.
_BULK, _UNKNOWN, _STOPPED = Priority.BULK, BulkStatus.UNKNOWN, BulkStatus.STOPPED
_STARTED, _ALREADY_STARTED = BulkStatus.STARTED, BulkStatus.ALREADY_STARTED
_OVERLOAD = frozenset({AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE})


class FixedConcurrency:
    """The number of items that may be in flight: the one that the caller chose."""

    def __init__(self, limit: float) -> None:
        self.limit: float = limit

    def record(self, latency: float, *, overloaded: bool) -> None:
        """Record a request's latency, and whether the Space responded with 429 or 503."""


class AdaptiveConcurrency(FixedConcurrency):
    """Additive increase, multiplicative decrease, on latency and on responses that report overload.

    While the latency stays near the lowest recent one, the limit grows by one for each *limit* responses. When the
    latency doubles, or the Space responds with 429 or 503, the limit shrinks by three tenths, at most once for the
    requests that were in flight together.
    """

    limit: float

    def __init__(self, limit: float = 4.0 * MIN_CONCURRENCY) -> None:
        super().__init__(limit)
        self._fastest: float | None = None
        self._average = 0.0
        self._grace = 0

    def record(self, latency: float, *, overloaded: bool) -> None:
        fastest = latency if self._fastest is None else min(latency, self._fastest * _BASELINE_DRIFT)
        self._fastest = fastest
        self._average = latency if not self._average else self._average + 0.1 * (latency - self._average)
        if self._grace > 0:
            self._grace -= 1
        is_slow = self._average > max(fastest * _SLOW_FACTOR, fastest + _SLOW_MARGIN)
        if not (overloaded or is_slow):
            self.limit = min(self.limit + 1.0 / self.limit, float(MAX_CONCURRENCY))
        elif self._grace == 0:
            self.limit = max(self.limit * _DECREASE, float(MIN_CONCURRENCY))
            self._grace = int(self.limit)


class WorkerPool(Generic[_Item]):
    """Runs an operation on items, a limited number of them concurrently, and yields one outcome for each.

    Outcomes wait in a queue. While it is full no item is taken from the input, so a slow consumer costs no memory.
    No item raises.
    """

    def __init__(
        self,
        items: Iterable[_Item] | AsyncIterable[_Item],
        operation: Operation[_Item],
        *,
        limit: FixedConcurrency,
        clock: Clock,
    ) -> None:
        self.operation = operation
        self.clock = clock
        self.context: Context | None = None  # in which the items are sent
        self._items = items
        self._limit = limit
        self._running: dict[asyncio.Task[None], None] = {}
        self._outcomes: deque[BulkOutcome[_Item]] = deque()
        self._has_room, self._has_news = asyncio.Event(), asyncio.Event()  # for the intake, and for the consumer
        self._intake: asyncio.Future[None] | None = None
        self._shutdown: asyncio.Task[None] | None = None
        self._fatal: StreamsError | None = None
        self._foreign_error: Exception | None = None

    async def next(self) -> BulkOutcome[_Item] | None:
        """Return the next outcome, or None after the last.

        Raises:
            Exception: the input, or the caller's middleware or rate limiter, raised it; after all outcomes.
            JournalError: an item could not be recorded, which ended the run; also after all outcomes.
            RunCancelledError: the input raised CancelledError without being cancelled; also after all outcomes.
        """
        if self._intake is None:
            # Not by the loop's factory: an eager task begins before `_intake` is set, and its input may end the run.
            self._intake = asyncio.Task(self._read_items(), context=self.context)
            self._intake.add_done_callback(lambda _: self._has_news.set())
        while not self._outcomes:
            if self._foreign_error is not None and not self._running:
                raise self._foreign_error
            if self._intake.done() and not self._running:
                if not self._intake.cancelled():
                    await self._intake
                elif self._shutdown is None:  # we did not cancel it, so its input raised that
                    raise RunCancelledError(
                        "the run ended before all of its input was read, because the input raised CancelledError: end "
                        "the iteration instead, or raise another error"
                    )
                if isinstance(self._fatal, JournalError):
                    raise self._fatal
                return None
            await _next(self._has_news)
        self._has_room.set()
        return self._outcomes.popleft()

    def shutdown(self, timeout: float) -> asyncio.Task[None]:
        """Accept no more items, and cancel those in flight after *timeout* seconds; `next` yields all outcomes.

        Raises:
            ClientStateError: this is not the event loop of the run.
        """
        self._check_loop()
        if self._intake is None:
            self._intake = asyncio.get_running_loop().create_future()
        if self._shutdown is not None:
            self._shutdown.cancel()
        self._intake.cancel()
        self._shutdown = asyncio.create_task(self._finish(self._intake, timeout))
        return self._shutdown

    @property
    def is_ending(self) -> bool:
        """Whether no more items are accepted."""
        return self._shutdown is not None

    def _check_loop(self) -> None:
        loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):  # there is none in this thread
            loop = asyncio.get_running_loop()
        if loop is None or (self._intake is not None and self._intake.get_loop() is not loop):
            raise ClientStateError(
                "a bulk run can only be ended in its own event loop: in another thread, write "
                "loop.call_soon_threadsafe(run.shutdown)"
            )

    async def close(self) -> AsyncIterator[BulkOutcome[_Item]]:
        """Shut down, unless that is already in progress, and yield the remaining outcomes."""
        shutdown = self._shutdown or self.shutdown(SHUTDOWN_TIMEOUT)
        try:
            await asyncio.wait([shutdown])
        finally:  # even if cancelled while waiting
            self._cancel_running()
        while self._outcomes:
            yield self._outcomes.popleft()

    async def _finish(self, intake: asyncio.Future[None], seconds: float) -> None:
        await asyncio.wait([intake])
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        if self._running:
            self._cancel_running()
            await asyncio.wait(self._running)

    def _cancel_running(self) -> None:
        for task in self._running:
            task.cancel()

    async def _read_items(self) -> None:
        try:
            await self._take_all()
        finally:
            if isinstance(self._items, AsyncGenerator):
                await self._items.aclose()

    async def _take_all(self) -> None:
        index = 0
        async for item in each(self._items):
            try:
                while len(self._running) >= int(self._limit.limit) or len(self._outcomes) >= _MAX_OUTCOMES:
                    await _next(self._has_room)
            except asyncio.CancelledError:
                self._skip(index, item, "the run ended before it was sent")
                raise
            # The input may have ignored its cancellation: in Python 3.11, `wait_for` does if its result is there.
            if self._foreign_error is not None or self._shutdown is not None:
                self._skip(index, item, "the run ended before it was sent")
                return
            if self._fatal is None:
                task = asyncio.create_task(self._run(index, item))
                self._running[task] = None
                task.add_done_callback(self._ended)
            else:
                self._skip(index, item, f"not attempted because of an earlier item: {self._fatal}")
            index += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._has_room.set()
        if not self._running:
            self._has_news.set()

    def _put(self, outcome: BulkOutcome[_Item]) -> None:
        self._outcomes.append(outcome)
        self._has_news.set()

    def _skip(self, index: int, item: _Item, why: str) -> None:
        result = self.operation.recorded(item) or RunCancelledError(why)
        self._put(self._outcome(index, item, result, CallState()))

    async def _run(self, index: int, item: _Item) -> None:
        state = CallState(priority=_BULK)
        started_at = self.clock.now()
        result: _Result
        try:
            result = await self._send(self.operation.prepare(item, state), state, started_at)
        except StreamsError as error:
            result = error
            if is_fatal_for_run(error):
                self._fatal = error
        except asyncio.CancelledError:
            result = _cancelled(state, is_start=self.operation.is_start)
        except Exception as error:  # noqa: BLE001  (a middleware or rate limiter of the caller's: the item has an outcome)
            result = _cancelled(state, is_start=self.operation.is_start)
            self._foreign_error = error
        if state.acquired_at is not None:
            latency = self.clock.now() - state.acquired_at
            self._limit.record(latency, overloaded=not _OVERLOAD.isdisjoint(state.rejections))
        outcome = self._outcome(index, item, result, state, self.clock.now() - started_at)
        self.operation.record_outcome(state, outcome)
        self._put(outcome)

    def _outcome(
        self, index: int, item: _Item, result: _Result, state: CallState, duration: float = 0.0
    ) -> BulkOutcome[_Item]:
        return create_outcome(
            index=index,
            item=item,
            status=self._status(result, state),
            stream=None if isinstance(result, StreamsError) else result,
            error=result if isinstance(result, StreamsError) else None,
            attempts=state.attempts,
            duration=duration,
        )

    async def _send(self, send: Send, state: CallState, started_at: float) -> ConferenceStream | CallStream:
        """Send an item, again after a pause while the circuit breaker or the Space's limit rejects it.

        In both cases it was not carried out. All items in flight reach the limit at once, and the shared retry budget
        cannot cover that many retries. An item that an earlier part of the run left in doubt, and that could not be
        sent this time, is sent again as well.
        """
        while True:
            try:
                return await send()
            except (CircuitOpenError, RateLimitedError, StreamOutcomeUnknownError) as error:
                # With another phase, the ledger raised this, so that the item is not sent.
                is_sent = state.sent != "no"
                if isinstance(error, StreamOutcomeUnknownError) and (is_sent or error.phase is not Phase.QUEUED):
                    raise
                limit = _MAX_THROTTLING if isinstance(error, RateLimitedError) else _MAX_OUTAGE
                pause = max(error.retry_after or 0.0, _MIN_PAUSE)
                if self.clock.now() + pause - started_at > limit:
                    raise
            await self.clock.sleep(pause * (1 + self.clock.random()))

    def _status(self, result: _Result, state: CallState) -> BulkStatus:
        if isinstance(result, StreamsError):
            # An earlier attempt may have been carried out, no matter how the last one ended.
            return _UNKNOWN if state.may_have_succeeded else to_status(result, starting=self.operation.is_start)
        if not self.operation.is_start:
            return _STOPPED
        return _ALREADY_STARTED if result.already_started else _STARTED


async def _next(event: asyncio.Event) -> None:
    event.clear()
    await event.wait()


def is_fatal_for_run(error: StreamsError) -> bool:
    """Return True if the other items of the run would fail with this error as well."""
    if isinstance(error, StreamOutcomeUnknownError):  # in doubt since an earlier attempt; the last one was rejected
        return error.status in {401, 403}
    return isinstance(error, AuthenticationError | PermissionDeniedError | JournalError)


def _cancelled(state: CallState, *, is_start: bool) -> StreamsError:
    if state.record_attempt() == "no" and not (is_start and state.may_have_succeeded):
        again = "" if state.sent == "no" else " again"
        return RunCancelledError(
            f"the run ended before this was sent{again}", sent=state.sent, attempts=state.attempts, phase=state.phase
        )
    name = f", which was sent as {state.name!r}" if state.name is not None else ""
    return StreamOutcomeUnknownError(
        f"the run ended before the response for {state.target} arrived{name}",
        sent=state.sent,
        attempts=state.attempts,
        phase=state.phase,
        target=state.target,
        name=state.name,
    )


class RunObserver(Protocol):
    """Observes a bulk run, for telemetry."""

    def begin(self) -> Context:
        """Called before the first item; return the context in which the items are sent."""
        ...

    def add(self, outcome: BulkOutcome[Any]) -> None:
        """Called with each outcome."""
        ...

    def end(self, report: BulkReport) -> None:
        """Called at the end."""
        ...


class BulkRun(Generic[_Item]):
    """Many starts or stops: ``async for outcome in run``, then ``await run.report()``.

    Outcomes arrive as the items end, in no particular order, one for each item. Leaving the loop early ends the run:
    no more items are accepted, requests in flight get five seconds, and the report covers the rest.
    """

    def __init__(self, pool: WorkerPool[_Item], observer: RunObserver | None = None) -> None:
        self._pool = pool
        self._observer = observer
        self._builder = ReportBuilder()
        self._started_at: float | None = None
        self._seconds: float | None = None
        self._is_used = self._is_reporting = False

    async def __aiter__(self) -> AsyncGenerator[BulkOutcome[_Item], None]:
        self._is_used = True
        if self._started_at is not None:
            raise ClientStateError("this run was already iterated: create a new one")
        await self._pool.operation.begin()
        self._started_at = self._pool.clock.now()
        if self._observer is not None:
            self._pool.context = self._observer.begin()
        try:
            while (outcome := await self._pool.next()) is not None:
                self._add(outcome)
                yield outcome
        finally:
            await self._end()

    def shutdown(self, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """End the run early: accept no more items, and cancel those in flight after *timeout* seconds.

        The loop continues until that is done, and yields every outcome. A signal handler may call this. A second call
        replaces the timeout of the first: ``shutdown(0)`` cancels at once.

        Raises:
            InvalidRequestError: the timeout is not a number of seconds.
            ClientStateError: this is not the event loop of the run.
        """
        check_patience(timeout, "timeout")
        self._is_used = True
        _ = self._pool.shutdown(timeout)

    async def report(self) -> BulkReport:
        """Return the report of the run. Runs it first if it was not iterated; ends it if its loop was left early.

        Raises:
            ClientStateError: another task awaits the report, and so runs it.
        """
        if self._is_reporting and not self._pool.is_ending:
            raise ClientStateError(
                "another task awaits the report of this run: await it once, or read run.snapshot meanwhile"
            )
        if self._started_at is None:
            self._is_reporting = True
            try:
                async for _ in self:
                    pass
            finally:
                self._is_reporting = False
        await self._end()
        return self.snapshot

    @property
    def snapshot(self) -> BulkReport:
        """The report of the run so far, for a progress display."""
        seconds = self._seconds
        if seconds is None:
            seconds = 0.0 if self._started_at is None else self._pool.clock.now() - self._started_at
        return self._builder.report(seconds)

    def __del__(self) -> None:
        # As Python does for a coroutine. If the constructor was not called there is no such attribute.
        if not getattr(self, "_is_used", True) and not sys.is_finalizing():
            warnings.warn(
                "a bulk run was never iterated, so nothing was sent: write 'async for outcome in run' or "
                "'await run.report()'",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    def _add(self, outcome: BulkOutcome[_Item]) -> None:
        self._builder.add(outcome)
        if self._observer is not None:
            self._observer.add(outcome)

    async def _end(self) -> None:
        try:
            async for outcome in self._pool.close():
                self._add(outcome)
        finally:
            if self._seconds is None:
                self._seconds = self._pool.clock.now() - (self._started_at or self._pool.clock.now())
                if self._observer is not None:
                    self._observer.end(self.snapshot)
            await self._pool.operation.end()
