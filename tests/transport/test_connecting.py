"""Failures before a byte of the request is sent, on real sockets."""

import asyncio
import contextlib
import select
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from attrs import define, field
from multidict import CIMultiDict

from signalwire_streams import Attempt, Operation, Phase, StreamsClient, StreamsError, Timeouts, TransportError
from signalwire_streams._http.attempt_guard import AttemptGuard, PreparedBody
from signalwire_streams._http.messages import Request
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
KINDS = ("read", "stop", "named", "unnamed")
ONE_AND_THREE_MORE = 4


async def perform(client: StreamsClient, kind: str, sid: str = "a-conference") -> object:
    if kind == "read":
        return await client.conferences.get(sid)
    if kind == "stop":
        return await client.conferences.stop_stream(sid, "a-stream")
    return await client.conferences.start_stream(sid, url=URL, unnamed=kind == "unnamed")


@define
class RawServer:
    """A socket that counts its connections and handles each as given."""

    treat: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    port: int = 0
    connections: int = 0
    received: bytearray = field(factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.treat(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


@asynccontextmanager
async def raw_server(
    treat: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[RawServer]:
    raw = RawServer(treat)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    raw.port = server.sockets[0].getsockname()[1]
    async with server:
        yield raw


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


class NoSuchHost(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        raise OSError(-2, f"{host} has no address")

    async def close(self) -> None: ...


class SlowResolver(NoSuchHost):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        await asyncio.Event().wait()
        return []


@pytest.mark.parametrize("kind", KINDS)
async def test_request_on_refused_connection_fails_unsent_after_retries(
    space: SimulatedSpace, client: StreamsClient, kind: str
) -> None:
    """A refused connection is tried one time and three more, whatever was asked for; nothing was sent."""
    async with space.refuse_connections():
        with pytest.raises(TransportError) as caught:
            await perform(client, kind)

    assert caught.value.attempts == ONE_AND_THREE_MORE
    assert (caught.value.sent, caught.value.phase) == ("no", Phase.CONNECTING)
    assert len(space.requests) == 0


@pytest.mark.parametrize("kind", ["read", "named", "unnamed"])
async def test_retry_succeeds_once_connections_are_accepted(space: SimulatedSpace, client_for: Any, kind: str) -> None:
    """A call that could not connect goes through, once, when it can."""
    failed_once = asyncio.Event()
    client = client_for(space, on_attempt=lambda _: failed_once.set())
    async with space.refuse_connections():
        call = asyncio.ensure_future(perform(client, kind, space.conference_sids[0]))
        await failed_once.wait()
    await call

    assert len(space.requests) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("resolver", "patience", "words"), [(NoSuchHost(), 5.0, "no address"), (SlowResolver(), 0.02, "timeout")]
)
async def test_request_to_unresolvable_host_fails_unsent_after_retries(
    kind: str, resolver: AbstractResolver, patience: float, words: str, client_for: Any, space: SimulatedSpace
) -> None:
    """A host that has no address, or whose address does not come in time, was certainly not sent anything."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver)) as session:
        client = client_for(
            space, base_url="https://space.example", session=session, timeouts=Timeouts(connect=patience)
        )
        with pytest.raises(TransportError, match=words) as caught:
            await perform(client, kind)

    assert (caught.value.sent, caught.value.attempts) == ("no", ONE_AND_THREE_MORE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("treat", [reset, hang_up])
async def test_request_on_broken_tls_handshake_fails_unsent_after_retries(
    kind: str, treat: Any, client_for: Any, space: SimulatedSpace
) -> None:
    """A connection that breaks during the TLS handshake is tried again: nothing was sent."""
    async with raw_server(treat) as server:
        client = client_for(space, base_url=f"https://127.0.0.1:{server.port}")
        with pytest.raises(TransportError) as caught:
            await perform(client, kind)

    assert caught.value.sent == "no"
    assert server.connections == ONE_AND_THREE_MORE


@pytest.mark.parametrize("kind", KINDS)
async def test_request_to_host_with_untrusted_certificate_fails_without_retry(
    kind: str, client_for: Any, space: SimulatedSpace
) -> None:
    """An untrusted certificate fails at once, and the message says so."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with raw_server(hang_up, tls) as server:
        client = client_for(space, base_url=f"https://127.0.0.1:{server.port}")
        with pytest.raises(TransportError, match="certificate") as caught:
            await perform(client, kind)

    assert (caught.value.sent, caught.value.attempts) == ("no", 1)


@pytest.mark.parametrize(("answer", "attempts"), [("407 Proxy Authentication Required", 1), ("502 Bad Gateway", 4)])
async def test_request_through_proxy_that_rejects_it_is_retried_if_temporary(
    answer: str, attempts: int, client_for: Any, space: SimulatedSpace
) -> None:
    """A proxy that wants a password is final; one that can't reach the Space yet is tried again."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    async with (
        raw_server(refuse) as proxy,
        aiohttp.ClientSession(proxy=f"http://127.0.0.1:{proxy.port}") as session,
    ):
        client = client_for(space, base_url="https://space.example", session=session)
        with pytest.raises(TransportError) as caught:
            await perform(client, "named")

    assert (caught.value.sent, caught.value.attempts) == ("no", attempts)


@pytest.mark.parametrize("kind", KINDS)
async def test_request_on_dead_kept_alive_connection_is_retried_and_sent_once(
    space: SimulatedSpace, client_for: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A kept-alive connection that the Space has reset costs an attempt, and never a second request."""
    caplog.set_level("DEBUG", "signalwire_streams")
    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append)
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL, name="warm")
    before, attempts[:] = len(space.requests), []

    assert space.connections.reset_idle() == 1
    if kind == "stop":
        await client.conferences.stop_stream(sid, stream)
    else:
        await perform(client, kind, sid)

    assert len(space.requests) - before == 1
    assert len(attempts) == 2
    assert attempts[0].sent == ("maybe" if kind == "read" and attempts[0].phase != Phase.CONNECTING else "no")
    assert space.streams.duplicates() == []
    # Nothing arrived on it, so the log must not send anyone to look for stray responses.
    assert "the kept-alive connection was dead: Client" in caplog.text
    assert "a response arrived" not in caplog.text


@pytest.mark.parametrize("kind", ["stop", "named", "unnamed"])
async def test_kept_alive_connection_that_was_ended(space: SimulatedSpace, client_for: Any, kind: str) -> None:
    """One that the Space has closed in an orderly way is noticed before a byte is written, too."""
    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append)
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL, name="warm")
    before, attempts[:] = len(space.requests), []

    assert space.connections.close_idle() == 1
    if kind == "stop":
        await client.conferences.stop_stream(sid, stream)
    else:
        await perform(client, kind, sid)

    assert len(space.requests) - before == 1
    assert all(attempt.sent == "no" for attempt in attempts[:-1])


class StandsStill(aiohttp.TCPConnector):
    """A connector whose first connection is there when the whole process is stopped for a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch: pytest.MonkeyPatch | None = monkeypatch

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        connection = await super().connect(*arguments, **options)
        if self._monkeypatch is not None:
            loop = asyncio.get_running_loop()
            before = loop.time
            self._monkeypatch.setattr(loop, "time", lambda: before() + 60)
            self._monkeypatch = None
        return connection


async def test_request_whose_time_ran_out_while_process_was_suspended_is_not_written(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose time was over before it was written is not written: others may have made it meanwhile."""
    attempts: list[Attempt] = []
    async with aiohttp.ClientSession(connector=StandsStill(monkeypatch)) as session:
        client = client_for(space, session=session, on_attempt=attempts.append)
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert [attempt.sent for attempt in attempts] == ["no", "yes"]
    assert not stream.ambiguous
    assert space.requests.count("start-conference-stream") == 1


@pytest.mark.skipif(not hasattr(select, "poll"), reason="the kernel is asked only where there is poll")
async def test_request_whose_time_ran_out_in_the_last_system_call_is_not_written(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole process is stopped for a minute while it asks the kernel about the connection."""
    loop = asyncio.get_running_loop()
    before, stops = loop.time, [60.0]

    def poll() -> select.poll:
        if stops:
            seconds = stops.pop()
            monkeypatch.setattr(loop, "time", lambda: before() + seconds)
        return select.poll()

    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append)
    monkeypatch.setattr("signalwire_streams._http.attempt_guard._poll", poll)
    await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert [attempt.sent for attempt in attempts] == ["no", "yes"]
    assert space.requests.count("start-conference-stream") == 1


async def test_start_on_stale_connection_without_poll_is_never_sent_twice(
    space: SimulatedSpace, client_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without poll, a dead connection may leave a start unknown, but never doubles it."""
    monkeypatch.setattr("signalwire_streams._http.attempt_guard._poll", None)
    client = client_for(space)
    sid = space.conference_sids[0]
    await client.conferences.start_stream(sid, url=URL, name="warm")
    space.connections.reset_idle()
    await client.conferences.start_stream(sid, url=URL, unnamed=True)

    assert space.requests.count("start-conference-stream") == 2


@pytest.mark.parametrize("unnamed", [False, True])
async def test_reset_in_the_middle_of_writing(space: SimulatedSpace, client_for: Any, unnamed: bool) -> None:
    """A request of which a part was written may have been carried out, and is treated so."""
    attempts: list[Attempt] = []
    client = client_for(space, on_attempt=attempts.append)
    space.faults.add("reset", times=1, read_body=False)
    parameters = {f"parameter-{number}": "x" * 9_000 for number in range(99)}
    sid = space.conference_sids[0]
    with pytest.raises(StreamsError) if unnamed else contextlib.nullcontext():
        await client.conferences.start_stream(sid, url=URL, unnamed=unnamed, parameters=parameters)

    assert attempts[0].sent == "maybe"
    assert attempts[0].phase in {Phase.WRITING, Phase.WAITING}
    assert space.requests.count("start-conference-stream") == (1 if unnamed else 2)
    assert len(space.streams.active()) == (0 if unnamed else 1)


async def test_retries_send_identical_bytes(client_for: Any, space: SimulatedSpace) -> None:
    """Every attempt of a start carries the same body, name included."""
    bodies: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        bodies.append(await reader.readexactly(length))

    async with raw_server(hear) as server:
        client = client_for(space, base_url=f"http://127.0.0.1:{server.port}")
        with pytest.raises(StreamsError):
            await client.conferences.start_stream("a", url=URL, parameters={"a": "b"}, track="both_tracks")

    assert len(bodies) == 3
    assert len(set(bodies)) == 1
    assert b"Name=sws-" in bodies[0]


def guard() -> AttemptGuard:
    request = Request(method="POST", path="/", operation=Operation.STOP, description="stop", target="room", body=b"a=1")
    request.state.phase = Phase.CONNECTING
    deadline: Any = SimpleNamespace(ends_at=float("inf"))
    return AttemptGuard(request, deadline, 15.0)


async def test_connection_that_is_closed_before_it_is_used_is_stale() -> None:
    connection: Any = SimpleNamespace(protocol=None, transport=None)
    with pytest.raises(aiohttp.ClientConnectionResetError, match="the other end closed the kept-alive connection"):
        await guard().write_prepared(connection, PreparedBody(b"a=1", guard(), b"", CIMultiDict()))


async def test_request_whose_write_raises_may_have_been_sent() -> None:
    """An event loop's transport should report its errors later, but an attempt must not count as unsent for that."""
    ours = guard()
    transport = Mock(spec=asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    transport.write.side_effect = RuntimeError("unable to write")
    connection: Any = SimpleNamespace(protocol=Mock(should_close=False), transport=transport)
    with pytest.raises(RuntimeError, match="unable to write"):
        await ours.write_prepared(connection, PreparedBody(b"a=1", ours, b"", CIMultiDict()))
    assert ours.state.phase is Phase.WRITING
