"""How loud a track is. Pure, and cheap enough for thousands of frames a second.

The meter shows peaks as a mixing desk does: it rises at once and falls slowly, so that an eye can follow.
"""

import math
import sys
from array import array
from collections.abc import Sequence
from functools import cache

from attrs import define, field

from signalwire_streams.receiver.audio import AudioFormat

FLOOR = -60.0
"""The level, in dBFS, below which nothing is worth showing."""

_FULL_SCALE = 1 << 15
_FALL = 20.0  # decibels a second


@define(eq=False)
class LevelMeter:
    """Listens to one track.

    Attributes:
        format: how the audio is encoded; it must be known.
        samples: how many came.
        peak: the greatest magnitude of a sample so far.
    """

    format: AudioFormat
    samples: int = field(init=False, default=0)
    peak: int = field(init=False, default=0)
    _level: float = field(init=False, default=0.0)
    _at: float = field(init=False, default=0.0)

    @property
    def seconds(self) -> float:
        """How much audio came."""
        return self.samples / self.format.sample_rate

    def hear(self, payload: bytes, now: float) -> None:
        """Hear a frame that came at that time, in seconds."""
        audio = self.format.whole(payload)
        if not audio:
            return
        self.samples += len(audio) // self.format.sample_size
        magnitude = _magnitude(self.format, audio)
        self.peak = max(self.peak, magnitude)
        self._level, self._at = max(magnitude, self._fallen(now)), now

    def level(self, now: float) -> float | None:
        """Give the level of the last moment in dBFS, or None in silence."""
        return dbfs(self._fallen(now))

    def _fallen(self, now: float) -> float:
        fallen = self._level * 10 ** (-_FALL / 20 * max(0.0, now - self._at))
        return fallen if fallen >= 1 else 0.0


def dbfs(magnitude: float) -> float | None:
    """Give the level of a magnitude, in decibels below full scale; None of zero, which has none."""
    return 20 * math.log10(magnitude / _FULL_SCALE) if magnitude else None


def _magnitude(audio_format: AudioFormat, audio: bytes) -> int:
    if audio_format.sample_size == audio_format.channels:
        ranks, magnitudes = _codes(audio_format.encoding)
        return magnitudes[max(audio.translate(ranks))]
    pcm = _samples(audio_format, audio)
    highest, lowest = max(pcm), min(pcm)
    return max(highest, -lowest)


@cache
def _codes(encoding: str) -> tuple[bytes, Sequence[int]]:
    """Give the rank of each code of one byte by its magnitude, and the magnitudes by rank.

    To look for the greatest rank takes a quarter of the time that decoding and looking through the samples takes.
    """
    magnitudes = [abs(sample) for sample in _samples(AudioFormat(encoding), bytes(range(256)))]
    ranked = sorted(set(magnitudes))
    return bytes(map(ranked.index, magnitudes)), ranked


def _samples(audio_format: AudioFormat, audio: bytes) -> "array[int]":
    pcm = array("h", audio_format.to_pcm(audio))
    if sys.byteorder == "big":
        pcm.byteswap()
    return pcm
