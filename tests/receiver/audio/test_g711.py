"""G.711, against the tables of the recommendation: every code, and every linear sample."""

import struct
from bisect import bisect_right
from itertools import accumulate, pairwise

import pytest
from attrs import frozen

from signalwire_streams.receiver.audio import alaw_to_pcm, mulaw_to_pcm, pcm_to_alaw, pcm_to_mulaw

CODES = bytes(range(256))
SAMPLES = range(-32768, 32768)


@frozen
class Law:
    """A law as its table has it: the intervals of the magnitudes, and what each stands for."""

    decisions: list[int]  # the least magnitude of each character signal
    levels: list[int]

    def character(self, magnitude: int) -> int:
        return bisect_right(self.decisions, magnitude) - 1


def middles(decisions: list[int]) -> list[int]:
    return [(least + above) // 2 for least, above in pairwise(decisions)]


# Table 2: one interval of 1, 15 of 2, then 16 of each of 4, 8, …, 256, up to the virtual decision value 8159.
MU_STEPS = [1, *[2] * 15, *(step for power in range(2, 9) for step in [1 << power] * 16)]
MU_ENDS = list(accumulate(MU_STEPS, initial=0))
MULAW = Law(MU_ENDS[:-1], [0, *middles(MU_ENDS)[1:]])
# Table 1: 32 intervals of 2, then 16 of each of 4, 8, …, 128, up to the virtual decision value 4096.
A_ENDS = list(accumulate([*[2] * 32, *(step for power in range(2, 8) for step in [1 << power] * 16)], initial=0))
ALAW = Law(A_ENDS[:-1], middles(A_ENDS))


def linear(samples: "range | list[int]") -> bytes:
    return struct.pack(f"<{len(samples)}h", *samples)


def test_tables_are_those_of_the_recommendation() -> None:
    """The end points of the segments, as the recommendation prints them."""
    assert MU_ENDS[::16] == [0, 31, 95, 223, 479, 991, 2015, 4063, 8159]
    assert A_ENDS[32::16] == [64, 128, 256, 512, 1024, 2048, 4096]
    assert (MULAW.levels[127], ALAW.levels[127]) == (8031, 4032)


def test_every_mulaw_code_decodes_to_its_level() -> None:
    """The upper half of the codes is positive, and all bits but the sign are inverted."""
    expected = [(1 if code & 0x80 else -1) * MULAW.levels[~code & 0x7F] * 4 for code in CODES]

    assert mulaw_to_pcm(CODES) == linear(expected)


def test_every_alaw_code_decodes_to_its_level() -> None:
    """The upper half of the codes is positive, and the even bits are inverted."""
    expected = [(1 if code & 0x80 else -1) * ALAW.levels[(code ^ 0x55) & 0x7F] * 8 for code in CODES]

    assert alaw_to_pcm(CODES) == linear(expected)


def test_every_mulaw_code_comes_back_but_the_negative_zero() -> None:
    """Both zeros decode to 0, and 0 is encoded as the positive one."""
    assert pcm_to_mulaw(mulaw_to_pcm(CODES)) == CODES.replace(b"\x7f", b"\xff")


def test_every_alaw_code_comes_back() -> None:
    """A-law has no zero."""
    assert pcm_to_alaw(alaw_to_pcm(CODES)) == CODES


def test_every_linear_sample_has_the_mulaw_code_of_its_interval() -> None:
    """The upper 14 bits count; what is beyond the last interval gets the last code."""
    expected = bytes(
        0xFF - MULAW.character(sample >> 2) if sample >= 0 else 0x7F - MULAW.character(-(sample >> 2))
        for sample in SAMPLES
    )

    assert pcm_to_mulaw(linear(SAMPLES)) == expected


def test_every_linear_sample_has_the_alaw_code_of_its_interval() -> None:
    """The upper 13 bits count, and -1 is to the negative samples what 0 is to the positive ones."""
    expected = bytes(
        (0x80 | ALAW.character(sample >> 3)) ^ 0x55 if sample >= 0 else ALAW.character(~(sample >> 3)) ^ 0x55
        for sample in SAMPLES
    )

    assert pcm_to_alaw(linear(SAMPLES)) == expected


def test_code_stands_for_the_middle_of_its_interval() -> None:
    """So encoding is off by half an interval at most, though at a segment's end another level may be nearer."""
    for law in (MULAW, ALAW):
        widths = [above - least for least, above in pairwise([*law.decisions, law.levels[-1]])]
        off = [level - least for level, least in zip(law.levels, law.decisions, strict=True)]
        assert all(abs(2 * one - width) <= 1 for one, width in zip(off[:-1], widths, strict=False))


@pytest.mark.parametrize("encode", [pcm_to_mulaw, pcm_to_alaw])
def test_odd_byte_at_the_end_is_no_sample(encode: object) -> None:
    """It is left out; and of nothing comes nothing."""
    assert callable(encode)
    assert encode(b"\x10\x20\x30") == encode(b"\x10\x20")
    assert encode(b"\x10") == encode(b"") == b""


@pytest.mark.parametrize("decode", [mulaw_to_pcm, alaw_to_pcm])
def test_nothing_decodes_to_nothing(decode: object) -> None:
    assert callable(decode)
    assert decode(b"") == b""
