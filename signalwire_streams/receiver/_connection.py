"""One audio socket, from its upgrade to its close."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from aiohttp import WSCloseCode, WSMessage, WSMsgType
from attrs import define, field

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver.audio_socket import AudioSocket, reset
from signalwire_streams.receiver._protocol import decode_event
from signalwire_streams.receiver.events import AudioEvent, ConnectedEvent, MediaEvent, StartEvent, StopEvent
from signalwire_streams.receiver.logs import RateLimitedLog
from signalwire_streams.receiver.reading import Reading
from signalwire_streams.receiver.session import EndReason, StreamSession

Handler: TypeAlias = Callable[[StreamSession], Awaitable[None]]
"""What a user writes: ``async def handler(session)``."""

_LOG = logging.getLogger("signalwire_streams.receiver")

_MIN_IGNORED = 100  # messages without an event that may come before the start event, however few events may
_BURST = 100  # messages that are read before other tasks get a turn
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
            session.take(self._early.pop(0), now)

    async def carry(self, session: StreamSession, handler: Handler, reading: Reading) -> None:
        """Run the handler while the socket is read, until both have ended."""
        handling = asyncio.create_task(_handle(handler, session))
        ended = asyncio.create_task(session.ended())
        try:
            await asyncio.wait({handling, ended}, return_when=asyncio.FIRST_COMPLETED)
            session.end(EndReason.HANDLER_RETURNED)  # unless there is a reason already
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
        session.end(EndReason.HANDLER_FAILED)
        _LOG.exception("the handler of stream %s failed, so the stream is closed", session.label)
