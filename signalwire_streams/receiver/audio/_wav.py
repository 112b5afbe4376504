"""Recording a stream in WAV files while it goes on.

>>> from signalwire_streams.receiver.audio import AudioFormat, WavRecorder
>>> audio_format = AudioFormat.from_start("audio/x-mulaw", 8000)
>>> with WavRecorder("call.wav", audio_format) as recorder:  # doctest: +SKIP
...     recorder.write("inbound", timestamp=0, chunk=1, payload=payload)

Frames are placed by their timestamps (`TrackTimeline` documents how), so that tracks stay side by side, and missing
audio is silence.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

from attrs import Attribute, define, field

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._formats import AudioFormat, Encoding, RecordingError
from signalwire_streams.receiver.audio._timeline import TimelineStatistics, TrackTimeline
from signalwire_streams.receiver.audio._wav_file import WavFile, WavShape

Layout: TypeAlias = Literal["mono", "stereo"]
"""One file for each track, or one file with the first track on the left and the second on the right."""
WavEncoding: TypeAlias = Literal["pcm", "passthrough"]
"""16-bit linear PCM, which everything plays; or the codes that were sent, which loses nothing and is half as long."""

_STEREO = 2
# A track's name becomes part of a file's name, and it may come from the other side of a socket.
_TRACK = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _tracks(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _are_tracks(_: object, __: object, value: tuple[object, ...]) -> None:
    if not value or len(set(value)) < len(value):
        raise InvalidRequestError(f"tracks can't be {value!r}: name each track once, such as ('inbound', 'outbound')")
    for track in value:
        if not isinstance(track, str) or not _TRACK.fullmatch(track):
            raise InvalidRequestError(f"a track can't be called {track!r}: use letters, digits, - and _")


def _is_a_file(_: object, __: object, value: Path) -> None:
    if not value.name:
        raise InvalidRequestError(f"path can't be {str(value)!r}: name a file, such as 'call.wav'")


def _is_a_size(_: object, __: object, value: int | None) -> None:
    if value is not None and value < 1:
        raise InvalidRequestError(f"max_bytes can't be {value!r}: it is a number of bytes, above zero")


def _is_one_of(*words: str) -> Callable[[object, "Attribute[Any]", Any], None]:
    def check(_: object, attribute: "Attribute[Any]", value: object) -> None:
        if value not in words:
            raise InvalidRequestError(
                f"{attribute.name} can't be {value!r}: it is one of {', '.join(map(repr, words))}"
            )

    return check


@define(eq=False)
class _Lane:
    """One track's way into a file."""

    timeline: TrackTimeline
    file: WavFile
    channel: int | None
    beside: tuple[TrackTimeline, ...]
    held: dict[int, bytes] = field(init=False, factory=dict)  # payloads that may have to be moved


@define(eq=False)
class WavRecorder:
    """A recording of one stream. Use it as ``with WavRecorder(path, audio_format) as recorder``.

    Its methods do blocking file I/O, though most writes only touch memory. One thread at a time may use it, any thread:
    where a slow disk matters, call ``await asyncio.to_thread(recorder.write, ...)`` for one frame after another.

    A file is never overwritten. If it is removed or replaced during the recording, `RecordingError` follows with the
    next audio that goes to disk. It is well-formed all the time: when the process is killed, two seconds of audio at
    most are lost, and nothing of what came before a `flush`. It can hold a little less than 4 GiB, since a WAV file's
    sizes have 32 bits; after that `write` raises `RecordingFullError`, and what was recorded stays.

    Attributes:
        path: the file. With ``mono`` and several tracks it stands for one file for each of them, named after the track:
            ``call.wav`` for ``call-inbound.wav`` and ``call-outbound.wav``.
        format: how the audio that comes is encoded.
        tracks: their names, as media frames have them; for ``stereo`` the left one first.
        layout: ``stereo`` or ``mono``.
        encoding: ``pcm`` decodes to 16-bit linear PCM. ``passthrough`` keeps µ-law and A-law as they come, code for code
            (format tags 7 and 6); L16 is linear PCM either way, in a WAV file's byte order.
        max_gap: seconds of silence that one jump of the timestamps may make. While a stream is received, all
            silence of a track together is also at most the time that has passed and five seconds (`write_event`).
            Silence takes no space on disk, where the file system supports that, except in µ-law and A-law ``passthrough``.
        tolerance: milliseconds by which a timestamp may be off without meaning anything.
        most_bytes: bytes of audio that a file may hold; None for as many as a WAV file can.
        ignored: frames of tracks that are none of ``tracks``. With a single track, a frame that names none is its.

    Raises:
        InvalidRequestError: something can't be right, or there is such a file already.
        UnknownEncodingError: the encoding is not known.
        RecordingError: on entering, a file can't be made.
    """

    path: Path = field(converter=Path, validator=_is_a_file)
    format: AudioFormat
    tracks: tuple[str, ...] = field(default=("inbound", "outbound"), converter=_tracks, validator=_are_tracks)
    layout: Layout = field(default="stereo", validator=_is_one_of("mono", "stereo"))
    encoding: WavEncoding = field(default="pcm", validator=_is_one_of("pcm", "passthrough"))
    max_gap: float = field(default=60.0, kw_only=True)
    tolerance: int = field(default=8, kw_only=True)
    max_bytes: int | None = field(default=None, validator=_is_a_size, kw_only=True)
    ignored_frames: int = field(init=False, default=0)
    _timelines: Mapping[str, TrackTimeline] = field(init=False)
    _shape: WavShape = field(init=False)
    _convert: Callable[[bytes], bytes] = field(init=False)
    _lanes: dict[str | None, _Lane] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        stereo = self.layout == "stereo"
        if stereo and (len(self.tracks) != _STEREO or self.format.channels != 1):
            raise InvalidRequestError("layout='stereo' takes two tracks of one channel each: write layout='mono'")
        self._timelines = {
            track: TrackTimeline(self.format, max_gap=self.max_gap, tolerance=self.tolerance) for track in self.tracks
        }
        decoded = self.encoding == "pcm" or self.format.encoding == Encoding.L16
        self._shape = WavShape.of(self.format, channels=_STEREO if stereo else self.format.channels, decoded=decoded)
        self._convert = self.format.to_pcm if decoded else self.format.trim

    @property
    def files(self) -> Mapping[str, Path]:
        """In which file each track is."""
        if self.layout == "stereo" or len(self.tracks) == 1:
            return dict.fromkeys(self.tracks, self.path)
        return {track: self.path.with_name(f"{self.path.stem}-{track}{self.path.suffix}") for track in self.tracks}

    @property
    def statistics(self) -> Mapping[str, TimelineStatistics]:
        """What came of each track's frames."""
        return {track: timeline.statistics for track, timeline in self._timelines.items()}

    def open(self) -> None:
        """Make the files, with valid headers. Entering does it.

        Raises:
            InvalidRequestError: there is such a file already.
            RecordingError: a file can't be made, or the recorder is open.
        """
        if self._lanes:
            raise RecordingError(f"the recording {self.path} is open already", path=self.path)
        made: dict[Path, WavFile] = {}
        with ExitStack() as undo:
            for path in dict.fromkeys(self.files.values()):
                made[path] = WavFile.create(path, self._shape, most=self.max_bytes)
                undo.callback(made[path].discard)
            undo.pop_all()
        for number, (track, timeline) in enumerate(self._timelines.items()):
            others = tuple(other for other in self._timelines.values() if other is not timeline)
            channel = number if self.layout == "stereo" else None
            self._lanes[track] = _Lane(timeline, made[self.files[track]], channel, others)
        if len(self.tracks) == 1:
            self._lanes[None] = self._lanes[self.tracks[0]]

    def write_event(self, event: MediaEvent) -> None:
        """Record a media event of a session: `write` with all that is known about it, its time of arrival included.

        Raises:
            RecordingFullError: as `write`.
            RecordingError: as `write`.
        """
        self.write(event.track, event.timestamp, event.chunk, event.payload, elapsed=event.elapsed)

    def write(
        self,
        track: str | None,
        timestamp: int | None,
        chunk: int | None,
        payload: bytes,
        *,
        elapsed: float | None = None,
    ) -> None:
        """Record a media frame.

        A frame whose timestamp contradicts the frames before it is written after them; as soon as another frame agrees
        with it, it is moved to its place.

        Args:
            track: the frame's track.
            timestamp: milliseconds from the stream's start.
            chunk: the frame's number within its track.
            payload: its audio, as it came.
            elapsed: seconds from the stream's start to the frame's arrival, which bounds the silence that timestamps
                can make; None, nan or infinity if it is not known, as for frames from a file or an archive.

        Raises:
            RecordingFullError: the file would become too long. Nothing of this frame was written.
            RecordingError: the file can't be written, or the recorder is not open. After a failure nothing more is
                written; what was on disk stays.
        """
        lane = self._lanes.get(track)
        if lane is None:
            self._check_open()
            self.ignored_frames += 1
            return
        timeline = lane.timeline
        position = timeline.place(
            timestamp, chunk, len(payload), other_tracks=lane.beside, elapsed=elapsed, payload=payload
        )
        if lane.held or timeline.is_unsettled:
            lane.held[timeline.calls] = payload
            if timeline.corrections:
                self._correct(lane)
            lane.held = {frame: lane.held[frame] for frame in timeline.unsettled()}
        if position is not None:
            lane.file.write(position, self._convert(payload), lane.channel)

    def _correct(self, lane: _Lane) -> None:
        """Move frames to the places that they turned out to have."""
        if lane.timeline.vacated is not None:
            begin, end = lane.timeline.vacated
            channels = self._shape.channels if lane.channel is None else 1
            lane.file.write(begin, self._shape.silence * channels * (end - begin), lane.channel)
        for correction in lane.timeline.corrections:
            lane.file.write(correction.position, self._convert(lane.held[correction.frame]), lane.channel)
        lane.file.shorten(max(other.timeline.end for other in self._lanes.values() if other.file is lane.file))

    def flush(self) -> None:
        """Put on disk what came so far; needed only where a stream may be silent for long.

        Raises:
            RecordingError: a file can't be written, or the recorder is not open.
        """
        self._check_open()
        for lane in self._lanes.values():
            lane.file.flush()

    def close(self) -> None:
        """Put everything on disk and close the files. Leaving does it; closing again does nothing.

        Raises:
            RecordingError: a file can't be written.
        """
        lanes, self._lanes = self._lanes, {}
        with ExitStack() as stack:
            for lane in lanes.values():
                stack.callback(lane.file.close)

    def _check_open(self) -> None:
        if not self._lanes:
            raise RecordingError(f"the recording {self.path} is not open: enter it first", path=self.path)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
