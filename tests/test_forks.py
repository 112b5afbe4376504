"""A fork behaves like a process that was started anew."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.forks import AVAILABLE, fork

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this platform has no fork")
FACTS = """
import atexit, json, os, signal, sys
atexit.register(print, "exit handlers run")
variables = sorted(os.environ.keys() - {"LC_CTYPE"})  # which an interpreter may set when it starts
facts = [sys.argv, os.getcwd(), variables, os.environ["OWN"], __name__, sys.stdin.read()]
streams = [[s.encoding, s.errors, s.line_buffering, s.newlines] for s in (sys.stdin, sys.stdout, sys.stderr)]
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)]
print(json.dumps([facts, streams, str(handlers)]))
print(sorted(int(name) for name in os.listdir("/dev/fd"))[:3], file=sys.stderr)
"""
ENDINGS = {
    "success": "pass",
    "exit code": "sys.exit(7)",
    "exit message": "sys.exit('a reason')",
    "exception": "raise KeyError('what went wrong')",
    "signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupt": "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "closed stdout": "os.close(1); print('x', flush=True)",
}


async def both(code: str, *arguments: str) -> tuple[tuple[int | None, bytes, bytes], tuple[int | None, bytes, bytes]]:
    """Run code in a fork, and in a new interpreter."""
    environment = {**os.environ, "OWN": "1"}
    forked = await fork(*arguments, code=code, environment=environment)
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    command = (sys.executable, "-c", code, *arguments)
    new = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe, stderr=pipe, env=environment)
    outputs = await asyncio.gather(forked.communicate(), new.communicate())
    forked.close()
    return (forked.returncode, *outputs[0]), (new.returncode, *outputs[1])


async def test_fork_runs_as_a_new_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, folder, environment, standard streams and signal handlers are those of a new process."""
    monkeypatch.chdir(tmp_path)
    forked, new = await both(FACTS, "an argument", "ünïcode")

    assert forked == new
    assert forked[0] == 0
    assert forked[1].endswith(b"exit handlers run\n")


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_fork_ends_as_a_new_process_does(ending: str) -> None:
    """The exit code and what was printed are the same, however the code ends."""
    code = f"import os, signal, sys, time\nprint('a line', end=''); {ending}"
    forked, new = await both(code)

    assert forked[:2] == new[:2]
    assert forked[2].splitlines()[-1:] == new[2].splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_fork_receives_signals(number: signal.Signals) -> None:
    """It takes signals while it runs, and ignores none."""
    forked = await fork(code="import time; print('ready', flush=True); time.sleep(60)", environment=os.environ)
    assert forked.stdout is not None
    assert await forked.stdout.readline() == b"ready\n"
    assert forked.returncode is None
    forked.send_signal(number)
    await forked.communicate()
    forked.close()

    assert forked.returncode == -number
