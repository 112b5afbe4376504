"""Unsolicited responses on real sockets: none is taken for the response to a later request."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import aiohttp
import pytest
import trustme

from signalwire_streams import (
    Attempt,
    BulkStatus,
    CallStream,
    ConferenceStream,
    MalformedResponseError,
    Phase,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
    TransportError,
)
from signalwire_streams._http import attempt_guard
from signalwire_streams.models import AttemptResult
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import VICTIM, RawConnection, RawSpace, Request, as_documented, http, raw_space

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
ROOM = "22222222-2222-4222-8222-222222222222"
STREAM = "33333333-3333-4333-8333-333333333333"
STARTS = 300 if os.environ.get("CI") else 45
API_ERROR = {"code": 20404, "message": "Not found", "more_info": "", "status": 404}
STOLEN = {"sid": VICTIM, "conference_sid": VICTIM, "name": "sws-victim"}
UNASKED: dict[str, bytes] = {
    "200": http(200, STOLEN),
    "200 that names nothing": http(200, {"sid": VICTIM}),
    "202": http(202, STOLEN),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "401": http(401, {"code": 20003, "message": "x", "status": 401}),
    "404": http(404, API_ERROR),
    "408": http(408, head="Connection: close\r\n"),
    "422": http(422, {"errors": ["Duplicated stream name"]}),
    "429": http(429),
    "500": http(500),
    "503": http(503, API_ERROR),
    "two": http(503) + http(200, STOLEN),
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "part of a head": b"HTTP/1.1 404 Not Found\r\nX-Rest: ",
    "part of a body": http(404, API_ERROR)[:-5],
    "garbage": b"\x16\x03\x01 nobody asked\r\n\r\n",
    "one byte": b"x",
    "a line's end": b"\r\n",
    "more of a body": b'{"sid": "x"}',
}
# The true response's status line ends up in the header or in the reason.
PARTS_OF_HEADS = (
    b"HTTP/1.1 404 Not Found\r\nX-Rest: ",
    b"HTTP/1.1 404 Not Fou",
    b"HTTP/1.1 503 X\r\nRetry-After: 0\r\nX-Rest: a",
)
each_unasked = pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
KINDS = ("read", "stop", "named", "unnamed", "call")
Make: TypeAlias = Callable[..., StreamsClient]


@pytest.fixture(params=[False, True], ids=["owned", "borrowed"])
async def make(request: pytest.FixtureRequest, space: SimulatedSpace, client_for: Any) -> AsyncIterator[Make]:
    """Make clients of a raw Space, with a session of their own or a borrowed one."""
    sessions: list[aiohttp.ClientSession] = []

    def make(raw: RawSpace, **options: Any) -> StreamsClient:
        if request.param:
            sessions.append(aiohttp.ClientSession())
            options["session"] = sessions[-1]
        client: StreamsClient = client_for(space, base_url=raw.url, **options)
        return client

    yield make
    for session in sessions:
        await session.close()


async def perform(client: StreamsClient, kind: str, target: str = ROOM) -> str | None:
    """Return the sid of what came of it."""
    if kind == "read":
        return (await client.conferences.get(target)).sid
    if kind == "stop":
        return (await client.conferences.stop_stream(target, STREAM)).sid
    if kind == "call":
        return (await client.calls.start_stream(target, url=URL)).sid
    return (await client.conferences.start_stream(target, url=URL, unnamed=kind == "unnamed")).sid


def expected(raw: RawSpace, kind: str) -> list[str]:
    return {"read": [ROOM], "stop": [STREAM]}.get(kind) or raw.sids_of(ROOM)


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("name", "kind", "was_read"),
    [
        (name, kind, (number + turn) % 2)
        for number, name in enumerate(UNASKED)
        for turn, kind in enumerate(("read", "named", "unnamed"))
    ],
)
async def test_unsolicited_response_on_an_idle_connection(name: str, kind: str, was_read: int, make: Make) -> None:
    """The next request goes out once, on another connection or before its own response, and gets that."""
    async with raw_space() as raw:
        client = make(raw)
        await perform(client, "named", "warm")
        raw.connections[0].push(UNASKED[name])
        await turns() if was_read else None  # or it is still in the kernel
        sid = await perform(client, kind)

        assert [sid] == expected(raw, kind)
        assert len(raw.requests) == 2


@each_unasked
async def test_starts_after_an_unsolicited_response_get_their_own(unasked: bytes, make: Make) -> None:
    """No later response on that connection is its predecessor's."""
    async with raw_space() as raw:
        client = make(raw, connections=1)
        await perform(client, "named", "warm")
        raw.connections[0].push(unasked)
        targets = [f"room-{number}" for number in range(20)]
        sids = [await perform(client, "named", target) for target in targets]

        assert [[sid] for sid in sids] == [raw.sids_of(target) for target in targets]
        assert len(raw.requests) == 21


@pytest.mark.parametrize("kind", KINDS)
async def test_proxy_that_closes_all_idle_connections(kind: str, make: Make) -> None:
    """After the process stood still, the many connections that a proxy ended with a 408 cost one attempt."""
    async with raw_space() as raw:
        client = make(raw)
        await asyncio.gather(*(perform(client, "named", f"warm-{number}") for number in range(10)))
        for connection in raw.connections:
            connection.push(http(408, head="Connection: close\r\n"))
            connection.writer.get_extra_info("socket")._sock.shutdown(socket.SHUT_WR)
        sid = await perform(client, kind)

        assert [sid] == expected(raw, kind)
        assert len(raw.requests) == 11


@pytest.mark.parametrize("name", ["200", "408", "100", "part of a head", "garbage", "one byte", "a line's end"])
@pytest.mark.parametrize("kind", ["read", "named", "unnamed"])
async def test_server_that_speaks_first_gets_no_request(name: str, kind: str, make: Make) -> None:
    """Nothing is sent on a fresh connection on which the server spoke first, and no success is reported."""

    async def speak(connection: RawConnection) -> None:
        connection.push(UNASKED[name])

    attempts: list[Attempt] = []
    async with raw_space(on_connect=speak) as raw:
        client = make(raw, on_attempt=attempts.append)
        with pytest.raises(TransportError) as caught:
            await perform(client, kind)

        assert raw.requests == []
        assert raw.running == {}
        assert caught.value.sent == "no"
        assert {attempt.result for attempt in attempts} == {AttemptResult.STALE_CONNECTION}


async def test_start_after_unsolicited_response_goes_through_on_next_connection(make: Make) -> None:
    """The start goes through on the next connection, and all unasked ones are closed."""

    async def speak(connection: RawConnection) -> None:
        if len(raw.connections) == 1:
            connection.push(UNASKED["200"])

    async with raw_space(on_connect=speak) as raw:
        sid = await perform(make(raw), "unnamed")
        await turns()

        assert [sid] == raw.sids_of(ROOM)
        assert [connection.closed for connection in raw.connections] == [True, False]


@contextmanager
def tls_pair(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Iterator[tuple[ssl.SSLContext, ssl.SSLContext]]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.maximum_version = version
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the authorities of the system would take long to load
    authority.configure_trust(client)
    yield server, client


each_version = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
each_part_of_a_head = pytest.mark.parametrize("part", PARTS_OF_HEADS)


@each_version
@pytest.mark.parametrize("unasked", [http(200, STOLEN), http(408), b"nobody asked\r\n\r\n", *PARTS_OF_HEADS])
async def test_unsolicited_data_over_tls_is_rejected_but_session_tickets_are_not(
    unasked: bytes, version: ssl.TLSVersion, space: SimulatedSpace, client_for: Any
) -> None:
    """Data over TLS is decrypted before it is checked; session tickets are not data."""
    with tls_pair(version) as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with raw_space(tls=server) as raw, aiohttp.ClientSession(connector=connector) as session:
            client = client_for(space, base_url=raw.url, session=session)
            await perform(client, "named", "warm")
            raw.connections[0].writer.write(unasked)
            sid = await perform(client, "unnamed")

            assert [sid] == raw.sids_of(ROOM)
            assert len(raw.requests) == 2


@pytest.mark.parametrize("hook", ["on_connection_create_end", "on_request_headers_sent"])
async def test_session_tickets_are_no_responses(hook: str, space: SimulatedSpace, client_for: Any) -> None:
    """No fresh TLS connection is refused for the ticket that follows the handshake, in whichever turn it arrives."""
    attempts: list[Attempt] = []
    trace = aiohttp.TraceConfig()

    async def hold(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        await turns(len(attempts))

    getattr(trace, hook).append(hold)
    with tls_pair() as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting, force_close=True)
        async with (
            raw_space(tls=server) as raw,
            aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session,
        ):
            client = client_for(space, base_url=raw.url, session=session, on_attempt=attempts.append)
            for number in range(12):
                await perform(client, "unnamed", f"room-{number}")

            assert Counter(attempt.result for attempt in attempts) == {AttemptResult.DONE: 12}
            assert len(raw.connections) == 12


@pytest.mark.parametrize("unasked", [http(200, STOLEN), http(408), http(200, {"sid": VICTIM})])
@pytest.mark.parametrize("hook", ["on_request_headers_sent", "on_request_chunk_sent"])
@pytest.mark.parametrize("kind", ["read", "named", "unnamed"])
async def test_response_that_arrives_while_a_trace_hook_holds_the_request(
    unasked: bytes, hook: str, kind: str, space: SimulatedSpace, client_for: Any
) -> None:
    """A trace hook may wait just before the request is written; what arrives meanwhile is not its response."""
    trace = aiohttp.TraceConfig()
    pushed: list[bool] = []

    async def hold(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if not pushed:
            pushed.append(True)
            for connection in raw.connections:
                connection.push(unasked)
            await turns()

    getattr(trace, hook).append(hold)
    async with raw_space() as raw, aiohttp.ClientSession(trace_configs=[trace]) as session:
        client = client_for(space, base_url=raw.url, session=session)
        sid = error = None
        try:
            sid = await perform(client, kind)
        except StreamsError as raised:
            error = raised

        assert sid != VICTIM
        assert sid is None or [sid] == expected(raw, kind)
        assert error is None or isinstance(error, StreamOutcomeUnknownError)


async def start(
    client: StreamsClient, raw: RawSpace, *, unnamed: bool
) -> StreamOutcomeUnknownError | TransportError | None:
    """Start a stream, check that what is returned runs, and return the error."""
    try:
        stream = await client.conferences.start_stream(ROOM, url=URL, unnamed=unnamed)
    except (StreamOutcomeUnknownError, TransportError) as error:  # a rejection would be false
        return error
    assert stream.sid in {None, *raw.sids_of(ROOM)}
    return None


@each_version
@each_part_of_a_head
@pytest.mark.parametrize("unnamed", [False, True], ids=["named", "unnamed"])
async def test_server_that_sends_a_part_of_a_head_first_over_tls(
    part: bytes, unnamed: bool, version: ssl.TLSVersion, space: SimulatedSpace, client_for: Any
) -> None:
    """No start is rejected that runs, and none is sent twice without a name, whenever the part is read."""

    async def speak(connection: RawConnection) -> None:
        connection.writer.write(part)

    with tls_pair(version) as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with (
            raw_space(tls=server, on_connect=speak) as raw,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            error = await start(client_for(space, base_url=raw.url, session=session), raw, unnamed=unnamed)

            assert len(raw.running) <= 1
            assert len(raw.requests) <= (1 if unnamed else 3)
            assert error is None or (error.sent == "no") == (raw.requests == [])


@each_part_of_a_head
@pytest.mark.parametrize(
    "hook", ["on_connection_create_end", "on_connection_reuseconn", "on_request_headers_sent", "on_request_chunk_sent"]
)
@pytest.mark.parametrize("unnamed", [False, True], ids=["named", "unnamed"])
async def test_part_of_a_head_that_comes_while_a_trace_hook_holds_the_request(
    part: bytes, hook: str, unnamed: bool, space: SimulatedSpace, client_for: Any
) -> None:
    """The request goes out on another connection, except if the part was read before the connection was known."""
    trace, held = aiohttp.TraceConfig(), asyncio.Event()

    async def hold(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        await turns()
        if len(raw.requests) == 1 and not held.is_set():
            held.set()
            raw.connections[-1].push(part)
            await turns()

    getattr(trace, hook).append(hold)
    connector = aiohttp.TCPConnector(force_close=hook == "on_connection_create_end")
    async with raw_space() as raw, aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session:
        client = client_for(space, base_url=raw.url, session=session)
        await perform(client, "named", "warm")
        error = await start(client, raw, unnamed=unnamed)

        assert held.is_set()
        assert len(raw.sids_of(ROOM)) == 1
        if hook == "on_connection_create_end":
            assert len(raw.requests) == (2 if unnamed else 3)
            assert isinstance(error, StreamOutcomeUnknownError) if unnamed else error is None
        else:
            assert len(raw.requests) == 2
            assert error is None


@pytest.mark.parametrize("hook", ["on_connection_create_end", "on_request_headers_sent", "on_request_chunk_sent"])
async def test_connection_that_ends_while_a_trace_hook_holds_the_request(
    hook: str, space: SimulatedSpace, client_for: Any
) -> None:
    """Nothing was written, so the start is sent on another connection, and is not ambiguous."""
    trace, held = aiohttp.TraceConfig(), asyncio.Event()

    async def hold(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        if not held.is_set():
            held.set()
            await turns()
            raw.connections[0].writer.close()
            await turns()

    getattr(trace, hook).append(hold)
    async with raw_space() as raw, aiohttp.ClientSession(trace_configs=[trace]) as session:
        client = client_for(space, base_url=raw.url, session=session)
        stream = await client.conferences.start_stream(ROOM, url=URL, unnamed=True)

        assert [stream.sid] == raw.sids_of(ROOM)
        assert len(raw.requests) == 1


def answering_first_with(unasked: bytes, *, times: int = 1) -> Any:
    """Send this as the response to a request in flight, and its true response after it."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        true = await as_documented(space, connection, request)
        return unasked + true if len(space.requests) <= times else true

    return answer


OTHERS: dict[str, dict[str, Any]] = {
    "another conference": {"sid": VICTIM, "conference_sid": VICTIM},
    "another call": {"sid": VICTIM, "call_sid": VICTIM},
    "another name": {"sid": VICTIM, "name": "sws-0123"},
    "another name and no sid": {"name": "sws-0123"},
    "another conference and an empty list as sid": {"sid": [], "conference_sid": VICTIM},
    "another conference and a list as sid": {"sid": [VICTIM], "conference_sid": VICTIM},
    "another conference in a list": {"sid": VICTIM, "conference_sid": [VICTIM]},
    "another conference in an object": {"sid": VICTIM, "conference_sid": {"sid": VICTIM}},
    "another name in a list": {"sid": VICTIM, "name": ["sws-0123"]},
    "another account": {"sid": VICTIM, "account_sid": "another"},
    "a call without a conference": {"sid": VICTIM, "call_sid": VICTIM, "conference_sid": None},
    "a conference without a call": {"sid": VICTIM, "conference_sid": VICTIM},
}
ABOUT: dict[str, tuple[str, ...]] = {
    "another conference": ("stop", "named", "unnamed"),
    "another call": ("call",),
    "another name": ("named", "call"),
    "another name and no sid": ("named", "call"),
    "another conference and an empty list as sid": ("stop", "named", "unnamed"),
    "another conference and a list as sid": ("stop", "named", "unnamed"),
    "another conference in a list": ("stop", "named", "unnamed"),
    "another conference in an object": ("stop", "named", "unnamed"),
    "another name in a list": ("named", "call"),
    "another account": ("named", "unnamed", "call"),
    "a call without a conference": ("stop", "named", "unnamed"),
    "a conference without a call": ("call",),
}


@pytest.mark.parametrize(("other", "kind"), [(other, kind) for other, kinds in ABOUT.items() for kind in kinds])
async def test_response_in_flight_that_names_something_else(other: str, kind: str, make: Make) -> None:
    """It is no success, the connection is closed, and the sid that it has is not returned."""
    attempts: list[Attempt] = []
    async with raw_space(answering_first_with(http(200, OTHERS[other]))) as raw:
        client = make(raw, on_attempt=attempts.append)
        sid = error = None
        try:
            sid = await perform(client, kind)
        except StreamsError as raised:
            error = raised
        await turns()

        assert attempts[0].result is AttemptResult.MALFORMED
        assert attempts[0].sent == "yes"
        assert raw.connections[0].closed
        assert sid is None or [sid] == expected(raw, kind)
        assert error is None or (isinstance(error, StreamOutcomeUnknownError) and "names another" in str(error))
        assert VICTIM not in str(error)
        # An unnamed start and one on a call are not sent again; a named one is told by the Space that it runs.
        assert len(raw.requests) == (1 if kind in {"unnamed", "call"} else 2)


async def test_reads_with_a_response_about_something_else(make: Make) -> None:
    """A conference, a call or a participant of another conference is not returned."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return http(200, {"sid": VICTIM, "participants": [{"call_sid": "x", "conference_sid": VICTIM}]})

    async with raw_space(answer) as raw:
        client = make(raw)
        for read in (
            client.conferences.get(ROOM),
            client.calls.get(ROOM),
            anext(aiter(client.conferences.participants(ROOM))),
        ):
            with pytest.raises(MalformedResponseError, match="names another") as caught:
                await read
            assert caught.value.attempts == 3
        assert len(raw.connections) == 9


async def test_stop_with_a_response_about_another_stream(make: Make) -> None:
    """A sid must come back as it was asked for; a name as well, or the sid that it was."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return http(200, {"sid": "another-sid", "name": "another-name", "conference_sid": request.target})

    async with raw_space(answer) as raw:
        client = make(raw)
        returned = ConferenceStream(conference_sid=ROOM, sid=STREAM, name="another-name")
        for stream in (STREAM, "a-name", returned):
            with pytest.raises(MalformedResponseError, match="names another"):
                await client.conferences.stop_stream(ROOM, stream)
        for handle in ("Another-Name", "ANOTHER-sid", "name-\u00e9", "n" * 65):
            assert (await client.conferences.stop_stream(ROOM, handle)).sid == "another-sid"


@pytest.mark.parametrize(
    "echo",
    [
        {"conference_sid": None, "name": None},
        {"conference_sid": ROOM.upper(), "name": "AUDIT"},
        {"conference_sid": ROOM, "call_sid": "call-1"},
        {"conference_sid": ROOM, "account_sid": None},
        {},
    ],
)
async def test_response_with_null_missing_or_extra_keys_loses_no_stream(echo: dict[str, Any], make: Make) -> None:
    """Null, a missing key, another case and a further key lose no stream."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        account = request.path.split("/")[5].upper()
        return http(200, {"sid": STREAM, "account_sid": account, **echo})

    async with raw_space(answer) as raw:
        stream = await make(raw).conferences.start_stream(ROOM, url=URL, name="audit")

        assert (stream.sid, stream.conference_sid, stream.name) == (STREAM, ROOM, "audit")
        assert len(raw.requests) == 1


@pytest.mark.parametrize(("name", "requests"), [("name-\u00e9", 1), ("n" * 65, 1), ("audit-1", 3)])
async def test_name_that_the_caller_chose(name: str, requests: int, make: Make) -> None:
    """The Space may trim or shorten it, so only a short and plain one must come back as it was."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        return http(200, {"sid": STREAM, "name": name[:6].strip()})

    async with raw_space(answer) as raw:
        sid = None
        try:
            sid = (await make(raw).conferences.start_stream(ROOM, url=URL, name=name)).sid
        except StreamOutcomeUnknownError:
            assert requests > 1

        assert sid == (STREAM if requests == 1 else None)
        assert len(raw.requests) == requests


def with_a_small_buffer(address: Any) -> socket.socket:
    """Open a socket whose kernel takes little of a large body at once."""
    family, kind, protocol, _, _ = address
    client = socket.socket(family, kind, protocol)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


async def test_early_response_to_a_large_request(space: SimulatedSpace, client_for: Any) -> None:
    """A response that comes before all of the request is written is not believed: the request is cut off."""

    async def refuse(connection: RawConnection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        connection.push(http(200, {"sid": VICTIM}))
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()
        raise ConnectionError

    gone = asyncio.Event()
    parameters = {f"parameter-{number}": "x" * 9_000 for number in range(99)}
    connector = aiohttp.TCPConnector(socket_factory=with_a_small_buffer)
    async with raw_space(on_connect=refuse) as raw, aiohttp.ClientSession(connector=connector) as session:
        client = client_for(space, base_url=raw.url, session=session)
        with pytest.raises(StreamOutcomeUnknownError, match="before the request was sent") as caught:
            await client.conferences.start_stream(ROOM, url=URL, unnamed=True, parameters=parameters)
        gone.set()

        assert (caught.value.sent, caught.value.phase) == ("maybe", Phase.WRITING)
        assert len(raw.connections) == 1


@pytest.mark.parametrize("size", [1, 3, 6], ids=lambda size: f"{size * 9} KB")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("status", [200, 404])
async def test_response_before_buffered_request_has_left_is_rejected(
    size: int, *, tls: bool, status: int, space: SimulatedSpace, client_for: Any
) -> None:
    """A request that fits into one write waits in the process while the kernel takes none of it."""

    async def refuse(connection: RawConnection) -> None:
        transport: Any = connection.writer.transport
        (transport._ssl_protocol._transport if tls else transport).pause_reading()
        await turns(20)
        connection.writer.write(http(status, {"sid": VICTIM} if status == 200 else API_ERROR))
        await gone.wait()
        raise ConnectionError

    gone = asyncio.Event()
    parameters = {f"parameter-{number}": "x" * 9_000 for number in range(size)}
    with tls_pair() as (server, trusting):
        connector = aiohttp.TCPConnector(socket_factory=with_a_small_buffer, ssl=trusting)
        async with (
            raw_space(on_connect=refuse, tls=server if tls else None, receive_buffer=2048) as raw,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            client = client_for(space, base_url=raw.url, session=session)
            with pytest.raises(StreamOutcomeUnknownError, match="before the request was sent"):
                await client.conferences.start_stream(ROOM, url=URL, unnamed=True, parameters=parameters)
            gone.set()
            await turns()


async def test_response_read_in_the_turn_in_which_the_request_leaves_is_rejected(
    space: SimulatedSpace, client_for: Any
) -> None:
    """While the loop was busy, an early response came and the kernel took up what was left of the request."""

    async def refuse(connection: RawConnection) -> None:
        reading: Any = connection.writer.transport
        reading.pause_reading()
        await may_answer.wait()
        # All within one turn of the loop: its next one finds the response, and room for the rest of the request.
        connection.push(http(404, API_ERROR))
        with contextlib.suppress(BlockingIOError):
            while reading._sock.recv(1 << 20):
                pass
        await gone.wait()
        raise ConnectionError

    may_answer, gone = asyncio.Event(), asyncio.Event()
    connector = aiohttp.TCPConnector(socket_factory=with_a_small_buffer)
    async with (
        raw_space(on_connect=refuse, receive_buffer=2048) as raw,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        client = client_for(space, base_url=raw.url, session=session)
        parameters = {"parameter": "x" * 9_000}
        start = asyncio.create_task(client.conferences.start_stream(ROOM, url=URL, unnamed=True, parameters=parameters))
        await turns(50)
        may_answer.set()
        with pytest.raises(StreamOutcomeUnknownError, match="before the request was sent"):
            await start
        gone.set()


@each_version
@pytest.mark.parametrize(
    ("early", "kind", "together"),
    [
        (early, kind, (number + turn) % 2 == 1)
        for number, early in enumerate([1, 3, 5, 30, -1])
        for turn, kind in enumerate(("read", "named", "unnamed"))
    ],
)
async def test_tls_record_begun_before_request_is_no_response(
    early: int, kind: str, version: ssl.TLSVersion, *, together: bool, space: SimulatedSpace, client_for: Any
) -> None:
    """A part of a record leaves no trace in the connection, and its rest comes when a response is due."""
    rest = b""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        nonlocal rest
        true = await as_documented(space, connection, request)
        if len(space.requests) == 1:
            first = connection.encrypt(true)
            record = connection.encrypt(http(200, {"sid": VICTIM}))
            rest = record[early:]
            connection.push(first + record[:early]) if together else connection.push(first)
            await turns()
            None if together else connection.push(record[:early])
            return b""
        if len(space.requests) == 2:
            connection.push(rest)
            await turns()
        return true

    with tls_pair(version) as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with raw_space(answer, tls=server) as raw, aiohttp.ClientSession(connector=connector) as session:
            client = client_for(space, base_url=raw.url, session=session)
            await perform(client, "named", "warm")
            await turns(12)
            sid = error = None
            try:
                sid = await perform(client, kind)
            except StreamOutcomeUnknownError as raised:
                error = raised

            assert (error is not None) == (kind == "unnamed")
            # A named start is sent again and rejected as a duplicate of itself, so its sid stays unknown.
            assert sid == (ROOM if kind == "read" else None)


@each_version
@pytest.mark.parametrize("attribute", ["_hidden", "_loop"], ids=["missing", "something else"])
@pytest.mark.parametrize("unasked", [b"", http(200, STOLEN), *PARTS_OF_HEADS])
async def test_tls_where_transport_hides_its_protocol(
    attribute: str,
    unasked: bytes,
    version: ssl.TLSVersion,
    space: SimulatedSpace,
    client_for: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other event loops have no such attribute, or another object: only records cut in two are then not noticed."""
    monkeypatch.setattr(attempt_guard, "_TLS_PROTOCOL", attribute)
    with tls_pair(version) as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with raw_space(tls=server) as raw, aiohttp.ClientSession(connector=connector) as session:
            client = client_for(space, base_url=raw.url, session=session)
            await perform(client, "named", "warm")
            raw.connections[0].writer.write(unasked)
            sids = [await perform(client, "unnamed"), await perform(client, "read")]

            assert sids == [*raw.sids_of(ROOM), ROOM]
            assert len(raw.requests) == 3
            assert len(raw.connections) == (2 if unasked else 1)
            await session.close()
            await turns()


@each_version
async def test_tls_server_that_closes_after_each_response(
    version: ssl.TLSVersion, space: SimulatedSpace, client_for: Any
) -> None:
    """The response is complete before it is checked, and the connection may be closed by then."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        true = await as_documented(space, connection, request)
        connection.writer.write(true.replace(b"Content-Length", b"Connection: close\r\nContent-Length", 1))
        raise ConnectionError

    attempts: list[Attempt] = []
    with tls_pair(version) as (server, trusting):
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with raw_space(answer, tls=server) as raw, aiohttp.ClientSession(connector=connector) as session:
            client = client_for(space, base_url=raw.url, session=session, on_attempt=attempts.append)
            for number in range(3):
                target = f"room-{number}"
                assert [await perform(client, "unnamed", target)] == raw.sids_of(target)
            assert len(attempts) == 3


@pytest.mark.parametrize("head", ["Status: HTTP/1.1 200 OK", "X-Upstream:HTTP/1.1 200", "X-Via: a; HTTP/1.0 200 b"])
async def test_header_that_quotes_a_status_line_loses_no_response(head: str, make: Make) -> None:
    """A gateway may write the status line of a server behind it into a header of its own."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        true = await as_documented(space, connection, request)
        return true.replace(b"Content-Length", f"{head}\r\nContent-Length".encode(), 1)

    async with raw_space(answer) as raw:
        assert [await perform(make(raw), "unnamed")] == raw.sids_of(ROOM)


async def test_large_request_is_written_in_pieces(space: SimulatedSpace, client_for: Any) -> None:
    """The kernel takes it bit by bit, and all of it arrives."""
    parameters = {f"parameter-{number}": "x" * 9_000 for number in range(99)}
    connector = aiohttp.TCPConnector(socket_factory=with_a_small_buffer)
    async with raw_space() as raw, aiohttp.ClientSession(connector=connector) as session:
        client = client_for(space, base_url=raw.url, session=session)
        arrived = threading.Event()
        kernel = asyncio.get_running_loop().run_in_executor(None, arrived.wait)  # until then the clock stands
        try:
            stream = await client.conferences.start_stream(ROOM, url=URL, unnamed=True, parameters=parameters)
        finally:
            arrived.set()
            await kernel

        assert [stream.sid] == raw.sids_of(ROOM)
        assert raw.requests[0].fields["Parameter98.Value"] == "x" * 9_000


@pytest.mark.parametrize(
    ("name", "later", "journaled"),
    [
        (name, later, (number + later // 2) % 2 == 1)
        for number, name in enumerate(["200", "202", "404", "408", "500", "503", "garbage", "part of a head"])
        for later in (0, 2)
    ],
)
async def test_run_with_one_unsolicited_response_reports_each_start_as_it_is(
    name: str, later: int, *, journaled: bool, make: Make, tmp_path: Path
) -> None:
    """None gets another's sid, none that is started does not run, none that is rejected runs."""

    async def answer(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        true = await as_documented(space, connection, request)
        if len(space.requests) == STARTS // 3:
            connection.writer.write(true)
            await turns(later)
            connection.push(UNASKED[name])
            return b""
        return true

    targets = [f"room-{number}" for number in range(STARTS)]
    async with raw_space(answer) as raw:
        client = make(raw)
        requests = [StartConferenceStream(conference_sid=target, url=URL) for target in targets]
        journal = tmp_path / "run.db" if journaled else None
        run = client.start_streams(requests, concurrency=8, journal=journal)
        outcomes = [outcome async for outcome in run]

        for outcome in outcomes:
            runs = raw.sids_of(outcome.item.target)
            if outcome.status is BulkStatus.STARTED:
                assert isinstance(outcome.stream, ConferenceStream)
                assert outcome.stream.sid in {None, *runs}
                assert runs
            elif outcome.status in {BulkStatus.REJECTED, BulkStatus.NOT_ATTEMPTED}:
                assert not runs
        counts = Counter(outcome.status for outcome in outcomes)
        assert counts[BulkStatus.STARTED] >= STARTS - 2
        assert not isinstance(outcomes[0].stream, CallStream)


@pytest.mark.parametrize(
    ("cipher", "overhead"),
    [
        (("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256), 22),
        (("ECDHE-RSA-AES128-GCM-SHA256", "TLSv1.2", 128), 29),
        (("ECDHE-RSA-CHACHA20-POLY1305", "TLSv1.2", 256), 21),
        (None, 21),
    ],
)
def test_tls_record_is_longer_than_its_content(cipher: object, overhead: int) -> None:
    """Header and tag; in TLS 1.3 the type of the content as well, and with GCM of TLS 1.2 a nonce."""
    tls: Any = SimpleNamespace(cipher=lambda: cipher)
    assert attempt_guard._record_overhead(tls) == overhead
