"""What Redis knows of a run and of the workers, as values."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from attrs import define, field, frozen

from signalwire_streams.bulk._journal_file import IN_DOUBT
from signalwire_streams.bulk._results import BulkOutcome, BulkStatus
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import InvalidRequestError, RunCancelledError, StreamsError
from signalwire_streams.fleet._ledger import (
    Batch,
    Mark,
    Planned,
    key_of,
    may_run,
    read_batch,
    read_index,
    read_outcome,
    settling,
)
from signalwire_streams.fleet._redis import Connection, Keys, RunKeys, Step, command, joined
from signalwire_streams.models import CallStream, ConferenceStream

RESUMED, STOPPING = "resumed", "stopping"
"""Facts of a run: what goes on with it, and that its streams are stopped again."""

_SETTLED = frozenset({"started", "already_started", "rejected", "unknown", "not_attempted"})


@frozen(kw_only=True)
class WorkerStatus:
    """What a worker tells of itself.

    Attributes:
        name: what it is called.
        host: the machine it runs on.
        pid: its process there.
        since: when it began, in ISO 8601.
        in_hand: batches that it works on.
        ended: starts that ended well with it since then.
        rate: attempts per second that it made over the last few seconds.
        limit: requests per second that it and all others who share its pacer may make, or None where it shares none.
        draining: whether it takes nothing new.
    """

    name: str
    host: str
    pid: int
    started_at: str
    active_batches: int
    completed: int
    rate: float
    limit: float | None
    draining: bool

    @classmethod
    def of(cls, name: str, facts: Mapping[str, str]) -> "WorkerStatus":
        """Read what a worker told."""
        return cls(
            name=name,
            host=facts.get("host", ""),
            pid=int(facts.get("pid", 0)),
            started_at=facts.get("since", ""),
            active_batches=int(facts.get("in_hand", 0)),
            completed=int(facts.get("ended", 0)),
            rate=float(facts.get("rate", 0)),
            limit=float(facts["limit"]) if facts.get("limit") else None,
            draining=facts.get("draining") == "1",
        )


@frozen(kw_only=True)
class FleetStatus:
    """How far a run is.

    Attributes:
        run: what it is called; it is part of its streams' names.
        began: when it was submitted, in ISO 8601.
        planned: how many starts it has.
        counts: starts by state: a `BulkStatus`'s text, ``intended`` (with a worker now, or with one that died) or
            ``waiting`` (not begun).
        attempts: attempts that the starts that ended took, those of workers that died left out.
        errors: how often each error's class and code came, most frequent first.
        ended: ``cancelled`` where it takes no further starts, or None.
        why: the reason of that in words, or None.
        queued: whether all of it was handed to the workers; if that was cut off, repeat its submit, or its resume.
        undone: how many of its streams were stopped again.
        stopping: whether its streams were stopped, or are being stopped.
        resumed: the run that goes on with what this one left, or None.
        workers: who works for this project now.
    """

    run: str
    started_at: str
    planned: int
    counts: Mapping[str, int]
    attempts: int
    errors: Mapping[str, int]
    cancelled: str | None
    cancel_reason: str | None
    fully_submitted: bool
    rolled_back: int
    is_rolling_back: bool
    resumed_as: str | None
    workers: tuple[WorkerStatus, ...] = ()

    @property
    def completed(self) -> int:
        """How many starts have ended."""
        return sum(count for state, count in self.counts.items() if state in _SETTLED)

    @property
    def unfinished(self) -> int:
        """How many starts were not attempted, or end in nobody's knowledge: what `Fleet.resume` would try again."""
        return self.counts.get("not_attempted", 0) + self.counts.get("unknown", 0)

    @property
    def is_finished(self) -> bool:
        """Whether every start has ended."""
        return self.completed >= self.planned

    def _check_finished(self) -> None:
        """Make sure that every start has ended.

        Raises:
            InvalidRequestError: it has not; the message says what to do.
        """
        if not self.is_finished and self.cancelled is None:
            raise InvalidRequestError(f"the run {self.run!r} goes on: wait until it is over, or cancel it first")
        if not self.is_finished:
            raise InvalidRequestError(
                f"workers have starts of the cancelled run {self.run!r} in hand, or had when they died: a worker ends "
                "them"
            )

    @property
    def rate(self) -> float:
        """Attempts per second that all workers made over the last few seconds, for all runs together."""
        return sum(worker.rate for worker in self.workers)

    @property
    def limit(self) -> float | None:
        """Requests per second that all workers may make, as they last heard; None where they share no limit."""
        return max((worker.limit for worker in self.workers if worker.limit is not None), default=None)


@frozen
class RunFacts:
    """What Redis has of a run.

    Attributes:
        run: what it is called.
        fields: its fields, as text.
    """

    run: str
    fields: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, run: str, answer: Mapping[Any, Any]) -> "RunFacts | None":
        """Read them; None where there is no such run, or not any more."""
        fields = text_of(answer)
        return cls(run, fields) if "digest" in fields else None

    @property
    def plan(self) -> str:
        """Under which name its requests are kept."""
        return self.fields["plan"]

    @property
    def planned(self) -> int:
        """How many starts it has."""
        return int(self.fields["planned"])

    @property
    def batch(self) -> int:
        """How many starts a batch has."""
        return int(self.fields["batch"])

    @property
    def batches(self) -> int:
        """How many batches it has."""
        return -(-self.planned // self.batch)

    @property
    def keep(self) -> int:
        """How many seconds Redis keeps it."""
        return int(self.fields["keep"])

    @property
    def ended(self) -> str | None:
        """Why it takes no further starts, in words, or None."""
        return self.fields.get("why") if "ended" in self.fields else None

    def status(self, workers: tuple[WorkerStatus, ...]) -> FleetStatus:
        """Sum it up."""
        counts = {state: count for state, count in self._counts("c:").items() if count > 0}
        waiting = self.planned - sum(counts.values())
        errors = sorted(self._counts("e:").items(), key=lambda entry: (-entry[1], entry[0]))
        return FleetStatus(
            run=self.run,
            started_at=self.fields["began"],
            planned=self.planned,
            counts=counts | ({"waiting": waiting} if waiting > 0 else {}),
            attempts=int(self.fields.get("attempts", 0)),
            errors=dict(errors),
            cancelled=self.fields.get("ended"),
            cancel_reason=self.ended,
            fully_submitted="queued" in self.fields,
            rolled_back=int(self.fields.get("undone", 0)),
            is_rolling_back=STOPPING in self.fields,
            resumed_as=self.fields.get(RESUMED),
            workers=workers,
        )

    @property
    def in_doubt(self) -> int:
        """How many starts are with a worker now, or with one that died."""
        return int(self.fields.get(f"c:{IN_DOUBT}", 0))

    def _counts(self, prefix: str) -> dict[str, int]:
        return {name.removeprefix(prefix): int(value) for name, value in self.fields.items() if name.startswith(prefix)}


def text_of(answer: Mapping[Any, Any]) -> dict[str, str]:
    """Read a hash as text."""
    return {_text(name): _text(value) for name, value in answer.items()}


def _text(value: Any) -> str:  # noqa: ANN401  (Redis gives bytes or text)
    return value.decode() if isinstance(value, bytes) else str(value)


_AT_ONCE = 500
_BLOCK = 1_000  # milliseconds
_KEPT_BATCHES = 256


@define(eq=False)
class Reading:
    """One reading of a run's outcomes.

    Attributes:
        connection: the way to Redis.
        keys: what things are called.
        facts: looks up what is known of the run, and raises where that is nothing any more.
    """

    connection: Connection
    keys: Keys
    facts: Callable[[], Awaitable[RunFacts]]
    _kept: "OrderedDict[int, list[Planned]]" = field(init=False, factory=OrderedDict)

    async def outcomes(self) -> AsyncGenerator[BulkOutcome[Start], None]:
        """Give each outcome, until all are given.

        Raises:
            InvalidRequestError: there is no such run any more.
            FleetError: Redis can't be used.
        """
        facts = await self.facts()
        keys = self.keys.of(facts.run, facts.plan)
        last: Any = "0-0"
        seen = 0
        while seen < facts.planned:
            answer = await self.connection.one(command("xread", {keys.outcomes: last}, count=_AT_ONCE, block=_BLOCK))
            if not answer:
                facts = await self.facts()
                continue
            [(_, entries)] = answer.items() if isinstance(answer, dict) else answer
            entries = entries[0] if isinstance(answer, dict) else entries
            read = [read_index(fields[b"o"]) for _, fields in entries]
            last = entries[-1][0]
            await self._fetch(facts.run, keys, {index // facts.batch for index, _ in read})
            for index, outcome in read:
                seen += 1
                yield read_outcome(outcome, self._kept[index // facts.batch][index % facts.batch].request.request)
            while len(self._kept) > _KEPT_BATCHES:
                self._kept.popitem(last=False)

    async def _fetch(self, run: str, keys: RunKeys, numbers: set[int]) -> None:
        missing = sorted(numbers - self._kept.keys())
        if not missing:
            return
        texts = await self.connection.all([command("get", keys.requests(number)) for number in missing])
        for number, text in zip(missing, texts, strict=True):
            if text is None:
                raise InvalidRequestError(f"the run {run!r} is older than Redis was told to keep it")
            self._kept[number] = read_batch(text)


_UNFINISHED = frozenset({BulkStatus.NOT_ATTEMPTED, BulkStatus.UNKNOWN})
_BATCHES_AT_ONCE = 20  # batches read in one go


@frozen
class Found:
    """A start of a run, and what is known of it.

    Attributes:
        index: its place in the run.
        start: what was planned.
        mark: its mark.
    """

    index: int
    start: Planned
    mark: Mark


@define(eq=False)
class Ending:
    """The end of a run that takes no further starts.

    Attributes:
        connection: the way to Redis.
        keys: what the run's things are called.
        facts: the run's.
    """

    connection: Connection
    keys: RunKeys
    facts: RunFacts

    async def settle(self, why: str) -> None:
        """Write of all starts that were not begun that they were not attempted, or that nobody knows, and why."""
        async for number, starts in self._batches():
            batch = Batch(self.keys, self.facts.run, number, self.facts.keep)
            left = [_settling(batch, found, why) for found in starts if not found.mark.text]
            if left:
                await self.connection.all([step for step, _ in joined(left)])

    async def streams(self) -> AsyncIterator[tuple[int, ConferenceStream | CallStream]]:
        """Give the streams that the run started, or may have started, and that were not stopped since."""
        undone = text_of(await self.connection.one(command("hgetall", self.keys.undone)))
        async for _, starts in self._batches():
            for found in starts:
                stream = found.mark.stream_of(found.start.request.request)
                if stream is not None and str(found.index) not in undone:
                    yield found.index, stream

    async def unfinished(self) -> AsyncIterator[Planned]:
        """Give the starts that were not attempted, and those that nobody knows the end of."""
        async for _, starts in self._batches(whole=True):
            for found in starts:
                if found.mark.state in _UNFINISHED:
                    yield Planned(found.start.request, may_run=found.mark.state == BulkStatus.UNKNOWN)

    async def _batches(self, *, whole: bool = False) -> AsyncIterator[tuple[int, Sequence[Found]]]:
        """Go through the run, batch by batch; where Redis has forgotten a part of it, only a whole run will do."""
        facts, keys = self.facts, self.keys
        for first in range(0, facts.batches, _BATCHES_AT_ONCE):
            numbers = range(first, min(first + _BATCHES_AT_ONCE, facts.batches))
            plans = await self.connection.all([command("get", keys.requests(number)) for number in numbers])
            told = await self.connection.all([command("hgetall", keys.marks(number)) for number in numbers])
            for number, plan, marks in zip(numbers, plans, told, strict=True):
                if plan is None and not whole:
                    continue
                if plan is None:
                    raise InvalidRequestError(f"the run {facts.run!r} is older than Redis was told to keep it")
                texts = text_of(marks)
                starts = enumerate(read_batch(plan), number * facts.batch)
                yield (
                    number,
                    [Found(index, start, Mark(texts.get(str(index), ""), start.may_run)) for index, start in starts],
                )


def _settling(batch: Batch, found: Found, why: str) -> Step:
    request = found.start.request.request
    state, error = BulkStatus.NOT_ATTEMPTED, cast("StreamsError", RunCancelledError(why))
    if found.mark.is_doubtful:
        state, error = BulkStatus.UNKNOWN, may_run(key_of(request), why)
    return settling(batch, "", BulkOutcome(index=found.index, item=request, status=state, error=error))
