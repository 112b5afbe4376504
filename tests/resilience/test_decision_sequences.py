"""Any sequence of events: a call ends, sends a bounded number of times, and never doubles what it must not."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.middleware._retry import REFUSED_STOPS, RetryBudget, Retrying
from signalwire_streams.models import Action, Event, Kind

AMBIGUOUS = {Event.BROKEN, Event.MALFORMED, Event.SESSION_FAILED, Event.SERVER_FAULT, Event.ACCEPTED}
SUCCESSES = {Action.FINISH, Action.ALREADY_STARTED, Action.ALREADY_STOPPED, Action.BY_NAME}
STARTS = {Kind.CONFERENCE_START, Kind.CALL_START, Kind.UNNAMED_START}


def possible(kind: Kind) -> list[Event]:
    """What can happen to a request of this kind."""
    never = {Event.CANCELLED}
    if kind not in STARTS:
        never.add(Event.DUPLICATE_NAME)
    if not kind.is_stop:
        never |= set(REFUSED_STOPS)
    return [event for event in Event if event not in never]


class Told(list[tuple[Event, Action]]):
    """What happened in a call, in its order."""

    @property
    def sends(self) -> int:
        return len(self)

    @property
    def end(self) -> Action:
        return self[-1][1]

    def resends_after_doubt(self) -> int:
        """Count what may have reached the Space after an attempt that may have been carried out."""
        doubtful = [number for number, (event, _) in enumerate(self) if event in AMBIGUOUS]
        return self.sends - 1 - doubtful[0] if doubtful else 0


def play(
    kind: Kind,
    policy: RetryPolicy,
    events: Sequence[Event],
    asked: Sequence[float | None],
    chance: Random,
    budget: RetryBudget,
) -> Told:
    """Perform a call whose attempts end so, over and over, and take a second each."""
    now = 0.0
    retrying = Retrying(policy, kind, budget, chance.random, policy.deadline)
    told = Told()
    while True:
        number = len(told)
        now += 1.0
        event, wait = events[number % len(events)], asked[number % len(asked)]
        decision = retrying.decide(event, now, wait)
        told.append((event, decision.action))
        assert decision.wait >= 0
        if decision.is_final:
            return told
        if event is not Event.STALE:
            assert decision.wait >= (wait or 0.0)
        now += decision.wait
        assert now < policy.deadline


def check(kind: Kind, policy: RetryPolicy, told: Told) -> None:
    most = 1 + (policy.max_attempts - 1) + policy.unsent_attempts + policy.throttle_waits
    assert told.sends <= most
    doubtful = any(event in AMBIGUOUS for event, _ in told)
    if kind is Kind.UNNAMED_START or (kind is Kind.CALL_START and not policy.resend_call_starts):
        assert told.resends_after_doubt() == 0
    if kind in STARTS:
        assert sum(event in AMBIGUOUS for event, _ in told) <= 1 + policy.resends
        assert sum(action is Action.RESEND for _, action in told) <= policy.resends
        assert told.end in {*SUCCESSES, Action.FAIL, Action.UNKNOWN}
        if doubtful:
            assert told.end is not Action.FAIL
        else:
            assert told.end is not Action.UNKNOWN
    else:
        assert told.end is not Action.UNKNOWN
    if told.end is Action.ALREADY_STARTED:
        assert kind in STARTS
        assert doubtful
    if told.end is Action.ALREADY_STOPPED:
        assert kind.is_stop
        last = told[-1][0]
        assert doubtful or (last in REFUSED_STOPS and REFUSED_STOPS[last][kind] is Action.ALREADY_STOPPED)
    for event, action in told:
        if event is Event.DONE:
            assert action is Action.FINISH


@given(data=st.data(), kind=st.sampled_from(Kind), seed=st.integers(min_value=0, max_value=2**32))
def test_any_call_keeps_the_promises(data: st.DataObject, kind: Kind, seed: int) -> None:
    """Sends are bounded, an end is reached, and no start in doubt is sent again without a name that protects it."""
    policy = RetryPolicy(
        max_attempts=data.draw(st.integers(1, 5)),
        unsent_attempts=data.draw(st.integers(0, 4)),
        throttle_waits=data.draw(st.integers(0, 7)),
        resends=data.draw(st.integers(0, 3)),
        resend_call_starts=data.draw(st.booleans()),
        deadline=data.draw(st.floats(1, 500)),
    )
    events = data.draw(st.lists(st.sampled_from(possible(kind)), min_size=1, max_size=20))
    asked = data.draw(st.lists(st.none() | st.floats(0, 70), min_size=1, max_size=5))
    budget = RetryBudget(data.draw(st.integers(0, 500)))
    check(kind, policy, play(kind, policy, events, asked, Random(seed), budget))  # noqa: S311
    assert 0 <= budget.tokens <= 500


@pytest.mark.parametrize("kind", Kind)
def test_thousands_of_calls_keep_the_promises(kind: Kind) -> None:
    """Under the default policy, and one budget for all, two thousand calls through any trouble keep the promises."""
    chance = Random(20180925)  # noqa: S311
    budget = RetryBudget()
    troubles = [event for event in possible(kind) if event is not Event.DONE]
    for _ in range(2000):
        budget.succeed(0)
        events = [chance.choice([*troubles, *[Event.THROTTLED, Event.UNSENT, Event.STALE] * 3]) for _ in range(20)]
        told = play(kind, RetryPolicy(), events, [None, None, 0.0, 0.5], chance, budget)
        check(kind, RetryPolicy(), told)
        assert told.sends <= 12


@pytest.mark.parametrize(("kind", "event"), [(kind, event) for kind in Kind for event in possible(kind)])
def test_the_same_event_for_ever_ends(kind: Kind, event: Event) -> None:
    """A call to which the same happens again and again ends after at most seven sends."""
    told = play(kind, RetryPolicy(deadline=1e6), [event], [None], Random(7), RetryBudget())  # noqa: S311
    assert told.sends <= 7
    check(kind, RetryPolicy(), told)
