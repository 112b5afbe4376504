"""Additional listeners of a session: media events as they arrive, or PCM frames made from them."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from math import inf
from typing import Any, Generic, Self, TypeAlias, TypeVar

from signalwire_streams.errors import ClientStateError
from signalwire_streams.receiver._event_queue import Waiter
from signalwire_streams.receiver._protocol import KeptEvent, MediaEvent, StartEvent
from signalwire_streams.receiver.audio._formats import AudioFormat, whole_number
from signalwire_streams.receiver.audio._mixers import Mixer, mixer_for
from signalwire_streams.receiver.audio._pcm_frames import Late, PcmFrame, PcmOptions, PcmTracks

_MAX_FRAMES = 100_000
_BYTES_PER_FRAME = 4096  # on average
_FRAME_MS = 20  # of a media event, usually
_LEAST_WAIT = 0.001  # seconds until a timer

_Item = TypeVar("_Item", MediaEvent, PcmFrame)


class _Feed(Generic[_Item]):
    """Items that wait for one listener. Both the session and the listener hold a reference to it."""

    def __init__(self, *, is_passive: bool = False) -> None:
        self.is_passive = is_passive  # the session treats its queue as if this listener did not exist
        self.is_closed: bool = False
        self.error: BaseException | None = None  # to raise at the end
        self.items: deque[_Item] = deque()
        self.take: Callable[[], _Item] = self.items.popleft
        self.waiter: Waiter = Waiter("a tap or a pcm: open another one")

    def on_read(self) -> None:
        """Resume the loop if there is something for it, at once if no task is running."""
        if self.items or self.is_closed:
            self.waiter.resume()

    def end(self) -> None:
        """Add no further items."""
        self.is_closed = True
        self.waiter.wake()


class EventFeed(_Feed[MediaEvent]):
    """The media events of a tap; the oldest are dropped if there are too many."""

    def __init__(self, max_frames: int, *, is_passive: bool = False) -> None:
        super().__init__(is_passive=is_passive)
        self.take: Callable[[], MediaEvent] = self._take
        self.dropped: int = 0
        self.max_frames: int = max_frames
        self._bytes = 0

    def put(self, event: MediaEvent, now: float = 0.0) -> None:  # noqa: ARG002  (as of a pcm)
        items = self.items
        items.append(event)
        self._bytes += len(event.payload)
        while len(items) > self.max_frames or (self._bytes > self.max_frames * _BYTES_PER_FRAME and len(items) > 1):
            self._take()
            self.dropped += 1

    def _take(self) -> MediaEvent:
        event = self.items.popleft()
        self._bytes -= len(event.payload)
        return event

    def close(self) -> None:
        """Add no further events."""
        self.end()


class PcmFeed(_Feed[PcmFrame]):
    """The frames of a pcm, made as the events arrive; the oldest are dropped if there are too many."""

    def __init__(self, options: PcmOptions, announced: tuple[str, ...], events: EventFeed) -> None:
        super().__init__(is_passive=events.is_passive)
        self._loop = asyncio.get_running_loop()
        self._options, self._announced, self._opened_at = options, announced, self._loop.time()
        self._has_begun = False
        self._mixer: Mixer  # from `begin` on
        self.put: Callable[[MediaEvent, float], None]  # the same; `on_read` makes the frames
        self._max_items = max(1, events.max_frames * _FRAME_MS // options.frame_ms)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    def begin(self, events: Iterable[MediaEvent]) -> None:
        """Make frames, of these events and of what is put from now on."""
        self._has_begun = True
        self._mixer, now = mixer_for(self._options, self._opened_at, self._announced), self._loop.time()
        self.put = self._mixer.add
        for event in events:
            self._mixer.add(event, now)
        self._collect()

    def on_read(self) -> None:
        if self._mixer.has_changed:
            self._collect()
        if self.items or self.is_closed:
            self.waiter.resume()

    def _collect(self) -> None:
        """Take the frames that are due, and set the timer for the next one."""
        items, mixer, now = self.items, self._mixer, self._loop.time()
        for frame in mixer.frames(now):
            items.append(frame)
            if len(items) > self._max_items:
                dropped = items.popleft()
                items[0].missing_ms += dropped.missing_ms + self._options.frame_ms
        if mixer.is_finished and mixer.is_empty:
            self.end()
        elif mixer.next_at < self._timer_at - _LEAST_WAIT:  # one that is too early serves as well: it sets the next one
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = max(mixer.next_at, now + _LEAST_WAIT)
            self._timer = self._loop.call_at(self._timer_at, self._on_time)

    def _on_time(self) -> None:
        self._timer, self._timer_at = None, inf
        self._collect()
        super().on_read()

    def close(self) -> None:
        """Add no further events. What has arrived still becomes frames in its time."""
        if self._has_begun and not self._mixer.is_finished:
            self._mixer.finish()
            self._collect()
            self.waiter.wake()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().end()


class Monitor:
    """The last events of a session, for a display. It changes nothing for the handler and other listeners."""

    is_passive = True

    def __init__(self, max_frames: int) -> None:
        self.error: BaseException | None = None  # which nothing raises
        self.events: deque[MediaEvent] = deque(maxlen=max_frames)
        self.others: deque[KeptEvent] = deque(maxlen=max_frames)

    def put(self, event: MediaEvent, now: float) -> None:  # noqa: ARG002  (as of a pcm)
        self.events.append(event)

    def on_read(self) -> None:
        """Nothing waits for the events."""

    close = on_read


Feed: TypeAlias = EventFeed | PcmFeed | Monitor


class Listeners:
    """The feeds of a session, which get its media events until it ends."""

    def __init__(self) -> None:
        self.feeds: tuple[Feed, ...] = ()
        self.are_tapped: bool = False  # whether any of them takes the events that no loop takes
        self._is_closed = False
        self._error: BaseException | None = None

    def add(self, feed: Feed) -> None:
        if self._is_closed:
            feed.error = self._error
            feed.close()
        else:
            self._set((*self.feeds, feed))

    def remove(self, feed: Feed) -> None:
        self._set(tuple(other for other in self.feeds if other is not feed))

    def note(self, event: KeptEvent) -> None:
        """Pass an event that is neither audio nor unknown to the monitors."""
        for feed in self.feeds:
            if isinstance(feed, Monitor):
                feed.others.append(event)

    def _set(self, feeds: tuple[Feed, ...]) -> None:
        self.feeds = feeds
        self.are_tapped = not all(feed.is_passive for feed in feeds)

    def close(self, error: BaseException | None) -> None:
        """Close the feeds, and those that are added later; they end with the error."""
        self._is_closed, self._error = True, error
        for feed in self.feeds:
            feed.error = error
            feed.close()


class _Listener(Generic[_Item]):
    """An iterator over what waits in a feed. Cancelling a wait loses nothing."""

    _feed: _Feed[_Item]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        feed = self._feed
        while not feed.items:
            if feed.is_closed:
                raise feed.error or StopAsyncIteration
            if feed.waiter.is_awaited:
                feed.waiter = feed.waiter.successor()
            await feed.waiter
        return feed.take()


class Tap(_Listener[MediaEvent]):
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
        self._feed: EventFeed = feed
        self._pcm: PcmFeed | None = None
        listeners.add(feed)

    @property
    def _feeds(self) -> tuple[EventFeed | PcmFeed, ...]:
        return (self._feed,) if self._pcm is None else (self._feed, self._pcm)

    @property
    def dropped(self) -> int:
        """Media events that were dropped because the loop was too slow."""
        return self._feed.dropped

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

        The events that wait in the tap come first. The tap itself can't be iterated over any longer.

        Raises:
            ClientStateError: the tap feeds a pcm already, or a loop waits for its events.
        """
        options = PcmOptions(
            audio_format=self._audio_format, rate=rate, tracks=tracks, frame_ms=frame_ms, late=late, delay_ms=delay_ms
        )
        if self._pcm is not None or self._feed.waiter.is_awaited:
            raise ClientStateError("this tap is in use: open another tap for this pcm")
        self._pcm = feed = PcmFeed(options, self._start.tracks, self._feed)
        if options.is_prepared:
            self._begin_pcm(feed)
        else:
            loop = asyncio.get_running_loop()
            loop.run_in_executor(None, options.resampler).add_done_callback(partial(self._on_prepared, feed))
        return PcmStream(self, feed)

    def _on_prepared(self, feed: PcmFeed, prepared: "asyncio.Future[Any]") -> None:
        feed.error = prepared.exception()
        if feed.error is None:
            self._begin_pcm(feed)
            feed.on_read()
        else:
            self.close()
            feed.end()

    def _begin_pcm(self, feed: PcmFeed) -> None:
        """Have a pcm take over from the tap's own feed, and what waits there."""
        events = self._feed
        self._listeners.remove(events)
        feed.begin(events.items)
        events.items.clear()
        if events.is_closed:
            feed.close()
        else:
            self._listeners.add(feed)

    def __anext__(self) -> Coroutine[Any, Any, MediaEvent]:
        if self._pcm is not None:
            raise ClientStateError("this tap feeds a pcm: open another tap to iterate over its events")
        return super().__anext__()

    def close(self) -> None:
        """End the tap: what waits is still yielded. Closing again has no effect."""
        for feed in self._feeds:
            self._listeners.remove(feed)
            feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The loop was left without closing its tap, and no reference to it remains.
        for feed in self._feeds:
            self._listeners.remove(feed)
            feed.end()


class PcmStream(_Listener[PcmFrame]):
    """PCM frames of one stream, from `StreamSession.pcm` or `Tap.pcm`: ``async for frame in session.pcm()``.

    It yields one `PcmFrame` after another, and ends with the stream. One loop at a time can iterate over it, and a
    second one raises `ClientStateError`. A wait for the next frame may be cancelled, and repeated.
    """

    def __init__(self, tap: Tap, feed: PcmFeed) -> None:
        """Created by `StreamSession.pcm` and `Tap.pcm`."""
        self._tap = tap  # closed when no reference to it remains
        self._feed: PcmFeed = feed

    def close(self) -> None:
        """End the stream, and the tap it is made from; what has arrived is still yielded."""
        self._tap.close()


def check_max_frames(value: int) -> int:
    """Return the number of frames that a tap may hold.

    Raises:
        InvalidRequestError: it is invalid.
    """
    return whole_number("max_frames", value, 1, _MAX_FRAMES)
