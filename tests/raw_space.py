"""A Space as a raw socket: it counts what it received on each connection, and sends any bytes at any moment."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from attrs import define, field

VICTIM = "11111111-1111-4111-8111-111111111111"


def http(status: int, document: object = None, *, head: str = "", body: bytes | None = None) -> bytes:
    """Encode a response."""
    content = body if body is not None else b"" if document is None else json.dumps(document).encode()
    lines = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{head}\r\n"
    return lines.encode("latin-1") + content


@define(eq=False)
class Request:
    method: str
    path: str
    fields: dict[str, str]
    headers: dict[str, str] = field(factory=dict)

    @property
    def target(self) -> str:
        return self.path.partition("?")[0].split("/")[7]

    @property
    def target_key(self) -> str:
        return "call_sid" if "/Calls/" in self.path else "conference_sid"


@define(eq=False)
class RawConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[Request] = field(factory=list)
    closed: bool = False

    def push(self, data: bytes) -> None:
        """Put bytes into the client's kernel at once, before either end of the loop runs again."""
        self.writer.get_extra_info("socket")._sock.send(data)

    def encrypt(self, data: bytes) -> bytes:
        """Return the TLS record of these bytes, for `push` to send in pieces."""
        protocol = self.writer.transport._ssl_protocol  # type: ignore[attr-defined]
        protocol._sslobj.write(data)
        record: bytes = protocol._outgoing.read()
        return record


@define(eq=False)
class RawSpace:
    """Starts streams, rejects a second one of a name, and sends what `respond` returns.

    Attributes:
        respond: returns what to send for a request; by default what the API sends.
        on_connect: called with each connection, before anything is read from it.
    """

    respond: Callable[["RawSpace", RawConnection, Request], Awaitable[bytes]]
    on_connect: Callable[[RawConnection], Awaitable[None]] | None = None
    connections: list[RawConnection] = field(factory=list)
    running: dict[tuple[str, str | None], str] = field(factory=dict)
    url: str = ""

    @property
    def requests(self) -> list[Request]:
        return [request for connection in self.connections for request in connection.requests]

    def sids_of(self, target: str) -> list[str]:
        return [sid for (where, _), sid in self.running.items() if where == target]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = RawConnection(reader, writer)
        self.connections.append(connection)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            if self.on_connect is not None:
                await self.on_connect(connection)
            while True:
                request = await _read(reader)
                connection.requests.append(request)
                writer.write(await self.respond(self, connection, request))
                await writer.drain()
        connection.closed = True
        writer.close()

    def start(self, request: Request) -> dict[str, Any] | None:
        """Carry a start out; None if the name is taken."""
        name = request.fields.get("Name")
        if name is not None and (request.target, name) in self.running:
            return None
        sid = self.running[request.target, name or str(uuid4())] = str(uuid4())
        return {"sid": sid, "name": name, request.target_key: request.target, "status": "queued"}


async def as_documented(space: RawSpace, _: RawConnection, request: Request) -> bytes:
    """Answer as the API does."""
    if request.method == "GET":
        return http(200, {"sid": request.target, "status": "in-progress"})
    if request.path.endswith("/Streams"):
        started = space.start(request)
        return http(200, started) if started is not None else http(422, {"errors": ["Duplicated stream name"]})
    return http(200, {"sid": request.path.rpartition("/")[2], request.target_key: request.target, "status": "stopped"})


async def _read(reader: asyncio.StreamReader) -> Request:
    line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    method, path, _ = line.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    form = parse_qs((await reader.readexactly(int(headers.get("content-length", 0)))).decode())
    return Request(method, path, {name: values[0] for name, values in form.items()}, headers)


@asynccontextmanager
async def raw_space(
    respond: Callable[[RawSpace, RawConnection, Request], Awaitable[bytes]] = as_documented,
    *,
    on_connect: Callable[[RawConnection], Awaitable[None]] | None = None,
    tls: ssl.SSLContext | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[RawSpace]:
    space = RawSpace(respond, on_connect)
    # asyncio sends small writes at once only on sockets that say that they are TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server = await asyncio.start_server(space.serve, sock=listener, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    space.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield space
    finally:
        server.close()
        for connection in space.connections:
            connection.writer.transport.abort()  # which waits for no peer, and for no paused reading
        await asyncio.sleep(0)
