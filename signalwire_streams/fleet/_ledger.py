"""The book that the starts of one batch are kept in: marks and outcomes in Redis, under one owner's name."""

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from attrs import define, evolve, field, fields_dict, frozen

from signalwire_streams import errors
from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._journal import ItemRecord
from signalwire_streams.bulk._journal_file import IN_DOUBT
from signalwire_streams.bulk._operations import ItemKey
from signalwire_streams.bulk._results import SUCCEEDED, BulkOutcome, BulkStatus, error_label
from signalwire_streams.bulk._runner import is_fatal_for_run
from signalwire_streams.bulk._serialization import PlannedRequest, Start, planned_request, planned_row
from signalwire_streams.errors import Phase, RunCancelledError, StreamOutcomeUnknownError, StreamsError
from signalwire_streams.fleet._redis import INTEND, RELEASE, SETTLE, UNDO, RunKeys, Step, Writer
from signalwire_streams.models import CallStream, ConferenceStream, StartConferenceStream

_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, StreamsError)
}
_NOT_OF_STREAMS = frozenset({"conference_sid", "call_sid", "extra"})
"""Fields of a stream that are not written: its request has the target, and unknown keys may hold anything."""
_MAY_RUN = SUCCEEDED | {BulkStatus.UNKNOWN}
_PARTS = 4
_ROW = 4


@frozen
class Planned:
    """A start of a run.

    Attributes:
        request: what is to be started, without secrets.
        may_run: whether an earlier run may have started it.
    """

    request: PlannedRequest
    may_run: bool = False


def write_batch(starts: Sequence[Planned]) -> str:
    """Write starts down, in their order."""
    rows = [(*planned_row(start.request), *([True] if start.may_run else [])) for start in starts]
    return json.dumps(rows, separators=(",", ":"))


def read_batch(text: bytes | str) -> list[Planned]:
    """Read starts that were written down."""
    return [Planned(planned_request(tuple(row[:4])), may_run=len(row) > _ROW) for row in json.loads(text)]


def write_outcome(outcome: BulkOutcome[Any]) -> str:
    """Write an outcome down; its item is known by its index."""
    facts: dict[str, Any] = {
        "index": outcome.index,
        "state": outcome.status.value,
        "attempts": outcome.attempts,
        "seconds": round(outcome.duration, 4),
    }
    stream, error = outcome.stream, outcome.error
    if stream is not None:
        kept = {name: getattr(stream, name) for name in fields_dict(type(stream)) if name not in _NOT_OF_STREAMS}
        facts["stream"] = {name: value for name, value in kept.items() if value not in (None, False)}
    if error is not None:
        known = {name: getattr(error, name) for name in fields_dict(type(error))}
        facts["error"] = {"class": type(error).__name__, **known}
    return json.dumps(facts, separators=(",", ":"))


def read_index(text: bytes | str) -> tuple[int, Mapping[str, Any]]:
    """Read which item an outcome is of, and the rest of it for `read_outcome`."""
    facts: dict[str, Any] = json.loads(text)
    return int(facts["index"]), facts


def read_outcome(facts: Mapping[str, Any], item: Start) -> BulkOutcome[Start]:
    """Read an outcome that was written down."""
    stream = facts.get("stream")
    return BulkOutcome(
        index=facts["index"],
        item=item,
        status=BulkStatus(facts["state"]),
        stream=None if stream is None else _stream_on(item, stream),
        error=_read_error(facts["error"]) if "error" in facts else None,
        attempts=facts["attempts"],
        duration=facts["seconds"],
    )


def _stream_on(request: Start, fields: Mapping[str, Any]) -> ConferenceStream | CallStream:
    if isinstance(request, StartConferenceStream):
        return ConferenceStream(conference_sid=request.target, **fields)
    return CallStream(call_sid=request.target, **fields)


def _read_error(facts: Mapping[str, Any]) -> StreamsError:
    # A newer worker may know errors that this reader does not.
    kind = _ERRORS.get(facts["class"], StreamsError)
    fields = {name: value for name, value in facts.items() if name in fields_dict(kind)}
    if "phase" in fields:
        fields["phase"] = Phase(fields["phase"])
    if "errors" in fields:
        fields["errors"] = tuple(fields["errors"])
    return kind(**fields)


def outcome_error_label(outcome: BulkOutcome[Any]) -> str:
    """Give what an outcome's error is counted by, or an empty text."""
    return "" if outcome.error is None else error_label(outcome.error)


def intended(owner: str) -> str:
    """Write the mark of a start that its owner may have sent."""
    return f"i:{owner}"


def settled(outcome: BulkOutcome[Any]) -> str:
    """Write the mark of a start that has ended."""
    stream = outcome.stream
    ambiguous, sid = (int(stream.ambiguous), stream.sid or "") if stream is not None else (0, "")
    return f"f:{outcome.status.value}:{ambiguous}:{sid}"


@frozen
class Mark:
    """A start's mark.

    Attributes:
        text: as it is in Redis; empty where there is none.
        may_run: whether an earlier run may have made this start.
    """

    text: str = ""
    may_run: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether the start has ended."""
        return self.text.startswith("f:")

    @property
    def state(self) -> str:
        """How the start ended, as a `BulkStatus`'s text, or an empty one."""
        return self.text.split(":", 2)[1] if self.is_settled else ""

    @property
    def is_doubtful(self) -> bool:
        """Whether it may have been sent, and nothing is known of its end."""
        return self.text.startswith("i:") or (self.may_run and not self.text)

    def stream_of(self, request: Start) -> ConferenceStream | CallStream | None:
        """Give the stream that it started, or may have started."""
        if self.is_doubtful:
            return _stream_on(request, {"name": request.name})
        parts = self.text.split(":", _PARTS - 1)
        if len(parts) < _PARTS or parts[1] not in _MAY_RUN:
            return None
        return _stream_on(request, {"name": request.name, "ambiguous": parts[2] == "1", "sid": parts[3] or None})


_NO_NEWS = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.REJECTED})


@frozen
class Batch:
    """Which starts these are.

    Attributes:
        keys: what the run's things are called.
        run: the run.
        number: the batch's place in it, from 0.
        keep: seconds that Redis keeps what it hears of them.
    """

    keys: RunKeys
    run: str
    number: int
    keep: int

    @property
    def marks(self) -> str:
        """The key of their marks."""
        return self.keys.marks(self.number)


def key_of(request: Start) -> ItemKey:
    """Give what a start is known by."""
    kind = "conference" if isinstance(request, StartConferenceStream) else "call"
    return ItemKey(kind, request.target, request.name)


def settling(batch: Batch, believed: str, outcome: BulkOutcome[Any]) -> Step:
    """Spell how an outcome is written, provided that the mark is the one that is believed."""
    values = (
        outcome.index,
        believed,
        settled(outcome),
        write_outcome(outcome),
        outcome.status.value,
        outcome.attempts,
        outcome_error_label(outcome),
        batch.keep,
    )
    return Step(SETTLE, (batch.keys.facts, batch.keys.outcomes), batch.marks, values)


@define(eq=False)
class BatchLedger:
    """Keeps book of the starts of one batch, for one owner.

    Before a start goes out its mark must be set from what the owner found to his own, in one step; whoever finds
    another's mark there sends nothing, and writes no outcome.

    Attributes:
        batch: which starts these are.
        owner: who carries them out; another one for each delivery.
        writer: writes in Redis.
        marks: the marks as they were found, by index.
        size: how many starts the batch has.
        ended: why the run takes no further starts, or None.
        handed_back: whether the owner was cut, and leaves to others what he has not finished.
        denied: what the Space said, where it refuses whatever this worker sends; others may have a better token.
        lost: starts that somebody else had taken over.
    """

    batch: Batch
    owner: str
    writer: Writer
    marks: Mapping[int, Mark]
    size: int = 0
    ended: str | None = None
    handed_back: bool = field(init=False, default=False)
    denied: StreamsError | None = field(init=False, default=None)
    lost: set[int] = field(init=False, factory=set)
    _waiting: dict[ItemKey, deque[int]] = field(init=False, factory=dict)
    _rows: dict[CallState, int] = field(init=False, factory=dict)
    _tasks: dict[CallState, "asyncio.Task[Any]"] = field(init=False, factory=dict)
    _asked: set[int] = field(init=False, factory=set)
    _own: set[int] = field(init=False, factory=set)
    _settling: list["asyncio.Future[str]"] = field(init=False, factory=list)
    _releasing: list["asyncio.Future[str]"] = field(init=False, factory=list)

    def expect(self, starts: Iterable[tuple[int, Start]]) -> Sequence[Start]:
        """Hear which starts will come, each with its index, and give them."""
        requests = []
        for index, request in starts:
            self._waiting.setdefault(key_of(request), deque()).append(index)
            requests.append(request)
        return requests

    @property
    def run(self) -> str:
        """What the run is called."""
        return self.batch.run

    async def begin(self) -> None:
        """Do nothing; what is to be known was read beforehand."""

    async def end(self) -> None:
        """Do nothing; what is written is waited for with `written`."""

    def known(self, key: ItemKey, progress: CallState) -> ItemRecord | None:
        """See Ledger.known."""
        index = self._waiting[key].popleft()
        self._rows[progress] = index
        self._tasks[progress] = cast("asyncio.Task[Any]", asyncio.current_task())
        return ItemRecord(index, IN_DOUBT, sid=None, ambiguous=False) if self._found(index).is_doubtful else None

    async def intend(self, key: ItemKey, progress: CallState, _: ItemRecord | None) -> None:
        """See Ledger.intend.

        Raises:
            RunCancelledError: the run takes no further starts, or another worker has this one.
            StreamOutcomeUnknownError: the same, of a start that may have been sent before.
        """
        if self.handed_back:
            raise RunCancelledError("it is left to others")
        index = self._rows[progress]
        found = self._found(index)
        self._asked.add(index)
        answer = await self._step(INTEND, index, found.text, intended(self.owner), self.batch.keep)
        if answer == "ok":
            self._own.add(index)
            return
        if answer == "taken":
            self.lost.add(index)
            raise RunCancelledError("another worker has taken this over")
        self.ended = self.ended or "the run was ended before its turn"
        raise self._not_sent(key, found)

    def note(self, progress: CallState, outcome: BulkOutcome[Any]) -> None:
        """See Ledger.note."""
        index = self._rows.pop(progress, None)
        self._tasks.pop(progress, None)
        if index is None or index in self.lost:
            return
        error = outcome.error
        if error is not None and is_fatal_for_run(error):
            self.denied, self.handed_back = error, True
            if not isinstance(error, StreamOutcomeUnknownError):
                self._release(index)
            return
        if self.handed_back and isinstance(error, RunCancelledError | StreamOutcomeUnknownError):
            if isinstance(error, RunCancelledError) and not self._found(index).text:
                self._release(index)
            return
        if progress.may_have_succeeded and outcome.status in _NO_NEWS:
            unknown = StreamOutcomeUnknownError(
                f"an earlier worker may have started it, and then: {error}",
                sent="maybe",
                attempts=outcome.attempts,
                target=progress.target,
                name=progress.name,
            )
            outcome = evolve(outcome, status=BulkStatus.UNKNOWN, error=unknown)
        self._settle(index, outcome)

    def settle_rest(self, requests: Mapping[int, Start]) -> None:
        """Write of all starts that were not begun that they were not, or that nobody knows, since the run is over."""
        for index, request in requests.items():
            key = key_of(request)
            if index in self._waiting.get(key, ()):
                self._waiting[key].remove(index)
                self.refuse(index, request, self._not_sent(key, self._found(index)))

    def refuse(self, index: int, request: Start, error: StreamsError) -> None:
        """Write of a start that it can't be carried out; one that may run already is not said to be refused."""
        found = self._found(index)
        if found.is_doubtful and not isinstance(error, StreamOutcomeUnknownError):
            error = may_run(key_of(request), str(error))
        state = BulkStatus.REJECTED
        if isinstance(error, RunCancelledError):
            state = BulkStatus.NOT_ATTEMPTED
        elif isinstance(error, StreamOutcomeUnknownError):
            state = BulkStatus.UNKNOWN
        self._settle(index, BulkOutcome(index=index, item=request, status=state, error=error))

    def hand_back(self) -> None:
        """Cut what is under way at once, and leave it to others."""
        self.handed_back = True
        for task in self._tasks.values():
            task.cancel()

    async def written(self) -> bool:
        """Wait until all that was noted is in Redis, and tell whether every start of the batch is settled there.

        Raises:
            FleetError: it can't be written.
        """
        settling = len(self._settling)
        answers = await asyncio.gather(*self._settling, *self._releasing)
        before = sum(mark.is_settled for mark in self.marks.values())
        return before + answers[:settling].count("ok") >= self.size

    def _found(self, index: int) -> Mark:
        return self.marks.get(index, Mark())

    def _not_sent(self, key: ItemKey, found: Mark) -> StreamsError:
        why = self.ended or "the run was ended before its turn"
        return may_run(key, why) if found.is_doubtful else RunCancelledError(why)

    def _settle(self, index: int, outcome: BulkOutcome[Any]) -> None:
        believed = intended(self.owner) if index in self._own else self._found(index).text
        self._settling.append(self.writer.later(settling(self.batch, believed, evolve(outcome, index=index))))

    def _release(self, index: int) -> None:
        # Also where the answer to the mark did not come any more: it may be there.
        if index in self._asked:
            self._releasing.append(self._step(RELEASE, index, intended(self.owner)))

    def _step(self, source: str, *values: object) -> "asyncio.Future[str]":
        return self.writer.later(Step(source, (self.batch.keys.facts,), self.batch.marks, values))


def may_run(key: ItemKey, why: str) -> StreamOutcomeUnknownError:
    """Say of a start that is not made that it may have been made before."""
    return StreamOutcomeUnknownError(
        f"start a stream on {key.kind} {key.target}: an earlier worker may have started it; {why}",
        sent="maybe",
        target=key.target,
        name=key.name,
    )


@define(eq=False)
class StopLedger:
    """Keeps book of which streams were stopped.

    Attributes:
        run: the run.
        writer: writes in Redis.
        keys: what the run's things are called; known when its first stream comes.
        keep: seconds that Redis keeps what it hears of them.
    """

    run: str
    writer: Writer
    keys: RunKeys = field(init=False)
    keep: int = field(init=False)
    _waiting: dict[ItemKey, deque[int]] = field(init=False, factory=dict)
    _rows: dict[CallState, int] = field(init=False, factory=dict)

    def expect(self, index: int, stream: ConferenceStream | CallStream) -> None:
        """Hear which stream comes next."""
        handle = stream.name or stream.sid
        if isinstance(stream, ConferenceStream):
            key = ItemKey("conference", stream.conference_sid, handle)
        else:
            key = ItemKey("call", stream.call_sid, handle)
        self._waiting.setdefault(key, deque()).append(index)

    async def begin(self) -> None:
        """Do nothing."""

    async def end(self) -> None:
        """Do nothing."""

    def known(self, key: ItemKey, progress: CallState) -> ItemRecord | None:
        """See Ledger.known: a stop can be sent as often as it takes, so nothing needs to be known."""
        waiting = self._waiting[key]
        self._rows[progress] = waiting.popleft()
        if not waiting:
            del self._waiting[key]
        return None

    async def intend(self, key: ItemKey, progress: CallState, entry: ItemRecord | None) -> None:
        """Do nothing: a stop can be sent as often as it takes."""

    def note(self, progress: CallState, outcome: BulkOutcome[Any]) -> None:
        """See Ledger.note."""
        index = self._rows.pop(progress, None)
        if index is None or outcome.status is not BulkStatus.STOPPED:
            return
        step = Step(UNDO, (self.keys.facts,), self.keys.undone, (index, self.keep))
        _ = self.writer.later(step)  # the fleet waits for it when it is closed
