"""The file of a journal while a process writes it: how it is created, opened and closed."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from signalwire_streams.bulk._journal_file import (
    INDEX,
    LOCK,
    LOG,
    JournalPath,
    identity_of,
    open_descriptor,
    release_descriptor,
    size_of,
    when_free,
)
from signalwire_streams.bulk._write_ahead_log import (
    GroupCommitter,
    OpenFiles,
    begin_generations,
    finish_tables,
    is_free,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError

_Facts = TypeVar("_Facts")


class JournalWriter:
    """An open journal, of which this process is the only writer."""

    def __init__(self, *, path: JournalPath, lock: sqlite3.Connection, opened: ExitStack, clock: Clock | None) -> None:
        self.path: JournalPath = path
        self._clock = clock or Clock()
        self._main = open_descriptor(path.file)
        opened.callback(release_descriptor, self._main)
        self._guards = [opened.enter_context(closing(path.connect_to_read(timeout=0.0))) for _ in range(2)]
        self._database = opened.enter_context(closing(path.connect_to_write()))
        # At once, since a connection that opens an empty main file deletes the log.
        for guard in self._guards:
            guard.execute("SELECT count(*) FROM sqlite_master").fetchall()
        self._lock, self._opened = lock, opened

    def _watch(self) -> None:
        """Begin to write, once its contents have been read; from here on `aclose` closes it."""
        self._files = OpenFiles(path=self.path, main=self._main, database=self._database, guards=self._guards)
        self._commits = GroupCommitter(path=self.path, database=self._database, files=self._files, clock=self._clock)
        self._opened = self._opened.pop_all()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self.path.errors("read"):
            self._files.check()
            yield

    async def aclose(self) -> None:
        try:
            await when_free(self._clock, self._commits.finish)
        finally:
            self._release()

    def close(self) -> None:
        """Write pending records and close the file, which is then complete without its log."""
        try:
            self._commits.finish()
        finally:
            self._release()

    def _release(self) -> None:
        self._commits.cancel()
        if self._commits.is_whole:
            # The last connection to close copies the log into the main file and deletes it. A guard only reads.
            for guard in self._guards:
                guard.close()
        self._opened.close()
        self._lock.close()


@contextmanager
def new_file(path: JournalPath) -> Iterator[sqlite3.Connection]:
    """Reserve a path for a new journal. On an error, its own files are removed, and no others are touched."""
    _check_free(path)
    with ExitStack() as undo:
        with suppress(OSError):  # `lock` reports it if it exists or can't be created
            _create(path.beside(LOCK), undo)
        lock = undo.enter_context(closing(path.lock()))
        with suppress(FileExistsError):
            _create(path.file, undo)
        _check_free(path)  # another process may have made it since
        undo.callback(_undo, partial(os.truncate, length=0), path.file, identity_of(path.file))
        os.truncate(path.file, 0)  # drops the leftovers of a killed process
        for suffix in (LOG, INDEX):
            undo.callback(path.beside(suffix).unlink, missing_ok=True)
        yield lock
        undo.pop_all()


def _check_free(path: JournalPath) -> None:
    if path.exists() and size_of(path.file) and not is_free(path):
        raise InvalidRequestError(f"the journal {path} already exists: resume it, or choose another file")
    if not is_free(path):
        raise InvalidRequestError(
            f"files of another journal are next to {path}: restore that journal, or choose another file"
        )


def _create(file: Path, undo: ExitStack) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    undo.callback(_undo, Path.unlink, file, identity_of(file))


def _undo(act: Callable[[Path], None], file: Path, identity: tuple[int, int]) -> None:
    with suppress(OSError):
        if identity_of(file) == identity:
            act(file)


@contextmanager
def existing_file(path: JournalPath, check: Callable[[], _Facts]) -> Iterator[tuple[sqlite3.Connection, _Facts]]:
    """Lock a journal that exists, and check it before and after that; the lock outlasts the block unless it raises."""
    with ExitStack() as undo, path.errors("read"):
        if not path.is_locked():
            check()  # before a lock file is made beside some other file
        if not os.access(path.file, os.W_OK):
            raise InvalidRequestError(f"the journal {path} can't be written: use an account that has write permission")
        lock = undo.enter_context(closing(path.lock()))
        yield lock, check()
        undo.pop_all()


@contextmanager
def lay_out(path: JournalPath, schema: Iterable[str]) -> Iterator[sqlite3.Connection]:
    """Write the tables, and what the block writes: a process that is killed before the end leaves it unfinished.

    Without a log, so that all of it is in the main file.
    """
    with closing(sqlite3.connect(path.file, timeout=0.0, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = MEMORY").fetchone()  # there is nothing to roll back to
        begin_generations(database)
        database.execute("BEGIN IMMEDIATE")
        for statement in schema:
            database.execute(statement)
        yield database
        database.execute("COMMIT")
        finish_tables(database)
