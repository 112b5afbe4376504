"""The server that starts are sent to: nginx with fixed responses if it is installed, else a small asyncio server."""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks.processes import Respond, child

# Responses have what SignalWire's and Twilio's have, except a name, which nginx cannot take from a form; telnyx uses
# a path of its own.
_CONFIGURATION = r"""
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  default_type application/json;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  server {
    listen 127.0.0.1:%(port)d backlog=4096;
    location = /served { stub_status; }
    location /v2/ {
      if ($request_method != POST) { return 405; }
      return 200 '{"data": {"result": "ok"}}';
    }
    location ~ ^(?<path>.*/Accounts/(?<account>[^/]+)/[A-Z][a-z]+/(?<target>[^/]+)/Streams)(\.json)?$ {
      if ($request_method != POST) { return 405; }
      return 200 '{"sid": "$request_id", "account_sid": "$account", "conference_sid": "$target", \
"status": "in-progress", "date_updated": "Sat, 21 Nov 2026 12:00:00 +0000", "uri": "$path/$request_id"}';
    }
  }
}
""".replace("\\\n", "")


@frozen
class Server:
    """A running server; ``served`` returns how many requests it has answered."""

    name: str
    base_url: str
    served: Callable[[], int]


@contextmanager
def server() -> Iterator[Server]:
    """Run a server for the length of a block."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        with child("servers:serve") as running:
            port = running.ask()["port"]
            yield Server("a small asyncio server", f"http://127.0.0.1:{port}", lambda: int(running.ask()["served"]))
        return
    with tempfile.TemporaryDirectory() as directory:
        port = _free_port()
        (Path(directory) / "nginx.conf").write_text(_CONFIGURATION % {"port": port}, "utf-8")
        process = subprocess.Popen([program, "-p", directory, "-c", "nginx.conf", "-e", "stderr"])  # noqa: S603
        try:
            _wait_for(port)
            yield Server(_version(program), f"http://127.0.0.1:{port}", _served_by_nginx(port))
        finally:
            process.terminate()
            process.wait(timeout=10)


def _served_by_nginx(port: int) -> Callable[[], int]:
    asked = count(1)

    def served() -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/served")
        found = re.search(r"(\d+) (\d+) (\d+)", connection.getresponse().read().decode())
        connection.close()
        assert found is not None
        return int(found[3]) - next(asked)

    return served


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _version(program: str) -> str:
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr  # noqa: S603
    return said.partition("nginx version: ")[2].strip() or "nginx"


_LENGTH = b"content-length:"


class Arrivals:
    """The times at which requests arrived, in seconds."""

    def __init__(self, times: list[float] | None = None) -> None:
        self.times = times or []

    def busiest(self, window: float) -> int:
        """Return the most requests in any window of this many seconds."""
        return max((bisect_right(self.times, at + window) - n for n, at in enumerate(self.times)), default=0)

    def within(self, begin: float, end: float) -> int:
        """Return the number of requests between two moments, in seconds from the first request."""
        first = self.times[0] if self.times else 0.0
        return bisect_right(self.times, first + end) - bisect_right(self.times, first + begin)


class _Connection(asyncio.Protocol):
    def __init__(self, arrivals: Arrivals, sids: "count[int]") -> None:
        self._arrivals = arrivals
        self._sids = sids
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
            self._transport.write(self._response(head))

    def _response(self, head: bytes) -> bytes:
        if not head.startswith(b"post "):
            return b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
        document = {"data": {"result": "ok"}} if head.startswith(b"post /v2/") else self._stream(head)
        body = json.dumps(document).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def _stream(self, head: bytes) -> dict[str, str]:
        path = head.split(b" ", 2)[1].decode()
        *_, account, _, target, _ = path.split("/")
        sid = f"{next(self._sids):032x}"
        return {
            "sid": sid,
            "account_sid": account,
            "conference_sid": target,
            "status": "in-progress",
            "date_updated": "Sat, 21 Nov 2026 12:00:00 +0000",
            "uri": f"{path}/{sid}",
        }


@asynccontextmanager
async def serve(_: dict[str, Any]) -> AsyncIterator[Respond]:
    """Run the small asyncio server, which also records when requests arrive."""
    arrivals, sids = Arrivals(), count(1)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(arrivals, sids), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]

    async def respond(command: dict[str, Any]) -> dict[str, Any]:
        answer = {"port": port, "served": len(arrivals.times)}
        if "window" in command:
            window = command["window"]
            begin = command.get("after", 1.0)
            answer |= {"busiest": arrivals.busiest(window), "steady": arrivals.within(begin, begin + window)}
        if "forget" in command:
            arrivals.times.clear()
        return answer

    async with listening:
        yield respond
