"""WebSocket URLs on loopback without TLS, and invalid messages of the servers there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from signalwire_streams.simulator import Silence

from .peer import simulated

Listen = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def listening(listen: Listen, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve a WebSocket on loopback, without TLS."""

    async def upgrade(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await listen(socket)
        return socket

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/", upgrade)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        yield f"ws://{host}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_ws_url_on_loopback_is_dialled_if_allowed(host: str) -> None:
    async def listen(socket: web.WebSocketResponse) -> None:
        ended.set_result([message.json()["event"] async for message in socket])

    ended = asyncio.get_running_loop().create_future()
    async with (
        listening(listen, host) as url,
        simulated(audio=Silence(seconds=0.1), real_time=False, allow_ws=True) as peer,
    ):
        assert (await peer.start(Url=url, Track="inbound_track")).status == 200
        assert peer.space.streams[0].url == url
        async with asyncio.timeout(10):
            events = await ended
    assert events == ["connected", "start", *["media"] * 5, "stop"]


@pytest.mark.parametrize("odd", ["[" * 100_000, '{"a":' * 100_000, b"\xff", "9" * 5_000])
async def test_invalid_message_is_ignored(odd: str | bytes) -> None:
    """The Space continues to read: a later mark is returned."""

    async def listen(socket: web.WebSocketResponse) -> None:
        await socket.receive()
        sid = (await socket.receive_json())["start"]["streamSid"]
        await (socket.send_str(odd) if isinstance(odd, str) else socket.send_bytes(odd))
        await socket.send_json({"event": "mark", "streamSid": sid, "mark": {"name": "after"}})
        names = [message.json() async for message in socket if '"mark"' in message.data]
        ended.set_result(names[0]["mark"]["name"])

    ended = asyncio.get_running_loop().create_future()
    async with (
        listening(listen) as url,
        simulated(audio=Silence(seconds=0.2), allow_ws=True, bidirectional=True) as peer,
    ):
        await peer.start(Url=url)
        async with asyncio.timeout(10):
            assert await ended == "after"
        assert peer.space.streams[0].ignored_messages == 1


@pytest.mark.parametrize(
    ("allow_ws", "url"),
    [
        (False, "ws://127.0.0.1:80/"),
        (True, "ws://rx.example.com/"),
        (True, "ws://127.0.0.1.example.com/"),
        (True, "ws://127.0.0.1/?a=b"),
        (True, "http://127.0.0.1/"),
        (True, "ws://[127.0.0.1/"),
    ],
)
async def test_other_ws_urls_are_rejected(allow_ws: bool, url: str) -> None:
    async with simulated(allow_ws=allow_ws) as peer:
        assert (await peer.start(Url=url)).status == 422
