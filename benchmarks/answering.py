"""A small Space: takes every start, and notes when it came. It stands in where nginx is not there, or can't count."""

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from attrs import define, field

from benchmarks.child import Respond

_LENGTH = b"content-length:"
_SIDS = count(1)


@define(eq=False)
class Arrivals:
    """When requests came.

    Attributes:
        times: of each, in seconds.
    """

    times: list[float] = field(factory=list)

    def busiest(self, window: float) -> int:
        """Give the most requests that any window of so many seconds held."""
        return max((bisect_right(self.times, at + window) - n for n, at in enumerate(self.times)), default=0)

    def within(self, begin: float, end: float) -> int:
        """Give how many came between two moments, in seconds from the first one."""
        first = self.times[0] if self.times else 0.0
        return bisect_right(self.times, first + end) - bisect_right(self.times, first + begin)


class _Answering(asyncio.Protocol):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._read = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            at = head.find(_LENGTH)
            length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._read) < end + 4 + length:
                return
            self._read = self._read[end + 4 + length :]
            self._arrivals.times.append(time.monotonic())
            assert self._transport is not None
            self._transport.write(_answer(head))


def _answer(head: bytes) -> bytes:
    if not head.startswith(b"post "):
        return b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
    document = {"data": {"result": "ok"}} if head.startswith(b"post /v2/") else _stream(head)
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _stream(head: bytes) -> dict[str, str]:
    path = head.split(b" ", 2)[1].decode()
    *_, account, _, target, _ = path.split("/")
    sid = f"{next(_SIDS):032x}"
    return {
        "sid": sid,
        "account_sid": account,
        "conference_sid": target,
        "name": "as asked",
        "status": "in-progress",
        "date_updated": "Sat, 21 Nov 2026 12:00:00 +0000",
        "uri": f"{path}/{sid}",
    }


@asynccontextmanager
async def serve(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Answer on a free port of this machine."""
    arrivals = Arrivals()
    server = await asyncio.get_running_loop().create_server(lambda: _Answering(arrivals), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        answer = {"port": port, "served": len(arrivals.times)}
        if "window" in command:
            window = command["window"]
            answer |= {"busiest": arrivals.busiest(window), "steady": arrivals.within(1.0, 1.0 + window)}
        if "forget" in command:
            arrivals.times.clear()
        return answer

    async with server:
        yield respond
