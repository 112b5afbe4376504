"""Reader of a bulk run's journal, also during the run and from other processes."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from attrs import asdict, field, fields, frozen
from attrs.validators import and_, deep_mapping, ge, in_, instance_of, optional

from signalwire_streams.bulk._journal_file import (
    IN_DOUBT,
    STATES,
    JournalPath,
    RunFacts,
    connect_to_main,
    connect_to_read,
    decoding,
    exists,
    is_held,
    journal_path,
    store_errors,
)
from signalwire_streams.bulk._results import BulkStatus
from signalwire_streams.bulk._serialization import PlannedRequest, planned_request, stream_of
from signalwire_streams.bulk._write_ahead_log import facts_of, verify
from signalwire_streams.errors import InvalidRequestError, JournalError
from signalwire_streams.models import CallStream, ConferenceStream

PENDING = "pending"
"""The state of an item that is planned and was not tried yet: it has no row."""

_AT_ONCE = 500  # rows per question, so that no reader keeps the writer from tidying up behind itself
_MAY_RUN = (BulkStatus.STARTED.value, BulkStatus.ALREADY_STARTED.value, BulkStatus.UNKNOWN.value, IN_DOUBT)
_REMAINING = {PENDING, IN_DOUBT, BulkStatus.UNKNOWN.value, BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value}
_FAILED = (BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value)
_TEXT, _COUNT = instance_of(str), and_(instance_of(int), ge(0))
_TEXT_OR_NONE = optional(_TEXT)


def _flag(value: int) -> bool:
    if value not in (0, 1):
        raise ValueError(f"{value!r} is no flag")
    return bool(value)


@frozen(kw_only=True)
class JournalStatus:
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
        errors: how often each error's class and code came, most frequent first.
        is_locked: whether a process works on it now.
    """

    run: str
    operation: str
    origin: str
    project: str
    started_at: str
    rollback_started_at: str | None
    planned: int | None
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
        ambiguous: whether ``sid`` may be that of a refused second stream; then ``name`` is the handle.
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
    def stream(self) -> ConferenceStream | CallStream:
        """The item's stream, with the fields that are in the journal."""
        return stream_of(self.kind, self.target, sid=self.sid, name=self.name, ambiguous=self.ambiguous)


ITEMS = "SELECT id, kind, target, name, state, sid, ambiguous, attempts, error, message, rollback_status FROM items"
_FIELDS = [attribute.name for attribute in fields(JournalItem)]


def decode_item(path: JournalPath, row: Sequence[Any]) -> JournalItem:
    """Read a row of `ITEMS`."""
    number, *values = row
    with decoding(path, f"the row {number} of its table items"):
        return JournalItem(**dict(zip(_FIELDS, values, strict=True)))


@contextmanager
def _reading(path: JournalPath) -> Iterator[tuple[sqlite3.Connection, RunFacts]]:
    if not exists(path):
        raise InvalidRequestError(f"there is no journal {path}: name the file that the run wrote")
    with store_errors(path, "read"):
        connect = connect_to_main if _is_alone(path) else connect_to_read
        with closing(connect(path)) as database:
            database.execute("BEGIN")  # one view of the file for all that is asked
            yield database, facts_of(path, database)


def _is_alone(path: JournalPath) -> bool:
    """Check a journal before reading it, and return whether all of it is in the main file."""
    for is_last in (False, True):  # a run may begin or end while its files are checked one by one
        try:
            if not is_held(path):
                return not verify(path)[1]
        except (sqlite3.Error, JournalError, InvalidRequestError):
            if is_last and not is_held(path):
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
        is_locked = exists(path) and is_held(path)
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
        with decoding(path, "its table items"):
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
            with decoding(self._file, f"the row {number} of its table plan"):
                planned = planned_request(row)
            yield planned

    def items(self, *states: str) -> Iterator[JournalItem]:
        """Return the items that were attempted, in that order.

        Args:
            states: only those in one of these states.
        """
        chosen = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
        for row in self._rows(f"{ITEMS} WHERE id > ?{chosen}", *states):
            yield decode_item(self._file, row)

    def streams(self) -> Iterator[ConferenceStream | CallStream]:
        """Return the streams that the run started, or may have started, and that were not rolled back."""
        for item in self.items():
            # A failed start is ambiguous if the Space refused it temporarily, since it may have run nevertheless.
            may_run = item.status in _MAY_RUN or (item.status in _FAILED and item.ambiguous)
            if may_run and item.rollback_status != BulkStatus.STOPPED:
                yield item.stream

    def _rows(self, question: str, *values: str) -> Iterator[Any]:
        last = -1 << 63  # SQLite's least number
        while True:
            with _reading(self._file) as (database, _):
                found = database.execute(f"{question} ORDER BY id LIMIT {_AT_ONCE}", (last, *values)).fetchall()
            if not found:
                return
            yield from found
            last = found[-1][0]
