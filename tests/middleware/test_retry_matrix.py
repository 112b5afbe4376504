"""The retry matrix, row by row, as the project promises it."""

from typing import NamedTuple

import pytest

from signalwire_streams import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, RetryState, rule_for
from signalwire_streams.models import AttemptResult, Operation, RetryDecision


class Row(NamedTuple):
    """The decisions after a first attempt with one result, by kind of request.

    ``carefully`` is a named start on a call while the policy does not send those again.
    """

    event: AttemptResult
    idempotent: RetryDecision
    named: RetryDecision
    carefully: RetryDecision
    unnamed: RetryDecision


def everywhere(event: AttemptResult, action: RetryDecision) -> Row:
    return Row(event, action, action, action, action)


ROWS: dict[str, Row] = {
    "answered": everywhere(AttemptResult.DONE, RetryDecision.SUCCEED),
    "DNS, refused, connect timeout, TLS reset": everywhere(AttemptResult.NOT_SENT, RetryDecision.RETRY_UNSENT),
    "bad certificate, bad URL, proxy 407": everywhere(AttemptResult.UNRETRYABLE, RetryDecision.FAIL),
    "deadline passed before sending": everywhere(AttemptResult.DEADLINE_EXCEEDED, RetryDecision.FAIL),
    "breaker open": everywhere(AttemptResult.BREAKER_OPEN, RetryDecision.FAIL),
    "dead kept-alive connection": Row(
        AttemptResult.STALE_CONNECTION,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY_ONCE,
    ),
    "reset or timeout after writing": Row(
        AttemptResult.NO_RESPONSE,
        RetryDecision.RETRY,
        RetryDecision.RESEND,
        RetryDecision.UNKNOWN,
        RetryDecision.UNKNOWN,
    ),
    "malformed answer": Row(
        AttemptResult.MALFORMED, RetryDecision.RETRY, RetryDecision.RESEND, RetryDecision.UNKNOWN, RetryDecision.UNKNOWN
    ),
    "the session's own code failed after writing": Row(
        AttemptResult.SESSION_FAILED,
        RetryDecision.FAIL,
        RetryDecision.UNKNOWN,
        RetryDecision.UNKNOWN,
        RetryDecision.UNKNOWN,
    ),
    "2xx without a sid": Row(
        AttemptResult.ACCEPTED,
        RetryDecision.RETRY,
        RetryDecision.SUCCEED_WITHOUT_SID,
        RetryDecision.SUCCEED_WITHOUT_SID,
        RetryDecision.UNKNOWN,
    ),
    "3xx": everywhere(AttemptResult.REDIRECTED, RetryDecision.FAIL),
    "400 404 409 422": everywhere(AttemptResult.REJECTED, RetryDecision.FAIL),
    "400 404 409 422 without an error of the API": everywhere(AttemptResult.UNREADABLE_REJECTION, RetryDecision.FAIL),
    "401 403": everywhere(AttemptResult.FORBIDDEN, RetryDecision.FAIL),
    "408 425": everywhere(AttemptResult.TRY_AGAIN, RetryDecision.RETRY),
    "429 or 20429": everywhere(AttemptResult.THROTTLED, RetryDecision.WAIT_FOR_RATE_LIMIT),
    "503 in the API's words or with Retry-After": everywhere(AttemptResult.UNAVAILABLE, RetryDecision.RETRY),
    "bare 503, 500, 20504, 502, 504": Row(
        AttemptResult.SERVER_FAULT,
        RetryDecision.RETRY,
        RetryDecision.RESEND,
        RetryDecision.UNKNOWN,
        RetryDecision.UNKNOWN,
    ),
}
ENDS = {
    RetryDecision.SUCCEED,
    RetryDecision.ALREADY_STARTED,
    RetryDecision.ALREADY_STOPPED,
    RetryDecision.SUCCEED_WITHOUT_SID,
    RetryDecision.FAIL,
    RetryDecision.UNKNOWN,
}
COLUMNS = {
    "read": (Operation.READ, False, "idempotent"),
    "stop": (Operation.STOP, False, "idempotent"),
    "conference start": (Operation.CONFERENCE_START, False, "named"),
    "conference start, call starts switched on": (Operation.CONFERENCE_START, True, "named"),
    "call start": (Operation.CALL_START, False, "carefully"),
    "call start, switched on": (Operation.CALL_START, True, "named"),
    "unnamed start": (Operation.UNNAMED_START, False, "unnamed"),
    "unnamed start, call starts switched on": (Operation.UNNAMED_START, True, "unnamed"),
}


def first_decision(kind: Operation, event: AttemptResult, *, resend_call_starts: bool = False) -> Decision:
    policy = RetryPolicy(resend_call_starts=resend_call_starts)
    return RetryState(policy, kind, RetryBudget(), lambda: 0.5, deadline_at=145.0).decide(event, 100.0)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_decision_after_the_first_attempt_follows_the_matrix(row: Row) -> None:
    for kind, switch, column in COLUMNS.values():
        decision = first_decision(kind, row.event, resend_call_starts=switch)
        expected = getattr(row, column)
        assert decision.action is expected
        assert decision.is_final is (expected in ENDS)
        if decision.is_final:
            assert decision.delay == 0


@pytest.mark.parametrize("kind", [Operation.CONFERENCE_START, Operation.CALL_START, Operation.UNNAMED_START])
def test_duplicate_name_is_already_started_only_after_an_ambiguous_attempt(kind: Operation) -> None:
    """A name that was taken before the call began is rejected."""
    assert first_decision(kind, AttemptResult.DUPLICATE_NAME).action is RetryDecision.FAIL


STOPPED, FAILED = RetryDecision.ALREADY_STOPPED, RetryDecision.FAIL
REJECTED_STOPS = [
    # what the Space says,     what the handle is,     at the first attempt, after one that may have worked
    (AttemptResult.TARGET_ENDED, Operation.STOP_RETURNED, STOPPED, STOPPED),
    (AttemptResult.TARGET_ENDED, Operation.STOP, STOPPED, STOPPED),
    (AttemptResult.TARGET_ENDED, Operation.STOP_BY_NAME, STOPPED, STOPPED),
    (AttemptResult.TARGET_ENDED, Operation.STOP_AMBIGUOUS, STOPPED, STOPPED),
    (AttemptResult.TARGET_ENDED, Operation.END, STOPPED, STOPPED),
    (AttemptResult.ALREADY_STOPPED, Operation.STOP_RETURNED, STOPPED, STOPPED),
    (AttemptResult.ALREADY_STOPPED, Operation.STOP, STOPPED, STOPPED),
    (AttemptResult.ALREADY_STOPPED, Operation.STOP_BY_NAME, STOPPED, STOPPED),
    (AttemptResult.ALREADY_STOPPED, Operation.STOP_AMBIGUOUS, FAILED, FAILED),
    (AttemptResult.ALREADY_STOPPED, Operation.END, STOPPED, STOPPED),
    (AttemptResult.NOT_FOUND, Operation.STOP_RETURNED, STOPPED, STOPPED),
    (AttemptResult.NOT_FOUND, Operation.STOP, FAILED, FAILED),
    (AttemptResult.NOT_FOUND, Operation.STOP_BY_NAME, FAILED, FAILED),
    (AttemptResult.NOT_FOUND, Operation.STOP_AMBIGUOUS, FAILED, FAILED),
    (AttemptResult.NOT_FOUND, Operation.END, FAILED, STOPPED),
]


@pytest.mark.parametrize(("event", "kind", "first", "after_attempt"), REJECTED_STOPS)
def test_rejected_stop_is_success_where_it_proves_that_stream_ended(
    event: AttemptResult, kind: Operation, first: RetryDecision, after_attempt: RetryDecision
) -> None:
    """A rejection proves the end of the stream that was meant, of any stream of that name, or of none."""
    assert first_decision(kind, event).action is first
    assert rule_for(kind, event, ambiguous_before=True) is after_attempt


def test_rejected_stops_are_listed_for_each_kind_of_stop() -> None:
    """No combination is left out."""
    stops = [kind for kind in Operation if kind.is_stop]
    assert {(event, kind) for event, kind, _, _ in REJECTED_STOPS} == {
        (event, kind) for event in STOPS for kind in stops
    }


STOPS = {AttemptResult.NOT_FOUND, AttemptResult.ALREADY_STOPPED, AttemptResult.TARGET_ENDED}


def test_rules_cover_every_result() -> None:
    """Every event has its row, except those that have tests of their own and the end by cancelling."""
    assert {row.event for row in ROWS.values()} | {
        AttemptResult.DUPLICATE_NAME,
        *STOPS,
        AttemptResult.CANCELLED,
    } == set(AttemptResult)


@pytest.mark.parametrize("event", [AttemptResult.STALE_CONNECTION])
@pytest.mark.parametrize("kind", Operation)
def test_stale_connection_is_retried_without_delay(kind: Operation, event: AttemptResult) -> None:
    """A dead kept-alive connection costs no waiting."""
    assert first_decision(kind, event).delay == 0


@pytest.mark.parametrize(
    "event", [AttemptResult.NOT_SENT, AttemptResult.NO_RESPONSE, AttemptResult.THROTTLED, AttemptResult.UNAVAILABLE]
)
def test_other_retries_have_a_delay(event: AttemptResult) -> None:
    """All else waits before another try."""
    assert first_decision(Operation.READ, event).delay > 0


def test_cancellation_has_no_rule() -> None:
    """The cancellation propagates."""
    with pytest.raises(KeyError):
        first_decision(Operation.READ, AttemptResult.CANCELLED)
