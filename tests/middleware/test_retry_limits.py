"""How often, how long and how late a call is tried."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, RetryState
from signalwire_streams.models import AttemptResult, Operation, RetryDecision

IDEMPOTENT = [Operation.READ, Operation.STOP]
START = 1000.0


def half() -> float:
    return 0.5


def nothing() -> float:
    return 0.0


def call(
    kind: Operation = Operation.READ,
    *,
    policy: RetryPolicy | None = None,
    random: Callable[[], float] = half,
    deadline: float = 1e9,
    tokens: int = 500,
) -> RetryState:
    return RetryState(policy or RetryPolicy(), kind, RetryBudget(tokens), random, START + deadline)


def attempts_until_the_end(retrying: RetryState, events: Sequence[AttemptResult]) -> int:
    """Count the attempts of a call whose attempts end so, the last event for ever."""
    now = START
    for attempt in range(1, 100):
        decision = retrying.decide(events[min(attempt, len(events)) - 1], now)
        if decision.is_final:
            return attempt
        now += decision.delay
    raise AssertionError("the call never ends")


@pytest.mark.parametrize(
    "event",
    [
        AttemptResult.NO_RESPONSE,
        AttemptResult.MALFORMED,
        AttemptResult.SERVER_FAULT,
        AttemptResult.UNAVAILABLE,
        AttemptResult.TRY_AGAIN,
    ],
)
@pytest.mark.parametrize("kind", IDEMPOTENT)
def test_three_attempts_may_reach_the_space(kind: Operation, event: AttemptResult) -> None:
    assert attempts_until_the_end(call(kind), [event]) == 3


@pytest.mark.parametrize("kind", Operation)
def test_three_more_attempts_may_fail_to_connect(kind: Operation) -> None:
    assert attempts_until_the_end(call(kind), [AttemptResult.NOT_SENT]) == 4


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [
        (Operation.READ, 4),
        (Operation.STOP, 4),
        (Operation.CONFERENCE_START, 4),
        (Operation.CALL_START, 4),
        (Operation.UNNAMED_START, 2),
    ],
)
def test_stale_connection_is_replaced_as_often_as_the_operation_allows(kind: Operation, attempts: int) -> None:
    """Three times; once for a start without a name."""
    assert attempts_until_the_end(call(kind), [AttemptResult.STALE_CONNECTION]) == attempts


def test_unnamed_start_after_a_stale_connection_may_still_retry_connecting() -> None:
    """The one resend after a dead connection is one of the three that never left."""
    events = [AttemptResult.STALE_CONNECTION, AttemptResult.NOT_SENT, AttemptResult.NOT_SENT, AttemptResult.NOT_SENT]
    assert attempts_until_the_end(call(Operation.UNNAMED_START), events) == 4


@pytest.mark.parametrize("kind", Operation)
def test_call_waits_six_times_after_429(kind: Operation) -> None:
    assert attempts_until_the_end(call(kind), [AttemptResult.THROTTLED]) == 7


def test_limits_of_different_failures_are_counted_separately() -> None:
    events = [*[AttemptResult.THROTTLED] * 6, *[AttemptResult.NOT_SENT] * 3, *[AttemptResult.UNAVAILABLE] * 3]
    assert attempts_until_the_end(call(Operation.UNNAMED_START), events) == 12
    assert attempts_until_the_end(call(), [*events, AttemptResult.DONE]) == 12


def test_call_succeeds_at_its_last_attempt() -> None:
    """A call that has tried everything once less than the limits is still a call."""
    retrying = call()
    for event in [*[AttemptResult.THROTTLED] * 6, *[AttemptResult.NOT_SENT] * 3, *[AttemptResult.NO_RESPONSE] * 2]:
        assert not retrying.decide(event, START).is_final
    assert retrying.decide(AttemptResult.DONE, START).action is RetryDecision.SUCCEED


@pytest.mark.parametrize(
    ("policy", "event", "attempts"),
    [
        (RetryPolicy(max_attempts=1), AttemptResult.NO_RESPONSE, 1),
        (RetryPolicy(max_attempts=5), AttemptResult.NO_RESPONSE, 5),
        (RetryPolicy(max_connect_retries=0), AttemptResult.NOT_SENT, 1),
        (RetryPolicy(max_connect_retries=0), AttemptResult.STALE_CONNECTION, 1),
        (RetryPolicy(max_throttle_retries=0), AttemptResult.THROTTLED, 1),
        (RetryPolicy(max_throttle_retries=1), AttemptResult.THROTTLED, 2),
    ],
)
def test_retry_limits_follow_the_policy(policy: RetryPolicy, event: AttemptResult, attempts: int) -> None:
    """Each limit can be set."""
    assert attempts_until_the_end(call(policy=policy), [event]) == attempts


@pytest.mark.parametrize(
    "event", [AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE, AttemptResult.TRY_AGAIN, AttemptResult.NOT_SENT]
)
@pytest.mark.parametrize(("asked", "again"), [(60.0, True), (60.1, False), (3600.0, False)])
def test_retry_after_of_more_than_a_minute_is_not_waited_for(
    event: AttemptResult, asked: float, *, again: bool
) -> None:
    """A Retry-After beyond 60 seconds ends the call at once."""
    for kind in Operation:
        decision = call(kind).decide(event, START, asked)
        assert decision.is_final is not again
        assert decision == Decision(RetryDecision.FAIL) if not again else decision.delay >= asked


@pytest.mark.parametrize("event", [AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE])
@pytest.mark.parametrize(("asked", "again"), [(9.0, True), (10.0, False), (30.0, False)])
def test_delay_beyond_the_deadline_is_not_waited_for(event: AttemptResult, asked: float, *, again: bool) -> None:
    """A Retry-After that ends at the deadline or later ends the call at once."""
    decision = call(deadline=10.0, random=nothing).decide(event, START, asked)
    assert decision.is_final is not again


@pytest.mark.parametrize("event", [AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE, AttemptResult.NOT_SENT])
@pytest.mark.parametrize(("left", "again"), [(0.001, False), (0.0999, False), (0.125, True)])
def test_retry_without_time_for_a_response_is_not_made(event: AttemptResult, left: float, *, again: bool) -> None:
    """It would turn a call that was certainly not carried out into one whose outcome is unknown."""
    for kind in Operation:
        decision = call(kind, deadline=5.0 + left, random=nothing).decide(event, START, 5.0)
        assert decision.is_final is not again


@pytest.mark.parametrize(
    "event",
    [
        AttemptResult.NO_RESPONSE,
        AttemptResult.NOT_SENT,
        AttemptResult.STALE_CONNECTION,
        AttemptResult.THROTTLED,
        AttemptResult.UNAVAILABLE,
    ],
)
@pytest.mark.parametrize("kind", IDEMPOTENT)
def test_nothing_is_retried_after_the_deadline(kind: Operation, event: AttemptResult) -> None:
    """When the deadline is reached the call ends."""
    assert call(kind, deadline=0.0).decide(event, START) == Decision(RetryDecision.FAIL)
    assert not call(kind, deadline=100.0).decide(event, START).is_final


def test_max_retry_after_follows_the_policy() -> None:
    policy = RetryPolicy(max_retry_after=600.0)
    assert call(policy=policy, random=nothing).decide(AttemptResult.THROTTLED, START, 600.0) == Decision(
        RetryDecision.WAIT_FOR_RATE_LIMIT, 600.0
    )


@given(
    kind=st.sampled_from(Operation),
    event=st.sampled_from(
        [
            AttemptResult.THROTTLED,
            AttemptResult.UNAVAILABLE,
            AttemptResult.TRY_AGAIN,
            AttemptResult.SERVER_FAULT,
            AttemptResult.NOT_SENT,
        ]
    ),
    asked=st.floats(min_value=0, max_value=60),
    chance=st.floats(min_value=0, max_value=1),
    before=st.integers(min_value=0, max_value=1),
)
def test_wait_is_never_shorter_than_retry_after(
    kind: Operation, event: AttemptResult, asked: float, chance: float, before: int
) -> None:
    """A Retry-After is a floor, with at most a tenth of it, or a twentieth of a second, on top."""
    retrying = call(kind, random=lambda: chance)
    for _ in range(before):
        retrying.decide(AttemptResult.UNAVAILABLE, START)
    decision = retrying.decide(event, START, asked)
    if decision.is_final:
        assert event is AttemptResult.SERVER_FAULT
        return
    assert decision.delay >= asked
    if asked:
        assert decision.delay <= asked + max(asked * 0.1, 0.05) + 1e-9


@given(chances=st.lists(st.floats(min_value=0, max_value=1), min_size=6, max_size=6))
def test_delay_is_within_full_jitter(chances: list[float]) -> None:
    """Without Retry-After a wait is anywhere from 0 to base times 2ⁿ, and never above the cap."""
    left = list(chances)
    retrying = call(random=lambda: left.pop(0))
    for number, chance in enumerate(chances):
        wait = retrying.decide(AttemptResult.THROTTLED, START).delay
        assert wait == pytest.approx(chance * min(20.0, 1.0 * 2**number))
    left = list(chances)
    retrying = call(random=lambda: left.pop(0), policy=RetryPolicy(max_attempts=7))
    for number, chance in enumerate(chances):
        wait = retrying.decide(AttemptResult.UNAVAILABLE, START).delay
        assert wait == pytest.approx(chance * min(5.0, 0.2 * 2**number))


@pytest.mark.parametrize("tokens", [0, 13])
def test_call_without_budget_is_not_retried(tokens: int) -> None:
    retrying = call(tokens=tokens)
    assert retrying.decide(AttemptResult.UNAVAILABLE, START) == Decision(RetryDecision.FAIL)
    assert retrying.budget.tokens == tokens


@pytest.mark.parametrize(
    ("event", "cost"),
    [
        (AttemptResult.NO_RESPONSE, 14),
        (AttemptResult.SERVER_FAULT, 14),
        (AttemptResult.UNAVAILABLE, 14),
        (AttemptResult.TRY_AGAIN, 14),
        (AttemptResult.THROTTLED, 5),
        (AttemptResult.NOT_SENT, 5),
        (AttemptResult.STALE_CONNECTION, 5),
    ],
)
def test_retry_spends_its_cost(event: AttemptResult, cost: int) -> None:
    """It costs 14, and 5 if the request certainly was not carried out; a success gives it back."""
    retrying = call()
    retrying.decide(event, START)
    assert retrying.budget.tokens == 500 - cost
    retrying.decide(AttemptResult.DONE, START)
    assert retrying.budget.tokens == 500


def test_rejected_call_spends_and_earns_nothing() -> None:
    """A rejection is neither a success nor a retry."""
    retrying = call(tokens=100)
    retrying.decide(AttemptResult.REJECTED, START)
    assert retrying.budget.tokens == 100


def test_success_without_a_retry_earns_one_token() -> None:
    retrying = call(tokens=100)
    retrying.decide(AttemptResult.DONE, START)
    assert retrying.budget.tokens == 101
