"""Receivers as ASGI applications: what FastAPI's users see, and what a server may do."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from secrets import token_urlsafe
from typing import Any

import aiohttp
import pytest

from signalwire_streams import StartCallStream, TransportError
from signalwire_streams.receiver import DtmfEvent, EndReason, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver._asgi_socket import AsgiSocket
from signalwire_streams.receiver._socket import CloseCode
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests.guides.documents import run_code
from tests.uvicorn_server import UVICORN, WithoutSignals, running, served_by_uvicorn

from .conftest import Heard, until
from .test_receiver import begin, media

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]


class Peer:
    """An ASGI server that is told what arrives, and stores what it has to send."""

    def __init__(self, *arriving: dict[str, Any], error: Exception | None = None) -> None:
        self.arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in arriving:
            self.arriving.put_nowait(message)
        self.sent: list[Any] = []
        self.error = error
        self.ready = asyncio.Event()
        self.ready.set()

    async def send(self, message: Any) -> None:
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    def socket(self, *, max_size: int = 1000) -> AsgiSocket:
        return AsgiSocket(self.arriving.get, self.send, max_size=max_size)


CONNECT = {"type": "websocket.connect"}
START = '{"event": "start", "start": {"streamSid": "s", "mediaFormat": {"encoding": "audio/x-mulaw"}}}'
WEBSOCKET: dict[str, Any] = {"type": "websocket", "headers": [], "path": "/audio/"}


def text(message: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": message, "bytes": None}


def gone(code: int) -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code}


@pytest.fixture(params=UVICORN)
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A stack to enter servers of one implementation."""
    async with AsyncExitStack() as entered:
        entered.server = request.param  # type: ignore[attr-defined]
        yield entered


async def test_stream_is_opened_over_uvicorn(
    stack: Any, trust: ssl.SSLContext, certificate: ssl.SSLContext, client_for: Any
) -> None:
    """`open` and `open_many` need no more than with the receiver's own server."""
    receiver = MediaReceiver(bidirectional=True)
    url = await stack.enter_async_context(served_by_uvicorn(receiver, stack.server, ssl_context=certificate))
    space = SimulatedSpace(conferences=1, audio=Tone(), ssl_context=trust, bidirectional=True)
    await stack.enter_async_context(space)
    client = client_for(space)
    async with receiver.open(client.conferences, space.conference_sids[0], url=url) as session:
        await session.playback.play(bytes(800))
        assert await session.playback.finish() == 100
        await space.send_dtmf(space.conference_sids[0], "5")
        async for event in session:
            if isinstance(event, DtmfEvent):
                break
    assert space.streams[0].played_audio == bytes(800)
    assert session.end_reason is EndReason.STOPPED


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the guide's program."""
    environment = ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN")
    values = dict.fromkeys(environment, "unused") | {"STREAM_URL": "wss://x/", "STREAM_TOKEN_KEYS": token_urlsafe(32)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return run_code("deploying/app.py")


@pytest.mark.parametrize("websockets", UVICORN)
async def test_200_streams_end_before_the_server_of_the_guide(websockets: str, guide: dict[str, Any]) -> None:
    """Its recipe loses nothing: the server stops while all of them are being received."""
    received: list[int] = []

    async def record(session: StreamSession) -> None:
        frames = 0
        async for event in session:
            await asyncio.sleep(0.01)
            frames += isinstance(event, MediaEvent)
        received.append(frames)

    receiver = guide["receiver"]
    receiver._handler = record
    async with (
        guide_served(guide, websockets) as (server, url),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        closing = asyncio.Event()

        async def speak(sid: str) -> None:
            token = guide["TOKENS"].mint(StartCallStream(call_sid=sid, url="wss://x/"))
            async with http.ws_connect(url, headers={"Authorization": f"Bearer {token!s}"}) as peer:
                await begin(peer, callSid=sid)
                await closing.wait()
                for chunk in range(1, 6):
                    await peer.send_json(media(chunk))
                await peer.send_json({"event": "stop", "sequenceNumber": "7"})
                await peer.receive()

        peers = [asyncio.create_task(speak(f"call-{number}")) for number in range(200)]
        await until(lambda: len(receiver.sessions) == 200)
        server.should_exit = True
        await until(receiver._closing.is_set)
        closing.set()
        await asyncio.gather(*peers)
    assert received == [5] * 200


@asynccontextmanager
async def guide_served(guide: dict[str, Any], websockets: str) -> AsyncIterator[tuple[Any, str]]:
    server_class = type("Server", (guide["Server"], WithoutSignals), {})
    async with running(guide["app"], websockets, server_class=server_class) as server:
        yield server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/audio/"


async def test_wrong_token_is_rejected_before_the_upgrade(stack: Any, heard: Heard) -> None:
    receiver = MediaReceiver(heard, bearer_tokens="t")
    url = await stack.enter_async_context(served_by_uvicorn(receiver, stack.server))
    async with aiohttp.ClientSession() as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await http.ws_connect(url, headers=headers)
            assert (caught.value.status, caught.value.headers["WWW-Authenticate"]) == (401, "Bearer")  # type: ignore[index]
    assert receiver.rejected_upgrades == 2


async def test_silent_stream_has_ended_after_one_and_a_half_heartbeats(stack: Any, heard: Heard) -> None:
    url = await stack.enter_async_context(
        served_by_uvicorn(MediaReceiver(heard, bearer_tokens=None, heartbeat=1.0), stack.server)
    )
    async with aiohttp.ClientSession() as http, http.ws_connect(url) as peer:
        await begin(peer)
        began = asyncio.get_running_loop().time()
        session = await heard.end()
        assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.6)
    assert session.end_reason is EndReason.LOST


async def test_receiver_is_an_application_of_its_own(heard: Heard) -> None:
    """The server's shutdown closes it."""
    receiver = MediaReceiver(heard, bearer_tokens=None)
    async with running(receiver.asgi, "wsproto") as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{port}/") as response:
                assert response.status == 400
            async with http.ws_connect(f"ws://127.0.0.1:{port}/any/path") as peer:
                await begin(peer)
                await until(lambda: heard.sessions)
    assert (await heard.end()).end_reason is EndReason.CLOSED
    peer_of_closed = Peer(CONNECT)
    await receiver.asgi(WEBSOCKET, peer_of_closed.arriving.get, peer_of_closed.send)
    assert peer_of_closed.sent == [{"type": "websocket.close"}]


async def test_server_that_knows_no_denial_responses_rejects_in_its_own_way() -> None:
    peer = Peer(CONNECT)
    await MediaReceiver().asgi(WEBSOCKET, peer.arriving.get, peer.send)
    assert peer.sent == [{"type": "websocket.close"}]


async def test_server_that_knows_denial_responses_gets_the_status_and_its_headers() -> None:
    peer = Peer(CONNECT)
    scope = WEBSOCKET | {"extensions": {"websocket.http.response": {}}}
    await MediaReceiver().asgi(scope, peer.arriving.get, peer.send)
    headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
    assert peer.sent == [
        {"type": "websocket.http.response.start", "status": 401, "headers": headers},
        {"type": "websocket.http.response.body", "body": b""},
    ]


async def test_receiver_is_closed_before_it_confirms_the_shutdown() -> None:
    receiver = MediaReceiver()
    peer = Peer({"type": "lifespan.startup"})
    living = asyncio.create_task(receiver.asgi({"type": "lifespan"}, peer.arriving.get, peer.send))
    await until(lambda: peer.sent)
    assert peer.sent == [{"type": "lifespan.startup.complete"}]
    assert not receiver._closing.is_set()
    peer.ready.clear()
    peer.arriving.put_nowait({"type": "lifespan.shutdown"})
    await until(receiver._closing.is_set)
    assert len(peer.sent) == 1
    peer.ready.set()
    await living
    assert peer.sent[1:] == [{"type": "lifespan.shutdown.complete"}]


async def test_handler_that_is_cancelled_is_no_error_of_the_application() -> None:
    """Servers log an error with its traceback for an application that raises, even CancelledError."""
    handling = asyncio.Event()

    async def handler(_: StreamSession) -> None:
        handling.set()
        await asyncio.Event().wait()

    receiver = MediaReceiver(handler, bearer_tokens=None)
    peer = Peer(CONNECT, text(START))
    serving = asyncio.create_task(receiver.asgi(WEBSOCKET, peer.arriving.get, peer.send))
    await handling.wait()
    await receiver.aclose(0)
    await serving
    assert peer.sent[-1] == {"type": "websocket.close", "code": 1001}


async def test_client_that_leaves_before_the_upgrade(client: Any, space: SimulatedSpace) -> None:
    receiver = MediaReceiver()
    peer = Peer(gone(1006))
    stream = receiver._pending_streams.add("conference", "name")
    headers = [(b"authorization", b"Bearer " + str(stream.token).encode())]
    await receiver.asgi({**WEBSOCKET, "headers": headers}, peer.arriving.get, peer.send)
    assert peer.sent == []
    assert "the connection broke" in str(stream._arrival.exception())


@pytest.mark.parametrize(("code", "lost"), [(1000, False), (1001, False), (1005, False), (1006, True), (None, False)])
async def test_asgi_socket_read_raises_only_if_connection_is_lost(code: Any, lost: bool) -> None:
    peer = Peer(CONNECT, text("a"), {"type": "websocket.receive", "bytes": b"b"}, gone(code))
    received: list[str | bytes] = []
    socket = peer.socket()
    socket.on_message = received.append
    await socket.accept()
    if lost:
        with pytest.raises(ConnectionError, match="the connection broke"):
            await socket.read()
    else:
        await socket.read()
    assert received == ["a", b"b"]
    with pytest.raises(ConnectionError, match="closed"):
        await socket.send_str("x")
    await socket.close()
    assert peer.sent == [{"type": "websocket.accept"}]


async def test_many_messages_leave_other_tasks_a_turn() -> None:
    peer = Peer(CONNECT, *[text("a")] * 1000, gone(1000))
    socket, turns = peer.socket(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await socket.accept()
    await socket.read()
    task.cancel()
    assert turns >= 10


async def test_cancelled_sender_leaves_a_whole_message() -> None:
    peer = Peer(CONNECT)
    socket = peer.socket()
    await socket.accept()
    peer.ready.clear()
    sending = asyncio.create_task(socket.send_str("x"))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait({sending})
    peer.ready.set()
    await until(lambda: len(peer.sent) == 2)
    assert peer.sent[-1] == {"type": "websocket.send", "text": "x"}
    await socket.ping()
    assert len(peer.sent) == 2


async def test_close_discards_what_still_arrives() -> None:
    """Hypercorn would keep the connection for ever if more than ten messages waited for the application."""
    peer = Peer(CONNECT, *[text("late")] * 20, gone(1013))
    socket = peer.socket()
    await socket.accept()
    await socket.close(code=CloseCode.TRY_AGAIN_LATER)
    assert peer.arriving.empty()
    assert peer.sent[-1] == {"type": "websocket.close", "code": 1013}
    assert type(peer.sent[-1]["code"]) is int  # or Daphne would send no close frame


async def test_socket_is_closed_with_1000_if_the_server_refuses_another_code() -> None:
    """Daphne refuses all below 3000, and would keep the socket open."""

    async def send(message: dict[str, Any]) -> None:
        if message.get("code", 1000) != 1000:
            raise ValueError("invalid close code")
        await peer.send(message)

    peer = Peer(CONNECT, gone(1000))
    socket = AsgiSocket(peer.arriving.get, send, max_size=1000)  # type: ignore[arg-type]
    await socket.accept()
    await socket.close(code=CloseCode.INTERNAL_ERROR)
    assert peer.sent[1:] == [{"type": "websocket.close", "code": 1000}]


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("after websocket.close")])
async def test_failed_send_is_a_broken_connection(error: Exception) -> None:
    """Servers raise errors of their own kinds."""
    peer = Peer(CONNECT)
    socket = peer.socket()
    await socket.accept()
    peer.error = error
    with pytest.raises(ConnectionError):
        await socket.send_str("x")
    with pytest.raises(ConnectionError):
        await socket.send_str("y")


async def test_abort_and_close_end_what_hangs() -> None:
    peer = Peer(CONNECT)
    aborted, closed = peer.socket(), Peer(CONNECT).socket()
    await aborted.accept()
    await closed.accept()
    peer.ready.clear()
    sending = asyncio.create_task(aborted.send_str("x"))
    await asyncio.sleep(0)
    aborted.abort()
    with pytest.raises(ConnectionError):
        await sending
    closed._send_message = aborted._send_message
    began = asyncio.get_running_loop().time()
    await closed.close()
    assert asyncio.get_running_loop().time() - began == pytest.approx(3, abs=0.1)


async def test_playback_over_a_closed_socket_raises_transport_error(heard: Heard) -> None:
    receiver = MediaReceiver(heard, bearer_tokens=None, bidirectional=True)
    peer = Peer(CONNECT, text(START))
    serving = asyncio.create_task(receiver.asgi(WEBSOCKET, peer.arriving.get, peer.send))
    await until(lambda: heard.sessions)
    peer.error = OSError("gone")
    with pytest.raises(TransportError, match="broke while sending"):
        await heard.sessions[0].playback.play(bytes(160))
    peer.arriving.put_nowait(gone(1006))
    await serving
    assert heard.sessions[0].end_reason is EndReason.LOST
