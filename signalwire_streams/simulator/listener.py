"""The Space's listening socket: opened, refusing for a while on the same port, closed."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from attrs import define, field

__all__ = ["Listener"]

# A client that opens a thousand connections at once is not to wait for SYN retries.
_BACKLOG: Final = 2048


@define(eq=False)
class Listener:
    """Accepts connections for a protocol factory."""

    _factory: Callable[[], asyncio.BaseProtocol]
    _server: asyncio.Server | None = field(default=None, init=False)

    async def open(self, host: str, port: int) -> int:
        """Listen, and give the port."""
        endpoint = _bind(host, port)
        await self.listen(endpoint)
        chosen: int = endpoint.getsockname()[1]
        return chosen

    async def listen(self, endpoint: socket.socket) -> None:
        """Listen on a socket that is bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._factory, sock=endpoint, backlog=_BACKLOG)

    def refuse(self, host: str, port: int) -> socket.socket:
        """Stop listening but keep the port.

        A socket that is bound and does not listen has its connections refused by the kernel, and nobody else can be
        given the port meanwhile. `listen` takes it up again.
        """
        self.stop()
        return _bind(host, port)

    def stop(self) -> None:
        """Stop listening; open connections stay."""
        if self._server is not None:
            self._server.close()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed; the open connections must be gone."""
        if self._server is not None:
            await self._server.wait_closed()


def _bind(host: str, port: int) -> socket.socket:
    endpoint = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        endpoint.bind((host, port))
        endpoint.setblocking(False)
    except OSError:
        endpoint.close()
        raise
    return endpoint
