"""One stream's session, and the bounded queue between its socket and its handler."""
# ruff: noqa: SLF001  (what is private to users is not to this package)

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from secrets import token_hex
from typing import TypeAlias

from attrs import frozen

from signalwire_streams.errors import ClientStateError
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    KeptEvent,
    MarkEvent,
    MediaEvent,
    StartEvent,
    UnknownEvent,
    memory_of,
)
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio._formats import AudioFormat

# An overflowing queue drops these: stale audio is worthless, and nothing depends on an unknown event.
Droppable: TypeAlias = MediaEvent | UnknownEvent
BYTES_PER_EVENT = 4096  # of the queue's default limit; more than 40 ms of 48 kHz audio


class Overflow(StrEnum):
    """The action when the handler is too slow and the queue is full."""

    DROP_OLDEST = "drop_oldest"
    """Drop the oldest audio and count it, so that the handler catches up."""
    CLOSE = "close"
    """End the session with `EndReason.OVERFLOW`. The handler still gets the queued events."""


@frozen
class QueueLimits:
    max_events: int  # that may be dropped, and again of the others; likewise for the bytes
    max_bytes: int  # which the last event may exceed
    overflow: Overflow = Overflow.DROP_OLDEST


class EventQueue:
    """Events in order of arrival. When it overflows, it drops the oldest audio, but never DTMF or marks.

    It is its own iterator, for one consumer at a time. Cancelling `__anext__` loses no event.
    """

    def __init__(self, limits: QueueLimits, on_drop: Callable[[Droppable], None]) -> None:
        self.max_events, self.max_bytes = limits.max_events, limits.max_bytes
        self._on_drop = on_drop
        self._droppable: deque[tuple[int, Droppable]] = deque()  # each with its memory
        self._kept: deque[tuple[int, KeptEvent]] = deque()  # each with the number of droppable events before it
        self._bytes = self._kept_bytes = 0
        self._added = self._removed = 0  # droppable events
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._droppable) >= self.max_events or self._bytes >= self.max_bytes

    def put(self, event: Droppable) -> None:
        """Add a droppable event; drop the oldest ones if the queue overflows."""
        size = memory_of(event)
        self._added += 1
        self._bytes += size
        self._droppable.append((size, event))
        room = self.max_events
        if self._waiter is not None:
            self.wake()
            room += 1  # the consumer takes one of them
        while len(self._droppable) > room or self._bytes - size >= self.max_bytes:
            self._on_drop(self._pop_droppable())

    def keep(self, event: KeptEvent) -> bool:
        """Add an event that is never dropped. Return False, and add nothing, if too many of them are waiting."""
        if len(self._kept) >= self.max_events or self._kept_bytes >= self.max_bytes:
            return False
        self._kept.append((self._added, event))
        self._kept_bytes += memory_of(event)
        self.wake()
        return True

    def close(self) -> None:
        self._is_closed = True
        self.wake()

    def wake(self) -> None:
        """Make the waiting consumer check again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> "EventQueue":
        return self

    async def __anext__(self) -> AudioEvent:
        while (event := self._pop()) is None:
            if self._is_closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise ClientStateError("only one loop at a time can iterate over a stream")
            # The event itself is not passed through the future, since it would be lost if this is cancelled.
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return event

    def _pop(self) -> AudioEvent | None:
        if self._kept and self._kept[0][0] <= self._removed:
            event = self._kept.popleft()[1]
            self._kept_bytes -= memory_of(event)
            return event
        return self._pop_droppable() if self._droppable else None

    def _pop_droppable(self) -> Droppable:
        size, event = self._droppable.popleft()
        self._removed += 1
        self._bytes -= size
        return event


_SAFE_NAME = re.compile(r"[0-9A-Za-z_-]{1,100}")


class EndReason(StrEnum):
    """Why a session ended."""

    STOPPED = "stopped"
    """The Space sent the stop event."""
    CLOSED = "closed"
    """The Space closed the socket without a stop event, which is normal too."""
    LOST = "connection_lost"
    """The connection broke, or the other end answered no ping."""
    UNREADABLE = "unreadable"
    """The Space sent an invalid WebSocket frame, or a message above ``frame_limit``."""
    OVERFLOW = "overflow"
    """The handler was too slow: the queue was full with `Overflow.CLOSE`, or too many DTMF or marks were waiting."""
    HANDLER_RETURNED = "handler_returned"
    """The handler returned while the stream was running."""
    HANDLER_FAILED = "handler_failed"
    """The handler raised an exception."""
    SHUTDOWN = "shutdown"
    """The receiver was closed."""
    FAILED = "receiver_failed"
    """A bug in the receiver; the log has the traceback."""


class StreamSession:
    """One stream as it is received: ``async for event in session``.

    The loop yields media, DTMF, mark and unknown events in order of arrival, and ends with the stream. Frames that
    were repeated or arrived late are included; a `WavRecorder` puts them in place. A wait for the next event may be
    cancelled, by ``asyncio.timeout`` for instance, and repeated on the same iterator. Only one task may wait at a
    time; a second one raises `ClientStateError`.

    Attributes:
        start: the start event.
        audio_format: encoding, sample rate and channels of the audio.
        playback: sends audio back, on a bidirectional stream.
        statistics: counts of received, missing and dropped frames so far.
        label: a name that is safe in file names and logs: the stream's sid, or a random name if that contains anything
            but letters, digits, ``-`` and ``_``.
        end_reason: why the stream ended; None while it is running. It is set when the end arrives, while events that
            arrived before may still wait for the handler.
    """

    def __init__(
        self,
        start: StartEvent,
        *,
        audio_format: AudioFormat,
        playback: Playback,
        statistics: StreamStatistics,
        limits: QueueLimits,
    ) -> None:
        """Created by `MediaReceiver`."""
        self.start = start
        self.audio_format = audio_format
        self.playback = playback
        self.statistics = statistics
        sid = start.stream_sid or ""
        self.label: str = sid if _SAFE_NAME.fullmatch(sid) else f"stream-{token_hex(8)}"
        self.end_reason: EndReason | None = None
        self._overflow = limits.overflow
        self._queue = EventQueue(limits, self._on_drop)
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<StreamSession {self.label}: {self.end_reason or 'running'}>"

    @property
    def stream_sid(self) -> str | None:
        """The stream's id, as the start event has it."""
        return self.start.stream_sid

    def __aiter__(self) -> AsyncIterator[AudioEvent]:
        return self._queue

    async def wait_closed(self) -> None:
        """Wait until the stream has ended."""
        await self._ended.wait()

    def _enqueue(self, event: AudioEvent, now: float) -> bool:
        """Queue an event that arrived at *now*, in seconds; return False if the session must end because of it."""
        if isinstance(event, MediaEvent):
            self.statistics.of(event.track)._record(event, now)
        elif isinstance(event, UnknownEvent):
            self.statistics.unknown += 1
        else:
            if isinstance(event, MarkEvent) and not self.playback._on_mark(event.name):
                return True
            return self._queue.keep(event)
        if self._overflow is Overflow.CLOSE and self._queue.is_full:
            self._on_drop(event)
            return False
        self._queue.put(event)
        return True

    def _on_drop(self, event: Droppable) -> None:
        if isinstance(event, MediaEvent):
            self.statistics.of(event.track).dropped += 1

    def _close(self, reason: EndReason) -> None:
        """End the session, unless it has ended already."""
        if self.end_reason is None:
            self.end_reason = reason
            self._queue.close()
            self.playback._close()
            self._ended.set()
