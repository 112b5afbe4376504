"""What is heard on the Space: a tone, silence, or a WAV file, of each track (pure but for reading the file)."""

import math
import sys
import wave
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from attrs import evolve, field, frozen
from attrs.validators import gt, optional

DEFAULT_CODEC: Final = "PCMU"
FRAME_MILLISECONDS: Final = 20
_LOUDEST, _BIAS = 8_158, 33

Samples: TypeAlias = "array[int]"


@frozen
class Codec:
    """How audio is encoded.

    Attributes:
        encoding: as the start event says it. Only the first and the last are documented for SignalWire
            (https://signalwire.com/docs/compatibility-api/rest/streams); A-law's is our guess.
        rate: samples per second.
        width: bytes per sample.
        encode: turns samples into bytes.
        packet_time: milliseconds of one frame.
    """

    encoding: str
    rate: int
    width: int
    encode: Callable[[Samples], bytes]
    packet_time: int = FRAME_MILLISECONDS


def _mu_law(sample: int) -> int:
    """Encode a 16-bit sample: 14 bits are heard, and a bias of 33 makes the segments' borders powers of two."""
    heard = sample >> 2
    magnitude = min(abs(heard), _LOUDEST) + _BIAS
    segment = magnitude.bit_length() - 6
    code = segment << 4 | magnitude >> segment + 1 & 0xF
    return code ^ (0x7F if heard < 0 else 0xFF)


def _a_law(sample: int) -> int:
    """Encode a 16-bit sample: 13 bits are heard, and every other bit of the code is inverted."""
    heard = sample >> 3
    magnitude = ~heard if heard < 0 else heard
    segment = max(magnitude.bit_length() - 5, 0)
    code = segment << 4 | magnitude >> max(segment, 1) & 0xF
    return code ^ (0x55 if heard < 0 else 0xD5)


@cache
def _table(law: Callable[[int], int]) -> bytes:
    return bytes(law(sample if sample < 1 << 15 else sample - (1 << 16)) for sample in range(1 << 16))


def _by(law: Callable[[int], int]) -> Callable[[Samples], bytes]:
    def encode(samples: Samples) -> bytes:
        table = _table(law)
        return bytes(table[sample & 0xFFFF] for sample in samples)

    return encode


def _linear(samples: Samples) -> bytes:
    if sys.byteorder == "little":
        return samples.tobytes()
    swapped = array("h", samples)
    swapped.byteswap()
    return swapped.tobytes()


_CODECS: Final[Mapping[str, Codec]] = MappingProxyType(
    {
        "PCMU": Codec("audio/x-mulaw", 8_000, 1, _by(_mu_law)),
        "PCMA": Codec("audio/x-alaw", 8_000, 1, _by(_a_law)),
        "L16": Codec("audio/x-L16", 8_000, 2, _linear),
    }
)


def is_encodable(name: str | None) -> bool:
    """Whether the Space can speak in a codec; G722 is accepted, and ends with a codec error when it is to be spoken."""
    return (name or DEFAULT_CODEC).partition("@")[0] in _CODECS


@cache
def codec_of(name: str | None) -> Codec:
    """Return a codec by its name in a start, with its modifiers; the platform's default where it has none."""
    base, *modifiers = (name or DEFAULT_CODEC).split("@")
    codec = _CODECS[base]
    numbers = {modifier[-1]: int(modifier[:-1]) for modifier in modifiers}
    return evolve(codec, rate=numbers.get("h", codec.rate), packet_time=numbers.get("i", FRAME_MILLISECONDS))


_SAMPLE_WIDTH: Final = 2
_VOLUME: Final = 0.3
_ONE_SECOND: Final = 1.0


@frozen
class Clip:
    """Samples of one track.

    Attributes:
        samples: 16-bit samples.
        repeats: whether they are heard over and over, for as long as the stream lasts; if not, the stream ends with
            them.
    """

    samples: Samples = field(repr=False)
    repeats: bool


class Sound(Protocol):
    """Something to be heard."""

    def clip(self, track: str, rate: int) -> Clip:
        """Give what is heard on a track, at so many samples per second."""
        ...


def _length(seconds: float | None) -> tuple[float, bool]:
    return (_ONE_SECOND, True) if seconds is None else (seconds, False)


@frozen
class Tone:
    """A sine; the outbound track has it a fifth higher, so that the tracks can be told apart.

    Attributes:
        hertz: its frequency on the inbound track.
        seconds: how long it lasts; None for without end.
    """

    hertz: int = field(default=440, validator=gt(0))
    seconds: float | None = field(default=None, validator=optional(gt(0)))

    def clip(self, track: str, rate: int) -> Clip:
        """See `Sound.clip`."""
        hertz = self.hertz * 3 // 2 if track == "outbound" else self.hertz
        seconds, repeats = _length(self.seconds)
        step, peak = 2 * math.pi * hertz / rate, _VOLUME * 0x7FFF
        return Clip(
            array("h", (round(peak * math.sin(step * index)) for index in range(round(seconds * rate)))), repeats
        )


@frozen
class Silence:
    """Nothing.

    Attributes:
        seconds: how long it lasts; None for without end.
    """

    seconds: float | None = field(default=None, validator=optional(gt(0)))

    def clip(self, track: str, rate: int) -> Clip:  # noqa: ARG002  (both are as silent)
        """See `Sound.clip`."""
        seconds, repeats = _length(self.seconds)
        return Clip(array("h", bytes(_SAMPLE_WIDTH * round(seconds * rate))), repeats)


@frozen
class WavFile:
    """A WAV file of 16-bit PCM: a mono one is heard on both tracks, of a stereo one the left side is inbound.

    At another sample rate than the stream's it is stretched by linear interpolation, which is good enough to be
    understood and no more.

    Attributes:
        path: the file. That it is such a one is checked at once; its audio is read when it is first heard.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no such WAV file.
    """

    path: Path = field(converter=Path)

    def __attrs_post_init__(self) -> None:
        with self._opened():
            pass

    def clip(self, track: str, rate: int) -> Clip:
        """See `Sound.clip`.

        Raises:
            OSError: the file can't be read any more.
            ValueError: it is no longer such a WAV file.
        """
        with self._opened() as file:
            channels, own_rate = file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
        samples = array("h", data[: len(data) // _SAMPLE_WIDTH * _SAMPLE_WIDTH])  # it may have been cut off
        if sys.byteorder == "big":
            samples.byteswap()
        return Clip(_at_rate(samples[int(track == "outbound" and channels > 1) :: channels], own_rate, rate), False)

    @contextmanager
    def _opened(self) -> Iterator[wave.Wave_read]:
        try:
            with wave.open(str(self.path)) as file:
                if file.getsampwidth() != _SAMPLE_WIDTH or file.getnchannels() not in {1, 2} or not file.getframerate():
                    raise ValueError(f"{self.path} is no WAV file of 16-bit PCM with one or two channels")
                yield file
        except (wave.Error, EOFError) as error:
            raise ValueError(f"{self.path} is no WAV file: {str(error) or 'it ends too soon'}") from None


def _at_rate(samples: Samples, own: int, wanted: int) -> Samples:
    if own == wanted or not samples:
        return samples
    return array("h", (_between(samples, index * own / wanted) for index in range(len(samples) * wanted // own)))


def _between(samples: Sequence[int], position: float) -> int:
    before = int(position)
    after = min(before + 1, len(samples) - 1)
    return round(samples[before] + (samples[after] - samples[before]) * (position - before))
