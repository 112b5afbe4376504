"""PCM frames of one length from the media events of a stream. Pure: it is told the time, and asked for frames.

There are two policies for audio that arrives after its time:

- `KeepMixer` drops nothing. A frame goes out as soon as it is complete, or ``delay_ms`` after its time. If nothing
  arrives, silence goes out after a short wait, in real time. That silence is a debt: as many samples of later silence
  are left out.
- `DropMixer` follows the clock. The least delayed audio goes out ``delay_ms`` after its arrival, and audio that is
  later than that is dropped.

In both, positions are those of the tracks' timelines, so that the tracks stay in line.
"""

from collections import deque
from collections.abc import Iterable
from math import gcd
from operator import add
from struct import error as StructError, pack, unpack
from typing import Literal, TypeAlias

from attrs import define

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._formats import AudioFormat
from signalwire_streams.receiver.audio._resampling import Resampler
from signalwire_streams.receiver.audio._track_buffer import WIDTH, TrackBuffer

PcmTracks: TypeAlias = Literal["inbound", "outbound", "mixed", "stereo"]
"""One track, both added, or both side by side with the inbound one on the left."""
Late: TypeAlias = Literal["keep", "drop"]
"""The action for audio that arrives after its time."""

_MILLISECONDS = 1000
_CHOICES: tuple[PcmTracks, ...] = ("inbound", "outbound", "mixed", "stereo")
_BOTH = ("inbound", "outbound")
_MAX_RATE, _MAX_FRAME, _MAX_DELAY = 192_000, 1000, 10_000
_PATIENCE, _MAX_PATIENCE, _MARGIN = 0.1, 0.18, 0.06  # seconds without a frame until silence goes out
_FROM_START = 1.0  # seconds: frames of a stream that was opened later than that are counted from there
_MAX_PIECES = 1000  # frames of a track that wait for a missing one
_SPAN = 1.0  # seconds: the least delayed frame is that of the current span and the one before
_EPSILON = 1e-6  # frames
_LAG = 1.0  # frames that may be owed beyond the delay
_MAX_PACKET = 0.12  # seconds of a frame that delay all audio; a longer one is late


@define
class PcmFrame:
    """Linear PCM of one length, 16 bits, little-endian. Do not modify it.

    Attributes:
        data: the samples; with two channels they alternate, inbound first.
        timestamp_ms: milliseconds from the stream's start to the first sample, on the timeline of its frames. It stands
            still while silence goes out because nothing arrives, and jumps over silence that is left out in return.
        rate: samples per second.
        channels: 2 for ``stereo``, otherwise 1.
        missing_ms: milliseconds of audio that were dropped since the frame before: it was late, or your loop too slow.
    """

    data: bytes
    timestamp_ms: int
    rate: int
    channels: int
    missing_ms: int = 0


@define(frozen=True, kw_only=True)
class PcmOptions:
    """What is asked of a mixer; all of it is checked when it is created."""

    audio_format: AudioFormat
    rate: int
    tracks: PcmTracks
    frame_ms: int
    late: Late
    delay_ms: int

    def __attrs_post_init__(self) -> None:
        for name, value, least, most in (
            ("rate", self.rate, 1, _MAX_RATE),
            ("frame_ms", self.frame_ms, 1, _MAX_FRAME),
            ("delay_ms", self.delay_ms, 0, _MAX_DELAY),
        ):
            if type(value) is not int or not least <= value <= most:
                raise InvalidRequestError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        for name, choice, choices in (("tracks", self.tracks, _CHOICES), ("late", self.late, ("keep", "drop"))):
            if choice not in choices:
                raise InvalidRequestError(f"{name} must be one of {', '.join(map(repr, choices))}, not {choice!r}")
        if self.rate * self.frame_ms % _MILLISECONDS:
            whole = _MILLISECONDS // gcd(self.rate, _MILLISECONDS)
            raise InvalidRequestError(
                f"frames of {self.frame_ms} ms at {self.rate} Hz are no whole number of samples: "
                f"write a frame_ms that is a multiple of {whole}"
            )
        if self.audio_format.sample_size and self.audio_format.channels != 1:  # an unknown encoding raises here
            raise InvalidRequestError(
                f"the stream has {self.audio_format.channels} channels in each track, and pcm takes one: decode the "
                "payloads with session.audio_format.to_pcm"
            )


def create_mixer(options: PcmOptions, now: float, announced: Iterable[str] = ()) -> "KeepMixer | DropMixer":
    """Create the mixer for some options.

    Args:
        options: what is asked for.
        now: seconds on the clock of all later times.
        announced: the tracks that the start event names.

    Raises:
        ModuleNotFoundError: the rate is not the stream's, and the extra ``audio`` is not installed.
    """
    return (KeepMixer if options.late == "keep" else DropMixer)(options, now, announced)


class _Mixer:
    """What both policies share: tracks, mixing, the rate, and the cut into frames.

    A *chunk* is the audio of one frame at the stream's own rate.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        self.is_finished = False
        self._opened_at = now
        self._delay = options.delay_ms / _MILLISECONDS
        self._frame_ms, self._seconds = options.frame_ms, options.frame_ms / _MILLISECONDS
        self._rate = rate = options.audio_format.sample_rate
        names = _BOTH if options.tracks in {"mixed", "stereo"} else (options.tracks,)
        keeps_late = options.late == "keep"
        self._tracks = {name: TrackBuffer(options.audio_format, keeps_late=keeps_late) for name in names}
        self._buffers = tuple(self._tracks.values())
        self._timelines = {
            name: tuple(other.timeline for other in self._buffers if other is not track)
            for name, track in self._tracks.items()
        }
        known = {track for name, track in self._tracks.items() if name in set(announced)}
        self._expected = known or set(self._buffers)
        self._sample_size = options.audio_format.sample_size
        self._dropped: dict[TrackBuffer, int] = {}
        self._is_stereo = options.tracks == "stereo"
        self._to_rate, self._channels = options.rate, 2 if self._is_stereo else 1
        self._size = options.rate * options.frame_ms // _MILLISECONDS * WIDTH * self._channels
        self._resampler = Resampler(rate, options.rate, self._channels) if rate != options.rate else None
        self._resampled = bytearray()
        self._stamps: deque[int] = deque()  # of the chunks that are in the resampler
        self._chunks = 0  # that were mixed
        self._chunk = self._chunk_size()
        self._cursor = 0  # of all tracks
        self._has_begun = False  # whether the cursor is known
        self._origin = 0  # milliseconds from the stream's start to the first sample of the timelines
        self._lost_time = 0  # samples

    def _chunk_size(self) -> int:
        """Return the samples of the next chunk, which vary if a frame is no whole number of them."""
        samples = self._frame_ms * self._rate
        return (self._chunks + 1) * samples // _MILLISECONDS - self._chunks * samples // _MILLISECONDS

    def _horizon(self) -> int:
        """Return the end of all audio."""
        return max(track.end for track in self._buffers)

    def _place(self, event: MediaEvent, at: float) -> tuple[TrackBuffer, int] | None:
        """Place a frame in its track. Return the track, and the end of its place."""
        name = event.track
        if (track := self._tracks.get(name or "")) is None:
            if name is not None:
                return None
            name, track = next(iter(self._tracks.items()))
        timestamp, elapsed = event.timestamp, event.elapsed
        if not self._has_begun:
            self._begin(elapsed, at)
        if self._origin:
            timestamp = None if timestamp is None else timestamp - self._origin
            elapsed = None if elapsed is None else elapsed - self._origin / _MILLISECONDS
        end = track.add(event, timestamp, elapsed, self._timelines[name or ""])
        if end is None:
            return None
        if not self._has_begun:
            self._has_begun = True
            self._start_at(self._first_position(track.begin))
        self._expected.add(track)
        return track, end

    def _begin(self, elapsed: float | None, at: float) -> None:
        """Count from about now if the stream began long ago, so that what was before is no silence."""
        if elapsed is not None and self._opened_at - (at - elapsed) > _FROM_START:
            self._origin = max(0, int((elapsed - _FROM_START) * _MILLISECONDS))

    def _first_position(self, begin: int) -> int:
        raise NotImplementedError

    def _start_at(self, position: int) -> None:
        self._cursor = position
        for track in self._buffers:
            track.start_at(position)

    def lose(self, event: MediaEvent) -> None:
        """Count a frame that was dropped before it was added, since the consumer is too slow."""
        if (track := self._tracks.get(event.track or "")) is not None:
            self._dropped[track] = self._dropped.get(track, 0) + len(event.payload) // self._sample_size

    def finish(self) -> None:
        """Nothing more is added."""
        self.is_finished = True

    def _take_dropped(self) -> int:
        """Return the samples that were dropped since the last call, of the track that lost most."""
        samples = max(self._dropped.values())
        self._dropped.clear()
        return samples

    def _mix(self, samples: int) -> bytes:
        """Take the next samples of all tracks."""
        taken = [track.take(samples) for track in self._buffers]
        self._cursor += samples
        if self._is_stereo:
            return _interleave(taken[0], taken[1], samples)
        parts = [pcm for pcm in taken if pcm]
        if len(parts) > 1:
            return _add(parts[0], parts[1])
        return parts[0] if parts else bytes(WIDTH * samples)

    def _silence(self) -> bytes:
        return bytes(WIDTH * self._channels * self._chunk)

    def _send(self, pcm: bytes, cursor: int) -> PcmFrame | None:
        """Convert a chunk to the rate; return the frame that it completes."""
        stamp = self._origin + cursor * _MILLISECONDS // self._rate
        self._chunks += 1
        self._chunk = self._chunk_size()
        if self._resampler is not None:
            self._resampled += self._resampler.process(pcm)
            self._stamps.append(stamp)
            if len(self._resampled) < self._size:
                return None
            pcm, stamp = bytes(self._resampled[: self._size]), self._stamps.popleft()
            del self._resampled[: self._size]
        return PcmFrame(pcm, stamp, self._to_rate, self._channels, self._take_missing())

    def _take_missing(self) -> int:
        missing = self._lost_time
        self._lost_time = 0
        for track in self._buffers:
            if track.lost:
                missing = max(missing, track.lost)
                track.lost = 0
        return -(-missing * _MILLISECONDS // self._rate) if missing else 0

    def _flush(self) -> PcmFrame | None:
        """Return the next frame that is in the resampler, if there is one."""
        while self._stamps:
            stamps = tuple(self._stamps)
            if (frame := self._send(self._silence(), self._cursor)) is not None:
                self._stamps = deque(stamps[1:])
                return frame
            self._stamps = deque(stamps)
        return None


class KeepMixer(_Mixer):
    """Drops no audio, and never lets the consumer wait for long."""

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        self._debt = 0  # samples of silence that went out for want of audio
        self._reached: deque[tuple[int, float]] = deque()  # ends of the audio that is there, and since when it is
        self._patience = max(_PATIENCE, min(self._seconds + _MARGIN, _MAX_PATIENCE))
        self._silent_at = now + self._patience  # when silence goes out

    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""
        placed = self._place(event, at)
        if placed is None:
            return
        horizon = self._horizon()
        if not self._reached or horizon > self._reached[-1][0]:
            self._reached.append((horizon, at))
        packet = len(event.payload) / self._sample_size / self._rate
        if packet + _MARGIN > self._patience:
            self._patience = min(packet + _MARGIN, max(self._patience, _MAX_PATIENCE))

    def _first_position(self, begin: int) -> int:
        if not self._origin:
            return 0
        self._debt = 0
        return max(0, begin - self._chunk)

    @property
    def is_empty(self) -> bool:
        """True if a finished mixer has no more frames."""
        return True

    def frame(self, now: float, *, fill: bool = True) -> PcmFrame | None:
        """Return the next frame that is due; None if there is none.

        Args:
            now: the time.
            fill: whether silence may go out for want of audio.
        """
        if self._dropped:
            lost = self._take_dropped()
            self._debt += lost
            self._lost_time += lost
        while True:
            until = self._cursor + self._chunk
            horizon = self._horizon()
            if horizon >= until or (self.is_finished and horizon > self._cursor):
                if self._is_due(until, now):
                    if self._debt and self._skip(now):
                        continue
                    frame = self._send(self._mix(self._chunk), until - self._chunk)
                    if frame is not None:
                        self._silent_at = now + self._patience
                        return frame
                    continue
            elif self.is_finished:
                return self._flush()
            if not fill or now < self._silent_at:
                return None
            self._debt += self._chunk
            self._silent_at = max(self._silent_at + self._seconds, now - self._patience)
            if (frame := self._send(self._silence(), self._cursor)) is not None:
                return frame

    def _is_due(self, until: int, now: float) -> bool:
        """Whether nothing can change the audio before a sample, or it has waited long enough."""
        if self.is_finished or all(track.is_complete(until) for track in self._expected):
            return True
        return now >= self._due_at(until) or any(len(track) > _MAX_PIECES for track in self._buffers)

    def _due_at(self, until: int) -> float:
        reached = self._reached
        while reached and reached[0][0] <= self._cursor:
            reached.popleft()
        return next((since + self._delay for end, since in reached if end >= until), self._silent_at)

    def _skip(self, now: float) -> bool:
        """Leave out silence that is owed; return whether there was some."""
        begin = min(track.begin for track in self._buffers)
        samples = min(self._debt, begin - self._cursor)
        if samples > 0 and not self._is_due(self._cursor + samples, now):
            samples = min(samples, self._chunk)
        if samples <= 0:
            samples = min(self._debt, self._chunk)
            if not all(track.is_quiet(self._cursor + samples) for track in self._buffers):
                return False
        for track in self._buffers:
            track.take(samples)
        self._cursor += samples
        self._debt -= samples
        return True

    def next_at(self) -> float:
        """Return when to ask for a frame again if nothing is added before."""
        until = self._cursor + self._chunk
        return min(self._silent_at, self._due_at(until)) if self._horizon() >= until else self._silent_at


class _Transit:
    """The least delay of a track's frames: arrival less the end of its place, in seconds, of the last one to two s."""

    def __init__(self, transit: float, at: float) -> None:
        self.least = self._least_of_span = transit
        self._ends = at + _SPAN

    def note(self, transit: float, at: float) -> None:
        if at >= self._ends:
            self.least = min(self._least_of_span, transit)
            self._least_of_span = transit
            self._ends = at + _SPAN
        else:
            self._least_of_span = min(self._least_of_span, transit)
            self.least = min(self.least, transit)


class DropMixer(_Mixer):
    """Follows the clock, and drops audio that is late.

    A chunk goes out at the time of its end on the timeline, plus the least delay of all tracks, plus ``delay_ms``. The
    number of chunks follows the clock all the same: silence goes out if there are too few, and a chunk that would go
    out a whole frame too late is dropped. A track whose frames are all late, compared with the other one, is shifted.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        super().__init__(options, now, announced)
        # One chunk is in the resampler, and has to go in a frame earlier.
        self._started_at = now - (self._seconds if self._resampler is not None else 0.0)
        self._left_out = 0  # chunks, since the consumer was too slow
        self._transits: dict[TrackBuffer, _Transit] = {}
        self._least = 0.0  # transit of all tracks
        self._hold = self._delay
        self._packet = 0  # samples of the last frame

    def add(self, event: MediaEvent, at: float) -> None:
        """Add a media event that arrived at a time."""
        samples = len(event.payload) // self._sample_size
        if samples != self._packet and samples <= _MAX_PACKET * self._rate:
            # The first part of a long frame has to wait for the last one.
            self._packet = samples
            self._hold = max(self._hold, (samples - gcd(samples, self._chunk)) / self._rate)
        placed = self._place(event, at)
        if placed is None:
            return
        track, end = placed
        transit = at - end / self._rate
        if (noted := self._transits.get(track)) is None:
            noted = self._transits[track] = _Transit(transit, at)
        else:
            noted.note(transit, at)
        self._least = min(other.least for other in self._transits.values())
        for other, its in self._transits.items():
            late = its.least - self._least
            other.shift = round(late * self._rate) if late > self._hold else 0

    def _first_position(self, begin: int) -> int:
        return begin

    @property
    def is_empty(self) -> bool:
        """True if a finished mixer has no more frames."""
        return self._horizon() <= self._cursor

    def frame(self, now: float, *, fill: bool = True) -> PcmFrame | None:  # noqa: ARG002  (silence is due by the clock)
        """Return the next frame that is due; None if there is none."""
        for track, samples in self._dropped.items():
            track.lost += samples
        self._dropped.clear()
        while True:
            if self.is_finished and self._horizon() <= self._cursor:
                return self._flush()
            owed = (now - self._started_at) / self._seconds - self._chunks - self._left_out
            if owed > _LAG + max(1.0, self._delay / self._seconds):
                self._left_out += int(owed)
                self._lost_time += int(owed) * self._chunk
                continue
            overdue = (now - self._due_at()) / self._seconds
            if overdue >= 1 - _EPSILON:
                samples = int(overdue + _EPSILON) * self._chunk
                for track in self._buffers:
                    track.discard(samples)
                self._cursor += samples
            elif overdue >= -_EPSILON and owed >= -_EPSILON:
                if (frame := self._send(self._mix(self._chunk), self._cursor - self._chunk)) is not None:
                    return frame
            elif overdue < -_EPSILON and owed >= 1 - _EPSILON:
                if (frame := self._send(self._silence(), self._cursor)) is not None:
                    return frame
            else:
                return None

    def _due_at(self) -> float:
        """Return when the next chunk is due; infinity if no audio has arrived yet."""
        if not self._has_begun:
            return float("inf")
        return self._least + self._hold + (self._cursor + self._chunk) / self._rate

    def next_at(self) -> float:
        """Return when to ask for a frame again if nothing is added before."""
        owed_at = self._started_at + (self._chunks + self._left_out) * self._seconds
        return min(owed_at + self._seconds, max(owed_at, self._due_at()))


def _interleave(left: bytes, right: bytes, samples: int) -> bytes:
    stereo = bytearray(2 * WIDTH * samples)
    for first, side in ((0, left), (WIDTH, right)):
        if side:
            stereo[first :: 2 * WIDTH], stereo[first + 1 :: 2 * WIDTH] = side[::WIDTH], side[1::WIDTH]
    return bytes(stereo)


def _add(one: bytes, other: bytes) -> bytes:
    shape = f"<{len(one) // WIDTH}h"
    sums = list(map(add, unpack(shape, one), unpack(shape, other)))
    try:
        return pack(shape, *sums)
    except StructError:
        return pack(shape, *[min(max(value, -32768), 32767) for value in sums])
