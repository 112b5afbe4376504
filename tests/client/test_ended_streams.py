"""Stopping a stream that has ended before counts as stopped, and a stop that found nothing does not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    ApiError,
    BadRequestError,
    BulkStatus,
    CallStream,
    ConferenceStream,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    PermissionDeniedError,
    ServerError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamStatus,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import RawConnection, RawSpace, Request, http, raw_space

URL = "wss://rx.example.com/audio"
UNKNOWN_SID = "b3877c40-da60-4998-90ad-b792e98472af"


async def end_by_stop(space: SimulatedSpace, stream: Any) -> None:
    space.streams.stop(space.streams.active(), 0.0)


async def end_with_target(space: SimulatedSpace, stream: Any) -> None:
    if isinstance(stream, ConferenceStream):
        space.end_conference(stream.conference_sid)
    else:
        space.end_call(stream.call_sid)


async def forget(space: SimulatedSpace, stream: Any) -> None:
    await end_by_stop(space, stream)
    space.faults.add("status", on="stop", status=404, body="api", code=20404)


ENDS = {"stopped": end_by_stop, "ended with its target": end_with_target, "not found any more": forget}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("noun", ["conference", "call"])
async def test_stop_of_returned_stream_that_has_ended_is_success(
    space: SimulatedSpace, client: StreamsClient, noun: str, end: Callable[..., Awaitable[None]]
) -> None:
    """It counts as stopped after one request, keeps what was known of it, and says that it had ended before."""
    stream: Any
    streams: Any = client.conferences if noun == "conference" else client.calls
    stream = await streams.start_stream(
        (space.conference_sids if noun == "conference" else space.call_sids)[0], url=URL
    )
    await end(space, stream)
    before = len(space.requests)

    stopped = await streams.stop_stream(stream)

    assert (stopped.sid, stopped.name, stopped.status) == (stream.sid, stream.name, StreamStatus.STOPPED)
    assert (stopped.already_ended, stopped.ambiguous) == (True, False)
    assert len(space.requests) == before + 1


@pytest.mark.parametrize("end", [end_by_stop, end_with_target])
@pytest.mark.parametrize("handle", ["sid", "name"])
async def test_stop_by_text_of_stream_that_has_ended_is_success(
    space: SimulatedSpace, client: StreamsClient, handle: str, end: Callable[..., Awaitable[None]]
) -> None:
    """The Space knows the stream, and says that it has ended."""
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL)
    await end(space, stream)

    stopped = await client.conferences.stop_stream(sid, getattr(stream, handle))

    assert (stopped.conference_sid, stopped.status, stopped.already_ended) == (sid, StreamStatus.STOPPED, True)
    assert (stopped.sid, stopped.name) == ((stream.sid, None) if handle == "sid" else (None, stream.name))


async def test_stop_of_running_stream_is_not_already_ended(space: SimulatedSpace, client: StreamsClient) -> None:
    """Neither after one attempt nor after one whose response was lost, since that may have been what ended it."""
    sid = space.conference_sids[0]
    one, two = [await client.conferences.start_stream(sid, url=URL) for _ in range(2)]
    assert not (await client.conferences.stop_stream(one)).already_ended
    space.faults.add("reset", on="stop", executed=True, times=1)
    repeated = await client.conferences.stop_stream(two)
    assert (repeated.status, repeated.already_ended) == (StreamStatus.STOPPED, False)


@pytest.mark.parametrize("handle", [UNKNOWN_SID, "not-there"])
async def test_stop_of_unknown_text_is_error(space: SimulatedSpace, client: StreamsClient, handle: str) -> None:
    """A sid or a name in a text may be misspelt."""
    with pytest.raises(NotFoundError):
        await client.conferences.stop_stream(space.conference_sids[0], handle)


@pytest.mark.parametrize(
    "fault", [{"status": 404, "body": "html"}, {"status": 404, "body": "empty"}, {"status": 422, "body": "api"}]
)
async def test_stop_that_is_rejected_otherwise_is_error(
    space: SimulatedSpace, client: StreamsClient, fault: dict[str, Any]
) -> None:
    """A proxy's 404, or a rejection of the request, says nothing of the stream, which runs on."""
    stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
    space.faults.add("status", on="stop", **fault)
    with pytest.raises(Exception, match=f"HTTP {fault['status']}"):
        await client.conferences.stop_stream(stream)
    assert len(space.streams.active()) == 1


async def test_404_about_stream_of_another_project_is_error(space: SimulatedSpace, client: StreamsClient) -> None:
    """A client of another project gets a 404 for the stream although it runs."""
    stream = ConferenceStream(conference_sid=space.conference_sids[0], sid=UNKNOWN_SID, account_sid="another")
    with pytest.raises(NotFoundError):
        await client.conferences.stop_stream(stream)


async def test_stop_of_ambiguous_stream_with_sid_of_rejected_second_fails(client_for: Any) -> None:
    """Where names stop nothing, "already stopped" about that sid does not say that the first stream has ended."""
    async with SimulatedSpace(conferences=1, streams_by_name=False) as space:
        client: StreamsClient = client_for(space)
        space.faults.add("reset", on="start", executed=True, times=1)
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
        assert stream.ambiguous

        with pytest.raises(BadRequestError, match="already stopped"):
            await client.conferences.stop_stream(stream)
        assert len(space.streams.active()) == 1


async def test_bulk_stop_counts_ended_streams_as_stopped(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """``stop_streams`` and ``stop_started`` have the same result as a single stop."""
    sids = space.conference_sids
    requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in sids]
    streams = [o.stream async for o in client.start_streams(requests, journal=tmp_path / "run.db") if o.stream]
    await end_by_stop(space, None)
    space.faults.add("status", on="stop", target=sids[0], status=404, body="api", code=20404)
    typed: list[Any] = [*streams, ConferenceStream(conference_sid=sids[1], name="not-there")]

    outcomes = {outcome.index: outcome async for outcome in client.stop_streams(typed)}
    assert [outcomes[index].status for index in range(4)] == [BulkStatus.STOPPED] * 3 + [BulkStatus.REJECTED]
    stopped = [outcome.stream async for outcome in client.stop_started(tmp_path / "run.db")]
    journaled = [outcomes[index].stream for index in range(3)]
    assert [stream is not None and stream.already_ended for stream in [*stopped, *journaled]] == [True] * 6


async def test_stop_takes_stream_alone(space: SimulatedSpace, client: StreamsClient) -> None:
    """A stream carries the sid of its conference or call; a text does not."""
    sid, call = space.conference_sids[0], space.call_sids[0]
    await client.conferences.stop_stream(await client.conferences.start_stream(sid, url=URL))
    await client.calls.stop_stream(await client.calls.start_stream(call, url=URL), deadline=5)
    assert space.streams.active() == []
    untyped: Any = client.conferences.stop_stream
    for arguments, words in (
        ((sid,), "the stream is missing: pass a ConferenceStream, or the conference_sid and a sid or a name"),
        ((None,), "the stream is missing"),
        ((CallStream(call_sid=call, sid="s"),), "stream is a CallStream: pass a ConferenceStream, a sid or a name"),
        ((7,), "stream is an int"),
        ((7, "name"), "conference_sid must be a str, not int"),
        ((ConferenceStream(conference_sid=sid, sid="s"), "name"), "conference_sid must be a str"),
        ((space.conference_sids[1], ConferenceStream(conference_sid=sid, sid="s")), "belongs to another"),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            await untyped(*arguments)
    stream = ConferenceStream(conference_sid=sid, name="not-there")
    with pytest.raises(NotFoundError):
        await untyped(conference_sid=sid, stream=stream)


ALREADY_STOPPED = {"code": 21220, "message": "Stream is already stopped", "more_info": "", "status": 400}
NOT_FOUND = {"code": 20404, "message": "No such stream", "more_info": "", "status": 404}
FIRST, SECOND = "first-sid", "second-sid"
NAME = "sws-1"
BY_NAME: dict[str, bytes] = {
    "already stopped": http(400, ALREADY_STOPPED),
    "no sid": http(200, {"status": "stopped", "name": NAME}),
    "no body": http(200),
    "202": http(202, {"sid": None}),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "broken body": http(200, body=b'{"sid": "first'),
}


@asynccontextmanager
async def two_streams(
    client_for: Any, answer_by_name: bytes
) -> AsyncIterator[tuple[StreamsClient, set[str], RawSpace]]:
    """Run a Space on which two streams of one name were started, the second of which runs.

    The first stop by the name gets these bytes; later ones the rejection that the first stream is already stopped.
    """
    alive = {SECOND}

    async def answer(raw: RawSpace, _: RawConnection, request: Request) -> bytes:
        handle = request.path.rpartition("/")[2]
        if handle == SECOND and SECOND in alive:
            alive.remove(SECOND)
            return http(200, {"sid": SECOND, request.target_key: request.target, "name": NAME, "status": "stopped"})
        by_name = [request for request in raw.requests if request.path.endswith(f"/{NAME}")]
        return answer_by_name if handle == NAME and len(by_name) == 1 else http(400, ALREADY_STOPPED)

    async with SimulatedSpace(conferences=1) as space, raw_space(answer) as raw:
        yield client_for(space, base_url=raw.url), alive, raw


def ambiguous(noun: str) -> Any:
    model: Any = ConferenceStream if noun == "conference" else CallStream
    return model(**{f"{noun}_sid": "target"}, sid=SECOND, name=NAME, ambiguous=True)


@pytest.mark.parametrize("answer", BY_NAME.values(), ids=BY_NAME)
@pytest.mark.parametrize("noun", ["conference", "call"])
async def test_stop_of_ambiguous_stream_stops_its_sid_unless_response_names_it(
    client_for: Any, noun: str, answer: bytes
) -> None:
    """The Space's rejection of the name may concern only the first stream."""
    async with two_streams(client_for, answer) as (client, alive, _):
        streams: Any = client.conferences if noun == "conference" else client.calls
        stopped = await streams.stop_stream(ambiguous(noun))
        assert alive == set()
        assert (stopped.status, stopped.name, stopped.already_ended) == (StreamStatus.STOPPED, NAME, False)


@pytest.mark.parametrize("noun", ["conference", "call"])
@pytest.mark.parametrize(("sid", "name"), [(SECOND, None), (SECOND, NAME), (FIRST, None), (FIRST, NAME)])
async def test_response_to_stop_by_name_decides_whether_sid_is_stopped(
    client_for: Any, noun: str, sid: str, name: str | None
) -> None:
    """A conference has one stream of a name; on a call, the response must name the sid. The name that was asked stays.

    A response that does not name what was asked may be another request's, so it is asked again, and then by the sid.
    """
    async with two_streams(client_for, http(200, {"sid": sid, "name": name, "status": "stopped"})) as (client, _, raw):
        streams: Any = client.conferences if noun == "conference" else client.calls
        stopped = await streams.stop_stream(ambiguous(noun))
        requests = 3 if name is None else 2 if noun == "call" and sid == FIRST else 1
        assert len(raw.requests) == requests
        expected = (sid, NAME) if name is not None else (SECOND, NAME)
        assert (stopped.sid, stopped.name, stopped.already_ended) == (*expected, False)


@pytest.mark.parametrize("noun", ["conference", "call"])
async def test_stop_of_ambiguous_stream_whose_streams_have_both_ended(client_for: Any, noun: str) -> None:
    """Both have ended before, so the stop says so."""
    async with two_streams(client_for, http(400, ALREADY_STOPPED)) as (client, alive, _):
        streams: Any = client.conferences if noun == "conference" else client.calls
        alive.clear()
        stopped = await streams.stop_stream(ambiguous(noun))
        assert (stopped.sid, stopped.name, stopped.already_ended) == (SECOND, NAME, True)


@pytest.mark.parametrize(
    "answer", [http(404), http(404, body=b"<html>"), http(404, {"code": 404, "message": "no route"})]
)
async def test_404_of_proxy_about_name_is_error(client_for: Any, answer: bytes) -> None:
    """The Space did not say that it finds no such stream, so the stop of the sid would prove nothing."""
    async with two_streams(client_for, answer) as (client, _, raw):
        with pytest.raises(NotFoundError):
            await client.conferences.stop_stream(ambiguous("conference"))
        assert len(raw.requests) == 1


async def test_stop_of_ambiguous_stream_without_name(client_for: Any) -> None:
    """Its sid is the only handle, and "already stopped" about that may be about a second stream."""
    stream = evolve(ambiguous("conference"), name=None)
    async with two_streams(client_for, http(404)) as (client, alive, _):
        assert (await client.conferences.stop_stream(stream)).sid == SECOND
        assert alive == set()
        with pytest.raises(BadRequestError):
            await client.conferences.stop_stream(stream)


async def test_sid_is_stopped_where_space_finds_no_streams_by_name(client_for: Any) -> None:
    """A conference has one stream of a name, so the sid that can be stopped is that of the stream."""
    async with two_streams(client_for, http(404, NOT_FOUND)) as (client, alive, raw):
        stopped = await client.conferences.stop_stream(ambiguous("conference"))
        assert (stopped.sid, alive, len(raw.requests)) == (SECOND, set(), 2)


async def test_stop_by_name_in_form_of_sid(client_for: Any) -> None:
    """A Space that finds the stream by this name responds with its sid; one that does not has stopped nothing."""
    answers = [http(200, {"sid": FIRST, "name": UNKNOWN_SID.upper()}), http(502), http(404, NOT_FOUND)]

    async def answer(raw: RawSpace, _: RawConnection, request: Request) -> bytes:
        return answers[len(raw.requests) - 1]

    async with SimulatedSpace(conferences=1) as space, raw_space(answer) as raw:
        client: StreamsClient = client_for(space, base_url=raw.url)
        stopped = await client.conferences.stop_stream("room", UNKNOWN_SID)
        assert (stopped.sid, stopped.name) == (FIRST, UNKNOWN_SID.upper())
        with pytest.raises(NotFoundError):
            await client.conferences.stop_stream("room", UNKNOWN_SID)


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({"sid": FIRST, "conference_sid": "room"}, NAME),
        ({"sid": NAME}, None),
        ({"sid": FIRST, "name": NAME.upper()}, "SWS-1"),
    ],
)
async def test_stop_keeps_name_that_response_leaves_out(
    client_for: Any, document: dict[str, Any], name: str | None
) -> None:
    """The caller's text is the name, unless it equals the sid in the response."""

    async def answer(raw: RawSpace, _: RawConnection, request: Request) -> bytes:
        return http(200, document)

    async with SimulatedSpace(conferences=1) as space, raw_space(answer) as raw:
        client: StreamsClient = client_for(space, base_url=raw.url)
        stopped = await client.conferences.stop_stream("room", NAME)
        assert (stopped.sid, stopped.name) == (document["sid"], name)


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize(
    "answer",
    [
        http(200, body=b"<html>log in</html>"),
        http(200, {"sid": UNKNOWN_SID, "conference_sid": "room", "status": "in-progress"}),
        http(200, {"sid": UNKNOWN_SID, "conference_sid": "room", "status": "Queued"}),
    ],
    ids=["a page", "in progress", "queued"],
)
async def test_stop_with_another_status_in_its_response_fails(client_for: Any, answer: bytes) -> None:
    """Nor is it one in a run: the stream goes on, and the error says that the response can't be believed."""

    async def refuse(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return answer

    async with SimulatedSpace() as simulated, raw_space(refuse) as raw:
        client = client_for(simulated, base_url=raw.url)
        stream = ConferenceStream(conference_sid="room", sid=UNKNOWN_SID, name="audit")
        with pytest.raises(MalformedResponseError) as caught:
            await client.conferences.stop_stream(stream)
        assert (caught.value.attempts, caught.value.sent) == (3, "yes")
        outcomes = [outcome async for outcome in client.stop_streams([stream])]
        assert [outcome.ok for outcome in outcomes] == [False]


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize(("noun", "requests"), [("conference", 3), ("call", 1)])
async def test_start_with_status_stopped_in_its_response_is_unknown(client_for: Any, noun: str, requests: int) -> None:
    """It is the response to a stop, so whether the stream runs is unknown."""

    async def refuse(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        document = {"sid": UNKNOWN_SID, request.target_key: request.target, "status": "stopped"}
        return http(200, document | {"name": request.fields["Name"]})

    async with SimulatedSpace() as simulated, raw_space(refuse) as raw:
        client = client_for(simulated, base_url=raw.url)
        streams: Any = client.conferences if noun == "conference" else client.calls
        with pytest.raises(StreamOutcomeUnknownError, match="names another status"):
            await streams.start_stream("room", url=URL)
        assert len(raw.requests) == requests


@pytest.mark.parametrize(
    ("document", "ambiguous"),
    [
        ({}, True),
        ({"conference_sid": None, "name": None, "account_sid": None}, True),
        ({"conference_sid": "ROOM", "name": None}, False),
        ({"conference_sid": "room"}, False),
        ({"name": "audit"}, False),
    ],
)
async def test_start_whose_response_names_nothing_is_ambiguous(
    client_for: Any, document: dict[str, Any], *, ambiguous: bool
) -> None:
    """Its sid may be that of another request's stream, so it is stopped by its name where it has one."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        if "Status" in request.fields:
            return http(200, {"sid": UNKNOWN_SID, "conference_sid": request.target, "status": "stopped"})
        return http(200, {"sid": UNKNOWN_SID, "status": "queued", **document})

    async with SimulatedSpace() as simulated, raw_space(answer) as raw:
        client = client_for(simulated, base_url=raw.url)
        stream = await client.conferences.start_stream("room", url=URL, name="audit")
        assert (stream.sid, stream.name, stream.ambiguous) == (UNKNOWN_SID, "audit", ambiguous)
        await client.conferences.stop_stream(stream)
        assert raw.requests[1].path.rpartition("/")[2] == ("audit" if ambiguous else UNKNOWN_SID)
        unnamed = await client.conferences.start_stream("room", url=URL, unnamed=True)
        assert (unnamed.sid, unnamed.ambiguous) == (UNKNOWN_SID, not document.get("conference_sid"))


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (403, PermissionDeniedError), (503, ServerError)])
@pytest.mark.usefixtures("idle_clock")
async def test_start_rejected_under_a_2xx_is_error(client_for: Any, status: int, error: type[ApiError]) -> None:
    """A gateway replaced the status of the API's own error, which its body still has."""

    async def refuse(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return http(200, {"code": 20404, "message": "gone", "more_info": "", "status": status})

    async with SimulatedSpace() as simulated, raw_space(refuse) as raw:
        client = client_for(simulated, base_url=raw.url)
        with pytest.raises(error, match=r"HTTP 200 \[code 20404\]: gone") as caught:
            await client.conferences.start_stream("room", url=URL)
        assert (caught.value.status, caught.value.code) == (200, 20404)
