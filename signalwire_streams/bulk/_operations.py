"""The operations of a bulk run: start or stop the stream of one item, and record it in a ledger if there is one.

The ledger decides whether an item is sent at all. A stream that is recorded as running (or as stopped) is not sent
again. One that may be running is started again under the same name, so that the Space can reject a duplicate; without
a name, or on a call unless the policy allows it, it is reported as unknown instead.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

from attrs import define, evolve, field, frozen

from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._journal import ItemRecord, Journal
from signalwire_streams.bulk._journal_file import IN_DOUBT, when_free
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus
from signalwire_streams.bulk._serialization import DuplicateCheck, Start, Stream, folded, stream_of, target_of
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, JournalError, StreamOutcomeUnknownError, StreamsError
from signalwire_streams.models import (
    GENERATED_NAME,
    AttemptResult,
    CallStream,
    ConferenceStream,
    StartCallStream,
    StartConferenceStream,
    StreamStatus,
)
from signalwire_streams.models._validation import a_kind_of
from signalwire_streams.resources._streams import Streams, check_stream

Send: TypeAlias = Callable[[], Awaitable[Stream]]
_Item = TypeVar("_Item")
_Item_contra = TypeVar("_Item_contra", contravariant=True)

_RUNNING = frozenset({BulkStatus.STARTED, BulkStatus.ALREADY_STARTED})
_DOUBTFUL = frozenset({IN_DOUBT, BulkStatus.UNKNOWN})
_INCONCLUSIVE = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.REJECTED})
_NOTHING_STARTED = frozenset({AttemptResult.THROTTLED})
_EARLIER_PART = "an earlier part of this run may have started it"


@frozen
class ItemKey:
    """Identifies an item: its target, as of `target_of`, and its stream.

    The name is the stream's name, or its sid if a stream without a name is to be stopped.
    """

    kind: str
    target: str
    name: str | None
    sid: str | None = field(default=None, eq=False)


@runtime_checkable
class Ledger(Protocol):
    """The record of a run's items: a journal file, or a store that several processes share."""

    @property
    def run(self) -> str:
        """The run's id; the names of its streams follow from it."""

    async def begin(self) -> None:
        """Open the ledger; the run begins."""

    async def end(self) -> None:
        """Close the ledger; the run has ended. Safe to repeat.

        Raises:
            StreamsError: something could not be recorded; the same each time.
        """

    def known(self, key: ItemKey, state: CallState, /) -> ItemRecord | None:
        """Return the record of an item from an earlier part of the run.

        An item that is recorded at all may have been sent, under the name that the run gave it. So if that name is
        rejected as a duplicate now, the stream counts as already started.
        """

    def find(self, key: ItemKey, /) -> ItemRecord | None:
        """Return the same for an item that this run does not send, or None if such items are reported elsewhere."""

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None, /) -> None:
        """Record that an item is about to be sent; it is durable when this returns.

        Raises:
            StreamsError: it could not be recorded, or may not be sent.
        """

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any], /) -> None:
        """Record the outcome of an item. *state* has the results of its attempts, such as `CallState.rejections`."""


class Operation(Protocol[_Item_contra]):
    is_start: bool

    async def begin(self) -> None: ...

    async def end(self) -> None:
        """Called after the last item. Safe to repeat."""

    def prepare(self, item: _Item_contra, state: CallState, /) -> Send:
        """Return the function that sends an item, which is called again after each pause.

        Raises:
            StreamsError: the item is not to be sent.
        """

    def recorded(self, item: _Item_contra, /) -> Stream | StreamsError | None:
        """Return the result of an item that this run ends without sending, if an earlier part of the run left one."""

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any], /) -> None:
        """Called with the outcome of each prepared item."""


@define(kw_only=True, eq=False)
class _StreamOperation(Generic[_Item]):
    _conferences: Streams[ConferenceStream]
    _calls: Streams[CallStream]
    _deadline: float
    _ledger: Ledger | None

    async def begin(self) -> None:
        if self._ledger is not None:
            await self._ledger.begin()

    async def end(self) -> None:
        if self._ledger is not None:
            await self._ledger.end()

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        if self._ledger is not None:
            self._ledger.record_outcome(state, outcome)


@define(kw_only=True, eq=False)
class StartStreams(_StreamOperation[Start]):
    is_start = True
    _resend_call_starts: bool
    _run: str = field(init=False, factory=partial(token_hex, 4))
    _duplicates: DuplicateCheck = field(init=False, factory=DuplicateCheck)

    async def begin(self) -> None:
        await super().begin()
        if self._ledger is not None:
            self._run = self._ledger.run

    def prepare(self, request: Start, state: CallState) -> Send:
        canonical_target = self._duplicates.check(request)
        request = self._named(request, canonical_target)
        if self._ledger is not None:
            running = self._consult(self._ledger, ItemKey(*target_of(request), request.name), state)
            if running is not None:
                return _returning(running)
        if isinstance(request, StartConferenceStream):
            return partial(self._conferences.start, request, deadline=self._deadline, state=state)
        return partial(self._calls.start, request, deadline=self._deadline, state=state)

    def recorded(self, request: Start) -> Stream | StreamsError | None:
        if self._ledger is None or not isinstance(request, StartConferenceStream | StartCallStream):
            return None
        kind, target = target_of(request)
        key = ItemKey(kind, target, self._named(request, folded(target)).name)
        record = self._ledger.find(key)
        if record is not None and record.state in _RUNNING:
            return _recorded_stream(key, record)
        if record is not None and record.state in _DOUBTFUL:
            return outcome_unknown(key, f"{_EARLIER_PART} and this run ended before it was sent again")
        return None

    def _named(self, request: Start, canonical_target: str) -> Start:
        if request.name is None and not request.unnamed:
            return request.with_name(f"{GENERATED_NAME}{self._run}-{canonical_target}")
        return request

    def _consult(self, ledger: Ledger, key: ItemKey, state: CallState) -> Stream | None:
        record = ledger.known(key, state)
        if record is not None:
            if record.state in _RUNNING:
                return _recorded_stream(key, record)
            if record.state in _DOUBTFUL:
                if key.name is None or (key.kind == "call" and not self._resend_call_starts):
                    why = "without a name" if key.name is None else "on a call, where a duplicate may not be rejected"
                    raise outcome_unknown(key, f"{_EARLIER_PART} {why}, so it is not sent again")
                state.may_have_succeeded = True
            state.was_rejected_for_now = True
        # Only when it is its turn, so that items that were merely queued are not in doubt after a crash.
        state.before_sending = partial(ledger.intend, key, state, record)
        return None


class StopStreams(_StreamOperation[Stream]):
    """Stops streams. A stop that is recorded as done is not sent again; all others are."""

    is_start = False

    def prepare(self, stream: Stream, state: CallState) -> Send:
        send: Send
        target = _check_item(stream)
        if isinstance(stream, ConferenceStream):
            send = partial(self._conferences.stop, target, stream, deadline=self._deadline, state=state)
        else:
            send = partial(self._calls.stop, target, stream, deadline=self._deadline, state=state)
        if self._ledger is not None:
            key = _stop_key(stream)
            record = self._ledger.known(key, state)
            stopped = _stopped(stream, record)
            if stopped is not None:
                return _returning(stopped)
            state.may_have_succeeded = record is not None and record.state in _DOUBTFUL
            state.before_sending = partial(self._ledger.intend, key, state, record)
        return send

    def recorded(self, stream: Stream) -> Stream | None:
        if self._ledger is None:
            return None
        with suppress(InvalidRequestError):  # an invalid item has no record
            _check_item(stream)
            return _stopped(stream, self._ledger.find(_stop_key(stream)))
        return None


def _check_item(stream: object) -> str:
    if not isinstance(stream, ConferenceStream | CallStream):
        raise InvalidRequestError(f"an item is {a_kind_of(stream)}: pass ConferenceStream or CallStream")
    return check_stream(stream)


def _stop_key(stream: Stream) -> ItemKey:
    return ItemKey(*target_of(stream), stream.name or stream.sid, stream.sid)


def _stopped(stream: Stream, record: ItemRecord | None) -> Stream | None:
    is_stopped = record is not None and record.state == BulkStatus.STOPPED
    return evolve(stream, status=StreamStatus.STOPPED) if is_stopped else None


def _returning(stream: Stream) -> Send:
    async def send() -> Stream:
        return stream

    return send


def _recorded_stream(key: ItemKey, record: ItemRecord) -> Stream:
    return stream_of(key.kind, key.target, sid=record.sid, name=key.name, ambiguous=record.ambiguous)


def outcome_unknown(key: ItemKey, why: str, *, attempts: int = 0) -> StreamOutcomeUnknownError:
    return StreamOutcomeUnknownError(
        f"start a stream on {key.kind} {key.target}: {why}",
        sent="maybe",
        attempts=attempts,
        target=key.target,
        name=key.name,
    )


class JournalLedger:
    """The ledger of a run with its own journal file, which it opens when the run begins."""

    journal: Journal  # once it is open

    def __init__(self, opening: Callable[[], Journal], clock: Clock) -> None:
        self._opening, self._clock = opening, clock
        self._is_open = False
        self._failure: JournalError | None = None
        self._records: dict[CallState, ItemRecord] = {}

    @property
    def run(self) -> str:
        return self.journal.run

    async def begin(self) -> None:
        """Open the journal.

        Raises:
            InvalidRequestError: the streams that the run started have been stopped.
        """
        self.journal = await when_free(self._clock, self._opening)
        self._is_open = True
        try:
            await self._check()
        except BaseException:  # even if cancelled: nothing else closes the journal
            await self.end()
            raise

    async def _check(self) -> None:
        since = self.journal.rollback_started_at
        if since is not None:
            raise InvalidRequestError(
                f"the streams of {self.journal.path} have been stopped since {since}: start a new run"
            )

    async def end(self) -> None:
        if self._is_open:
            self._is_open = False
            try:
                await self.journal.aclose()
            except JournalError as error:
                self._failure = error
        if self._failure is not None:
            raise self._failure

    def known(self, key: ItemKey, state: CallState) -> ItemRecord | None:
        record = self.find(key)
        if record is not None and record.state == IN_DOUBT:
            self._records[state] = record  # its outcome is recorded even if nothing is sent: it may be unknown
        return record

    def find(self, key: ItemKey) -> ItemRecord | None:
        return self.journal.find(key.target, key.name)

    async def intend(self, key: ItemKey, state: CallState, record: ItemRecord | None) -> None:
        record = record or ItemRecord(self.journal.new_row(), IN_DOUBT, sid=None, ambiguous=False)
        await self.journal.intend(record.id, key.kind, key.target, key.name)
        self._records[state] = record  # not before: a row that could not be written may be another process's

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        record = self._records.pop(state, None)
        if record is None or (state.may_have_succeeded and outcome.status in _INCONCLUSIVE):
            return  # an attempt that failed does not undo an earlier one that may have succeeded
        self.journal.complete(record.id, _with_doubt(record, state, outcome))


def _with_doubt(record: ItemRecord, state: CallState, outcome: BulkOutcome[Any]) -> BulkOutcome[Any]:
    """Mark a failed start as ambiguous if the Space rejected it temporarily and may have carried it out anyway.

    It is sent again on resume. Until then, `BulkJournal.streams` has its name, so that it can be stopped. A start under
    a name that the caller chose is not marked, since another stream may have that name.
    """
    request = outcome.item
    if outcome.status not in _INCONCLUSIVE or not isinstance(request, StartConferenceStream | StartCallStream):
        return outcome
    has_unique_name = state.name is not None and state.name.startswith(GENERATED_NAME)
    if not (record.ambiguous or (has_unique_name and state.rejections - _NOTHING_STARTED)):
        return outcome
    key = ItemKey(*target_of(request), request.name)
    return evolve(outcome, stream=_recorded_stream(key, evolve(record, ambiguous=True)))


class RollbackLedger(JournalLedger):
    """The ledger of a rollback: stops of the streams that a journaled run started, in that run's journal."""

    async def _check(self) -> None:
        await when_free(self._clock, self.journal.begin_rollback)

    def known(self, *_: object) -> None:
        """Return None: stopping a stream again is safe, no matter what was recorded of it."""

    def find(self, _: object) -> None:
        pass

    async def intend(self, key: ItemKey, state: CallState, _: ItemRecord | None) -> None:
        row = self.journal.find_stream(key.target, key.name if key.name != key.sid else None, key.sid)
        await self.journal.intend_rollback(row)
        self._records[state] = ItemRecord(row, IN_DOUBT, sid=key.sid, ambiguous=False)

    def record_outcome(self, state: CallState, outcome: BulkOutcome[Any]) -> None:
        record = self._records.pop(state, None)
        if record is not None:
            self.journal.complete_rollback(record.id, outcome)
