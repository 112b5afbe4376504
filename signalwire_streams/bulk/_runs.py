"""The bulk runs that a client makes: each from its operation, its ledger and its concurrency."""

from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from signalwire_streams.bulk._journal import BulkJournal, Journal
from signalwire_streams.bulk._journal_file import JournalOwner, journal_path
from signalwire_streams.bulk._operations import (
    JournalLedger,
    Ledger,
    Operation,
    RollbackLedger,
    StartStreams,
    StopStreams,
)
from signalwire_streams.bulk._runner import (
    MAX_CONCURRENCY,
    AdaptiveConcurrency,
    BulkRun,
    FixedConcurrency,
    RunObserver,
    WorkerPool,
)
from signalwire_streams.bulk._serialization import Start, Stream
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams.models._validation import check_count, kind_of
from signalwire_streams.resources._streams import Streams

_Item = TypeVar("_Item")

_DEADLINE = 300.0


class BulkRuns:
    def __init__(
        self,
        *,
        conferences: Streams[ConferenceStream],
        calls: Streams[CallStream],
        origin: str,
        project: str,
        rate: float,
        resend_call_starts: bool,
        clock: Clock,
        observe: Callable[[str], RunObserver] | None = None,
    ) -> None:
        self._conferences, self._calls = conferences, calls
        self._origin, self._project = origin, project
        # The items of a run wait for the rate limiter together, so the last of them waits for all others.
        self._deadline = _DEADLINE + 2 * MAX_CONCURRENCY / rate
        self._resend_call_starts, self._clock = resend_call_starts, clock
        self._observe = observe

    def start(
        self,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        concurrency: int | None,
        journal: Path | str | Ledger | None,
        resume: bool,
    ) -> BulkRun[Start]:
        operation = StartStreams(
            conferences=self._conferences,
            calls=self._calls,
            deadline=self._deadline,
            ledger=self._ledger(journal, "start", resume=resume),
            resend_call_starts=self._resend_call_starts,
        )
        return self._run(requests, operation, concurrency)

    def create_journal(self, requests: Iterable[Start], journal: Path | str) -> BulkJournal:
        if not _is_iterable(requests):
            raise InvalidRequestError(
                f"the requests are of type {kind_of(requests)}: pass a list, or a generator that is not async"
            )
        Journal.plan(journal_path(journal), self._owner("start"), run=token_hex(4), requests=requests)
        return BulkJournal(journal)

    def stop(
        self,
        streams: Iterable[Stream] | AsyncIterable[Stream],
        *,
        concurrency: int | None,
        journal: Path | str | Ledger | None,
        resume: bool,
    ) -> BulkRun[Stream]:
        return self._run(streams, self._stopping(self._ledger(journal, "stop", resume=resume)), concurrency)

    def stop_started(self, journal: Path | str, *, concurrency: int | None) -> BulkRun[Stream]:
        opening = partial(Journal.reopen, journal_path(journal), self._owner("start"), clock=self._clock)
        ledger = RollbackLedger(opening, self._clock)
        return self._run(BulkJournal(journal).streams(), self._stopping(ledger), concurrency)

    def _stopping(self, ledger: Ledger | None) -> StopStreams:
        return StopStreams(conferences=self._conferences, calls=self._calls, deadline=self._deadline, ledger=ledger)

    def _ledger(self, journal: Path | str | Ledger | None, operation: str, *, resume: bool) -> Ledger | None:
        if journal is None and resume:
            raise InvalidRequestError("resume=True needs the journal of the run to resume: pass journal='run.db'")
        if journal is None or isinstance(journal, Ledger):
            return journal
        path, owner = journal_path(journal), self._owner(operation)
        if resume:
            opening = partial(Journal.reopen, path, owner, clock=self._clock)
        else:
            opening = partial(Journal.create, path, owner, run=token_hex(4), clock=self._clock)
        return JournalLedger(opening, self._clock)

    def _owner(self, operation: str) -> JournalOwner:
        return JournalOwner(operation, self._origin, self._project)

    def _run(
        self, items: Iterable[_Item] | AsyncIterable[_Item], operation: Operation[_Item], concurrency: int | None
    ) -> BulkRun[_Item]:
        if not (_is_iterable(items) or isinstance(items, AsyncIterable)):
            raise InvalidRequestError(
                f"the items are of type {kind_of(items)}: pass a list of them, or an iterable, which may be async"
            )
        limit: FixedConcurrency = AdaptiveConcurrency()
        if concurrency is not None:
            limit = FixedConcurrency(check_count(concurrency, "concurrency"))
        observer = None if self._observe is None else self._observe("start" if operation.is_start else "stop")
        return BulkRun(WorkerPool(items, operation, limit=limit, clock=self._clock), observer)


def _is_iterable(items: object) -> bool:
    return isinstance(items, Iterable) or hasattr(items, "__getitem__")
