"""Paths of journals: which names are accepted, and what the files at and beside a path may be."""

import os
import stat
from pathlib import Path

from signalwire_streams.errors import InvalidRequestError

LOCK, LOG, INDEX, ROLLBACK = ".lock", "-wal", "-shm", "-journal"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def journal_path(journal: object) -> Path:
    """Return the absolute path of the journal that a caller named.

    It is made absolute at once, so that a later change of the working directory does not change the file.

    Raises:
        InvalidRequestError: the name can't be that of a journal.
    """
    if not isinstance(journal, str | os.PathLike):
        raise InvalidRequestError(f"journal is of type {type(journal).__name__}: write it as a path, such as 'run.db'")
    name = os.fspath(journal)
    if not isinstance(name, str):
        raise InvalidRequestError("journal is a path of bytes: write it as a str, such as 'run.db'")
    if not name.strip():
        raise InvalidRequestError("journal is empty: name a file, such as 'run.db'")
    if name == ":memory:" or name.startswith("file:"):
        raise InvalidRequestError(f"journal {name!a} is a name that SQLite reserves: name a file, such as 'run.db'")
    if not _is_text(name):
        raise InvalidRequestError(
            f"journal {name!a} is not UTF-8, or holds control characters: choose another name for the file"
        )
    try:
        return Path(name).absolute()
    except OSError as error:
        raise InvalidRequestError(
            f"the journal {name} has no folder ({error.strerror}): name an absolute path"
        ) from None


def _is_text(name: str) -> bool:
    return all(" " <= character != "\x7f" and not "\ud800" <= character <= "\udfff" for character in name)


def beside(path: Path, suffix: str) -> Path:
    """Return the file of SQLite's, or our lock, that belongs to a journal; links to the journal share it."""
    path = path.resolve()
    return path.with_name(path.name + suffix)


def exists(path: Path) -> bool:
    """Return whether there is a journal's file, and check that nothing at or beside the path is another kind of file.

    Nothing is opened: to open a FIFO blocks, and SQLite deletes what it takes for a leftover of its own.

    Raises:
        InvalidRequestError: the journal, or a file beside it, is no regular file, or can't be looked up.
    """
    try:
        is_there = _is_regular(path)
        for suffix in (LOCK, LOG, INDEX, ROLLBACK):
            _is_regular(beside(path, suffix))
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
