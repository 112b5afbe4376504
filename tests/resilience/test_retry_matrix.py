"""The retry matrix, row by row, as the project promises it."""

from typing import NamedTuple

import pytest

from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.middleware._retry import Decision, RetryBudget, Retrying, action_for
from signalwire_streams.models import Action, Event, Kind


class Row(NamedTuple):
    """What is done after the first attempt of a call ended so.

    ``carefully`` is a named start on a call while the policy does not send those again.
    """

    event: Event
    idempotent: Action
    named: Action
    carefully: Action
    unnamed: Action


def everywhere(event: Event, action: Action) -> Row:
    return Row(event, action, action, action, action)


ROWS: dict[str, Row] = {
    "answered": everywhere(Event.DONE, Action.FINISH),
    "DNS, refused, connect timeout, TLS reset": everywhere(Event.UNSENT, Action.RETRY_UNSENT),
    "bad certificate, bad URL, proxy 407": everywhere(Event.UNUSABLE, Action.FAIL),
    "slot, pacer or deadline expired before sending": everywhere(Event.EXPIRED, Action.FAIL),
    "breaker open": everywhere(Event.BREAKER_OPEN, Action.FAIL),
    "dead kept-alive connection": Row(
        Event.STALE, Action.RETRY_NOW, Action.RETRY_NOW, Action.RETRY_NOW, Action.RETRY_ONCE
    ),
    "reset or timeout after writing": Row(Event.BROKEN, Action.RETRY, Action.RESEND, Action.UNKNOWN, Action.UNKNOWN),
    "malformed answer": Row(Event.MALFORMED, Action.RETRY, Action.RESEND, Action.UNKNOWN, Action.UNKNOWN),
    "the session's own code failed after writing": Row(
        Event.SESSION_FAILED, Action.FAIL, Action.UNKNOWN, Action.UNKNOWN, Action.UNKNOWN
    ),
    "2xx without a sid": Row(Event.ACCEPTED, Action.RETRY, Action.BY_NAME, Action.BY_NAME, Action.UNKNOWN),
    "3xx": everywhere(Event.REDIRECTED, Action.FAIL),
    "400 404 409 422": everywhere(Event.REJECTED, Action.FAIL),
    "401 403": everywhere(Event.DENIED, Action.FAIL),
    "408 425": everywhere(Event.TRY_AGAIN, Action.RETRY),
    "429 or 20429": everywhere(Event.THROTTLED, Action.WAIT_FOR_GATE),
    "503 in the API's words or with Retry-After": everywhere(Event.UNAVAILABLE, Action.RETRY),
    "bare 503, 500, 20504, 502, 504": Row(
        Event.SERVER_FAULT, Action.RETRY, Action.RESEND, Action.UNKNOWN, Action.UNKNOWN
    ),
}
ENDS = {
    Action.FINISH,
    Action.ALREADY_STARTED,
    Action.ALREADY_STOPPED,
    Action.BY_NAME,
    Action.FAIL,
    Action.UNKNOWN,
}
COLUMNS = {
    "read": (Kind.READ, False, "idempotent"),
    "stop": (Kind.STOP, False, "idempotent"),
    "conference start": (Kind.CONFERENCE_START, False, "named"),
    "conference start, call starts switched on": (Kind.CONFERENCE_START, True, "named"),
    "call start": (Kind.CALL_START, False, "carefully"),
    "call start, switched on": (Kind.CALL_START, True, "named"),
    "unnamed start": (Kind.UNNAMED_START, False, "unnamed"),
    "unnamed start, call starts switched on": (Kind.UNNAMED_START, True, "unnamed"),
}


def first_decision(kind: Kind, event: Event, *, resend_call_starts: bool = False) -> Decision:
    policy = RetryPolicy(resend_call_starts=resend_call_starts)
    return Retrying(policy, kind, RetryBudget(), lambda: 0.5, deadline_at=145.0).decide(event, 100.0)


@pytest.mark.parametrize(("kind", "switch", "column"), COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_is_done_after_the_first_attempt(row: Row, kind: Kind, column: str, *, switch: bool) -> None:
    """Each row of the matrix, for each kind of request."""
    decision = first_decision(kind, row.event, resend_call_starts=switch)
    expected = getattr(row, column)
    assert decision.action is expected
    assert decision.is_final is (expected in ENDS)
    if decision.is_final:
        assert decision.wait == 0


@pytest.mark.parametrize("kind", [Kind.CONFERENCE_START, Kind.CALL_START, Kind.UNNAMED_START])
def test_a_duplicate_name_at_the_first_attempt_is_the_callers(kind: Kind) -> None:
    """A name that was taken before the call began is refused."""
    assert first_decision(kind, Event.DUPLICATE_NAME).action is Action.FAIL


STOPPED, FAILED = Action.ALREADY_STOPPED, Action.FAIL
REFUSED_STOPS = [
    # what the Space says,     what the handle is,     at the first attempt, after one that may have worked
    (Event.TARGET_ENDED, Kind.STOP_RETURNED, STOPPED, STOPPED),
    (Event.TARGET_ENDED, Kind.STOP, STOPPED, STOPPED),
    (Event.TARGET_ENDED, Kind.STOP_BY_NAME, STOPPED, STOPPED),
    (Event.TARGET_ENDED, Kind.STOP_AMBIGUOUS, STOPPED, STOPPED),
    (Event.ENDED, Kind.STOP_RETURNED, STOPPED, STOPPED),
    (Event.ENDED, Kind.STOP, STOPPED, STOPPED),
    (Event.ENDED, Kind.STOP_BY_NAME, STOPPED, STOPPED),
    (Event.ENDED, Kind.STOP_AMBIGUOUS, FAILED, FAILED),
    (Event.GONE, Kind.STOP_RETURNED, STOPPED, STOPPED),
    (Event.GONE, Kind.STOP, FAILED, FAILED),
    (Event.GONE, Kind.STOP_BY_NAME, FAILED, FAILED),
    (Event.GONE, Kind.STOP_AMBIGUOUS, FAILED, FAILED),
]


@pytest.mark.parametrize(("event", "kind", "first", "after_attempt"), REFUSED_STOPS)
def test_refused_stop_is_success_where_it_proves_that_stream_ended(
    event: Event, kind: Kind, first: Action, after_attempt: Action
) -> None:
    """A refusal proves the end of the stream that was meant, of any stream of that name, or of none."""
    assert first_decision(kind, event).action is first
    assert action_for(kind, event, ambiguous_before=True) is after_attempt


def test_refused_stops_are_listed_for_each_kind_of_stop() -> None:
    """No combination is left out."""
    stops = [kind for kind in Kind if kind.is_stop]
    assert {(event, kind) for event, kind, _, _ in REFUSED_STOPS} == {
        (event, kind) for event in STOPS for kind in stops
    }


STOPS = {Event.GONE, Event.ENDED, Event.TARGET_ENDED}


def test_the_table_leaves_out_nothing_that_can_happen() -> None:
    """Every event has its row, except those that have tests of their own and the end by cancelling."""
    assert {row.event for row in ROWS.values()} | {Event.DUPLICATE_NAME, *STOPS, Event.CANCELLED} == set(Event)


@pytest.mark.parametrize("event", [Event.STALE])
@pytest.mark.parametrize("kind", Kind)
def test_what_was_not_written_is_sent_again_at_once(kind: Kind, event: Event) -> None:
    """A dead kept-alive connection costs no waiting."""
    assert first_decision(kind, event).wait == 0


@pytest.mark.parametrize("event", [Event.UNSENT, Event.BROKEN, Event.THROTTLED, Event.UNAVAILABLE])
def test_other_retries_wait(event: Event) -> None:
    """All else waits before another try."""
    assert first_decision(Kind.READ, event).wait > 0


def test_being_cancelled_is_nothing_to_decide() -> None:
    """A cancelled attempt has no row: the cancellation goes on."""
    with pytest.raises(KeyError):
        first_decision(Kind.READ, Event.CANCELLED)
