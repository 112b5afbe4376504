"""Requests: method, path, operation and description of all that the client can ask for."""

from typing import Any

import pytest

from signalwire_streams._http import requests
from signalwire_streams._http.account import find_account
from signalwire_streams._http.messages import CallState
from signalwire_streams.errors import InvalidRequestError, Phase, Sent
from signalwire_streams.middleware import Request
from signalwire_streams.models import Operation, Priority, StartCallStream, StartConferenceStream, TargetKind

ACCOUNT = find_account(space="example", base_url=None, project="project", token="PThush")
ROOT = "/api/laml/2010-04-01/Accounts/project"
URL = "wss://audio.example.com/stream"


def build_start(request: requests.Start, *, deadline: Any = None) -> Request:
    return requests.start(ACCOUNT, request, deadline=deadline, state=CallState())


def build_stop(kind: TargetKind, *, deadline: Any = None) -> Request:
    return requests.stop(ACCOUNT, kind, "target", "room", Operation.STOP_BY_NAME, deadline=deadline, state=CallState())


@pytest.mark.parametrize(
    ("request_", "kind", "path", "verb"),
    [
        (
            StartConferenceStream(conference_sid="conf", url=URL, name="room"),
            Operation.CONFERENCE_START,
            f"{ROOT}/Conferences/conf/Streams",
            "start a stream on conference",
        ),
        (
            StartCallStream(call_sid="call", url=URL, name="room"),
            Operation.CALL_START,
            f"{ROOT}/Calls/call/Streams",
            "start a stream on call",
        ),
        (
            StartConferenceStream(conference_sid="conf", url=URL, unnamed=True),
            Operation.UNNAMED_START,
            f"{ROOT}/Conferences/conf/Streams",
            "start a stream on conference",
        ),
        (
            StartCallStream(call_sid="call", url=URL, unnamed=True),
            Operation.UNNAMED_START,
            f"{ROOT}/Calls/call/Streams",
            "start a stream on call",
        ),
    ],
    ids=["conference", "call", "unnamed on a conference", "unnamed on a call"],
)
def test_start_request_is_post_of_form_to_streams_of_target(
    request_: StartConferenceStream | StartCallStream, kind: Operation, path: str, verb: str
) -> None:
    """A start is a POST of its form to the streams of its target."""
    built = build_start(request_)
    assert (built.method, built.path, built.operation) == ("POST", path, kind)
    assert (built.description, built.target, built.name) == (verb, request_.target, request_.name)
    assert built.body is not None
    assert built.body.startswith(b"Url=wss%3A%2F%2Faudio.example.com%2Fstream")
    assert (b"Name=room" in built.body) is (request_.name is not None)
    assert (built.required_key, built.deadline) == ("sid", None)


def test_start_request_lists_its_secrets() -> None:
    """Tokens, each parameter's value and the private parts of the callback are known as secrets, and not shown."""
    request = StartCallStream(
        call_sid="call",
        url=URL,
        parameters={"card": "hush1", "pin": "hush2"},
        authorization_bearer_token="hush3",
        status_callback="https://ada:hush4@example.com/heard?key=hush5",
    )
    built = build_start(request)
    assert set(built.redact) == {
        *ACCOUNT.secrets,
        *("hush1", "hush2", "hush3", "ada:hush4", "hush4", "key=hush5", "hush5"),
    }
    assert "hush" not in repr(built)
    assert build_start(StartCallStream(call_sid="call", url=URL)).redact == ACCOUNT.secrets


@pytest.mark.parametrize(
    ("handle", "kind"),
    [
        ("b3877c40-da60-4998-90ad-b792e98472cf", Operation.STOP),
        ("b3877c40-da60-4998-90ad-b792e98472st", Operation.STOP),
        ("MZ0123456789abcdef0123456789abcdef", Operation.STOP),
        ("audit-1", Operation.STOP_BY_NAME),
        ("sws-1a2b3c4d-b3877c40-da60-4998-90ad-b792e98472cf", Operation.STOP_BY_NAME),
    ],
)
def test_stop_handle_is_recognized_as_sid_or_name(handle: str, kind: Operation) -> None:
    """Text in the form of a sid is treated as a sid: "no such stream" is then conclusive."""
    assert requests.stop_kind(handle) is kind


@pytest.mark.parametrize(
    ("kind", "collection", "noun"),
    [(TargetKind.CONFERENCE, "Conferences", "conference"), (TargetKind.CALL, "Calls", "call")],
)
def test_stop_request_is_post_of_one_field_to_stream(kind: TargetKind, collection: str, noun: str) -> None:
    """A stop is a POST of one field to the stream, by its sid or its name."""
    built = build_stop(kind, deadline=3)
    assert (built.method, built.path) == ("POST", f"{ROOT}/{collection}/target/Streams/room")
    assert (built.operation, built.body, built.deadline) == (Operation.STOP_BY_NAME, b"Status=stopped", 3)
    assert built.description == f"stop stream room on {noun}"
    assert built.redact == ACCOUNT.secrets


def test_start_and_stop_have_priority_and_state_of_their_call() -> None:
    """Several requests may share them."""
    state = CallState(priority=Priority.BULK)
    start = requests.start(ACCOUNT, StartCallStream(call_sid="call", url=URL), deadline=None, state=state)
    stop = requests.stop(ACCOUNT, TargetKind.CALL, "call", "room", Operation.STOP_BY_NAME, deadline=None, state=state)
    for built in (start, stop):
        assert built.priority is Priority.BULK
        assert built.state is state
    assert build_stop(TargetKind.CALL).priority is Priority.INTERACTIVE
    assert build_stop(TargetKind.CALL).state is not state


def test_read_request_is_get_without_body() -> None:
    """Reading one item is a GET without a body."""
    built = requests.read(ACCOUNT, TargetKind.CONFERENCE, "conf")
    assert (built.method, built.path, built.body) == ("GET", f"{ROOT}/Conferences/conf", None)
    assert (built.operation, built.target, built.required_key) == (Operation.READ, "Conferences/conf", "sid")


def test_list_request_is_get_with_filters_and_items_key() -> None:
    """Reading a list is a GET with its filters; what it expects is the key of its items."""
    built = requests.read_list(ACCOUNT, TargetKind.CALL, filters={"Status": "queued", "From": None}, page_size=1000)
    assert built.path == f"{ROOT}/Calls?Status=queued&PageSize=1000"
    assert (built.operation, built.target, built.required_key) == (Operation.READ, "Calls", "calls")


@pytest.mark.parametrize("size", [1, 50, 1000, None])
def test_valid_page_size_is_sent(size: int | None) -> None:
    """A page holds 1 to 1000 items, or as many as the API likes."""
    path = requests.read_list(ACCOUNT, TargetKind.CALL, filters={}, page_size=size).path
    assert path == f"{ROOT}/Calls" + (f"?PageSize={size}" if size else "")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        *((size, "a whole number of 1 or more") for size in (0, -1, True, False, "50", 1.5)),
        *((size, "from 1 to 1000") for size in (1001, 10**9)),
    ],
)
def test_invalid_page_size_is_rejected(size: Any, words: str) -> None:
    """Any other page size is rejected before anything is sent."""
    with pytest.raises(InvalidRequestError, match=f"^page_size must be {words}, not {size!r}$"):
        requests.read_list(ACCOUNT, TargetKind.CALL, filters={}, page_size=size)


def test_next_page_request_keeps_required_key() -> None:
    """A next page is read at the address that the Space gave, and read for the same key."""
    first = requests.read_list(ACCOUNT, TargetKind.CALL, filters={}, page_size=None)
    following = requests.page_at(first, "/api/x?PageToken=PA1")
    assert following.path == "/api/x?PageToken=PA1"
    assert (following.target, following.required_key, following.operation) == ("Calls", "calls", Operation.READ)


def test_copied_request_has_its_own_state() -> None:
    """The copy is the same request with a state of its own."""
    built = requests.read(ACCOUNT, TargetKind.CALL, "c")
    built.state.phase, built.state.sent = Phase.RESPONDED, "yes"
    twin = requests.page_at(built, built.path)
    assert twin is not built
    assert (twin.path, twin.operation, twin.redact) == (built.path, built.operation, built.redact)
    assert (twin.state.phase, twin.state.sent) == (Phase.QUEUED, "no")
    assert built.state.sent == "yes"


@pytest.mark.parametrize(
    ("phases", "each", "overall"),
    [
        ([Phase.QUEUED], ["no"], "no"),
        ([Phase.CONNECTING], ["no"], "no"),
        ([Phase.WRITING], ["maybe"], "maybe"),
        ([Phase.WAITING], ["maybe"], "maybe"),
        ([Phase.RESPONDED], ["yes"], "yes"),
        ([Phase.WAITING, Phase.CONNECTING], ["maybe", "no"], "maybe"),
        ([Phase.RESPONDED, Phase.QUEUED, Phase.WAITING], ["yes", "no", "maybe"], "yes"),
        ([Phase.CONNECTING, Phase.WAITING, Phase.RESPONDED], ["no", "maybe", "yes"], "yes"),
        ([Phase.CONNECTING, Phase.QUEUED], ["no", "no"], "no"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_sent_accumulates_over_attempts(phases: list[Phase], each: list[Sent], overall: Sent) -> None:
    """A later unsent attempt does not change that an earlier one was, or may have been, sent."""
    progress = CallState()
    said: list[Sent] = []
    for phase in phases:
        progress.phase = phase
        said.append(progress.record_attempt())
    assert (said, progress.sent) == (each, overall)
