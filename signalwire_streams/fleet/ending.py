"""Going through all of a run's marks: to settle what was not begun, or to find what may run, or what is left."""

from collections.abc import AsyncIterator, Sequence

from attrs import define

from signalwire_streams.bulk.outcomes import BulkOutcome, BulkState
from signalwire_streams.bulk.planning import PlannedRequest
from signalwire_streams.errors import RunEndedError
from signalwire_streams.fleet.connection import Connection, command
from signalwire_streams.fleet.facts import RunFacts, text_of
from signalwire_streams.fleet.keys import Keys
from signalwire_streams.fleet.ledger import Batch, settling
from signalwire_streams.fleet.planning import Planned
from signalwire_streams.fleet.records import Mark, read_batch
from signalwire_streams.fleet.steps import joined
from signalwire_streams.models import CallStream, ConferenceStream

_UNFINISHED = frozenset({BulkState.NOT_ATTEMPTED, BulkState.UNKNOWN})
_AT_ONCE = 20  # batches read in one go


@define(eq=False)
class Ending:
    """The end of a run that takes no further starts.

    Attributes:
        connection: the way to Redis.
        keys: what things are called.
        facts: the run's.
        why: why it takes no further starts.
    """

    connection: Connection
    keys: Keys
    facts: RunFacts
    why: str

    async def settle(self) -> None:
        """Write of all starts that were not begun that they were not attempted."""
        async for number, requests, marks in self.batches():
            batch = Batch(self.keys, self.facts.run, number, self.facts.keep)
            left = [
                settling(
                    batch,
                    "",
                    BulkOutcome(
                        index=index, item=planned.request, state=BulkState.NOT_ATTEMPTED, error=RunEndedError(self.why)
                    ),
                )
                for index, planned in requests
                if index not in marks
            ]
            if left:
                await self.connection.all([step for step, _ in joined(left)])

    async def streams(self) -> AsyncIterator[tuple[int, ConferenceStream | CallStream]]:
        """Give the streams that the run started, or may have started, and that were not stopped since."""
        undone = text_of(await self.connection.one(command("hgetall", self.keys.undone(self.facts.run))))
        async for _, requests, marks in self.batches():
            for index, planned in requests:
                stream = marks.get(index, Mark()).stream_of(planned.request)
                if stream is not None and str(index) not in undone:
                    yield index, stream

    async def unfinished(self) -> AsyncIterator[Planned]:
        """Give the starts that were not attempted, and those that nobody knows the end of."""
        async for _, requests, marks in self.batches():
            for index, planned in requests:
                mark = marks.get(index, Mark())
                if mark.state in _UNFINISHED:
                    yield Planned(planned, may_run=mark.state == BulkState.UNKNOWN)

    async def batches(self) -> AsyncIterator[tuple[int, Sequence[tuple[int, PlannedRequest]], dict[int, Mark]]]:
        """Go through the run, batch by batch: its number, its requests by index, their marks."""
        facts, keys = self.facts, self.keys
        for first in range(0, facts.batches, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, facts.batches))
            plans = await self.connection.all(
                [command("get", keys.plan(facts.run, facts.plan, number)) for number in numbers]
            )
            told = await self.connection.all([command("hgetall", keys.marks(facts.run, number)) for number in numbers])
            for number, plan, marks in zip(numbers, plans, told, strict=True):
                if plan is None:
                    continue  # the run is about to be forgotten
                found = {int(index): Mark(text) for index, text in text_of(marks).items()}
                yield number, list(enumerate(read_batch(plan), number * facts.batch)), found
