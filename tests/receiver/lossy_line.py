"""A TCP line between a Space and a receiver, which breaks in the ways in which lines do."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from yarl import URL

_RESET = struct.pack("ii", 1, 0)


class LossyLine:
    """Passes on what a Space and a receiver send each other.

    Attributes:
        url: leads to the receiver.
        is_refusing: whether new connections are reset at once.
        opened: number of connections so far.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_refusing = False
        self.opened = 0
        self._receiver = URL(url)
        self._pumps: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        self.opened += 1
        if self.is_refusing:
            self.reset()
            return
        there, receiver = await asyncio.open_connection(self._receiver.host, self._receiver.port)
        self._ends.add(receiver)
        pumps = [asyncio.create_task(_pump(*ends)) for ends in ((reader, receiver), (there, writer))]
        self._pumps.update(pumps)
        with suppress(asyncio.CancelledError):
            await asyncio.wait(pumps)

    def freeze(self) -> None:
        """Pass on nothing more over the connections that are open, and tell neither end."""
        for pump in self._pumps:
            pump.cancel()
        self._pumps.clear()

    def reset(self) -> None:
        """Reset the connections that are open, at both ends."""
        for end in self._ends:
            with suppress(OSError):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()
        self._ends.clear()

    async def close(self) -> None:
        pumps = set(self._pumps)
        self.reset()
        self.freeze()
        if pumps:
            await asyncio.wait(pumps)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def lossy_line(url: str) -> AsyncIterator[LossyLine]:
    """Open a line to the receiver that is at a URL."""
    line = LossyLine(url)
    server = await asyncio.start_server(line.connect, "127.0.0.1", 0)
    line.url = str(URL(url).with_port(server.sockets[0].getsockname()[1]))
    try:
        yield line
    finally:
        await line.close()
        server.close()
        await server.wait_closed()
