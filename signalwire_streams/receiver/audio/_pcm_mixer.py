"""PCM frames of equal length from the media events of a stream. Pure: a mixer is told the time, and asked for frames.

`KeepMixer` and `DropMixer` differ in what happens to audio that arrives after its time. In both, positions are those of
the tracks' timelines, so that the tracks stay in line.
"""

from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from math import gcd
from typing import Literal, TypeAlias

from attrs import define, field

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
_FROM_START = 1.0  # seconds: frames of a stream that was opened later than that are counted from there


@define
class PcmFrame:
    """Linear PCM, 16 bits, little-endian: one of the frames of equal length that make up a stream. Do not modify it.

    Attributes:
        data: the samples; with two channels they alternate, inbound first.
        timestamp_ms: milliseconds from the stream's start to the first sample, on the timeline of its frames. It stands
            still while silence goes out because nothing arrives, and jumps over silence that is left out in return.
        rate: samples per second.
        channels: 2 for ``stereo``, otherwise 1.
        missing_ms: milliseconds of audio that were dropped since the frame before: it was late, or your loop too slow.
    """

    data: bytes = field(repr=lambda data: f"<{len(data)} bytes>")
    timestamp_ms: int
    rate: int
    channels: int
    missing_ms: int = 0


@define(frozen=True, kw_only=True)
class PcmOptions:
    """What is asked of a mixer; all of it is checked, and its packages are imported, when it is created."""

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
                f"a frame of {self.frame_ms} ms at {self.rate} Hz is not a whole number of samples: "
                f"write a frame_ms that is a multiple of {whole}"
            )
        if self.audio_format.sample_size and self.audio_format.channels != 1:  # an unknown encoding raises here
            raise InvalidRequestError(
                f"the stream has {self.audio_format.channels} channels in each track, and pcm takes one: decode the "
                "payloads with session.audio_format.to_pcm"
            )
        if (rate := self.audio_format.sample_rate) * self.frame_ms < _MILLISECONDS:
            raise InvalidRequestError(
                f"the stream has {rate} sample{'s' * (rate > 1)} per second, too few for frames of {self.frame_ms} ms: "
                f"write a frame_ms of at least {-(-_MILLISECONDS // rate)}"
            )
        self.resampler()  # the first one takes 100 ms, which must not pass while a mixer waits for audio

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        return 2 if self.tracks == "stereo" else 1

    def resampler(self) -> Resampler | None:
        """Return a new resampler of frames; None if the stream has the rate that is asked for."""
        rate = self.audio_format.sample_rate
        return Resampler(rate, self.rate, self.channels) if rate != self.rate else None


class Mixer:
    """What both mixers share: tracks, mixing, the rate, and the cut into frames.

    Its times are seconds of one clock, whose time is *now* when it is created; *announced* are the tracks that the
    start event names. A *chunk* is the audio of one frame at the stream's own rate.
    """

    def __init__(self, options: PcmOptions, now: float, announced: Iterable[str]) -> None:
        self.is_finished = False
        self.next_at = now  # when to ask for a frame again, if nothing is added before
        self._opened_at = now
        self._delay = options.delay_ms / _MILLISECONDS
        self._frame_ms, self._seconds = options.frame_ms, options.frame_ms / _MILLISECONDS
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
        self._size = options.rate * options.frame_ms // _MILLISECONDS * WIDTH * self._channels
        self._resampler = options.resampler()
        self._resampled = bytearray()
        self._stamps: deque[int] = deque()  # of the chunks that are in the resampler
        self._chunks = 0  # that were mixed
        self._samples = options.frame_ms * rate  # of a chunk, times 1,000
        self._has_whole_chunks = self._samples % _MILLISECONDS == 0
        self._chunk = self._samples // _MILLISECONDS
        self._cursor = 0  # of all tracks
        self._has_begun = False  # whether the cursor is known
        self._origin = 0  # milliseconds from the stream's start to the first sample of the timelines

    def _horizon(self) -> int:
        """Return the end of all audio."""
        one, other = self._first.end, self._last.end
        return max(other, one)

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

    def finish(self) -> None:
        """Nothing more is added."""
        self.is_finished = True

    @property
    def is_empty(self) -> bool:
        """Whether a finished mixer has no more frames."""
        return self.is_finished and not self._stamps and not self._has_lost and self._horizon() <= self._cursor

    @property
    def _has_lost(self) -> bool:
        """Whether audio was dropped that no frame has reported yet."""
        return bool(self._first.lost or self._last.lost)

    def _mix(self) -> PcmFrame | None:
        """Mix the next chunk of all tracks; return the frame that it completes."""
        samples, begin = self._chunk, self._cursor
        self._cursor = begin + samples
        pcm = self._first.take(samples)
        if self._first is not self._last:
            other = self._last.take(samples)
            if self._is_stereo:
                pcm = _interleave(pcm, other, samples)
            elif pcm and other:
                pcm = _add(pcm, other)
            else:
                pcm = pcm or other
        return self._send(pcm or bytes(WIDTH * self._channels * samples), begin)

    def _send_silence(self) -> PcmFrame | None:
        """Send a chunk of silence that is not on the timeline; return the frame that it completes."""
        return self._send(bytes(WIDTH * self._channels * self._chunk), self._cursor)

    def _send(self, pcm: bytes, position: int) -> PcmFrame | None:
        self._chunks += 1
        if not self._has_whole_chunks:
            chunks, samples = self._chunks, self._samples
            self._chunk = (chunks + 1) * samples // _MILLISECONDS - chunks * samples // _MILLISECONDS
        stamp = self._stamp(position)
        if self._resampler is None:
            return self._frame(pcm, stamp)
        self._stamps.append(stamp)
        self._resampled += self._resampler.process(pcm)
        return self._next_frame() if len(self._resampled) >= self._size else None

    def _stamp(self, position: int) -> int:
        return self._origin + (2 * position * _MILLISECONDS + self._rate) // (2 * self._rate)

    def _silent_frame(self) -> PcmFrame:
        """Return a frame that goes past the resampler."""
        return self._frame(bytes(self._size), self._stamp(self._cursor))

    def _next_frame(self) -> PcmFrame:
        """Return the oldest chunk that went into the resampler as a frame."""
        data = bytes(self._resampled[: self._size])
        del self._resampled[: self._size]
        return self._frame(data, self._stamps.popleft())

    def _frame(self, data: bytes, stamp: int) -> PcmFrame:
        frame = PcmFrame(data, stamp, self._to_rate, self._channels)
        if self._has_lost:
            frame.missing_ms = -(-max(self._first.lost, self._last.lost) * _MILLISECONDS // self._rate)
            self._first.lost = self._last.lost = 0
        return frame

    def _flush(self) -> PcmFrame | None:
        """Return the next frame that is in the resampler, if there is one."""
        if self._resampler is None or not self._stamps:
            return None
        # The rest is whole, but for the rounding of its last sample.
        self._resampled += self._resampler.process(b"", last=True) + bytes(self._size)
        return self._next_frame()


def _interleave(left: bytes, right: bytes, samples: int) -> bytes:
    stereo = bytearray(2 * WIDTH * samples)
    for first, side in ((0, left), (WIDTH, right)):
        if side:
            stereo[first :: 2 * WIDTH], stereo[first + 1 :: 2 * WIDTH] = side[::WIDTH], side[1::WIDTH]
    return bytes(stereo)


@lru_cache(maxsize=8)
def _ones(samples: int) -> int:
    """Return the number whose 16-bit lanes are all 1."""
    return int.from_bytes(samples * b"\1\0", "little")


def _add(one: bytes, other: bytes) -> bytes:
    """Add samples, and saturate: all at once, as lanes of one large number, which takes a tenth of a loop's time."""
    ones = _ones(len(one) // WIDTH)
    signs = ones << 15
    rest = signs - ones
    a, b = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    total = ((a & rest) + (b & rest)) ^ ((a ^ b) & signs)  # no carry leaves its lane
    if overflows := (a ^ total) & (b ^ total) & signs:  # two of one sign have a sum of the other
        lanes = (overflows << 1) - (overflows >> 15)
        most = rest + (a >> 15 & ones)
        total ^= (total ^ most) & lanes
    return total.to_bytes(len(one), "little")
