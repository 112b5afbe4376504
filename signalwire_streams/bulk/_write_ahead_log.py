"""A journal's generations: how a copy of a journal is recognized that lacks its write-ahead log, or has another one.

SQLite applies any log that lies beside a main file, and works without one where there is none. So each commit raises
a generation, in the first page of the file: SQLite's ``user_version``. The first page is written as a whole, so it can
be read from a main file into which a checkpoint copied only a part. An odd generation is what our own checkpoint copies
into the main file, before the first request is sent: the log is needed. An even one follows in the log only, so a
main file that has one got it from another program, which copied all of the log. A log belongs to a main file where
its first commit follows the main file's generation or is older, and its last one is not older.
"""

import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from attrs import define, field, frozen

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
    """The path of a journal.

    Attributes:
        name: as the caller wrote it; messages show it so.
        file: absolute, so that a later change of the working directory does not change the file.
    """

    name: str
    file: Path

    def __str__(self) -> str:
        return self.name

    def beside(self, suffix: str) -> Path:
        """Return the file of SQLite's, or our lock, that belongs to the journal; links to the journal share it."""
        file = self.file.resolve()
        return file.with_name(file.name + suffix)


def journal_path(journal: object) -> JournalPath:
    """Return the path of the journal that a caller named.

    Raises:
        InvalidRequestError: the name can't be that of a journal.
    """
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
    if not _is_text(name):
        raise InvalidRequestError(
            f"journal {name!a} is not UTF-8, or holds control characters: choose another name for the file"
        )
    try:
        return JournalPath(name, Path(name).absolute())
    except OSError as error:
        raise InvalidRequestError(
            f"the journal {name} has no folder ({error.strerror}): name an absolute path"
        ) from None


def _is_text(name: str) -> bool:
    return all(" " <= character != "\x7f" and not "\ud800" <= character <= "\udfff" for character in name)


def exists(path: JournalPath) -> bool:
    """Return whether there is a journal's file, and check that nothing at or beside the path is another kind of file.

    Nothing is opened: to open a FIFO blocks, and SQLite deletes what it takes for a leftover of its own.

    Raises:
        InvalidRequestError: the journal, or a file beside it, is no regular file, or can't be looked up.
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
                raise InvalidRequestError(f"{file} is in the way of the lock: move it, or name another file")
    except OSError as error:
        raise InvalidRequestError(f"the journal {path} can't be opened: {error.strerror}; name another file") from None
    return is_there


def _is_regular(file: Path) -> bool:
    """Return False where there is no file."""
    try:
        mode = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if file.is_symlink():
            raise InvalidRequestError(f"{file} is a link to a file that is not there: name a file instead") from None
        return False
    if mode != stat.S_IFREG:
        kind = _KINDS.get(mode, "a special file")
        raise InvalidRequestError(f"{file} is {kind}, and a journal is a regular file: name another file")
    return True


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 where there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def identity_of(path: Path) -> tuple[int, int]:
    """Return the device and inode of a file: they differ for a file that replaced it."""
    found = path.stat()
    return found.st_dev, found.st_ino


LOG_SIZE = 4 * 1024 * 1024
"""Bytes of a log before it is checkpointed; reserved, but not occupied, from the start."""

KEY = "log"
"""The row of the table ``run`` with the bytes that the log has at least."""

JOURNAL, UNFINISHED = 0x53574A31, 0x53574A30
"""SQLite's ``application_id`` of a journal, and of one whose tables were not written yet."""

_32_BITS = (1 << 32) - 1
_JUMP_BITS = 24
_SALT, _SALT_SIZE = slice(16, 20), 4
_FIRST_FRAME, _FRAME_HEADER = 32, 24
_MAGIC = (0x377F0682, 0x377F0683)


class BusyError(OSError):
    """Another program reads or writes the journal right now."""


def is_busy(error: BaseException | None) -> bool:
    """Return whether an error passes when another program lets go of the journal."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module itself have none
        return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return isinstance(error, BusyError)


@frozen
class Header:
    """What the first page of a database says.

    Attributes:
        application: SQLite's ``application_id``.
        generation: SQLite's ``user_version``, of which a journal's commits make a serial number of 32 bits.
    """

    application: int
    generation: int

    @property
    def needs_log(self) -> bool:
        """Whether a main file with this generation is not whole without its log."""
        return bool(self.generation & 1)

    def is_before(self, other: int, *, by: int = 1) -> bool:
        """Return whether this generation is older than another one by a number, or by more."""
        return 0 <= ((other - self.generation - by) & _32_BITS) < 1 << 31


def header_of(database: sqlite3.Connection) -> Header:
    """Return what the first page says in a connection's view."""
    return Header(_number(database, "application_id"), _number(database, "user_version"))


def begin_generations(database: sqlite3.Connection) -> None:
    """Write the first page of a new journal, with a generation that differs from that of any other one."""
    database.execute(f"PRAGMA application_id = {UNFINISHED}")
    database.execute(f"PRAGMA user_version = {_signed(secrets.randbits(32) & ~1)}")


def finish_tables(database: sqlite3.Connection) -> None:
    """Write that the tables of a new journal are all there."""
    database.execute(f"PRAGMA application_id = {JOURNAL}")


def _number(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0]) & _32_BITS


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


@contextmanager
def next_generation(database: sqlite3.Connection, *, needs_log: bool = False, jump: int = 0) -> Iterator[None]:
    """Commit what is written in the block, as the next generation."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        yield
        following = _number(database, "user_version") + jump + 1
        following += (following & 1) != needs_log
        database.execute(f"PRAGMA user_version = {_signed(following & _32_BITS)}")


def salt_of(log: Path) -> int:
    """Return the salt in a log's header, which SQLite raises as it starts the log anew; 0 where it has none."""
    try:
        with log.open("rb") as file:
            return int.from_bytes(file.read(_SALT.stop)[_SALT])
    except FileNotFoundError:
        return 0


def open_log(path: JournalPath, database: sqlite3.Connection) -> int:
    """Write into the main file that the log is needed: a run may send requests after that.

    Returns:
        The log's salt.

    Raises:
        BusyError: another program reads the journal in a long transaction.
        sqlite3.Error: the journal can't be written.
        OSError: the same.
    """
    with next_generation(database):  # makes the log, which is smaller than that of an earlier part of the run
        database.execute("DELETE FROM run WHERE key = ?", (KEY,))
    log = path.beside(LOG)
    os.truncate(log, max(size_of(log), LOG_SIZE))
    # The generations of two copies of a journal differ after this, so that the log of one does not fit the other.
    salt, is_whole = checkpoint(path, database, jump=secrets.randbits(_JUMP_BITS))
    if not is_whole:
        raise BusyError("another program reads it in a long transaction")
    return salt


def checkpoint(path: JournalPath, database: sqlite3.Connection, *, jump: int = 0) -> tuple[int, bool]:
    """Copy the log into the main file, which then needs the log again.

    Returns:
        The log's salt, and False where a reader in a long transaction kept a part of the log back.
    """
    log = path.beside(LOG)
    with next_generation(database, needs_log=True, jump=jump):
        database.execute("REPLACE INTO run VALUES (?, ?)", (KEY, str(size_of(log))))
    busy, pages, copied = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    with next_generation(database):  # starts the log anew
        pass
    return salt_of(log), not busy and pages == copied


def close_log(path: JournalPath, database: sqlite3.Connection) -> bool:
    """Copy all of the log into the main file, which then needs none.

    Returns:
        False where a reader keeps a part back: the log stays, and the next run copies it.
    """
    # What is left to copy after the first checkpoint is one page, so the main file alone is never half of the run.
    _, is_whole = checkpoint(path, database)
    if is_whole:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return is_whole


def check_log(path: JournalPath, main: Header) -> bool:
    """Check that a log begins where a main file ends, and return whether there is something in it.

    Args:
        path: the journal, which no process of ours writes now.
        main: the first page of the main file alone.

    Raises:
        JournalError: the log is missing, cut, or another journal's.
    """
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
        is_first = number(frame) == 1 and (number(_SALT.start) - number(frame + 8)) & _32_BITS <= 1
        first = Header(number(page + 68), number(page + 60))
        if is_first and first.application == JOURNAL and not main.is_before(first.generation, by=3):
            return True
        if not main.needs_log and size_of(log) < page + number(8):  # nothing was committed into it yet
            return False
    raise _foreign(path)


def check_view(path: JournalPath, main: Header, both: Header, facts: Mapping[str, str]) -> None:
    """Check that a log ends where a main file ends, or later.

    Args:
        path: the journal.
        main: the first page of the main file alone.
        both: the first page where the log is applied.
        facts: what the journal says of its run where the log is applied.

    Raises:
        JournalError: the log is cut, or another journal's.
    """
    if both.application != JOURNAL or both.is_before(main.generation):
        raise _foreign(path)
    if both == main and not main.needs_log:  # nothing was committed into it yet
        return
    if size_of(path.beside(LOG)) < int(facts.get(KEY, 0)):
        raise _foreign(path)


def _foreign(path: JournalPath) -> JournalError:
    return log_error(path, "was cut short, or belongs to another journal")


def log_error(path: JournalPath, what: str) -> JournalError:
    """Return the error of a journal that is not whole."""
    log = path.beside(LOG)
    return JournalError(
        f"the journal {path} is not whole: {log.name} {what}, and it holds what the run did last; copy both files from "
        "where the run was, and start nothing again until then"
    )


@define(eq=False)
class OpenFiles:
    """The files of a journal that is open, watched for what another program does to them.

    Attributes:
        path: the journal.
        damage: how a file was cut or replaced, so that nothing may be written to any of them.
    """

    path: JournalPath
    damage: str | None = field(init=False, default=None)
    _known: dict[str, tuple[tuple[int, int], int]] = field(init=False, factory=dict)
    _log: FileIO = field(init=False)

    def __attrs_post_init__(self) -> None:
        log, lock = self.path.beside(LOG), self.path.beside(LOCK)
        for file in (self.path.file, log, self.path.beside(INDEX), lock):
            self._known[str(file)] = identity_of(file), size_of(file)
        self._log = log.open("rb", buffering=0)  # SQLite has no lock on the log that closing this would drop

    def check(self) -> None:
        """Check that each file is the one that was opened, and no shorter than it was.

        Raises:
            OSError: one is not, and nothing may be written any more.
        """
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

    def has_to_be_copied(self, salt: int, limit: int) -> bool:
        """Return whether the log outgrew a size, or was begun anew after another program copied all of it."""
        self._log.seek(_SALT.start)
        return self.log_size() > limit or int.from_bytes(self._log.read(_SALT_SIZE)) != salt

    def log_size(self) -> int:
        """Return the size of the log in bytes."""
        return os.fstat(self._log.fileno()).st_size

    def close(self) -> None:
        """Watch the files no longer."""
        self._log.close()
