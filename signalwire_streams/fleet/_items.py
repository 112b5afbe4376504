"""The items of a run in Redis: planned requests, marks and outcomes, and the reading of one or of all of them."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from attrs import fields_dict, frozen

from signalwire_streams import errors
from signalwire_streams.bulk._operations import ItemKey, outcome_unknown
from signalwire_streams.bulk._results import SUCCEEDED, BulkOutcome, BulkStatus, error_label, to_status
from signalwire_streams.bulk._serialization import (
    PlannedRequest,
    Start,
    Stream,
    planned_request,
    planned_row,
    stream_of,
    target_of,
)
from signalwire_streams.errors import (
    InvalidRequestError,
    Phase,
    RunCancelledError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.fleet._lua import COMPLETE_ITEM, LuaCall
from signalwire_streams.fleet._redis import Connection, decode_hash
from signalwire_streams.fleet._status import RunRecord
from signalwire_streams.models import GENERATED_NAME

_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, StreamsError)
}
_OMITTED = frozenset({"conference_sid", "call_sid", "extra"})
"""Fields of a stream that are not stored: its request has the target, and unknown keys may hold anything."""
_ROW = 4
CANCELLED = "the run was cancelled before its turn"
EARLIER_WORKER = "an earlier worker may have started it;"
_CLAIMED, _COMPLETED = "i:", "f:"
_OUTCOMES_AT_ONCE = 500
_BLOCK = 1_000  # milliseconds
_CACHED_BATCHES = 256
_BATCHES_AT_ONCE = 20
_UNFINISHED = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.UNKNOWN})


class Evidence(StrEnum):
    """Evidence about an item's stream from earlier attempts, by any worker or in the run that this one resumes.

    The members are in ascending order: a later one never weakens an earlier one.
    """

    NONE = ""
    THROTTLED = "t"
    """The Space responded with 429. It rarely starts the stream anyway: a duplicate of a generated name proves it."""
    REJECTED = "r"
    """The Space rejected the start temporarily, with a 503 for example. It may have started the stream anyway."""
    IN_DOUBT = "i"
    """An attempt was made, or was about to be made, and its outcome is unknown."""

    def __or__(self, other: "Evidence") -> "Evidence":
        return max(self, other, key=list(Evidence).index)


@frozen
class PlannedItem:
    """A request without its secrets, and the evidence about it from the run that this one resumes."""

    request: PlannedRequest
    earlier: Evidence = Evidence.NONE


def claimed_mark(owner: str) -> str:
    return f"{_CLAIMED}{owner}"


def completed_mark(outcome: BulkOutcome[Any], evidence: Evidence) -> str:
    """Return the mark of an item that has ended, with what is known about a stream that it may have started.

    Neither an attempt that was not sent nor a rejection undoes an earlier attempt that was rejected temporarily.
    """
    detail, sid = str(evidence), ""
    if outcome.status is BulkStatus.UNKNOWN:
        detail = Evidence.IN_DOUBT
    elif outcome.stream is not None:
        detail, sid = "1" if outcome.stream.ambiguous else "0", outcome.stream.sid or ""
    return f"{_COMPLETED}{outcome.status.value}:{detail}:{sid}"


@frozen
class ItemMark:
    """Redis' record of an item, with the resumed run's evidence.

    The text is a `claimed_mark`, a `completed_mark`, or the `Evidence` of an item that its owner left to others.
    """

    text: str = ""
    earlier: Evidence = Evidence.NONE

    @property
    def is_completed(self) -> bool:
        return self.text.startswith(_COMPLETED)

    @property
    def is_claimed(self) -> bool:
        return self.text.startswith(_CLAIMED)

    @property
    def status(self) -> str:
        """The item's `BulkStatus` as text, or an empty string."""
        return self.text.split(":", 2)[1] if self.is_completed else ""

    @property
    def evidence(self) -> Evidence:
        if self.is_completed:
            _, status, detail, _ = self.text.split(":", 3)
            return Evidence.NONE if status in SUCCEEDED else Evidence(detail)
        return self.earlier | (Evidence.IN_DOUBT if self.is_claimed else Evidence(self.text))

    @property
    def is_in_doubt(self) -> bool:
        return not self.is_completed and self.evidence is Evidence.IN_DOUBT

    def stream_of(self, request: Start) -> Stream | None:
        """Return the stream that this item started, or may have started."""
        if self.status in SUCCEEDED:
            _, _, detail, sid = self.text.split(":", 3)
            return stream_of(*target_of(request), name=request.name, ambiguous=detail == "1", sid=sid or None)
        # Under a name that the caller chose, a stream that this run did not start may be running.
        has_generated_name = request.name is not None and request.name.startswith(GENERATED_NAME)
        evidence = self.evidence
        if evidence is Evidence.IN_DOUBT or (evidence is Evidence.REJECTED and has_generated_name):
            return stream_of(*target_of(request), name=request.name)
        return None


@frozen
class ScannedItem:
    index: int
    planned: PlannedRequest
    mark: ItemMark


@frozen
class Batch:
    record: RunRecord
    number: int  # from 0

    @property
    def marks(self) -> str:
        return self.record.keys.marks(self.number)

    def get_plan(self, pipe: Any) -> None:  # noqa: ANN401  (redis-py's pipeline, or docket's)
        pipe.get(self.record.keys.requests(self.number))

    def get_marks(self, pipe: Any) -> None:  # noqa: ANN401
        pipe.hgetall(self.marks)

    def items(self, plan: bytes | str, marks: Mapping[Any, Any]) -> list[ScannedItem]:
        texts = decode_hash(marks)
        return [
            ScannedItem(index, item.request, ItemMark(texts.get(str(index), ""), item.earlier))
            for index, item in enumerate(read_batch(plan), self.number * self.record.batch_size)
        ]

    def complete(self, expected: str, outcome: BulkOutcome[Any], evidence: Evidence) -> LuaCall:
        """Return the call that writes an outcome, provided that the item's mark is the expected one."""
        values = (
            outcome.index,
            expected,
            completed_mark(outcome, evidence),
            write_outcome(outcome),
            outcome.status.value,
            outcome.attempts,
            "" if outcome.error is None else error_label(outcome.error),
            self.record.retention,
        )
        return LuaCall(COMPLETE_ITEM, (self.record.keys.run, self.record.keys.outcomes), self.marks, values)

    def complete_unsent(self, index: int, request: Start, mark: ItemMark, error: StreamsError) -> LuaCall:
        """Return the call that writes the outcome of an item that can't be started.

        One that may be running is not reported as rejected or as not attempted.
        """
        may_run = mark.is_in_doubt or (mark.evidence is Evidence.REJECTED and isinstance(error, InvalidRequestError))
        if may_run and not isinstance(error, StreamOutcomeUnknownError):
            error = outcome_unknown(key_of(request), f"{EARLIER_WORKER} {error}")
        outcome = BulkOutcome(index=index, item=request, status=to_status(error, starting=True), error=error)
        return self.complete(mark.text, outcome, mark.evidence)


def write_batch(items: Sequence[PlannedItem]) -> str:
    rows = [(*planned_row(item.request), *([item.earlier] if item.earlier else [])) for item in items]
    return json.dumps(rows, separators=(",", ":"))


def read_batch(text: bytes | str) -> list[PlannedItem]:
    return [PlannedItem(planned_request(row[:_ROW]), *map(Evidence, row[_ROW:])) for row in json.loads(text)]


def key_of(request: Start) -> ItemKey:
    return ItemKey(*target_of(request), request.name)


def write_outcome(outcome: BulkOutcome[Any]) -> str:
    document: dict[str, Any] = {
        "index": outcome.index,
        "status": outcome.status.value,
        "attempts": outcome.attempts,
        "duration": round(outcome.duration, 4),
    }
    stream, error = outcome.stream, outcome.error
    if stream is not None:
        values = {name: getattr(stream, name) for name in fields_dict(type(stream)) if name not in _OMITTED}
        document["stream"] = {name: value for name, value in values.items() if value not in (None, False)}
    if error is not None:
        document["error"] = {"class": type(error).__name__, **{n: getattr(error, n) for n in fields_dict(type(error))}}
    return json.dumps(document, separators=(",", ":"))


def read_outcome(document: Mapping[str, Any], item: Start) -> BulkOutcome[Start]:
    stream, error = document.get("stream"), document.get("error")
    return BulkOutcome(
        index=document["index"],
        item=item,
        status=BulkStatus(document["status"]),
        stream=None if stream is None else stream_of(*target_of(item), **stream),
        error=None if error is None else _read_error(error),
        attempts=document["attempts"],
        duration=document["duration"],
    )


def _read_error(document: Mapping[str, Any]) -> StreamsError:
    # A newer worker may know errors that this reader does not.
    kind = _ERRORS.get(document["class"], StreamsError)
    values = {name: value for name, value in document.items() if name in fields_dict(kind)}
    if "phase" in values:
        values["phase"] = Phase(values["phase"])
    if "errors" in values:
        values["errors"] = tuple(values["errors"])
    return kind(**values)


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
    reply: Any = await connection.run(lambda client: client.xread({key: last}, count=_OUTCOMES_AT_ONCE, block=_BLOCK))
    return [entry for _, entries in reply or () for entry in entries]  # None if nothing came in time


async def complete_unclaimed(connection: Connection, record: RunRecord, why: str) -> None:
    """Write the outcomes of all items of a cancelled run that no worker has claimed: not attempted, or unknown."""
    async for batch, items in _batches(connection, record):
        await connection.call_all(
            [
                batch.complete_unsent(item.index, item.planned.request, item.mark, RunCancelledError(why))
                for item in items
                if not (item.mark.is_completed or item.mark.is_claimed)
            ]
        )


async def read_streams(connection: Connection, record: RunRecord) -> AsyncIterator[tuple[int, Stream]]:
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
