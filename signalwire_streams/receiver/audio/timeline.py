"""Where the frames of a track belong in time, to the sample.

A frame comes with a timestamp in whole milliseconds from the stream's start and a number that counts the track's
frames. Neither can be taken literally: timestamps are rounded and may jitter, both may be missing, repeated, out of
order or absurd. What a timeline makes of them:

- A frame that follows the one before, as far as its timestamp can tell, follows it **to the sample**.
- A gap is kept, as silence. One that is longer than ``longest_gap`` is shortened to it, unless another track of the
  stream shows that so much time has passed. Where the next timestamp shows that this was no gap but one absurd
  timestamp, it is taken back, and only the frame that had it is out of place.
- A frame that comes again is dropped; one that comes late goes into the gap that it left, and is dropped where there
  is none.
- Audio that is new is never dropped: when timestamps repeat, run slow or go back, it follows what came before.

Pure; it keeps a few numbers, and no more of them however long the stream or whatever comes.

Source: https://signalwire.com/docs/compatibility-api/
"""

from collections.abc import Iterable

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver.audio.formats import AudioFormat

_MILLISECONDS = 1000
_DAY = 24 * 3600
_LIMIT = 1 << 63  # a timestamp beyond it is none, so that not even the numbers grow
_RECENT = 67  # frames, for telling repeated and late ones; a prime, so that multiples of 20 ms spread over all slots
_MOST_HOLES = 64
_RESTART = 1  # seconds: timestamps that fall behind by more have begun anew, and a jump by more may be an error


@define
class TimelineStatistics:
    """What came of a track's frames.

    Attributes:
        frames: frames that were given a place.
        gaps: how often there was a gap; the time before the first frame is one.
        gap_ms: milliseconds that are missing now; late frames make them fewer.
        capped: gaps that were too long and were shortened.
        duplicates: frames that came again and were dropped.
        out_of_order: frames that came late and were put where they belong.
        too_late: frames that came late and were dropped, because their place is taken.
        overlaps: frames that begin, by their timestamps, before the one before ends; they were put after it.
        broken: frames with bytes at the end that are no whole sample; those bytes are left out.
    """

    frames: int = 0
    gaps: int = 0
    gap_ms: float = 0.0
    capped: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    too_late: int = 0
    overlaps: int = 0
    broken: int = 0


def _is_a_gap(_: object, __: object, value: float) -> None:
    if not 0 < value <= _DAY:
        raise InvalidRequestError(f"longest_gap can't be {value!r}: it is seconds, above zero and up to a day")


def _is_tolerable(_: object, __: object, value: float) -> None:
    if not 0 <= value <= _MILLISECONDS:
        raise InvalidRequestError(f"tolerance can't be {value!r}: it is milliseconds, from 0 to {_MILLISECONDS}")


@define(eq=False)
class TrackTimeline:
    """The places of one track's frames.

    Attributes:
        format: how the audio is encoded.
        longest_gap: seconds of silence that one jump of the timestamps may make.
        tolerance: milliseconds by which a timestamp may be off without meaning anything. (The loss of a frame that is
            shorter is noticed by its number.)
        statistics: what came of the frames so far.

    Raises:
        InvalidRequestError: a number can't be right.
        UnknownEncodingError: the encoding is not known, so that nobody can tell how long a frame is.
    """

    format: AudioFormat
    longest_gap: float = field(default=60.0, validator=_is_a_gap, kw_only=True)
    tolerance: int = field(default=8, validator=_is_tolerable, kw_only=True)
    statistics: TimelineStatistics = field(init=False, factory=TimelineStatistics)
    _sample_size: int = field(init=False)
    _longest: int = field(init=False)
    _rounding: int = field(init=False)
    _slack: int = field(init=False)
    _restart: int = field(init=False)
    _next: int = field(init=False, default=0)  # the sample after the last one
    _shift: int = field(init=False, default=0)  # the place is the timestamp less this
    _before: tuple[int, int] | None = field(init=False, default=None)  # both before a jump that is not yet confirmed
    _chunk: int = field(init=False, default=0)  # the highest number; they count from 1
    _recent: list[tuple[int | None, int | None] | None] = field(init=False)
    _holes: list[tuple[int, int]] = field(init=False, factory=list)
    _missing: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        rate = self.format.sample_rate
        self._sample_size = self.format.sample_size
        self._longest = int(self.longest_gap * rate)
        self._rounding = -(-rate // _MILLISECONDS) - 1
        self._slack = max(self._rounding, self.format.samples_of(self.tolerance))
        self._restart = _RESTART * rate
        self._recent = [None] * _RECENT

    @property
    def end(self) -> int:
        """Where the next frame goes if it follows: samples from the stream's start."""
        return self._next

    def reckon(self, told: int) -> int | None:
        """Give the place of another track's timestamp by what this track knows.

        Args:
            told: the timestamp in samples.

        Returns:
            The sample, counted from the stream's start; None where this track can't tell.
        """
        place = told - self._shift
        return place if self._next and place <= self._next + self._longest else None

    def place(
        self, timestamp: int | None, chunk: int | None, size: int, *, beside: Iterable["TrackTimeline"] = ()
    ) -> int | None:
        """Give the place of a frame, and note it.

        Args:
            timestamp: milliseconds from the stream's start.
            chunk: the frame's number within its track.
            size: the payload's length in bytes.
            beside: the timelines of the stream's other tracks. They are asked how much time has passed where this
                track can't tell.

        Returns:
            The sample, counted from the stream's start, at which the frame begins; None when it is to be dropped.
        """
        samples, broken = divmod(max(0, size), self._sample_size)
        self.statistics.broken += bool(broken)
        if not samples:
            return None
        if timestamp is not None and not -_LIMIT <= timestamp < _LIMIT:
            timestamp = None
        if self._is_repeated(timestamp, chunk):
            self.statistics.duplicates += 1
            return None
        position = self._follow(samples) if timestamp is None else self._locate(timestamp, chunk, samples, beside)
        if position is None:
            self.statistics.too_late += 1
        else:
            self.statistics.frames += 1
        # A number far below the last ones is no late frame's: the Space has begun to count anew.
        if chunk is not None and not self._chunk - _RECENT <= chunk <= self._chunk:
            self._chunk = chunk
        return position

    def _is_repeated(self, timestamp: int | None, chunk: int | None) -> bool:
        number = timestamp if chunk is None else chunk
        if number is None:
            return False
        slot, identity = number % _RECENT, (chunk, timestamp)
        if self._recent[slot] == identity:
            return True
        self._recent[slot] = identity
        return False

    def _follow(self, samples: int, before: tuple[int, int] | None = None) -> int:
        position = self._next
        self._next += samples
        self._before = before
        return position

    def _locate(self, timestamp: int, chunk: int | None, samples: int, beside: Iterable["TrackTimeline"]) -> int | None:
        told = self.format.samples_of(timestamp)
        ahead = told - self._shift - self._next
        slack = self._slack
        if chunk is None:
            if ahead < -slack and (hole := self._fill(told - self._shift, samples)) is not None:
                return hole
        elif chunk > self._chunk + 1:
            slack = self._rounding  # a frame is missing: the timestamp counts, even for less than the tolerance
        elif self._chunk - _RECENT <= chunk < self._chunk and ahead < -self._rounding:
            return self._fill(told - self._shift, samples)
        if ahead < -self._slack:
            ahead = self._fall_back(told, ahead, beside)
        before = self._next, self._shift
        if ahead > self._longest or not self._next:
            ahead = self._leap(told, ahead, beside)
        if ahead > slack:
            self._pause(self._in_frames(ahead, samples))
        return self._follow(samples, before if ahead > self._restart or self._shift != before[1] else None)

    def _fall_back(self, told: int, ahead: int, beside: Iterable["TrackTimeline"]) -> int:
        """Find out how far ahead a new frame is whose timestamp is behind."""
        if self._before is not None:
            begin, shift = self._before
            if -self._slack <= told - shift - begin <= self._longest:
                self._take_back(begin, shift)
                return told - shift - begin
        self.statistics.overlaps += 1
        if -ahead <= self._restart:
            return 0  # the timestamps still count: a gap that comes makes up for it
        agreed = self._agreed(told, beside)
        self._shift = told - self._next if agreed is None else agreed
        return told - self._shift - self._next

    def _leap(self, told: int, ahead: int, beside: Iterable["TrackTimeline"]) -> int:
        """Find out how far ahead a frame is that is the first, or has a timestamp too far ahead to be believed."""
        agreed = self._agreed(told, beside)
        if agreed is not None:
            self._shift = agreed
            return told - agreed - self._next
        if ahead > self._longest:
            self.statistics.capped += 1
            self._shift += ahead - self._longest
        return min(ahead, self._longest)

    def _agreed(self, told: int, beside: Iterable["TrackTimeline"]) -> int | None:
        """Give the shift by which another track makes sense of a timestamp, if one does."""
        for other in beside:
            place = other.reckon(told)
            if place is not None and place >= self._next:
                return told - place
        return None

    def _in_frames(self, ahead: int, samples: int) -> int:
        # Where frames are all of one length that is not whole milliseconds, this makes the gap exact.
        whole = (ahead + samples // 2) // samples * samples
        return whole if abs(whole - ahead) <= self._rounding and ahead < self._longest else ahead

    def _pause(self, length: int) -> None:
        self._holes.append((self._next, self._next + length))
        del self._holes[:-_MOST_HOLES]
        self._next += length
        self.statistics.gaps += 1
        self._miss(length)

    def _take_back(self, begin: int, shift: int) -> None:
        self._miss(-sum(end - start for start, end in self._holes if start >= begin))
        kept = [hole for hole in self._holes if hole[0] < begin]
        self.statistics.gaps -= len(kept) < len(self._holes)
        self._holes, self._next, self._shift = kept, begin, shift

    def _miss(self, samples: int) -> None:
        self._missing += samples
        self.statistics.gap_ms = self._missing * _MILLISECONDS / self.format.sample_rate

    def _fill(self, place: int, samples: int) -> int | None:
        """Give the place of a late frame, if there is a hole about where it belongs; the hole gets smaller."""
        slack = min(self._slack, samples // 2)
        for number, (begin, end) in enumerate(self._holes):
            if end - begin >= samples - slack and begin - slack <= place and place + samples <= end + slack:
                position = self._snapped(place, begin, end - samples)
                rest = [(begin, position), (position + samples, end)]
                self._holes[number : number + 1] = [hole for hole in rest if hole[1] - hole[0] > self._rounding]
                self._miss(max(position, begin) - min(position + samples, end))
                self.statistics.out_of_order += 1
                return position
        return None

    def _snapped(self, place: int, first: int, last: int) -> int:
        if place - first <= self._rounding or last <= first:
            return first
        return last if last - place <= self._rounding else place
