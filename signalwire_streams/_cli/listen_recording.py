"""Recording of one stream: its level meters, its files, and its summary."""

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from attrs import evolve, frozen

from signalwire_streams import InvalidRequestError, StreamsError
from signalwire_streams._cli.output import clean
from signalwire_streams.receiver import EndReason, MediaEvent, StreamSession, TrackStatistics
from signalwire_streams.receiver.audio import Layout, RecordingError, WavEncoding, WavRecorder
from signalwire_streams.receiver.audio._levels import LevelMeter, dbfs

_Made = TypeVar("_Made")

MAX_TRACKS = 8
"""More than any real stream has, so that a peer that invents track names cannot fill memory and disk."""

_STALLED = 3.0  # seconds without audio; 50 frames a second are expected
_BOTH = ("inbound", "outbound")
_MAX_NUMBER = 10_000
_MAX_STEM, _MAX_TRACK, _MAX_LABEL = 80, 64, 64  # two stems, a track and a number make less than 255 bytes
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_COUNTS = ("frames", "missing", "duplicates", "out_of_order", "dropped")
_SHORTAGES = {errno.EMFILE, errno.ENFILE}


@frozen(kw_only=True)
class RecordingOptions:
    directory: Path
    layout: Layout = "stereo"
    encoding: WavEncoding = "pcm"
    target_parameter: str | None = None  # the custom parameter that names the conference or call, if one does

    def target_of(self, session: StreamSession) -> str | None:
        return None if self.target_parameter is None else session.start.custom_parameters.get(self.target_parameter)


class Recording:
    """The files of one stream.

    Tracks that the stream did not announce get files of their own as they appear, so that nothing is lost.
    """

    def __init__(self, options: RecordingOptions, session: StreamSession) -> None:
        self.files: dict[str, Path] = {}  # by tracks; the name of a track is empty if frames name none
        self.left_out = 0  # frames of tracks beyond `MAX_TRACKS`
        self._options = options
        self._format = session.audio_format
        self._tracks = _announced(session)
        target, sid = options.target_of(session), _safe_name(session.stream_sid, "stream", _MAX_STEM)
        self._stem = sid if target is None else f"{_safe_name(target, 'target', _MAX_STEM)}-{sid}"
        self._writes: dict[str, Callable[[MediaEvent], None]] = {}
        self._closing = ExitStack()

    def open(self) -> None:
        if not self._format.is_supported:
            return
        is_pair = len(self._tracks) == len(_BOTH) and self._format.channels == 1
        recorder = self._recorder(self._tracks, self._options.layout if is_pair else "mono", self._stem)
        self._stem = recorder.path.stem  # further files get the same number
        self.files.update(recorder.files)
        self._writes.update(dict.fromkeys(self._tracks, recorder.write))
        if len(self._tracks) == 1:
            self._writes[""] = self._writes[self._tracks[0]]

    def close(self) -> None:
        self._closing.close()

    def write(self, media: MediaEvent) -> None:
        name = media.track or ""
        if name not in self._writes:
            if len(self.files) >= MAX_TRACKS:
                self.left_out += 1
                return
            self._add_track(name)
        self._writes[name](media)

    def _add_track(self, name: str) -> None:
        track = _safe_name(name, "unnamed", _MAX_TRACK)
        stem = f"{self._stem}-{track}"
        if self._format.is_supported:
            recorder = self._recorder((track,), "mono", stem)
            self.files[name] = recorder.path
            self._writes[name] = lambda media: recorder.write(evolve(media, track=None))
        else:
            file = self._create(_RawFile, stem, ".raw")
            self.files[name] = file.path
            self._writes[name] = file.write

    def _recorder(self, tracks: tuple[str, ...], layout: Layout, stem: str) -> WavRecorder:
        options = (self._format, tracks, layout, self._options.encoding)
        return self._create(lambda path: WavRecorder(path, *options), stem, ".wav")

    def _create(self, kind: Callable[[Path], AbstractContextManager[_Made]], stem: str, suffix: str) -> _Made:
        for number in range(1, _MAX_NUMBER):
            name = stem if number == 1 else f"{stem}-{number}"
            try:
                return self._closing.enter_context(kind(self._options.directory / f"{name}{suffix}"))
            except (InvalidRequestError, RecordingError) as error:
                if not isinstance(error.__context__, FileExistsError):
                    raise
        raise RecordingError(f"there are {_MAX_NUMBER} recordings called {stem}: choose another directory")


class _RawFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO

    def __enter__(self) -> Self:
        with self._errors("created"):
            self._file = self.path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors("written"):
            self._file.close()

    def write(self, media: MediaEvent) -> None:
        with self._errors("written"):
            self._file.write(media.payload)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RecordingError(f"the file {self.path} can't be {action}: {error}", path=self.path) from error


def _safe_name(text: str | None, default: str, length: int) -> str:
    """Return a part of a file's name for text of a peer: letters, digits, ``-`` and ``_``."""
    return _FOREIGN.sub("-", text or "")[:length].strip("-") or default


def _announced(session: StreamSession) -> tuple[str, ...]:
    """Return the tracks that the stream announces, the inbound one first, which is then on the left."""
    tracks = [track for track in dict.fromkeys(session.start.tracks) if _PLAIN.fullmatch(track)][:MAX_TRACKS]
    return tuple(sorted(tracks, key=lambda track: track != _BOTH[0])) or _BOTH


@frozen(kw_only=True)
class StreamState:
    """A live stream's row in the table; levels are in dBFS, None in silence."""

    sid: str
    seconds: float | None
    levels: Sequence[tuple[str, float | None]]
    frames: int
    lost: int
    status: str


class StreamRecorder:
    """Records one stream and measures its levels; `error` is the reason if it was not fully recorded."""

    def __init__(
        self, session: StreamSession, options: RecordingOptions, free_descriptor: Callable[[], Awaitable[bool]]
    ) -> None:
        self._session = session
        self.recording = Recording(options, session)
        self.error: StreamsError | None = None
        self._target = options.target_of(session)
        self._free_descriptor = free_descriptor
        self._clock = asyncio.get_running_loop().time
        self._meters: dict[str, LevelMeter] = {}
        self._last_audio_at = 0.0

    async def run(self) -> None:
        try:
            with closing(self.recording):
                await self._with_descriptors(self.recording.open)
                async for event in self._session:
                    if isinstance(event, MediaEvent):
                        self._measure(event)
                        await self._with_descriptors(partial(self.recording.write, event))
        except StreamsError as error:
            self.error = error
            self._session._close(EndReason.HANDLER_FAILED)  # noqa: SLF001  (raising would log a traceback)

    async def _with_descriptors(self, action: Callable[[], None]) -> None:
        """Call a function that may create a file; close connections without a stream if it lacks a descriptor."""
        while True:
            try:
                return action()
            except RecordingError as error:
                is_shortage = isinstance(error.__cause__, OSError) and error.__cause__.errno in _SHORTAGES
                if not is_shortage or not await self._free_descriptor():
                    raise

    def _measure(self, media: MediaEvent) -> None:
        self._last_audio_at = self._clock()
        if not self._session.audio_format.is_supported:
            return
        name = media.track or ""
        if name not in self._meters:
            if len(self._meters) >= MAX_TRACKS:
                return
            self._meters[name] = LevelMeter(self._session.audio_format)
        self._meters[name].add(media.payload, self._last_audio_at)

    @property
    def sid(self) -> str:
        return clean(self._session.stream_sid or "")[:_MAX_LABEL] or "a stream without a sid"

    @property
    def seconds(self) -> float | None:
        """Duration of the longest track received; None if the encoding is unknown."""
        default = 0.0 if self._session.audio_format.is_supported else None
        return max((meter.seconds for meter in self._meters.values()), default=default)

    @property
    def lost(self) -> int:
        """Frames that never arrived, or were dropped because this machine was too slow."""
        return sum(track.missing + track.dropped for track in self._tracks.values())

    @property
    def frames(self) -> int:
        return sum(track.frames for track in self._tracks.values())

    @property
    def state(self) -> StreamState:
        now = self._clock()
        return StreamState(
            sid=self.sid,
            seconds=self.seconds,
            levels=[(clean(name), meter.level(now)) for name, meter in self._meters.items()],
            frames=self.frames,
            lost=self.lost,
            status=self._status,
        )

    @property
    def _status(self) -> str:
        if not self.frames:
            return "waiting"
        if self._clock() - self._last_audio_at > _STALLED:
            return "no audio"
        return "recording" if self._session.audio_format.is_supported else "raw"

    @property
    def started_line(self) -> str:
        audio, tracks = self._session.audio_format, self._session.start.tracks
        details = f"{audio.encoding} at {audio.sample_rate} Hz, {' and '.join(tracks) or 'unknown tracks'}"
        if audio.is_supported:
            return f"{self.sid} started: {clean(details)[:_MAX_LABEL]}"
        return (
            f"{self.sid} started: its encoding {clean(audio.encoding)[:_MAX_LABEL]!r} is unknown, so no WAV can be "
            "written; payloads are written to .raw files as received"
        )

    @property
    def ended_line(self) -> str:
        peak = dbfs(self._peak)
        sound = "silence" if peak is None else f"peak {peak:.1f} dBFS"
        facts = [
            *([] if self.seconds is None else [f"{self.seconds:.1f} s", sound]),
            f"{self.frames:,} frames, {self.lost:,} lost",
            *([f"{self.recording.left_out:,} of further tracks not recorded"] if self.recording.left_out else []),
        ]
        return clean(f"{self.sid} ended ({self._end}): {', '.join(facts)}; {', '.join(self.files) or 'no file'}")

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(map(str, self.recording.files.values())))

    @property
    def facts(self) -> dict[str, object]:
        """The stream's JSON object, without custom parameters and DTMF digits, which are private."""
        audio = self._session.audio_format
        return {
            **({} if self._target is None else {"target": self._target}),
            "sid": self._session.stream_sid,
            "call_sid": self._session.start.call_sid,
            "end": self._end,
            "files": self.files,
            "encoding": audio.encoding,
            "sample_rate": audio.sample_rate,
            "seconds": _rounded(self.seconds),
            "peak_dbfs": _rounded(dbfs(self._peak)),
            "tracks": {name: self._track_facts(name, track) for name, track in self._tracks.items()},
            "left_out": self.recording.left_out,
            "malformed": self._session.statistics.malformed,
            "error": None if self.error is None else clean(self.error),
        }

    def _track_facts(self, name: str, track: TrackStatistics) -> dict[str, object]:
        meter, path = self._meters.get(name), self.recording.files.get(name)
        return {
            "file": None if path is None else str(path),
            **{count: getattr(track, count) for count in _COUNTS},
            "seconds": None if meter is None else _rounded(meter.seconds),
            "peak_dbfs": None if meter is None else _rounded(dbfs(meter.peak)),
        }

    @property
    def _tracks(self) -> Mapping[str, TrackStatistics]:
        return self._session.statistics.tracks

    @property
    def _peak(self) -> int:
        return max((meter.peak for meter in self._meters.values()), default=0)

    @property
    def _end(self) -> str:
        return str(self._session.end_reason or EndReason.SHUTDOWN)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
