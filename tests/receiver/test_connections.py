"""Connections without a stream are limited in time and number, and no stream is closed for them."""

import asyncio
import contextlib
import errno
import json
import logging
import select
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import InvalidRequestError, OpenError
from signalwire_streams.receiver import EndReason, MediaReceiver
from signalwire_streams.receiver._aiohttp_socket import reset as reset_connection
from signalwire_streams.receiver._server import StreamServer, default_max_pending
from tests.ports import free_port

from .conftest import Heard, until
from .test_receiver import START, media

Raw: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
pytestmark = pytest.mark.usefixtures("idle_clock")
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def text_frame(document: object) -> bytes:
    """Return a WebSocket frame of less than 64 KiB, masked with zeros."""
    text = json.dumps(document).encode()
    return b"\x81\xfe" + struct.pack("!H", len(text)) + bytes(4) + text


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Any]]:
    """Connect to a receiver with nothing but TCP."""
    async with AsyncExitStack() as stack:

        async def open_raw(url: str, *pieces: bytes) -> Raw:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
            stack.callback(writer.close)
            for piece in pieces:
                writer.write(piece)
            return reader, writer

        yield open_raw


async def rest_of(connection: Raw) -> bytes:
    """Read until the other end closes; a reset is as good."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := await connection[0].read(65536):
            pieces.append(piece)
    return b"".join(pieces)


class FailingAccept:
    """Makes the next accepts fail, with a connection that waits or ahead of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[int] = []
        self.ahead: list[int] = []
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def sock_accept(listener: socket.socket) -> Any:
            if self.ahead:
                raise OSError(self.ahead.pop(), "none left")
            if self.errors:
                await ready(listener)
                raise OSError(self.errors.pop(), "none left")
            return await accept(listener)

        async def ready(listener: socket.socket) -> None:
            waiting = asyncio.Event()
            loop.add_reader(listener, waiting.set)
            await waiting.wait()
            loop.remove_reader(listener)

        monkeypatch.setattr(loop, "sock_accept", sock_accept)


@pytest.fixture
async def failing_accept(monkeypatch: pytest.MonkeyPatch) -> FailingAccept:
    return FailingAccept(monkeypatch)


def is_open(connection: Raw) -> bool:
    return not connection[0].at_eof() and connection[0].exception() is None


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 2000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["nothing", "half a line", "half a head", "blank lines", "half a header", "a TLS record"],
)
async def test_head_of_a_request_has_a_time_limit(heard: Heard, serve: Any, connect: Any, sent: bytes) -> None:
    url = await serve(MediaReceiver(heard, bearer_tokens=None), handshake_timeout=7.0)
    accepted = asyncio.get_running_loop().time()
    await rest_of(await connect(url, sent))
    assert asyncio.get_running_loop().time() - accepted == pytest.approx(7.0, abs=0.5) or b"\x16" in sent


async def test_bytes_that_keep_coming_do_not_extend_the_limit(heard: Heard, serve: Any, connect: Any) -> None:
    url = await serve(MediaReceiver(heard, bearer_tokens=None), handshake_timeout=7.0)
    reader, writer = await connect(url)
    sent = 0
    with contextlib.suppress(ConnectionError):
        for byte in b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100:
            writer.write(bytes([byte]))
            sent += 1
            await asyncio.sleep(1.0)
            if reader.at_eof():
                break
    assert sent <= 8


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n"])
async def test_tls_handshake_has_a_time_limit(
    heard: Heard, serve: Any, connect: Any, certificate: ssl.SSLContext, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted from the accept; a client that speaks no TLS is closed without a line in the log."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), handshake_timeout=7.0, ssl_context=certificate)
    await rest_of(await connect(url, sent))
    assert not caplog.records


async def test_oldest_connection_without_a_stream_is_closed_first(
    heard: Heard, serve: Any, connect: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams are never closed for others, new ones get in, and that is one line in the log."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), max_pending=3, handshake_timeout=600.0)
    stream = await dial(url)
    await stream.send_json(START)
    await until(lambda: len(heard.sessions) == 1)
    opened = []
    for number in range(8):
        opened.append(await connect(url))
        if number >= 3:
            await rest_of(opened[number - 3])
    assert [is_open(connection) for connection in opened] == [False] * 5 + [True] * 3
    second = await dial(url)
    await second.send_json(START)
    await until(lambda: len(heard.sessions) == 2)
    for peer in (stream, second):
        await peer.send_json(media(1))
        await peer.send_json({"event": "stop"})
        assert (await heard.end()).end_reason is EndReason.STOPPED
    assert [record.getMessage() for record in caplog.records] == [
        "3 connections wait without a stream, so the oldest of them is closed for each new one"
    ]


async def test_descriptor_for_a_file_is_taken_from_a_connection_without_a_stream(
    heard: Heard, serve: Any, connect: Any, dial: Any
) -> None:
    """The oldest is closed, as soon as it is old enough; streams are not."""
    receiver = MediaReceiver(heard, bearer_tokens=None)
    url = await serve(receiver, handshake_timeout=600.0)
    stream = await dial(url)
    await stream.send_json(START)
    await until(lambda: len(heard.sessions) == 1)
    first, second = await connect(url), await connect(url)
    await until(lambda: len(next(iter(receiver._servers))._open) == 3)
    assert await receiver.free_descriptor()
    await rest_of(first)
    assert is_open(second)
    assert await receiver.free_descriptor()
    assert not await receiver.free_descriptor()
    assert len(receiver.sessions) == 1


async def test_shortage_is_logged_again_after_a_minute(
    heard: Heard, serve: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the number of connections that were closed in between."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), max_pending=1, handshake_timeout=600.0)
    for pause in (0.0, 1.0, 1.0, 60.0):
        await asyncio.sleep(pause)
        first, _ = await connect(url), await connect(url)
        await rest_of(first)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[1].endswith("(and 4 more such lines since the last one)")


async def test_socket_without_a_start_counts_as_a_connection_without_a_stream(
    heard: Heard, serve: Any, dial: Any
) -> None:
    receiver = MediaReceiver(heard, bearer_tokens=None, start_timeout=600.0)
    url = await serve(receiver, max_pending=2)
    peers = [await dial(url) for _ in range(3)]
    assert (await peers[0].receive()).type is aiohttp.WSMsgType.CLOSED
    await peers[1].send_json(START)
    await until(lambda: bool(heard.sessions))
    await until(lambda: receiver.pending_sockets == 1)


async def test_socket_with_a_valid_token_is_closed_last(heard: Heard, serve: Any, connect: Any, dial: Any) -> None:
    """Its start may be slow; clients that have presented nothing make room for each other."""
    receiver = MediaReceiver(heard, bearer_tokens="right", start_timeout=600.0)
    url = await serve(receiver, max_pending=3, handshake_timeout=600.0)
    peer = await dial(url, "right")
    idle = [await connect(url) for _ in range(6)]
    await rest_of(idle[3])
    assert [is_open(connection) for connection in idle] == [False] * 4 + [True] * 2
    await peer.send_json(START)
    await until(lambda: len(heard.sessions) == 1)


async def test_oldest_admitted_socket_is_closed_where_all_are_admitted(heard: Heard, serve: Any, dial: Any) -> None:
    """A valid token is no permission to fill the server with sockets that never start."""
    receiver = MediaReceiver(heard, bearer_tokens="right", start_timeout=600.0)
    url = await serve(receiver, max_pending=2, handshake_timeout=600.0)
    peers = [await dial(url, "right") for _ in range(3)]
    assert (await peers[0].receive()).type is aiohttp.WSMsgType.CLOSED
    await until(lambda: receiver.pending_sockets == 2)


class Checks:
    """Token checks that take eight seconds, counted."""

    def __init__(self, *, refuses: bool) -> None:
        self.running = self.most = 0
        self.begun = asyncio.Queue[None]()
        self.refuses = refuses  # to be cancelled

    async def __call__(self, token: str) -> bool:
        self.begun.put_nowait(None)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(8)
        except asyncio.CancelledError:
            if not self.refuses:
                raise
            await asyncio.sleep(0.5)
        finally:
            self.running -= 1
        return False


async def test_token_checks_of_clients_that_hang_up_are_bounded(
    heard: Heard, serve: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A check is cancelled when its client is gone, and counts until it has ended."""
    checks = Checks(refuses=False)
    url = await serve(MediaReceiver(heard, bearer_tokens=checks), max_pending=3)
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush")
    for _ in range(12):
        _, writer = await connect(url, head)
        await checks.begun.get()
        reset(writer)
    await asyncio.sleep(2)
    assert checks.running == 0
    assert checks.most <= 4
    assert not [line for line in caplog.messages if "token check" in line]


async def test_token_checks_that_ignore_their_cancellation_are_bounded(
    heard: Heard, serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the limit streams are rejected, which is one line in the log, until some of the checks have returned."""
    monkeypatch.setattr("signalwire_streams.receiver._media_receiver._MAX_STUCK_CHECKS", 5)
    checks = Checks(refuses=True)
    url = await serve(MediaReceiver(heard, bearer_tokens=checks))
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush")
    for _ in range(5):
        _, writer = await connect(url, head)
        await checks.begun.get()
        reset(writer)
    await asyncio.sleep(0.1)
    for _ in range(3):
        assert (await rest_of(await connect(url, head))).startswith(b"HTTP/1.1 503")
    assert checks.most == 5
    assert caplog.messages == [
        "5 token checks ignore their cancellation, so further streams are rejected until some return"
    ]
    await asyncio.sleep(1)
    assert checks.running == 0
    assert (await rest_of(await connect(url, head))).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(("stuck", "status"), [(999, b"401"), (1_000, b"503")])
async def test_thousand_token_checks_may_ignore_their_cancellation(
    heard: Heard, serve: Any, connect: Any, stuck: int, status: bytes
) -> None:
    receiver = MediaReceiver(heard, bearer_tokens=lambda _: False)
    receiver._stuck_checks.update(asyncio.create_task(asyncio.Event().wait()) for _ in range(stuck))
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush")
    assert (await rest_of(await connect(await serve(receiver), head))).startswith(b"HTTP/1.1 " + status)
    for task in receiver._stuck_checks:
        task.cancel()


async def test_token_checks_that_never_return_do_not_delay_other_streams(
    heard: Heard, serve: Any, connect: Any, dial: Any
) -> None:
    """Accepting does not wait for a check, not even for one that ignores its cancellation."""
    end, running = asyncio.Event(), 0

    async def check(token: str) -> bool:
        nonlocal running
        running += 1
        while token != "right" and not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await end.wait()
        return True

    url = await serve(MediaReceiver(heard, bearer_tokens=check), max_pending=5, ssl_context=None)
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer wrong")
    for _ in range(60):
        await connect(url, head)
    began = asyncio.get_running_loop().time()
    peer = await dial(url, "right")
    await peer.send_json(START)
    await until(lambda: len(heard.sessions) == 1)
    assert running == 61
    # Each connection has 0.5 s before it is closed for a newer one, and there are five at a time.
    assert asyncio.get_running_loop().time() - began <= 60 / 5 * 0.5 + 0.5
    end.set()


async def test_burst_of_streams_is_not_cut_for_itself(heard: Heard, serve: Any, dial: Any) -> None:
    """More streams than the cap that dial at once all get in, since each connection has a moment to begin."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), max_pending=5)

    async def begin() -> None:
        await (await dial(url)).send_json(START)

    await asyncio.gather(*(begin() for _ in range(40)))
    await until(lambda: len(heard.sessions) == 40)


async def test_stream_of_a_slow_network_gets_in_during_a_flood(
    heard: Heard, serve: Any, connect: Any, dial: Any
) -> None:
    """A connection is not closed for others before it has had half a second to present its stream."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), max_pending=3, handshake_timeout=600.0)
    peer = await dial(url)
    for _ in range(10):
        await connect(url)
    await asyncio.sleep(0.4)
    await peer.send_json(START)
    await until(lambda: len(heard.sessions) == 1)


def head_of(size: int) -> bytes:
    """Return a request's head of that size whose lines aiohttp accepts."""
    head = b"GET /other HTTP/1.1\r\nHost: x\r\n"
    line = b"X: " + b"hush" * 2000 + b"\r\n"
    head += line * ((size - len(head)) // len(line) - 1)
    rest = size - len(head) - len(b"X: \r\n" * 2 + b"\r\n")
    return head + b"X: " + b"x" * (rest // 2) + b"\r\nX: " + b"x" * (rest - rest // 2) + b"\r\n\r\n"


REQUESTS = {
    "no token": (UPGRADE, b"401 Unauthorized"),
    "another path": (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"404 Not Found"),
    "another method": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405 Method Not Allowed"),
    "no upgrade": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", b"400 Bad Request"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"400 Bad Request"),
    "another upgrade": (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"400 Bad Request",
    ),
    "no key": (UPGRADE.replace(b"Sec-WebSocket-Key", b"X-Key"), b"400 Bad Request"),
    "another version": (UPGRADE.replace(b"Version: 13", b"Version: 99"), b"400 Bad Request"),
    "several at once": (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n" * 50, b"404 Not Found"),
    "a body without an end": (
        b"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 65536,
        b"404 Not Found",
    ),
    "a head of 64 KiB": (head_of(65_536), b"404 Not Found"),
    "a head of more than that": (head_of(65_537), b"431"),
    "a head of 300 KB": (head_of(300_000), b"431"),
    "no HTTP": (b"hush\x00\xff\r\n\r\n", b"400 Bad Request"),
    "a header that is none": (b"GET / HTTP/1.1\r\nAuthorization Bearer hush\r\n\r\n", b"400 Bad Request"),
    "a header that is too long": (b"GET / HTTP/1.1\r\nX: " + b"hush" * 3000 + b"\r\n\r\n", b"400 Bad Request"),
    "too many headers": (b"GET / HTTP/1.1\r\n" + b"X: hush\r\n" * 2000 + b"\r\n", b"400 Bad Request"),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"hush" * 20_000, b"431"),
    "a subprotocol": (UPGRADE.replace(b"Host: x", b"Host: x\r\nSec-WebSocket-Protocol: hush, hush"), b"401"),
    "a key that is not ASCII": (UPGRADE.replace(b"dGhl", b"hush\xff"), b"400 Bad Request"),
    "a key of another length": (UPGRADE.replace(b"dGhl", b"dGhldGhl"), b"400 Bad Request"),
    "two tokens": (UPGRADE.replace(b"Host: x", b"Host: x\r\n" + 2 * b"Authorization: Bearer hush\r\n"), b"4"),
    "a token in a cookie": (UPGRADE.replace(b"Host: x", b"Host: x\r\nCookie: a(b=hush; hush"), b"401"),
    "a token that is not UTF-8": (
        UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush\xff\xfe"),
        b"401",
    ),
    "an upgrade of HTTP/1.0": (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), b"401"),
    "headers without an end": (b"GET / HTTP/1.1\r\n" + b"X: hush\r\n" * 8000, b"431"),
}


@pytest.mark.parametrize(("request_bytes", "status"), REQUESTS.values(), ids=REQUESTS)
async def test_connection_ends_with_its_response(
    heard: Heard, serve: Any, connect: Any, request_bytes: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection is kept alive, no body is read, and nothing that a client sent is logged."""
    caplog.set_level(logging.DEBUG)
    url = await serve(MediaReceiver(heard, bearer_tokens="right"), handshake_timeout=600.0)
    began = asyncio.get_running_loop().time()
    response = await rest_of(await connect(url, request_bytes))
    assert asyncio.get_running_loop().time() - began < 5.0
    assert response.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status)) or b"Content-Length: 1" in request_bytes
    assert response.count(b"HTTP/1.") <= 1
    assert "hush" not in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


async def test_error_of_a_token_check_is_logged(
    serve: Any, connect: Any, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """Such an error is a mistake of the server's owner, not of a client."""

    async def check(token: str) -> bool:
        raise LookupError("no such table")

    url = await serve(MediaReceiver(heard, bearer_tokens=check))
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush")
    assert (await rest_of(await connect(url, head))).startswith(b"HTTP/1.1 500")
    assert "no such table" in caplog.text
    assert "hush" not in caplog.text


async def test_data_behind_an_upgrade_waits_while_its_token_is_checked(heard: Heard, serve: Any, connect: Any) -> None:
    """A client without a token fills neither the memory nor the time of the event loop."""
    checking = asyncio.Event()

    async def check(token: str) -> bool:
        await checking.wait()
        return False

    url = await serve(MediaReceiver(heard, bearer_tokens=check))
    _, writer = connection = await connect(url, UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer t"))
    writer.write(bytes(32 << 20))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await writer.drain()
    checking.set()
    _ = await rest_of(connection)  # it ends


@pytest.mark.parametrize("refuses", [False, True])
async def test_token_check_that_does_not_end(
    serve: Any, connect: Any, heard: Heard, refuses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It has as long as a stream to start; then the stream is rejected."""
    end = asyncio.Event()

    async def check(token: str) -> bool:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                if not refuses:
                    raise
        return True

    url = await serve(MediaReceiver(heard, bearer_tokens=check, start_timeout=5.0))
    head = UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer hush")
    assert (await rest_of(await connect(url, head))).startswith(b"HTTP/1.1 503")
    assert "the token check did not return within 5 s" in caplog.text
    assert "hush" not in caplog.text
    end.set()


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", UPGRADE[:40], UPGRADE, UPGRADE + b"\x81"])
@pytest.mark.parametrize("tls", [False, True])
async def test_resets_leave_nothing_behind(
    heard: Heard,
    serve: Any,
    connect: Any,
    dial: Any,
    certificate: ssl.SSLContext,
    sent: bytes,
    tls: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that resets its connection in the middle of a handshake is no error of the server."""
    receiver = MediaReceiver(heard, bearer_tokens=None)
    url = await serve(receiver, max_pending=1, **({"ssl_context": certificate} if tls else {}))
    for _ in range(20):
        _, writer = await connect(url, sent)
        await asyncio.sleep(0)
        reset(writer)
    await until(lambda: receiver.pending_sockets == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("error", [OSError, AttributeError, ValueError])
def test_reset_of_a_closed_connection_is_no_error(error: type[Exception]) -> None:
    """Each event loop reports it with an error of its own: uvloop with a ValueError."""

    class Closed(asyncio.Transport):
        is_aborted = False

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            raise error

        def abort(self) -> None:
            self.is_aborted = True

    transport = Closed()
    reset_connection(transport)
    assert transport.is_aborted


async def test_start_that_arrives_while_the_loop_is_blocked_is_in_time(
    heard: Heard, serve: Any, connect: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop sees the start event and the end of `start_timeout` in the same turn."""
    loop = asyncio.get_running_loop()
    receiver = MediaReceiver(heard, bearer_tokens=None, start_timeout=5.0)
    reader, writer = await connect(await serve(receiver), UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: receiver.pending_sockets == 1)
    writer.write(text_frame(START))
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + 6.0)
    await until(lambda: bool(heard.sessions))
    writer.write(text_frame({"event": "stop", "extra": "-" * 126}))
    assert (await heard.end()).end_reason is EndReason.STOPPED
    assert not caplog.records


async def test_client_that_leaves_while_its_token_is_checked(
    heard: Heard, serve: Any, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def check(token: str) -> bool:
        asked.set()
        await answer.wait()
        return True

    receiver = MediaReceiver(heard, bearer_tokens=check)
    _, writer = await connect(await serve(receiver), UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer t"))
    await asked.wait()
    reset(writer)
    await asyncio.sleep(0.1)
    answer.set()
    await asyncio.sleep(0.1)
    assert not caplog.records
    assert heard.sessions == []


@pytest.mark.parametrize("is_pending", [False, True])
async def test_client_that_leaves_before_the_upgrade_is_written(
    serve: Any,
    heard: Heard,
    is_pending: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not logged as an error, and an `open` that waits for the stream fails at once."""

    async def gone(*_: Any) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    receiver = MediaReceiver(heard, bearer_tokens="t")
    url = await serve(receiver)
    monkeypatch.setattr(web.WebSocketResponse, "prepare", gone)
    pending = receiver._pending_streams.add("sid", "name")
    with pytest.raises(aiohttp.WSServerHandshakeError):
        async with aiohttp.ClientSession() as session:
            await session.ws_connect(url, headers={"Authorization": f"Bearer {pending.token if is_pending else 't'}"})
    if is_pending:
        with pytest.raises(OpenError, match="the connection broke"):
            await pending._arrival
    assert heard.sessions == []
    assert not caplog.records


async def test_client_that_never_reads_does_not_hold_its_connection(
    heard: Heard, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that sends pings and reads no pong is closed when its time for a start is over."""
    receiver = MediaReceiver(heard, bearer_tokens=None, start_timeout=5.0)
    url = await serve(receiver)
    with socket.create_connection(("127.0.0.1", port_of(url))) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(peer, UPGRADE)
        ping = b"\x89\xfd" + bytes(4) + b"x" * 125

        with pytest.raises(ConnectionError):  # noqa: PT012  (the reset may come while the pings are sent, or after it)
            await loop.sock_sendall(peer, ping * 3000)
            await asyncio.sleep(20)  # on the idle clock, and longer than all limits together
            assert receiver.pending_sockets == 0
            while True:
                await loop.sock_sendall(peer, ping)
    await until(lambda: receiver.pending_sockets == 0)
    assert heard.sessions == []


async def test_streams_are_taken_on_several_addresses(
    heard: Heard, serve: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that this machine does not have is skipped while there is another."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "192.0.2.1", "127.0.0.2")]

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    await serve(MediaReceiver(heard, bearer_tokens=None), host="here.example")
    found[:] = found[1:2]
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        await serve(MediaReceiver(heard, bearer_tokens=None), host="here.example")


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="ports can't be shared here")
async def test_servers_share_a_port_if_all_of_them_allow_it(heard: Heard, serve: Any, dial: Any) -> None:
    """One that does not is rejected."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), reuse_port=True)
    port = int(url.rsplit(":", 1)[1].strip("/"))
    assert await serve(MediaReceiver(heard, bearer_tokens=None), port=port, reuse_port=True) == url
    with pytest.raises(OSError, match="in use"):
        await serve(MediaReceiver(heard, bearer_tokens=None), port=port)
    for _ in range(8):  # each is accepted by one of the two
        await (await dial(url)).send_json(START)
    await until(lambda: len(heard.sessions) == 8)


async def test_system_that_cannot_share_ports(heard: Heard, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    with pytest.raises(InvalidRequestError, match="reuse_port=True needs SO_REUSEPORT"):
        await serve(MediaReceiver(heard, bearer_tokens=None), reuse_port=True)


async def test_serve_on_taken_port_raises_and_releases_addresses_already_bound(
    heard: Heard, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises, and the addresses that were bound before are released."""
    port = free_port()
    with socket.create_server(("127.0.0.2", port)):

        async def getaddrinfo(*_: Any, **__: Any) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        with pytest.raises(OSError, match=r"127\.0\.0\.2"):
            await serve(MediaReceiver(heard, bearer_tokens=None), host="here.example")
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"handshake_timeout": 0}, "handshake_timeout must be a number of seconds above 0"),
        ({"max_pending": 0}, "max_pending must be a whole number of 1 or more"),
        ({"shutdown_timeout": -1}, "^shutdown_timeout must be a number of seconds, 0 or more, and at most a year$"),
        ({"shutdown_timeout": False}, "shutdown_timeout must be a number of seconds, 0 or more"),
        ({"shutdown_timeout": "x"}, "shutdown_timeout must be a number of seconds, 0 or more"),
        ({"port": 70_000}, "port must be a whole number from 0 to 65535, not 70000"),
        ({"port": -1}, "port must be a whole number from 0 to 65535, not -1"),
        ({"port": "x"}, "port must be a whole number from 0 to 65535, not 'x'"),
        ({"port": True}, "port must be a whole number from 0 to 65535, not True"),
        ({"port": None}, "port must be a whole number from 0 to 65535, not None"),
        ({"host": 5}, "host must be a str, such as '127.0.0.1', not int"),
        ({"host": None}, "host must be a str, such as '127.0.0.1', not NoneType"),
        ({"ssl_context": "cert.pem"}, "ssl_context must be an SSLContext, not str: write ssl.create_default_context"),
        (
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)},
            "ssl_context is a client's, .*write .*Purpose.CLIENT_AUTH",
        ),
        ({"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "ssl_context has no certificate, .*load the certif"),
        ({"reuse_port": "yes"}, "reuse_port must be True or False, not 'yes'"),
        ({"path": 5}, "path must be a str, such as '/audio', not int"),
        ({"path": "audio"}, "path 'audio' does not begin with a slash: write it as '/audio'"),
        ({"path": "/a?b"}, "path '/a.b' differs from the path that clients request: write it as '/a'"),
        ({"path": "/a#b"}, "write it as '/a'"),
        ({"path": "/a/../b"}, "write it as '/b'"),
        ({"path": "/a/./b"}, "write it as '/a/b'"),
        ({"path": "/%41"}, "write it as '/A'"),
        ({"path": "/a\n"}, "write it as '/a'"),
        ({"path": "/\ud800"}, "write it as '/'"),
    ],
)
async def test_invalid_settings_of_a_server(heard: Heard, serve: Any, settings: dict[str, Any], match: str) -> None:
    receiver = MediaReceiver(heard, bearer_tokens=None)
    with pytest.raises(InvalidRequestError, match=match):
        await serve(receiver, **settings)
    await serve(receiver)  # it was not closed


async def test_certificate_may_be_chosen_for_each_name(heard: Heard, serve: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda *_: None
    assert (await serve(MediaReceiver(heard, bearer_tokens=None), ssl_context=context)).startswith("wss://")


@pytest.mark.parametrize(
    "path", ["/", "//", "/a//b", "/a b", "/a%20b", "/\u00e9", "/%C3%A9", "/a%2Fb", "/a%3Fb", "/a+b"]
)
async def test_stream_is_received_on_every_path_that_serve_accepts(
    heard: Heard, serve: Any, dial: Any, path: str
) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None), path=path))
    await peer.send_json(START)
    await until(lambda: bool(heard.sessions))


@pytest.mark.parametrize("poll", [True, False])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_shortage_of_file_descriptors_closes_the_oldest_connection(
    heard: Heard,
    serve: Any,
    connect: Any,
    dial: Any,
    failing_accept: FailingAccept,
    number: int,
    poll: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each failed accept closes one, which is one line in the log; the new connection waits in the kernel."""
    if not poll:
        monkeypatch.delattr(select, "poll")
    url = await serve(MediaReceiver(heard, bearer_tokens=None), handshake_timeout=600.0)
    slow = [await connect(url) for _ in range(5)]
    await asyncio.sleep(1)
    failing_accept.errors += [number] * 3
    await connect(url)  # an accept waits already, and does not fail
    peer = await dial(url)
    await peer.send_json(START)
    await until(lambda: bool(heard.sessions))
    assert [await rest_of(connection) for connection in slow[:3]] == [b""] * 3
    assert [is_open(connection) for connection in slow] == [False] * 3 + [True] * 2
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"cannot accept a connection ({errno.errorcode[number]}): ")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, 0, errno.ECONNABORTED])
async def test_accept_that_fails_is_tried_again(
    heard: Heard, serve: Any, dial: Any, failing_accept: FailingAccept, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A new stream waits until there is room for it."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None))
    failing_accept.errors += [number] * 10
    await (await dial(url)).close()  # an accept waits already, and does not fail
    peer = await dial(url)
    await peer.send_json(START)
    await until(lambda: bool(heard.sessions))
    assert failing_accept.errors == []
    lines = [record for record in caplog.records if record.getMessage().startswith("cannot accept a connection")]
    assert len(lines) == (number != errno.ECONNABORTED)


async def test_shortage_without_a_new_connection_closes_none(
    heard: Heard, serve: Any, connect: Any, failing_accept: FailingAccept
) -> None:
    """Linux reports it before a connection is there."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), handshake_timeout=600.0)
    slow = await connect(url)
    failing_accept.ahead += [errno.EMFILE] * 3
    await asyncio.sleep(1)
    await connect(url)
    await asyncio.sleep(10)
    assert failing_accept.ahead == []
    assert is_open(slow)


async def test_connection_that_is_closed_before_it_is_opened() -> None:
    """Its socket is closed, and a request on a lost connection gets a 503."""

    async def respond(*_: Any) -> web.StreamResponse:
        raise AssertionError

    server = StreamServer(respond, ssl_context=None, handshake_timeout=10.0, max_pending=10)
    ours, theirs = socket.socketpair()
    with theirs:
        server._add(ours)
        for connection in server._open:
            connection.abort()  # before its first turn
        await server.close()
        assert theirs.recv(1) == b""
    lost: Any = SimpleNamespace(protocol=None)
    assert (await server._respond(lost)).status == 503


def test_default_cap_follows_the_file_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ModuleType("resource")
    limits.RLIMIT_NOFILE, limits.RLIM_INFINITY = 7, -1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resource", limits)
    for soft, most in ((256, 128), (1024, 512), (1_048_576, 2048), (-1, 2048), (1, 1)):
        limits.getrlimit = lambda _, soft=soft: (soft, soft)  # type: ignore[attr-defined]
        assert default_max_pending() == most
    monkeypatch.setitem(sys.modules, "resource", None)
    assert default_max_pending() == 256
