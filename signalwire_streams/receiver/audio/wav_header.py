"""What a WAV file begins with: how its audio is encoded and how much there is. Pure.

Source: "Multimedia Programming Interface and Data Specifications 1.0" (IBM and Microsoft, 1991) for RIFF, and "New
Multimedia Data Types and Data Techniques 3.0" (Microsoft, 1994) for the format tags and the ``fact`` chunk.
"""

import struct
from collections.abc import Mapping

from attrs import frozen

from signalwire_streams.receiver.audio._formats import AudioFormat, Encoding

PCM_TAG, ALAW_TAG, MULAW_TAG = 1, 6, 7
_TAGS: Mapping[str, int] = {Encoding.MULAW: MULAW_TAG, Encoding.ALAW: ALAW_TAG, Encoding.L16: PCM_TAG}
_MOST = (1 << 32) - 1  # every size in the header has 32 bits
_BITS = 8


@frozen(kw_only=True)
class WavShape:
    """How the audio of a WAV file is laid out.

    Attributes:
        tag: the format tag: 1 is linear PCM, 6 A-law, 7 µ-law.
        channels: how many are interleaved.
        sample_rate: samples per second.
        width: bytes of one sample of one channel.
        silence: one silent sample of one channel.
    """

    tag: int
    channels: int
    sample_rate: int
    width: int
    silence: bytes

    @classmethod
    def of(cls, audio: AudioFormat, *, channels: int, decoded: bool) -> "WavShape":
        """Give the shape for audio of a format, either decoded to linear PCM or with the codes that were sent.

        Raises:
            UnknownEncodingError: the encoding is not known.
        """
        kept = AudioFormat(Encoding.L16, audio.sample_rate) if decoded else audio
        silence = kept.silence[: kept.sample_size // kept.channels]
        tag = _TAGS[kept.encoding]
        return cls(tag=tag, channels=channels, sample_rate=audio.sample_rate, width=len(silence), silence=silence)

    @property
    def block(self) -> int:
        """Bytes of one sample over all channels."""
        return self.width * self.channels

    @property
    def most(self) -> int:
        """Bytes of audio that the header's numbers can tell, in whole blocks; a little less than 4 GiB."""
        return (_MOST - len(self.header(0))) // self.block * self.block

    def header(self, size: int) -> bytes:
        """Spell the header of a file with so many bytes of audio. All headers of a shape are equally long."""
        layout = struct.pack(
            "<HHIIHH",
            self.tag,
            self.channels,
            self.sample_rate,
            self.sample_rate * self.block,
            self.block,
            self.width * _BITS,
        )
        if self.tag == PCM_TAG:
            chunks = _chunk(b"fmt ", layout)
        else:
            # Whatever is not PCM says how many bytes of extension follow (none), and has its length in samples.
            chunks = _chunk(b"fmt ", layout + b"\0\0") + _chunk(b"fact", struct.pack("<I", size // self.block))
        whole = b"WAVE" + chunks + struct.pack("<4sI", b"data", size)
        return struct.pack("<4sI", b"RIFF", len(whole) + size + padding(size)) + whole


def padding(size: int) -> int:
    """Give how many bytes follow audio of such a size, so that it ends on an even one."""
    return size % 2


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body
