"""How long a call waits before another try."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.middleware._retry import at_least, backoff


@pytest.mark.parametrize(("tries", "most"), [(0, 0.2), (1, 0.4), (2, 0.8), (4, 3.2), (5, 5.0), (10, 5.0), (10**9, 5.0)])
def test_the_backoff_doubles_up_to_its_cap(tries: int, most: float) -> None:
    """The longest wait doubles with each try, and then stays at the cap."""
    assert backoff((0.2, 5.0), tries, lambda: 1.0) == pytest.approx(most)
    assert backoff((0.2, 5.0), tries, lambda: 0.5) == pytest.approx(most / 2)
    assert backoff((0.2, 5.0), tries, lambda: 0.0) == 0


def test_no_base_is_no_wait() -> None:
    """A base of 0 never waits."""
    assert backoff((0, 0), 7, lambda: 1.0) == 0


@given(
    base=st.floats(0, 10),
    extra=st.floats(0, 100),
    tries=st.integers(0, 10**6),
    chance=st.floats(0, 1),
)
def test_the_backoff_is_within_its_bounds(base: float, extra: float, tries: int, chance: float) -> None:
    """A wait is never negative and never above the cap."""
    assert 0 <= backoff((base, base + extra), tries, lambda: chance) <= base + extra


@pytest.mark.parametrize(
    ("asked", "jitter", "wait"),
    [(0.0, 3.0, 3.0), (10.0, 0.0, 10.0), (10.0, 0.5, 10.5), (10.0, 5.0, 11.0), (0.1, 5.0, 0.15), (60.0, 20.0, 66.0)],
)
def test_what_is_asked_is_a_floor(asked: float, jitter: float, wait: float) -> None:
    """The jitter goes on top of what was asked, up to a tenth of it, or a twentieth of a second."""
    assert at_least(asked, jitter) == pytest.approx(wait)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_wait_is_never_less_than_asked(asked: float, jitter: float) -> None:
    """Nobody comes back sooner than asked."""
    assert at_least(asked, jitter) >= asked
