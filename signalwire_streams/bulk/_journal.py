"""Write-ahead journal of a bulk run: intents and outcomes, in a file that survives a crash.

An intent is committed before its request goes out; an outcome a tenth of a second later at most. So a process that
is killed loses few outcomes, and their items are then "in_doubt", which is as good as unknown.
"""

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from attrs import asdict, frozen

from signalwire_streams.bulk._journal_file import (
    IN_DOUBT,
    INDEX,
    SCHEMA,
    SCHEMA_VERSION,
    STATES,
    JournalOwner,
    connect_guarded,
    facts_of,
    hold,
    is_held,
    new_file,
    now,
    store_error,
    store_errors,
    unreadable,
    verify,
    when_free,
)
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, error_label
from signalwire_streams.bulk._serialization import Start, folded, plan_rows
from signalwire_streams.bulk._write_ahead_log import (
    JournalPath,
    OpenFiles,
    begin_generations,
    exists,
    finish_tables,
    is_busy,
    journal_path,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError
from signalwire_streams.models import CallStream, ConferenceStream

LOG_SIZE = 4 * 1024 * 1024  # bytes of a log before it is checkpointed
_APART = 0.004  # seconds between two commits, when something waits for them
_AT_LEAST_EVERY = 0.1  # seconds that what nobody waits for stays unwritten

_Values: TypeAlias = tuple[object, ...]
_Write: TypeAlias = tuple[str, _Values, asyncio.Future[None] | None]


class GroupCommitter:
    """The only writer of a journal: commits writes that arrive within a few milliseconds together."""

    def __init__(self, *, path: JournalPath, database: sqlite3.Connection, files: OpenFiles, clock: Clock) -> None:
        self.is_whole = False  # whether the main file needs no log any more
        self._path, self._database, self._files, self._clock = path, database, files, clock
        self._waiting: list[_Write] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._last = float("-inf")
        self._retrying: asyncio.Task[None] | None = None
        self._log_limit = LOG_SIZE
        self._failure: JournalError | None = None

    def write_later(self, statement: str, values: _Values) -> None:
        self._waiting.append((statement, values, None))
        self._commit_by(asyncio.get_running_loop().time() + _AT_LEAST_EVERY)

    async def write(self, statement: str, values: _Values) -> None:
        """Write it, and return when it is on the disk. If cancelled before that, it is not written."""
        if self._failure is not None:
            raise JournalError(str(self._failure))
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statement, values, done))
        self._commit_by(max(loop.time(), self._last + _APART))
        await done

    def finish(self) -> None:
        """Write pending records, and leave a journal that is complete without its log."""
        self.cancel()
        with store_errors(self._path, "written"):
            was_removed = False
            try:
                self._files.check()
            except OSError as error:
                if self._files.damage is not None:
                    raise
                # What was removed is still open, so the main file gets all of it.
                was_removed = True
                self._failure = self._failure or store_error(self._path, "written", error)
            self._write_waiting()
            if self._failure is None or was_removed:  # else the disk may be full, and the log has all of it
                self.is_whole = self._files.finish()
        if self._failure is not None:
            raise JournalError(str(self._failure))

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._retrying is not None:
            self._retrying.cancel()

    def _commit_by(self, at: float) -> None:
        if self._retrying is not None and not self._retrying.done():
            return
        if self._timer is not None:
            if self._due <= at:
                return
            self._timer.cancel()
        # Stored here, since not every loop's handle has its time.
        self._timer, self._due = asyncio.get_running_loop().call_at(at, self._commit), at

    def _commit(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        try:
            self._attempt()
        except JournalError as error:
            if is_busy(error.__cause__):
                self._retrying = asyncio.create_task(self._retry())
            else:
                self._fail(error)

    async def _retry(self) -> None:
        """Write as soon as another program releases the journal; new records wait with the others."""
        try:
            await when_free(self._clock, self._attempt)
        except JournalError as error:
            self._fail(error)

    def _attempt(self) -> None:
        with store_errors(self._path, "written"):
            self._files.check()
            self._write_waiting()
            self._keep_log_small()

    def _fail(self, error: JournalError) -> None:
        """Fail the writers that wait for the commit, and thereby the run. Outcomes are kept for the next attempt."""
        self._failure = self._failure or error
        waiting, self._waiting = self._waiting, [entry for entry in self._waiting if entry[2] is None]
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_exception(JournalError(str(error)))  # each of those that wait raises its own

    def _write_waiting(self) -> None:
        # Those of one statement go together, which is a fifth cheaper. It changes nothing, since what is written of one
        # item comes in different commits: its outcome after its intent is on the disk.
        together: dict[str, list[_Values]] = {}
        for statement, values, done in self._waiting:
            if done is None or not done.cancelled():
                together.setdefault(statement, []).append(values)
        if together:
            with self._files.commit():
                for statement, rows in together.items():
                    self._database.executemany(statement, rows)
        waiting, self._waiting = self._waiting, []
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_result(None)

    def _keep_log_small(self) -> None:
        if self._files.log_size() <= self._log_limit:
            return
        is_whole = True
        try:
            is_whole = self._files.checkpoint()
        except sqlite3.Error as error:
            if not is_busy(error):  # what was to be written is, so the next commit will do
                raise
        # A log that could be copied is begun anew, and does not grow until it is as long as before.
        self._log_limit = self._files.log_size() + (0 if is_whole else LOG_SIZE)


_SETTLE = (
    "UPDATE items SET state = ?, sid = ?, ambiguous = ?, attempts = attempts + ?, error = ?, message = ?, "
    "changed = ? WHERE id = ?"
)
_INTEND = "INSERT INTO items (id, kind, target, name, state, changed) VALUES (?, ?, ?, ?, ?, ?)"
_INTEND_AGAIN = "UPDATE items SET state = ?, changed = ? WHERE id = ?"
_FIND = (
    "SELECT id, state, sid, ambiguous FROM items "
    "WHERE target = ? AND name IS ? AND id <= ? ORDER BY id LIMIT 1 OFFSET ?"
)
_FIND_STREAM = "SELECT id FROM items WHERE target = ? AND name IS ? AND sid IS ? ORDER BY id LIMIT 1"
_PLAN = "INSERT INTO plan (kind, target, name, request) VALUES (?, ?, ?, ?)"
_ROLL_BACK = "UPDATE items SET rollback_status = ?, changed = ? WHERE id = ?"


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
        connections: tuple[FileIO, sqlite3.Connection, sqlite3.Connection],
        lock: sqlite3.Connection,
        clock: Clock | None,
        inherited: int = 0,
    ) -> None:
        self.path, self.run = path, run
        self._main, self._database, self._guard = connections
        self._lock = lock
        self._clock = clock or Clock()
        self._inherited = self._rows = inherited
        self._looked_up: Counter[str] = Counter()
        self._files = OpenFiles(path=path, main=self._main, database=self._database, guard=self._guard)
        self._commits = GroupCommitter(path=path, database=self._database, files=self._files, clock=self._clock)

    @classmethod
    def create(
        cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, clock: Clock | None = None
    ) -> Self:
        """Create the journal of a new run, and open it."""
        path = journal_path(path)
        with store_errors(path, "created"), new_file(path) as lock, ExitStack() as undo:
            _lay_out(path, whose, run, None)
            journal = cls(path=path, run=run, connections=connect_guarded(path, undo), lock=lock, clock=clock)
            undo.pop_all()
        return journal

    @classmethod
    def plan(cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, requests: Iterable[Start]) -> None:
        """Create the journal of a run for these requests, for `reopen`."""
        path = journal_path(path)
        with store_errors(path, "created"), new_file(path) as lock:
            _lay_out(path, whose, run, requests)
        lock.close()

    @classmethod
    def reopen(cls, path: JournalPath | Path | str, whose: JournalOwner, *, clock: Clock | None = None) -> Self:
        """Open the journal of a run that was planned, or that ended early."""
        path = journal_path(path)
        if not exists(path):
            raise InvalidRequestError(f"there is no journal {path}: start the run without resuming")
        with ExitStack() as undo, store_errors(path, "read"):
            if not is_held(path):
                whose.check(path, verify(path)[0])  # before a lock file is made beside what is no journal of ours
            if not os.access(path.file, os.W_OK):
                raise InvalidRequestError(
                    f"the journal {path} can't be written: use an account that has write permission"
                )
            lock = undo.enter_context(closing(hold(path)))
            whose.check(path, verify(path)[0])
            connections = connect_guarded(path, undo)
            database = connections[1]
            run = facts_of(path, database).run
            database.execute(INDEX)
            last = int(database.execute("SELECT COALESCE(MAX(id), 0) FROM items").fetchone()[0])
            journal = cls(path=path, run=run, connections=connections, lock=lock, clock=clock, inherited=last)
            undo.pop_all()
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def undone_since(self) -> str | None:
        row = self._ask("SELECT value FROM run WHERE key = 'rollback_started_at'", ())
        return row and str(row[0])

    def begin_undoing(self) -> None:
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
        row = self._ask(_FIND, (target, name, self._inherited, skip))
        if row is None:
            return None
        if row[1] not in STATES or not isinstance(row[2], str | None):
            raise unreadable(self.path, f"the row {row[0]} of its table items")
        return ItemRecord(row[0], row[1], row[2], bool(row[3]))

    def find_stream(self, target: str, name: str | None, sid: str | None) -> int:
        row = self._ask(_FIND_STREAM, (folded(target), name, sid))
        if row is None:
            raise JournalError(f"the journal {self.path} no longer contains the stream on {target}")
        return int(row[0])

    def new_row(self) -> int:
        self._rows += 1
        return self._rows

    async def intend(self, row: int, kind: str, target: str, name: str | None) -> None:
        """Record that an item is about to be sent; it is durable when this returns."""
        if row > self._inherited:
            await self._commits.write(_INTEND, (row, kind, folded(target), name, IN_DOUBT, now()))
        else:
            await self._commits.write(_INTEND_AGAIN, (IN_DOUBT, now(), row))

    def settle(self, row: int, outcome: BulkOutcome[Any]) -> None:
        """Record the outcome of an item; it is written with the next commit."""
        stream, error = outcome.stream, outcome.error
        self._commits.write_later(
            _SETTLE,
            (
                outcome.status.value,
                stream.sid if stream is not None else None,
                int(stream.ambiguous) if stream is not None else 0,
                outcome.attempts,
                error_label(error) if error is not None else None,
                str(error) if error is not None else None,
                now(),
                row,
            ),
        )

    async def intend_undoing(self, row: int) -> None:
        """Record that an item's stream is about to be stopped; it is on the disk when this returns."""
        await self._commits.write(_ROLL_BACK, (IN_DOUBT, now(), row))

    def settle_undoing(self, row: int, outcome: BulkOutcome[ConferenceStream | CallStream]) -> None:
        """Record the outcome of stopping an item's stream; the record of its start is unchanged."""
        status = {BulkStatus.STOPPED: BulkStatus.STOPPED.value, BulkStatus.UNKNOWN: IN_DOUBT}.get(outcome.status)
        self._commits.write_later(_ROLL_BACK, (status, now(), row))

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
        # The last one that closes copies the log into the main file and deletes it; the guard can't, for it only reads.
        last_two = (self._guard, self._database) if self._commits.is_whole else (self._database, self._guard)
        for opened in (*last_two, self._main, self._lock):
            opened.close()

    def _ask(self, question: str, values: _Values) -> Any:  # noqa: ANN401  (as sqlite3 has it)
        with store_errors(self.path, "read"):
            self._files.check()
            return self._database.execute(question, values).fetchone()


class Holder:
    """Opens a run's journal when the run starts, and closes it when the run ends."""

    journal: Journal  # once it is open

    def __init__(self, opening: Callable[[], Journal], clock: Clock) -> None:
        self.clock = clock
        self._opening = opening
        self._is_open = False
        self._failure: JournalError | None = None

    async def open(self) -> Journal:
        self.journal = await when_free(self.clock, self._opening)
        self._is_open = True
        return self.journal

    async def close(self) -> None:
        """Write pending records and close the journal. Safe to repeat."""
        if self._is_open:
            self._is_open = False
            try:
                await self.journal.aclose()
            except JournalError as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure


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
