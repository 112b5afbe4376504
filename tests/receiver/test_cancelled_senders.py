"""Senders of one socket do not disturb each other, and no connection outlives its close."""

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams.receiver import EndReason, MediaReceiver, StreamSession
from signalwire_streams.receiver._aiohttp_socket import AudioSocket, reset
from signalwire_streams.receiver._connection import _handle

from .conftest import Heard, until
from .test_connections import UPGRADE, port_of
from .test_receiver import START

pytestmark = pytest.mark.usefixtures("idle_clock")
PING = b"\x89\xfd" + bytes(4) + b"x" * 125


class Mishap(BaseException):
    """An exception that no handler is expected to raise."""


async def fill(session: StreamSession) -> None:
    while True:
        await session.playback._send("media", media={"payload": "A" * 60_000})


async def test_cancelled_sender_does_not_cancel_another(serve: Any, dial: Any) -> None:
    """A message that waits for the connection goes on to wait when another sender is cancelled."""
    outcome: list[bool] = []
    done = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        first, second = asyncio.create_task(fill(session)), asyncio.create_task(fill(session))
        await asyncio.wait({first, second}, timeout=1)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.wait({second}, timeout=1)
        third = asyncio.create_task(fill(session))
        await asyncio.wait({third}, timeout=1)
        outcome.extend([second.done(), third.done()])
        for task in (second, third):
            task.cancel()
        done.set()

    receiver = MediaReceiver(handler, bearer_tokens=None, bidirectional=True, heartbeat=None)
    peer = await dial(await serve(receiver))
    await peer.send_json(START)
    await done.wait()
    assert outcome == [False, False]


@pytest.mark.parametrize("started", [False, True])
async def test_application_does_not_keep_a_connection_that_is_not_read(started: bool) -> None:
    """Without `serve` too, the connection is closed when its other end reads nothing."""
    transports = list[asyncio.BaseTransport | None]()

    async def handler(session: StreamSession) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                async for _ in session:
                    pass

    receiver = MediaReceiver(handler, bearer_tokens=None, start_timeout=5.0, max_queue=1_000_000, heartbeat=None)

    async def handle(request: web.Request) -> web.StreamResponse:
        transports.append(request.transport)
        return await receiver.handle(request)

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    start = b'{"event":"start","start":{"streamSid":"s"}}'
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", runner.addresses[0][1])) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_sendall(peer, UPGRADE)
        if started:
            await loop.sock_sendall(peer, bytes([0x81, 0x80 | len(start)]) + bytes(4) + start)
        with contextlib.suppress(ConnectionError):
            while True:
                await loop.sock_sendall(peer, PING * 1000)
        await until(lambda: not receiver.sessions and receiver.pending_sockets == 0)
    await runner.cleanup()
    assert transports[0] is not None
    assert transports[0].is_closing()


@pytest.mark.parametrize("frame", [b"\x89\x80", b"\x8a\x80", b"\x81\x80"], ids=["ping", "pong", "empty text"])
async def test_messages_before_the_start_are_limited(
    heard: Heard, serve: Any, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages without an event count too."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None, start_timeout=600.0))
    _, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.write(UPGRADE + (frame + bytes(4)) * 501)
    await until(lambda: "too many frames arrived before the start event" in caplog.text)
    writer.close()


@pytest.mark.parametrize(
    "error",
    [Mishap("x"), GeneratorExit(), asyncio.CancelledError(), BaseExceptionGroup("several", [Mishap("x")])],
    ids=lambda error: type(error).__name__,
)
async def test_handler_that_raises_no_exception_has_failed(
    serve: Any, dial: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = list[StreamSession]()

    async def handler(session: StreamSession) -> None:
        sessions.append(session)
        raise error

    peer = await dial(await serve(MediaReceiver(handler, bearer_tokens=None)))
    await peer.send_json(START)
    assert (await peer.receive()).data == 1011
    assert sessions[0].end_reason is EndReason.HANDLER_FAILED
    assert [record.getMessage() for record in caplog.records] == [
        "the handler of stream stream-1 failed, so the stream is closed"
    ]


async def cancel_itself(token: str) -> bool:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return True


async def raise_cancelled_error(token: str) -> bool:
    raise asyncio.CancelledError


async def raise_mishap(token: str) -> bool:
    raise Mishap


@pytest.mark.parametrize(
    ("check", "status", "line"),
    [
        (cancel_itself, 503, "the token check was cancelled, so the stream is rejected"),
        (raise_cancelled_error, 503, "the token check was cancelled, so the stream is rejected"),
        (raise_mishap, 500, "the token check raised Mishap"),
    ],
)
async def test_token_check_that_ends_without_a_result_rejects_the_stream(
    serve: Any, heard: Heard, check: Any, status: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next stream is served."""
    url = await serve(MediaReceiver(heard, bearer_tokens=check))
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
        writer.write(UPGRADE.replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer t"))
        assert (await reader.read()).startswith(b"HTTP/1.1 %d" % status)
        writer.close()
    assert caplog.text.count(line) == 2
    assert len(caplog.records) == 2


async def test_connection_that_was_lost_before_the_upgrade() -> None:
    """Nothing is left to close, and a message is rejected at once; a task that was cancelled is forgotten."""
    unused = AudioSocket(None, max_msg_size=1, buffer=memoryview(bytearray(1)))
    reset(unused.transport)
    assert unused._sends_at_once(1)
    task = unused._track_task(asyncio.sleep(1))
    task.cancel()
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert unused._send_tasks == set()


async def test_interrupt_and_discarded_handler_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    session: Any = SimpleNamespace(label="s", end=None)

    async def interrupt(_: StreamSession) -> None:
        raise KeyboardInterrupt

    async def wait(_: StreamSession) -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        await _handle(interrupt, session)
    handling = _handle(wait, session)
    task = asyncio.create_task(handling)
    await asyncio.sleep(0)
    handling.close()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() or isinstance(task.exception(), RuntimeError)
    assert not caplog.records


def cancel_current_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


@pytest.mark.parametrize("where", ["at once", "in the loop", "on return"])
async def test_handler_that_cancels_itself_ends_its_own_stream(
    serve: Any, dial: Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As with any failure of a handler: other streams continue, and queued events stay readable for other tasks."""
    sessions: dict[str | None, StreamSession] = {}
    rest: dict[str | None, list[object]] = {}
    queued = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        sessions[session.stream_sid] = session
        if session.stream_sid == "good":
            rest["good"] = [event async for event in session]
            return
        await queued.wait()
        if where == "in the loop":
            async for _ in session:
                cancel_current_task()
        cancel_current_task()
        if where == "at once":
            await asyncio.sleep(0)

    receiver = MediaReceiver(handler, bearer_tokens=None)
    url = await serve(receiver)
    good, bad = await dial(url), await dial(url)
    for peer, sid in ((good, "good"), (bad, "bad")):
        await peer.send_json({"event": "start", "start": {"streamSid": sid}})
    await until(lambda: len(sessions) == 2)
    for number in range(4):
        await bad.send_json({"event": "dtmf", "dtmf": {"digit": str(number)}})
    await asyncio.sleep(1)
    queued.set()
    assert (await bad.receive()).data == 1011
    assert sessions["bad"].end_reason is EndReason.HANDLER_FAILED
    await until(lambda: receiver.sessions == {sessions["good"]})
    assert [len([event async for event in sessions["bad"]])] == [0 if where == "in the loop" else 4]
    await good.send_json({"event": "dtmf", "dtmf": {"digit": "1"}})
    await good.send_json({"event": "stop"})
    assert (await good.receive()).data == 1000
    assert len(rest["good"]) == 1
    assert caplog.messages == ["the handler of stream bad cancelled itself, so the stream is closed"]


async def test_handler_that_survives_its_own_cancellation_loses_no_event(serve: Any, dial: Any) -> None:
    received: list[object] = []
    ended = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                async for event in session:
                    received.append(event)
                    cancel_current_task()
                ended.set()

    peer = await dial(await serve(MediaReceiver(handler, bearer_tokens=None)))
    await peer.send_json(START)
    for number in range(8):
        await peer.send_json({"event": "dtmf", "dtmf": {"digit": str(number)}})
    await peer.send_json({"event": "stop"})
    await ended.wait()
    assert len(received) == 8
