"""HTTP server of a receiver. It limits the connections without a stream, so slow clients cannot exhaust it.

aiohttp's own sites let asyncio accept connections. asyncio accepts as many as come, logs one error for each failed
accept when the process runs out of file descriptors, and leaves a connection in its TLS handshake to a timeout of
60 seconds. So this server accepts connections itself.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from ssl import SSLContext, SSLError
from typing import Any, TypeAlias

from aiohttp import http_exceptions, web

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import kind_of
from signalwire_streams.receiver._aiohttp_socket import CLOSE_TIMEOUT, reset

_LOG = logging.getLogger("signalwire_streams.receiver")
_INTERVAL = 60.0


class RateLimitedLog:
    """Logs at most `burst` warnings a minute, and counts the others."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._began = float("-inf")
        self._logged = self._suppressed = 0

    def warning(self, text: str, *values: object) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._began >= _INTERVAL:
            if self._suppressed:
                text, values = text + " (and %d more such lines since the last one)", (*values, self._suppressed)
            self._began, self._logged, self._suppressed = now, 0, 0
        if self._logged < self._burst:
            self._logged += 1
            _LOG.warning(text, *values)
        else:
            self._suppressed += 1


_HTTP_LOG = logging.getLogger("signalwire_streams.receiver.http")

_BACKLOG = 512  # connections that the kernel keeps until they are accepted
_MIN_AGE = 0.5  # seconds that a connection has at least: three round trips of a slow network
_ACCEPT_RETRY = 0.2  # seconds until the next accept, if one failed and there was no connection to close
_MAX_HEAD = 64 * 1024  # bytes of a request's head; aiohttp limits only its lines, which together may be a megabyte
_HEAD_END = b"\r\n\r\n"
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_MAX_PENDING = 2_048
_DEFAULT_PENDING = 256  # if the number of file descriptors is unknown


def default_max_pending() -> int:
    """Return half of the file descriptors that the process may open, at most 2,048."""
    try:
        import resource  # noqa: PLC0415  (Windows has no such module)
    except ImportError:
        return _DEFAULT_PENDING
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_PENDING if soft == resource.RLIM_INFINITY else max(1, min(_MAX_PENDING, soft // 2))


class _MalformedRequestFilter(logging.Filter):
    """Drops the traceback that aiohttp logs at ERROR for each malformed request, which quotes what the client sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, http_exceptions.HttpProcessingError):
            _LOG.debug("rejected a malformed request: HTTP %d", error.code)
            return False
        return True


_HTTP_LOG.addFilter(_MalformedRequestFilter())


class Slot:
    """A connection's place among those without a stream. This base class, for your own server, limits nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()  # set when the connection is closed

    def admit(self) -> None:
        """Called when the connection has presented a valid token."""

    def release(self) -> None:
        """Called when a stream starts on the connection."""


Respond: TypeAlias = Callable[[web.BaseRequest, Slot], Awaitable[web.StreamResponse]]


class _Connection(Slot, asyncio.Protocol):
    """An accepted connection. It is pending, in one of two groups, until it carries a stream or has ended.

    It has ended when its socket is closed and its request handler has returned, so a client that hangs up while its
    token is being checked does not free a slot for another check.

    As a protocol it collects the head of the request; aiohttp gets the connection when the head is complete.
    """

    def __init__(self, server: "StreamServer", sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.accepted_at = asyncio.get_running_loop().time()
        self.opening: asyncio.Task[None]  # sets the transport, after the TLS handshake if there is one
        self.is_opening = False  # so the socket belongs to that task
        self.transport: Any = None  # an asyncio.Transport
        self.released = asyncio.Event()  # set when it is not pending any more
        self.is_handled = False
        self.can_reset = False  # no HTTP response is being sent: a handler has the request, or upgraded it
        self._server = server
        self._head = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        server.unproven[self] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        searched = max(0, len(self._head) + 1 - len(_HEAD_END))
        self._head += data if self._head else data.lstrip(b"\r\n")  # blank lines may precede a request
        if self._head.find(_HEAD_END, searched, _MAX_HEAD) >= 0:
            head, self._head = self._head, bytearray()
            self._server.hand_over(self, bytes(head))
        elif len(self._head) > _MAX_HEAD and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._server.on_closed(self)

    def admit(self) -> None:
        del self._server.unproven[self]
        self._server.admitted[self] = None

    def release(self) -> None:
        self._server.unproven.pop(self, None)
        self._server.admitted.pop(self, None)
        self.released.set()

    def abort(self) -> None:
        """Close it immediately. The kernel still sends the rest of an HTTP response."""
        if self.can_reset:
            reset(self.transport)
        elif self.transport is not None:
            self.transport.abort()
        else:
            self.opening.cancel()  # which closes the transport

    def abort_after(self, seconds: float) -> None:
        self.cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_closed(self) -> None:
        self.cancel_timer()
        self.closed.set()
        if not self.is_handled:
            self.release()


class StreamServer(web.Server):
    """Serves one handler, with one request per connection.

    A connection is pending until it carries a stream. It has `handshake_timeout` seconds, counted from its accept, for
    its TLS handshake and the head of its request. When more than `max_pending` are pending, or when no file descriptor
    is left to accept another one, the oldest of them is closed; one with a valid token only if there is no other.
    """

    def __init__(
        self, handler: Respond, *, ssl_context: SSLContext | None, handshake_timeout: float, max_pending: int
    ) -> None:
        _check_context(ssl_context)
        # Each connection ends with its response, so there are no idle connections, and no leftover bodies to read.
        super().__init__(self._respond, access_log=None, keepalive_timeout=0, lingering_time=0, logger=_HTTP_LOG)
        self._handler = handler
        self._ssl_context = ssl_context
        self._handshake_timeout = handshake_timeout
        self._max_pending = max_pending
        self._open: set[_Connection] = set()
        self.unproven: dict[_Connection, None] = {}  # pending connections without a valid token, the oldest first
        self.admitted: dict[_Connection, None] = {}  # pending connections with one
        self._by_protocol: dict[web.RequestHandler, _Connection] = {}
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._shortage_log, self._accept_log = RateLimitedLog(1), RateLimitedLog(1)

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Bind to each address of a host, accept connections, and return the port."""
        self._listeners = await _bind(host, port, reuse_port=reuse_port)
        self._accepting = [asyncio.create_task(self._accept_all(listener)) for listener in self._listeners]
        return int(self._listeners[0].getsockname()[1])

    async def close(self) -> None:
        closing = asyncio.create_task(self._close())
        try:
            await asyncio.wait({closing})
        finally:  # also when this is cancelled: it takes only a few turns of the loop
            await asyncio.wait({closing})

    async def _close(self) -> None:
        await self._stop_accepting()
        for task in self._accepting:
            task.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
        for listener in self._listeners:
            listener.close()
        opened = list(self._open)
        for connection in opened:
            connection.abort()
        for connection in opened:
            await connection.closed.wait()

    async def _stop_accepting(self) -> None:
        """Wait until each accept has ended. If one is cancelled as a client connects, asyncio loses the socket."""
        for _ in range(2):  # an accept that ends now is followed by another one
            with contextlib.suppress(NotImplementedError):  # on Windows
                for listener in self._listeners:
                    asyncio.get_running_loop().remove_reader(listener)
            await asyncio.sleep(0)

    def hand_over(self, connection: _Connection, data: bytes) -> None:
        """Pass a connection to aiohttp, beginning with the data that was received so far."""
        protocol = self()
        self._by_protocol[protocol] = connection
        connection.transport.set_protocol(protocol)
        protocol.connection_made(connection.transport)
        protocol.data_received(data)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.on_closed(self._by_protocol.pop(handler))

    def on_closed(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.on_closed()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._by_protocol.get(request.protocol)
        if connection is None:  # the connection was lost before the request got its turn
            return web.Response(status=503)

        connection.cancel_timer()
        connection.is_handled = connection.can_reset = True
        try:
            response = await self._handler(request, connection)
            connection.can_reset = isinstance(response, web.WebSocketResponse)
        except Exception:
            connection.can_reset = False  # aiohttp responds with an error
            raise
        finally:
            connection.is_handled = False
            if connection in self._open:
                connection.abort_after(CLOSE_TIMEOUT)
            else:
                connection.release()
        response.force_close()
        return response

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:  # the client left while it waited
                continue
            except OSError as error:
                await self._on_accept_error(listener, error)
                continue
            self._add(accepted)
            while self._pending > self._max_pending:
                if await self._close_oldest():
                    self._shortage_log.warning(
                        "%d connections wait without a stream, so the oldest of them is closed for each new one",
                        self._max_pending,
                    )

    async def _on_accept_error(self, listener: socket.socket, error: OSError) -> None:
        """Make room, or wait: a failed accept leaves the connection in the kernel's queue."""
        self._accept_log.warning(
            "cannot accept a connection (%s): %s. New streams wait until a connection without a stream, or a file, "
            "is closed",
            errno.errorcode.get(error.errno or 0, "unknown error"),
            error.strerror,
        )
        if self._pending and error.errno in {errno.EMFILE, errno.ENFILE} and _has_waiting(listener):
            await self._close_oldest()
        else:
            await asyncio.sleep(_ACCEPT_RETRY)

    def _add(self, accepted: socket.socket) -> None:
        connection = _Connection(self, accepted)
        self._open.add(connection)
        connection.abort_after(self._handshake_timeout)
        connection.opening = asyncio.create_task(self._open_connection(connection))
        connection.opening.add_done_callback(lambda _: self._opened(connection))

    async def _open_connection(self, connection: _Connection) -> None:
        connection.is_opening = True
        tls = self._ssl_context
        with contextlib.suppress(OSError, SSLError, ValueError):  # the client left, or speaks no TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                connection.sock,
                ssl=tls,
                ssl_shutdown_timeout=None if tls is None else CLOSE_TIMEOUT,
            )

    def _opened(self, connection: _Connection) -> None:
        if connection.transport is None:
            if not connection.is_opening:  # the task was cancelled before it began
                connection.sock.close()
            self.on_closed(connection)

    @property
    def _pending(self) -> int:
        return len(self.unproven) + len(self.admitted)

    async def free_descriptor(self) -> bool:
        """Close the oldest pending connection, so that a file can be opened. Return False if there is none."""
        while self._pending:
            if await self._close_oldest():
                return True
        return False

    async def _close_oldest(self) -> bool:
        """Close the oldest pending connection. If it is too young, wait until it is not, and return False."""
        oldest = next(iter(self.unproven or self.admitted))
        age = asyncio.get_running_loop().time() - oldest.accepted_at
        if age < _MIN_AGE:
            await asyncio.sleep(_MIN_AGE - age)
            return False
        oldest.abort()
        await oldest.released.wait()
        await asyncio.sleep(0)  # the loop closes the socket after that
        return True


def _check_context(context: object) -> None:
    """Check that a TLS context is a server's; with any other every handshake would fail."""
    if context is not None and not isinstance(context, SSLContext):
        wrong = f"ssl_context must be an SSLContext, not {kind_of(context)}"
    elif context is not None and context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        wrong = "ssl_context is a client's, so no connection would open"
    elif context is not None and _lacks_certificate(context):
        wrong = "ssl_context has no certificate, so no connection would open"
    else:
        return
    raise InvalidRequestError(
        f"{wrong}: write ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), and load the certificate into it"
    )


def _lacks_certificate(context: SSLContext) -> bool:
    """Return whether a handshake fails for lack of a certificate, unless that is chosen for each name."""
    client, hello = SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.set_ciphers("ALL")
    reason = ""
    with contextlib.suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    try:
        context.wrap_bio(hello, ssl.MemoryBIO(), server_side=True).do_handshake()
    except SSLError as error:  # as a rule, that the client's next message is missing
        reason = error.reason
    return reason == "NO_SHARED_CIPHER" and context.sni_callback is None


def _has_waiting(listener: socket.socket) -> bool:
    """Return whether a connection waits to be accepted: Linux reports EMFILE even when none does."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:  # a name, which a thread looks up
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]  # noqa: PLR2004  (IPv4)


async def _bind(host: str, port: int, *, reuse_port: bool) -> list[socket.socket]:
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidRequestError("reuse_port=True needs SO_REUSEPORT, which this system does not have: omit it")
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in await _addresses(host, port):
        try:
            listeners.append(socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=reuse_port))
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:  # else the machine has the host's other IP version only
                break
    if failure is not None and (not listeners or failure.errno != errno.EADDRNOTAVAIL):
        for listener in listeners:
            listener.close()
        raise failure
    for listener in listeners:
        listener.setblocking(False)
    return listeners
