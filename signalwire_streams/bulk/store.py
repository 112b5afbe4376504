"""The file of a bulk run's journal: its tables, how it is opened, and which process holds it.

SQLite from the standard library, in WAL mode. The file can be read with any SQLite tool, also while the run goes
on. It holds no token and no parameter value.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from attrs import frozen

from signalwire_streams.errors import InvalidRequestError, JournalError

SCHEMA_VERSION = 1

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
        undone TEXT CHECK (undone IN ('intended', 'stopped'))
    )""",
)
# Made when a run is gone on with, since only then is anything looked up: while a run goes on for the first time,
# keeping it up would be most of the journal's cost.
INDEX = "CREATE INDEX IF NOT EXISTS items_by_name ON items (target, name)"
INTENDED = "intended"
"""The state of an item whose request may have gone out, and of whose end the journal knows nothing."""

_A_MOMENT = 0.2  # another process may be looking whether the journal is held


def connect(path: Path) -> sqlite3.Connection:
    """Open a journal to write in it."""
    database = sqlite3.connect(path, timeout=5.0)
    database.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses nothing when the process is killed; only a power cut can take the last commits.
    database.execute("PRAGMA synchronous = NORMAL")
    return database


@frozen
class Whose:
    """Which kind of run a journal is of, and on which project of which Space.

    Attributes:
        doing: ``start`` or ``stop``.
        origin: the Space's address.
        project: the Project ID.
    """

    doing: str
    origin: str
    project: str

    def check(self, path: Path, known: Mapping[str, str]) -> None:
        """Check that a journal is of such a run.

        Raises:
            InvalidRequestError: it is not.
        """
        if known["doing"] != self.doing:
            raise InvalidRequestError(f"{path} is the journal of a run that {known['doing']}s streams: use it as one")
        for noun, its, ours in (("Space", known["origin"], self.origin), ("project", known["project"], self.project)):
            if its != ours:
                raise InvalidRequestError(f"{path} belongs to the {noun} {its}: use it there, not on {ours}")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a journal to read in it.

    Raises:
        InvalidRequestError: there is no such file, or it is no journal of this version.
        JournalError: it can't be read.
    """
    with telling(path, "read"):
        if not path.exists():
            raise InvalidRequestError(f"there is no journal {path}: name the file that the run wrote")
        with closing(_open_to_read(path)) as database:
            database.execute("BEGIN")  # one view of the file for all that is asked
            facts_of(path, database)
            yield database


def _open_to_read(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    # Where no files can be made beside it, SQLite can't read a WAL journal, unless it is told that nobody writes.
    beside = path.with_name(path.name + "-wal")
    if not os.access(path.parent, os.W_OK) and not beside.exists():
        address += "&immutable=1"
    return sqlite3.connect(address, uri=True, isolation_level=None)


@contextmanager
def telling(path: Path, doing: str) -> Iterator[None]:
    """Tell in our own words what the store could not do.

    Raises:
        JournalError: the store failed.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise failed(path, doing, error) from error


def failed(path: Path, doing: str, error: Exception) -> JournalError:
    """Put in our own words what the store could not do."""
    return JournalError(f"the journal {path} can't be {doing}: {getattr(error, 'strerror', None) or error}")


def facts_of(path: Path, database: sqlite3.Connection) -> Mapping[str, str]:
    """Give what the journal says of its run.

    Raises:
        InvalidRequestError: the file is no journal of this version.
    """
    known: dict[str, str] = {}
    try:
        if _is_blank(database):
            raise InvalidRequestError(f"the journal {path} was not begun yet, and nothing was sent: begin the run")
        known = dict(database.execute("SELECT key, value FROM run"))
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode not in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB}:
            raise
    if known.get("schema") != str(SCHEMA_VERSION):
        raise InvalidRequestError(f"{path} is no journal that this version can read: its schema is another one")
    return known


def is_free(path: Path) -> bool:
    """Tell whether a journal can be made: nothing is there, or what a run left that was killed before it began."""
    if not path.exists():
        return True
    try:
        with closing(_open_to_read(path)) as database:
            return _is_blank(database)
    except sqlite3.DatabaseError:
        return False


def _is_blank(database: sqlite3.Connection) -> bool:
    return int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]) == 0


def hold(path: Path) -> sqlite3.Connection:
    """Take a run for this process: a lock that ends with the process, however it ends.

    Raises:
        InvalidRequestError: another process holds it, or no file can be made there.
    """
    try:
        lock = sqlite3.connect(_lock_of(path), timeout=_A_MOMENT, isolation_level=None)
    except (sqlite3.OperationalError, OSError):
        raise InvalidRequestError(
            f"the journal {path} can't be opened: name a file in a folder that may be written"
        ) from None
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.DatabaseError as error:
        lock.close()
        if "locked" in str(error):
            raise InvalidRequestError(f"another process runs the journal {path}: wait for it, or end it") from None
        raise InvalidRequestError(f"the journal {path} can't be opened: {error}") from None
    return lock


def is_held(path: Path) -> bool:
    """Tell whether a process works on a run now.

    Raises:
        JournalError: it can't be told.
    """
    with telling(path, "read"):
        if not _lock_of(path).exists():
            return False
        with closing(sqlite3.connect(_lock_of(path), timeout=0.0, isolation_level=None)) as lock:
            try:
                lock.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                return True
    return False


def now() -> str:
    """Give the time as the journal writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _lock_of(path: Path) -> Path:
    path = path.resolve()  # whatever links lead to it, a journal has one lock
    return path.with_name(path.name + ".lock")
