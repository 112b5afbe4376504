"""Carrying out one batch, however often it is delivered: what is settled is let be, the rest is started."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import TypeAlias

from attrs import define, field

from signalwire_streams._client import StreamsClient
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.bulk._serialization import PlannedRequest, Start
from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.fleet._ledger import Batch, BatchLedger, Mark, read_batch
from signalwire_streams.fleet._redis import (
    HOLD,
    LET_GO,
    RENEW,
    Command,
    Connection,
    Keys,
    Writer,
    command,
    reply_of,
    script,
)
from signalwire_streams.fleet._status import RunFacts, text_of

_MILLISECONDS = 1_000
_RENEWALS = 4  # per lease
_LOOKS = 16  # per lease
_TRUSTED = 0.7  # of a lease, from when its renewal was asked for


@define(eq=False)
class Lease:
    """One batch in hand.

    Attributes:
        key: the lease's key.
        owner: who has it.
        cut: lets go of what is under way.
        held_at: when it was last asked for with success, on the loop's clock.
        is_lost: whether it is not ours any more, or may not be.
    """

    key: str
    owner: str
    cut: Callable[[], None]
    held_at: float
    is_lost: bool = False

    def lose(self) -> None:
        """Let go of it, since it is or may be somebody else's."""
        if not self.is_lost:
            self.is_lost = True
            self.cut()


@define(eq=False)
class Leases:
    """The batches that a worker has in hand.

    Attributes:
        connection: the way to Redis.
        seconds: how long a lease lasts when it is not renewed.
        tell: what is to be written with each renewal.
    """

    connection: Connection
    seconds: float
    tell: Callable[[], Sequence[Command]]
    in_hand: dict[str, Lease] = field(init=False, factory=dict)
    _over: bool = field(init=False, default=False)
    _look: asyncio.TimerHandle | None = field(init=False, default=None)
    _renewing: asyncio.Task[None] | None = field(init=False, default=None)

    def begin(self) -> asyncio.Task[None]:
        """Renew from now on; the task ends only where Redis refuses that, with the error."""
        self._renewing = asyncio.create_task(self._renew())
        self._look_later()
        return self._renewing

    async def end(self) -> None:
        """Renew no more."""
        if self._look is not None:
            self._look.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def take(self, key: str, owner: str, cut: Callable[[], None]) -> Lease | None:
        """Take a batch in hand, unless somebody else has it."""
        asked = asyncio.get_running_loop().time()
        answer = reply_of(await self.connection.one(script(HOLD, (key,), owner, self._milliseconds)))
        if answer != "ok":
            return None
        lease = self.in_hand[owner] = Lease(key, owner, cut, asked)
        if self._over:
            lease.lose()
        return lease

    def lose_all(self) -> None:
        """Let go of all, and of whatever is taken from now on."""
        self._over = True
        for lease in list(self.in_hand.values()):
            lease.lose()

    async def give_back(self, lease: Lease) -> None:
        """Let go of a batch, so that somebody else can take it at once."""
        self.in_hand.pop(lease.owner, None)
        await self.connection.one(script(LET_GO, (lease.key,), lease.owner))

    @property
    def _milliseconds(self) -> int:
        return round(self.seconds * _MILLISECONDS)

    async def _renew(self) -> None:
        while True:
            leases = [lease for lease in self.in_hand.values() if not lease.is_lost]
            asked = asyncio.get_running_loop().time()
            renewals = [script(RENEW, (lease.key,), lease.owner, self._milliseconds) for lease in leases]
            answers = await self.connection.all([*renewals, *self.tell()])
            for lease, answer in zip(leases, answers, strict=False):  # what was told has answers too
                if reply_of(answer) == "ok":
                    lease.held_at = max(lease.held_at, asked)
                else:
                    lease.lose()
            await asyncio.sleep(self.seconds / _RENEWALS)

    def _look_later(self) -> None:
        # A timer's own call comes before anything that a timer wakes: after a pause it is the first to act.
        self._look = asyncio.get_running_loop().call_later(self.seconds / _LOOKS, self._look_now)

    def _look_now(self) -> None:
        now = asyncio.get_running_loop().time()
        for lease in list(self.in_hand.values()):
            if now - lease.held_at > self.seconds * _TRUSTED:
                lease.lose()
        self._look_later()


SecretProvider: TypeAlias = Callable[[PlannedRequest], Start]
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
    secrets: SecretProvider | None
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
                run.shutdown()  # what is under way will be refused as well
            elif ledger.handed_back:
                run.shutdown(0)
        if ledger.denied is not None:
            self.on_denied(ledger.denied)

    def _completed(self, planned: Mapping[int, PlannedRequest], ledger: BatchLedger) -> dict[int, Start]:
        """Give requests their secrets back; those that have to do without are refused."""
        requests = {}
        for index, one in planned.items():
            if one.is_complete:
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
