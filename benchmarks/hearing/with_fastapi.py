"""What one would have written oneself with FastAPI, served by uvicorn with what its "standard" extra brings."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket
from uvicorn import Config, Server

from benchmarks.hearing.by_hand import Conversation
from benchmarks.hearing.hall import Hall, heard


@heard
@asynccontextmanager
async def fastapi(hall: Hall) -> AsyncIterator[int]:
    """Serve a route of a FastAPI application, on the loop that runs already."""

    async def audio(websocket: WebSocket) -> None:
        await websocket.accept()
        with Conversation(hall) as conversation:
            async for text in websocket.iter_text():
                conversation.take(text)

    application = FastAPI()
    application.add_api_websocket_route("/", audio)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = Server(Config(application, log_level="error", access_log=False, backlog=1024))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
