"""From accepted callbacks to the user's handler: once each, in order per stream, a bounded number at a time."""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeAlias

from attrs import define, field

from signalwire_streams.callbacks._events import (
    CallbackEvent,
    CallStreamChanged,
    CallStreamState,
    StreamErrored,
    StreamStarted,
    StreamStopped,
)

CallbackHandler: TypeAlias = Callable[[CallbackEvent], Awaitable[object]]
"""What a user writes: ``async def handler(event)``."""

_CANCEL_TIMEOUT = 1.0  # seconds for a handler to end after it was cancelled

_log = logging.getLogger("signalwire_streams.callbacks")


@define(eq=False)
class CallbackCounts:
    """What became of the requests so far.

    Attributes:
        received: callbacks that were verified, whatever became of them then.
        refused: requests that were answered 403.
        overflowed: callbacks that were answered 503, since too many waited or the receiver was closing.
        duplicates: callbacks that had come before, and were not handed on.
        late: the start of a stream that had ended, not handed on.
        handled: callbacks for which the handler came to its end.
        failed: callbacks for which the handler raised.
        dropped: callbacks that were accepted, and cut when the receiver closed.
    """

    received: int = 0
    refused: int = 0
    overflowed: int = 0
    duplicates: int = 0
    late: int = 0
    handled: int = 0
    failed: int = 0
    dropped: int = 0


@define(eq=False)
class _Memory:
    """The latest so many things, which is how long a repeated callback is known for one."""

    _size: int
    _things: OrderedDict[Hashable, None] = field(init=False, factory=OrderedDict)

    def __contains__(self, thing: Hashable) -> bool:
        return thing in self._things

    def add(self, thing: Hashable) -> None:
        self._things[thing] = None
        if len(self._things) > self._size:
            self._things.popitem(last=False)


@define(eq=False)
class Dispatcher:
    """Hands events over to a handler.

    Each stream has a lane of its own, so that its events stay in order and no other stream's slow handler holds
    them up. Callbacks that name no stream have no order.

    Attributes:
        handler: what hears of the events.
        pending: how many events may wait or be in the handler at once.
        memory: how many events, and how many ended streams, are remembered.
        drain: seconds that what is under way gets when this closes.
        counts: what became of the events.
    """

    handler: CallbackHandler
    pending: int
    memory: int
    drain: float
    counts: CallbackCounts = field(factory=CallbackCounts)
    _lanes: dict[Hashable, deque[CallbackEvent]] = field(init=False, factory=dict)
    _tasks: dict[asyncio.Task[None], None] = field(init=False, factory=dict)
    _waiting: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)
    _seen: _Memory = field(init=False)
    _ended: _Memory = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._seen = _Memory(self.memory)
        self._ended = _Memory(self.memory)

    def offer(self, event: CallbackEvent) -> bool:
        """Take an event in, or say that it should come again later."""
        self.counts.received += 1
        identity = _identity(event)
        if identity in self._seen:
            self.counts.duplicates += 1
            return True
        if _starts(event) and event.stream_key in self._ended:
            self.counts.late += 1
            return True
        if self._closed or self._waiting >= self.pending:
            # Not remembered: the next try of the same callback is to be taken.
            self.counts.overflowed += 1
            return False
        self._seen.add(identity)
        if _ends(event):
            self._ended.add(event.stream_key)
        self._put(event)
        return True

    async def aclose(self) -> None:
        """Take nothing more in, give the handler `drain` seconds for what waits, then cancel the rest."""
        self._closed = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, timeout=self.drain)
        finally:  # also when somebody does not want to wait for the drain
            for task in tasks:
                task.cancel()
        _, left = await asyncio.wait(tasks, timeout=min(self.drain, _CANCEL_TIMEOUT))
        if left:
            _log.error(
                "%d callback handlers are still running although they were cancelled, and are left behind", len(left)
            )

    def _put(self, event: CallbackEvent) -> None:
        key = object() if event.stream_key is None else event.stream_key
        self._waiting += 1
        if key in self._lanes:
            self._lanes[key].append(event)
            return
        self._lanes[key] = deque([event])
        task = asyncio.create_task(self._serve(key))
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, key: Hashable) -> None:
        lane = self._lanes[key]
        try:
            while lane:
                await self._deliver(lane[0])
                lane.popleft()
                self._waiting -= 1
        finally:
            del self._lanes[key]
            self._waiting -= len(lane)
            self.counts.dropped += len(lane)

    async def _deliver(self, event: CallbackEvent) -> None:
        task = asyncio.current_task()
        try:
            await self.handler(event)
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            self._failed(event, error)  # something that the handler waited for was cancelled, and not this
        except Exception as error:  # noqa: BLE001  (a handler may raise anything; the next event is to be served)
            self._failed(event, error)
        else:
            self.counts.handled += 1

    def _failed(self, event: CallbackEvent, error: BaseException) -> None:
        self.counts.failed += 1
        kind = type(event).__name__
        _log.error("the callback handler failed for %s of stream %r", kind, event.stream_key, exc_info=error)


def _identity(event: CallbackEvent) -> Hashable:
    """Give what is the same in each try of one callback, and differs between two callbacks.

    A stream starts once and stops once, so that its id says enough: a time may be another one in each try.
    """
    if event.stream_sid and isinstance(event, StreamStarted | StreamStopped):
        return type(event), event.stream_sid
    if event.stream_sid and isinstance(event, StreamErrored):
        return type(event), event.stream_sid, event.error
    if event.stream_key is not None and isinstance(event, CallStreamChanged):
        return type(event), event.stream_key, event.state
    return event


def _starts(event: CallbackEvent) -> bool:
    if isinstance(event, CallStreamChanged):
        return event.state == CallStreamState.STREAMING
    return isinstance(event, StreamStarted)


def _ends(event: CallbackEvent) -> bool:
    """Tell whether an event means that the stream of this id is over.

    A refused duplicate may carry the id of the stream that goes on.
    """
    return event.ending is not None and not event.is_duplicate and event.stream_key is not None
