"""From bytes to what happened: each status, each shape of a body, for each kind of request."""

import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st
from multidict import CIMultiDict

from signalwire_streams._http.responses import classify, read_response
from signalwire_streams.middleware import Request, Response
from signalwire_streams.models import AttemptResult, Operation

STARTS = [Operation.CONFERENCE_START, Operation.CALL_START, Operation.UNNAMED_START]
POSTS = [*STARTS, Operation.STOP]


def asking(kind: Operation, expects: str = "sid") -> Request:
    method = "GET" if kind is Operation.READ else "POST"
    return Request(method=method, path="/x", operation=kind, description="ask", target="x", required_key=expects)


def reply(status: int, document: Any = None, /, *, body: bytes | None = None, **headers: str) -> Response:
    content = body if body is not None else b"" if document is None else json.dumps(document).encode()
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_response(status, CIMultiDict(spelled), content, complete=True)


API_ERROR = {"code": 20001, "message": "Unknown error", "more_info": "https://signalwire.com/x", "status": 503}


@pytest.mark.parametrize(
    ("status", "document", "event"),
    [
        (200, {"sid": "x"}, AttemptResult.DONE),
        (201, {"sid": "x"}, AttemptResult.DONE),
        (200, {"sid": ""}, AttemptResult.ACCEPTED),
        (200, {"status": "queued"}, AttemptResult.ACCEPTED),
        (200, {"name": "x"}, AttemptResult.MALFORMED),
        (200, {"status": 500, "title": "Bad Gateway"}, AttemptResult.MALFORMED),
        (200, {"status": ["queued"]}, AttemptResult.MALFORMED),
        (200, {"status": "ok"}, AttemptResult.MALFORMED),
        (200, {"fault": {"faultstring": "no route"}}, AttemptResult.MALFORMED),
        (200, {"errorMessage": "timed out"}, AttemptResult.MALFORMED),
        (200, ["x"], AttemptResult.MALFORMED),
        (200, "x", AttemptResult.MALFORMED),
        (200, None, AttemptResult.ACCEPTED),
        (200, {"sid": ["x"]}, AttemptResult.ACCEPTED),
        (200, {"code": 20001, "message": "Unknown error"}, AttemptResult.MALFORMED),
        (200, {"code": 404, "message": "no route"}, AttemptResult.MALFORMED),
        (200, {"code": "E404", "sid": None}, AttemptResult.MALFORMED),
        (202, {"message": "Forbidden"}, AttemptResult.MALFORMED),
        (200, {"error": "login required"}, AttemptResult.MALFORMED),
        (200, {"detail": "Not Found"}, AttemptResult.MALFORMED),
        (200, {"code": None, "errors": [], "sid": None}, AttemptResult.ACCEPTED),
        (200, {"code": 20429, "message": "Too many requests", "status": 429}, AttemptResult.THROTTLED),
        (202, {"errors": [{"code": "20429", "message": "Too many requests"}]}, AttemptResult.THROTTLED),
        (201, {"sid": "x", "code": 20429}, AttemptResult.DONE),
        (204, None, AttemptResult.ACCEPTED),
        (300, None, AttemptResult.REDIRECTED),
        (301, None, AttemptResult.REDIRECTED),
        (302, API_ERROR, AttemptResult.REDIRECTED),
        (303, None, AttemptResult.REDIRECTED),
        (304, None, AttemptResult.REDIRECTED),
        (307, None, AttemptResult.REDIRECTED),
        (308, None, AttemptResult.REDIRECTED),
        (400, API_ERROR, AttemptResult.REJECTED),
        (400, None, AttemptResult.UNREADABLE_REJECTION),
        (400, ["x"], AttemptResult.UNREADABLE_REJECTION),
        (404, {"message": "no route"}, AttemptResult.UNREADABLE_REJECTION),
        (404, {"code": 404, "message": "no route", "status": 404}, AttemptResult.UNREADABLE_REJECTION),
        (422, {"code": 21402}, AttemptResult.REJECTED),
        (401, API_ERROR, AttemptResult.FORBIDDEN),
        (401, None, AttemptResult.FORBIDDEN),
        (403, None, AttemptResult.FORBIDDEN),
        (405, None, AttemptResult.UNREADABLE_REJECTION),
        (408, None, AttemptResult.TRY_AGAIN),
        (409, None, AttemptResult.UNREADABLE_REJECTION),
        (422, {"errors": ["Url is invalid"]}, AttemptResult.REJECTED),
        (425, None, AttemptResult.TRY_AGAIN),
        (429, None, AttemptResult.THROTTLED),
        (499, None, AttemptResult.UNREADABLE_REJECTION),
        (500, None, AttemptResult.SERVER_FAULT),
        (500, API_ERROR, AttemptResult.SERVER_FAULT),
        (501, None, AttemptResult.SERVER_FAULT),
        (502, API_ERROR, AttemptResult.SERVER_FAULT),
        (503, None, AttemptResult.SERVER_FAULT),
        (503, ["x"], AttemptResult.SERVER_FAULT),
        (503, {"message": "no healthy upstream"}, AttemptResult.SERVER_FAULT),
        (503, {"message": "Unknown error", "more_info": "https://signalwire.com/x"}, AttemptResult.SERVER_FAULT),
        (503, {"errors": ["Unknown error"]}, AttemptResult.SERVER_FAULT),
        (503, API_ERROR, AttemptResult.UNAVAILABLE),
        (504, API_ERROR, AttemptResult.SERVER_FAULT),
        (599, None, AttemptResult.SERVER_FAULT),
        (100, None, AttemptResult.MALFORMED),
        (199, {"sid": "x"}, AttemptResult.MALFORMED),
        (600, None, AttemptResult.MALFORMED),
        (999, API_ERROR, AttemptResult.MALFORMED),
        (0, None, AttemptResult.MALFORMED),
        (-1, None, AttemptResult.MALFORMED),
    ],
)
def test_status_means_the_same_for_all_operations(status: int, document: object, event: AttemptResult) -> None:
    """A status means the same for all requests, except for names and for streams that have ended."""
    assert {classify(asking(kind), reply(status, document)) for kind in Operation} == {event}


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"OK", b"{", b"[]", b'"stopped"', b"\xff", b"null", b'{"sid"']
)
def test_complete_body_that_is_no_json_object_confirms_nothing(body: bytes) -> None:
    """A proxy's page under a 200 says nothing of the stream."""
    for kind in Operation:
        for status in (200, 202):
            assert classify(asking(kind), reply(status, body=body)) is AttemptResult.MALFORMED


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b"<html>"),
        ("", b"[{"),
        ("text/html", b""),
        ("Text/HTML; charset=utf-8", b""),
        ("text/html", b'{"sid'),
        ("", b'{"code": 404, "mess'),
        ("", b' {\n "errors": ["Url'),
        ("", b'{"fault": {"fau'),
        ("", b'{"status": 502,'),
        ("", b'{"titl'),
    ],
)
def test_broken_body_that_is_not_of_the_api_confirms_nothing(content_type: str, body: bytes) -> None:
    """The beginning of a page, of a list or of an error confirms no more than all of it."""
    for kind in Operation:
        broken = read_response(200, CIMultiDict({"Content-Type": content_type}), body, complete=False)
        assert classify(asking(kind), broken) is AttemptResult.MALFORMED


@pytest.mark.parametrize("kind", Operation)
def test_lost_body_of_a_2xx_is_accepted(kind: Operation) -> None:
    """A response without a body, or the beginning of an object, is the API's."""
    for status, body in ((204, b""), (202, b""), (200, b" \r\n"), (200, b"{}")):
        assert classify(asking(kind), reply(status, body=body)) is AttemptResult.ACCEPTED
    assert classify(asking(kind), reply(200, body=b"", Content_Type="text/html")) is AttemptResult.ACCEPTED
    for content in (b"", b' {"si', b'{"name": "code'):
        broken = read_response(200, CIMultiDict(), content, complete=False)
        assert classify(asking(kind), broken) is AttemptResult.ACCEPTED


@pytest.mark.parametrize("status", [400, 404, 405, 409, 422])
def test_rejection_without_readable_api_error_is_unreadable(status: int) -> None:
    """It is one result whether the body broke off, is too long, or is not the API's."""
    for kind in Operation:
        error = json.dumps({"errors": ["Duplicated stream name"]}).encode()
        for body in (b"", error[:-2], error):
            broken = read_response(status, CIMultiDict(), body, complete=False)
            assert classify(asking(kind), broken) is AttemptResult.UNREADABLE_REJECTION
        for body in (
            b"",
            b"<html>",
            error[:-2],
            b"[]",
            b'{"message": "no route"}',
            b'{"errors": []}',
            b'{"code": 404}',
        ):
            assert classify(asking(kind), reply(status, body=body)) is AttemptResult.UNREADABLE_REJECTION


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ({"code": 20404, "message": "x", "status": 403}, AttemptResult.FORBIDDEN),
        ({"code": 20001, "message": "x", "status": 400}, AttemptResult.REJECTED),
        ({"code": 20001, "message": "x", "more_info": ""}, AttemptResult.REJECTED),
        ({"code": 20001, "message": "x", "status": 200}, AttemptResult.REJECTED),
        ({"code": 20001, "message": "x", "status": 500}, AttemptResult.SERVER_FAULT),
        ({"code": 20001, "message": "x", "status": 503}, AttemptResult.UNAVAILABLE),
        ({"code": 20504, "message": "x", "status": 504}, AttemptResult.SERVER_FAULT),
        ({"errors": ["Url is invalid"]}, AttemptResult.REJECTED),
        ({"errors": [{"code": "20001", "message": "x"}]}, AttemptResult.REJECTED),
        ({"errors": [{"code": 7}]}, AttemptResult.MALFORMED),
        ({"errors": []}, AttemptResult.MALFORMED),
        ({"sid": "x", "errors": ["Url is invalid"]}, AttemptResult.DONE),
    ],
)
def test_apis_own_error_under_a_2xx_is_no_success(document: object, event: AttemptResult) -> None:
    """A gateway may replace the status, but not the body."""
    for kind in Operation:
        for status in (200, 202):
            assert classify(asking(kind), reply(status, document)) is event


def test_page_with_brackets_in_its_texts_is_read() -> None:
    """Only objects and lists are counted, not the letters of texts, whatever these hold."""
    page = {"calls": [{"sid": f"c{number}", "to": '["{' * 15 + "\\"} for number in range(1000)]}
    assert reply(200, page).document == page
    for body in (b'"' + b"[" * 30_000, b'{"a": "' + b'\\"[' * 30_000, b"[" * 30_000 + b'""', b'["]"]' * 9000):
        assert reply(200, body=body).document is None


@pytest.mark.parametrize("status", [300, 400, 401, 404, 422, 429, 500, 503])
@pytest.mark.parametrize(
    ("code", "event"),
    [(20429, AttemptResult.THROTTLED), ("20429", AttemptResult.THROTTLED), (20504, AttemptResult.SERVER_FAULT)],
)
def test_platform_error_code_takes_precedence_over_status(status: int, code: object, event: AttemptResult) -> None:
    """Codes 20429 and 20504 decide, whatever the status."""
    for document in ({"code": code, "message": "x"}, {"errors": [{"code": code, "message": "x"}]}):
        assert {classify(asking(kind), reply(status, document)) for kind in Operation} == {event}


@pytest.mark.parametrize(
    ("headers", "event"),
    [
        ({"Retry_After": "5"}, AttemptResult.UNAVAILABLE),
        ({"retry_after_ms": "5"}, AttemptResult.UNAVAILABLE),
        ({"Retry_After": "later"}, AttemptResult.SERVER_FAULT),
        ({}, AttemptResult.SERVER_FAULT),
    ],
)
def test_503_with_retry_after_is_unavailable(headers: dict[str, str], event: AttemptResult) -> None:
    """Without the API's error body, only a readable Retry-After shows that a 503 was a rejection."""
    for kind in Operation:
        assert classify(asking(kind), reply(503, body=b"<html>", **headers)) is event
        assert classify(asking(kind), reply(500, body=b"<html>", **headers)) is AttemptResult.SERVER_FAULT


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("status", [400, 404, 409, 422])
@pytest.mark.parametrize(
    "document",
    [
        {"errors": ["Duplicated stream name"]},
        {"code": 21220, "message": "Name has already been taken", "status": 422},
        {"errors": [{"message": "A stream with this name is already running"}]},
    ],
    ids=["sentences", "message", "objects"],
)
def test_start_rejected_for_its_name_is_duplicate(kind: Operation, status: int, document: object) -> None:
    """The wording distinguishes a duplicate name from other rejections."""
    assert classify(asking(kind), reply(status, document)) is AttemptResult.DUPLICATE_NAME


@pytest.mark.parametrize("kind", [Operation.READ, Operation.STOP])
def test_duplicate_wording_on_read_or_stop_is_rejection(kind: Operation) -> None:
    """The same words about anything but a start are a plain rejection."""
    assert classify(asking(kind), reply(422, {"errors": ["Duplicated stream name"]})) is AttemptResult.REJECTED


@pytest.mark.parametrize(
    ("status", "document", "event"),
    [
        (404, None, AttemptResult.UNREADABLE_REJECTION),
        (404, {"message": "Not Found"}, AttemptResult.UNREADABLE_REJECTION),
        (404, {"code": 20404, "message": "Not found", "more_info": "", "status": 404}, AttemptResult.NOT_FOUND),
        (400, {"message": "Stream is already stopped"}, AttemptResult.ALREADY_STOPPED),
        (409, {"errors": ["stream not running"]}, AttemptResult.ALREADY_STOPPED),
        (400, {"code": 21220, "message": "Stream is already stopped"}, AttemptResult.ALREADY_STOPPED),
        (404, {"code": 20404, "message": "Stream is already stopped", "status": 404}, AttemptResult.ALREADY_STOPPED),
        (400, {"code": 21220, "message": "The conference is not in progress"}, AttemptResult.TARGET_ENDED),
        (400, {"code": 21220, "message": "Conference is not in a state to stream"}, AttemptResult.TARGET_ENDED),
        (400, {"code": 21220, "message": "Invalid call state"}, AttemptResult.TARGET_ENDED),
        (400, {"code": 21220, "message": "Wrong state"}, AttemptResult.TARGET_ENDED),
        (400, {"code": 21220}, AttemptResult.TARGET_ENDED),
        (409, {"errors": ["The call has already ended"]}, AttemptResult.TARGET_ENDED),
        (409, {"errors": ["The call's stream has already ended"]}, AttemptResult.ALREADY_STOPPED),
        (400, {"code": 21220, "message": "The stream can't be stopped yet"}, AttemptResult.REJECTED),
        (400, {"code": 21220, "message": "Unable to stop: invalid state, try again later"}, AttemptResult.REJECTED),
        (400, {"code": 21220, "message": "Conference is initializing"}, AttemptResult.REJECTED),
        (400, {"code": 21220, "message": "Conference has not started"}, AttemptResult.REJECTED),
        (400, {"code": 21220, "message": "Call is not in progress: busy"}, AttemptResult.TARGET_ENDED),
        (400, {"message": "Stream is already stopped, so it can't be stopped again"}, AttemptResult.ALREADY_STOPPED),
        (400, {"errors": ["Stream is not in progress yet"]}, AttemptResult.REJECTED),
        (400, {"errors": ["Stream is not running", "Try again in a moment"]}, AttemptResult.REJECTED),
        (400, {"message": "The worker is not running, try again later"}, AttemptResult.UNREADABLE_REJECTION),
        (400, {"message": "The worker is not running"}, AttemptResult.UNREADABLE_REJECTION),
        (400, {"message": "not running"}, AttemptResult.ALREADY_STOPPED),
        (400, {"message": "It is not in progress"}, AttemptResult.ALREADY_STOPPED),
        (422, {"errors": ["Status is invalid"]}, AttemptResult.REJECTED),
    ],
)
def test_rejected_stop_is_classified_by_code_and_wording(status: int, document: object, event: AttemptResult) -> None:
    """The API's code or wording says that there is nothing left to stop; a bare 404 may be a proxy's."""
    for kind in Operation:
        if kind.is_stop:
            assert classify(asking(kind), reply(status, document)) is event


@pytest.mark.parametrize("kind", [Operation.READ, *STARTS])
def test_ended_wording_on_read_or_start_is_rejection(kind: Operation) -> None:
    """A read or a start that is rejected in the same words is a plain rejection."""
    not_found = {"code": 20404, "message": "Not found", "more_info": "", "status": 404}
    assert classify(asking(kind), reply(404, not_found)) is AttemptResult.REJECTED
    assert classify(asking(kind), reply(400, {"errors": ["already stopped"]})) is AttemptResult.REJECTED


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ({"calls": []}, AttemptResult.DONE),
        ({"calls": [{"sid": "x"}]}, AttemptResult.DONE),
        ({"sid": "x"}, AttemptResult.MALFORMED),
        ({"calls": "x"}, AttemptResult.ACCEPTED),
        ({"calls": None}, AttemptResult.ACCEPTED),
        ({}, AttemptResult.ACCEPTED),
        ([], AttemptResult.MALFORMED),
    ],
)
def test_list_response_needs_its_list(document: object, event: AttemptResult) -> None:
    """A page without its list is not readable, whatever else it holds."""
    assert classify(asking(Operation.READ, "calls"), reply(200, document)) is event


@pytest.mark.parametrize("kind", POSTS)
def test_incomplete_body_is_not_decoded(kind: Operation) -> None:
    """A complete-looking JSON of a body that was not read to its end is no document."""
    broken = read_response(200, CIMultiDict(), b'{"sid": "x"}', complete=False)
    assert broken.document is None
    assert classify(asking(kind), broken) is AttemptResult.ACCEPTED
    refused = read_response(503, CIMultiDict(), json.dumps(API_ERROR).encode(), complete=False)
    assert refused.problem is not None
    assert refused.problem.is_api is False
    assert classify(asking(kind), refused) is AttemptResult.SERVER_FAULT


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Bad Gateway</body></html>",
        b"{",
        b'{"sid": "x"',
        b"\xff\xfe\x00",
        b'{"sid": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"sid": NaN}',
        b"\xef\xbb\xbf{",
        b"\x00" * 7,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_undecodable_body_yields_no_document(body: bytes) -> None:
    """Bodies that are broken, in no encoding, nested or numbered without end are read as nothing."""
    succeeded = reply(200, body=body)
    is_empty = not body or succeeded.document is not None
    expected = AttemptResult.ACCEPTED if is_empty else AttemptResult.MALFORMED
    assert classify(asking(Operation.UNNAMED_START), succeeded) is expected
    refused = reply(400, body=body)
    assert classify(asking(Operation.UNNAMED_START), refused) is AttemptResult.UNREADABLE_REJECTION
    assert refused.problem is not None
    assert refused.problem.sentences == ()


def test_body_in_any_unicode_encoding_is_decoded() -> None:
    """UTF-8, with or without its mark, and UTF-16 are read."""
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        body = '{"sid": "größe"}'.encode(encoding)
        assert read_response(200, {}, body, complete=True).document == {"sid": "größe"}


def test_success_without_error_keys_has_no_problem() -> None:
    """A response of success is not searched for errors, unless it carries an error's code."""
    assert reply(200, {"sid": "stream", "message": "fine"}).problem is None
    assert reply(200, API_ERROR).problem is not None
    assert reply(300, API_ERROR).problem is not None


def test_response_repr_hides_headers_and_body() -> None:
    """The repr of a response contains neither body nor headers, which may repeat secrets."""
    shown = repr(reply(400, {"message": "hush"}, X_Echo="hush"))
    assert "hush" not in shown
    assert "status=400" in shown


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["sid", "call_sid", "code", "message", "errors", "detail", "more_info", "calls"])
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(
    status=st.integers(min_value=-10, max_value=1010),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "retry-after-ms", "Date", "X-RateLimit-Limit"]), st.text(max_size=12)
    ),
    body=st.binary(max_size=60) | _JSON.map(lambda document: json.dumps(document).encode()),
    complete=st.booleans(),
    kind=st.sampled_from(Operation),
    expects=st.sampled_from(["sid", "call_sid", "calls"]),
)
@example(status=429, headers={}, body=b"[" * 5000, complete=True, kind=Operation.READ, expects="calls")
def test_any_bytes_are_classified_without_exception(
    status: int, headers: dict[str, str], body: bytes, *, complete: bool, kind: Operation, expects: str
) -> None:
    """Any response is classified, without an exception."""
    read = read_response(status, CIMultiDict(headers), body, complete=complete)
    event = classify(asking(kind, expects), read)
    assert isinstance(event, AttemptResult)
    assert (event is AttemptResult.DONE) <= (200 <= status < 300)
    assert (event is AttemptResult.MALFORMED) <= (status not in range(300, 600))
    assert (event is AttemptResult.UNREADABLE_REJECTION) <= (status in range(400, 500))
