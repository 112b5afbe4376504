"""The write-ahead log of a journal: how it is written, and how a missing, truncated or foreign one is detected.

SQLite itself detects none of these. It takes the first invalid frame for the end of a log, it applies every log
that it finds next to a main file, and it opens a main file whose log is gone. So a journal counts its commits: each one
raises the generation, which is stored in ``user_version``, a number in the first page, above its lowest bit.

* In the log the lowest bit is always 0, and a checkpoint of ours copies the first page after all others. So a main file
  whose bit is 0 is complete without its log.
* After a commit, and before anything is sent that relies on it, the generation is written directly into the main file,
  with the lowest bit set: the main file is incomplete without a log that reaches this generation.

Checkpoints of other programs must not overwrite that bit. A checkpoint leaves out each page that was written again
after some reader began. Every commit writes the first page, so while the run writes there is always a guard: a reader
of our own that began before the newest commit. A killed process has no guard any more, so the next program that opens
the journal completes the main file. A run gives its guard up only for a checkpoint that holds the write lock until no
reader is left.

A log fits a main file if its first commit follows the main file's generation, or is older, and its last one is not
older.
"""

import asyncio
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias, TypeVar

from attrs import frozen

from signalwire_streams.bulk._journal_file import (
    INDEX,
    LOCK,
    LOG,
    ROLLBACK,
    SCHEMA,
    SCHEMA_VERSION,
    JournalPath,
    RunMetadata,
    identity_of,
    is_busy,
    size_of,
    when_free,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError

JOURNAL, UNFINISHED = 0x53574A31, 0x53574A30
"""SQLite's ``application_id`` of a journal, and of one whose tables were not written yet."""

LOG_SIZE = 4 * 1024 * 1024  # bytes of a log before it is checkpointed
_31_BITS = (1 << 31) - 1
_JUMP_BITS = 24
_SALT, _FIRST_FRAME, _FRAME_HEADER = 16, 32, 24
_PAGE_COUNT, _USER_VERSION, _APPLICATION_ID = 28, 60, 68  # bytes in the first page
_MAGIC = (0x377F0682, 0x377F0683)
_APART = 0.004  # seconds between two commits, when something waits for them
_AT_LEAST_EVERY = 0.1  # seconds until a record is written that nothing waits for
_GUARDED_TRIES = 50  # to commit while another program prevents it: about a second
_VERIFY_TRIES = 10  # to verify while another program changes the files

Values: TypeAlias = tuple[object, ...]
_Facts = TypeVar("_Facts")


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
    """Write the first page of a new journal, with a generation that differs from any other journal's."""
    database.execute(f"PRAGMA application_id = {UNFINISHED}")
    _set_version(database, secrets.randbits(31) << 1)


def finish_tables(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA application_id = {JOURNAL}")


@contextmanager
def next_generation(database: sqlite3.Connection, *, jump: int = 0) -> Iterator[int]:
    """Commit what the block writes as a new generation, and yield its number."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        generation = ((_number(database, "user_version") >> 1) + jump + 1) & _31_BITS
        yield generation
        _set_version(database, generation << 1)


def verify(path: JournalPath, read: Callable[[JournalPath, sqlite3.Connection], _Facts]) -> tuple[_Facts, bool]:
    """Check that a journal that no process of ours has open is complete: its main file, and the log that belongs to it.

    Nothing is written, and no file is created if there is nothing to apply.

    Return what *read* reads, such as `read_metadata`, and whether it can't be read without its log.
    """
    main, size = _header_of(path), size_of(path.beside(LOG))
    for _ in range(_VERIFY_TRIES):
        try:
            return _verify(path, main, read)
        except (JournalError, sqlite3.Error, FileNotFoundError):
            # Any program that opens a killed run's journal may copy the log into the main file, and delete it.
            before, main, size = (main, size), _header_of(path), size_of(path.beside(LOG))
            if (main, size) == before:
                raise
    return _verify(path, main, read)


def _verify(
    path: JournalPath, main: Header, read: Callable[[JournalPath, sqlite3.Connection], _Facts]
) -> tuple[_Facts, bool]:
    if main.application == UNFINISHED:
        raise InvalidRequestError(f"the run of the journal {path} was not started yet: start it without resuming")
    if main.application != JOURNAL or not _check_log(path, main):
        with closing(path.connect_to_main()) as database:
            return read(path, database), False
    with closing(path.connect_to_read()) as database:
        database.execute("BEGIN")
        both = header_of(database)
        if both.application != JOURNAL or both.needs_log or both.is_older(main):
            raise _log_error(path)
        return read(path, database), True


def _header_of(path: JournalPath) -> Header:
    """Read the first page of the main file, even if the rest of the file is damaged."""
    with closing(path.connect_to_main()) as database:
        database.execute("PRAGMA writable_schema = ON")  # so that a file with too few pages is not malformed
        with suppress(sqlite3.DatabaseError):  # not a database, or one that SQLite can't read
            return header_of(database)
    return Header(0, 0)


def _check_log(path: JournalPath, main: Header) -> bool:
    """Check that a log begins where a main file ends, and return whether there is something in it."""
    log = path.beside(LOG)
    if not size_of(log):
        if main.needs_log:
            raise _log_error(path, "is missing")
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
        # Nothing was committed into it yet: it ends within the first page, or its frames are of a log before.
        is_empty = size_of(log) < page + number(8) or found[_SALT : _SALT + 8] != found[frame + 8 : frame + 16]
        if is_empty and not main.needs_log:
            return False
    raise _log_error(path)


def _log_error(
    path: JournalPath, what: str = "was truncated or damaged, or belongs to another journal"
) -> JournalError:
    return JournalError(
        f"the journal {path} is incomplete: {path.beside(LOG).name} {what}, and it contains the run's latest records; "
        "copy both files from where the run was, and do not restart the run until then"
    )


def read_metadata(path: JournalPath, database: sqlite3.Connection) -> RunMetadata:
    facts = read_facts(path, database, schema=SCHEMA, version=str(SCHEMA_VERSION))
    with path.decoding("its table run"):
        return RunMetadata(**facts)


def read_facts(
    path: JournalPath, database: sqlite3.Connection, *, schema: Iterable[str], version: str
) -> dict[str, str]:
    """Read the table ``run``, which journals of all kinds have, and check which kind this one is."""
    known: dict[str, str] = {}
    tables: set[str] = set()
    try:
        tables = {sql for (sql,) in database.execute("SELECT sql FROM sqlite_master")}
        if not tables:
            raise _blank(path)
        known = dict(database.execute("SELECT key, value FROM run"))
    except sqlite3.DatabaseError as error:
        # Errors of the Python module itself have no code.
        if getattr(error, "sqlite_errorcode", None) not in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB}:
            raise
    if known.pop("schema", None) != version or not tables.issuperset(schema):
        raise InvalidRequestError(
            f"{path} is not a journal that this version can read, since its schema differs: name another file"
        )
    return known


def _blank(path: JournalPath) -> Exception:
    if is_free(path):
        return InvalidRequestError(
            f"the journal {path} is empty, so its run was not started yet: start it; if this is a copy of a run's "
            "journal, copy it again"
        )
    return _log_error(path, "is missing or belongs to another journal")


def is_free(path: JournalPath) -> bool:
    """Return whether a journal can be created: there is no file, an empty one, or a killed process's unfinished one."""
    if any(size_of(path.beside(suffix)) for suffix in (LOG, INDEX, ROLLBACK)):
        return False
    return not size_of(path.file) or _header_of(path).application == UNFINISHED


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class OpenFiles:
    """The files of a journal that is open for writing, watched for changes by other programs."""

    def __init__(
        self, *, path: JournalPath, main: int, database: sqlite3.Connection, guards: Sequence[sqlite3.Connection]
    ) -> None:
        self._main, self._database = main, database
        self._guard, self._other_guard = guards
        self._page_size = _number(database, "page_size")
        self._log = str(path.beside(LOG))
        self._prevented = 0  # how often in a row another program prevented a commit
        self.damage: str | None = None  # how a file was truncated or replaced, so that none may be written to
        self._ensure_guard()  # makes the log: its first commit has to follow the main file's generation
        files = (path.file, *map(path.beside, (LOG, INDEX, LOCK)))
        self._shortened = {str(path.file), self._log}
        self._known = {str(file): (identity_of(file), size_of(file)) for file in files}
        # The generations of two copies of a journal differ after this, so that the log of one does not fit the other.
        with self.commit(jump=secrets.randbits(_JUMP_BITS)):
            pass
        self.checkpoint()

    def check(self) -> None:
        """Raise OSError unless each file is the one that was opened, and no shorter than it was.

        A checkpoint may shorten the main file, after a VACUUM, and the log; the main file is then complete.
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
            elif found.st_size < size and not (file in self._shortened and self._is_complete()):
                self.damage = f"{Path(file).name} was truncated"
                if file.endswith(INDEX):  # SQLite maps it into memory: access to the missing part would be fatal
                    os.truncate(file, size)
            elif found.st_size != size and file != self._log:
                self._known[file] = identity, found.st_size
        if self.damage is not None:
            raise OSError(self.damage)

    def _is_complete(self) -> bool:
        """Return whether the main file needs no log, and has all the pages that it should have."""
        header = os.pread(self._main, _USER_VERSION + 4, 0)
        pages = int.from_bytes(header[_PAGE_COUNT : _PAGE_COUNT + 4])
        return bool(pages) and not header[-1] & 1 and os.fstat(self._main).st_size == pages * self._page_size

    @contextmanager
    def commit(self, *, jump: int = 0) -> Iterator[None]:
        """Commit what the block writes, and record in the main file that its log has to reach this commit."""
        self._ensure_guard()
        with self._next_generation(jump) as generation:
            yield
        os.pwrite(self._main, (generation << 1 | 1).to_bytes(4), _USER_VERSION)
        self._known[self._log] = self._known[self._log][0], self.log_size()

    @contextmanager
    def _next_generation(self, jump: int = 0) -> Iterator[int]:
        try:
            with next_generation(self._database, jump=jump) as generation:
                self._prevented = 0
                yield generation
        except sqlite3.OperationalError as error:
            self._prevented += is_busy(error)
            if self._prevented > _GUARDED_TRIES:  # a checkpoint may have the write lock, and wait for the guard
                self._guard.rollback()
            raise

    def checkpoint(self) -> bool:
        """Copy the log into the main file: first all other pages, then the first one, which makes it complete.

        The next commit starts the log over. Return False if another program holds back a part of the log.
        """
        if not self._set_guard(self._other_guard):
            return False
        self._guard.rollback()
        self._guard, self._other_guard = self._other_guard, self._guard
        is_busy, pages, copied = self._copy_log()
        if is_busy or copied < pages - 1:  # the commit that the guard does not read wrote the first page alone
            return False
        self._guard.rollback()
        is_busy, pages, copied = self._copy_log()
        return not is_busy and pages == copied

    def finish(self) -> bool:
        """Copy all of the log into the main file, which then needs none, unless a reader keeps a part back."""
        is_whole = self.checkpoint()
        if is_whole:
            self._copy_log("TRUNCATE")
        return is_whole

    def log_size(self) -> int:
        try:
            return os.stat(self._log).st_size  # noqa: PTH116  (as above)
        except FileNotFoundError:  # the next check says so
            return 0

    def _ensure_guard(self) -> None:
        if not self._guard.in_transaction and not self._set_guard(self._guard):
            error = sqlite3.OperationalError("another program is copying the log")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    def _set_guard(self, guard: sqlite3.Connection) -> bool:
        """Make a guard read the present state, then commit a newer first page.

        Return False if another program's checkpoint is running: it may have begun before the commit, and would copy the
        previous first page.
        """
        is_busy = True
        try:
            guard.execute("BEGIN")
            guard.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with self._next_generation():
                pass
            is_busy = self._copy_log()[0]
        finally:
            if is_busy:
                guard.rollback()
        return not is_busy

    def _copy_log(self, mode: str = "PASSIVE") -> tuple[bool, int, int]:
        """Return whether another program prevents it, and how many pages the log has, and how many are copied."""
        busy, pages, copied = self._database.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return bool(busy), pages, copied


class GroupCommitter:
    """The only writer of a journal: commits writes that arrive within a few milliseconds together.

    Each row that is written begins with the time of its commit.
    """

    def __init__(self, *, path: JournalPath, database: sqlite3.Connection, files: OpenFiles, clock: Clock) -> None:
        self.is_whole = False  # whether the main file is complete without its log
        self._path, self._database, self._files, self._clock = path, database, files, clock
        self._waiting: list[tuple[str, Values, asyncio.Future[None] | None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due: float  # of the timer
        self._last = float("-inf")
        self._retrying: asyncio.Task[None] | None = None
        self._log_limit = LOG_SIZE
        self._failure: JournalError | None = None

    def write_later(self, statement: str, *values: object) -> None:
        self._waiting.append((statement, values, None))
        if self._timer is None:  # else it is due by then
            self._commit_by(asyncio.get_running_loop().time() + _AT_LEAST_EVERY)

    async def write(self, statement: str, *values: object) -> None:
        """Write a record, and return once it is on disk. If this is cancelled before that, nothing is written."""
        if self._failure is not None:
            raise JournalError(str(self._failure))
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statement, values, done))
        self._commit_by(max(loop.time(), self._last + _APART))
        await done

    def finish(self) -> None:
        """Write pending records, and leave a journal that is complete without its log."""
        self.cancel()
        with self._path.errors("written"):
            was_removed = False
            try:
                self._files.check()
            except OSError as error:
                if self._files.damage is not None:
                    raise
                # A removed log is still open, so all of it is copied into the main file.
                was_removed = True
                self._failure = self._failure or self._path.error("written", error)
            self._write_waiting()
            if self._failure is None or was_removed:  # otherwise, the disk may be full, and the log has all of it
                self.is_whole = self._files.finish()
        if self._failure is not None:
            raise JournalError(str(self._failure))

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._retrying is not None:
            self._retrying.cancel()

    def _commit_by(self, at: float) -> None:
        if self._retrying is not None and not self._retrying.done():
            return
        if self._timer is not None:
            if self._due <= at:
                return
            self._timer.cancel()
        # Stored here, since not every loop's handle has its time.
        self._timer, self._due = asyncio.get_running_loop().call_at(at, self._commit), at

    def _commit(self) -> None:
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        try:
            self._attempt()
        except JournalError as error:
            if is_busy(error.__cause__):
                self._retrying = asyncio.create_task(self._retry())
            else:
                self._fail(error)

    async def _retry(self) -> None:
        """Write as soon as another program releases the journal; new records wait with the others."""
        try:
            await when_free(self._clock, self._attempt)
        except JournalError as error:
            self._fail(error)

    def _attempt(self) -> None:
        try:
            self._files.check()
            self._write_waiting()
            if self._files.log_size() > self._log_limit:
                self._shorten_log()
        except (sqlite3.Error, OSError) as error:
            raise self._path.error("written", error) from error

    def _fail(self, error: JournalError) -> None:
        """Fail the writers that wait for the commit, and thereby the run. Outcomes are kept for the next attempt."""
        self._failure = self._failure or error
        waiting, self._waiting = self._waiting, [entry for entry in self._waiting if entry[2] is None]
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_exception(JournalError(str(error)))  # each waiter raises its own

    def _write_waiting(self) -> None:
        # Records of one statement are written together, which is a fifth cheaper. Their order does not matter, since an
        # item's outcome is committed after its intent.
        together: dict[str, list[Values]] = {}
        time = now()
        for statement, values, done in self._waiting:
            if done is None or not done.cancelled():
                together.setdefault(statement, []).append((time, *values))
        if together:
            with self._files.commit():
                for statement, rows in together.items():
                    self._database.executemany(statement, rows)
        waiting, self._waiting = self._waiting, []
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_result(None)

    def _shorten_log(self) -> None:
        is_whole = True
        try:
            is_whole = self._files.checkpoint()
        except sqlite3.Error as error:
            if not is_busy(error):  # the records are written, so the next commit can do this
                raise
        # A log that could be copied is started over, and its file does not grow before it is as long as it was.
        self._log_limit = self._files.log_size() + (0 if is_whole else LOG_SIZE)
