"""Certificates for loopback, and receivers that are served."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import cache
from threading import Event
from typing import Any, TypeAlias

import aiohttp
import pytest
import trustme

from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import _resampling
from tests import waiting
from tests.uvicorn_server import AIOHTTP, served_by_uvicorn

Serve: TypeAlias = Callable[..., Any]
until = waiting.until


class Heard:
    """A handler that stores its sessions and events."""

    def __init__(self) -> None:
        self.sessions: list[StreamSession] = []
        self.events: list[object] = []
        self.ended: asyncio.Queue[StreamSession] = asyncio.Queue()

    async def __call__(self, session: StreamSession) -> None:
        self.sessions.append(session)
        async for event in session:
            self.events.append(event)
        self.ended.put_nowait(session)

    async def end(self) -> StreamSession:
        """Wait for a session that has ended."""
        async with asyncio.timeout(30):
            return await self.ended.get()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    """TLS context of a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """TLS context of a client that trusts it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the authorities of the system would take long to load
    authority.configure_trust(context)
    return context


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def default_tls(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    """TLS context of the receivers that a test serves without one, if pytest was called with --receiver-tls.

    Only where a client connects that speaks it, and not where a test writes HTTP to a socket of its own.
    """
    if not pytestconfig.getoption("--receiver-tls") or not {"dial", "deaf"} & set(request.fixturenames):
        return None
    context: ssl.SSLContext = request.getfixturevalue("certificate")
    return context


@pytest.fixture
async def serve(request: pytest.FixtureRequest, default_tls: ssl.SSLContext | None) -> AsyncIterator[Serve]:
    """Serve receivers; each is closed at the end of the test. A parameter names another server."""
    server = getattr(request, "param", AIOHTTP)
    async with AsyncExitStack() as stack:

        async def start(receiver: MediaReceiver, **options: Any) -> str:
            options = {"ssl_context": default_tls} | options
            serving = receiver.serve(**options) if server == AIOHTTP else served_by_uvicorn(receiver, server, **options)
            return await stack.enter_async_context(serving)

        yield start


@pytest.fixture
async def dial(trust: ssl.SSLContext) -> AsyncIterator[Callable[..., Any]]:
    """Connect to a receiver without a simulator."""
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(connector=connector) as session, AsyncExitStack() as stack:

        async def connect(url: str, token: str | None = None) -> aiohttp.ClientWebSocketResponse:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return await stack.enter_async_context(session.ws_connect(url, headers=headers))

        yield connect


class Importing:
    """The packages of a resampler, as if no one had been created; their import takes until the test ends it."""

    def __init__(self) -> None:
        self.may_end = Event()
        self.error: Exception | None = None
        packages = _resampling._packages

        @cache
        def imported() -> Any:
            assert self.may_end.wait(30)
            if self.error is not None:
                raise self.error
            return packages()

        self.packages = imported


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Importing:
    importing = Importing()
    monkeypatch.setattr(_resampling, "_packages", importing.packages)
    return importing
