"""Ledgers of a fleet's bulk runs: items that workers start, and streams that `Fleet` stops."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

from attrs import evolve

from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._journal import ItemRecord
from signalwire_streams.bulk._journal_file import IN_DOUBT
from signalwire_streams.bulk._operations import ItemKey, outcome_unknown
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus
from signalwire_streams.bulk._runner import is_fatal_for_run
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import FleetError, RunCancelledError, StreamOutcomeUnknownError, StreamsError
from signalwire_streams.fleet._items import CANCELLED, EARLIER_WORKER, Batch, Evidence, ItemMark, claimed_mark
from signalwire_streams.fleet._lua import CLAIM_ITEM, MARK_STOPPED, RELEASE_ITEM, LuaCall
from signalwire_streams.fleet._redis import Writer
from signalwire_streams.fleet._status import RunRecord
from signalwire_streams.models import AttemptResult

_NO_PROOF = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.REJECTED})
_LEFT_TO_OTHERS = (RunCancelledError, FleetError, StreamOutcomeUnknownError)


class _FleetLedger:
    """A ledger that needs no opening or closing. It finds an item's index by its key; for equal keys, in order."""

    def __init__(self, run: str, writer: Writer) -> None:
        self.run = run
        self._writer = writer
        self._indexes: dict[ItemKey, deque[int]] = {}

    async def begin(self) -> None:
        pass

    async def end(self) -> None:
        pass

    def find(self, key: ItemKey) -> None:
        """Return None: items that are not sent are completed, or left to other workers, without it."""

    def expect(self, key: ItemKey, index: int) -> None:
        self._indexes.setdefault(key, deque()).append(index)

    def _take(self, key: ItemKey) -> int:
        indexes = self._indexes[key]
        index = indexes.popleft()
        if not indexes:
            del self._indexes[key]
        return index


class BatchLedger(_FleetLedger):
    """Records the starts of one batch in Redis, for one owner; the `Ledger` of that bulk run.

    Before a start is sent, its mark is changed from the one that the owner found to the owner's, in one step. An owner
    that finds another's mark there sends nothing and writes no outcome.
    """

    def __init__(self, batch: Batch, *, owner: str, writer: Writer) -> None:
        super().__init__(batch.record.status.run, writer)
        self.batch = batch
        self.marks: Mapping[int, ItemMark] = {}  # as they were found
        self.cancelled = batch.record.status.cancel_reason  # why the run accepts no further starts
        self.requeued = False  # True once the owner leaves unfinished items to other workers
        self.denied: StreamsError | None = None  # the Space denied this worker; others may have a better token
        self.lost: set[int] = set()  # items that another worker took over
        self._claim = claimed_mark(owner)
        self._sending: dict[CallState, tuple[int, ItemKey, asyncio.Task[Any]]] = {}
        self._asked: set[int] = set()
        self._claimed: set[int] = set()
        self._completing: list[asyncio.Future[str]] = []
        self._releasing: list[asyncio.Future[str]] = []

    def known(self, key: ItemKey, state: CallState) -> ItemRecord | None:
        index = self._take(key)
        self._sending[state] = index, key, cast("asyncio.Task[Any]", asyncio.current_task())
        mark = self._mark(index)
        state.was_rejected_for_now |= mark.evidence in {Evidence.THROTTLED, Evidence.REJECTED}
        return ItemRecord(index, IN_DOUBT, sid=None, ambiguous=False) if mark.is_in_doubt else None

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None) -> None:  # noqa: ARG002
        """Claim an item; raise its error if the run was cancelled, or if another worker has it."""
        if self.requeued:
            raise RunCancelledError("left to other workers")
        index = self._sending[state][0]
        mark = self._mark(index)
        self._asked.add(index)
        reply = await self._call(CLAIM_ITEM, index, mark.text, self._claim, self.batch.record.retention)
        if reply == "ok":
            self._claimed.add(index)
            return
        if reply == "taken":
            self.lost.add(index)
            raise RunCancelledError("another worker has taken this over")
        self.cancelled = self.cancelled or CANCELLED
        if mark.is_in_doubt:
            raise outcome_unknown(key, f"{EARLIER_WORKER} {self.cancelled}")
        raise RunCancelledError(self.cancelled)

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        """Write an outcome, or release the item if it is left to other workers."""
        index, key, _ = self._sending.pop(state, (None, None, None))
        if index is None or key is None or index in self.lost:
            return
        error = outcome.error
        is_denied = error is not None and is_fatal_for_run(error)
        if is_denied:
            self.denied = error
        self.requeued |= is_denied or isinstance(error, FleetError)
        if is_denied or (self.requeued and isinstance(error, _LEFT_TO_OTHERS)):
            if not (isinstance(error, StreamOutcomeUnknownError) or self._mark(index).is_claimed):
                self._release(index, state)
            return
        if state.may_have_succeeded and outcome.status in _NO_PROOF:
            unknown = outcome_unknown(key, f"{EARLIER_WORKER} then: {error}", attempts=outcome.attempts)
            outcome = evolve(outcome, status=BulkStatus.UNKNOWN, error=unknown)
        self._complete(index, outcome, self._evidence(index, state))

    def complete_rest(self, requests: Mapping[int, Start]) -> None:
        unsent = {index for indexes in self._indexes.values() for index in indexes}
        for index, request in requests.items():
            if index in unsent:
                self.complete_unsent(index, request, RunCancelledError(self.cancelled or CANCELLED))

    def complete_unsent(self, index: int, request: Start, error: StreamsError) -> None:
        self._completing.append(self._writer.call(self.batch.complete_unsent(index, request, self._mark(index), error)))

    def requeue(self) -> None:
        """Cancel the starts in flight, and leave them to other workers."""
        self.requeued = True
        for _, _, task in self._sending.values():
            task.cancel()

    async def written(self) -> bool:
        """Wait until Redis has everything. Return True if every item of the batch is completed there."""
        completing = len(self._completing)
        replies = await asyncio.gather(*self._completing, *self._releasing)
        before = sum(mark.is_completed for mark in self.marks.values())
        return before + replies[:completing].count("ok") >= len(self.marks)

    def _mark(self, index: int) -> ItemMark:
        return self.marks.get(index, ItemMark())

    def _evidence(self, index: int, state: CallState) -> Evidence:
        """Return the evidence about an item that is not known to be running."""
        rejected = Evidence.THROTTLED if state.rejections <= {AttemptResult.THROTTLED} else Evidence.REJECTED
        return self._mark(index).evidence | (rejected if state.rejections else Evidence.NONE)

    def _complete(self, index: int, outcome: BulkOutcome[Any], evidence: Evidence) -> None:
        expected = self._claim if index in self._claimed else self._mark(index).text
        call = self.batch.complete(expected, evolve(outcome, index=index), evidence)
        self._completing.append(self._writer.call(call))

    def _release(self, index: int, state: CallState) -> None:
        # Even if the reply to the claim never arrived: Redis may have the claim.
        if index in self._asked:
            self._releasing.append(self._call(RELEASE_ITEM, index, self._claim, self._evidence(index, state)))

    def _call(self, source: str, *values: object) -> "asyncio.Future[str]":
        return self._writer.call(LuaCall(source, (self.batch.record.keys.run,), self.batch.marks, values))


class StopLedger(_FleetLedger):
    """Records which streams of a run were stopped; the `Ledger` of that bulk run.

    A stop can be repeated safely, so nothing is recorded before it.
    """

    record: RunRecord  # known once the run was read, before its first stream

    def __init__(self, run: str, writer: Writer) -> None:
        super().__init__(run, writer)
        self._stopping: dict[CallState, int] = {}

    def known(self, key: ItemKey, state: CallState) -> ItemRecord | None:
        self._stopping[state] = self._take(key)
        return None

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None) -> None:
        pass

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        index = self._stopping.pop(state, None)
        if index is None or outcome.status is not BulkStatus.STOPPED:
            return
        keys, retention = self.record.keys, self.record.retention
        # The fleet waits for this when it is closed.
        _ = self._writer.call(LuaCall(MARK_STOPPED, (keys.run,), keys.stopped, (index, retention)))
