"""The retry matrix, on real sockets. What counts is what the server received and holds."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from attrs import field, frozen

from signalwire_streams import RetryPolicy, StreamOutcomeUnknownError, StreamsClient, StreamsError, Timeouts
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
READ, STOP, NAMED, CALL, UNNAMED = "read", "stop", "named start", "named start on a call", "unnamed start"
OPERATIONS = {
    READ: "get-conference",
    STOP: "stop-conference-stream",
    NAMED: "start-conference-stream",
    CALL: "start-call-stream",
    UNNAMED: "start-conference-stream",
}


@frozen
class Expect:
    """How the call ends, how many requests the Space received, and how many streams it then holds."""

    result: str
    received: int
    running: int


@frozen
class Row:
    happened: str
    faults: tuple[Mapping[str, Any], ...]
    expect: Mapping[str, Expect]
    space: Mapping[str, Any] = field(factory=dict)


def fault(kind: str, **options: Any) -> Mapping[str, Any]:
    return {"kind": kind, "times": 1, **options}


def started_at_once_or(
    result: str, *, call: str = "", unnamed: str = "", twice: int = 2, once: int = 1
) -> dict[str, Expect]:
    """Expect every start to end alike, after ``twice`` requests."""
    return {
        READ: Expect("done", twice, 0),
        STOP: Expect("done", twice, 0),
        NAMED: Expect(result, twice, 1),
        CALL: Expect(call or result, twice, 1),
        UNNAMED: Expect(unnamed or result, twice, once),
    }


def ambiguous(*, carried_out: bool, named: str = "ambiguous") -> dict[str, Expect]:
    """Expect what may have happened to be repeated only where repeating can't double anything."""
    left = int(carried_out)
    return {
        READ: Expect("done", 2, 0),
        STOP: Expect("done", 2, 0),
        NAMED: Expect(named, 2, 1),
        CALL: Expect("unknown", 1, left),
        UNNAMED: Expect("unknown", 1, left),
    }


def refused(error: str) -> dict[str, Expect]:
    """Expect a result that is final for every operation."""
    return {
        kind: Expect("done" if kind == STOP and error == "gone" else error, 1, 1 if kind == STOP else 0)
        for kind in OPERATIONS
    }


ACCEPTED = {
    READ: Expect("done", 2, 0),
    STOP: Expect("done", 2, 0),
    NAMED: Expect("by name", 1, 1),
    CALL: Expect("by name", 1, 1),
    UNNAMED: Expect("unknown, accepted", 1, 1),
}
ROWS = [
    Row("reset before it was carried out", (fault("reset"),), ambiguous(carried_out=False)),
    Row("reset after it was carried out", (fault("reset", executed=True),), ambiguous(carried_out=True)),
    Row(
        "reset after it was carried out, duplicates refused over HTTP",
        (fault("reset", executed=True),),
        ambiguous(carried_out=True, named="already started"),
        {"duplicate_names": "http-error"},
    ),
    Row("connection ended before it was carried out", (fault("disconnect"),), ambiguous(carried_out=False)),
    Row("connection ended after it", (fault("disconnect", executed=True),), ambiguous(carried_out=True)),
    Row("no answer, not carried out", (fault("hang"),), ambiguous(carried_out=False)),
    Row("no answer, carried out", (fault("hang", executed=True),), ambiguous(carried_out=True)),
    Row("garbage", (fault("garbage"),), ambiguous(carried_out=False)),
    Row("garbage after it", (fault("garbage", executed=True),), ambiguous(carried_out=True)),
    Row("headers cut", (fault("truncated-headers", executed=True),), ambiguous(carried_out=True)),
    Row("2xx, body cut", (fault("truncated-body"),), ACCEPTED),
    Row("2xx, no sid", (fault("missing-sid"),), ACCEPTED),
    Row("2xx, nothing in it", (fault("empty"),), ACCEPTED),
    Row("2xx, broken JSON", (fault("invalid-json"),), ambiguous(carried_out=True)),
    Row("2xx, a page of HTML", (fault("html"),), ambiguous(carried_out=False)),
    Row("2xx, a page of HTML after it", (fault("html", executed=True),), ambiguous(carried_out=True)),
    Row("2xx, right but called text/plain", (fault("wrong-content-type"),), started_at_once_or("done", twice=1)),
    Row("301", (fault("redirect", status=301, location="/elsewhere"),), refused("ApiError 301")),
    Row("303", (fault("redirect", status=303, location="/elsewhere"),), refused("ApiError 303")),
    Row("307", (fault("redirect", location="/elsewhere"),), refused("ApiError 307")),
    *(
        Row(str(status), (fault("status", status=status, body="api", code=code),), refused(f"{error} {status}"))
        for status, code, error in (
            (400, 10000, "BadRequestError"),
            (401, 20003, "AuthenticationError"),
            (403, 10003, "PermissionDeniedError"),
            (409, 10000, "ApiError"),
            (422, 21402, "UnprocessableError"),
        )
    ),
    Row("408", (fault("status", status=408),), started_at_once_or("done")),
    Row("425", (fault("status", status=425),), started_at_once_or("done")),
    Row("429", (fault("throttle"),), started_at_once_or("done")),
    Row("429 with Retry-After", (fault("throttle", retry_after=3),), started_at_once_or("done")),
    Row("code 20429 under 400", (fault("throttle", status=400, code=20429),), started_at_once_or("done")),
    Row("503 in the API's words", (fault("503-api"),), started_at_once_or("done")),
    Row("503 with Retry-After", (fault("503", retry_after=1),), started_at_once_or("done")),
    Row("bare 503", (fault("503"),), ambiguous(carried_out=False)),
    Row("bare 503 after it", (fault("503", executed=True),), ambiguous(carried_out=True)),
    Row("500", (fault("500"),), ambiguous(carried_out=False)),
    Row("500 after it", (fault("500", executed=True),), ambiguous(carried_out=True)),
    Row("502 after it", (fault("502", executed=True),), ambiguous(carried_out=True)),
    Row("504 after it", (fault("504", executed=True),), ambiguous(carried_out=True)),
    Row(
        "code 20504 under 400",
        (fault("status", status=400, body="api", code=20504, executed=True),),
        ambiguous(carried_out=True),
    ),
]


async def perform(client: StreamsClient, space: SimulatedSpace, kind: str, stream: Any) -> tuple[object, str]:
    """Make the call; give its result and the sid that it was about."""
    conference, call = space.conference_sids[0], space.call_sids[0]
    calls: Mapping[str, tuple[Callable[[], Awaitable[object]], str]] = {
        READ: (lambda: client.conferences.get(conference), conference),
        STOP: (lambda: client.conferences.stop_stream(conference, stream), conference),
        NAMED: (lambda: client.conferences.start_stream(conference, url=URL), conference),
        CALL: (lambda: client.calls.start_stream(call, url=URL), call),
        UNNAMED: (lambda: client.conferences.start_stream(conference, url=URL, unnamed=True), conference),
    }
    make, target = calls[kind]
    try:
        return await make(), target
    except StreamsError as error:
        return error, target


def in_words(result: object) -> str:
    if isinstance(result, StreamOutcomeUnknownError):
        return "unknown, accepted" if result.accepted else "unknown"
    if isinstance(result, StreamsError):
        return f"{type(result).__name__} {getattr(result, 'status', '')}".strip()
    if getattr(result, "already_started", False):
        return "already started"
    if getattr(result, "ambiguous", False):
        return "ambiguous"
    return "by name" if getattr(result, "sid", "") is None else "done"


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.happened)
async def test_server_receives_the_attempts_of_the_retry_matrix(row: Row, kind: str, client_for: Any) -> None:
    async with SimulatedSpace(conferences=1, calls=1, **row.space) as space:
        hangs = any(rule["kind"] == "hang" for rule in row.faults)
        client = client_for(space, timeouts=Timeouts(read=0.05) if hangs else Timeouts())
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL) if kind == STOP else None
        before = space.requests.count(OPERATIONS[kind])
        for rule in row.faults:
            space.faults.add(rule["kind"], on=OPERATIONS[kind], **{key: rule[key] for key in rule if key != "kind"})

        result, target = await perform(client, space, kind, stream)

        expect = row.expect[kind]
        received = space.requests.count(OPERATIONS[kind]) - before
        running = len(space.streams.alive_on(target))
        assert (in_words(result), received, running) == (expect.result, expect.received, expect.running)
        assert space.streams.duplicates() == []
        if isinstance(result, StreamsError):
            assert result.attempts == expect.received
            assert "\n" not in str(result)


@pytest.mark.parametrize("kind", [READ, NAMED, CALL, UNNAMED])
async def test_start_that_gets_a_404_is_not_retried(space: SimulatedSpace, client: StreamsClient, kind: str) -> None:
    space.faults.add("status", status=404, body="api", code=20404)

    result, _ = await perform(client, space, kind, None)

    assert in_words(result) == "NotFoundError 404"
    assert len(space.requests) == 1


async def test_stop_by_name_of_no_stream_raises_not_found(space: SimulatedSpace, client: StreamsClient) -> None:
    """A stop that was not sent before and finds nothing says so."""
    result, _ = await perform(client, space, STOP, "not-there")

    assert in_words(result) == "NotFoundError 404"
    assert space.requests.count("stop-conference-stream") == 1


async def test_duplicate_name_at_the_first_attempt_is_an_error(client_for: Any) -> None:
    """It may be the name of another stream."""
    async with SimulatedSpace(conferences=1, duplicate_names="http-error") as space:
        client = client_for(space)
        sid = space.conference_sids[0]
        await client.conferences.start_stream(sid, url=URL, name="audit")

        with pytest.raises(StreamsError) as caught:
            await client.conferences.start_stream(sid, url=URL, name="audit")

        assert in_words(caught.value) == "UnprocessableError 422"
        assert len(space.streams.active()) == 1


async def test_call_start_is_resent_if_the_policy_allows_it(client_for: Any) -> None:
    """With the switch on, a named start on a call is repeated like one on a conference."""
    async with SimulatedSpace(conferences=1, calls=1) as space:
        client = client_for(space, retry=RetryPolicy(resend_call_starts=True))
        space.faults.add("reset", executed=True, times=1)

        result, target = await perform(client, space, CALL, None)

        assert in_words(result) == "ambiguous"
        assert space.requests.count("start-call-stream") == 2
        assert len(space.streams.alive_on(target)) == 1
