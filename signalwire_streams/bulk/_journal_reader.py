"""A bulk run's journal, to be read: by whoever wants to know, also while the run goes on."""

import sqlite3
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from signalwire_streams.bulk._journal_file import IN_DOUBT, facts_of, find, is_held, reading
from signalwire_streams.bulk._results import BulkStatus
from signalwire_streams.bulk._serialization import PlannedRequest, planned_request
from signalwire_streams.bulk._write_ahead_log import JournalPath, journal_path
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallStream, ConferenceStream

_AT_ONCE = 500  # rows per question, so that no reader keeps the writer from tidying up behind itself
_MAY_RUN = (BulkStatus.STARTED.value, BulkStatus.ALREADY_STARTED.value, BulkStatus.UNKNOWN.value, IN_DOUBT)
_FAILED = (BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value)
_ITEMS = "SELECT id, kind, target, name, state, sid, ambiguous, attempts, error, message, undone FROM items"


@frozen(kw_only=True)
class JournalStatus:
    """What a journal says of its run.

    Attributes:
        run: what the run is called; it is part of its streams' names.
        doing: ``start`` or ``stop``.
        origin: the Space's address.
        project: the Project ID.
        began: when it began, in ISO 8601.
        undone_since: when somebody began to stop what it started, or None.
        planned: how many items it has in all; None where that was not known beforehand.
        counts: items by state: a `BulkStatus`'s text, ``intended`` (may have been sent, its end is not known) or
            ``waiting`` (planned, and not yet tried).
        undone: how many of the streams that it started were stopped again.
        attempts: attempts that were made in all.
        errors: how often each error's class and code came, most frequent first.
        held: whether a process works on it now.
    """

    run: str
    operation: str
    origin: str
    project: str
    started_at: str
    rollback_started_at: str | None
    planned: int | None
    counts: Mapping[str, int]
    rolled_back: int
    attempts: int
    errors: Mapping[str, int]
    is_locked: bool

    @property
    def remaining(self) -> int:
        """How many items a resumed run would try."""
        return sum(count for state, count in self.counts.items() if state in _UNFINISHED)


_UNFINISHED = {"waiting", IN_DOUBT, BulkStatus.UNKNOWN.value, BulkStatus.NOT_ATTEMPTED.value, BulkStatus.REJECTED.value}


@frozen(kw_only=True)
class JournalItem:
    """What a journal knows of one item.

    Attributes:
        kind: ``conference`` or ``call``.
        target: the sid of the conference or call.
        name: the stream's Name.
        state: a `BulkStatus`'s text, or ``intended``.
        sid: the stream's id, where it is known.
        ambiguous: whether ``sid`` may be that of a refused second stream; then ``name`` is the handle.
        attempts: attempts that were made.
        error: the class and code of the error that it ended in.
        message: what that error said.
        undone: ``stopped``, ``intended`` (its stop may have been sent), or None.
    """

    kind: str
    target: str
    name: str | None
    status: str
    sid: str | None
    ambiguous: bool
    attempts: int
    error: str | None
    message: str | None
    rollback_status: str | None

    @property
    def stream(self) -> ConferenceStream | CallStream:
        """The item's stream, as far as the journal knows it."""
        if self.kind == "conference":
            return ConferenceStream(conference_sid=self.target, sid=self.sid, name=self.name, ambiguous=self.ambiguous)
        return CallStream(call_sid=self.target, sid=self.sid, name=self.name, ambiguous=self.ambiguous)


def _path(path: str | PathLike[str]) -> Path:
    try:
        return Path(path)
    except TypeError:
        kind = type(path).__name__
        raise InvalidRequestError(f"journal is of type {kind}: write a path as text, such as 'run.db'") from None


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed; `journal_path` says so
        return None


@frozen
class BulkJournal:
    """The journal of a bulk run, to be read: ``BulkJournal("run.db").status()``.

    It can be read while the run goes on, and by other processes.

    Attributes:
        path: the file.

    Raises:
        InvalidRequestError: on reading, when there is no such file, or it is no journal.
        JournalError: on reading, when the file can't be read.
    """

    path: Path = field(converter=_path)
    _folder: Path | None = field(init=False, eq=False, repr=False, factory=_working_directory)

    @property
    def _named(self) -> JournalPath:
        # Checked when it is read, and not before.
        path = journal_path(self.path)
        return path if self._folder is None else evolve(path, file=self._folder / self.path)

    def status(self) -> JournalStatus:
        """Sum the run up."""
        find(self._named)
        # Before the rest: a run that ends meanwhile then counts as going on, not as cut off.
        held = is_held(self._named)
        with reading(self._named) as database:
            facts = facts_of(self._named, database)
            counts = dict(database.execute("SELECT state, count(*) FROM items GROUP BY state ORDER BY 2 DESC"))
            undone, attempts = database.execute(
                "SELECT count(*) FILTER (WHERE undone = 'stopped'), COALESCE(SUM(attempts), 0) FROM items"
            ).fetchone()
            errors = database.execute(
                "SELECT error, count(*) FROM items WHERE error IS NOT NULL GROUP BY error ORDER BY 2 DESC, 1"
            )
            planned = int(facts["planned"]) if "planned" in facts else None
            waiting = (planned or 0) - sum(counts.values())
            return JournalStatus(
                run=facts["run"],
                operation=facts["doing"],
                origin=facts["origin"],
                project=facts["project"],
                started_at=facts["began"],
                rollback_started_at=facts.get("undone_since"),
                planned=planned,
                counts=counts | ({"waiting": waiting} if waiting > 0 else {}),
                rolled_back=undone,
                attempts=attempts,
                errors=dict(errors),
                is_locked=held,
            )

    def requests(self) -> Iterator[PlannedRequest]:
        """Give what the run is to start, where that was planned, in the order of the plan."""
        for row in self._rows("SELECT id, kind, target, name, request FROM plan WHERE id > ?", ()):
            yield planned_request(row[1:])

    def items(self, *states: str) -> Iterator[JournalItem]:
        """Give the items that were tried, in the order of their turns.

        Args:
            states: only those in one of these states.
        """
        chosen = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
        for row in self._rows(f"{_ITEMS} WHERE id > ?{chosen}", states):
            yield JournalItem(
                kind=row[1],
                target=row[2],
                name=row[3],
                status=row[4],
                sid=row[5],
                ambiguous=bool(row[6]),
                attempts=row[7],
                error=row[8],
                message=row[9],
                rollback_status=row[10],
            )

    def streams(self) -> Iterator[ConferenceStream | CallStream]:
        """Give the streams that the run started, or may have started, and that were not stopped since."""
        for item in self.items(*_MAY_RUN, *_FAILED):
            # A failed start is ambiguous if the Space refused it for now, and may have carried it out all the same.
            may_run = item.status in _MAY_RUN or item.ambiguous
            if may_run and item.rollback_status != BulkStatus.STOPPED:
                yield item.stream

    def _rows(self, question: str, values: tuple[str, ...]) -> Iterator[Any]:
        last = 0
        while rows := self._some(f"{question} ORDER BY id LIMIT {_AT_ONCE}", (last, *values)):
            yield from rows
            last = rows[-1][0]

    def _some(self, question: str, values: tuple[object, ...]) -> list[sqlite3.Row]:
        with reading(self._named) as database:
            return database.execute(question, values).fetchall()
