"""A growing WAV file: audio may be written at any sample of any channel, and the rest is silence.

The last few seconds of the recording are in memory, which is enough for tracks that advance together. Earlier audio is
on disk, and is read and rewritten for a track that lags further behind. So the memory does not depend on the distance
between the tracks.

After every two seconds of audio, the new audio is written to disk, and then the sizes in the header. So the file of a
process that is killed is valid and lacks only the last seconds.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Self

from attrs import frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio._formats import (
    CODECS,
    PCM_TAG,
    AudioFormat,
    Encoding,
    RecordingError,
    RecordingFullError,
)

_MAX_SIZE = (1 << 32) - 1  # every size in the header has 32 bits
_BITS = 8
_SECONDS_KEPT, _SECONDS_UNWRITTEN = 1, 2  # of audio in memory that is on disk as well, and that is not yet
_PIECE = 1 << 16


@frozen(kw_only=True)
class WavShape:
    """Layout of the audio in a WAV file."""

    tag: int  # of the format
    channels: int  # interleaved
    sample_rate: int
    width: int  # bytes of one sample of one channel
    silence: bytes  # one silent sample of one channel

    @classmethod
    def from_format(cls, audio: AudioFormat, *, channels: int, decoded: bool) -> "WavShape":
        """Return the shape for payloads of a format, either decoded to linear PCM or as they are."""
        stored = AudioFormat(Encoding.L16, audio.sample_rate) if decoded else audio
        silence = stored.silence[: stored.sample_size // stored.channels]
        tag = CODECS[Encoding(stored.encoding)].wav_tag
        return cls(tag=tag, channels=channels, sample_rate=audio.sample_rate, width=len(silence), silence=silence)

    @property
    def block(self) -> int:
        """Bytes of one sample over all channels."""
        return self.width * self.channels

    @property
    def max_bytes(self) -> int:
        """Bytes of audio that the header can express, in whole blocks: a little less than 4 GiB."""
        return (_MAX_SIZE - len(self.header(0))) // self.block * self.block

    def header(self, size: int) -> bytes:
        """Return the header of a file with *size* bytes of audio. All headers of a shape have the same length."""
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
            # Other formats have the size of an extension (none), and their length in samples.
            chunks = _chunk(b"fmt ", layout + b"\0\0") + _chunk(b"fact", struct.pack("<I", size // self.block))
        whole = b"WAVE" + chunks + struct.pack("<4sI", b"data", size)
        return struct.pack("<4sI", b"RIFF", len(whole) + size + padding(size)) + whole


def padding(size: int) -> int:
    """Return the number of bytes that follow *size* bytes of audio, so that the file has an even length."""
    return size % 2


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body


class WavFile:
    """A WAV file that is being written; `create` opens one."""

    def __init__(self, path: Path, shape: WavShape, max_bytes: int, file: BufferedRandom) -> None:
        self.path = path
        self.shape = shape
        self.max_bytes = max_bytes
        self._file = file
        self._header_size = len(shape.header(0))
        self._block = shape.block
        self._second = shape.sample_rate * shape.block
        self._start = 0  # bytes of audio before the tail; all of them are on disk
        self._tail = bytearray()
        self._clean = 0  # bytes of the tail that are on disk as well
        self._ended: str | None = None  # why nothing more can be written

    @classmethod
    def create(cls, path: Path, shape: WavShape, *, max_bytes: int | None = None) -> Self:
        """Create a file without audio. An existing file is an `InvalidRequestError`."""
        try:
            opened = path.open("x+b")
        except FileExistsError:
            raise InvalidRequestError(f"the recording {path} already exists: choose another file") from None
        except (OSError, ValueError) as error:
            raise RecordingError(f"the recording {path} can't be created: {error}", path=path) from error
        file = cls(path, shape, shape.max_bytes if max_bytes is None else min(max_bytes, shape.max_bytes), opened)
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
        """Write whole samples, of one channel (from 0) or of all, at a sample counted from the file's start.

        Raises:
            RecordingFullError: the file would become too large. None of this audio was written; audio at an earlier
                sample still can be.
            RecordingError: the file can't be written, or was closed. After a failure nothing more is written.
        """
        if self._ended is not None:
            raise self._error(self._ended)
        begin = sample * self._block
        length = len(audio) if channel is None else len(audio) // self.shape.width * self._block
        if begin + length > self.max_bytes:
            raise RecordingFullError(
                f"the recording {self.path} is full: its limit is {self.max_bytes} bytes", path=self.path
            )
        if begin < self._start:
            length = min(length, self._start - begin)
            size = length if channel is None else length // self._block * self.shape.width
            self._write_on_disk(begin, length, audio[:size], channel)
            audio, begin = audio[size:], self._start
        if audio:
            self._append(begin - self._start, audio, channel)

    def shorten(self, sample: int) -> None:
        """Drop the audio from a sample on."""
        size = sample * self._block
        if size >= self.size:
            return
        del self._tail[max(0, size - self._start) :]
        self._start = min(self._start, size)
        self._clean = min(self._clean, len(self._tail))
        self.flush()
        with self._translated_errors():
            # After the header, which never claims more than there is.
            self._file.truncate(self._header_size + size + padding(size))

    def flush(self) -> None:
        """Write the audio in memory to disk, and then the sizes in the header."""
        if self._ended is not None:
            raise self._error(self._ended)
        with self._translated_errors():
            if not os.fstat(self._file.fileno()).st_nlink:  # writing to a file without a name succeeds
                raise OSError("the file was removed or replaced")
            self._store()
            self._file.write(bytes(padding(self.size)))
            # The audio first, since the header never claims more than there is.
            self._file.flush()
            self._file.seek(0)
            self._file.write(self.shape.header(self.size))
            self._file.flush()

    def close(self) -> None:
        """Write everything to disk and close the file. Closing again, or after a failure, has no effect."""
        try:
            if self._ended is None:
                self.flush()
        finally:
            self._ended = self._ended or "is closed"
            # A file that failed before fails again here.
            with suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        self._ended = self._ended or "is closed"
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()

    def _append(self, offset: int, audio: bytes, channel: int | None) -> None:
        """Write audio to the tail, or so far beyond it that a new tail begins."""
        if offset > len(self._tail) + _SECONDS_UNWRITTEN * self._second:
            self._skip(self._start + offset)
            offset = 0
        if channel is None:
            self._lengthen(offset)
            self._tail[offset : offset + len(audio)] = audio
        else:
            self._lengthen(offset + len(audio) // self.shape.width * self._block)
            self._weave(self._tail, offset, audio, channel)
        self._clean = min(self._clean, offset)
        if len(self._tail) - self._clean > _SECONDS_UNWRITTEN * self._second:
            self.flush()
            forgotten = max(0, len(self._tail) - _SECONDS_KEPT * self._second)
            del self._tail[:forgotten]
            self._start += forgotten
            self._clean -= forgotten

    def _lengthen(self, length: int) -> None:
        if (missing := length - len(self._tail)) > 0:
            self._tail += self.shape.silence * (missing // self.shape.width)

    def _weave(self, into: bytearray, offset: int, audio: bytes, channel: int) -> None:
        """Overwrite one channel."""
        width, block = self.shape.width, self._block
        first, last = offset + channel * width, offset + len(audio) // width * block
        for byte in range(width):
            into[first + byte : last : block] = audio[byte::width]

    def _write_on_disk(self, begin: int, length: int, audio: bytes, channel: int | None) -> None:
        with self._translated_errors():
            self._file.seek(self._header_size + begin)
            there = bytearray(audio)
            if channel is not None:
                there = bytearray(self._file.read(length)).ljust(length, b"\0")
                self._weave(there, 0, audio, channel)
                self._file.seek(self._header_size + begin)
            self._file.write(there)

    def _skip(self, begin: int) -> None:
        """Begin a new tail at *begin*, with silence before it."""
        with self._translated_errors():
            self._store()
            if any(self.shape.silence):
                missing = begin - self.size
                piece = self.shape.silence * (_PIECE // self.shape.width)
                for written in range(0, missing, _PIECE):
                    self._file.write(piece[: missing - written])
            else:
                self._file.truncate(self._header_size + begin)  # a hole of zeros, if the file system supports it
        self._start, self._tail, self._clean = begin, bytearray(), 0
        self.flush()

    def _store(self) -> None:
        """Write the part of the tail that is not on disk. The file position is then the end of the audio."""
        self._file.seek(self._header_size + self._start + self._clean)
        self._file.write(memoryview(self._tail)[self._clean :])
        self._clean = len(self._tail)

    def _error(self, reason: str) -> RecordingError:
        return RecordingError(f"the recording {self.path} {reason}", path=self.path)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._ended = f"can't be written: {error}"
            raise self._error(self._ended) from error
