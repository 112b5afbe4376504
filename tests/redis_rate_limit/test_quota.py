"""The quota that keeps every window within the limit, for any number of clients."""

from bisect import bisect_left
from random import Random

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import RateLimit
from signalwire_streams.middleware._rate_limit import TokenBucket
from signalwire_streams.redis_rate_limit._state import LEASE, Quota

REAL = RateLimit()


def fullest_window(times: list[float], window: float) -> int:
    times = sorted(times)
    return max((bisect_left(times, began + window) - first for first, began in enumerate(times)), default=0)


def bucket(quota: Quota, clients: int, seconds: float, forgets_at: float, chance: Random) -> list[float]:
    """Lease as fast as the bucket allows, use tokens as late as allowed, and lose the bucket once."""
    tokens, now, used = float(quota.burst), 0.0, list[float]()
    while now < seconds:
        before, now = now, now + chance.uniform(0.0, 2 * LEASE / quota.rate / clients)
        tokens = min(quota.burst, tokens + quota.rate * (now - before))
        if before < forgets_at <= now:
            tokens = float(quota.burst)
        leased = min(LEASE, int(tokens))
        tokens -= leased
        used += [now + chance.choice([0.0, quota.age]) for _ in range(leased)]
    return used


@given(
    requests=st.integers(200, 20_000),
    share=st.floats(0.5, 1.0),
    clients=st.integers(1, 20),
    forgets_at=st.floats(0, 30),
    seed=st.integers(0, 99),
)
def test_no_window_exceeds_the_limit(requests: int, share: float, clients: int, forgets_at: float, seed: int) -> None:
    """However late tokens are used, and even if Redis loses the bucket, no window holds too many."""
    limit = RateLimit(requests=requests, utilization=share)

    used = bucket(Quota.from_limit(limit), clients, 25.0, forgets_at, Random(seed))  # noqa: S311

    assert fullest_window(used, limit.window) <= limit.max_requests


def test_quota_uses_most_of_the_limit() -> None:
    quota = Quota.from_limit(REAL)

    assert quota.rate * REAL.window / REAL.max_requests == pytest.approx(0.9706, abs=0.0001)
    assert (quota.burst, quota.reserve, quota.age) == (62, 15, 0.2)


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_quota_of_tiny_limit_has_a_rate(requests: int) -> None:
    """Even a limit that leaves nothing for the rate lets a request through now and then."""
    assert Quota.from_limit(RateLimit(requests=requests, utilization=1.0)).rate == pytest.approx(
        max(0.5 / 10, (requests - 2) / 10.2)
    )


def test_share_of_one_client_of_many_has_a_request_and_a_burst() -> None:
    quota = Quota.from_limit(REAL)

    share = quota.share(quota.rate, 1_000)
    assert (share.requests, share.burst) == (12 + 1, 1)
    share = quota.share(0.5, 1_000)
    assert (share.requests, share.burst, share.window) == (1 + 1, 1, 10.0)


@pytest.mark.parametrize("clients", [1, 3, 7])
def test_shares_of_all_clients_do_not_exceed_the_quota(clients: int) -> None:
    quota = Quota.from_limit(REAL)
    paces = [TokenBucket(quota.share(quota.rate, clients)) for _ in range(clients)]

    assert sum(pace.rate for pace in paces) == pytest.approx(quota.rate, rel=0.001)
    assert sum(pace.rate for pace in paces) <= quota.rate
    bursts = 0
    for pace in paces:
        while not pace.try_acquire(0.0):
            bursts += 1
    assert bursts <= quota.burst
