"""Failures: exit codes, one line on stderr, one JSON object on stdout, and never a traceback."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from signalwire_streams._cli import fleet
from signalwire_streams.simulator import SimulatedSpace

from .shell import PATIENCE, URL, Shell, credentials, end_of, process

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals and pipes")


async def test_missing_settings_are_named(bare_shell: Shell) -> None:
    ran = await bare_shell("conferences", "list")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: set SIGNALWIRE_SPACE (or --space), SIGNALWIRE_PROJECT_ID (or --project), SIGNALWIRE_API_TOKEN "
        "in the environment: your Space's API page shows them\n"
    )


async def test_present_settings_are_not_named(bare_shell: Shell) -> None:
    ran = await bare_shell("calls", "list", "--space", "example", "--project", "p", "--json")
    assert ran.code == 2
    assert ran.json["error"] == "InvalidRequestError"
    assert ran.json["message"].startswith("set SIGNALWIRE_API_TOKEN in the environment")


async def test_options_override_the_environment(shell: Shell, space: SimulatedSpace) -> None:
    shell.set({"SIGNALWIRE_SPACE": "elsewhere", "SIGNALWIRE_PROJECT_ID": "another"})
    ran = await shell("conferences", "list", "--space", space.base_url, "--project", space.project)
    assert ran.code == 0


async def test_there_is_no_option_for_the_token(shell: Shell) -> None:
    ran = await shell("conferences", "list", "--token=hush")
    assert ran.code == 2
    assert "hush" not in ran.err


@pytest.mark.parametrize("space_name", ["http://example.com", "ftp://127.0.0.1", "a b", "https://u:hush@h"])
async def test_invalid_space_is_a_usage_error(shell: Shell, space_name: str) -> None:
    ran = await shell("conferences", "list", "--space", space_name)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert "hush" not in ran.err


async def test_a_wrong_token_is_a_failure_with_a_hint(shell: Shell) -> None:
    shell.set({"SIGNALWIRE_API_TOKEN": "PTwrong-and-hush"})
    ran = await shell("conferences", "list", "--json")
    assert ran.code == 1
    facts = ran.json
    assert (facts["error"], facts["status"], facts["code"]) == ("AuthenticationError", 401, 20003)
    assert (facts["sent"], facts["attempts"]) == ("yes", 1)
    assert ran.err == f"error: {facts['message']}\n"


async def test_an_unknown_conference_is_a_failure(shell: Shell) -> None:
    ran = await shell("conferences", "start-stream", "no-such-sid", "--url", URL, "--json")
    assert (ran.code, ran.json["error"], ran.json["status"]) == (1, "NotFoundError", 404)


async def test_an_unreachable_space_is_a_failure(shell: Shell) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        ran = await shell("conferences", "list", "--space", address, "--json")
    assert ran.code == 1
    facts = ran.json
    assert (facts["error"], facts["sent"], facts["status"]) == ("TransportError", "no", None)
    assert facts["attempts"] > 1
    assert len(ran.err.splitlines()) == 1


async def test_no_output_holds_a_secret(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    """Not even when the Space repeats what it was sent."""
    secrets = ["bearer-canary", "parameter-canary", space.token]
    (tmp_path / "token").write_text(secrets[0], encoding="utf-8")
    options = ["--url", URL, "--parameter", f"key={secrets[1]}", "--bearer-token-file", str(tmp_path / "token")]
    start = ["conferences", "start-stream", space.conference_sids[0], *options]
    good = [await shell(*start), await shell(*start, "--json")]
    space.faults.add("status", on="start", status=422, headers={"X-Request-Id": "1"})
    bad = [await shell(*start), await shell(*start, "--json"), await shell(*start, "--json", "--codec", "none")]
    assert [ran.code for ran in good + bad] == [0, 0, 1, 1, 2]
    assert [secret for secret in secrets for ran in good + bad if secret in ran.out + ran.err] == []


@posix_only
async def test_an_interrupted_list_ends_quietly(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="list")
    async with process("conferences", "list", environment=credentials(space), new=True) as child:
        await space.requests.wait_for(1, "list-conferences", timeout=PATIENCE)
        ran = await end_of(child, signal.SIGINT)
    assert (ran.code, ran.out, ran.err) == (130, "", "")


@posix_only
async def test_interrupted_start_reports_what_may_be_running(space: SimulatedSpace) -> None:
    space.faults.add("hang", on="start", executed=True)
    sid = space.conference_sids[0]
    async with process("conferences", "start-stream", sid, "--url", URL, environment=credentials(space)) as child:
        await space.requests.wait_for(1, "start-conference-stream", timeout=PATIENCE)
        ran = await end_of(child, signal.SIGINT)
    [stream] = space.streams
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == (
        "interrupted: the stream may be running; stop it with: "
        f"signalwire-streams conferences stop-stream {sid} {stream.name}\n"
    )


@posix_only
async def test_list_into_broken_pipe_exits_quietly(space: SimulatedSpace) -> None:
    """As in ``signalwire-streams conferences list | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        async with process("conferences", "list", environment=credentials(space), stdout=writing) as child:
            ran = await end_of(child)
    finally:
        os.close(writing)
    assert (ran.code, ran.err) == (141, "")


@posix_only
@pytest.mark.parametrize(
    ("command", "code"), [("calls list >&-", 1), ("--help >&-", 1), ("--help >&- 2>&-", 1), ("calls get >&-", 2)]
)
async def test_a_closed_stdout_is_a_failure(space: SimulatedSpace, command: str, code: int) -> None:
    command = f'"{sys.executable}" -m signalwire_streams {command}'
    async with process(program="/bin/sh", python=("-c", command), environment=credentials(space)) as child:
        ran = await end_of(child)
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err.splitlines()) == (0 if "2>" in command else 1)


async def test_name_that_the_terminal_cannot_show_has_replacement_characters(space: SimulatedSpace) -> None:
    space.add_conference(friendly_name="☎ tone")
    environment = {**credentials(space), "PYTHONIOENCODING": "latin-1"}
    async with process("conferences", "list", environment=environment) as child:
        ran = await end_of(child)
    assert (ran.code, ran.err) == (0, "")
    assert "? tone" in ran.out


async def test_processes_end_with_the_same_codes(space: SimulatedSpace) -> None:
    """1 and 2, each with one line on stderr."""
    environment = credentials(space)

    async def code(**changes: str) -> tuple[int, int]:
        async with process("calls", "list", environment={**environment, **changes}, new=True) as child:
            ran = await end_of(child)
        return ran.code, len(ran.err.splitlines())

    codes = await asyncio.gather(code(SIGNALWIRE_API_TOKEN="wrong"), code(SIGNALWIRE_PROJECT_ID=""))
    assert tuple(codes) == ((1, 1), (2, 1))


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_interrupted_submit_names_the_status_command(
    offline_shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(fleet._FleetAccount, "run_on_fleet", Mock(side_effect=KeyboardInterrupt))
    (tmp_path / "ids").write_text("room\n")
    ran = await offline_shell("fleet", "submit", str(tmp_path / "ids"), "--url", URL, "--project", "p", *options)
    message = "interrupted: a part of the run may have been submitted; see signalwire-streams fleet status --project p"
    assert (ran.code, ran.err) == (130, f"{message}\n")
    assert not options or ran.json["message"] == message


async def test_interrupt_before_the_command_runs_ends_quietly(
    bare_shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As during the imports of a command."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("signalwire_streams._cli.main.import_module", interrupt)
    ran = await bare_shell("demo")
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")
