"""Chunk numbers of one track: frames that are missing, repeated or late, and numbering that restarts. Pure.

A number far from the last ones is not trusted until the next frame follows on it (RFC 3550, appendix A.1, does so for
RTP). `TrackStatistics` and `TrackTimeline` both decide by this tracker, so both report the same.
"""

from enum import Enum, auto
from zlib import crc32

from attrs import define, field

WINDOW = 64
"""How many of the last numbers are remembered."""
FARTHEST = 3_000
"""Chunks, a minute of audio: no connection that stays up loses more at once."""
REPLAY = 8
"""How many repeated frames, in order and from the first one on, are new frames of a numbering that restarted."""

_SLOT, _BITS = WINDOW - 1, (1 << WINDOW) - 1


class Verdict(Enum):
    """What a frame's number says about it."""

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


@define(eq=False)
class SequenceTracker:
    """The numbers of one track.

    A frame is repeated if both its number and its timestamp were seen among the last 64 numbers; a frame without a
    number, if its timestamp was seen with the same payload. The payloads of a numbering's first eight frames are
    compared as well: one that differs is new audio, and the numbering restarted. A resend of at least the first eight
    frames, in order and without another frame between them, cannot be told from a restart with the same audio within
    the first 64 frames, and is taken for one. A restart after fewer than eight frames, with the same timestamps and
    the same audio (such as silence), cannot be told from a resend, and is taken for that.

    Attributes:
        skipped: how many numbers before the last frame are missing; valid after `Verdict.AHEAD` and `Verdict.FIRST`.
        replayed: how many frames before the last one turned out to be new; valid after `Verdict.REPLAYED`.
    """

    skipped: int = field(init=False, default=0)
    replayed: int = field(init=False, default=0)
    _next: int | None = field(init=False, default=None)  # the number that follows the highest one
    _lowest: int = field(init=False, default=0)  # of the current numbering
    _seen: int = field(init=False, default=1)  # one bit for each of the last numbers, the lowest for the last
    _stamps: list[int | None] = field(init=False, factory=lambda: [None] * WINDOW)  # the timestamps of those seen
    _frames: int = field(init=False, default=0)
    _doubted: tuple[int, int] | None = field(init=False, default=None)  # which number, as which frame, would confirm
    _doubted_frame: tuple[int | None, int] = field(init=False, default=(None, 0))  # its timestamp and digest
    _digests: list[int] = field(init=False, factory=lambda: [0] * REPLAY)  # of the numbering's first payloads
    _ordinals: dict[tuple[int, int], int] = field(init=False, factory=dict)  # of unnumbered frames, as `_ordinal`
    _ordinal: int = field(init=False, default=0)
    _replay: tuple[int, int] | None = field(init=False, default=None)  # which number, as which frame, would continue

    @property
    def is_replaying(self) -> bool:
        """Whether the last frame was a repeated one that may turn out to be new."""
        return self._replay is not None and self._replay[1] == self._frames + 1

    def note(self, chunk: int | None, timestamp: int | None, payload: bytes | int) -> Verdict:
        """Return what a frame is, and remember it.

        Args:
            chunk: its number.
            timestamp: its timestamp.
            payload: its audio; or, if that is not known, the length in bytes.
        """
        self._frames += 1
        if chunk is None:
            return self._note_unnumbered(timestamp, payload)
        if chunk == self._next:
            self._next = chunk + 1
            self._seen = (self._seen << 1 | 1) & _BITS
            self._stamps[chunk & _SLOT] = timestamp
            if chunk < self._lowest + REPLAY:
                self._digests[chunk % REPLAY] = _digest(payload)
            return _NEXT
        return self._note_other(chunk, timestamp, _digest(payload))

    def _note_other(self, chunk: int, timestamp: int | None, digest: int) -> Verdict:
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
                    verdict = self._note_repeated(chunk, is_first=is_first, is_new=not is_same)
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

    def _note_unnumbered(self, timestamp: int | None, payload: bytes | int) -> Verdict:
        if timestamp is None:
            return Verdict.UNNUMBERED
        seen, frame = self._ordinals, (timestamp, _digest(payload))
        if (ordinal := seen.get(frame)) is None:
            self._ordinal += 1
            seen[frame] = self._ordinal
            if len(seen) > WINDOW:
                del seen[next(iter(seen))]
            return Verdict.UNNUMBERED
        verdict = self._note_repeated(ordinal, is_first=ordinal == 1 and ordinal < self._ordinal)
        if verdict is Verdict.REPLAYED:
            self._ordinals = {frame: number for frame, number in seen.items() if number <= REPLAY}
            self._ordinal = REPLAY
        return verdict

    def _note_repeated(self, number: int, *, is_first: bool, is_new: bool = False) -> Verdict:
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
