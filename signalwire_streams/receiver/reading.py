"""Who reads a socket: the task that goes through the stream while it keeps up, else a task that does nothing else."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType
from attrs import define, field

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver.audio_socket import AudioSocket
from signalwire_streams.receiver._session import Backlog
from signalwire_streams.receiver._protocol import decode_event
from signalwire_streams.receiver.events import StopEvent
from signalwire_streams.receiver.session import EndReason, StreamSession

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
                self.session.end(EndReason.LOST)
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
            self.session.end(EndReason.LOST)
        except Exception:  # noqa: BLE001  (whatever it is, it ends this session and no other)
            # It may be in a task of the user's, who can do nothing about it, and whose own errors would be blamed.
            self.session.end(EndReason.FAILED)
            _LOG.exception("the receiver failed for stream %s", self.session.label)

    def _take(self, frame: str | bytes, now: float) -> None:
        try:
            event = decode_event(frame, elapsed=now - self._began)
        except MalformedFrameError:
            self.session.statistics.malformed += 1
            return
        if isinstance(event, StopEvent):
            self.session.end(EndReason.STOPPED)
        elif not self.session.take(event, now):
            self.session.end(EndReason.OVERFLOW)

    def _finish(self, message: WSMessage) -> None:
        if message.type is WSMsgType.ERROR:
            broken = isinstance(message.data, WebSocketError)
            self.session.end(EndReason.UNREADABLE if broken else EndReason.LOST)
        else:
            lost = self.socket.close_code == WSCloseCode.ABNORMAL_CLOSURE
            self.session.end(EndReason.LOST if lost else EndReason.CLOSED)


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
