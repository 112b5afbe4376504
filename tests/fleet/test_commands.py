"""The fleet from the command line, against a real Redis and a Space on a socket."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from signalwire_streams._cli.main import run as run_program
from signalwire_streams.fleet import Fleet
from signalwire_streams.simulator import SimulatedSpace
from tests.forks import fork
from tests.redis_server import RedisServer

from .helpers import PATIENCE, URL, all_results, redis_of, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


@define(eq=False)
class Shell:
    """Runs commands in a thread of this process, so that the test's own loop can serve the Space."""

    capture: pytest.CaptureFixture[str]
    environment: dict[str, str]
    err: str = field(init=False, default="")

    async def __call__(self, *arguments: str, code: int = 0) -> str:
        async with asyncio.timeout(PATIENCE):
            ended = await asyncio.to_thread(run_program, ["fleet", *arguments])
        out, self.err = self.capture.readouterr()
        assert ended == code, self.err
        return out


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
def shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, space: SimulatedSpace, url: str
) -> Shell:
    environment = {
        "SIGNALWIRE_SPACE": space.base_url,
        "SIGNALWIRE_PROJECT_ID": space.project,
        "SIGNALWIRE_API_TOKEN": space.token,
        "SIGNALWIRE_FLEET_REDIS": url,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Shell(capsys, environment)


@asynccontextmanager
async def working(shell: Shell, fleet: Fleet, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker in a process of its own."""
    process = await fork(
        *("fleet", "worker", "--rate", "1000", *options),
        imports=["signalwire_streams._cli.fleet"],
        environment=os.environ | shell.environment,
    )

    async def works() -> bool:
        return bool(await fleet.workers())

    await until(works)
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()
    process.close()


@pytest.fixture
async def worker(shell: Shell, tmp_path: Path, fleet: Fleet) -> AsyncIterator[asyncio.subprocess.Process]:
    token = tmp_path / "token.txt"
    token.write_text("hidden")
    async with working(shell, fleet, "--bearer-token-file", str(token)) as process:
        yield process


async def test_cli_fleet_from_submit_to_stop(
    shell: Shell, worker: asyncio.subprocess.Process, fleet: Fleet, space: SimulatedSpace
) -> None:
    """A run is submitted, followed, told, stopped; and the worker ends when it is told to."""
    out = await shell("submit", "--all-in-progress", "--run-id", "nightly", "--url", URL)
    assert out.startswith("Submitted 3 streams as run nightly.")
    assert "signalwire-streams fleet stop nightly" in out

    followed = await shell("status", "nightly", "--follow")
    assert "started" in followed
    assert "fleet resume" not in followed, "nothing is left to start"
    assert "3 of 3" in shell.err
    told = [json.loads(line) for line in (await shell("results", "nightly")).splitlines()]
    assert {line["status"] for line in told} == {"started"}
    assert {line["target"] for line in told} == set(space.conference_sids)
    status: Any = json.loads(await shell("status", "nightly", "--json"))
    assert (status["counts"], status["is_finished"], len(status["workers"])) == ({"started": 3}, True, 1)
    titles, row, *_ = (await shell("status")).splitlines()
    assert (titles.split()[0], row.split()[0], row.split()[-1]) == ("RUN", "nightly", "finished")
    overview: Any = json.loads(await shell("status", "--json"))
    assert [run["run"] for run in overview["runs"]] == ["nightly"]
    assert [found["limit"] for found in overview["workers"]] == [status["limit"]]
    assert 900 < status["limit"] <= 1000
    assert "has nothing left to start" in await shell("resume", "nightly")
    assert (await shell("cancel", "nightly")).startswith("Run nightly had already finished, so there was nothing to")
    assert json.loads(await shell("cancel", "nightly", "--json"))["status_before"] == "finished"
    assert json.loads(await shell("resume", "nightly", "--json")) == {"run": None, "planned": 0}

    assert (await shell("stop", "nightly")).startswith("Stopped 3 of 3 streams")
    assert space.streams.active() == []
    again: Any = json.loads(await shell("stop", "nightly", "--json"))
    assert (again["report"]["ok"], again["report"]["completed"], again["report"]["counts"]) == (True, 0, {})
    assert "rolled back" in await shell("status", "nightly")

    worker.send_signal(signal.SIGTERM)
    _, notes = await worker.communicate()
    assert worker.returncode == 0
    [serves, drains, ended] = notes.decode().splitlines()
    assert "serving project" in serves
    assert "is draining (SIGTERM): it takes no new work and finishes what is in progress within 25 s" in drains
    assert ended.endswith(" ended.")
    assert "No active workers." in await shell("status")
    assert "There are no runs." not in await shell("status")


async def test_cli_worker_takes_its_lease_and_shutdown_timeout_from_options(
    shell: Shell, redis_server: RedisServer, fleet: Fleet, space: SimulatedSpace
) -> None:
    """It ends long before the default timeout, although its request hangs."""
    space.faults.add("hang", on="start")
    await shell("submit", "--all-in-progress", "--run-id", "nightly", "--url", URL)
    async with working(shell, fleet, "--lease-seconds", "600", "--shutdown-timeout", "0.1") as process:
        await space.requests.wait_for(1, "start-conference-stream", timeout=PATIENCE)
        [*_, key, _] = redis_server.ask("KEYS", "*:nightly:*:lease:*").split(b"\r\n")
        milliseconds = int(redis_server.ask("PTTL", key.decode())[1:])
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15.0):
            _, notes = await process.communicate()
        assert process.returncode == 0
    assert 100_000 < milliseconds <= 600_000
    assert "finishes what is in progress within 0.1 s" in notes.decode()


async def test_cli_submit_with_secrets_needs_workers_that_have_them(
    shell: Shell, worker: asyncio.subprocess.Process, fleet: Fleet, space: SimulatedSpace, tmp_path: Path
) -> None:
    targets = tmp_path / "targets.jsonl"
    lines = [{"conference_sid": sid, "authorization_bearer_token": "hidden"} for sid in space.conference_sids]
    targets.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    await shell("submit", str(targets), "--url", URL, code=2)
    assert "--redact-secrets" in shell.err
    assert "hidden" not in shell.err
    submitted = json.loads(await shell("submit", str(targets), "--url", URL, "--redact-secrets", "--json"))
    await all_results(fleet, submitted["run"])

    assert [stream.authorization_bearer_token for stream in space.streams] == ["hidden"] * 3


async def test_cli_status_in_a_terminal_shows_the_whole_name_of_a_run(
    shell: Shell, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the other commands take; the time of its submission makes way."""
    name = "nightly-" * 6 + "2026-12-31"
    await shell("submit", "--all-in-progress", "--run-id", name, "--url", URL)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for variable, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(variable, value)
    titles, run, *_ = (await shell("status")).splitlines()
    assert "SUBMITTED" not in titles
    assert run.split()[0] == name


async def test_cli_status_says_if_a_run_is_not_fully_submitted(shell: Shell, fleet: Fleet) -> None:
    told = "It is not fully submitted: if its submit or resume was interrupted, repeat the same command."
    await shell("submit", "--all-in-progress", "--run-id", "nightly", "--url", URL)
    assert told not in await shell("status", "nightly")
    await redis_of(fleet).hdel(fleet._keys.run("nightly"), "queued")
    assert told in await shell("status", "nightly")


async def test_cli_cancel_and_resume_need_no_worker(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    targets = tmp_path / "targets.txt"
    targets.write_text("\n".join(space.call_sids))
    await shell("submit", str(targets), "--kind", "call", "--url", URL, "--run-id", "r")

    out = await shell("status", "r", "--once")
    assert "pending" in out
    assert "No active workers" in out
    assert (await shell("status")).splitlines()[1].endswith(" running")
    cancelled = await shell("cancel", "r")
    assert cancelled.startswith("Run r is cancelled.\n")
    assert "not attempted" in cancelled
    assert (await shell("status")).splitlines()[1].endswith(" cancelled")
    assert (await shell("cancel", "r")).startswith("Run r was already cancelled.\n")
    assert json.loads(await shell("cancel", "r", "--json"))["status_before"] == "cancelled"
    assert "signalwire-streams fleet resume r" in await shell("status", "r", "--once", code=1)
    assert (await shell("resume", "r")).startswith(f"Submitted {len(space.call_sids)} streams as run r-r2.")
    assert "resumed as run r-r2" in await shell("status", "r", "--once", code=1)
    await shell("resume", "r", "--run-id", "again", code=2)
    assert "was resumed as 'r-r2'" in shell.err
    submitting = ("submit", str(targets), "--kind", "call", "--url", URL, "--run-id", "r")
    assert "already submitted" in await shell(*submitting, code=1)
    again = json.loads(await shell("resume", "r", "--json"))
    assert again == {"run": "r-r2", "planned": len(space.call_sids), "is_new": False}
    late = json.loads(await shell("cancel", "r-r2", "--json"))
    assert (late["cancelled"], late["status_before"]) == ("cancelled", "running")
    assert len(space.streams) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "nowhere"), "there is no run 'nowhere'"),
        (("status", "--redis", "redis://user:hidden@host"), "put the password into SIGNALWIRE_FLEET_REDIS"),
        (("status", "--redis", "host"), "URL is invalid"),
        (("submit", "--url", URL), "pass a FILE"),
        (("submit", "--all-in-progress", "--kind", "call", "--codec", "L16"), "omit it on calls"),
        (("stop", "nowhere"), "there is no run 'nowhere'"),
        (("cancel", "nowhere"), "there is no run 'nowhere'"),
    ],
)
async def test_cli_fleet_usage_errors(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    await shell(*arguments, code=2)

    assert words in shell.err
    assert "hidden" not in shell.err


async def test_cli_results_without_worker_warn(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def nothing(_: Fleet, run: str) -> AsyncIterator[None]:
        assert run == "r"
        return
        yield

    monkeypatch.setattr(Fleet, "results", nothing)
    targets = tmp_path / "targets.txt"
    targets.write_text("a\n")
    await shell("submit", str(targets), "--url", URL, "--run-id", "r")

    assert await shell("results", "r") == ""
    assert shell.err == "No active workers: start one with signalwire-streams fleet worker\n"


async def test_cli_submit_dry_run_and_empty_file_submit_nothing(shell: Shell, tmp_path: Path) -> None:
    targets = tmp_path / "targets.txt"
    targets.write_text("a\nb\n")
    assert "2 streams would be started" in await shell("submit", str(targets), "--url", URL, "--dry-run")
    targets.write_text("")
    assert "nothing to start" in await shell("submit", str(targets), "--url", URL)


async def test_cli_fleet_without_redis_names_the_variable_to_set(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNALWIRE_FLEET_REDIS")
    for command in ("status", "worker"):
        await shell(command, code=2)
        assert "set SIGNALWIRE_FLEET_REDIS (or --redis)" in shell.err


@pytest.mark.parametrize("name", ["SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID"])
async def test_cli_fleet_without_space_or_project_names_the_variables_to_set(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    await shell("status", code=2)
    assert shell.err == ("error: set SIGNALWIRE_SPACE (or --space) and SIGNALWIRE_PROJECT_ID (or --project)\n")


async def test_cli_fleet_without_extra_names_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docket", None)
    monkeypatch.delitem(sys.modules, "signalwire_streams.fleet")
    await shell("status", code=2)

    assert shell.err == (
        "error: signalwire_streams.fleet needs more packages: pip install 'signalwire-streams[fleet]'\n"
    )
