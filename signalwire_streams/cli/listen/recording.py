"""The files of one stream: WAV where the encoding is known, the bare payloads where it is not.

Everything that names a file comes from the other side of a socket, so none of it may lead out of the directory, and
no file that is there is ever written to.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias, TypeVar

from attrs import define, field, frozen

from signalwire_streams import InvalidRequestError
from signalwire_streams.receiver import MediaEvent, StreamSession
from signalwire_streams.receiver.audio import Layout, RecordingError, WavEncoding, WavRecorder

MOST_TRACKS = 8
"""More than any stream has: who makes up names of tracks must not fill memory and disk."""

_Write: TypeAlias = Callable[[MediaEvent], None]
_Made = TypeVar("_Made")

_BOTH = ("inbound", "outbound")
_MOST_OF_A_NAME = 10_000
_LONGEST = 100
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@frozen(kw_only=True)
class Shelf:
    """Where recordings go, and what they are like.

    Attributes:
        directory: the directory.
        layout: ``stereo`` has two tracks in one file, ``mono`` each in its own.
        encoding: ``pcm``, or ``as sent``.
    """

    directory: Path
    layout: Layout = "stereo"
    encoding: WavEncoding = "pcm"


@define(eq=False)
class Recording:
    """The recording of one stream; use it with ``with``.

    Tracks that the stream did not announce get files of their own as they come, so that nothing is lost.

    Attributes:
        shelf: where it goes.
        session: the stream.
        files: in which file each track is, by the track's name; an empty one where frames name none.
        left_out: frames of more tracks than any stream has.
    """

    shelf: Shelf
    session: StreamSession
    files: dict[str, Path] = field(init=False, factory=dict)
    left_out: int = field(init=False, default=0)
    _stem: str = field(init=False)
    _writes: dict[str, _Write] = field(init=False, factory=dict)
    _closing: ExitStack = field(init=False, factory=ExitStack)

    def __attrs_post_init__(self) -> None:
        self._stem = plain(self.session.stream_sid, "stream")

    def __enter__(self) -> Self:
        if self.session.audio_format.is_known:
            self._open(_announced(self.session))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()

    def write(self, media: MediaEvent) -> None:
        """Write a frame.

        Raises:
            RecordingError: it can't be written.
        """
        name = media.track or ""
        write = self._writes.get(name) or self._further(name)
        if write is None:
            self.left_out += 1
        else:
            write(media)

    def _open(self, tracks: tuple[str, ...]) -> None:
        is_pair = len(tracks) == len(_BOTH) and self.session.audio_format.channels == 1
        recorder = self._recorder(tracks, self.shelf.layout if is_pair else "mono", self._stem)
        # A further track's file is named as these are, with their number.
        self._stem = recorder.path.stem
        self.files.update(recorder.files)
        self._writes.update(dict.fromkeys(tracks, recorder.write_event))
        if len(tracks) == 1:
            self._writes[""] = self._writes[tracks[0]]

    def _further(self, name: str) -> _Write | None:
        """Make a file for one more track, unless there are too many."""
        if len(self.files) >= MOST_TRACKS:
            return None
        track = plain(name, "unnamed")
        stem = f"{self._stem}-{track}"
        if self.session.audio_format.is_known:
            recorder = self._recorder((track,), "mono", stem)
            self.files[name] = recorder.path
            self._writes[name] = partial(_write_single, recorder)
        else:
            file = self._make(_RawFile, stem, ".raw")
            self._closing.callback(file.close)
            self.files[name] = file.path
            self._writes[name] = file.write
        return self._writes[name]

    def _recorder(self, tracks: tuple[str, ...], layout: Layout, stem: str) -> WavRecorder:
        def make(path: Path) -> WavRecorder:
            recorder = WavRecorder(path, self.session.audio_format, tracks, layout, self.shelf.encoding)
            recorder.open()
            return recorder

        recorder = self._make(make, stem, ".wav")
        self._closing.callback(recorder.close)
        return recorder

    def _make(self, make: Callable[[Path], _Made], stem: str, suffix: str) -> _Made:
        """Make a file, with a number in its name where there is such a file already."""
        for number in range(1, _MOST_OF_A_NAME):
            name = stem if number == 1 else f"{stem}-{number}"
            try:
                return make(self.shelf.directory / f"{name}{suffix}")
            except (InvalidRequestError, FileExistsError):
                continue
        raise RecordingError(f"there are {_MOST_OF_A_NAME} recordings called {stem}: choose another directory")


def _write_single(recorder: WavRecorder, media: MediaEvent) -> None:
    """Write a frame of a recorder's only track, whatever the track is called."""
    recorder.write(None, media.timestamp, media.chunk, media.payload, elapsed=media.elapsed)


class _RawFile:
    """Payloads as they came, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("xb")
        except FileExistsError:
            raise
        except OSError as error:
            raise RecordingError(f"the file {self.path} can't be made: {error}", path=self.path) from error

    def write(self, media: MediaEvent) -> None:
        try:
            self._file.write(media.payload)
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> RecordingError:
        return RecordingError(f"the file {self.path} can't be written: {error}", path=self.path)


def plain(text: str | None, otherwise: str) -> str:
    """Make a part of a file's name from whatever the other end sent: no dots, no slashes, nothing a shell minds."""
    return _FOREIGN.sub("-", text or "")[:_LONGEST].strip("-") or otherwise


def _announced(session: StreamSession) -> tuple[str, ...]:
    """Give the tracks that the stream says it has, the inbound one first, which is then on the left."""
    told = [track for track in dict.fromkeys(session.start.tracks) if _PLAIN.fullmatch(track)][:MOST_TRACKS]
    return tuple(sorted(told, key=lambda track: track != _BOTH[0])) or _BOTH
