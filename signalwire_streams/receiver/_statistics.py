"""Statistics of a track, by its chunk numbers: missing, repeated and late frames, and restarts of the numbering. Pure.

A number that is far from the last ones is believed when the next frame has the number after it, as RFC 3550 (appendix
A.1) does for RTP. `TrackStatistics` and `TrackTimeline` use the same `SequenceTracker`, so they report the same.
"""

from collections.abc import Mapping
from enum import Enum, auto
from itertools import count
from threading import RLock
from typing import Any, TypeAlias
from zlib import crc32

from attrs import define, field

from signalwire_streams.receiver._protocol import MediaEvent

WINDOW = 64  # numbers that are remembered
FARTHEST = 3_000  # numbers, a minute of audio: no connection that survives loses more at once
REPLAY = 8  # repeated frames, in order and from the first one on, that prove a restart of the numbering
_SLOT, _BITS = WINDOW - 1, (1 << WINDOW) - 1

_SMOOTHING = 1 / 16  # of the jitter: RFC 3550, 6.4.1
_MILLISECONDS = 1_000.0
_MAX_EARLY = 100.0  # milliseconds before the least delayed frame: no network delivers a frame earlier than that
_JUMP = 60_000.0  # milliseconds of delay: a timestamp that is further behind is from another clock, or is invalid
_SPAN = 10.0  # seconds: the least delayed frame is taken from the current span and the one before

# Frames are counted in batches: in a busy process, whose caches hold little of the code and data for counting, counting
# one frame alone would cost as much as decoding it.
_BATCH, _LONG = 32 * 5, 4096  # values, of 32 frames; bytes of audio from which a frame does not wait
_COUNTING = RLock()  # statistics may be read in another thread, such as that of a metrics exporter
_STREAMS = count()
_Payload: TypeAlias = bytes  # a class below has an attribute of that name
_MAX_TRACKS, _MAX_TRACK_NAME, _OTHERS = 8, 100, "others"


class Verdict(Enum):
    """Classification of a frame by its number."""

    UNNUMBERED = auto()
    FIRST = auto()
    NEXT = auto()
    AHEAD = auto()
    """The `skipped` numbers before it are missing."""
    LATE = auto()
    """One of the missing numbers, or one below the first."""
    REPEATED = auto()
    DOUBTFUL = auto()
    """Too far off, or used before with another timestamp or payload; the next frame decides."""
    RESTARTED = auto()
    """This number confirms the doubtful one of the frame before."""
    REPLAYED = auto()
    """This frame and the `replayed` ones before it repeat the first ones but are new: the numbering restarted."""


class SequenceTracker:
    """The numbers of one track.

    A frame is repeated if both its number and its timestamp were seen among the last 64 numbers. A frame without a
    number is repeated if its timestamp was seen with the same payload.

    The payloads of the first eight frames are compared as well. A different payload is new audio, so the numbering
    restarted. Two cases look alike, and are told apart by their length: at least the first eight frames again, in
    order and with nothing between them, count as a restart with the same audio; fewer count as a resend.
    """

    def __init__(self) -> None:
        self.skipped = 0  # numbers missing before the last frame; valid after AHEAD and FIRST
        self.replayed = 0  # frames before the last one that turned out to be new; valid after REPLAYED
        self._next: int | None = None  # the number after the highest one
        self._lowest = 0  # of the current numbering
        self._seen = 1  # one bit for each of the last numbers, the lowest bit for the last one
        self._stamps: list[int | None] = [None] * WINDOW  # timestamps of the numbers that were seen
        self._frames = 0
        self._doubted: tuple[int, int] | None = None  # the number, and the frame, that would confirm a doubtful one
        self._doubted_frame: tuple[int | None, int] = (None, 0)  # timestamp and digest of the doubtful frame
        self._digests = [0] * REPLAY  # of the numbering's first payloads
        self._ordinals: dict[tuple[int, int], int] = {}  # of frames without a number, by timestamp and digest
        self._ordinal = 0
        self._replay: tuple[int, int] | None = None  # the number, and the frame, that would continue a replay

    @property
    def last(self) -> tuple[int, int | None] | None:
        """The highest number, and its timestamp; None if no frame had a number."""
        return None if self._next is None else (self._next - 1, self._stamps[self._next - 1 & _SLOT])

    @property
    def is_replaying(self) -> bool:
        """Whether the last frame was a repeated one that may turn out to be new."""
        return self._replay is not None and self._replay[1] == self._frames + 1

    def classify(self, chunk: int | None, timestamp: int | None, payload: bytes | int) -> Verdict:
        """Classify a frame, and remember it. Instead of an unknown payload, pass its length in bytes."""
        self._frames += 1
        if chunk is None:
            return self._classify_unnumbered(timestamp, payload)
        if chunk == self._next:
            self._next = chunk + 1
            if self._seen != _BITS:
                self._seen = (self._seen << 1 | 1) & _BITS
            self._stamps[chunk & _SLOT] = timestamp
            if chunk < self._lowest + REPLAY:
                self._digests[chunk % REPLAY] = _digest(payload)
            return _NEXT
        return self._classify_other(chunk, timestamp, _digest(payload))

    def _classify_other(self, chunk: int, timestamp: int | None, digest: int) -> Verdict:
        if self._next is None:
            self.skipped = chunk - 1 if 0 < chunk <= FARTHEST else 0  # numbers count from 1
            self._lowest = chunk
            return self._advance(chunk, timestamp, digest, 1, Verdict.FIRST)
        if self._doubted == (chunk, self._frames):
            self._lowest = chunk - 1
            self._remember(self._lowest, *self._doubted_frame)
            return self._advance(chunk, timestamp, digest, 0b11, Verdict.RESTARTED)
        ahead = chunk - self._next
        behind = -1 - ahead
        if 0 <= behind < WINDOW:
            bit = 1 << behind
            if not self._seen & bit:
                self._seen |= bit
                self._lowest = min(self._lowest, chunk)
                self._remember(chunk, timestamp, digest)
                return Verdict.LATE
            if self._stamps[chunk & _SLOT] == timestamp:
                is_same = chunk >= self._lowest + REPLAY or self._digests[chunk % REPLAY] == digest
                if is_same or self._replay == (chunk, self._frames):
                    is_first = chunk == self._lowest and behind > 0
                    verdict = self._classify_repeated(chunk, is_first=is_first, is_new=not is_same)
                    if verdict is Verdict.REPLAYED:
                        self._advance(chunk, timestamp, digest, (2 << self.replayed) - 1, verdict)
                    return verdict
        elif 0 < ahead <= FARTHEST:
            self.skipped = ahead
            return self._advance(chunk, timestamp, digest, self._seen << ahead + 1 | 1, Verdict.AHEAD)
        self._doubted, self._doubted_frame = (chunk + 1, self._frames + 1), (timestamp, digest)
        return Verdict.DOUBTFUL

    def _advance(self, chunk: int, timestamp: int | None, digest: int, seen: int, verdict: Verdict) -> Verdict:
        self._next = chunk + 1
        self._seen = seen & _BITS
        self._remember(chunk, timestamp, digest)
        return verdict

    def _remember(self, chunk: int, timestamp: int | None, digest: int) -> None:
        self._stamps[chunk & _SLOT] = timestamp
        if chunk < self._lowest + REPLAY:
            self._digests[chunk % REPLAY] = digest

    def _classify_unnumbered(self, timestamp: int | None, payload: bytes | int) -> Verdict:
        if timestamp is None:
            return Verdict.UNNUMBERED
        seen, frame = self._ordinals, (timestamp, _digest(payload))
        if (ordinal := seen.get(frame)) is None:
            self._ordinal += 1
            seen[frame] = self._ordinal
            if len(seen) > WINDOW:
                del seen[next(iter(seen))]
            return Verdict.UNNUMBERED
        verdict = self._classify_repeated(ordinal, is_first=ordinal == 1 and ordinal < self._ordinal)
        if verdict is Verdict.REPLAYED:
            self._ordinals = {frame: number for frame, number in seen.items() if number <= REPLAY}
            self._ordinal = REPLAY
        return verdict

    def _classify_repeated(self, number: int, *, is_first: bool, is_new: bool = False) -> Verdict:
        if self._replay == (number, self._frames):
            self.replayed += 1
        elif is_first:
            self.replayed = 0
        else:
            return Verdict.REPEATED
        if is_new or self.replayed + 1 == REPLAY:
            return Verdict.REPLAYED
        self._replay = number + 1, self._frames + 1
        return Verdict.REPEATED


def _digest(payload: bytes | int) -> int:
    return payload if isinstance(payload, int) else crc32(payload)


_NEXT = Verdict.NEXT


_UNMEASURED = {Verdict.LATE, Verdict.REPEATED, Verdict.DOUBTFUL}


@define(eq=False)
class TrackStatistics:
    """Counts and timing of one track's media frames.

    Some frames are believed only if the next frame agrees:

    - A chunk number that is more than 3,000 ahead of the last one, 64 or more behind it, or was used before with
      another timestamp or payload. If the next frame has the number after it, the numbering has restarted, and no
      frame is missing before it. Eight repeated frames, from the first one on, are a restart as well.
    - A timestamp that is more than 100 ms ahead of the least delayed frame's, or more than 60 s behind it; and the
      first timestamp. If the next one agrees, delays are measured from there. Until then such a frame counts neither
      for the delay nor for the jitter.

    Attributes:
        frames: media frames received.
        bytes: bytes of audio received.
        missing: frames that never arrived, by their numbers.
        gaps: number of times that frames were missing.
        duplicates: frames that were received again.
        out_of_order: frames that arrived after a later one.
        invalid_sequence: frames whose number was not believed.
        sequence_resets: number of times that the numbering restarted.
        dropped: frames that the receiver dropped since the handler was too slow.
        jitter: variation of the delay in milliseconds, smoothed as in RFC 3550.
        delay_ms: milliseconds that the last frame was late, by its timestamp, compared with the least delayed frame
            of the last 10 to 20 seconds. A permanent delay is therefore forgotten after that time. A frame arrives
            when it is read from the socket, whatever the handler does meanwhile.
        max_delay_ms: maximum of ``delay_ms``.
    """

    frames: int = 0
    bytes: int = 0
    missing: int = 0
    gaps: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    invalid_sequence: int = 0
    sequence_resets: int = 0
    dropped: int = 0
    jitter: float = 0.0
    delay_ms: float = 0.0
    max_delay_ms: float = 0.0
    _sequence: SequenceTracker = field(init=False, factory=SequenceTracker, repr=False)
    # Arrival minus timestamp: of the last frame that was believed, and of the least delayed frame of both spans.
    _transit: float = field(init=False, default=0.0, repr=False)
    _least: float = field(init=False, default=float("inf"), repr=False)
    _least_of_span: float = field(init=False, default=0.0, repr=False)
    _span_ends: float = field(init=False, default=0.0, repr=False)
    _doubted: tuple[float, int] = field(init=False, default=(0.0, -1), repr=False)  # its transit, and `frames` then

    def _record(self, chunk: int | None, timestamp: int | None, payload: _Payload, now: float) -> None:
        """Count a frame that arrived at that time, in seconds."""
        self.frames += 1
        self.bytes += len(payload)
        # The timestamp of a frame without audio does not identify it.
        verdict = self._sequence.classify(chunk, timestamp if payload else None, payload)
        if not (verdict is _NEXT or self._count(verdict)) or timestamp is None:
            return
        transit = now * _MILLISECONDS - timestamp
        # For each frame: with abs(), min() and max() it would take a fourth longer.
        least = self._least
        if not -_MAX_EARLY <= transit - least <= _JUMP:
            self._rebase(transit, now)
            return
        variation = transit - self._transit
        self._transit = transit
        self.jitter += ((variation if variation >= 0 else -variation) - self.jitter) * _SMOOTHING
        if now >= self._span_ends:
            least = self._least = min(self._least_of_span, transit)
            self._least_of_span = transit
            self._span_ends = now + _SPAN
        elif transit < self._least_of_span:
            self._least_of_span = transit
            least = self._least = min(least, transit)
        delay = self.delay_ms = transit - least
        if delay > self.max_delay_ms:  # noqa: PLR1730
            self.max_delay_ms = delay

    def _count(self, verdict: Verdict) -> bool:
        """Count a frame whose number does not follow the last one; return whether to measure its arrival."""
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
                self.invalid_sequence += 1
            case Verdict.RESTARTED:
                self.sequence_resets += 1
                self.invalid_sequence -= 1  # the one before was right
            case Verdict.REPLAYED:
                self.sequence_resets += 1
                self.duplicates -= self._sequence.replayed  # those before were new
        return verdict not in _UNMEASURED

    def _rebase(self, transit: float, now: float) -> None:
        """Measure from a transit that is out of range, as the first one is, if it agrees with the frame before."""
        doubted, frame = self._doubted
        if frame + 1 != self.frames or abs(transit - doubted) > _MAX_EARLY:
            self._doubted = transit, self.frames
            return
        self._transit = transit
        self._least = self._least_of_span = min(doubted, transit)
        self._span_ends = now + _SPAN
        self.delay_ms = transit - self._least


@define(eq=False, repr=False)
class StreamStatistics:
    """Counts of one session.

    Attributes:
        malformed: frames that could not be decoded.
        unknown: events that this version does not know.
        dropped: events other than media that were dropped: too many waited, and nothing iterated over the session, or
            they were unknown.
        restarts: number of times that the stream was lost and started again.
        gap_seconds: seconds without a stream, over all restarts. Their frames count as missing.
    """

    malformed: int = 0
    unknown: int = 0
    dropped: int = 0
    restarts: int = 0
    gap_seconds: float = 0.0
    _tracks: dict[str, TrackStatistics] = field(init=False, factory=dict)
    # The frames one after the other, since the garbage collector would go through a tuple or an event of each.
    _uncounted: list[Any] = field(init=False, factory=list)
    # Values that may wait; at first fewer, so that streams that start together take turns.
    _most: int = field(init=False, factory=lambda: 5 * next(_STREAMS) % _BATCH)

    def __repr__(self) -> str:
        counts = f"malformed={self.malformed}, unknown={self.unknown}, dropped={self.dropped}"
        gaps = f"restarts={self.restarts}, gap_seconds={self.gap_seconds:g}"
        return f"StreamStatistics({counts}, {gaps}, tracks={self.tracks})"

    @property
    def tracks(self) -> Mapping[str, TrackStatistics]:
        """Statistics of the tracks, by name. From the ninth track on, and for very long names, it is ``others``.

        Reading this property brings them up to date; a `TrackStatistics` that you keep may lack the last second.
        """
        self._count()
        return self._tracks

    def _record(self, media: MediaEvent, now: float) -> None:
        """Count a frame that arrived at *now*, in seconds, at the latest when the statistics are read."""
        payload, uncounted = media.payload, self._uncounted
        uncounted += (media.track, media.chunk, media.timestamp, payload, now)
        if len(uncounted) > self._most or len(payload) > _LONG:
            self._most = _BATCH
            self._count()

    def _count(self) -> None:
        with _COUNTING:
            values = self._uncounted[:]
            waiting = iter(values)
            for track, chunk, timestamp, payload, now in zip(waiting, waiting, waiting, waiting, waiting, strict=True):
                self._of(track)._record(chunk, timestamp, payload, now)  # noqa: SLF001  (private to users, not to us)
            del self._uncounted[: len(values)]  # further ones may have come

    def of(self, track: str | None) -> TrackStatistics:
        """Return the up-to-date statistics of a track; they start at zero when its first frame arrives."""
        self._count()
        return self._of(track)

    def _of(self, track: str | None) -> TrackStatistics:
        found = self._tracks.get(track or "")
        if found is None:
            # A peer that makes up names must not fill the memory.
            is_kept = len(self._tracks) < _MAX_TRACKS and len(track or "") <= _MAX_TRACK_NAME
            found = self._tracks.setdefault((track or "") if is_kept else _OTHERS, TrackStatistics())
        return found
