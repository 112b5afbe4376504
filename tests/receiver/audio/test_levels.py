"""Levels of a track, as meters show them."""

import random
import sys
from array import array
from typing import Any

import pytest

from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.receiver.audio._levels import LevelMeter, dbfs

LINEAR = AudioFormat("audio/x-L16", 8000)


def linear(*samples: int) -> bytes:
    pcm = array("h", samples)
    if sys.byteorder == "big":
        pcm.byteswap()
    return pcm.tobytes()


@pytest.mark.parametrize(
    ("samples", "level"),
    [((0, 0), None), ((-32768, 5), 0.0), ((16384, -3), -6.02), ((1, 0), -90.31), ((), None)],
)
def test_level_is_that_of_the_greatest_sample(samples: tuple[int, ...], level: float | None) -> None:
    meter = LevelMeter(LINEAR)
    meter.add(linear(*samples), 1.0)
    assert meter.level(1.0) == (None if level is None else pytest.approx(level, abs=0.01))
    assert meter.samples == len(samples)


@pytest.mark.parametrize("encoding", ["audio/x-mulaw", "audio/x-alaw", "audio/x-L16"])
@pytest.mark.parametrize("order", ["little", "big"])
def test_peak_is_exact_in_every_encoding(encoding: str, order: Any) -> None:
    """It equals that of the decoded samples; an odd byte at the end is ignored."""
    source = random.Random(encoding)  # noqa: S311  (nothing is guarded here)
    audio_format = AudioFormat(encoding, 8000, order)
    for length in (1, 2, 3, 160, 161, 641):
        payload = source.randbytes(length)
        meter = LevelMeter(audio_format)
        meter.add(payload, 0.0)
        decoded = array("h", audio_format.to_pcm(payload))
        if sys.byteorder == "big":
            decoded.byteswap()
        assert meter.peak == max(map(abs, decoded), default=0)
        assert meter.seconds == len(decoded) / 8000


def test_level_rises_at_once_and_falls_slowly() -> None:
    """20 decibels a second, and to nothing in the end; the peak stays."""
    meter = LevelMeter(LINEAR)
    meter.add(linear(32767), 10.0)
    meter.add(linear(33), 10.5)
    assert meter.level(10.5) == pytest.approx(-10, abs=0.01)
    assert meter.level(12.0) == pytest.approx(-40, abs=0.01)
    meter.add(linear(16384), 12.0)
    assert meter.level(12.0) == pytest.approx(-6, abs=0.05)
    assert meter.level(100.0) is None
    assert meter.peak == 32767


def test_full_scale_is_zero_and_silence_has_no_level() -> None:
    assert dbfs(1 << 15) == 0
    assert dbfs(0) is None
