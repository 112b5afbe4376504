"""How long to measure."""

from typing import TypeVar

from attrs import frozen

_Choice = TypeVar("_Choice")


@frozen(kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        quick: only see that everything works; the figures are worth little.
        loops: which event loops to measure with; the first is the one that all families use.
    """

    quick: bool = False
    loops: tuple[str, ...] = ("asyncio", "uvloop")

    @property
    def long_rounds(self) -> int:
        """How often what takes minutes is repeated; odd, so that the median is a round that happened."""
        return self.pick(full=5, quick=1)

    def pick(self, *, full: _Choice, quick: _Choice) -> _Choice:
        """Choose a size."""
        return quick if self.quick else full
