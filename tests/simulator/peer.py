"""A plain HTTP client for a Space."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import ClientSession, TCPConnector
from attrs import define, frozen

from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
FORM = "application/x-www-form-urlencoded"


@frozen
class Reply:
    """A complete response."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@define(eq=False)
class Peer:
    """Sends requests to a Space, authenticated by default."""

    space: SimulatedSpace
    session: ClientSession

    def path(self, *segments: str) -> str:
        account = f"/api/laml/2010-04-01/Accounts/{self.space.project}"
        return "/".join([account, *(quote(segment, safe="") for segment in segments)])

    def authorization(self, token: str | None = None) -> str:
        pair = f"{self.space.project}:{self.space.token if token is None else token}"
        return f"Basic {b64encode(pair.encode()).decode()}"

    async def send(
        self, method: str, path: str, body: bytes | BytesIO | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        everything = {"Authorization": self.authorization(), "Content-Type": FORM, **(headers or {})}
        url = f"{self.space.base_url}{path}"
        async with self.session.request(method, url, data=body, headers=everything, allow_redirects=False) as response:
            return Reply(response.status, await response.read(), dict(response.headers))

    async def get(self, *segments: str, query: Mapping[str, str] | None = None) -> Reply:
        suffix = f"?{urlencode(query)}" if query else ""
        return await self.send("GET", self.path(*segments) + suffix)

    async def post(self, fields: Mapping[str, str], *segments: str) -> Reply:
        return await self.send("POST", self.path(*segments), urlencode(fields).encode())

    async def start(self, conference_sid: str | None = None, **fields: str) -> Reply:
        """Start a stream on a conference, by default on the first one."""
        sid = self.space.conference_sids[0] if conference_sid is None else conference_sid
        return await self.post({"Url": URL, **fields}, "Conferences", sid, "Streams")

    async def stop(self, stream: str, conference_sid: str | None = None) -> Reply:
        sid = self.space.conference_sids[0] if conference_sid is None else conference_sid
        return await self.post({"Status": "stopped"}, "Conferences", sid, "Streams", stream)

    async def start_on_call(self, call_sid: str | None = None, **fields: str) -> Reply:
        sid = self.space.call_sids[0] if call_sid is None else call_sid
        return await self.post({"Url": URL, **fields}, "Calls", sid, "Streams")

    async def stop_on_call(self, stream: str, call_sid: str | None = None) -> Reply:
        sid = self.space.call_sids[0] if call_sid is None else call_sid
        return await self.post({"Status": "stopped"}, "Calls", sid, "Streams", stream)


@asynccontextmanager
async def simulated(conferences: int = 1, calls: int = 1, **options: Any) -> AsyncIterator[Peer]:
    """Run a Space, and a client for it."""
    async with (
        SimulatedSpace(conferences=conferences, calls=calls, **options) as space,
        ClientSession(connector=TCPConnector(limit=0)) as session,
    ):
        yield Peer(space, session)


@define(eq=False)
class Clock:
    """A clock that stands still until it is moved."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def assert_logged(peer: Peer, fault: str, status: int | None, *, executed: bool) -> None:
    """Assert what the Space logged of its only request."""
    [request] = peer.space.requests
    assert (request.fault, request.status) == (fault, status)
    assert [request.created] == [stream.sid for stream in peer.space.streams] if executed else not request.created
    assert len(peer.space.streams) == executed
