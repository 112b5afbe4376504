"""The Space's TCP connections: counted, and ended as gently or as rudely as a test wants."""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, Self, cast

from aiohttp import web
from attrs import define, field, frozen


@frozen
class Certificates:
    """An authority that exists for as long as this object does, and a server that it vouches for.

    It needs trustme, which ``signalwire-streams[cli]`` and ``signalwire-streams[pytest]`` bring along.

    Attributes:
        server: what a WebSocket or callback server shows.
        trust: what accepts it; give it to a `SimulatedSpace`.
        authority: the authority's certificate in PEM, for a Space in another process.
    """

    server: ssl.SSLContext = field(repr=False)
    trust: ssl.SSLContext = field(repr=False)
    authority: bytes = field(repr=False)

    @classmethod
    def make(cls, *hosts: str) -> Self:
        """Make them.

        Args:
            hosts: names and addresses of the server; this machine's own if left out.

        Raises:
            ModuleNotFoundError: trustme is not installed.
        """
        # It brings a cryptography library along, which nobody needs who has certificates of his own.
        import trustme  # noqa: PLC0415

        authority = trustme.CA()
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(hosts or ("localhost", "127.0.0.1", "::1"))).configure_cert(server)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        return cls(server, trust, authority.cert_pem.bytes())


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


# SO_LINGER on, zero seconds: close() then sends RST and drops what was not sent.
_NO_LINGER: Final = struct.pack("ii", 1, 0)
# aiohttp takes None for "no access log", and says so nowhere in its types.
_NO_ACCESS_LOG: Final = cast(logging.Logger, None)
# Longer than any test or benchmark; an idle connection is closed by whoever asks for it, not by a timer.
_KEEP_ALIVE_SECONDS: Final = 3600.0


def _reset(transport: asyncio.Transport) -> None:
    """Send RST at once.

    asyncio closes an aborted socket one turn of the loop later, and a request that is written in between would
    get further than it should. Putting /dev/null in the descriptor's place closes the socket now; asyncio then
    closes /dev/null.
    """
    endpoint = transport.get_extra_info("socket")
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
    if os.name == "posix" and endpoint.fileno() >= 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, endpoint.fileno(), inheritable=False)
        os.close(null)


class Connection(web.RequestHandler):
    """One HTTP connection: aiohttp's protocol, plus a number, its state, and the ways to end it."""

    __slots__ = ("_book", "_gone", "_wire", "busy", "number")

    def __init__(self, server: web.Server, book: "ConnectionBook", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server, loop=loop, access_log=_NO_ACCESS_LOG, keepalive_timeout=_KEEP_ALIVE_SECONDS, lingering_time=0.0
        )
        self._book = book
        self._gone: asyncio.Future[None] = loop.create_future()
        self._wire: asyncio.Transport | None = None
        self.busy: bool = False
        self.number: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Enter the book."""
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        self.number = self._book.entered(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Leave the book."""
        super().connection_lost(exc)
        self._wire = None
        self._book.left(self)
        if not self._gone.done():
            self._gone.set_result(None)

    async def start(self) -> None:
        """Serve requests until the connection ends."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._book.tasks.add(task)
        try:
            await super().start()
        finally:
            self._book.tasks.discard(task)

    async def wait_gone(self) -> None:
        """Wait until the connection is lost, by either side."""
        await asyncio.shield(self._gone)

    @property
    def ending(self) -> bool:
        """Whether the connection is lost or about to be."""
        return self._wire is None or self._wire.is_closing()

    def reset(self) -> None:
        """Send RST."""
        if self._wire is not None and not self._wire.is_closing():
            self._book.resets += 1
            _reset(self._wire)

    def send(self, data: bytes) -> None:
        """Send an answer; whoever has gone does not get it."""
        if self._wire is not None and not self._wire.is_closing():
            self._wire.write(data)

    def finish(self, data: bytes = b"") -> None:
        """Send the bytes as they are, then FIN.

        The FIN leaves now, and not when asyncio closes the socket one turn of the loop later: a request that is
        written in between would be answered by a reset.
        """
        if self._wire is not None and not self._wire.is_closing():
            self._wire.write(data)
            if self._wire.can_write_eof():
                with contextlib.suppress(OSError):  # the other end has reset the connection meanwhile
                    self._wire.write_eof()
            self._wire.close()

    def abort(self) -> None:
        """Drop the connection without ceremony."""
        if self._wire is not None:
            self._wire.abort()


class ResetOnConnect(asyncio.Protocol):
    """Answers a new connection with RST, before anything is read."""

    def __init__(self, book: "ConnectionBook") -> None:
        self._book = book

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and reset it."""
        self._book.opened += 1
        self._book.resets += 1
        _reset(cast(asyncio.Transport, transport))


@define(eq=False)
class ConnectionBook:
    """Every connection that is open, and how many there were; ``len()`` of it is how many are open now.

    Attributes:
        opened: connections accepted so far, those that were reset on connect included.
        resets: connections that the Space ended with RST.
        tasks: the tasks that serve the open connections.
    """

    opened: int = field(default=0, init=False)
    resets: int = field(default=0, init=False)
    tasks: "set[asyncio.Task[None]]" = field(factory=set, init=False)
    _open: dict[Connection, None] = field(factory=dict, init=False)
    _closing: bool = field(default=False, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def entered(self, connection: Connection) -> int:
        """Enter a connection and give its number; a Space that is closing drops it at once."""
        self.opened += 1
        self._open[connection] = None
        if self._closing:
            connection.abort()
        return self.opened

    def left(self, connection: Connection) -> None:
        """Take a connection out."""
        self._open.pop(connection, None)

    def idle(self) -> list[Connection]:
        """List the connections on which no request is being served."""
        return [connection for connection in self._open if not connection.busy and not connection.ending]

    def reset_idle(self) -> int:
        """Send RST on each idle connection, before this returns; give how many there were."""
        idle = self.idle()
        for connection in idle:
            connection.reset()
        return len(idle)

    def close_idle(self) -> int:
        """Send FIN on each idle connection, before this returns; return how many there were."""
        idle = self.idle()
        for connection in idle:
            connection.finish()
        return len(idle)

    async def close(self) -> None:
        """Drop every connection and wait until nothing serves any."""
        self._closing = True
        for connection in list(self._open):
            connection.abort()
        # A connection that the kernel has accepted needs these turns to reach `entered`, where it is dropped.
        for _ in range(3):
            await asyncio.sleep(0)
        if self.tasks:
            await asyncio.wait(self.tasks)
