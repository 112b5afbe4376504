"""PCM frames of equal length from the media events of a stream. Pure: the caller passes the time.

`KeepMixer` and `DropMixer` differ in what happens to audio that arrives after its time. In both, positions are those of
the tracks' timelines, so that the tracks stay aligned.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from math import gcd, inf

from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._formats import PCM_SIZE
from signalwire_streams.receiver.audio._pcm_frames import PcmFrame, PcmOptions, add, interleave
from signalwire_streams.receiver.audio._track_buffer import TrackBuffer

_MILLISECONDS = 1000
_BOTH = ("inbound", "outbound")
_FROM_START = 1.0  # seconds: frames of a stream that was opened later than that are counted from there
_PATIENCE, _MAX_PATIENCE, _MARGIN = 0.1, 0.18, 0.06  # seconds without a frame until silence goes out
_SILENCE = 100  # per second: shorter silence is part of the sound
_STALL = 5.0  # seconds in which nothing arrives; for longer, audio waits neither for another track nor for what follows
_RECENT = 0.2  # seconds
_MAX_PIECES = 1000  # frames of a track that wait for a missing one
_SPAN = 1.0  # seconds: the least delayed frame is that of the current span and the one before
_EPSILON = 1e-6  # chunks
_MAX_PACKET = 0.5  # seconds of a frame that delay all audio; a longer one is late
_JITTER = 0.01  # seconds that a long frame may be late, at least


class Mixer(ABC):
    """The common part of both mixers: tracks, mixing, the rate, and the cut into frames.

    Its times are seconds of one clock, whose time is *now* when it is created; *announced* are the tracks that the
    start event names. A *chunk* is the audio of one frame at the stream's own rate.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        self.is_finished = False
        self.next_at = now  # when to ask for frames again
        self.has_changed = True  # whether frames may be due before that, because of what was added
        self._opened_at = now
        self._delay = options.delay_ms / _MILLISECONDS
        self._seconds = options.frame_ms / _MILLISECONDS
        self._rate = rate = options.audio_format.sample_rate
        names = _BOTH if options.tracks in {"mixed", "stereo"} else (options.tracks,)
        keeps_late = options.late == "keep"
        self._tracks: dict[str | None, TrackBuffer] = {
            name: TrackBuffer(options.audio_format, keeps_late=keeps_late) for name in names
        }
        self._buffers = tuple(self._tracks.values())
        self._first, self._last = self._buffers[0], self._buffers[-1]  # the same, if there is one
        if len(names) == 1 or options.tracks == "mixed":
            self._tracks[None] = self._buffers[0]
        for track in self._buffers:
            track.others = tuple(other.timeline for other in self._buffers if other is not track)
        announced = set(announced)
        self._expected = [self._tracks[name] for name in names if name in announced] or list(self._buffers)
        self._sample_size = options.audio_format.sample_size
        self._is_stereo = options.tracks == "stereo"
        self._to_rate, self._channels = options.rate, options.channels
        self._size = options.rate * options.frame_ms // _MILLISECONDS * PCM_SIZE * self._channels
        self._resampler = options.resampler()
        self._resampled = bytearray()
        self._positions: deque[int] = deque()  # of the chunks that are in the resampler
        self._chunks = 0  # that were mixed
        self._samples = options.frame_ms * rate  # of a chunk, times 1,000
        self._has_whole_chunks = self._samples % _MILLISECONDS == 0
        self._chunk = self._samples // _MILLISECONDS
        self._cursor = 0  # of all tracks
        self._has_begun = False  # whether the cursor is known
        self._origin = 0  # milliseconds from the stream's start to the first sample of the timelines

    @abstractmethod
    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""

    @abstractmethod
    def frames(self, now: float) -> list[PcmFrame]:
        """Return the frames that are due, and set `next_at`."""

    def finish(self) -> None:
        """Called when no more audio will be added."""
        self.is_finished = True

    @property
    def is_empty(self) -> bool:
        """Whether a finished mixer has no more frames."""
        return self.is_finished and not self._positions and not self._has_lost and self._horizon() <= self._cursor

    @property
    def _has_lost(self) -> bool:
        """Whether audio was dropped that no frame has reported yet."""
        return bool(self._first.lost or self._last.lost)

    def _horizon(self) -> int:
        """Return the end of all audio."""
        return max(self._first.end, self._last.end)

    def _place(self, event: MediaEvent, at: float) -> tuple[TrackBuffer, int] | None:
        """Place a frame in its track. Return the track, and the end of its place."""
        track = self._tracks.get(event.track)
        if track is None:
            return None
        timestamp, elapsed = event.timestamp, event.elapsed
        if not self._has_begun:
            self._set_origin(elapsed, at)
        if self._origin:
            timestamp = None if timestamp is None else timestamp - self._origin
            elapsed = None if elapsed is None else elapsed - self._origin / _MILLISECONDS
        end = track.add(event, timestamp, elapsed)
        if end is None:
            return None
        if not self._has_begun:
            self._has_begun = True
            self._start_at(self._first_position(track.begin))
        if track not in self._expected:
            self._expected.append(track)
        return track, end

    def _set_origin(self, elapsed: float | None, at: float) -> None:
        """Count from about now if the stream began long ago, so that what was before is no silence."""
        if elapsed is not None and self._opened_at - (at - elapsed) > _FROM_START:
            self._origin = max(0, int((elapsed - _FROM_START) * _MILLISECONDS))

    def _first_position(self, begin: int) -> int:
        """Return where the frames begin, when the first audio begins at a position."""
        return begin

    def _start_at(self, position: int) -> None:
        self._cursor = position
        for track in self._buffers:
            track.start_at(position)

    def _mix(self) -> PcmFrame | None:
        """Mix the next chunk of all tracks; return the frame that it completes."""
        samples, begin = self._chunk, self._cursor
        self._cursor = begin + samples
        pcm = self._first.take(samples)
        if self._first is not self._last:
            other = self._last.take(samples)
            if self._is_stereo:
                pcm = interleave(pcm, other, samples)
            elif pcm and other:
                pcm = add(pcm, other)
            else:
                pcm = pcm or other
        return self._send(pcm or bytes(PCM_SIZE * self._channels * samples), begin)

    def _send(self, pcm: bytes, position: int) -> PcmFrame | None:
        self._chunks += 1
        if not self._has_whole_chunks:
            chunks, samples = self._chunks, self._samples
            self._chunk = (chunks + 1) * samples // _MILLISECONDS - chunks * samples // _MILLISECONDS
        if self._resampler is None:
            return self._frame(pcm, position)
        self._positions.append(position)
        self._resampled += self._resampler.process(pcm)
        return self._next_frame() if len(self._resampled) >= self._size else None

    def _next_frame(self) -> PcmFrame:
        """Return the oldest chunk that went into the resampler as a frame."""
        data = bytes(self._resampled[: self._size])
        del self._resampled[: self._size]
        return self._frame(data, self._positions.popleft())

    def _frame(self, data: bytes, position: int) -> PcmFrame:
        missing, rate = 0, self._rate
        if self._first.lost or self._last.lost:
            missing = -(-max(self._first.lost, self._last.lost) * _MILLISECONDS // rate)
            self._first.lost = self._last.lost = 0
        stamp = self._origin + (2 * position * _MILLISECONDS + rate) // (2 * rate)
        return PcmFrame(data, stamp, self._to_rate, self._channels, missing)

    def _rest(self) -> list[PcmFrame]:
        """Return the frames that are in the resampler."""
        if self._resampler is None or not self._positions:
            return []
        # They are whole, but for the rounding of the last sample.
        self._resampled += self._resampler.process(b"", last=True) + bytes(self._size * len(self._positions))
        return [self._next_frame() for _ in range(len(self._positions))]


class KeepMixer(Mixer):
    """Drops no audio, and never lets the consumer wait for long.

    - A chunk goes out when no track can change it any more, or ``delay_ms`` after it could have been complete, if
      something else has arrived by then: else it is a stall, after which the rest follows.
    - If nothing has gone out for a while, silence does, in real time.
    - That silence is owed, and so is the time by which late audio moves the cursor back: as many samples of silence are
      skipped later, except for an occasional frame so that the consumer does not wait.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        self._silent = 0  # frames that went past the resampler
        self._debt = 0  # samples
        self._reached: deque[tuple[int, float]] = deque()  # ends of the audio that is there, and since when it is
        self._arrived_at = now  # the last frame
        self._longest = 0  # bytes of a frame so far
        self._patience = max(_PATIENCE, self._seconds + _MARGIN)
        # When silence goes out, and when the consumer has waited for long.
        self._silent_at = self._hungry_at = now + self._patience

    def add(self, event: MediaEvent, at: float) -> None:
        self._arrived_at = at
        placed = self._place(event, at)
        if placed is None:
            return
        track, _ = placed
        if track.cursor < self._cursor:  # a late frame
            self._debt += self._cursor - track.cursor
            self._start_at(track.cursor)
        if (size := len(event.payload)) > self._longest:
            self._longest = size
            packet = size / self._sample_size / self._rate + _MARGIN
            self._patience = max(self._patience, min(packet, _MAX_PATIENCE))

    def _first_position(self, begin: int) -> int:
        if not self._origin:
            return 0
        self._debt = 0
        return max(0, begin - self._chunk)

    def frames(self, now: float) -> list[PcmFrame]:
        frames: list[PcmFrame] = []
        while True:
            until, due_at = self._cursor + self._chunk, now
            for track in self._expected:
                if track.ready < until:  # audio is missing, or may be moved
                    is_there = self._first.end >= until or self._last.end >= until or self.is_finished
                    due_at = self._due_at(until, now) if is_there else inf
                    break
            if now >= due_at:
                if self._debt and now < self._hungry_at and self._skip():
                    continue
                frame = self._mix()
                silent_at = now + self._patience
                if frame is None:  # it is in the resampler until the next chunk arrives
                    self._silent_at = max(self._silent_at, now + self._seconds + _MARGIN)
            elif self.is_finished:
                return frames + self._rest()
            elif now >= self._silent_at:
                self._debt += self._chunk
                frame = self._silence(now)
                silent_at = self._next_silence(now)
            else:
                self.next_at = min(due_at, self._silent_at)
                return frames
            if frame is not None:
                self._silent_at, self._hungry_at = silent_at, now + self._patience
                frames.append(frame)

    def _silence(self, now: float) -> PcmFrame | None:
        """Return a frame of silence that is not on the timeline.

        In a stall it goes past the resampler, so that the audio before and after it is resampled as a whole. In a pause
        it pushes out what is there.
        """
        if now - self._arrived_at > _STALL:
            return self._send(bytes(PCM_SIZE * self._channels * self._chunk), self._cursor)
        self._silent += 1
        return self._frame(bytes(self._size), self._positions[0] if self._positions else self._cursor)

    def _next_silence(self, now: float) -> float:
        """Return when silence goes out after other silence: in real time, unless more than that went out before."""
        if self._opened_at + (self._chunks + self._silent) * self._seconds > now:
            return now + self._patience
        return max(self._silent_at + self._seconds, now - self._patience)

    def _certain_end(self) -> int:
        """Return the end of all audio, without what follows a doubtful gap for which no silence has gone out yet."""
        most = self._debt + self._patience * self._rate
        return max(track.certain_end(most) for track in self._buffers)

    def _due_at(self, until: int, now: float) -> float:
        """Return when audio before a sample goes out although it is not complete; infinity if there is no more."""
        horizon, reached = self._horizon(), self._reached
        if self.is_finished:
            return now if horizon > self._cursor else inf
        if self._first.timeline.is_unsettled or self._last.timeline.is_unsettled:
            horizon = self._certain_end()
            if horizon < until:
                return inf
        while reached and reached[0][0] <= self._cursor:
            reached.popleft()
        if not reached or horizon > reached[-1][0]:
            reached.append((horizon, now))
        if any(len(track) > _MAX_PIECES for track in self._buffers):
            return now
        due_at = next(since for end, since in reached if end >= until) + self._delay
        # If nothing at all arrives, the rest may be on its way too, unless the track that lacks it had paused before.
        if self._arrived_at < due_at and any(
            track.ready < until and track.timeline.end > self._cursor - _RECENT * self._rate for track in self._expected
        ):
            due_at += _STALL
        return due_at

    def _skip(self) -> bool:
        """Leave out silence that is owed; return whether there was some."""
        samples = min(self._debt, self._chunk)
        until = self._cursor + max(samples, self._rate // _SILENCE)
        if not all(track.is_quiet(until) for track in self._buffers):
            return False
        for track in self._buffers:
            track.take(samples)
        self._cursor += samples
        self._debt -= samples
        return samples > 0


class _Transit:
    """The shortest delay of a track's frames (arrival minus the end of its place) in the last one to two seconds."""

    def __init__(self, transit: float, at: float) -> None:
        self.least = self._least_of_span = transit
        self._ends = at + _RECENT
        self._before = at
        self.is_known = False  # the first frames may all come from one stall

    def record(self, transit: float, at: float, *, is_certain: bool) -> bool:
        """Record the delay of a frame, by a place that is certain or not. Return whether the least one has changed."""
        before = self.least
        if self.is_known and not is_certain and transit < before:
            transit = before  # else one wrong timestamp would make all that follows late
        if at >= self._before + _RECENT:  # a stall, which is no reason to forget anything
            self._ends += at - self._before
        self._before = at
        if at >= self._ends:
            self.least = min(self._least_of_span, transit)
            self._least_of_span = transit
            self._ends = at + _SPAN
            if not self.is_known:
                self.is_known = True
                return True
        elif transit < self._least_of_span:
            self._least_of_span = transit
            self.least = min(before, transit)
        return self.least != before


class DropMixer(Mixer):
    """Follows the clock, and drops audio that is late.

    A chunk goes out at the time of its end on the timeline, plus the least delay of all tracks, plus ``delay_ms``. The
    number of chunks always follows the clock: silence goes out if there are too few, and a chunk that is a whole frame
    late is dropped. A track whose frames are all late, compared with the other one, is shifted.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        # One chunk is in the resampler, and has to go in a frame earlier.
        self._started_at = now - (self._seconds if self._resampler is not None else 0.0)
        self._transits: dict[TrackBuffer, _Transit] = {}
        self._least = 0.0  # transit of all tracks
        self._hold = self._delay
        self._packet = 0  # samples of the last frame
        self._wait = 0.0  # of its first part for the last one
        for track in self._buffers:
            track.is_beginning = True

    def add(self, event: MediaEvent, at: float) -> None:
        samples = len(event.payload) // self._sample_size
        has_changed = samples != self._packet and samples <= _MAX_PACKET * self._rate
        if has_changed:
            # The first part of a long frame has to wait for the last one.
            self._packet = samples
            self._wait = (samples - gcd(samples, self._chunk)) / self._rate
            if self._wait:
                self._hold = max(self._hold, self._wait + _JITTER)
        placed = self._place(event, at)
        if placed is None:
            return
        track, end = placed
        transit = at - end / self._rate
        known = self._transits.get(track)
        if known is None or track.cursor < self._cursor:
            self._transits[track] = _Transit(transit, at)
            if known is not None:  # the first timestamps were wrong
                self._start_at(track.cursor)
            has_changed = True
        elif known.record(transit, at, is_certain=not track.timeline.doubted_gap):
            track.is_beginning = not known.is_known
            has_changed = True
        if has_changed:
            self._align()

    def _align(self) -> None:
        """Shift the tracks that are late compared with the other one."""
        self.has_changed = True
        known = [its.least for its in self._transits.values() if its.is_known]
        self._least = min(known or (its.least for its in self._transits.values()))
        for track, its in self._transits.items():
            late = its.least - self._least
            if late <= self._hold - self._wait or not its.is_known:
                track.shift = 0
            else:  # so far that the beginning of a frame is not due before the frame arrives at its end
                track.shift = round(late * self._rate) + max(0, self._packet - int(self._hold * self._rate))

    def frames(self, now: float) -> list[PcmFrame]:
        frames: list[PcmFrame] = []
        self.has_changed = False
        while True:
            if self.is_finished and self._horizon() <= self._cursor:
                return frames + self._rest() + self._report(now)
            owed_at, due_at = self._started_at + self._chunks * self._seconds, inf
            if self._has_begun:
                due_at = self._least + self._hold + (self._cursor + self._chunk) / self._rate
            owed, overdue = (now - owed_at) / self._seconds, (now - due_at) / self._seconds
            if overdue >= 1 - _EPSILON:
                self._discard(int(overdue + _EPSILON) * self._chunk)
                continue
            if overdue >= -_EPSILON and owed >= -_EPSILON:
                frame = self._mix()
            elif overdue < -_EPSILON and owed >= 1 - _EPSILON:
                frame = self._send(bytes(PCM_SIZE * self._channels * self._chunk), self._cursor)
            else:
                self.next_at = min(owed_at + self._seconds, max(owed_at, due_at))
                return frames
            if frame is not None:
                frames.append(frame)

    def _report(self, now: float) -> list[PcmFrame]:
        """Return a frame of silence, in its time, that reports what was dropped after the last one."""
        self.next_at = self._started_at + (self._chunks + 1) * self._seconds
        if not self._has_lost or now < self.next_at - _EPSILON:
            return []
        return [self._frame(bytes(self._size), self._cursor)]

    def _discard(self, samples: int) -> None:
        for track in self._buffers:
            track.discard(samples)
        self._cursor += samples


def mixer_for(options: PcmOptions, now: float, announced: Iterable[str]) -> Mixer:
    return (KeepMixer if options.late == "keep" else DropMixer)(options, now, announced)
