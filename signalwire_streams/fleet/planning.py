"""Submitting: all of a run is read, checked and written down before the first of it is handed to the workers."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_hex

from attrs import define, evolve, field, frozen
from docket import Docket

from signalwire_streams.bulk.planning import Once, PlannedRequest, Start, check_request
from signalwire_streams.errors import FleetError, InvalidRequestError
from signalwire_streams.fleet.connection import Connection, command
from signalwire_streams.fleet.facts import RunFacts
from signalwire_streams.fleet.keys import BATCH, Keys
from signalwire_streams.fleet.records import intended, write_batch
from signalwire_streams.fleet.scripts import INTEND, PLAN
from signalwire_streams.fleet.steps import Step, joined, reply_of, script
from signalwire_streams.fleet.tasks import TASK

_AT_ONCE = 40  # batches written in one go
_TASKS_AT_ONCE = 500


@frozen
class Planned:
    """A start of a run that is to be submitted.

    Attributes:
        planned: what is to be started, without secrets.
        may_run: whether an earlier run may have started it.
    """

    planned: PlannedRequest
    may_run: bool = False


@define(eq=False)
class Submission:
    """Submits one run.

    Attributes:
        connection: the way to Redis.
        docket: the engine's queue.
        keys: what things are called.
        run: what the run is called.
        keep: seconds that Redis keeps it.
    """

    connection: Connection
    docket: Docket
    keys: Keys
    run: str
    keep: int
    _plan: str = field(init=False, factory=lambda: token_hex(6))
    _planned: int = field(init=False, default=0)
    _batches: int = field(init=False, default=0)
    _doubtful: list[int] = field(init=False, factory=list)

    async def submit(self, requests: AsyncIterable[Planned]) -> None:
        """Write the run down, unless it is there already, and hand it to the workers, unless that was done.

        Raises:
            InvalidRequestError: an item can't be submitted, or another run has that name; nothing was started.
            FleetError: Redis can't be used; repeat it.
        """
        try:
            digest = await self._write(requests)
        except BaseException:  # also when it is cancelled: nothing points to what was written yet
            await self._discard()
            raise
        # Without an answer to this, the plan may be the run's already. So it stays; if it is not, it expires.
        answer = await self._claim(digest)
        if answer != "ok":
            await self._discard()
        if answer == "other":
            raise InvalidRequestError(
                f"a run {self.run!r} with other requests is there already: choose another name for this one"
            )
        await self._queue()

    async def _write(self, requests: AsyncIterable[Planned]) -> str:
        digest = sha256()
        load: list[tuple[str, str]] = []
        async for batch in self._in_batches(requests):
            text = write_batch(batch)
            digest.update(text.encode())
            load.append((self.keys.plan(self.run, self._plan, self._batches), text))
            self._batches += 1
            self._planned += len(batch)
            if len(load) >= _AT_ONCE:
                await self._put(load)
                load = []
        await self._put(load)
        return digest.hexdigest()

    async def _put(self, load: list[tuple[str, str]]) -> None:
        if load:
            await self.connection.all([command("set", key, text, ex=self.keep) for key, text in load])

    async def _in_batches(self, requests: AsyncIterable[Planned]) -> AsyncIterator[list[PlannedRequest]]:
        once = Once()
        batch: list[PlannedRequest] = []
        async for one in requests:
            once.check(one.planned.request)
            if one.may_run:
                self._doubtful.append(self._planned + len(batch))
            batch.append(one.planned)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _claim(self, digest: str) -> str:
        now = datetime.now(UTC)
        facts = {
            "plan": self._plan,
            "planned": self._planned,
            "batch": BATCH,
            "keep": self.keep,
            "began": now.isoformat(timespec="milliseconds"),
        }
        flat = [value for entry in facts.items() for value in entry]
        keys = (self.keys.run(self.run), self.keys.runs)
        plan = script(PLAN, keys, self.keep, digest, now.timestamp(), self.run, *flat)
        return reply_of(await self.connection.one(plan))

    async def _discard(self) -> None:
        facts = RunFacts.of(self.run, await self.connection.one(command("hgetall", self.keys.run(self.run))))
        if facts is not None and facts.plan == self._plan:
            return  # claimed by a try whose answer was lost
        keys = [self.keys.plan(self.run, self._plan, number) for number in range(self._batches)]
        for first in range(0, len(keys), _TASKS_AT_ONCE):
            await self.connection.one(command("delete", *keys[first : first + _TASKS_AT_ONCE]))

    async def _queue(self) -> None:
        key = self.keys.run(self.run)
        facts = RunFacts.of(self.run, await self.connection.one(command("hgetall", key)))
        if facts is None or "queued" in facts.fields:
            return
        await self._mark(facts)
        for first in range(0, facts.batches, _TASKS_AT_ONCE):
            numbers = range(first, min(first + _TASKS_AT_ONCE, facts.batches))
            calls = [self.docket.call(TASK, key=f"{self.run}:{number}")(self.run, number) for number in numbers]
            failed = [one.schedule_exception for one in await self.docket.add_many(calls) if one.schedule_exception]
            if failed:
                raise FleetError(f"Redis took only a part of the run: {failed[0]}; submit it again")
        await self.connection.one(command("hset", key, "queued", "1"))

    async def _mark(self, facts: RunFacts) -> None:
        """Mark what may run already as if a worker had died over it: whoever carries it out knows what to do."""
        steps = []
        for index in self._doubtful:
            values = (index, "", intended("an earlier run"), self.keep)
            marks = self.keys.marks(self.run, index // facts.batch)
            steps.append(Step(INTEND, (self.keys.run(self.run),), marks, values))
        for first in range(0, len(steps), _TASKS_AT_ONCE):
            await self.connection.all([one for one, _ in joined(steps[first : first + _TASKS_AT_ONCE])])


async def fitted(
    requests: Iterable[Start] | AsyncIterable[Start], run: str, *, secrets_at_workers: bool
) -> AsyncIterator[Planned]:
    """Fit requests for a run: with a name, and without secrets.

    Raises:
        InvalidRequestError: an item is no request, or has secrets.
    """
    async for request in _each(requests):
        check_request(request)
        planned = PlannedRequest.of(request)
        if planned.left_out and not secrets_at_workers:
            raise InvalidRequestError(
                f"the request for {request.target} has secrets ({', '.join(planned.left_out)}), which Redis does not "
                "keep: submit with secrets_at_workers=True, and give the workers secrets="
            )
        if request.name is None and not request.unnamed:
            planned = evolve(planned, request=evolve(planned.request, name=f"sws-{run}-{request.target}"))
        yield Planned(planned)


async def _each(requests: Iterable[Start] | AsyncIterable[Start]) -> AsyncIterator[Start]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
