"""How long to wait before another try."""

from collections.abc import Callable

_MAX_DOUBLINGS = 32


def backoff(spread: tuple[float, float], tries: int, random: Callable[[], float]) -> float:
    """Full jitter: anywhere from 0 to the smaller of the cap and base·2ⁿ.

    Args:
        spread: base and cap, in seconds.
        tries: how often was waited before, n.
        random: gives numbers from 0 to 1.
    """
    base, cap = spread
    return float(random() * min(cap, base * 2 ** min(tries, _MAX_DOUBLINGS)))


def at_least(asked: float, jitter: float) -> float:
    """Wait what was asked for and some more, never less, so that not everyone comes back at once.

    The jitter on top is held to a tenth of what was asked, or to its own size where nothing was asked.
    """
    return asked + min(jitter, max(asked * 0.1, 0.05)) if asked else jitter
