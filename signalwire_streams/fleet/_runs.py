"""Reading a run's items in Redis: its outcomes as they come, and all of its items once it has ended."""

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from attrs import frozen

from signalwire_streams.bulk._results import BulkOutcome, BulkStatus, to_status
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import InvalidRequestError, RunCancelledError, StreamsError
from signalwire_streams.fleet._items import (
    ItemMark,
    PlannedItem,
    key_of,
    outcome_unknown,
    read_batch,
    read_outcome,
)
from signalwire_streams.fleet._ledger import Batch
from signalwire_streams.fleet._redis import Connection, Keys, RunKeys, decode_hash
from signalwire_streams.fleet._status import RunRecord
from signalwire_streams.models import CallStream, ConferenceStream

_OUTCOMES_AT_ONCE = 500
_BLOCK = 1_000  # milliseconds
_CACHED_BATCHES = 256
_BATCHES_AT_ONCE = 20
_UNFINISHED = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.UNKNOWN})


def _expired(run: str) -> InvalidRequestError:
    return InvalidRequestError(f"the run {run!r} is older than its retention period")


class ResultReader:
    """Reads a run's outcomes once.

    Attributes:
        record: returns the run's record, and raises if it has expired.
    """

    def __init__(self, connection: Connection, keys: Keys, record: Callable[[], Awaitable[RunRecord]]) -> None:
        self._connection = connection
        self._keys = keys
        self._record = record
        self._batches: OrderedDict[int, list[PlannedItem]] = OrderedDict()

    async def outcomes(self) -> AsyncGenerator[BulkOutcome[Start], None]:
        """Yield the outcome of each item, until there is one for each.

        Raises:
            InvalidRequestError: the run has expired.
            FleetError: Redis is unavailable.
        """
        record = await self._record()
        keys = self._keys.of(record.run, record.plan)
        last: Any = "0-0"
        seen = 0
        while seen < record.planned:
            entries = await self._read(keys.outcomes, last)
            if not entries:
                record = await self._record()
                continue
            last = entries[-1][0]
            documents = [json.loads(*fields.values()) for _, fields in entries]
            await self._fetch(record.run, keys, {document["index"] // record.batch_size for document in documents})
            for document in documents:
                seen += 1
                batch, place = divmod(document["index"], record.batch_size)
                yield read_outcome(document, self._batches[batch][place].request.request)
            while len(self._batches) > _CACHED_BATCHES:
                self._batches.popitem(last=False)

    async def _read(self, key: str, last: Any) -> list[Any]:  # noqa: ANN401  (an id of redis-py's)
        answer: Any = await self._connection.run(
            lambda client: client.xread({key: last}, count=_OUTCOMES_AT_ONCE, block=_BLOCK)
        )
        if not answer:
            return []
        is_resp3 = isinstance(answer, dict)
        [(_, entries)] = answer.items() if is_resp3 else answer
        return list(entries[0] if is_resp3 else entries)

    async def _fetch(self, run: str, keys: RunKeys, numbers: set[int]) -> None:
        missing = sorted(numbers - self._batches.keys())
        texts = await self._connection.pipeline(
            lambda pipe: [pipe.get(keys.requests(number)) for number in missing],
        )
        for number, text in zip(missing, texts, strict=True):
            if text is None:
                raise _expired(run)
            self._batches[number] = read_batch(text)


@frozen
class ScannedItem:
    """An item of a run, its index, and its mark."""

    index: int
    planned: PlannedItem
    mark: ItemMark

    @property
    def request(self) -> Start:
        return self.planned.request.request


class RunScan:
    """Scans all items of a run that accepts no further starts."""

    def __init__(self, connection: Connection, keys: RunKeys, record: RunRecord) -> None:
        self._connection = connection
        self._keys = keys
        self._record = record

    async def settle(self, why: str) -> None:
        """Write the outcomes of all items that no worker has claimed: not attempted, or unknown."""
        async for number, items in self._batches():
            batch = Batch(keys=self._keys, run=self._record.run, number=number, retention=self._record.retention)
            await self._connection.call_all(
                [
                    batch.complete(item.mark.text, _cancelled(item, why), item.mark.evidence)
                    for item in items
                    if not (item.mark.is_settled or item.mark.is_claimed)
                ]
            )

    async def streams(self) -> AsyncIterator[tuple[int, ConferenceStream | CallStream]]:
        """Yield the streams that the run started, or may have started, and that were not stopped since."""
        stopped = await self._connection.hash(self._keys.stopped)
        async for _, items in self._batches():
            for item in items:
                stream = item.mark.stream_of(item.request)
                if stream is not None and str(item.index) not in stopped:
                    yield item.index, stream

    async def unfinished(self) -> AsyncIterator[PlannedItem]:
        """Yield the items that were not attempted, and those whose outcome is unknown."""
        async for _, items in self._batches(must_be_complete=True):
            for item in items:
                if item.mark.status in _UNFINISHED:
                    yield PlannedItem(item.planned.request, item.mark.evidence)

    async def _batches(self, *, must_be_complete: bool = False) -> AsyncIterator[tuple[int, Sequence[ScannedItem]]]:
        for first in range(0, self._record.batches, _BATCHES_AT_ONCE):
            numbers = range(first, min(first + _BATCHES_AT_ONCE, self._record.batches))
            replies = await self._connection.pipeline(partial(self._queue, numbers))
            for number, plan, marks in zip(numbers, replies[: len(numbers)], replies[len(numbers) :], strict=True):
                if plan is not None:
                    yield number, scanned(plan, decode_hash(marks), number * self._record.batch_size)
                elif must_be_complete:
                    raise _expired(self._record.run)

    def _queue(self, numbers: Sequence[int], pipe: Any) -> None:  # noqa: ANN401  (redis-py's pipeline, or docket's)
        for number in numbers:
            pipe.get(self._keys.requests(number))
        for number in numbers:
            pipe.hgetall(self._keys.marks(number))


def scanned(plan: bytes | str, marks: dict[str, str], first: int) -> list[ScannedItem]:
    """Combine a batch's requests and marks, which begin at the index *first*."""
    return [
        ScannedItem(index, planned, ItemMark(marks.get(str(index), ""), planned.earlier))
        for index, planned in enumerate(read_batch(plan), first)
    ]


def _cancelled(item: ScannedItem, why: str) -> BulkOutcome[Start]:
    error: StreamsError = RunCancelledError(why)
    if item.mark.is_in_doubt:
        error = outcome_unknown(key_of(item.request), why)
    return BulkOutcome(index=item.index, item=item.request, status=to_status(error, starting=True), error=error)
