"""Figures: what each round gave, and how two of them compare within a round."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen


@frozen
class Spread:
    """The middle of some rounds, and how far they lie apart.

    Attributes:
        median: the middle.
        low: the least.
        high: the most.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Spread":
        """Sum rounds up."""
        return cls(statistics.median(rounds), min(rounds), max(rounds))


@frozen
class Series:
    """One contender's figure in every round.

    Attributes:
        name: the contender.
        rounds: the figure, round by round.
    """

    name: str
    rounds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """The rounds in short."""
        return Spread.of(self.rounds)

    def over(self, other: "Series") -> Spread:
        """Divide by another series, each round by the same round: what slowed the machine then slowed both."""
        return Spread.of([mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True) if theirs])


@frozen(kw_only=True)
class Section:
    """Figures that may be compared with each other.

    Attributes:
        title: what was measured.
        unit: of the figures.
        series: the contenders.
        yardstick: whose figure the others are divided by; None where a ratio says nothing.
        ours: the name of this package's own figure, which is divided by each of the others.
        plotted: whether it is worth a picture.
        notes: what a reader should know.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    yardstick: str | None = None
    ours: str | None = None
    plotted: bool = False
    notes: tuple[str, ...] = ()

    def find(self, name: str | None) -> Series | None:
        """Give the series of that name, if it was measured."""
        return next((series for series in self.series if series.name == name), None)

    def over_yardstick(self, series: Series) -> Spread | None:
        """Give a series over the yardstick."""
        yardstick = self.find(self.yardstick)
        return series.over(yardstick) if yardstick is not None and any(yardstick.rounds) else None

    def ours_over(self, series: Series) -> Spread | None:
        """Give this package's own figure over a series."""
        ours = self.find(self.ours)
        return ours.over(series) if ours is not None and any(series.rounds) else None

    def document(self) -> dict[str, Any]:
        """Give all of it as JSON has it."""
        return {
            "title": self.title,
            "unit": self.unit,
            "yardstick": self.yardstick,
            "ours": self.ours,
            "notes": self.notes,
            "series": [
                {
                    "name": series.name,
                    "rounds": series.rounds,
                    **_document(series.spread),
                    "over_yardstick": _document(self.over_yardstick(series)),
                    "ours_over_it": _document(self.ours_over(series)),
                }
                for series in self.series
            ],
        }


def _document(spread: Spread | None) -> dict[str, float]:
    return {} if spread is None else {"median": spread.median, "min": spread.low, "max": spread.high}


class Rounds:
    """Gathers figures while rounds go by."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Note a contender's figure of this round."""
        self._found.setdefault(name, []).append(value)

    def series(self, names: Iterable[str] | None = None) -> tuple[Series, ...]:
        """Give what was gathered, of some contenders or of all."""
        wanted = self._found if names is None else [name for name in names if name in self._found]
        return tuple(Series(name, tuple(self._found[name])) for name in wanted)


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value that so large a share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
