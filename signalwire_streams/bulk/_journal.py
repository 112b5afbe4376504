"""Write-ahead journal of a bulk run: intents and outcomes, in a file that survives a crash.

An intent is committed before its request goes out; an outcome a tenth of a second later at most. So a process that
is killed loses few outcomes, and their items are then "in_doubt", which is as good as unknown.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import asdict, frozen

from signalwire_streams.bulk._journal_file import (
    IN_DOUBT,
    INDEX,
    ITEM_INDEX,
    LOCK,
    LOG,
    SCHEMA,
    SCHEMA_VERSION,
    JournalOwner,
    JournalPath,
    connect_to_read,
    connect_to_write,
    exists,
    hold,
    identity_of,
    is_held,
    journal_path,
    open_descriptor,
    release_descriptor,
    size_of,
    store_errors,
    when_free,
)
from signalwire_streams.bulk._journal_reader import ITEMS, decode_item
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, error_label
from signalwire_streams.bulk._serialization import Start, folded, plan_rows
from signalwire_streams.bulk._write_ahead_log import (
    GroupCommitter,
    OpenFiles,
    begin_generations,
    facts_of,
    finish_tables,
    is_free,
    now,
    verify,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError
from signalwire_streams.models import CallStream, ConferenceStream

_INTEND = "INSERT INTO items (changed, id, kind, target, name, state) VALUES (?, ?, ?, ?, ?, ?)"
_INTEND_AGAIN = "UPDATE items SET changed = ?, state = ? WHERE id = ?"
_SETTLE = (
    "UPDATE items SET changed = ?, state = ?, sid = ?, ambiguous = ?, attempts = attempts + ?, error = ?, message = ? "
    "WHERE id = ?"
)
_FIND = f"{ITEMS} WHERE target = ? AND name IS ? AND id <= ? ORDER BY id LIMIT 1 OFFSET ?"
_FIND_STREAM = "SELECT id FROM items WHERE target = ? AND name IS ? AND sid IS ? ORDER BY id LIMIT 1"
_PLAN = "INSERT INTO plan (kind, target, name, request) VALUES (?, ?, ?, ?)"
_ROLL_BACK = "UPDATE items SET changed = ?, rollback_status = ? WHERE id = ?"


@frozen
class ItemRecord:
    """One item's record: its row, a `BulkStatus`'s text or `IN_DOUBT`, and its stream's id."""

    id: int
    state: str
    sid: str | None
    ambiguous: bool


class Journal:
    """One run's file. Use it as ``with Journal.create(path, ...) as journal``."""

    def __init__(
        self,
        *,
        path: JournalPath,
        run: str,
        lock: sqlite3.Connection,
        opened: ExitStack,
        clock: Clock | None,
    ) -> None:
        self.path, self.run = path, run
        self._clock = clock or Clock()
        self._looked_up: Counter[str] = Counter()
        main = open_descriptor(path.file)
        opened.callback(release_descriptor, main)
        self._database = opened.enter_context(closing(connect_to_write(path)))
        # At once, since a connection that opens a main file that was cut to nothing deletes the log.
        self._guards = [opened.enter_context(closing(connect_to_read(path, timeout=0.0))) for _ in range(2)]
        opened.callback(self._database.close)  # before the guards
        for guard in self._guards:
            guard.execute("SELECT count(*) FROM sqlite_master").fetchall()
        self._rows: int = self._database.execute("SELECT COALESCE(MAX(id), 0) FROM items").fetchone()[0]
        self._inherited = self._rows
        if self._inherited:
            self._database.execute(ITEM_INDEX)
        self._files = OpenFiles(path=path, main=main, database=self._database, guards=self._guards)
        self._commits = GroupCommitter(path=path, database=self._database, files=self._files, clock=self._clock)
        self._lock, self._opened = lock, opened.pop_all()

    @classmethod
    def create(
        cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, clock: Clock | None = None
    ) -> Self:
        """Create the journal of a new run, and open it."""
        path = journal_path(path)
        with store_errors(path, "created"), _new_file(path) as lock, ExitStack() as opened:
            _lay_out(path, whose, run, None)
            return cls(path=path, run=run, lock=lock, opened=opened, clock=clock)

    @classmethod
    def plan(cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, requests: Iterable[Start]) -> None:
        """Create the journal of a run for these requests, for `reopen`."""
        path = journal_path(path)
        with store_errors(path, "created"), _new_file(path) as lock:
            _lay_out(path, whose, run, requests)
        lock.close()

    @classmethod
    def reopen(cls, path: JournalPath | Path | str, whose: JournalOwner, *, clock: Clock | None = None) -> Self:
        """Open the journal of a run that was planned, or that ended early."""
        path = journal_path(path)
        if not exists(path):
            raise InvalidRequestError(f"there is no journal {path}: start the run without resuming")
        with ExitStack() as undo, store_errors(path, "read"), ExitStack() as opened:
            if not is_held(path):
                whose.check(path, verify(path)[0])  # before a lock file is made beside what is no journal of ours
            if not os.access(path.file, os.W_OK):
                raise InvalidRequestError(
                    f"the journal {path} can't be written: use an account that has write permission"
                )
            lock = undo.enter_context(closing(hold(path)))
            facts, _ = verify(path)
            whose.check(path, facts)
            journal = cls(path=path, run=facts.run, lock=lock, opened=opened, clock=clock)
            undo.pop_all()
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def rollback_started_at(self) -> str | None:
        with self._reading():
            return facts_of(self.path, self._database).rollback_started_at

    def begin_rollback(self) -> None:
        """Record that this run is being rolled back."""
        with store_errors(self.path, "written"), self._files.commit():
            self._database.execute("INSERT OR IGNORE INTO run VALUES ('rollback_started_at', ?)", (now(),))

    def find(self, target: str, name: str | None) -> ItemRecord | None:
        """Look up an earlier part's record of an item.

        Items without a name differ by their order only: the second call for a target returns its second.
        """
        if not self._inherited:
            return None
        target, skip = folded(target), 0
        if name is None:
            skip = self._looked_up[target]
            self._looked_up[target] += 1
        with self._reading():
            row = self._database.execute(_FIND, (target, name, self._inherited, skip)).fetchone()
        if row is None:
            return None
        item = decode_item(self.path, row)
        return ItemRecord(row[0], item.status, item.sid, item.ambiguous)

    def find_stream(self, target: str, name: str | None, sid: str | None) -> int:
        with self._reading():
            row = self._database.execute(_FIND_STREAM, (folded(target), name, sid)).fetchone()
        if row is None:
            raise JournalError(f"the journal {self.path} no longer contains the stream on {target}")
        return int(row[0])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with store_errors(self.path, "read"):
            self._files.check()
            yield

    def new_row(self) -> int:
        self._rows += 1
        return self._rows

    async def intend(self, row: int, kind: str, target: str, name: str | None) -> None:
        """Record that an item is about to be sent; it is durable when this returns."""
        if row > self._inherited:
            await self._commits.write(_INTEND, row, kind, folded(target), name, IN_DOUBT)
        else:
            await self._commits.write(_INTEND_AGAIN, IN_DOUBT, row)

    def settle(self, row: int, outcome: BulkOutcome[Any]) -> None:
        """Record the outcome of an item; it is written with the next commit."""
        stream, error = outcome.stream, outcome.error
        self._commits.write_later(
            _SETTLE,
            outcome.status.value,
            stream.sid if stream is not None else None,
            int(stream.ambiguous) if stream is not None else 0,
            outcome.attempts,
            error_label(error) if error is not None else None,
            str(error) if error is not None else None,
            row,
        )

    async def intend_rollback(self, row: int) -> None:
        """Record that an item's stream is about to be stopped; it is on the disk when this returns."""
        await self._commits.write(_ROLL_BACK, IN_DOUBT, row)

    def settle_rollback(self, row: int, outcome: BulkOutcome[ConferenceStream | CallStream]) -> None:
        """Record the outcome of stopping an item's stream; the record of its start is unchanged."""
        status = {BulkStatus.STOPPED: BulkStatus.STOPPED.value, BulkStatus.UNKNOWN: IN_DOUBT}.get(outcome.status)
        self._commits.write_later(_ROLL_BACK, status, row)

    async def aclose(self) -> None:
        """Do the same as `close`, and wait for a lock of another program."""
        try:
            await when_free(self._clock, self._commits.finish)
        finally:
            self._release()

    def close(self) -> None:
        """Write pending records and close the file, which is then complete without its log."""
        try:
            self._commits.finish()
        finally:
            self._release()

    def _release(self) -> None:
        self._commits.cancel()
        if self._commits.is_whole:
            # The last one that closes copies the log into the main file and deletes it; a guard can't, it only reads.
            for guard in self._guards:
                guard.close()
        self._opened.close()
        self._lock.close()


@contextmanager
def _new_file(path: JournalPath) -> Iterator[sqlite3.Connection]:
    """Reserve a path for a new journal. On an error, its own files are removed, and no others are touched."""
    _check_free(path)
    with ExitStack() as undo:
        lock = undo.enter_context(closing(_hold_new(path, undo)))
        with suppress(FileExistsError):
            _create(path.file, undo)
        _check_free(path)  # another process may have made it since
        undo.callback(_undo, _empty, path.file, identity_of(path.file))
        _empty(path.file)  # of what a killed process left
        for suffix in (LOG, INDEX):
            undo.callback(path.beside(suffix).unlink, missing_ok=True)
        yield lock
        undo.pop_all()


def _check_free(path: JournalPath) -> None:
    if exists(path) and size_of(path.file) and not is_free(path):
        raise InvalidRequestError(f"the journal {path} already exists: resume it, or choose another file")
    if not is_free(path):
        raise InvalidRequestError(f"files of another journal are next to {path}: restore it, or choose another file")


def _hold_new(path: JournalPath, undo: ExitStack) -> sqlite3.Connection:
    with suppress(OSError):  # `hold` reports it if it exists or can't be created
        _create(path.beside(LOCK), undo)
    return hold(path)


def _create(file: Path, undo: ExitStack) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    undo.callback(_undo, Path.unlink, file, identity_of(file))


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _undo(act: Callable[[Path], None], file: Path, identity: tuple[int, int]) -> None:
    with suppress(OSError):
        if identity_of(file) == identity:
            act(file)


def _lay_out(path: JournalPath, whose: JournalOwner, run: str, plan: Iterable[Start] | None) -> None:
    """Write the tables, the run's facts and its plan: a process that is killed before the end leaves it unfinished.

    Without a log, so that all of it is in the main file.
    """
    facts = {"schema": str(SCHEMA_VERSION), "run": run, **asdict(whose), "started_at": now()}
    with closing(sqlite3.connect(path.file, timeout=0.0, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = MEMORY").fetchone()  # there is nothing to go back to
        begin_generations(database)
        database.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            database.execute(statement)
        if plan is not None:
            cursor = database.executemany(_PLAN, plan_rows(plan))
            facts["planned"] = str(max(cursor.rowcount, 0))
        database.executemany("INSERT INTO run VALUES (?, ?)", facts.items())
        database.execute("COMMIT")
        finish_tables(database)
