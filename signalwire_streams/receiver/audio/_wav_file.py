"""One WAV file that grows: audio is put at any sample of any channel, and what nobody wrote is silence.

The end of the recording, a few seconds, is in memory: there, tracks that are about as far as each other meet.
What lies before is on disk, and is read and written again when a track comes that is further behind. So memory does
not depend on how far apart the tracks are.

With every two seconds of audio, what is new goes to disk, and then the header's sizes are put right. So the file of a
process that was killed is well-formed, and lacks its last seconds only.
"""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Self

from attrs import define, field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio._formats import AudioFormat, Encoding, RecordingError, RecordingFullError

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


_KEPT, _UNWRITTEN = 1, 2  # seconds in memory that are on disk as well, and that are not yet
_PIECE = 1 << 16


@define(eq=False)
class WavFile:
    """A WAV file that is being written. Make one with `create`.

    Attributes:
        path: the file.
        shape: how its audio is laid out.
        most: bytes of audio that it may hold.
    """

    path: Path
    shape: WavShape
    most: int
    _file: BufferedRandom
    _header_size: int = field(init=False)
    _block: int = field(init=False)
    _second: int = field(init=False)
    _start: int = field(init=False, default=0)  # bytes of audio before the tail; all of them are on disk
    _tail: bytearray = field(init=False, factory=bytearray, repr=False)
    _clean: int = field(init=False, default=0)  # bytes of the tail that are on disk as well
    _ended: str | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._header_size = len(self.shape.header(0))
        self._block = self.shape.block
        self._second = self.shape.sample_rate * self._block

    @classmethod
    def create(cls, path: Path, shape: WavShape, *, most: int | None = None) -> Self:
        """Make a file that holds no audio yet.

        Raises:
            InvalidRequestError: there is such a file already.
            RecordingError: it can't be made.
        """
        try:
            opened = path.open("x+b")
        except FileExistsError:
            raise InvalidRequestError(f"the recording {path} is there already: choose another file") from None
        except (OSError, ValueError) as error:
            raise RecordingError(f"the recording {path} can't be made: {error}", path=path) from error
        file = cls(path, shape, shape.most if most is None else min(most, shape.most), opened)
        try:
            file.flush()
        except RecordingError:
            file.discard()
            raise
        return file

    @property
    def size(self) -> int:
        """Bytes of audio so far."""
        return self._start + len(self._tail)

    def write(self, sample: int, audio: bytes, channel: int | None = None) -> None:
        """Put audio at a sample.

        Args:
            sample: where it begins, counted from the file's start.
            audio: whole samples, of one channel or of all.
            channel: counted from 0; None where the audio is of all channels.

        Raises:
            RecordingFullError: the file would become too long. None of this audio was written; audio that belongs
                further to the front still can be.
            RecordingError: the file can't be written, or was closed. After a failure nothing more is written.
        """
        if self._ended is not None:
            raise self._error(self._ended)
        begin = sample * self._block
        length = len(audio) if channel is None else len(audio) // self.shape.width * self._block
        if begin + length > self.most:
            raise RecordingFullError(
                f"the recording {self.path} is full: it may hold {self.most} bytes", path=self.path
            )
        if begin < self._start:
            length = min(length, self._start - begin)
            size = length if channel is None else length // self._block * self.shape.width
            self._patch(begin, length, audio[:size], channel)
            audio, begin = audio[size:], self._start
        if audio:
            self._append(begin - self._start, audio, channel)

    def shorten(self, sample: int) -> None:
        """Drop the audio from a sample on, if there is any.

        Raises:
            RecordingError: the file can't be written, or was closed.
        """
        size = sample * self._block
        if size >= self.size:
            return
        del self._tail[max(0, size - self._start) :]
        self._start = min(self._start, size)
        self._clean = min(self._clean, len(self._tail))
        self.flush()
        with self._telling():
            # After the header, which never claims more than there is.
            self._file.truncate(self._header_size + size + padding(size))

    def flush(self) -> None:
        """Put on disk what is in memory, and then the sizes in the header.

        Raises:
            RecordingError: the file can't be written, was removed or replaced, or was closed.
        """
        if self._ended is not None:
            raise self._error(self._ended)
        with self._telling():
            if not os.fstat(self._file.fileno()).st_nlink:  # writing to a file without a name succeeds
                raise OSError("the file was removed or replaced")
            self._store()
            self._file.write(bytes(padding(self.size)))
            # The audio first: the header never tells of more than there is.
            self._file.flush()
            self._file.seek(0)
            self._file.write(self.shape.header(self.size))
            self._file.flush()

    def close(self) -> None:
        """Put everything on disk and close the file. Closing again, or after a failure, does nothing more.

        Raises:
            RecordingError: the file can't be written.
        """
        try:
            if self._ended is None:
                self.flush()
        finally:
            self._ended = self._ended or "is closed"
            # What could be written was written; a file that failed fails once more here.
            with suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """Close the file and remove it."""
        self._ended = self._ended or "is closed"
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()

    def _append(self, offset: int, audio: bytes, channel: int | None) -> None:
        """Put audio into the tail, or so far beyond it that a new one begins."""
        if offset > len(self._tail) + _UNWRITTEN * self._second:
            self._skip(self._start + offset)
            offset = 0
        if channel is None:
            self._lengthen(offset)
            self._tail[offset : offset + len(audio)] = audio
        else:
            self._lengthen(offset + len(audio) // self.shape.width * self._block)
            self._weave(self._tail, offset, audio, channel)
        self._clean = min(self._clean, offset)
        if len(self._tail) - self._clean > _UNWRITTEN * self._second:
            self.flush()
            forgotten = max(0, len(self._tail) - _KEPT * self._second)
            del self._tail[:forgotten]
            self._start += forgotten
            self._clean -= forgotten

    def _lengthen(self, length: int) -> None:
        if (missing := length - len(self._tail)) > 0:
            self._tail += self.shape.silence * (missing // self.shape.width)

    def _weave(self, into: bytearray, offset: int, audio: bytes, channel: int) -> None:
        """Replace one channel, which must be there already."""
        width, block = self.shape.width, self._block
        first, last = offset + channel * width, offset + len(audio) // width * block
        for byte in range(width):
            into[first + byte : last : block] = audio[byte::width]

    def _patch(self, begin: int, length: int, audio: bytes, channel: int | None) -> None:
        """Put audio where the file is on disk only."""
        with self._telling():
            self._file.seek(self._header_size + begin)
            there = bytearray(audio)
            if channel is not None:
                there = bytearray(self._file.read(length)).ljust(length, b"\0")
                self._weave(there, 0, audio, channel)
                self._file.seek(self._header_size + begin)
            self._file.write(there)

    def _skip(self, begin: int) -> None:
        """Begin a new tail further on, with silence before it."""
        with self._telling():
            self._store()
            if any(self.shape.silence):
                missing = begin - self.size
                piece = self.shape.silence * (_PIECE // self.shape.width)
                for written in range(0, missing, _PIECE):
                    self._file.write(piece[: missing - written])
            else:
                self._file.truncate(self._header_size + begin)  # zeros that take no space, where the disk can do that
        self._start, self._tail, self._clean = begin, bytearray(), 0
        self.flush()

    def _store(self) -> None:
        """Write what of the tail is not on disk; the file is then at the audio's end."""
        self._file.seek(self._header_size + self._start + self._clean)
        self._file.write(memoryview(self._tail)[self._clean :])
        self._clean = len(self._tail)

    def _error(self, what: str) -> RecordingError:
        return RecordingError(f"the recording {self.path} {what}", path=self.path)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._ended = f"can't be written: {error}"
            raise self._error(self._ended) from error
