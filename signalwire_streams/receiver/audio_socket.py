"""The WebSocket of one stream. It protects what aiohttp shares between the senders of a connection, and closes in time.

All senders that wait for a connection to take more data wait for one future of aiohttp's. To cancel one of them cancels
that future, and with it all the others. So whatever may wait there runs in a task that is not cancelled.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from aiohttp import WSCloseCode, web

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
