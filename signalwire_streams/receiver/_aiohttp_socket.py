"""The WebSocket of one stream over aiohttp: buffered reads, sends that can be cancelled, a close that always ends.

asyncio allocates 256 KiB for each read, which for a small message can cost more than all the rest, and aiohttp passes
each message on through a queue, a future and two coroutines. So a socket reads into one buffer of its receiver, and
calls a function with each text or binary message as it arrives. The frames are still parsed by aiohttp's own reader.
If aiohttp's internals are not as expected, nothing is pushed, and `AudioSocket.read` passes on all messages.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, hdrs, web
from multidict import CIMultiDict

from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver._read_coalescing import CoalescedReads, Coalescer
from signalwire_streams.receiver._socket import OnMessage

try:
    from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
except ImportError:
    WebSocketDataQueue = WebSocketReader = object  # type: ignore[assignment]  # with which nothing is pushed

_CLOSE_TIMEOUT = 2.0  # seconds for the other end to return a close frame, once ours was written
CLOSE_TIMEOUT = 3.0  # seconds for a connection to close, beginning with the close frame
_BURST = 100  # messages that are read before other tasks get a turn, if they are not pushed
_MAX_UNBUFFERED = 16 * 1024  # characters that an empty write buffer takes, whatever the size of a character
_NO_CLOSE_FRAME = {None, WSCloseCode.ABNORMAL_CLOSURE}
_TEXT, _BINARY = WSMsgType.TEXT, WSMsgType.BINARY
_CLOSED = {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_Result = TypeVar("_Result")


def reset(transport: asyncio.Transport | None) -> None:
    """Close a connection at once, and drop what was not sent.

    Without a reset the kernel keeps a connection with unsent data for minutes after its descriptor was closed.
    """
    if transport is not None:
        # It may be closed already: over TLS that is an AttributeError, and on uvloop a ValueError.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


class AudioSocket(web.WebSocketResponse):
    """A WebSocket whose senders can be cancelled, and whose connection does not outlive its close.

    Its transport is None if the connection was lost before the upgrade.
    """

    def __init__(
        self,
        transport: asyncio.Transport | None,
        *,
        max_msg_size: int,
        buffer: memoryview,
        coalescer: Coalescer | None = None,
    ) -> None:
        super().__init__(timeout=_CLOSE_TIMEOUT, max_msg_size=max_msg_size, autoping=False, compress=False)
        self.transport = transport
        self.on_message: OnMessage = _ignore  # set before `prepare`
        self.on_read: Callable[[], None] = _ignore
        self.on_control: Callable[[], None] = _ignore
        self._buffer = buffer
        self._coalescer = coalescer
        self._coalesced: CoalescedReads | None = None
        self._send_tasks: set[asyncio.Task[Any]] = set()
        self._close_task: asyncio.Task[bool] | None = None

    def _handshake(self, request: web.BaseRequest) -> Any:  # noqa: ANN401  (aiohttp's own)
        try:
            return super()._handshake(_Upgrade(request))  # type: ignore[arg-type]
        except ValueError:  # a key that is not ASCII
            raise web.HTTPBadRequest from None

    def _post_start(self, request: web.BaseRequest, *rest: Any) -> None:  # noqa: ANN401  (aiohttp's own)
        is_fresh = not getattr(request.protocol, "_message_tail", True)
        super()._post_start(request, *rest)
        if is_fresh and self.transport is not None:
            self._push(request.protocol, self.transport)

    def _push(self, protocol: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Have aiohttp's reader, which has read nothing yet, replaced by one that pushes messages."""
        try:
            queue = _PushingQueue(protocol, self._max_msg_size, loop=asyncio.get_running_loop())
            queue.on_message = self.on_message
            parser = WebSocketReader(queue, self._max_msg_size, compress=False, decode_text=True)
            _, _ = parser.feed_data(b"")  # to see whether it returns what `_BufferedReads` expects
            protocol._payload_parser = parser  # noqa: SLF001  (it accepts only the first one that is set)
        except (AttributeError, TypeError, ValueError):
            return
        self._reader, self._parser = queue, parser
        if self._coalescer is None:
            transport.set_protocol(_BufferedReads(self, protocol, parser, self._buffer))
        else:
            self._coalesced = self._coalescer.add(transport)
            transport.set_protocol(_CoalescedReads(self, protocol, parser, self._buffer, self._coalesced))

    async def read(self) -> None:
        """Reply to pings, and pass on the messages that are not pushed, until the socket is closed."""
        messages = 0
        while (message := await self.receive()).type not in _CLOSED:
            if message.type is _TEXT or message.type is _BINARY:
                self.on_message(message.data)
            elif message.type is not WSMsgType.ERROR:
                self.on_control()
                if message.type is WSMsgType.PING:
                    await self.pong(message.data)
            elif isinstance(message.data, WebSocketError):
                raise MalformedFrameError("the received data is not a WebSocket message")
            else:
                raise ConnectionError("the connection broke")
            self.on_read()  # taking a control message may have pushed those that waited behind it
            messages += 1
            if messages % _BURST == 0:
                await asyncio.sleep(0)
        if self.close_code == WSCloseCode.ABNORMAL_CLOSURE:
            raise ConnectionError("the connection broke")

    async def send_str(self, data: str, compress: int | None = None) -> None:
        await self._send(super().send_str(data, compress), len(data))

    async def ping(self, message: bytes = b"") -> None:
        if self._coalesced is not None:
            self._coalesced.read_at_once()  # the pong is short
        await self._send(super().ping(message), len(message))

    async def pong(self, message: bytes = b"") -> None:
        await self._send(super().pong(message), len(message))

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close the WebSocket, or wait until it is closed. aiohttp calls this too, when the other end closes it.

        A connection whose other end does not reply is reset, and so is one that does not close in time.
        """
        if self._coalesced is not None:
            self._coalesced.end()
        if self._close_task is None:
            closing = partial(super().close, code=code, message=message, drain=drain)
            self._close_task = self._track_task(self._close_in_time(closing))
        await asyncio.wait({self._close_task})
        return self._close_task.result()

    def abort(self) -> None:
        reset(self.transport)

    async def _close_in_time(self, closing: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer = loop.call_later(CLOSE_TIMEOUT, reset, self.transport)
        closed = await closing()
        # After a message that breaks the protocol aiohttp waits for no reply, and the close frame is still to be read.
        if self.close_code in _NO_CLOSE_FRAME and loop.time() - began >= _CLOSE_TIMEOUT:
            timer.cancel()
            reset(self.transport)
        return closed

    async def _send(self, sending: Coroutine[Any, Any, None], size: int) -> None:
        """Send a message; if it may block, in a task that continues when the sender is cancelled."""
        if self._sends_at_once(size):
            await sending
        else:
            task = self._track_task(sending)
            await asyncio.wait({task})
            task.result()

    def _sends_at_once(self, size: int) -> bool:
        """Return whether a message is written, or rejected, without waiting."""
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


class _Upgrade:
    """A request without the subprotocols that it offers: aiohttp would log them, and clients may put a token there."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.headers = CIMultiDict(request.headers)
        self.headers.popall(hdrs.SEC_WEBSOCKET_PROTOCOL, None)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever aiohttp reads)
        return getattr(self._request, name)


class _PushingQueue(WebSocketDataQueue):
    """aiohttp's queue of messages, for control messages only."""

    on_message: OnMessage

    def feed_data(self, message: Any, size: int) -> None:  # noqa: ANN401  (aiohttp has two types of messages)
        kind = message[0]
        if kind is _TEXT or kind is _BINARY:
            self.on_message(message[1])
        else:
            if kind is WSMsgType.CLOSE:  # everything after it must be ignored (RFC 6455, 5.5.1)
                self.on_message = _ignore
            super().feed_data(message, size)


def _ignore(*_: object) -> None:
    pass


class _BufferedReads(asyncio.BufferedProtocol):
    """Reads into a buffer that is shared by the sockets of one event loop, for a WebSocket's parser and protocol."""

    def __init__(
        self, socket: AudioSocket, protocol: web.RequestHandler, parser: WebSocketReader, buffer: memoryview
    ) -> None:
        self._socket = socket
        self._buffer = buffer
        self._feed = parser.feed_data
        self._on_invalid_data = protocol.close
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, _: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        is_invalid, _ = self._feed(self._buffer[:nbytes].tobytes())
        if is_invalid:
            self._on_invalid_data()
        self._socket.on_read()


class _CoalescedReads(_BufferedReads):
    def __init__(
        self,
        socket: AudioSocket,
        protocol: web.RequestHandler,
        parser: WebSocketReader,
        buffer: memoryview,
        coalesced: CoalescedReads,
    ) -> None:
        super().__init__(socket, protocol, parser, buffer)
        self._time = asyncio.get_running_loop().time
        self._coalesced = coalesced
        self._on_lost = protocol.connection_lost
        self.connection_lost = self._lose  # type: ignore[method-assign]

    def _lose(self, exc: Exception | None) -> None:
        self._coalesced.end()
        self._on_lost(exc)

    def buffer_updated(self, nbytes: int) -> None:
        self._coalesced.on_read(nbytes, self._time())
        super().buffer_updated(nbytes)
