"""Frames as raw bytes, over plain sockets and TLS, with messages pushed by aiohttp's reader and without."""

import asyncio
import itertools
import json
import random
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.util import find_spec, module_from_spec
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from yarl import URL

from signalwire_streams.receiver import (
    DtmfEvent,
    EndReason,
    MediaEvent,
    MediaReceiver,
    StreamSession,
    _aiohttp_socket,
    _media_receiver,
)

from .conftest import Heard, until
from .test_receiver import START, media

pytestmark = pytest.mark.usefixtures("idle_clock")

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x37\xfa\x21\x3d"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(opcode: int, payload: bytes, *, final: bool = True, reserved: int = 0) -> bytes:
    """Mask and frame a payload of any size, as a client must."""
    size = len(payload)
    length = (
        bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
    )
    masked = bytes(byte ^ mask for byte, mask in zip(payload, itertools.cycle(MASK), strict=False))
    return bytes([final << 7 | reserved << 4 | opcode, 0x80 | length[0]]) + length[1:] + MASK + masked


def text(document: object) -> bytes:
    return frame(TEXT, json.dumps(document).encode())


def close(code: int = 1000) -> bytes:
    return frame(CLOSE, code.to_bytes(2))


class Peer:
    """A client that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        head = await self.reader.readexactly(2)
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2))
        return head[0] & 0xF, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        while (received := await self.receive())[0] != CLOSE:
            pass
        return int.from_bytes(received[1][:2])


Connect: TypeAlias = Callable[..., Awaitable[Peer]]


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, certificate: ssl.SSLContext) -> ssl.SSLContext | None:
    return certificate if request.param == "tls" else None


@pytest.fixture(params=["pushed", "queued"])
def pushed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether messages are pushed; an aiohttp whose reader has another signature queues them."""

    def reader(*_: object) -> None:
        raise TypeError

    if request.param == "queued":
        monkeypatch.setattr(_aiohttp_socket, "WebSocketReader", reader)
    return bool(request.param == "pushed")


@pytest.fixture
async def connect(
    heard: Heard, serve: Any, tls: ssl.SSLContext | None, pushed: bool, trust: ssl.SSLContext
) -> AsyncIterator[Connect]:
    """Connect to a receiver, and upgrade."""
    peers = []

    async def start(*, rest: bytes = b"", handler: Any = heard, **options: Any) -> Peer:
        url = URL(await serve(MediaReceiver(handler, bearer_tokens=None, **options), ssl_context=tls))
        peer = Peer(*await asyncio.open_connection(url.host, url.port, ssl=trust if tls else None))
        peers.append(peer)
        await peer.send(UPGRADE + rest)
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return peer

    yield start
    for peer in peers:
        peer.writer.transport.abort()


def chunks_of(heard: Heard) -> list[int | None]:
    return [event.chunk for event in heard.events if isinstance(event, MediaEvent)]


async def test_messages_are_pushed_or_queued(
    connect: Connect, heard: Heard, pushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushed messages never pass through aiohttp's queue; if they cannot be pushed, all of them do."""
    received = []
    receive = web.WebSocketResponse.receive

    async def noting(self: web.WebSocketResponse, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        message = await receive(self, timeout)
        received.append(message.type)
        return message

    monkeypatch.setattr(web.WebSocketResponse, "receive", noting)
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + frame(PING, b"?") + close())
    assert (await heard.end()).end_reason is EndReason.CLOSED
    assert chunks_of(heard) == [1]
    data = [] if pushed else [TEXT, TEXT]
    assert received == [*data, PING, CLOSE]


async def test_messages_are_queued_by_an_aiohttp_that_has_moved_its_reader(
    connect: Connect, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp._websocket.reader", None)
    spec = find_spec(_aiohttp_socket.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(_media_receiver, "AudioSocket", module.AudioSocket)
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + close())
    assert (await heard.end()).end_reason is EndReason.CLOSED
    assert chunks_of(heard) == [1]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_frames_arrive_in_pieces(connect: Connect, heard: Heard, size: int) -> None:
    stream = b"".join([text(START), *(text(media(chunk)) for chunk in range(1, 5)), close()])
    peer = await connect()
    for begin in range(0, len(stream), size):
        await peer.send(stream[begin : begin + size])
        await asyncio.sleep(0)
    assert (await heard.end()).end_reason is EndReason.CLOSED
    assert chunks_of(heard) == [1, 2, 3, 4]


async def test_everything_arrives_with_the_upgrade_request(connect: Connect, heard: Heard) -> None:
    """A peer that does not wait for the response loses nothing."""
    peer = await connect(rest=text(START) + text(media(1)) + close())
    assert (await heard.end()).end_reason is EndReason.CLOSED
    assert chunks_of(heard) == [1]
    assert await peer.close_code() == 1000


async def test_half_a_frame_arrives_with_the_upgrade_request(connect: Connect, heard: Heard) -> None:
    stream = text(START) + text(media(1))
    peer = await connect(rest=stream[:-10])
    await peer.send(stream[-10:] + text(media(2)) + close())
    await heard.end()
    assert chunks_of(heard) == [1, 2]


async def test_fragments_are_joined_around_control_frames(connect: Connect, heard: Heard) -> None:
    body = json.dumps(media(1)).encode()
    peer = await connect()
    await peer.send(text(START) + frame(TEXT, body[:9], final=False) + frame(PING, b"1"))
    assert await peer.receive() == (PONG, b"1")
    await peer.send(frame(CONTINUATION, body[9:30], final=False) + frame(PONG, b"") + frame(CONTINUATION, body[30:]))
    await peer.send(close())
    await heard.end()
    assert chunks_of(heard) == [1]


async def test_binary_message_with_json_is_an_event(connect: Connect, heard: Heard) -> None:
    peer = await connect()
    await peer.send(text(START) + frame(BINARY, json.dumps(media(1)).encode()) + close())
    await heard.end()
    assert chunks_of(heard) == [1]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"\xff\xfe"), 1007, id="no UTF-8"),
        pytest.param(frame(TEXT, b"{}", reserved=4), 1002, id="reserved bit"),
        pytest.param(frame(0x3, b"{}"), 1002, id="unknown opcode"),
        pytest.param(frame(PING, b"x", final=False), 1002, id="fragmented ping"),
        pytest.param(frame(PING, b"x" * 126), 1002, id="long ping"),
        pytest.param(frame(CONTINUATION, b"x"), 1002, id="continuation of nothing"),
        pytest.param(frame(TEXT, b"{", final=False) + frame(TEXT, b"}"), 1002, id="second start of a message"),
        pytest.param(close(999), 1002, id="invalid close code"),
        pytest.param(frame(TEXT, b"x" * 1001), 1009, id="message too long"),
        pytest.param(
            frame(TEXT, b"x" * 600, final=False) + frame(CONTINUATION, b"x" * 600), 1009, id="fragments too long"
        ),
    ],
)
@pytest.mark.parametrize("started", [True, False])
async def test_invalid_frame_closes_the_socket(
    connect: Connect, heard: Heard, caplog: pytest.LogCaptureFixture, data: bytes, code: int, started: bool
) -> None:
    """The events before it are delivered, and the close code says what is wrong."""
    peer = await connect(frame_limit=1000)
    await peer.send((text(START) + text(media(1)) if started else b"") + data + text(media(2)))
    assert await peer.close_code() == code
    if started:
        assert (await heard.end()).end_reason is EndReason.UNREADABLE
        assert chunks_of(heard) == [1]
    else:
        await until(lambda: "no stream started" in caplog.text)


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, EndReason.CLOSED), (1001, EndReason.CLOSED), (4000, EndReason.CLOSED)]
)
async def test_close_frame_gets_a_close_frame(connect: Connect, heard: Heard, code: int, reason: EndReason) -> None:
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + close(code))
    assert await peer.close_code() == 1000
    assert (await heard.end()).end_reason is reason


async def test_connection_that_ends_within_a_frame_is_lost(connect: Connect, heard: Heard) -> None:
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + text(media(2))[:-5])
    await until(lambda: chunks_of(heard) == [1])
    peer.writer.transport.abort()
    assert (await heard.end()).end_reason is EndReason.LOST
    assert chunks_of(heard) == [1]


async def test_messages_after_the_stop_event_are_ignored(connect: Connect, heard: Heard) -> None:
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + text({"event": "stop"}) + text(media(2)) + frame(TEXT, b"no JSON"))
    session = await heard.end()
    assert session.end_reason is EndReason.STOPPED
    assert chunks_of(heard) == [1]
    assert session.statistics.malformed == 0
    assert await peer.close_code() == 1000


async def test_messages_behind_a_close_frame_are_ignored(connect: Connect, heard: Heard) -> None:
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + close() + text(media(2)))
    session = await heard.end()
    assert session.end_reason is EndReason.CLOSED
    assert chunks_of(heard) == [1]
    assert session.statistics.of("inbound").frames == 1


async def test_long_burst_leaves_turns_to_other_tasks(connect: Connect, heard: Heard) -> None:
    """However many small messages arrive at once, other tasks get their turns, and a ping its answer."""
    peer = await connect()
    await peer.send(text(START))
    await until(lambda: bool(heard.sessions))
    session, counts = heard.sessions[0], set[int]()

    def count() -> bool:
        counts.add(session.statistics.malformed)
        return session.statistics.malformed == 9_000

    sending = asyncio.create_task(peer.send(frame(TEXT, b"not JSON") * 9_000 + frame(PING, b"")))
    await until(count, interval=0.0)
    await sending
    assert len(counts) >= 5
    assert await peer.receive() == (PONG, b"")


async def test_media_behind_a_thousand_pings_is_delivered(connect: Connect, heard: Heard) -> None:
    """aiohttp stops in the middle of what it has read until the pings are answered; nothing more need arrive."""
    peer = await connect()
    await peer.send(text(START))
    await until(lambda: bool(heard.sessions))
    await peer.send(frame(PING, b"") * 1_100 + text(media(1)))
    await until(lambda: chunks_of(heard) == [1])


async def test_socket_with_too_many_frames_before_the_start_is_closed(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else comes with them is too late, and changes nothing."""
    peer = await connect(max_queue=1)
    await peer.send(frame(PING, b"") + frame(TEXT, b"not JSON") * 200 + text(START) + close())
    assert await peer.close_code() == 1008
    await until(lambda: "too many frames arrived before the start event" in caplog.text)


async def test_hundred_frames_without_an_event_may_precede_the_start(connect: Connect, heard: Heard) -> None:
    """However small the queue is; one more is too many."""
    peers = [await connect(max_queue=1) for _ in range(2)]
    await peers[0].send(frame(TEXT, b"not JSON") * 100 + text(START))
    await until(lambda: bool(heard.sessions))
    await peers[1].send(frame(TEXT, b"not JSON") * 101 + text(START))
    assert await peers[1].close_code() == 1008
    assert len(heard.sessions) == 1


async def test_bug_in_reading_ends_its_own_stream(
    connect: Connect, heard: Heard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive = web.WebSocketResponse.receive

    async def broken(self: web.WebSocketResponse) -> Any:
        message = await receive(self)
        if message.type == PING:
            raise RuntimeError("a bug")
        return message

    monkeypatch.setattr(web.WebSocketResponse, "receive", broken)
    peer = await connect()
    await peer.send(text(START) + text(media(1)) + frame(PING, b""))
    assert (await heard.end()).end_reason is EndReason.FAILED
    assert chunks_of(heard) == [1]
    assert "the receiver failed for stream stream-1" in caplog.text


async def test_slow_handler_keeps_the_newest_audio_and_every_key(connect: Connect, pushed: bool) -> None:
    """While a handler is busy, its socket is still read: audio ages, keys wait."""
    go_on, sessions, events = asyncio.Event(), list[StreamSession](), list[Any]()

    async def slow(session: StreamSession) -> None:
        sessions.append(session)
        await go_on.wait()
        events.extend([event async for event in session])

    peer = await connect(handler=slow, max_queue=50)
    keys = [text({"event": "dtmf", "dtmf": {"digit": digit}}) for digit in "12"]
    await peer.send(
        b"".join([text(START), keys[0], *(text(media(chunk)) for chunk in range(1, 301)), keys[1], close()])
    )
    await until(lambda: bool(sessions) and sessions[0].end_reason is not None)
    go_on.set()
    await until(lambda: len(events) == 52)
    assert [event.digit for event in events if isinstance(event, DtmfEvent)] == ["1", "2"]
    assert [event.chunk for event in events if isinstance(event, MediaEvent)] == list(range(251, 301))
    assert sessions[0].statistics.of("inbound").dropped == 250


async def test_random_cuts_yield_the_same_events(connect: Connect, heard: Heard) -> None:
    """Wherever TCP cuts the bytes, and wherever the messages are fragmented."""
    generator = random.Random(7)  # noqa: S311  (not a secret)
    stream = text(START)
    for chunk in range(1, 60):
        body = json.dumps(media(chunk)).encode()
        cuts = sorted({0, len(body), *(generator.randrange(len(body)) for _ in range(generator.randrange(3)))})
        for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
            stream += frame(TEXT if number == 0 else CONTINUATION, body[begin:end], final=end == len(body))
    stream += close()
    peer = await connect()
    while stream:
        size = generator.choice([1, 3, 50, 400, 3000])
        await peer.send(stream[:size])
        stream = stream[size:]
        await asyncio.sleep(0)
    await heard.end()
    assert chunks_of(heard) == list(range(1, 60))
