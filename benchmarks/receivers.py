"""Contenders that receive audio: by hand, with other libraries and with `MediaReceiver`. Each runs in its own child."""
# ruff: noqa: PLC0415  (a child imports only the library that it measures; the others may not be installed)

import asyncio
import gc
import json
import socket
import ssl
import time
from array import array
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any, Self

from benchmarks.callgrind import counting
from benchmarks.figures import cpu, page_faults, percentile
from benchmarks.processes import Respond, Target
from benchmarks.sender import OCTETS, TOKEN, FrameCount

_STALLED = 3.0  # seconds without a frame, after which no more are expected
_POLL = 0.1  # seconds; each poll costs about as much as a frame


class Received:
    """Totals received on all sockets.

    Attributes:
        open_sockets: the number of open sockets.
        frames: media frames that reached the handler.
        octets: their audio.
        epoch: when the first frame was due; None if frames are sent as fast as they are read.
        delays: the delay of each frame, in seconds.
        certificate: the file with the certificate and the key to serve with; None serves without TLS.
        handled: counts the frames for the sender as well, if it waits for each.
    """

    def __init__(self, certificate: str | None = None) -> None:
        self.certificate = certificate
        self.handled: FrameCount | None = None
        self.open_sockets = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was received."""
        self.frames = self.octets = 0
        self.epoch: float | None = None
        self.delays = array("d")

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context to serve with."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context

    def percentiles(self) -> dict[str, float]:
        """Return the delays' percentiles; none if they are unknown."""
        return {f"p{n}": percentile(self.delays, n / 100) for n in (50, 99)} if self.delays else {}


class Socket:
    """One open socket: counts its frames until the block ends.

    Args:
        received: where they are counted.
        parameters: those of the start event; ``phase`` is the offset of this socket's frames in seconds.
    """

    def __init__(self, received: Received, parameters: Mapping[str, str]) -> None:
        self._received = received
        self._phase = float(parameters["phase"])

    def __enter__(self) -> Self:
        self._received.open_sockets += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._received.open_sockets -= 1

    def add(self, timestamp: int, payload: bytes) -> None:
        """Count a frame."""
        received = self._received
        received.frames += 1
        received.octets += len(payload)
        if received.handled is not None:
            received.handled.add()
        if received.epoch is not None:
            received.delays.append(time.monotonic() - received.epoch - self._phase - timestamp / 1_000)


def _measured(receiver: Callable[[Received], AbstractAsyncContextManager[int]]) -> Target:
    """Create a target from a receiver, which serves for the length of a block and returns its port."""

    @asynccontextmanager
    async def target(settings: dict[str, Any]) -> AsyncIterator[Respond]:
        handled = FrameCount(settings["handled"]) if "handled" in settings else None
        received = Received(settings.get("certificate"))
        used, faults, before = 0.0, 0, 0
        async with receiver(received) as port:
            counted = ExitStack()

            def begin() -> None:
                nonlocal used, faults, before
                received.delays = array("d")
                used, faults, before = cpu(), page_faults(), received.frames

            async def respond(command: dict[str, Any]) -> dict[str, Any]:
                if "sockets" in command:
                    await _until(lambda: received.open_sockets == command["sockets"])
                    received.clear()
                    gc.collect()
                    received.epoch = epoch = command["epoch"]
                    received.handled = handled if command.get("one_by_one", False) else None
                    begin()
                    if epoch is not None and command["warm_up"]:
                        warm_up = epoch + command["warm_up"] - time.monotonic()
                        asyncio.get_running_loop().call_later(warm_up, begin)
                    counted.enter_context(counting(enabled=command.get("counted", False)))
                if "frames" in command:
                    await _all_received(received, command["frames"])
                    counted.close()
                    measured = {"cpu": cpu() - used, "faults": page_faults() - faults, "of": received.frames - before}
                    return {**measured, "frames": received.frames, "octets": received.octets, **received.percentiles()}
                return {"port": port}

            yield respond

    return target


async def _until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_reached():  # noqa: ASYNC110  (nothing is measured meanwhile)
            await asyncio.sleep(_POLL)


async def _all_received(received: Received, frames: int) -> None:
    last, since = received.frames, time.monotonic()
    while received.frames < frames and time.monotonic() - since < _STALLED:
        await asyncio.sleep(_POLL)
        if received.frames != last:
            last, since = received.frames, time.monotonic()


class _Handler:
    """Handles frames as one does without a library for them."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._socket: Socket | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def handle(self, text: str | bytes) -> None:
        """Decode a frame."""
        frame: dict[str, Any] = json.loads(text)
        if frame["event"] == "media":
            media = frame["media"]
            assert self._socket is not None
            self._socket.add(int(media["timestamp"]), b64decode(media["payload"]))
        elif frame["event"] == "start":
            self._socket = self._stack.enter_context(Socket(self._received, frame["start"]["customParameters"]))


class _IgnoringHandler(_Handler):
    """Decodes no audio: what remains is the cost of aiohttp."""

    def handle(self, text: str | bytes) -> None:
        """Count a frame."""
        if self._socket is None:
            super().handle(text)
        else:
            self._received.frames += 1
            self._received.octets += OCTETS


@asynccontextmanager
async def _aiohttp_route(received: Received, handler: type[_Handler]) -> AsyncIterator[int]:
    from aiohttp import WSMsgType, web

    async def audio(request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        with handler(received) as handling:
            async for message in response:
                if message.type is WSMsgType.TEXT:
                    handling.handle(message.data)
        return response

    application = web.Application()
    application.router.add_get("/", audio)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=received.tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


aiohttp = _measured(lambda received: _aiohttp_route(received, _Handler))
ignoring = _measured(lambda received: _aiohttp_route(received, _IgnoringHandler))


@_measured
@asynccontextmanager
async def fastapi(received: Received) -> AsyncIterator[int]:
    """Serve a FastAPI application with uvicorn and its "standard" extra, on the running loop."""
    from fastapi import FastAPI, WebSocket
    from uvicorn import Config, Server

    async def audio(websocket: WebSocket) -> None:
        await websocket.accept()
        with _Handler(received) as handling:
            async for text in websocket.iter_text():
                handling.handle(text)

    application = FastAPI()
    application.add_api_websocket_route("/", audio)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)  # before uvicorn does, since the port is returned at once
        quiet: dict[str, Any] = {"log_level": "error", "access_log": False}
        server = Server(Config(application, backlog=1024, ssl_certfile=received.certificate, **quiet))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@_measured
@asynccontextmanager
async def websockets(received: Received) -> AsyncIterator[int]:
    """Serve with the websockets library."""
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosedError

    async def audio(connection: ServerConnection) -> None:
        with _Handler(received) as handling:
            try:
                async for message in connection:
                    handling.handle(message)
            except ConnectionClosedError:
                return

    async with serve(audio, "127.0.0.1", 0, ssl=received.tls) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def _media_receiver(received: Received, **options: Any) -> AsyncIterator[int]:  # noqa: ANN401
    """Serve with `MediaReceiver`: typed events, the bounded queue, checked tokens, statistics."""
    from yarl import URL

    from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession

    async def handler(session: StreamSession) -> None:
        with Socket(received, session.start.custom_parameters) as counted:
            async for event in session:
                if isinstance(event, MediaEvent):
                    counted.add(event.timestamp or 0, event.payload)

    async with MediaReceiver(handler, bearer_tokens=TOKEN, **options).serve(ssl_context=received.tls) as url:
        yield URL(url).port or 0


media_receiver = _measured(_media_receiver)
coalescing = _measured(lambda received: _media_receiver(received, coalesce=0.1))
