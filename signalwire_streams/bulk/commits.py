"""Writing to a journal: one commit for whatever comes within a few milliseconds of each other.

A commit costs about as much as everything else that the journal does for an item, so items share them. Who has
nothing to share with does not wait: a commit is only put off when the last one was just now.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from attrs import define, field

from signalwire_streams.bulk.store import failed

_APART = 0.004  # seconds between two commits, when something waits for them
_AT_LEAST_EVERY = 0.1  # seconds that what nobody waits for stays unwritten
_LOOK_EVERY = 1.0  # seconds between two looks whether the file is still there

Values: TypeAlias = tuple[object, ...]


@define(eq=False)
class Commits:
    """The one writer of a journal.

    Attributes:
        path: the journal, for messages.
        database: the open journal.
    """

    path: Path
    database: sqlite3.Connection
    _file: tuple[int, int] = field(init=False)
    _looked: float = field(init=False, default=float("-inf"))
    _waiting: list[tuple[str, Values, asyncio.Future[None] | None]] = field(init=False, factory=list)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _due: float = field(init=False, default=0.0)
    _last: float = field(init=False, default=float("-inf"))

    def __attrs_post_init__(self) -> None:
        self._file = _identity(self.path)

    def later(self, statement: str, values: Values) -> None:
        """Write it with the next commit."""
        self._waiting.append((statement, values, None))
        self._commit_by(asyncio.get_running_loop().time() + _AT_LEAST_EVERY)

    async def committed(self, statement: str, values: Values) -> None:
        """Write it, and return when it is on the disk. If cancelled before that, it is not written.

        Raises:
            JournalError: it can't be written.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((statement, values, done))
        self._commit_by(max(loop.time(), self._last + _APART))
        await done

    def close(self) -> None:
        """Write what waits.

        Raises:
            JournalError: it can't be written.
        """
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._write(self._waiting)
            self._look(float("inf"))
        except (sqlite3.Error, OSError) as error:
            raise failed(self.path, "written", error) from error

    def _commit_by(self, at: float) -> None:
        if self._timer is not None:
            if self._due <= at:
                return
            self._timer.cancel()
        # Remembered here, since not every loop's handle tells its time.
        self._timer, self._due = asyncio.get_running_loop().call_at(at, self._commit), at

    def _commit(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._timer = None
        self._last = asyncio.get_running_loop().time()
        try:
            self._look(self._last)
            self._write(waiting)
        except (sqlite3.Error, OSError) as error:
            # What nobody waits for is kept for the next try; `close` is the last one, and tells.
            self._waiting = [entry for entry in waiting if entry[2] is None] + self._waiting
            _end(waiting, failed(self.path, "written", error))
        else:
            _end(waiting, None)

    def _look(self, now: float) -> None:
        """See that the file is the one that was opened: one that was removed or replaced would keep nothing."""
        if now < self._looked + _LOOK_EVERY:
            return
        self._looked = now
        if _identity(self.path) != self._file:
            raise OSError("somebody replaced the file")

    def _write(self, waiting: Sequence[tuple[str, Values, asyncio.Future[None] | None]]) -> None:
        # Those of one statement go together, which is a fifth cheaper. It changes nothing, since what is written of one
        # item comes in different commits: its outcome after its intent is on the disk.
        together: dict[str, list[Values]] = {}
        for statement, values, done in waiting:
            if done is None or not done.cancelled():
                together.setdefault(statement, []).append(values)
        with self.database:
            for statement, rows in together.items():
                self.database.executemany(statement, rows)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _end(waiting: Sequence[tuple[str, Values, asyncio.Future[None] | None]], error: Exception | None) -> None:
    for _, _, done in waiting:
        if done is None or done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
