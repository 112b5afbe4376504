"""Starts whose outcome is unknown: counted as such, and resume is suggested only if it can do something."""

import signal
from pathlib import Path

import pytest

from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import json_file, offered, table
from .shell import PATIENCE, URL, Shell, credentials, end_of, process

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there are no such signals")
START_CALLS = ("bulk", "start", "--all-in-progress", "--kind", "call", "--url", URL, "--journal")


async def test_resume_counts_call_starts_in_doubt_as_unknown(
    bare_shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    journal = str(tmp_path / "run.db")
    bare_shell.set(credentials(space))
    fault = space.faults.add("hang", on="start", executed=True)
    async with process(*START_CALLS, journal, environment=credentials(space)) as child:
        await space.requests.wait_for(2, "start-call-stream", timeout=PATIENCE)
        await end_of(child, signal.SIGKILL)
    fault.remove()
    before = await bare_shell("bulk", "status", journal)
    assert table(before) == {"planned": "2", "in doubt": "2", "attempts": "0"}

    resumed = await bare_shell("bulk", "resume", journal)
    assert table(resumed)["unknown"] == "2"
    assert "bulk resume" not in resumed.out
    after = await bare_shell("bulk", "status", journal)
    assert table(after)["unknown"] == "2"
    assert "in doubt" not in table(after)
    assert "2 streams on calls may be running; a resumed run does not start them again" in after.out
    assert offered(after, "stop") == ["bulk", "stop", journal]
    assert space.requests.count("start-call-stream") == 2

    sent_again = await bare_shell(*offered(after, "resume"))
    assert "--resend-call-starts" in offered(after, "resume")
    assert (sent_again.code, table(sent_again)["started"]) == (0, "2")


async def test_resume_is_not_offered_for_unnamed_starts(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    space.faults.add("reset", on="start", executed=True)
    journal = str(tmp_path / "run.db")
    file = json_file(tmp_path / "lines", [{"conference_sid": sid, "unnamed": True} for sid in space.conference_sids])
    ran = await shell("bulk", "start", file, "--url", URL, "--journal", journal, "--json")
    assert ran.code == 1
    assert ran.lines[-1]["report"]["resume_command"] is None
    found = await shell("bulk", "status", journal)
    assert "3 streams without a name may be running, and are never started again" in found.out
    assert "bulk resume" not in found.out


async def test_resume_is_offered_while_something_is_left(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    space.faults.add("reset", on="start", executed=True)
    journal = str(tmp_path / "run.db")
    lines = [{"conference_sid": space.conference_sids[0]}, {"call_sid": space.call_sids[0]}]
    ran = await shell("bulk", "start", json_file(tmp_path / "lines", lines), "--url", URL, "--journal", journal)
    assert (ran.code, table(ran)["unknown"]) == (1, "2")
    assert offered(ran, "resume") == ["bulk", "resume", journal]
    assert offered(await shell("bulk", "status", journal), "resume") == ["bulk", "resume", journal]
