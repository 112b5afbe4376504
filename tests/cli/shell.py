"""Running the command line in this process, or as a separate process."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import frozen

from signalwire_streams._cli.main import _MODULES, run
from signalwire_streams.simulator import SimulatedSpace
from tests.forks import AVAILABLE, Fork, fork

PATIENCE = 30.0
COMMAND_LINE = ("-m", "signalwire_streams")
URL = "wss://audio.example.com/live"


@frozen
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[str]:
        """The lines on stdout, without bold type and trailing blanks."""
        return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON objects on stdout, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


def assert_usage_error(ran: Ran, sentence: str) -> None:
    """Assert that a command ended with this sentence in its one line, and did nothing."""
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert sentence in ran.err
    assert len(ran.err.splitlines()) == 1


def credentials(space: SimulatedSpace) -> dict[str, str]:
    """The environment of a client of a simulated Space."""
    return {
        "SIGNALWIRE_SPACE": space.base_url,
        "SIGNALWIRE_PROJECT_ID": space.project,
        "SIGNALWIRE_API_TOKEN": space.token,
    }


@frozen
class Shell:
    """Runs commands in a thread of this process, so that the test's loop can serve the Space."""

    capture: pytest.CaptureFixture[str]
    environment: pytest.MonkeyPatch

    async def __call__(self, *arguments: str) -> Ran:
        """Run a command."""
        async with asyncio.timeout(PATIENCE):
            code = await asyncio.to_thread(run, arguments)
        captured = self.capture.readouterr()
        return Ran(code, captured.out, captured.err)

    def pretend_terminal(self, columns: int) -> None:
        """Make stdout look like a terminal of this width."""
        self.environment.setattr(sys.stdout, "isatty", lambda: True)
        self.set({"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"})

    def set(self, environment: Mapping[str, str]) -> None:
        """Set environment variables for the commands to come."""
        for name, value in environment.items():
            self.environment.setenv(name, value)


@asynccontextmanager
async def process(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    python: Sequence[str] = COMMAND_LINE,
    program: str = sys.executable,
    stdout: int = asyncio.subprocess.PIPE,
    code: str | None = None,
    new: bool = False,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command, or code in its place, as a process, which does not outlive the block.

    It is a fork of a process that has the package imported, unless a new interpreter is wanted: because it is to run
    something else, its environment has variables that Python reads when it starts, or the test asks for it.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIGNALWIRE_")}
    own = environment or {}
    usual = (program, *python) == (sys.executable, *COMMAND_LINE)
    child: asyncio.subprocess.Process
    if AVAILABLE and usual and not new and not any(name.startswith("PYTHON") for name in own):
        imports = modules_of(arguments)
        child = await fork(*arguments, code=code, imports=imports, environment={**clean, **own}, stdout=stdout)
    else:
        child = await asyncio.create_subprocess_exec(
            program,
            *(python if code is None else ("-c", code)),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env={**clean, **own},
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()
        if isinstance(child, Fork):
            child.close()


def modules_of(arguments: Sequence[str]) -> list[str]:
    """List what a command imports."""
    command = _MODULES.get(arguments[0]) if arguments else None
    return ["signalwire_streams._cli.main", *([f"signalwire_streams._cli.{command}"] if command else [])]


async def end_of(child: asyncio.subprocess.Process, number: signal.Signals | None = None) -> Ran:
    """Wait for a process to end, after a signal if one is given."""
    if number is not None:
        child.send_signal(number)
    async with asyncio.timeout(PATIENCE):
        out, err = await child.communicate()
    assert child.returncode is not None
    return Ran(child.returncode, (out or b"").decode(), err.decode())


async def line_of(child: asyncio.subprocess.Process) -> str:
    """Read one line of a process's stdout."""
    assert child.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await child.stdout.readline()).decode()
