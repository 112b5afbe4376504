"""The codecs of the Space: 16-bit samples into what a media frame carries (pure).

Written from the definition in ITU-T G.711, apart from the receiver's, so that a mistake in one can't pass unseen.
"""

import sys
from array import array
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final, TypeAlias

from attrs import evolve, frozen

__all__ = ["DEFAULT_CODEC", "FRAME_MILLISECONDS", "Codec", "Samples", "codec_of", "is_encodable"]

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
