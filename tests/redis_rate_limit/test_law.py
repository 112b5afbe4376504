"""The numbers that any number of clients keep to, so that no window holds more than the limit."""

from bisect import bisect_left
from random import Random

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import RateLimit
from signalwire_streams.middleware._rate_limit import TokenBucket
from signalwire_streams.redis_rate_limit._state import LEASE, Law

REAL = RateLimit()


def fullest_window(times: list[float], window: float) -> int:
    times = sorted(times)
    return max((bisect_left(times, began + window) - first for first, began in enumerate(times)), default=0)


def bucket(law: Law, clients: int, seconds: float, forgets_at: float, chance: Random) -> list[float]:
    """Lease as fast as the bucket allows, use each token as late as it may be, and let Redis forget the bucket once."""
    tokens, now, used = float(law.burst), 0.0, list[float]()
    while now < seconds:
        before, now = now, now + chance.uniform(0.0, 2 * LEASE / law.rate / clients)
        tokens = min(law.burst, tokens + law.rate * (now - before))
        if before < forgets_at <= now:
            tokens = float(law.burst)
        leased = min(LEASE, int(tokens))
        tokens -= leased
        used += [now + chance.choice([0.0, law.age]) for _ in range(leased)]
    return used


@given(
    requests=st.integers(200, 20_000),
    share=st.floats(0.5, 1.0),
    clients=st.integers(1, 20),
    forgets_at=st.floats(0, 30),
    seed=st.integers(0, 99),
)
def test_no_window_holds_more_than_the_limit(
    requests: int, share: float, clients: int, forgets_at: float, seed: int
) -> None:
    """However late leased tokens are used, and even where Redis forgets the bucket, no window holds too many."""
    limit = RateLimit(requests=requests, utilization=share)

    used = bucket(Law.of(limit, None), clients, 25.0, forgets_at, Random(seed))  # noqa: S311

    assert fullest_window(used, limit.window) <= limit.max_requests


def test_the_law_leaves_little_unused() -> None:
    """Of the configured share, more than 96 in 100 go out."""
    law = Law.of(REAL, None)

    assert 0.96 < law.rate * REAL.window / REAL.max_requests < 1
    assert (law.burst, law.bulk_burst, law.age) == (62, 47, 0.2)


def test_the_space_may_lower_the_limit_and_not_raise_it() -> None:
    """What the Space tells counts where it is less than what was configured."""
    assert Law.of(REAL, 99_999) == Law.of(REAL, None)
    assert Law.of(REAL, 1000) == Law.of(RateLimit(requests=1000), None)
    assert Law.of(RateLimit(requests=10, burst=5), 1).burst == 1


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_tiny_limit_still_lets_something_out(requests: int) -> None:
    """Even a limit that leaves nothing for the rate lets a request out now and then."""
    assert Law.of(RateLimit(requests=requests, utilization=1.0), None).rate > 0


@pytest.mark.parametrize("clients", [1, 3, 7])
def test_the_parts_of_all_clients_are_no_more_than_the_whole(clients: int) -> None:
    """Clients that are on their own go at the same rate together, and burst no more together."""
    law = Law.of(REAL, None)
    paces = [TokenBucket(law.part(law.rate, clients)) for _ in range(clients)]

    assert sum(pace.rate for pace in paces) == pytest.approx(law.rate, rel=0.001)
    assert sum(pace.rate for pace in paces) <= law.rate
    bursts = 0
    for pace in paces:
        while not pace.try_acquire(0.0):
            bursts += 1
    assert bursts <= law.burst
