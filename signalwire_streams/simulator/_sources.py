"""Codecs, and audio sources: a tone, silence or a WAV file (pure, except for reading the file)."""

import math
import stat
import sys
import wave
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol, TypeAlias

from attrs import evolve, field, frozen
from attrs.validators import gt, optional

DEFAULT_CODEC = "PCMU"
DEFAULT_PACKET_TIME = 20  # milliseconds

Samples: TypeAlias = "array[int]"


@frozen
class Codec:
    """How audio is encoded.

    Attributes:
        encoding: the start event's word for it. Only the first and the last are documented for SignalWire
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
    packet_time: int = DEFAULT_PACKET_TIME

    def frame_start(self, index: int) -> int:
        """Return a frame's first sample; rounding it each time, not a frame's length, keeps frames in real time."""
        return index * self.rate * self.packet_time // 1_000


_MU_LAW_PEAK, _MU_LAW_BIAS = 8_158, 33


def _mu_law(sample: int) -> int:
    """Encode a 16-bit sample: 14 bits are used, and a bias of 33 puts the segments' borders at powers of two."""
    value = sample >> 2
    magnitude = min(abs(value), _MU_LAW_PEAK) + _MU_LAW_BIAS
    segment = magnitude.bit_length() - 6
    code = segment << 4 | magnitude >> segment + 1 & 0xF
    return code ^ (0x7F if value < 0 else 0xFF)


def _a_law(sample: int) -> int:
    """Encode a 16-bit sample: 13 bits are used, and every other bit of the code is inverted."""
    value = sample >> 3
    magnitude = ~value if value < 0 else value
    segment = max(magnitude.bit_length() - 5, 0)
    code = segment << 4 | magnitude >> max(segment, 1) & 0xF
    return code ^ (0x55 if value < 0 else 0xD5)


@cache
def _table(law: Callable[[int], int]) -> bytes:
    return bytes(law(sample if sample < 1 << 15 else sample - (1 << 16)) for sample in range(1 << 16))


def _companded(law: Callable[[int], int]) -> Callable[[Samples], bytes]:
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


CODECS = {
    "PCMU": Codec("audio/x-mulaw", 8_000, 1, _companded(_mu_law)),
    "PCMA": Codec("audio/x-alaw", 8_000, 1, _companded(_a_law)),
    "L16": Codec("audio/x-L16", 8_000, 2, _linear),
}


def is_encodable(name: str | None) -> bool:
    """Return whether the Space can encode a codec; a stream with G722 starts, and ends with a codec error."""
    return (name or DEFAULT_CODEC).partition("@")[0] in CODECS


@cache
def codec_of(name: str | None) -> Codec:
    """Return a codec by its name in a start request, modifiers included; None stands for the platform's default."""
    base, *modifiers = (name or DEFAULT_CODEC).split("@")
    codec = CODECS[base]
    numbers = {modifier[-1]: int(modifier[:-1]) for modifier in modifiers}
    return evolve(codec, rate=numbers.get("h", codec.rate), packet_time=numbers.get("i", codec.packet_time))


@frozen
class Clip:
    """The audio of one track, computed or read on demand.

    Attributes:
        length: the number of 16-bit samples.
        repeats: whether it is played over and over for as long as the stream lasts; otherwise the stream ends with it.
        read: returns the samples from a start to a stop, both within the length.
    """

    length: int
    repeats: bool
    read: Callable[[int, int], Samples]

    def samples(self, start: int, stop: int) -> Samples:
        """Return the samples from one position to another, which may lie beyond the end."""
        if not self.repeats:
            stop = min(stop, self.length)
            return self.read(start, stop) if start < stop else array("h")
        samples = array("h")
        while start < stop:
            position = start % self.length
            count = min(stop - start, self.length - position)
            samples += self.read(position, position + count)
            start += count
        return samples


class Sound(Protocol):
    """A source of audio."""

    def clip(self, track: str, rate: int) -> Clip:
        """Return the audio of a track at a sample rate.

        Raises:
            OSError: the sound is a file that can't be read. Reading the clip later may raise it too.
            ValueError: the sound is a file that is not a WAV file.
        """
        ...


_LOOP_SECONDS = 1.0
_VOLUME = 0.3


def _computed(seconds: float | None, rate: int, read: Callable[[int, int], Samples]) -> Clip:
    return Clip(round((_LOOP_SECONDS if seconds is None else seconds) * rate), seconds is None, read)


@frozen
class Tone:
    """A sine wave; the outbound track is a fifth higher, so that the two can be distinguished.

    Attributes:
        hertz: its frequency on the inbound track.
        seconds: how long it lasts; None for no end.
    """

    hertz: int = field(default=440, validator=gt(0))
    seconds: float | None = field(default=None, validator=optional(gt(0)))

    def clip(self, track: str, rate: int) -> Clip:
        """See `Sound.clip`."""
        hertz = self.hertz * 3 // 2 if track == "outbound" else self.hertz
        step, peak = 2 * math.pi * hertz / rate, _VOLUME * 0x7FFF

        def read(start: int, stop: int) -> Samples:
            return array("h", (round(peak * math.sin(step * index)) for index in range(start, stop)))

        return _computed(self.seconds, rate, read)


@frozen
class Silence:
    """No sound.

    Attributes:
        seconds: how long it lasts; None for no end.
    """

    seconds: float | None = field(default=None, validator=optional(gt(0)))

    def clip(self, track: str, rate: int) -> Clip:  # noqa: ARG002  (the same on both tracks)
        """See `Sound.clip`."""
        return _computed(self.seconds, rate, lambda start, stop: array("h", [0]) * (stop - start))


@frozen
class NoFrames:
    """Nothing: sockets are opened, and carry no media frame until their stream ends.

    The vendor sends frames all the time, so this is no Space that you will meet. It is for thousands of sockets at
    once, for which frames would be the work.
    """

    def clip(self, track: str, rate: int) -> Clip:  # noqa: ARG002  (the same on both tracks)
        """See `Sound.clip`."""
        return Clip(0, repeats=False, read=lambda *_: array("h"))


_SAMPLE_WIDTH = 2


@frozen
class WavFile:
    """A WAV file of 16-bit PCM: mono is played on both tracks; of stereo, the left channel is the inbound track.

    At another sample rate than the stream's it is resampled by linear interpolation, good enough to be understood and
    no better.

    Attributes:
        path: the file. Its format is checked at once; its audio is read while it is played.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not such a WAV file.
    """

    path: Path = field(converter=Path)

    def __attrs_post_init__(self) -> None:
        with self._opened():
            pass

    def clip(self, track: str, rate: int) -> Clip:
        """See `Sound.clip`."""
        with self._opened() as file:
            own_rate, length = file.getframerate(), file.getnframes()

        def read(start: int, stop: int) -> Samples:
            first = start * own_rate // rate
            last = min((stop - 1) * own_rate // rate + 2, length)
            samples = self._read(track, first, last)
            if own_rate == rate:
                return samples[: stop - start]
            positions = (index * own_rate / rate - first for index in range(start, stop))
            # The file may be shorter than its header says.
            return array("h", (_interpolate(samples, at) for at in positions if at < len(samples)))

        return Clip(length * rate // own_rate, repeats=False, read=read)

    def _read(self, track: str, first: int, last: int) -> Samples:
        with self._opened() as file:
            channels = file.getnchannels()
            file.setpos(first)
            data = file.readframes(last - first)
        samples = array("h", data[: len(data) // (_SAMPLE_WIDTH * channels) * _SAMPLE_WIDTH * channels])
        if sys.byteorder == "big":
            samples.byteswap()
        return samples[int(track == "outbound" and channels > 1) :: channels]

    @contextmanager
    def _opened(self) -> Iterator[wave.Wave_read]:
        if not stat.S_ISREG(self.path.stat().st_mode):  # opening a pipe would block until somebody writes to it
            raise ValueError(f"{self.path} is not a regular file: write the path of a WAV file")
        try:
            with wave.open(str(self.path)) as file:
                if file.getsampwidth() != _SAMPLE_WIDTH or file.getnchannels() not in {1, 2} or not file.getframerate():
                    raise ValueError(f"{self.path} is not a WAV file of 16-bit PCM with one or two channels")
                yield file
        except (wave.Error, EOFError) as error:
            raise ValueError(f"{self.path} is not a WAV file: {str(error) or 'it ends too soon'}") from None


def _interpolate(samples: Samples, position: float) -> int:
    before = int(position)
    after = min(before + 1, len(samples) - 1)
    return round(samples[before] + (samples[after] - samples[before]) * (position - before))
