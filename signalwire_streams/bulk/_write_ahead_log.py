"""Detection of a journal whose write-ahead log is missing, damaged, or another journal's.

SQLite takes the first invalid frame of a log for its end, applies any log that is next to a main file, and works
without one where there is none. So each commit raises a generation, which SQLite's ``user_version`` in the first page
holds above its lowest bit. A set bit means: incomplete without a log that reaches this generation. In the log the bit
is never set, so a main file gets a page without it only from a checkpoint. After each commit, and before anything is
sent that relies on it, the generation is written with the bit straight into the main file, where no damage to the log
can reach it. A log belongs to a main file where its first commit follows the main file's generation or is older, and
its last one is not older.
"""

import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from attrs import frozen

from signalwire_streams.errors import InvalidRequestError, JournalError

LOCK, LOG, INDEX, ROLLBACK = ".lock", "-wal", "-shm", "-journal"
_INDEX_PAGE, _INDEX_AT_FIRST = 4096, 3  # bytes that SQLite adds to an index at once, and that it begins with
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


@frozen
class JournalPath:
    """The path of a journal, as passed and as an absolute path, so that a chdir does not change the file."""

    name: str
    file: Path

    def __str__(self) -> str:
        return self.name

    def beside(self, suffix: str) -> Path:
        """Return the file of SQLite's, or our lock, that belongs to the journal; links to the journal share it."""
        file = self.file.resolve()
        return file.with_name(file.name + suffix)


def journal_path(journal: object) -> JournalPath:
    if isinstance(journal, JournalPath):
        return journal
    name = os.fspath(journal) if isinstance(journal, str | os.PathLike) else None
    if not isinstance(name, str):
        kind = type(journal).__name__
        raise InvalidRequestError(f"journal is of type {kind}: write a path as text, such as 'run.db'")
    if not name.strip():
        raise InvalidRequestError("journal is empty: name a file, such as 'run.db'")
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


def exists(path: JournalPath) -> bool:
    """Return whether there is a journal's file, and check that nothing at or beside the path is another kind of file.

    Nothing is opened: to open a FIFO blocks, and SQLite deletes what it takes for a leftover of its own.
    """
    try:
        is_there = _is_regular(path.file)
        for suffix in (LOCK, LOG, INDEX, ROLLBACK):
            _is_regular(path.beside(suffix))
        if size_of(path.beside(INDEX)) % _INDEX_PAGE not in {0, _INDEX_AT_FIRST}:
            raise InvalidRequestError(f"{path.beside(INDEX)} is another program's file: move it, or name another file")
        for suffix in (LOG, INDEX, ROLLBACK):
            file = path.beside(LOCK + suffix)
            if os.path.lexists(file):  # SQLite deletes it, and the lock never has one
                raise InvalidRequestError(f"{file} blocks the lock file: move it, or name another file")
    except OSError as error:
        raise InvalidRequestError(f"the journal {path} can't be opened: {error.strerror}; name another file") from None
    return is_there


def _is_regular(file: Path) -> bool:
    """Return False where there is no file."""
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
    found = path.stat()
    return found.st_dev, found.st_ino


JOURNAL, UNFINISHED = 0x53574A31, 0x53574A30
"""SQLite's ``application_id`` of a journal, and of one whose tables were not written yet."""

_31_BITS = (1 << 31) - 1
_JUMP_BITS = 24
_SALT, _FIRST_FRAME, _FRAME_HEADER = 16, 32, 24
_USER_VERSION, _APPLICATION_ID = 60, 68  # bytes in the first page
_MAGIC = (0x377F0682, 0x377F0683)


def is_busy(error: BaseException | None) -> bool:
    """Return whether an error passes when another program releases the journal."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module itself have none
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@frozen
class Header:
    """SQLite's ``application_id`` and ``user_version`` in the first page of a database, without signs."""

    application: int
    version: int

    @property
    def needs_log(self) -> bool:
        """Whether a main file with this page is incomplete without its log."""
        return bool(self.version & 1)

    @property
    def generation(self) -> int:
        return self.version >> 1

    def is_older(self, other: "Header", *, by: int = 1) -> bool:
        """Return whether this generation is older than another one by a number, or by more."""
        return 0 <= ((other.generation - self.generation - by) & _31_BITS) < 1 << 30


def header_of(database: sqlite3.Connection) -> Header:
    return Header(_number(database, "application_id"), _number(database, "user_version"))


def _number(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0]) & 0xFFFFFFFF


def _set_version(database: sqlite3.Connection, version: int) -> None:
    database.execute(f"PRAGMA user_version = {version - (1 << 32) if version >> 31 else version}")  # signed


def begin_generations(database: sqlite3.Connection) -> None:
    """Write the first page of a new journal, with a generation that differs from that of any other one."""
    database.execute(f"PRAGMA application_id = {UNFINISHED}")
    _set_version(database, secrets.randbits(31) << 1)


def finish_tables(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA application_id = {JOURNAL}")


@contextmanager
def next_generation(database: sqlite3.Connection, *, jump: int = 0) -> Iterator[int]:
    """Commit what is written in the block, as the generation that this yields."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        generation = ((_number(database, "user_version") >> 1) + jump + 1) & _31_BITS
        yield generation
        _set_version(database, generation << 1)


def check_log(path: JournalPath, main: Header) -> bool:
    """Check that a log begins where a main file ends, and return whether there is something in it."""
    log = path.beside(LOG)
    if not size_of(log):
        if main.needs_log:
            raise log_error(path, "is missing")
        return False
    with log.open("rb") as file:
        found = file.read(_FIRST_FRAME + _FRAME_HEADER + 100)

    def number(offset: int) -> int:
        return int.from_bytes(found[offset : offset + 4])

    frame, page = _FIRST_FRAME, _FIRST_FRAME + _FRAME_HEADER
    if number(0) in _MAGIC:
        # A process that is killed as it starts a log leaves a new header, and the frames of before.
        is_first = number(frame) == 1 and (number(_SALT) - number(frame + 8)) & 0xFFFFFFFF <= 1
        first = Header(number(page + _APPLICATION_ID), number(page + _USER_VERSION))
        if is_first and first.application == JOURNAL and not main.is_older(first, by=2):
            return True
        if not main.needs_log and size_of(log) < page + number(8):  # nothing was committed into it yet
            return False
    raise log_error(path)


def check_view(path: JournalPath, main: Header, both: Header) -> None:
    """Check that a log, as far as SQLite found it valid, ends where a main file ends, or later."""
    if both.application != JOURNAL or both.needs_log or both.is_older(main):
        raise log_error(path)


def log_error(path: JournalPath, what: str = "was cut short or damaged, or belongs to another journal") -> JournalError:
    """Return the error of an incomplete journal."""
    log = path.beside(LOG)
    return JournalError(
        f"the journal {path} is incomplete: {log.name} {what}, and it contains the run's latest "
        "records; copy both files "
        "from where the run was, and restart nothing until then"
    )


class OpenFiles:
    """The files of a journal that is open for writing, watched for changes by other programs."""

    def __init__(
        self, *, path: JournalPath, main: FileIO, database: sqlite3.Connection, guard: sqlite3.Connection
    ) -> None:
        self._main, self._database, self._guard = main, database, guard
        self._log = str(path.beside(LOG))
        self.damage: str | None = None  # how a file was cut or replaced, so that nothing may be written to any of them
        with next_generation(database):  # makes the log: its first commit has to follow the main file's generation
            pass
        files = (path.file, *map(path.beside, (LOG, INDEX, LOCK)))
        self._known = {str(file): (identity_of(file), size_of(file)) for file in files}
        # The generations of two copies of a journal differ after this, so that the log of one does not fit the other.
        with self.commit(jump=secrets.randbits(_JUMP_BITS)):
            pass
        self.checkpoint()

    def check(self) -> None:
        """Raise OSError unless each file is the one that was opened, and no shorter than it was."""
        for file, (identity, size) in self._known.items():
            if self.damage is not None:
                break
            try:
                found = os.stat(file)  # noqa: PTH116  (for each commit, and a path takes three times as long)
            except FileNotFoundError:
                error = OSError(f"{Path(file).name} was removed")
                if file.endswith(LOCK):  # another process can work on the run now
                    self.damage = str(error)
                raise error from None
            if (found.st_dev, found.st_ino) != identity:
                self.damage = f"{Path(file).name} was replaced by another file"
            elif found.st_size < size:
                self.damage = f"{Path(file).name} was cut short"
                if file.endswith(INDEX):  # SQLite maps it into memory, and to touch what was cut ends the process
                    os.truncate(file, size)
            elif found.st_size > size:
                self._known[file] = identity, found.st_size
        if self.damage is not None:
            raise OSError(self.damage)

    @contextmanager
    def commit(self, *, jump: int = 0) -> Iterator[None]:
        """Commit what is written in the block, and write into the main file that its log has to reach that."""
        with next_generation(self._database, jump=jump) as generation:
            yield
        self._main.seek(_USER_VERSION)
        self._main.write((generation << 1 | 1).to_bytes(4))
        self.log_size()  # which it must not fall below

    def checkpoint(self) -> bool:
        """Copy the log into the main file, whose first page says until the end that the log is needed.

        Return False where another program's reader keeps a part of the log back.
        """
        try:
            # The first page that is committed while the guard reads what was before is not copied together with that.
            self._guard.execute("BEGIN")
            self._guard.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with next_generation(self._database):
                pass
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self._guard.rollback()
        busy, pages, copied = self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and pages == copied

    def finish(self) -> bool:
        """Copy all of the log into the main file, which then needs none, unless a reader keeps a part back."""
        is_whole = self.checkpoint()
        if is_whole:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return is_whole

    def log_size(self) -> int:
        identity, size = self._known[self._log]
        with suppress(FileNotFoundError):  # the next check says so
            size = max(size, os.stat(self._log).st_size)  # noqa: PTH116  (as above)
        self._known[self._log] = identity, size
        return size
