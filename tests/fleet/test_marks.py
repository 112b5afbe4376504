"""The mark of an item in Redis: what it keeps of earlier attempts, whatever the next worker's attempt ends in."""

from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve, frozen

from signalwire_streams import (
    AuthenticationError,
    BadRequestError,
    BulkOutcome,
    BulkStatus,
    ConferenceStream,
    InvalidRequestError,
    RateLimitedError,
    RunCancelledError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._results import to_status
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._items import Batch, Evidence, ItemMark, claimed_mark, completed_mark, key_of
from signalwire_streams.fleet._ledger import BatchLedger
from signalwire_streams.fleet._redis import Writer
from signalwire_streams.models import AttemptResult

from .helpers import URL, connection_of, on_conferences, record_of, redis_of, set_marks

CONFERENCE = StartConferenceStream(conference_sid="c", url=URL)
REJECTED = BadRequestError("no", status=400, sent="yes")
BUSY = RateLimitedError("busy", status=429, sent="yes")
DENIED = AuthenticationError("denied", status=401, sent="yes")
UNKNOWN = StreamOutcomeUnknownError("lost", sent="maybe")
NO_429, AFTER_429, AFTER_503 = frozenset[AttemptResult](), {AttemptResult.THROTTLED}, {AttemptResult.UNAVAILABLE}


def outcome_of(status: BulkStatus) -> BulkOutcome[Any]:
    stream = ConferenceStream(conference_sid="c", sid="s:1", name="n", ambiguous=True)
    return BulkOutcome(index=0, item=CONFERENCE, status=status, stream=stream if status is BulkStatus.STARTED else None)


@pytest.mark.parametrize("name", ["n", "sws-1-c"])
@pytest.mark.parametrize(
    ("mark", "stream"),
    [
        (completed_mark(outcome_of(BulkStatus.STARTED), Evidence.REJECTED), {"sid": "s:1", "ambiguous": True}),
        (completed_mark(outcome_of(BulkStatus.UNKNOWN), Evidence.REJECTED), {}),
        (completed_mark(outcome_of(BulkStatus.REJECTED), Evidence.NONE), None),
        (completed_mark(outcome_of(BulkStatus.REJECTED), Evidence.THROTTLED), None),
        (completed_mark(outcome_of(BulkStatus.REJECTED), Evidence.REJECTED), "only with a generated name"),
        (completed_mark(outcome_of(BulkStatus.NOT_ATTEMPTED), Evidence.NONE), None),
        (completed_mark(outcome_of(BulkStatus.NOT_ATTEMPTED), Evidence.REJECTED), "only with a generated name"),
        (completed_mark(outcome_of(BulkStatus.NOT_ATTEMPTED), Evidence.THROTTLED), None),
        (claimed_mark("worker"), {}),
        ("r", "only with a generated name"),
        ("", None),
        ("t", None),
    ],
)
def test_mark_identifies_stream_that_may_be_running(name: str, mark: str, stream: dict[str, Any] | str | None) -> None:
    """A rejection for now may have started the stream, but under the caller's own name another one may be running."""
    if isinstance(stream, str):
        stream = {} if name.startswith("sws-") else None
    expected = None if stream is None else ConferenceStream(conference_sid="c", name=name, **stream)

    assert ItemMark(mark).stream_of(evolve(CONFERENCE, name=name)) == expected


@pytest.mark.parametrize("earlier", Evidence)
@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("", Evidence.NONE),
        ("t", Evidence.THROTTLED),
        ("r", Evidence.REJECTED),
        ("i", Evidence.IN_DOUBT),
        ("i:worker", Evidence.IN_DOUBT),
    ],
)
def test_mark_has_the_strongest_evidence(text: str, evidence: Evidence, earlier: Evidence) -> None:
    """Of the resumed run and of this one; the members of the enumeration are in that order."""
    order = [Evidence.NONE, Evidence.THROTTLED, Evidence.REJECTED, Evidence.IN_DOUBT]
    mark = ItemMark(text, earlier)

    assert mark.evidence is order[max(order.index(evidence), order.index(earlier))]
    assert mark.is_in_doubt is (mark.evidence is Evidence.IN_DOUBT)


@pytest.mark.parametrize("status", BulkStatus)
@pytest.mark.parametrize("evidence", [Evidence.NONE, Evidence.THROTTLED, Evidence.REJECTED])
def test_completed_mark_has_its_evidence(status: BulkStatus, evidence: Evidence) -> None:
    """What the resumed run knew is part of it, and a stream that is running needs none."""
    mark = ItemMark(completed_mark(outcome_of(status), evidence), Evidence.REJECTED)
    running = {BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.STOPPED}

    assert mark.status == status
    assert (
        mark.evidence
        is {
            **dict.fromkeys(running, Evidence.NONE),
            BulkStatus.UNKNOWN: Evidence.IN_DOUBT,
            BulkStatus.REJECTED: evidence,
            BulkStatus.NOT_ATTEMPTED: evidence,
        }[status]
    )
    assert not mark.is_in_doubt


@frozen
class Attempt:
    """What a worker's attempt ended in; an error of None stands for a stream.

    Attributes:
        rejections: how the Space rejected it for now before that.
        requeued: whether the worker leaves its items to others.
        sent: False if the item is settled without being claimed.
    """

    error: StreamsError | None
    rejections: set[AttemptResult] | frozenset[AttemptResult] = NO_429
    requeued: bool = False
    sent: bool = True


CUT = RunCancelledError("cut")
FOUND = ("", "t", "r", "i", "i:dead")
"""The marks that a worker may find, in ascending order of what they tell."""
TRANSITIONS: Mapping[str, tuple[Attempt, str]] = {
    "started": (Attempt(None), "started: started: started: started: started:"),
    "unknown": (Attempt(UNKNOWN), "unknown:i unknown:i unknown:i unknown:i unknown:i"),
    "rejected": (Attempt(REJECTED), "rejected: rejected:t rejected:r unknown:i unknown:i"),
    "rejected after a 429": (Attempt(REJECTED, AFTER_429), "rejected:t rejected:t rejected:r unknown:i unknown:i"),
    "rejected after a 503": (Attempt(REJECTED, AFTER_503), "rejected:r rejected:r rejected:r unknown:i unknown:i"),
    "refused by 429": (
        Attempt(BUSY, AFTER_429),
        "not_attempted:t not_attempted:t not_attempted:r unknown:i unknown:i",
    ),
    "refused by 503": (
        Attempt(CUT, AFTER_503),
        "not_attempted:r not_attempted:r not_attempted:r unknown:i unknown:i",
    ),
    "cancelled": (
        Attempt(CUT, sent=False),
        "not_attempted: not_attempted:t not_attempted:r unknown:i unknown:i",
    ),
    "without its secrets": (
        Attempt(InvalidRequestError("no secrets"), sent=False),
        "rejected: rejected:t unknown:i unknown:i unknown:i",
    ),
    "requeued": (Attempt(CUT, requeued=True), ": :t :r :i :i"),
    "requeued after a 429": (Attempt(CUT, AFTER_429, requeued=True), ":t :t :r :i :i"),
    "requeued after a 503": (Attempt(CUT, AFTER_503, requeued=True), ":r :r :r :i :i"),
    "requeued in flight": (Attempt(UNKNOWN, requeued=True), ":i :i :i :i :i"),
    "denied": (Attempt(DENIED), ": :t :r :i :i"),
    "denied after a 503": (Attempt(DENIED, AFTER_503), ":r :r :r :i :i"),
}


@pytest.mark.parametrize("earlier", [Evidence.NONE, Evidence.REJECTED])
@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_attempt_never_weakens_the_evidence_of_the_mark(fleet: Fleet, transition: str, earlier: Evidence) -> None:
    """For each mark that a worker may find, the status and evidence that its attempt leaves.

    What the resumed run knew counts as if the mark had told it.
    """
    attempt, line = TRANSITIONS[transition]
    expected = line.split(" ")
    requests = on_conferences([f"c{number}" for number in range(len(FOUND))])
    run = await fleet.submit(requests)
    await set_marks(fleet, run, {index: mark for index, mark in enumerate(FOUND) if mark})
    batch = Batch(evolve(await record_of(fleet, run), retention=60), 0)
    ledger = BatchLedger(batch, owner="me", writer=Writer(connection_of(fleet)))
    ledger.marks = {index: ItemMark(mark, earlier) for index, mark in enumerate(FOUND)}
    for index, request in enumerate(requests):
        ledger.expect(key_of(request), index)

    states = [await claim(ledger, request) for request in requests] if attempt.sent else []
    ledger.requeued = attempt.requeued
    for index, request in enumerate(requests):
        error = attempt.error
        if attempt.sent:
            note(ledger, states[index], attempt)
        else:
            assert error is not None
            ledger.complete_unsent(index, request, error)
    await ledger.written()

    marks = {int(k): v.decode() for k, v in (await redis_of(fleet).hgetall(batch.marks)).items()}
    told = [ItemMark(marks.get(index, ""), earlier) for index in range(len(FOUND))]
    if earlier is Evidence.REJECTED:
        expected = [expected[max(place, 2)] for place in range(len(FOUND))]
    assert [f"{mark.status}:{mark.evidence}" for mark in told] == expected


async def claim(ledger: BatchLedger, request: StartConferenceStream) -> CallState:
    state = CallState()
    record = ledger.known(key_of(request), state)
    state.may_have_succeeded = record is not None
    await ledger.intend(key_of(request), state, record)
    return state


def note(ledger: BatchLedger, state: CallState, attempt: Attempt) -> None:
    """Record the outcome as a bulk run does: an error of a start that may have succeeded says that it is unknown."""
    error = attempt.error
    if state.may_have_succeeded and isinstance(error, AuthenticationError):
        error = StreamOutcomeUnknownError("denied, and in doubt", status=401, sent="maybe")
    elif state.may_have_succeeded and attempt.requeued:
        error = UNKNOWN
    state.rejections = frozenset(attempt.rejections)
    status = BulkStatus.STARTED if error is None else to_status(error, starting=True)
    stream = ConferenceStream(conference_sid="c", sid="s") if error is None else None
    ledger.record_outcome(state, BulkOutcome(index=0, item=None, status=status, stream=stream, error=error, attempts=1))
