"""What clients tell each other, and what becomes of it (pure)."""

import pytest

from signalwire_streams import RateLimit
from signalwire_streams.redis_rate_limit._state import Law, State, View

LIMIT = RateLimit(requests=10_000, utilization=1.0)
LAW = Law.of(LIMIT, None)


def tell(view: View, state: State, redis_now: float, now: float) -> State:
    """Tell a view's news, as the pump does."""
    news = view.news
    state = news.told_to(state, redis_now, now, view.law)
    view.told(news)
    view.hear(state, redis_now, now)
    return state


def test_a_state_is_read_as_it_was_written() -> None:
    """What is written to Redis comes back the same, and anything else there is a ValueError."""
    state = State(cuts=3, closed_until=1.5, cut_at=0.25, rate_before=10.0, pause=2.0, requests=100)

    assert State.read(state.text()) == State.read(state.text().encode()) == state
    for junk in ("hello", '{"speed": 3}', "[1]", "7"):
        with pytest.raises(ValueError, match=r"Expecting|unexpected|mapping"):
            State.read(junk)


def test_a_refusal_pauses_cuts_and_recovers() -> None:
    """A refusal closes the gate, cuts the rate by 30 in 100, and the rate then grows to what it was."""
    state = State().cut(100.0, LAW, pause=1.0)

    assert state.closed_until == 101.0
    assert state.rate(100.0, LAW) == pytest.approx(LAW.rate * 0.7)
    rates = [state.rate(100.0 + second, LAW) for second in range(60)]
    assert rates == sorted(rates)
    assert rates[-1] == LAW.rate
    assert state.rate(90.0, LAW) == pytest.approx(LAW.rate * 0.7), "Redis' own clock was set back"


def test_pauses_grow_while_nothing_is_served() -> None:
    """A pause is one second at first, doubles up to twenty while nothing is served, and then begins anew."""
    state, now, pauses = State(), 0.0, []
    for _ in range(7):
        pauses.append(state.next_pause(served=False))
        state = state.cut(now, LAW, pauses[-1])

    assert pauses == [1, 2, 4, 8, 16, 20, 20]
    assert state.next_pause(served=True) == 1
    assert state.rate(0.0, LAW) >= 0.05


def test_many_refusals_of_one_moment_are_one_cut() -> None:
    """Two clients that are refused at the same time cut the rate once, and what was sent before cuts no more."""
    one, other, state = View(LIMIT), View(LIMIT), State()
    for view in (one, other):
        view.hear(state, 1000.0, 5.0)
        view.throttled(5.2, sent_at=5.1, retry_after=None)

    state = tell(one, state, 1000.3, 5.3)
    state = tell(other, state, 1000.4, 5.4)

    assert state.cuts == 1
    assert state.closed_until == pytest.approx(1001.3)
    one.throttled(6.5, sent_at=5.25, retry_after=None)
    assert not one.has_news
    other.throttled(6.5, sent_at=6.4, retry_after=None)
    assert tell(other, state, 1001.5, 6.5).cuts == 2


def test_a_client_hears_of_a_cut_it_did_not_make() -> None:
    """A refusal of what was sent before a client heard of another's cut is not a second one."""
    view = View(LIMIT)
    view.hear(State(epoch="e"), 1000.0, 5.0)
    view.hear(State(epoch="e", cuts=1, cut_at=1001.0, rate_before=900.0, pause=1.0), 1001.0, 6.0)

    view.throttled(6.1, sent_at=5.9, retry_after=None)
    assert not view.has_news
    view.throttled(7.1, sent_at=7.0, retry_after=None)
    assert view.news.pause == 2.0


def test_the_space_says_how_long() -> None:
    """A Retry-After closes the gate for so long, for all clients, and here at once."""
    view, state = View(LIMIT), State(epoch="e")
    view.hear(state, 1000.0, 5.0)

    view.throttled(5.0, sent_at=4.9, retry_after=30.0)
    view.throttled(6.0, sent_at=4.9, retry_after=10.0)

    assert view.gate_wait(6.0) == 29.0
    state = tell(view, state, 1001.0, 6.0)
    assert state.closed_until == pytest.approx(1030.0)
    other = View(LIMIT)
    other.hear(state, 1001.0, 500.0)
    assert other.gate_wait(500.0) == pytest.approx(29.0)
    assert other.gate_wait(529.1) == 0


def test_clients_need_not_agree_about_the_time() -> None:
    """Only the time that passes is a client's own, so clocks that are far apart see the same gate and rate."""
    state = State(cuts=1, closed_until=1005.0, cut_at=1000.0, rate_before=LAW.rate)
    views = [View(LIMIT), View(LIMIT)]
    for view, now in zip(views, (3.0, 1e9), strict=True):
        view.hear(state, 1002.0, now)

    assert views[0].gate_wait(4.0) == views[1].gate_wait(1e9 + 1) == 2.0
    assert views[0].rate(4.0) == pytest.approx(views[1].rate(1e9 + 1))


def test_what_redis_forgot_is_told_again() -> None:
    """A Redis that lost its memory is told of the gate, the cut and the limit that were known before."""
    view = View(LIMIT)
    known = State(cuts=2, closed_until=1010.0, cut_at=1000.0, rate_before=900.0, pause=4.0, requests=5000)
    view.hear(known, 1001.0, 5.0)
    view.hear(State(epoch="new"), 1002.0, 6.0)

    assert view.gate_wait(6.0) == pytest.approx(8.0)

    state = tell(view, State(epoch="new"), 1002.0, 6.0)

    assert (state.epoch, state.cuts, state.cut_at, state.pause, state.requests) == ("new", 2, 1000.0, 4.0, 5000)
    assert view.gate_wait(6.0) == pytest.approx(8.0)
    assert not view.has_news
    later = State(epoch="x", cuts=1, cut_at=1500.0, rate_before=100.0, requests=7000)
    assert later.remembering(known).cut_at == 1500.0
    assert later.remembering(known).requests == 7000


def test_what_comes_up_while_telling_is_told_the_next_time() -> None:
    """News from while the last ones were on their way are not lost."""
    view = View(LIMIT)
    view.throttled(1.0, sent_at=0.5, retry_after=3.0)
    first = view.news
    view.served(5000)

    view.told(first)

    assert view.has_news
    assert view.news.advertised == 5000


def test_the_limit_that_the_space_tells() -> None:
    """It is told once, lowers the rate of all, and can be raised again up to the configured one."""
    view = View(LIMIT)
    view.served(10_000)
    view.served(None)
    assert not view.has_news

    view.served(5000)
    state = tell(view, State(epoch="e"), 1000.0, 5.0)
    assert (state.requests, view.law) == (5000, Law.of(LIMIT, 5000))
    view.served(5000)
    assert not view.has_news

    view.served(20_000)
    tell(view, state, 1000.0, 5.0)
    assert view.law == LAW
