"""A start in the client's own session is written at once, and is the request that aiohttp would have written."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import yarl
from attrs import evolve
from multidict import CIMultiDict

from signalwire_streams import Operation, StreamOutcomeUnknownError, StreamsClient, StreamsError
from signalwire_streams._http.attempt_guard import PreparedBody, PreparedRequest
from signalwire_streams._http.transport import OwnSession
from signalwire_streams.middleware import Handler, Middleware, Request, Result
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import http, raw_space

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
MIXED = {"tenant": "a b&c=\u00e4", "n": "1"}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[aiohttp.ClientRequest]:
    """The requests that were sent prepared."""
    sent: list[aiohttp.ClientRequest] = []
    send = PreparedRequest.send

    async def spy(self: PreparedRequest, conn: Any) -> aiohttp.ClientResponse:
        sent.append(self)
        return await send(self, conn)

    monkeypatch.setattr(PreparedRequest, "send", spy)
    return sent


@pytest.fixture
def patched_session(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Patch aiohttp's session as an instrumentation does, so that each is created with further options."""
    create = aiohttp.ClientSession.__init__

    def patch(**more: Any) -> None:
        monkeypatch.setattr(aiohttp.ClientSession, "__init__", lambda self, **options: create(self, **options, **more))

    return patch


async def start_and_stop(client: StreamsClient, sid: str) -> None:
    stream = await client.conferences.start_stream(sid, url=URL, name="audit", parameters=MIXED)
    assert (stream.name, stream.ambiguous) == ("audit", False)
    await client.conferences.stop_stream(stream)


@asynccontextmanager
async def refusing() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Reject each request; yield the server's address, and the heads that it has received."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(int(heads[-1].lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
        writer.write(http(403, {"code": 20003, "message": "no"}, head="Connection: close\r\n"))
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def test_own_session_sends_what_aiohttp_sends(
    space: SimulatedSpace, client_for: Any, prepared: list[aiohttp.ClientRequest]
) -> None:
    """The lines of the head are those that a borrowed session sends, none twice."""
    async with refusing() as (address, heads), aiohttp.ClientSession() as session:
        for options in ({}, {"session": session}):
            with pytest.raises(StreamsError):
                await client_for(space, base_url=address, **options).conferences.start_stream(
                    "room", url=URL, name="audit", parameters=MIXED
                )

    own, borrowed = heads
    assert len(prepared) == 1
    assert own.split(b"\r\n")[0] == borrowed.split(b"\r\n")[0]
    assert sorted(own.split(b"\r\n")) == sorted(borrowed.split(b"\r\n"))


async def test_own_session_starts_and_stops(
    space: SimulatedSpace, client: StreamsClient, prepared: list[aiohttp.ClientRequest]
) -> None:
    """Both are sent prepared, on one connection, and the form arrives as it was given."""
    await start_and_stop(client, space.conference_sids[0])

    assert len(prepared) == 2
    assert space.connections.opened == 1
    assert space.requests[0].fields["Parameter1.Value"] == MIXED["tenant"]
    assert space.streams.active() == []


async def test_read_is_sent_by_aiohttp(
    space: SimulatedSpace, client: StreamsClient, prepared: list[aiohttp.ClientRequest]
) -> None:
    """A request without a body is aiohttp's own."""
    assert (await client.conferences.get(space.conference_sids[0])).sid == space.conference_sids[0]
    assert prepared == []


async def test_other_version_of_aiohttp_does_without(
    space: SimulatedSpace, client_for: Any, prepared: list[aiohttp.ClientRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where aiohttp has other requests, the session sends those, and how far they got is known all the same."""

    def respond(_: PreparedRequest) -> aiohttp.ClientResponse:
        raise AttributeError("_timer")

    monkeypatch.setattr(PreparedRequest, "respond", respond)
    client = client_for(space)
    await start_and_stop(client, space.conference_sids[0])
    space.faults.add("reset", on="start", executed=True, times=1)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[1], url=URL, unnamed=True)

    assert (prepared, caught.value.sent, caught.value.attempts) == ([], "maybe", 1)
    assert space.requests.count("start-conference-stream") == 2


async def test_lost_response_is_known_to_be_lost(
    space: SimulatedSpace, client: StreamsClient, prepared: list[aiohttp.ClientRequest]
) -> None:
    """A prepared request that is reset after it was written may have been carried out."""
    space.faults.add("reset", on="start", executed=True, times=1)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, unnamed=True)

    assert (len(prepared), caught.value.sent, caught.value.attempts) == (1, "maybe", 1)


async def test_trace_hooks_of_an_instrumentation_are_called(
    space: SimulatedSpace,
    client_for: Any,
    prepared: list[aiohttp.ClientRequest],
    patched_session: Callable[..., None],
) -> None:
    """A hook that every session is given may add a header, and is told of the request's body."""
    chunks: list[bytes] = []
    tracing = aiohttp.TraceConfig()

    async def add_header(_: object, __: object, params: aiohttp.TraceRequestStartParams) -> None:
        params.headers["Traceparent"] = "00-1"

    async def collect(_: object, __: object, params: aiohttp.TraceRequestChunkSentParams) -> None:
        chunks.append(params.chunk)

    tracing.on_request_start.append(add_header)
    tracing.on_request_chunk_sent.append(collect)
    patched_session(trace_configs=[tracing])
    async with raw_space() as raw:
        await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL, name="audit")

    [request] = raw.requests
    assert (request.headers["traceparent"], request.fields["Name"], prepared) == ("00-1", "audit", [])
    assert b"".join(chunks).endswith(b"Name=audit")


async def test_header_of_an_instrumentation_is_sent(
    space: SimulatedSpace,
    client_for: Any,
    prepared: list[aiohttp.ClientRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A library that wraps the session's requests may replace one of the client's headers."""
    request = aiohttp.ClientSession._request

    async def wrapped(self: aiohttp.ClientSession, *arguments: Any, **options: Any) -> aiohttp.ClientResponse:
        options["headers"] = {**options["headers"], "User-Agent": "wrapped"}
        return await request(self, *arguments, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", wrapped)
    async with raw_space() as raw:
        await client_for(space, base_url=raw.url).conferences.start_stream("room", url=URL)

    assert ([each.headers["user-agent"] for each in raw.requests], prepared) == (["wrapped"], [])


async def test_proxy_is_used(client: StreamsClient, patched_session: Callable[..., None]) -> None:
    """A session that is given a proxy sends its requests there, with the whole address."""
    async with refusing() as (address, heads):
        patched_session(proxy=address)
        with pytest.raises(StreamsError):
            await client.conferences.start_stream("room", url=URL, unnamed=True)

    [head] = heads
    assert head.startswith(f"POST {client.origin}/api/laml/".encode())


async def test_header_of_a_middleware_is_sent(
    space: SimulatedSpace, client_for: Any, prepared: list[aiohttp.ClientRequest]
) -> None:
    """A middleware's header is added, or replaces one of the client's."""

    async def adding(request: Request, send: Handler) -> Result:
        return await send(evolve(request, headers={"Traceparent": "00-1", "user-agent": "mine"}))

    async with raw_space() as raw:
        await start_and_stop(client_for(space, base_url=raw.url, middlewares=[adding]), "room")

    sent = [(each.headers["traceparent"], each.headers["user-agent"]) for each in raw.requests]
    assert (sent, prepared) == ([("00-1", "mine")] * 2, [])


@pytest.mark.parametrize("ending", [" HTTP/1.1\r\nX-Injected: 1", "/\u00e4", "\x00"])
async def test_path_that_is_none_is_not_prepared(
    ending: str, space: SimulatedSpace, client_for: Any, prepared: list[aiohttp.ClientRequest]
) -> None:
    """A path that a middleware spoils is not written into the head as it is."""

    async def spoiling(request: Request, send: Handler) -> Result:
        return await send(evolve(request, path=request.path + ending))

    spoilers: list[Middleware] = [spoiling]
    with pytest.raises(StreamsError):
        await client_for(space, middlewares=spoilers).conferences.start_stream("room", url=URL, unnamed=True)

    assert prepared == []
    assert all("X-Injected" not in request.headers for request in space.requests)


async def test_long_form_is_not_written_at_once(
    space: SimulatedSpace, client: StreamsClient, prepared: list[aiohttp.ClientRequest]
) -> None:
    """A form that one write may not take is sent by aiohttp, which records how much of it was."""
    parameters = {f"p{n}": "x" * 1_000 for n in range(90)}
    await client.conferences.start_stream(space.conference_sids[0], url=URL, parameters=parameters)

    assert prepared == []
    assert space.streams.active()[0].parameters == parameters


@pytest.mark.parametrize("kind", [aiohttp.ClientRequest, type("OtherRequest", (aiohttp.ClientRequest,), {})])
async def test_form_is_guarded_in_a_session_with_other_requests(
    kind: type[aiohttp.ClientRequest],
    space: SimulatedSpace,
    client: StreamsClient,
    prepared: list[aiohttp.ClientRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session that was given another class of requests does not write the form unseen: a lost start stays unknown."""
    create = aiohttp.ClientSession.__init__
    monkeypatch.setattr(
        aiohttp.ClientSession, "__init__", lambda self, **options: create(self, **{**options, "request_class": kind})
    )
    await start_and_stop(client, space.conference_sids[0])
    space.faults.add("reset", on="start", executed=True, times=1)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[1], url=URL, unnamed=True)

    assert (prepared, caught.value.sent, caught.value.attempts) == ([], "maybe", 1)
    assert space.requests[0].fields["Parameter1.Value"] == MIXED["tenant"]
    assert space.requests.count("start-conference-stream") == 2


async def test_method_that_aiohttp_renamed_is_not_replaced(
    space: SimulatedSpace,
    client: StreamsClient,
    prepared: list[aiohttp.ClientRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a method that a prepared request replaces is not aiohttp's any more, the session sends aiohttp's own."""
    monkeypatch.setattr(PreparedRequest, "update_renamed", None, raising=False)
    await start_and_stop(client, space.conference_sids[0])

    assert prepared == []
    assert space.requests.count("start-conference-stream") == 1


@pytest.mark.parametrize(("size", "is_prepared"), [(1, True), (64 * 1024, True), (64 * 1024 + 1, False)])
async def test_form_of_up_to_64_kib_is_prepared(size: int, *, is_prepared: bool) -> None:
    """One write takes all of it, or none: that is known of no more."""
    ours = OwnSession(yarl.URL("http://127.0.0.1"), {"Accept": "x"})
    session = ours.create()
    request = Request(method="POST", path="/a", operation=Operation.STOP, description="", target="", body=b"x" * size)
    guard: Any = None
    body = ours.body(request, yarl.URL("http://127.0.0.1/a"), guard)
    assert isinstance(body, PreparedBody) is is_prepared
    await session.close()


def test_prepared_body_hides_itself() -> None:
    """The form may hold a bearer token and parameter values."""
    guard: Any = None
    assert "hush" not in repr(PreparedBody(b"AuthorizationBearerToken=hush", guard, b"hush", CIMultiDict()))
