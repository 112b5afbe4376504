"""Encodings of a stream's audio, and their conversion to linear PCM.

A *sample* spans all channels (the platform sends one), so a track at 8000 Hz has 8000 samples per second, whatever
their size in bytes.

Source: https://signalwire.com/docs/compatibility-api/
"""

import operator
import re
import struct
from array import array
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from attrs import define, field, frozen

from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.models._validation import kind_of
from signalwire_streams.receiver._protocol import StartEvent


@define(eq=False, slots=False, str=False)
class UnknownEncodingError(StreamsError):
    """The encoding of the audio is unknown, so its payloads can only be passed on as they are."""

    encoding: str = ""


@define(eq=False, slots=False, str=False)
class RecordingError(StreamsError):
    """A recording can't be written: the disk is full, the directory does not exist, or the recording was closed.

    Attributes:
        path: the file; None if no single file is concerned.
    """

    path: Path | None = None


@define(eq=False, slots=False, str=False)
class RecordingFullError(RecordingError):
    """The recording has reached its maximum size. The file is valid and holds everything before."""


_SIGN = 0x80
_MULAW_MASKS, _ALAW_MASKS = (0xFF, 0x7F), (0xD5, 0x55)  # bits inverted in codes of positive and negative samples
_MULAW_SCALE, _ALAW_SCALE = 2, 3  # low bits of a 16-bit sample that are dropped
_MULAW_BIAS = 33
_STEPS = [divmod(code, 16) for code in range(128)]  # the segment of each code, and its step within it
_MULAW_MAGNITUDES = [(((2 * step + _MULAW_BIAS) << segment) - _MULAW_BIAS) << _MULAW_SCALE for segment, step in _STEPS]
_ALAW_MAGNITUDES = [
    (2 * step + 1 if segment == 0 else (2 * step + 33) << (segment - 1)) << _ALAW_SCALE for segment, step in _STEPS
]
# The lowest magnitude of each code, in 14 and in 13 bits.
_MULAW_THRESHOLDS = [max(0, ((step + 16) << (segment + 1)) - _MULAW_BIAS) for segment, step in _STEPS]
_ALAW_THRESHOLDS = [2 * step if segment == 0 else (step + 16) << segment for segment, step in _STEPS]


def _both_bytes(magnitudes: list[int], positive: int, negative: int) -> tuple[bytes, bytes]:
    """Return the low and the high byte of each code's sample."""
    samples = [
        magnitudes[code ^ positive] if code & _SIGN else -magnitudes[code ^ negative] for code in range(2 * _SIGN)
    ]
    pcm = struct.pack("<256h", *samples)
    return pcm[::2], pcm[1::2]


_MULAW_LOW, _MULAW_HIGH = _both_bytes(_MULAW_MAGNITUDES, *_MULAW_MASKS)
_ALAW_LOW, _ALAW_HIGH = _both_bytes(_ALAW_MAGNITUDES, *_ALAW_MASKS)


def _runs(thresholds: list[int], magnitudes: int) -> bytes:
    """Return the code of each magnitude; a code extends from its threshold to the next one's."""
    return b"".join(
        bytes([code]) * (above - least) for code, (least, above) in enumerate(pairwise([*thresholds, magnitudes]))
    )


def _widen(codes: bytes, scale: int, mask: int) -> bytes:
    """Repeat each code for every 16-bit sample that shares its upper bits."""
    copies = 1 << scale
    wide = bytearray(copies * len(codes))
    for copy in range(copies):
        wide[copy::copies] = codes.translate(bytes(code ^ mask for code in range(256)))
    return bytes(wide)


# The tables are indexed by a signed sample; a negative one counts from the end. Both laws round down, so -1 of 16 bits
# is -1 of 14 or 13.
@cache
def _mulaw_codes() -> bytes:
    codes = _runs(_MULAW_THRESHOLDS, 8193)
    positive, negative = _MULAW_MASKS
    return _widen(codes[:8192], _MULAW_SCALE, positive) + _widen(codes[:0:-1], _MULAW_SCALE, negative)


@cache
def _alaw_codes() -> bytes:
    codes = _runs(_ALAW_THRESHOLDS, 4096)
    positive, negative = _ALAW_MASKS
    return _widen(codes, _ALAW_SCALE, positive) + _widen(codes[::-1], _ALAW_SCALE, negative)


def mulaw_to_pcm(codes: bytes) -> bytes:
    """Decode µ-law to linear PCM: 16 bits, signed, little-endian, for each byte."""
    return _decode(codes, _MULAW_LOW, _MULAW_HIGH)


def alaw_to_pcm(codes: bytes) -> bytes:
    """Decode A-law to linear PCM: 16 bits, signed, little-endian, for each byte."""
    return _decode(codes, _ALAW_LOW, _ALAW_HIGH)


def pcm_to_mulaw(pcm: bytes) -> bytes:
    """Encode 16-bit little-endian linear PCM as µ-law. An odd byte at the end is left out."""
    return _encode(pcm, _mulaw_codes())


def pcm_to_alaw(pcm: bytes) -> bytes:
    """Encode 16-bit little-endian linear PCM as A-law. An odd byte at the end is left out."""
    return _encode(pcm, _alaw_codes())


def _decode(codes: bytes, low: bytes, high: bytes) -> bytes:
    # Three calls into C for any length; a loop over the samples would take twenty times as long.
    pcm = bytearray(2 * len(codes))
    pcm[::2] = codes.translate(low)
    pcm[1::2] = codes.translate(high)
    return bytes(pcm)


def _encode(pcm: bytes, codes: bytes) -> bytes:
    samples = struct.unpack_from(f"<{len(pcm) // 2}h", pcm)
    return bytes(map(codes.__getitem__, samples))


ByteOrder: TypeAlias = Literal["little", "big"]
"""Which byte of a 16-bit sample comes first."""

_TELEPHONY_RATE, _MAX_RATE, _MAX_CHANNELS = 8000, 768_000, 16
_MILLISECONDS = 1000
PCM_SIZE = 2
PCM_TAG = 1


class Encoding(StrEnum):
    """The encodings that can be decoded, as the start event writes them."""

    MULAW = "audio/x-mulaw"
    ALAW = "audio/x-alaw"
    L16 = "audio/x-L16"


@frozen
class _Codec:
    """How one encoding is stored and converted."""

    # Lower-case, without audio/ and x-. Only those of µ-law and L16 are documented for the start event; the others are
    # in use elsewhere.
    names: tuple[str, ...]
    wav_tag: int  # format tag of the encoding in WAV files
    silence: bytes  # one sample of one channel
    decode: Callable[[bytes], bytes] | None = None  # to little-endian linear PCM; None if it is linear PCM
    encode: Callable[[bytes], bytes] | None = None  # from it


CODECS = {
    Encoding.MULAW: _Codec(
        ("mulaw", "ulaw", "mu-law", "u-law", "pcmu", "basic"), 7, b"\xff", mulaw_to_pcm, pcm_to_mulaw
    ),
    Encoding.ALAW: _Codec(("alaw", "a-law", "pcma"), 6, b"\xd5", alaw_to_pcm, pcm_to_alaw),
    Encoding.L16: _Codec(("l16",), PCM_TAG, b"\0\0"),
}
_ENCODINGS = {name: encoding for encoding, codec in CODECS.items() for name in codec.names}
_RATE = re.compile(r"@(\d{1,6})h?\b|;\s*rate\s*=\s*\"?(\d{1,6})\b", re.ASCII | re.IGNORECASE)


def _encoding(text: str) -> Encoding | str:
    if not isinstance(text, str):
        raise InvalidRequestError(f"write the encoding as in 'audio/x-mulaw', not {type(text).__name__}")
    name = re.split("[;@]", text, maxsplit=1)[0].strip().lower()
    return _ENCODINGS.get(name.removeprefix("audio/").removeprefix("x-"), text)


def _as_int(value: Any) -> int | None:  # noqa: ANN401
    """Return a whole number as an int, whichever type it has (numpy's are usual in audio); None if it is none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int, most: int) -> int:  # noqa: ANN401
    """Return a whole number as an int.

    Raises:
        InvalidRequestError: it is none, or beyond the limits.
    """
    number = _as_int(value)
    if number is None or not least <= number <= most:
        raise InvalidRequestError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return number


def _sample_rate(value: int) -> int:
    return whole_number("sample_rate", value, 1, _MAX_RATE)


def _channels(value: int) -> int:
    return whole_number("channels", value, 1, _MAX_CHANNELS)


def _validate_byte_order(_: object, __: object, value: object) -> None:
    if value not in ("little", "big"):
        raise InvalidRequestError(f"byte_order {value!r} is unknown: write 'little' or 'big'")


@frozen
class AudioFormat:
    """Encoding, sample rate and channels of audio.

    If the encoding is unknown (`is_supported` is False), all methods but `samples_in`, and the properties `sample_size`
    and `silence`, raise `UnknownEncodingError`.

    Attributes:
        encoding: an `Encoding`; other usual names of one are converted to it. An unknown encoding stays a string.
        sample_rate: samples per second.
        byte_order: of L16. The platform's is not documented; all that is known points to ``little``, although the
            standard's ``audio/L16`` (RFC 2586) is ``big``.
        channels: the platform sends one.

    Raises:
        InvalidRequestError: a number or the byte order is invalid.
    """

    encoding: Encoding | str = field(converter=_encoding)
    sample_rate: int = field(default=_TELEPHONY_RATE, converter=_sample_rate)
    byte_order: ByteOrder = field(default="little", validator=_validate_byte_order)
    channels: int = field(default=1, converter=_channels)

    @classmethod
    def from_start_event(
        cls,
        start: StartEvent | str | None,
        sample_rate: int | None = None,
        channels: int | None = None,
        *,
        byte_order: ByteOrder = "little",
    ) -> Self:
        """Create the format from a start event, even if its values are missing or invalid.

        For a stream whose frames you decode yourself with `decode_event`; `StreamSession.audio_format` has been created
        in the same way.

        A missing sample rate, or one that is no whole number, is taken from the encoding (``L16@16000h``,
        ``audio/L16;rate=16000``). A rate that is still missing, or invalid, is 8000; an invalid number of channels is
        1.

        Args:
            start: the event; or, if you have only its parts, ``mediaFormat.encoding``.
            sample_rate: ``mediaFormat.sampleRate``; only if ``start`` is not an event.
            channels: ``mediaFormat.channels``; likewise.
            byte_order: byte order of L16; the event does not state it.
        """
        if isinstance(start, StartEvent):
            media = start.media_format
            start, sample_rate, channels = media.encoding, media.sample_rate, media.channels
        text = start if isinstance(start, str) else ""
        rate, number = _as_int(sample_rate), _as_int(channels)
        if rate is None and (found := _RATE.search(text)):
            rate = int(found[1] or found[2])
        return cls(
            encoding=text,
            sample_rate=rate if rate is not None and 1 <= rate <= _MAX_RATE else _TELEPHONY_RATE,
            byte_order=byte_order,
            channels=number if number is not None and 1 <= number <= _MAX_CHANNELS else 1,
        )

    @property
    def is_supported(self) -> bool:
        """True if the audio can be decoded."""
        return isinstance(self.encoding, Encoding)

    @property
    def sample_size(self) -> int:
        """Bytes of one sample, over all channels."""
        return len(self._codec().silence) * self.channels

    @property
    def silence(self) -> bytes:
        """One sample of silence: 0xFF in µ-law, 0xD5 in A-law, zeros in L16."""
        return self._codec().silence * self.channels

    def samples_in(self, milliseconds: int) -> int:
        """Return the number of samples in a duration, rounded to the nearest."""
        return (milliseconds * self.sample_rate + _MILLISECONDS // 2) // _MILLISECONDS

    def bytes_in(self, milliseconds: int) -> int:
        """Return the number of bytes in a duration, in whole samples."""
        return self.samples_in(milliseconds) * self.sample_size

    def to_pcm(self, payload: bytes) -> bytes:
        """Decode a payload to linear PCM: 16 bits, signed, little-endian, at the same rate.

        Bytes at the end that are less than a sample (an odd byte of L16) are left out.
        """
        return self._convert(self._codec().decode, self.trim(payload))

    def _decoder(self) -> Callable[[bytes], bytes]:
        """Return a function that does what `to_pcm` does for one channel, without its look-ups."""
        return self._codec().decode or self.to_pcm

    def from_pcm(self, pcm: bytes) -> bytes:
        """Encode linear PCM (16 bits, signed, little-endian, at the same rate) as a payload.

        Bytes at the end that are less than a sample are left out.
        """
        return self._convert(self._codec().encode, _whole(pcm, PCM_SIZE * self.channels))

    def _convert(self, convert: Callable[[bytes], bytes] | None, audio: bytes) -> bytes:
        if convert is not None:
            return convert(audio)
        if self.byte_order == "little":
            return audio
        swapped = array("h", audio)
        swapped.byteswap()
        return swapped.tobytes()

    def trim(self, payload: bytes) -> bytes:
        """Return the payload without bytes at its end that are less than a sample."""
        return _whole(payload, self.sample_size)

    def _codec(self) -> _Codec:
        if isinstance(self.encoding, Encoding):
            return CODECS[self.encoding]
        raise UnknownEncodingError(
            f"audio encoded as {self.encoding[:80]!r} can't be decoded: use the raw payloads, or have the stream "
            "encoded as PCMU or L16",
            encoding=self.encoding,
        )


def _whole(payload: bytes, size: int) -> bytes:
    _check_audio(payload)
    partial = len(payload) % size
    return payload[:-partial] if partial else payload


def _check_audio(audio: object) -> None:
    if not isinstance(audio, bytes | bytearray | memoryview):
        raise InvalidRequestError(f"audio must be bytes, not {kind_of(audio)}: decode base64 first")


def check_audio_format(value: object) -> None:
    """Raise `InvalidRequestError` unless it is an `AudioFormat`."""
    if not isinstance(value, AudioFormat):
        raise InvalidRequestError(f"format must be an AudioFormat, not {kind_of(value)}: pass session.audio_format")
