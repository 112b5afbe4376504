"""Recording a stream to WAV files while it is received.

>>> from signalwire_streams.receiver import MediaEvent
>>> from signalwire_streams.receiver.audio import AudioFormat, WavRecorder
>>> audio_format = AudioFormat.from_start_event("audio/x-mulaw", 8000)
>>> with WavRecorder("call.wav", audio_format) as recorder:  # doctest: +SKIP
...     recorder.write(MediaEvent("inbound", payload, chunk=1, timestamp=0))

Frames are placed by their timestamps (see `TrackTimeline`), so that tracks stay in step and missing audio is silence.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Literal, Self, TypeAlias, TypeVar

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver._protocol import MediaEvent
from signalwire_streams.receiver.audio._formats import AudioFormat, Encoding, RecordingError, is_number
from signalwire_streams.receiver.audio._timeline import TimelineStatistics, TrackTimeline
from signalwire_streams.receiver.audio._wav_file import WavFile, WavShape

Layout: TypeAlias = Literal["mono", "stereo"]
"""One file for each track, or one file with the first track on the left and the second on the right."""
WavEncoding: TypeAlias = Literal["pcm", "passthrough"]
"""16-bit linear PCM, which every player supports; or the payloads as they are, lossless and half as large."""

_Choice = TypeVar("_Choice", Layout, WavEncoding)
_STEREO = 2
_NUMBER_OR_NONE = (int, type(None))
_TRACK = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it becomes part of a file name, and may come from a peer


@define(eq=False)
class _TrackWriter:
    """Writes one track to a channel of a file, or to its own file."""

    timeline: TrackTimeline
    file: WavFile
    channel: int | None
    other_tracks: tuple[TrackTimeline, ...]
    held: dict[int, bytes] = field(init=False, factory=dict)  # payloads that may have to be moved, by `timeline.calls`


class WavRecorder:
    """A recording of one stream: ``with WavRecorder(path, audio_format) as recorder``.

    Its methods do blocking file I/O, although most writes only touch memory. Any thread may call them, one at a time;
    with a slow disk, call ``await asyncio.to_thread(recorder.write, event)`` for one frame after the other.

    All methods raise `RecordingError` if a file can't be written. After that nothing more is written, and what is on
    disk is kept. A file is never overwritten, and to remove or replace it during the recording is such an error. It is
    valid all the time: a process that is killed loses at most its last two seconds of audio, and nothing that came
    before a `flush`. It holds a little less than 4 GiB, since the sizes in a WAV file have 32 bits; after that `write`
    raises `RecordingFullError`, and the recording is kept.

    Attributes:
        path: the file. With ``mono`` and several tracks, each track has a file named after it: ``call.wav`` stands for
            ``call-inbound.wav`` and ``call-outbound.wav``.
        format: encoding of the payloads.
        tracks: names of the tracks, as media frames have them; for ``stereo`` the left one first.
        layout: ``stereo`` or ``mono``.
        encoding: ``pcm`` decodes to 16-bit linear PCM. ``passthrough`` stores µ-law and A-law as they are (format tags
            7 and 6); L16 is linear PCM either way, in the byte order of WAV files.
        max_gap: seconds of silence that one jump of the timestamps may add. If events have their time of arrival
            (`MediaEvent.elapsed`), as those of a session have, all silence of a track together is also at most the
            time that has passed and five seconds. Silence takes no disk space if the file system supports sparse
            files. With ``passthrough``, silence of µ-law and A-law always takes its full size, since it is not zeros:
            without times of arrival, limit it by ``max_gap`` and ``max_bytes``.
        tolerance: milliseconds by which a timestamp may deviate without effect.
        max_bytes: maximum bytes of audio in a file; None for the WAV format's own limit.
        ignored_frames: frames of other tracks. With a single track, a frame without a track belongs to it.

    Raises:
        InvalidRequestError: an argument is invalid, or, on entering, the file exists.
        UnknownEncodingError: the encoding is unknown.
        RecordingError: on entering, a file can't be created.
    """

    def __init__(
        self,
        path: str | Path,
        format: AudioFormat,  # noqa: A002  (what it is in the whole package)
        tracks: Iterable[str] = ("inbound", "outbound"),
        layout: Layout = "stereo",
        encoding: WavEncoding = "pcm",
        *,
        max_gap: float = 60.0,
        tolerance: int = 8,
        max_bytes: int | None = None,
    ) -> None:
        self.path: Path = _check_path(path)
        self.format = format
        self.tracks: tuple[str, ...] = _check_tracks(tracks)
        self._timelines = {track: TrackTimeline(format, max_gap=max_gap, tolerance=tolerance) for track in self.tracks}
        self.layout = _check_choice("layout", layout, ("mono", "stereo"))
        self.encoding = _check_choice("encoding", encoding, ("pcm", "passthrough"))
        if max_bytes is not None and (not is_number(max_bytes) or max_bytes < 1):
            raise InvalidRequestError(f"max_bytes must be a number of bytes above 0, not {max_bytes!r}")
        is_stereo = layout == "stereo"
        if is_stereo and (len(self.tracks) != _STEREO or format.channels != 1):
            raise InvalidRequestError("layout='stereo' takes two tracks of one channel each: write layout='mono'")
        self.max_gap = max_gap
        self.tolerance = tolerance
        self.max_bytes = max_bytes
        self.ignored_frames: int = 0
        is_decoded = encoding == "pcm" or format.encoding == Encoding.L16
        channels = _STEREO if is_stereo else format.channels
        self._shape = WavShape.from_format(format, channels=channels, decoded=is_decoded)
        self._convert = format.to_pcm if is_decoded else format.trim
        self._writers: dict[str | None, _TrackWriter] = {}

    @property
    def files(self) -> Mapping[str, Path]:
        """The file of each track."""
        if self.layout == "stereo" or len(self.tracks) == 1:
            return dict.fromkeys(self.tracks, self.path)
        return {track: self.path.with_name(f"{self.path.stem}-{track}{self.path.suffix}") for track in self.tracks}

    @property
    def statistics(self) -> Mapping[str, TimelineStatistics]:
        """Counts of each track's frames."""
        return {track: timeline.statistics for track, timeline in self._timelines.items()}

    def open(self) -> None:
        """Create the files, with valid headers. Entering the recorder does it."""
        if self._writers:
            raise RecordingError(f"the recording {self.path} is already open", path=self.path)
        created: dict[Path, WavFile] = {}
        with ExitStack() as undo:
            for path in dict.fromkeys(self.files.values()):
                created[path] = WavFile.create(path, self._shape, max_bytes=self.max_bytes)
                undo.callback(created[path].discard)
            undo.pop_all()
        for number, (track, timeline) in enumerate(self._timelines.items()):
            others = tuple(other for other in self._timelines.values() if other is not timeline)
            channel = number if self.layout == "stereo" else None
            self._writers[track] = _TrackWriter(timeline, created[self.files[track]], channel, others)
        if len(self.tracks) == 1:
            self._writers[None] = self._writers[self.tracks[0]]

    def write(self, event: MediaEvent) -> None:
        """Record a media event, of a session, a tap or `decode_event`.

        A frame whose timestamp contradicts the frames before it is written after them; once another frame agrees with
        it, it is moved to its place.

        Raises:
            InvalidRequestError: the event is not a media event, or its payload, timestamp or chunk is of a wrong type.
            RecordingFullError: the file would become too large. Nothing of this frame was written.
            RecordingError: the file can't be written, or the recorder is not open.
        """
        if not isinstance(event, MediaEvent):
            raise InvalidRequestError(
                f"an object of type {type(event).__name__} has no audio to record: pass only events that are a "
                "MediaEvent"
            )
        _check_values(event.payload, event.timestamp, event.chunk)
        writer = self._writers.get(event.track)
        if writer is None:
            self._check_open()
            self.ignored_frames += 1
            return
        timeline, payload = writer.timeline, event.payload
        position = timeline.place(
            event.timestamp,
            event.chunk,
            len(payload),
            other_tracks=writer.other_tracks,
            elapsed=event.elapsed,
            payload=payload,
        )
        if writer.held or timeline.is_unsettled:
            writer.held[timeline.calls] = payload
            if timeline.corrections:
                self._correct(writer)
            writer.held = {frame: writer.held[frame] for frame in timeline.unsettled()}
        if position is not None:
            writer.file.write(position, self._convert(payload), writer.channel)

    def _correct(self, writer: _TrackWriter) -> None:
        """Move frames to their corrected places."""
        if writer.timeline.vacated is not None:
            begin, end = writer.timeline.vacated
            channels = self._shape.channels if writer.channel is None else 1
            writer.file.write(begin, self._shape.silence * channels * (end - begin), writer.channel)
        for correction in writer.timeline.corrections:
            writer.file.write(correction.position, self._convert(writer.held[correction.frame]), writer.channel)
        writer.file.shorten(max(other.timeline.end for other in self._writers.values() if other.file is writer.file))

    def flush(self) -> None:
        """Write everything to disk; needed only if a stream may be silent for long."""
        self._check_open()
        for writer in self._writers.values():
            writer.file.flush()

    def close(self) -> None:
        """Write everything to disk and close the files. Leaving the recorder does it; closing again has no effect."""
        writers, self._writers = self._writers, {}
        with ExitStack() as stack:
            for writer in writers.values():
                stack.callback(writer.file.close)

    def _check_open(self) -> None:
        if not self._writers:
            raise RecordingError(
                f"the recording {self.path} is not open: enter it in a with statement first", path=self.path
            )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_values(payload: object, timestamp: object, chunk: object) -> None:
    if not isinstance(payload, bytes):
        wrong = f"payload of type {type(payload).__name__}"
    elif not isinstance(timestamp, _NUMBER_OR_NONE):
        wrong = f"timestamp of type {type(timestamp).__name__}"
    elif not isinstance(chunk, _NUMBER_OR_NONE):
        wrong = f"chunk of type {type(chunk).__name__}"
    else:
        return
    raise InvalidRequestError(
        f"a media event with a {wrong} can't be recorded: write the payload as bytes, and timestamp and chunk as whole "
        "numbers or None"
    )


def _check_path(path: object) -> Path:
    checked = Path(path) if isinstance(path, str | PathLike) else Path()
    if not checked.name:
        raise InvalidRequestError(f"invalid path {str(path)!r}: name a file, such as 'call.wav'")
    return checked


def _check_tracks(tracks: object) -> tuple[str, ...]:
    names = tuple(tracks) if isinstance(tracks, Iterable) and not isinstance(tracks, str) else ()
    if not names or len(set(names)) < len(names):
        raise InvalidRequestError(f"invalid tracks {tracks!r}: name each track once, such as ('inbound', 'outbound')")
    for track in names:
        if not isinstance(track, str) or not _TRACK.fullmatch(track):
            raise InvalidRequestError(f"invalid track name {track!r}: use letters, digits, - and _")
    return names


def _check_choice(name: str, value: _Choice, choices: tuple[str, ...]) -> _Choice:
    if value not in choices:
        raise InvalidRequestError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return value
