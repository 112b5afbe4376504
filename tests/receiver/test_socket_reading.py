"""Waiting for the events of a socket, and detecting dead peers."""

import asyncio
import ssl
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import Clock, TransportError
from signalwire_streams.receiver import (
    EndReason,
    MediaEvent,
    MediaReceiver,
    StreamSession,
    _connection as connections,
)

from .conftest import Heard, until
from .test_receiver import START, media, reset

pytestmark = pytest.mark.usefixtures("idle_clock")


@pytest.fixture
async def deaf(trust: ssl.SSLContext) -> Any:
    """Dial as a peer that neither answers pings nor hides them."""
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(connector=connector) as session, AsyncExitStack() as stack:

        async def dial(url: str) -> aiohttp.ClientWebSocketResponse:
            return await stack.enter_async_context(session.ws_connect(url, autoping=False))

        yield dial


async def test_cancelled_loop_loses_no_event(serve: Any, dial: Any) -> None:
    """A new loop continues where one that timed out has stopped."""
    chunks, cuts = [], 0

    async def handler(session: StreamSession) -> None:
        nonlocal cuts
        while session.end_reason is None:
            try:
                async with asyncio.timeout(0):
                    async for event in session:
                        assert isinstance(event, MediaEvent)
                        chunks.append(event.chunk)
            except TimeoutError:
                cuts += 1

    peer = await dial(await serve(MediaReceiver(handler, bearer_tokens=None)))
    await peer.send_json(START)
    for chunk in range(1, 31):
        await until(lambda snapshot=cuts: cuts > snapshot + 1)  # type: ignore[misc]
        await peer.send_json(media(chunk))
    await until(lambda: len(chunks) == 30)
    assert chunks == list(range(1, 31))


@pytest.mark.parametrize("pause", [False, True])
async def test_iterator_continues_after_a_cancelled_wait(serve: Any, dial: Any, pause: bool) -> None:
    """`anext` on one iterator under a time limit: no event is lost, and only the end of the stream ends it."""
    chunks, cuts = [], 0
    ended = asyncio.Event()

    async def handler(session: StreamSession) -> None:
        nonlocal cuts
        events = aiter(session)
        while not ended.is_set():
            try:
                async with asyncio.timeout(0.0005):
                    event = await anext(events)
            except TimeoutError:
                cuts += 1
                if pause:
                    await asyncio.sleep(0.001)  # the event may arrive while nobody waits
            except StopAsyncIteration:
                assert session.end_reason is EndReason.STOPPED
                ended.set()
            else:
                assert isinstance(event, MediaEvent)
                chunks.append(event.chunk)
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    peer = await dial(await serve(MediaReceiver(handler, bearer_tokens=None)))
    await peer.send_json(START)
    for chunk in range(1, 31):
        await until(lambda snapshot=cuts: cuts > snapshot)  # type: ignore[misc]
        await peer.send_json(media(chunk))
    await until(lambda: len(chunks) == 30)
    await peer.send_json({"event": "stop"})
    await ended.wait()
    assert chunks == list(range(1, 31))


@pytest.mark.parametrize("begun", [False, True])
async def test_ping_gets_a_pong(serve: Any, deaf: Any, heard: Heard, begun: bool) -> None:
    """Even before the start event; an unsolicited pong is no frame."""
    peer = await deaf(await serve(MediaReceiver(heard, bearer_tokens=None)))
    if begun:
        await peer.send_json(START)
    await peer.ping(b"there?")
    message = await peer.receive()
    assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"there?")
    await peer.pong()
    await peer.send_json(START if not begun else media(1))
    await peer.close()
    assert (await heard.end()).end_reason is EndReason.CLOSED


async def test_silent_peer_is_pinged_and_dropped(serve: Any, deaf: Any, heard: Heard) -> None:
    """A connection that died without a word does not stay for ever."""
    peer = await deaf(await serve(MediaReceiver(heard, bearer_tokens=None, heartbeat=0.01)))
    await peer.send_json(START)
    assert (await peer.receive()).type is aiohttp.WSMsgType.PING
    assert (await peer.receive()).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
    assert (await heard.end()).end_reason is EndReason.LOST


async def test_bug_in_a_heartbeat_ends_its_own_stream(
    serve: Any, deaf: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The peers of other streams are still pinged."""
    check = connections.Connection._check

    def broken(self: connections.Connection, now: float) -> None:
        if self.session is not None and self.session.label == "broken":
            raise LookupError("a bug")
        check(self, now)

    monkeypatch.setattr(connections.Connection, "_check", broken)
    url = await serve(MediaReceiver(heard, bearer_tokens=None, heartbeat=10.0))
    for sid in ("broken", "stream-1"):
        peer = await deaf(url)
        await peer.send_json({**START, "start": {"streamSid": sid}})
    assert [(await heard.end()).end_reason for _ in range(2)] == [EndReason.FAILED, EndReason.LOST]
    assert "the receiver failed for stream broken" in caplog.text


async def test_silent_peer_has_half_a_heartbeat_to_send_its_pong(
    serve: Any, deaf: Any, heard: Heard, idle_clock: Clock
) -> None:
    """Both are checked four times in each heartbeat, and the pong is allowed one more check."""
    peer = await deaf(await serve(MediaReceiver(heard, bearer_tokens=None, heartbeat=10.0)))
    await peer.send_json(START)
    began = idle_clock.now()
    assert (await peer.receive()).type is aiohttp.WSMsgType.PING
    pinged = idle_clock.now()
    await heard.end()
    assert 9.9 <= pinged - began <= 12.6
    assert idle_clock.now() - pinged == pytest.approx(5.0 + 2.5, abs=0.1)


async def test_pong_in_the_same_tick_as_its_ping_counts(
    serve: Any, deaf: Any, heard: Heard, idle_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every clock ticks as often as a socket on this machine is answered."""
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: float(int(idle_clock.now())))
    peer = await deaf(await serve(MediaReceiver(heard, bearer_tokens=None, heartbeat=10.0)))
    await peer.send_json(START)
    for _ in range(3):
        message = await peer.receive()
        assert message.type is aiohttp.WSMsgType.PING
        await peer.pong(message.data)
    await peer.send_json({"event": "stop"})
    assert (await heard.end()).end_reason is EndReason.STOPPED


async def test_silent_peer_that_sends_pongs_is_kept(serve: Any, deaf: Any, dial: Any, heard: Heard) -> None:
    """Each silence is asked about anew, on each of the sockets."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None, heartbeat=0.05))
    peer, other = await deaf(url), await dial(url)
    await peer.send_json(START)
    await other.send_json(START)
    await until(lambda: len(heard.sessions) == 2)
    await other.close()
    for _ in range(3):
        message = await peer.receive()
        assert message.type is aiohttp.WSMsgType.PING
        await peer.pong(message.data)
    await peer.send_json({"event": "stop"})
    ended = {(await heard.end()).end_reason, (await heard.end()).end_reason}
    assert ended == {EndReason.CLOSED, EndReason.STOPPED}


async def flood(session: StreamSession) -> None:
    """Send until nothing more is taken."""
    while True:
        await session.playback._send("media", media={"payload": "A" * 60_000})


async def test_peer_that_stops_reading_does_not_block_its_stream(serve: Any, deaf: Any, heard: Heard) -> None:
    """Dropping a silent peer fails the task that waits to send to it, and leaves nothing behind."""
    told: list[TransportError] = []

    async def handler(session: StreamSession) -> None:
        sending = asyncio.create_task(flood(session))
        await heard(session)
        with pytest.raises(TransportError) as caught:
            await sending
        told.append(caught.value)

    receiver = MediaReceiver(handler, bearer_tokens=None, bidirectional=True, heartbeat=0.05)
    peer = await deaf(await serve(receiver))
    await peer.send_json(START)
    assert (await heard.end()).end_reason is EndReason.LOST
    await until(lambda: not receiver.sessions)
    assert told


async def test_close_frame_without_reply_is_given_up_after_two_seconds(
    serve: Any, deaf: Any, idle_clock: Clock
) -> None:
    ended: list[float] = []

    async def handler(_: StreamSession) -> None:
        ended.append(idle_clock.now())

    receiver = MediaReceiver(handler, bearer_tokens=None)
    peer = await deaf(await serve(receiver))
    await peer.send_json(START)
    await until(lambda: bool(ended) and not receiver.sessions)
    assert idle_clock.now() - ended[0] == pytest.approx(2.0, abs=0.1)


async def test_close_frame_that_is_not_read_is_given_up(serve: Any, deaf: Any, idle_clock: Clock) -> None:
    """A handler that has enough is done, also where its peer takes nothing any more."""
    blocked: list[tuple[StreamSession, asyncio.Task[None]]] = []

    async def handler(session: StreamSession) -> None:
        sending = asyncio.create_task(flood(session))
        await asyncio.wait({sending}, timeout=0.5)
        blocked.append((session, sending))

    receiver = MediaReceiver(handler, bearer_tokens=None, bidirectional=True, heartbeat=None)
    peer = await deaf(await serve(receiver))
    await peer.send_json(START)
    await until(lambda: bool(blocked))
    ended = idle_clock.now()
    await until(lambda: not receiver.sessions)
    assert idle_clock.now() - ended == pytest.approx(3.0, abs=0.1)
    [(session, sending)] = blocked
    assert session.end_reason is EndReason.HANDLER_RETURNED
    with pytest.raises(TransportError):
        await sending


@pytest.mark.parametrize("begun", [False, True])
async def test_ping_whose_pong_cannot_be_sent_is_no_failure(
    serve: Any, deaf: Any, heard: Heard, caplog: pytest.LogCaptureFixture, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that asks and is gone before the answer has broken the connection, and no more."""

    async def gone(self: web.WebSocketResponse, message: bytes = b"") -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.WebSocketResponse, "pong", gone)
    receiver = MediaReceiver(heard, bearer_tokens=None)
    peer = await deaf(await serve(receiver))
    if begun:
        await peer.send_json(START)
    await peer.ping()
    if begun:
        assert (await heard.end()).end_reason is EndReason.LOST
    else:
        await until(lambda: "the connection broke" in caplog.text)
    reset(peer)
    assert "failed" not in caplog.text


async def test_failed_read_has_broken_the_connection(
    serve: Any, dial: Any, heard: Heard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def receive(_: web.WebSocketResponse) -> aiohttp.WSMessage:
        return aiohttp.WSMessage(aiohttp.WSMsgType.ERROR, OSError(), None)

    url = await serve(MediaReceiver(heard, bearer_tokens=None))
    monkeypatch.setattr(web.WebSocketResponse, "receive", receive)
    await dial(url)
    await until(lambda: "the connection broke" in caplog.text)
    assert heard.sessions == []


async def test_pong_that_is_unread_while_the_loop_is_blocked_counts(
    serve: Any, dial: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that was blocked looks once more before it gives a peer up."""
    receiver = MediaReceiver(heard, bearer_tokens=None, heartbeat=1000.0)
    peer = await dial(await serve(receiver))
    await peer.send_json(START)
    await until(lambda: bool(heard.sessions))
    [session], [connection] = heard.sessions, receiver._watchdog.connections
    monkeypatch.setattr(connections.Connection, "_ping", lambda _: asyncio.sleep(0))
    now = connection._received_at
    connection.check(now + 2000)
    connection.check(now + 10_000)
    assert session.end_reason is None
    connection._received_at = now + 10_000
    connection.check(now + 10_050)
    connection.check(now + 12_000)
    connection.check(now + 14_000)
    assert session.end_reason is None
    connection.check(now + 14_050)
    assert session.end_reason is EndReason.LOST
