"""One audio socket, from its upgrade to its close."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from attrs import define, field

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver._protocol import (
    AudioEvent,
    ConnectedEvent,
    MediaEvent,
    StartEvent,
    StopEvent,
    decode_event,
)
from signalwire_streams.receiver._server import AudioSocket, RateLimitedLog, reset
from signalwire_streams.receiver._session import Backlog, EndReason, StreamSession

_LOG = logging.getLogger("signalwire_streams.receiver")

_LOOK = 0.05  # seconds that frames may lie in a socket before somebody else reads it
_STAY = 1.0  # seconds that it is read so at least, since whoever was busy once will be again
_BURST = 100  # messages that are read before other tasks get a turn
_PONG = 0.5  # of a heartbeat: how long the other end may take to answer
_TEXT = WSMsgType.TEXT


@define(eq=False)
class Reading:
    """Reads one socket, until its stream ends.

    To hand each frame from one task to another costs as much as to read it. So the task that waits for an event reads
    the socket itself. While it is busy elsewhere another one does, and lets the oldest audio go where too much waits.

    Attributes:
        socket: the socket, upgraded.
        session: what the events are for.
        backlog: where they wait.
        heartbeat: seconds of silence after which the other end is asked whether it is there; None never asks. aiohttp
            has that too, at the price of a turn of the event loop for each frame.
    """

    socket: AudioSocket
    session: StreamSession
    backlog: Backlog
    heartbeat: float | None
    _task: asyncio.Task[None] | None = field(init=False, default=None)
    _ping: asyncio.Task[None] | None = field(init=False, default=None)
    _began: float = field(init=False, default=0.0)
    _heard: float = field(init=False, default=0.0)
    _asked: float = field(init=False, default=float("-inf"))
    _is_late: bool = field(init=False, default=False)
    _received: int = field(init=False, default=0)

    def begin(self) -> None:
        """Let whoever waits for an event read."""
        self._began = self._heard = asyncio.get_running_loop().time()
        self.backlog.pull = self._read

    async def end(self) -> None:
        """Read no more in a task of its own."""
        for task in (self._task, self._ping):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    def look(self, now: float) -> None:
        """See to it that somebody reads, and that the other end is there."""
        if self.session.end_reason is not None:
            return
        if self.backlog.pull is not None and not self.backlog.is_awaited:
            self.backlog.pull = None
            self._task = asyncio.create_task(self._read_on(now + _STAY))
        if self.heartbeat is not None and now - self._heard >= self.heartbeat:
            self._ask(now, self.heartbeat * _PONG)

    def _ask(self, now: float, patience: float) -> None:
        if self._asked < self._heard:
            self._asked, self._is_late = now, False
            self._ping = asyncio.create_task(self._send_ping())
        elif now - self._asked >= patience:
            # An answer may lie there unread where the loop was held up, so it is looked for once more.
            if self._is_late:
                self.session._close(EndReason.LOST)
            self._is_late = True

    async def _send_ping(self) -> None:
        with contextlib.suppress(ConnectionError):  # who reads will hear of it
            await self.socket.ping()

    async def _read_on(self, stays_until: float) -> None:
        while self.session.end_reason is None:
            if self.backlog.is_awaited and self._heard > stays_until:
                self.backlog.pull = self._read
                self.backlog.wake()
                return
            await self._read()

    async def _read(self) -> None:
        """Read one message."""
        try:
            message = await self.socket.receive()
            now = self._heard = asyncio.get_running_loop().time()
            if message.type is _TEXT or message.type is WSMsgType.BINARY:
                self._take(message.data, now)
            elif message.type is WSMsgType.PING:
                await self.socket.pong(message.data)
            elif message.type is not WSMsgType.PONG:
                self._finish(message)
            self._received += 1
            if self._received % _BURST == 0:
                await asyncio.sleep(0)
        except ConnectionError:  # from the pong
            self.session._close(EndReason.LOST)
        except Exception:  # noqa: BLE001  (whatever it is, it ends this session and no other)
            # It may be in a task of the user's, who can do nothing about it, and whose own errors would be blamed.
            self.session._close(EndReason.FAILED)
            _LOG.exception("the receiver failed for stream %s", self.session.label)

    def _take(self, frame: str | bytes, now: float) -> None:
        try:
            event = decode_event(frame, elapsed=now - self._began)
        except MalformedFrameError:
            self.session.statistics.malformed += 1
            return
        if isinstance(event, StopEvent):
            self.session._close(EndReason.STOPPED)
        elif not self.session._enqueue(event, now):
            self.session._close(EndReason.OVERFLOW)

    def _finish(self, message: WSMessage) -> None:
        if message.type is WSMsgType.ERROR:
            broken = isinstance(message.data, WebSocketError)
            self.session._close(EndReason.UNREADABLE if broken else EndReason.LOST)
        else:
            lost = self.socket.close_code == WSCloseCode.ABNORMAL_CLOSURE
            self.session._close(EndReason.LOST if lost else EndReason.CLOSED)


@define(eq=False)
class Lookout:
    """Looks after all readings of a receiver, with one timer, since one for each would cost more than they do."""

    _readings: set[Reading] = field(init=False, factory=set)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    @contextlib.contextmanager
    def over(self, reading: Reading) -> Iterator[None]:
        """Look after a reading while the block runs."""
        self._readings.add(reading)
        reading.begin()
        if self._timer is None:
            self._look_later()
        try:
            yield
        finally:
            self._readings.discard(reading)
            if not self._readings and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for reading in self._readings:
            reading.look(now)
        self._look_later()


Handler: TypeAlias = Callable[[StreamSession], Awaitable[None]]
"""What a user writes: ``async def handler(session)``."""


_MIN_IGNORED = 100  # messages without an event that may come before the start event, however few events may
_LEFT_BEHIND: set["asyncio.Task[Any]"] = set()
_CLOSED = {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED}
_CODES = {
    EndReason.HANDLER_RETURNED: WSCloseCode.OK,
    EndReason.HANDLER_FAILED: WSCloseCode.INTERNAL_ERROR,
    EndReason.OVERFLOW: WSCloseCode.TRY_AGAIN_LATER,
    EndReason.SHUTDOWN: WSCloseCode.GOING_AWAY,
}


@define(eq=False)
class Delivery:
    """What comes in over one socket.

    Attributes:
        socket: the socket, upgraded.
        most: how many events may come before the start event, and how many messages without an event.
        most_bytes: how much memory they may take; the last one may exceed it.
        failure_log: logs why no stream began.
        failure: why no stream began on it.
    """

    socket: AudioSocket
    most: int
    most_bytes: int
    failure_log: RateLimitedLog
    failure: str = field(init=False, default="")
    _early: list[AudioEvent] = field(init=False, factory=list, repr=False)
    _early_bytes: int = field(init=False, default=0)
    _malformed: int = field(init=False, default=0)
    _received: int = field(init=False, default=0)
    _ignored: int = field(init=False, default=0)

    async def begin(self, patience: float) -> StartEvent | None:
        """Wait for the start event; on timeout, or if too much comes before it, close the socket and set `failure`."""
        try:
            async with asyncio.timeout(patience):
                while (message := await self.socket.receive()).type not in _CLOSED:
                    self._received += 1
                    if self._received % _BURST == 0:
                        await asyncio.sleep(0)
                    if message.type is WSMsgType.PING:
                        self._ignore()
                        await self.socket.pong(message.data)
                    elif (start := self._take_early(message)) is not None:
                        return start
            self.failure = "it was closed before that"
        except TimeoutError:
            self.failure = f"nothing more came within {patience:g} s"
        except ConnectionError:
            self.failure = "the connection broke"
        except MalformedFrameError as error:
            self.failure = str(error)
        if self._malformed:
            self.failure += f"; {self._malformed} frames could not be read"
        self.failure_log.warning("a socket was opened, and no stream began on it: %s", self.failure)
        await self.close(WSCloseCode.POLICY_VIOLATION)
        return None

    def _take_early(self, message: WSMessage) -> StartEvent | None:
        """Return the start event, or keep what comes before it."""
        if message.type is WSMsgType.PONG:
            self._ignore()
            return None
        if message.type is WSMsgType.ERROR:
            raise MalformedFrameError("what came is no WebSocket message")
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
        else:
            if len(self._early) >= self.most or self._early_bytes >= self.most_bytes:
                raise MalformedFrameError("too many frames came before the start event")
            self._early.append(event)
            self._early_bytes += len(event.payload) if isinstance(event, MediaEvent) else event.memory
        return None

    def _ignore(self) -> None:
        """Count a message that is not kept."""
        self._ignored += 1
        if self._ignored > max(self.most, _MIN_IGNORED):
            raise MalformedFrameError("too many frames came before the start event")

    def hand_over(self, session: StreamSession) -> None:
        """Pass to a session what came before its start event."""
        session.statistics.malformed += self._malformed
        now = asyncio.get_running_loop().time()
        while self._early:
            session._enqueue(self._early.pop(0), now)

    async def carry(self, session: StreamSession, handler: Handler, reading: Reading) -> None:
        """Run the handler while the socket is read, until both have ended."""
        handling = asyncio.create_task(_handle(handler, session))
        ended = asyncio.create_task(session.wait_closed())
        try:
            await asyncio.wait({handling, ended}, return_when=asyncio.FIRST_COMPLETED)
            session._close(EndReason.HANDLER_RETURNED)  # unless there is a reason already
            await self._hang_up(session, reading)
            await asyncio.wait({handling})
        finally:  # also when it is cut short
            handling.cancel()
            ended.cancel()
            try:
                await asyncio.wait({handling, ended})
            except asyncio.CancelledError:  # cancelled twice: the handler refuses to end, so it is left behind
                reset(self.socket.transport)
                leave_behind(handling)
                raise
            await self._hang_up(session, reading)

    async def _hang_up(self, session: StreamSession, reading: Reading) -> None:
        await reading.end()
        if session.end_reason is EndReason.LOST:
            reset(self.socket.transport)  # nobody reads a farewell, and whoever waits to send must hear of it
        await self.close(_CODES.get(session.end_reason or EndReason.CLOSED, WSCloseCode.OK))

    async def close(self, code: WSCloseCode) -> None:
        """Close the socket with a code; reset the connection when this is cancelled."""
        try:
            await self.socket.close(code=code)
        except asyncio.CancelledError:
            reset(self.socket.transport)
            raise


def leave_behind(task: "asyncio.Task[Any]") -> None:
    """Keep a task that refuses to be cancelled until it ends, since the loop itself keeps none."""
    _LEFT_BEHIND.add(task)
    task.add_done_callback(_LEFT_BEHIND.discard)


async def _handle(handler: Handler, session: StreamSession) -> None:
    task = asyncio.current_task()
    try:
        await handler(session)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever it is, it ends this session and no other
        if task is None or asyncio.current_task(task.get_loop()) is not task:  # a task that is discarded unfinished
            raise
        if isinstance(error, asyncio.CancelledError) and task.cancelling():
            raise
        session._close(EndReason.HANDLER_FAILED)
        _LOG.exception("the handler of stream %s failed, so the stream is closed", session.label)
