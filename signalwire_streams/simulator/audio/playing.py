"""The playback clock: what the other end of a bidirectional stream sent, heard in the time that it takes (pure).

https://signalwire.com/docs/compatibility-api/cxml/voice/stream: a mark comes back when the audio before it has been
played, and at once when the audio is cleared or there is none.
"""

from collections import deque

from attrs import define, field, frozen

__all__ = ["Player"]


@frozen
class _Queued:
    """Audio, or a mark where ``mark`` is not None; times are in seconds."""

    begins: float
    ends: float
    payload: bytes = field(default=b"", repr=False)
    mark: str | None = None


@define(eq=False)
class Player:
    """Plays audio to a call.

    Attributes:
        rate: bytes that take one second; None plays at once.
        heard: what has been played so far.
    """

    rate: int | None
    heard: bytearray = field(factory=bytearray, repr=False)
    _queue: deque[_Queued] = field(init=False, factory=deque)
    _until: float = field(init=False, default=float("-inf"))

    def play(self, payload: bytes, now: float) -> None:
        """Take audio in, behind what is queued."""
        begins = max(now, self._until)
        self._until = begins if self.rate is None else begins + len(payload) / self.rate
        self._queue.append(_Queued(begins, self._until, payload))

    def mark(self, name: str, now: float) -> None:
        """Take a mark in, behind what is queued."""
        moment = max(now, self._until)
        self._queue.append(_Queued(moment, moment, mark=name))

    def clear(self, now: float) -> list[str]:
        """Forget what was not played yet; give the marks that come back for it."""
        marks = self.played(now)
        if self._queue and self.rate is not None and self._queue[0].begins < now:
            playing = self._queue[0]
            self.heard += playing.payload[: round((now - playing.begins) * self.rate)]
        marks += [queued.mark for queued in self._queue if queued.mark is not None]
        self._queue.clear()
        self._until = now
        return marks

    def played(self, now: float) -> list[str]:
        """Play up to now; give the marks that were reached."""
        marks = []
        while self._queue and self._queue[0].ends <= now:
            queued = self._queue.popleft()
            self.heard += queued.payload
            if queued.mark is not None:
                marks.append(queued.mark)
        return marks

    def next_mark(self) -> float | None:
        """Tell when the next mark will be reached."""
        return next((queued.ends for queued in self._queue if queued.mark is not None), None)
