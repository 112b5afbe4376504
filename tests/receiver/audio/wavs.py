"""Reading WAV files chunk by chunk, since the standard library reads linear PCM only."""

import struct
from pathlib import Path

from attrs import frozen


@frozen
class Wav:
    """Contents of a WAV file."""

    tag: int
    channels: int
    sample_rate: int
    block: int
    bits: int
    samples: int | None
    audio: bytes

    def channel(self, number: int) -> bytes:
        """Return one channel's audio."""
        width = self.bits // 8
        return b"".join(
            self.audio[at + number * width : at + (number + 1) * width] for at in range(0, len(self.audio), self.block)
        )


def read_wav(path: Path) -> Wav:
    """Read a file, and check that its sizes are right."""
    content = path.read_bytes()
    riff, size, kind = struct.unpack_from("<4sI4s", content)
    assert (riff, kind) == (b"RIFF", b"WAVE")
    assert size == len(content) - 8
    chunks = {}
    at = 12
    while at < len(content):
        name, length = struct.unpack_from("<4sI", content, at)
        chunks[name] = content[at + 8 : at + 8 + length]
        assert len(chunks[name]) == length
        at += 8 + length + length % 2
    tag, channels, sample_rate, rate, block, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    assert block == channels * bits // 8
    assert rate == block * sample_rate
    samples = struct.unpack("<I", chunks[b"fact"])[0] if b"fact" in chunks else None
    return Wav(tag, channels, sample_rate, block, bits, samples, chunks[b"data"])
