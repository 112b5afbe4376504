"""HTTP server of a receiver. It limits the connections that carry no stream, so that slow clients cannot exhaust it.

aiohttp's own sites let asyncio accept connections. asyncio accepts as many as come, logs one error for each failed
accept when the process runs out of file descriptors, and leaves a connection in its TLS handshake to a timeout of
60 seconds. So this server accepts connections itself.
"""

import asyncio
import contextlib
import errno
import hashlib
import inspect
import ipaddress
import logging
import select
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from ssl import SSLContext, SSLError
from typing import Any, TypeAlias, TypeVar

from aiohttp import WSCloseCode, http_exceptions, web
from attrs import define, field

from signalwire_streams.errors import InvalidRequestError

_LOG = logging.getLogger("signalwire_streams.receiver")
_INTERVAL = 60.0


@define(eq=False)
class RateLimitedLog:
    """Logs at most `burst` warnings a minute, and counts the others.

    Attributes:
        burst: lines in a minute.
    """

    burst: int
    _began: float = field(init=False, default=float("-inf"))
    _logged: int = field(init=False, default=0)
    _suppressed: int = field(init=False, default=0)

    def warning(self, text: str, *values: object) -> None:
        """Log a warning, unless there were too many in this minute."""
        now = asyncio.get_running_loop().time()
        if now - self._began >= _INTERVAL:
            if self._suppressed:
                text, values = text + " (and %d more such lines since the last one)", (*values, self._suppressed)
            self._began, self._logged, self._suppressed = now, 0, 0
        if self._logged < self.burst:
            self._logged += 1
            _LOG.warning(text, *values)
        else:
            self._suppressed += 1


_ANSWER_TIMEOUT = 2.0  # seconds for the other end to answer a close frame, once that was written
_CLOSE_TIMEOUT = 3.0  # seconds for a connection to close, beginning with the close frame
_MAX_UNBUFFERED = 16 * 1024  # characters that an empty write buffer takes, whatever the size of a character
_UNANSWERED = {None, WSCloseCode.ABNORMAL_CLOSURE}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_Result = TypeVar("_Result")


def reset(transport: asyncio.Transport | None) -> None:
    """Close a connection at once, and drop what was not sent.

    Without a reset the kernel keeps a connection with unsent data for minutes after its descriptor was closed.
    """
    if transport is not None:
        with contextlib.suppress(OSError, AttributeError):  # it is closed already; over TLS that is an AttributeError
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


class AudioSocket(web.WebSocketResponse):
    """A WebSocket whose senders can be cancelled, and whose connection does not outlive its close.

    Attributes:
        transport: its connection, or None when that was lost before the upgrade.
    """

    def __init__(self, transport: asyncio.Transport | None, *, max_msg_size: int) -> None:
        """Create a WebSocket that is not upgraded yet.

        Args:
            transport: its connection.
            max_msg_size: bytes that one message may have.
        """
        super().__init__(timeout=_ANSWER_TIMEOUT, max_msg_size=max_msg_size, autoping=False, compress=False)
        self.transport = transport
        self._send_tasks: set[asyncio.Task[Any]] = set()
        self._close_task: asyncio.Task[bool] | None = None

    async def send_str(self, data: str, compress: int | None = None) -> None:
        """Send a text message."""
        sending = super().send_str(data, compress)
        await (sending if self._sends_at_once(len(data)) else self._run_shielded(sending))

    async def ping(self, message: bytes = b"") -> None:
        """Send a ping."""
        sending = super().ping(message)
        await (sending if self._sends_at_once(len(message)) else self._run_shielded(sending))

    async def pong(self, message: bytes = b"") -> None:
        """Answer a ping."""
        sending = super().pong(message)
        await (sending if self._sends_at_once(len(message)) else self._run_shielded(sending))

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close the WebSocket, or wait until it is closed. aiohttp calls this too, when the other end closes it.

        A connection whose other end does not answer is reset, and so is one that does not close in time.
        """
        if self._close_task is None:
            closing = partial(super().close, code=code, message=message, drain=drain)
            self._close_task = self._track_task(self._close_in_time(closing))
        await asyncio.wait({self._close_task})
        return self._close_task.result()

    async def _close_in_time(self, closing: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer = loop.call_later(_CLOSE_TIMEOUT, reset, self.transport)
        closed = await closing()
        # After a message that breaks the protocol aiohttp waits for no answer, and the close frame is still to be read.
        if self.close_code in _UNANSWERED and loop.time() - began >= _ANSWER_TIMEOUT:
            timer.cancel()
            reset(self.transport)
        return closed

    def _sends_at_once(self, size: int) -> bool:
        """Return whether a message is written without a wait, or is refused."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return True
        return not self._send_tasks and size <= _MAX_UNBUFFERED and not transport.get_write_buffer_size()

    def _track_task(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.create_task(work)
        self._send_tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._send_tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it when its sender was cancelled

    async def _run_shielded(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._track_task(work)
        await asyncio.wait({task})
        task.result()


Tokens: TypeAlias = str | Collection[str] | Callable[[str], bool | Awaitable[bool]] | None
"""One token, several, what decides about one, or None to let everybody in."""


@define(eq=False)
class Doorkeeper:
    """Checks bearer tokens.

    Attributes:
        ask: the caller's own check, or None.
        everybody: whether no token is needed.
    """

    ask: Callable[[str], bool | Awaitable[bool]] | None = None
    everybody: bool = False
    _known: set[bytes] = field(init=False, factory=set, repr=False)

    @classmethod
    def of(cls, tokens: Tokens) -> "Doorkeeper":
        """Make one of what the user gave.

        Raises:
            InvalidRequestError: it is no token, and nothing that holds some.
        """
        if tokens is None:
            return cls(everybody=True)
        if callable(tokens):
            return cls(ask=tokens)
        keeper = cls()
        for token in [tokens] if isinstance(tokens, str) else tokens:
            if not token or not isinstance(token, str):
                raise InvalidRequestError("a bearer token is empty or no str: write the token that the start passes")
            keeper._known.add(token_hash(token))
        return keeper

    async def admits(self, token: str | None) -> bool:
        """Tell whether a token, or the lack of one, lets its bearer in."""
        if self.everybody:
            return True
        if token is None:
            return False
        if self.ask is None:
            return token_hash(token) in self._known
        answer = self.ask(token)
        return (await answer if inspect.isawaitable(answer) else answer) is True


def bearer_token(authorization: str | None) -> str | None:
    """Take the token out of an ``Authorization`` header."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def token_hash(token: str) -> bytes:
    """Give what a token is looked up by: how long that takes then tells nothing of a token that is not known."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


_HTTP_LOG = logging.getLogger("signalwire_streams.receiver.http")

_BACKLOG = 512  # connections that the kernel keeps until they are accepted
_MIN_AGE = 0.25  # seconds that a connection has at least, so that a burst of streams is not cut for another
_ACCEPT_RETRY = 0.2  # seconds until the next accept, when it failed and no connection can be closed for it
_MAX_PENDING = 2_048
_DEFAULT_PENDING = 256  # where the number of file descriptors is unknown

Respond: TypeAlias = Callable[[web.BaseRequest, Callable[[], None]], Awaitable[web.StreamResponse]]
"""Called with a request, and with a function to call when the request's connection begins to carry a stream."""


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
        """Return whether the record is about anything but a malformed request."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, http_exceptions.HttpProcessingError):
            _LOG.debug("rejected a malformed request: HTTP %d", error.code)
            return False
        return True


_HTTP_LOG.addFilter(_MalformedRequestFilter())


@define(eq=False)
class _Connection:
    """One accepted connection.

    Attributes:
        sock: its socket.
        accepted_at: when it was accepted, in the loop's time.
        closed: set when its socket is closed, or about to be closed in this turn of the loop.
        opening: the task that hands it to the protocol, after a TLS handshake if there is one.
        protocol: its protocol, once the loop has made one.
        transport: its transport, after the TLS handshake.
        timer: aborts it.
        is_upgraded: whether no HTTP response can be under way: a handler has the request, or upgraded it.
    """

    sock: socket.socket
    accepted_at: float
    closed: asyncio.Event = field(init=False, factory=asyncio.Event)
    opening: asyncio.Task[None] = field(init=False)
    protocol: web.RequestHandler | None = field(init=False, default=None)
    transport: asyncio.Transport | None = field(init=False, default=None)
    timer: asyncio.TimerHandle | None = field(init=False, default=None)
    is_upgraded: bool = field(init=False, default=False)

    def abort(self) -> None:
        """Close it at once; what an HTTP response has left in the kernel is still sent."""
        if self.is_upgraded:
            reset(self.transport)
        elif self.transport is not None:
            self.transport.abort()
        else:
            self.opening.cancel()  # which closes the transport

    def abort_after(self, seconds: float) -> None:
        """Close it if it is still there after that time."""
        self.keep()
        self.timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def keep(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class StreamServer(web.Server):
    """Serves one handler, one request a connection.

    A connection is pending until it carries a stream. It has `handshake_timeout` seconds, counted from its accept, for
    its TLS handshake and the head of its request. When more than `max_pending` are pending, or when no file descriptor
    is left to accept another one, the oldest of them is closed.
    """

    def __init__(
        self, handler: Respond, *, ssl_context: SSLContext | None, handshake_timeout: float, max_pending: int
    ) -> None:
        """Create a server; `listen` starts it.

        Args:
            handler: responds to each request.
            ssl_context: the certificate, or None for plain HTTP.
            handshake_timeout: seconds from the accept to the end of the request's head.
            max_pending: connections that may be open without a stream.
        """
        # Each connection ends with its response, so there is no idle one to keep alive and no rest of a body to read.
        super().__init__(self._respond, access_log=None, keepalive_timeout=0, lingering_time=0, logger=_HTTP_LOG)
        self._handler = handler
        self._ssl_context = ssl_context
        self._handshake_timeout = handshake_timeout
        self._max_pending = max_pending
        self._open: set[_Connection] = set()
        self._pending: dict[_Connection, None] = {}  # the oldest first
        self._by_protocol: dict[web.RequestHandler, _Connection] = {}
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._shortage_log, self._accept_log = RateLimitedLog(1), RateLimitedLog(1)

    async def listen(self, host: str, port: int) -> int:
        """Bind to each address of a host, accept connections, and return the port.

        Raises:
            OSError: the host is unknown, or an address cannot be bound.
        """
        self._listeners = await _bind(host, port)
        self._accepting = [asyncio.create_task(self._accept_all(listener)) for listener in self._listeners]
        return int(self._listeners[0].getsockname()[1])

    async def close(self) -> None:
        """Stop accepting, and close all connections."""
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

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Called when a connection can be used, after its TLS handshake."""
        super().connection_made(handler, transport)
        self._by_protocol[handler].transport = transport

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Called when a connection was closed."""
        super().connection_lost(handler, exc)
        self._forget(self._by_protocol.pop(handler))

    def _forget(self, connection: _Connection) -> None:
        connection.keep()
        self._open.discard(connection)
        self._pending.pop(connection, None)
        connection.closed.set()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._by_protocol.get(request.protocol)
        if connection is None:  # the connection was lost before the request got its turn
            return web.Response(status=503)

        def carries_stream() -> None:
            self._pending.pop(connection, None)

        connection.keep()
        connection.is_upgraded = True
        try:
            response = await self._handler(request, carries_stream)
            connection.is_upgraded = isinstance(response, web.WebSocketResponse)
        except Exception:
            connection.is_upgraded = False  # aiohttp responds with an error
            raise
        finally:
            if connection in self._open:
                connection.abort_after(_CLOSE_TIMEOUT)
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
            while len(self._pending) > self._max_pending:
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
        connection = _Connection(accepted, asyncio.get_running_loop().time())
        self._open.add(connection)
        self._pending[connection] = None
        connection.abort_after(self._handshake_timeout)
        connection.opening = asyncio.create_task(self._open_connection(connection))
        connection.opening.add_done_callback(lambda _: self._opened(connection))

    async def _open_connection(self, connection: _Connection) -> None:
        def make_protocol() -> web.RequestHandler:
            connection.protocol = self()
            self._by_protocol[connection.protocol] = connection
            return connection.protocol

        tls = self._ssl_context
        with contextlib.suppress(OSError, SSLError, ValueError):  # the client left, or speaks no TLS
            await asyncio.get_running_loop().connect_accepted_socket(
                make_protocol, connection.sock, ssl=tls, ssl_shutdown_timeout=None if tls is None else _CLOSE_TIMEOUT
            )

    def _opened(self, connection: _Connection) -> None:
        if connection.protocol is None:  # the task was cancelled before it began
            connection.sock.close()
        elif connection.transport is not None:
            return
        else:
            self._by_protocol.pop(connection.protocol, None)
        self._forget(connection)

    async def free_descriptor(self) -> bool:
        """Close the oldest pending connection, so that a file can be opened. Return False if there is none."""
        while self._pending:
            if await self._close_oldest():
                return True
        return False

    async def _close_oldest(self) -> bool:
        """Close the pending connection that was accepted first, unless it is not old enough yet.

        Returns:
            Whether it was closed. If not, time has passed, in which there may have become room without that.
        """
        oldest = next(iter(self._pending))
        age = asyncio.get_running_loop().time() - oldest.accepted_at
        if age < _MIN_AGE:
            await asyncio.sleep(_MIN_AGE - age)
            return False
        oldest.abort()
        await oldest.closed.wait()
        await asyncio.sleep(0)  # the loop closes the socket behind that
        return True


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


async def _bind(host: str, port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in await _addresses(host, port):
        try:
            listeners.append(socket.create_server(address, family=family, backlog=_BACKLOG))
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
