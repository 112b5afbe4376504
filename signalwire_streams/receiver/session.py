"""One stream, as its handler has it: events to go through, numbers to look at, and the way back."""

import asyncio
import re
from collections.abc import AsyncIterator
from enum import StrEnum
from secrets import token_hex

from attrs import define, field

from signalwire_streams.receiver.audio._formats import AudioFormat
from signalwire_streams.receiver._session import Backlog, Droppable, Overflow
from signalwire_streams.receiver.events import AudioEvent, MarkEvent, MediaEvent, StartEvent, UnknownEvent
from signalwire_streams.receiver.measures import StreamStatistics
from signalwire_streams.receiver._playback import Playback

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

    def take(self, event: AudioEvent, now: float) -> bool:
        """Take an event in that arrived at that time, in seconds; False when the session must end for it."""
        if isinstance(event, MediaEvent):
            self.statistics.of(event.track).note(event, now)
        elif isinstance(event, UnknownEvent):
            self.statistics.unknown += 1
        else:
            if isinstance(event, MarkEvent):
                self.playback.echoed(event.name)
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

    def end(self, reason: EndReason) -> None:
        """Note how the stream ended; the first reason counts."""
        if self.end_reason is None:
            self.end_reason = reason
            self._backlog.end()
            self.playback.end()
            self._over.set()

    async def ended(self) -> None:
        """Wait until the stream has ended."""
        await self._over.wait()
