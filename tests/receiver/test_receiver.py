"""Incoming audio sockets: authentication, sessions, and how they end."""

import asyncio
import json
import re
import socket
import struct
from base64 import b64encode
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import InvalidRequestError
from signalwire_streams.receiver import (
    DtmfEvent,
    EndReason,
    MarkEvent,
    MediaEvent,
    MediaReceiver,
    Overflow,
    StreamSession,
    UnknownEvent,
)
from tests.uvicorn_server import for_each_server as pytest_generate_tests  # noqa: F401  (a hook of pytest)

from .conftest import Heard, until

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]
START = {
    "event": "start",
    "sequenceNumber": "1",
    "start": {
        "streamSid": "stream-1",
        "tracks": ["inbound"],
        "customParameters": {"card": "hush"},
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
    },
}


def media(chunk: int, payload: bytes = b"\xff" * 160) -> dict[str, Any]:
    body = {"track": "inbound", "chunk": str(chunk), "timestamp": str(20 * (chunk - 1))}
    return {
        "event": "media",
        "sequenceNumber": str(chunk + 1),
        "media": {**body, "payload": b64encode(payload).decode()},
    }


async def begin(peer: aiohttp.ClientWebSocketResponse, **start: Any) -> None:
    await peer.send_json({"event": "connected", "protocol": "Call", "version": "0.2.0"})
    await peer.send_json({**START, "start": {**START["start"], **start}})  # type: ignore[dict-item]


async def test_handler_receives_events_in_order(heard: Heard, serve: Any, dial: Any) -> None:
    """The handler gets the start event, then the events in order, until the stream stops."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens="t")), "t")
    await begin(peer)
    await peer.send_json(media(1))
    await peer.send_json({"event": "dtmf", "dtmf": {"digit": "5"}})
    await peer.send_json({"event": "new"})
    await peer.send_json(media(2))
    await peer.send_json({"event": "stop", "sequenceNumber": "9"})

    session = await heard.end()

    assert [type(event) for event in heard.events] == [MediaEvent, DtmfEvent, UnknownEvent, MediaEvent]
    assert (session.stream_sid, session.end_reason) == ("stream-1", EndReason.STOPPED)
    assert session.start.custom_parameters == {"card": "hush"}
    assert (session.audio_format.encoding, session.audio_format.sample_rate) == ("audio/x-mulaw", 8000)
    statistics = session.statistics
    assert (statistics.tracks["inbound"].frames, statistics.unknown, statistics.malformed) == (2, 1, 0)
    assert (await peer.receive()).data == 1000


@pytest.mark.parametrize(
    ("tokens", "sent", "status"),
    [
        ("right", "right", 101),
        ("right", "wrong", 401),
        ("right", None, 401),
        (["old", "right"], "old", 101),
        (("old", "right"), "new", 401),
        ({"right"}, "right", 101),
        (lambda token: token == "right", "right", 101),
        (lambda token: token == "right", "wrong", 401),
        (lambda token: "yes", "wrong", 401),
        (None, None, 101),
        (None, "any", 101),
    ],
)
async def test_bearer_token_is_required(
    heard: Heard, serve: Any, dial: Any, tokens: Any, sent: str | None, status: int
) -> None:
    """A token is checked before the upgrade; without a valid one there is no WebSocket."""
    url = await serve(MediaReceiver(heard, bearer_tokens=tokens))
    if status == 101:
        peer = await dial(url, sent)
        await peer.close()
        return
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await dial(url, sent)
    assert caught.value.status == status


async def test_token_check_function_decides(heard: Heard, serve: Any, dial: Any) -> None:
    async def known(token: str) -> bool:
        await asyncio.sleep(0)
        return token == "right"

    url = await serve(MediaReceiver(heard, bearer_tokens=known))
    await (await dial(url, "right")).close()
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await dial(url, "wrong")


@pytest.mark.parametrize("tokens", ["", [""], [7], ["right", None]])
async def test_empty_tokens_are_rejected(heard: Heard, tokens: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a bearer token is empty or not a str"):
        MediaReceiver(heard, bearer_tokens=tokens)


async def test_handle_works_in_an_application(heard: Heard, dial: Any) -> None:
    """It serves next to the other routes of an application."""
    application = web.Application()
    application.router.add_get("/audio", MediaReceiver(heard, bearer_tokens=None).handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        peer = await dial(f"ws://127.0.0.1:{runner.addresses[0][1]}/audio")
        await begin(peer)
        await peer.close()
        assert (await heard.end()).end_reason is EndReason.CLOSED
    finally:
        await runner.cleanup()


def reset(peer: aiohttp.ClientWebSocketResponse) -> None:
    transport = peer._response.connection.transport  # type: ignore[union-attr]
    assert transport is not None
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@pytest.mark.parametrize(
    ("how", "reason"),
    [("close", EndReason.CLOSED), ("going away", EndReason.CLOSED), ("too long", EndReason.UNREADABLE)],
)
async def test_end_reason_of_each_socket_end(heard: Heard, serve: Any, dial: Any, how: str, reason: EndReason) -> None:
    """Closing without a stop event is normal; invalid data has a reason of its own."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None, frame_limit=1000)))
    await begin(peer)
    await peer.send_json(media(1))
    if how == "too long":
        await peer.send_str("x" * 2000)
    else:
        await peer.close(code=1000 if how == "close" else 1001)
    session = await heard.end()
    assert len(heard.events) == 1
    assert session.end_reason is reason


@pytest.mark.server_owns("broken connections: it may report one as closed")
@pytest.mark.parametrize(("how", "reason"), [("reset", EndReason.LOST), ("no WebSocket", EndReason.UNREADABLE)])
async def test_end_reason_of_a_broken_socket(heard: Heard, serve: Any, dial: Any, how: str, reason: EndReason) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await begin(peer)
    await peer.send_json(media(1))
    await until(lambda: bool(heard.events))
    if how == "reset":
        reset(peer)
    else:
        peer._response.connection.transport.write(b"\xff" * 40)
    session = await heard.end()
    assert len(heard.events) == 1
    assert session.end_reason is reason


async def test_malformed_frames_are_counted(heard: Heard, serve: Any, dial: Any) -> None:
    """The stream continues after a malformed frame."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await begin(peer)
    for frame in ("no JSON", '{"event": "media", "media": {"payload": "!"}}', "[]"):
        await peer.send_str(frame)
    await peer.send_bytes(json.dumps(media(1)).encode())
    await peer.close()
    session = await heard.end()
    assert session.statistics.malformed == 3
    assert len(heard.events) == 1


@pytest.mark.parametrize("first", ["nothing", "nonsense", "close"])
async def test_socket_without_start_event_is_closed(
    heard: Heard, serve: Any, dial: Any, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that sends no start event in time, or invalid data, is closed; the handler is not called."""
    patience = 0.01 if first == "nothing" else 5.0
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None, start_timeout=patience)))
    if first == "nonsense":
        await peer.send_str("hush")
    elif first == "close":
        await peer.close()
        assert heard.sessions == []
        return
    assert (await peer.receive()).data == 1008
    assert heard.sessions == []
    assert "no stream started on it" in caplog.text
    assert "hush" not in caplog.text


async def test_slow_handler_loses_oldest_audio(serve: Any, dial: Any) -> None:
    """Memory is bounded, dropped audio is counted, keys are kept, and other streams are not affected."""
    go_on, ended = asyncio.Event(), asyncio.Queue[tuple[StreamSession, list[Any]]]()

    async def slow(session: StreamSession) -> None:
        if session.stream_sid == "slow":
            await go_on.wait()
        ended.put_nowait((session, [event async for event in session]))

    url = await serve(MediaReceiver(slow, bearer_tokens=None, max_queue=10))
    slow_peer, quick_peer = await dial(url), await dial(url)
    await begin(slow_peer, streamSid="slow")
    await begin(quick_peer, streamSid="quick")
    await slow_peer.send_json({"event": "dtmf", "dtmf": {"digit": "1"}})
    for chunk in range(1, 101):
        await slow_peer.send_json(media(chunk))
    await quick_peer.send_json(media(1))
    await quick_peer.close()
    quick, events = await ended.get()
    assert (quick.stream_sid, len(events)) == ("quick", 1)
    await slow_peer.close()
    go_on.set()
    session, events = await ended.get()
    assert [type(event) for event in events] == [DtmfEvent, *[MediaEvent] * 10]
    assert events[-1].chunk == 100
    assert session.statistics.tracks["inbound"].dropped == 90
    assert session.end_reason is EndReason.CLOSED


async def test_slow_handler_closes_stream_with_overflow_close(serve: Any, dial: Any) -> None:
    """The handler still gets the queued events."""
    go_on, ended = asyncio.Event(), asyncio.Queue[tuple[StreamSession, list[Any]]]()

    async def slow(session: StreamSession) -> None:
        await go_on.wait()
        ended.put_nowait((session, [event async for event in session]))

    peer = await dial(await serve(MediaReceiver(slow, bearer_tokens=None, max_queue=3, overflow=Overflow.CLOSE)))
    await begin(peer)
    for chunk in range(1, 6):
        await peer.send_json(media(chunk))
    assert (await peer.receive()).data == 1013
    go_on.set()
    session, events = await ended.get()
    assert (session.end_reason, len(events)) == (EndReason.OVERFLOW, 3)
    assert session.statistics.tracks["inbound"].dropped == 1


async def test_failing_handler_ends_its_own_stream_only(
    serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged without audio and parameters; the other streams continue."""
    ended = asyncio.Queue[StreamSession]()

    async def fails(session: StreamSession) -> None:
        if session.stream_sid == "bad":
            ended.put_nowait(session)
            raise LookupError("no such tenant")
        async for _ in session:
            pass
        ended.put_nowait(session)

    url = await serve(MediaReceiver(fails, bearer_tokens=None))
    good, bad = await dial(url), await dial(url)
    await begin(good, streamSid="good")
    await begin(bad, streamSid="bad")
    assert (await bad.receive()).data == 1011
    assert (await ended.get()).end_reason is EndReason.HANDLER_FAILED
    assert "no such tenant" in caplog.text
    assert "hush" not in caplog.text
    await good.close()
    assert (await ended.get()).end_reason is EndReason.CLOSED


async def test_returning_handler_closes_stream(serve: Any, dial: Any) -> None:
    """When it returns, the stream's socket is closed."""
    sessions: list[StreamSession] = []

    async def one(session: StreamSession) -> None:
        sessions.append(session)
        async for _ in session:
            return

    peer = await dial(await serve(MediaReceiver(one, bearer_tokens=None)))
    await begin(peer)
    await peer.send_json(media(1))
    assert (await peer.receive()).data == 1000
    assert sessions[0].end_reason is EndReason.HANDLER_RETURNED


async def test_aclose_lets_streams_finish(heard: Heard, serve: Any, dial: Any) -> None:
    """New streams are rejected, open ones may continue until the deadline."""
    receiver = MediaReceiver(heard, bearer_tokens=None)
    url = await serve(receiver)
    peer = await dial(url)
    await begin(peer)
    await until(lambda: bool(receiver.sessions))
    closing = asyncio.create_task(receiver.aclose(10))
    await asyncio.sleep(0)
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await dial(url)
    assert caught.value.status == 503
    await peer.send_json(media(1))
    await peer.send_json({"event": "stop"})
    assert (await peer.receive()).data == 1000
    assert (await heard.end()).end_reason is EndReason.STOPPED
    await closing
    assert receiver.sessions == set()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_aclose_ends_streams_at_the_deadline(
    serve: Any, dial: Any, stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the deadline streams are closed with 1001, even if a handler ignores that."""
    monkeypatch.setattr("signalwire_streams.receiver._media_receiver._GRACE", 0.01)
    sessions: list[StreamSession] = []

    async def handler(session: StreamSession) -> None:
        sessions.append(session)
        async for _ in session:
            pass
        if stubborn:
            await asyncio.Event().wait()

    async with MediaReceiver(handler, bearer_tokens=None) as receiver:
        peer = await dial(await serve(receiver))
        await begin(peer)
        await until(lambda: bool(sessions))
        closed = asyncio.create_task(peer.receive())
        await receiver.aclose(0)
    assert (await closed).data == 1001
    assert sessions[0].end_reason is EndReason.SHUTDOWN


async def test_receiver_without_handler_rejects_sockets(serve: Any, dial: Any) -> None:
    """It only receives the streams that it opens."""
    url = await serve(MediaReceiver())
    for token in (None, "any"):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await dial(url, token)


async def test_handler_and_tokens_must_fit(heard: Heard) -> None:
    """A handler without tokens, or tokens without a handler, are rejected."""
    nobodies: list[Any] = [(), [], set()]
    for nobody in nobodies:
        with pytest.raises(InvalidRequestError, match="a handler needs bearer_tokens"):
            MediaReceiver(heard, bearer_tokens=nobody)
    with pytest.raises(InvalidRequestError, match="without a handler"):
        MediaReceiver(bearer_tokens="token")
    with pytest.raises(InvalidRequestError, match="without a handler"):
        MediaReceiver(bearer_tokens=None)


async def test_pending_socket_does_not_delay_aclose(heard: Heard, serve: Any, dial: Any) -> None:
    """A socket without a start event is closed with 1001 when the receiver closes."""
    receiver = MediaReceiver(heard, bearer_tokens=None, start_timeout=600)
    peer = await dial(await serve(receiver))
    closing = asyncio.ensure_future(receiver.aclose())
    assert (await peer.receive()).data == aiohttp.WSCloseCode.GOING_AWAY
    await closing
    assert heard.sessions == []


async def test_rejected_upgrades_are_counted(heard: Heard, serve: Any, dial: Any) -> None:
    receiver = MediaReceiver(heard, bearer_tokens="right")
    url = await serve(receiver)
    for token in ("wrong", None):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await dial(url, token)
    await dial(url, "right")
    assert receiver.rejected_upgrades == 2


@pytest.mark.server_owns("addresses")
async def test_serve_supports_ipv6(heard: Heard, serve: Any, dial: Any) -> None:
    """The address is in brackets."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), host="::1", ssl_context=None)
    assert url.startswith("ws://[::1]:")
    await dial(url)


@pytest.mark.parametrize(
    ("frame", "limit"),
    [(b"\x81\x7e\x01\x00" + b"x" * 256, 100), (b"\x81\x02\xff\xff", 1000), (b"\xc1\x02{}", 1000), (b"\x83\x00", 1000)],
    ids=["too long", "no utf-8", "reserved bits", "reserved opcode"],
)
@pytest.mark.server_owns("frames that are invalid")
async def test_invalid_first_websocket_frame_is_logged_once(
    heard: Heard, serve: Any, caplog: pytest.LogCaptureFixture, frame: bytes, limit: int
) -> None:
    """It is logged in one line, like any other failed start."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None, frame_limit=limit))
    port = int(url.rsplit(":", 1)[1].strip("/"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    head, body = (frame[:4], frame[4:]) if frame[1] == 0x7E else (frame[:2], frame[2:])
    writer.write(bytes([head[0], head[1] | 0x80]) + head[2:] + bytes(4) + body)  # masked with nothing
    await reader.read()
    writer.close()
    [record] = [record for record in caplog.records if record.name.startswith("signalwire_streams")]
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("no stream started on it: the received data is not a WebSocket message")
    assert not [record for record in caplog.records if record.name == "aiohttp.server"]
    assert heard.sessions == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_queue": 0}, "max_queue must be a whole number of 1 or more"),
        ({"max_queue": "5"}, "max_queue must be a whole number"),
        ({"max_queue_bytes": 0}, "max_queue_bytes must be a whole number of 1 or more"),
        ({"frame_limit": 0}, "frame_limit must be a whole number"),
        ({"start_timeout": -1}, "start_timeout must be a number of seconds above 0"),
        ({"heartbeat": -1}, "heartbeat must be a number of seconds above 0"),
        ({"bidirectional": "no"}, "bidirectional must be True or False, not 'no'"),
        ({"overflow": "shut"}, "overflow 'shut' is unknown: write one of"),
        ({"byte_order": "middle"}, "byte_order 'middle' is unknown: write 'little' or 'big'"),
        ({"bearer_tokens": 5}, "bearer_tokens is an int: pass a token, several, or a function"),
        ({"handler": "x"}, "the handler is a str: write async def handler"),
        ({"bearer_tokens": b"t"}, "bearer_tokens is a bytes: pass a token"),
        ({"bearer_tokens": ["t", ""]}, "a bearer token is empty"),
        ({"bearer_tokens": "\ud800"}, "a bearer token contains whitespace or non-ASCII characters"),
        ({"bearer_tokens": "t\n"}, "a bearer token contains whitespace or non-ASCII characters"),
        ({"bearer_tokens": ["t", " t "]}, "a bearer token contains whitespace or non-ASCII characters"),
        ({"bearer_tokens": "\u00e9"}, "a bearer token contains whitespace or non-ASCII characters"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any], match: str) -> None:
    """They are rejected when the receiver is created, not when the first stream arrives."""

    async def handler(session: StreamSession) -> None:
        raise AssertionError

    with pytest.raises(InvalidRequestError, match=match):
        MediaReceiver(**({"handler": handler, "bearer_tokens": "t"} | settings))  # type: ignore[arg-type]


def test_overflow_is_accepted_as_a_string() -> None:
    receiver = MediaReceiver(overflow="close", heartbeat=None)  # type: ignore[arg-type]
    assert receiver._queue_limits.overflow is Overflow.CLOSE


async def test_too_many_keys_close_stream(serve: Any, dial: Any) -> None:
    """Keys are not dropped, and they do not fill the memory either."""
    ended = asyncio.Queue[StreamSession]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait(session)

    peer = await dial(await serve(MediaReceiver(slow, bearer_tokens=None, max_queue=5)))
    await peer.send_json(START)
    for number in range(6):
        await peer.send_json({"event": "dtmf", "dtmf": {"digit": str(number)}})
    session = await ended.get()
    assert session.end_reason is EndReason.OVERFLOW
    assert [event.digit async for event in session if isinstance(event, DtmfEvent)] == list("01234")
    assert "digit" not in repr(session)


async def test_unknown_events_are_dropped_before_they_fill_the_memory(serve: Any, dial: Any) -> None:
    go_on, ended = asyncio.Event(), asyncio.Queue[list[Any]]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait([event async for event in session])

    peer = await dial(await serve(MediaReceiver(slow, bearer_tokens=None, max_queue=3)))
    await peer.send_json(START)
    for number in range(10):
        await peer.send_json({"event": "weather", "degrees": number})
    await peer.send_json({"event": "stop"})
    events = await ended.get()
    assert [event.document["degrees"] for event in events] == [7, 8, 9]
    assert not go_on.is_set()


async def test_large_events_are_dropped_before_they_fill_the_memory(serve: Any, dial: Any) -> None:
    """An event's parts take more memory than its text: 500 of 64 KiB took 760 MB."""
    ended = asyncio.Queue[tuple[StreamSession, int]]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait((session, len([event async for event in session])))

    large = json.dumps({"event": "weather", "a": [[]] * 16_000})
    peer = await dial(await serve(MediaReceiver(slow, bearer_tokens=None)))
    await peer.send_json(START)
    for _ in range(20):
        await peer.send_str(large)
    await peer.send_json({"event": "stop"})
    session, waiting = await ended.get()
    assert session.statistics.unknown == 20
    assert waiting <= 2


async def test_long_track_names_are_dropped_before_they_fill_the_memory(serve: Any, dial: Any) -> None:
    """500 audio events whose tracks have 64,000 letters took 129 MB, and so did their names in the statistics."""
    ended = asyncio.Queue[tuple[StreamSession, int]]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait((session, len([event async for event in session])))

    receiver = MediaReceiver(slow, bearer_tokens=None, max_queue_bytes=1_000_000)
    peer = await dial(await serve(receiver))
    await peer.send_json(START)
    for number in range(20):
        frame = {"event": "media", "media": {"track": f"{number}" + "a" * 60_000, "payload": "AAAA"}}
        await peer.send_json(frame)
    await peer.send_json({"event": "stop"})
    session, waiting = await ended.get()
    assert waiting == 5
    assert list(session.statistics.tracks) == ["others"]
    assert session.statistics.tracks["others"].dropped == 15


async def test_long_track_names_before_the_start_are_bounded(
    heard: Heard, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    for _ in range(20):
        await peer.send_json({"event": "media", "media": {"track": "a" * 60_000, "payload": "AAAA"}})
    assert (await peer.receive()).data == 1008
    assert "too many frames arrived before the start event" in caplog.text


@pytest.mark.parametrize(("size", "reason"), [(0, EndReason.STOPPED), (1, EndReason.UNREADABLE)])
async def test_frame_limit_is_the_largest_message(
    heard: Heard, serve: Any, dial: Any, size: int, reason: EndReason
) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None, frame_limit=1000)))
    await peer.send_json(START)
    frame = '{"event": "x", "a": "%s"}'
    await peer.send_str(frame % ("a" * (1000 + size - len(frame) + 2)))
    await peer.send_json({"event": "stop"})
    assert (await heard.end()).end_reason is reason


async def test_large_keys_close_stream(serve: Any, dial: Any) -> None:
    """They are not dropped, but their memory is bounded."""
    ended = asyncio.Queue[StreamSession]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait(session)

    peer = await dial(await serve(MediaReceiver(slow, bearer_tokens=None, max_queue_bytes=10_000)))
    await peer.send_json(START)
    for _ in range(4):
        await peer.send_json({"event": "mark", "mark": {"name": "x" * 4000}})
    session = await ended.get()
    assert session.end_reason is EndReason.OVERFLOW
    assert len([event async for event in session]) == 3


async def test_large_audio_closes_stream_with_overflow_close(serve: Any, dial: Any) -> None:
    ended = asyncio.Queue[StreamSession]()

    async def slow(session: StreamSession) -> None:
        await session.wait_closed()
        ended.put_nowait(session)

    receiver = MediaReceiver(slow, bearer_tokens=None, max_queue_bytes=10_000, overflow=Overflow.CLOSE)
    peer = await dial(await serve(receiver))
    await peer.send_json(START)
    for chunk in range(1, 5):
        await peer.send_json(media(chunk, bytes(4000)))
    session = await ended.get()
    assert session.end_reason is EndReason.OVERFLOW
    assert len([event async for event in session]) == 3
    assert session.statistics.of("inbound").dropped == 1


async def test_events_before_the_start_are_delivered_after_it(heard: Heard, serve: Any, dial: Any) -> None:
    """Keys, marks, audio and unknown events in their order; unreadable frames are counted as later ones are."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await peer.send_str("no JSON")
    await peer.send_json({"event": "connected"})
    await peer.send_json({"event": "dtmf", "dtmf": {"digit": "1"}})
    await peer.send_str('{"event": "media", "media": {"payload": "!"}}')
    await peer.send_json({"event": "mark", "mark": {"name": "a"}})
    await peer.send_json(media(1))
    await peer.send_json({"event": "weather"})
    await peer.send_json(START)
    await peer.send_json(media(2))
    await peer.send_str("no JSON")
    await peer.send_json({"event": "stop"})

    session = await heard.end()
    assert [type(event) for event in heard.events] == [DtmfEvent, MarkEvent, MediaEvent, UnknownEvent, MediaEvent]
    assert (session.statistics.malformed, session.statistics.unknown) == (3, 1)
    assert session.statistics.of("inbound").frames == 2
    elapsed = [event.elapsed for event in heard.events if isinstance(event, MediaEvent)]
    assert elapsed[0] == 0.0
    assert elapsed[1] is not None
    assert elapsed[1] >= 0.0


@pytest.mark.parametrize("frame", [{"event": "dtmf", "dtmf": {"digit": "1"}}, media(1), {"event": "weather"}])
@pytest.mark.parametrize("bound", [{"max_queue": 5}, {"max_queue_bytes": 600}])
async def test_events_before_the_start_are_bounded(
    heard: Heard,
    serve: Any,
    dial: Any,
    frame: dict[str, Any],
    bound: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A peer that never sends a start event can't fill the memory."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None, **bound)))  # type: ignore[arg-type]
    for _ in range(6):
        await peer.send_json(frame)
    assert (await peer.receive()).data == 1008
    assert heard.sessions == []
    assert "too many frames arrived before the start event" in caplog.text


@pytest.mark.parametrize(("number", "told"), [(1, "1 frame could not be read"), (3, "3 frames could not be read")])
async def test_failed_start_reports_number_of_malformed_frames(
    heard: Heard, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture, number: int, told: str
) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    for _ in range(number):
        await peer.send_str("hush")
    await peer.close()
    await until(lambda: "could not be read" in caplog.text)
    assert f"it was closed before a stream started; {told}" in caplog.text
    assert "hush" not in caplog.text


async def test_bug_in_the_receiver_ends_session_as_failed(
    serve: Any, dial: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of this package is not reported as the handler's."""

    def broken(self: StreamSession, event: Any, now: float) -> bool:
        raise LookupError("no such row")

    monkeypatch.setattr(StreamSession, "_enqueue", broken)
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await peer.send_json(START)
    await peer.send_json({"event": "mark", "mark": {"name": "a"}})
    session = await heard.end()
    assert session.end_reason is EndReason.FAILED
    assert "the receiver failed for stream" in caplog.text


@pytest.mark.parametrize("sid", ["../outside", "a\nb", "", "x" * 101, None])
async def test_label_is_safe_for_any_sid(serve: Any, dial: Any, heard: Heard, sid: str | None) -> None:
    """The label is safe in a file name, whatever sid the peer sends."""
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await peer.send_json({"event": "start", "start": {"streamSid": sid}})
    await peer.send_json({"event": "stop"})
    session = await heard.end()
    assert re.fullmatch("stream-[0-9a-f]{16}", session.label)


async def test_label_is_the_sid_if_that_is_safe(serve: Any, dial: Any, heard: Heard) -> None:
    peer = await dial(await serve(MediaReceiver(heard, bearer_tokens=None)))
    await peer.send_json({"event": "start", "start": {"streamSid": "x" * 100}})
    await until(lambda: bool(heard.sessions))
    assert repr(heard.sessions[0]) == f"<StreamSession {'x' * 100}: running>"
    await peer.send_json({"event": "stop"})
    session = await heard.end()
    assert (session.label, repr(session)) == ("x" * 100, f"<StreamSession {'x' * 100}: stopped>")


async def test_token_check_that_ends_after_aclose_admits_nobody(heard: Heard, serve: Any, dial: Any) -> None:
    """A slow token check admits no stream after the receiver was closed."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def check(token: str) -> bool:
        asked.set()
        await answer.wait()
        return True

    receiver = MediaReceiver(heard, bearer_tokens=check)
    dialling = asyncio.ensure_future(dial(await serve(receiver), "t"))
    await asked.wait()
    await receiver.aclose()
    answer.set()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await dialling
