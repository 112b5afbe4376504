"""What one would have written oneself with the websockets library."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from benchmarks.hearing.by_hand import Conversation
from benchmarks.hearing.hall import Hall, heard


@heard
@asynccontextmanager
async def websockets(hall: Hall) -> AsyncIterator[int]:
    """Serve with its asyncio server."""

    async def audio(connection: ServerConnection) -> None:
        with Conversation(hall) as conversation:
            try:
                async for message in connection:
                    conversation.take(message)
            except ConnectionClosedError:
                return

    async with serve(audio, "127.0.0.1", 0) as server:
        yield next(iter(server.sockets)).getsockname()[1]
