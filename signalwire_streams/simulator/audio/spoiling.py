"""Faults of the frames on their way: lost, doubled, reordered, broken, held back (pure).

Each takes the media frames of one slot as they were spelled and gives those that go out now, so that the numbers in
them tell what became of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from attrs import define, field

from signalwire_streams.simulator.fault_kinds import FaultKind
from signalwire_streams.simulator._faults import FaultRule

__all__ = ["Spoiling", "spoilings_of"]

_PAYLOAD: Final = '"payload": "'
_NO_BASE64: Final = "!"


class Spoiling(Protocol):
    """What happens to frames on their way."""

    def take(self, frames: Sequence[str]) -> list[str]:
        """Take the frames of one slot; give those that go out."""
        ...

    def rest(self) -> list[str]:
        """Give what is still held back at the end."""
        ...


@define(eq=False)
class _EveryNth:
    """Puts something else in the place of every n-th frame.

    Attributes:
        instead: gives what goes out in a frame's place.
        every: n.
    """

    instead: Callable[[str], list[str]]
    every: int
    _count: int = field(init=False, default=0)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        taken = []
        for frame in frames:
            self._count += 1
            taken += [frame] if self._count % self.every else self.instead(frame)
        return taken

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        return []


@define(eq=False)
class _Reordered:
    """Lets every n-th frame be overtaken by the one after it."""

    every: int
    _count: int = field(init=False, default=0)
    _held: str | None = field(init=False, default=None)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        taken = []
        for frame in frames:
            self._count += 1
            if self._held is None and self._count % self.every == 0:
                self._held = frame
            else:
                taken += [frame, *self.rest()]
        return taken

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        held, self._held = self._held, None
        return [] if held is None else [held]


@define(eq=False)
class _InBursts:
    """Holds so many frames back, and lets them go at once."""

    frames: int
    _held: list[str] = field(init=False, factory=list)

    def take(self, frames: Sequence[str]) -> list[str]:
        """See `Spoiling.take`."""
        self._held += frames
        return self.rest() if len(self._held) >= self.frames else []

    def rest(self) -> list[str]:
        """See `Spoiling.rest`."""
        held, self._held = self._held, []
        return held


_INSTEAD: Final[Mapping[FaultKind, Callable[[str], list[str]]]] = MappingProxyType(
    {
        FaultKind.FRAMES_LOST: lambda _: [],
        FaultKind.FRAMES_DOUBLED: lambda frame: [frame, frame],
        FaultKind.FRAMES_BROKEN: lambda frame: [frame.replace(_PAYLOAD, _PAYLOAD + _NO_BASE64)],
    }
)


def spoilings_of(rules: Sequence[FaultRule]) -> list[Spoiling]:
    """Make what the rules of one stream ask for, in their order."""
    spoilings: list[Spoiling] = []
    for rule in rules:
        if rule.kind is FaultKind.FRAMES_IN_BURSTS:
            spoilings.append(_InBursts(rule.settings.frames))
        elif rule.kind is FaultKind.FRAMES_REORDERED:
            spoilings.append(_Reordered(rule.settings.every))
        elif rule.kind in _INSTEAD:
            spoilings.append(_EveryNth(_INSTEAD[rule.kind], rule.settings.every))
    return spoilings
