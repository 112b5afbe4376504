"""The TCP connections to the Space: counted, and closed, reset or refused as a test needs."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from typing import Self, cast

from aiohttp import web
from attrs import field, frozen


@frozen
class Certificates:
    """A certificate authority that exists for as long as this object does, and a server certificate that it signed.

    Requires trustme, which ``signalwire-streams[cli]`` and ``signalwire-streams[pytest]`` install.

    Attributes:
        server: the context of a WebSocket or callback server.
        trust: the context of its clients; pass it to a `SimulatedSpace`.
        authority: the authority's certificate in PEM, for a Space in another process.
    """

    server: ssl.SSLContext = field(repr=False)
    trust: ssl.SSLContext = field(repr=False)
    authority: bytes = field(repr=False)

    @classmethod
    def make(cls, *hosts: str) -> Self:
        """Create an authority and a server certificate.

        Args:
            hosts: names and addresses of the server; this machine's own by default.

        Raises:
            ModuleNotFoundError: trustme is not installed.
        """
        import trustme  # noqa: PLC0415  (an extra, and a large one)

        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(hosts or ("localhost", "127.0.0.1", "::1"))).configure_cert(server)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        return cls(server, trust, authority.cert_pem.bytes())


def bind(host: str, port: int) -> socket.socket:
    """Return a socket to listen on. Until then the kernel refuses connections to it and keeps its port."""
    endpoint = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        endpoint.bind((host, port))
        endpoint.setblocking(False)
    except OSError:
        endpoint.close()
        raise
    return endpoint


_NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER for zero seconds: close() sends RST and drops what was not sent
_NO_ACCESS_LOG = cast(logging.Logger, None)  # aiohttp accepts None, which its types do not say
_KEEP_ALIVE_SECONDS = 3600.0  # longer than any test or benchmark: tests close idle connections, not a timer


def _reset(transport: asyncio.Transport) -> None:
    """Send RST at once.

    asyncio closes an aborted socket one turn of the loop later, and a request that is written in between would
    get further than it should. Replacing the descriptor by /dev/null closes the socket now; asyncio then closes
    /dev/null.
    """
    endpoint = transport.get_extra_info("socket")
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
    if os.name == "posix" and endpoint.fileno() >= 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, endpoint.fileno(), inheritable=False)
        os.close(null)


class Connection(web.RequestHandler):
    """An HTTP connection: aiohttp's protocol, with a number, its state, and the ways to end it."""

    __slots__ = ("_gone", "_registry", "_wire", "busy", "number")

    def __init__(self, server: web.Server, registry: "ConnectionRegistry", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server, loop=loop, access_log=_NO_ACCESS_LOG, keepalive_timeout=_KEEP_ALIVE_SECONDS, lingering_time=0.0
        )
        self._registry = registry
        self._gone: asyncio.Future[None] = loop.create_future()
        self._wire: asyncio.Transport | None = None
        self.busy: bool = False
        self.number: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        self.number = self._registry.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wire = None
        self._registry.discard(self)
        if not self._gone.done():
            self._gone.set_result(None)

    async def start(self) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._registry.tasks.add(task)
        try:
            await super().start()
        finally:
            self._registry.tasks.discard(task)

    async def wait_gone(self) -> None:
        await asyncio.shield(self._gone)

    @property
    def _writable(self) -> asyncio.Transport | None:
        return None if self._wire is None or self._wire.is_closing() else self._wire

    @property
    def is_idle(self) -> bool:
        return not self.busy and self._writable is not None

    def reset(self) -> None:
        if (wire := self._writable) is not None:
            self._registry.resets += 1
            _reset(wire)

    def send(self, data: bytes) -> None:
        if (wire := self._writable) is not None:
            wire.write(data)

    def finish(self) -> None:
        """Send FIN.

        It is sent now, and not when asyncio closes the socket one turn of the loop later: a request that is
        written in between would get a reset.
        """
        if (wire := self._writable) is not None:
            if wire.can_write_eof():
                with contextlib.suppress(OSError):  # the other end has reset the connection meanwhile
                    wire.write_eof()
            wire.close()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()


class ResetOnConnect(asyncio.Protocol):
    def __init__(self, registry: "ConnectionRegistry") -> None:
        self._registry = registry

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._registry.opened += 1
        self._registry.resets += 1
        _reset(cast(asyncio.Transport, transport))


class ConnectionRegistry:
    """The open connections; ``len()`` is their number.

    Attributes:
        opened: connections accepted so far, including those that were reset on connect.
        resets: connections that the Space ended with RST.
        tasks: the tasks that serve the open connections.
    """

    def __init__(self) -> None:
        self.opened: int = 0
        self.resets: int = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._open: dict[Connection, None] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> int:
        """Add a connection and return its number; a Space that is closing drops it at once."""
        self.opened += 1
        self._open[connection] = None
        if self._closing:
            connection.abort()
        return self.opened

    def discard(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def idle(self) -> list[Connection]:
        """Return the connections on which no request is being served."""
        return [connection for connection in self._open if connection.is_idle]

    def reset_idle(self) -> int:
        """Send RST on each idle connection before this returns; return their number."""
        idle = self.idle()
        for connection in idle:
            connection.reset()
        return len(idle)

    def close_idle(self) -> int:
        """Send FIN on each idle connection before this returns; return their number."""
        idle = self.idle()
        for connection in idle:
            connection.finish()
        return len(idle)

    async def close(self) -> None:
        """Drop every connection and wait for the tasks that serve them."""
        self._closing = True
        for connection in list(self._open):
            connection.abort()
        # A connection that the kernel has accepted needs these turns to reach `add`, where it is dropped.
        for _ in range(3):
            await asyncio.sleep(0)
        if self.tasks:
            await asyncio.wait(self.tasks)
