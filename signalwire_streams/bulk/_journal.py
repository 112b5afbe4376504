"""Journal of a bulk run: it records intents and outcomes in a file that survives a crash, and can be read any time.

An intent is committed before its request goes out; an outcome a tenth of a second later at most. So a process that
is killed loses few outcomes, and their items are then "in_doubt", which counts as unknown.
"""

import sqlite3
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Self

from attrs import asdict, field, fields, frozen
from attrs.validators import and_, deep_mapping, ge, in_, instance_of, optional

from signalwire_streams.bulk._journal_file import (
    IN_DOUBT,
    ITEM_INDEX,
    SCHEMA,
    SCHEMA_VERSION,
    STATES,
    JournalOwner,
    JournalPath,
    RunMetadata,
    journal_path,
)
from signalwire_streams.bulk._journal_writer import JournalWriter, existing_file, lay_out, new_file
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, error_label
from signalwire_streams.bulk._serialization import (
    PlannedRequest,
    Start,
    Stream,
    folded,
    plan_rows,
    planned_request,
    stream_of,
)
from signalwire_streams.bulk._write_ahead_log import now, read_metadata, verify
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError

PENDING = "pending"
"""The state of an item that is planned and was not tried yet: it has no row."""

_AT_ONCE = 500  # rows per query, so that no reader delays the writer's checkpoints
_MAY_RUN = (BulkStatus.STARTED.value, BulkStatus.ALREADY_STARTED.value, BulkStatus.UNKNOWN.value, IN_DOUBT)
_REMAINING = {PENDING, IN_DOUBT, BulkStatus.UNKNOWN.value, BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value}
_FAILED = (BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value)
_TEXT, _COUNT = instance_of(str), and_(instance_of(int), ge(0))
_TEXT_OR_NONE = optional(_TEXT)


def _flag(value: int) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is not a flag")
    return bool(value)


@frozen(kw_only=True)
class JournalStatus(RunMetadata):
    """Status of a journal's run.

    Attributes:
        run: the run's id, which is part of its streams' names.
        operation: ``start`` or ``stop``.
        origin: the Space's address.
        project: the Project ID.
        started_at: when it started, in ISO 8601.
        rollback_started_at: when its rollback started, or None.
        planned: total number of items; None if that was not known beforehand.
        counts: items by state: a `BulkStatus`'s text, ``in_doubt`` (may have been sent, its outcome is not known) or
            ``pending`` (planned, and not yet tried).
        rolled_back: how many of the streams that it started were stopped again.
        attempts: total number of attempts.
        errors: number of errors by class and code, most frequent first.
        is_locked: whether a process works on it now.
    """

    counts: Mapping[str, int] = field(validator=deep_mapping(in_(STATES | {PENDING}), _COUNT))
    rolled_back: int
    attempts: int = field(validator=_COUNT)
    errors: Mapping[str, int] = field(validator=deep_mapping(_TEXT, _COUNT))
    is_locked: bool

    @property
    def remaining(self) -> int:
        """How many items a resumed run would try."""
        return sum(count for state, count in self.counts.items() if state in _REMAINING)


@frozen(kw_only=True)
class JournalItem:
    """One item of a journal.

    Attributes:
        kind: ``conference`` or ``call``.
        target: the sid of the conference or call.
        name: the stream's Name.
        status: a `BulkStatus`'s text, or ``in_doubt``.
        sid: the stream's id, where it is known.
        ambiguous: whether ``sid`` may be that of a rejected second stream; then ``name`` is the handle.
        attempts: attempts that were made.
        error: the class and code of its final error.
        message: that error's message.
        rollback_status: ``stopped``, ``in_doubt`` (its stop may have been sent), or None.
    """

    kind: str = field(validator=in_(("conference", "call")))
    target: str = field(validator=_TEXT)
    name: str | None = field(validator=_TEXT_OR_NONE)
    status: str = field(validator=in_(STATES))
    sid: str | None = field(validator=_TEXT_OR_NONE)
    ambiguous: bool = field(converter=_flag)
    attempts: int = field(validator=_COUNT)
    error: str | None = field(validator=_TEXT_OR_NONE)
    message: str | None = field(validator=_TEXT_OR_NONE)
    rollback_status: str | None = field(validator=in_((None, IN_DOUBT, BulkStatus.STOPPED.value)))

    @property
    def stream(self) -> Stream:
        """The item's stream, with the fields that are in the journal."""
        return stream_of(self.kind, self.target, sid=self.sid, name=self.name, ambiguous=self.ambiguous)


ITEMS = "SELECT id, kind, target, name, state, sid, ambiguous, attempts, error, message, rollback_status FROM items"
_FIELDS = [attribute.name for attribute in fields(JournalItem)]


def decode_item(path: JournalPath, row: Sequence[Any]) -> JournalItem:
    number, *values = row
    with path.decoding(f"the row {number} of its table items"):
        return JournalItem(**dict(zip(_FIELDS, values, strict=True)))


@contextmanager
def _reading(path: JournalPath) -> Iterator[tuple[sqlite3.Connection, RunMetadata]]:
    if not path.exists():
        raise InvalidRequestError(f"there is no journal {path}: name the file that the run wrote")
    with path.errors("read"):
        connect = path.connect_to_main if _is_alone(path) else path.connect_to_read
        with closing(connect()) as database:
            database.execute("BEGIN")  # one view of the file for all queries
            yield database, read_metadata(path, database)


def _is_alone(path: JournalPath) -> bool:
    """Check a journal before reading it, and return whether all of it is in the main file."""
    try:
        if not path.is_locked():
            return not verify(path, read_metadata)[1]
    except (sqlite3.Error, JournalError, InvalidRequestError):
        if not path.is_locked():  # by a run that began while its files were checked one by one
            raise
    return False  # the process that holds it keeps the files together


def _path(path: str | PathLike[str]) -> Path:
    return Path(journal_path(path).name)


@frozen
class BulkJournal:
    """Reads the journal of a bulk run: ``BulkJournal("run.db").status()``.

    It can be read during the run, and by other processes.

    Attributes:
        path: the file.

    Raises:
        InvalidRequestError: the path can't be a journal's; on reading, if there is no such file, or it is not a
            journal.
        JournalError: on reading, when the file can't be read, or a part of it is missing.
    """

    path: Path = field(converter=_path)
    _file: JournalPath = field(init=False, eq=False, repr=False)

    @_file.default
    def _absolute(self) -> JournalPath:
        return journal_path(self.path)

    def status(self) -> JournalStatus:
        """Return the status of the run."""
        path = self._file
        # Before the rest: a run that ends meanwhile then counts as running, not as killed.
        is_locked = path.exists() and path.is_locked()
        with _reading(path) as (database, facts):
            counts = dict(database.execute("SELECT state, count(*) FROM items GROUP BY state ORDER BY 2 DESC"))
            rolled_back, attempts = database.execute(
                "SELECT count(*) FILTER (WHERE rollback_status = 'stopped'), COALESCE(SUM(attempts), 0) FROM items"
            ).fetchone()
            errors = dict(
                database.execute(
                    "SELECT error, count(*) FROM items WHERE error IS NOT NULL GROUP BY error ORDER BY 2 DESC, 1"
                )
            )
        pending = (facts.planned or 0) - sum(counts.values())
        with path.decoding("its table items"):
            return JournalStatus(
                **asdict(facts),
                counts=counts | ({PENDING: pending} if pending > 0 else {}),
                rolled_back=rolled_back,
                attempts=attempts,
                errors=errors,
                is_locked=is_locked,
            )

    def requests(self) -> Iterator[PlannedRequest]:
        """Return the requests of a planned run, in order."""
        for number, *row in self._rows("SELECT id, kind, target, name, request FROM plan WHERE id > ?"):
            with self._file.decoding(f"the row {number} of its table plan"):
                planned = planned_request(row)
            yield planned

    def items(self, *states: str) -> Iterator[JournalItem]:
        """Return the items that were attempted, in order; if states are passed, only the items in one of them.

        Raises:
            InvalidRequestError: on iteration, if there is no such state.
        """
        if unknown := sorted(set(states) - STATES):
            raise InvalidRequestError(
                f"no item has the state {unknown[0]!r}: pass {', '.join(sorted(STATES))}, or none of them for all items"
            )
        chosen = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
        for row in self._rows(f"{ITEMS} WHERE id > ?{chosen}", *states):
            yield decode_item(self._file, row)

    def streams(self) -> Iterator[Stream]:
        """Return the streams that the run started, or may have started, and that were not rolled back."""
        for item in self.items():
            # A failed start is ambiguous if the Space rejected it temporarily, since it may have been executed anyway.
            may_run = item.status in _MAY_RUN or (item.status in _FAILED and item.ambiguous)
            if may_run and item.rollback_status != BulkStatus.STOPPED:
                yield item.stream

    def _rows(self, query: str, *values: str) -> Iterator[Any]:
        last = -1 << 63  # SQLite's lowest number
        while True:
            with _reading(self._file) as (database, _):
                found = database.execute(f"{query} ORDER BY id LIMIT {_AT_ONCE}", (last, *values)).fetchall()
            if not found:
                return
            yield from found
            last = found[-1][0]


_INTEND = "INSERT INTO items (changed, id, kind, target, name, state) VALUES (?, ?, ?, ?, ?, ?)"
_INTEND_AGAIN = "UPDATE items SET changed = ?, state = ? WHERE id = ?"
_COMPLETE = (
    "UPDATE items SET changed = ?, state = ?, sid = ?, ambiguous = ?, attempts = attempts + ?, error = ?, message = ? "
    "WHERE id = ?"
)
_FIND = f"{ITEMS} WHERE target = ? AND name IS ? AND id <= ? ORDER BY id LIMIT 1 OFFSET ?"
_FIND_STREAM = "SELECT id FROM items WHERE target = ? AND name IS ? AND sid IS ? ORDER BY id LIMIT 1"
_PLAN = "INSERT INTO plan (kind, target, name, request) VALUES (?, ?, ?, ?)"
_ROLL_BACK = "UPDATE items SET changed = ?, rollback_status = ? WHERE id = ?"


@frozen
class ItemRecord:
    """One item's record: its row, a `BulkStatus`'s text or `IN_DOUBT`, and its stream's id."""

    id: int
    state: str
    sid: str | None
    ambiguous: bool


class Journal(JournalWriter):
    def __init__(
        self, *, path: JournalPath, run: str, lock: sqlite3.Connection, opened: ExitStack, clock: Clock | None
    ) -> None:
        super().__init__(path=path, lock=lock, opened=opened, clock=clock)
        self.run: str = run
        self._looked_up: Counter[str] = Counter()
        self._rows: int = self._database.execute("SELECT COALESCE(MAX(id), 0) FROM items").fetchone()[0]
        self._inherited = self._rows
        if self._inherited:
            self._database.execute(ITEM_INDEX)
        self._watch()

    @classmethod
    def create(
        cls, path: JournalPath | Path | str, owner: JournalOwner, *, run: str, clock: Clock | None = None
    ) -> Self:
        path = journal_path(path).resolved()
        with path.errors("created"), new_file(path) as lock, ExitStack() as opened:
            _lay_out(path, owner, run, None)
            return cls(path=path, run=run, lock=lock, opened=opened, clock=clock)

    @classmethod
    def plan(cls, path: JournalPath | Path | str, owner: JournalOwner, *, run: str, requests: Iterable[Start]) -> None:
        """Create the journal of a run for these requests, for `reopen`."""
        path = journal_path(path).resolved()
        with path.errors("created"), new_file(path) as lock:
            _lay_out(path, owner, run, requests)
        lock.close()

    @classmethod
    def reopen(cls, path: JournalPath | Path | str, owner: JournalOwner, *, clock: Clock | None = None) -> Self:
        """Open the journal of a run that was planned, or that ended early."""
        path = journal_path(path).resolved()
        if not path.exists():
            raise InvalidRequestError(f"there is no journal {path}: start the run without resuming")

        def check() -> RunMetadata:
            facts, _ = verify(path, read_metadata)
            owner.check(path, facts)
            return facts

        with existing_file(path, check) as (lock, facts), ExitStack() as opened:
            return cls(path=path, run=facts.run, lock=lock, opened=opened, clock=clock)

    @property
    def rollback_started_at(self) -> str | None:
        with self._reading():
            return read_metadata(self.path, self._database).rollback_started_at

    def begin_rollback(self) -> None:
        with self.path.errors("written"), self._files.commit():
            self._database.execute("INSERT OR IGNORE INTO run VALUES ('rollback_started_at', ?)", (now(),))

    def find(self, target: str, name: str | None) -> ItemRecord | None:
        """Look up an earlier part's record of an item.

        Items without a name differ only by their order: the second call for a target returns its second record.
        """
        if not self._inherited:
            return None
        target, skip = folded(target), 0
        if name is None:
            skip = self._looked_up[target]
            self._looked_up[target] += 1
        with self._reading():
            row = self._database.execute(_FIND, (target, name, self._inherited, skip)).fetchone()
        if row is None:
            return None
        item = decode_item(self.path, row)
        return ItemRecord(row[0], item.status, item.sid, item.ambiguous)

    def find_stream(self, target: str, name: str | None, sid: str | None) -> int:
        with self._reading():
            row = self._database.execute(_FIND_STREAM, (folded(target), name, sid)).fetchone()
        if row is None:
            raise JournalError(f"the journal {self.path} no longer contains the stream on {target}")
        return int(row[0])

    def new_row(self) -> int:
        self._rows += 1
        return self._rows

    def intend(self, row: int, kind: str, target: str, name: str | None) -> Coroutine[Any, Any, None]:
        """Record that an item is about to be sent; the record is durable once this has been awaited."""
        if row > self._inherited:
            return self._commits.write(_INTEND, row, kind, folded(target), name, IN_DOUBT)
        return self._commits.write(_INTEND_AGAIN, IN_DOUBT, row)

    def complete(self, row: int, outcome: BulkOutcome[Any]) -> None:
        """Record the outcome of an item; it is written with the next commit."""
        stream, error = outcome.stream, outcome.error
        self._commits.write_later(
            _COMPLETE,
            str(outcome.status),
            stream.sid if stream is not None else None,
            int(stream.ambiguous) if stream is not None else 0,
            outcome.attempts,
            error_label(error) if error is not None else None,
            # A middleware of the caller's may have raised it, with text that can't be stored.
            str(error).encode(errors="replace").decode() if error is not None else None,
            row,
        )

    def intend_rollback(self, row: int) -> Coroutine[Any, Any, None]:
        """Record that an item's stream is about to be stopped; the record is durable once this has been awaited."""
        return self._commits.write(_ROLL_BACK, IN_DOUBT, row)

    def complete_rollback(self, row: int, outcome: BulkOutcome[Stream]) -> None:
        """Record the outcome of stopping an item's stream; the record of its start is unchanged."""
        status = {BulkStatus.STOPPED: BulkStatus.STOPPED.value, BulkStatus.UNKNOWN: IN_DOUBT}.get(outcome.status)
        self._commits.write_later(_ROLL_BACK, status, row)


def _lay_out(path: JournalPath, owner: JournalOwner, run: str, plan: Iterable[Start] | None) -> None:
    facts = {"schema": str(SCHEMA_VERSION), "run": run, **asdict(owner), "started_at": now()}
    with lay_out(path, SCHEMA) as database:
        if plan is not None:
            cursor = database.executemany(_PLAN, plan_rows(plan))
            facts["planned"] = str(max(cursor.rowcount, 0))
        database.executemany("INSERT INTO run VALUES (?, ?)", facts.items())
