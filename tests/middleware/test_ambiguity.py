"""After an attempt that may have been carried out: what is sent again, and what is told."""

import pytest
from attrs import evolve

from signalwire_streams import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, RetryState
from signalwire_streams.models import AttemptResult, Operation, RetryDecision

AMBIGUOUS = [AttemptResult.NO_RESPONSE, AttemptResult.MALFORMED, AttemptResult.SERVER_FAULT]
CERTAIN = [
    AttemptResult.NOT_SENT,
    AttemptResult.STALE_CONNECTION,
    AttemptResult.THROTTLED,
    AttemptResult.TRY_AGAIN,
    AttemptResult.UNAVAILABLE,
]
REFUSALS = [
    AttemptResult.REJECTED,
    AttemptResult.FORBIDDEN,
    AttemptResult.REDIRECTED,
    AttemptResult.UNRETRYABLE,
    AttemptResult.DEADLINE_EXCEEDED,
    AttemptResult.BREAKER_OPEN,
]
SAFE = [Operation.CONFERENCE_START, Operation.CALL_START]


def call(kind: Operation, *, tokens: int = 500, deadline: float = 1e9) -> RetryState:
    """Begin a call under a policy that sends starts on calls again as well."""
    return RetryState(RetryPolicy(resend_call_starts=True), kind, RetryBudget(tokens), lambda: 0.0, deadline)


@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_ambiguous_named_start_is_resent_twice(kind: Operation, event: AttemptResult) -> None:
    """A named start is sent again at most twice, and then its outcome is unknown."""
    retrying = call(kind)
    assert not retrying.ambiguous
    assert [retrying.decide(event, at).action for at in (0.0, 1.0, 2.0)] == [
        RetryDecision.RESEND,
        RetryDecision.RESEND,
        RetryDecision.UNKNOWN,
    ]
    assert retrying.ambiguous
    assert retrying.ambiguous_since == 0.0


@pytest.mark.parametrize(
    ("seconds", "action"),
    [
        (0.0, RetryDecision.RESEND),
        (30.0, RetryDecision.RESEND),
        (30.001, RetryDecision.UNKNOWN),
        (500.0, RetryDecision.UNKNOWN),
    ],
)
def test_ambiguous_named_start_is_resent_within_thirty_seconds(seconds: float, action: RetryDecision) -> None:
    """The thirty seconds count from the first attempt that may have been carried out."""
    retrying = call(Operation.CONFERENCE_START)
    assert retrying.decide(AttemptResult.NO_RESPONSE, 100.0).action is RetryDecision.RESEND
    assert retrying.decide(AttemptResult.NO_RESPONSE, 100.0 + seconds).action is action


def test_resend_window_counts_the_delay_before_sending() -> None:
    """A wait that ends after the thirty seconds is not begun."""
    retrying = call(Operation.CONFERENCE_START)
    retrying.decide(AttemptResult.NO_RESPONSE, 100.0)
    assert retrying.decide(AttemptResult.THROTTLED, 101.0, 29.0).action is RetryDecision.WAIT_FOR_RATE_LIMIT
    retrying = call(Operation.CONFERENCE_START)
    retrying.decide(AttemptResult.NO_RESPONSE, 100.0)
    assert retrying.decide(AttemptResult.THROTTLED, 101.0, 29.1).action is RetryDecision.UNKNOWN


def test_resend_limits_follow_the_policy() -> None:
    """How often and for how long a named start is sent again is the policy's."""
    policy = RetryPolicy(max_resends=0)
    retrying = RetryState(policy, Operation.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9)
    assert retrying.decide(AttemptResult.NO_RESPONSE, 0.0) == Decision(RetryDecision.UNKNOWN)
    policy = RetryPolicy(max_resends=9, max_attempts=10, resend_window=5.0)
    retrying = RetryState(policy, Operation.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9)
    actions = [retrying.decide(AttemptResult.NO_RESPONSE, float(at)).action for at in range(7)]
    assert actions == [*[RetryDecision.RESEND] * 6, RetryDecision.UNKNOWN]


@pytest.mark.parametrize("end", REFUSALS)
@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_start_that_fails_after_an_ambiguous_attempt_is_unknown(
    kind: Operation, event: AttemptResult, end: AttemptResult
) -> None:
    """For any end of such a call, the error reports that the stream may be running."""
    retrying = call(kind)
    retrying.decide(event, 0.0)
    assert retrying.decide(end, 1.0) == Decision(RetryDecision.UNKNOWN)


@pytest.mark.parametrize("more", CERTAIN)
@pytest.mark.parametrize("kind", SAFE)
def test_start_that_runs_out_of_attempts_after_an_ambiguous_one_is_unknown(
    kind: Operation, more: AttemptResult
) -> None:
    retrying = call(kind)
    retrying.decide(AttemptResult.NO_RESPONSE, 0.0)
    actions = [retrying.decide(more, 1.0).action for _ in range(12)]
    assert actions[-1] is RetryDecision.UNKNOWN
    assert RetryDecision.FAIL not in actions


@pytest.mark.parametrize("kind", SAFE)
def test_ambiguous_start_without_budget_or_time_is_unknown(kind: Operation) -> None:
    assert call(kind, tokens=0).decide(AttemptResult.NO_RESPONSE, 0.0) == Decision(RetryDecision.UNKNOWN)
    assert call(kind, deadline=0.0).decide(AttemptResult.NO_RESPONSE, 0.0) == Decision(RetryDecision.UNKNOWN)
    retrying = call(kind, deadline=10.0)
    assert retrying.decide(AttemptResult.NO_RESPONSE, 0.0, 3600.0) == Decision(RetryDecision.UNKNOWN)


@pytest.mark.parametrize("before", CERTAIN)
@pytest.mark.parametrize("kind", [*SAFE, Operation.UNNAMED_START])
def test_start_that_certainly_was_not_carried_out_fails(kind: Operation, before: AttemptResult) -> None:
    for end in (*REFUSALS, AttemptResult.DUPLICATE_NAME):
        retrying = call(kind)
        assert not retrying.decide(before, 0.0).is_final
        assert not retrying.ambiguous
        assert retrying.decide(end, 1.0) == Decision(RetryDecision.FAIL)


@pytest.mark.parametrize(
    "between", [[], [AttemptResult.NO_RESPONSE], [AttemptResult.NOT_SENT], [AttemptResult.THROTTLED]], ids=str
)
@pytest.mark.parametrize("event", AMBIGUOUS)
@pytest.mark.parametrize("kind", SAFE)
def test_duplicate_refusal_after_an_ambiguous_attempt_is_already_started(
    kind: Operation, event: AttemptResult, between: list[AttemptResult]
) -> None:
    """A start that is refused as its own duplicate has been carried out."""
    retrying = call(kind)
    for at, happened in enumerate([event, *between]):
        assert not retrying.decide(happened, float(at)).is_final
    assert retrying.decide(AttemptResult.DUPLICATE_NAME, 5.0) == Decision(RetryDecision.ALREADY_STARTED)


@pytest.mark.parametrize("event", [*AMBIGUOUS, AttemptResult.ACCEPTED])
def test_repeated_stop_of_a_returned_stream_that_is_not_found_succeeds(event: AttemptResult) -> None:
    """A stop by a returned sid that finds nothing, after one that may have been carried out, has been carried out."""
    retrying = call(Operation.STOP_RETURNED)
    assert retrying.decide(event, 0.0).action is RetryDecision.RETRY
    assert retrying.decide(AttemptResult.NOT_FOUND, 1.0) == Decision(RetryDecision.ALREADY_STOPPED)


@pytest.mark.parametrize("event", sorted({*AMBIGUOUS} - {AttemptResult.ACCEPTED}))
def test_repeated_stop_by_text_that_finds_nothing_fails(event: AttemptResult) -> None:
    """The text may be a name in the form of a sid, and a Space may not find streams by their names."""
    retrying = call(Operation.STOP)
    assert retrying.decide(event, 0.0).action is RetryDecision.RETRY
    assert retrying.decide(AttemptResult.NOT_FOUND, 1.0) == Decision(RetryDecision.FAIL)


@pytest.mark.parametrize("event", CERTAIN)
def test_stop_by_text_after_unsent_attempts_that_is_not_found_fails(event: AttemptResult) -> None:
    """A stop that finds nothing, after one that did nothing, fails."""
    retrying = call(Operation.STOP)
    retrying.decide(event, 0.0)
    assert retrying.decide(AttemptResult.NOT_FOUND, 1.0) == Decision(RetryDecision.FAIL)


def test_stop_that_is_accepted_each_time_succeeds() -> None:
    """An accepted stop worked, even if none of its responses can be read."""
    retrying = call(Operation.STOP)
    actions = [retrying.decide(AttemptResult.ACCEPTED, 0.0).action for _ in range(3)]
    assert actions == [RetryDecision.RETRY, RetryDecision.RETRY, RetryDecision.ALREADY_STOPPED]
    for hurried in (call(Operation.STOP, tokens=0), call(Operation.STOP, deadline=0.0)):
        assert hurried.decide(AttemptResult.ACCEPTED, 0.0) == Decision(RetryDecision.ALREADY_STOPPED)


def test_read_that_is_accepted_each_time_fails() -> None:
    """A read is there for its answer."""
    retrying = call(Operation.READ)
    actions = [retrying.decide(AttemptResult.ACCEPTED, 0.0).action for _ in range(3)]
    assert actions == [RetryDecision.RETRY, RetryDecision.RETRY, RetryDecision.FAIL]


@pytest.mark.parametrize("kind", [Operation.READ, Operation.STOP])
@pytest.mark.parametrize("event", AMBIGUOUS)
def test_read_or_stop_fails_after_an_ambiguous_attempt(kind: Operation, event: AttemptResult) -> None:
    retrying = call(kind)
    actions = [retrying.decide(event, 0.0).action for _ in range(3)]
    assert actions == [RetryDecision.RETRY, RetryDecision.RETRY, RetryDecision.FAIL]


@pytest.mark.parametrize("event", [*AMBIGUOUS, AttemptResult.ACCEPTED])
@pytest.mark.parametrize("kind", [Operation.UNNAMED_START, Operation.CALL_START])
def test_start_that_could_be_duplicated_is_not_resent(kind: Operation, event: AttemptResult) -> None:
    """A start without a name is unknown at once; so is one on a call, unless its name is known to protect it."""
    retrying = RetryState(RetryPolicy(), kind, RetryBudget(), lambda: 0.0, 1e9)
    by_name = kind is Operation.CALL_START and event is AttemptResult.ACCEPTED
    assert retrying.decide(event, 0.0) == Decision(
        RetryDecision.SUCCEED_WITHOUT_SID if by_name else RetryDecision.UNKNOWN
    )
    assert retrying.budget.tokens == 500


@pytest.mark.parametrize("kind", SAFE)
def test_resent_start_that_is_accepted_succeeds_without_sid(kind: Operation) -> None:
    """An accepted start whose answer can't be read is held by its name, and not sent again."""
    retrying = call(kind)
    retrying.decide(AttemptResult.NO_RESPONSE, 0.0)
    assert retrying.decide(AttemptResult.ACCEPTED, 1.0) == Decision(RetryDecision.SUCCEED_WITHOUT_SID)


def test_accepted_start_is_not_ambiguous() -> None:
    retrying = call(Operation.CONFERENCE_START)
    retrying.decide(AttemptResult.ACCEPTED, 0.0)
    assert not retrying.ambiguous


def test_ambiguous_attempt_at_time_zero_counts() -> None:
    """A clock that begins at 0 makes no difference."""
    retrying = call(Operation.CONFERENCE_START)
    retrying.decide(AttemptResult.NO_RESPONSE, 0.0)
    assert retrying.ambiguous
    assert retrying.decide(AttemptResult.NO_RESPONSE, 31.0).action is RetryDecision.UNKNOWN


REJECTED_FOR_NOW = [AttemptResult.THROTTLED, AttemptResult.TRY_AGAIN, AttemptResult.UNAVAILABLE]


@pytest.mark.parametrize("event", REJECTED_FOR_NOW)
@pytest.mark.parametrize("kind", SAFE)
def test_duplicate_of_generated_name_after_refusal_is_own_stream(kind: Operation, event: AttemptResult) -> None:
    """No other start has a generated name, so an earlier attempt made the stream, whatever its response was."""
    policy = RetryPolicy(resend_call_starts=True)
    retrying = RetryState(policy, kind, RetryBudget(), lambda: 0.0, 1e9, has_unique_name=True)
    retrying.decide(event, 0.0)
    assert retrying.decide(AttemptResult.DUPLICATE_NAME, 1.0) == Decision(RetryDecision.ALREADY_STARTED)


@pytest.mark.parametrize("event", REJECTED_FOR_NOW)
def test_duplicate_of_chosen_name_after_refusal_is_rejected(event: AttemptResult) -> None:
    """A name that the caller chose may be that of another stream."""
    retrying = call(Operation.CONFERENCE_START)
    retrying.decide(event, 0.0)
    assert retrying.decide(AttemptResult.DUPLICATE_NAME, 1.0) == Decision(RetryDecision.FAIL)


@pytest.mark.parametrize("event", [None, AttemptResult.NOT_SENT, AttemptResult.STALE_CONNECTION])
def test_duplicate_of_generated_name_that_was_never_sent_is_rejected(event: AttemptResult | None) -> None:
    retrying = RetryState(
        RetryPolicy(), Operation.CONFERENCE_START, RetryBudget(), lambda: 0.0, 1e9, has_unique_name=True
    )
    if event is not None:
        retrying.decide(event, 0.0)
    assert retrying.decide(AttemptResult.DUPLICATE_NAME, 1.0) == Decision(RetryDecision.FAIL)


@pytest.mark.parametrize("before", [*AMBIGUOUS, *REJECTED_FOR_NOW])
@pytest.mark.parametrize("kind", SAFE)
def test_unreadable_rejection_of_a_start_that_may_run_is_no_proof(kind: Operation, before: AttemptResult) -> None:
    """It may be the refusal of a duplicate, so the start is sent again, and ends as unknown or as started."""
    policy = RetryPolicy(resend_call_starts=True, max_attempts=5)
    for is_switched_on in (True, False) if kind is Operation.CALL_START else (True,):
        retrying = RetryState(
            evolve(policy, resend_call_starts=is_switched_on),
            kind,
            RetryBudget(),
            lambda: 0.0,
            1e9,
            has_unique_name=True,
            was_rejected_for_now=True,  # by an earlier call of the same item, or just now
        )
        assert not retrying.ambiguous
        decision = retrying.decide(AttemptResult.UNREADABLE_REJECTION, 0.0)
        assert retrying.ambiguous
        assert decision.action is (RetryDecision.RESEND if is_switched_on else RetryDecision.UNKNOWN)
        assert retrying.decide(AttemptResult.REJECTED, 1.0) == Decision(RetryDecision.UNKNOWN)
        assert retrying.decide(AttemptResult.DUPLICATE_NAME, 2.0) == Decision(RetryDecision.ALREADY_STARTED)

    retrying = RetryState(policy, kind, RetryBudget(), lambda: 0.0, 1e9, has_unique_name=True)
    retrying.decide(before, 0.0)
    actions = [retrying.decide(AttemptResult.UNREADABLE_REJECTION, 1.0).action for _ in range(3)]
    assert actions[0] is RetryDecision.RESEND
    assert actions[-1] is RetryDecision.UNKNOWN
    assert RetryDecision.FAIL not in actions


@pytest.mark.parametrize("before", [None, *CERTAIN])
@pytest.mark.parametrize("kind", [*SAFE, Operation.UNNAMED_START, Operation.STOP, Operation.READ])
def test_unreadable_rejection_of_what_was_not_carried_out_is_final(
    kind: Operation, before: AttemptResult | None
) -> None:
    """A chosen name may be another stream's, so a temporary rejection is believed."""
    retrying = call(kind)
    if before is not None:
        retrying.decide(before, 0.0)
    assert retrying.decide(AttemptResult.UNREADABLE_REJECTION, 1.0) == Decision(RetryDecision.FAIL)


@pytest.mark.parametrize("before", AMBIGUOUS)
def test_unreadable_rejection_of_a_repeated_stop_is_retried(before: AttemptResult) -> None:
    """It may say that the stream has ended; a readable answer is what proves it."""
    retrying = call(Operation.STOP_RETURNED)
    retrying.decide(before, 0.0)
    assert retrying.decide(AttemptResult.UNREADABLE_REJECTION, 1.0).action is RetryDecision.RETRY
    assert retrying.decide(AttemptResult.NOT_FOUND, 2.0) == Decision(RetryDecision.ALREADY_STOPPED)
