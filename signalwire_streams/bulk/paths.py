"""Paths of journals: which names are accepted, and what the files at and beside a path may be."""

import os
import stat
from pathlib import Path

from attrs import frozen

from signalwire_streams.errors import InvalidRequestError

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
