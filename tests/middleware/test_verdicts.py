"""All sequences of up to three answers against a model of the Space: what is told of a stream is true of it."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from operator import not_
from typing import Any

import pytest
from attrs import evolve, field, frozen
from multidict import CIMultiDict

from signalwire_streams import RetryPolicy
from signalwire_streams._http import requests
from signalwire_streams._http.account import find_account
from signalwire_streams._http.messages import CallState
from signalwire_streams._http.responses import classify, confirms, contradiction, read_response
from signalwire_streams.middleware import Request
from signalwire_streams.middleware._retry import RetryBudget, RetryState
from signalwire_streams.models import (
    AttemptResult,
    Operation,
    RetryDecision,
    StartCallStream,
    StartConferenceStream,
    TargetKind,
)

ACCOUNT = find_account(space="example", base_url=None, project="project", token="token")
SID, NAME, OWN_NAME = "b3877c40-da60-4998-90ad-b792e98472ae", "sws-0123", "mine"
NEVER, ALWAYS, MAYBE = frozenset({False}), frozenset({True}), frozenset({False, True})


@frozen
class Answer:
    """One response, whether the Space carried the request out that gets this response, and what it proves.

    ``promises_rejection``: the Space says that it did not carry it out, but a gateway may say so of one that it did.
    ``is_anonymous``: it may be another request's.
    """

    name: str
    executed: frozenset[bool]
    status: int = 0
    document: Any = None
    body: bytes | None = None
    headers: dict[str, str] = field(factory=dict)
    complete: bool = True
    result: AttemptResult | None = None
    promises_rejection: bool = False
    is_anonymous: bool = False
    needs: Callable[[bool], bool] | None = None


def api_error(code: int, status: int, message: str = "refused") -> dict[str, Any]:
    return {"code": code, "message": message, "more_info": "", "status": status}


DUPLICATE = {"errors": ["Duplicated stream name"]}
COMMON = [
    Answer("200 HTML", MAYBE, 200, body=b"<html>"),
    Answer("200 broken JSON", MAYBE, 200, body=b'{"sid": '),
    Answer("200 gateway's error", MAYBE, 200, {"code": 404, "message": "no route"}),
    Answer("202", ALWAYS, 202),
    Answer("204", ALWAYS, 204),
    Answer("200 cut", ALWAYS, 200, body=b'{"si', complete=False),
    Answer("302", NEVER, 302),
    Answer("401", NEVER, 401, api_error(20003, 401)),
    Answer("408", MAYBE, 408, promises_rejection=True),
    Answer("409", NEVER, 409, api_error(20409, 409)),
    Answer("422 cut", NEVER, 422, body=json.dumps(DUPLICATE).encode()[:-3], complete=False),
    Answer("404 HTML", NEVER, 404, body=b"<html>"),
    Answer("429", MAYBE, 429, api_error(20429, 429), promises_rejection=True),
    Answer("500", MAYBE, 500),
    Answer("503", MAYBE, 503),
    Answer("503 with Retry-After", MAYBE, 503, headers={"Retry-After": "0"}, promises_rejection=True),
    Answer("reset before", NEVER, result=AttemptResult.NOT_SENT),
    Answer("stale", NEVER, result=AttemptResult.STALE_CONNECTION),
    Answer("reset after", MAYBE, result=AttemptResult.NO_RESPONSE),
    Answer("misdirected", MAYBE, result=AttemptResult.MALFORMED),
    Answer("200 anonymous", MAYBE, 200, {"sid": "another"}, is_anonymous=True),
]
TO_STARTS = [
    *COMMON,
    Answer("404", NEVER, 404, api_error(20404, 404)),
    Answer("422", NEVER, 422, {"errors": ["Url is invalid"]}),
    # Only where a stream of that name exists.
    Answer("422 duplicate", NEVER, 422, DUPLICATE, needs=bool),
    Answer("200", ALWAYS, 200, {"sid": SID, "conference_sid": "room", "call_sid": None}),
]
ENDED: dict[str, Any] = {"needs": not_}
TO_STOPS = [
    *COMMON,
    Answer("404", NEVER, 404, api_error(20404, 404), **ENDED),
    Answer("already stopped", NEVER, 400, api_error(21220, 400, "Stream is already stopped"), **ENDED),
    Answer("conference over", NEVER, 400, api_error(21220, 400, "Conference is not in progress"), **ENDED),
    Answer("404 cut", NEVER, 404, body=b'{"code": 20404', complete=False),
    Answer("422", NEVER, 422, {"errors": ["Status is invalid"]}),
    Answer("200", ALWAYS, 200, {"sid": SID, "conference_sid": "room", "status": "stopped"}),
]


def start(kind: Operation, name: str | None) -> Request:
    fields: dict[str, Any] = {"url": "wss://h", "name": name, "unnamed": name is None}
    if kind is Operation.CALL_START:
        request: Any = StartCallStream(call_sid="room", **fields)
    else:
        request = StartConferenceStream(conference_sid="room", **fields)
    return requests.start(ACCOUNT, request, deadline=None, state=CallState())


STARTS: dict[str, Request] = {
    "generated name": start(Operation.CONFERENCE_START, NAME),
    "own name": start(Operation.CONFERENCE_START, OWN_NAME),
    "call": start(Operation.CALL_START, NAME),
    "call, own name": start(Operation.CALL_START, OWN_NAME),
    "unnamed": start(Operation.CONFERENCE_START, None),
}


def stop(kind: Operation) -> Request:
    if kind is Operation.END:
        return requests.end(ACCOUNT, TargetKind.CALL, SID, deadline=None)
    handle = NAME if kind is Operation.STOP_BY_NAME else SID
    return requests.stop(ACCOUNT, TargetKind.CALL, "room", handle, kind, deadline=None, state=CallState())


STOPS = {kind.value: stop(kind) for kind in Operation if kind.is_stop}


@cache
def result_of(operation: str, answer: str) -> AttemptResult:
    """Return the result of an attempt, as the transport finds it."""
    request = (STARTS | STOPS)[operation]
    given = next(one for one in (TO_STOPS if operation in STOPS else TO_STARTS) if one.name == answer)
    if given.result is not None:
        return given.result
    document = given.document
    if isinstance(document, dict) and request.operation is Operation.CALL_START and "call_sid" in document:
        document = {**document, "call_sid": "room", "conference_sid": None}
    body = given.body if given.body is not None else json.dumps(document).encode() if document else b""
    response = read_response(given.status, CIMultiDict(given.headers), body, complete=given.complete)
    if contradiction(request, response):
        return AttemptResult.MALFORMED
    result = classify(request, response)
    if result is AttemptResult.DONE and request.operation.is_stop and not confirms(request, response):
        return AttemptResult.ACCEPTED
    if result is AttemptResult.DONE:
        assert confirms(request, response) is not given.is_anonymous
    return result


@frozen
class Call:
    """How a call went: its responses, each carried out or not, its decisions, and the streams that run after it."""

    answers: tuple[tuple[Answer, bool], ...] = ()
    decisions: tuple[RetryDecision, ...] = ()
    running: int = 0
    ambiguous: bool = False

    @property
    def is_over(self) -> bool:
        return bool(self.decisions) and self.decisions[-1] in ENDS

    @property
    def last(self) -> Answer:
        return self.answers[-1][0]

    @property
    def promise_was_broken(self) -> bool:
        return any(answer.promises_rejection and executed for answer, executed in self.answers)

    def __str__(self) -> str:
        steps = zip(self.answers, self.decisions, strict=True)
        return " | ".join(f"{answer.name}{'!' if done else ''}: {decision}" for (answer, done), decision in steps)


ENDS = {
    RetryDecision.SUCCEED,
    RetryDecision.SUCCEED_WITHOUT_SID,
    RetryDecision.ALREADY_STARTED,
    RetryDecision.ALREADY_STOPPED,
    RetryDecision.FAIL,
    RetryDecision.UNKNOWN,
}


def replay(operation: str, answers: tuple[tuple[Answer, bool], ...], *, attempts: int) -> Call:
    """Make the call whose attempts have these responses."""
    request = (STARTS | STOPS)[operation]
    policy = RetryPolicy(max_attempts=attempts)
    retry = RetryState(
        policy,
        request.operation,
        RetryBudget(),
        lambda: 0.0,
        1e9,
        has_unique_name=request.has_unique_name,
    )
    decisions: list[RetryDecision] = []
    running, ambiguous = int(request.operation.is_stop), False
    for answer, executed in answers:
        ambiguous = retry.ambiguous
        decisions.append(retry.decide(result_of(operation, answer.name), 0.0).action)
        if executed and request.operation.is_stop:
            running = 0
        elif executed and not (running and request.operation is Operation.CONFERENCE_START):
            running += 1  # a conference rejects a second stream of a name, here by a callback
    return Call(answers, tuple(decisions), running, ambiguous)


def all_calls(operation: str, *, taken: bool = False, attempts: int = 3) -> Iterator[Call]:
    """Make all calls of up to three responses, and those that go on after them."""
    is_stop = operation in STOPS
    # One response for all that mean the same.
    answers = {
        (result_of(operation, one.name), one.executed, one.promises_rejection, one.is_anonymous, one.needs): one
        for one in (TO_STOPS if is_stop else TO_STARTS)
    }
    going = [Call(running=int(is_stop))]
    for _ in range(3):
        begun, going = going, []
        for call, answer in product(begun, answers.values()):
            if answer.needs is not None and not answer.needs(bool(call.running) or taken):
                continue
            for executed in answer.executed:
                longer = replay(operation, (*call.answers, (answer, executed)), attempts=attempts)
                yield longer
                if not longer.is_over:
                    going.append(longer)


def check_start(call: Call) -> None:
    """Check what a start tells, where the Space's promise that it rejected one was kept."""
    end = call.decisions[-1]
    if end is RetryDecision.FAIL:
        assert not call.running, call
    elif end in {RetryDecision.SUCCEED, RetryDecision.SUCCEED_WITHOUT_SID, RetryDecision.ALREADY_STARTED}:
        # An anonymous 200 may be another request's; such a start is ambiguous, and is logged as that.
        assert call.running or call.last.is_anonymous, call
    assert call.running <= 1, call


@pytest.mark.parametrize("operation", STARTS)
def test_start_tells_nothing_that_is_not_true(operation: str) -> None:
    """None is doubled, none that runs is told as rejected, and none that does not run as started."""
    calls = [call for call in all_calls(operation) if not call.promise_was_broken]
    assert len(calls) > 20
    for call in calls:
        check_start(call)
        if call.decisions[-1] is RetryDecision.SUCCEED and not (call.ambiguous or call.last.is_anonymous):
            # Its sid is that of the stream that runs.
            assert (call.running, sum(executed for _, executed in call.answers)) == (1, 1)


def test_start_under_a_taken_name_is_never_reported_as_rejected_if_it_runs() -> None:
    """Another stream of a name that the caller chose may run, and is what "already started" may be about."""
    calls = [call for call in all_calls("own name", taken=True) if not call.promise_was_broken]
    assert len(calls) > 20
    for call in calls:
        check_start(evolve(call, running=1) if call.decisions[-1] is RetryDecision.ALREADY_STARTED else call)


BELIEVED = {"302", "401", "404", "409", "422"}
"""Rejections that are no rejections of a duplicate, so they say that no earlier attempt was carried out either."""


@pytest.mark.parametrize("operation", ["generated name", "call"])
def test_any_response_that_may_reject_a_duplicate_shows_that_a_temporary_rejection_was_wrong(operation: str) -> None:
    """A duplicate shows that a 503, 408 or 429 was carried out, and what can't be read may be one.

    No other start has this name. A readable rejection for another reason, or no better response, is believed.
    """
    calls = [call for call in all_calls(operation) if call.promise_was_broken and call.is_over]
    assert len(calls) > 50
    for call in calls:
        if call.decisions[-1] is RetryDecision.FAIL:
            is_exhausted = result_of(operation, call.last.name) in {AttemptResult.UNAVAILABLE, AttemptResult.TRY_AGAIN}
            assert is_exhausted or call.last.name in BELIEVED, call
        else:
            check_start(evolve(call, running=min(call.running, 1)))
        if operation == "generated name":
            assert call.running == 1, call


@pytest.mark.parametrize("operation", STOPS)
def test_stop_tells_nothing_that_is_not_true(operation: str) -> None:
    """What is told as stopped does not run, except after a response that names nothing and may be another request's."""
    calls = list(all_calls(operation))
    assert len(calls) > 50
    stopped = {RetryDecision.SUCCEED, RetryDecision.ALREADY_STOPPED}
    for call in calls:
        if call.decisions[-1] in stopped and call.running:
            assert operation == Operation.STOP_BY_NAME
            assert any(answer.is_anonymous for answer, _ in call.answers), call
        assert call.decisions[-1] is not RetryDecision.UNKNOWN


@pytest.mark.parametrize("operation", [*STARTS, *STOPS])
def test_call_ends_within_its_attempts(operation: str) -> None:
    """With two attempts, no call goes on after three responses unless one of them was not sent or was throttled."""
    for call in all_calls(operation, attempts=2):
        if len(call.answers) == 3 and not call.is_over:
            free = {AttemptResult.NOT_SENT, AttemptResult.STALE_CONNECTION, AttemptResult.THROTTLED}
            assert any(result_of(operation, answer.name) in free for answer, _ in call.answers), call
