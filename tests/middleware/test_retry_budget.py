"""The allowance for retries that all calls of a client share."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import RetryPolicy
from signalwire_streams.middleware._retry import RetryBudget, RetryState
from signalwire_streams.models import AttemptResult, Operation


def sends(budget: RetryBudget, kind: Operation, event: AttemptResult, *, heals_after: int = 10**9) -> int:
    """Count the attempts of one call, each with this result until the Space serves again."""
    retrying = RetryState(RetryPolicy(resend_call_starts=True), kind, budget, lambda: 0.0, 1e9)
    for attempt in range(1, 100):
        if retrying.decide(event if attempt <= heals_after else AttemptResult.DONE, 0.0).is_final:
            return attempt
    raise AssertionError("the call never ends")


def test_budget_starts_with_five_hundred_tokens() -> None:
    """A client begins with five hundred tokens."""
    assert RetryBudget().tokens == 500


def test_spend_takes_tokens_only_if_there_are_enough() -> None:
    """Tokens are taken when there are enough, and otherwise none."""
    budget = RetryBudget(14)
    assert budget.spend(14)
    assert budget.tokens == 0
    budget = RetryBudget(13)
    assert not budget.spend(14)
    assert budget.tokens == 13
    assert budget.spend(5)
    assert budget.tokens == 8


@pytest.mark.parametrize(
    ("tokens", "refund", "after"),
    [(100, 1, 101), (100, 14, 114), (100, 5, 105), (500, 1, 500), (495, 14, 500), (0, 1, 1)],
)
def test_refund_fills_the_budget_up_to_its_size(tokens: int, refund: int, after: int) -> None:
    budget = RetryBudget(tokens)
    budget.refund(refund)
    assert budget.tokens == after


@pytest.mark.parametrize(
    ("event", "cost", "per_call"),
    [
        (AttemptResult.UNAVAILABLE, 14, 3),
        (AttemptResult.NO_RESPONSE, 14, 3),
        (AttemptResult.NOT_SENT, 5, 4),
        (AttemptResult.THROTTLED, 5, 7),
    ],
)
@pytest.mark.parametrize("kind", [Operation.READ, Operation.STOP, Operation.CONFERENCE_START, Operation.CALL_START])
def test_budget_runs_dry_in_a_full_outage(kind: Operation, event: AttemptResult, cost: int, per_call: int) -> None:
    """In a full outage all calls together send 500 / cost requests more than one each, however many calls there are."""
    calls = 600
    budget = RetryBudget()
    counts = [sends(budget, kind, event) for _ in range(calls)]
    assert counts[0] == per_call
    assert set(counts[100:]) == {1}
    assert sum(counts) == calls + 500 // cost


def test_successes_fill_the_budget_after_an_outage() -> None:
    """Each call earns one token, so retries return little by little."""
    budget = RetryBudget()
    while sends(budget, Operation.READ, AttemptResult.UNAVAILABLE) > 1:
        pass
    assert budget.tokens < 14
    assert sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) == 1
    for _ in range(28):
        assert sends(budget, Operation.READ, AttemptResult.DONE) == 1
    assert sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) == 2


def test_failures_that_a_retry_heals_cost_nothing() -> None:
    """While each retry succeeds the bucket stays full, however many there are."""
    budget = RetryBudget()
    assert {sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) for _ in range(2_000)} == {2}
    assert budget.tokens == 500


@pytest.mark.parametrize(
    ("operation", "last"),
    [
        (Operation.CONFERENCE_START, AttemptResult.DONE),
        (Operation.CONFERENCE_START, AttemptResult.REJECTED),
        (Operation.CONFERENCE_START, AttemptResult.DUPLICATE_NAME),
        (Operation.STOP, AttemptResult.TARGET_ENDED),
        (Operation.STOP, AttemptResult.NOT_FOUND),
        (Operation.READ, AttemptResult.FORBIDDEN),
    ],
)
def test_call_that_is_served_gets_back_what_all_its_retries_cost(operation: Operation, last: AttemptResult) -> None:
    budget = RetryBudget()
    for _ in range(200):
        state = RetryState(RetryPolicy(), operation, budget, lambda: 0.0, 1e9)
        results = [AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE, AttemptResult.NOT_SENT, last]
        assert [state.decide(result, 0.0).is_final for result in results] == [False, False, False, True]
    assert budget.tokens == 500


@given(st.lists(st.sampled_from(["spend 14", "spend 5", "first success", "success after 14", "success after 5"])))
def test_budget_stays_between_none_and_five_hundred(steps: list[str]) -> None:
    """The tokens stay between none and five hundred."""
    budget = RetryBudget()
    for step in steps:
        before = budget.tokens
        match step.split():
            case ["spend", cost]:
                assert budget.spend(int(cost)) is (before >= int(cost))
            case ["first", _]:
                budget.refund(1)
            case [_, _, cost]:
                budget.refund(int(cost))
        assert 0 <= budget.tokens <= 500
