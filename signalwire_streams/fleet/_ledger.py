"""Ledgers of a fleet's bulk runs: items that workers start, and streams that `Fleet` stops."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from attrs import evolve, frozen

from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._journal import ItemRecord
from signalwire_streams.bulk._journal_file import IN_DOUBT
from signalwire_streams.bulk._operations import ItemKey
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, error_label, to_status
from signalwire_streams.bulk._runner import is_fatal_for_run
from signalwire_streams.bulk._serialization import Start, target_kind
from signalwire_streams.errors import (
    FleetError,
    InvalidRequestError,
    RunCancelledError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.fleet._items import (
    Evidence,
    ItemMark,
    claimed_mark,
    key_of,
    outcome_unknown,
    settled_mark,
    write_outcome,
)
from signalwire_streams.fleet._lua import CLAIM_ITEM, COMPLETE_ITEM, MARK_STOPPED, RELEASE_ITEM, LuaCall
from signalwire_streams.fleet._redis import RunKeys, Writer
from signalwire_streams.models import AttemptResult, CallStream, ConferenceStream

_NO_PROOF = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.REJECTED})
_CANCELLED = "the run was cancelled before its turn"


@frozen(kw_only=True)
class Batch:
    """A batch of a run: its keys, its number from 0, and the retention of its records in seconds."""

    keys: RunKeys
    run: str
    number: int
    retention: int

    @property
    def marks(self) -> str:
        return self.keys.marks(self.number)

    def complete(self, expected: str, outcome: BulkOutcome[Any], evidence: Evidence) -> LuaCall:
        """Return the call that writes an outcome, provided that the item's mark is the expected one."""
        values = (
            outcome.index,
            expected,
            settled_mark(outcome, evidence),
            write_outcome(outcome),
            outcome.status.value,
            outcome.attempts,
            "" if outcome.error is None else error_label(outcome.error),
            self.retention,
        )
        return LuaCall(COMPLETE_ITEM, (self.keys.run, self.keys.outcomes), self.marks, values)


class _Expected:
    """Items of a run that the bulk machinery knows by their key only; of equal keys the first comes first."""

    def __init__(self) -> None:
        self._indexes: dict[ItemKey, deque[int]] = {}

    def add(self, key: ItemKey, index: int) -> None:
        self._indexes.setdefault(key, deque()).append(index)

    def take(self, key: ItemKey) -> int:
        indexes = self._indexes[key]
        index = indexes.popleft()
        if not indexes:
            del self._indexes[key]
        return index

    def discard(self, key: ItemKey, index: int) -> bool:
        """Remove an item. Return False if it was taken, or never added."""
        if index not in self._indexes.get(key, ()):
            return False
        self._indexes[key].remove(index)
        return True


class BatchLedger:
    """Records the starts of one batch in Redis, for one owner; the `Ledger` of that bulk run.

    Before a start is sent, its mark is changed from the one that the owner found to the owner's, in one step. An owner
    that finds another's mark there sends nothing and writes no outcome.

    Attributes:
        marks: the marks as they were found, by index.
        cancelled: why the run accepts no further starts, or None.
        handed_back: True once the owner leaves unfinished items to other workers.
        denied: the error, if the Space denies access to this worker; others may have a better token.
        lost: items that another worker took over.
    """

    def __init__(self, batch: Batch, *, owner: str, writer: Writer, cancelled: str | None = None) -> None:
        self.batch = batch
        self.marks: Mapping[int, ItemMark] = {}
        self.size = 0
        self.cancelled = cancelled
        self.handed_back = False
        self.denied: StreamsError | None = None
        self.lost: set[int] = set()
        self._claim = claimed_mark(owner)
        self._writer = writer
        self._expected = _Expected()
        self._items: dict[CallState, tuple[int, ItemKey]] = {}
        self._tasks: dict[CallState, asyncio.Task[Any]] = {}
        self._asked: set[int] = set()
        self._claimed: set[int] = set()
        self._completing: list[asyncio.Future[str]] = []
        self._releasing: list[asyncio.Future[str]] = []

    def expect(self, items: Iterable[tuple[int, Start]]) -> Sequence[Start]:
        """Register the items that will be started, by index. Return their requests."""
        requests = []
        for index, request in items:
            self._expected.add(key_of(request), index)
            requests.append(request)
        return requests

    @property
    def run(self) -> str:
        return self.batch.run

    async def begin(self) -> None:
        pass  # everything was read before

    async def end(self) -> None:
        pass  # `written` waits for what is not written yet

    def known(self, key: ItemKey, state: CallState) -> ItemRecord | None:
        index = self._expected.take(key)
        self._items[state] = index, key
        self._tasks[state] = cast("asyncio.Task[Any]", asyncio.current_task())
        mark = self._mark(index)
        state.was_refused_for_now |= mark.evidence in {Evidence.THROTTLED, Evidence.REFUSED}
        return ItemRecord(index, IN_DOUBT, sid=None, ambiguous=False) if mark.is_in_doubt else None

    def find(self, key: ItemKey) -> None:
        """Return None: `settle_rest` reports what is not sent."""

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None) -> None:  # noqa: ARG002
        """Claim an item.

        Raises:
            RunCancelledError: the run was cancelled, or another worker has this item.
            StreamOutcomeUnknownError: the run was cancelled, and an earlier worker may have sent this item.
        """
        if self.handed_back:
            raise RunCancelledError("left to other workers")
        index, _ = self._items[state]
        mark = self._mark(index)
        self._asked.add(index)
        answer = await self._call(CLAIM_ITEM, index, mark.text, self._claim, self.batch.retention)
        if answer == "ok":
            self._claimed.add(index)
            return
        if answer == "taken":
            self.lost.add(index)
            raise RunCancelledError("another worker has taken this over")
        self.cancelled = self.cancelled or _CANCELLED
        raise self._not_sent(key, mark)

    def note(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        """Write an outcome, or release the item if it is left to other workers."""
        self._tasks.pop(state, None)
        index, key = self._items.pop(state, (None, None))
        if index is None or key is None or index in self.lost:
            return
        error = outcome.error
        if error is not None and is_fatal_for_run(error):
            self.denied, self.handed_back = error, True
            if not isinstance(error, StreamOutcomeUnknownError):
                self._release(index, state)
            return
        self.handed_back |= isinstance(error, FleetError)
        if self.handed_back and isinstance(error, RunCancelledError | FleetError | StreamOutcomeUnknownError):
            if not (isinstance(error, StreamOutcomeUnknownError) or self._mark(index).is_claimed):
                self._release(index, state)
            return
        if state.may_have_succeeded and outcome.status in _NO_PROOF:
            unknown = outcome_unknown(key, f"then: {error}", attempts=outcome.attempts)
            outcome = evolve(outcome, status=BulkStatus.UNKNOWN, error=unknown)
        self._complete(index, outcome, self._evidence(index, state))

    def settle_rest(self, requests: Mapping[int, Start]) -> None:
        """Write the outcomes of all items that were not sent when the run was cancelled."""
        for index, request in requests.items():
            key = key_of(request)
            if self._expected.discard(key, index):
                self.refuse(index, request, self._not_sent(key, self._mark(index)))

    def refuse(self, index: int, request: Start, error: StreamsError) -> None:
        """Write the outcome of an item that can't be started; one that may be running is not reported as rejected."""
        mark = self._mark(index)
        may_run = mark.is_in_doubt or (mark.evidence is Evidence.REFUSED and isinstance(error, InvalidRequestError))
        if may_run and not isinstance(error, StreamOutcomeUnknownError):
            error = outcome_unknown(key_of(request), str(error))
        outcome = BulkOutcome(index=index, item=request, status=to_status(error, starting=True), error=error)
        self._complete(index, outcome, mark.evidence)

    def hand_back(self) -> None:
        """Cancel the starts in flight, and leave them to other workers."""
        self.handed_back = True
        for task in self._tasks.values():
            task.cancel()

    async def written(self) -> bool:
        """Wait until Redis has everything. Return True if every item of the batch is settled there.

        Raises:
            FleetError: Redis is unavailable.
        """
        completing = len(self._completing)
        answers = await asyncio.gather(*self._completing, *self._releasing)
        before = sum(mark.is_settled for mark in self.marks.values())
        return before + answers[:completing].count("ok") >= self.size

    def _mark(self, index: int) -> ItemMark:
        return self.marks.get(index, ItemMark())

    def _evidence(self, index: int, state: CallState) -> Evidence:
        """Return the evidence about an item that is not known to be running."""
        refused = Evidence.THROTTLED if state.refusals <= {AttemptResult.THROTTLED} else Evidence.REFUSED
        return self._mark(index).evidence | (refused if state.refusals else Evidence.NONE)

    def _not_sent(self, key: ItemKey, mark: ItemMark) -> StreamsError:
        why = self.cancelled or _CANCELLED
        return outcome_unknown(key, why) if mark.is_in_doubt else RunCancelledError(why)

    def _complete(self, index: int, outcome: BulkOutcome[Any], evidence: Evidence) -> None:
        expected = self._claim if index in self._claimed else self._mark(index).text
        call = self.batch.complete(expected, evolve(outcome, index=index), evidence)
        self._completing.append(self._writer.call(call))

    def _release(self, index: int, state: CallState) -> None:
        # Even if the answer to the claim never arrived: Redis may have it.
        if index in self._asked:
            mark = self._evidence(index, state)
            self._releasing.append(self._call(RELEASE_ITEM, index, self._claim, mark))

    def _call(self, source: str, *values: object) -> "asyncio.Future[str]":
        return self._writer.call(LuaCall(source, (self.batch.keys.run,), self.batch.marks, values))


class StopLedger:
    """Records which streams of a run were stopped; the `Ledger` of that bulk run.

    A stop can be repeated safely, so nothing is recorded before it.
    """

    def __init__(self, run: str, writer: Writer) -> None:
        self.run = run
        self.keys: RunKeys  # known once the run was read, before its first stream
        self.retention = 0
        self._writer = writer
        self._expected = _Expected()
        self._indexes: dict[CallState, int] = {}

    def expect(self, index: int, stream: ConferenceStream | CallStream) -> None:
        handle = stream.name or stream.sid
        target = stream.conference_sid if isinstance(stream, ConferenceStream) else stream.call_sid
        self._expected.add(ItemKey(target_kind(stream), target, handle), index)

    async def begin(self) -> None:
        pass

    async def end(self) -> None:
        pass

    def known(self, key: ItemKey, state: CallState) -> ItemRecord | None:
        self._indexes[state] = self._expected.take(key)
        return None

    def find(self, key: ItemKey) -> None:
        """Return None: what is not stopped is found again."""

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None) -> None:
        pass

    def note(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        index = self._indexes.pop(state, None)
        if index is None or outcome.status is not BulkStatus.STOPPED:
            return
        # The fleet waits for this when it is closed.
        _ = self._writer.call(LuaCall(MARK_STOPPED, (self.keys.run,), self.keys.stopped, (index, self.retention)))
