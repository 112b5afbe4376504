"""The bounded queue between a session's socket and its handler, and what a task waits on for it."""

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextvars import Context
from typing import TypeAlias

from attrs import frozen

from signalwire_streams.errors import ClientStateError
from signalwire_streams.models._enums import Choice
from signalwire_streams.receiver._protocol import AudioEvent, KeptEvent, MediaEvent, UnknownEvent, memory_of

# An overflowing queue drops these: stale audio is worthless, and nothing depends on an unknown event.
Droppable: TypeAlias = MediaEvent | UnknownEvent
BYTES_PER_EVENT = 4096  # of the queue's default limit; more than 40 ms of 48 kHz audio


class Overflow(Choice):
    """The action when the handler is too slow and the queue is full."""

    __field__ = "overflow"
    DROP_OLDEST = "drop_oldest"
    """Drop the oldest audio and count it, so that the handler catches up."""
    CLOSE = "close"
    """End the session with `EndReason.OVERFLOW`. The handler still gets the queued events."""


@frozen
class QueueLimits:
    max_events: int  # that may be dropped, and again of the others; likewise for the bytes
    max_bytes: int  # which the last event may exceed
    overflow: Overflow = Overflow.DROP_OLDEST


class Waiter:
    """A reusable awaitable for one task at a time. Unlike a future, it can resume the task at once.

    A new future and another turn of the event loop would cost as much as decoding a frame does. The methods are those
    that asyncio's tasks call on whatever they wait for.
    """

    def __init__(self, iterated: str) -> None:
        self._iterated = iterated  # what the task iterates over
        self.is_awaited: bool = False  # until the task is resumed, which may be after `wake`
        self._asyncio_future_blocking = False
        self._loop = asyncio.get_running_loop()
        self._waiting: tuple[Callable[[Waiter], object], Context] | None = None  # what resumes the task
        self._cancellation: asyncio.CancelledError | None = None

    def __await__(self) -> Generator["Waiter", None, None]:
        self.is_awaited = self._asyncio_future_blocking = True
        yield self

    def successor(self) -> "Waiter":
        """Return a waiter for another task, where the one that awaits this was cancelled and is still to be resumed.

        Raises:
            ClientStateError: it was not cancelled.
        """
        if self._cancellation is None:
            raise ClientStateError(f"only one loop at a time can iterate over {self._iterated}")
        return Waiter(self._iterated)

    def wake(self) -> None:
        """Resume the task in the loop's next turn."""
        if self._waiting is not None:
            resume, context = self._waiting
            self._waiting = None
            self._loop.call_soon(resume, self, context=context)

    def resume(self) -> None:
        """Resume the task at once, or in the loop's next turn if a task is running."""
        if self._waiting is None:
            return
        if asyncio.current_task(self._loop) is not None:
            self.wake()
            return
        resume, context = self._waiting
        self._waiting = None
        context.run(resume, self)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: "Callable[[Waiter], object]", *, context: Context) -> None:
        self._waiting = callback, context

    def cancel(self, msg: object = None) -> bool:
        if self._waiting is None:
            return False
        self._cancellation = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self.wake()
        return True

    def result(self) -> None:
        """End the wait; the task calls this first when it is resumed, also by a cancellation."""
        self.is_awaited = False
        if self._cancellation is not None:
            cancellation, self._cancellation = self._cancellation, None
            raise cancellation


class EventQueue:
    """Events in order of arrival. When it overflows, it drops the oldest audio, but never DTMF or marks.

    It is its own iterator, for one consumer at a time; wake that after adding events. Cancelling `__anext__` loses no
    event.
    """

    def __init__(self, limits: QueueLimits, on_drop: Callable[[AudioEvent], None]) -> None:
        self.max_events, self.max_bytes = limits.max_events, limits.max_bytes
        self._on_drop = on_drop
        self._droppable: deque[tuple[int, Droppable]] = deque()  # each with its memory
        self._kept: deque[tuple[int, KeptEvent]] = deque()  # each with the number of droppable events before it
        self._bytes = self._kept_bytes = 0
        self._removed = 0  # droppable events, while others are kept
        self._is_closed = False
        self._error: Exception | None = None  # to raise at the end
        self._waiter = Waiter("a stream")
        self.wake: Callable[[], None] = self._waiter.resume  # the waiting consumer, if there is one

    @property
    def is_full(self) -> bool:
        return len(self._droppable) >= self.max_events or self._bytes >= self.max_bytes

    @property
    def depth(self) -> int:
        """The number of events that wait."""
        return len(self._droppable) + len(self._kept)

    @property
    def droppable(self) -> Iterator[Droppable]:
        """The droppable events that wait."""
        return (event for _, event in self._droppable)

    def put(self, event: Droppable) -> None:
        """Add a droppable event; drop the oldest ones if the queue overflows."""
        size = memory_of(event)
        droppable = self._droppable
        droppable.append((size, event))
        self._bytes += size
        room = self.max_events + self._waiter.is_awaited  # a waiting consumer takes one of them
        while len(droppable) > room or self._bytes - size >= self.max_bytes:
            self._on_drop(self._pop_droppable())

    def keep(self, event: KeptEvent, *, make_room: bool = False) -> bool:
        """Add an event that is not dropped for audio. If too many of them wait, return False and add nothing.

        To *make room*, drop the oldest of them instead.
        """
        while len(self._kept) >= self.max_events or self._kept_bytes >= self.max_bytes:
            if not make_room:
                return False
            self._on_drop(self._pop_kept())
        self._kept.append((self._removed + len(self._droppable), event))
        self._kept_bytes += memory_of(event)
        return True

    def remove_media(self) -> None:
        """Remove the media events; the others stay in their order."""
        others: deque[tuple[int, Droppable]] = deque()
        kept: deque[tuple[int, KeptEvent]] = deque()
        for number, droppable in enumerate(self._droppable, self._removed):
            while self._kept and self._kept[0][0] <= number:
                kept.append((len(others), self._kept.popleft()[1]))
            if isinstance(droppable[1], UnknownEvent):
                others.append(droppable)
        kept.extend((len(others), event) for _, event in self._kept)
        self._droppable, self._kept, self._removed = others, kept, 0
        self._bytes = sum(size for size, _ in others)

    def close(self, error: Exception | None = None) -> None:
        self._is_closed, self._error = True, error
        self._waiter.wake()

    def __aiter__(self) -> "EventQueue":
        return self

    async def __anext__(self) -> AudioEvent:
        while not (self._droppable or self._kept):
            if self._is_closed:
                raise self._error or StopAsyncIteration
            if self._waiter.is_awaited:
                self._waiter = self._waiter.successor()
                self.wake = self._waiter.resume
            await self._waiter  # which passes no event, since that would be lost if this is cancelled
        if not self._kept:
            size, event = self._droppable.popleft()
            self._bytes -= size
            return event
        return self._pop_kept() if self._kept[0][0] <= self._removed else self._pop_droppable()

    def _pop_kept(self) -> KeptEvent:
        event = self._kept.popleft()[1]
        self._kept_bytes -= memory_of(event)
        if not self._kept:
            self._removed = 0
        return event

    def _pop_droppable(self) -> Droppable:
        size, event = self._droppable.popleft()
        if self._kept:
            self._removed += 1
        self._bytes -= size
        return event
