"""A private redis-server for a test."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest
from attrs import define, field

BINARY = shutil.which("redis-server")
MISSING = "there is no redis-server on this machine: install Debian's package redis-server to have these tests run"


@define(eq=False)
class RedisServer:
    """A redis-server on its own socket, which persists nothing by default.

    Attributes:
        folder: directory of its socket and files.
        options: further command-line options.
        reconfigured: True if its configuration was changed after the start.
    """

    folder: Path
    options: Sequence[str] = ()
    reconfigured: bool = field(init=False, default=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def kept(self) -> bytes:
        """Everything in its append-only files."""
        return b"".join(path.read_bytes() for path in sorted((self.folder / "appendonlydir").iterdir()))

    def start(self) -> Self:
        assert BINARY is not None
        self.reconfigured = False
        settings = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(  # noqa: S603
            [BINARY, *settings, "--dir", str(self.folder), "--logfile", str(self.folder / "log"), *self.options]
        )
        until = time.monotonic() + 30
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)
        return self

    def answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except OSError:
            return False

    def ask(self, *words: str) -> bytes:
        """Send one command and return the raw reply; enough for short ones."""
        self.reconfigured |= words[0] == "CONFIG" or words[:2] == ("CLIENT", "PAUSE")
        with socket.socket(socket.AF_UNIX) as talk:
            talk.settimeout(30)
            talk.connect(str(self.socket))
            talk.sendall(
                f"*{len(words)}\r\n".encode() + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in map(str.encode, words))
            )
            return talk.recv(65536)

    def kill(self) -> None:
        """Kill it at once, as if the machine were lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)


@contextmanager
def redis_servers() -> Iterator[Callable[..., RedisServer]]:
    """Start servers with further options; all of them are stopped at the end of the block."""
    if BINARY is None:
        pytest.skip(MISSING)
    started: list[RedisServer] = []
    with TemporaryDirectory(prefix="redis-") as folder:  # not tmp_path, whose name may be too long for a socket

        def start(*options: str) -> RedisServer:
            place = Path(folder) / str(len(started))
            place.mkdir()
            started.append(RedisServer(place, options))
            return started[-1].start()

        try:
            yield start
        finally:
            for server in started:
                server.kill()
