"""Listeners beside a session's handler: the media events as they arrive, or PCM frames made from them."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.receiver._protocol import MediaEvent, StartEvent
from signalwire_streams.receiver.audio._drop_mixer import DropMixer
from signalwire_streams.receiver.audio._formats import AudioFormat
from signalwire_streams.receiver.audio._keep_mixer import KeepMixer
from signalwire_streams.receiver.audio._pcm_mixer import Late, PcmFrame, PcmOptions, PcmTracks

_MAX_FRAMES = 100_000
_BYTES_PER_FRAME = 4096  # on average
_BURST = 50  # events and frames that are processed before other tasks get a turn


class Feed:
    """The media events that wait for one listener. The session holds it, and its `Tap` does."""

    def __init__(self, max_frames: int) -> None:
        self.dropped = 0
        self.on_drop: Callable[[MediaEvent], None] | None = None
        self.is_closed = False
        self._max_frames, self._max_bytes = max_frames, max_frames * _BYTES_PER_FRAME
        self._events: deque[tuple[MediaEvent, float]] = deque()
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: MediaEvent, now: float) -> None:
        """Add an event that arrived at *now*; drop the oldest ones if there are too many."""
        events = self._events
        events.append((event, now))
        self._bytes += len(event.payload)
        while len(events) > self._max_frames or (self._bytes > self._max_bytes and len(events) > 1):
            dropped, _ = self.pop()
            self.dropped += 1
            if self.on_drop is not None:
                self.on_drop(dropped)
        self._wake()

    @property
    def next_at(self) -> float | None:
        """When the next event arrived; None if there is none."""
        return self._events[0][1] if self._events else None

    def pop(self) -> tuple[MediaEvent, float]:
        event = self._events.popleft()
        self._bytes -= len(event[0].payload)
        return event

    def close(self) -> None:
        """Add no further events."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, until: float | None = None) -> None:
        """Wait for an event or the end, at most until a time of the loop's clock. It may return early."""
        if self._waiter is not None:
            raise ClientStateError("only one loop at a time can iterate over a tap or its PCM: open another tap")
        loop = asyncio.get_running_loop()
        # One timer serves many waits, since most of them end before it.
        if until is not None and (self._timer is None or until < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(until, self._on_time)
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_time(self) -> None:
        self._timer = None
        self._wake()


class Tap:
    """A listener beside the handler of a session, from `StreamSession.tap`: ``async for event in tap``.

    It yields the session's media events as they arrive, until the stream ends. It never slows the session, its handler
    or other taps: if the loop is too slow, the tap drops the oldest events. One loop at a time can iterate over it, and
    a second one raises `ClientStateError`.

    Close a tap that is no longer needed, or use ``with session.tap() as tap``.
    """

    def __init__(
        self, start: StartEvent, audio_format: AudioFormat, feed: Feed, on_close: Callable[[Feed], None]
    ) -> None:
        """Created by `StreamSession.tap`."""
        self._start = start
        self._audio_format = audio_format
        self._feed = feed
        self._on_close = on_close
        self._has_pcm = False

    @property
    def dropped(self) -> int:
        """Media events that were dropped since the loop was too slow."""
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

        Raises:
            ClientStateError: the tap is used for that already.
        """
        options = PcmOptions(
            audio_format=self._audio_format, rate=rate, tracks=tracks, frame_ms=frame_ms, late=late, delay_ms=delay_ms
        )
        if self._has_pcm:
            raise ClientStateError("this tap already feeds a pcm: open another tap")
        stream = PcmStream(self, options, self._start.tracks, self._feed)
        self._has_pcm = True
        return stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MediaEvent:
        if self._has_pcm:
            raise ClientStateError("this tap feeds a pcm: open another tap to iterate over its events")
        feed = self._feed
        while feed.next_at is None:
            if feed.is_closed:
                raise StopAsyncIteration
            await feed.wait()
        return feed.pop()[0]

    def close(self) -> None:
        """End the tap: the events that wait are still yielded. Closing again has no effect."""
        self._on_close(self._feed)
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Nobody can listen any more: a loop was left without closing its tap.
        self._on_close(self._feed)


class PcmStream:
    """PCM frames of one stream, from `StreamSession.pcm` or `Tap.pcm`: ``async for frame in session.pcm()``.

    It ends with the stream. One loop at a time can iterate over it, and a second one raises `ClientStateError`. A wait
    for the next frame may be cancelled, and repeated.
    """

    def __init__(self, tap: Tap, options: PcmOptions, announced: tuple[str, ...], feed: Feed) -> None:
        """Created by `StreamSession.pcm` and `Tap.pcm`."""
        self._tap = tap
        self._feed = feed
        self._time = asyncio.get_running_loop().time
        self._is_in_order = options.late == "keep"
        self._mixer = (KeepMixer if self._is_in_order else DropMixer)(options, self._time(), announced)
        self._burst = 0
        feed.on_drop = self._mixer.lose

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PcmFrame:
        feed, mixer = self._feed, self._mixer
        while True:
            self._burst += 1
            if self._burst > _BURST:
                self._burst = 0
                await asyncio.sleep(0)
            arrived_at = feed.next_at
            if arrived_at is None or self._is_in_order:
                # Events are added in their time, so that a slow loop changes nothing as long as it loses none.
                frame = mixer.frame(self._time() if arrived_at is None else arrived_at, fill=arrived_at is None)
                if frame is not None:
                    return frame
            if arrived_at is not None:
                mixer.add(*feed.pop())
            elif not feed.is_closed:
                await self._wait()
            elif not mixer.is_finished:
                mixer.finish()
            elif mixer.is_empty:
                raise StopAsyncIteration
            else:
                await self._wait()

    async def _wait(self) -> None:
        self._burst = 0
        await self._feed.wait(self._mixer.next_at())

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
