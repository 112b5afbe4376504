"""Carrying out one batch, however often it is delivered: what is settled is let be, the rest is started."""

from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TypeAlias

from attrs import define

from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.bulk._serialization import PlannedRequest, Start
from signalwire_streams._client import StreamsClient
from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.fleet._redis import Connection, command
from signalwire_streams.fleet._status import RunFacts, text_of
from signalwire_streams.fleet.keys import Keys
from signalwire_streams.fleet.leases import Leases
from signalwire_streams.fleet._ledger import Batch, BatchLedger
from signalwire_streams.fleet.records import Mark, read_batch
from signalwire_streams.fleet.writer import Writer

Secrets: TypeAlias = Callable[[PlannedRequest], Start]
"""Gives a request the secrets that were left out of it."""


class HandedBackError(Exception):
    """A batch that is not done, and that the engine is to deliver again."""


@define(eq=False)
class Batches:
    """Carries out batches.

    Attributes:
        client: starts the streams.
        connection: the way to Redis.
        writer: writes marks and outcomes.
        leases: what this worker has in hand.
        keys: what things are called.
        name: what the worker is called.
        secrets: gives requests their secrets back.
        on_outcome: hears of each outcome.
        on_denied: hears that the Space refuses whatever this worker sends.
    """

    client: StreamsClient
    connection: Connection
    writer: Writer
    leases: Leases
    keys: Keys
    name: str
    secrets: Secrets | None
    on_outcome: Callable[[BulkOutcome[Start]], None]
    on_denied: Callable[[StreamsError], None]

    async def carry_out(self, facts: RunFacts, number: int) -> bool:
        """Carry out a batch.

        Returns:
            False when somebody else has it in hand now.

        Raises:
            HandedBackError: it is not done, and nobody has it in hand now.
            FleetError: Redis can't be used.
        """
        keys = self.keys.of(facts.run, facts.plan)
        batch = Batch(keys, facts.run, number, facts.keep)
        owner = f"{self.name}.{token_hex(4)}"
        ledger = BatchLedger(batch, owner, self.writer, {}, ended=facts.ended)
        lease = await self.leases.take(keys.lease(number), owner, ledger.hand_back)
        if lease is None:
            return False
        try:
            done = await self._start(facts, number, ledger)
        finally:
            await self.leases.give_back(lease)
        if not done:
            raise HandedBackError(f"batch {number} of {facts.run} is left to others")
        return True

    async def _start(self, facts: RunFacts, number: int, ledger: BatchLedger) -> bool:
        plan, marks = await self.connection.all(
            [
                command("get", ledger.batch.keys.requests(number)),
                command("hgetall", ledger.batch.marks),
            ]
        )
        if plan is None:
            return True  # the run is older than Redis was told to keep it
        planned = dict(enumerate(read_batch(plan), number * facts.batch))
        texts = text_of(marks)
        ledger.marks = {index: Mark(texts.get(str(index), ""), one.may_run) for index, one in planned.items()}
        ledger.size = len(planned)
        left = {index: one.request for index, one in planned.items() if not ledger.marks[index].is_settled}
        requests = self._completed(left, ledger)
        expected = ledger.expect(requests.items())
        if ledger.ended is None and expected and not ledger.handed_back:
            await self._run(ledger, expected)
        if ledger.ended is not None:
            ledger.settle_rest(requests)
        return await ledger.written()

    async def _run(self, ledger: BatchLedger, requests: Sequence[Start]) -> None:
        run = self.client.start_streams(requests, concurrency=len(requests), journal=ledger)
        async for outcome in run:
            self.on_outcome(outcome)
            if ledger.denied is not None:
                run.drain()  # what is under way will be refused as well
            elif ledger.handed_back:
                run.drain(0)
        if ledger.denied is not None:
            self.on_denied(ledger.denied)

    def _completed(self, planned: Mapping[int, PlannedRequest], ledger: BatchLedger) -> dict[int, Start]:
        """Give requests their secrets back; those that have to do without are refused."""
        requests = {}
        for index, one in planned.items():
            if one.complete:
                requests[index] = one.request
                continue
            try:
                requests[index] = self._with_secrets(one)
            except InvalidRequestError as error:
                ledger.refuse(index, one.request, error)
        return requests

    def _with_secrets(self, planned: PlannedRequest) -> Start:
        if self.secrets is None:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that are not kept in Redis: give the workers secrets="
            )
        request = self.secrets(planned)
        if _known_by(request) != _known_by(planned.request):
            raise InvalidRequestError(f"secrets= gave another request than that of {planned.request.target}")
        return request


def _known_by(request: Start) -> tuple[str, str | None, bool]:
    return request.target, request.name, request.unnamed
