"""From bytes to what happened: each status, each shape of a body, for each kind of request."""

import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st
from multidict import CIMultiDict

from signalwire_streams._http.decoding import event_of, read_reply
from signalwire_streams._http.messages import Request, Reply
from signalwire_streams.models import Event, Kind

STARTS = [Kind.CONFERENCE_START, Kind.CALL_START, Kind.UNNAMED_START]
POSTS = [*STARTS, Kind.STOP]


def asking(kind: Kind, expects: str = "sid") -> Request:
    method = "GET" if kind is Kind.READ else "POST"
    return Request(method=method, path="/x", kind=kind, verb="ask", target="x", expects=expects)


def reply(status: int, document: Any = None, /, *, body: bytes | None = None, **headers: str) -> Reply:
    content = body if body is not None else b"" if document is None else json.dumps(document).encode()
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_reply(status, CIMultiDict(spelled), content, complete=True)


API_ERROR = {"code": 20001, "message": "Unknown error", "more_info": "https://signalwire.com/x", "status": 503}


@pytest.mark.parametrize(
    ("status", "document", "event"),
    [
        (200, {"sid": "x"}, Event.DONE),
        (201, {"sid": "x"}, Event.DONE),
        (200, {"sid": ""}, Event.ACCEPTED),
        (200, {"name": "x"}, Event.ACCEPTED),
        (200, ["x"], Event.ACCEPTED),
        (200, "x", Event.ACCEPTED),
        (200, None, Event.ACCEPTED),
        (200, {"sid": ["x"]}, Event.ACCEPTED),
        (200, {"code": 20001, "message": "Unknown error"}, Event.ACCEPTED),
        (200, {"code": 20429, "message": "Too many requests", "status": 429}, Event.THROTTLED),
        (202, {"errors": [{"code": "20429", "message": "Too many requests"}]}, Event.THROTTLED),
        (201, {"sid": "x", "code": 20429}, Event.DONE),
        (204, None, Event.ACCEPTED),
        (301, None, Event.REDIRECTED),
        (302, API_ERROR, Event.REDIRECTED),
        (303, None, Event.REDIRECTED),
        (304, None, Event.REDIRECTED),
        (307, None, Event.REDIRECTED),
        (308, None, Event.REDIRECTED),
        (400, API_ERROR, Event.REJECTED),
        (400, None, Event.REJECTED),
        (401, API_ERROR, Event.DENIED),
        (401, None, Event.DENIED),
        (403, None, Event.DENIED),
        (405, None, Event.REJECTED),
        (408, None, Event.TRY_AGAIN),
        (409, None, Event.REJECTED),
        (422, {"errors": ["Url is invalid"]}, Event.REJECTED),
        (425, None, Event.TRY_AGAIN),
        (429, None, Event.THROTTLED),
        (499, None, Event.REJECTED),
        (500, None, Event.SERVER_FAULT),
        (500, API_ERROR, Event.SERVER_FAULT),
        (501, None, Event.SERVER_FAULT),
        (502, API_ERROR, Event.SERVER_FAULT),
        (503, None, Event.SERVER_FAULT),
        (503, ["x"], Event.SERVER_FAULT),
        (503, {"message": "no healthy upstream"}, Event.SERVER_FAULT),
        (503, {"message": "Unknown error", "more_info": "https://signalwire.com/x"}, Event.SERVER_FAULT),
        (503, {"errors": ["Unknown error"]}, Event.SERVER_FAULT),
        (503, API_ERROR, Event.UNAVAILABLE),
        (504, API_ERROR, Event.SERVER_FAULT),
        (599, None, Event.SERVER_FAULT),
        (100, None, Event.MALFORMED),
        (199, {"sid": "x"}, Event.MALFORMED),
        (600, None, Event.MALFORMED),
        (999, API_ERROR, Event.MALFORMED),
        (0, None, Event.MALFORMED),
        (-1, None, Event.MALFORMED),
    ],
)
def test_each_status(status: int, document: object, event: Event) -> None:
    """What a status means does not depend on who asks, where no name and no stop is concerned."""
    assert {event_of(asking(kind), reply(status, document)) for kind in Kind} == {event}


@pytest.mark.parametrize("status", [300, 400, 401, 404, 422, 429, 500, 503])
@pytest.mark.parametrize(
    ("code", "event"),
    [(20429, Event.THROTTLED), ("20429", Event.THROTTLED), (20504, Event.SERVER_FAULT)],
)
def test_the_platforms_code_goes_before_the_status(status: int, code: object, event: Event) -> None:
    """Too many requests, and an internal error, are told by the platform's code with whatever status."""
    for document in ({"code": code, "message": "x"}, {"errors": [{"code": code, "message": "x"}]}):
        assert {event_of(asking(kind), reply(status, document)) for kind in Kind} == {event}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("headers", "event"),
    [
        ({"Retry_After": "5"}, Event.UNAVAILABLE),
        ({"retry_after_ms": "5"}, Event.UNAVAILABLE),
        ({"Retry_After": "later"}, Event.SERVER_FAULT),
        ({}, Event.SERVER_FAULT),
    ],
)
def test_a_503_that_says_when_to_come_back_was_not_processed(kind: Kind, headers: dict[str, str], event: Event) -> None:
    """Without the API's own words only a readable Retry-After tells a refusal from a proxy's trouble."""
    assert event_of(asking(kind), reply(503, body=b"<html>", **headers)) is event
    assert event_of(asking(kind), reply(500, body=b"<html>", **headers)) is Event.SERVER_FAULT


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
def test_a_duplicate_name_on_a_start(kind: Kind, status: int, document: object) -> None:
    """A start that is refused for its name is told from other refusals by the words."""
    assert event_of(asking(kind), reply(status, document)) is Event.DUPLICATE_NAME


@pytest.mark.parametrize("kind", [Kind.READ, Kind.STOP])
def test_only_a_start_can_have_a_duplicate_name(kind: Kind) -> None:
    """The same words about anything but a start are a plain refusal."""
    assert event_of(asking(kind), reply(422, {"errors": ["Duplicated stream name"]})) is Event.REJECTED


@pytest.mark.parametrize(
    ("status", "document", "event"),
    [
        (404, None, Event.REJECTED),
        (404, {"message": "Not Found"}, Event.REJECTED),
        (404, {"code": 20404, "message": "Not found", "more_info": "", "status": 404}, Event.GONE),
        (400, {"message": "Stream is already stopped"}, Event.ENDED),
        (409, {"errors": ["stream not running"]}, Event.ENDED),
        (400, {"code": 21220, "message": "Stream is already stopped"}, Event.ENDED),
        (404, {"code": 20404, "message": "Stream is already stopped", "status": 404}, Event.ENDED),
        (400, {"code": 21220, "message": "The conference is not in progress"}, Event.TARGET_ENDED),
        (400, {"code": 21220, "message": "Conference is not in a state to stream"}, Event.TARGET_ENDED),
        (400, {"code": 21220, "message": "Invalid call state"}, Event.TARGET_ENDED),
        (400, {"code": 21220, "message": "Wrong state"}, Event.TARGET_ENDED),
        (400, {"code": 21220}, Event.TARGET_ENDED),
        (409, {"errors": ["The call has already ended"]}, Event.TARGET_ENDED),
        (409, {"errors": ["The call's stream has already ended"]}, Event.ENDED),
        (400, {"code": 21220, "message": "The stream can't be stopped yet"}, Event.REJECTED),
        (422, {"errors": ["Status is invalid"]}, Event.REJECTED),
    ],
)
def test_nothing_there_to_stop(status: int, document: object, event: Event) -> None:
    """A stop that finds nothing, or something that is stopped already, is told so by the API; a bare 404 by anybody."""
    for kind in Kind:
        if kind.is_stop:
            assert event_of(asking(kind), reply(status, document)) is event


@pytest.mark.parametrize("kind", [Kind.READ, *STARTS])
def test_only_a_stop_finds_nothing_to_stop(kind: Kind) -> None:
    """Whoever else gets a 404, or hears of something stopped, is refused."""
    assert event_of(asking(kind), reply(404, {"message": "Not found"})) is Event.REJECTED
    assert event_of(asking(kind), reply(400, {"message": "already stopped"})) is Event.REJECTED


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ({"calls": []}, Event.DONE),
        ({"calls": [{"sid": "x"}]}, Event.DONE),
        ({"sid": "x"}, Event.ACCEPTED),
        ({"calls": "x"}, Event.ACCEPTED),
        ({"calls": None}, Event.ACCEPTED),
        ({}, Event.ACCEPTED),
        ([], Event.ACCEPTED),
    ],
)
def test_a_list_is_readable_when_its_items_are_there(document: object, event: Event) -> None:
    """A page without its list is not readable, whatever else it holds."""
    assert event_of(asking(Kind.READ, "calls"), reply(200, document)) is event


@pytest.mark.parametrize("kind", POSTS)
def test_a_body_that_broke_off_is_not_believed(kind: Kind) -> None:
    """A complete-looking JSON of a body that was not read to its end is no document."""
    broken = read_reply(200, CIMultiDict(), b'{"sid": "x"}', complete=False)
    assert broken.document is None
    assert event_of(asking(kind), broken) is Event.ACCEPTED
    refused = read_reply(503, CIMultiDict(), json.dumps(API_ERROR).encode(), complete=False)
    assert refused.problem is not None
    assert refused.problem.is_api is False
    assert event_of(asking(kind), refused) is Event.SERVER_FAULT


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
def test_bytes_that_are_no_answer(body: bytes) -> None:
    """Bodies that are broken, in no encoding, nested or numbered without end are read as nothing."""
    accepted = reply(200, body=body)
    assert event_of(asking(Kind.UNNAMED_START), accepted) is Event.ACCEPTED
    refused = reply(400, body=body)
    assert event_of(asking(Kind.UNNAMED_START), refused) is Event.REJECTED
    assert refused.problem is not None
    assert refused.problem.sentences == ()


def test_a_body_that_can_be_read_is_read() -> None:
    """UTF-8, with or without its mark, and UTF-16 are read."""
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        body = '{"sid": "größe"}'.encode(encoding)
        assert read_reply(200, {}, body, complete=True).document == {"sid": "größe"}


def test_only_a_refusal_has_a_problem() -> None:
    """An answer of success is not searched for errors, unless it carries an error's code."""
    assert reply(200, {"sid": "stream", "message": "fine"}).problem is None
    assert reply(200, API_ERROR).problem is not None
    assert reply(300, API_ERROR).problem is not None


def test_a_reply_is_shown_without_its_contents() -> None:
    """What is shown of a reply holds neither body nor headers, which may repeat secrets."""
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
    kind=st.sampled_from(Kind),
    expects=st.sampled_from(["sid", "call_sid", "calls"]),
)
@example(status=429, headers={}, body=b"[" * 5000, complete=True, kind=Kind.READ, expects="calls")
def test_no_bytes_are_too_odd(
    status: int, headers: dict[str, str], body: bytes, *, complete: bool, kind: Kind, expects: str
) -> None:
    """Whatever comes over the wire is an event, and never an error."""
    read = read_reply(status, CIMultiDict(headers), body, complete=complete)
    event = event_of(asking(kind, expects), read)
    assert isinstance(event, Event)
    assert (event is Event.DONE) <= (200 <= status < 300)
    assert (event is Event.MALFORMED) is (status not in range(200, 600))
