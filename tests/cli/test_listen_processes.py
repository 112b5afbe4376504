"""``listen --processes``: several processes on one port, with one output."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from attrs import define

from signalwire_streams._cli import listen_server

from .bulk_runs import until
from .shell import PATIENCE, Ran, Shell, end_of, line_of, process
from .test_listen import begin, dialled, files_in, sound_of, speak, stop
from .test_listen_slow_clients import PATIENT, UPGRADE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")

MOST_STREAMS = 64  # of which each of two processes gets one, but for one time in 2 ** 63


@define(eq=False)
class Processes:
    """A running ``listen --json --processes 2``, and the streams on it."""

    child: asyncio.subprocess.Process
    url: str
    pids: list[int]
    directory: Path
    stack: AsyncExitStack
    peers: dict[str, aiohttp.ClientWebSocketResponse]

    async def fill(self, sid: str | None = None) -> None:
        """Start streams until each process records one."""
        while not all(recordings_of(pid) for pid in self.pids):
            assert len(self.peers) < MOST_STREAMS
            name = f"s-{len(self.peers) + 1}"
            peer = self.peers[name] = await self.stack.enter_async_context(dialled(self.url))
            await begin(peer, sid or name)
            await until(lambda: sum(map(len, map(recordings_of, self.pids))) == len(self.peers))

    async def line(self) -> Any:
        return json.loads(await line_of(self.child))


def options(directory: Path, processes: int) -> tuple[str, ...]:
    return "--json", "--directory", str(directory), "--processes", str(processes), "--allow-anonymous"


@asynccontextmanager
async def running(directory: Path, *arguments: str, patch: str = "") -> AsyncIterator[Processes]:
    command = process("listen", *options(directory, 2), *arguments, code=patched(patch))
    async with command as child, AsyncExitStack() as stack:
        facts = json.loads(await line_of(child))
        yield Processes(child, facts["url"], facts["pids"], directory, stack, {})


def patched(patch: str) -> str:
    main = "from signalwire_streams.__main__ import main\nsys.exit(main())\n"
    return f"import errno, os, signal, socket, sys\n{patch}\n{main}"


async def end_of_patched(patch: str, directory: Path, *, processes: int) -> Ran:
    """Run ``listen`` to its end in a child that executes *patch* first."""
    async with process("listen", *options(directory, processes), code=patched(patch)) as child:
        return await end_of(child)


def recordings_of(pid: int) -> list[str]:
    """Return the recordings that a process has open."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process, or one of its files, is gone
        links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return sorted(str(link) for link in links if link.suffix == ".wav")
    return []


def port_of(url: str) -> str:
    return url.rsplit(":", 1)[1].strip("/")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_finishes_the_recordings_of_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    """The streams have one sid, and a file each."""
    async with running(tmp_path) as two:
        await two.fill(sid="same")
        for peer in two.peers.values():
            await speak(peer)
        ran = await end_of(two.child, number)
    assert (ran.code, ran.err) == (0, "")
    assert {facts["end"] for facts in ran.lines} == {"shutdown"}
    files = [file for facts in ran.lines for file in facts["files"]]
    assert len(set(files)) == len(files) == len(two.peers)
    assert sorted(files) == sorted(map(str, files_in(tmp_path)))
    for facts in ran.lines:
        assert len(sound_of(facts["files"][0])[1]) == facts["tracks"]["inbound"]["frames"] * 320


async def test_processes_ignore_signals_that_are_for_their_parent(tmp_path: Path) -> None:
    """As those of a terminal, or of a service manager that signals all."""
    async with running(tmp_path) as two:
        await two.fill()
        for pid in two.pids:
            assert os.getsid(pid) == os.getpgid(pid) == pid
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for peer in two.peers.values():
            await speak(peer)
            await stop(peer)
        ended = [await two.line() for _ in two.peers]
        ran = await end_of(two.child, signal.SIGINT)
    assert {facts["end"] for facts in ended} == {"stopped"}
    assert (ran.code, ran.out, ran.err) == (0, "", "")


async def test_killed_process_is_reported_and_the_other_goes_on(tmp_path: Path) -> None:
    """Its streams are named, those of the other are recorded, new ones are accepted, and the exit code is 1."""
    async with running(tmp_path) as two:
        await two.fill()
        killed = two.pids[0]
        cut_off = {Path(file).stem for file in recordings_of(killed)}
        os.kill(killed, signal.SIGKILL)
        lost = await two.line()
        async with dialled(two.url) as late:
            await begin(late, "late")
            await speak(late)
            await stop(late)
        assert (await two.line())["sid"] == "late"
        for name in two.peers.keys() - cut_off:
            await speak(two.peers[name])
            await stop(two.peers[name])
            assert (await two.line())["end"] == "stopped"
        ran = await end_of(two.child, signal.SIGINT)
    assert (lost.pop("process"), lost.pop("pid"), lost.pop("error")) == (1, killed, "was killed by SIGKILL")
    assert set(lost.pop("streams")) == cut_off
    assert lost == {}
    assert (ran.code, ran.out) == (1, "")
    line = f"error: process 1 (pid {killed}) was killed by SIGKILL; not fully recorded: "
    assert ran.err.startswith(line)
    assert ran.err.endswith("; processes still recording: 1\n")
    assert len(ran.err.splitlines()) == 1


async def test_listen_ends_when_no_process_is_left(tmp_path: Path) -> None:
    """Whatever they were killed by: not every signal has a name."""
    async with running(tmp_path) as two:
        for pid, number in zip(two.pids, (signal.SIGKILL, signal.SIGRTMIN + 6), strict=True):
            os.kill(pid, number)
        ran = await end_of(two.child)
    assert ran.code == 1
    errors = {facts["pid"]: facts["error"] for facts in ran.lines}
    unnamed = f"was killed by signal {signal.SIGRTMIN + 6}"
    assert errors == dict(zip(two.pids, ("was killed by SIGKILL", unnamed), strict=True))
    assert [line.rpartition("; ")[2] for line in ran.err.splitlines()][-1] == "no process is left"


async def test_killed_process_is_reported_where_ends_of_processes_were_ignored(tmp_path: Path) -> None:
    """What has started the command may have said so."""
    async with running(tmp_path, patch="signal.signal(signal.SIGCHLD, signal.SIG_IGN)") as two:
        os.kill(two.pids[0], signal.SIGKILL)
        assert (await two.line())["error"] == "was killed by SIGKILL"
        ran = await end_of(two.child, signal.SIGINT)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)


async def test_killed_listen_leaves_no_process_and_complete_recordings(tmp_path: Path) -> None:
    async with running(tmp_path) as two:
        await two.fill()
        for peer in two.peers.values():
            await speak(peer)
        killing = asyncio.create_task(end_of(two.child, signal.SIGKILL))  # ends when nobody holds its pipes
        async with asyncio.timeout(PATIENCE):
            told = [await peer.receive() for peer in two.peers.values()]
        ran = await killing
    assert (ran.code, ran.err) == (-signal.SIGKILL, "")
    assert {message.data for message in told} == {aiohttp.WSCloseCode.GOING_AWAY}
    assert [len(sound_of(file)[1]) % 320 for file in files_in(tmp_path)] == [0] * len(two.peers)


async def test_streams_of_all_processes_count(tmp_path: Path) -> None:
    """After ``--streams`` of them, the others are finished, too."""
    async with running(tmp_path, "--streams", "2") as two:
        await two.fill()
        for name in list(two.peers)[-2:]:  # the last one is on a process of its own
            await stop(two.peers[name])
        ran = await end_of(two.child)
    assert (ran.code, ran.err, len(ran.lines)) == (0, "", len(two.peers))
    assert [facts["end"] for facts in ran.lines].count("stopped") >= 2


async def test_processes_check_tokens_and_are_summed_up(tmp_path: Path) -> None:
    """In the lines for people, too."""
    arguments = ("--directory", str(tmp_path), "--processes", "3")
    async with process("listen", *arguments, environment={"SIGNALWIRE_STREAMS_TOKEN": "t0ken"}) as child:
        head = [await line_of(child) for _ in range(5)]
        url = head[0].split()[-1]
        for _ in range(4):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                async with dialled(url, "wrong"):
                    raise AssertionError
        lines = []
        for number in range(4):
            async with dialled(url, "t0ken") as peer:
                await begin(peer, f"s-{number}")
                await speak(peer, 50)
                await stop(peer)
            lines += [await line_of(child), await line_of(child)]
        ran = await end_of(child, signal.SIGINT)
    assert head[1].startswith("Processes: 3 (pids ")
    assert [line.split()[1] for line in lines] == ["started:", "ended"] * 4
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Ended. Streams: 4, files: 4, audio: 4 s, lost frames: 0, rejected (bad token): 4.\n"


async def test_second_interrupt_ends_all_processes_at_once(tmp_path: Path) -> None:
    """Even if a peer does not answer the close frame; the recordings are complete."""
    async with running(tmp_path, patch=PATIENT) as two:
        await two.fill()
        for peer in two.peers.values():
            await speak(peer)
        _, silent = await asyncio.open_connection("127.0.0.1", int(port_of(two.url)))
        start = b'{"event":"start","start":{"streamSid":"silent","tracks":["inbound"],"mediaFormat":'
        start += b'{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}'
        silent.write(UPGRADE + b"\x81\xfe" + len(start).to_bytes(2, "big") + bytes(4) + start)
        await until((tmp_path / "silent.wav").exists)
        two.child.send_signal(signal.SIGINT)
        first = await two.line()
        ran = await end_of(two.child, signal.SIGINT)
        silent.transport.abort()
    assert first["end"] == "shutdown"
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.lines) == len(two.peers)


async def test_third_interrupt_kills_processes_that_hang(tmp_path: Path) -> None:
    async with running(tmp_path) as two:
        for pid in two.pids:
            os.kill(pid, signal.SIGSTOP)

        async def interrupt() -> None:
            while two.child.returncode is None:  # two signals at once may arrive as one
                two.child.send_signal(signal.SIGINT)
                await asyncio.sleep(0.01)

        interrupting = asyncio.create_task(interrupt())
        ran = await end_of(two.child)
        await interrupting
    assert ran.code == 1
    assert [facts["error"] for facts in ran.lines] == ["was killed by SIGKILL"] * 2


async def test_port_of_another_listen_is_in_use(bare_shell: Shell, tmp_path: Path) -> None:
    """Also for another command with --processes, which would get a part of the streams."""
    async with running(tmp_path) as two:
        for more in ((), ("--processes", "2")):
            command = ("listen", "--allow-anonymous", "--directory", str(tmp_path), "--port", port_of(two.url), *more)
            ran = await bare_shell(*command)
            assert (ran.code, ran.out) == (1, "")
            assert ran.err == (
                f"error: can't listen on 127.0.0.1 port {port_of(two.url)}: {os.strerror(errno.EADDRINUSE)}\n"
            )


async def test_process_that_cannot_listen_ends_the_command(tmp_path: Path) -> None:
    """As where the port is taken between the check and the start."""
    patch = (
        "from signalwire_streams._cli import listen_server\n"
        "taken = socket.create_server(('127.0.0.1', 0))\n"
        "async def claim(options): return taken.getsockname()[1]\n"
        "listen_server._claim_port = claim"
    )
    ran = await end_of_patched(patch, tmp_path, processes=2)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: can't listen on 127.0.0.1 port ")
    assert len(ran.err.splitlines()) == 1


async def test_processes_that_cannot_be_forked_are_a_failure(tmp_path: Path) -> None:
    patch = (
        "fork, forks = os.fork, []\n"
        "def limited():\n"
        "    forks.append(1)\n"
        "    if len(forks) > 2: raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = limited"
    )
    ran = await end_of_patched(patch, tmp_path, processes=3)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (f"error: can't start 3 processes: {os.strerror(errno.EAGAIN)}: write a smaller --processes\n")


@pytest.mark.parametrize(
    ("value", "sentence"), [("0", "0 is not in the range 1<=x<=64"), ("two", "'two' is not a valid integer")]
)
async def test_listen_with_invalid_number_of_processes_is_usage_error(
    bare_shell: Shell, tmp_path: Path, value: str, sentence: str
) -> None:
    bare_shell.environment.chdir(tmp_path)
    ran = await bare_shell("listen", "--allow-anonymous", "--processes", value)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert sentence in ran.err


async def test_system_that_cannot_spread_streams(bare_shell: Shell, tmp_path: Path) -> None:
    """Nothing is created or read before it is said."""
    bare_shell.environment.setattr(listen_server, "CAN_SPREAD", value=False)
    ran = await bare_shell("listen", "--processes", "2", "--directory", str(tmp_path / "new"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: --processes needs Linux, which spreads the streams over the processes: omit it")
    assert not (tmp_path / "new").exists()


async def test_processes_end_after_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, "--seconds", "0.01") as two:
        async with asyncio.timeout(PATIENCE):
            ran = await end_of(two.child)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
