"""The journal of a bulk run: on the disk before the request is, and one process's at a time."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    ConferenceStream,
    InvalidRequestError,
    JournalError,
    StreamOutcomeUnknownError,
)
from signalwire_streams.bulk._journal import ItemRecord, Journal
from signalwire_streams.bulk._journal_file import IN_DOUBT, JournalOwner

RUN = JournalOwner("start", "https://example.signalwire.com", "project")


def outcome(state: BulkStatus, **fields: Any) -> BulkOutcome[object]:
    return BulkOutcome(index=0, item=None, status=state, **fields)


def rows(path: Path) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(path)
    found = database.execute("SELECT kind, target, name, state, sid, ambiguous, attempts, error FROM items").fetchall()
    database.close()
    return found


async def test_journal_commits_intent_at_once_and_outcome_with_the_next(tmp_path: Path) -> None:
    """Another process sees an intent before the request goes out, and its outcome by the end."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        first = journal.new_row()
        await journal.intend(first, "conference", "room", "a")
        assert rows(path) == [("conference", "room", "a", IN_DOUBT, None, 0, 0, None)]
        journal.complete(
            first,
            outcome(
                BulkStatus.STARTED,
                stream=ConferenceStream(conference_sid="room", sid="s", name="a", ambiguous=True),
                attempts=2,
            ),
        )
        await journal.intend(journal.new_row(), "call", "leg", None)
        assert rows(path)[0] == ("conference", "room", "a", "started", "s", 1, 2, None)
        # What is looked up is what an earlier part of the run left, not what this part wrote.
        assert journal.find("room", "a") is None
    assert rows(path)[1][:4] == ("call", "leg", None, IN_DOUBT)


@pytest.mark.usefixtures("idle_clock")
async def test_journal_commits_outcomes_that_no_intent_follows_together(tmp_path: Path) -> None:
    """The first of them waits a tenth of a second, and those that came since are written with it."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        numbers = [journal.new_row() for _ in range(3)]
        for number in numbers:
            await journal.intend(number, "conference", f"room-{number}", "a")
        for number in numbers:
            journal.complete(number, outcome(BulkStatus.STARTED))
            await asyncio.sleep(0.03)
            assert [row[3] for row in rows(path)] == [IN_DOUBT] * 3
        await asyncio.sleep(0.011)
        assert [row[3] for row in rows(path)] == ["started"] * 3


@pytest.mark.usefixtures("idle_clock")
async def test_journal_commits_intents_at_most_every_four_milliseconds(tmp_path: Path) -> None:
    """The first one is written at once, and so is one after a pause."""
    clock = asyncio.get_running_loop().time
    durations = []
    with closing(Journal.create(tmp_path / "run.db", RUN, run="r1")) as journal:
        for pause in (0.0, 0.0, 0.0, 0.1, 0.0):
            await asyncio.sleep(pause)
            before = clock()
            await journal.intend(journal.new_row(), "conference", "room", None)
            durations.append(clock() - before)
    assert durations == pytest.approx([0.0, 0.004, 0.004, 0.0, 0.004], abs=0.0005)


@pytest.mark.usefixtures("idle_clock")
async def test_log_of_a_journal_is_started_over_at_four_mebibytes(tmp_path: Path) -> None:
    """Not much earlier, since that costs as much as all commits, and not later, since every reader reads it."""
    path, log = tmp_path / "run.db", tmp_path / "run.db-wal"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        sizes = []
        for _ in range(100):
            await journal.intend(journal.new_row(), "conference", "room", "n" * 100_000)
            sizes.append(log.stat().st_size)
    assert 4 * 1024 * 1024 < max(sizes) < 4.5 * 1024 * 1024
    assert len(set(sizes[50:])) < 5, "it is written again from its beginning"


async def test_journal_commits_concurrent_intents_together(tmp_path: Path) -> None:
    """Concurrent writes are committed together, in order; cancelled ones are not written."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        intents = [
            asyncio.ensure_future(journal.intend(journal.new_row(), "conference", f"room-{number}", "a"))
            for number in range(5)
        ]
        await asyncio.sleep(0)
        intents[2].cancel()
        await asyncio.wait(intents)
        assert [row[1] for row in rows(path)] == ["room-0", "room-1", "room-3", "room-4"]


async def test_journal_keeps_outcomes_after_a_failed_write(tmp_path: Path) -> None:
    """Each intent is rejected from then on; outcomes are written as soon as that works again, and the end raises."""
    path = tmp_path / "run.db"
    journal = Journal.create(path, RUN, run="r1")
    row = journal.new_row()
    await journal.intend(row, "conference", "room", "a")
    other = sqlite3.connect(path)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'full'); END")
    other.commit()
    journal.complete(row, outcome(BulkStatus.STARTED))
    failures = await asyncio.gather(
        *(journal.intend(journal.new_row(), "call", "leg", None) for _ in range(2)), return_exceptions=True
    )
    assert [str(failure) for failure in failures] == [f"the journal {path} can't be written: full"] * 2
    other.execute("DROP TRIGGER full")
    other.close()
    with pytest.raises(JournalError, match="can't be written: full"):
        await journal.intend(journal.new_row(), "call", "leg", None)
    with pytest.raises(JournalError, match="can't be written: full"):
        journal.close()
    assert rows(path) == [("conference", "room", "a", "started", None, 0, 0, None)]


async def test_reopened_journal_updates_the_rows_of_its_run(tmp_path: Path) -> None:
    """A reopened journal knows its run; an item that is sent again keeps its row and counts its attempts."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        row = journal.new_row()
        await journal.intend(row, "conference", "room", "a")
        error = StreamOutcomeUnknownError("may be running", attempts=1)
        journal.complete(row, outcome(BulkStatus.UNKNOWN, error=error, attempts=1))
    with closing(Journal.reopen(path, RUN)) as journal:
        assert journal.run == "r1"
        assert journal.find("room", "a") == ItemRecord(row, "unknown", None, False)
        assert journal.new_row() > row
        await journal.intend(row, "conference", "room", "a")
        journal.complete(row, outcome(BulkStatus.ALREADY_STARTED, attempts=1))
    assert rows(path) == [("conference", "room", "a", "already_started", None, 0, 2, None)]


def test_connections_of_a_journal_hardly_block_the_event_loop(tmp_path: Path) -> None:
    """What another program's lock prevents is tried again later; that of the run itself waits for 200 ms."""
    with closing(Journal.create(tmp_path / "run.db", RUN, run="r1")) as journal:
        waits = [each.execute("PRAGMA busy_timeout").fetchone() for each in (*journal._guards, journal._lock)]
    assert waits == [(0,), (0,), (200,)]


async def test_unnamed_items_of_one_target_have_separate_rows(tmp_path: Path) -> None:
    """Nothing ties two unnamed items together."""
    with closing(Journal.create(tmp_path / "run.db", RUN, run="r1")) as journal:
        rows = [journal.new_row(), journal.new_row()]
        for row in rows:
            await journal.intend(row, "conference", "room", None)
    with closing(Journal.reopen(tmp_path / "run.db", RUN)) as journal:
        found = [journal.find("room", None) for _ in range(3)]
    assert found == [*(ItemRecord(row, IN_DOUBT, None, ambiguous=False) for row in rows), None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"operation": "stop"}, "a run that starts streams"),
        ({"origin": "https://other"}, "the Space https://example"),
        ({"project": "other"}, "the project project"),
    ],
)
def test_journal_of_another_run_is_rejected(tmp_path: Path, change: dict[str, str], words: str) -> None:
    """A run resumes with its own journal only."""
    path = tmp_path / "run.db"
    Journal.create(path, RUN, run="r1").close()

    with pytest.raises(InvalidRequestError, match=words):
        Journal.reopen(path, evolve(RUN, **change))
    Journal.reopen(path, RUN).close()


def test_missing_or_foreign_file_is_rejected(tmp_path: Path) -> None:
    """An existing file is not overwritten; a missing one, or one that is no journal, is not resumed."""
    path = tmp_path / "run.db"
    with pytest.raises(InvalidRequestError, match="no journal"):
        Journal.reopen(path, RUN)
    sqlite3.connect(path).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(InvalidRequestError, match="already exists"):
        Journal.create(path, RUN, run="r1")
    with pytest.raises(InvalidRequestError, match="schema"):
        Journal.reopen(path, RUN)


def test_journal_of_a_running_process_is_rejected(tmp_path: Path) -> None:
    """While one process holds a journal another is rejected; a killed one holds nothing."""
    path = tmp_path / "run.db"
    code = (
        "import asyncio, sys\n"
        "from signalwire_streams.bulk._journal import Journal\n"
        "from signalwire_streams.bulk._journal_file import JournalOwner\n"
        f"journal = Journal.create(sys.argv[1], {RUN!r}, run='r1')\n"
        "asyncio.run(journal.intend(journal.new_row(), 'conference', 'room', 'a'))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InvalidRequestError, match="another process"):
            Journal.reopen(path, RUN)
        other.kill()

    with closing(Journal.reopen(path, RUN)) as journal:
        entry = journal.find("room", "a")
    assert entry is not None
    assert entry.state == IN_DOUBT
