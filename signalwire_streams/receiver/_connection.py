"""One audio socket, from its upgrade to its close, and the watchdog over all of them."""
# ruff: noqa: SLF001  (what is private to users of a session is not to this package)

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    ConnectedEvent,
    StartEvent,
    StopEvent,
    decode_event,
    memory_of,
)
from signalwire_streams.receiver._server import AudioSocket, RateLimitedLog, reset
from signalwire_streams.receiver._session import EndReason, EventQueue, QueueLimits, StreamSession

_LOG = logging.getLogger("signalwire_streams.receiver")

Handler: TypeAlias = Callable[[StreamSession], Awaitable[None]]
"""A user's function: ``async def handler(session)``."""

_WATCH_INTERVAL = 0.05  # seconds that frames may wait in a socket while its handler is busy elsewhere
_MIN_BACKGROUND = 1.0  # seconds of reading in the background, since a busy handler will be busy again
_BURST = 100  # messages that are read before other tasks get a turn
_PONG_SHARE = 0.5  # of the heartbeat: time that the other end has to answer a ping
_MIN_IGNORED = 100  # messages without an event that may precede the start event, however small the queue is
_TEXT = WSMsgType.TEXT
_CLOSED = {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED}
_CLOSE_CODES = {
    EndReason.HANDLER_RETURNED: WSCloseCode.OK,
    EndReason.HANDLER_FAILED: WSCloseCode.INTERNAL_ERROR,
    EndReason.OVERFLOW: WSCloseCode.TRY_AGAIN_LATER,
    EndReason.SHUTDOWN: WSCloseCode.GOING_AWAY,
}


class Connection:
    """One socket. `wait_start` reads it up to the start event, then `run` reads it for a session.

    Passing each frame from one task to another would cost as much as reading it. So the task that waits for an event
    reads the socket itself. While the handler is busy elsewhere, a background task reads, and the queue drops the
    oldest audio if it overflows.
    """

    session: StreamSession
    queue: EventQueue

    def __init__(
        self,
        socket: AudioSocket,
        *,
        limits: QueueLimits,
        heartbeat: float | None,
        failure_log: RateLimitedLog,
    ) -> None:
        self.socket = socket  # upgraded
        self.failure = ""  # why no stream started
        self._limits = limits
        self._heartbeat = heartbeat  # aiohttp's own costs a turn of the event loop for each frame
        self._failure_log = failure_log
        self._early: list[AudioEvent] = []
        self._early_bytes = self._malformed = self._ignored = self._messages = 0
        self._reader: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._started_at = self._received_at = 0.0
        self._pinged_at = float("-inf")
        self._is_pong_late = False

    async def wait_start(self, timeout: float) -> StartEvent | None:  # noqa: ASYNC109  (it closes the socket)
        """Wait for the start event. On timeout or after too many other messages, set `failure` and close the socket."""
        try:
            async with asyncio.timeout(timeout):
                while (message := await self.socket.receive()).type not in _CLOSED:
                    self._messages += 1
                    if self._messages % _BURST == 0:
                        await asyncio.sleep(0)
                    if message.type is WSMsgType.PING:
                        self._ignore()
                        await self.socket.pong(message.data)
                    elif (start := self._on_early_message(message)) is not None:
                        return start
            self.failure = "it was closed before a stream started"
        except TimeoutError:
            self.failure = f"no start event arrived within {timeout:g} s"
        except ConnectionError:
            self.failure = "the connection broke"
        except MalformedFrameError as error:
            self.failure = str(error)
        if self._malformed:
            self.failure += f"; {self._malformed} frames could not be read"
        self._failure_log.warning("a socket was opened, but no stream started on it: %s", self.failure)
        await self.close(WSCloseCode.POLICY_VIOLATION)
        return None

    def _on_early_message(self, message: WSMessage) -> StartEvent | None:
        """Return the start event, or store an event that precedes it."""
        if message.type is WSMsgType.PONG:
            self._ignore()
            return None
        if message.type is WSMsgType.ERROR:
            raise MalformedFrameError("the received data is not a WebSocket message")
        try:
            event = decode_event(message.data, elapsed=0.0)
        except MalformedFrameError:
            self._malformed += 1
            self._ignore()
            return None
        if isinstance(event, StartEvent):
            return event
        if isinstance(event, ConnectedEvent | StopEvent):
            self._ignore()
        elif len(self._early) >= self._limits.max_events or self._early_bytes >= self._limits.max_bytes:
            raise MalformedFrameError("too many frames arrived before the start event")
        else:
            self._early.append(event)
            self._early_bytes += memory_of(event)
        return None

    def _ignore(self) -> None:
        self._ignored += 1
        if self._ignored > max(self._limits.max_events, _MIN_IGNORED):
            raise MalformedFrameError("too many frames arrived before the start event")

    async def run(self, session: StreamSession, handler: Handler) -> None:
        """Run the handler, and read the socket for its session, until both have ended."""
        self._start_reading(session)
        handling = asyncio.create_task(_handle(handler, session))
        ended = asyncio.create_task(session.wait_closed())
        try:
            await asyncio.wait({handling, ended}, return_when=asyncio.FIRST_COMPLETED)
            if handling.done() and handling.cancelled() and session.end_reason is None:
                _LOG.error("the handler of stream %s cancelled itself, so the stream is closed", session.label)
                session._close(EndReason.HANDLER_FAILED)
            session._close(EndReason.HANDLER_RETURNED)  # unless it has ended for another reason
            await self._close_session()
            await asyncio.wait({handling})
        finally:  # also when it is cancelled
            handling.cancel()
            ended.cancel()
            try:
                await asyncio.wait({handling, ended})
            except asyncio.CancelledError:  # for the second time: the handler ignores its cancellation
                reset(self.socket.transport)
                abandon(handling)
                raise
            await self._close_session()

    def _start_reading(self, session: StreamSession) -> None:
        self.session, self.queue = session, session._queue
        self._started_at = self._received_at = asyncio.get_running_loop().time()
        session.statistics.malformed += self._malformed
        for event in self._early:
            session._enqueue(event, self._started_at)
        self._early.clear()
        self.queue.read = self._read

    async def _close_session(self) -> None:
        for task in (self._reader, self._pinger):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self.session.end_reason is EndReason.LOST:
            reset(self.socket.transport)  # no close frame can arrive, and pending sends must fail
        await self.close(_CLOSE_CODES.get(self.session.end_reason or EndReason.CLOSED, WSCloseCode.OK))

    async def close(self, code: WSCloseCode) -> None:
        """Close the socket with a code; reset the connection if this is cancelled."""
        try:
            await self.socket.close(code=code)
        except asyncio.CancelledError:
            reset(self.socket.transport)
            raise

    async def _read(self) -> None:
        """Read one message, in the handler's task or in the background."""
        try:
            message = await self.socket.receive()
            now = self._received_at = asyncio.get_running_loop().time()
            if message.type is _TEXT or message.type is WSMsgType.BINARY:
                self._on_frame(message.data, now)
            elif message.type is WSMsgType.PING:
                await self.socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                self._on_close(message)
            self._messages += 1
            if self._messages % _BURST == 0:
                await asyncio.sleep(0)
        except ConnectionError:  # from the pong
            self.session._close(EndReason.LOST)
        except Exception:  # noqa: BLE001  (a bug here ends this session and no other)
            # In the handler's task it would pass for an error of the handler.
            self.session._close(EndReason.FAILED)
            _LOG.exception("the receiver failed for stream %s", self.session.label)

    def _on_frame(self, frame: str | bytes, now: float) -> None:
        try:
            event = decode_event(frame, elapsed=now - self._started_at)
        except MalformedFrameError:
            self.session.statistics.malformed += 1
            return
        if isinstance(event, StopEvent):
            self.session._close(EndReason.STOPPED)
        elif not self.session._enqueue(event, now):
            self.session._close(EndReason.OVERFLOW)

    def _on_close(self, message: WSMessage) -> None:
        if message.type is WSMsgType.ERROR:
            is_invalid = isinstance(message.data, WebSocketError)
            self.session._close(EndReason.UNREADABLE if is_invalid else EndReason.LOST)
        else:
            is_lost = self.socket.close_code == WSCloseCode.ABNORMAL_CLOSURE
            self.session._close(EndReason.LOST if is_lost else EndReason.CLOSED)

    async def _read_in_background(self, until: float) -> None:
        while self.session.end_reason is None:
            if self.queue.is_awaited and self._received_at > until:
                self.queue.read = self._read
                self.queue.wake()
                return
            await self._read()

    def check(self, now: float) -> None:
        """Make sure that the socket is read, and that the other end is alive. Called by the watchdog."""
        if self.session.end_reason is not None:
            return
        if self.queue.read is not None and not self.queue.is_awaited:
            self.queue.read = None
            self._reader = asyncio.create_task(self._read_in_background(now + _MIN_BACKGROUND))
        if self._heartbeat is not None and now - self._received_at >= self._heartbeat:
            self._check_heartbeat(now, self._heartbeat * _PONG_SHARE)

    def _check_heartbeat(self, now: float, timeout: float) -> None:
        if self._pinged_at < self._received_at:
            self._pinged_at, self._is_pong_late = now, False
            self._pinger = asyncio.create_task(self._ping())
        elif now - self._pinged_at >= timeout:
            # If the loop was blocked, the pong may be in the socket unread: allow one more interval.
            if self._is_pong_late:
                self.session._close(EndReason.LOST)
            self._is_pong_late = True

    async def _ping(self) -> None:
        with contextlib.suppress(ConnectionError):  # the next read reports it
            await self.socket.ping()


class Watchdog:
    """Checks all connections of a receiver with a single timer; one timer each would cost more than the checks."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watch(self, connection: Connection) -> Iterator[None]:
        self.connections.add(connection)
        if self._timer is None:
            self._schedule()
        try:
            yield
        finally:
            self.connections.discard(connection)
            if not self.connections and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_WATCH_INTERVAL, self._check_all)

    def _check_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            connection.check(now)
        self._schedule()


async def _handle(handler: Handler, session: StreamSession) -> None:
    task = asyncio.current_task()
    try:
        await handler(session)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a handler's error ends its own session and no other
        if task is None or asyncio.current_task(task.get_loop()) is not task:  # garbage collection of the task
            raise
        if isinstance(error, asyncio.CancelledError) and task.cancelling():
            raise
        session._close(EndReason.HANDLER_FAILED)
        _LOG.exception("the handler of stream %s failed, so the stream is closed", session.label)


_ABANDONED: set["asyncio.Task[Any]"] = set()


def abandon(task: "asyncio.Task[Any]") -> None:
    """Keep a reference to a task until it has ended, since the loop keeps none; asyncio does not log its error."""
    _ABANDONED.add(task)
    task.add_done_callback(_forget)


def _forget(task: "asyncio.Task[Any]") -> None:
    _ABANDONED.discard(task)
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not log it


async def wait_unless(task: asyncio.Task[Any], *events: asyncio.Event, limit: float | None = None) -> bool:
    """Wait for a task. Cancel it and return False if an event is set or the time limit passes first."""
    stops = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait({task, *stops}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        return task.done() and not any(stop.done() for stop in stops)
    finally:
        for waiting in (task, *stops):
            waiting.cancel()
        abandon(task)
