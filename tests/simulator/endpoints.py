"""WebSocket endpoints on loopback, good and broken, for the caller that tests them."""

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web

FRAME = b"\x55" * 160


class Endpoint:
    """One socket of an endpoint, and the messages that it has read."""

    def __init__(self, socket: web.WebSocketResponse, request: web.BaseRequest) -> None:
        self.socket = socket
        self.headers = request.headers
        self.messages: list[Any] = []
        self.sid = ""

    async def read(self) -> Any:
        """Return the next message; None if the socket is closed."""
        message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            return None
        self.messages.append(message.json())
        return self.messages[-1]

    async def until(self, event: str, count: int = 1) -> Any:
        """Read until an event has come so many times, or the socket is closed."""
        while (message := await self.read()) is not None:
            count -= message["event"] == event
            if not count:
                break
        return message

    async def until_start(self) -> None:
        self.sid = (await self.until("start"))["start"]["streamSid"]

    async def send(self, event: str, **body: Any) -> None:
        await self.socket.send_json({"event": event, "streamSid": self.sid, **body})

    async def play(self, *payloads: bytes) -> None:
        for payload in payloads:
            await self.send("media", media={"payload": b64encode(payload).decode()})

    async def mark(self, name: str = "end") -> None:
        await self.send("mark", mark={"name": name})


Behaviour: TypeAlias = Callable[[Endpoint], Awaitable[None]]


@asynccontextmanager
async def serving(
    behaviour: Behaviour, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[Endpoint]]]:
    """Serve an endpoint; yield its URL, and its sockets as they come."""
    sockets: list[Endpoint] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sockets.append(Endpoint(socket, request))
        await behaviour(sockets[-1])
        return socket

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    try:
        yield f"{'ws' if ssl_context is None else 'wss'}://127.0.0.1:{runner.addresses[0][1]}/audio", sockets
    finally:
        await runner.cleanup()


async def answer(there: Endpoint, *, frames: int = 25, after: int = 55) -> None:
    """Answer the caller when he has spoken for a second, and wait for the end: a good endpoint."""
    await there.until_start()
    await there.until("media", after)
    await there.play(*[FRAME] * frames)
    await there.mark()
    await there.until("mark")
    await there.until("stop")
