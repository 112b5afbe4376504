"""Starting and stopping with a journal: what is known of an item decides whether it is sent again."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol, TypeAlias, runtime_checkable

from attrs import define, evolve, field, frozen

from signalwire_streams._http.messages import CallContext, CallState
from signalwire_streams.bulk._journal import ItemRecord, Holder, Journal
from signalwire_streams.bulk._journal_file import IN_DOUBT, when_free
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus
from signalwire_streams.bulk._serialization import DuplicateCheck, Start
from signalwire_streams.bulk._write_ahead_log import JournalPath, journal_path
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError, StreamOutcomeUnknownError
from signalwire_streams.models import GENERATED_NAME, CallStream, ConferenceStream, StartConferenceStream, StreamStatus
from signalwire_streams.resources._streams import Streams


@frozen
class Both:
    """The streams of conferences and of calls."""

    conferences: Streams[ConferenceStream]
    calls: Streams[CallStream]


@define(eq=False)
class Starting:
    """Starts the streams of one run, under names that follow from the run and the target.

    Attributes:
        streams: where to start them.
        deadline: seconds for one item, its waiting for the pacer included.
        run: what the run is called; the same run and target give the same name.
    """

    streams: Both
    deadline: float
    run: str = field(factory=lambda: token_hex(4))
    _once: DuplicateCheck = field(init=False, factory=DuplicateCheck)

    async def __call__(self, request: Start, errand: CallContext) -> ConferenceStream | CallStream:
        """Start one stream."""
        return await self.send(self.prepare(request, errand), errand)

    def prepare(self, request: Start, errand: CallContext) -> Start:
        """Check a request and give it its name.

        Raises:
            InvalidRequestError: it is no request, or its target came before under the same name.
        """
        if not errand.state.attempts:
            self._once.check(request)
        if request.name is None and not request.unnamed:
            request = evolve(request, name=f"{GENERATED_NAME}{self.run}-{request.target}")
        return request

    async def send(self, request: Start, errand: CallContext) -> ConferenceStream | CallStream:
        """Start the stream of a request that was prepared."""
        if isinstance(request, StartConferenceStream):
            return await self.streams.conferences.start(request, deadline=self.deadline, errand=errand)
        return await self.streams.calls.start(request, deadline=self.deadline, errand=errand)


@frozen
class Stopping:
    """Stops the streams of one run.

    Attributes:
        streams: where to stop them.
        deadline: seconds for one item, its waiting for the pacer included.
    """

    streams: Both
    deadline: float

    async def __call__(
        self, stream: ConferenceStream | CallStream, errand: CallContext
    ) -> ConferenceStream | CallStream:
        """Stop one stream."""
        deadline = self.deadline
        if isinstance(stream, ConferenceStream):
            return await self.streams.conferences.stop(stream.conference_sid, stream, deadline=deadline, errand=errand)
        if isinstance(stream, CallStream):
            return await self.streams.calls.stop(stream.call_sid, stream, deadline=deadline, errand=errand)
        raise InvalidRequestError(f"an item is a {type(stream).__name__}: pass ConferenceStream or CallStream")


_Stream: TypeAlias = ConferenceStream | CallStream

_RUNS = frozenset({BulkStatus.STARTED, BulkStatus.ALREADY_STARTED})
_DOUBTFUL = frozenset({IN_DOUBT, BulkStatus.UNKNOWN})
_NO_NEWS = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.REJECTED})


@frozen
class ItemKey:
    """What an item is known by.

    Attributes:
        kind: ``conference`` or ``call``.
        target: the sid of that.
        name: the stream's Name; for a stop its sid where it has no name.
    """

    kind: str
    target: str
    name: str | None


@runtime_checkable
class Ledger(Protocol):
    """Where a run keeps book of its items: a journal's file, or what several processes share."""

    @property
    def run(self) -> str:
        """What the run is called; the names of its streams follow from it."""
        ...

    async def begin(self) -> None:
        """Open it; the run begins."""
        ...

    async def end(self) -> None:
        """Close it; the run has ended. Safe to repeat.

        Raises:
            StreamsError: something could not be recorded; the same each time.
        """
        ...

    def known(self, key: ItemKey, progress: CallState) -> ItemRecord | None:
        """Look up what an earlier part of the run left of an item."""
        ...

    async def intend(self, key: ItemKey, progress: CallState, entry: ItemRecord | None) -> None:
        """Note that an item is about to be sent, as it has its turn; it is safely kept when this returns.

        Raises:
            StreamsError: it could not be noted, or may not be sent.
        """
        ...

    def note(self, progress: CallState, outcome: BulkOutcome[Any]) -> None:
        """Note what came of an item."""
        ...


@define(eq=False)
class Book:
    """The journal of one run while it goes on.

    Attributes:
        holder: has the journal.
    """

    holder: Holder
    _rows: dict[CallState, int] = field(init=False, factory=dict)

    @property
    def run(self) -> str:
        """What the run is called."""
        return self.holder.journal.run

    async def begin(self) -> None:
        """Open the journal.

        Raises:
            InvalidRequestError: what the run started was stopped since.
        """
        journal = await self.holder.open()
        since = journal.undone_since
        if since is not None:
            await self.end()
            raise InvalidRequestError(f"the streams of {journal.path} were stopped since {since}: begin a new run")

    async def end(self) -> None:
        """Write what waits and close the journal."""
        await self.holder.close()

    def known(self, key: ItemKey, progress: CallState) -> ItemRecord | None:
        """Look up what an earlier part of the run left of an item."""
        entry = self.holder.journal.find(key.target, key.name)
        if entry is not None and entry.state == IN_DOUBT:
            self._rows[progress] = entry.id  # an outcome is recorded even if nothing is sent, for it may be unknown
        return entry

    async def intend(self, key: ItemKey, progress: CallState, entry: ItemRecord | None) -> None:
        """Note that an item is about to be sent."""
        row = self.holder.journal.new_row() if entry is None else entry.id
        await self.holder.journal.intend(row, key.kind, key.target, key.name)
        self._rows[progress] = row

    def note(self, progress: CallState, outcome: BulkOutcome[Any]) -> None:
        """Note what came of an item."""
        row = self._rows.pop(progress, None)
        if row is None or (progress.may_have_succeeded and outcome.status in _NO_NEWS):
            return  # what may have been done before is not undone by that
        self.holder.journal.settle(row, outcome)


def ledger_of(
    journal: Path | str | Ledger | None,
    *,
    resume: bool,
    clock: Clock,
    create: Callable[[JournalPath], Journal],
    reopen: Callable[[JournalPath], Journal],
) -> Ledger | None:
    """Find out where a run is to keep book, from what the caller passed.

    Raises:
        InvalidRequestError: there is nothing to resume.
    """
    if journal is None and resume:
        raise InvalidRequestError("resume=True needs the journal to go on with: pass journal='run.db'")
    if journal is None or isinstance(journal, Ledger):
        return journal
    return Book(Holder(partial(reopen if resume else create, journal_path(journal)), clock))


@define(eq=False)
class JournaledStarting:
    """Starts streams, and keeps book of it.

    What runs already is not sent again. What may run is sent again under the same name, so that the Space can
    tell; without a name, or on a call unless the policy says otherwise, it is reported and not sent again.

    Attributes:
        starting: how one stream is started.
        book: the journal.
        resend_call_starts: whether what may run on a call is sent again.
    """

    starting: Starting
    book: Ledger
    resend_call_starts: bool

    async def begin(self) -> None:
        """Open the journal, and take the run's name from it."""
        await self.book.begin()
        self.starting.run = self.book.run

    async def end(self) -> None:
        """Close the journal."""
        await self.book.end()

    async def __call__(self, request: Start, errand: CallContext) -> _Stream:
        """Start one stream, unless it is known to run."""
        named = self.starting.prepare(request, errand)
        if errand.state.attempts:  # the breaker sent it back before it was tried
            return await self.starting.send(named, errand)
        key = ItemKey("conference" if isinstance(named, StartConferenceStream) else "call", named.target, named.name)
        entry = self.book.known(key, errand.state)
        if entry is not None and entry.state in _RUNS:
            return _stream(key, entry)
        if entry is not None and entry.state in _DOUBTFUL:
            if named.name is None or (key.kind == "call" and not self.resend_call_starts):
                raise _still_unknown(key)
            errand.state.may_have_succeeded = True
        # At its turn and not before, so that a process that dies leaves no doubt about what only waited.
        errand.state.before_sending = partial(self.book.intend, key, errand.state, entry)
        return await self.starting.send(named, errand)


@define(eq=False)
class JournaledStopping:
    """Stops streams, and keeps book of it. What is stopped is not sent again; everything else is.

    Attributes:
        stopping: how one stream is stopped.
        book: the journal.
    """

    stopping: Stopping
    book: Ledger

    async def begin(self) -> None:
        """Open the journal."""
        await self.book.begin()

    async def end(self) -> None:
        """Close the journal."""
        await self.book.end()

    async def __call__(self, stream: _Stream, errand: CallContext) -> _Stream:
        """Stop one stream, unless it is known to be stopped."""
        key = _key_of(stream)
        if key is None or errand.state.attempts:
            return await self.stopping(stream, errand)
        entry = self.book.known(key, errand.state)
        if entry is not None and entry.state == BulkStatus.STOPPED:
            return evolve(stream, status=StreamStatus.STOPPED)
        errand.state.may_have_succeeded = entry is not None and entry.state in _DOUBTFUL
        await self.book.intend(key, errand.state, entry)
        return await self.stopping(stream, errand)


def _key_of(stream: object) -> ItemKey | None:
    if isinstance(stream, ConferenceStream):
        return ItemKey("conference", stream.conference_sid, stream.name or stream.sid)
    if isinstance(stream, CallStream):
        return ItemKey("call", stream.call_sid, stream.name or stream.sid)
    return None


def _stream(key: ItemKey, entry: ItemRecord) -> _Stream:
    if key.kind == "conference":
        return ConferenceStream(conference_sid=key.target, sid=entry.sid, name=key.name, ambiguous=entry.ambiguous)
    return CallStream(call_sid=key.target, sid=entry.sid, name=key.name, ambiguous=entry.ambiguous)


def _still_unknown(key: ItemKey) -> StreamOutcomeUnknownError:
    why = "without a name" if key.name is None else "on a call, where a second one may not be refused"
    return StreamOutcomeUnknownError(
        f"start a stream on {key.kind} {key.target}: an earlier part of this run may have started it {why}, "
        "so it is not sent again",
        sent="maybe",
        target=key.target,
        name=key.name,
    )


@define(eq=False)
class Undoing:
    """Stops the streams that a run started.

    Attributes:
        stopping: how one stream is stopped.
        holder: has the journal.
    """

    stopping: Stopping
    holder: Holder
    _rows: dict[CallState, int] = field(init=False, factory=dict)

    async def begin(self) -> None:
        """Open the journal, and record there that the run is being stopped."""
        journal = await self.holder.open()
        try:
            await when_free(self.holder.clock, journal.begin_undoing)
        except BaseException:  # also when it is cancelled: nobody else closes the journal
            await self.end()
            raise

    async def end(self) -> None:
        """Write what waits and close the journal."""
        await self.holder.close()

    def note(self, progress: CallState, outcome: BulkOutcome[Any]) -> None:
        """Note what came of a stop."""
        row = self._rows.pop(progress, None)
        if row is not None:
            self.holder.journal.settle_undoing(row, outcome)

    async def __call__(self, stream: _Stream, errand: CallContext) -> _Stream:
        """Stop one stream."""
        progress = errand.state
        if not progress.attempts:  # else the breaker sent it back before it was tried
            row = self.holder.journal.find_stream(_target_of(stream), stream.name, stream.sid)
            self._rows[progress] = row
            await self.holder.journal.intend_undoing(row)
        return await self.stopping(stream, errand)


def _target_of(stream: _Stream) -> str:
    return stream.conference_sid if isinstance(stream, ConferenceStream) else stream.call_sid
