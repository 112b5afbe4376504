"""A receiver, callers that send it audio, and browsers that show its page; all over sockets, in virtual time."""

import asyncio
import base64
import json
import math
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeAlias

import aiohttp
import pytest
from yarl import URL

from signalwire_streams import Clock
from signalwire_streams.page import LivePage
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.receiver.audio._formats import pcm_to_mulaw
from tests.idle_clock import idle_clock

__all__ = ["idle_clock"]


def tone(hertz: int, amplitude: float = 0.5) -> bytes:
    """Return 20 ms of a tone, whose frames can be repeated, as µ-law."""
    samples = [round(32767 * amplitude * math.sin(2 * math.pi * hertz * at / 8000)) for at in range(160)]
    return pcm_to_mulaw(struct.pack("<160h", *samples))


SILENCE = b"\xff" * 160


class Caller:
    """The Space's end of a stream."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.sent = 0

    async def begin(self, sid: str, encoding: str = "audio/x-mulaw", **start: Any) -> None:
        media_format = {"encoding": encoding, "sampleRate": 8000, "channels": 1}
        facts = {"streamSid": sid, "tracks": ["inbound", "outbound"], "mediaFormat": media_format, **start}
        await self.socket.send_json({"event": "connected"})
        await self.socket.send_json({"event": "start", "start": facts})

    async def send(self, inbound: bytes = SILENCE, outbound: bytes = SILENCE, *, skip: int = 0) -> None:
        self.sent += 1 + skip
        for track, payload in (("inbound", inbound), ("outbound", outbound)):
            facts = {"track": track, "chunk": self.sent, "timestamp": 20 * self.sent}
            await self.socket.send_json(
                {"event": "media", "media": {**facts, "payload": base64.b64encode(payload).decode()}}
            )

    async def speak(self, frames: int, inbound: bytes = SILENCE, outbound: bytes = SILENCE) -> None:
        """Send frames in real time."""
        for _ in range(frames):
            await self.send(inbound, outbound)
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        await self.socket.send_json({"event": "stop"})
        await self.socket.close()


class View:
    """What a browser knows of the page, from the messages so far."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.rows: dict[int, dict[str, Any]] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self.keepers: dict[int, dict[str, Any]] = {}
        self.targets: dict[int, dict[str, Any]] = {}
        self.details: dict[str, Any] = {}
        self.wave: list[int] = []
        self.saw_secret = False
        self.wholes = self.hidden = 0

    async def read(self) -> None:
        text = await self.socket.receive_str()
        self.saw_secret |= "hush" in text
        message = json.loads(text)
        if "open" in message:
            self.details = message.get("details", self.details)
            self.wave = message.get("past", self.wave) + message.get("wave", [])
            return
        if message.get("all"):
            for known in self._known:
                known.clear()
            self.wholes += 1
        self.hidden = message["hidden"]
        for number in message.get("gone", []):
            for known in self._known:
                known.pop(number, None)
        self.rows |= {row["id"]: row for row in message.get("rows", [])}
        levels = iter(message.get("levels", []))
        for number, *both in zip(levels, levels, levels, strict=True):
            self.rows[number]["levels"] = both
        self.runs |= {run["id"]: run for run in message.get("runs", [])}
        self.keepers |= {keeper["id"]: keeper for keeper in message.get("keepers", [])}
        self.targets |= {row["id"]: row for row in message.get("targets", [])}

    @property
    def _known(self) -> list[dict[int, dict[str, Any]]]:
        return [self.rows, self.runs, self.keepers, self.targets]

    def states(self) -> Counter[str]:
        """Count a keeper's targets in each state."""
        return Counter(row["state"] for row in self.targets.values())

    def notes(self) -> list[str]:
        """Return what holds keepers up."""
        return [note for keeper in self.keepers.values() for note in keeper["notes"]]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await self.read()

    async def row(self, name: str) -> dict[str, Any]:
        """Wait for the row of a stream."""
        await self.until(lambda: any(row["name"] == name for row in self.rows.values()))
        return next(row for row in self.rows.values() if row["name"] == name)

    async def open(self, number: int | None) -> None:
        await self.socket.send_json({"open": number})


class Browser:
    def __init__(self, session: aiohttp.ClientSession, link: str) -> None:
        self.session, self.link, self.address = session, link, URL(link).with_query(None)
        self.origin = str(self.address.origin())
        self.sockets: list[aiohttp.ClientWebSocketResponse] = []

    async def get(self, path: str = "", **options: Any) -> aiohttp.ClientResponse:
        response = await self.session.get(self.address.join(URL(path)), **options)
        await response.read()
        return response

    async def enter(self) -> aiohttp.ClientResponse:
        """Follow the link."""
        response = await self.session.get(self.link)
        await response.read()
        return response

    async def socket(self, path: str = "socket", **headers: str) -> aiohttp.ClientWebSocketResponse:
        headers = {"Origin": self.origin} | headers
        self.sockets.append(await self.session.ws_connect(self.address.join(URL(path)), headers=headers))
        return self.sockets[-1]

    async def upgrade(self, path: str = "socket", **headers: str) -> int:
        """Return the status of an upgrade that is rejected."""
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        return (await self.get(path, headers={"Origin": self.origin, **upgrade, **key, **headers})).status

    async def close(self) -> None:
        for socket in self.sockets:
            await socket.close()

    async def view(self) -> View:
        return View(await self.socket())


Browse: TypeAlias = Callable[[str], Awaitable[Browser]]
Call: TypeAlias = Callable[..., Awaitable[Caller]]


class Handler:
    """Keeps its sessions, and counts their events."""

    def __init__(self) -> None:
        self.sessions: list[StreamSession] = []
        self.events = 0

    async def __call__(self, session: StreamSession) -> None:
        self.sessions.append(session)
        async for _ in session:
            self.events += 1


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def stack(idle_clock: Clock) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
async def receiver(handler: Handler) -> MediaReceiver:
    return MediaReceiver(handler, bearer_tokens=None)


@pytest.fixture
async def call(receiver: MediaReceiver, stack: AsyncExitStack) -> Call:
    """Connect as the Space does, and start a stream."""
    url = await stack.enter_async_context(receiver.serve())
    session = await stack.enter_async_context(aiohttp.ClientSession())
    callers: list[Caller] = []  # a socket is closed when no reference to it remains

    async def begin(sid: str = "s-1", **start: Any) -> Caller:
        caller = Caller(await session.ws_connect(url))
        callers.append(caller)
        stack.push_async_callback(caller.socket.close)
        await caller.begin(sid, **start)
        return caller

    return begin


@pytest.fixture
async def browse(stack: AsyncExitStack) -> Browse:
    """Open a browser, which has not followed its link yet."""

    async def start(link: str, **options: Any) -> Browser:
        jar = aiohttp.CookieJar(unsafe=True)  # of addresses, too
        session = aiohttp.ClientSession(cookie_jar=jar, connector=aiohttp.TCPConnector(limit=0, **options))
        browser = Browser(await stack.enter_async_context(session), link)
        stack.push_async_callback(browser.close)
        return browser

    return start


@pytest.fixture
async def page(receiver: MediaReceiver) -> LivePage:
    return LivePage(receivers=[receiver])


@pytest.fixture
async def link(page: LivePage, stack: AsyncExitStack) -> str:
    return await stack.enter_async_context(page.serve())


@pytest.fixture
async def browser(link: str, browse: Browse) -> Browser:
    """A browser that has followed the page's link."""
    opened = await browse(link)
    assert (await opened.enter()).status == 200
    return opened


@contextmanager
def no_task_left() -> Iterator[None]:
    """Check that the block leaves no task behind; call it around the use of a page."""
    before = asyncio.all_tasks()
    yield
    assert not {task for task in asyncio.all_tasks() - before if not task.done()}
