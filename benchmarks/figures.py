"""Figures: one value per contender and round, and how contenders compare within a round."""

import random
import resource
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import field, frozen

_Choice = TypeVar("_Choice")
_PER_MEGABYTE = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # the unit of ru_maxrss


class NotMeasuredError(Exception):
    """A family can't be measured here; the message says why."""


@frozen(kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        quick: only check that everything works; the figures are worth little.
        loops: the event loops to measure with; the first is the one that all families use.
        seed: of the order of the contenders.
    """

    quick: bool = False
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    seed: int = 0

    @property
    def long_rounds(self) -> int:
        """Rounds of measurements that take minutes; odd, so that the median is a round that happened."""
        return self.pick(full=3, quick=1)

    def pick(self, *, full: _Choice, quick: _Choice) -> _Choice:
        """Return the size for this plan."""
        return quick if self.quick else full

    def shuffled(self, choices: Iterable[_Choice], *turn: object) -> list[_Choice]:
        """Return them in an order of this turn, so that no contender always runs after the same other one."""
        ordered = list(choices)
        random.Random(f"{self.seed} {turn}").shuffle(ordered)  # noqa: S311  (an order is no secret)
        return ordered


@frozen
class Spread:
    """The median, minimum and maximum of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def from_rounds(cls, rounds: Sequence[float]) -> "Spread":
        """Summarize rounds."""
        return cls(statistics.median(rounds), min(rounds), max(rounds))


@frozen
class Series:
    """The figure of one contender in every round."""

    name: str
    rounds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """The rounds in short."""
        return Spread.from_rounds(self.rounds)

    def over(self, other: "Series") -> Spread:
        """Divide by another series, round by round: what slowed the machine then slowed both."""
        ratios = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True) if theirs]
        return Spread.from_rounds(ratios)


@frozen(kw_only=True)
class Section:
    """Figures that may be compared with each other.

    Attributes:
        title: what was measured.
        unit: the unit of the figures.
        series: the contenders.
        baseline: the contender by whose figure the others are divided; None where a ratio says nothing.
        ours: the name of this package's own figure, which is divided by each of the others.
        aims: what this package should reach, by the name of the series: a ratio, or without a baseline a figure.
        beside: further figures of the same series, each shown as one more column: as a ratio if it has a baseline.
        plotted: whether it is plotted.
        notes: what a reader should know.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    baseline: str | None = None
    ours: str | None = None
    aims: Mapping[str, str] = field(factory=dict)
    beside: tuple["Section", ...] = ()
    plotted: bool = False
    notes: tuple[str, ...] = ()

    def find(self, name: str | None) -> Series | None:
        """Return the series of that name, if it was measured."""
        return next((series for series in self.series if series.name == name), None)

    def over_baseline(self, series: Series) -> Spread | None:
        """Return the ratio of a series to the baseline."""
        baseline = self.find(self.baseline)
        return series.over(baseline) if baseline is not None and any(baseline.rounds) else None

    def ours_over(self, series: Series) -> Spread | None:
        """Return the ratio of this package's own figure to a series."""
        ours = self.find(self.ours)
        return ours.over(series) if ours is not None and any(series.rounds) else None

    def document(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            "baseline": self.baseline,
            "ours": self.ours,
            "aims": dict(self.aims),
            "beside": [section.document() for section in self.beside],
            "notes": self.notes,
            "series": [
                {
                    "name": series.name,
                    "rounds": series.rounds,
                    **_document(series.spread),
                    "over_baseline": _document(self.over_baseline(series)),
                    "ours_over_it": _document(self.ours_over(series)),
                }
                for series in self.series
            ],
        }


def _document(spread: Spread | None) -> dict[str, float]:
    return {} if spread is None else {"median": spread.median, "min": spread.low, "max": spread.high}


class Rounds:
    """Collects figures round by round."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """Add a contender's figure of this round."""
        self._found.setdefault(name, []).append(float(value))

    def series(self, names: Iterable[str] | None = None) -> tuple[Series, ...]:
        """Return what was collected, of some contenders or of all."""
        wanted = self._found if names is None else [name for name in names if name in self._found]
        return tuple(Series(name, tuple(self._found[name])) for name in wanted)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def cpu() -> float:
    """Return the CPU seconds that this process has used in all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def page_faults() -> int:
    """Return how often this process has touched a page that it did not have yet."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_memory() -> float:
    """Return the maximum memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MEGABYTE
