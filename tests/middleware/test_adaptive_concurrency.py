"""How many requests to keep under way, found out."""

from signalwire_streams.bulk._runner import MAX_CONCURRENCY, MIN_CONCURRENCY, AdaptiveConcurrency, FixedConcurrency


def test_limit_grows_while_latency_stays_low() -> None:
    """Fast responses raise the number by one for each round, up to the most."""
    adaptive = AdaptiveConcurrency(limit=10.0)
    for _ in range(10):
        adaptive.record(0.05, overloaded=False)
    assert 10.9 < adaptive.limit < 11.1

    for _ in range(60_000):
        adaptive.record(0.05, overloaded=False)
    assert adaptive.limit == MAX_CONCURRENCY


def test_limit_shrinks_once_for_requests_in_flight_together() -> None:
    """A rejection for lack of capacity cuts three tenths, once for each round, and never below the least."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    for _ in range(50):
        adaptive.record(0.05, overloaded=True)
    assert adaptive.limit == 70.0

    for _ in range(2_000):
        adaptive.record(0.05, overloaded=True)
    assert adaptive.limit == MIN_CONCURRENCY


def test_limit_shrinks_when_latency_rises() -> None:
    """Responses that take more than twice as long as the fastest lately are taken as a sign to do less."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    for _ in range(100):
        adaptive.record(0.05, overloaded=False)
    grown = adaptive.limit
    for _ in range(100):
        adaptive.record(0.5, overloaded=False)
    assert adaptive.limit < grown * 0.8


def test_limit_grows_again_when_a_slow_space_stays_slow() -> None:
    """The baseline follows a Space that stays slow."""
    adaptive = AdaptiveConcurrency(limit=8.0)
    adaptive.record(0.01, overloaded=False)
    for _ in range(2_000):
        adaptive.record(0.3, overloaded=False)
    assert adaptive.limit > 16


def test_fixed_concurrency_ignores_what_is_recorded() -> None:
    fixed = FixedConcurrency(12)
    fixed.record(9.0, overloaded=True)
    assert fixed.limit == 12


def test_limit_starts_at_32_and_shrinks_at_the_first_rejection() -> None:
    """A client that is new is not slow, and is not careless either."""
    adaptive = AdaptiveConcurrency()
    assert (adaptive.limit, MIN_CONCURRENCY, MAX_CONCURRENCY) == (32.0, 8, 256)
    adaptive.record(0.05, overloaded=True)
    assert adaptive.limit == 32.0 * 0.7


def test_responses_in_flight_at_a_cut_do_not_cut_again() -> None:
    """Responses to requests in flight at the cut are ignored; the next rejection counts again."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    adaptive.record(0.05, overloaded=True)
    for _ in range(69):
        adaptive.record(0.05, overloaded=True)
    assert adaptive.limit == 70.0
    adaptive.record(0.05, overloaded=True)
    assert adaptive.limit == 70.0 * 0.7


def test_small_latency_differences_do_not_shrink_the_limit() -> None:
    """Twice as long as the fastest, or 20 ms more than it, is still as fast as ever."""
    for fastest, usual in ((0.001, 0.020), (0.1, 0.19)):
        adaptive = AdaptiveConcurrency(limit=10.0)
        adaptive.record(fastest, overloaded=False)
        for _ in range(10):
            adaptive.record(usual, overloaded=False)
        assert adaptive.limit > 10.9


def test_limit_shrinks_at_twice_the_lowest_latency() -> None:
    """One response of ten is fast, so that the lowest latency stays what it is."""
    for slow, shrinks in ((0.19, False), (0.3, True)):
        adaptive = AdaptiveConcurrency(limit=100.0)
        for number in range(100):
            adaptive.record(slow if number % 10 else 0.1, overloaded=False)
        assert (adaptive.limit < 100.0) is shrinks
