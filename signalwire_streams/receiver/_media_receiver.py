"""`MediaReceiver`: an aiohttp handler, or a standalone server, that turns audio sockets into sessions."""
# ruff: noqa: SLF001  (what is private to users of a session is not to this package)

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from ssl import SSLContext
from typing import Literal, Self

from aiohttp import web
from attrs import frozen
from yarl import URL

from signalwire_streams._asgi import Application, Receive, Scope, Send, headers_of, reject_upgrade
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    Unusable,
    a_kind_of,
    check_count,
    check_flag,
    check_patience,
    check_seconds,
    kind_of,
)
from signalwire_streams.receiver._aiohttp_socket import AudioSocket
from signalwire_streams.receiver._asgi_socket import AsgiSocket
from signalwire_streams.receiver._auth import (
    MaskedTokens,
    TokenAuthenticator,
    Tokens,
    VerifiedToken,
    bearer_token,
    mask_tokens,
)
from signalwire_streams.receiver._connection import Connection, Handler, Watchdog, wait_unless
from signalwire_streams.receiver._event_queue import BYTES_PER_EVENT, Overflow, QueueLimits
from signalwire_streams.receiver._health import respond_to_probe, serve_health
from signalwire_streams.receiver._open import StarterMixin
from signalwire_streams.receiver._pending_stream import ExpectedStream
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import StartEvent
from signalwire_streams.receiver._read_coalescing import Coalescer
from signalwire_streams.receiver._server import RateLimitedLog, Slot, StreamServer, default_max_pending
from signalwire_streams.receiver._session import EndReason, StreamSession
from signalwire_streams.receiver._socket import CloseCode, Socket
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio._formats import AudioFormat

_LOG = logging.getLogger("signalwire_streams.receiver")
_GRACE = 1.0  # seconds for a handler to notice that its stream was closed, and again that it was cancelled
_READ_SIZE = 16 * 1024  # bytes of one read of a socket: 40 frames, or 2,700 empty messages, which take some 15 ms
_MAX_COALESCE = 1  # seconds; beyond that, statistics and the end of a stream would come too late
_MAX_NAMED = 5  # handlers that a log line names
_MAX_PORT = 65_535
_MAX_STUCK_CHECKS = 1_000  # token checks that ignore their cancellation
_REJECTION_HEADERS = {401: {"WWW-Authenticate": "Bearer"}}


class MediaReceiver(StarterMixin):
    """Receives streams and calls your handler with each.

    Add it to your aiohttp application, ``app.router.add_get("/audio", receiver.handle)``, or let it run a server:
    ``async with receiver.serve(port=8443, ssl_context=...) as url``.

    A handler is ``async def handler(session)`` and iterates over its session with ``async for``. When it raises, its
    own stream is closed, and no other.

    Attributes:
        pending_sockets: number of open WebSockets that have not sent a start event.
        rejected_upgrades: number of upgrades that were rejected for a missing or wrong token.
        health_url: address of the health endpoints, if `serve` has a ``health_port``.
    """

    pending_sockets: int
    rejected_upgrades: int
    health_url: str | None

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        bearer_tokens: Tokens = (),
        bidirectional: bool = False,
        max_queue: int = 500,
        max_queue_bytes: int | None = None,
        overflow: Overflow = Overflow.DROP_OLDEST,
        start_timeout: float = 10.0,
        frame_limit: int = 64 * 1024,
        heartbeat: float | None = 30.0,
        byte_order: Literal["little", "big"] = "little",
        coalesce: float | None = None,
    ) -> None:
        """Create a receiver.

        Args:
            handler: called with each session. Without a handler, only the streams of `open` and `open_many` are
                received.
            bearer_tokens: tokens that authorize a stream for the handler, checked before the upgrade: one, several,
                `SignedTokens`, a function (``def`` or ``async def``) that returns True for a valid one, or None to
                allow anyone. A token is visible ASCII without whitespace.
            bidirectional: whether the streams play the audio that is sent back.
            max_queue: media events that may wait for a slow handler; each track sends 50 per second.
            max_queue_bytes: memory limit for those events, and a second one of the same size for DTMF and marks; by
                default 4 KiB for each event of ``max_queue``.
            overflow: what to do when the queue is full.
            start_timeout: seconds from the upgrade to the start event, and for a token check.
            frame_limit: bytes that one message may have.
            heartbeat: seconds of silence before a ping, whose pong must arrive in half that time; None sends no pings.
            byte_order: byte order of L16 audio, which is not documented.
            coalesce: seconds, at most 1, that audio may wait in its socket so that several frames are read at once; for
                recording and transcription, not for agents. Frames arrive late by half of that at the median, and by
                one and a half times that at most, which shows in ``elapsed`` and in the statistics' delay and jitter
                too. It needs the socket option SO_RCVLOWAT. With None or 0, each frame is read at once.

        Raises:
            InvalidRequestError: an argument is invalid, or handler and ``bearer_tokens`` do not fit together.
        """
        tokens = bearer_tokens = mask_tokens(bearer_tokens)  # type: ignore[assignment]  # tracebacks show both
        _check_handler(handler, tokens)
        check_count(max_queue, "max_queue")
        max_queue_bytes = BYTES_PER_EVENT * max_queue if max_queue_bytes is None else max_queue_bytes
        check_count(max_queue_bytes, "max_queue_bytes")
        check_count(frame_limit, "frame_limit")
        check_seconds(start_timeout, "start_timeout")
        if heartbeat is not None:
            check_seconds(heartbeat, "heartbeat")
        check_flag(bidirectional, "bidirectional")
        AudioFormat("", byte_order=byte_order)  # which checks it
        _check_coalesce(coalesce)
        super().__init__()
        self._closing = asyncio.Event()
        self.pending_sockets = 0
        self.rejected_upgrades = 0
        self.health_url = None
        self._handler = handler
        self._authenticator = TokenAuthenticator(tokens)
        self._bidirectional = bidirectional
        self._queue_limits = QueueLimits(max_queue, max_queue_bytes, Overflow(overflow))
        self._start_timeout = start_timeout
        self._frame_limit = frame_limit
        self._heartbeat = heartbeat
        self._byte_order: Literal["little", "big"] = byte_order
        self._watchdog = Watchdog(heartbeat)
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._coalescer = Coalescer(coalesce) if coalesce else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: set[StreamServer] = set()
        self._failure_log = RateLimitedLog(10)
        self._stuck_checks: set[asyncio.Task[VerifiedToken | bool]] = set()
        self._stuck_log = RateLimitedLog(1)
        self._observe: Callable[[StreamSession], AbstractContextManager[object]] = nullcontext  # set by telemetry

    @property
    def sessions(self) -> set[StreamSession]:
        """The streams that are being received."""
        opened = (connection.session for connection in self._watchdog.connections)
        return {session for session in opened if session is not None}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Receive one stream, until it has ended and its handler has returned.

        Only `serve` limits connections without a stream. In your own application, set a limit yourself:
        ``web.AppRunner(app, keepalive_timeout=10)`` closes a connection when the head of its request takes longer. By
        default aiohttp waits for an hour.
        """
        return await self._receive(request, Slot())

    @property
    def asgi(self) -> Application:
        """The receiver as an ASGI application: ``app.mount("/audio", receiver.asgi)``.

        It needs no package besides your framework (FastAPI, Starlette, Litestar, Quart) and its server. Under a mount
        of FastAPI or Starlette, the streams' URL ends with a slash: ``wss://…/audio/``.

        The server replies to pings and may send its own, limits messages before ``frame_limit`` does, resets
        connections, and times out request heads. So ``heartbeat`` sends no pings: a stream that is silent for one and
        a half times as long has ended. ``coalesce`` has no effect, since the server reads the socket.

        ASGI servers close their sockets before the application's shutdown runs; await `aclose` before that, so that
        streams can finish. ``GET …/healthz`` is 200 as long as the event loop runs; ``GET …/readyz`` is 503 from the
        beginning of `aclose` on.

        Sources: https://asgi.readthedocs.io/en/latest/specs/www.html and .../extensions.html
        """
        return Application(websocket=self._receive_asgi, http=self._probe_asgi, aclose=self.aclose)

    async def _probe_asgi(self, scope: Scope, _: Receive, send: Send) -> None:
        await respond_to_probe(scope, send, is_ready=not self._closing.is_set())

    async def _receive_asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = await self._admit(bearer_token(headers_of(scope).get("Authorization")), Slot())
        if isinstance(admission, int):
            await reject_upgrade(scope, send, admission, _REJECTION_HEADERS.get(admission, {}))
            return
        socket = AsgiSocket(receive, send, max_size=self._frame_limit)
        connection = self._connect(socket, admission)
        try:
            await socket.accept()
        except ConnectionError:
            admission.on_socket_failed("the connection broke")
            return
        await self._serve(connection, admission)

    async def _receive(self, request: web.BaseRequest, slot: Slot) -> web.StreamResponse:
        # aiohttp's limit is the first size that it rejects.
        socket = AudioSocket(
            request.transport,
            max_msg_size=self._frame_limit + 1,
            buffer=self._buffer,
            coalescer=self._coalescer,
        )
        if not socket.can_prepare(request).ok:  # not a WebSocket request, which must not use up a token
            return web.Response(status=400)
        admission = await self._admit(bearer_token(request.headers.get("Authorization")), slot)
        if isinstance(admission, int):
            return web.Response(status=admission, headers=_REJECTION_HEADERS.get(admission))
        connection = self._connect(socket, admission)
        try:
            await socket.prepare(request)
        except ConnectionError:  # the client disconnected
            admission.on_socket_failed("the connection broke")
            return web.Response(status=503)  # it can't be sent, but aiohttp needs a response
        await self._serve(connection, admission)
        return socket

    async def _admit(self, token: str | None, slot: Slot) -> "_Admission | int":
        """Return the receiver of a stream with this token, or the HTTP status that rejects it."""
        if self._closing.is_set():
            return 503
        self._pending_streams.check_open()
        pending = self._pending_streams.claim(token)
        handler = self._handler if pending is None else pending.on_session
        admitted = pending is not None or (handler is not None and await self._allows(token, slot))
        if self._closing.is_set() or admitted is None:
            return 503
        if handler is None or not admitted:
            self.rejected_upgrades += 1
            return 401
        if pending is not None or not self._authenticator.admits_everybody:
            slot.admit()
        return _Admission(handler, slot, pending, admitted if isinstance(admitted, VerifiedToken) else None)

    async def _serve(self, connection: Connection, admission: "_Admission") -> None:
        """Receive the stream of a socket that is open."""
        session = await self._wait_session(connection)
        if session is None:
            admission.on_socket_failed(connection.failure or "the receiver was closed")
            return
        admission.slot.release()
        task = asyncio.create_task(self._run(connection, session, admission.handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if (pending := admission.pending) is not None:
            task.add_done_callback(lambda _: pending.socket_closed.set())
        await asyncio.wait({task})  # which goes on if this is cancelled, and is cancelled by `aclose` if need be

    def _connect(self, socket: Socket, admission: "_Admission") -> Connection:
        return Connection(
            socket,
            partial(self._open_session, socket, admission),
            limits=self._queue_limits,
            heartbeat=self._heartbeat,
            failure_log=self._failure_log,
        )

    async def _allows(self, token: str | None, slot: Slot) -> VerifiedToken | bool | None:
        """Check a token. Return None on timeout, or if the client or the receiver closes first.

        A check that ignores its cancellation is not waited for. Their number is limited instead.
        """
        if len(self._stuck_checks) >= _MAX_STUCK_CHECKS:
            self._stuck_log.warning(
                "%d token checks ignore their cancellation, so further streams are rejected until some return",
                _MAX_STUCK_CHECKS,
            )
            return None
        check = asyncio.create_task(self._authenticator.allows(token))
        if not await wait_unless(check, self._closing, slot.closed, limit=self._start_timeout):
            self._stuck_checks.add(check)
            check.add_done_callback(self._stuck_checks.discard)
            if not self._closing.is_set() and not slot.closed.is_set():
                _LOG.warning(
                    "the token check did not return within %g s, so the stream is rejected", self._start_timeout
                )
            return None
        if check.cancelled():
            _LOG.warning("the token check was cancelled, so the stream is rejected")
            return None
        error = check.exception()
        if error is not None and not isinstance(error, Exception):  # which would end the task that serves the request
            raise RuntimeError(f"the token check raised {type(error).__name__}") from error
        return check.result()

    async def _wait_session(self, connection: Connection) -> StreamSession | None:
        """Wait for the start event, or until the receiver is closed."""
        self.pending_sockets += 1
        try:
            waiting = asyncio.create_task(connection.wait_session(self._start_timeout))
            # A stream that starts while the receiver closes has no task yet that `aclose` could wait for.
            if await wait_unless(waiting, self._closing) and not self._closing.is_set():
                session = waiting.result()
            else:
                await asyncio.wait({waiting})  # a socket must not be closed while a task reads it
                session = None
        finally:
            self.pending_sockets -= 1
        if session is None and not connection.failure:
            await connection.close(CloseCode.GOING_AWAY)
        return session

    def _open_session(self, socket: Socket, admission: "_Admission", start: StartEvent) -> StreamSession:
        token, pending = admission.token, admission.pending
        if token is not None:
            token.spend(start)
        audio_format = AudioFormat.from_start_event(start, byte_order=self._byte_order)
        statistics = StreamStatistics()
        playback = Playback(
            socket,
            start.stream_sid,
            audio_format,
            self._bidirectional,
            statistics=statistics,
            max_message=self._frame_limit,
        )
        session = StreamSession(
            start,
            audio_format=audio_format,
            playback=playback,
            statistics=statistics,
            limits=self._queue_limits,
            claims=None if token is None else token.claims,
        )
        return session if pending is None else pending.adopt(session)

    async def _run(self, connection: Connection, session: StreamSession, handler: Handler) -> None:
        with self._watchdog.watch(connection), self._observe(session):
            await connection.run(session, handler)

    @asynccontextmanager
    async def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "/",
        ssl_context: SSLContext | None = None,
        handshake_timeout: float = 10.0,
        max_pending: int | None = None,
        shutdown_timeout: float = 5.0,
        reuse_port: bool = False,
        health_host: str = "127.0.0.1",
        health_port: int | None = None,
    ) -> AsyncIterator[str]:
        """Run a server while the block runs, and close the receiver when it ends.

        A handler that ignores its cancellation does not delay the end of the block, but does delay the end of
        `asyncio.run`.

        Args:
            host: address to listen on.
            port: port to listen on; 0 takes a free one.
            path: path of the streams' URL, without query and fragment.
            ssl_context: context with the server's certificate. Without one, a proxy before this server must speak
                TLS, since SignalWire connects by wss only.
            handshake_timeout: seconds that a connection has, from its accept, for its TLS handshake and the head of
                its request, which may have 64 KiB.
            max_pending: connections that may be open without a stream. For each further one the oldest is closed,
                those with a valid token last. By default half of the file descriptors that the process may open, at
                most 2,048.
            shutdown_timeout: the ``deadline`` of `aclose` at the end of the block.
            reuse_port: whether other servers may listen on the port at the same time, if all of them allow it: one in
                each process, and Linux spreads the connections over them.
            health_host: address to listen on for the health endpoints.
            health_port: port for them; 0 takes a free one (`health_url`). ``GET /healthz`` is 200 as long as the event
                loop runs; ``GET /readyz`` is 503 from the beginning of `aclose` on. None serves none.

        Yields:
            The address, as the ``url`` of a start.

        Raises:
            ClientStateError: the receiver was closed.
            InvalidRequestError: an argument is invalid.
            OSError: the host is unknown, or the port is taken.
        """
        self._pending_streams.check_open()
        check_seconds(handshake_timeout, "handshake_timeout")
        check_patience(shutdown_timeout, "shutdown_timeout")
        check_flag(reuse_port, "reuse_port")
        _check_address(host, port, path)
        if health_port is not None:
            _check_address(health_host, health_port, "/", prefix="health_")

        async def respond(request: web.BaseRequest, slot: Slot) -> web.StreamResponse:
            if path not in {request.path, request.rel_url.raw_path}:
                return web.Response(status=404)
            if request.method != "GET":
                return web.Response(status=405, headers={"Allow": "GET"})
            return await self._receive(request, slot)

        server = StreamServer(
            respond,
            ssl_context=ssl_context,
            handshake_timeout=handshake_timeout,
            max_pending=default_max_pending() if max_pending is None else check_count(max_pending, "max_pending"),
        )
        self._servers.add(server)
        async with AsyncExitStack() as stack:  # so that the end of the block is seen as "not ready"
            if health_port is not None:
                health = serve_health(
                    lambda: not self._closing.is_set(), host=health_host, port=health_port, reuse_port=reuse_port
                )
                self.health_url = await stack.enter_async_context(health)
            try:
                bound = await server.listen(host, port, reuse_port=reuse_port)
                shown = f"[{host}]" if ":" in host else host
                yield f"{'ws' if ssl_context is None else 'wss'}://{shown}:{bound}{path}"
            finally:
                try:
                    await self.aclose(shutdown_timeout)
                finally:
                    self._servers.discard(server)
                    await server.close()

    async def aclose(self, deadline: float = 5.0) -> None:
        """Reject new streams, close those that are open at the deadline with code 1001, and stop their handlers.

        It returns at most two seconds after the deadline: a handler has one second to return after its stream was
        closed, and another one after it was cancelled. A handler that is still running is logged and abandoned.

        Args:
            deadline: seconds that open streams may continue.

        Raises:
            InvalidRequestError: the deadline is not a number of seconds; the receiver keeps running.
        """
        check_patience(deadline, "deadline")
        self._closing.set()
        self._pending_streams.close()
        try:
            await self._wait_for_handlers(deadline)
        finally:  # also when this is cancelled
            for session in self.sessions:
                session._close(EndReason.SHUTDOWN)
        await self._wait_for_handlers(_GRACE)
        self._cancel_handlers()
        await self._wait_for_handlers(_GRACE)
        if self._tasks:
            labels = sorted(session.label for session in self.sessions)
            more = f" and {len(labels) - _MAX_NAMED} more" if len(labels) > _MAX_NAMED else ""
            _LOG.error(
                "%d handlers are still running after being cancelled, and are abandoned: %s of %s%s",
                len(labels),
                getattr(self._handler, "__qualname__", "handler"),
                ", ".join(labels[:_MAX_NAMED]),
                more,
            )
            self._cancel_handlers()  # for the second time, which ends everything but the handlers
            await self._wait_for_handlers(_GRACE)

    async def free_descriptor(self) -> bool:
        """Close the oldest connection without a stream in `serve`, so that a handler can open a file.

        Call it when an ``open`` fails for lack of file descriptors, then try again.

        Returns:
            False if there is no such connection.
        """
        for server in self._servers:
            if await server.free_descriptor():
                return True
        return False

    def abort(self) -> None:
        """Reset the connections of all streams, so that `aclose` need not wait until the other ends reply."""
        for connection in self._watchdog.connections:
            connection.socket.abort()

    async def _wait_for_handlers(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _cancel_handlers(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@frozen
class _Admission:
    """The receiver of a stream."""

    handler: Handler
    slot: Slot
    pending: ExpectedStream | None  # the pending stream, if it was started here
    token: VerifiedToken | None  # if it is signed

    def on_socket_failed(self, reason: str) -> None:
        if self.pending is not None:
            self.pending.on_socket_failed(reason)


def _check_handler(handler: Handler | None, tokens: MaskedTokens) -> None:
    if handler is not None and not callable(handler):
        raise InvalidRequestError(f"the handler is {a_kind_of(handler)}: write async def handler(session)")
    if isinstance(tokens, Unusable):
        raise InvalidRequestError(f"bearer_tokens is {a_kind_of(tokens)}: pass a token, several, or a function")
    if handler is not None and tokens == ():
        raise InvalidRequestError(
            "a handler needs bearer_tokens=...: the tokens of the streams that it accepts (None accepts any)"
        )
    if handler is None and tokens != ():
        raise InvalidRequestError(
            "bearer_tokens=... was passed without a handler: pass a handler, or omit bearer_tokens"
        )


def _check_coalesce(seconds: object) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _MAX_COALESCE:
        raise InvalidRequestError(f"coalesce must be a number of seconds from 0 to {_MAX_COALESCE}, not {seconds!r}")


def _check_address(host: object, port: object, path: object, *, prefix: str = "") -> None:
    if not isinstance(host, str):
        raise InvalidRequestError(f"{prefix}host must be a str, such as '127.0.0.1', not {kind_of(host)}")
    if type(port) is not int or not 0 <= port <= _MAX_PORT:
        raise InvalidRequestError(f"{prefix}port must be a whole number from 0 to {_MAX_PORT}, not {port!r}")
    if not isinstance(path, str):
        raise InvalidRequestError(f"path must be a str, such as '/audio', not {kind_of(path)}")
    if not path.startswith("/"):
        raise InvalidRequestError(f"path {path!r} does not begin with a slash: write it as '/audio'")
    url = URL(f"ws://host{path}")
    if path not in {url.path, url.raw_path}:
        raise InvalidRequestError(
            f"path {path!r} differs from the path that clients request: write it as {url.raw_path!r}"
        )
