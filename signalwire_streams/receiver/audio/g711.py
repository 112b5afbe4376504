"""G.711, the two laws of telephony: eight bits a sample, on 16-bit linear PCM and back.

Linear samples are signed and little-endian. The laws themselves have 14 bits (µ-law) and 13 bits (A-law); as is
usual, those are the upper bits of the 16.

µ-law has two codes for zero. 0xFF is the one that encoding gives; 0x7F, the negative zero, decodes to 0 as well and is
therefore the only code of all that does not come back from decoding and encoding. (For the same reason a recording
that is to keep every code must keep the codes.) A-law has no zero: its least magnitudes are +8 and -8.

Source: ITU-T G.711 (11/88), tables 1 and 2.
"""

import struct
from functools import cache
from itertools import pairwise

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
