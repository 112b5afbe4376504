"""The file of a bulk run's journal: its tables, how it is opened, and which process holds it.

SQLite from the standard library, in WAL mode. The file can be read with any SQLite tool, also during the run. It holds
no token and no parameter value.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TypeVar

from attrs import field, frozen
from attrs.converters import optional

from signalwire_streams.bulk._results import BulkStatus
from signalwire_streams.bulk._write_ahead_log import (
    INDEX as LOG_INDEX,
    JOURNAL,
    LOCK,
    LOG,
    ROLLBACK,
    UNFINISHED,
    Header,
    JournalPath,
    check_log,
    check_view,
    exists,
    header_of,
    identity_of,
    is_busy,
    log_error,
    size_of,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError

_Result = TypeVar("_Result")

IN_DOUBT = "in_doubt"
"""The state of an item whose request may have gone out, and whose outcome the journal does not know."""
STATES = frozenset({IN_DOUBT, *(status.value for status in BulkStatus)})

SCHEMA_VERSION = 4
SCHEMA = (
    "CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE plan (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('conference', 'call')),
        target TEXT NOT NULL,
        name TEXT,
        request TEXT NOT NULL
    )""",
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('conference', 'call')),
        target TEXT NOT NULL,
        name TEXT,
        state TEXT NOT NULL,
        sid TEXT,
        ambiguous INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        message TEXT,
        changed TEXT NOT NULL,
        rollback_status TEXT CHECK (rollback_status IN ('in_doubt', 'stopped'))
    )""",
)
# Created on resume, because only a resumed run does lookups; maintaining it during the first run would be most of the
# journal's cost.
INDEX = "CREATE INDEX IF NOT EXISTS items_by_name ON items (target, name)"

_A_MOMENT = 0.2  # another process may be looking whether the journal is held
_PATIENCE = 5.0  # seconds that another program may keep a journal locked
_STEP = 0.02  # seconds between two tries


def connect(path: JournalPath) -> sqlite3.Connection:
    """Open an existing journal for writing."""
    database = sqlite3.connect(_address(path, "rw"), uri=True, timeout=0.0)  # `when_free` waits, and not SQLite
    try:
        database.execute("PRAGMA journal_mode = WAL").fetchone()
        # NORMAL loses nothing when the process is killed; only a power cut can take the last commits.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")  # `OpenFiles.checkpoint` does that
    except BaseException:  # an open connection would keep the files
        database.close()
        raise
    return database


def connect_guarded(path: JournalPath, undo: ExitStack) -> tuple[FileIO, sqlite3.Connection, sqlite3.Connection]:
    """Open a journal for writing, with a second connection that keeps the log when the first one closes.

    The second one is opened at once, since one that opens a main file that was cut to nothing deletes the log. The
    main file itself is opened first, so that it is closed last.
    """
    main = undo.enter_context(path.file.open("r+b", buffering=0))
    database = undo.enter_context(closing(connect(path)))
    guard = undo.enter_context(closing(_connect_to_read(path, timeout=0.0)))
    undo.callback(database.close)  # before the guard
    guard.execute("SELECT count(*) FROM sqlite_master").fetchall()
    return main, database, guard


def _address(path: JournalPath, mode: str) -> str:
    return f"{path.file.resolve().as_uri()}?mode={mode}"


def _connect_to_read(path: JournalPath, *, timeout: float = 5.0) -> sqlite3.Connection:
    return sqlite3.connect(_address(path, "ro"), uri=True, isolation_level=None, timeout=timeout)


def _connect_to_main(path: JournalPath) -> sqlite3.Connection:
    """Open only the main file: without its log, without a lock, and without creating a file."""
    # Not by reading the file ourselves: to close a file drops all locks that this process has on it.
    return sqlite3.connect(f"{_address(path, 'ro')}&immutable=1", uri=True, isolation_level=None)


async def when_free(clock: Clock, act: Callable[[], _Result]) -> _Result:
    """Retry an operation for some seconds while another program's lock prevents it, without blocking the event loop."""
    since = clock.now()
    while True:
        try:
            return act()
        except JournalError as error:
            if not is_busy(error.__cause__) or clock.now() - since >= _PATIENCE:
                raise
        await clock.sleep(_STEP)


@contextmanager
def store_errors(path: JournalPath, doing: str) -> Iterator[None]:
    """Raise `JournalError` for errors of SQLite and the file system."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise store_error(path, doing, error) from error


def store_error(path: JournalPath, doing: str, error: Exception) -> JournalError:
    """Return the error of a journal that can't be *doing*: "created", "read" or "written"."""
    why = getattr(error, "strerror", None) or error
    if doing == "read" and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
        why = (
            f"its log needs a file {path.beside(LOG_INDEX).name} next to it, which can't be created there; copy the "
            "journal and its log to a writable folder, and pass the copy"
        )
    return JournalError(f"the journal {path} can't be {doing}: {why}")


def unreadable(path: JournalPath, what: str) -> JournalError:
    """Return the error of a journal with contents that this version does not write."""
    return JournalError(
        f"the journal {path} can't be read: {what} is not in this version's format; use the version that wrote it, "
        "or a copy from before the change"
    )


@frozen(kw_only=True)
class RunFacts:
    """The facts of a journal's run: the rows of its table ``run``."""

    run: str
    operation: str
    origin: str
    project: str
    started_at: str
    planned: int | None = field(default=None, converter=optional(int))
    rollback_started_at: str | None = None


@frozen
class JournalOwner:
    """Which kind of run a journal is of, ``start`` or ``stop``, and on which project of which Space."""

    operation: str
    origin: str
    project: str

    def check(self, path: JournalPath, known: RunFacts) -> None:
        if known.operation != self.operation:
            raise InvalidRequestError(f"{path} is the journal of a run that {known.operation}s streams: use it as one")
        for noun, its, ours in (("Space", known.origin, self.origin), ("project", known.project, self.project)):
            if its != ours:
                raise InvalidRequestError(f"{path} belongs to the {noun} {its}: use it there, not on {ours}")


def find(path: JournalPath) -> None:
    if not exists(path):
        raise InvalidRequestError(f"there is no journal {path}: name the file that the run wrote")


@contextmanager
def reading(path: JournalPath) -> Iterator[tuple[sqlite3.Connection, RunFacts]]:
    find(path)
    with store_errors(path, "read"), ExitStack() as stack:
        is_alone = _is_alone(path)
        database = stack.enter_context(closing(_connect_to_main(path) if is_alone else _connect_to_read(path)))
        database.execute("BEGIN")  # one view of the file for all that is asked
        yield database, facts_of(path, database)


def _is_alone(path: JournalPath) -> bool:
    """Check a journal before reading it, and return whether all of it is in the main file."""
    for is_last in (False, True):  # a run may begin or end while its files are checked one by one
        try:
            if not is_held(path):
                return not verify(path)[1]
        except (sqlite3.Error, JournalError, InvalidRequestError):
            if is_last and not is_held(path):
                raise
    return False  # the process that holds it keeps the files together


def verify(path: JournalPath) -> tuple[RunFacts, bool]:
    """Check that a journal that no process of ours has open is complete: its main file, and the log that belongs to it.

    Nothing is written, and no file is created if there is nothing to apply.

    Return the facts of its run, and whether it can't be read without its log.
    """
    main = _header_of(path)
    if main.application == UNFINISHED:
        raise InvalidRequestError(f"the journal {path} was not started yet: start the run without resuming")
    if main.application != JOURNAL or not check_log(path, main):
        with closing(_connect_to_main(path)) as database:
            return facts_of(path, database), False
    with closing(_connect_to_read(path)) as database:
        database.execute("BEGIN")
        check_view(path, main, header_of(database))
        return facts_of(path, database), True


def _header_of(path: JournalPath) -> Header:
    """Read the first page of the main file alone, whatever the state of the other ones is."""
    with closing(_connect_to_main(path)) as database:
        database.execute("PRAGMA writable_schema = ON")  # else a file with less pages than it should have is malformed
        with suppress(sqlite3.DatabaseError):  # no database at all, or one that can't be read as another one is
            return header_of(database)
    return Header(0, 0)


def facts_of(path: JournalPath, database: sqlite3.Connection) -> RunFacts:
    known: dict[str, str] = {}
    try:
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise _blank(path)
        known = dict(database.execute("SELECT key, value FROM run"))
    except sqlite3.DatabaseError as error:
        # Errors of the Python module itself have no code.
        if getattr(error, "sqlite_errorcode", None) not in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB}:
            raise
    if known.pop("schema", None) != str(SCHEMA_VERSION):
        raise InvalidRequestError(f"{path} is not a journal that this version can read: its schema differs")
    try:
        if all(isinstance(value, str) for value in known.values()):
            return RunFacts(**known)
    except (TypeError, ValueError):  # a row is missing, or is not known here, or is no number
        pass
    raise unreadable(path, "its table run")


def _blank(path: JournalPath) -> Exception:
    if is_free(path):
        return InvalidRequestError(
            f"the journal {path} is empty, so its run was not started yet: start it; if this is a "
            "copy of a run's journal, "
            "copy it again"
        )
    return log_error(path, "is missing or belongs to another journal")


def is_free(path: JournalPath) -> bool:
    """Return whether a journal can be created: there is no file, an empty one, or a killed process's unfinished one."""
    if any(size_of(path.beside(suffix)) for suffix in (LOG, LOG_INDEX, ROLLBACK)):
        return False
    return not size_of(path.file) or _header_of(path).application == UNFINISHED


@contextmanager
def new_file(path: JournalPath) -> Iterator[sqlite3.Connection]:
    """Reserve a path for a new journal. On an error, its own files are removed, and no others are touched."""
    _check_free(path)
    with ExitStack() as undo:
        lock = undo.enter_context(closing(_hold_new(path, undo)))
        with suppress(FileExistsError):
            _create(path.file, undo)
        _check_free(path)  # another process may have made it since
        undo.callback(_undo, _empty, path.file, identity_of(path.file))
        _empty(path.file)  # of what a killed process left
        for suffix in (LOG, LOG_INDEX):
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


def hold(path: JournalPath) -> sqlite3.Connection:
    """Lock a run for this process. The lock ends with the process, however it ends."""
    try:
        lock = sqlite3.connect(path.beside(LOCK), timeout=_A_MOMENT, isolation_level=None)
    except (sqlite3.OperationalError, OSError):
        raise InvalidRequestError(f"the journal {path} can't be opened: name a file in a writable folder") from None
    try:
        lock.execute("PRAGMA journal_mode = MEMORY").fetchone()  # creates no file next to it
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.DatabaseError as error:
        lock.close()
        if "locked" in str(error):
            raise InvalidRequestError(f"another process is using the journal {path}: wait for it, or stop it") from None
        raise store_error(path, "opened", error) from None
    return lock


def is_held(path: JournalPath) -> bool:
    with store_errors(path, "read"):
        if not path.beside(LOCK).exists():
            return False
        with closing(sqlite3.connect(path.beside(LOCK), timeout=0.0, isolation_level=None)) as lock:
            try:
                lock.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                return True
    return False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
