"""Reading a run's items in Redis: its outcomes as they come, and all of its items once it has ended."""

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

from signalwire_streams.bulk._results import BulkOutcome, BulkStatus
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import InvalidRequestError, RunCancelledError
from signalwire_streams.fleet._items import Batch, PlannedItem, ScannedItem, read_batch, read_outcome
from signalwire_streams.fleet._redis import Connection
from signalwire_streams.fleet._status import RunRecord
from signalwire_streams.models import CallStream, ConferenceStream

_OUTCOMES_AT_ONCE = 500
_BLOCK = 1_000  # milliseconds
_CACHED_BATCHES = 256
_BATCHES_AT_ONCE = 20
_UNFINISHED = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.UNKNOWN})


def _expired(record: RunRecord) -> InvalidRequestError:
    return InvalidRequestError(f"the run {record.status.run!r} is older than its retention period")


async def read_results(
    connection: Connection, find: Callable[[], Awaitable[RunRecord]]
) -> AsyncGenerator[BulkOutcome[Start], None]:
    """Yield outcomes until each item has one. *find* returns the run's record, and raises if it has expired."""
    record = await find()
    batches: OrderedDict[int, list[PlannedItem]] = OrderedDict()
    last: Any = "0-0"
    seen = 0
    while seen < record.status.planned:
        entries = await _read_stream(connection, record.keys.outcomes, last)
        if not entries:
            record = await find()
            continue
        last = entries[-1][0]
        documents = [json.loads(*fields.values()) for _, fields in entries]
        missing = sorted({document["index"] // record.batch_size for document in documents} - batches.keys())
        texts = await connection.pipeline(partial(_queue_requests, record, missing))
        for number, text in zip(missing, texts, strict=True):
            if text is None:
                raise _expired(record)
            batches[number] = read_batch(text)
        for document in documents:
            seen += 1
            batch, place = divmod(document["index"], record.batch_size)
            yield read_outcome(document, batches[batch][place].request.request)
        while len(batches) > _CACHED_BATCHES:
            batches.popitem(last=False)


async def _read_stream(connection: Connection, key: str, last: Any) -> list[Any]:  # noqa: ANN401  (an id of redis-py's)
    answer: Any = await connection.run(lambda client: client.xread({key: last}, count=_OUTCOMES_AT_ONCE, block=_BLOCK))
    if not answer:
        return []
    is_resp3 = isinstance(answer, dict)
    [(_, entries)] = answer.items() if is_resp3 else answer
    return list(entries[0] if is_resp3 else entries)


def _queue_requests(record: RunRecord, numbers: Iterable[int], pipe: Any) -> None:  # noqa: ANN401  (redis-py's, or docket's)
    for number in numbers:
        pipe.get(record.keys.requests(number))


class RunScan:
    """Scans all items of a run that accepts no further starts."""

    def __init__(self, connection: Connection, record: RunRecord) -> None:
        self._connection = connection
        self._record = record

    async def settle(self, why: str) -> None:
        """Write the outcomes of all items that no worker has claimed: not attempted, or unknown."""
        async for batch, items in self._batches():
            await self._connection.call_all(
                [
                    batch.refuse(item.index, item.request, item.mark, RunCancelledError(why))
                    for item in items
                    if not (item.mark.is_settled or item.mark.is_claimed)
                ]
            )

    async def streams(self) -> AsyncIterator[tuple[int, ConferenceStream | CallStream]]:
        """Yield the streams that the run started, or may have started, and that were not stopped since."""
        stopped = await self._connection.hash(self._record.keys.stopped)
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

    async def _batches(self, *, must_be_complete: bool = False) -> AsyncIterator[tuple[Batch, Sequence[ScannedItem]]]:
        batches = [Batch(self._record, number) for number in range(self._record.batches)]
        for first in range(0, len(batches), _BATCHES_AT_ONCE):
            some = batches[first : first + _BATCHES_AT_ONCE]
            replies = iter(await self._connection.pipeline(partial(_queue_batches, some)))
            for batch, plan, marks in zip(some, replies, replies, strict=True):
                if plan is not None:
                    yield batch, batch.items(plan, marks)
                elif must_be_complete:
                    raise _expired(self._record)


def _queue_batches(batches: Iterable[Batch], pipe: Any) -> None:  # noqa: ANN401  (redis-py's, or docket's)
    for batch in batches:
        batch.queue_read(pipe)
