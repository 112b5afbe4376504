"""The end of a receiver: it comes in time, whatever the handlers do."""

import asyncio
import contextlib
import gc
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams import InvalidRequestError
from signalwire_streams.receiver import EndReason, MediaReceiver, StreamSession

from .conftest import Heard, until
from .test_connections import UPGRADE, port_of
from .test_receiver import START

pytestmark = pytest.mark.usefixtures("idle_clock")


async def swallow(end: asyncio.Event) -> None:
    """Ignore each cancellation."""
    while not end.is_set():
        try:
            await end.wait()
        except asyncio.CancelledError:
            continue


async def stay_in_finally(end: asyncio.Event) -> None:
    """Take the cancellation, and then wait for something that does not come."""
    try:
        await asyncio.Event().wait()
    finally:
        await swallow(end)


async def fail_at_last(end: asyncio.Event) -> None:
    """Ignore each cancellation, and raise in the end."""
    await swallow(end)
    raise LookupError("no such tenant")


async def replace(end: asyncio.Event) -> None:
    """Answer a cancellation with another error."""
    try:
        await end.wait()
    except asyncio.CancelledError:
        raise RuntimeError("not now") from None


STUBBORN = [swallow, stay_in_finally, fail_at_last]


@pytest.mark.parametrize("conduct", STUBBORN)
async def test_serve_ends_in_time_with_handlers_that_ignore_their_cancellation(
    conduct: Callable[[asyncio.Event], Awaitable[None]], dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """They are named in one line, the sockets are closed, and nothing is said of them later."""
    gc.collect()
    caplog.clear()  # of what asyncio says about the garbage of other tests
    begun, end = [], asyncio.Event()

    async def handler(session: StreamSession) -> None:
        begun.append(session)
        await conduct(end)

    loop = asyncio.get_running_loop()
    receiver = MediaReceiver(handler, bearer_tokens=None)
    async with receiver.serve(shutdown_timeout=4.0) as url:
        peers = [await dial(url) for _ in range(7)]
        for number, peer in enumerate(peers):
            await peer.send_json({**START, "start": {"streamSid": f"s-{number}", "customParameters": {"a": "hush"}}})
        await until(lambda: len(begun) == 7)
        closed = [asyncio.create_task(peer.receive()) for peer in peers]
        ending = loop.time()
    assert loop.time() - ending <= 4.0 + 2.0 + 0.5
    assert [(await closing).data for closing in closed] == [1001] * 7
    assert {session.end_reason for session in begun} == {EndReason.SHUTDOWN}
    assert receiver.sessions == set()
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        "7 handlers are still running after being cancelled, and are abandoned: "
        f"{handler.__qualname__} of s-0, s-1, s-2, s-3, s-4 and 2 more"
    )
    gc.collect()
    end.set()
    await asyncio.sleep(1)
    gc.collect()
    later = [record.getMessage() for record in caplog.records[1:]]
    assert all(line.startswith("the handler of stream s-") for line in later)
    assert len(later) == (7 if conduct is fail_at_last else 0)


async def test_handler_that_raises_another_error_when_cancelled(dial: Any, caplog: pytest.LogCaptureFixture) -> None:
    """That is logged as any other error of a handler."""
    begun = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        begun.set()
        await replace(asyncio.Event())

    async with MediaReceiver(handler, bearer_tokens=None).serve(shutdown_timeout=0) as url:
        await (await dial(url)).send_json(START)
        await begun.wait()
    [record] = caplog.records
    assert record.getMessage() == "the handler of stream stream-1 failed, so the stream is closed"


async def test_streams_continue_until_the_deadline(dial: Any) -> None:
    """And no longer: a stream that goes on is closed with 1001 then."""
    sessions = list[StreamSession]()

    async def handler(session: StreamSession) -> None:
        sessions.append(session)
        async for _ in session:
            pass

    loop = asyncio.get_running_loop()
    async with MediaReceiver(handler, bearer_tokens=None).serve() as url:
        peer = await dial(url)
        await peer.send_json(START)
        await until(lambda: bool(sessions))
        closed, ending = asyncio.create_task(peer.receive()), loop.time()
    assert (await closed).data == 1001
    assert 5.0 <= loop.time() - ending < 5.5


async def test_abort_ends_waits_for_the_other_end(serve: Any) -> None:
    """A peer that does not answer that its socket is closed is not waited for any longer."""
    ended = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        await session.wait_closed()
        ended.set()

    receiver = MediaReceiver(handler, bearer_tokens=None)
    url = await serve(receiver)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    start = json.dumps(START).encode()
    writer.write(UPGRADE + b"\x81\xfe" + len(start).to_bytes(2) + bytes(4) + start)
    await until(lambda: bool(receiver.sessions))
    closing = asyncio.create_task(receiver.aclose(0))
    await ended.wait()
    await asyncio.sleep(0.1)
    assert not closing.done()
    began = asyncio.get_running_loop().time()
    receiver.abort()
    await closing
    assert asyncio.get_running_loop().time() - began < 0.1
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await reader.read()


async def test_serve_that_is_cancelled_ends_at_once(dial: Any) -> None:
    """Its streams are ended, and its port is free."""
    sessions, ending = list[StreamSession](), asyncio.Event()

    async def handler(session: StreamSession) -> None:
        sessions.append(session)
        async for _ in session:
            pass

    receiver = MediaReceiver(handler, bearer_tokens=None)
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with receiver.serve(shutdown_timeout=600.0) as url:
            served.set_result(url)
            await ending.wait()

    serving = asyncio.create_task(serve())
    url = await served
    peer = await dial(url)
    await peer.send_json(START)
    await until(lambda: bool(sessions))
    ending.set()
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert asyncio.get_running_loop().time() - began < 1.0
    assert sessions[0].end_reason is EndReason.SHUTDOWN
    with pytest.raises(OSError, match="Cannot connect"):
        await dial(url)


@pytest.mark.parametrize("turns", range(8))
async def test_serve_that_is_cancelled_while_it_closes_leaves_nothing_open(turns: int, nothing_left: None) -> None:
    async def serving() -> None:
        async with MediaReceiver().serve() as url:
            urls.set_result(url)
            await asyncio.Event().wait()

    urls = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serving())
    url = await urls
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    await asyncio.sleep(0.1)  # so that it is accepted
    task.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.transport.abort()


async def test_aclose_ends_requests_of_an_application(dial: Any, caplog: pytest.LogCaptureFixture) -> None:
    """After `aclose` no request waits for a handler that refuses to end, so that the application's server can end."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def handler(session: StreamSession) -> None:
        begun.set()
        await swallow(end)

    receiver = MediaReceiver(handler, bearer_tokens=None)
    application = web.Application()
    application.router.add_get("/audio", receiver.handle)
    application.on_shutdown.append(lambda _: receiver.aclose(0))
    runner = web.AppRunner(application, shutdown_timeout=60.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    peer = await dial(f"ws://127.0.0.1:{runner.addresses[0][1]}/audio")
    await peer.send_json(START)
    await begun.wait()
    closed, ending = asyncio.create_task(peer.receive()), asyncio.get_running_loop().time()
    await runner.cleanup()
    assert asyncio.get_running_loop().time() - ending == pytest.approx(1.0 + 1.0, abs=0.1)
    assert (await closed).data == 1001
    assert "1 handlers are still running" in caplog.text
    end.set()


@pytest.mark.parametrize("turns", range(8))
async def test_stream_that_starts_while_the_receiver_closes(
    dial: Any, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler ends before `aclose` returns, or is never called, and the socket is closed with code 1001."""
    events = []

    async def handler(session: StreamSession) -> None:
        events.append("begun")
        await session.wait_closed()
        events.append("ended")

    async def close() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await receiver.aclose(0.0)
        events.append("closed")

    def open_session(*values: Any) -> StreamSession:
        closing.append(asyncio.create_task(close()))
        return opened(*values)

    closing: list[asyncio.Task[None]] = []
    receiver = MediaReceiver(handler, bearer_tokens=None)
    opened = receiver._open_session
    monkeypatch.setattr(receiver, "_open_session", open_session)
    application = web.Application()
    application.router.add_get("/", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    peer = await dial(f"ws://127.0.0.1:{runner.addresses[0][1]}/")
    await peer.send_json(START)
    assert (await peer.receive()).data == 1001
    await asyncio.wait(closing)
    await runner.cleanup()
    assert events in (["closed"], ["begun", "ended", "closed"])


@pytest.mark.parametrize("turns", range(4))
async def test_client_that_connects_while_the_server_closes(turns: int, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection is closed, and the event loop has no error to log."""
    receiver = MediaReceiver()
    async with receiver.serve() as url:
        await asyncio.sleep(0)
        client = socket.create_connection(("127.0.0.1", port_of(url)))
        for _ in range(turns):
            await asyncio.sleep(0)
    gc.collect()
    client.settimeout(1.0)
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    assert not caplog.records


@pytest.mark.parametrize("wrong", [-1, float("nan"), None, "5", True])
async def test_deadline_that_is_no_time_is_rejected(wrong: Any, heard: Heard, serve: Any, dial: Any) -> None:
    """The receiver goes on."""
    receiver = MediaReceiver(heard, bearer_tokens=None)
    url = await serve(receiver)
    with pytest.raises(InvalidRequestError, match="deadline must be a number of seconds, 0 or more"):
        await receiver.aclose(wrong)
    peer = await dial(url)
    await peer.send_json(START)
    await until(lambda: bool(receiver.sessions))


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("deadline", [0, 0.5])
async def test_loops_over_taps_and_pcm_end_with_the_receiver(late: Any, deadline: float, serve: Any, dial: Any) -> None:
    """In the handler or beside it, whatever the stream does."""
    tasks: list[asyncio.Task[int]] = []

    async def count(source: Any) -> int:
        return len([item async for item in source])

    async def handler(session: StreamSession) -> None:
        tasks.append(asyncio.create_task(count(session.tap())))
        await count(session.pcm(8000, late=late))
        ended.append(asyncio.get_running_loop().time())

    ended: list[float] = []
    receiver = MediaReceiver(handler, bearer_tokens=None)
    peer = await dial(await serve(receiver))
    await peer.send_json(START)
    await until(lambda: bool(tasks))
    closing_at = asyncio.get_running_loop().time()
    await receiver.aclose(deadline)
    assert ended[0] - closing_at == pytest.approx(deadline, abs=0.1)
    assert await tasks[0] == 0
