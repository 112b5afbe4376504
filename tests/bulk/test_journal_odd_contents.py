"""Journals that another version or another program wrote in, and places where SQLite can't read one."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    InvalidRequestError,
    JournalError,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams._cli.main import run as run_command
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import STATES, JournalOwner
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
RUN = JournalOwner("start", "https://example.signalwire.com", "project")


def changed(journal: Path, *statements: str) -> None:
    """Write in a journal, as another program would."""
    with closing(sqlite3.connect(journal, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)


FACTS = [
    "DELETE FROM run WHERE key = 'run'",
    "DELETE FROM run WHERE key = 'origin'",
    "UPDATE run SET value = 'abc' WHERE key = 'planned'",
    "UPDATE run SET value = CAST(value AS BLOB) WHERE key = 'project'",
    "INSERT INTO run VALUES ('of a later version', '1')",
]


@pytest.mark.parametrize("statement", FACTS)
async def test_run_metadata_of_another_type_is_rejected(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "run.db"
    request = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL)
    client.create_journal([request], journal=path)
    changed(path, statement)
    with pytest.raises(JournalError, match="its table run is not in this version's format; use the version"):
        BulkJournal(path).status()
    for run in (client.start_streams([request], journal=path, resume=True), client.stop_started(path)):
        with pytest.raises(JournalError, match="its table run is not in"):
            await run.report()
    assert len(space.requests) == 0


BYTES = "CAST(X'ff' AS TEXT)"
NO_TEXTS = {
    "run": f"UPDATE run SET value = {BYTES} WHERE key = 'project'",  # noqa: S608
    "items": f"INSERT INTO items (id, kind, target, state, changed) VALUES (1, 'call', {BYTES}, 'started', '')",  # noqa: S608
    "plan": f"UPDATE plan SET target = {BYTES}",  # noqa: S608
}


@pytest.mark.parametrize("table", NO_TEXTS)
def test_text_that_is_not_utf8_is_rejected(client: StreamsClient, tmp_path: Path, table: str) -> None:
    """SQLite stores bytes that are no UTF-8 as text where another program asks for it."""
    request = StartConferenceStream(conference_sid="room", url=URL)
    journal = client.create_journal([request], journal=tmp_path / "run.db")
    changed(journal.path, NO_TEXTS[table])
    with pytest.raises(JournalError, match="can't be read: Could not decode to UTF-8"):
        list(journal.requests() if table == "plan" else journal.items())


async def test_missing_table_is_another_schema(client: StreamsClient, tmp_path: Path) -> None:
    journal = client.create_journal([], journal=tmp_path / "run.db")
    changed(journal.path, "DROP TABLE run")
    with pytest.raises(InvalidRequestError, match="its schema differs"):
        journal.status()


PLANS = [
    "request = '{'",
    "request = '[]'",
    "request = '7'",
    "request = '{}'",
    'request = \'{"url": "wss://rx.example.com/audio", "of_a_later_version": 1}\'',
    'request = \'{"url": "wss://rx.example.com/audio", "withheld": {"of_a_later_version": 1}}\'',
    'request = \'{"url": "wss://rx.example.com/audio", "withheld": 1}\'',
    'request = \'{"url": "https://rx.example.com/audio"}\'',
    "request = CAST(X'ff00' AS BLOB)",
    "target = CAST('room' AS BLOB)",
]


@pytest.mark.parametrize("change", PLANS)
def test_plan_row_of_another_type_is_rejected(client: StreamsClient, tmp_path: Path, change: str) -> None:
    plan = [StartConferenceStream(conference_sid=f"room-{number}", url=URL) for number in range(2)]
    journal = client.create_journal(plan, journal=tmp_path / "run.db")
    changed(journal.path, f"UPDATE plan SET {change} WHERE id = 2")  # noqa: S608
    requests = journal.requests()
    assert next(requests).request == plan[0]
    with pytest.raises(JournalError, match="the row 2 of its table plan is not in this version's format"):
        next(requests)


ITEMS = ["kind", "target", "name", "state", "sid", "attempts", "error", "message"]


@pytest.mark.parametrize("column", ITEMS)
async def test_item_row_of_another_type_is_rejected(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, column: str
) -> None:
    """Nothing is sent again, and nothing is left running, because a row could not be understood."""
    path = tmp_path / "run.db"
    requests = [StartConferenceStream(conference_sid=sid, url=URL, name="n") for sid in space.conference_sids]
    await client.start_streams(requests, journal=path, concurrency=1).report()
    sent = space.requests.count()
    statement = f"UPDATE items SET {column} = CAST('x' AS BLOB) WHERE id = 2"  # noqa: S608
    changed(path, "PRAGMA ignore_check_constraints = ON", statement)
    with pytest.raises(JournalError, match="the row 2 of its table items is not in this version's format"):
        list(BulkJournal(path).items())
    if column in {"state", "error"}:
        with pytest.raises(JournalError, match="its table items is not in this version's format"):
            BulkJournal(path).status()
    if column in {"state", "sid"}:
        with pytest.raises(JournalError, match="the row 2 of its table items"):
            await client.start_streams(requests, journal=path, resume=True).report()
        assert space.requests.count() == sent


COLUMNS = {
    "run": ["run", "operation", "origin", "project", "started_at", "planned", "rollback_started_at", "schema"],
    "plan": ["id", "kind", "target", "name", "request"],
    "items": [*ITEMS, "id", "ambiguous", "changed", "rollback_status"],
}
CELLS = [
    "NULL",
    "''",
    "'x'",
    "'room'",
    "'7'",
    "7",
    "-1",
    "2.5",
    "9223372036854775807",
    "X'ff'",
    BYTES,
    "'stopped'",
    "'2020-01-01T00:00:00'",
    "'1' || hex(zeroblob(5000))",
    "'[[1]]'",
    "'null'",
    "'{}'",
]
REQUESTS = [
    *(
        f"""'{{"url": "{URL}", "withheld": {withheld}}}'"""
        for withheld in (
            "[[1]]",
            '{"parameters": [[1]]}',
            '{"parameters": "ab"}',
            '{"parameters": 1}',
            '{"bearer_token": 1}',
            '{"request": 1}',
        )
    ),
    f"""'{{"url": "{URL}", "parameters": {{"a": "secret"}}}}'""",
    f"""'{{"url": "{URL}", "track": [], "name": "other"}}'""",
    "replace(hex(zeroblob(60000)), '0', '[')",
    """'{"url": ' || replace(hex(zeroblob(60000)), '0', '[')""",
]


@pytest.mark.parametrize(("table", "column"), [(table, column) for table, names in COLUMNS.items() for column in names])
async def test_wrong_cell_is_rejected_or_harmless(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, table: str, column: str
) -> None:
    """Whatever stands in a cell, each use of the journal returns what its types promise, or ends in one sentence."""
    plan = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
    client.create_journal(plan, journal=tmp_path / "run.db")
    await client.start_streams(plan, journal=tmp_path / "run.db", resume=True).report()
    change = (
        "INSERT OR REPLACE INTO run VALUES ('{1}', {2})" if table == "run" else "UPDATE {0} SET {1} = {2} WHERE id = 2"
    )
    refused = []
    for number, cell in enumerate(CELLS + (REQUESTS if column == "request" else [])):
        path = Path(shutil.copy(tmp_path / "run.db", tmp_path / f"{number}.db"))
        try:
            changed(path, "PRAGMA ignore_check_constraints = ON", change.format(table, column, cell))
        except sqlite3.Error:  # another program can't write that
            continue
        for use in USES[table]:
            try:
                use(path)
            except (JournalError, InvalidRequestError) as error:
                refused.append(str(error))
        if table == "run":
            assert run_command(["bulk", "status", str(path)]) in {0, 1, 2}
        elif column in {"target", "name", "state", "sid", "ambiguous"}:
            try:
                await client.start_streams(plan, journal=path, resume=True).report()
            except (JournalError, InvalidRequestError) as error:
                refused.append(str(error))
    assert all(sentence.isprintable() for sentence in refused)
    assert refused or column in {"changed", "id"}


def check_status(path: Path) -> None:
    status = BulkJournal(path).status()
    assert {type(value) for value in (status.run, status.origin, status.project)} == {str}
    assert status.operation in {"start", "stop"}
    assert datetime.fromisoformat(status.started_at).tzinfo is not None
    assert status.counts.keys() <= STATES | {"pending"}
    assert all(isinstance(label, str) for label in status.errors)
    assert isinstance(status.attempts, int)


def check_items(path: Path) -> None:
    for item in BulkJournal(path).items():
        assert item.kind in {"conference", "call"}
        assert item.status in STATES
        assert item.rollback_status in {None, "in_doubt", "stopped"}
        assert isinstance(item.attempts, int)
        assert isinstance(item.target, str)
        for text in (item.name, item.sid, item.error, item.message):
            assert isinstance(text, str | None)
    assert len(list(BulkJournal(path).streams())) <= 3


def check_requests(path: Path) -> None:
    for planned in BulkJournal(path).requests():
        assert all(isinstance(name, str) for name in planned.parameters)
        assert isinstance(planned.bearer_token, bool)
        assert dict(planned.request.parameters) == {}


USES = {"run": [check_status], "plan": [check_requests], "items": [check_status, check_items]}


async def test_unknown_state_is_not_sent_again(client: StreamsClient, space: SimulatedSpace, tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    requests = [StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, name="n")]
    await client.start_streams(requests, journal=path).report()
    changed(path, "UPDATE items SET state = 'of a later version'")
    with pytest.raises(JournalError, match="the row 1 of its table items"):
        await client.start_streams(requests, journal=path, resume=True).report()
    assert space.requests.count() == 1


ID = "0b2f6a1c-93ab-4c1d-8d3e-aaaabbbbcccc"


@pytest.mark.parametrize("model", [StartConferenceStream, StartCallStream])
def test_duplicate_check_ignores_the_case_of_a_uuid(client: StreamsClient, tmp_path: Path, model: Any) -> None:
    """The Space takes both for one conference or call; other ids are compared as they are."""
    field = "conference_sid" if model is StartConferenceStream else "call_sid"
    for name in (None, "n"):
        items = [model(**{field: sid}, url=URL, name=name) for sid in (ID, ID.upper())]
        with pytest.raises(InvalidRequestError, match=f"{ID.upper()} appears twice in this run"):
            client.create_journal(items, journal=tmp_path / "run.db")
    other = [model(**{field: sid}, url=URL) for sid in ("room-a", "ROOM-A", ID)]
    journal = client.create_journal(other, journal=tmp_path / "run.db")
    assert [planned.request for planned in journal.requests()] == other


@pytest.mark.parametrize("name", [None, "n"])
async def test_resume_finds_a_uuid_in_another_case(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, name: str | None
) -> None:
    path = tmp_path / "run.db"
    sid = space.conference_sids[0]
    assert sid != sid.upper()
    request = StartConferenceStream(conference_sid=sid, url=URL, name=name)
    await client.start_streams([request], journal=path).report()
    again = evolve(request, conference_sid=sid.upper())
    assert (await client.start_streams([again], journal=path, resume=True).report()).ok
    assert space.requests.count() == 1
    assert (await client.stop_started(path).report()).counts == {BulkStatus.STOPPED: 1}


@pytest.mark.parametrize("path", ["", Path()])
def test_empty_path_is_not_the_working_directory(path: Any) -> None:
    with pytest.raises(InvalidRequestError, match="journal is empty: name a file" if path == "" else "is a directory"):
        BulkJournal(path).status()


@pytest.mark.parametrize(
    "url", ["REDIS://:hush@host", "redis+cluster://:hush@host", "http://u:hush@host", Path("rediss://u:hush@host")]
)
def test_url_is_no_path_and_its_password_is_not_shown(url: Any) -> None:
    with pytest.raises(InvalidRequestError, match="journal is a URL: name a file") as caught:
        BulkJournal(url)
    assert "hush" not in str(caught.value)


async def test_log_without_an_index_on_a_read_only_disk_is_explained(tmp_path: Path) -> None:
    """SQLite needs a file of its own to read a log; a finished journal needs none."""
    with closing(Journal.create(tmp_path / "run.db", RUN, run="r1")) as journal:
        await journal.intend(journal.new_row(), "call", "leg", None)
        folder = Path(tempfile.mkdtemp(prefix="run-"))  # not below tmp_path, which no other account may enter
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"run.db{suffix}", folder)
    shutil.copy(tmp_path / "run.db", folder / "whole.db")
    try:
        refused = without_leave(folder, lambda: BulkJournal(folder / "run.db").status())
        assert "its log needs a file run.db-shm next to it" in refused
        assert "copy the journal and its log to a writable folder" in refused
        assert without_leave(folder, lambda: BulkJournal(folder / "whole.db").status()) == ""
    finally:
        shutil.rmtree(folder)


def without_leave(folder: Path, use: Callable[[], object]) -> str:
    """Use a folder as an account that may only read it; return what was raised."""
    folder.chmod(0o555)
    for file in folder.iterdir():
        file.chmod(0o444)
    account = os.geteuid()
    if account == 0:
        os.seteuid(65534)
    try:
        use()
    except JournalError as error:
        return str(error)
    finally:
        os.seteuid(account)
        folder.chmod(0o755)
    return ""
