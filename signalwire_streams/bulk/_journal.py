"""The journal of a bulk run: what was about to be sent, and what came of it, in a file that survives a kill.

An intent is committed before its request goes out; an outcome a tenth of a second later at most. So a process that
is killed loses few outcomes, and their items are then "intended", which is as good as unknown.
"""

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from attrs import asdict, define, field, frozen

from signalwire_streams.bulk._journal_file import (
    INDEX,
    IN_DOUBT,
    SCHEMA,
    SCHEMA_VERSION,
    JournalOwner,
    connect_guarded,
    facts_of,
    failed,
    hold,
    is_held,
    new_file,
    now,
    telling,
    verify,
    when_free,
)
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, error_label
from signalwire_streams.bulk._serialization import Start, plan_rows
from signalwire_streams.bulk._write_ahead_log import (
    LOG,
    LOG_SIZE,
    JournalPath,
    OpenFiles,
    begin_generations,
    checkpoint,
    close_log,
    exists,
    finish_tables,
    is_busy,
    journal_path,
    next_generation,
    open_log,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError
from signalwire_streams.models import CallStream, ConferenceStream

_APART = 0.004  # seconds between two commits, when something waits for them
_AT_LEAST_EVERY = 0.1  # seconds that what nobody waits for stays unwritten

Values: TypeAlias = tuple[object, ...]
_Entry: TypeAlias = tuple[str, Values, asyncio.Future[None] | None]


@define(eq=False)
class GroupCommitter:
    """The one writer of a journal.

    Attributes:
        path: the journal, for messages.
        database: the open journal.
        files: its files, which are checked before each commit.
        clock: measures how long another program keeps the journal locked.
        salt: the log's, as the run began it or as it was last copied.
        is_whole: whether the main file needs no log any more.
    """

    path: JournalPath
    database: sqlite3.Connection
    files: OpenFiles
    clock: Clock
    salt: int
    is_whole: bool = field(init=False, default=False)
    _waiting: list[_Entry] = field(init=False, factory=list)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _retrying: asyncio.Task[None] | None = field(init=False, default=None)
    _due: float = field(init=False, default=0.0)
    _last: float = field(init=False, default=float("-inf"))
    _log_limit: int = field(init=False, default=LOG_SIZE)
    _failure: JournalError | None = field(init=False, default=None)

    def later(self, statement: str, values: Values) -> None:
        """Write it with the next commit."""
        self._waiting.append((statement, values, None))
        self._commit_by(asyncio.get_running_loop().time() + _AT_LEAST_EVERY)

    async def committed(self, statement: str, values: Values) -> None:
        """Write it, and return when it is on the disk. If cancelled before that, it is not written.

        Raises:
            JournalError: it can't be written, or something could not be before.
        """
        if self._failure is not None:
            raise _same(self._failure)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statement, values, done))
        self._commit_by(max(loop.time(), self._last + _APART))
        await done

    def finish(self) -> None:
        """Write what waits, and leave a journal that is whole without its log.

        Raises:
            JournalError: something can't be written, or could not be before.
        """
        self.cancel()
        with telling(self.path, "written"):
            was_removed = False
            try:
                self.files.check()
            except OSError as error:
                if self.files.damage is not None:
                    raise
                # What was removed is still open, so the main file gets all of it.
                was_removed = True
                self._failure = self._failure or failed(self.path, "written", error)
            self._write_waiting()
            if self._failure is None or was_removed:  # else the disk may be full, and the log has all of it
                self.is_whole = close_log(self.path, self.database)
        if self._failure is not None:
            raise _same(self._failure)

    def cancel(self) -> None:
        """Write nothing more by itself."""
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
        # Remembered here, since not every loop's handle tells its time.
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
        """Write as soon as another program lets go of the journal; what comes meanwhile waits with the rest."""
        try:
            await when_free(self.clock, self._attempt)
        except JournalError as error:
            self._fail(error)

    def _attempt(self) -> None:
        with telling(self.path, "written"):
            self.files.check()
            self._write_waiting()
            self._keep_log_small()

    def _fail(self, error: JournalError) -> None:
        """End what waits for the commit, and with it the run. Outcomes are kept for the next try."""
        self._failure = self._failure or error
        waiting, self._waiting = self._waiting, [entry for entry in self._waiting if entry[2] is None]
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_exception(_same(error))

    def _write_waiting(self) -> None:
        # Those of one statement go together, which is a fifth cheaper. It changes nothing, since what is written of one
        # item comes in different commits: its outcome after its intent is on the disk.
        together: dict[str, list[Values]] = {}
        for statement, values, done in self._waiting:
            if done is None or not done.cancelled():
                together.setdefault(statement, []).append(values)
        if together:
            with next_generation(self.database):
                for statement, rows in together.items():
                    self.database.executemany(statement, rows)
        waiting, self._waiting = self._waiting, []
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_result(None)

    def _keep_log_small(self) -> None:
        """Checkpoint the log when it has outgrown its limit, or the main file does not say that it is needed."""
        # Those that wait for the commit go on after this returns, so nothing is sent that a cut of the log could hide.
        if not self.files.has_to_be_copied(self.salt, self._log_limit):
            return
        try:
            self.salt, is_whole = checkpoint(self.path, self.database)
        except sqlite3.Error as error:
            if not is_busy(error):  # what was to be written is, so the next commit will do
                raise
            is_whole = True
        if not is_whole:
            os.truncate(self.path.beside(LOG), self.files.log_size() + LOG_SIZE)
        self._log_limit = self.files.log_size()


def _same(error: JournalError) -> JournalError:
    """Return an error with the same message, since each of those that wait raises its own."""
    return JournalError(str(error))


_Result = TypeVar("_Result")

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
_UNDO = "UPDATE items SET undone = ?, changed = ? WHERE id = ?"


@frozen
class ItemRecord:
    """What the journal knows of one item.

    Attributes:
        id: its row.
        state: a `BulkStatus`'s text, or ``intended``.
        sid: the stream's id, where it is known.
        ambiguous: whether the id may be that of a refused second stream.
    """

    id: int
    state: str
    sid: str | None
    ambiguous: bool


@define(eq=False)
class Journal:
    """One run's file. Use it as ``with Journal.create(path, ...) as journal``.

    Attributes:
        path: the file.
        run: what the run is called; its streams' names follow from it.
    """

    path: JournalPath
    run: str
    _database: sqlite3.Connection
    _guard: sqlite3.Connection
    _lock: sqlite3.Connection
    _salt: int
    _clock: Clock
    _inherited: int = 0
    _looked_up: Counter[str] = field(init=False, factory=Counter)
    _rows: int = field(init=False)
    _files: OpenFiles = field(init=False)
    _commits: GroupCommitter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._rows = self._inherited
        self._files = OpenFiles(self.path)
        self._commits = GroupCommitter(self.path, self._database, self._files, self._clock, self._salt)

    @classmethod
    def create(
        cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, clock: Clock | None = None
    ) -> Self:
        """Create the journal of a new run, and open it.

        Raises:
            InvalidRequestError: the file is there already, can't be made, or another process holds it.
            JournalError: it can't be written.
        """
        path = journal_path(path)
        with telling(path, "made"), new_file(path) as lock, ExitStack() as undo:
            _lay_out(path, whose, run, None)
            database, guard = connect_guarded(path, undo)
            journal = cls(path, run, database, guard, lock, open_log(path, database), clock or Clock())
            undo.pop_all()
        return journal

    @classmethod
    def plan(cls, path: JournalPath | Path | str, whose: JournalOwner, *, run: str, requests: Iterable[Start]) -> None:
        """Create the journal of a run that is to start these requests, for `reopen`.

        Raises:
            InvalidRequestError: as in `create`; or an item is no request, or two requests are the same.
            JournalError: it can't be written.
        """
        path = journal_path(path)
        with telling(path, "made"), new_file(path) as lock:
            _lay_out(path, whose, run, requests)
        lock.close()

    @classmethod
    def reopen(cls, path: JournalPath | Path | str, whose: JournalOwner, *, clock: Clock | None = None) -> Self:
        """Open the journal of a run that was planned, or that ended early.

        Raises:
            InvalidRequestError: there is no such file, it is no journal of this version, it belongs to another
                Space, project or kind of run, or another process holds it.
            JournalError: it can't be read or written, or a part of it is missing.
        """
        path = journal_path(path)
        if not exists(path):
            raise InvalidRequestError(f"there is no journal {path}: begin the run without resuming")
        with ExitStack() as undo, telling(path, "read"):
            if not is_held(path):
                whose.check(path, verify(path)[0])  # before a lock file is made beside what is no journal of ours
            if not os.access(path.file, os.W_OK):
                raise InvalidRequestError(f"the journal {path} can't be written: use an account that may write it")
            lock = undo.enter_context(closing(hold(path)))
            whose.check(path, verify(path)[0])
            database, guard = connect_guarded(path, undo)
            known = facts_of(path, database)
            salt = open_log(path, database)
            database.execute(INDEX)
            last = database.execute("SELECT COALESCE(MAX(id), 0) FROM items").fetchone()[0]
            journal = cls(path, known["run"], database, guard, lock, salt, clock or Clock(), int(last))
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
        """When somebody began to stop what this run started, or None."""
        return self._ask("SELECT value FROM run WHERE key = 'undone_since'", (), lambda row: row and str(row[0]))

    def begin_undoing(self) -> None:
        """Note that what this run started is to be stopped."""
        with telling(self.path, "written"), next_generation(self._database):
            self._database.execute("INSERT OR IGNORE INTO run VALUES ('undone_since', ?)", (now(),))

    def find(self, target: str, name: str | None) -> ItemRecord | None:
        """Look up what an earlier part of the run left of an item.

        Items without a name are told apart by their order only: the second call for a target gives its second.
        """
        if not self._inherited:
            return None
        skip = 0
        if name is None:
            skip = self._looked_up[target]
            self._looked_up[target] += 1
        return self._ask(
            _FIND,
            (target, name, self._inherited, skip),
            lambda row: row and ItemRecord(row[0], row[1], row[2], bool(row[3])),
        )

    def find_stream(self, target: str, name: str | None, sid: str | None) -> int:
        """Look up the row of a stream that this run started.

        Raises:
            JournalError: it is not there.
        """
        row = self._ask(_FIND_STREAM, (target, name, sid), lambda row: row)
        if row is None:
            raise JournalError(f"the journal {self.path} does not know the stream on {target} any more")
        return int(row[0])

    def new_row(self) -> int:
        """Give the number of an item's row that is not there yet."""
        self._rows += 1
        return self._rows

    async def intend(self, row: int, kind: str, target: str, name: str | None) -> None:
        """Note that an item is about to be sent; it is on the disk when this returns.

        Args:
            row: the item's row, new or of an earlier part of the run.
            kind: ``conference`` or ``call``.
            target: the sid of that.
            name: the stream's Name.

        Raises:
            JournalError: it can't be written.
        """
        if row > self._inherited:
            await self._commits.committed(_INTEND, (row, kind, target, name, IN_DOUBT, now()))
        else:
            await self._commits.committed(_INTEND_AGAIN, (IN_DOUBT, now(), row))

    def settle(self, row: int, outcome: BulkOutcome[Any]) -> None:
        """Note what came of an item; it is written with the next commit."""
        stream, error = outcome.stream, outcome.error
        self._commits.later(
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
        """Note that an item's stream is about to be stopped; it is on the disk when this returns."""
        await self._commits.committed(_UNDO, (IN_DOUBT, now(), row))

    def settle_undoing(self, row: int, outcome: BulkOutcome[ConferenceStream | CallStream]) -> None:
        """Note what came of stopping an item's stream; how it was started stays as it is."""
        undone = {BulkStatus.STOPPED: BulkStatus.STOPPED.value, BulkStatus.UNKNOWN: IN_DOUBT}.get(outcome.status)
        self._commits.later(_UNDO, (undone, now(), row))

    async def aclose(self) -> None:
        """Do the same as `close`, and wait for a lock of another program.

        Raises:
            JournalError: as in `close`.
        """
        try:
            await when_free(self._clock, self._commits.finish)
        finally:
            self._release()

    def close(self) -> None:
        """Write what waits, and close the file, which then is whole without its log.

        Raises:
            JournalError: something could not be written; items that were sent stay "intended".
        """
        try:
            self._commits.finish()
        finally:
            self._release()

    def _release(self) -> None:
        self._commits.cancel()
        self._files.close()
        # The last one that closes copies the log into the main file and deletes it; the guard can't, for it only reads.
        last_two = (self._guard, self._database) if self._commits.is_whole else (self._database, self._guard)
        for connection in (*last_two, self._lock):
            connection.close()

    def _ask(self, question: str, values: tuple[object, ...], read: Callable[[Any], _Result]) -> _Result:
        with telling(self.path, "read"):
            self._files.check()
            return read(self._database.execute(question, values).fetchone())


@define(eq=False)
class Holder:
    """Opens the journal of a run as it begins, and closes it as it ends.

    Attributes:
        opening: opens the journal.
        clock: measures how long another program keeps the journal locked.
        journal: the journal, once it is open.
    """

    opening: Callable[[], Journal]
    clock: Clock
    journal: Journal = field(init=False)
    _is_open: bool = field(init=False, default=False)
    _failure: JournalError | None = field(init=False, default=None)

    async def open(self) -> Journal:
        """Open the journal, and wait for a lock of another program."""
        self.journal = await when_free(self.clock, self.opening)
        self._is_open = True
        return self.journal

    async def close(self) -> None:
        """Write what waits and close the journal. Safe to repeat.

        Raises:
            JournalError: something could not be written; the same each time.
        """
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
    facts = {"schema": str(SCHEMA_VERSION), "run": run, **asdict(whose), "began": now()}
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
