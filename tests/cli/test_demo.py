"""``demo``: its claims hold, and it says so when they don't."""

import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import AttemptResult
from signalwire_streams._cli import demo
from signalwire_streams._cli.demo import simulated_space
from signalwire_streams.simulator import SimulatedSpace

from .shell import Shell, end_of, line_of, process

RECORDED = demo.RECORDED


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment of the audio of two conferences proves as much as two seconds of many."""
    monkeypatch.setattr(demo, "SECONDS", 0.1)
    monkeypatch.setattr(demo, "RECORDED", 2)


@pytest.mark.parametrize(("conferences", "seed"), [(13, 2), (60, 3)])
async def test_demo_starts_and_stops_every_stream_once(bare_shell: Shell, conferences: int, seed: int) -> None:
    ran = await bare_shell("demo", "--conferences", str(conferences), "--seed", str(seed), "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = ran.json
    assert facts["ok"] is True
    for name in ("conferences", "found", "started", "stopped", "streams_created"):
        assert facts[name] == conferences, name
    assert (facts["streams_alive"], facts["duplicate_streams"], facts["failures"]) == (0, 0, [])
    assert facts["retries"] == sum(facts["retries_by_result"].values()) > 0
    assert {
        str(result) for result in (AttemptResult.NO_RESPONSE, AttemptResult.UNAVAILABLE, AttemptResult.THROTTLED)
    } == set(facts["retries_by_result"])
    assert facts["started_by_repeated_attempt"] > 0
    assert facts["starts_rejected_as_duplicates"] > 0
    # One request more than the calls and their repetitions, for the list. An ambiguous stream may take a second stop.
    second_stops = facts["attempts"] - (2 * conferences + facts["retries"] + 1)
    assert 0 <= second_stops <= facts["started_by_repeated_attempt"]
    for name in ("start_seconds", "stop_seconds"):
        ordered = [facts[name][key] for key in ("p50", "p95", "p99", "max")]
        assert ordered == sorted(ordered)
        assert ordered[0] > 0


async def test_demo_recordings_equal_what_was_sent(
    bare_shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty conferences are recorded, to the sample, although the responses to some of their starts are lost.

    Nothing is left of them but the files.
    """
    spaces: list[SimulatedSpace] = []

    def make(**options: Any) -> SimulatedSpace:
        spaces.append(SimulatedSpace(**options))
        return spaces[-1]

    monkeypatch.setattr(demo, "SimulatedSpace", make)
    monkeypatch.setattr(demo, "RECORDED", RECORDED)
    ran = await bare_shell("demo", "--conferences", "1", "--json", "--recordings", str(tmp_path / "new" / "heard"))
    assert (ran.code, ran.err) == (0, "")
    audio = ran.json["audio"]
    assert (audio["tracks"], audio["tracks_recorded_to_the_sample"], audio["conferences"]) == (40, 40, 20)
    assert audio["frames"] >= 200
    for name in ("frames_missing", "frames_dropped", "streams_alive", "duplicate_streams", "sockets_open"):
        assert audio[name] == 0, name
    assert len(list((tmp_path / "new" / "heard").glob("*.wav"))) == 20
    assert 0 < audio["jitter_seconds"] < 2
    rejected = [stream for stream in spaces[-1].streams if stream.error is not None]
    assert {stream.error for stream in rejected} == {"Duplicated stream name"}
    assert len(rejected) == len({stream.target_sid for stream in rejected})


async def test_seed_of_a_demo_decides_which_conferences_it_records(bare_shell: Shell, tmp_path: Path) -> None:
    ran = await bare_shell("demo", "--conferences", "1", "--seed", "7", "--recordings", str(tmp_path / "heard"))
    assert ran.code == 0
    sids = SimulatedSpace(conferences=2, seed=7).conference_sids
    assert {path.name for path in (tmp_path / "heard").glob("*")} == {f"{sid}.wav" for sid in sids}


async def test_demo_reports_a_recording_that_differs(bare_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo fails if a recording differs from what was sent."""
    monkeypatch.setattr(demo, "_sent", lambda track, length: None)
    monkeypatch.setattr(demo, "simulated_space", lambda conferences, seed: SimulatedSpace(conferences=conferences))
    ran = await bare_shell("demo", "--conferences", "1")
    assert ran.code == 1
    assert "0 of 4" in ran.out
    assert "Something went wrong: the recordings differ from what was sent." in ran.out


async def test_demo_reports_a_directory_that_cannot_be_created(bare_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = await bare_shell("demo", "--recordings", str(tmp_path / "file" / "heard"))
    assert ran.code == 1
    assert "can't write to " in ran.err
    assert "name another --recordings" in ran.err


async def test_demo_writes_a_table(bare_shell: Shell) -> None:
    ran = await bare_shell("demo", "--conferences", "12")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Simulating a Space with 12 live conferences")
    assert "12 of 12" in ran.out
    assert max(map(len, ran.out.splitlines())) < 80
    assert "Every conference got its stream exactly once" in ran.out
    assert "\x1b" not in ran.out


async def test_demo_shows_its_progress_on_a_terminal(bare_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("signalwire_streams._cli.progress._DRAWN_EVERY", 0.0)
    bare_shell.set({"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"})
    ran = await bare_shell("demo", "--conferences", "13")
    assert ran.code == 0
    shown = set(re.findall(r"([A-Z][a-z]+ing) .* of (\d+) ", ran.err))
    assert shown == {("Starting", "13"), ("Stopping", "13"), ("Recording", "2")}


async def test_demo_fits_eighty_columns(bare_shell: Shell) -> None:
    bare_shell.pretend_terminal(80)
    ran = await bare_shell("demo", "--conferences", "1")
    assert ran.code == 0
    assert max(map(len, ran.rows)) <= 80
    assert "…" not in ran.out
    assert "duplicate streams" in ran.out


async def test_demo_reports_a_failed_start(bare_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(conferences: int, seed: int) -> SimulatedSpace:
        space = simulated_space(conferences, seed)
        space.faults.clear()
        space.faults.add("status", on="start", status=403, times=1)
        return space

    monkeypatch.setattr(demo, "simulated_space", refusing)
    ran = await bare_shell("demo", "--conferences", "3")
    assert ran.code == 1
    assert "2 of 3" in ran.out
    assert "Something went wrong" in ran.out
    assert ran.err.startswith("error: start a stream on conference")
    assert (await bare_shell("demo", "--conferences", "1", "--json")).json["ok"] is False


async def test_demo_reports_its_first_five_failures(bare_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(conferences: int, seed: int) -> SimulatedSpace:
        space = SimulatedSpace(conferences=conferences, seed=seed)
        space.faults.add("status", on="start", status=403)
        return space

    monkeypatch.setattr(demo, "simulated_space", refusing)
    ran = await bare_shell("demo", "--conferences", "6")
    assert [line.partition(" on ")[0] for line in ran.err.splitlines()] == ["error: start a stream"] * 5


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for a child")
async def test_demo_exits_quietly_when_interrupted() -> None:
    async with process("demo", "--conferences", "1000") as child:
        await line_of(child)
        ran = await end_of(child, signal.SIGINT)
    assert ran.code == 130
    # What is under way gets a moment to end, and a slow machine may tell meanwhile how far it is.
    assert [line for line in ran.err.splitlines() if not line.startswith(("Starting: ", "Stopping: "))] == []
