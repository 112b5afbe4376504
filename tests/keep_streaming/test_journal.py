"""What a keeper's journal records, whose it is, and what survives."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from signalwire_streams import InvalidRequestError, JournalError
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner
from signalwire_streams.keep_streaming import Fate, KeepStatus, StreamAttempt, TargetState
from signalwire_streams.keep_streaming._journal import KeeperJournal
from signalwire_streams.keep_streaming._records import KeeperOwner, KeptTarget, new_state
from signalwire_streams.models import TargetKind

OWNER = KeeperOwner("https://example.signalwire.com", "p1", "audit")
ROOM, CALL = (TargetKind.CONFERENCE, "room-1"), (TargetKind.CALL, "call-1")
STATE = TargetState(
    last=7,
    attempts=(
        StreamAttempt(number=6, fate=Fate.HEARD, sid="s6", settles_at=1.0),
        StreamAttempt(number=7, fate=Fate.SENDING),
    ),
    has_streamed=True,
)
KEPT = KeptTarget(state=STATE, fingerprints={7: "ab"})


@asynccontextmanager
async def opened(path: Path, owner: KeeperOwner = OWNER) -> AsyncIterator[KeeperJournal]:
    journal = KeeperJournal.open(path, owner)
    try:
        yield journal
    finally:
        await journal.aclose()


def rows(path: Path) -> dict[tuple[str, str], str]:
    with closing(sqlite3.connect(path)) as database:
        return {(kind, sid): state for kind, sid, state in database.execute("SELECT kind, sid, state FROM targets")}


async def test_attempt_is_on_disk_when_its_save_returns(tmp_path: Path) -> None:
    async with opened(tmp_path / "kept.db") as journal:
        await journal.save(ROOM, KEPT)
        assert KeptTarget.decode(rows(tmp_path / "kept.db")[ROOM]).state.find(7) is not None


async def test_reopened_journal_has_what_a_restarted_keeper_needs(tmp_path: Path) -> None:
    """Clocks, waits and what was reported are of the process before."""
    async with opened(tmp_path / "kept.db") as journal:
        await journal.save(ROOM, KEPT)
        journal.save_later(CALL, KeptTarget(state=TargetState(last=3, status=KeepStatus.FAILING)))
    async with opened(tmp_path / "kept.db") as journal:
        found = journal.targets
    assert found.keys() == {ROOM, CALL}
    assert found[ROOM].fingerprints == {7: "ab"}
    assert [(each.number, each.fate, each.sid) for each in found[ROOM].state.attempts] == [
        (6, Fate.HEARD, "s6"),
        (7, Fate.SENDING, None),
    ]
    assert (found[ROOM].state.last, found[ROOM].state.has_streamed) == (7, True)
    assert found[CALL].state == TargetState(last=3)


async def test_last_of_several_records_of_one_commit_counts(tmp_path: Path) -> None:
    """Also if a target is forgotten in between."""
    async with opened(tmp_path / "kept.db") as journal:
        journal.save_later(ROOM, KEPT)
        journal.forget(ROOM)
        journal.save_later(ROOM, KeptTarget(state=TargetState(last=9)))
        journal.save_later(CALL, KEPT)
        journal.forget(CALL)
    async with opened(tmp_path / "kept.db") as journal:
        assert {target: kept.state.last for target, kept in journal.targets.items()} == {ROOM: 9}


async def test_unchanged_record_is_not_written_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "kept.db") as journal:
        journal.save_later(ROOM, KEPT)
        await journal.save(CALL, KEPT)
        before = journal._database.total_changes
        journal.save_later(ROOM, KEPT)
        await journal.save(CALL, KEPT)
        assert journal._database.total_changes == before + 1


async def test_cancelled_save_is_written_by_the_next_one(tmp_path: Path) -> None:
    async with opened(tmp_path / "kept.db") as journal:
        saving = asyncio.create_task(journal.save(ROOM, KEPT))
        await asyncio.sleep(0)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        journal.save_later(ROOM, KEPT)
    async with opened(tmp_path / "kept.db") as journal:
        assert journal.targets[ROOM].state.last == 7


def test_records_survive_a_kill(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from tests.keep_streaming.test_journal import KEPT, OWNER, ROOM, KeeperJournal\n"
        "async def main():\n"
        "    await KeeperJournal.open(sys.argv[1], OWNER).save(ROOM, KEPT)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "kept.db"
    subprocess.run([sys.executable, "-c", script, path], check=False, timeout=60)  # noqa: S603  (the script above)

    async def read() -> set[object]:
        async with opened(path) as journal:
            return set(journal.targets)

    assert asyncio.run(read()) == {ROOM}


async def test_two_keepers_can_not_use_one_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "kept.db") as journal:
        with pytest.raises(InvalidRequestError, match="another process is using the journal"):
            KeeperJournal.open(tmp_path / "kept.db", OWNER)
        await journal.save(ROOM, KEPT)  # and the first one is unharmed


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (KeeperOwner("https://b.signalwire.com", "p1", "audit"), "belongs to the Space https://example.signalwire.com"),
        (KeeperOwner(OWNER.origin, "p2", "audit"), "belongs to the project p1: use it there"),
        (KeeperOwner(OWNER.origin, "p1", "sales"), "the keeper named 'audit': pass name='audit', or name another file"),
        (
            KeeperOwner(OWNER.origin, "p1", "audit", "once"),
            "with names='reusable', which are formed differently: pass names",
        ),
    ],
)
async def test_journal_of_another_keeper_is_rejected(tmp_path: Path, other: KeeperOwner, message: str) -> None:
    async with opened(tmp_path / "kept.db") as journal:
        await journal.save(ROOM, KEPT)
    before = rows(tmp_path / "kept.db")
    with pytest.raises(InvalidRequestError, match=message):
        KeeperJournal.open(tmp_path / "kept.db", other)
    assert rows(tmp_path / "kept.db") == before


async def test_journal_of_a_bulk_run_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    Journal.create(path, JournalOwner("start", OWNER.origin, "p1"), run="r1").close()
    with pytest.raises(InvalidRequestError, match="is not a journal that this version can read"):
        KeeperJournal.open(path, OWNER)


async def test_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.db"
    path.write_text("mine" * 100)
    with pytest.raises(InvalidRequestError, match="is not a journal"):
        KeeperJournal.open(path, OWNER)
    assert path.read_text() == "mine" * 100


async def test_journal_whose_log_was_lost_is_rejected(tmp_path: Path) -> None:
    """Without the log, attempts would be missing, and a start that is under way would be sent once more."""
    path, copy = tmp_path / "kept.db", tmp_path / "copy.db"
    async with opened(path) as journal:
        await journal.save(ROOM, KEPT)
        copy.write_bytes(path.read_bytes())
    with pytest.raises(JournalError, match=r"copy.db-wal is missing"):
        KeeperJournal.open(copy, OWNER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"last":1,"attempts":[[1,"dreaming",null,null]],"has_streamed":true}',
        '{"last":1,"attempts":[["1","heard",null,null]],"has_streamed":true}',
        '{"last":true,"attempts":[],"has_streamed":true}',
        '{"last":1,"attempts":[],"has_streamed":1}',
        '{"last":1,"attempts":[[1,"heard","s",2]],"has_streamed":true}',
        '{"last":1,"attempts":[[1,"heard",5,null]],"has_streamed":true}',
    ],
)
async def test_record_of_another_version_is_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.db"
    async with opened(path) as journal:
        await journal.save(ROOM, KEPT)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE targets SET state = ?", (text,))
    with pytest.raises(JournalError, match="the row 'room-1' of its table targets is not in this version's format"):
        KeeperJournal.open(path, OWNER)


async def test_facts_of_another_version_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "kept.db"
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM run WHERE key = 'name'")
    with pytest.raises(JournalError, match="its table run is not in this version's format"):
        KeeperJournal.open(path, OWNER)


async def test_unwritable_journal_is_rejected_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.db"
    async with opened(path):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(InvalidRequestError, match="can't be written: use an account that has write permission"):
        KeeperJournal.open(path, OWNER)


def test_numbers_of_new_targets_differ() -> None:
    """So a late callback of an attempt that a lost journal recorded is not taken for that of a later one."""
    assert len({new_state().last for _ in range(100)}) == 100
