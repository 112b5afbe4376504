"""Any sequence of events: a call ends, sends a bounded number of times, and never doubles what it must not."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import RetryPolicy
from signalwire_streams.middleware._retry import REJECTED_STOPS, RetryBudget, RetryState
from signalwire_streams.models import AttemptResult, Operation, RetryDecision

AMBIGUOUS = {
    AttemptResult.NO_RESPONSE,
    AttemptResult.MALFORMED,
    AttemptResult.SESSION_FAILED,
    AttemptResult.SERVER_FAULT,
    AttemptResult.ACCEPTED,
}
SUCCESSES = {
    RetryDecision.SUCCEED,
    RetryDecision.ALREADY_STARTED,
    RetryDecision.ALREADY_STOPPED,
    RetryDecision.SUCCEED_WITHOUT_SID,
}
STARTS = {Operation.CONFERENCE_START, Operation.CALL_START, Operation.UNNAMED_START}


def possible(kind: Operation) -> list[AttemptResult]:
    """Return the results that a request of this kind can have."""
    never = {AttemptResult.CANCELLED}
    if kind not in STARTS:
        never.add(AttemptResult.DUPLICATE_NAME)
    if not kind.is_stop:
        never |= set(REJECTED_STOPS)
    return [event for event in AttemptResult if event not in never]


class Told(list[tuple[AttemptResult, RetryDecision]]):
    """The results and decisions of one call, in order."""

    @property
    def sends(self) -> int:
        return len(self)

    @property
    def end(self) -> RetryDecision:
        return self[-1][1]

    def resends_after_doubt(self) -> int:
        """Count the attempts that may have reached the Space after an ambiguous one."""
        doubtful = [number for number, (event, _) in enumerate(self) if event in AMBIGUOUS]
        return self.sends - 1 - doubtful[0] if doubtful else 0


def play(
    kind: Operation,
    policy: RetryPolicy,
    events: Sequence[AttemptResult],
    asked: Sequence[float | None],
    chance: Random,
    budget: RetryBudget,
) -> Told:
    """Perform a call whose attempts end so, over and over, and take a second each."""
    now = 0.0
    retrying = RetryState(policy, kind, budget, chance.random, policy.deadline)
    told = Told()
    while True:
        number = len(told)
        now += 1.0
        event, wait = events[number % len(events)], asked[number % len(asked)]
        decision = retrying.decide(event, now, wait)
        told.append((event, decision.action))
        assert decision.delay >= 0
        if decision.is_final:
            return told
        if event is not AttemptResult.STALE_CONNECTION:
            assert decision.delay >= (wait or 0.0)
        now += decision.delay
        assert now < policy.deadline


def check(kind: Operation, policy: RetryPolicy, told: Told) -> None:
    most = policy.max_attempts + policy.max_connect_retries + policy.max_throttle_retries
    most += any(action is RetryDecision.RETRY_IMMEDIATELY_ONCE for _, action in told)  # which counts as none of them
    assert told.sends <= most
    doubtful = any(event in AMBIGUOUS for event, _ in told)
    if kind is Operation.UNNAMED_START or (kind is Operation.CALL_START and not policy.resend_call_starts):
        assert told.resends_after_doubt() == 0
    if kind in STARTS:
        assert sum(event in AMBIGUOUS for event, _ in told) <= 1 + policy.max_resends
        assert sum(action is RetryDecision.RESEND for _, action in told) <= policy.max_resends
        assert told.end in {*SUCCESSES, RetryDecision.FAIL, RetryDecision.UNKNOWN}
        if doubtful:
            assert told.end is not RetryDecision.FAIL
        else:
            assert told.end is not RetryDecision.UNKNOWN
    else:
        assert told.end is not RetryDecision.UNKNOWN
    if told.end is RetryDecision.ALREADY_STARTED:
        assert kind in STARTS
        assert doubtful
    if told.end is RetryDecision.ALREADY_STOPPED:
        assert kind.is_stop
        last = told[-1][0]
        assert doubtful or kind in REJECTED_STOPS.get(last, ())
    for event, action in told:
        if event is AttemptResult.DONE:
            assert action is RetryDecision.SUCCEED


@given(data=st.data(), kind=st.sampled_from(Operation), seed=st.integers(min_value=0, max_value=2**32))
def test_any_sequence_of_results_keeps_the_promises(data: st.DataObject, kind: Operation, seed: int) -> None:
    """Attempts are bounded, the call ends, and no ambiguous start is resent without a name that protects it."""
    policy = RetryPolicy(
        max_attempts=data.draw(st.integers(1, 5)),
        max_connect_retries=data.draw(st.integers(0, 4)),
        max_throttle_retries=data.draw(st.integers(0, 7)),
        max_resends=data.draw(st.integers(0, 3)),
        resend_call_starts=data.draw(st.booleans()),
        deadline=data.draw(st.floats(1, 500)),
    )
    events = data.draw(st.lists(st.sampled_from(possible(kind)), min_size=1, max_size=20))
    asked = data.draw(st.lists(st.none() | st.floats(0, 70), min_size=1, max_size=5))
    budget = RetryBudget(data.draw(st.integers(0, 500)))
    check(kind, policy, play(kind, policy, events, asked, Random(seed), budget))  # noqa: S311
    assert 0 <= budget.tokens <= 500


@pytest.mark.parametrize("kind", Operation)
def test_thousands_of_random_calls_keep_the_promises(kind: Operation) -> None:
    chance = Random(20180925)  # noqa: S311
    budget = RetryBudget()
    troubles = [event for event in possible(kind) if event is not AttemptResult.DONE]
    for _ in range(2000):
        budget.refund(1)
        events = [
            chance.choice(
                [*troubles, *[AttemptResult.THROTTLED, AttemptResult.NOT_SENT, AttemptResult.STALE_CONNECTION] * 3]
            )
            for _ in range(20)
        ]
        told = play(kind, RetryPolicy(), events, [None, None, 0.0, 0.5], chance, budget)
        check(kind, RetryPolicy(), told)
        assert told.sends <= 12


@pytest.mark.parametrize("kind", Operation)
def test_call_with_the_same_result_for_ever_ends(kind: Operation) -> None:
    """A call to which the same happens again and again ends after at most seven sends."""
    for event in possible(kind):
        told = play(kind, RetryPolicy(deadline=1e6), [event], [None], Random(7), RetryBudget())  # noqa: S311
        assert told.sends <= 7
        check(kind, RetryPolicy(), told)
