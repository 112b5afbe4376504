"""One stream as it is received: its events, taps and PCM, and the way back."""
# ruff: noqa: SLF001  (what is private to users is not to this package)

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from secrets import token_hex

from signalwire_streams.errors import MalformedFrameError, StreamsError
from signalwire_streams.receiver._auth import TokenClaims
from signalwire_streams.receiver._event_queue import EventQueue, Overflow, QueueLimits
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    GapEvent,
    MarkEvent,
    MediaEvent,
    StartEvent,
    UnknownEvent,
    decode_event,
)
from signalwire_streams.receiver._statistics import FARTHEST, StreamStatistics, TrackStatistics
from signalwire_streams.receiver._taps import EventFeed, Listeners, PcmStream, Tap, check_max_frames
from signalwire_streams.receiver.audio._formats import AudioFormat
from signalwire_streams.receiver.audio._pcm_frames import Late, PcmTracks

_SAFE_NAME = re.compile(r"[0-9A-Za-z_-]{1,100}")
_MILLISECONDS = 1000
_MAX_TRACKS = 8  # a peer that makes up names must not fill the memory


class EndReason(StrEnum):
    """Why a session ended."""

    STOPPED = "stopped"
    """The Space sent the stop event."""
    CLOSED = "closed"
    """The Space closed the socket without a stop event, which is normal too."""
    LOST = "connection_lost"
    """The connection broke, or the other end did not reply to a ping."""
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
    IN_DOUBT = "in_doubt"
    """The stream was lost, and nobody can know whether another one was started; see `MediaReceiver.open`."""


_LOSSES = frozenset({EndReason.CLOSED, EndReason.LOST, EndReason.UNREADABLE})


class StreamSession:
    """One stream as it is received: ``async for event in session``.

    The loop yields media, DTMF, mark and unknown events in order of arrival, and ends with the stream. Frames that
    were repeated or arrived late are included; a `WavRecorder` puts them in place. A wait for the next event may be
    cancelled, by ``asyncio.timeout`` for instance, and repeated on the same iterator. Only one task may wait at a
    time; a second one raises `ClientStateError`. `pcm` and `tap` work beside the loop, or without one.

    With ``when_lost="restart"`` (`MediaReceiver.open`), it goes on over the socket of another stream when its own is
    lost, and the loop yields a `GapEvent` in between.

    Attributes:
        start: the start event; after a restart that of the new stream.
        audio_format: encoding, sample rate and channels of the audio.
        playback: sends audio back, on a bidirectional stream.
        statistics: counts of received, missing and dropped frames so far.
        claims: the content of the stream's token, if the receiver has `SignedTokens`; otherwise None.
        label: a name that is safe in file names and logs: the first stream's sid, or a random name if that contains
            anything but letters, digits, ``-`` and ``_``.
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
        claims: TokenClaims | None = None,
    ) -> None:
        """Created by `MediaReceiver`."""
        self.start: StartEvent = start
        self.audio_format = audio_format
        self.playback = playback
        self.statistics = statistics
        self.claims = claims
        sid = start.stream_sid or ""
        self.label: str = sid if _SAFE_NAME.fullmatch(sid) else f"stream-{token_hex(8)}"
        self.end_reason: EndReason | None = None
        # The sid of the conference or call, as far as it is known.
        self._target = claims.target if claims is not None else start.conference_sid or start.call_sid
        self._closes_on_overflow = limits.overflow is Overflow.CLOSE
        self._queue = EventQueue(limits, self._on_drop)
        self._ended = self._socket_ended = asyncio.Event()  # two of them if the stream is started again
        self._on_lost: Callable[[StreamSession, EndReason], None] | None = None  # which starts it again
        self._started_at: float | None = None  # by the loop's clock
        self._loss: EndReason | None = None  # the last one
        self._lost_at = 0.0  # when the last message had arrived
        self._numbering: _ContinuedNumbering | None = None  # after a restart
        self._listeners = Listeners()
        self._has_loop = False
        self._is_handed_over = False  # whether a tap, but no loop, has the media events that wait

    def __repr__(self) -> str:
        return f"<StreamSession {self.label}: {self.end_reason or 'running'}>"

    @property
    def stream_sid(self) -> str | None:
        """The stream's sid from the start event."""
        return self.start.stream_sid

    def __aiter__(self) -> AsyncIterator[AudioEvent]:
        self._has_loop, self._is_handed_over = True, False
        return self._queue

    def tap(self, *, max_frames: int = 500) -> Tap:
        """Open a listener alongside the handler: the media events as they arrive, for monitoring or a recording.

        Any number of taps can be open. A tap whose loop is too slow drops its oldest events, and slows nothing else.
        If there are taps and no loop over the session, its queue never ends it: the oldest DTMF and marks that wait
        there are dropped and counted (`StreamStatistics.dropped`).

        Media events that arrived before anything was listening come first, in every tap that is opened and in a loop
        that begins before the next event arrives. A tap that is opened later, or a loop that begins when there are
        taps, starts with the next event; DTMF, marks and unknown events always wait for the loop.

        Args:
            max_frames: media events that may wait in the tap, of at most 4 KiB on average; in a `Tap.pcm`, 20 ms of
                audio for each.

        Raises:
            InvalidRequestError: ``max_frames`` is invalid.
        """
        feed = EventFeed(check_max_frames(max_frames))
        if not self._has_loop:
            for event in self._queue.droppable:
                if isinstance(event, MediaEvent):
                    feed.put(event)
            self._is_handed_over = True
        return Tap(self.start, self.audio_format, self._listeners, feed)

    def _overhear(self, *, max_frames: int) -> Tap:
        """Open a tap from the next event on that takes nothing from a loop that begins later, as a `Monitor` does."""
        return Tap(self.start, self.audio_format, self._listeners, EventFeed(max_frames, is_passive=True))

    def pcm(
        self,
        rate: int = 16_000,
        *,
        tracks: PcmTracks = "mixed",
        frame_ms: int = 20,
        late: Late = "keep",
        delay_ms: int = 60,
    ) -> PcmStream:
        """Return the audio as frames of 16-bit linear PCM, alongside ``async for event in session`` or without it.

        Audio is placed by its timestamps, as in a `WavRecorder`: gaps are silence, repeated frames are left out, and
        the tracks are aligned.

        - ``late="keep"``, for transcription and analysis, drops no audio. If nothing arrives, silence is yielded after
          about 100 ms, in real time, so a consumer never waits 200 ms for a frame (longer frames: ``frame_ms`` plus 60
          ms, or twice that for the first one at another rate). Later silence is shortened by the same amount. Late
          audio is yielded as soon as it arrives.
        - ``late="drop"``, for agents, stays in real time, and drops audio that is more than ``delay_ms`` late.

        It begins with the audio that arrived before anything was listening, as a `tap` does. Frames are made as the
        audio arrives, and up to 10 seconds of them wait for your loop. If it is slower, the oldest are dropped
        (`PcmFrame.missing_ms`).

        Args:
            rate: samples per second, up to 192,000. A rate other than the stream's needs the extra ``audio``, and
                delays each frame until the next one has arrived. For the first call in a process, a thread imports
                numpy and soxr, during which audio waits.
            tracks: ``inbound``, ``outbound``, ``mixed`` (both added), or ``stereo`` (``inbound`` on the left). A track
                that the stream does not have is silence.
            frame_ms: length of a frame, from 1 to 1,000 milliseconds.
            late: ``keep`` or ``drop``.
            delay_ms: milliseconds that a frame waits for audio that is missing. With ``drop``, all audio is delayed by
                it, compared with the least delayed frame of the last one or two seconds.

        Raises:
            InvalidRequestError: an argument is invalid, or the stream has several channels in each track.
            UnknownEncodingError: the encoding is unknown.
            ModuleNotFoundError: the rate is not the stream's, and the extra ``audio`` is not installed.
        """
        was_handed_over = self._is_handed_over
        tap = self.tap()
        try:
            return tap.pcm(rate, tracks=tracks, frame_ms=frame_ms, late=late, delay_ms=delay_ms)
        except BaseException:
            tap.close()
            self._is_handed_over = was_handed_over
            raise

    @property
    def _is_only_tapped(self) -> bool:
        """Whether there are taps, and nothing iterates over the session."""
        return self._listeners.are_tapped and not self._has_loop

    async def wait_closed(self) -> None:
        """Wait until the stream has ended."""
        await self._ended.wait()

    def _on_read(self) -> None:
        """Resume those who wait for the events that were enqueued."""
        self._queue.wake()
        for feed in self._listeners.feeds:
            feed.on_read()

    def _enqueue(self, event: AudioEvent, now: float) -> bool:
        """Queue an event that arrived at *now*, in seconds; return False if the session must end because of it."""
        if isinstance(event, MediaEvent):
            self.statistics._record(event, now)
            feeds = self._listeners.feeds
            for feed in feeds:
                feed.put(event, now)
            if self._is_handed_over:
                self._is_handed_over = False
                self._queue.remove_media()
            if feeds and not self._has_loop and self._listeners.are_tapped:
                return True
        elif isinstance(event, UnknownEvent):
            self.statistics.unknown += 1
        else:
            if isinstance(event, MarkEvent) and not self.playback._on_mark(event.name):
                return True
            self._listeners.note(event)
            return self._queue.keep(event, make_room=self._is_only_tapped)
        if self._closes_on_overflow and self._queue.is_full and not self._is_only_tapped:
            self._on_drop(event)
            return False
        self._queue.put(event)
        return True

    def _on_drop(self, event: AudioEvent) -> None:
        if not isinstance(event, MediaEvent):
            self.statistics.dropped += 1
        elif not self._is_handed_over:
            self.statistics.of(event.track).dropped += 1

    def _close(self, reason: EndReason, *, received_at: float = 0.0, error: StreamsError | None = None) -> None:
        """End the session, unless it has ended already. If its stream is started again, a lost one does not end it.

        The last message arrived at *received_at*; loops end with the *error*.
        """
        if self.end_reason is not None:
            return
        if self._on_lost is not None and reason in _LOSSES:
            self._loss = reason
            self._detach(received_at)
            self._on_lost(self, reason)
            return
        self.end_reason = reason
        self._queue.close(error)
        self._listeners.close(error)
        self.playback._close()
        self._ended.set()
        self._socket_ended.set()

    def _survive(self, on_lost: "Callable[[StreamSession, EndReason], None]") -> None:
        """Call *on_lost* when the stream is lost, instead of ending."""
        self._on_lost, self._socket_ended = on_lost, asyncio.Event()
        self.playback._survive()

    def _detach(self, received_at: float) -> None:
        """Release the socket."""
        self._socket_ended.set()
        self._lost_at = received_at
        self.playback._interrupt(asyncio.get_running_loop().time() - received_at)

    def _resume(self, fresh: "StreamSession") -> None:
        """Continue with the stream and socket of a newly started session.

        Raises:
            MalformedFrameError: its audio is encoded in another way.
        """
        if fresh.audio_format != self.audio_format:
            raise MalformedFrameError("the stream that was started again has another encoding")
        now = asyncio.get_running_loop().time()
        if not self._socket_ended.is_set():  # it takes over from a stream that is still there
            self._detach(now)
        statistics, seconds = self.statistics, now - self._lost_at
        statistics.restarts += 1
        statistics.gap_seconds += seconds
        self._numbering = _ContinuedNumbering(statistics, now - (self._started_at or now), self.playback.packet_time)
        self._socket_ended = asyncio.Event()
        gap = GapEvent(
            seconds=seconds,
            lost_stream_sid=self.stream_sid,
            stream_sid=fresh.stream_sid,
            unheard_ms=self.playback._resume(fresh.playback),
        )
        self.start = fresh.start
        if not self._queue.keep(gap, make_room=self._is_only_tapped):
            self._close(EndReason.OVERFLOW)


class _ContinuedNumbering:
    """Continues timestamps and chunk numbers after a gap, as if its frames had been sent and were missing.

    So timelines, mixers, recorders and statistics know of a restart no more than of any other loss.
    """

    def __init__(self, statistics: StreamStatistics, elapsed: float, packet_time: int) -> None:
        """Continue those of *statistics*, when the new stream begins *elapsed* seconds after the session did.

        A frame lasts *packet_time* milliseconds.
        """
        self._tracks, self._packet_time = statistics.tracks, packet_time
        stamps = [last[1] for track in self._tracks.values() if (last := track._sequence.last) is not None]
        # A stream that is faster than real time was further on.
        self._offset = max([round(elapsed * _MILLISECONDS), *(at + packet_time for at in stamps if at is not None)])
        self._shifts: dict[str | None, int] = {}

    def decode(self, frame: str | bytes, *, elapsed: float) -> AudioEvent:
        """Decode a frame of the new stream; the errors are those of `decode_event`."""
        return self.shift(decode_event(frame), elapsed)

    def shift(self, event: AudioEvent, elapsed: float) -> AudioEvent:
        if isinstance(event, MediaEvent):
            event.elapsed = elapsed
            if event.timestamp is not None:
                event.timestamp += self._offset
            if event.chunk is not None:
                if event.track not in self._shifts and len(self._shifts) < _MAX_TRACKS:
                    self._shifts[event.track] = self._next_number(event) - event.chunk
                event.chunk += self._shifts.get(event.track, 0)
        return event

    def _next_number(self, first: MediaEvent) -> int:
        """Return the number of a track's first frame after the gap."""
        track: TrackStatistics | None = self._tracks.get(first.track or "")
        last = None if track is None else track._sequence.last
        if last is None:
            return first.chunk or 1
        number, timestamp = last
        if timestamp is None or first.timestamp is None:
            return number + 1
        missing = round((first.timestamp - timestamp) / self._packet_time) - 1
        return number + 1 + min(max(0, missing), FARTHEST)
