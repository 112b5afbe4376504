"""One audio socket, from its upgrade to its close, and the watchdog over all of them."""
# ruff: noqa: SLF001  (what is private to users of a session is not to this package)

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.models._signed_tokens import RejectedTokenError
from signalwire_streams.models._validation import check_awaitable
from signalwire_streams.receiver._event_queue import QueueLimits
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    ConnectedEvent,
    StartEvent,
    StopEvent,
    decode_event,
    memory_of,
)
from signalwire_streams.receiver._server import RateLimitedLog
from signalwire_streams.receiver._session import EndReason, StreamSession
from signalwire_streams.receiver._socket import CloseCode, Socket

_LOG = logging.getLogger("signalwire_streams.receiver")

Handler: TypeAlias = Callable[[StreamSession], Awaitable[None]]
"""A user's function: ``async def handler(session)``."""

_CHECKS = 4  # of each heartbeat interval
_PONG_SHARE = 0.5  # of the heartbeat: the time that the other end has for its pong
_MIN_IGNORED = 100  # messages without an event that may always precede the start event, even if the queue is smaller
_CLOSE_CODES = {
    EndReason.HANDLER_RETURNED: CloseCode.OK,
    EndReason.HANDLER_FAILED: CloseCode.INTERNAL_ERROR,
    EndReason.OVERFLOW: CloseCode.TRY_AGAIN_LATER,
    EndReason.SHUTDOWN: CloseCode.GOING_AWAY,
}


OpenSession: TypeAlias = Callable[[StartEvent], StreamSession]


class Connection:
    """One socket. `wait_session` waits for its start event, then `run` serves the session until both have ended.

    Messages are decoded and queued as they arrive, so a busy handler delays neither their arrival times nor the
    pongs.
    """

    def __init__(
        self,
        socket: Socket,
        open_session: OpenSession,
        *,
        limits: QueueLimits,
        heartbeat: float | None,
        failure_log: RateLimitedLog,
    ) -> None:
        self.socket = socket
        self.failure = ""  # the reason if no stream started
        self._open_session = open_session
        self._limits = limits
        self._heartbeat = heartbeat  # aiohttp's own costs a turn of the event loop for each frame
        self._failure_log = failure_log
        self._early: list[AudioEvent] = []
        self._early_bytes = self._malformed = self._ignored = 0
        self.session: StreamSession | None = None
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._opened: asyncio.Future[StreamSession] = loop.create_future()
        self._reader: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()  # from the start event on that of the session
        self._decode: Callable[..., AudioEvent] = decode_event
        self._started_at = self._received_at = 0.0
        self._pinged_at = float("-inf")
        self._is_pong_late = False
        socket.on_message, socket.on_control = self._on_message, self._on_control

    async def wait_session(self, timeout: float) -> StreamSession | None:  # noqa: ASYNC109  (it closes the socket)
        """Wait for the start event, and return its session.

        On timeout or after too many other messages, set `failure`, close the socket and return None.
        """
        self._reader = asyncio.create_task(self._read())
        try:
            async with asyncio.timeout(timeout):
                return await self._opened
        except TimeoutError:
            if self.session is not None:  # it arrived while the loop was blocked beyond the timeout
                return self.session
            self.failure = f"no start event arrived within {timeout:g} s"
        except (ConnectionError, MalformedFrameError, RejectedTokenError) as error:
            self.failure = str(error)
        except asyncio.CancelledError:
            await self._stop_task(self._reader)
            raise
        if self._malformed:
            self.failure += f"; {self._malformed} frame{'s' * (self._malformed > 1)} could not be read"
        self._failure_log.warning("a socket was opened, but no stream started on it: %s", self.failure)
        await self.close(CloseCode.POLICY_VIOLATION)
        return None

    async def _stop_task(self, task: "asyncio.Task[None] | None") -> None:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _read(self) -> None:
        try:
            await self.socket.read()
        except ConnectionError:
            self._end(EndReason.LOST, ConnectionError("the connection broke"))
        except MalformedFrameError as error:
            self._end(EndReason.UNREADABLE, error)
        except Exception:  # noqa: BLE001  (a bug here ends this session and no other)
            self._on_bug()
        else:
            self._end(EndReason.CLOSED, ConnectionError("it was closed before a stream started"))

    def _on_control(self) -> None:
        self._received_at = self._time()
        if self.session is None:
            self._ignore()

    def _on_message(self, data: str | bytes) -> None:
        session = self.session
        self._received_at = now = self._time()
        try:
            if session is None:
                self._on_early_message(data)
                return
            if self._ended.is_set():
                return
            event = self._decode(data, elapsed=now - self._started_at)
            if isinstance(event, StopEvent):
                session._close(EndReason.STOPPED)
            elif not session._enqueue(event, now):
                session._close(EndReason.OVERFLOW)
        except (MalformedFrameError, RejectedTokenError) as error:
            if session is not None:
                session.statistics.malformed += 1
            else:
                self._end(EndReason.FAILED, error)
        except Exception:  # noqa: BLE001  (a bug here ends this session and no other)
            self._on_bug()

    def _on_read(self, session: StreamSession) -> None:
        try:
            session._on_read()
        except Exception:  # noqa: BLE001  (the same)
            self._on_bug()

    def _on_early_message(self, data: str | bytes) -> None:
        """Open the session with the start event; store an event that precedes it."""
        if self._opened.done():
            return
        try:
            event = decode_event(data, elapsed=0.0)
        except MalformedFrameError:
            self._malformed += 1
            self._ignore()
            return
        if isinstance(event, StartEvent):
            self._on_start(event)
        elif isinstance(event, ConnectedEvent | StopEvent):
            self._ignore()
        elif len(self._early) >= self._limits.max_events or self._early_bytes >= self._limits.max_bytes:
            raise MalformedFrameError("too many frames arrived before the start event")
        else:
            self._early.append(event)
            self._early_bytes += memory_of(event)

    def _ignore(self) -> None:
        self._ignored += 1
        if self._ignored > max(self._limits.max_events, _MIN_IGNORED):
            raise MalformedFrameError("too many frames arrived before the start event")

    def _on_start(self, event: StartEvent) -> None:
        self.session = session = self._open_session(event)
        self._ended = session._socket_ended
        if session._started_at is None:
            session._started_at = self._received_at
        self._started_at = session._started_at
        session.statistics.malformed += self._malformed
        for early in self._early:
            if session._numbering is not None:
                session._numbering.shift(early, self._received_at - self._started_at)
            session._enqueue(early, self._received_at)
        if session._numbering is not None:
            self._decode = session._numbering.decode
        self._early.clear()
        self._opened.set_result(session)
        self.socket.on_read = partial(self._on_read, session)

    def _end(self, reason: EndReason, failure: Exception) -> None:
        """End the session, or the wait for it."""
        if self.session is not None:
            self._close_stream(self.session, reason)
        elif not self._opened.done():
            self._opened.set_exception(failure)

    def _close_stream(self, session: StreamSession, reason: EndReason) -> None:
        """End the session, unless it goes on over another socket."""
        if not self._ended.is_set():
            session._close(reason, received_at=self._received_at)

    def _on_bug(self) -> None:
        self._end(EndReason.FAILED, ConnectionError("the receiver failed"))
        label = self.session.label if self.session is not None else "that has not started"
        _LOG.exception("the receiver failed for stream %s", label, extra={"stream": label})

    async def run(self, session: StreamSession, handler: Handler) -> None:
        """Run the handler, and read the socket for its session, until both have ended."""
        handling = asyncio.create_task(_handle(handler, session))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({handling, ended}, return_when=asyncio.FIRST_COMPLETED)
            if handling.done() and handling.cancelled() and session.end_reason is None:
                _LOG.error(
                    "the handler of stream %s cancelled itself, so the stream is closed",
                    session.label,
                    extra={"stream": session.label},
                )
                session._close(EndReason.HANDLER_FAILED)
            self._close_stream(session, EndReason.HANDLER_RETURNED)  # unless it has ended for another reason
            await self._close_session(session)
            await asyncio.wait({handling})
        finally:  # even if it is cancelled
            handling.cancel()
            ended.cancel()
            try:
                await asyncio.wait({handling, ended})
            except asyncio.CancelledError:  # for the second time: the handler ignores its cancellation
                self.socket.abort()
                abandon(handling)
                raise
            await self._close_session(session)

    async def _close_session(self, session: StreamSession) -> None:
        await self._stop_task(self._pinger)
        reason = session.end_reason
        if reason is EndReason.LOST or (reason is None and self._ended.is_set()):  # it goes on over another socket
            self.socket.abort()  # no close frame can arrive, and pending sends must fail
        await self.close(_CLOSE_CODES.get(reason or EndReason.CLOSED, CloseCode.OK))

    async def close(self, code: CloseCode) -> None:
        """Close the socket with a code; reset the connection if this is cancelled."""
        try:
            await self._stop_task(self._reader)  # a socket must not be closed while a task reads it
            await self.socket.close(code=code)
        except asyncio.CancelledError:
            self.socket.abort()
            raise

    def check(self, now: float) -> None:
        """Ping a silent peer, and end the session of one that does not reply. Called by the watchdog."""
        try:
            self._check(now)
        except Exception:  # noqa: BLE001  (the same)
            self._on_bug()

    def _check(self, now: float) -> None:
        heartbeat, session = self._heartbeat, self.session
        if heartbeat is None or session is None or now - self._received_at < heartbeat:
            return
        if self._pinged_at <= self._received_at:  # equal if the pong came at once, by the clock
            self._pinged_at, self._is_pong_late = now, False
            self._pinger = asyncio.create_task(self._ping())
        elif now - self._pinged_at >= heartbeat * _PONG_SHARE:
            # If the loop was blocked, the pong may be in the socket unread: allow one more interval.
            if self._is_pong_late:
                self._close_stream(session, EndReason.LOST)
            self._is_pong_late = True

    async def _ping(self) -> None:
        with contextlib.suppress(ConnectionError):  # the next read reports it
            await self.socket.ping()


class Watchdog:
    """Checks the heartbeats of all connections with a single timer."""

    def __init__(self, heartbeat: float | None) -> None:
        self._interval = None if heartbeat is None else heartbeat / _CHECKS
        self.connections: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def watch(self, connection: Connection) -> Iterator[None]:
        self.connections.add(connection)
        if self._timer is None and self._interval is not None:
            self._schedule(self._interval)
        try:
            yield
        finally:
            self.connections.discard(connection)
            if not self.connections and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _schedule(self, interval: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(interval, self._check_all, interval)

    def _check_all(self, interval: float) -> None:
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            connection.check(now)
        self._schedule(interval)


async def _handle(handler: Handler, session: StreamSession) -> None:
    task = asyncio.current_task()
    try:
        await check_awaitable(handler(session), "async def handler(session)")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a handler's error ends its own session and no other
        if task is None or asyncio.current_task(task.get_loop()) is not task:  # garbage collection of the task
            raise
        if isinstance(error, asyncio.CancelledError) and task.cancelling():
            raise
        session._close(EndReason.HANDLER_FAILED)
        _LOG.exception(
            "the handler of stream %s failed, so the stream is closed", session.label, extra={"stream": session.label}
        )


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
