"""Reading the outcomes of a run, in the order of their ends, while it goes on."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from attrs import define, field

from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.bulk._serialization import Start
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.fleet._redis import Connection, command
from signalwire_streams.fleet._status import RunFacts
from signalwire_streams.fleet.keys import Keys, RunKeys
from signalwire_streams.fleet.records import Planned, read_batch, read_index, read_outcome

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
