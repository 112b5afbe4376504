"""Many calls at once over one iterable: intake, tasks, a bounded backlog of outcomes, an orderly end."""

import asyncio
import sys
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field, frozen

from signalwire_streams._http.messages import CallContext, CallState
from signalwire_streams.bulk._results import BulkOutcome, BulkReport, BulkStatus, ReportBuilder, to_status
from signalwire_streams.clock import Clock
from signalwire_streams.errors import (
    AuthenticationError,
    CircuitOpenError,
    ClientStateError,
    JournalError,
    PermissionDeniedError,
    RateLimitedError,
    RunCancelledError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.models import CallStream, ConferenceStream, Priority

LEAST, MOST = 8, 256
_CUT = 0.7
_SLOW = 2.0
_SETTLED = 0.02
_FORGET = 1.02


@define(eq=False)
class AdaptiveConcurrency:
    """Additive increase, multiplicative decrease, on latency and on refusals for lack of capacity.

    While answers come about as fast as the fastest lately, the number grows by one each time that many were
    answered; when they take twice as long, or the Space says 429 or 503, it shrinks by three tenths, at most
    once for the requests that were under way together.

    Attributes:
        limit: how many may be under way now.
    """

    limit: float = float(LEAST * 4)
    _fastest: float | None = field(init=False, default=None)
    _usual: float = field(init=False, default=0.0)
    _grace: int = field(init=False, default=0)

    def record(self, seconds: float, *, pushed_back: bool) -> None:
        """Note a request that ended.

        Args:
            seconds: how long it took, without its waiting for a turn.
            pushed_back: whether the Space said 429 or 503 meanwhile.
        """
        fastest = seconds if self._fastest is None else min(seconds, self._fastest * _FORGET)
        self._fastest = fastest
        self._usual = seconds if not self._usual else self._usual + 0.1 * (seconds - self._usual)
        if self._grace > 0:
            self._grace -= 1
        slow = self._usual > max(fastest * _SLOW, fastest + _SETTLED)
        if not (pushed_back or slow):
            self.limit = min(self.limit + 1.0 / self.limit, float(MOST))
        elif self._grace == 0:
            self.limit = max(self.limit * _CUT, float(LEAST))
            self._grace = int(self.limit)


@frozen
class FixedConcurrency:
    """A number that somebody chose.

    Attributes:
        limit: how many may be under way.
    """

    limit: float

    def record(self, seconds: float, *, pushed_back: bool) -> None:
        """Learn nothing: the number stays."""


_Item = TypeVar("_Item")

DRAIN = 5.0
"""Seconds that what is under way gets when a run ends early."""

_BACKLOG = 64
_OUTAGE, _CROWD = 60.0, 300.0  # seconds that an item waits for a Space that is down, or too busy
_LEAST_PAUSE = 0.05

Perform = Callable[[_Item, CallContext], Awaitable[ConferenceStream | CallStream]]
"""Carries out one item."""


Note = Callable[[CallState, BulkOutcome[Any]], None]
"""Hears of an outcome, and of the errand whose it is."""


class ConcurrencyLimit(Protocol):
    """How many items may be under way at once."""

    @property
    def limit(self) -> float:
        """How many may be under way now."""
        ...

    def record(self, seconds: float, *, pushed_back: bool) -> None:
        """Note an item that ended."""
        ...


@define(eq=False)
class WorkerPool(Generic[_Item]):
    """Carries out items, a limited number at once, and hands over one outcome for each.

    An outcome waits in a backlog until it is taken; while the backlog is full no item is taken in, so that a
    slow consumer costs no memory. Nothing raises per item.

    Attributes:
        items: what to carry out.
        perform: carries out one of them.
        starting: whether they are starts.
        limit: how many may be under way at once.
        clock: where time and waiting come from.
        note: hears of each outcome of an item that was carried out, before it is handed over.
    """

    items: Iterable[_Item] | AsyncIterable[_Item]
    perform: Perform[_Item]
    starting: bool
    limit: ConcurrencyLimit
    clock: Clock
    note: Note | None = None
    _running: dict[asyncio.Task[None], None] = field(init=False, factory=dict)
    _backlog: deque[BulkOutcome[_Item]] = field(init=False, factory=deque)
    _changed: asyncio.Event = field(init=False, factory=asyncio.Event)
    _intake: asyncio.Future[None] | None = field(init=False, default=None)
    _draining: asyncio.Task[None] | None = field(init=False, default=None)
    _denied: StreamsError | None = field(init=False, default=None)
    _broken: Exception | None = field(init=False, default=None)

    async def next(self) -> BulkOutcome[_Item] | None:
        """Give the next outcome, or None when all are given.

        Raises:
            Exception: whatever the input, or a middleware or pacer of the caller's, raised; after all outcomes.
            JournalError: an item could not be recorded, which ended the run; the same.
            RunCancelledError: the input raised CancelledError, which is no cancellation of the caller; the same.
        """
        if self._intake is None:
            # Not by the loop's factory: an eager task begins before `_intake` is set, and its input may end the run.
            self._intake = asyncio.Task(self._take_in())
            self._intake.add_done_callback(lambda _: self._changed.set())
        while not self._backlog:
            if self._broken is not None and not self._running:
                raise self._broken
            if self._intake.done() and not self._running:
                if not self._intake.cancelled():
                    await self._intake
                elif self._draining is None:  # we did not cancel it, so its input raised that
                    raise RunCancelledError(
                        "the run ended before all of its input was read, because the input raised CancelledError: end "
                        "the iteration instead, or raise another error"
                    )
                if isinstance(self._denied, JournalError):
                    raise self._denied
                return None
            await self._change()
        outcome = self._backlog.popleft()
        self._changed.set()
        return outcome

    def drain(self, seconds: float) -> asyncio.Task[None]:
        """Take in nothing more, and cut what is still under way after these seconds; `next` gives it all."""
        if self._intake is None:
            self._intake = asyncio.get_running_loop().create_future()
        if self._draining is not None:
            self._draining.cancel()
        self._intake.cancel()
        self._draining = asyncio.create_task(self._wind_up(self._intake, seconds))
        return self._draining

    async def close(self) -> AsyncIterator[BulkOutcome[_Item]]:
        """Drain, unless that is under way already, and give what came of it."""
        draining = self._draining or self.drain(DRAIN)
        try:
            await asyncio.wait([draining])
        finally:  # also when somebody does not want to wait for the drain
            self._cut()
        while self._backlog:
            yield self._backlog.popleft()

    async def _wind_up(self, intake: asyncio.Future[None], seconds: float) -> None:
        await asyncio.wait([intake])
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
        if self._running:
            self._cut()
            await asyncio.wait(self._running)

    def _cut(self) -> None:
        for task in self._running:
            task.cancel()

    async def _take_in(self) -> None:
        try:
            await self._take_all()
        finally:
            if isinstance(self.items, AsyncGenerator):
                await self.items.aclose()

    def _break_off(self, error: Exception) -> None:
        self._broken = error
        self._changed.set()

    async def _take_all(self) -> None:
        index = 0
        async for item in _each(self.items):
            try:
                while len(self._running) >= int(self.limit.limit) or len(self._backlog) >= _BACKLOG:
                    await self._change()
            except asyncio.CancelledError:
                self._put(_not_tried(index, item, "the run ended before its turn"))
                raise
            if self._broken is not None:
                self._put(_not_tried(index, item, "the run ended before its turn"))
                return
            if self._denied is None:
                task = asyncio.create_task(self._carry_out(index, item))
                self._running[task] = None
                task.add_done_callback(self._ended)
            else:
                self._put(_not_tried(index, item, f"not tried, because of an earlier item: {self._denied}"))
            index += 1

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    def _put(self, outcome: BulkOutcome[_Item]) -> None:
        self._backlog.append(outcome)
        self._changed.set()

    async def _carry_out(self, index: int, item: _Item) -> None:
        errand = CallContext(Priority.BULK)
        began = self.clock.now()
        result: ConferenceStream | CallStream | StreamsError
        try:
            result = await self._until_served(item, errand, began)
        except StreamsError as error:
            result = error
        except asyncio.CancelledError:
            result = _cut(errand, starting=self.starting)
        except Exception as error:  # noqa: BLE001  (a caller's middleware or pacer broke: the item keeps its outcome)
            result = _cut(errand, starting=self.starting)
            self._break_off(error)
        self._learn(errand, result)
        outcome = BulkOutcome(
            index=index,
            item=item,
            status=self._state(result),
            stream=None if isinstance(result, StreamsError) else result,
            error=result if isinstance(result, StreamsError) else None,
            attempts=errand.state.attempts,
            duration=self.clock.now() - began,
        )
        if self.note is not None:
            self.note(errand.state, outcome)
        self._put(outcome)

    async def _until_served(self, item: _Item, errand: CallContext, began: float) -> ConferenceStream | CallStream:
        """Carry out an item; what the breaker or the Space's limit turned away waits, and has another turn.

        Neither was carried out, and the limit is at its end for as many as are under way at once: more than the
        shared allowance of retries can be paid for. An item that an earlier part of the run left in doubt, and
        that this one could not send, waits as well.
        """
        while True:
            try:
                return await self.perform(item, errand)
            except (CircuitOpenError, RateLimitedError, StreamOutcomeUnknownError) as error:
                progress = errand.state
                if isinstance(error, StreamOutcomeUnknownError) and (progress.sent != "no" or not progress.attempts):
                    raise
                patience = _CROWD if isinstance(error, RateLimitedError) else _OUTAGE
                pause = max(error.retry_after or 0.0, _LEAST_PAUSE)
                if self.clock.now() + pause - began > patience:
                    raise
            await self.clock.sleep(pause * (1 + self.clock.random()))

    def _learn(self, errand: CallContext, result: ConferenceStream | CallStream | StreamsError) -> None:
        progress = errand.state
        if isinstance(result, StreamsError) and is_fatal_for_run(result):
            self._denied = result
        if progress.acquired_at is not None:
            self.limit.record(self.clock.now() - progress.acquired_at, pushed_back=progress.was_refused_for_now)

    def _state(self, result: ConferenceStream | CallStream | StreamsError) -> BulkStatus:
        if isinstance(result, StreamsError):
            return to_status(result, starting=self.starting)
        if not self.starting:
            return BulkStatus.STOPPED
        return BulkStatus.ALREADY_STARTED if result.already_started else BulkStatus.STARTED


def is_fatal_for_run(error: StreamsError) -> bool:
    """Whether what one item met, the next ones will meet as well."""
    if isinstance(error, StreamOutcomeUnknownError):  # an earlier attempt left it so, and the last one was denied
        return error.status in {401, 403}
    return isinstance(error, AuthenticationError | PermissionDeniedError | JournalError)


def _cut(errand: CallContext, *, starting: bool) -> StreamsError:
    progress = errand.state
    under_way = progress.record_attempt()
    if under_way == "no" and not (starting and progress.may_have_succeeded):
        attempts = max(progress.attempts - 1, 0)  # the last one only waited
        return RunCancelledError(
            "the run ended before this was sent", sent=progress.sent, attempts=attempts, phase=progress.phase
        )
    called = f", which was sent as {progress.name!r}" if progress.name is not None else ""
    return StreamOutcomeUnknownError(
        f"the run ended before the answer about {progress.target} came{called}",
        sent=progress.sent,
        attempts=progress.attempts,
        phase=progress.phase,
        target=progress.target,
        name=progress.name,
    )


def _not_tried(index: int, item: _Item, why: str) -> BulkOutcome[_Item]:
    return BulkOutcome(index=index, item=item, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError(why))


async def _each(items: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class Keeper(Protocol):
    """Keeps a journal of the run."""

    async def begin(self) -> None:
        """Open the journal; the run begins."""
        ...

    async def end(self) -> None:
        """Write what waits and close the journal; the run has ended. Safe to repeat.

        Raises:
            StreamsError: something could not be recorded; the same each time.
        """
        ...


@define(eq=False)
class BulkRun(Generic[_Item]):
    """Many starts or stops: ``async for outcome in run``, then ``await run.report()``.

    Outcomes come as the items end, in no particular order, one for each item. Leaving the loop early ends the
    run: nothing more is taken in, what is under way gets five seconds to end, and the report tells the rest.
    """

    _engine: WorkerPool[_Item]
    _clock: Clock
    _keeper: Keeper | None = None
    _tally: ReportBuilder = field(init=False, factory=ReportBuilder)
    _is_used: bool = field(init=False, default=False)
    _began_at: float | None = field(init=False, default=None)
    _seconds: float | None = field(init=False, default=None)

    async def __aiter__(self) -> AsyncGenerator[BulkOutcome[_Item], None]:
        self._is_used = True
        if self._began_at is not None:
            raise ClientStateError("a run can be gone through once: make a new one")
        if self._keeper is not None:
            await self._keeper.begin()
        self._began_at = self._clock.now()
        try:
            while (outcome := await self._engine.next()) is not None:
                self._tally.add(outcome)
                yield outcome
        finally:
            await self._end()

    def shutdown(self, timeout: float = DRAIN) -> None:
        """End the run early: take nothing more in, and cut what is under way after these seconds.

        The loop goes on until that is done, so that it sees every outcome; a signal's handler may call this. A
        second call shortens the first: ``drain(0)`` cuts at once.

        Args:
            seconds: for what is under way.
        """
        self._is_used = True
        _ = self._engine.drain(timeout)

    async def report(self) -> BulkReport:
        """Sum the run up. Carries it out first where nobody went through it; ends it where somebody left it."""
        if self._began_at is None:
            async for _ in self:
                pass
        await self._end()
        return self.snapshot

    @property
    def snapshot(self) -> BulkReport:
        """What the run came to until now, for a display; without waiting for anything."""
        seconds = self._seconds
        if seconds is None:
            seconds = 0.0 if self._began_at is None else self._clock.now() - self._began_at
        return self._tally.report(seconds)

    def __del__(self) -> None:
        # As Python does for a coroutine. Where __init__ failed there is no such attribute.
        if not getattr(self, "_is_used", True) and not sys.is_finalizing():
            warnings.warn(
                "a bulk run was never iterated, so nothing was sent: write 'async for outcome in run' or "
                "'await run.report()'",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    async def _end(self) -> None:
        try:
            async for outcome in self._engine.close():
                self._tally.add(outcome)
        finally:
            if self._seconds is None:
                self._seconds = self._clock.now() - (self._began_at or self._clock.now())
            if self._keeper is not None:
                await self._keeper.end()
