"""PCM frames, what may be asked of them, and how their samples are mixed. Pure."""

from functools import lru_cache
from math import gcd
from typing import Literal, TypeAlias

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio._formats import PCM_SIZE, AudioFormat, whole_number
from signalwire_streams.receiver.audio._resampling import Resampler, check_packages, is_prepared

PcmTracks: TypeAlias = Literal["inbound", "outbound", "mixed", "stereo"]
"""One track, both added, or both side by side with the inbound one on the left."""
Late: TypeAlias = Literal["keep", "drop"]
"""The action for audio that arrives after its time."""

_MILLISECONDS = 1000
_CHOICES: tuple[PcmTracks, ...] = ("inbound", "outbound", "mixed", "stereo")
_MAX_RATE, _MAX_FRAME, _MAX_DELAY = 192_000, 1000, 10_000


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


def _rate(value: int) -> int:
    return whole_number("rate", value, 1, _MAX_RATE)


def _frame_ms(value: int) -> int:
    return whole_number("frame_ms", value, 1, _MAX_FRAME)


def _delay_ms(value: int) -> int:
    return whole_number("delay_ms", value, 0, _MAX_DELAY)


@define(frozen=True, kw_only=True)
class PcmOptions:
    """What is asked of a mixer; all of it is checked when it is created."""

    audio_format: AudioFormat
    rate: int = field(converter=_rate)
    tracks: PcmTracks
    frame_ms: int = field(converter=_frame_ms)
    late: Late
    delay_ms: int = field(converter=_delay_ms)

    def __attrs_post_init__(self) -> None:
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
        check_packages(rate, self.rate)

    @property
    def channels(self) -> int:
        """Channels of a frame."""
        return 2 if self.tracks == "stereo" else 1

    @property
    def is_prepared(self) -> bool:
        """Whether `resampler` takes no time. The first call may take 150 ms, which must not pass in an event loop."""
        return is_prepared(self.audio_format.sample_rate, self.rate)

    def resampler(self) -> Resampler | None:
        """Return a new resampler of frames; None if the stream has the rate that is asked for."""
        rate = self.audio_format.sample_rate
        return Resampler(rate, self.rate, self.channels) if rate != self.rate else None


def interleave(left: bytes, right: bytes, samples: int) -> bytes:
    """Return both side by side; either may be empty for silence."""
    stereo = bytearray(2 * PCM_SIZE * samples)
    for first, side in ((0, left), (PCM_SIZE, right)):
        if side:
            stereo[first :: 2 * PCM_SIZE], stereo[first + 1 :: 2 * PCM_SIZE] = side[::PCM_SIZE], side[1::PCM_SIZE]
    return bytes(stereo)


@lru_cache(maxsize=8)
def _ones(samples: int) -> int:
    """Return the number whose 16-bit lanes are all 1."""
    return int.from_bytes(samples * b"\1\0", "little")


def add(one: bytes, other: bytes) -> bytes:
    """Add samples, and saturate: all at once, as lanes of one large number, which takes a tenth of a loop's time."""
    ones = _ones(len(one) // PCM_SIZE)
    signs = ones << 15
    rest = signs - ones
    a, b = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    total = ((a & rest) + (b & rest)) ^ ((a ^ b) & signs)  # no carry leaves its lane
    if overflows := (a ^ total) & (b ^ total) & signs:  # two of one sign have a sum of the other
        lanes = (overflows << 1) - (overflows >> 15)
        most = rest + (a >> 15 & ones)
        total ^= (total ^ most) & lanes
    return total.to_bytes(len(one), "little")
