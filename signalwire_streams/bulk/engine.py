"""Many calls at once over one iterable: intake, tasks, a bounded backlog of outcomes, an orderly end."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field

from signalwire_streams.bulk.outcomes import BulkOutcome, BulkState, state_of
from signalwire_streams.errors import (
    AuthenticationError,
    CircuitOpenError,
    PermissionDeniedError,
    StreamOutcomeUnknown,
    StreamsError,
    TransportError,
)
from signalwire_streams.models import CallStream, ConferenceStream, Lane
from signalwire_streams.transport.clock import Clock
from signalwire_streams.wire.exchange import Errand, Progress

_Item = TypeVar("_Item")

_DRAIN = 5.0
_BACKLOG = 64
_OUTAGE = 60.0
_LEAST_PAUSE = 0.05

Perform = Callable[[_Item, Errand], Awaitable[ConferenceStream | CallStream]]
"""Carries out one item."""


Note = Callable[[Progress, BulkOutcome[Any]], None]
"""Hears of an outcome, and of the errand whose it is."""


class Limit(Protocol):
    """How many items may be under way at once."""

    @property
    def limit(self) -> float:
        """How many may be under way now."""
        ...

    def answered(self, seconds: float, *, pushed_back: bool) -> None:
        """Note an item that ended."""
        ...


@define(eq=False)
class Engine(Generic[_Item]):
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
    limit: Limit
    clock: Clock
    note: Note | None = None
    _running: dict[asyncio.Task[None], None] = field(init=False, factory=dict)
    _backlog: deque[BulkOutcome[_Item]] = field(init=False, factory=deque)
    _changed: asyncio.Event = field(init=False, factory=asyncio.Event)
    _intake: asyncio.Task[None] | None = field(init=False, default=None)
    _denied: StreamsError | None = field(init=False, default=None)
    _broken: Exception | None = field(init=False, default=None)

    async def next(self) -> BulkOutcome[_Item] | None:
        """Give the next outcome, or None when all are given.

        Raises:
            Exception: whatever the input, or a middleware or pacer of the caller's, raised; after all outcomes.
        """
        if self._intake is None:
            self._intake = asyncio.create_task(self._take_in())
            self._intake.add_done_callback(lambda _: self._changed.set())
        while not self._backlog:
            if self._broken is not None and not self._running:
                raise self._broken
            if self._intake.done() and not self._running:
                await self._intake
                return None
            await self._change()
        outcome = self._backlog.popleft()
        self._changed.set()
        return outcome

    async def close(self) -> AsyncIterator[BulkOutcome[_Item]]:
        """Take in nothing more, give what is under way five seconds, cut the rest; give what came of them."""
        if self._intake is not None and not self._intake.done():
            self._intake.cancel()
            await asyncio.wait([self._intake])
        try:
            if self._running:
                await asyncio.wait(self._running, timeout=_DRAIN)
        finally:  # also when somebody does not want to wait for the drain
            for task in self._running:
                task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        while self._backlog:
            yield self._backlog.popleft()

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
        errand = Errand(Lane.BULK)
        began = self.clock.now()
        result: ConferenceStream | CallStream | StreamsError
        try:
            result = await self._until_served(item, errand, began)
        except StreamsError as error:
            result = error
        except asyncio.CancelledError:
            result = _cut(errand)
        except Exception as error:  # noqa: BLE001  (a caller's middleware or pacer broke: the item keeps its outcome)
            result = _cut(errand)
            self._break_off(error)
        self._learn(errand, result)
        outcome = BulkOutcome(
            index=index,
            item=item,
            state=self._state(result),
            stream=None if isinstance(result, StreamsError) else result,
            error=result if isinstance(result, StreamsError) else None,
            attempts=errand.progress.attempts,
            seconds=self.clock.now() - began,
        )
        if self.note is not None:
            self.note(errand.progress, outcome)
        self._put(outcome)

    async def _until_served(self, item: _Item, errand: Errand, began: float) -> ConferenceStream | CallStream:
        """Carry out an item; while the breaker is open, wait for it instead of failing item after item."""
        while True:
            try:
                return await self.perform(item, errand)
            except CircuitOpenError as error:
                if self.clock.now() - began > _OUTAGE:
                    raise
                pause = max(error.retry_after or 0.0, _LEAST_PAUSE)
            await self.clock.sleep(pause * (1 + self.clock.random()))

    def _learn(self, errand: Errand, result: ConferenceStream | CallStream | StreamsError) -> None:
        progress = errand.progress
        if isinstance(result, AuthenticationError | PermissionDeniedError):
            self._denied = result
        if progress.turn_at is not None:
            self.limit.answered(self.clock.now() - progress.turn_at, pushed_back=progress.pushed_back)

    def _state(self, result: ConferenceStream | CallStream | StreamsError) -> BulkState:
        if isinstance(result, StreamsError):
            return state_of(result, starting=self.starting)
        if not self.starting:
            return BulkState.STOPPED
        return BulkState.ALREADY_STARTED if result.already_started else BulkState.STARTED


def _cut(errand: Errand) -> StreamsError:
    progress = errand.progress
    progress.note_attempt()
    if progress.sent == "no":
        return TransportError("the run ended before this was sent", attempts=progress.attempts, phase=progress.phase)
    called = f", which was sent as {progress.name!r}" if progress.name is not None else ""
    return StreamOutcomeUnknown(
        f"the run ended before the answer about {progress.target} came{called}",
        sent=progress.sent,
        attempts=progress.attempts,
        phase=progress.phase,
        target=progress.target,
        name=progress.name,
    )


def _not_tried(index: int, item: _Item, why: str) -> BulkOutcome[_Item]:
    return BulkOutcome(index=index, item=item, state=BulkState.NOT_ATTEMPTED, error=TransportError(why))


async def _each(items: Iterable[_Item] | AsyncIterable[_Item]) -> AsyncIterator[_Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
