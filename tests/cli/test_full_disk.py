"""Output that cannot be written: one line on stderr, an exit code, and no information lost."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signalwire_streams.simulator import SimulatedSpace

from .shell import PATIENCE, URL, Ran, Shell, credentials, end_of, process

pytestmark = [
    pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full"),
]
FULL = "error: the output can't be written: No space left on device"


@contextmanager
def full_disk() -> Iterator[int]:
    """Open a device for a child's stdout on which each write fails as on a full disk."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def closed_pipe() -> Iterator[int]:
    """Open a pipe for a child's stdout that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


async def on_full_disk(space: SimulatedSpace, *arguments: str) -> Ran:
    """Run a command as a process."""
    with full_disk() as stdout:
        async with process(*arguments, environment=credentials(space), stdout=stdout) as child:
            return await end_of(child)


FullShell = Callable[..., Awaitable[Ran]]


@pytest.fixture
def full_shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> FullShell:
    """A shell in this process, for the many commands that need no process of their own."""

    async def run(*arguments: str) -> Ran:
        with (
            full_disk() as descriptor,
            os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) as stdout,
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "stdout", stdout)
            return await shell(*arguments)

    return run


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "conferences --help",
        "bulk start --help",
        "conferences list",
        "conferences list --json",
        "calls list",
        "conferences get SID",
        "conferences get SID --json",
        "conferences participants SID",
        "bulk start --all-in-progress --url wss://audio.example.com/live --dry-run",
        "bulk start --all-in-progress --url wss://audio.example.com/live --dry-run --json",
        "demo --conferences 1",
    ],
)
async def test_a_full_disk_is_one_line_and_a_failure(
    full_shell: FullShell, space: SimulatedSpace, command: str
) -> None:
    words = [space.conference_sids[0] if word == "SID" else word for word in command.split()]
    assert await full_shell(*words) == Ran(1, "", f"{FULL}\n")


@pytest.mark.parametrize("command", ["--help", "simulate"])
async def test_a_process_on_a_full_disk_does_not_complain_at_its_exit(space: SimulatedSpace, command: str) -> None:
    assert await on_full_disk(space, *command.split()) == Ran(1, "", f"{FULL}\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_a_started_stream_is_not_lost_on_a_full_disk(
    shell: Shell, full_shell: FullShell, space: SimulatedSpace, options: tuple[str, ...]
) -> None:
    sid = space.conference_sids[0]
    ran = await full_shell("conferences", "start-stream", sid, "--url", URL, "--name", "audit-1", *options)
    [stream] = space.streams.active()
    stop = f"signalwire-streams conferences stop-stream {sid} {stream.sid}"
    assert ran == Ran(1, "", f"{FULL}; the stream was started: sid {stream.sid}, name audit-1; stop it with: {stop}\n")
    assert (await shell(*shlex.split(stop)[1:])).code == 0
    assert space.streams.active() == []


async def test_a_started_stream_is_not_lost_in_a_closed_pipe(space: SimulatedSpace) -> None:
    arguments = ("calls", "start-stream", space.call_sids[0], "--url", URL, "--json")
    with closed_pipe() as stdout:
        async with process(*arguments, environment=credentials(space), stdout=stdout) as child:
            ran = await end_of(child)
    [stream] = space.streams.active()
    assert ran.code == 141
    assert ran.err.startswith(
        "error: the output can't be written: Broken pipe; the stream was started: "
        f"sid {stream.sid}, name {stream.name}; stop it with: signalwire-streams calls stop-stream "
    )


async def test_a_started_stream_is_not_lost_without_an_output(
    shell: Shell, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``>&-``."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        ran = await shell("calls", "start-stream", space.call_sids[0], "--url", URL, "--name", "n")
    [stream] = space.streams.active()
    assert ran.code == 1
    assert f"; the stream was started: sid {stream.sid}, name n; stop it with: " in ran.err


async def test_a_stopped_stream_is_reported_on_a_full_disk(full_shell: FullShell, space: SimulatedSpace) -> None:
    sid = space.conference_sids[0]
    await full_shell("conferences", "start-stream", sid, "--url", URL, "--name", "n")
    ran = await full_shell("conferences", "stop-stream", sid, "n")
    assert ran == Ran(1, "", f"{FULL}; the stream was stopped\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_a_run_is_not_lost_on_a_full_disk(
    shell: Shell, full_shell: FullShell, space: SimulatedSpace, tmp_path: Path, options: tuple[str, ...]
) -> None:
    journal = str(tmp_path / "run.db")
    ran = await full_shell("bulk", "start", "--all-in-progress", "--url", URL, "--journal", journal, *options)
    status = f"signalwire-streams bulk status {journal}"
    assert ran == Ran(1, "", f"{FULL}; check the run: {status}\n")
    assert (await shell(*shlex.split(status)[1:])).code == 0
    assert await full_shell(*shlex.split(status)[1:]) == Ran(1, "", f"{FULL}\n")
    assert (await shell("bulk", "resume", journal)).code == 0
    assert len(space.streams.active()) == 3


async def test_failure_on_a_full_disk_is_reported_on_stderr(full_shell: FullShell) -> None:
    ran = await full_shell("conferences", "get", "no-such-sid", "--json")
    assert ran.code == 1
    first, second = ran.err.splitlines()
    assert first.startswith("error: get Conferences/no-such-sid: HTTP 404")
    assert second == FULL


async def test_closed_stdout_and_stderr_end_quietly(space: SimulatedSpace) -> None:
    command = f'"{sys.executable}" -m signalwire_streams calls list >/dev/full 2>/dev/full'
    buffered = {**credentials(space), "PYTHONUNBUFFERED": ""}  # so that something is left to flush at exit
    async with process(program="/bin/sh", python=("-c", command), environment=buffered) as child:
        assert await end_of(child) == Ran(1, "", "")


async def test_a_full_stderr_does_not_end_a_run(space: SimulatedSpace, tmp_path: Path) -> None:
    space.faults.add("throttle", on="start", times=1, retry_after=0.1)
    arguments = f"bulk start --all-in-progress --url {URL} --journal {tmp_path}/run.db"
    command = f'"{sys.executable}" -m signalwire_streams -v {arguments} 2>/dev/full'
    async with process(program="/bin/sh", python=("-c", command), environment=credentials(space)) as child:
        ran = await end_of(child)
    assert ran.out.startswith("Started 3 of 3 streams")
    assert len(space.streams.active()) == 3


@pytest.mark.parametrize("command", ["--help", "calls --help"])
async def test_a_closed_pipe_ends_quietly(space: SimulatedSpace, command: str) -> None:
    with closed_pipe() as stdout:
        async with process(*command.split(), environment=credentials(space), stdout=stdout) as child:
            assert await end_of(child) == Ran(141, "", "")


WITHOUT_JOURNAL = ("bulk", "start", "--all-in-progress", "--url", URL, "--no-journal")


def handles_in(ran: Ran) -> set[tuple[str, str]]:
    """Return the sids and names of the outcomes on stderr."""
    outcomes = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    return {(one["sid"], one["name"]) for one in outcomes}


async def test_a_run_without_a_journal_keeps_its_handles_on_a_full_disk(
    full_shell: FullShell, space: SimulatedSpace
) -> None:
    ran = await full_shell(*WITHOUT_JOURNAL, "--json")
    assert ran.code == 1
    assert handles_in(ran) == {(stream.sid, stream.name) for stream in space.streams.active()} != set()
    assert ran.err.splitlines()[-1] == f"{FULL}; Started 3 of 3 streams"


async def test_a_run_without_a_journal_keeps_its_handles_without_an_output(
    shell: Shell, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        ran = await shell(*WITHOUT_JOURNAL, "--json")
    assert ran.code == 1
    assert handles_in(ran) == {(stream.sid, stream.name) for stream in space.streams.active()} != set()


async def test_a_run_without_a_journal_keeps_its_handles_in_a_closed_pipe(space: SimulatedSpace) -> None:
    with closed_pipe() as stdout:
        async with process(*WITHOUT_JOURNAL, "--json", environment=credentials(space), stdout=stdout) as child:
            ran = await end_of(child)
    assert ran.code == 141
    assert handles_in(ran) == {(stream.sid, stream.name) for stream in space.streams.active()} != set()


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_an_unknown_start_without_a_journal_keeps_its_name_on_a_full_disk(
    full_shell: FullShell, space: SimulatedSpace, options: tuple[str, ...]
) -> None:
    space.faults.add("reset", on="start", executed=True)
    ran = await full_shell(*WITHOUT_JOURNAL, "--kind", "call", *options)
    assert ran.code == 1
    assert all(str(stream.name) in ran.err for stream in space.streams)


async def test_a_run_without_a_journal_advises_no_resume(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("reset", on="start", executed=True, times=1)
    space.faults.add("503-api", on="start")
    ran = await shell(*WITHOUT_JOURNAL, "--kind", "call")
    assert ran.code == 1
    assert "resume" not in ran.out.replace("no journal to resume from", "").lower()
    assert "The Space failed: start them again when it works again." in ran.out
    [stream] = space.streams
    assert f"      {stream.target_sid}  {stream.name}\n" in ran.out


# Ctrl-C.


async def interrupted(space: SimulatedSpace, operation: str, *arguments: str) -> Ran:
    async with process(*arguments, environment=credentials(space)) as child:
        await space.requests.wait_for(1, operation, timeout=PATIENCE)
        return await end_of(child, signal.SIGINT)


async def test_an_interrupted_start_writes_json(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="start", executed=True)
    sid = space.conference_sids[0]
    start = ("conferences", "start-stream", sid, "--url", URL, "--name", "n", "--json")
    ran = await interrupted(space, "start-conference-stream", *start)
    stop = f"signalwire-streams conferences stop-stream {sid} n"
    message = f"interrupted: the stream may be running; stop it with: {stop}"
    assert (ran.code, ran.err) == (130, f"{message}\n")
    assert ran.json == {
        "error": "Interrupted",
        "status": None,
        "code": None,
        "message": message,
        "sent": "maybe",
        "attempts": 1,
        "target": sid,
        "name": "n",
        "stop_command": stop,
    }


async def test_an_interrupted_list_writes_json(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="list")
    ran = await interrupted(space, "list-calls", "calls", "list", "--json")
    assert (ran.code, ran.err) == (130, "")
    assert ran.json == {"error": "Interrupted", "status": None, "code": None, "message": "interrupted"}


async def test_interrupted_stop_advises_to_repeat_it(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="stop")
    sid = space.conference_sids[0]
    ran = await interrupted(space, "stop-conference-stream", "conferences", "stop-stream", sid, "n", "--json")
    assert ran.code == 130
    assert ran.err == "interrupted: the stream may still be running; stop it again\n"
    assert ran.json["message"] == ran.err.strip()


async def test_interrupted_end_advises_to_repeat_it(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="end")
    ran = await interrupted(space, "end-call", "calls", "end", space.call_sids[0], "--json")
    assert ran.code == 130
    assert ran.err == "interrupted: the call may still be in progress; end it again\n"
    assert ran.json["message"] == ran.err.strip()
