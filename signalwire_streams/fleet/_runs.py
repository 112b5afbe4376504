"""Reading a run's items in Redis: its outcomes as they arrive, and all of its items once it has ended."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
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
    batches: dict[int, list[PlannedItem]] = {}
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
        texts = await connection.pipeline(*(Batch(record, number).get_plan for number in missing))
        for number, text in zip(missing, texts, strict=True):
            if text is None:
                raise _expired(record)
            batches[number] = read_batch(text)
        for document in documents:
            seen += 1
            batch, place = divmod(document["index"], record.batch_size)
            yield read_outcome(document, batches[batch][place].request.request)
        while len(batches) > _CACHED_BATCHES:
            del batches[next(iter(batches))]


async def _read_stream(connection: Connection, key: str, last: Any) -> list[Any]:  # noqa: ANN401  (an id of redis-py's)
    answer: Any = await connection.run(lambda client: client.xread({key: last}, count=_OUTCOMES_AT_ONCE, block=_BLOCK))
    if not answer:
        return []
    is_resp3 = isinstance(answer, dict)
    [(_, entries)] = answer.items() if is_resp3 else answer
    return list(entries[0] if is_resp3 else entries)


async def settle_unclaimed(connection: Connection, record: RunRecord, why: str) -> None:
    """Write the outcomes of all items of a cancelled run that no worker has claimed: not attempted, or unknown."""
    async for batch, items in _batches(connection, record):
        await connection.call_all(
            [
                batch.complete_unsent(item.index, item.planned.request, item.mark, RunCancelledError(why))
                for item in items
                if not (item.mark.is_settled or item.mark.is_claimed)
            ]
        )


async def read_streams(
    connection: Connection, record: RunRecord
) -> AsyncIterator[tuple[int, ConferenceStream | CallStream]]:
    """Yield the streams that the run started, or may have started, and that were not stopped since."""
    stopped = await connection.hash(record.keys.stopped)
    async for _, items in _batches(connection, record):
        for item in items:
            stream = item.mark.stream_of(item.planned.request)
            if stream is not None and str(item.index) not in stopped:
                yield item.index, stream


async def read_unfinished(connection: Connection, record: RunRecord) -> AsyncIterator[PlannedItem]:
    """Yield the items of a finished run that were not attempted, and those whose outcome is unknown."""
    async for _, items in _batches(connection, record, must_be_complete=True):
        for item in items:
            if item.mark.status in _UNFINISHED:
                yield PlannedItem(item.planned, item.mark.evidence)


async def _batches(
    connection: Connection, record: RunRecord, *, must_be_complete: bool = False
) -> AsyncIterator[tuple[Batch, Sequence[ScannedItem]]]:
    batches = [Batch(record, number) for number in range(record.batches)]
    for first in range(0, len(batches), _BATCHES_AT_ONCE):
        some = batches[first : first + _BATCHES_AT_ONCE]
        commands = (command for batch in some for command in (batch.get_plan, batch.get_marks))
        replies = iter(await connection.pipeline(*commands))
        for batch, plan, marks in zip(some, replies, replies, strict=True):
            if plan is not None:
                yield batch, batch.items(plan, marks)
            elif must_be_complete:
                raise _expired(record)
