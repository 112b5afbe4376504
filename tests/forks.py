"""Child processes without the half second that a new interpreter spends on imports.

They are forks of a server that has the package imported. A fork has its own descriptors, environment, working
directory and signal handlers, and ends as an interpreter does: exit handlers run and output is flushed. What an
interpreter reads only when it starts, as the variables ``PYTHON*``, needs a new process.
"""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from tests.fork_server import LENGTH

AVAILABLE = hasattr(os, "fork") and hasattr(socket, "send_fds")
_ROOT = Path(__file__).parents[1]


class Fork(asyncio.subprocess.Process):
    """A fork, used like any other process of asyncio's; its stdin is empty."""

    def __init__(self, pid: int, ended: "asyncio.Task[int]") -> None:
        self.pid = pid
        self.stdin = None
        self.stdout = None
        self.stderr = None
        self._ended = ended
        self._pipes: list[asyncio.BaseTransport] = []

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs; minus the signal's number where a signal ended it."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait for its end."""
        return await asyncio.shield(self._ended)

    def send_signal(self, signal: int) -> None:
        """Send it a signal."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def communicate(self, input: bytes | bytearray | memoryview | None = None) -> tuple[bytes, bytes]:  # noqa: A002  (asyncio's name)
        """Read all its output, and wait for its end."""
        assert input is None
        out, err = await asyncio.gather(*(_all_of(stream) for stream in (self.stdout, self.stderr)))
        await self.wait()
        return out, err

    async def read_from(self, pipe: BinaryIO) -> asyncio.StreamReader:
        """Read one end of a pipe, until `close`."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._pipes.append(transport)
        return reader

    def close(self) -> None:
        """Close the pipes."""
        for pipe in self._pipes:
            pipe.close()


async def fork(
    *arguments: str,
    module: str = "signalwire_streams",
    code: str | None = None,
    imports: Sequence[str] = (),
    environment: Mapping[str, str],
    stdout: int | None = asyncio.subprocess.PIPE,
    stderr: int | None = asyncio.subprocess.PIPE,
) -> Fork:
    """Run a module, or code, in a fork.

    Args:
        arguments: for ``sys.argv``.
        module: what to run, as with ``python -m``.
        code: what to run instead, as with ``python -c``.
        imports: what the server imports before it forks, for this child and all later ones.
        environment: the whole environment.
        stdout: PIPE, or a descriptor; None for that of this process.
        stderr: the same.
    """
    request = {
        "arguments": arguments,
        "module": module,
        "code": code,
        "imports": imports,
        "environment": dict(environment),
        "folder": str(Path.cwd()),
    }
    with contextlib.ExitStack() as theirs:
        report, to_report = socket.socketpair()
        theirs.enter_context(to_report)
        nothing = os.open(os.devnull, os.O_RDONLY)
        theirs.callback(os.close, nothing)
        outputs = [_Output.of(wanted, number) for number, wanted in ((1, stdout), (2, stderr))]
        for output in outputs:
            if output.pipe is not None:
                theirs.callback(os.close, output.descriptor)
        descriptors = [to_report.fileno(), nothing, *(output.descriptor for output in outputs)]
        _Server.get().send(request, descriptors)
    reports, writer = await asyncio.open_connection(sock=report)
    pid = int(await reports.readline())
    child = Fork(pid, asyncio.create_task(_exit_code(reports, writer)))
    child.stdout, child.stderr = [
        None if output.pipe is None else await child.read_from(output.pipe) for output in outputs
    ]
    return child


async def _exit_code(reports: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    try:
        return int(await reports.readline())
    finally:
        writer.close()


async def _all_of(stream: asyncio.StreamReader | None) -> bytes:
    return b"" if stream is None else await stream.read()


@frozen
class _Output:
    """Where a child writes to.

    Attributes:
        descriptor: what the child gets.
        pipe: the end that is read here, if it is a pipe.
    """

    descriptor: int
    pipe: BinaryIO | None

    @classmethod
    def of(cls, wanted: int | None, number: int) -> "_Output":
        if wanted == asyncio.subprocess.PIPE:
            reading, writing = os.pipe()
            return cls(writing, os.fdopen(reading, "rb", buffering=0))
        return cls(number if wanted is None else wanted, None)


@frozen
class _Server:
    """The process that forks, one for this process and all its tests."""

    process: "subprocess.Popen[bytes]"
    control: socket.socket

    @classmethod
    @functools.cache
    def get(cls) -> "_Server":
        """Start the server, or return the one that runs."""
        ours, theirs = socket.socketpair()
        with theirs:
            server = cls(
                subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                    cwd=_ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the tests
                ),
                ours,
            )
        atexit.register(server.close)
        return server

    def send(self, request: Mapping[str, object], descriptors: Sequence[int]) -> None:
        """Send a request for a fork."""
        body = json.dumps(request).encode()
        socket.send_fds(self.control, [f"{len(body):{LENGTH}}".encode()], descriptors)
        self.control.sendall(body)

    def close(self) -> None:
        """End it; it ends by itself if this process is killed."""
        self.control.close()
        self.process.wait()
