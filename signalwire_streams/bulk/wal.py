"""A journal's write-ahead log: what ties it to the main file, so that a copy without it is recognized.

SQLite applies any log that lies beside a main file, and works without one where there is none. So while a run is
open, a row of the main file names the log that has to be there: by its salt, which SQLite raises by one when it starts
the log anew, and by its size, which is set beforehand and never shrinks. The row is in the main file before the first
request is sent. It says "checkpointed" in the main file as our checkpoint leaves it; the first commit after that writes
"live" into the log. So a main file that says "live" without a log is whole: another program copied the log into it.
"""

import os
import sqlite3
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Self

from attrs import define, field, frozen

from signalwire_streams.bulk.paths import INDEX, LOG, JournalPath, identity_of, size_of
from signalwire_streams.errors import JournalError

LOG_SIZE = 4 * 1024 * 1024
"""Bytes of a log before it is checkpointed; reserved, but not occupied, from the start."""

KEY = "log"
"""The row of the table ``run`` that names the log."""

_CHECKPOINTED, _LIVE = "checkpointed", "live"
_SALT, _SALT_SIZE = slice(16, 20), 4
_PAST_32_BITS = 1 << 32


class BusyError(OSError):
    """Another program reads or writes the journal right now."""


def is_busy(error: BaseException | None) -> bool:
    """Return whether an error passes when another program lets go of the journal."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # errors of the Python module itself have none
        return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return isinstance(error, BusyError)


@frozen
class Mark:
    """The row that names the log.

    Attributes:
        state: ``checkpointed`` or ``live``.
        salt: the log's salt when the row was written.
        size: the bytes that the log had at least.
    """

    state: str
    salt: int
    size: int

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> Self | None:
        """Return the mark of a journal whose run is open, or None.

        Raises:
            ValueError: the row is none of ours.
        """
        if KEY not in facts:
            return None
        state, salt, size = facts[KEY].split()
        return cls(state, int(salt), int(size))

    def names(self, salt: int) -> bool:
        """Return whether a salt is that of the log that this row names: begun anew once at most, or twice if live."""
        # Another program that checkpoints copies "live" into the main file, and the log may be begun anew after that.
        return (salt - self.salt) % _PAST_32_BITS <= (1 if self.state == _CHECKPOINTED else 2)

    def write(self, database: sqlite3.Connection) -> None:
        """Commit the row."""
        with database:
            database.execute("REPLACE INTO run VALUES (?, ?)", (KEY, f"{self.state} {self.salt} {self.size}"))


def salt_of(log: Path) -> int:
    """Return the salt in a log's header; 0 where it has none."""
    with log.open("rb") as file:
        return int.from_bytes(file.read(_SALT.stop)[_SALT])


def open_log(path: JournalPath, database: sqlite3.Connection) -> Mark:
    """Name the log in the main file: a run may send requests after that.

    Raises:
        BusyError: another program reads the journal in a long transaction.
        sqlite3.Error: the journal can't be written.
        OSError: the same.
    """
    with database:  # makes the log, so that it has a salt; a run that opens has no other row of that key to keep
        database.execute("REPLACE INTO run SELECT key, value FROM run WHERE key = 'run'")
    log = path.beside(LOG)
    os.truncate(log, max(size_of(log), LOG_SIZE))
    mark, is_whole = checkpoint(path, database)
    if not is_whole:
        raise BusyError("another program reads it in a long transaction")
    return mark


def checkpoint(path: JournalPath, database: sqlite3.Connection) -> tuple[Mark, bool]:
    """Copy the log into the main file, which then names the log again.

    Returns:
        The row as it was copied, and False where a reader in a long transaction kept a part of the log back.
    """
    log = path.beside(LOG)
    while True:
        salt = salt_of(log)
        mark = Mark(_CHECKPOINTED, salt, size_of(log))
        mark.write(database)
        if salt_of(log) == salt:  # that commit itself may have started the log anew
            break
    busy, pages, copied = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    is_whole = not busy and pages == copied
    if not is_whole:
        os.truncate(log, size_of(log) + LOG_SIZE)
    Mark(_LIVE, mark.salt, mark.size).write(database)
    return mark, is_whole


def close_log(database: sqlite3.Connection) -> None:
    """Copy all of the log into the main file, which then needs none."""
    with database:
        database.execute("DELETE FROM run WHERE key = ?", (KEY,))
    # Where a reader keeps a part back, the log stays, and its last reader or the next run sees to it.
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def close_without_checkpoint(path: JournalPath, database: sqlite3.Connection) -> None:
    """Close a journal whose files were damaged, and leave them as they are.

    The last connection that closes copies the log into the main file, unless it sees another one that is open.
    """
    guard = sqlite3.connect(f"{path.file.resolve().as_uri()}?mode=ro", uri=True, timeout=0.0)
    try:
        guard.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error:
        pass  # a damaged file may be unreadable, and is then not copied into either
    finally:
        database.close()
        guard.close()


def check_log(path: JournalPath, facts: Mapping[str, str]) -> bool:
    """Check that the log that a main file names is there, and return whether the journal can't be read without it.

    Args:
        path: the journal, which no process of ours writes now.
        facts: what the main file alone says of its run.

    Raises:
        JournalError: the log is missing, cut, or another journal's.
    """
    log = path.beside(LOG)
    size, mark = size_of(log), Mark.of(facts)
    if not size and (mark is None or mark.state == _LIVE):
        return False
    if mark is not None and (size < mark.size or not mark.names(salt_of(log))):
        raise log_error(path, "was cut short, or belongs to another journal" if size else "is missing")
    return True


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
        log = self.path.beside(LOG)
        for file in (self.path.file, log, self.path.beside(INDEX)):
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
                raise OSError(f"{Path(file).name} was removed") from None
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

    def has_to_be_named(self, mark: Mark, limit: int) -> bool:
        """Return whether the log outgrew a size, or was begun anew too often for the main file's row to name it."""
        self._log.seek(_SALT.start)
        return self.log_size() > limit or not mark.names(int.from_bytes(self._log.read(_SALT_SIZE)))

    def log_size(self) -> int:
        """Return the size of the log in bytes."""
        return os.fstat(self._log.fileno()).st_size

    def close(self) -> None:
        """Watch the files no longer."""
        self._log.close()
