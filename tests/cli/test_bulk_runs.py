"""``bulk resume``, ``status`` and ``stop``: interrupted runs, their journals, and their secrets."""

import asyncio
import io
import os
import shlex
import signal
import sqlite3
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    ConferenceStream,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams._cli.output import moment
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import bytes_in, files_in, held_space, ids_file, json_file, offered, table
from .shell import PATIENCE, URL, Ran, Shell, assert_usage_error, credentials, end_of, process

TO_URL = ("--url", URL)
RUN = ("--journal", "run.db")
START_ALL = ("bulk", "start", "--all-in-progress", *TO_URL, *RUN)
RESUME, STATUS, STOP = ("bulk", "resume", "run.db"), ("bulk", "status", "run.db"), ("bulk", "stop", "run.db")

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals and pipes")


pytestmark = pytest.mark.usefixtures("folder")


def client_of(space: SimulatedSpace, **options: Any) -> StreamsClient:
    return StreamsClient(base_url=space.base_url, project=space.project, token=space.token, **options)


async def news_of(child: Process) -> str:
    """Read the next line of a process's stderr."""
    assert child.stderr is not None
    async with asyncio.timeout(PATIENCE):
        return (await child.stderr.readline()).decode()


async def resume_and_check(shell: Shell, space: SimulatedSpace, command: list[str]) -> Ran:
    """Check that an interrupted run is completed, with exactly one stream per conference."""
    space.faults.clear()
    shell.set(credentials(space))
    ran = await shell(*command)
    assert (ran.code, ran.err) == (0, "")
    assert sorted(stream.target_sid for stream in space.streams.active()) == sorted(space.conference_sids)
    assert space.streams.duplicates() == []
    return ran


# Resume.


@posix_only
async def test_killed_run_is_resumed(bare_shell: Shell) -> None:
    """Sent starts are in doubt in the journal, and are sent again under their names: none is duplicated or lost."""
    async with SimulatedSpace(conferences=9, participants=0) as space:
        space.faults.add("hang", on="start", executed=True)
        async with process(*START_ALL, "--concurrency", "4", environment=credentials(space), new=True) as child:
            await space.requests.wait_for(4, "start-conference-stream", timeout=PATIENCE)
            killed = await end_of(child, signal.SIGKILL)
        assert (killed.code, killed.out, killed.err) == (-signal.SIGKILL, "", "")
        assert len(space.streams.active()) == 4

        shown = await bare_shell(*STATUS)
        assert (shown.code, shown.err) == (0, "")
        assert table(shown) == {"planned": "9", "pending": "5", "in doubt": "4", "attempts": "0"}
        assert offered(shown, "stop") == list(STOP)

        ran = await resume_and_check(bare_shell, space, offered(shown, "resume"))
        assert table(ran)["attempts"] == "9 (0 retried)"
        assert "from earlier runs" not in ran.out


@posix_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signal_lets_requests_in_flight_finish(bare_shell: Shell, number: signal.Signals, code: int) -> None:
    async with held_space(conferences=7) as (space, held):
        async with process(*START_ALL, "--concurrency", "2", environment=credentials(space)) as child:
            await space.requests.wait_for(2, "start-conference-stream", timeout=PATIENCE)
            child.send_signal(number)
            assert await news_of(child) == (
                "Ending: 0 of 7, interrupted: 5 s for requests in flight, interrupt again to abort them\n"
            )
            held.let_go()
            ended = await end_of(child)
        assert (ended.code, ended.err) == (code, "")
        assert ended.out.startswith("Started 2 of 7 streams in ")
        assert (table(ended)["started"], table(ended)["pending"]) == ("2", "5")
        assert "Errors:" not in ended.out
        assert space.requests.count("start-conference-stream") == 2

        ran = await resume_and_check(bare_shell, space, offered(ended, "resume"))
        assert (table(ran)["started"], table(ran)["from earlier runs"]) == ("7", "2")
        assert space.requests.count("start-conference-stream") == 7


@posix_only
async def test_second_signal_aborts_requests_in_flight(bare_shell: Shell) -> None:
    """The report says that sent starts may be running, also in JSON."""
    async with held_space(conferences=5) as (space, _):
        arguments = (*START_ALL, "--concurrency", "2", "--json")
        async with process(*arguments, environment=credentials(space)) as child:
            await space.requests.wait_for(2, "start-conference-stream", timeout=PATIENCE)
            child.send_signal(signal.SIGINT)
            assert (await news_of(child)).startswith("Ending: ")
            ended = await end_of(child, signal.SIGINT)
        assert ended.code == 130
        assert "interrupted again: requests in flight are aborted" in ended.err
        *outcomes, last = ended.lines
        unknown = [outcome for outcome in outcomes if outcome["status"] == "unknown"]
        assert sorted(outcome["target"] for outcome in unknown) == sorted(space.conference_sids[:2])
        assert {outcome["name"] for outcome in unknown} == {stream.name for stream in space.streams}
        report = last["report"]
        assert (report["ok"], report["interrupted"], report["planned"]) == (False, True, 5)
        assert report["counts"]["unknown"] == 2
        assert report["completed"] == len(outcomes) < 5

        await resume_and_check(bare_shell, space, shlex.split(report["resume_command"])[1:])


@posix_only
async def test_queued_starts_are_not_sent_after_a_signal(bare_shell: Shell) -> None:
    """The rate limit delays the second start; two signals end the run, and no start is unknown."""
    async with SimulatedSpace(conferences=3, participants=0) as space:
        arguments = (*START_ALL, "--rate", "0.1", "--concurrency", "2")
        async with process(*arguments, environment=credentials(space)) as child:
            await space.requests.wait_for(1, "start-conference-stream", timeout=PATIENCE)
            child.send_signal(signal.SIGINT)
            assert (await news_of(child)).startswith("Ending: ")
            ended = await end_of(child, signal.SIGINT)
        assert ended.code == 130
        assert "unknown" not in ended.out
        assert (table(ended)["started"], table(ended)["pending"]) == ("1", "2")
        assert space.requests.count("start-conference-stream") == 1
        await resume_and_check(bare_shell, space, offered(ended, "resume"))


@posix_only
async def test_signal_before_the_run_leaves_no_journal(folder: Path) -> None:
    async with SimulatedSpace(conferences=1) as space:
        space.faults.add("hang", on="list")
        async with process(*START_ALL, environment=credentials(space)) as child:
            await space.requests.wait_for(1, "list-conferences", timeout=PATIENCE)
            ran = await end_of(child, signal.SIGINT)
    assert (ran.code, ran.out, ran.err) == (130, "", "")
    assert files_in(folder) == []


@posix_only
async def test_broken_pipe_ends_the_run_and_names_its_journal(bare_shell: Shell) -> None:
    """As in ``signalwire-streams bulk start ... --json | head``; started streams are in the journal."""
    async with SimulatedSpace(conferences=12, participants=0) as space:
        reading, writing = os.pipe()
        os.close(reading)
        arguments = (*START_ALL, "--json", "--concurrency", "1")
        try:
            async with process(*arguments, environment=credentials(space), stdout=writing) as child:
                ran = await end_of(child)
        finally:
            os.close(writing)
        assert ran.code == 141
        status = "signalwire-streams bulk status run.db"
        assert ran.err == f"error: the output can't be written: Broken pipe; check the run: {status}\n"
        assert BulkJournal("run.db").status().counts["started"] == len(space.streams.active()) < 12
        await resume_and_check(bare_shell, space, list(RESUME))


@posix_only
async def test_journal_in_use_is_readable_but_locked(bare_shell: Shell) -> None:
    """While a process runs it, others may read it, but not resume or stop it."""
    async with held_space(conferences=3) as (space, held):
        bare_shell.set(credentials(space))
        async with process(*START_ALL, "--concurrency", "1", environment=credentials(space)) as child:
            await space.requests.wait_for(1, "start-conference-stream", timeout=PATIENCE)
            shown = await bare_shell(*STATUS)
            as_json = await bare_shell(*STATUS, "--json")
            resumed, stopped = await bare_shell(*RESUME), await bare_shell(*STOP, "--json")
            held.let_go()
            ended = await end_of(child)
        assert (shown.code, shown.rows[-1]) == (0, "It is running now.")
        assert table(shown) == {"planned": "3", "in doubt": "1", "pending": "2", "attempts": "0"}
        assert as_json.json["is_locked"] is True
        assert_usage_error(resumed, "another process is using the journal run.db: wait for it, or stop it")
        assert (stopped.code, stopped.json["error"]) == (2, "InvalidRequestError")
        assert (ended.code, len(space.streams.active())) == (0, 3)


async def test_resume_retries_rejected_starts(shell: Shell, space: SimulatedSpace) -> None:
    rule = space.faults.add("status", on="start", status=422, body="api", target=space.conference_sids[1])
    assert (await shell(*START_ALL)).code == 1
    again = await shell(*RESUME)
    assert (again.code, table(again)["rejected"], table(again)["from earlier runs"]) == (1, "1", "2")
    rule.remove()
    ran = await resume_and_check(shell, space, offered(again, "resume"))
    assert "resume" not in ran.out


async def test_resume_of_a_finished_run_sends_nothing(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    sent = space.requests.count()
    ran = await shell(*RESUME)
    assert (ran.code, ran.err) == (0, "")
    assert table(ran) == {
        "started": "3",
        "from earlier runs": "3",
        "attempts": "0 (0 retried)",
    }
    as_json = await shell(*RESUME, "--json")
    *outcomes, last = as_json.lines
    assert {(outcome["status"], outcome["attempts"]) for outcome in outcomes} == {("started", 0)}
    assert {outcome["sid"] for outcome in outcomes} == {stream.sid for stream in space.streams}
    report = last["report"]
    assert (report["ok"], report["already_done"], report["attempts"], report["resume_command"]) == (True, 3, 0, None)
    assert space.requests.count() == sent


async def test_resume_reports_unknown_call_starts_unless_resending(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("reset", on="start", executed=True, times=1)
    assert (await shell(*START_ALL, "--kind", "call", "--concurrency", "1")).code == 1
    sent = space.requests.count()
    again = await shell(*RESUME)
    assert (again.code, table(again)["unknown"], table(again)["from earlier runs"]) == (1, "1", "1")
    assert "so it is not sent again" in again.out
    assert space.requests.count() == sent
    ran = await shell(*RESUME, "--resend-call-starts")
    assert (ran.code, table(ran)["started"]) == (0, "2")
    assert (len(space.streams.active()), space.streams.duplicates()) == (2, [])


async def test_run_with_a_wrong_token_can_be_resumed(shell: Shell, space: SimulatedSpace) -> None:
    space.faults.add("status", on="start", status=404, times=3)
    await shell(*START_ALL)
    shell.set({"SIGNALWIRE_API_TOKEN": "PTwrong-and-hush"})
    ran = await shell(*RESUME, "--concurrency", "1")
    assert ran.code == 1
    assert "  1 x AuthenticationError 20003\n" in ran.out
    assert "hush" not in ran.out + ran.err
    await resume_and_check(shell, space, offered(ran, "resume"))


async def test_run_ends_when_its_journal_cannot_be_written(shell: Shell, space: SimulatedSpace) -> None:
    """Nothing is sent without being recorded first."""
    space.faults.add("status", on="start", status=404, times=3)
    await shell(*START_ALL)
    database = sqlite3.connect("run.db")
    with database:
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'full'); END")
    database.close()
    sent = space.requests.count()
    ran, as_json = await shell(*RESUME), await shell(*RESUME, "--json")
    assert (ran.code, ran.err) == (1, "error: the journal run.db can't be written: full\n")
    assert table(ran)["not attempted"] == "3"
    assert "free some disk space, then resume." in ran.out
    assert offered(ran, "resume") == list(RESUME)
    *_, report, error = as_json.lines
    assert (as_json.code, report["report"]["ok"], error["error"]) == (1, False, "JournalError")
    assert space.requests.count() == sent


# Space, project and token.


async def test_resume_and_stop_take_space_and_project_from_the_journal(shell: Shell, space: SimulatedSpace) -> None:
    """Only the token is needed."""
    await shell(*START_ALL)
    for name in ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID"):
        shell.environment.delenv(name)
    resumed, stopped = await shell(*RESUME), await shell(*STOP)
    assert (resumed.code, stopped.code) == (0, 0)
    assert space.streams.active() == []


@pytest.mark.parametrize("command", ["resume", "stop"])
@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--project", "another"), "run.db belongs to the project "),
        (("--space", "another"), "run.db belongs to the Space http://127.0.0.1:"),
    ],
)
async def test_journal_of_another_account_is_rejected(
    shell: Shell, space: SimulatedSpace, command: str, option: tuple[str, str], sentence: str
) -> None:
    await shell(*START_ALL)
    sent = space.requests.count()
    ran = await shell("bulk", command, "run.db", *option)
    assert_usage_error(ran, sentence)
    assert ": use it there, not on " in ran.err
    assert space.requests.count() == sent


@pytest.mark.parametrize("command", ["resume", "stop"])
async def test_resume_and_stop_need_a_token(shell: Shell, space: SimulatedSpace, command: str) -> None:
    await shell(*START_ALL)
    shell.environment.delenv("SIGNALWIRE_API_TOKEN")
    ran = await shell("bulk", command, "run.db")
    assert_usage_error(ran, "set SIGNALWIRE_API_TOKEN in the environment")
    assert len(space.streams.active()) == 3


@pytest.mark.parametrize("command", ["resume", "status", "stop"])
async def test_file_that_is_not_a_journal_is_rejected(shell: Shell, folder: Path, command: str) -> None:
    (folder / "notes").write_text("nothing of the kind, and long enough to be looked into" * 40, encoding="utf-8")
    assert_usage_error(
        await shell("bulk", command, "none.db"), "there is no journal none.db: name the file that the run wrote"
    )
    assert_usage_error(await shell("bulk", command, "notes"), "notes is not a journal that this version can read")
    assert_usage_error(await shell("bulk", command, "."), "here is a directory, but a journal must be a regular file")
    assert_usage_error(await shell("bulk", command, ""), "journal is empty: name a file")
    os.mkfifo(folder / "pipe")
    assert_usage_error(await shell("bulk", command, "pipe"), "pipe is a FIFO, but a journal must be a regular file")
    assert_usage_error(await shell("bulk", command, "\udcff.db"), "is not UTF-8, or contains control characters")
    broken = await shell("bulk", command, "pipe", "--json")
    assert (broken.code, broken.json["error"]) == (2, "InvalidRequestError")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "journal is empty: name a file"),
        (":memory:", "is a name that SQLite reserves"),
        ("\udcff.db", "is not UTF-8, or contains control characters"),
        ("pipe", "pipe is a FIFO, but a journal must be a regular file"),
        ("no/run.db", "name a file in a writable folder"),
    ],
)
async def test_bulk_start_rejects_an_invalid_journal_path(
    shell: Shell, space: SimulatedSpace, folder: Path, name: str, sentence: str
) -> None:
    """Nothing is sent, and no file is created or deleted."""
    os.mkfifo(folder / "pipe")
    ids_file(folder / "targets", space.conference_sids)
    assert_usage_error(await shell("bulk", "start", "targets", "--url", URL, "--journal", name), sentence)
    assert space.requests.count() == 0
    assert [file.name for file in files_in(folder)] == ["pipe", "targets"]


async def test_resume_rejects_a_run_without_a_plan(shell: Shell, space: SimulatedSpace) -> None:
    """Its status can be read, and its streams can be stopped."""
    requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
    async with client_of(space) as client:
        await client.start_streams(requests, journal="run.db").report()
    assert_usage_error(
        await shell(*RESUME), "run.db was created by a program, which knows what is left: resume it there"
    )
    shown = await shell(*STATUS)
    assert table(shown) == {"started": "3", "attempts": "3"}
    assert "resume" not in shown.out
    assert (await shell(*offered(shown, "stop"))).code == 0
    assert space.streams.active() == []


async def test_status_of_a_journal_of_stops(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    streams = [ConferenceStream(conference_sid=stream.target_sid, sid=stream.sid) for stream in space.streams]
    async with client_of(space) as client:
        await client.stop_streams(streams, journal="stops.db").report()
    shown = await shell("bulk", "status", "stops.db")
    assert (shown.code, shown.rows[-1]) == (0, "It is not running now.")
    assert f", to stop streams on {space.base_url}." in shown.out
    assert table(shown)["stopped"] == "3"
    assert_usage_error(await shell("bulk", "resume", "stops.db"), "was created by a program")
    assert_usage_error(await shell("bulk", "stop", "stops.db"), "stops.db is the journal of a run that stops streams")


# Status.


async def some_of_each(space: SimulatedSpace) -> Mapping[str, str]:
    """Create a run with items of every status but one, and return their targets by status."""
    started, rejected, lost = space.conference_sids
    space.faults.add("status", on="start", target=rejected, status=422, body="api")
    space.faults.add("reset", on="start", target=lost, executed=True)
    requests: list[StartConferenceStream | StartCallStream] = [
        StartConferenceStream(conference_sid=sid, url=URL, name="audit") for sid in space.conference_sids
    ]
    requests.append(StartCallStream(call_sid=space.call_sids[0], url=URL))
    async with client_of(space, retry=RetryPolicy(max_attempts=1, max_resends=0)) as client:
        client.create_journal(requests, journal="run.db")
        await client.start_streams(requests[:3], journal="run.db", resume=True, concurrency=1).report()
    return {"started": started, "rejected": rejected, "unknown": lost}


async def test_status_shows_counts_and_errors(bare_shell: Shell, space: SimulatedSpace) -> None:
    """Without any account."""
    await some_of_each(space)
    ran = await bare_shell(*STATUS)
    assert (ran.code, ran.err) == (0, "")
    status = BulkJournal("run.db").status()
    began = status.started_at[:19].replace("T", " ")
    assert ran.rows[0] == f"Run {status.run}, started on {began} UTC, to start streams on {space.base_url}."
    errors = ran.rows.index("Errors:")
    assert table(ran) == {
        "planned": "4",
        "started": "1",
        "rejected": "1",
        "unknown": "1",
        "pending": "1",
        "attempts": "3",
    }
    assert ran.rows[errors + 1 : errors + 3] == [f"  1 x {label}" for label in status.errors]
    assert [label.split()[0] for label in status.errors] == ["StreamOutcomeUnknownError", "UnprocessableError"]
    assert (offered(ran, "resume"), offered(ran, "stop")) == (list(RESUME), list(STOP))


async def test_bulk_status_with_json_writes_all_facts(bare_shell: Shell, space: SimulatedSpace) -> None:
    await some_of_each(space)
    facts = (await bare_shell(*STATUS, "--json")).json
    status = BulkJournal("run.db").status()
    assert facts == {
        "run": status.run,
        "operation": "start",
        "origin": space.base_url,
        "project": space.project,
        "started_at": status.started_at,
        "rollback_started_at": None,
        "planned": 4,
        "counts": {"started": 1, "rejected": 1, "unknown": 1, "pending": 1},
        "rolled_back": 0,
        "attempts": 3,
        "errors": status.errors,
        "is_locked": False,
    }


async def test_status_lists_items_by_status(bare_shell: Shell, space: SimulatedSpace) -> None:
    targets = await some_of_each(space)
    for state, target in targets.items():
        ran = await bare_shell(*STATUS, "--list", state)
        assert (ran.code, ran.err) == (0, "")
        header, row = ran.rows
        assert header.split() == ["KIND", "TARGET", "STATUS", "SID", "NAME", "MESSAGE"]
        assert row.split()[:3] == ["conference", target, state]
        assert "audit" in row
    both = await bare_shell(*STATUS, "--list", "started", "--list", "unknown")
    assert [row.split()[1] for row in both.rows[1:]] == [targets["started"], targets["unknown"]]
    none = await bare_shell(*STATUS, "--list", "stopped")
    assert (none.code, len(none.rows)) == (0, 1)


async def test_narrow_terminal_shows_whole_targets_of_items(bare_shell: Shell, space: SimulatedSpace) -> None:
    """They are what other commands take; other columns are dropped or cut."""
    targets = await some_of_each(space)
    bare_shell.pretend_terminal(60)
    ran = await bare_shell(*STATUS, "--list", "unknown")
    header, row = ran.rows
    assert header.split()[:3] == ["KIND", "TARGET", "STATUS"]
    assert not {"SID", "NAME"} & set(header.split())
    assert row.split()[:3] == ["conference", targets["unknown"], "unknown"]


async def test_status_lists_items_as_json(bare_shell: Shell, space: SimulatedSpace) -> None:
    targets = await some_of_each(space)
    ran = await bare_shell(*STATUS, "--json", "--list", "rejected", "--list", "started")
    started, rejected = ran.lines
    assert started == {
        "kind": "conference",
        "target": targets["started"],
        "name": "audit",
        "status": "started",
        "sid": space.streams[0].sid,
        "ambiguous": False,
        "attempts": 1,
        "error": None,
        "message": None,
        "rollback_status": None,
    }
    assert (rejected["target"], rejected["sid"]) == (targets["rejected"], None)
    assert rejected["error"].startswith("UnprocessableError")
    assert targets["rejected"] in rejected["message"]


async def test_status_list_fits_a_terminal(bare_shell: Shell, space: SimulatedSpace) -> None:
    await some_of_each(space)
    bare_shell.pretend_terminal(80)
    ran = await bare_shell(*STATUS, "--list", "rejected")
    assert max(map(len, ran.rows)) <= 80
    assert space.conference_sids[1] in ran.out


DAMAGED_DATES = ["x", "", "9999-12-31T23:59:59-23:59", "\x1b[31mred", "2026-11-29"]


@pytest.mark.parametrize("text", DAMAGED_DATES)
def test_damaged_date_is_shown_without_control_characters(text: str) -> None:
    assert moment(text) in {text.replace("\x1b", "").strip(), "2026-11-29 00:00:00 UTC"}


@pytest.mark.parametrize("text", DAMAGED_DATES)
async def test_journal_with_a_damaged_date_is_reported_without_traceback(
    shell: Shell, space: SimulatedSpace, text: str
) -> None:
    await shell(*START_ALL)
    with closing(sqlite3.connect("run.db")) as database:
        database.execute("UPDATE run SET value = ? WHERE key = 'started_at'", (text,))
        database.commit()
    for command in (STATUS, (*STATUS, "--json"), (*STATUS, "--list", "started"), RESUME, STOP):
        ran = await shell(*command)
        assert ran.code in {0, 1}
        assert len(ran.err.splitlines()) <= 1
        assert "\x1b" not in ran.out + ran.err


async def test_status_cleans_the_words_of_a_damaged_journal(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    with closing(sqlite3.connect("run.db")) as database:
        database.execute("UPDATE items SET state = ?, error = ?", ("\x1b[31mred", "\x1b[32mgreen"))
        database.commit()
    ran = await shell(*STATUS)
    assert "\x1b" not in ran.out + ran.err
    assert ran.code in {0, 1}


async def test_an_unknown_state_is_a_usage_error(bare_shell: Shell) -> None:
    assert_usage_error(await bare_shell(*STATUS, "--list", "lost"), "'lost' is not one of 'started', 'already_started'")


# Stop.


async def test_stop_includes_unknown_streams_and_can_be_repeated(shell: Shell, space: SimulatedSpace) -> None:
    """A failed stop is reported, and repeated by the suggested command."""
    await some_of_each(space)
    space.faults.clear()
    rule = space.faults.add("status", on="stop", target=space.conference_sids[0], status=403)
    first = await shell(*STOP)
    assert (first.code, first.err) == (1, "")
    assert first.out.startswith("Stopped 1 of 2 streams in ")
    assert "add the scope in the dashboard." in first.out
    shown = await shell(*STATUS)
    assert table(shown)["rolled back"] == "1"
    assert offered(shown, "stop") == offered(first, "stop") == list(STOP)
    assert "resume" not in shown.out + first.out

    rule.remove()
    second = await shell(*offered(first, "stop"))
    assert (second.code, table(second)["stopped"]) == (0, "1")
    assert "Resume" not in second.out
    assert space.streams.active() == []
    assert (await shell(*STATUS)).rows[-1] == "All streams that it started were stopped."

    sent = space.requests.count()
    third, as_json = await shell(*STOP), await shell(*STOP, "--json")
    assert (third.code, third.out, third.err) == (0, "There is nothing left to stop.\n", "")
    report = as_json.json["report"]
    assert (as_json.code, report["ok"], report["planned"], report["resume_command"]) == (0, True, 0, None)
    assert space.requests.count() == sent


async def test_stopped_run_cannot_be_resumed(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    assert (await shell(*STOP)).code == 0
    sent = space.requests.count()
    assert_usage_error(await shell(*RESUME), "the streams of run.db have been stopped since 20")
    as_json = await shell(*RESUME, "--json")
    assert (as_json.code, as_json.json["error"]) == (2, "InvalidRequestError")
    assert space.requests.count() == sent


async def test_stop_writes_outcomes_and_report_as_json(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    ran = await shell(*STOP, "--json", "--rate", "1000", "--concurrency", "2")
    *outcomes, last = ran.lines
    assert (ran.code, ran.err) == (0, "")
    assert {(outcome["status"], outcome["kind"]) for outcome in outcomes} == {("stopped", "conference")}
    assert {outcome["sid"] for outcome in outcomes} == {stream.sid for stream in space.streams}
    assert {outcome["name"] for outcome in outcomes} == {stream.name for stream in space.streams}
    report = last["report"]
    assert (report["ok"], report["counts"], report["planned"], report["resume_command"]) == (
        True,
        {"stopped": 3},
        3,
        None,
    )


@posix_only
async def test_killed_stop_is_repeated(shell: Shell, space: SimulatedSpace) -> None:
    await shell(*START_ALL)
    space.faults.add("hang", on="stop", executed=True)
    async with process(*STOP, "--concurrency", "1", environment=credentials(space)) as child:
        await space.requests.wait_for(1, "stop-conference-stream", timeout=PATIENCE)
        assert (await end_of(child, signal.SIGKILL)).out == ""
    shown = await shell(*STATUS)
    assert "rolled back" in table(shown)
    assert "resume" not in shown.out
    space.faults.clear()
    ran = await shell(*offered(shown, "stop"))
    assert (ran.code, table(ran)["stopped"]) == (0, "3")
    assert space.streams.active() == []


# Secrets.


SECRETS = {
    "parameters": {"pin": "hush-pin", "tenant": "hush-tenant"},
    "authorization_bearer_token": "hush-bearer",
    "status_callback": "https://user:hush-callback@app.example.com/hear?key=hush-key",
}


def secret_lines(space: SimulatedSpace) -> list[dict[str, Any]]:
    """One line without a secret, one with all of them, and one with other ones, which has a name."""
    first, second, third = space.conference_sids
    return [
        {"conference_sid": first, "status_callback": "https://app.example.com/hear"},
        {"conference_sid": second, **SECRETS},
        {"conference_sid": third, "name": "audit", "parameters": {"pin": "hush-other"}},
    ]


async def begin_with_secrets(shell: Shell, space: SimulatedSpace, path: Path) -> str:
    """Start a run with secrets whose starts fail, and return the file of its targets."""
    source = json_file(path / "targets.jsonl", secret_lines(space))
    space.faults.add("status", on="start", status=404, times=3)
    ran = await shell("bulk", "start", source, *TO_URL, *RUN)
    assert ran.code == 1
    assert "hush" not in ran.out + ran.err
    assert f"Resume (and pass its secrets again):\n  {shlex.join(['signalwire-streams', *RESUME])}\n" in ran.out
    return source


def what_arrived(space: SimulatedSpace) -> dict[str, tuple[Any, ...]]:
    return {
        stream.target_sid: (stream.parameters, stream.authorization_bearer_token, stream.status_callback)
        for stream in space.streams.active()
    }


async def test_resume_names_missing_secrets(shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path) -> None:
    """All missing secrets of a request are named by their options."""
    await begin_with_secrets(shell, space, tmp_path)
    sent = space.requests.count()
    bare = await shell(*RESUME)
    assert_usage_error(
        bare,
        f"the journal contains no secrets, and {space.conference_sids[1]} had some: pass them again with "
        "--parameter pin=... --parameter tenant=... --bearer-token-file FILE --status-callback URL, "
        "or add the original FILE after the journal",
    )
    some = await shell(*RESUME, "--parameter", "tenant=hush", "--status-callback", "https://a.example.com/?hush")
    assert_usage_error(some, "pass them again with --parameter pin=... --bearer-token-file FILE, or add")
    assert "hush" not in some.err
    assert b"hush" not in bytes_in(folder)
    assert space.requests.count() == sent
    assert table(await shell(*STATUS))["attempts"] == "3"


async def test_resume_takes_secrets_from_the_file(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path
) -> None:
    source = await begin_with_secrets(shell, space, tmp_path)
    ran = await shell(*RESUME, source)
    assert (ran.code, ran.err) == (0, "")
    first, second, third = space.conference_sids
    assert what_arrived(space) == {
        first: ({}, None, "https://app.example.com/hear"),
        second: tuple(SECRETS.values()),
        third: ({"pin": "hush-other"}, None, None),
    }
    assert b"hush" not in ran.out.encode() + bytes_in(folder)


async def test_resume_that_fails_again_says_to_pass_the_secrets_again(
    shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    """Although one of its streams has none."""
    source = await begin_with_secrets(shell, space, tmp_path)
    space.faults.add("status", on="start", status=404, times=3)
    ran = await shell(*RESUME, source)
    assert ran.code == 1
    assert "Resume (and pass its secrets again):" in ran.out


async def test_resume_takes_secrets_from_options(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path
) -> None:
    """They apply to all requests that had them; a line of the FILE overrides them."""
    await begin_with_secrets(shell, space, tmp_path)
    (tmp_path / "token").write_text("hush-new-bearer", encoding="utf-8")
    third = {"conference_sid": space.conference_sids[2], "parameters": {"pin": "hush-line", "more": "hush-more"}}
    # What is wrong in the FILE started nothing, and has no secrets to give.
    lines: list[dict[str, Any]] = [third, {"conference_sid": 5}, {"no-such-field": 1}, {"call_sid": "leg"}]
    ran = await shell(
        *(*RESUME, json_file(tmp_path / "some.jsonl", lines), "--bearer-token-file", str(tmp_path / "token")),
        *("--parameter", "pin=hush-all", "--parameter", "tenant=hush-tenant", "--parameter", "other=hush-not-asked"),
        *("--status-callback", "https://a.example.com/?hush"),
    )
    assert (ran.code, ran.err) == (0, "")
    first, second, third_sid = space.conference_sids
    assert what_arrived(space) == {
        first: ({}, None, "https://app.example.com/hear"),
        second: (
            {"pin": "hush-all", "tenant": "hush-tenant"},
            "hush-new-bearer",
            "https://a.example.com/?hush",
        ),
        third_sid: ({"pin": "hush-line"}, None, None),
    }
    assert b"hush" not in ran.out.encode() + bytes_in(folder)


async def test_resume_reads_its_file_as_start_does(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await begin_with_secrets(shell, space, tmp_path)
    assert_usage_error(await shell(*RESUME, "none.csv"), "none.csv can't be read: No such file")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hush"))
    both = await shell(*RESUME, "-", "--bearer-token-file", "-")
    assert_usage_error(both, "standard input can't be the FILE and the bearer token")
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(source).read_text(encoding="utf-8")))  # noqa: ASYNC240
    assert (await shell(*RESUME, "-")).code == 0
    assert len(space.streams.active()) == 3


async def test_journal_holds_no_secret_during_the_run(bare_shell: Shell, tmp_path: Path, folder: Path) -> None:
    async with held_space(conferences=3) as (space, held):
        bare_shell.set(credentials(space))
        source = json_file(tmp_path / "targets.jsonl", secret_lines(space))
        going = asyncio.create_task(bare_shell("bulk", "start", source, *TO_URL, *RUN))
        await space.requests.wait_for(3, "start-conference-stream", timeout=PATIENCE)
        during = bytes_in(folder)
        held.let_go()
        ran = await going
    found = during + bytes_in(folder) + (ran.out + ran.err).encode()
    assert ran.code == 0
    assert space.conference_sids[1].encode() in during
    assert [secret for secret in ("hush", space.token) if secret.encode() in found] == []
