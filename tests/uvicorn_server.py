"""Receivers that are mounted in a FastAPI application behind uvicorn, with each of its WebSocket implementations."""

import asyncio
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from signalwire_streams.receiver import MediaReceiver

AIOHTTP = "aiohttp"
UVICORN = ("websockets", "wsproto", "websockets-sansio")


class WithoutSignals(uvicorn.Server):
    """A server that leaves signals to the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running(
    application: Any,
    websockets: str,
    ssl_context: ssl.SSLContext | None = None,
    server_class: type[WithoutSignals] = WithoutSignals,
) -> AsyncIterator[WithoutSignals]:
    """Run a server on a free port of loopback; yield it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both packages deprecate one of the implementations
        config = uvicorn.Config(
            application,
            ws=websockets,
            log_config=None,
            lifespan="on",
            ws_ping_interval=None,
            timeout_graceful_shutdown=5,
        )
        config.load()
    config.ssl = ssl_context
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = server_class(config)
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:  # noqa: ASYNC110  (uvicorn sets no event)
            await asyncio.sleep(0)
        try:
            yield server
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def served_by_uvicorn(
    receiver: MediaReceiver, websockets: str, *, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve a receiver until the block ends, and close it as an application has to: before its server."""
    application = FastAPI()
    application.mount("/audio", receiver.asgi)
    async with running(application, websockets, ssl_context) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"{'ws' if ssl_context is None else 'wss'}://127.0.0.1:{port}/audio/"
        await receiver.aclose()


def for_each_server(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a module over aiohttp and uvicorn, but those of what each server decides itself."""
    if "serve" in metafunc.fixturenames:
        uvicorns = UVICORN if metafunc.config.getoption("--every-server") else UVICORN[-1:]
        only = metafunc.definition.get_closest_marker("server_owns")
        metafunc.parametrize("serve", [AIOHTTP] if only else [AIOHTTP, *uvicorns], indirect=True)
