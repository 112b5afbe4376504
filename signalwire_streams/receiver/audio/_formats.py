"""How the audio of a stream is encoded, and what follows from that.

A *sample* here is one moment of all channels (the platform sends one channel), so a track at 8000 Hz has 8000 samples
a second, however many bytes each has.

Source: https://signalwire.com/docs/compatibility-api/
"""

import re
import struct
from enum import StrEnum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self, TypeAlias

from attrs import Attribute, define, field, frozen

from signalwire_streams.errors import InvalidRequestError, StreamsError


@define(eq=False, slots=False, str=False)
class UnknownEncodingError(StreamsError):
    """The audio is encoded in a way that this package does not know, so it can only be passed on as it came.

    Attributes:
        encoding: what the Space called it.
    """

    encoding: str = ""


@define(eq=False, slots=False, str=False)
class RecordingError(StreamsError):
    """A recording can't be written: the disk is full, the folder is not there, or it was closed.

    Attributes:
        path: the file, where it is one.
    """

    path: Path | None = None


@define(eq=False, slots=False, str=False)
class RecordingFullError(RecordingError):
    """The recording is as long as it may be. Everything before is kept, and the file is well-formed."""


_SIGN = 0x80
_MULAW_MASK, _ALAW_MASK = 0x7F, 0x55  # µ-law inverts all bits but the sign, A-law every other one
_MULAW_BIAS = 33
_MULAW_SCALE, _ALAW_SCALE = 2, 3  # bits that are left of 16


def _mulaw_magnitude(code: int) -> int:
    segment, step = divmod(code, 16)
    return (((2 * step + _MULAW_BIAS) << segment) - _MULAW_BIAS) << _MULAW_SCALE


def _alaw_magnitude(code: int) -> int:
    segment, step = divmod(code, 16)
    middle = 2 * step + 1
    return (middle if segment == 0 else (middle + 32) << (segment - 1)) << _ALAW_SCALE


def _mulaw_threshold(code: int) -> int:
    """Give the least 14-bit magnitude of a code."""
    segment, step = divmod(code, 16)
    return max(0, ((step + 16) << (segment + 1)) - _MULAW_BIAS)


def _alaw_threshold(code: int) -> int:
    """Give the least 13-bit magnitude of a code."""
    segment, step = divmod(code, 16)
    return 2 * step if segment == 0 else (step + 16) << segment


def _both_bytes(samples: list[int]) -> tuple[bytes, bytes]:
    pcm = struct.pack("<256h", *samples)
    return pcm[::2], pcm[1::2]


_MULAW_LOW, _MULAW_HIGH = _both_bytes(
    [_mulaw_magnitude(code ^ 0xFF) if code & _SIGN else -_mulaw_magnitude(code ^ _MULAW_MASK) for code in range(256)]
)
_ALAW_LOW, _ALAW_HIGH = _both_bytes(
    [
        _alaw_magnitude(code ^ _SIGN ^ _ALAW_MASK) if code & _SIGN else -_alaw_magnitude(code ^ _ALAW_MASK)
        for code in range(256)
    ]
)


def _runs(thresholds: list[int], magnitudes: int) -> bytes:
    """Give the code of each magnitude, when a code reaches from its threshold to the next one's."""
    return b"".join(
        bytes([code]) * (above - least) for code, (least, above) in enumerate(pairwise([*thresholds, magnitudes]))
    )


def _widen(codes: bytes, scale: int, mask: int) -> bytes:
    """Give each code once for every 16-bit sample that shares its upper bits."""
    copies = 1 << scale
    wide = bytearray(copies * len(codes))
    for copy in range(copies):
        wide[copy::copies] = codes.translate(bytes(code ^ mask for code in range(256)))
    return bytes(wide)


# The tables are indexed by a signed sample: what is negative counts from the end, where it stands as well when a
# 16-bit sample is read as an unsigned one. Both laws round down, so -1 of 16 bits is -1 of 14 or 13.
@cache
def _mulaw_codes() -> bytes:
    codes = _runs([_mulaw_threshold(code) for code in range(128)], 8193)
    positive, negative = codes[:8192], codes[:0:-1]
    return _widen(positive, _MULAW_SCALE, 0xFF) + _widen(negative, _MULAW_SCALE, _MULAW_MASK)


@cache
def _alaw_codes() -> bytes:
    codes = _runs([_alaw_threshold(code) for code in range(128)], 4096)
    return _widen(codes, _ALAW_SCALE, _SIGN ^ _ALAW_MASK) + _widen(codes[::-1], _ALAW_SCALE, _ALAW_MASK)


def mulaw_to_pcm(codes: bytes) -> bytes:
    """Decode µ-law: two bytes of linear PCM for each code."""
    return _decode(codes, _MULAW_LOW, _MULAW_HIGH)


def alaw_to_pcm(codes: bytes) -> bytes:
    """Decode A-law: two bytes of linear PCM for each code."""
    return _decode(codes, _ALAW_LOW, _ALAW_HIGH)


def pcm_to_mulaw(pcm: bytes) -> bytes:
    """Encode linear PCM in µ-law: one code for each two bytes; an odd byte at the end is no sample and is left out."""
    return _encode(pcm, _mulaw_codes())


def pcm_to_alaw(pcm: bytes) -> bytes:
    """Encode linear PCM in A-law: one code for each two bytes; an odd byte at the end is no sample and is left out."""
    return _encode(pcm, _alaw_codes())


def _decode(codes: bytes, low: bytes, high: bytes) -> bytes:
    # Three calls into C, whatever the length: a loop over the samples would take twenty times as long.
    pcm = bytearray(2 * len(codes))
    pcm[::2] = codes.translate(low)
    pcm[1::2] = codes.translate(high)
    return bytes(pcm)


def _encode(pcm: bytes, codes: bytes) -> bytes:
    samples = struct.unpack_from(f"<{len(pcm) // 2}h", pcm)
    return bytes(map(codes.__getitem__, samples))


ByteOrder: TypeAlias = Literal["little", "big"]
"""Which byte of a 16-bit sample comes first."""

_TELEPHONY_RATE = 8000
_MOST_RATE = 768_000
_MOST_CHANNELS = 16
_MILLISECONDS = 1000
_PCM_SIZE = 2


class Encoding(StrEnum):
    """The encodings that can be decoded, as the start event writes them."""

    MULAW = "audio/x-mulaw"
    ALAW = "audio/x-alaw"
    L16 = "audio/x-L16"


# Only µ-law and L16 are documented for the start event; the others are how the same things are called elsewhere.
_NAMES = {
    "mulaw": Encoding.MULAW,
    "ulaw": Encoding.MULAW,
    "mu-law": Encoding.MULAW,
    "u-law": Encoding.MULAW,
    "pcmu": Encoding.MULAW,
    "basic": Encoding.MULAW,
    "alaw": Encoding.ALAW,
    "a-law": Encoding.ALAW,
    "pcma": Encoding.ALAW,
    "l16": Encoding.L16,
}
_RATE = re.compile(r"@(\d{1,6})h?\b|;\s*rate\s*=\s*\"?(\d{1,6})\b", re.ASCII | re.IGNORECASE)
_SIZES = {Encoding.MULAW: 1, Encoding.ALAW: 1, Encoding.L16: _PCM_SIZE}
_SILENCES = {Encoding.MULAW: b"\xff", Encoding.ALAW: b"\xd5", Encoding.L16: b"\0\0"}


def _encoding(text: str) -> Encoding | str:
    name = re.split("[;@]", text, maxsplit=1)[0].strip().lower()
    return _NAMES.get(name.removeprefix("audio/").removeprefix("x-"), text)


def _is_within(_: object, attribute: "Attribute[int]", value: object) -> None:
    most = attribute.metadata["most"]
    if not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequestError(f"{attribute.name} can't be {value!r}: it is a whole number from 1 to {most}")


def _is_byte_order(_: object, __: object, value: object) -> None:
    if value not in ("little", "big"):
        raise InvalidRequestError(f"byte_order can't be {value!r}: write 'little' or 'big'")


@frozen
class AudioFormat:
    """How audio is encoded.

    Attributes:
        encoding: an `Encoding`, or the text as it came where it is none of them. Any usual spelling is taken for the
            `Encoding` that it means.
        sample_rate: samples per second.
        byte_order: of L16. Which one the platform sends is not documented; whatever is known of it points to
            ``little``, though the standard's ``audio/L16`` (RFC 2586) is ``big``.
        channels: the platform sends one.

    Raises:
        InvalidRequestError: a number can't be right.
    """

    encoding: Encoding | str = field(converter=_encoding)
    sample_rate: int = field(default=_TELEPHONY_RATE, validator=_is_within, metadata={"most": _MOST_RATE})
    byte_order: ByteOrder = field(default="little", validator=_is_byte_order)
    channels: int = field(default=1, validator=_is_within, metadata={"most": _MOST_CHANNELS})

    @classmethod
    def from_start_event(
        cls,
        encoding: str | None,
        sample_rate: int | None = None,
        channels: int | None = None,
        *,
        byte_order: ByteOrder = "little",
    ) -> Self:
        """Make the format from what a start event says, whatever it says.

        A rate that is left out is looked for in the encoding's text (``L16@16000h``, ``audio/L16;rate=16000``); else,
        or where it can't be one, it is 8000. Channels that can't be are 1.

        Args:
            encoding: ``mediaFormat.encoding``.
            sample_rate: ``mediaFormat.sampleRate``.
            channels: ``mediaFormat.channels``.
            byte_order: of L16; the event does not tell it.
        """
        text = encoding or ""
        if sample_rate is None and (found := _RATE.search(text)):
            sample_rate = int(found[1] or found[2])
        return cls(
            encoding=text,
            sample_rate=sample_rate if sample_rate and 1 <= sample_rate <= _MOST_RATE else _TELEPHONY_RATE,
            byte_order=byte_order,
            channels=channels if channels and 1 <= channels <= _MOST_CHANNELS else 1,
        )

    @property
    def is_supported(self) -> bool:
        """Whether the audio can be decoded; whatever needs to know the encoding raises where this is False."""
        return isinstance(self.encoding, Encoding)

    @property
    def sample_size(self) -> int:
        """Bytes of one sample, over all channels.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        return _SIZES[self._known()] * self.channels

    @property
    def silence(self) -> bytes:
        """One sample of silence: 0xFF in µ-law, 0xD5 in A-law, zeros in L16.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        return _SILENCES[self._known()] * self.channels

    def samples_in(self, milliseconds: int) -> int:
        """Give how many samples last so long, to the nearest one."""
        return (milliseconds * self.sample_rate + _MILLISECONDS // 2) // _MILLISECONDS

    def bytes_in(self, milliseconds: int) -> int:
        """Give how many bytes last so long, in whole samples.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        return self.samples_in(milliseconds) * self.sample_size

    def to_pcm(self, payload: bytes) -> bytes:
        """Decode a payload to linear PCM: 16 bits, signed, little-endian, at the same rate.

        Bytes at the end that are no whole sample (an odd byte of L16) are left out.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        encoding = self._known()
        whole = self.trim(payload)
        if encoding is Encoding.MULAW:
            return mulaw_to_pcm(whole)
        if encoding is Encoding.ALAW:
            return alaw_to_pcm(whole)
        return whole if self.byte_order == "little" else _swapped(whole)

    def from_pcm(self, pcm: bytes) -> bytes:
        """Encode linear PCM (16 bits, signed, little-endian, at the same rate) as a payload.

        Bytes at the end that are no whole sample are left out.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        encoding = self._known()
        whole = _whole(pcm, _PCM_SIZE * self.channels)
        if encoding is Encoding.MULAW:
            return pcm_to_mulaw(whole)
        if encoding is Encoding.ALAW:
            return pcm_to_alaw(whole)
        return whole if self.byte_order == "little" else _swapped(whole)

    def trim(self, payload: bytes) -> bytes:
        """Leave out the bytes at a payload's end that are no whole sample.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        return _whole(payload, self.sample_size)

    def _known(self) -> Encoding:
        if isinstance(self.encoding, Encoding):
            return self.encoding
        raise UnknownEncodingError(
            f"audio encoded as {self.encoding[:80]!r} can't be decoded: take the payloads as they come",
            encoding=self.encoding,
        )


def _whole(payload: bytes, size: int) -> bytes:
    broken = len(payload) % size
    return payload[:-broken] if broken else payload


def _swapped(samples: bytes) -> bytes:
    other = bytearray(len(samples))
    other[::2] = samples[1::2]
    other[1::2] = samples[::2]
    return bytes(other)
