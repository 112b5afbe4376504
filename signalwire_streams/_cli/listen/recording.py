"""One stream while it is heard and recorded, and what came of it."""

import asyncio
from collections.abc import Callable, Mapping

from attrs import define, field, frozen

from signalwire_streams import StreamsError
from signalwire_streams.cli.listen.levels import LevelMeter, dbfs
from signalwire_streams.cli.listen.recording import MOST_TRACKS, Recording
from signalwire_streams._cli.output import clean
from signalwire_streams.receiver import EndReason, MediaEvent, StreamSession, TrackStatistics

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
            self.session.end(EndReason.HANDLER_FAILED)

    def _hear(self, media: MediaEvent) -> None:
        self._heard_at = self.clock()
        if not self.session.audio_format.is_known:
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
        if audio.is_known:
            return f"{self.sid} began: {clean(told)[:_LONGEST_LABEL]}"
        return (
            f"{self.sid} began: its encoding {clean(audio.encoding)[:_LONGEST_LABEL]!r} is not known, so no WAV can be made; "
            "its payloads are written to .raw files as they come"
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
        return "recording" if self.session.audio_format.is_known else "raw"

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
        return 0.0 if self.session.audio_format.is_known else None

    @property
    def _end(self) -> str:
        return str(self.session.end_reason or EndReason.SHUTDOWN)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
