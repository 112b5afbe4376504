"""Copies of a journal: one without its log, or with another one, is recognized and never taken for a new run's."""

import asyncio
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkOutcome,
    BulkStatus,
    ConferenceStream,
    InvalidRequestError,
    JournalError,
    StreamsClient,
)
from signalwire_streams.bulk import _journal as store, _write_ahead_log as write_ahead_log
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner, JournalPath, is_busy, journal_path
from signalwire_streams.bulk._write_ahead_log import Header, header_of, next_generation
from signalwire_streams.simulator import SimulatedSpace
from tests import waiting
from tests.bulk.requests import on_conferences

PAGE = 4096
RUN = JournalOwner("start", "https://example.signalwire.com", "project")
KILLED_RUN = """
import asyncio, json, sys
from signalwire_streams import StartConferenceStream, StreamsClient

async def main():
    base_url, project, token, sids, journal, resume = json.loads(sys.argv[1])
    async with StreamsClient(base_url=base_url, project=project, token=token) as client:
        requests = [StartConferenceStream(conference_sid=sid, url="wss://rx.example.com/audio") for sid in sids]
        run = client.start_streams(requests, journal=journal, resume=resume, concurrency=4)
        await run.report()

asyncio.run(main())
"""


async def killed(space: SimulatedSpace, journal: Path, *, resume: bool = False) -> None:
    """Start streams in a process, and kill it in mid-run."""
    known = [space.base_url, space.project, space.token, space.conference_sids, str(journal), resume]
    before = space.requests.count()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_RUN, json.dumps(known))
    await space.requests.wait_for(before + 12, timeout=30)
    child.kill()
    assert await child.wait() == -9


def copy(journal: Path, folder: Path, *suffixes: str) -> Path:
    """Copy a journal, with the files beside it that have these suffixes."""
    folder.mkdir()
    for suffix in ("", *suffixes):
        shutil.copy(f"{journal}{suffix}", folder / f"run.db{suffix}")
    return folder / "run.db"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without SQLite's index of the log, which any reader makes."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".db-shm"}


async def check_refused(client: StreamsClient, space: SimulatedSpace, path: Path, words: str) -> None:
    """Check that nothing is done with a journal, and that it is left as it is."""
    before = contents(path.parent)
    sent = space.requests.count()
    uses: list[Callable[[], Any]] = [
        lambda: BulkJournal(path).status(),
        lambda: list(BulkJournal(path).streams()),
        lambda: list(BulkJournal(path).requests()),
    ]
    for use in uses:
        with pytest.raises(JournalError, match=f"is incomplete: run.db-wal {words}"):
            use()
    for run in (
        client.start_streams(on_conferences(space), journal=path, resume=True),
        client.stop_started(path),
    ):
        with pytest.raises(JournalError, match=f"is incomplete: run.db-wal {words}"):
            await run.report()
    assert contents(path.parent) == before
    assert space.requests.count() == sent


async def test_copy_of_a_killed_run_is_complete_or_rejected(client_for: Any, tmp_path: Path) -> None:
    """A copy that lacks a part of the log is rejected; one that is whole is resumed, and doubles nothing."""
    async with SimulatedSpace(conferences=60, participants=0) as space:
        client = client_for(space)
        original = tmp_path / "run.db"
        await killed(space, original)
        whole = copy(original, tmp_path / "whole", "-wal")
        counts = BulkJournal(whole).status().counts
        assert sum(counts.values()) >= 12

        await check_refused(client, space, copy(original, tmp_path / "alone"), "is missing")
        await check_refused(client, space, copy(original, tmp_path / "with-index", "-shm"), "is missing")
        for size in (0, 1, 31, 32, 4096, original.with_name("run.db-wal").stat().st_size // 2):
            cut = copy(original, tmp_path / f"cut-{size}", "-wal")
            with (cut.parent / "run.db-wal").open("r+b") as log:
                log.truncate(size)
            await check_refused(client, space, cut, "was truncated" if size else "is missing")

        # Any other program that opens the journal copies the log into it and deletes the log.
        merged = copy(original, tmp_path / "merged", "-wal")
        with sqlite3.connect(merged) as other:
            assert other.execute("SELECT count(*) FROM items").fetchone() == (sum(counts.values()),)
            assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        other.close()
        alone = copy(merged, tmp_path / "merged-alone")
        assert BulkJournal(alone).status().counts == counts

        assert (await client.start_streams(on_conferences(space), journal=whole, resume=True).report()).ok
        assert space.streams.duplicates() == []
        assert len(space.streams.active()) == 60
        assert BulkJournal(copy(whole, tmp_path / "ended")).status().counts == {"started": 60}


async def test_log_of_another_run_is_rejected(client_for: Any, tmp_path: Path) -> None:
    """SQLite would apply any log; here it would mix two runs."""
    async with SimulatedSpace(conferences=60, participants=0) as space, SimulatedSpace(conferences=60) as elsewhere:
        client: StreamsClient = client_for(space)
        original, other, planned = tmp_path / "run.db", tmp_path / "other.db", tmp_path / "planned.db"
        client.create_journal(on_conferences(space), journal=original)
        client.create_journal(on_conferences(space), journal=planned)
        backup = copy(original, tmp_path / "backup")
        await killed(space, original, resume=True)
        await killed(elsewhere, other)
        log, others_log = original.with_name("run.db-wal"), other.with_name("other.db-wal")

        mixed = copy(original, tmp_path / "mixed")
        shutil.copy(others_log, mixed.with_name("run.db-wal"))
        await check_refused(client, space, mixed, "was truncated or damaged, or belongs to another journal")

        # A main file of before the run names no log.
        assert BulkJournal(copy(backup, tmp_path / "older")).status().counts == {"pending": 60}
        shutil.copy(log, backup.with_name("run.db-wal"))
        await check_refused(client, space, backup, "was truncated or damaged, or belongs to another journal")
        no_run = copy(planned, tmp_path / "planned")
        shutil.copy(others_log, no_run.with_name("run.db-wal"))
        await check_refused(client, space, no_run, "was truncated or damaged, or belongs to another journal")
        nothing = tmp_path / "nothing" / "run.db"
        nothing.parent.mkdir()
        nothing.touch()
        shutil.copy(log, nothing.with_name("run.db-wal"))
        await check_refused(client, space, nothing, "is missing or belongs to another journal")


def test_main_file_without_tables_is_not_taken_for_new(tmp_path: Path) -> None:
    """All tables are in the main file before a run begins."""
    database = sqlite3.connect(tmp_path / "run.db")
    database.execute("PRAGMA journal_mode = WAL")
    database.close()
    with pytest.raises(JournalError, match="is incomplete"):
        BulkJournal(tmp_path / "run.db").status()


async def record(journal: Journal, number: int, *, sid: str = "s" * 3000) -> None:
    """Record one item from its intent to its outcome."""
    row = journal.new_row()
    await journal.intend(row, "conference", f"room-{number}", "a")
    stream = ConferenceStream(conference_sid=f"room-{number}", sid=sid, name="a")
    journal.complete(row, BulkOutcome(index=0, item=None, status=BulkStatus.STARTED, stream=stream))


def salt_of(journal: Path) -> int:
    """Return the number in the log's header that SQLite raises each time it begins the log anew."""
    return int.from_bytes(journal.with_name(f"{journal.name}-wal").read_bytes()[16:20])


async def test_restarted_log_fits_only_the_main_file_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time a main file is read with the log of that time, and rejected without it or with a later one."""
    monkeypatch.setattr("signalwire_streams.bulk._write_ahead_log.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    copies: list[tuple[int, int, Path]] = []
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for number in range(80):
            await record(journal, number)
            here = copy(path, tmp_path / str(number), "-wal")
            copies.append((number, salt_of(here), here))
    refused = 0
    salts = [salt for _, salt, _ in copies]
    assert len(set(salts)) >= 4
    assert BulkJournal(path).status().counts == {"started": 80}
    for number, _, here in copies:
        assert sum(BulkJournal(here).status().counts.values()) == number + 1
        try:  # it is whole only where it was just checkpointed
            assert sum(BulkJournal(copy(here, tmp_path / f"{number}-alone")).status().counts.values()) == number + 1
        except JournalError:
            refused += 1
    assert refused > 60
    first, last = copies[0][2], copies[-1][2]
    for main, log in ((first, last), (last, first)):
        mixed = copy(main, tmp_path / f"{main.parent.name}-{log.parent.name}")
        shutil.copy(log.with_name("run.db-wal"), mixed.with_name("run.db-wal"))
        with pytest.raises(JournalError, match="belongs to another journal"):
            BulkJournal(mixed).status()


async def test_reader_in_a_long_transaction_lets_the_log_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the log from being begun anew, and from being copied wholly; nothing is lost, and no cut is hidden."""
    monkeypatch.setattr("signalwire_streams.bulk._write_ahead_log.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM items").fetchone()
        for number in range(40):
            await record(journal, number)
        here = copy(path, tmp_path / "here", "-wal")
    size = here.with_name("run.db-wal").stat().st_size
    assert size > 3 * 64 * 1024
    for cut in range(PAGE, size, 4 * PAGE):
        shorter = copy(here, tmp_path / f"{cut}", "-wal")
        os.truncate(shorter.with_name("run.db-wal"), cut)
        with pytest.raises(JournalError, match="was truncated"):
            BulkJournal(shorter).status()
    assert sum(BulkJournal(here).status().counts.values()) == 40
    assert BulkJournal(path).status().counts == {"started": 40}
    with closing(Journal.reopen(path, RUN)) as journal:
        await record(journal, 40)
    assert sum(BulkJournal(path).status().counts.values()) == 41
    reader.close()
    with closing(Journal.reopen(path, RUN)) as journal:
        assert journal.find("room-40", "a") is not None
    assert not path.with_name("run.db-wal").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "zeros to the end", "zeros in between"])
@pytest.mark.parametrize("readers", [False, True])
async def test_damaged_log_is_rejected_wherever_the_damage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, readers: bool
) -> None:
    """SQLite takes the first invalid frame for the end of a log; the main file knows how far it has to reach."""
    monkeypatch.setattr("signalwire_streams.bulk._write_ahead_log.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for number in range(30):
            await record(journal, number)
            if readers:
                BulkJournal(path).status()
                with closing(sqlite3.connect(path)) as other:  # is still open at the next checkpoint
                    other.execute("BEGIN")
                    other.execute("SELECT count(*) FROM items").fetchone()
                    await record(journal, 100 + number)
        here = copy(path, tmp_path / "here", "-wal")
    log = here.with_name("run.db-wal")
    whole = log.read_bytes()
    known = sum(BulkJournal(here).status().counts.values())
    assert known == (60 if readers else 30)
    used = used_frames(whole)
    assert used > 10
    for frame in {0, 1, used // 2, used - 2, used - 1}:
        at = 32 + frame * (24 + PAGE)
        for offset in (4, 8, 16, 24, 24 + PAGE - 1):
            damaged = bytearray(whole)
            match damage:
                case "cut":
                    del damaged[at + offset :]
                case "bit":
                    damaged[at + offset] ^= 0x10
                case "zeros to the end":
                    damaged[at + offset :] = bytes(len(whole) - at - offset)
                case _:
                    damaged[at + offset : at + offset + 4200] = bytes(len(whole[at + offset : at + offset + 4200]))
            log.write_bytes(damaged)
            with pytest.raises(JournalError, match="was truncated or damaged"):
                BulkJournal(here).status()
    log.write_bytes(whole)
    assert sum(BulkJournal(here).status().counts.values()) == known


def used_frames(log: bytes) -> int:
    """Return how many frames a log has: what follows is of before it was begun anew."""
    frames = range(32, len(log), 24 + PAGE)
    return sum(log[16:24] == log[frame + 8 : frame + 16] for frame in frames)


async def test_copy_in_either_order_is_complete_or_rejected(tmp_path: Path) -> None:
    """A main file that was copied first fits the log of later; one that was copied after it knows more than the log."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
        earlier = copy(path, tmp_path / "earlier", "-wal")
        await record(journal, 1)
        later = copy(path, tmp_path / "later", "-wal")
    main_first = copy(earlier, tmp_path / "main-first")
    shutil.copy(later.with_name("run.db-wal"), main_first.parent)
    assert sum(BulkJournal(main_first).status().counts.values()) == 2
    log_first = copy(later, tmp_path / "log-first")
    shutil.copy(earlier.with_name("run.db-wal"), log_first.parent)
    with pytest.raises(JournalError, match="was truncated"):
        BulkJournal(log_first).status()


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
async def test_checkpoint_of_another_program_hides_no_cut(tmp_path: Path, mode: str) -> None:
    """It copies nothing that would make a main file look complete, and it can't begin the log anew."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for number in range(12):
            await record(journal, number)
            with closing(sqlite3.connect(path, timeout=0)) as other:
                other.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            here = copy(path, tmp_path / f"{number}", "-wal")
            assert sum(BulkJournal(here).status().counts.values()) == number + 1
            with pytest.raises(JournalError, match="is missing"):
                BulkJournal(copy(here, tmp_path / f"{number}-alone")).status()
    assert BulkJournal(path).status().counts == {"started": 12}
    assert not path.with_name("run.db-wal").exists()


async def test_loss_can_be_accepted_with_any_sqlite_program(tmp_path: Path) -> None:
    """After a power cut there may be no better copy: who opens it with SQLite keeps what is left."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for number in range(5):
            await record(journal, number)
        here = copy(path, tmp_path / "here", "-wal")
    log = here.with_name("run.db-wal")
    os.truncate(log, log.stat().st_size - 1)
    with pytest.raises(JournalError, match="was truncated"):
        Journal.reopen(here, RUN)
    with closing(sqlite3.connect(here)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert BulkJournal(here).status().counts == {"started": 3, "in_doubt": 1}


async def test_log_that_the_main_file_does_not_know_yet_is_accepted(client_for: Any, tmp_path: Path) -> None:
    """A run that was killed as it opened its journal had sent nothing, so its log is good; another's is not."""
    async with SimulatedSpace(conferences=3) as space:
        client: StreamsClient = client_for(space)
        path = client.create_journal(on_conferences(space), journal=tmp_path / "run.db").path
        database = journal_path(path).connect_to_write()
        with next_generation(database):
            database.execute("INSERT INTO plan (kind, target, request) VALUES ('call', 'leg', '{}')")
        opened = copy(path, tmp_path / "opened", "-wal")
        database.close()
        size = opened.with_name("run.db-wal").stat().st_size
        for left in (32, 56, 57, 4151, 4152, 4176, size - 1, size):  # SQLite writes header, frame and page apart
            cut = copy(opened, tmp_path / f"opened-{left}", "-wal")
            os.truncate(cut.with_name("run.db-wal"), left)
            assert BulkJournal(cut).status().counts == {"pending": 3}
        assert (await client.start_streams(on_conferences(space), journal=opened, resume=True).report()).ok

        other = sqlite3.connect(tmp_path / "orders.db", isolation_level=None)
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE orders (x)")
        mixed = copy(path, tmp_path / "mixed")
        shutil.copy(tmp_path / "orders.db-wal", mixed.with_name("run.db-wal"))
        other.close()
        await check_refused(client, space, mixed, "was truncated or damaged, or belongs to another journal")


async def test_reader_tolerates_a_run_that_begins_meanwhile(
    client_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process keeps the files together, so what a reader saw of them one by one says nothing."""
    async with SimulatedSpace(conferences=3) as space:
        client: StreamsClient = client_for(space)
        path = tmp_path / "run.db"
        async for _ in client.start_streams(on_conferences(space), journal=path, concurrency=1):
            for error in (JournalError("the log is not the one of before"), sqlite3.DatabaseError("malformed")):
                is_locked = partial(next, iter([False]), True)
                monkeypatch.setattr(JournalPath, "is_locked", lambda _, is_locked=is_locked: is_locked())
                monkeypatch.setattr(store, "verify", partial(fails_to_verify, error))
                assert len(list(BulkJournal(path).items())) >= 1
                monkeypatch.undo()


def fails_to_verify(error: Exception, *_: Any) -> Any:
    raise error


def test_check_of_a_journal_that_never_stops_changing_ends(tmp_path: Path, client: StreamsClient) -> None:
    """Another program may change the files while they are compared, but not for ever."""
    path = client.create_journal([], journal=tmp_path / "run.db").path
    tried = []

    def change(journal: JournalPath, database: sqlite3.Connection) -> None:
        tried.append(True)
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(f"PRAGMA user_version = {2 * len(tried)}")
        raise JournalError("it has changed")

    with pytest.raises(JournalError, match="it has changed"):
        write_ahead_log.verify(journal_path(path), change)
    assert len(tried) == 11


def test_generations_are_serial_numbers() -> None:
    """They have 31 bits, and begin again at zero."""
    last, first, second = Header(0, 0xFFFFFFFE), Header(0, 0), Header(0, 2)
    assert last.is_older(first)
    assert last.is_older(second, by=2)
    assert not last.is_older(first, by=2)
    assert not last.is_older(last)
    assert not last.is_older(Header(0, 0xFFFFFFFF))
    assert not second.is_older(last)


def test_journal_generation_wraps_around_at_31_bits(tmp_path: Path) -> None:
    """The first page has a signed number, whose lowest bit is cleared by each commit."""
    with closing(sqlite3.connect(tmp_path / "run.db", isolation_level=None)) as database:
        for known, following in ((0x7FFFFFFE, 0x80000000), (0x7FFFFFFF, 0x80000000), (-1, 0), (-2, 0), (5, 6)):
            database.execute(f"PRAGMA user_version = {known}")
            with next_generation(database) as generation:
                pass
            assert header_of(database) == Header(0, following)
            assert generation == following >> 1


def torn(before: bytes, after: bytes) -> Iterator[bytes]:
    """Return what a checkpoint that is cut off leaves of a main file: it writes the pages in their order."""
    for at in range(0, len(after) + 1, PAGE):
        yield after[:at] + before[at:]


async def test_checkpoint_that_is_cut_off_loses_nothing(tmp_path: Path) -> None:
    """A main file that has a part of the log is read with the log, and never without it."""
    path = tmp_path / "run.db"
    copies: list[tuple[int, Path, bytes]] = []
    recorded = 0

    def statement(text: str) -> None:
        if copies and not copies[-1][2]:
            copies[-1] = *copies[-1][:2], path.read_bytes()
        if "wal_checkpoint" in text:
            copies.append((recorded, copy(path, tmp_path / str(len(copies)), "-wal"), b""))

    with closing(Journal.create(path, RUN, run="r1")) as journal:
        journal._database.set_trace_callback(statement)
        for number in range(12):
            await record(journal, number)
            recorded += 1
            if number == 5:
                journal._commits._log_limit = 0  # copy it in mid-run
    copies[-1] = *copies[-1][:2], path.read_bytes()
    assert {known for known, _, _ in copies} >= {6, 12}
    tried = 0
    for known, here, after in copies:
        for main in set(torn(here.read_bytes(), after)):
            tried += 1
            here.write_bytes(main)
            assert sum(BulkJournal(here).status().counts.values()) >= known
            alone = copy(here, tmp_path / f"alone-{tried}")
            try:
                assert sum(BulkJournal(alone).status().counts.values()) >= known
            except JournalError as error:
                assert "is missing" in str(error)  # noqa: PT017  (either will do)
    assert tried > 10
    here = next(here for known, here, _ in copies if known == 12)
    with closing(sqlite3.connect(here)) as other:  # any other program can merge what was cut off
        assert other.execute("SELECT count(*) FROM items").fetchone() == (12,)


async def test_log_with_only_a_new_header_is_accepted(tmp_path: Path) -> None:
    """SQLite writes a new header before the first frame; all that the log had is in the main file then."""
    with closing(Journal.create(tmp_path / "run.db", RUN, run="r1")) as journal:
        await record(journal, 0)
        journal._files.checkpoint()
        here = copy(tmp_path / "run.db", tmp_path / "here", "-wal")
    with here.with_name("run.db-wal").open("r+b") as log:
        header = bytearray(log.read(32))
        header[16:20] = ((int.from_bytes(header[16:20]) + 1) & 0xFFFFFFFF).to_bytes(4)
        log.seek(0)
        log.write(header)
    assert sum(BulkJournal(here).status().counts.values()) == 1


def test_file_that_is_not_a_log_is_rejected(tmp_path: Path) -> None:
    """Neither text nor zeros beside a planned journal is a log, and a log of ours ends where it says."""
    Journal.plan(tmp_path / "run.db", RUN, run="r1", requests=[])
    for number, content in enumerate((b"precious " * 50, bytes(5000))):
        here = copy(tmp_path / "run.db", tmp_path / str(number))
        here.with_name("run.db-wal").write_bytes(content)
        for _ in range(2):
            with pytest.raises(JournalError, match="belongs to another journal"):
                BulkJournal(here).status()
        assert here.with_name("run.db-wal").read_bytes() == content


OTHER_PROGRAM = """
import contextlib, json, os, pathlib, shutil, sqlite3, sys

journal = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    act, target = json.loads(line)
    with contextlib.suppress(sqlite3.Error):
        if act:
            with contextlib.closing(sqlite3.connect(journal, timeout=0)) as database:
                database.execute(f"PRAGMA {act}").fetchall()
    shutil.copytree(journal.parent, target)
    print("done", flush=True)
"""


class AnotherProgram:
    """A process that acts on a journal, and then copies its files as a killed run would leave them."""

    def __init__(self, path: Path, copies: Path, act: str) -> None:
        self._path, self._copies, self._act = path, copies, act
        self.sent = 0
        self.is_open = False
        self.found: list[tuple[int, Path]] = []
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", OTHER_PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def act(self, *_: object) -> None:
        if not self._path.exists():
            return
        act = self._act if self.is_open or self._act != "journal_mode = DELETE" else ""  # which would not let it open
        target = self._copies / str(len(self.found))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([act, str(target)]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"
        self.found.append((self.sent, target / self._path.name))

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[AnotherProgram]:
    """Have another program act before each statement of a run, and around each of its writes to the main file."""
    (tmp_path / "run").mkdir()
    other = AnotherProgram(tmp_path / "run" / "run.db", tmp_path / "copies", request.param)
    connect, pwrite = sqlite3.connect, os.pwrite

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*arguments, **options)
        database.set_trace_callback(other.act)
        return database

    def written(*arguments: Any) -> int:
        other.act()
        count = pwrite(*arguments)
        other.act()
        return count

    monkeypatch.setattr(sqlite3, "connect", connected)
    monkeypatch.setattr(os, "pwrite", written)
    yield other
    other.end()


def known_of(path: Path) -> int | None:
    try:
        return sum(BulkJournal(path).status().counts.values())
    except InvalidRequestError as error:
        assert "was not started yet" in str(error)  # noqa: PT017  (one of several results)
        return 0
    except JournalError as error:
        assert "is incomplete" in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize(
    "at_each_step",
    ["", "wal_checkpoint(PASSIVE)", "wal_checkpoint(TRUNCATE)", "journal_mode = DELETE"],
    indirect=True,
)
async def test_run_killed_at_any_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_each_step: AnotherProgram
) -> None:
    """The journal knows what was sent, whatever another program did to it before; a part of it does, or is rejected."""
    path = tmp_path / "run" / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        at_each_step.is_open = True
        for number in range(3):
            await record(journal, number)
            at_each_step.sent += 1
            journal._commits._log_limit = 0 if number == 1 else 1 << 40  # copy the log in mid-run
    at_each_step.is_open = False
    with closing(Journal.reopen(path, RUN)) as journal:
        at_each_step.is_open = True
        await record(journal, 3)
        at_each_step.sent += 1
    at_each_step.act()
    monkeypatch.undo()

    assert len(at_each_step.found) > 80
    known: dict[tuple[bytes, ...], tuple[int | None, ...]] = {}
    for sent, found in at_each_step.found:
        content = tuple(file.read_bytes() for file in sorted(found.parent.iterdir()) if file.suffix != ".db-shm")
        if content not in known:
            known[content] = known_of_parts(found)
        whole, merged, alone, cut = known[content]
        assert whole is not None
        assert merged is not None
        assert min(whole, merged) >= sent
        assert alone is None or alone >= sent
        assert cut is None or cut >= sent
    assert sum(results[2] is None for results in known.values()) > 10
    assert known_of(path) == 4


def known_of_parts(journal: Path) -> tuple[int | None, ...]:
    """Return how many items are known from a journal, from one that SQLite merged, without its log, and with half."""
    log = ["-wal"] if journal.with_name("run.db-wal").exists() else []
    alone, cut, merged = (copy(journal, journal.parent / name) for name in ("alone", "cut", "merged"))
    for part in (cut, merged):
        for suffix in log:
            shutil.copy(f"{journal}{suffix}", part.parent)
    for suffix in log:
        os.truncate(f"{cut}{suffix}", Path(f"{cut}{suffix}").stat().st_size // 2)
    with closing(sqlite3.connect(merged)) as other:
        other.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return tuple(map(known_of, (journal, merged, alone, cut)))


LOCK_OF_CHECKPOINTS = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)  # as SQLite's WAL_CKPT_LOCK
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def running_checkpoint(journal: Path) -> Iterator[None]:
    """Do as a checkpoint of another program that is stopped in the middle."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", LOCK_OF_CHECKPOINTS, f"{journal}-shm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        yield
        other.communicate()


async def test_guard_is_not_replaced_while_another_program_copies_the_log(tmp_path: Path) -> None:
    """That program may not know of the newest commit, and would copy the first page of before."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
        guard = journal._files._guard
        with running_checkpoint(path):
            assert not journal._files.checkpoint()
            await record(journal, 1)
        assert journal._files._guard is guard
        assert guard.in_transaction
        assert journal._files.checkpoint()
        with running_checkpoint(path), pytest.raises(sqlite3.OperationalError, match="is copying the log") as refused:
            journal._files._ensure_guard()
        assert is_busy(refused.value)
        assert not guard.in_transaction
    assert BulkJournal(path).status().counts == {"started": 2}


async def test_guard_stays_while_a_reader_keeps_pages_back(tmp_path: Path) -> None:
    """Without it another program could copy the first page before the others."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM items").fetchone()
            await record(journal, 1)
            assert not journal._files.checkpoint()
            assert journal._files._guard.in_transaction
        assert journal._files.checkpoint()


async def test_checkpoint_that_waits_for_readers_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the write lock, and waits for the guard; the run gives it up, and goes on after the checkpoint."""
    monkeypatch.setattr("signalwire_streams.bulk._write_ahead_log._GUARDED_TRIES", 3)
    path = tmp_path / "run.db"
    journal = Journal.create(path, RUN, run="r1")
    for number in range(3):
        await record(journal, number)
        checkpoint = await waiting_checkpoint(path)
        await record(journal, 10 + number)
        assert await checkpoint == [(0, 0, 0)]
        here = copy(path, tmp_path / f"{number}", "-wal")
        assert sum(BulkJournal(here).status().counts.values()) == 2 * (number + 1)
        with pytest.raises(JournalError, match="is missing"):
            BulkJournal(copy(here, tmp_path / f"{number}-alone")).status()
    await waiting.until(lambda: BulkJournal(path).status().counts == {"started": 6})
    checkpoint = await waiting_checkpoint(path)
    await journal.aclose()
    assert await checkpoint == [(0, 0, 0)]
    assert BulkJournal(copy(path, tmp_path / "alone")).status().counts == {"started": 6}


async def test_guard_is_given_up_after_fifty_tries_in_a_row(tmp_path: Path) -> None:
    """Not before: most programs that lock a journal only read or write it, and do not wait for the guard."""
    path = tmp_path / "run.db"
    with (
        closing(Journal.create(path, RUN, run="r1")) as journal,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        files, guard = journal._files, journal._files._guard

        def try_in_vain(times: int) -> None:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(times):
                with pytest.raises(sqlite3.OperationalError, match="locked"), files.commit():
                    pass
            other.execute("ROLLBACK")

        for _ in range(3):
            with files.commit():
                pass
            try_in_vain(50)
            assert guard.in_transaction
        try_in_vain(1)
        assert not guard.in_transaction


async def waiting_checkpoint(path: Path) -> "asyncio.Task[list[Any]]":
    """Have another program begin a checkpoint that waits until no reader is left."""
    other = partial(with_connection, path, "PRAGMA wal_checkpoint(TRUNCATE)", timeout=30.0)
    checkpoint = asyncio.create_task(asyncio.to_thread(other))
    await waiting.until(partial(is_locked, path))
    return checkpoint


def with_connection(path: Path, statement: str, *, timeout: float = 0.0) -> list[Any]:
    """Execute a statement as another program does."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=timeout)) as other:
        return other.execute(statement).fetchall()


def is_locked(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    return False


async def test_vacuum_by_another_program_does_not_end_the_run(tmp_path: Path) -> None:
    """It makes the main file shorter at the next checkpoint; a main file that was cut is still noticed."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for first in range(0, 320, 32):  # pages that overflow, since rows grow, are left half empty
            await asyncio.gather(*(record(journal, first + number, sid="s" * 40) for number in range(32)))
        await record(journal, 60)
        assert journal._files.checkpoint()
        with_connection(path, "VACUUM")
        await record(journal, 61)
        before = path.stat().st_size
        assert journal._files.checkpoint()
        assert path.stat().st_size < before
        await record(journal, 62)
    assert BulkJournal(path).status().counts == {"started": 323}
    journal = Journal.reopen(path, RUN)
    os.truncate(path, before // PAGE // 2 * PAGE)
    with pytest.raises(JournalError, match="was truncated"):
        await record(journal, 63)
    with pytest.raises(JournalError, match="was truncated"):
        journal.close()


@pytest.mark.parametrize("merge", ["wal_checkpoint(RESTART)", "wal_checkpoint(TRUNCATE)", "user_version"])
@pytest.mark.parametrize("moment", ["_header_of", "size_of", "connect_to_read"])
async def test_journal_that_another_program_merges_meanwhile_is_not_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: str, moment: str
) -> None:
    """After a kill, the next program that opens the journal completes the main file, and may delete the log."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        for number in range(5):
            await record(journal, number)
        here = copy(path, tmp_path / "here", "-wal")
    owner = JournalPath if moment == "connect_to_read" else write_ahead_log
    original = getattr(owner, moment)
    calls: list[object] = []

    def merged_once(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        calls.append(None)
        if len(calls) == (2 if moment == "size_of" else 1):  # the log's size is asked for last before it is read
            with_connection(here, f"PRAGMA {merge}")
        return result

    monkeypatch.setattr(owner, moment, merged_once)
    with closing(Journal.reopen(here, RUN)) as journal:
        await record(journal, 5)
    assert sum(BulkJournal(here).status().counts.values()) == 6


async def test_journal_that_changes_all_the_time_is_rejected_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
        alone = copy(path, tmp_path / "alone")
    headers = (Header(0x53574A31, version) for version in range(1, 1000, 2))
    monkeypatch.setattr(write_ahead_log, "_header_of", lambda _: next(headers))
    with pytest.raises(JournalError, match="is missing"):
        BulkJournal(alone).status()


UPDATE = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1], isolation_level=None)) as database:
    database.execute("UPDATE items SET attempts = attempts")
"""


async def test_end_of_a_run_releases_no_lock_of_other_connections(tmp_path: Path) -> None:
    """A process loses all locks on a file when it closes a descriptor of it, and another would delete the log."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (1,)
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", UPDATE, str(path))
    assert await other.wait() == 0
    assert path.with_name("run.db-wal").exists()
    reader.execute("COMMIT")
    for number in range(1, 3):  # the descriptor that could not be closed is used again
        with closing(Journal.reopen(path, RUN)) as journal:
            await record(journal, number)
    assert reader.execute("SELECT count(*) FROM items").fetchone() == (3,)
    reader.close()


def descriptors_of(path: Path) -> int:
    """Count this process' descriptors of a file; those of other tests may be closed at any time."""
    count = 0
    for number in os.listdir("/dev/fd"):  # noqa: PTH208  (numbers)
        with suppress(OSError):  # the listing's own
            count += os.path.samestat(os.fstat(int(number)), path.stat())
    return count


async def test_runs_leave_no_descriptor_open(tmp_path: Path) -> None:
    reader = None
    for number in range(3):
        path = tmp_path / f"{number}.db"
        with closing(Journal.create(path, RUN, run="r1")) as journal:
            await record(journal, 0)
            reader = reader or sqlite3.connect(path)
            reader.execute("SELECT count(*) FROM items").fetchone()
    assert reader is not None
    reader.close()
    Journal.create(tmp_path / "last.db", RUN, run="r1").close()
    assert [descriptors_of(tmp_path / f"{name}.db") for name in (0, 1, 2, "last")] == [0, 0, 0, 0]


async def test_descriptor_stays_open_for_the_next_run_if_those_in_use_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without /dev/fd, or a sandbox that hides it, costs one descriptor for each journal, and no run."""
    path = tmp_path / "run.db"

    def hidden(*_: object) -> list[str]:
        raise FileNotFoundError

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", hidden)
        Journal.create(path, RUN, run="r1").close()
        Journal.reopen(path, RUN).close()
    assert descriptors_of(path) == 1
    Journal.reopen(path, RUN).close()
    assert descriptors_of(path) == 0


@pytest.mark.parametrize("ends_early", [False, True])
async def test_finished_journal_next_to_an_empty_log_is_complete(tmp_path: Path, ends_early: bool) -> None:
    """A program that is killed as it begins a log leaves a new header, before frames of another log or before none."""
    path = tmp_path / "run.db"
    with closing(Journal.create(path, RUN, run="r1")) as journal:
        await record(journal, 0)
    known = BulkJournal(path).status()
    header = struct.pack(">8I", 0x377F0682, 3_007_000, PAGE, 1, 11, 12, 0, 0)
    frame = struct.pack(">6I", 1, 1, 21, 22, 0, 0) + path.read_bytes()[:PAGE]
    path.with_name("run.db-wal").write_bytes(header + (b"" if ends_early else frame))
    assert BulkJournal(path).status() == known
