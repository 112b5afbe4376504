"""The other side of a start: nginx with a fixed answer, so that it costs little and is the same for everybody."""

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from attrs import frozen

from benchmarks.children import child

# The answer has what SignalWire's and Twilio's have; telnyx asks under a path of its own.
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
      return 200 '{"sid": "$request_id", "account_sid": "$account", "conference_sid": "$target", "name": "as asked", \
"status": "in-progress", "date_updated": "Sat, 21 Nov 2026 12:00:00 +0000", "uri": "$path/$request_id"}';
    }
  }
}
""".replace("\\\n", "")


@frozen
class Server:
    """What starts are sent to.

    Attributes:
        name: what it is.
        base_url: where.
        served: gives how many requests it has answered.
    """

    name: str
    base_url: str
    served: Callable[[], int]


@contextmanager
def server() -> Iterator[Server]:
    """Run nginx, or what stands in for it, until the block ends."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        with child("benchmarks.answering:serve") as answering:
            port = answering.ask()["port"]
            yield Server("a small asyncio server", f"http://127.0.0.1:{port}", lambda: int(answering.ask()["served"]))
        return
    with tempfile.TemporaryDirectory() as directory:
        port = _free_port()
        (Path(directory) / "nginx.conf").write_text(_CONFIGURATION % {"port": port}, "utf-8")
        command = [program, "-p", directory, "-c", "nginx.conf", "-e", "stderr"]
        process = subprocess.Popen(command)  # noqa: S603
        try:
            _wait_for(port)
            yield Server(_version(program), f"http://127.0.0.1:{port}", _Counter(port))
        finally:
            process.terminate()
            process.wait(timeout=10)


class _Counter:
    """Asks nginx how many requests it has answered, and leaves the asking out."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._asked = 0

    def __call__(self) -> int:
        self._asked += 1
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request("GET", "/served")
        text = connection.getresponse().read().decode()
        connection.close()
        found = re.search(r"(\d+) (\d+) (\d+)", text)
        assert found is not None, text
        return int(found[3]) - self._asked


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
