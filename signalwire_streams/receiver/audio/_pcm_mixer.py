"""PCM frames of one length from the media events of a stream. Pure: a mixer is told the time, and asked for frames.

`KeepMixer` and `DropMixer` differ in what happens to audio that arrives after its time. In both, positions are those of
the tracks' timelines, so that the tracks stay in line.
"""

import struct
from collections import deque
from collections.abc import Iterable
from math import gcd
from operator import add
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
_FROM_START = 1.0  # seconds: frames of a stream that was opened later than that are counted from there


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


class Mixer:
    """What both mixers share: tracks, mixing, the rate, and the cut into frames.

    Its times are seconds of one clock, whose time is *now* when it is created; *announced* are the tracks that the
    start event names. A *chunk* is the audio of one frame at the stream's own rate.
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
        """Return where the frames begin, when the first audio begins at a position."""
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


def _interleave(left: bytes, right: bytes, samples: int) -> bytes:
    stereo = bytearray(2 * WIDTH * samples)
    for first, side in ((0, left), (WIDTH, right)):
        if side:
            stereo[first :: 2 * WIDTH], stereo[first + 1 :: 2 * WIDTH] = side[::WIDTH], side[1::WIDTH]
    return bytes(stereo)


def _add(one: bytes, other: bytes) -> bytes:
    shape = f"<{len(one) // WIDTH}h"
    sums = list(map(add, struct.unpack(shape, one), struct.unpack(shape, other)))
    try:
        return struct.pack(shape, *sums)
    except struct.error:
        return struct.pack(shape, *[min(max(value, -32768), 32767) for value in sums])
