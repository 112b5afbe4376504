"""Positions of a track's frames, to the sample. Pure; its state stays small however long the stream is.

A frame has a timestamp, in whole milliseconds from the stream's start, and a chunk number, which counts the track's
frames. Neither is reliable. Timestamps are rounded and may jitter. Both may be missing, repeated, out of order or
absurd. The rules:

- A frame whose timestamp is within the tolerance of the end of the frame before follows it **to the sample**.
- A gap is kept as silence if the chunk numbers show that frames are missing, or if a second frame agrees with the
  timestamp after it. Until the second frame arrives, the first one is placed without the gap; then both are moved
  (`TrackTimeline.corrections`). A single absurd timestamp therefore changes nothing.
- The first frame is placed by its timestamp. It is moved if two more frames agree that this timestamp is wrong.
- A gap is removed if two of the next frames follow as if nothing had been missing, and none between them confirms it.
- A gap longer than ``max_gap`` seconds is shortened to it, unless another track of the stream shows that more time
  has passed. If arrival times are known, all silence together is at most the time that has passed plus 5 seconds.
- A repeated frame is dropped. A late frame fills the gap that it left, and is dropped if there is none.
- New audio is never dropped. If timestamps repeat, run slow or go back, it follows the audio before. After a restart
  of the chunk numbers, the audio is new (`SequenceTracker`).

Source: https://signalwire.com/docs/compatibility-api/
"""

from collections.abc import Iterable
from itertools import pairwise
from math import isfinite

from attrs import define, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver._statistics import WINDOW, SequenceTracker, Verdict
from signalwire_streams.receiver.audio._formats import AudioFormat, check_audio_format, is_number

_MILLISECONDS = 1000
_DAY = 24 * 3600  # seconds
_LIMIT = 1 << 63  # milliseconds: a timestamp beyond it is ignored, so that the numbers do not grow
_MAX_HOLES = 64
_RESTART = 1  # seconds: timestamps that fall behind by more restart, if a second frame agrees
_PACKET = 60  # milliseconds that a missing frame may have lasted, unless its neighbour is longer
_MAX_DOUBTS = 3
_MAX_FOLLOWING = 4  # frames after a move of the anchor that may still return to the former one
_MARGIN = 5  # seconds of silence beyond the time that has passed, for delayed starts and clocks that differ


@define
class TimelineStatistics:
    """Counts of a track's frames.

    Attributes:
        frames: frames that were placed.
        gaps: number of gaps; the time before the first frame is one.
        gap_ms: milliseconds that are missing now; late frames reduce it.
        truncated_gaps: gaps that were too long and were shortened.
        duplicates: repeated frames, which were dropped.
        out_of_order: late frames that were put in their places.
        too_late: late frames that were dropped, since their places are taken.
        overlaps: frames whose timestamps lie before the end of the frame before; they were placed after it.
        restarts: number of times that the numbering restarted.
        partial_samples: frames with bytes at the end that are less than a sample; those bytes are left out.
    """

    frames: int = 0
    gaps: int = 0
    gap_ms: float = 0.0
    truncated_gaps: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    too_late: int = 0
    overlaps: int = 0
    restarts: int = 0
    partial_samples: int = 0


@frozen
class Correction:
    """A frame that has been moved since `TrackTimeline.place` returned its place.

    Attributes:
        frame: the call of `place`, counted from 1.
        position: its first sample.
    """

    frame: int
    position: int


@define(eq=False)
class _Doubt:
    """A frame that follows the one before although its timestamp says otherwise."""

    frame: int
    position: int
    samples: int
    stamp: int  # the timestamp in samples
    missing: int  # frames missing before it, by the numbers


@define(eq=False)
class _Former:
    """The anchor before the last move, to which the next few frames may return as if nothing had been missing."""

    shift: int
    begin: int  # of the gap that the move made
    gap: int
    truncated_gaps: int
    frames: list[_Doubt]  # those placed after the gap
    is_denied: bool = False  # whether the last frame returned to it: one alone proves nothing, as it may be wrong


class TrackTimeline:
    """Positions of one track's frames.

    Attributes:
        format: encoding of the audio.
        max_gap: seconds of silence that one jump of the timestamps may add.
        tolerance: milliseconds by which a timestamp may deviate without effect. (The loss of a shorter frame is
            detected by its number.)
        statistics: counts of the frames so far.
        calls: number of calls of `place`.
        corrections: frames that the last call of `place` moved. Their old places, if they had any, are in
            ``vacated``.
        vacated: range of samples, as in a slice, that are silence now, apart from the corrected frames.
        is_unsettled: True if frames may still be corrected.

    Raises:
        InvalidRequestError: an argument is invalid.
        UnknownEncodingError: the encoding is unknown, so the duration of a frame is too.
    """

    def __init__(self, format: AudioFormat, *, max_gap: float = 60.0, tolerance: int = 8) -> None:  # noqa: A002
        check_audio_format(format)
        if not is_number(max_gap) or not 0 < max_gap <= _DAY:
            raise InvalidRequestError(
                f"max_gap must be a number of seconds, above 0 and at most a day, not {max_gap!r}"
            )
        if not is_number(tolerance) or not 0 <= tolerance <= _MILLISECONDS:
            raise InvalidRequestError(
                f"tolerance must be a number of milliseconds from 0 to {_MILLISECONDS}, not {tolerance!r}"
            )
        self.format = format
        self.max_gap = max_gap
        self.tolerance = tolerance
        self.statistics: TimelineStatistics = TimelineStatistics()
        self.calls: int = 0
        self.corrections: list[Correction] = []
        self.vacated: tuple[int, int] | None = None
        self.is_unsettled: bool = False
        self._rate = rate = format.sample_rate
        self._sample_size = format.sample_size
        self._longest = int(max_gap * rate)
        self._rounding = -(-rate // _MILLISECONDS) - 1
        self._slack = max(self._rounding, format.samples_in(tolerance))
        self._restart = _RESTART * rate
        self._packet = format.samples_in(_PACKET)
        self._sequence = SequenceTracker()
        self._next = 0  # the sample after the last one
        self._shift = 0  # the place is the timestamp less this
        self._absent = 0  # frames missing by the numbers, for which no gap was made yet
        self._doubts: list[_Doubt] = []  # the last frames, if they are in doubt
        self._lead: _Doubt | None = None  # the first frame, until another one fits
        self._former: _Former | None = None
        self._repeated: list[tuple[int, int]] = []  # frames and samples that may be new
        self._holes: list[tuple[int, int]] = []
        self._missing = 0
        self._other_tracks: Iterable[TrackTimeline] = ()  # of the current call, as `_elapsed`
        self._elapsed: float | None = None

    @property
    def end(self) -> int:
        """End of the last frame, in samples from the stream's start."""
        return self._next

    @property
    def doubted_gap(self) -> int:
        """Samples of the last gap, or of the silence before the first frame, while it may turn out to be none."""
        if self._lead is not None:
            return self._lead.position
        return 0 if self._former is None else self._former.gap

    def unsettled(self) -> list[int]:
        """Return the frames that may still be corrected, as `Correction.frame` counts them."""
        placed = [*self._doubts, *filter(None, [self._lead])]
        if self._former is not None:
            placed += self._former.frames
        return [*(doubt.frame for doubt in placed), *(frame for frame, _ in self._repeated)]

    def estimate(self, stamp: int) -> int | None:
        """Estimate the position of another track's timestamp on this track.

        Args:
            stamp: the timestamp in samples.

        Returns:
            The sample, counted from the stream's start; None if this track has no basis for it.
        """
        place = stamp - self._shift
        return place if self._next and place <= self._next + self._longest else None

    def place(
        self,
        timestamp: int | None,
        chunk: int | None,
        size: int,
        *,
        other_tracks: Iterable["TrackTimeline"] = (),
        elapsed: float | None = None,
        payload: bytes | None = None,
    ) -> int | None:
        """Place a frame: return its position, and remember it.

        Args:
            timestamp: milliseconds from the stream's start.
            chunk: the frame's number within its track.
            size: the payload's length in bytes.
            other_tracks: timelines of the stream's other tracks, which show how much time has passed if this track
                does not.
            elapsed: seconds from the stream's start to the frame's arrival; None, nan or infinity if unknown.
            payload: the frame's audio, which distinguishes a resent frame from a new one; None if unknown.

        Returns:
            The frame's first sample, counted from the stream's start; None to drop the frame.
        """
        self.calls += 1
        if self.corrections:
            self.corrections, self.vacated = [], None
        samples = size // self._sample_size if size > 0 else 0
        is_whole = samples * self._sample_size == size
        verdict = self._sequence.classify(chunk, timestamp if samples else None, size if payload is None else payload)
        if (
            verdict is _NEXT
            and samples
            and is_whole
            and timestamp is not None
            and not (self._absent or self.is_unsettled)
        ):
            position = self._next
            ahead = (timestamp * self._rate + 500) // _MILLISECONDS - self._shift - position
            if -self._slack <= ahead <= self._slack:  # as nearly all frames
                self.statistics.frames += 1
                self._next = position + samples
                return position
        self.statistics.partial_samples += size > 0 and not is_whole
        self._other_tracks, self._elapsed = other_tracks, elapsed if elapsed is not None and isfinite(elapsed) else None
        place = self._place_unusual(timestamp, verdict, samples)
        self.is_unsettled = bool(self._former or self._doubts or self._repeated or self._lead)
        return place

    def _place_unusual(self, timestamp: int | None, verdict: Verdict, samples: int) -> int | None:
        """Place a frame that does not directly follow the one before."""
        if verdict is Verdict.REPEATED:
            self._drop_repeated(samples)
            return None
        if self._repeated:
            self._resolve_repeated(verdict)
        if verdict is Verdict.RESTARTED:
            self.statistics.restarts += 1
        elif verdict in _SKIPPING:
            self._absent += self._sequence.skipped
        if not samples:
            self._absent += verdict in _ONWARD  # the time of a frame without audio may pass all the same
            return None
        if timestamp is None or not -_LIMIT <= timestamp < _LIMIT:
            self._lead = self._former = None
            self._doubts.clear()
            return self._follow(samples)
        position = self._locate(self.format.samples_in(timestamp), verdict, samples)
        if position is None:
            self.statistics.too_late += 1
        return position

    def _drop_repeated(self, samples: int) -> None:
        self.statistics.duplicates += 1
        if not self._sequence.is_replaying:
            self._repeated.clear()
        else:
            self._repeated.append((self.calls, samples))

    def _resolve_repeated(self, verdict: Verdict) -> None:
        """Place the frames that were dropped as repeated ones if they turn out to be new."""
        repeated, self._repeated = self._repeated, []
        if verdict is Verdict.REPLAYED:
            self.statistics.restarts += 1
            self.statistics.duplicates -= len(repeated)
            self._former = None
            for frame, samples in repeated:
                if samples:
                    self.corrections.append(Correction(frame, self._follow(samples)))
            self._doubts.clear()

    def _follow(self, samples: int) -> int:
        self.statistics.frames += 1
        position = self._next
        self._next += samples
        return position

    def _locate(self, stamp: int, verdict: Verdict, samples: int) -> int | None:
        ahead = stamp - self._shift - self._next
        absent, slack = self._absent, self._slack
        if absent:
            slack = self._rounding  # a frame is missing: the timestamp counts, even for less than the tolerance
        if -self._slack <= ahead <= slack:
            if verdict is Verdict.LATE and ahead < -self._rounding:
                return self._fill(stamp - self._shift, samples)
            return self._place_next(samples)
        if verdict in _EARLIER and (self._confirm_by_earlier(stamp) or ahead < 0):
            hole = self._fill(stamp - self._shift, samples) if self._lead is None or verdict is Verdict.LATE else None
            if hole is not None or verdict is Verdict.LATE:
                return hole
        if not self._next and ahead > 0:
            self._lead = _Doubt(self.calls, 0, samples, stamp, absent)
            self._pause(0, self._gap(stamp, 0))
            self._lead.position = self._next
            self._absent = 0
            return self._follow(samples)
        if 0 < ahead <= absent * max(self._packet, samples):
            self._pause(self._next, self._in_frames(self._gap(stamp, self._next), samples))
        elif not self._return_to_former(stamp, samples):
            return self._doubt(stamp, ahead, verdict, samples)
        return self._place_next(samples)

    def _place_next(self, samples: int) -> int:
        """Place a frame that follows the one before and whose timestamp agrees."""
        if self._doubts:
            self._doubts.clear()
        if self._lead is not None:
            self._former = _Former(0, 0, self._lead.position, 0, [self._lead])
            self._lead = None
        self._absent = 0
        if self._former is not None:
            self._former.is_denied = False
            self._note_following(samples)
        return self._follow(samples)

    def _note_following(self, samples: int) -> None:
        """Remember a frame as one that was placed after the anchor moved."""
        if self._former is not None:
            self._former.frames.append(_Doubt(self.calls, self._next, samples, 0, 0))
            if len(self._former.frames) > _MAX_FOLLOWING:
                self._former = None

    def _follows(self, former: _Former, stamp: int) -> bool:
        """Return whether a frame follows as if the last move of the anchor had not been made."""
        off = stamp - former.shift - (self._next - former.gap)
        if not -self._slack <= off <= self._slack + self._absent * self._packet:
            return False
        return not former.gap or (former.begin, former.begin + former.gap) in self._holes

    def _return_to_former(self, stamp: int, samples: int) -> bool:
        """Undo the last move of the anchor if this is the second frame that denies it; return whether it was."""
        former = self._former
        if former is None or not former.is_denied or not self._follows(former, stamp):
            return False
        if former.gap:
            gap = former.begin, former.begin + former.gap
            self._holes.remove(gap)
            self.statistics.gaps -= 1
            self._miss(-former.gap)
            self.vacated = gap[1], self._next
            self._next -= former.gap
            self._move(former.frames, -former.gap)
        self.statistics.truncated_gaps = former.truncated_gaps
        self._shift, self._former = former.shift, None
        if stamp - self._shift - self._next > self._slack:  # frames between the two are missing
            self._pause(self._next, self._in_frames(self._gap(stamp, self._next), samples))
        return True

    def _doubt(self, stamp: int, ahead: int, verdict: Verdict, samples: int) -> int:
        """Place a frame whose timestamp does not fit: by that of an earlier doubtful frame, or after the last one."""
        former = self._former
        if former is not None and not self._absent and self._follows(former, stamp):
            return self._deny(former, stamp, samples)
        agreeing = self._agreeing(stamp)
        if agreeing is not None:
            self._move_anchor(agreeing)
            ahead = stamp - self._shift - self._next
            if ahead > self._slack:
                self._pause(self._next, self._in_frames(self._gap(stamp, self._next), samples))
            elif ahead < -self._slack:
                self.statistics.overlaps += 1
            return self._place_next(samples)
        if ahead < 0:
            self.statistics.overlaps += 1
            if verdict in _RESTARTS:
                self._restart_at(stamp, self._next)
                return self._place_next(samples)
            if -ahead <= self._restart and self._lead is None:
                self._doubts.clear()
                self._former = None
                return self._follow(samples)  # the timestamps still count: a gap that comes makes up for it
        doubt = _Doubt(self.calls, self._next, samples, stamp, self._absent)
        self._doubts.append(doubt)
        self._note_following(samples)
        del self._doubts[:-_MAX_DOUBTS]
        self._follow(samples)
        if self._is_progressing():
            self._move_anchor(self._doubts[0])
            self._doubts = self._doubts[1:]
        return doubt.position

    def _deny(self, former: _Former, stamp: int, samples: int) -> int:
        """Place the first frame that returns to the former anchor; until another one does, the move stands."""
        former.is_denied = True
        doubt = _Doubt(self.calls, self._next, samples, stamp, 0)
        self._doubts = [*self._doubts[1 - _MAX_DOUBTS :], doubt]
        former.frames.append(doubt)
        return self._follow(samples)

    def _agreeing(self, stamp: int) -> _Doubt | None:
        """Return the doubtful frame that a timestamp follows."""
        for doubt in reversed(self._doubts):
            off = stamp - doubt.stamp - (self._next - doubt.position)
            if -self._slack <= off <= self._slack + (self._absent - doubt.missing) * self._packet:
                return doubt
        return None

    def _is_progressing(self) -> bool:
        """Return whether the doubtful frames are far apart, each later than the one before."""
        steps = [later.stamp - doubt.stamp for doubt, later in pairwise(self._doubts)]
        return len(steps) == _MAX_DOUBTS - 1 and all(self._packet < step <= self._longest for step in steps)

    def _confirm_by_earlier(self, stamp: int) -> bool:
        """Move the anchor to a doubtful frame if one that was sent shortly before it arrives after it."""
        for doubt in self._doubts:
            is_before = 0 < doubt.stamp - stamp <= WINDOW * self._packet
            if is_before and stamp - self._shift >= doubt.position - self._slack:
                self._move_anchor(doubt)
                self._doubts.clear()
                return True
        return False

    def _move_anchor(self, doubt: _Doubt) -> None:
        """Place a doubtful frame, and those after it, by its timestamp."""
        ahead = doubt.stamp - self._shift - doubt.position
        former = _Former(self._shift, doubt.position, 0, self.statistics.truncated_gaps, [])
        following = self._doubts[self._doubts.index(doubt) :]
        if ahead < 0 and self._take_back_lead(doubt):
            return
        if ahead < -self._restart:
            self._restart_at(doubt.stamp, doubt.position)
            ahead = doubt.stamp - self._shift - doubt.position
        if ahead > 0 and (length := self._gap(doubt.stamp, doubt.position)) > 0:
            self.vacated = doubt.position, self._next
            self._pause(doubt.position, length)
            self._move(following, length)
            former.gap = length
        former.frames = following
        self._former = None if self._absent else former

    def _move(self, doubts: list[_Doubt], by: int) -> None:
        for doubt in doubts:
            doubt.position += by
            if doubt.frame != self.calls:
                self.corrections.append(Correction(doubt.frame, doubt.position))

    def _take_back_lead(self, doubt: _Doubt) -> bool:
        """Move the first frame and the doubtful ones to end where the second begins; return whether they moved."""
        lead = self._lead
        if lead is None or self._holes != [(0, lead.position)]:
            return False
        if self._doubts[0].position != lead.position + lead.samples:
            return False  # the frames between are not known any more
        agreed = self._agreed(doubt.stamp, 0) or 0
        begin = max(0, doubt.stamp - agreed - (doubt.position - lead.position))
        if begin >= lead.position:
            return False
        self.vacated = lead.position, self._next
        by = begin - lead.position
        self._shift = doubt.stamp - (doubt.position + by)
        self._holes, self._next, self._lead, self._former = [], self._next + by, None, None
        self.statistics.gaps = 0
        self._miss(-self._missing)
        self._move([lead, *self._doubts], by)
        if begin:
            self._next -= begin
            self._pause(0, begin)
        return True

    def _restart_at(self, stamp: int, position: int) -> None:
        """Restart the count so that this timestamp belongs at a position, or further on where another track has it."""
        agreed = self._agreed(stamp, position)
        self._shift = stamp - position if agreed is None else agreed

    def _agreed(self, stamp: int, position: int) -> int | None:
        """Return the shift by which another track makes sense of a timestamp, if one does."""
        for other in self._other_tracks:
            place = other.estimate(stamp)
            if place is not None and place >= position:
                return stamp - place
        return None

    def _gap(self, stamp: int, position: int) -> int:
        """Return how much silence belongs between a position and a timestamp, and count timestamps from there."""
        ahead = length = stamp - self._shift - position
        if ahead > self._longest or not position:
            agreed = self._agreed(stamp, position)
            if agreed is None:
                length = min(ahead, self._longest)
            else:
                ahead = length = stamp - agreed - position
        if self._elapsed is not None:
            passed = int((self._elapsed + _MARGIN) * self.format.sample_rate) - self._missing
            length = min(length, max(0, passed))
        self.statistics.truncated_gaps += length < ahead
        self._shift = stamp - position - length
        return length

    def _in_frames(self, ahead: int, samples: int) -> int:
        # Where frames are all of one length that is not whole milliseconds, this makes the gap exact.
        whole = (ahead + samples // 2) // samples * samples
        return whole if abs(whole - ahead) <= self._rounding and ahead < self._longest else ahead

    def _pause(self, position: int, length: int) -> None:
        if length > 0:
            self._holes.append((position, position + length))
            del self._holes[:-_MAX_HOLES]
            self._next += length
            self.statistics.gaps += 1
            self._miss(length)

    def _miss(self, samples: int) -> None:
        self._missing += samples
        self.statistics.gap_ms = self._missing * _MILLISECONDS / self.format.sample_rate

    def _fill(self, place: int, samples: int) -> int | None:
        """Return the place of a late frame if there is a hole about where it belongs, and shrink the hole."""
        slack = min(self._slack, samples // 2)
        for number, (begin, end) in enumerate(self._holes):
            if end - begin >= samples - slack and begin - slack <= place and place + samples <= end + slack:
                position = self._snapped(place, begin, end - samples)
                rest = [(begin, position), (position + samples, end)]
                self._holes[number : number + 1] = [hole for hole in rest if hole[1] - hole[0] > self._rounding]
                self._miss(max(position, begin) - min(position + samples, end))
                self.statistics.out_of_order += 1
                self.statistics.frames += 1
                return position
        return None

    def _snapped(self, place: int, first: int, last: int) -> int:
        if place - first <= self._rounding or last <= first:
            return first
        return last if last - place <= self._rounding else place


_NEXT = Verdict.NEXT
_SKIPPING = {Verdict.FIRST, Verdict.AHEAD}
_ONWARD = {Verdict.UNNUMBERED, Verdict.NEXT, *_SKIPPING}
_EARLIER = {Verdict.LATE, Verdict.UNNUMBERED}
_RESTARTS = {Verdict.RESTARTED, Verdict.REPLAYED}
