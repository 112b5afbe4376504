"""The allowance for retries that all calls of a client share."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.middleware._retry import RetryBudget, RetryState
from signalwire_streams.models import AttemptResult, Operation


def sends(budget: RetryBudget, kind: Operation, event: AttemptResult, *, heals_after: int = 10**9) -> int:
    """Count the attempts of one call, each of which ends so, until the Space is well again."""
    retrying = RetryState(RetryPolicy(resend_call_starts=True), kind, budget, lambda: 0.0, 1e9)
    for attempt in range(1, 100):
        if retrying.decide(event if attempt <= heals_after else AttemptResult.DONE, 0.0).is_final:
            return attempt
    raise AssertionError("the call never ends")


def test_the_bucket_begins_full_with_five_hundred() -> None:
    """A client begins with five hundred tokens."""
    assert RetryBudget().tokens == 500


def test_spending() -> None:
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
    ("tokens", "spent", "after"),
    [(100, 0, 101), (100, 14, 114), (100, 5, 105), (500, 0, 500), (495, 14, 500), (0, 0, 1)],
)
def test_succeeding(tokens: int, spent: int, after: int) -> None:
    """A success earns one, or gives back what its last retry cost, up to a full bucket."""
    budget = RetryBudget(tokens)
    budget.succeed(spent)
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
def test_a_full_outage_is_not_answered_with_a_storm(
    kind: Operation, event: AttemptResult, cost: int, per_call: int
) -> None:
    """In a full outage all calls together send 500 / cost requests more than one each, however many calls there are."""
    calls = 600
    budget = RetryBudget()
    counts = [sends(budget, kind, event) for _ in range(calls)]
    assert counts[0] == per_call
    assert set(counts[100:]) == {1}
    assert sum(counts) == calls + 500 // cost


def test_after_an_outage_successes_fill_the_bucket() -> None:
    """When the Space is well again each call earns one, so retries come back little by little."""
    budget = RetryBudget()
    while sends(budget, Operation.READ, AttemptResult.UNAVAILABLE) > 1:
        pass
    assert budget.tokens < 14
    assert sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) == 1
    for _ in range(28):
        assert sends(budget, Operation.READ, AttemptResult.DONE) == 1
    assert sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) == 2


def test_trouble_that_a_retry_heals_costs_nothing() -> None:
    """While each retry succeeds the bucket stays full, however many there are."""
    budget = RetryBudget()
    assert {sends(budget, Operation.READ, AttemptResult.UNAVAILABLE, heals_after=1) for _ in range(2_000)} == {2}
    assert budget.tokens == 500


@given(st.lists(st.sampled_from(["spend 14", "spend 5", "first success", "success after 14", "success after 5"])))
def test_the_bucket_never_overflows_nor_owes(steps: list[str]) -> None:
    """The tokens stay between none and five hundred."""
    budget = RetryBudget()
    for step in steps:
        before = budget.tokens
        match step.split():
            case ["spend", cost]:
                assert budget.spend(int(cost)) is (before >= int(cost))
            case ["first", _]:
                budget.succeed(0)
            case [_, _, cost]:
                budget.succeed(int(cost))
        assert 0 <= budget.tokens <= 500
