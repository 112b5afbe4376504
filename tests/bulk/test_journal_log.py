"""Copies of a journal: one without its log, or with another one, is recognized and never taken for a new run's."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    ConferenceStream,
    JournalError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.bulk import _journal_file as store
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner, connect
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.bulk._write_ahead_log import Header, JournalPath, header_of, journal_path, next_generation
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
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


def on_conferences(space: SimulatedSpace) -> list[StartConferenceStream]:
    return [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]


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


async def test_copy_of_a_killed_run_is_whole_or_refused(client_for: Any, tmp_path: Path) -> None:
    """A copy that lacks a part of the log is refused; one that is whole is resumed, and doubles nothing."""
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
            await check_refused(client, space, cut, "was cut short" if size else "is missing")

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


async def test_log_of_another_run_is_refused(client_for: Any, tmp_path: Path) -> None:
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
        await check_refused(client, space, mixed, "was cut short or damaged, or belongs to another journal")

        # A main file of before the run names no log.
        assert BulkJournal(copy(backup, tmp_path / "older")).status().counts == {"pending": 60}
        shutil.copy(log, backup.with_name("run.db-wal"))
        await check_refused(client, space, backup, "was cut short or damaged, or belongs to another journal")
        no_run = copy(planned, tmp_path / "planned")
        shutil.copy(others_log, no_run.with_name("run.db-wal"))
        await check_refused(client, space, no_run, "was cut short or damaged, or belongs to another journal")
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


async def record(journal: Journal, number: int) -> None:
    """Record one item from its intent to its outcome."""
    row = journal.new_row()
    await journal.intend(row, "conference", f"room-{number}", "a")
    stream = ConferenceStream(conference_sid=f"room-{number}", sid="s" * 3000, name="a")
    journal.settle(row, BulkOutcome(index=0, item=None, status=BulkStatus.STARTED, stream=stream))


def salt_of(journal: Path) -> int:
    """Return the number in the log's header that SQLite raises each time it begins the log anew."""
    return int.from_bytes(journal.with_name(f"{journal.name}-wal").read_bytes()[16:20])


async def test_restarted_log_fits_only_the_main_file_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time a main file is read with the log of that time, and refused without it or with a later one."""
    monkeypatch.setattr("signalwire_streams.bulk._journal.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    copies: list[tuple[int, int, Path]] = []
    with Journal.create(path, RUN, run="r1") as journal:
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
    monkeypatch.setattr("signalwire_streams.bulk._journal.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    with Journal.create(path, RUN, run="r1") as journal:
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
        with pytest.raises(JournalError, match="was cut short"):
            BulkJournal(shorter).status()
    assert sum(BulkJournal(here).status().counts.values()) == 40
    assert BulkJournal(path).status().counts == {"started": 40}
    with Journal.reopen(path, RUN) as journal:
        await record(journal, 40)
    assert sum(BulkJournal(path).status().counts.values()) == 41
    reader.close()
    with Journal.reopen(path, RUN) as journal:
        assert journal.find("room-40", "a") is not None
    assert not path.with_name("run.db-wal").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "zeros to the end", "zeros in between"])
@pytest.mark.parametrize("readers", [False, True])
async def test_damaged_log_is_refused_wherever_the_damage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, readers: bool
) -> None:
    """SQLite takes the first invalid frame for the end of a log; the main file knows how far it has to reach."""
    monkeypatch.setattr("signalwire_streams.bulk._journal.LOG_SIZE", 64 * 1024)
    path = tmp_path / "run.db"
    with Journal.create(path, RUN, run="r1") as journal:
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
            with pytest.raises(JournalError, match="was cut short or damaged"):
                BulkJournal(here).status()
    log.write_bytes(whole)
    assert sum(BulkJournal(here).status().counts.values()) == known


def used_frames(log: bytes) -> int:
    """Return how many frames a log has: what follows is of before it was begun anew."""
    frames = range(32, len(log), 24 + PAGE)
    return sum(log[16:24] == log[frame + 8 : frame + 16] for frame in frames)


async def test_copy_in_either_order_is_whole_or_refused(tmp_path: Path) -> None:
    """A main file that was copied first fits the log of later; one that was copied after it knows more than the log."""
    path = tmp_path / "run.db"
    with Journal.create(path, RUN, run="r1") as journal:
        await record(journal, 0)
        earlier = copy(path, tmp_path / "earlier", "-wal")
        await record(journal, 1)
        later = copy(path, tmp_path / "later", "-wal")
    main_first = copy(earlier, tmp_path / "main-first")
    shutil.copy(later.with_name("run.db-wal"), main_first.parent)
    assert sum(BulkJournal(main_first).status().counts.values()) == 2
    log_first = copy(later, tmp_path / "log-first")
    shutil.copy(earlier.with_name("run.db-wal"), log_first.parent)
    with pytest.raises(JournalError, match="was cut short"):
        BulkJournal(log_first).status()


async def test_another_program_that_checkpoints_hides_no_cut(tmp_path: Path) -> None:
    """A main file into which it copied the log is whole until the next commit, which begins the log anew."""
    path = tmp_path / "run.db"
    with Journal.create(path, RUN, run="r1") as journal:
        salts = set()
        for number in range(12):
            await record(journal, number)
            salts.add(salt_of(path))
            here = copy(path, tmp_path / f"{number}", "-wal")
            assert sum(BulkJournal(here).status().counts.values()) == number + 1
            with pytest.raises(JournalError, match="is missing"):
                BulkJournal(copy(here, tmp_path / f"{number}-alone")).status()
            with closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")
            alone = copy(path, tmp_path / f"{number}-copied")
            assert sum(BulkJournal(alone).status().counts.values()) == number + 1
        assert len(salts) == 12


async def test_loss_can_be_accepted_with_any_sqlite_program(tmp_path: Path) -> None:
    """After a power cut there may be no better copy: who opens it with SQLite keeps what is left."""
    path = tmp_path / "run.db"
    with Journal.create(path, RUN, run="r1") as journal:
        for number in range(5):
            await record(journal, number)
        here = copy(path, tmp_path / "here", "-wal")
    log = here.with_name("run.db-wal")
    os.truncate(log, log.stat().st_size - 1)
    with pytest.raises(JournalError, match="was cut short"):
        Journal.reopen(here, RUN)
    with closing(sqlite3.connect(here)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert BulkJournal(here).status().counts == {"started": 3, "in_doubt": 1}


async def test_log_that_the_main_file_does_not_know_yet_is_accepted(client_for: Any, tmp_path: Path) -> None:
    """A run that was killed as it opened its journal had sent nothing, so its log is good; another's is not."""
    async with SimulatedSpace(conferences=3) as space:
        client: StreamsClient = client_for(space)
        path = client.create_journal(on_conferences(space), journal=tmp_path / "run.db").path
        database = connect(journal_path(path))
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
        await check_refused(client, space, mixed, "was cut short or damaged, or belongs to another journal")


async def test_reader_tolerates_a_run_that_begins_meanwhile(
    client_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process keeps the files together, so what a reader saw of them one by one says nothing."""
    async with SimulatedSpace(conferences=3) as space:
        client: StreamsClient = client_for(space)
        path = tmp_path / "run.db"
        async for _ in client.start_streams(on_conferences(space), journal=path, concurrency=1):
            for held in ([False, False, True], [False, True]):
                for error in (JournalError("the log is not the one of before"), sqlite3.DatabaseError("malformed")):
                    monkeypatch.setattr(store, "is_held", partial(lambda left, _: next(left, True), iter(held)))
                    monkeypatch.setattr(store, "verify", partial(fails_to_verify, error))
                    assert len(list(BulkJournal(path).items())) >= 1
                    monkeypatch.undo()


def fails_to_verify(error: Exception, path: JournalPath) -> Any:
    raise error


def test_generations_are_serial_numbers() -> None:
    """They have 31 bits, and begin again at zero."""
    last, first, second = Header(0, 0xFFFFFFFE), Header(0, 0), Header(0, 2)
    assert last.is_older(first)
    assert last.is_older(second, by=2)
    assert not last.is_older(first, by=2)
    assert not last.is_older(last)
    assert not last.is_older(Header(0, 0xFFFFFFFF))
    assert not second.is_older(last)


def test_generation_wraps_around(tmp_path: Path) -> None:
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

    with Journal.create(path, RUN, run="r1") as journal:
        journal._database.set_trace_callback(statement)
        for number in range(12):
            await record(journal, number)
            recorded += 1
            if number == 5:
                journal._commits._log_limit = 0  # copy it in mid-run
    copies[-1] = *copies[-1][:2], path.read_bytes()
    assert [known for known, _, _ in copies] == [6, 6, 12, 12, 12]
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
    with closing(sqlite3.connect(copies[2][1])) as other:  # any other program can merge what was cut off
        assert other.execute("SELECT count(*) FROM items").fetchone() == (12,)


async def test_log_with_only_a_new_header_is_accepted(tmp_path: Path) -> None:
    """SQLite writes a new header before the first frame; all that the log had is in the main file then."""
    with Journal.create(tmp_path / "run.db", RUN, run="r1") as journal:
        await record(journal, 0)
        journal._files.checkpoint()
        here = copy(tmp_path / "run.db", tmp_path / "here", "-wal")
    with here.with_name("run.db-wal").open("r+b") as log:
        header = bytearray(log.read(32))
        header[16:20] = ((int.from_bytes(header[16:20]) + 1) & 0xFFFFFFFF).to_bytes(4)
        log.seek(0)
        log.write(header)
    assert sum(BulkJournal(here).status().counts.values()) == 1


def test_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    """Neither text nor zeros beside a planned journal is a log, and a log of ours ends where it says."""
    Journal.plan(tmp_path / "run.db", RUN, run="r1", requests=[])
    for number, content in enumerate((b"precious " * 50, bytes(5000))):
        here = copy(tmp_path / "run.db", tmp_path / str(number))
        here.with_name("run.db-wal").write_bytes(content)
        for _ in range(2):
            with pytest.raises(JournalError, match="belongs to another journal"):
                BulkJournal(here).status()
        assert here.with_name("run.db-wal").read_bytes() == content


KILLED_AT_EACH_STATEMENT = """
import asyncio, contextlib, json, os, pathlib, shutil, signal, sqlite3, sys

from signalwire_streams import BulkJournal, InvalidRequestError, JournalError, StartConferenceStream
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner

WHOSE = JournalOwner("start", "https://example.signalwire.com", "project")
folder = pathlib.Path(sys.argv[1])
connect = sqlite3.connect


def work(path, sent):
    async def record(journal, first):
        for number in range(first, first + 1):
            row = journal.new_row()
            await journal.intend(row, "call", f"leg-{number}", None)
            os.write(sent, b"x")

    with Journal.create(path, WHOSE, run="r1") as journal:
        asyncio.run(record(journal, 0))
    with Journal.reopen(path, WHOSE) as journal:
        asyncio.run(record(journal, 1))


def killed(path, at):
    reading, sent = os.pipe()
    child = os.fork()
    if not child:
        left = at

        def statement(text):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(*arguments, **options):
            database = connect(*arguments, **options)
            database.set_trace_callback(statement)
            return database

        sqlite3.connect = traced
        work(path, sent)
        os._exit(0)
    os.close(sent)
    with open(reading, "rb") as pipe:
        count = len(pipe.read())
    return count, os.waitpid(child, 0)[1]


def known(path):
    try:
        return sum(BulkJournal(path).status().counts.values())
    except InvalidRequestError:
        return 0
    except JournalError:
        return None


at, found = 0, []
while True:
    here = folder / str(at)
    here.mkdir()
    count, status = killed(here / "run.db", at)
    alone, merged = folder / f"{at}-alone", folder / f"{at}-merged"
    alone.mkdir()
    if (here / "run.db").exists():
        shutil.copy(here / "run.db", alone)
    shutil.copytree(here, merged)
    with contextlib.closing(connect(merged / "run.db")) as other:  # as any other program would
        other.execute("SELECT count(*) FROM sqlite_master").fetchone()
    found.append((count, *(known(place / "run.db") for place in (here, merged, alone))))
    if not status:
        break
    at += 1
print(json.dumps(found))
"""


def test_process_killed_at_any_statement_loses_nothing(tmp_path: Path) -> None:
    """Whenever a process is killed, its journal knows what was sent; the main file alone does too, or is refused."""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", KILLED_AT_EACH_STATEMENT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert len(found) > 50
    assert found[-1] == [2, 2, 2, 2]
    for sent, known, merged, alone in found:
        assert known is not None
        assert merged is not None
        assert merged >= known >= sent
        assert alone is None or alone >= sent
    assert sum(alone is None for _, _, _, alone in found) > 10
