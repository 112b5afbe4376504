"""Logging on the command line: warnings always, everything with ``--verbose``."""

import logging
import sys
from pathlib import Path

import pytest

from signalwire_streams._cli.output import OUTCOMES, logging_to, logging_to_stderr, silenced
from signalwire_streams.simulator import SimulatedSpace

from .shell import URL, Shell

LIBRARY = logging.getLogger("signalwire_streams")


async def test_a_pause_is_a_warning(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("throttle", on="start", times=1, retry_after=0.2)
    ran = await shell("conferences", "start-stream", space.conference_sids[0], "--url", URL)
    assert ran.code == 0
    assert ran.err == "warning: too many requests (429): all requests pause for 0.2 s\n"


async def test_a_bulk_run_warns_as_well(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    space.faults.add("throttle", on="start", times=1, retry_after=0.2)
    space.faults.add("reset", on="start", executed=True, times=1)
    journal = ("--journal", str(tmp_path / "run.db"))
    ran = await shell("bulk", "start", "--all-in-progress", "--url", URL, "--json", *journal)
    assert ran.code == 0
    assert ran.err == "warning: too many requests (429): all requests pause for 0.2 s\n"
    assert [line.get("ambiguous") for line in ran.lines].count(True) == 1


@pytest.mark.parametrize("before", [True, False])
async def test_verbose_logs_each_retry(shell: Shell, space: SimulatedSpace, *, before: bool) -> None:
    space.faults.add("500", on="list", times=1)
    arguments = ("conferences", "list", "--json")
    ran = await shell(*(("-v", *arguments) if before else (*arguments, "--verbose")))
    assert len(ran.lines) == 3
    [line] = ran.err.splitlines()
    assert line.startswith("debug: list Conferences: attempt 1: the Space failed: HTTP 500; retry, next attempt in ")
    assert LIBRARY.level == logging.NOTSET
    space.faults.add("500", on="list", times=1)
    assert (await shell(*arguments)).err == ""


async def test_verbose_shows_what_the_command_reports_itself_too(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("reset", on="start", executed=True, times=1)
    start = ("start-stream", space.conference_sids[0], "--url", URL)
    ran = await shell("-v", "conferences", *start)
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["debug", "warning"]
    assert "The sid may be another stream's; its name is the handle." in ran.rows
    space.faults.add("reset", on="start", executed=True, times=1)
    quiet = await shell("conferences", *start)
    assert (quiet.code, quiet.err) == (0, "")


def test_a_line_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr():
        LIBRARY.warning("a\x1b[31m\nb")
        LIBRARY.getChild("shared").error("no Redis", exc_info=ValueError("boom"))
        LIBRARY.info("not shown")
    assert capsys.readouterr().err == "warning: a [31m b\nerror: no Redis (ValueError: boom)\n"


def test_log_shown_by_a_display_is_not_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    with logging_to_stderr(), logging_to(shown.append, name="signalwire_streams.receiver"):
        LIBRARY.getChild("receiver").warning("a")
        LIBRARY.getChild("receiver.audio").warning("b")
        LIBRARY.getChild("receivers").warning("c")
    assert shown == ["a", "b"]
    assert capsys.readouterr().err == "warning: c\n"


def test_silenced_log_is_written_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger(OUTCOMES)
    with logging_to_stderr():
        with silenced(OUTCOMES):
            log.warning("a")
            log.error("b")
        log.warning("c")
    assert capsys.readouterr().err == "error: b\nwarning: c\n"


def test_a_stderr_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            """Do nothing."""

    monkeypatch.setattr(sys, "stderr", Full())
    with logging_to_stderr():
        LIBRARY.warning("a")
