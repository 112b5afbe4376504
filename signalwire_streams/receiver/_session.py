"""Events that wait between the socket and the handler, bounded in number and in bytes.

Audio is dropped if it must be, keys and marks never.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from secrets import token_hex
from typing import TypeAlias

from attrs import Factory, define, field

from signalwire_streams.errors import ClientStateError
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import AudioEvent, KeptEvent, MarkEvent, MediaEvent, StartEvent, UnknownEvent
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio._formats import AudioFormat

Droppable: TypeAlias = MediaEvent | UnknownEvent
"""What is dropped when too much waits: audio is only worth something in time, and what is unknown nobody waits for."""

BYTES_PER_EVENT = 4096
"""Bytes that may wait for each event that may: more than 40 ms of 48 kHz audio."""


class Overflow(StrEnum):
    """What happens when a handler is too slow, and as much waits as may."""

    DROP_OLDEST = "drop the oldest audio"
    """The oldest audio is dropped and counted; what the handler gets next is newer."""
    CLOSE = "close the stream"
    """The session ends with `EndReason.OVERFLOW`; what waits is still given."""


@define(eq=False)
class Backlog:
    """What waits for the handler, in the order of its arrival.

    Attributes:
        most: how much audio may wait, and how many keys and marks, in events.
        most_bytes: how much memory they may take, by themselves each; the last event may exceed it.
        is_awaited: whether somebody waits for the next event.
        pull: reads on until something may have come; None while somebody else reads.
    """

    most: int
    most_bytes: int = field(default=Factory(lambda self: BYTES_PER_EVENT * self.most, takes_self=True))
    is_awaited: bool = field(init=False, default=False)
    pull: Callable[[], Awaitable[None]] | None = field(init=False, default=None)
    _droppable: deque[Droppable] = field(init=False, factory=deque, repr=False)
    # Each with how many droppable ones came before it.
    _kept: deque[tuple[int, KeptEvent]] = field(init=False, factory=deque, repr=False)
    _bytes: int = field(init=False, default=0)
    _newest: int = field(init=False, default=0)
    _kept_bytes: int = field(init=False, default=0)
    _came: int = field(init=False, default=0)
    _went: int = field(init=False, default=0)
    _ended: bool = field(init=False, default=False)
    _waiter: asyncio.Future[None] | None = field(init=False, default=None)

    @property
    def is_full(self) -> bool:
        """Whether a further droppable event costs an older one."""
        return len(self._droppable) >= self.most or self._bytes >= self.most_bytes

    def put(self, event: Droppable) -> Droppable | None:
        """Add an event; return one that was dropped for it, if any (`shed` returns further ones)."""
        self._came += 1
        self._droppable.append(event)
        size = self._newest = len(event.payload) if isinstance(event, MediaEvent) else event.memory
        self._bytes += size
        if self._waiter is not None:
            self.wake()
        if len(self._droppable) > self.most or self._bytes - size >= self.most_bytes:
            return self.shed()
        return None

    def shed(self) -> Droppable | None:
        """Drop the oldest droppable event if too much waits, and return it."""
        awaited = self._waiter is not None  # which takes one
        if len(self._droppable) <= self.most + awaited and self._bytes - self._newest < self.most_bytes:
            return None
        return self._take_oldest()

    def keep(self, event: KeptEvent) -> bool:
        """Add an event that is never dropped; return False, and add nothing, if too many of these wait."""
        if len(self._kept) >= self.most or self._kept_bytes >= self.most_bytes:
            return False
        self._kept.append((self._came, event))
        self._kept_bytes += event.memory
        self.wake()
        return True

    def end(self) -> None:
        """Let nothing more come."""
        self._ended = True
        self.wake()

    async def get(self) -> AudioEvent | None:
        """Give the next event, or None when the stream has ended and nothing waits.

        Raises:
            ClientStateError: somebody else waits for it already.
        """
        if self.is_awaited:
            raise ClientStateError("a stream can be gone through by one loop at a time")
        self.is_awaited = True
        try:
            while (event := self.next()) is None and not self._ended:
                await (self.pull or self._wait)()
        finally:
            self.is_awaited = False
        return event

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next(self) -> AudioEvent | None:
        """Give the next event if one waits, else None."""
        if self._kept and self._kept[0][0] <= self._went:
            event = self._kept.popleft()[1]
            self._kept_bytes -= event.memory
            return event
        return self._take_oldest() if self._droppable else None

    def _take_oldest(self) -> Droppable:
        event = self._droppable.popleft()
        self._went += 1
        self._bytes -= len(event.payload) if isinstance(event, MediaEvent) else event.memory
        return event

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


_PLAIN = re.compile(r"[0-9A-Za-z_-]{1,100}")


class EndReason(StrEnum):
    """How a session ended."""

    STOPPED = "stopped"
    """The Space said that the stream stopped."""
    CLOSED = "closed"
    """The Space closed the socket without saying so before, which is as ordinary."""
    LOST = "connection lost"
    """The connection broke."""
    UNREADABLE = "unreadable"
    """The Space sent what no WebSocket may, or a message that was too long."""
    OVERFLOW = "handler too slow"
    """The handler was too slow, and the receiver had been told to close then; or too many keys and marks waited."""
    HANDLER_RETURNED = "handler returned"
    """The handler had enough."""
    HANDLER_FAILED = "handler failed"
    """The handler raised."""
    SHUTDOWN = "shutdown"
    """The receiver was closed."""
    FAILED = "receiver failed"
    """The receiver itself failed, which the log tells more of."""


@define(eq=False)
class StreamSession:
    """One stream while it comes in: ``async for event in session``.

    The loop ends when the stream does. It gives media, keys, marks and unknown events in the order of their
    arrival, repeated and late frames among them: a `WavRecorder` puts them in their places.

    Attributes:
        start: how the stream began.
        audio_format: how its audio is encoded.
        playback: the way back, for a bidirectional stream.
        statistics: what came so far.
        label: a name for files and logs: the stream's sid where that is a plain one, else one that is made up, since
            the sid comes from the other end of a socket and could hold a path or a line break.
        end_reason: how it ended, or None while it goes on.
    """

    start: StartEvent
    audio_format: AudioFormat
    playback: Playback
    statistics: StreamStatistics
    _backlog: Backlog
    _overflow: Overflow
    label: str = field(init=False)
    end_reason: EndReason | None = field(init=False, default=None)
    _over: asyncio.Event = field(init=False, factory=asyncio.Event)

    @label.default
    def _label(self) -> str:
        sid = self.start.stream_sid or ""
        return sid if _PLAIN.fullmatch(sid) else f"stream-{token_hex(8)}"

    @property
    def stream_sid(self) -> str | None:
        """The stream's id."""
        return self.start.stream_sid

    async def __aiter__(self) -> AsyncIterator[AudioEvent]:
        backlog = self._backlog
        while (event := backlog.next() or await backlog.get()) is not None:
            yield event

    def _enqueue(self, event: AudioEvent, now: float) -> bool:
        """Take an event in that arrived at that time, in seconds; False when the session must end for it."""
        if isinstance(event, MediaEvent):
            self.statistics.of(event.track)._record(event, now)
        elif isinstance(event, UnknownEvent):
            self.statistics.unknown += 1
        else:
            if isinstance(event, MarkEvent):
                self.playback._on_mark(event.name)
            return self._backlog.keep(event)
        if self._overflow is Overflow.CLOSE and self._backlog.is_full:
            self._count_dropped(event)
            return False
        dropped = self._backlog.put(event)
        while dropped is not None:
            self._count_dropped(dropped)
            dropped = self._backlog.shed()
        return True

    def _count_dropped(self, event: Droppable) -> None:
        if isinstance(event, MediaEvent):
            self.statistics.of(event.track).dropped += 1

    def _close(self, reason: EndReason) -> None:
        """Note how the stream ended; the first reason counts."""
        if self.end_reason is None:
            self.end_reason = reason
            self._backlog.end()
            self.playback._close()
            self._over.set()

    async def wait_closed(self) -> None:
        """Wait until the stream has ended."""
        await self._over.wait()
