"""How long a call waits before another try."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.middleware._retry import at_least, full_jitter


@pytest.mark.parametrize(("tries", "most"), [(0, 0.2), (1, 0.4), (2, 0.8), (4, 3.2), (5, 5.0), (10, 5.0), (10**9, 5.0)])
def test_full_jitter_doubles_up_to_the_maximum(tries: int, most: float) -> None:
    """The longest wait doubles with each try, and then stays at the cap."""
    assert full_jitter(0.2, 5.0, tries, lambda: 1.0) == pytest.approx(most)
    assert full_jitter(0.2, 5.0, tries, lambda: 0.5) == pytest.approx(most / 2)
    assert full_jitter(0.2, 5.0, tries, lambda: 0.0) == 0


def test_full_jitter_from_zero_never_waits() -> None:
    """A base of 0 never waits."""
    assert full_jitter(0, 0, 7, lambda: 1.0) == 0


@given(
    base=st.floats(0, 10),
    extra=st.floats(0, 100),
    tries=st.integers(0, 10**6),
    chance=st.floats(0, 1),
)
def test_full_jitter_stays_within_its_bounds(base: float, extra: float, tries: int, chance: float) -> None:
    """A wait is never negative and never above the cap."""
    assert 0 <= full_jitter(base, base + extra, tries, lambda: chance) <= base + extra


@pytest.mark.parametrize(
    ("asked", "jitter", "wait"),
    [(0.0, 3.0, 3.0), (10.0, 0.0, 10.0), (10.0, 0.5, 10.5), (10.0, 5.0, 11.0), (0.1, 5.0, 0.15), (60.0, 20.0, 66.0)],
)
def test_retry_after_is_a_lower_bound_with_a_tenth_of_jitter(asked: float, jitter: float, wait: float) -> None:
    """The jitter is added to it, up to a tenth of it or a twentieth of a second."""
    assert at_least(asked, jitter) == pytest.approx(wait)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_wait_is_never_shorter_than_retry_after(asked: float, jitter: float) -> None:
    assert at_least(asked, jitter) >= asked
