"""One stream while it is heard and recorded, and what came of it."""

import asyncio
import math
import re
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias, TypeVar

from attrs import define, field, frozen

from signalwire_streams import InvalidRequestError, StreamsError
from signalwire_streams._cli.output import clean
from signalwire_streams.receiver import EndReason, MediaEvent, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import AudioFormat, Layout, RecordingError, WavEncoding, WavRecorder

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
        audio = self.format.trim(payload)
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
        encoding: ``pcm``, or ``passthrough``.
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
        if self.session.audio_format.is_supported:
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
        if self.session.audio_format.is_supported:
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


_STALLED = 3.0  # seconds without audio, of which 50 frames a second should come
_LONGEST_LABEL = 64


@frozen(kw_only=True)
class Row:
    """A stream as a table shows it.

    Attributes:
        sid: the stream's id.
        seconds: how much audio came, or None where that can't be told.
        levels: each track with its level in dBFS, or None in silence.
        frames: frames that came.
        lost: frames that never came, or came too fast.
        state: what it does now.
    """

    sid: str
    seconds: float | None
    levels: tuple[tuple[str, float | None], ...]
    frames: int
    lost: int
    state: str


@define(eq=False)
class Hearing:
    """One stream.

    Attributes:
        session: the stream.
        recording: its files.
        clock: where the time comes from, in seconds.
        error: why it was not recorded to its end, or None.
    """

    session: StreamSession
    recording: Recording
    clock: Callable[[], float] = field(factory=lambda: asyncio.get_running_loop().time)
    error: StreamsError | None = field(init=False, default=None)
    _meters: dict[str, LevelMeter] = field(init=False, factory=dict)
    _heard_at: float = field(init=False, default=0.0)

    async def go_on(self) -> None:
        """Record the stream until it ends, or as long as it can be recorded."""
        try:
            with self.recording:
                async for event in self.session:
                    if isinstance(event, MediaEvent):
                        self._hear(event)
                        self.recording.write(event)
        except StreamsError as error:
            self.error = error
            self.session._close(EndReason.HANDLER_FAILED)

    def _hear(self, media: MediaEvent) -> None:
        self._heard_at = self.clock()
        if not self.session.audio_format.is_supported:
            return
        name = media.track or ""
        meter = self._meters.get(name)
        if meter is None:
            if len(self._meters) >= MOST_TRACKS:
                return
            meter = self._meters[name] = LevelMeter(self.session.audio_format)
        meter.hear(media.payload, self._heard_at)

    @property
    def sid(self) -> str:
        """The stream's id, fit to be shown."""
        return clean(self.session.stream_sid or "")[:_LONGEST_LABEL] or "a stream without a sid"

    @property
    def seconds(self) -> float | None:
        """How much audio came, of the track that brought most; None where the encoding is not known."""
        return max((meter.seconds for meter in self._meters.values()), default=self._no_seconds)

    @property
    def lost(self) -> int:
        """Frames that never came, or were dropped because this machine was too slow."""
        return sum(track.missing + track.dropped for track in self._tracks.values())

    @property
    def row(self) -> Row:
        """How it stands now."""
        now = self.clock()
        return Row(
            sid=self.sid,
            seconds=self.seconds,
            levels=tuple((clean(name), meter.level(now)) for name, meter in self._meters.items()),
            frames=self._frames,
            lost=self.lost,
            state=self._state(now),
        )

    @property
    def beginning(self) -> str:
        """What is said when it begins."""
        audio, tracks = self.session.audio_format, self.session.start.tracks
        told = f"{audio.encoding} at {audio.sample_rate} Hz, {' and '.join(tracks) or 'tracks not told'}"
        if audio.is_supported:
            return f"{self.sid} began: {clean(told)[:_LONGEST_LABEL]}"
        return (
            f"{self.sid} began: its encoding {clean(audio.encoding)[:_LONGEST_LABEL]!r} is unknown, so no WAV can be "
            "written; payloads are written to .raw files as received"
        )

    @property
    def ending(self) -> str:
        """What is said when it has ended."""
        peak = dbfs(self._peak)
        facts = [
            *([] if self.seconds is None else [f"{self.seconds:.1f} s"]),
            *([] if self.seconds is None else ["silence" if peak is None else f"peak {peak:.1f} dBFS"]),
            f"{self._frames:,} frames, {self.lost:,} lost",
            *([f"{self.recording.left_out:,} of too many tracks left out"] if self.recording.left_out else []),
        ]
        files = ", ".join(dict.fromkeys(str(path) for path in self.recording.files.values())) or "no file"
        return clean(f"{self.sid} ended ({self._end}): {', '.join(facts)}; {files}")

    @property
    def facts(self) -> dict[str, object]:
        """What came of it, as JSON has it. Keys that were pressed and custom parameters are nobody's business."""
        audio, statistics = self.session.audio_format, self.session.statistics
        return {
            "sid": self.session.stream_sid,
            "call_sid": self.session.start.call_sid,
            "end": self._end,
            "files": list(dict.fromkeys(str(path) for path in self.recording.files.values())),
            "encoding": audio.encoding,
            "sample_rate": audio.sample_rate,
            "seconds": _rounded(self.seconds),
            "peak_dbfs": _rounded(dbfs(self._peak)),
            "tracks": {name: self._facts_of(name, track) for name, track in self._tracks.items()},
            "left_out": self.recording.left_out,
            "malformed": statistics.malformed,
            "error": None if self.error is None else clean(self.error),
        }

    def _facts_of(self, name: str, track: TrackStatistics) -> dict[str, object]:
        meter, path = self._meters.get(name), self.recording.files.get(name)
        return {
            "file": None if path is None else str(path),
            "frames": track.frames,
            "missing": track.missing,
            "duplicates": track.duplicates,
            "out_of_order": track.out_of_order,
            "dropped": track.dropped,
            "seconds": None if meter is None else _rounded(meter.seconds),
            "peak_dbfs": None if meter is None else _rounded(dbfs(meter.peak)),
        }

    def _state(self, now: float) -> str:
        if not self._frames:
            return "waiting"
        if now - self._heard_at > _STALLED:
            return "no audio"
        return "recording" if self.session.audio_format.is_supported else "raw"

    @property
    def _tracks(self) -> Mapping[str, TrackStatistics]:
        return self.session.statistics.tracks

    @property
    def _frames(self) -> int:
        return sum(track.frames for track in self._tracks.values())

    @property
    def _peak(self) -> int:
        return max((meter.peak for meter in self._meters.values()), default=0)

    @property
    def _no_seconds(self) -> float | None:
        return 0.0 if self.session.audio_format.is_supported else None

    @property
    def _end(self) -> str:
        return str(self.session.end_reason or EndReason.SHUTDOWN)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
