"""Going through all of a run's marks: to settle what was not begun, or to find what may run, or what is left."""

from collections.abc import AsyncIterator, Sequence
from typing import cast

from attrs import define, frozen

from signalwire_streams.bulk.outcomes import BulkOutcome, BulkState
from signalwire_streams.errors import InvalidRequestError, RunEndedError, StreamsError
from signalwire_streams.fleet._redis import Connection, command
from signalwire_streams.fleet._status import RunFacts, text_of
from signalwire_streams.fleet.keys import RunKeys
from signalwire_streams.fleet._ledger import Batch, key_of, may_run, settling
from signalwire_streams.fleet.records import Mark, Planned, read_batch
from signalwire_streams.fleet.steps import Step, joined
from signalwire_streams.models import CallStream, ConferenceStream

_UNFINISHED = frozenset({BulkState.NOT_ATTEMPTED, BulkState.UNKNOWN})
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
                    yield Planned(found.start.request, may_run=found.mark.state == BulkState.UNKNOWN)

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
    state, error = BulkState.NOT_ATTEMPTED, cast("StreamsError", RunEndedError(why))
    if found.mark.is_doubtful:
        state, error = BulkState.UNKNOWN, may_run(key_of(request), why)
    return settling(batch, "", BulkOutcome(index=found.index, item=request, state=state, error=error))
