"""The retry matrix: what happened, times what was asked for, gives what is done.

Starting a stream is a POST without an idempotency key. So what may be repeated depends on whether the Space
can have carried it out, and on whether it can tell a repetition (by the stream's Name).
"""

from collections.abc import Mapping

from signalwire_streams.models import Action, Event, Kind

_Row = tuple[Action, Action, Action]
_EVERYWHERE: Mapping[Action, _Row] = {action: (action, action, action) for action in Action}

_PROOF, _NO_PROOF = Action.ALREADY_STOPPED, Action.FAIL

REFUSED_STOPS: Mapping[Event, Mapping[Kind, Action]] = {
    Event.TARGET_ENDED: {
        Kind.STOP_RETURNED: _PROOF,
        Kind.STOP: _PROOF,
        Kind.STOP_BY_NAME: _PROOF,
        Kind.STOP_AMBIGUOUS: _PROOF,
    },
    Event.ENDED: {
        Kind.STOP_RETURNED: _PROOF,
        Kind.STOP: _PROOF,
        Kind.STOP_BY_NAME: _PROOF,
        # This sid may be that of a second stream that was refused, while the first one runs.
        Kind.STOP_AMBIGUOUS: _NO_PROOF,
    },
    Event.GONE: {
        # The Space returned this sid from a start, so a stream that it does not know any more has ended.
        Kind.STOP_RETURNED: _PROOF,
        # A text may be misspelt, or a name in the form of a sid, also after an attempt that may have reached the Space.
        Kind.STOP: _NO_PROOF,
        # Not every Space may find streams by their names.
        Kind.STOP_BY_NAME: _NO_PROOF,
        Kind.STOP_AMBIGUOUS: _NO_PROOF,
    },
}
"""When a stop that is refused counts as a stop: whatever was asked for is so, since the stream has ended."""

#                           idempotent     named start       unnamed start
_MAY_HAVE_HAPPENED: _Row = (Action.RETRY, Action.RESEND, Action.UNKNOWN)

MATRIX: Mapping[Event, _Row] = {
    Event.DONE: _EVERYWHERE[Action.FINISH],
    # The Space never saw it.
    Event.UNSENT: _EVERYWHERE[Action.RETRY_UNSENT],
    Event.STALE: (Action.RETRY_NOW, Action.RETRY_NOW, Action.RETRY_ONCE),
    Event.UNUSABLE: _EVERYWHERE[Action.FAIL],
    Event.EXPIRED: _EVERYWHERE[Action.FAIL],
    Event.BREAKER_OPEN: _EVERYWHERE[Action.FAIL],
    # The Space may have carried it out.
    Event.BROKEN: _MAY_HAVE_HAPPENED,
    Event.MALFORMED: _MAY_HAVE_HAPPENED,
    Event.SERVER_FAULT: _MAY_HAVE_HAPPENED,
    # So it may here, and another attempt would fail in the same way.
    Event.SESSION_FAILED: (Action.FAIL, Action.UNKNOWN, Action.UNKNOWN),
    # The Space did carry it out.
    Event.ACCEPTED: (Action.RETRY, Action.BY_NAME, Action.UNKNOWN),
    # The Space refused it.
    Event.REDIRECTED: _EVERYWHERE[Action.FAIL],
    Event.REJECTED: _EVERYWHERE[Action.FAIL],
    Event.DENIED: _EVERYWHERE[Action.FAIL],
    Event.DUPLICATE_NAME: _EVERYWHERE[Action.FAIL],
    Event.GONE: _EVERYWHERE[Action.FAIL],
    Event.ENDED: _EVERYWHERE[Action.FAIL],
    Event.TARGET_ENDED: _EVERYWHERE[Action.FAIL],
    # The Space did not take it up.
    Event.TRY_AGAIN: _EVERYWHERE[Action.RETRY],
    Event.UNAVAILABLE: _EVERYWHERE[Action.RETRY],
    Event.THROTTLED: _EVERYWHERE[Action.WAIT_FOR_GATE],
}

AMBIGUOUS = frozenset({Event.BROKEN, Event.MALFORMED, Event.SESSION_FAILED, Event.SERVER_FAULT, Event.ACCEPTED})
"""After one of these, the request may have been carried out."""

_COLUMNS = {
    Kind.READ: 0,
    Kind.STOP: 0,
    Kind.STOP_RETURNED: 0,
    Kind.STOP_AMBIGUOUS: 0,
    Kind.STOP_BY_NAME: 0,
    Kind.CONFERENCE_START: 1,
    Kind.CALL_START: 1,
    Kind.UNNAMED_START: 2,
}


def action_for(kind: Kind, event: Event, *, ambiguous_before: bool) -> Action:
    """Look up what is done.

    Args:
        kind: what was asked for.
        event: what happened.
        ambiguous_before: whether an earlier attempt of the same call may have been carried out. Then a
            refusal as a duplicate proves that it was; what a refused stop proves is in `REFUSED_STOPS` anyway.
    """
    if ambiguous_before and event is Event.DUPLICATE_NAME:
        return Action.ALREADY_STARTED
    if event in REFUSED_STOPS and kind.is_stop:
        return REFUSED_STOPS[event][kind]
    return MATRIX[event][_COLUMNS[kind]]
