"""How much of the sent audio the caller has heard: an estimate from its pace and from returned marks. Pure.

Times are measured where the audio is sent, as if it were played at once: a clear message takes as long to arrive as the
audio did, so the delay cancels out. The travel time of a returned mark is subtracted.
"""

from collections import deque

from attrs import define, field

_UNKNOWN_LATENCY = 0.5  # seconds: that of a Space from which no mark has returned yet
_STALL = 5.0  # seconds: a Space that returns its first mark later than that returns none
_MILLISECONDS = 1000
_ROUNDING = 1e-6


@define(eq=False)
class Utterance:
    """Audio that belongs together, of which the caller hears all or a part; in samples.

    Attributes:
        begin: position of its first sample.
        accepted: audio that was passed to be played, sent or not.
        sent: audio that was sent.
        heard: audio that was heard; 0 until it is known for good.
        is_cleared: whether the rest was dropped.
    """

    begin: int
    accepted: float = 0.0
    sent: int = 0
    heard: int = 0
    is_cleared: bool = False
    _padding: deque[tuple[int, int]] = field(init=False, factory=deque)  # position and length of what fills up frames

    def pad(self, begin: int, samples: int, position: int) -> None:
        """Add silence that fills up a frame, when all was heard up to a position."""
        while self._padding and sum(self._padding[0]) <= position:
            self.begin += self._padding.popleft()[1]
        self._padding.append((begin, samples))

    def clear(self, position: int) -> None:
        """Drop what was not heard, when all was heard up to a position."""
        padding = sum(min(samples, position - at) for at, samples in self._padding if at < position)
        self.heard = min(max(0, position - self.begin - padding), self.sent)
        self.is_cleared = True


@define(eq=False)
class SentMark:
    """A mark that was sent.

    Attributes:
        position: end of the audio before it, in samples.
        due_at: when that audio has been played.
    """

    position: int
    due_at: float


class HeardAudio:
    """Counts the samples of one stream that were sent and that were heard. Times are in seconds.

    Attributes:
        utterance: the one that audio is added to.
        dropped: audio that the last `clear` dropped, sent or not.
    """

    def __init__(self, sample_rate: int) -> None:
        self.utterance = Utterance(0)
        self.dropped: float = 0.0
        self._unheard: deque[Utterance] = deque()  # finished ones
        self._rate = sample_rate
        self._sent = 0  # without what was cleared
        self._ends_at = float("-inf")  # when all sent audio will have been played
        self._marks: deque[SentMark] = deque()  # whose return will improve the estimate
        self._latency: float | None = None  # the shortest round trip of a mark

    def send(self, samples: int, now: float, *, padding: int = 0) -> None:
        """Count audio that is sent now, the last samples of which are padding."""
        self._sent += samples
        self._ends_at = max(self._ends_at, now) + samples / self._rate
        self.utterance.sent += samples - padding
        if padding:
            self.utterance.pad(self._sent - padding, padding, self.position(now))

    def waiting(self, now: float) -> float:
        """Return the seconds of audio that were sent and not played."""
        return max(0.0, self._ends_at - now)

    def position(self, now: float) -> int:
        """Return the samples that were played since the stream's start."""
        played = self._sent - round(self.waiting(now) * self._rate)
        # Audio after a mark was played only while the mark travelled back.
        if self._marks and (self._latency is not None or now <= self._marks[0].due_at + _STALL):
            latency = _UNKNOWN_LATENCY if self._latency is None else self._latency
            played = min(played, self._marks[0].position + round(latency * self._rate))
        return max(0, played)

    def milliseconds(self, samples: float) -> int:
        return int(samples * _MILLISECONDS / self._rate + _ROUNDING)

    def end_utterance(self) -> Utterance:
        """Begin another utterance; return the one that ends here; how much of it was heard is not known yet."""
        ended, self.utterance = self.utterance, Utterance(self._sent)
        self._unheard.append(ended)
        return ended

    def on_heard(self, utterance: Utterance) -> None:
        """Record that all of an utterance that has ended was heard, unless it was cleared."""
        if utterance in self._unheard:
            self._unheard.remove(utterance)
            utterance.heard = utterance.sent

    def clear(self, now: float) -> int:
        """Drop what was not played. Return the samples that were heard of the utterance that was being heard."""
        self._sent = self.position(now)
        self._ends_at = now
        self._marks.clear()
        cleared = [*self._unheard, self.utterance]
        for utterance in cleared:
            utterance.clear(self._sent)
        self.dropped = sum(one.accepted - one.heard for one in cleared)
        self._unheard.clear()
        self.utterance = Utterance(self._sent)
        sent = [utterance for utterance in cleared if utterance.sent]
        return next((one.heard for one in sent if one.heard < one.sent), sent[-1].heard if sent else 0)

    def mark(self, now: float) -> SentMark:
        """Add a mark that is sent now."""
        mark = SentMark(self._sent, max(self._ends_at, now))
        self._marks.append(mark)
        return mark

    def forget(self, mark: SentMark) -> None:
        """Remove a mark, unless it was cleared."""
        if mark in self._marks:
            self._marks.remove(mark)

    def on_mark(self, mark: SentMark, now: float) -> None:
        """Correct the times by a mark that has returned; those before it are lost."""
        if mark not in self._marks:
            return
        while self._marks.popleft() is not mark:
            pass
        late = max(0.0, now - mark.due_at)
        self._latency = late if self._latency is None else min(self._latency, late)
        remaining = (self._sent - mark.position) / self._rate
        soonest = now - self._latency + remaining
        self._ends_at = min(max(self._ends_at, soonest), now + remaining)
