"""The files of a bulk run's journal: their paths, their tables, how they are opened, and which process holds them.

SQLite from the standard library, in WAL mode. The journal can be read with any SQLite tool, also during the run. It
holds no token and no parameter value.
"""

import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from attrs import Attribute, field, frozen
from attrs.converters import optional as maybe
from attrs.validators import ge, in_, instance_of, optional

from signalwire_streams.bulk._results import BulkStatus
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError
from signalwire_streams.models._validation import validate_path_segment

_Result = TypeVar("_Result")

LOCK, LOG, INDEX, ROLLBACK = ".lock", "-wal", "-shm", "-journal"
_INDEX_PAGE, _INDEX_AT_FIRST = 4096, 3  # bytes that SQLite adds to an index at once, and that it begins with
_URLS = ("redis:", "rediss:", "unix:")
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


@frozen
class JournalPath:
    """The path of a journal, as passed and as an absolute path, so that a chdir does not change the file.

    Its methods open the file, lock it for this process, and turn errors into ours.
    """

    name: str
    file: Path
    _target: Path | None = None

    def __str__(self) -> str:
        return self.name

    def beside(self, suffix: str) -> Path:
        """Return the file of SQLite's, or our lock, that belongs to the journal; links to the journal share it."""
        file = self._target or self.file.resolve()
        return file.with_name(file.name + suffix)

    def resolved(self) -> "JournalPath":
        """Return the same path for a run, which does not look up again where a link leads: that is most of opening."""
        try:
            return JournalPath(self.name, self.file, self.file.resolve())
        except (OSError, RuntimeError):  # a link to itself, which `exists` reports
            return self

    def exists(self) -> bool:
        """Return whether there is a file, and check that nothing at or beside the path is another kind of file.

        Nothing is opened: opening a FIFO blocks, and SQLite deletes what it takes for its own leftovers.
        """
        try:
            is_there = _is_regular(self.file)
            for suffix in (LOCK, LOG, INDEX, ROLLBACK):
                _is_regular(self.beside(suffix))
            if size_of(self.beside(INDEX)) % _INDEX_PAGE not in {0, _INDEX_AT_FIRST}:
                raise InvalidRequestError(
                    f"{self.beside(INDEX)} is another program's file: move it, or name another file"
                )
            for suffix in (LOG, INDEX, ROLLBACK):
                file = self.beside(LOCK + suffix)
                if os.path.lexists(file):  # SQLite deletes it, and the lock never has one
                    raise InvalidRequestError(f"{file} blocks the lock file: move it, or name another file")
        except OSError as error:
            raise InvalidRequestError(
                f"the journal {self} can't be opened: {error.strerror}; name another file"
            ) from None
        return is_there

    def connect_to_write(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._address("rw"), uri=True, timeout=0.0)  # `when_free` waits, and not SQLite
        try:
            database.execute("PRAGMA journal_mode = WAL").fetchone()
            # NORMAL loses nothing when the process is killed; only a power cut can take the last commits.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA wal_autocheckpoint = 0")  # `OpenFiles.checkpoint` does that
        except BaseException:  # an open connection would keep the files
            database.close()
            raise
        return database

    def connect_to_read(self, *, timeout: float = 5.0) -> sqlite3.Connection:
        return sqlite3.connect(self._address("ro"), uri=True, isolation_level=None, timeout=timeout)

    def connect_to_main(self) -> sqlite3.Connection:
        """Open only the main file: without its log, without a lock, and without creating a file."""
        return sqlite3.connect(f"{self._address('ro')}&immutable=1", uri=True, isolation_level=None)

    def _address(self, mode: str) -> str:
        return f"{(self._target or self.file.resolve()).as_uri()}?mode={mode}"

    def lock(self) -> sqlite3.Connection:
        """Lock a run for this process. The lock ends with the process, even if that is killed."""
        try:
            lock = sqlite3.connect(self.beside(LOCK), timeout=_OWNER_TIMEOUT, isolation_level=None)
        except (sqlite3.OperationalError, OSError):
            raise InvalidRequestError(f"the journal {self} can't be opened: name a file in a writable folder") from None
        try:
            lock.execute("PRAGMA journal_mode = MEMORY").fetchone()  # creates no file next to it
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.DatabaseError as error:
            lock.close()
            if "locked" in str(error):
                raise InvalidRequestError(
                    f"another process is using the journal {self}: wait for it, or stop it"
                ) from None
            raise self.error("opened", error) from None
        return lock

    def is_locked(self) -> bool:
        with self.errors("read"):
            if not self.beside(LOCK).exists():
                return False
            with closing(sqlite3.connect(self.beside(LOCK), timeout=0.0, isolation_level=None)) as lock:
                try:
                    lock.execute("SELECT count(*) FROM sqlite_master").fetchone()
                except sqlite3.OperationalError:
                    return True
        return False

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Raise `JournalError` for errors of SQLite and the file system."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self.error(action, error) from error

    def error(self, action: str, error: Exception) -> JournalError:
        """Return the error of a journal that can't be *action*: "created", "read" or "written"."""
        why = getattr(error, "strerror", None) or error
        if action == "read" and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            why = (
                f"its log needs a file {self.beside(INDEX).name} next to it, which can't be created there; copy the "
                "journal and its log to a writable folder, and pass the copy"
            )
        return JournalError(f"the journal {self} can't be {action}: {why}")

    @contextmanager
    def decoding(self, what: str) -> Iterator[None]:
        """Raise `JournalError` for contents that this version does not write."""
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise JournalError(
                f"the journal {self} can't be read: {what} is not in this version's format; use the version that "
                "wrote it, or a copy from before the change"
            ) from error


def journal_path(journal: object) -> JournalPath:
    if isinstance(journal, JournalPath):
        return journal
    name = os.fspath(journal) if isinstance(journal, str | os.PathLike) else None
    if not isinstance(name, str):
        kind = type(journal).__name__
        raise InvalidRequestError(f"journal is of type {kind}: write a path as text, such as 'run.db'")
    if not name.strip():
        raise InvalidRequestError("journal is empty: name a file, such as 'run.db'")
    if "://" in name or name.lower().startswith(_URLS):  # which may have a password
        raise InvalidRequestError(
            "journal is a URL: name a file, such as 'run.db'; only a keeper also has one in Redis, written as "
            "'redis://host:6379/0'"
        )
    if name == ":memory:" or name.startswith("file:"):
        raise InvalidRequestError(f"journal {name!a} is a name that SQLite reserves: name a file, such as 'run.db'")
    if not all(" " <= character != "\x7f" and not "\ud800" <= character <= "\udfff" for character in name):
        raise InvalidRequestError(
            f"journal {name!a} is not UTF-8, or contains control characters: choose another name for the file"
        )
    try:
        return JournalPath(name, Path(name).absolute())
    except OSError as error:
        raise InvalidRequestError(
            f"the journal {name} has no folder ({error.strerror}): name an absolute path"
        ) from None


def _is_regular(file: Path) -> bool:
    """Return False if there is no file."""
    try:
        mode = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if file.is_symlink():
            raise InvalidRequestError(f"{file} is a symbolic link to a missing file: name a file instead") from None
        return False
    if mode != stat.S_IFREG:
        kind = _KINDS.get(mode, "a special file")
        raise InvalidRequestError(f"{file} is {kind}, but a journal must be a regular file: name another file")
    return True


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def identity_of(path: Path) -> tuple[int, int]:
    """Return the device and inode of a file: they differ for a file that replaced it."""
    return _identity(path.stat())


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


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
ITEM_INDEX = "CREATE INDEX IF NOT EXISTS items_by_name ON items (target, name)"

IN_DOUBT = "in_doubt"
"""The state of an item whose request may have gone out, and whose outcome the journal does not know."""
STATES = frozenset({IN_DOUBT, *(status.value for status in BulkStatus)})

_OWNER_TIMEOUT = 0.2  # seconds; another process may be checking whether the journal is locked
_LOCK_TIMEOUT = 10.0  # seconds that another program may lock a journal; programs in Python wait 5 by default
_STEP = 0.02  # seconds between two attempts


_released: dict[tuple[int, int], int] = {}
"""Descriptors of main files that could not be closed yet, by the file's identity.

POSIX drops all locks that a process has on a file when the process closes any descriptor of it. SQLite takes care of
its own descriptors; ours has to stay open while a connection of any thread has the file open.
"""


def open_descriptor(file: Path) -> int:
    descriptor = _released.pop(identity_of(file), None)
    return os.open(file, os.O_RDWR) if descriptor is None else descriptor


def release_descriptor(descriptor: int) -> None:
    """Close a descriptor, and those that were released before, unless other descriptors of the same file are open."""
    _released[_identity(os.fstat(descriptor))] = descriptor
    try:
        numbers = os.listdir("/dev/fd")  # noqa: PTH208  (no paths, but numbers)
    except OSError:  # can't tell whether it is in use, so it stays open for the next time
        return
    used = Counter[tuple[int, int]]()
    for number in numbers:
        with suppress(OSError):  # the listing's own is closed by now
            used[_identity(os.fstat(int(number)))] += 1
    for identity in [known for known in list(_released) if used[known] == 1]:
        os.close(_released.pop(identity))


def is_busy(error: BaseException | None) -> bool:
    """Return whether an error passes when another program releases the journal."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module itself have none
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


async def when_free(clock: Clock, act: Callable[[], _Result]) -> _Result:
    """Retry an operation for some seconds while another program's lock prevents it, without blocking the event loop."""
    since = clock.now()
    while True:
        try:
            return act()
        except JournalError as error:
            if not is_busy(error.__cause__) or clock.now() - since >= _LOCK_TIMEOUT:
                raise
        await clock.sleep(_STEP)


def _timestamp(_: object, attribute: "Attribute[str]", value: str) -> None:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"{attribute.name} is without a time zone")


@frozen
class JournalOwner:
    """The kind of run of a journal, ``start`` or ``stop``, and on which project of which Space."""

    operation: str = field(validator=in_(("start", "stop")))
    origin: str = field(validator=instance_of(str))
    project: str = field(validator=instance_of(str))

    def check(self, path: JournalPath, known: "JournalOwner") -> None:
        if known.operation != self.operation:
            raise InvalidRequestError(
                f"{path} is the journal of a run that {known.operation}s streams: use it for that only"
            )
        for noun, its, ours in (("Space", known.origin, self.origin), ("project", known.project, self.project)):
            if its != ours:
                raise InvalidRequestError(f"{path} belongs to the {noun} {its}: use it there, not on {ours}")


@frozen(kw_only=True)
class RunMetadata(JournalOwner):  # the rows of the table `run`
    run: str = field(validator=validate_path_segment)
    started_at: str = field(validator=_timestamp)
    rollback_started_at: str | None = field(default=None, validator=optional(_timestamp))
    planned: int | None = field(default=None, converter=maybe(int), validator=optional(ge(0)))
