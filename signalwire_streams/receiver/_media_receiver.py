"""The receiver: an aiohttp handler, or a server of its own, that turns audio sockets into sessions."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from ssl import SSLContext
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from aiohttp import WSCloseCode, web

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import check_count, check_seconds, check_word
from signalwire_streams.receiver._connection import Delivery, Handler, Lookout, Reading, leave_behind
from signalwire_streams.receiver._playback import Playback
from signalwire_streams.receiver._protocol import StartEvent
from signalwire_streams.receiver._server import (
    AudioSocket,
    Doorkeeper,
    RateLimitedLog,
    StreamServer,
    Tokens,
    bearer_token,
    default_max_pending,
    reset,
)
from signalwire_streams.receiver._session import BYTES_PER_EVENT, Backlog, EndReason, Overflow, StreamSession
from signalwire_streams.receiver._start_and_receive_bulk import Opener
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio._formats import AudioFormat

_LOG = logging.getLogger("signalwire_streams.receiver")
_GRACE = 1.0  # seconds for a handler to notice that its stream was closed, and again that it was cancelled
_MAX_NAMED = 5

_Result = TypeVar("_Result")


class MediaReceiver(Opener):
    """Receives streams, and hands each to a handler of yours.

    It takes a route of an application of yours: ``app.router.add_get("/audio", receiver.handle)``. Or it serves by
    itself: ``async with receiver.serve(port=8443, ssl_context=...) as url``.

    A handler is ``async def handler(session)`` and goes through its session with ``async for``. When it raises, its
    own stream is closed, and no other.

    Attributes:
        sessions: the streams that come in now.
        beginning: how many sockets are open on which no stream has begun yet.
        rejected_upgrades: how many upgrades were refused for their token, or the lack of one.
    """

    sessions: set[StreamSession]
    pending_sockets: int
    rejected_upgrades: int

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
    ) -> None:
        """Prepare a receiver.

        Args:
            handler: called with each stream. Without one, no streams are taken but those of `open` and `open_many`.
            bearer_tokens: which tokens may deliver one to the handler, checked before the upgrade: one, several, a
                function (also an async one) that says so, or None to let everybody in who finds the address.
            bidirectional: whether the streams play what they are sent.
            backlog: media events that may wait for a slow handler; 50 a second come of each track.
            max_queue_bytes: memory that they may take, and as much again for keys and marks; unless given, 4 KiB for
                each of ``backlog``.
            overflow: what happens when more would have to wait.
            start_timeout: seconds from the upgrade to the start event.
            frame_limit: bytes that one message may have.
            heartbeat: seconds of silence after which a ping finds out whether the other end is there, which has half
                as long to answer; None sends none.
            byte_order: of L16, which is not documented.

        Raises:
            InvalidRequestError: nobody could deliver a stream to the handler, or there is none to deliver it to.
        """
        _check_door(handler, bearer_tokens)
        check_count(max_queue, "max_queue")
        most_bytes = BYTES_PER_EVENT * max_queue if max_queue_bytes is None else max_queue_bytes
        check_count(most_bytes, "max_queue_bytes")
        _check_settings(frame_limit, start_timeout, heartbeat, byte_order)
        super().__init__()
        self.sessions = set()
        self.pending_sockets = 0
        self.rejected_upgrades = 0
        self._handler = handler
        self._doorkeeper = Doorkeeper.of(bearer_tokens)
        self._bidirectional = bidirectional
        self._most, self._most_bytes = max_queue, most_bytes
        self._overflow = check_word(overflow, Overflow, "overflow")
        self._start_timeout = start_timeout
        self._frame_limit = frame_limit
        self._heartbeat = heartbeat
        self._lookout = Lookout()
        self._byte_order: Literal["little", "big"] = byte_order
        self._tasks: set[asyncio.Task[None]] = set()
        self._deliveries: set[Delivery] = set()
        self._failure_log = RateLimitedLog(10)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Receive one stream, until it ends and its handler has returned.

        Only `serve` limits connections without a stream. In an application of yours, set its own limit:
        ``web.AppRunner(app, keepalive_timeout=10)`` closes a connection when the head of its request takes longer. By
        default aiohttp waits for an hour.
        """
        return await self._receive(request, lambda: None)

    async def _receive(self, request: web.BaseRequest, carries_stream: Callable[[], None]) -> web.StreamResponse:
        socket = AudioSocket(request.transport, max_msg_size=self._frame_limit)
        if not socket.can_prepare(request).ok:  # it is no WebSocket, so it spends no token
            return web.Response(status=400)
        token = bearer_token(request.headers.get("Authorization"))
        joining = self._joinings.claim(token)
        handler = self._handler if joining is None else joining.hold
        admitted = joining is not None or (handler is not None and await self._admits(token))
        if self._closing.is_set() or admitted is None:
            return web.Response(status=503)
        if handler is None or not admitted:
            self.rejected_upgrades += 1
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        delivery = await self._upgrade(socket, request)
        if delivery is None:
            if joining is not None:
                joining.broke("the connection broke")
            return web.Response(status=503)  # it cannot be sent; aiohttp fails on a socket that was not upgraded
        start = await self._begin(delivery)
        if start is not None:
            carries_stream()
            task = asyncio.create_task(self._carry(delivery, start, handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if joining is not None:
                task.add_done_callback(lambda _: joining.closed.set())
            await asyncio.shield(task)
        elif joining is not None:
            joining.broke(delivery.failure or "the receiver was closed")
        return socket

    async def _admits(self, token: str | None) -> bool | None:
        """Check a token. Return None when the check does not end in time, or the receiver is closed before."""
        admitted = await self._before_closing(self._doorkeeper.admits(token), self._start_timeout)
        if admitted is None and not self._closing.is_set():
            _LOG.warning("the token check did not return within %g s, so the stream is refused", self._start_timeout)
        return admitted

    async def _upgrade(self, socket: AudioSocket, request: web.BaseRequest) -> Delivery | None:
        try:
            await socket.prepare(request)
        except ConnectionError:  # the other end left
            return None
        return Delivery(socket, self._most, self._most_bytes, self._failure_log)

    def _session(self, socket: AudioSocket, start: StartEvent) -> tuple[StreamSession, Reading]:
        media = start.media_format
        audio_format = AudioFormat.from_start_event(
            media.encoding, media.sample_rate, media.channels, byte_order=self._byte_order
        )
        playback = Playback(socket, start.stream_sid, audio_format, self._bidirectional)
        backlog = Backlog(self._most, self._most_bytes)
        session = StreamSession(start, audio_format, playback, StreamStatistics(), backlog, self._overflow)
        return session, Reading(socket, session, backlog, self._heartbeat)

    async def _begin(self, delivery: Delivery) -> StartEvent | None:
        """Wait for the start event, unless the receiver is closed before it comes."""
        self.pending_sockets += 1
        try:
            start = await self._before_closing(delivery.begin(self._start_timeout))
        finally:
            self.pending_sockets -= 1
        if start is None and not delivery.failure:
            await delivery.close(WSCloseCode.GOING_AWAY)
        return start

    async def _before_closing(self, work: Coroutine[Any, Any, _Result], limit: float | None = None) -> _Result | None:
        """Return what a coroutine returns, or None when the receiver is closed before, or the limit is over."""
        task, closing = asyncio.create_task(work), asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({task, closing}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not task.cancelled() and not closing.done() else None
        finally:
            closing.cancel()
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE)
            if not task.done():
                leave_behind(task)
            elif not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not log it

    async def _carry(self, delivery: Delivery, start: StartEvent, handler: Handler) -> None:
        session, reading = self._session(delivery.socket, start)
        delivery.hand_over(session)
        self.sessions.add(session)
        self._deliveries.add(delivery)
        try:
            with self._lookout.over(reading):
                await delivery.carry(session, handler, reading)
        finally:
            self.sessions.discard(session)
            self._deliveries.discard(delivery)

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
    ) -> AsyncIterator[str]:
        """Serve by itself while the block runs, and close at its end.

        A handler that refuses its cancellation does not keep the block from ending, but it keeps `asyncio.run` from it.

        Args:
            host: the address to listen on.
            port: 0 takes a free one.
            path: where streams are taken.
            ssl_context: the certificate; without one, something before this server must speak TLS, since
                SignalWire dials wss only.
            handshake_timeout: seconds that a connection has, from its accept, for its TLS handshake and the head of
                its request.
            max_pending: connections that may be open without a stream; the oldest of them is closed for a new one.
                By default half of the file descriptors that the process may open, at most 2,048.
            shutdown_timeout: the `deadline` of `aclose` at the end of the block.

        Yields:
            The address, as a start's ``url`` has it.

        Raises:
            ClientStateError: the receiver was closed.
            InvalidRequestError: an argument is invalid.
        """
        self._check_open()
        check_seconds(handshake_timeout, "handshake_timeout")
        if shutdown_timeout != 0:
            check_seconds(shutdown_timeout, "shutdown_timeout")
        if not path.startswith("/"):
            raise InvalidRequestError(f"path {path!r} does not begin with a slash: write it as '/audio'")

        async def respond(request: web.BaseRequest, carries_stream: Callable[[], None]) -> web.StreamResponse:
            if path not in {request.path, request.rel_url.raw_path}:
                return web.Response(status=404)
            if request.method != "GET":
                return web.Response(status=405, headers={"Allow": "GET"})
            return await self._receive(request, carries_stream)

        server = StreamServer(
            respond,
            ssl_context=ssl_context,
            handshake_timeout=handshake_timeout,
            max_pending=default_max_pending() if max_pending is None else check_count(max_pending, "max_pending"),
        )
        try:
            bound = await server.listen(host, port)
            shown = f"[{host}]" if ":" in host else host
            yield f"{'ws' if ssl_context is None else 'wss'}://{shown}:{bound}{path}"
        finally:
            try:
                await self.aclose(shutdown_timeout)
            finally:
                await server.close()

    async def aclose(self, deadline: float = 5.0) -> None:
        """Refuse new streams, close those that are still open at the deadline with code 1001, and stop their handlers.

        It returns at most two seconds after the deadline. By then a handler had a second to end after its stream was
        closed, and another one after it was cancelled. A handler that is still running is logged and left behind.

        Args:
            deadline: seconds that open streams may continue.
        """
        self._closing.set()
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
                "%d handlers are still running although they were cancelled, and are left behind: %s of %s%s",
                len(labels),
                getattr(self._handler, "__qualname__", "handler"),
                ", ".join(labels[:_MAX_NAMED]),
                more,
            )
            self._cancel_handlers()  # which ends everything but the handlers
            await self._wait_for_handlers(_GRACE)

    def abort(self) -> None:
        """Drop the sockets of all streams at once, so that `aclose` need not wait until the other end answers."""
        for delivery in self._deliveries:
            reset(delivery.socket.transport)

    async def _wait_for_handlers(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _cancel_handlers(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _check_settings(frame_limit: int, start_timeout: float, heartbeat: float | None, byte_order: str) -> None:
    check_count(frame_limit, "frame_limit")
    check_seconds(start_timeout, "start_timeout")
    if heartbeat is not None:
        check_seconds(heartbeat, "heartbeat")
    if byte_order not in {"little", "big"}:
        raise InvalidRequestError(f"byte_order can't be {byte_order!r}: write 'little' or 'big'")


def _check_door(handler: Handler | None, tokens: Tokens) -> None:
    if handler is not None and not callable(handler):
        raise InvalidRequestError(f"the handler is a {type(handler).__name__}: write async def handler(session)")
    if tokens is not None and not callable(tokens) and not isinstance(tokens, Collection):
        raise InvalidRequestError(f"bearer_tokens is a {type(tokens).__name__}: pass a token, several, or a function")
    no_tokens = isinstance(tokens, Collection) and not isinstance(tokens, str) and not tokens
    if handler is not None and no_tokens:
        raise InvalidRequestError(
            "a handler needs bearer_tokens=..., which says who may deliver a stream to it (None: everybody)"
        )
    if handler is None and not no_tokens:
        raise InvalidRequestError(
            "bearer_tokens=... lets streams in, and there is no handler: pass one, or leave the tokens out"
        )
