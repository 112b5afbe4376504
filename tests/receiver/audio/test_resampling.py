"""Resampling in pieces: the signal, its place, its length, and its delay."""

import sys
from math import log10, pi, sin
from struct import pack, unpack
from typing import Any

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio._resampling import Resampler, is_prepared

PAIRS = [(8000, 16000), (8000, 24000), (16000, 8000), (8000, 44100), (11025, 16000), (24000, 8000), (8001, 16000)]


def tone(rate: int, samples: int, channels: int = 1) -> list[int]:
    """Three frequencies of speech, another phase on each channel."""
    return [
        round(sum(4000 * sin(2 * pi * hertz * n / rate + channel) for hertz in (300, 1100, 2700)))
        for n in range(samples)
        for channel in range(channels)
    ]


def packed(samples: list[int]) -> bytes:
    return pack(f"<{len(samples)}h", *samples)


def unpacked(pcm: bytes) -> list[int]:
    return list(unpack(f"<{len(pcm) // 2}h", pcm))


def signal_to_noise(found: list[int], expected: list[int]) -> float:
    """Decibels."""
    noise = sum((one - other) ** 2 for one, other in zip(found, expected, strict=True))
    return 10 * log10(sum(one * one for one in expected) / (noise or 1e-9))


def in_pieces(resampler: Resampler, pcm: bytes, size: int) -> list[bytes]:
    pieces = [resampler.process(pcm[begin : begin + size]) for begin in range(0, len(pcm), size)]
    return [*pieces, resampler.process(b"", last=True)]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("from_rate", "to_rate"), PAIRS)
def test_resampled_signal_is_in_place(from_rate: int, to_rate: int, channels: int) -> None:
    seconds = 1
    pcm = packed(tone(from_rate, from_rate * seconds, channels))
    pieces = in_pieces(Resampler(from_rate, to_rate, channels), pcm, 333)
    found = unpacked(b"".join(pieces))
    assert len(found) == to_rate * seconds * channels
    edge = to_rate // 20 * channels  # where the tone begins and ends, it is not band-limited
    expected = tone(to_rate, to_rate * seconds, channels)
    assert signal_to_noise(found[edge:-edge], expected[edge:-edge]) > 70


@given(st.sampled_from(PAIRS), st.integers(0, 900), st.lists(st.integers(0, 700), max_size=6))
def test_pieces_change_only_the_rounding(pair: tuple[int, int], samples: int, cuts: list[int]) -> None:
    pcm = packed(tone(pair[0], samples))
    resampler = Resampler(*pair)
    ends = sorted(min(cut, len(pcm)) for cut in cuts)
    pieces = [resampler.process(pcm[begin:end]) for begin, end in zip([0, *ends], [*ends, len(pcm)], strict=True)]
    found = unpacked(b"".join([*pieces, resampler.process(b"", last=True)]))
    whole = unpacked(Resampler(*pair).process(pcm, last=True))
    assert len(found) == len(whole) == (2 * samples * pair[1] + pair[0]) // (2 * pair[0])
    assert all(abs(one - other) <= 1 for one, other in zip(found, whole, strict=True))
    assert unpacked(resampler.process(pcm, last=True)) == whole  # the last piece before ended that audio


def test_audio_is_held_back_for_its_context_only() -> None:
    resampler = Resampler(8000, 16000)
    assert resampler.delay == 80
    lengths = [len(resampler.process(bytes(320))) // 2 for _ in range(50)]
    assert lengths == [160, *[320] * 49]


def test_less_than_five_milliseconds_wait_for_more() -> None:
    resampler = Resampler(8000, 16000)
    resampler.process(bytes(320))
    lengths = [len(resampler.process(bytes(2))) // 2 for _ in range(80)]
    assert lengths == [*[0] * 39, 80, *[0] * 39, 80]


def test_silence_stays_silence() -> None:
    assert not any(b"".join(in_pieces(Resampler(8000, 16000), bytes(16000), 320)))


def test_loud_audio_is_clipped() -> None:
    loud = [32767 if n // 40 % 2 else -32768 for n in range(8000)]
    found = unpacked(b"".join(in_pieces(Resampler(8000, 16000), packed(loud), 320)))
    assert (min(found), max(found)) == (-32768, 32767)
    assert all(abs(one) > 20000 for one in found[82::160])  # amid each half-wave: nothing wrapped around


def test_memory_does_not_grow_with_the_audio() -> None:
    resampler = Resampler(8000, 44100)
    for _ in range(200):
        resampler.process(bytes(320))
    assert resampler._soxr is not None
    assert len(resampler._soxr._kept) < 800


@pytest.mark.parametrize("channels", [1, 2])
def test_same_rate_needs_no_library(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    resampler = Resampler(8000, 8000, channels)
    assert resampler.delay == 0
    pcm = bytes(range(40))
    assert b"".join(in_pieces(resampler, pcm, 7)) == pcm
    assert resampler.process(pcm + b"x", last=True) == pcm
    assert resampler.process(pcm) == pcm


def test_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ModuleNotFoundError, match=r"from 8000 to 16000 Hz.*pip install 'signalwire-streams\[audio\]'"):
        Resampler(8000, 16000)


@pytest.mark.parametrize("wrong", [(0, 8000), (8000, 8000.0), (8000, 8000, 17), (8000, "16000")])
def test_invalid_argument_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be a whole number from 1 to"):
        Resampler(*wrong)


def test_rates_without_common_blocks_wait_for_five_milliseconds_too() -> None:
    resampler = Resampler(8001, 16000)
    assert resampler.process(b"", last=True) == b""
    lengths = [len(resampler.process(bytes(2))) // 2 for _ in range(400)]
    assert set(lengths) == {0, 80, 81}
    for samples in range(40):
        whole = Resampler(11_025, 16_000).process(bytes(2 * samples), last=True)
        assert len(whole) // 2 == (2 * samples * 640 + 441) // 882


def test_second_resampler_of_its_rates_is_there_at_once() -> None:
    """Of the last few rates; one that takes no preparation always is."""
    for rate in range(8200, 8200 + 200 * 9, 200):
        assert not is_prepared(8000, rate)
        Resampler(8000, rate)
        assert is_prepared(8000, rate)
    assert not is_prepared(8000, 8200)
    assert is_prepared(8001, 16_000)
    assert is_prepared(8001, 8001)
