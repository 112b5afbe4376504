"""Writing to a journal: one commit for whatever comes within a few milliseconds of each other.

A commit costs about as much as everything else that the journal does for an item, so items share them. Who has
nothing to share with does not wait: a commit is only put off when the last one was just now.
"""

import asyncio
import os
import sqlite3
from typing import TypeAlias

from attrs import define, field

from signalwire_streams.bulk.paths import LOG, JournalPath
from signalwire_streams.bulk._journal_file import failed, telling, when_free
from signalwire_streams.bulk._write_ahead_log import LOG_SIZE, OpenFiles, checkpoint, close_log, is_busy, next_generation
from signalwire_streams.errors import JournalError
from signalwire_streams.clock import Clock

_APART = 0.004  # seconds between two commits, when something waits for them
_AT_LEAST_EVERY = 0.1  # seconds that what nobody waits for stays unwritten

Values: TypeAlias = tuple[object, ...]
_Entry: TypeAlias = tuple[str, Values, asyncio.Future[None] | None]


@define(eq=False)
class Commits:
    """The one writer of a journal.

    Attributes:
        path: the journal, for messages.
        database: the open journal.
        files: its files, which are checked before each commit.
        clock: measures how long another program keeps the journal locked.
        salt: the log's, as the run began it or as it was last copied.
        is_whole: whether the main file needs no log any more.
    """

    path: JournalPath
    database: sqlite3.Connection
    files: OpenFiles
    clock: Clock
    salt: int
    is_whole: bool = field(init=False, default=False)
    _waiting: list[_Entry] = field(init=False, factory=list)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _retrying: asyncio.Task[None] | None = field(init=False, default=None)
    _due: float = field(init=False, default=0.0)
    _last: float = field(init=False, default=float("-inf"))
    _log_limit: int = field(init=False, default=LOG_SIZE)
    _failure: JournalError | None = field(init=False, default=None)

    def later(self, statement: str, values: Values) -> None:
        """Write it with the next commit."""
        self._waiting.append((statement, values, None))
        self._commit_by(asyncio.get_running_loop().time() + _AT_LEAST_EVERY)

    async def committed(self, statement: str, values: Values) -> None:
        """Write it, and return when it is on the disk. If cancelled before that, it is not written.

        Raises:
            JournalError: it can't be written, or something could not be before.
        """
        if self._failure is not None:
            raise _same(self._failure)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statement, values, done))
        self._commit_by(max(loop.time(), self._last + _APART))
        await done

    def finish(self) -> None:
        """Write what waits, and leave a journal that is whole without its log.

        Raises:
            JournalError: something can't be written, or could not be before.
        """
        self.cancel()
        with telling(self.path, "written"):
            was_removed = False
            try:
                self.files.check()
            except OSError as error:
                if self.files.damage is not None:
                    raise
                # What was removed is still open, so the main file gets all of it.
                was_removed = True
                self._failure = self._failure or failed(self.path, "written", error)
            self._write_waiting()
            if self._failure is None or was_removed:  # else the disk may be full, and the log has all of it
                self.is_whole = close_log(self.path, self.database)
        if self._failure is not None:
            raise _same(self._failure)

    def cancel(self) -> None:
        """Write nothing more by itself."""
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
        # Remembered here, since not every loop's handle tells its time.
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
        """Write as soon as another program lets go of the journal; what comes meanwhile waits with the rest."""
        try:
            await when_free(self.clock, self._attempt)
        except JournalError as error:
            self._fail(error)

    def _attempt(self) -> None:
        with telling(self.path, "written"):
            self.files.check()
            self._write_waiting()
            self._keep_log_small()

    def _fail(self, error: JournalError) -> None:
        """End what waits for the commit, and with it the run. Outcomes are kept for the next try."""
        self._failure = self._failure or error
        waiting, self._waiting = self._waiting, [entry for entry in self._waiting if entry[2] is None]
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_exception(_same(error))

    def _write_waiting(self) -> None:
        # Those of one statement go together, which is a fifth cheaper. It changes nothing, since what is written of one
        # item comes in different commits: its outcome after its intent is on the disk.
        together: dict[str, list[Values]] = {}
        for statement, values, done in self._waiting:
            if done is None or not done.cancelled():
                together.setdefault(statement, []).append(values)
        if together:
            with next_generation(self.database):
                for statement, rows in together.items():
                    self.database.executemany(statement, rows)
        waiting, self._waiting = self._waiting, []
        for _, _, done in waiting:
            if done is not None and not done.done():
                done.set_result(None)

    def _keep_log_small(self) -> None:
        """Checkpoint the log when it has outgrown its limit, or the main file does not say that it is needed."""
        # Those that wait for the commit go on after this returns, so nothing is sent that a cut of the log could hide.
        if not self.files.has_to_be_copied(self.salt, self._log_limit):
            return
        try:
            self.salt, is_whole = checkpoint(self.path, self.database)
        except sqlite3.Error as error:
            if not is_busy(error):  # what was to be written is, so the next commit will do
                raise
            is_whole = True
        if not is_whole:
            os.truncate(self.path.beside(LOG), self.files.log_size() + LOG_SIZE)
        self._log_limit = self.files.log_size()


def _same(error: JournalError) -> JournalError:
    """Return an error with the same message, since each of those that wait raises its own."""
    return JournalError(str(error))
