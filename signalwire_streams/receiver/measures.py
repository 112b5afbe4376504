"""What became of the audio of a stream, in numbers that stay small however long it runs. Pure."""

from collections.abc import Mapping

from attrs import define, field

from signalwire_streams.receiver.events import MediaEvent
from signalwire_streams.receiver._statistics import SequenceTracker, Verdict

_SMOOTHING = 1 / 16  # of the jitter: RFC 3550, 6.4.1
_MILLISECONDS = 1_000
_JUMP = 60_000.0  # milliseconds: timestamps that jump by more have begun anew, or are no timestamps
_NEXT = Verdict.NEXT
_UNMEASURED = {Verdict.LATE, Verdict.REPEATED, Verdict.DOUBTFUL}
_SPAN = 10.0  # seconds: frames are late against the least delayed one of these and of as many before


@define(eq=False)
class TrackStatistics:
    """What came of one track.

    A number more than 3,000 ahead of the last one, 64 or more behind it, or used before with another timestamp or
    payload, is believed only if the next frame follows on it; then the frames are counted from there, and nothing is
    missing before it. Repeated frames, from the first one on, are a restart as well if there are eight of them or
    another payload follows (`SequenceTracker`). A timestamp that jumps by more than a minute against the clock begins
    anew in the same way: it adds to no jitter, and later frames are measured against it.

    Attributes:
        frames: media frames that came.
        bytes: their audio, in bytes.
        missing: frames that never came, by their chunk numbers.
        gaps: how often some were missing.
        duplicates: frames that came again.
        out_of_order: frames that came after a later one.
        misnumbered: frames whose number was not believed.
        restarts: how often the numbers began anew.
        dropped: frames that the receiver dropped because its owner was too slow.
        jitter: milliseconds; how unevenly frames arrive, smoothed as RFC 3550 does.
        lateness: milliseconds by which the last frame came later, by its timestamp, than the least delayed one of the
            last 10 to 20 seconds. So a delay that stays counts no more after that time. A frame arrives when it is
            read, which is up to 50 ms later when the handler has just become busy elsewhere.
        latest: the greatest lateness.
    """

    frames: int = 0
    bytes: int = 0
    missing: int = 0
    gaps: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    misnumbered: int = 0
    restarts: int = 0
    dropped: int = 0
    jitter: float = 0.0
    lateness: float = 0.0
    latest: float = 0.0
    _sequence: SequenceTracker = field(init=False, factory=SequenceTracker)
    _transit: float = field(init=False, default=float("-inf"))
    _least: float = field(init=False, default=0.0)  # the transit of the least delayed frame of both spans
    _least_of_span: float = field(init=False, default=0.0)
    _span_ends: float = field(init=False, default=0.0)

    def note(self, media: MediaEvent, now: float) -> None:
        """Count a frame that arrived at that time, in seconds."""
        self.frames += 1
        self.bytes += len(media.payload)
        # The timestamp of a frame without audio does not tell it from another one.
        verdict = self._sequence.note(media.chunk, media.timestamp if media.payload else None, media.payload)
        if (verdict is _NEXT or self._count(verdict)) and media.timestamp is not None:
            self._note_arrival(now * _MILLISECONDS - media.timestamp, now)

    def _count(self, verdict: Verdict) -> bool:
        """Count a frame whose number does not follow; return whether its arrival is measured."""
        match verdict:
            case Verdict.AHEAD:
                self.gaps += 1
                self.missing += self._sequence.skipped
            case Verdict.LATE:
                self.out_of_order += 1
                self.missing -= bool(self.missing)
            case Verdict.REPEATED:
                self.duplicates += 1
            case Verdict.DOUBTFUL:
                self.misnumbered += 1
            case Verdict.RESTARTED:
                self.restarts += 1
                self.misnumbered -= 1  # the one before was right
            case Verdict.REPLAYED:
                self.restarts += 1
                self.duplicates -= self._sequence.replayed  # those before were new
        return verdict not in _UNMEASURED

    def _note_arrival(self, transit: float, now: float) -> None:
        change = abs(transit - self._transit)
        self._transit = transit
        if change > _JUMP:  # also the first
            self._least = self._least_of_span = transit
            self._span_ends = now + _SPAN
        else:
            self.jitter += (change - self.jitter) * _SMOOTHING
            if now >= self._span_ends:
                self._least = min(self._least_of_span, transit)
                self._least_of_span = transit
                self._span_ends = now + _SPAN
            elif transit < self._least_of_span:
                self._least_of_span = transit
                self._least = min(self._least, transit)
        lateness = self.lateness = transit - self._least
        if lateness > self.latest:  # noqa: PLR1730  (max() would take a fourth of all the time, for each frame)
            self.latest = lateness


@define(eq=False)
class StreamStatistics:
    """What came over one audio socket.

    Attributes:
        malformed: frames that could not be read.
        unknown: events that this version does not know.
    """

    malformed: int = 0
    unknown: int = 0
    _tracks: dict[str, TrackStatistics] = field(init=False, factory=dict)

    @property
    def tracks(self) -> Mapping[str, TrackStatistics]:
        """The tracks' statistics, by their names."""
        return self._tracks

    def of(self, track: str | None) -> TrackStatistics:
        """Give the statistics of a track; the first time, they are new."""
        found = self._tracks.get(track or "")
        if found is None:
            # A peer that makes up names must not fill the memory.
            name = (track or "") if len(self._tracks) < _MOST_TRACKS else _OTHERS
            found = self._tracks.setdefault(name, TrackStatistics())
        return found


_MOST_TRACKS, _OTHERS = 8, "others"
