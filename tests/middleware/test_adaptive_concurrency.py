"""How many requests to keep under way, found out."""

from signalwire_streams.bulk._runner import LEAST, MOST, AdaptiveConcurrency, FixedConcurrency


def test_it_grows_while_answers_stay_fast() -> None:
    """Fast answers raise the number by one for each round, up to the most."""
    adaptive = AdaptiveConcurrency(limit=10.0)
    for _ in range(10):
        adaptive.record(0.05, pushed_back=False)
    assert 10.9 < adaptive.limit < 11.1

    for _ in range(60_000):
        adaptive.record(0.05, pushed_back=False)
    assert adaptive.limit == MOST


def test_it_shrinks_once_for_what_was_under_way_together() -> None:
    """A refusal for lack of capacity cuts three tenths, once for each round, and never below the least."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    for _ in range(50):
        adaptive.record(0.05, pushed_back=True)
    assert adaptive.limit == 70.0

    for _ in range(2_000):
        adaptive.record(0.05, pushed_back=True)
    assert adaptive.limit == LEAST


def test_it_shrinks_when_answers_slow_down() -> None:
    """Answers that take more than twice as long as the fastest lately are taken as a sign to do less."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    for _ in range(100):
        adaptive.record(0.05, pushed_back=False)
    grown = adaptive.limit
    for _ in range(100):
        adaptive.record(0.5, pushed_back=False)
    assert adaptive.limit < grown * 0.8


def test_it_gets_used_to_a_slow_space() -> None:
    """A Space that is slow for good is not held to what it once was."""
    adaptive = AdaptiveConcurrency(limit=8.0)
    adaptive.record(0.01, pushed_back=False)
    for _ in range(2_000):
        adaptive.record(0.3, pushed_back=False)
    assert adaptive.limit > 16


def test_a_chosen_number_stays() -> None:
    """Who chooses a number keeps it."""
    fixed = FixedConcurrency(12)
    fixed.record(9.0, pushed_back=True)
    assert fixed.limit == 12


def test_it_begins_with_32_and_cuts_at_the_first_refusal() -> None:
    """A client that is new is not slow, and is not careless either."""
    adaptive = AdaptiveConcurrency()
    assert (adaptive.limit, LEAST, MOST) == (32.0, 8, 256)
    adaptive.record(0.05, pushed_back=True)
    assert adaptive.limit == 32.0 * 0.7


def test_answers_after_a_cut_are_not_another_reason_to_cut() -> None:
    """As many answers as were allowed to be under way are passed over; the next refusal counts again."""
    adaptive = AdaptiveConcurrency(limit=100.0)
    adaptive.record(0.05, pushed_back=True)
    for _ in range(69):
        adaptive.record(0.05, pushed_back=True)
    assert adaptive.limit == 70.0
    adaptive.record(0.05, pushed_back=True)
    assert adaptive.limit == 70.0 * 0.7


def test_small_differences_are_not_slow() -> None:
    """Twice as long as the fastest, or 20 ms more than it, is still as fast as ever."""
    for fastest, usual in ((0.001, 0.020), (0.1, 0.19)):
        adaptive = AdaptiveConcurrency(limit=10.0)
        adaptive.record(fastest, pushed_back=False)
        for _ in range(10):
            adaptive.record(usual, pushed_back=False)
        assert adaptive.limit > 10.9
