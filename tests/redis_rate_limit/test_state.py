"""A client's copy of the shared state, and its updates (pure)."""

import pytest

from signalwire_streams import RateLimit
from signalwire_streams.middleware._rate_limit import next_pause
from signalwire_streams.redis_rate_limit._state import NO_UPDATE, LocalState, Quota, State, StateUpdate

LIMIT = RateLimit(requests=10_000, utilization=1.0)
QUOTA = Quota.from_limit(LIMIT)


def test_rate_after_cut_grows_back_to_the_quota() -> None:
    state = State(cuts=1, cut_at=100.0, rate_before=QUOTA.rate)

    assert state.rate(100.0, QUOTA) == pytest.approx(QUOTA.rate * 0.7)
    rates = [state.rate(100.0 + second, QUOTA) for second in range(60)]
    assert rates == sorted(rates)
    assert rates[-1] == QUOTA.rate
    assert state.rate(90.0, QUOTA) == pytest.approx(QUOTA.rate * 0.7), "Redis' own clock was set back"
    assert State(cuts=9, cut_at=0.0, rate_before=1e-9).rate(0.0, QUOTA) >= 0.05


def test_pauses_double_until_a_request_is_served() -> None:
    pauses = [0.0]
    for _ in range(7):
        pauses.append(next_pause(pauses[-1]))

    assert pauses[1:] == [1, 2, 4, 8, 16, 20, 20]


def test_pause_starts_again_after_a_served_request() -> None:
    state = LocalState(LIMIT)
    state.receive(State(epoch="e", cuts=1, pause=4.0), 1000.0, 5.0)

    state.on_throttled(6.0, sent_at=5.5, retry_after=None)
    assert state.update.pause == 8.0
    assert state.time_until_open(6.0) == 8.0, "this client pauses before Redis knows"
    state.on_success()
    state.on_throttled(8.0, sent_at=7.0, retry_after=None)
    assert state.update.pause == 1.0
    assert state.time_until_open(8.0) == 6.0, "the longer pause counts"


def test_rejection_of_request_sent_before_the_last_cut_is_ignored() -> None:
    """Neither after a cut of this client's own, nor after one that another client made."""
    state = LocalState(LIMIT)
    state.receive(State(epoch="e"), 1000.0, 5.0)
    state.on_throttled(5.2, sent_at=5.1, retry_after=None)
    assert state.update == StateUpdate(throttled_after=0, pause=1.0)
    state.reported(state.update)

    for sent_at in (5.15, 5.2):
        state.on_throttled(6.5, sent_at=sent_at, retry_after=None)
        assert not state.has_update
    state.receive(State(epoch="e", cuts=2, cut_at=1002.0, rate_before=900.0, pause=2.0), 1002.0, 7.0)
    state.on_throttled(7.1, sent_at=6.9, retry_after=None)
    assert not state.has_update
    state.on_throttled(8.1, sent_at=8.0, retry_after=None)
    assert state.update == StateUpdate(throttled_after=2, pause=4.0)


def test_retry_after_closes_the_gate_here_at_once() -> None:
    state = LocalState(LIMIT)
    state.receive(State(epoch="e"), 1000.0, 5.0)

    state.on_throttled(5.0, sent_at=4.9, retry_after=30.0)
    state.on_throttled(6.0, sent_at=4.9, retry_after=10.0)

    assert state.time_until_open(6.0) == 29.0
    assert state.update == StateUpdate(throttled_after=0, closed_until=35.0)
    assert state.time_until_open(35.1) == 0


def test_clients_with_different_clocks_see_the_same_gate_and_rate() -> None:
    shared = State(cuts=1, closed_until=1005.0, cut_at=1000.0, rate_before=QUOTA.rate)
    states = [LocalState(LIMIT), LocalState(LIMIT)]
    for state, now in zip(states, (3.0, 1e9), strict=True):
        state.receive(shared, 1002.0, now)

    assert states[0].time_until_open(4.0) == states[1].time_until_open(1e9 + 1) == 2.0
    assert states[0].rate(4.0) == pytest.approx(states[1].rate(1e9 + 1))


def test_update_made_while_another_is_reported_is_kept() -> None:
    state = LocalState(LIMIT)
    state.on_throttled(1.0, sent_at=0.5, retry_after=3.0)
    first = state.update
    state.on_throttled(2.0, sent_at=0.5, retry_after=9.0)

    state.reported(first)
    assert state.update.closed_until == 11.0
    state.reported(state.update)
    assert state.update is NO_UPDATE
