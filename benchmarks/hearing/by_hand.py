"""What one would have written oneself with aiohttp and ``json``."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Self

from aiohttp import WSMsgType, web

from benchmarks.hearing.hall import Ear, Hall, heard


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


@heard
@asynccontextmanager
async def aiohttp(hall: Hall) -> AsyncIterator[int]:
    """Serve a route of an aiohttp application."""

    async def audio(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with Conversation(hall) as conversation:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    conversation.take(message.data)
        return socket

    application = web.Application()
    application.router.add_get("/", audio)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
