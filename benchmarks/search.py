"""The search for the highest number of streams that a receiver carries."""

from collections.abc import Callable, Iterable

from benchmarks.figures import Plan, Rounds

_FIRST, _MOST = 50, 3_200
_GROWTH, _LATER_GROWTH = 2.0, 1.2
"""The factor between two steps, in the first round and in those that begin where the one before it ended."""


class Searches:
    """Searches for each of several receivers, round by round.

    Attributes:
        seconds: how long one trial sends audio.
        found: the numbers.
    """

    def __init__(self, plan: Plan) -> None:
        self.seconds = plan.pick(full=2.0, quick=1.0)
        self.found = Rounds()
        self._precision = plan.pick(full=0.05, quick=0.25)
        self._begin: dict[str, int] = {}
        self._limits: dict[str, str] = {}

    def search(self, name: str, failure: Callable[[int], str]) -> None:
        """Find the highest number of this round.

        Args:
            name: the receiver's.
            failure: tries a number once; returns what it failed by, or nothing.
        """

        def passes(streams: int) -> bool:
            # What slows the machine for a moment hits one trial and not the next.
            reason = failure(streams) and failure(streams)
            if reason:
                self._limits[name] = f"at {streams} streams, {reason}"
            return not reason

        growth = _LATER_GROWTH if name in self._begin else _GROWTH
        number = highest(passes, first=self._begin.get(name, _FIRST), growth=growth, precision=self._precision)
        self.found.add(name, number)
        self._begin[name] = max(number, 1)

    def limits(self, names: Iterable[str]) -> list[str]:
        """Return why the lowest number that failed did so, for each search of the last round."""
        return [f"{name}: {self._limits.get(name, 'no number failed')}" for name in names if name in self._begin]


def highest(
    passes: Callable[[int], bool], *, first: int, most: int = _MOST, growth: float = _GROWTH, precision: float = 0.0
) -> int:
    """Find the highest number that passes, by steps until one number passes and one fails, and then by bisection.

    Args:
        passes: whether a number passes; supposed to be so for all numbers below one that does.
        first: the number to begin with.
        most: the highest number to try.
        growth: the factor between two steps.
        precision: the relative distance between the result and a number that failed.

    Returns:
        The number, or 0 if none passes.
    """
    low, high, number = 0, most + 1, first
    while high - low > max(1, precision * low):
        if passes(number):
            low = number
        else:
            high = number
        if high > most:
            number = min(max(int(low * growth), low + 1), most)
        elif low == 0:
            number = int(high / growth)
        else:
            number = (low + high) // 2
    return low
