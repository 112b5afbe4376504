"""The commands of the README and the guides run, block by block, as someone types them."""

import ast
import asyncio
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tomllib
import wave
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from signalwire_streams.callbacks import SIGNATURE_HEADER, sign
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace
from tests.cli.shell import PATIENCE, Ran, Shell, end_of, process
from tests.guides.documents import BLOCKS, ROOT, Block
from tests.ports import free_port
from tests.redis_server import BINARY, MISSING
from tests.waiting import until

URL = "wss://rx.example.com/audio"
PORTS = re.compile(r"\b(?:8443|9[01]0[0-9]|6379)\b")
RUN_UNTIL_A_SIGNAL = re.compile(
    r"signalwire-streams (simulate|listen|keep|fleet worker)"
    r"|redis-server|(\w+=\S+ )*python (record|recorder|record_and_transcribe|replica|stand_in)\.py"
)
NOT_RUN = re.compile(r"pip install|python3 -m venv|\.venv/bin/nox|\.ci/run")
CONSOLE = [block for block in BLOCKS if block.language == "console"]


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, without comments, each with the output that the block shows."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((re.sub(r"\s+# .*", "", line[2:]), []))
        elif line:
            found[-1][1].append(line)
    return found


@define
class Terminal:
    """Where the commands of one block are typed: a directory, the environment, and ports in place of those it names."""

    folder: Path
    space: SimulatedSpace
    environment: dict[str, str]
    shell: Shell
    stack: AsyncExitStack
    sids: dict[str, str]
    ports: dict[str, str] = field(factory=dict)
    running: list[tuple[str, Process]] = field(factory=list)

    def adapt(self, text: str) -> str:
        text = PORTS.sub(lambda found: self.ports.setdefault(found[0], str(free_port())), text)
        for word, sid in self.sids.items():
            text = text.replace(word, sid)
        return text

    async def type(self, command: str, shown: list[str]) -> None:
        command = self.adapt(command)
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = (await self.run(f"printf %s {value}")).out
        elif RUN_UNTIL_A_SIGNAL.match(command):
            await self.begin(command)
        else:
            ran = await self.run(command)
            if shown:
                assert ran.out.splitlines()[: len(shown)] == shown
            else:
                assert ran.code == 0, f"{command}: {ran.err or ran.out}"

    async def run(self, command: str) -> Ran:
        """Run a command to its end; those of this package in this process, which saves time."""
        words = shlex.split(command)
        if words[0] == "signalwire-streams":
            self.shell.set(self.environment)
            return await self.shell(*words[1:])
        async with self.started(command) as child:
            return await end_of(child)

    def started(self, command: str) -> AbstractAsyncContextManager[Process]:
        words = shlex.split(command)
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        words = [word for word in words if word.partition("=")[0] not in variables]
        environment = self.environment | variables
        if re.search(r"[|>$]", command) or words[0] not in {"signalwire-streams", "python"}:
            return process("-c", command, program="/bin/sh", python=(), new=True, environment=environment)
        if words[0] == "signalwire-streams":
            return process(*words[1:], environment=environment)
        if words[1].endswith(".py"):
            code = self.adapt((self.folder / words[1]).read_text())
            return process(*words[2:], code=code, environment=environment)
        return process(*words[1:], program=sys.executable, python=(), new=True, environment=environment)

    async def begin(self, command: str) -> None:
        """Start what runs until a signal, and wait until it does its work."""
        if command.startswith("redis-server"):
            if BINARY is None:
                pytest.skip(MISSING)
            command = f"exec {command} --port {self.ports.setdefault('6379', str(free_port()))} --dir {self.folder}"
        child = await self.stack.enter_async_context(self.started(command))
        self.running.append((command, child))
        if "simulate" in command:
            await self.read_exports(child)
        elif "keep " in command:
            await until(lambda: len(self.space.streams.active()) == len(self.space.conference_sids), timeout=PATIENCE)
        program = re.search(r"\w+\.py", command)
        text = command if program is None else command + self.adapt((self.folder / program[0]).read_text())
        for port in self.ports.values():
            if port in text:
                await until(partial(connects, port), timeout=PATIENCE, interval=0.05)
        if "record.py" in command:
            await until((self.folder / f"{self.sids['CONFERENCE_SID']}.wav").exists, timeout=PATIENCE, interval=0.05)

    async def read_exports(self, simulate: Process) -> None:
        assert simulate.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b"Ctrl-C" not in (line := await simulate.stdout.readline()):
                assert line
                words = line.decode().split()
                if words and words[0] == "export":
                    name, _, value = words[1].partition("=")
                    self.environment[name] = value

    async def end(self) -> None:
        for command, child in reversed(self.running):
            ran = await end_of(child, signal.SIGTERM if "replica.py" in command else signal.SIGINT)
            assert ran.code == 0, f"{command}: {ran.err}"


async def connects(port: str) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
async def terminal(
    user: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Terminal]:
    """A terminal in a directory with everything that the blocks name."""
    someone = await user(audio=None, conferences=10, calls=5)
    space, folder = someone.space, someone.folder
    for block in BLOCKS:
        if block.language == "python":
            name = block.title.partition("/")[2]
            (folder / name).write_text(block.text)
    (folder / "targets.csv").write_text("\n".join(["conference_sid", *space.conference_sids[:2]]))
    with wave.open(str(folder / "hello.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x10\x20\x10\xe0" * 2000)
    (folder / "signing-key.txt").write_text("PSK_key")
    fields = "StreamEvent=stream-started"
    signature = sign(url="https://example.com/callbacks", fields={"StreamEvent": "stream-started"}, key="PSK_key")
    head = f"POST /callbacks HTTP/1.1\r\nHost: example.com\r\n{SIGNATURE_HEADER}: {signature}"
    form = "Content-Type: application/x-www-form-urlencoded"
    (folder / "captured.txt").write_text(f"{head}\r\n{form}\r\nContent-Length: {len(fields)}\r\n\r\n{fields}")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = someone.environment | {"PATH": path, "PYTHONUNBUFFERED": "1"}
    sids = {"CONFERENCE_SID": space.conference_sids[0], "CALL_SID": space.call_sids[0]}
    async with AsyncExitStack() as stack:
        yield Terminal(folder, space, environment, Shell(capsys, monkeypatch), stack, sids)


@pytest.mark.parametrize(
    "block",
    [block for block in CONSOLE if any(not NOT_RUN.search(command) for command, _ in commands_of(block))],
    ids=lambda block: f"{block.document}-{shlex.split(commands_of(block)[-1][0])[1]}",
)
async def test_commands_run(block: Block, terminal: Terminal) -> None:
    for command, shown in commands_of(block):
        if command.startswith("signalwire-streams dial"):
            async with endpoint() as url:
                await terminal.type(command.replace(URL, f"{url} --ca-file client.pem"), shown)
        elif not NOT_RUN.search(command):
            await terminal.type(command, shown)
    await terminal.end()


@asynccontextmanager
async def endpoint() -> AsyncIterator[str]:
    """An agent that speaks once the caller has spoken, and is silent when it is interrupted."""

    async def answer(session: StreamSession) -> None:
        playing: asyncio.Task[None] | None = None
        heard = silent = 0
        async for event in session:
            if not isinstance(event, MediaEvent):
                continue
            is_speech = len(set(event.payload)) > 1
            heard, silent = heard + is_speech, 0 if is_speech else silent + 1
            if playing is None and heard and silent > 5:
                playing = asyncio.create_task(speak(session))
            elif playing is not None and is_speech:
                await session.playback.clear()
        if playing is not None:
            playing.cancel()
            await asyncio.wait([playing])

    async def speak(session: StreamSession) -> None:
        await session.playback.play(bytes(16_000))
        await session.playback.mark("end")

    certificate = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.load_cert_chain("server.pem", "server.key")
    receiver = MediaReceiver(answer, bearer_tokens=None, bidirectional=True)
    async with receiver.serve(ssl_context=certificate) as url:
        yield url


def sessions() -> dict[str, ast.FunctionDef]:
    """Return the sessions of noxfile.py."""
    return {
        node.name: node
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language in {"console", "sh"}], ids=lambda block: block.document
)
def test_sessions_and_extras_exist(block: Block) -> None:
    """What is not run here, because it installs packages: .ci/run does."""
    for names in re.findall(r"nox --session ([a-z ]+)", block.text):
        assert set(names.split()) <= sessions().keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"signalwire-streams\[(\w+)\]", block.text)) <= extras.keys()
    if ".ci/run" in block.text and (ROOT / ".ci").exists():  # which source distributions lack
        assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_completion_completes(tmp_path: Path) -> None:
    """In bash."""
    [block] = [block for block in BLOCKS if "_COMPLETE" in block.text]
    command = tmp_path / "signalwire-streams"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m signalwire_streams "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = f"{block.text}\ncomplete -p signalwire-streams"
    ran = subprocess.run(  # noqa: S603
        [shutil.which("bash") or "bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert "signalwire-streams" in ran.stdout
