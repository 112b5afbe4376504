"""The WebSocket of one stream behind an ASGI server.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from signalwire_streams._asgi import Message, Receive, Send
from signalwire_streams.errors import MalformedFrameError
from signalwire_streams.receiver._socket import CloseCode, OnMessage

_CLOSE_TIMEOUT = 3.0  # seconds for a socket to close, beginning with the close frame
_BURST = 100  # messages that are read before other tasks get a turn
_ABNORMAL_CLOSURE = 1006  # RFC 6455, 7.4.1: the connection was lost
_MESSAGE_TOO_BIG = 1009
_CLOSED = "the socket is closed"


class AsgiSocket:
    """A WebSocket behind an ASGI server, which replies to pings and closes the connection once the application returns.

    It can't be reset, so `abort` only cancels pending sends.
    """

    def __init__(self, receive: Receive, send: Send, *, max_size: int) -> None:
        self.on_message: OnMessage = _ignore
        self.on_read: Callable[[], None] = _ignore
        self.on_control: Callable[[], None] = _ignore
        self._receive = receive
        self._send_message = send
        self._max_size = max_size
        self._is_closed = False
        self._sends: set[asyncio.Task[None]] = set()

    async def accept(self) -> None:
        """Accept the upgrade.

        Raises:
            ConnectionError: the client has disconnected.
        """
        if (await self._receive())["type"] != "websocket.connect":
            self._is_closed = True
            raise ConnectionError(_CLOSED)
        await self._send({"type": "websocket.accept"})

    async def read(self) -> None:
        messages = 0
        while (message := await self._receive())["type"] == "websocket.receive":
            data = message.get("text")
            if data is None:
                data = message["bytes"]
            if len(data) > self._max_size:  # at most: of text it counts characters
                await self.close(code=_MESSAGE_TOO_BIG)
                raise MalformedFrameError("a received message is longer than frame_limit")
            self.on_message(data)
            self.on_read()
            messages += 1
            if messages % _BURST == 0:
                await asyncio.sleep(0)
        self._is_closed = True
        if message.get("code") == _ABNORMAL_CLOSURE:
            raise ConnectionError("the connection broke")

    async def send_str(self, data: str) -> None:
        await self._send({"type": "websocket.send", "text": data})

    async def ping(self) -> None:
        """Do nothing: an ASGI application can't send pings, but its server may."""

    async def close(self, *, code: int = CloseCode.OK) -> None:
        if self._is_closed:
            return
        closing = self._track(self._close(code))
        self._is_closed = True
        await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT)
        self.abort()

    def abort(self) -> None:
        self._is_closed = True
        for task in self._sends:
            task.cancel()

    async def _send(self, message: Message) -> None:
        """Send a message in a task, which continues when the sender is cancelled."""
        if self._is_closed:
            raise ConnectionError(_CLOSED)
        task = self._track(self._send_now(message))
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            # Servers raise errors of their own kinds once the client has disconnected.
            self._is_closed = True
            raise ConnectionError(_CLOSED) from (None if task.cancelled() else task.exception())

    async def _close(self, code: int) -> None:
        try:
            await self._send_message({"type": "websocket.close", "code": int(code)})
        except Exception:  # noqa: BLE001  (Daphne refuses codes below 3000)
            await self._send_message({"type": "websocket.close", "code": int(CloseCode.OK)})
        # Until the application has read what arrived before the other end's close, Hypercorn keeps the connection.
        while (await self._receive())["type"] != "websocket.disconnect":
            pass

    def _track(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._sends.add(task)
        task.add_done_callback(self._forget)
        return task

    async def _send_now(self, message: Message) -> None:
        await self._send_message(message)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._sends.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it when its sender was cancelled


def _ignore(*_: object) -> None:
    pass
