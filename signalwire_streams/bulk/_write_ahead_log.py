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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from attrs import define, field, frozen

from signalwire_streams.bulk.paths import INDEX, LOCK, LOG, JournalPath, identity_of, size_of
from signalwire_streams.errors import JournalError

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
