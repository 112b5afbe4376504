"""What one would have written oneself with aiohttp and ``json``."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Self

from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler

from benchmarks.hearing.hall import Ear, Hall, Receiver, heard
from benchmarks.hearing.speaking import OCTETS


class Conversation:
    """What one does with a frame when one has no library for it."""

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._ear: Ear | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, text: str | bytes) -> None:
        """Read a frame, and hand its audio on."""
        frame: dict[str, Any] = json.loads(text)
        if frame["event"] == "media":
            media = frame["media"]
            assert self._ear is not None
            self._ear.hear(int(media["timestamp"]), b64decode(media["payload"]))
        elif frame["event"] == "start":
            self._ear = self._stack.enter_context(self._hall.ear(frame["start"]["customParameters"]))


class Deaf(Conversation):
    """Takes what aiohttp hands over, and reads none of the audio: what is left is the cost of the socket."""

    def take(self, text: str | bytes) -> None:
        """Count a frame."""
        if self._ear is None:
            super().take(text)
        else:
            self._hall.frames += 1
            self._hall.octets += OCTETS


def _route(conversation: Callable[[Hall], Conversation]) -> Receiver:
    @asynccontextmanager
    async def serve(hall: Hall) -> AsyncIterator[int]:
        async def audio(request: web.Request) -> web.StreamResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            with conversation(hall) as taking:
                async for message in socket:
                    if message.type is WSMsgType.TEXT:
                        taking.take(message.data)
            return socket

        async with _served(audio) as port:
            yield port

    return serve


@asynccontextmanager
async def _served(handler: Handler) -> AsyncIterator[int]:
    """Serve a route of an aiohttp application."""
    application = web.Application()
    application.router.add_get("/", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


aiohttp = heard(_route(Conversation))
deaf = heard(_route(Deaf))
