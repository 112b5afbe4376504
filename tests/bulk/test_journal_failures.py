"""Interference with an open journal by other programs, and full disks."""

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkRun,
    BulkStatus,
    Clock,
    JournalError,
    RunCancelledError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.bulk import _journal as journal_module, _write_ahead_log as wal
from signalwire_streams.bulk._journal_file import JournalOwner, JournalPath, when_free
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences
from tests.forks import fork


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=20, participants=0) as running:
        yield running


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold SQLite's write lock, as another program would."""
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


class Waits:
    """A clock whose waits take turns of the loop, and that releases a lock after some of them."""

    def __init__(self, let_go: Callable[[], object], after: int) -> None:
        self.let_go, self.left = let_go, after
        self.begun = asyncio.Event()
        self.clock = Clock(now=lambda: 0.0, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.begun.set()
        self.left -= 1
        if self.left == 0:
            self.let_go()
        await asyncio.sleep(0)


async def test_lock_of_another_program_does_not_block_the_loop(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """While another program writes, the run waits and the loop is free; nothing is sent unrecorded."""
    path = tmp_path / "run.db"
    client_for(space).create_journal(on_conferences(space), journal=path)
    turns = 0

    async def heart() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(heart())
    with locked(path) as other:
        waits = Waits(lambda: other.execute("ROLLBACK"), after=100)
        client: StreamsClient = client_for(space, clock=waits.clock)
        run = client.start_streams(on_conferences(space), journal=path, resume=True, concurrency=2)
        before = turns
        ended = asyncio.create_task(run.report())
        while waits.left > 0:
            assert len(space.requests) == 0
            await asyncio.sleep(0)
        assert turns - before >= 100
        assert (await ended).counts == {BulkStatus.STARTED: 20}
    beating.cancel()
    assert BulkJournal(path).status().counts == {"started": 20}


@pytest.mark.parametrize("moment", ["middle", "end"])
async def test_commit_waits_for_a_lock_in_mid_run(
    client_for: Any, space: SimulatedSpace, tmp_path: Path, moment: str
) -> None:
    """A commit that can't be made at once is made as soon as it can, and so is the last one."""
    path = tmp_path / "run.db"
    other = sqlite3.connect(path.with_name("unused"))
    waits = Waits(lambda: other.execute("ROLLBACK"), after=50)
    client: StreamsClient = client_for(space, clock=waits.clock)
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)
    seen = 0
    async for _ in run:
        seen += 1
        if seen == (2 if moment == "middle" else 20):
            other.close()
            other = sqlite3.connect(path, isolation_level=None, timeout=0)
            other.execute("BEGIN IMMEDIATE")
    assert (await run.report()).counts == {BulkStatus.STARTED: 20}
    other.close()
    assert waits.left <= 0
    assert BulkJournal(path).status().counts == {"started": 20}


async def test_intent_joins_a_commit_that_waits_for_a_lock(tmp_path: Path) -> None:
    """It is written with the commit that a lock of another program puts off."""
    path = tmp_path / "run.db"
    other = sqlite3.connect(path.with_name("unused"))
    waits = Waits(lambda: other.execute("ROLLBACK"), after=20)
    whose = JournalOwner("start", "https://example.signalwire.com", "project")
    with closing(journal_module.Journal.create(path, whose, run="r1", clock=waits.clock)) as journal:
        await journal.intend(journal.new_row(), "conference", "room-1", "a")
        other.close()
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        other.execute("BEGIN IMMEDIATE")
        second = asyncio.create_task(journal.intend(journal.new_row(), "conference", "room-2", "a"))
        await waits.begun.wait()
        await journal.intend(journal.new_row(), "conference", "room-3", "a")
        await second
    other.close()
    assert BulkJournal(path).status().counts == {"in_doubt": 3}


@pytest.mark.parametrize("moment", ["begin", "middle", "end"])
async def test_lock_that_stays_ends_the_run(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, moment: str
) -> None:
    """After ten seconds the run ends in JournalError, and what was not recorded was not sent."""
    path = tmp_path / "run.db"
    client.create_journal(on_conferences(space), journal=path)
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    if moment == "begin":
        other.execute("BEGIN IMMEDIATE")
    run = client.start_streams(on_conferences(space), journal=path, resume=True, concurrency=1)

    async def go_through() -> None:
        seen = 0
        async for outcome in run:
            seen += outcome.ok
            if seen == {"begin": 0, "middle": 2, "end": 20}[moment] and not other.in_transaction:
                other.execute("BEGIN IMMEDIATE")

    with pytest.raises(JournalError, match="locked"):
        await go_through()
    if moment != "begin":
        with pytest.raises(JournalError, match="locked"):
            await run.report()
    sent = space.requests.count("start-conference-stream")
    assert sent == {"begin": 0, "middle": 2, "end": 20}[moment] or (moment == "middle" and sent <= 3)
    assert run.snapshot.counts.get(BulkStatus.STARTED, 0) == sent
    other.close()
    recorded = BulkJournal(path).status().counts
    assert sum(count for state, count in recorded.items() if state != "pending") >= sent
    assert not BulkJournal(path).status().is_locked


async def test_stopping_a_run_waits_for_a_lock(client_for: Any, space: SimulatedSpace, tmp_path: Path) -> None:
    """Stopping waits for another program as well, and gives up as late."""
    path = tmp_path / "run.db"
    await client_for(space).start_streams(on_conferences(space), journal=path).report()
    with locked(path), pytest.raises(JournalError, match="locked"):
        await client_for(space).stop_started(path).report()
    with locked(path) as other:
        waits = Waits(lambda: other.execute("ROLLBACK"), after=20)
        report = await client_for(space, clock=waits.clock).stop_started(path).report()
    assert report.counts == {BulkStatus.STOPPED: 20}


async def test_rollback_that_can_not_be_recorded_stops_nothing(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that can't record that it is being rolled back sends no stop, and releases the journal."""
    path = tmp_path / "run.db"
    await client.start_streams(on_conferences(space), journal=path).report()

    def fails(journal: object) -> None:
        raise JournalError("no more")

    monkeypatch.setattr(journal_module.Journal, "begin_rollback", fails)
    with pytest.raises(JournalError, match="no more"):
        await client.stop_started(path).report()
    assert not BulkJournal(path).status().is_locked
    assert len(space.streams.active()) == 20


async def test_cancelled_run_releases_a_locked_journal(client_for: Any, space: SimulatedSpace, tmp_path: Path) -> None:
    """A consumer that is cancelled while its journal is locked ends, and leaves no task and no lock of ours."""
    path = tmp_path / "run.db"
    waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    client: StreamsClient = client_for(space, clock=Clock(now=lambda: 0.0, sleep=sleep))
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    consumer = asyncio.create_task(first_then_lock(run, path))
    await waiting.wait()
    for _ in range(3):
        consumer.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([consumer])
    assert consumer.done()
    assert not BulkJournal(path).status().is_locked


async def first_then_lock(run: BulkRun[Any], path: Path) -> None:
    other = sqlite3.connect(path.with_name("unused"))
    try:
        async for _ in run:
            other.close()
            other = sqlite3.connect(path, isolation_level=None, timeout=0)
            if not other.in_transaction:
                other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": lambda file: (file.rename(f"{file}.old"), file.write_bytes(b"another file")),
    "cut": lambda file: os.truncate(file, 0),
    "cut a little": lambda file: os.truncate(file, file.stat().st_size - 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_damaged_file_ends_the_run(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, suffix: str, damage: str
) -> None:
    """A journal whose files another program removes, replaces or cuts records nothing, so nothing more is sent."""
    path = tmp_path / "run.db"
    file = tmp_path / f"run.db{suffix}"
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 2:
                DAMAGES[damage](file)

    words = {"removed": "was removed", "replaced": "was replaced by another file"}.get(damage, "was truncated")
    with pytest.raises(JournalError, match=f"can't be written: run.db{suffix} {words}"):
        await go_through()
    sent = space.requests.count()
    assert sent <= 4
    assert run.snapshot.counts[BulkStatus.STARTED] == sent
    assert sum(run.snapshot.counts.values()) == 20

    if damage == "removed" and suffix:  # we still have it open, so nothing is lost
        assert BulkJournal(path).status().counts == {"started": sent}
    elif not suffix and damage == "cut":
        assert path.with_name("run.db-wal").stat().st_size > 4096 * sent  # all of the run is in it
    elif suffix == "-wal":
        with pytest.raises(JournalError, match="is incomplete"):
            BulkJournal(path).status()
    if damage == "replaced":
        assert file.read_bytes() == b"another file"


@pytest.mark.parametrize("damage", ["removed", "replaced"])
async def test_lost_lock_file_ends_the_run(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, damage: str
) -> None:
    """Another process can hold the run then, so this one writes and sends nothing more."""
    path = tmp_path / "run.db"
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 2:
                DAMAGES[damage](path.with_name("run.db.lock"))

    with pytest.raises(JournalError, match=rf"run.db.lock was {damage}"):
        await go_through()
    sent = space.requests.count()
    assert sent == run.snapshot.counts[BulkStatus.STARTED] <= 4
    path.with_name("run.db.lock").unlink(missing_ok=True)
    assert sum(BulkJournal(path).status().counts.values()) == sent
    report = await client.start_streams(on_conferences(space), journal=path, resume=True).report()
    assert report.ok
    assert space.streams.duplicates() == []


async def test_intent_does_not_replace_a_row_of_another_process(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path
) -> None:
    """An intent that can't be recorded has no row, so its outcome is not written into the row that was there."""
    path = tmp_path / "run.db"
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 2:
                with closing(sqlite3.connect(path)) as other, other:
                    for row in range(4, 20):
                        other.execute(
                            "INSERT OR IGNORE INTO items (id, kind, target, state, changed) "
                            "VALUES (?, 'conference', 'other', 'unknown', '')",
                            (row,),
                        )

    with pytest.raises(JournalError, match="UNIQUE constraint"):
        await go_through()
    counts = BulkJournal(path).status().counts
    assert counts.keys() <= {"started", "unknown"}
    assert counts["started"] == space.requests.count()
    assert sum(counts.values()) == 19


async def test_lookup_checks_the_files_first(client: StreamsClient, space: SimulatedSpace, tmp_path: Path) -> None:
    """A resumed run reads as well, and what is read from a damaged file can't be trusted."""
    path = tmp_path / "run.db"
    await client.start_streams(on_conferences(space), journal=path).report()
    run = client.start_streams(on_conferences(space), journal=path, resume=True, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 2:
                os.truncate(tmp_path / "run.db-shm", 0)

    with pytest.raises(JournalError, match="was truncated"):
        await go_through()


async def test_full_journal_ends_the_run(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own limit: the run ends in JournalError, also where its outcomes can be written in the end."""
    connect = JournalPath.connect_to_write

    def small(path: JournalPath) -> sqlite3.Connection:
        database = connect(path)
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages + 1}")
        return database

    monkeypatch.setattr(JournalPath, "connect_to_write", small)
    names = [f"{'n' * 400}-{number}" for number in range(20)]
    requests = [StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, name=name) for name in names]
    run = client.start_streams(requests, journal=tmp_path / "run.db", concurrency=3)
    with pytest.raises(JournalError, match="can't be written: database or disk is full"):
        await run.report()
    counts = run.snapshot.counts
    assert counts[BulkStatus.STARTED] == space.requests.count() > 0
    assert counts[BulkStatus.NOT_ATTEMPTED] == 20 - counts[BulkStatus.STARTED]
    assert BulkJournal(tmp_path / "run.db").status().counts == {"started": counts[BulkStatus.STARTED]}


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
async def test_failed_checkpoint_ends_the_run_unless_the_journal_is_busy(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full disk ends the run; a lock only puts the checkpoint off."""
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code

    def fails(*_: object) -> bool:
        raise error

    path = tmp_path / "run.db"
    monkeypatch.setattr(wal, "LOG_SIZE", 0)
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 2:
                monkeypatch.setattr(wal.OpenFiles, "checkpoint", fails)
                monkeypatch.setattr(wal.OpenFiles, "finish", lambda *_: False)

    if code == sqlite3.SQLITE_BUSY:
        await go_through()
        assert run.snapshot.counts == {BulkStatus.STARTED: 20}
    else:
        with pytest.raises(JournalError, match="can't be written: no"):
            await go_through()
        assert run.snapshot.counts[BulkStatus.STARTED] == space.requests.count() < 20
    assert BulkJournal(path).status().counts == {"started": run.snapshot.counts[BulkStatus.STARTED]}


IMPORTS = ["signalwire_streams.bulk", "signalwire_streams._client"]
FULL_DISK = """
import asyncio, json, os, resource, sys
from signalwire_streams import JournalError, StartConferenceStream, StreamsClient

_, most = resource.getrlimit(resource.RLIMIT_FSIZE)  # the user who runs the tests may have a limit too

def full_beyond(size):
    sys.dont_write_bytecode = True  # Python 3.13.0 would leave a part of a module
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

async def main():
    base_url, project, token, sids, journal, moment, size = json.loads(sys.argv[1])
    async with StreamsClient(base_url=base_url, project=project, token=token) as client:
        requests = [StartConferenceStream(conference_sid=sid, url="wss://rx.example.com/audio") for sid in sids]
        if moment < 0:
            full_beyond(size)
        run = client.start_streams(requests, journal=journal, concurrency=1, resume=os.path.exists(journal))
        seen, ended = 0, "well"
        try:
            async for outcome in run:
                if seen == moment:
                    full_beyond(size)
                seen += 1
        except JournalError as error:
            ended = str(error)
        full_beyond(most)
        print(json.dumps([ended, {state.value: count for state, count in run.snapshot.counts.items()}]))

asyncio.run(main())
"""


async def run_until_the_disk_is_full(space: SimulatedSpace, path: Path, moment: int, size: int) -> Any:
    """Return how a run ended whose process may write no file beyond a size, and what it counted."""
    known = [space.base_url, space.project, space.token, space.conference_sids, str(path), moment, size]
    child = await fork(json.dumps(known), code=FULL_DISK, imports=IMPORTS, environment=os.environ, stderr=None)
    written, _ = await child.communicate()
    child.close()
    return json.loads(written)


@pytest.mark.parametrize(
    ("moment", "size"),
    [(-1, 0), (-1, 4096), (-1, 10_000), (-1, 22_000), (0, 0), (5, 0), (5, 40_000), (19, 0)],
)
async def test_full_disk_ends_the_run(space: SimulatedSpace, tmp_path: Path, moment: int, size: int) -> None:
    """At whatever moment nothing more can be written: JournalError, and nothing was sent that is not recorded."""
    path = tmp_path / "run.db"
    ended, counts = await run_until_the_disk_is_full(space, path, moment, size)
    assert ended.startswith(f"the journal {path}")
    assert "can't be" in ended
    sent = space.requests.count()
    assert counts.get("started", 0) == sent
    if moment < 0:
        assert sent == 0
        assert os.listdir(tmp_path) == []  # noqa: PTH208  (in a coroutine)
        return
    assert sum(counts.values()) == 20
    recorded = BulkJournal(path).status().counts
    assert sum(recorded.values()) >= sent
    assert set(recorded) <= {"started", "in_doubt"}


async def test_full_disk_at_the_last_checkpoint_loses_nothing(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A checkpoint that is cut off leaves a main file that is not whole; the log has all of it, and both are read."""
    path, size = tmp_path / "run.db", 700_000
    more = [StartConferenceStream(conference_sid="room", url=URL, name=f"{'n' * 900}-{n}") for n in range(1000)]
    client.create_journal(more, journal=path)
    await client.start_streams(on_conferences(space)[:1], journal=path, resume=True).report()
    assert path.stat().st_size > size  # so the items can be copied, and the index that a resumed run makes can't
    ended, counts = await run_until_the_disk_is_full(space, path, 19, size)
    assert "can't be written" in ended
    assert counts == {"started": 20}
    assert BulkJournal(path).status().counts["started"] == 20
    assert (await client.start_streams(on_conferences(space), journal=path, resume=True).report()).ok
    assert space.requests.count() == 20


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_input_that_raises_cancelled_error_is_reported(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path, kind: str
) -> None:
    """It is no cancellation of the consumer, who gets what was carried out, and then an error."""

    def items() -> Iterator[StartConferenceStream]:
        yield from on_conferences(space)[:3]
        raise asyncio.CancelledError

    async def later() -> AsyncIterator[StartConferenceStream]:
        for item in items():
            yield item

    run = client.start_streams(later() if kind == "async" else items(), journal=tmp_path / "run.db")
    with pytest.raises(RunCancelledError, match="the input raised CancelledError"):
        await run.report()
    assert run.snapshot.counts == {BulkStatus.STARTED: 3}
    assert BulkJournal(tmp_path / "run.db").status().counts == {"started": 3}
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_lock_of_another_program_is_tried_for_ten_seconds_every_20_ms() -> None:
    tries: list[float] = []
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    clock = Clock(now=lambda: now, sleep=sleep)
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY

    def act() -> None:
        tries.append(clock.now())
        raise JournalError("the journal is locked") from busy

    with pytest.raises(JournalError):
        await when_free(clock, act)
    assert now == pytest.approx(10.0, abs=0.03)
    assert len(tries) == pytest.approx(500, abs=2)
