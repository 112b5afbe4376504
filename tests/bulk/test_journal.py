"""The journal of a bulk run: on the disk before the request is, and one process's at a time."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkOutcome,
    BulkState,
    ConferenceStream,
    InvalidRequestError,
    StreamOutcomeUnknown,
)
from signalwire_streams.bulk.journal import INTENDED, Entry, Journal

RUN: dict[str, Any] = {"doing": "start", "origin": "https://example.signalwire.com", "project": "project"}


def outcome(state: BulkState, **fields: Any) -> BulkOutcome[object]:
    return BulkOutcome(index=0, item=None, state=state, **fields)


def rows(path: Path) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(path)
    found = database.execute("SELECT kind, target, name, state, sid, ambiguous, attempts, error FROM items").fetchall()
    database.close()
    return found


def test_an_intent_is_on_the_disk_at_once_and_an_outcome_with_the_next(tmp_path: Path) -> None:
    """Another process sees an intent before the request goes out, and its outcome by the end."""
    path = tmp_path / "run.db"
    with Journal.create(path, run="r1", **RUN) as journal:
        first = journal.intend("conference", "room", "a")
        assert rows(path) == [("conference", "room", "a", INTENDED, None, 0, 0, None)]
        journal.settle(
            first,
            outcome(
                BulkState.STARTED,
                stream=ConferenceStream(conference_sid="room", sid="s", name="a", ambiguous=True),
                attempts=2,
            ),
        )
        journal.intend("call", "leg", None)
        assert rows(path)[0] == ("conference", "room", "a", "started", "s", 1, 2, None)
        # What is looked up is what an earlier part of the run left, not what this part wrote.
        assert journal.find("room", "a") is None
    assert rows(path)[1][:4] == ("call", "leg", None, INTENDED)


def test_a_run_is_gone_on_with(tmp_path: Path) -> None:
    """A reopened journal knows its run; an item that is sent again keeps its row and counts its attempts."""
    path = tmp_path / "run.db"
    with Journal.create(path, run="r1", **RUN) as journal:
        row = journal.intend("conference", "room", "a")
        error = StreamOutcomeUnknown("may be running", attempts=1)
        journal.settle(row, outcome(BulkState.UNKNOWN, error=error, attempts=1))
    with Journal.reopen(path, **RUN) as journal:
        assert journal.run == "r1"
        assert journal.find("room", "a") == Entry(row, "unknown", None, False)
        assert journal.intend("conference", "room", "a") == row
        journal.settle(row, outcome(BulkState.ALREADY_STARTED, attempts=1))
    assert rows(path) == [("conference", "room", "a", "already_started", None, 0, 2, None)]


def test_unnamed_items_of_one_target_have_rows_of_their_own(tmp_path: Path) -> None:
    """Nothing ties two unnamed items together."""
    with Journal.create(tmp_path / "run.db", run="r1", **RUN) as journal:
        rows = [journal.intend("conference", "room", None), journal.intend("conference", "room", None)]
        assert rows[0] != rows[1]
    with Journal.reopen(tmp_path / "run.db", **RUN) as journal:
        found = [journal.find("room", None) for _ in range(3)]
    assert found == [*(Entry(row, INTENDED, None, ambiguous=False) for row in rows), None]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"doing": "stop"}, "doing"), ({"origin": "https://other"}, "origin"), ({"project": "other"}, "project")],
)
def test_a_journal_of_another_run_is_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    """A run goes on with its own journal only."""
    path = tmp_path / "run.db"
    Journal.create(path, run="r1", **RUN).close()

    with pytest.raises(InvalidRequestError, match=words):
        Journal.reopen(path, **(RUN | change))
    Journal.reopen(path, **RUN).close()


def test_files_that_are_none(tmp_path: Path) -> None:
    """A file that is there is not begun anew, one that is missing or no journal is not gone on with."""
    path = tmp_path / "run.db"
    with pytest.raises(InvalidRequestError, match="no journal"):
        Journal.reopen(path, **RUN)
    sqlite3.connect(path).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(InvalidRequestError, match="there already"):
        Journal.create(path, run="r1", **RUN)
    with pytest.raises(InvalidRequestError, match="schema"):
        Journal.reopen(path, **RUN)


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """While one process holds a journal another is told so; a killed one holds nothing."""
    path = tmp_path / "run.db"
    code = (
        "import sys, pathlib\n"
        "from signalwire_streams.bulk.journal import Journal\n"
        f"journal = Journal.create(pathlib.Path(sys.argv[1]), run='r1', **{RUN!r})\n"
        "journal.intend('conference', 'room', 'a')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InvalidRequestError, match="another process"):
            Journal.reopen(path, **RUN)
        other.kill()

    with Journal.reopen(path, **RUN) as journal:
        entry = journal.find("room", "a")
    assert entry is not None
    assert entry.state == INTENDED
