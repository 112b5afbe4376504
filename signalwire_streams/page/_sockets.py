"""The WebSockets of a live page: what it shows, and the audio of one stream."""
# ruff: noqa: SLF001  (what is private to users of a session is not to this package)

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

from aiohttp import WSCloseCode, WSMsgType, web

from signalwire_streams.page._board import FRAME_MS, TICK, Board, StreamRow
from signalwire_streams.receiver._aiohttp_socket import reset

TRY_AGAIN_LATER = WSCloseCode.TRY_AGAIN_LATER
"""Close code of a socket that is one too many."""

_LOG = logging.getLogger("signalwire_streams.page")
_HEARTBEAT = 20.0  # seconds between pings
_CLOSE_TIMEOUT = 2.0
_SEND_TIMEOUT = 10.0  # seconds that a browser may read nothing
_MAX_MESSAGE = 1024  # bytes that a browser may send
_DETAILS_EVERY = round(1 / TICK)
_DELAY_MS = 60  # that audio waits for what is late
_MAX_AUDIO = 50  # frames of 20 ms that wait for a browser


Use: TypeAlias = Callable[[web.WebSocketResponse], Awaitable[object]]


class Sockets:
    """The open WebSockets of one kind, up to a limit."""

    def __init__(self, most: int, refusal: str) -> None:
        self._most, self._refusal = most, refusal
        self._open: dict[web.WebSocketResponse, web.BaseRequest] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def serve(self, request: web.BaseRequest, use: Use) -> web.WebSocketResponse:
        """Accept a WebSocket, use it, and close it."""
        socket = web.WebSocketResponse(
            timeout=_CLOSE_TIMEOUT, heartbeat=_HEARTBEAT, max_msg_size=_MAX_MESSAGE, compress=False
        )
        with suppress(ConnectionError):  # the browser left
            await socket.prepare(request)
            if len(self._open) >= self._most:
                await _close(request, socket, TRY_AGAIN_LATER, self._refusal)
                return socket
            self._open[socket] = request
            try:
                await use(socket)
            finally:
                del self._open[socket]
                await _close(request, socket, WSCloseCode.OK)
        return socket

    async def close(self) -> None:
        await asyncio.gather(
            *(_close(request, socket, WSCloseCode.GOING_AWAY) for socket, request in self._open.items())
        )


async def _close(request: web.BaseRequest, socket: web.WebSocketResponse, code: int, reason: str = "") -> None:
    """Close a socket; reset the connection of a browser that does not respond."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await socket.close(code=code, message=reason.encode())
    except (TimeoutError, ConnectionError):
        reset(request.transport)


async def _send_in_time(request: web.BaseRequest, sending: Coroutine[Any, Any, object]) -> None:
    """Send to a browser; reset the connection if it has not read anything for too long."""
    try:
        async with asyncio.timeout(_SEND_TIMEOUT):
            await sending
    except TimeoutError:
        _LOG.info("closed the connection of a browser at %s that reads nothing", request.remote)
        reset(request.transport)
        raise ConnectionResetError from None


class PageSocket:
    """An open page: it gets the board, and the details of one stream."""

    def __init__(self, board: Board, request: web.BaseRequest, socket: web.WebSocketResponse) -> None:
        self._board, self._request, self._socket = board, request, socket
        self._opened: StreamRow | None = None
        self._is_new = False  # whether the opened stream was not sent yet

    async def run(self) -> None:
        self._board.open()
        sending = asyncio.create_task(self._send_all())
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.TEXT or not self._read(message.data):
                    break
        finally:
            sending.cancel()
            self._show(None)
            await self._board.close()
            await asyncio.wait([sending])

    def _read(self, text: str) -> bool:
        """Open the stream that the page asks for; return False if it can't be read."""
        try:
            number = json.loads(text)["open"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        self._show(self._board.streams.get(number) if type(number) is int else None)
        return True

    def _show(self, row: StreamRow | None) -> None:
        if self._opened is not None:
            self._opened.watchers -= 1
        if row is not None:
            row.watchers += 1
        self._opened, self._is_new = row, True

    async def _send_all(self) -> None:
        tick = 0
        with suppress(ConnectionError, RuntimeError):  # the browser left
            while True:
                await self._board.wait(tick)
                texts, tick = self._board.since(tick), self._board.tick
                for text in texts:
                    await _send_in_time(self._request, self._socket.send_str(text))
                if self._opened is not None and self._opened.id in self._board.streams:
                    await self._send_details(self._opened, tick)

    async def _send_details(self, row: StreamRow, tick: int) -> None:
        message: dict[str, Any] = {"open": row.id}
        if self._is_new:
            self._is_new = False
            message["past"] = list(row.wave)
        else:
            message["wave"] = row.levels
        if "past" in message or tick % _DETAILS_EVERY == 0:
            message["details"] = row.details()
        await _send_in_time(self._request, self._socket.send_str(json.dumps(message, separators=(",", ":"))))


async def play(row: StreamRow, request: web.BaseRequest, socket: web.WebSocketResponse) -> None:
    """Send the audio of a stream in real time: its sample rate, then frames of 16-bit stereo PCM."""
    session = row.session
    _LOG.info("a browser at %s listens to stream %s", request.remote, session.label, extra={"stream": session.label})
    with session._overhear(max_frames=_MAX_AUDIO) as tap:
        frames = tap.pcm(
            session.audio_format.sample_rate, tracks="stereo", frame_ms=FRAME_MS, late="drop", delay_ms=_DELAY_MS
        )
        reading = asyncio.create_task(_wait_closed(socket, frames.close))
        try:
            await _send_in_time(request, socket.send_json({"rate": session.audio_format.sample_rate}))
            async for frame in frames:
                if reading.done():
                    break
                await _send_in_time(request, socket.send_bytes(frame.data))
        except (ConnectionError, RuntimeError):  # the browser left
            pass
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            _LOG.info(
                "a browser at %s no longer listens to stream %s",
                request.remote,
                session.label,
                extra={"stream": session.label},
            )


async def _wait_closed(socket: web.WebSocketResponse, close: Any) -> None:  # noqa: ANN401
    """Read until the browser closes the socket; it has nothing to say."""
    async for _ in socket:
        break
    close()
