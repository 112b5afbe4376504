"""From the outcome of a call to its error: the class, the one line, the evidence, and no secret."""

import json
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, strategies as st
from multidict import CIMultiDict

from signalwire_streams._http import requests
from signalwire_streams._http.account import find_account
from signalwire_streams._http.error_mapping import to_exception
from signalwire_streams._http.messages import CallState
from signalwire_streams._http.responses import classify, read_response
from signalwire_streams.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    CircuitOpenError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    Phase,
    RateLimitedError,
    Sent,
    ServerError,
    StreamOutcomeUnknownError,
    StreamsError,
    TransportError,
    UnprocessableError,
)
from signalwire_streams.middleware import Request, Result
from signalwire_streams.models import (
    AttemptResult,
    Operation,
    RetryDecision,
    StartCallStream,
    StartConferenceStream,
    TargetKind,
)

TOKEN = "PThush/hush+hush"
BEARER = "bearer&hush=hush"
VALUE = "4111 1111 1111 hush"
USER, QUERY = "ada:hush-hush", "key=hushed&id=7"
ACCOUNT = find_account(space="example", base_url=None, project="project", token=TOKEN)
NAMED = StartConferenceStream(
    conference_sid="conf",
    url="wss://audio.example.com/stream",
    name="room-7",
    parameters={"card": VALUE},
    authorization_bearer_token=BEARER,
    status_callback=f"https://{USER}@example.com/heard?{QUERY}",
)
ON_A_CALL = StartCallStream(call_sid="call", url="wss://audio.example.com/stream", name="room-7")
UNNAMED = StartCallStream(call_sid="call", url="wss://audio.example.com/stream", unnamed=True)
HINT_401 = "check the project id, the API token and the Space"
HINT_403 = "check the token's scopes"
HINT_REDIRECT = "the API does not redirect: check the Space's name or base_url"


def start() -> Request:
    return requests.start(ACCOUNT, NAMED, deadline=None, state=CallState())


def unnamed_start() -> Request:
    return requests.start(ACCOUNT, UNNAMED, deadline=None, state=CallState())


def read() -> Request:
    return requests.read(ACCOUNT, TargetKind.CALL, "call")


def answered(
    request: Request, status: int, body: object = b"", /, headers: dict[str, str] | None = None, **more: Any
) -> StreamsError:
    """Build the error of a call whose last attempt had this response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = read_response(status, CIMultiDict(headers or {}), content, complete=True)
    known: dict[str, Any] = {
        "attempt_result": classify(request, reply),
        "phase": Phase.RESPONDED,
        "response": reply,
        "decision": RetryDecision.FAIL,
        "sent": "yes",
    }
    return to_exception(request, Result(**(known | more)))


def unanswered(request: Request, event: AttemptResult, **more: Any) -> StreamsError:
    """Build the error of a call whose last attempt had no response."""
    known: dict[str, Any] = {"phase": Phase.WAITING, "decision": RetryDecision.FAIL, "sent": "maybe"}
    return to_exception(request, Result(attempt_result=event, **(known | more)))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b"", BadRequestError),
        (401, b"", AuthenticationError),
        (403, b"", PermissionDeniedError),
        (404, b"", NotFoundError),
        (422, b"", UnprocessableError),
        (429, b"", RateLimitedError),
        (500, b"", ServerError),
        (502, b"", ServerError),
        (503, b"", ServerError),
        (503, {"code": 20001, "message": "x"}, ServerError),
        (504, b"", ServerError),
        (599, b"", ServerError),
        (302, b"", ApiError),
        (405, b"", ApiError),
        (408, b"", ApiError),
        (409, b"", ApiError),
        (418, b"", ApiError),
        (425, b"", ApiError),
        (400, {"code": 20429}, RateLimitedError),
        (503, {"code": 20429}, RateLimitedError),
        (400, {"code": 20504}, ServerError),
        (200, b"", MalformedResponseError),
        (200, b"<html>", MalformedResponseError),
        (199, b"", MalformedResponseError),
        (600, b"", MalformedResponseError),
    ],
)
def test_status_and_code_choose_error_class(status: int, body: object, kind: type[StreamsError]) -> None:
    """The class of an error is that of the status, or of the platform's code where it says more."""
    error = answered(read(), status, body)
    assert type(error) is kind
    assert isinstance(error, ApiError | MalformedResponseError)
    assert (error.status, error.sent, error.attempts) == (status, "yes", 1)


LINES: dict[str, tuple[StreamsError, str]] = {
    "the documented shape": (
        answered(start(), 400, {"code": 21402, "message": "Url is invalid", "status": 400}),
        "start a stream on conference conf: HTTP 400 [code 21402]: Url is invalid",
    ),
    "sentences": (
        answered(start(), 422, {"errors": ["Url is invalid", "Name is too long"]}),
        "start a stream on conference conf: HTTP 422: Url is invalid; Name is too long",
    ),
    "objects": (
        answered(start(), 400, {"errors": [{"code": "20001", "message": "Unknown"}]}),
        "start a stream on conference conf: HTTP 400 [code 20001]: Unknown",
    ),
    "code alone": (
        answered(read(), 400, {"code": 7}),
        "get Calls/call: HTTP 400 [code 7], no content type body, 11 bytes long",
    ),
    "HTML": (
        answered(read(), 502, b"<html></html>", headers={"Content-Type": "text/html"}),
        "get Calls/call: HTTP 502, text/html body, 13 bytes long",
    ),
    "no body": (answered(read(), 503), "get Calls/call: HTTP 503, no body"),
    "detail": (answered(read(), 503, detail="the body broke off"), "get Calls/call: HTTP 503: the body broke off"),
    "401": (
        answered(read(), 401, {"code": 20003, "message": "Authentication failed"}),
        f"get Calls/call: HTTP 401 [code 20003]: Authentication failed; {HINT_401}",
    ),
    "403": (answered(read(), 403), f"get Calls/call: HTTP 403, no body; {HINT_403}"),
    "redirect": (answered(read(), 302), f"get Calls/call: HTTP 302, no body; {HINT_REDIRECT}"),
    "attempts": (answered(read(), 500, attempts=3), "get Calls/call: HTTP 500, no body (3 attempts)"),
    "everything": (
        answered(
            read(),
            429,
            {"code": 20429, "message": "Too many requests"},
            headers={"X-Request-Id": "req-1"},
            retry_after=12.5,
            attempts=7,
        ),
        "get Calls/call: HTTP 429 [code 20429]: Too many requests (7 attempts, retry after 12.5 s, request id req-1)",
    ),
    "an hour to wait": (
        answered(read(), 429, retry_after=3600.0),
        "get Calls/call: HTTP 429, no body (retry after 3600 s)",
    ),
    "a wait to the millisecond": (
        answered(read(), 429, retry_after=2.34567),
        "get Calls/call: HTTP 429, no body (retry after 2.346 s)",
    ),
    "garbage": (
        unanswered(read(), AttemptResult.MALFORMED, detail="BadStatusLine"),
        "get Calls/call: the response can't be parsed: BadStatusLine (the Space may have received it)",
    ),
    "a code without end": (
        answered(read(), 400, b'{"code":' + b"9" * 4000 + b"}"),
        "get Calls/call: HTTP 400, no content type body, 4009 bytes long",
    ),
    "a stop": (
        answered(
            requests.stop(
                ACCOUNT, TargetKind.CALL, "call", "room-7", Operation.STOP_BY_NAME, deadline=None, state=CallState()
            ),
            404,
        ),
        "stop stream room-7 on call call: HTTP 404, no body",
    ),
    "unreadable": (
        answered(read(), 200, b"<html>", headers={"Content-Type": "text/html"}),
        "get Calls/call: the response can't be parsed: HTTP 200, text/html body, 6 bytes long",
    ),
    "could not connect": (
        unanswered(read(), AttemptResult.NOT_SENT, detail="refused", phase=Phase.CONNECTING, sent="no", attempts=4),
        "get Calls/call: could not connect: refused (4 attempts, nothing was sent)",
    ),
    "no response": (
        unanswered(read(), AttemptResult.NO_RESPONSE, detail="timeout"),
        "get Calls/call: no response: timeout (the Space may have received it)",
    ),
    "no answer, nothing known": (
        unanswered(read(), AttemptResult.NO_RESPONSE),
        "get Calls/call: no response (the Space may have received it)",
    ),
    "no answer, but one before": (
        unanswered(read(), AttemptResult.NO_RESPONSE, sent="yes"),
        "get Calls/call: no response",
    ),
    "not in time": (
        unanswered(
            read(),
            AttemptResult.DEADLINE_EXCEEDED,
            detail="no connection",
            phase=Phase.QUEUED,
            sent="no",
            retry_after=0.25,
        ),
        "get Calls/call: not sent in time: no connection (nothing was sent, retry after 0.25 s)",
    ),
    "breaker": (
        unanswered(read(), AttemptResult.BREAKER_OPEN, phase=Phase.QUEUED, sent="no", retry_after=5.0, attempts=0),
        "get Calls/call: not sent, the circuit breaker is open (nothing was sent, retry after 5 s)",
    ),
    "breaker, after an attempt that did not connect": (
        unanswered(read(), AttemptResult.BREAKER_OPEN, phase=Phase.QUEUED, sent="no", attempts=2),
        "get Calls/call: not sent, the circuit breaker is open (2 attempts, nothing was sent)",
    ),
    "breaker, after an attempt without a response": (
        unanswered(read(), AttemptResult.BREAKER_OPEN, phase=Phase.QUEUED, attempts=2, retry_after=5.0),
        (
            "get Calls/call: not sent again, the circuit breaker is open"
            " (2 attempts, the Space may have received it, retry after 5 s)"
        ),
    ),
    "not again in time": (
        unanswered(read(), AttemptResult.DEADLINE_EXCEEDED, phase=Phase.QUEUED, detail="no connection", attempts=2),
        "get Calls/call: not sent again in time: no connection (2 attempts, the Space may have received it)",
    ),
}


@pytest.mark.parametrize(("error", "line"), LINES.values(), ids=LINES)
def test_error_message_is_one_line_with_call_reason_and_evidence(error: StreamsError, line: str) -> None:
    """An error is one line: the call, what happened, a hint if there is one, and the evidence."""
    assert str(error) == line


def test_garbage_instead_of_http_is_malformed() -> None:
    """A response that is not HTTP has no status, and its control characters are not shown."""
    error = unanswered(read(), AttemptResult.MALFORMED, detail="BadStatusLine: \x16\x03")
    assert isinstance(error, MalformedResponseError)
    assert error.status is None
    assert str(error) == "get Calls/call: the response can't be parsed: BadStatusLine: (the Space may have received it)"


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (AttemptResult.NOT_SENT, TransportError),
        (AttemptResult.STALE_CONNECTION, TransportError),
        (AttemptResult.UNRETRYABLE, TransportError),
        (AttemptResult.DEADLINE_EXCEEDED, TransportError),
        (AttemptResult.NO_RESPONSE, TransportError),
        (AttemptResult.BREAKER_OPEN, CircuitOpenError),
    ],
)
@pytest.mark.parametrize("phase", Phase)
def test_result_without_response_chooses_error_class(
    event: AttemptResult, kind: type[TransportError], phase: Phase
) -> None:
    """Without a response, the error says how far the attempt got."""
    error = unanswered(read(), event, phase=phase)
    assert type(error) is kind
    assert isinstance(error, TransportError)
    assert error.phase is phase


@pytest.mark.parametrize("sent", ["no", "maybe", "yes"])
def test_error_carries_sent_attempts_and_request_id(sent: Sent) -> None:
    """Whether it was sent, how often, how long to wait and the request's id are attributes as well."""
    for error in (
        answered(read(), 503, headers={"X-Request-Id": "req-1"}, sent=sent, attempts=3, retry_after=2.0),
        answered(read(), 200, headers={"X-Request-Id": "req-1"}, sent=sent, attempts=3, retry_after=2.0),
        answered(
            start(),
            502,
            headers={"X-Request-Id": "req-1"},
            sent=sent,
            attempts=3,
            retry_after=2.0,
            decision=RetryDecision.UNKNOWN,
        ),
    ):
        assert (error.sent, error.attempts, error.retry_after, error.request_id) == (sent, 3, 2.0, "req-1")
    lost = unanswered(read(), AttemptResult.NO_RESPONSE, sent=sent, attempts=3, retry_after=2.0)
    assert (lost.sent, lost.attempts, lost.retry_after, lost.request_id) == (sent, 3, 2.0, None)


def test_api_error_carries_code_and_messages() -> None:
    """The platform's code, its sentences and its page about the code are attributes."""
    more_info = "https://signalwire.com/docs/compatibility-api/reference/errors"
    error = answered(
        start(), 422, {"code": 21402, "message": "Url\nis invalid", "errors": ["x"], "more_info": more_info}
    )
    assert isinstance(error, UnprocessableError)
    assert (error.code, error.errors, error.more_info) == (21402, ("Url is invalid", "x"), more_info)
    bare = answered(start(), 422)
    assert isinstance(bare, UnprocessableError)
    assert (bare.code, bare.errors, bare.more_info) == (None, (), None)


UNKNOWN: dict[str, tuple[StreamsError, str]] = {
    "named": (
        unanswered(start(), AttemptResult.NO_RESPONSE, detail="timeout", decision=RetryDecision.UNKNOWN, attempts=3),
        (
            "start a stream on conference conf: the stream may or may not be running"
            " (last attempt: no response: timeout);"
            " stop it by its name 'room-7', or start it again with that name and may_be_running=True (3 attempts)"
        ),
    ),
    "named, on a call": (
        unanswered(
            requests.start(ACCOUNT, ON_A_CALL, deadline=None, state=CallState()),
            AttemptResult.NO_RESPONSE,
            detail="timeout",
            decision=RetryDecision.UNKNOWN,
        ),
        (
            "start a stream on call call: the stream may or may not be running (no response: timeout);"
            " stop it by its name 'room-7'; starting again, even under that name, may start a second one"
        ),
    ),
    "named, and the last attempt never left": (
        unanswered(
            start(),
            AttemptResult.BREAKER_OPEN,
            sent="maybe",
            decision=RetryDecision.UNKNOWN,
            attempts=2,
            retry_after=5.0,
        ),
        (
            "start a stream on conference conf: the stream may or may not be running"
            " (last attempt: not sent again, the circuit breaker is open);"
            " stop it by its name 'room-7', or start it again with that name and may_be_running=True"
            " (2 attempts, retry after 5 s)"
        ),
    ),
    "unnamed": (
        unanswered(unnamed_start(), AttemptResult.NO_RESPONSE, detail="timeout", decision=RetryDecision.UNKNOWN),
        (
            "start a stream on call call: the stream may or may not be running (no response: timeout);"
            " it was sent without a name, so starting again may start a second one"
        ),
    ),
    "answered with a fault": (
        answered(unnamed_start(), 502, headers={"X-Request-Id": "req-1"}, decision=RetryDecision.UNKNOWN),
        (
            "start a stream on call call: the stream may or may not be running (HTTP 502, no body);"
            " it was sent without a name, so starting again may start a second one (request id req-1)"
        ),
    ),
    "a page under a 200": (
        answered(
            unnamed_start(), 200, b"<html>", headers={"Content-Type": "text/html"}, decision=RetryDecision.UNKNOWN
        ),
        (
            "start a stream on call call: the stream may or may not be running"
            " (HTTP 200, text/html body, 6 bytes long);"
            " it was sent without a name, so starting again may start a second one"
        ),
    ),
    "accepted": (
        answered(unnamed_start(), 200, b"{}", decision=RetryDecision.UNKNOWN),
        (
            "start a stream on call call: the stream is running, but its sid was lost"
            " (HTTP 200, no content type body, 2 bytes long);"
            " it was sent without a name, so starting again may start a second one"
        ),
    ),
}


@pytest.mark.parametrize(("error", "line"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_outcome_message_says_what_to_do(error: StreamsError, line: str) -> None:
    """An unknown outcome is reported with the evidence and with what is safe to do."""
    assert type(error) is StreamOutcomeUnknownError
    assert str(error) == line


def test_unknown_outcome_carries_target_and_name() -> None:
    """The target, the name, how far it got and whether it was accepted are attributes."""
    lost = UNKNOWN["named"][0]
    assert isinstance(lost, StreamOutcomeUnknownError)
    assert (lost.target, lost.name, lost.phase, lost.status, lost.accepted) == (
        "conf",
        "room-7",
        Phase.WAITING,
        None,
        False,
    )
    accepted = UNKNOWN["accepted"][0]
    assert isinstance(accepted, StreamOutcomeUnknownError)
    assert (accepted.target, accepted.name, accepted.status, accepted.accepted) == ("call", None, 200, True)
    assert accepted.phase is Phase.RESPONDED


def test_named_start_accepted_without_sid_can_be_unknown() -> None:
    """An accepted start says that it runs, and under which name."""
    error = answered(start(), 200, b"{}", decision=RetryDecision.UNKNOWN)
    assert isinstance(error, StreamOutcomeUnknownError)
    assert error.accepted
    assert "the stream is running, but its sid was lost" in str(error)
    assert "stop it by its name 'room-7'" in str(error)


SECRETS = {
    "the token": TOKEN,
    "the authorization": ACCOUNT.authorization.removeprefix("Basic "),
    "the bearer token": BEARER,
    "a parameter's value": VALUE,
    "the callback's user": USER,
    "the callback's query": QUERY,
}
SPELLINGS = {
    "bare": str,
    "as in a form": quote_plus,
    "as in a path": lambda text: quote(text, safe=""),
    "as in a page": escape,
    "in capitals": str.upper,
}


def told(error: StreamsError) -> str:
    return repr((str(error), repr(error), error.args, vars(error)))


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secret_repeated_by_space_is_redacted(secret: str, spell: Any) -> None:
    """Neither message nor attribute of any error repeats a secret, wherever the response has it."""
    echo = spell(secret)
    document = {
        "code": 1,
        "message": f"bad {echo}!",
        "errors": [echo, {"message": echo}],
        "more_info": f"https://x/?{echo}",
    }
    errors = [
        answered(start(), 422, document),
        answered(start(), 500, document, decision=RetryDecision.UNKNOWN),
        answered(start(), 502, b"<html>", headers={"Content-Type": f"text/{echo}"}),
        answered(start(), 200, echo.encode(), headers={"Content-Type": f"text/{echo}"}),
        unanswered(start(), AttemptResult.NO_RESPONSE, detail=f"reset by {echo}"),
        unanswered(start(), AttemptResult.NO_RESPONSE, detail=f"reset by {echo}", decision=RetryDecision.UNKNOWN),
        unanswered(start(), AttemptResult.MALFORMED, detail=echo),
    ]
    for error in errors:
        assert echo not in told(error)
        assert secret not in told(error)
        assert "hush" not in told(error).lower()


@pytest.mark.parametrize("before", range(270, 301, 6))
def test_secret_at_truncation_boundary_is_redacted(before: int) -> None:
    """A secret at the very end of what is shown leaves not even its first letters."""
    error = answered(start(), 400, {"message": "x" * before + TOKEN + "y" * 100, "more_info": "x" * before + BEARER})
    assert "hus" not in told(error)
    assert "PT" not in told(error)
    assert "bear" not in told(error)


@given(
    status=st.integers(min_value=-5, max_value=700),
    message=st.text(),
    content_type=st.text(),
    detail=st.text(),
    request_id=st.text(),
    json_body=st.booleans(),
    decision=st.sampled_from([RetryDecision.FAIL, RetryDecision.UNKNOWN]),
)
def test_any_response_yields_one_line_message(
    *,
    status: int,
    message: str,
    content_type: str,
    detail: str,
    request_id: str,
    json_body: bool,
    decision: RetryDecision,
) -> None:
    """No response can break the line of an error, nor make it endless."""
    body: object = (
        {"message": message, "errors": [message], "more_info": message}
        if json_body
        else message.encode("utf-8", "replace")
    )
    headers = {"Content-Type": content_type, "X-Request-Id": request_id}
    for error in (
        answered(start(), status, body, headers=headers, detail=detail, decision=decision),
        unanswered(start(), AttemptResult.NO_RESPONSE, detail=detail, decision=decision),
    ):
        line = str(error)
        assert line.isprintable()
        assert len(line) < 1200
