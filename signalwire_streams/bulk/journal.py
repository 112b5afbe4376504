"""The journal of a bulk run: what was about to be sent, and what came of it, in a file that survives a kill.

SQLite from the standard library, in WAL mode: an intent is committed before its request goes out, and takes the
outcomes that came meanwhile along, so that one commit serves both. A process that is killed loses at most
outcomes that had no later intent; those items are then "intended", which is as good as unknown.

The file can be read with any SQLite tool, also while the run goes on. It holds no token and no parameter value.
"""

import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import define, field, frozen

from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.errors import InvalidRequestError

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('conference', 'call')),
    target TEXT NOT NULL,
    name TEXT,
    state TEXT NOT NULL,
    sid TEXT,
    ambiguous INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    message TEXT,
    changed TEXT NOT NULL
);
CREATE UNIQUE INDEX items_by_name ON items (target, name) WHERE name IS NOT NULL;
CREATE INDEX items_by_state ON items (state);
"""
INTENDED = "intended"
"""The state of an item whose request may have gone out, and of whose end the journal knows nothing."""


@frozen
class Entry:
    """What the journal knows of one item.

    Attributes:
        id: its row.
        state: a `BulkState`'s text, or ``intended``.
        sid: the stream's id, where it is known.
        ambiguous: whether the id may be that of a refused second stream.
    """

    id: int
    state: str
    sid: str | None
    ambiguous: bool


@define(eq=False)
class Journal:
    """One run's file. Use it as ``with Journal.create(path, ...) as journal``.

    Attributes:
        path: the file.
        run: what the run is called; its streams' names follow from it.
    """

    path: Path
    run: str
    _database: sqlite3.Connection
    _lock: sqlite3.Connection
    _inherited: int = 0
    _looked_up: Counter[str] = field(init=False, factory=Counter)
    _pending: list[tuple[str, str | None, int, int, str | None, str | None, str, int]] = field(init=False, factory=list)

    @classmethod
    def create(cls, path: Path, *, run: str, doing: str, origin: str, project: str) -> Self:
        """Begin the journal of a new run.

        Raises:
            InvalidRequestError: the file is there already, can't be made, or another process holds it.
        """
        if path.exists():
            raise InvalidRequestError(f"the journal {path} is there already: resume it, or choose another file")
        lock = _hold(path)
        database = _open(path)
        with database:
            database.executescript(_SCHEMA)
            database.executemany(
                "INSERT INTO run VALUES (?, ?)",
                [
                    ("schema", str(SCHEMA_VERSION)),
                    ("run", run),
                    ("doing", doing),
                    ("origin", origin),
                    ("project", project),
                    ("began", _now()),
                ],
            )
        return cls(path, run, database, lock)

    @classmethod
    def reopen(cls, path: Path, *, doing: str, origin: str, project: str) -> Self:
        """Go on with the journal of a run that ended early.

        Raises:
            InvalidRequestError: there is no such file, it is no journal of this version, it belongs to another
                Space, project or kind of run, or another process holds it.
        """
        if not path.exists():
            raise InvalidRequestError(f"there is no journal {path}: begin the run without resuming")
        lock = _hold(path)
        database = _open(path)
        try:
            known = dict(database.execute("SELECT key, value FROM run"))
        except sqlite3.DatabaseError:
            known = {}
        wanted = {"schema": str(SCHEMA_VERSION), "doing": doing, "origin": origin, "project": project}
        wrong = [key for key, value in wanted.items() if known.get(key) != value]
        if wrong:
            database.close()
            lock.close()
            raise InvalidRequestError(f"{path} is no journal of such a run: its {', '.join(wrong)} differs")
        last = database.execute("SELECT COALESCE(MAX(id), 0) FROM items").fetchone()[0]
        return cls(path, known["run"], database, lock, int(last))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def find(self, target: str, name: str | None) -> Entry | None:
        """Look up what an earlier part of the run left of an item.

        Items without a name are told apart by their order only: the second call for a target gives its second.
        """
        skip = 0
        if name is None:
            skip = self._looked_up[target]
            self._looked_up[target] += 1
        row = self._database.execute(
            "SELECT id, state, sid, ambiguous FROM items WHERE target = ? AND name IS ? AND id <= ? "
            "ORDER BY id LIMIT 1 OFFSET ?",
            (target, name, self._inherited, skip),
        ).fetchone()
        return None if row is None else Entry(row[0], row[1], row[2], bool(row[3]))

    def intend(self, kind: str, target: str, name: str | None) -> int:
        """Note that an item is about to be sent; it is on the disk when this returns. Gives its row."""
        with self._database:
            self._write_pending()
            cursor = self._database.execute(
                "INSERT INTO items (kind, target, name, state, changed) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (target, name) WHERE name IS NOT NULL "
                "DO UPDATE SET state = excluded.state, changed = excluded.changed RETURNING id",
                (kind, target, name, INTENDED, _now()),
            )
            return int(cursor.fetchone()[0])

    def settle(self, row: int, outcome: BulkOutcome[Any]) -> None:
        """Note what came of an item; it is written with the next intent, or at the end."""
        stream, error = outcome.stream, outcome.error
        self._pending.append(
            (
                outcome.state.value,
                stream.sid if stream is not None else None,
                int(stream.ambiguous) if stream is not None else 0,
                outcome.attempts,
                type(error).__name__ if error is not None else None,
                str(error) if error is not None else None,
                _now(),
                row,
            )
        )

    def flush(self) -> None:
        """Write the outcomes that wait."""
        with self._database:
            self._write_pending()

    def close(self) -> None:
        """Write what waits and let go of the file."""
        self.flush()
        self._database.close()
        self._lock.close()

    def _write_pending(self) -> None:
        self._database.executemany(
            "UPDATE items SET state = ?, sid = ?, ambiguous = ?, attempts = attempts + ?, error = ?, message = ?, "
            "changed = ? WHERE id = ?",
            self._pending,
        )
        self._pending.clear()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5.0)
    database.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses nothing when the process is killed; only a power cut can take the last commits.
    database.execute("PRAGMA synchronous = NORMAL")
    return database


def _hold(path: Path) -> sqlite3.Connection:
    """Take the run for this process: a lock that ends with the process, however it ends."""
    lock = sqlite3.connect(path.with_name(path.name + ".lock"), timeout=0.0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise InvalidRequestError(f"another process runs the journal {path}: wait for it, or end it") from None
    return lock


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
