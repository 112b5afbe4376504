"""Listeners beside a session's handler: the media events as they arrive, or PCM frames made from them."""

import asyncio
from collections import deque
from collections.abc import Awaitable
from math import inf
from typing import Generic, Self, TypeAlias, TypeVar

from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.receiver._protocol import MediaEvent, StartEvent
from signalwire_streams.receiver.audio._drop_mixer import DropMixer
from signalwire_streams.receiver.audio._formats import AudioFormat
from signalwire_streams.receiver.audio._keep_mixer import KeepMixer
from signalwire_streams.receiver.audio._pcm_mixer import Late, PcmFrame, PcmOptions, PcmTracks

_MAX_FRAMES = 100_000
_BYTES_PER_FRAME = 4096  # on average
_FRAME_MS = 20  # of a media event, usually
_LEAST_WAIT = 0.001  # seconds until a timer

_Item = TypeVar("_Item", MediaEvent, PcmFrame)


class _Feed(Generic[_Item]):
    """What waits for one listener. The session holds it, and the listener does."""

    def __init__(self) -> None:
        self.is_closed: bool = False
        self.items: deque[_Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_awaited(self) -> bool:
        """Whether a loop waits for the next item."""
        return self._waiter is not None

    def end(self) -> None:
        """Add no further items."""
        self.is_closed = True
        self._wake()

    async def next(self, _: object) -> _Item:
        """Return the next item; raise `StopAsyncIteration` at the end. Cancelling it loses nothing.

        The argument is the listener, which lives as long as somebody waits: in ``await anext(session.pcm())`` nothing
        else has it.
        """
        while not self.items:
            if self.is_closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise ClientStateError("only one loop at a time can iterate over a tap or a pcm: open another one")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.items.popleft()


class EventFeed(_Feed[MediaEvent]):
    """The media events of a tap; the oldest are dropped if there are too many."""

    def __init__(self, max_frames: int) -> None:
        super().__init__()
        self.dropped: int = 0
        self.max_frames: int = max_frames
        self._bytes = 0

    def put(self, event: MediaEvent, now: float = 0.0) -> None:  # noqa: ARG002  (as of a pcm)
        items = self.items
        items.append(event)
        self._bytes += len(event.payload)
        while len(items) > self.max_frames or (self._bytes > self.max_frames * _BYTES_PER_FRAME and len(items) > 1):
            self._bytes -= len(items.popleft().payload)
            self.dropped += 1
        self._wake()

    async def next(self, _: object) -> MediaEvent:
        event = await super().next(_)
        self._bytes -= len(event.payload)
        return event

    def close(self) -> None:
        """Add no further events."""
        self.end()


class PcmFeed(_Feed[PcmFrame]):
    """The frames of a pcm, made as the events arrive; the oldest are dropped if there are too many."""

    def __init__(self, options: PcmOptions, announced: tuple[str, ...], max_frames: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._mixer = (KeepMixer if options.late == "keep" else DropMixer)(options, self._loop.time(), announced)
        self._max_items = max(1, max_frames * _FRAME_MS // options.frame_ms)
        self._frame_ms = options.frame_ms
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._collect(self._loop.time())

    def put(self, event: MediaEvent, now: float) -> None:
        self._mixer.add(event, now)
        self._collect(now)

    def _collect(self, now: float) -> None:
        """Take the frames that are due, and set the timer for the next one."""
        mixer, items = self._mixer, self.items
        while (frame := mixer.frame(now)) is not None:
            items.append(frame)
            if len(items) > self._max_items:
                dropped = items.popleft()
                items[0].missing_ms += dropped.missing_ms + self._frame_ms
            self._wake()
        if mixer.is_finished and mixer.is_empty:
            self.end()
            return
        # A timer that is too early serves as well, since it sets the next one.
        if mixer.next_at < self._timer_at - _LEAST_WAIT:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = max(mixer.next_at, now + _LEAST_WAIT)
            self._timer = self._loop.call_at(self._timer_at, self._on_time)

    def _on_time(self) -> None:
        self._timer, self._timer_at = None, inf
        self._collect(self._loop.time())

    def close(self) -> None:
        """Add no further events. What has arrived still becomes frames in its time."""
        if not self._mixer.is_finished:
            self._mixer.finish()
            self._collect(self._loop.time())

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().end()


Feed: TypeAlias = EventFeed | PcmFeed


class Listeners:
    """The feeds of a session, which get its media events until it ends."""

    def __init__(self) -> None:
        self.feeds: tuple[Feed, ...] = ()
        self._is_closed = False

    def add(self, feed: Feed) -> None:
        if self._is_closed:
            feed.close()
        else:
            self.feeds += (feed,)

    def remove(self, feed: Feed) -> None:
        self.feeds = tuple(other for other in self.feeds if other is not feed)

    def close(self) -> None:
        """Close the feeds, and those that are added later."""
        self._is_closed = True
        for feed in self.feeds:
            feed.close()


class Tap:
    """A listener beside the handler of a session, from `StreamSession.tap`: ``async for event in tap``.

    It yields the session's media events as they arrive, until the stream ends. It never slows the session, its handler
    or other taps: if the loop is too slow, the tap drops the oldest events. One loop at a time can iterate over it, and
    a second one raises `ClientStateError`.

    Close a tap that is no longer needed, or use ``with session.tap() as tap``.
    """

    def __init__(self, start: StartEvent, audio_format: AudioFormat, listeners: Listeners, feed: EventFeed) -> None:
        """Created by `StreamSession.tap`."""
        self._start = start
        self._audio_format = audio_format
        self._listeners = listeners
        self._events = feed
        self._feed: Feed = feed
        listeners.add(feed)

    @property
    def dropped(self) -> int:
        """Media events that were dropped because the loop was too slow."""
        return self._events.dropped

    def pcm(
        self,
        rate: int = 16_000,
        *,
        tracks: PcmTracks = "mixed",
        frame_ms: int = 20,
        late: Late = "keep",
        delay_ms: int = 60,
    ) -> "PcmStream":
        """Return the tap's audio as PCM frames; `StreamSession.pcm` describes the arguments and the errors.

        The events that wait in the tap come first. The tap itself can't be iterated over any more.

        Raises:
            ClientStateError: the tap feeds a pcm already, or a loop waits for its events.
        """
        options = PcmOptions(
            audio_format=self._audio_format, rate=rate, tracks=tracks, frame_ms=frame_ms, late=late, delay_ms=delay_ms
        )
        events = self._events
        if self._feed is not events or events.is_awaited:
            raise ClientStateError("this tap is in use: open another tap for this pcm")
        self._feed = feed = PcmFeed(options, self._start.tracks, events.max_frames)
        self._listeners.remove(events)
        now = asyncio.get_running_loop().time()
        for event in events.items:
            feed.put(event, now)
        events.items.clear()
        if events.is_closed:
            feed.close()
        else:
            self._listeners.add(feed)
        return PcmStream(self, feed)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[MediaEvent]:
        if self._feed is not self._events:
            raise ClientStateError("this tap feeds a pcm: open another tap to iterate over its events")
        return self._events.next(self)

    def close(self) -> None:
        """End the tap: what waits is still yielded. Closing again has no effect."""
        self._listeners.remove(self._feed)
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Nobody can listen any more: a loop was left without closing its tap.
        self._listeners.remove(self._feed)
        self._feed.end()


class PcmStream:
    """PCM frames of one stream, from `StreamSession.pcm` or `Tap.pcm`: ``async for frame in session.pcm()``.

    It yields one `PcmFrame` after another, and ends with the stream. One loop at a time can iterate over it, and a
    second one raises `ClientStateError`. A wait for the next frame may be cancelled, and repeated.
    """

    def __init__(self, tap: Tap, feed: PcmFeed) -> None:
        """Created by `StreamSession.pcm` and `Tap.pcm`."""
        self._tap = tap  # which is closed when nobody has it any more
        self._feed = feed

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[PcmFrame]:
        return self._feed.next(self)

    def close(self) -> None:
        """End the stream, and the tap it is made from; what has arrived is still yielded."""
        self._tap.close()


def check_max_frames(value: int) -> int:
    """Return the number of frames that a tap may hold.

    Raises:
        InvalidRequestError: it is invalid.
    """
    if type(value) is not int or not 1 <= value <= _MAX_FRAMES:
        raise InvalidRequestError(f"max_frames must be a whole number from 1 to {_MAX_FRAMES}, not {value!r}")
    return value
