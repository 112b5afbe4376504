"""Submitting: all of a run is read, checked and written down before the first of it is handed to the workers."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_hex

from attrs import define, evolve, field
from docket import Docket

from signalwire_streams.bulk._serialization import DuplicateCheck, PlannedRequest, Start, check_request
from signalwire_streams.errors import ClientStateError, FleetError, InvalidRequestError
from signalwire_streams.fleet._ledger import Planned, write_batch
from signalwire_streams.fleet._redis import BATCH, NOTE, PLAN, Connection, Keys, RunKeys, command, reply_of, script
from signalwire_streams.fleet._status import RunFacts
from signalwire_streams.models import GENERATED_NAME

TASK = "start_batch"
"""What the engine calls it."""


async def start_batch(run: str, batch: int) -> None:
    """Stand for the task where it is only submitted; a worker puts its own in this place."""
    raise ClientStateError(f"batch {batch} of {run} came to a process that is no worker")


_LONGER = 3600  # seconds that requests outlive their run's facts, which point to them
_AT_ONCE = 40  # batches written in one go
_TASKS_AT_ONCE = 500


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
    _keys: RunKeys = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._keys = self.keys.of(self.run, self._plan)

    async def submit(self, requests: AsyncIterable[Planned]) -> None:
        """Write the run down, unless it is there already, and hand it to the workers, unless that was done.

        Raises:
            InvalidRequestError: an item can't be submitted, or another run has that name; nothing was started.
            FleetError: Redis can't be used; repeat it.
        """
        try:
            digest = await self._write(requests)
        except BaseException:  # also when it is cancelled: nothing points to what was written yet
            with suppress(FleetError):  # a Redis that is away is not waited for; what is there expires
                await self._discard(Connection(self.connection.client, 0.0))
            raise
        # Without an answer to this, the plan may be the run's already. So it stays; if it is not, it expires.
        answer = await self._claim(digest)
        if answer != "ok":
            await self._discard(self.connection)
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
            load.append((self._keys.requests(self._batches), text))
            self._batches += 1
            self._planned += len(batch)
            if len(load) >= _AT_ONCE:
                await self._put(load)
                load = []
        await self._put(load)
        return digest.hexdigest()

    async def _put(self, load: list[tuple[str, str]]) -> None:
        if load:
            await self.connection.all([command("set", key, text, ex=self.keep + _LONGER) for key, text in load])

    async def _in_batches(self, requests: AsyncIterable[Planned]) -> AsyncIterator[list[Planned]]:
        once = DuplicateCheck()
        batch: list[Planned] = []
        async for one in requests:
            once.check(one.request.request)
            batch.append(one)
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
        since = now.timestamp()
        plan = script(PLAN, keys, self.keep, digest, since + self.keep, self.run, since, *flat)
        return reply_of(await self.connection.one(plan))

    async def _discard(self, connection: Connection) -> None:
        facts = RunFacts.of(self.run, await connection.one(command("hgetall", self._keys.facts)))
        if facts is not None and facts.plan == self._plan:
            return  # claimed by a try whose answer was lost
        keys = [self._keys.requests(number) for number in range(self._batches)]
        for first in range(0, len(keys), _TASKS_AT_ONCE):
            await connection.one(command("delete", *keys[first : first + _TASKS_AT_ONCE]))

    async def _queue(self) -> None:
        facts = RunFacts.of(self.run, await self.connection.one(command("hgetall", self._keys.facts)))
        if facts is None or "queued" in facts.fields:
            return
        for first in range(0, facts.batches, _TASKS_AT_ONCE):
            numbers = range(first, min(first + _TASKS_AT_ONCE, facts.batches))
            calls = [self.docket.call(TASK, key=f"{self.run}:{number}")(self.run, number) for number in numbers]
            failed = [one.schedule_exception for one in await self.docket.add_many(calls) if one.schedule_exception]
            if failed:
                raise FleetError(f"Redis took only a part of the run: {failed[0]}; repeat it")
        await self.connection.one(script(NOTE, (self._keys.facts,), "queued", "1"))


async def fitted(
    requests: Iterable[Start] | AsyncIterable[Start], run: str, *, redact_secrets: bool
) -> AsyncIterator[Planned]:
    """Fit requests for a run: with a name, and without secrets.

    Raises:
        InvalidRequestError: an item is no request, or has secrets.
    """
    async for request in _each(requests):
        check_request(request)
        planned = PlannedRequest.from_request(request)
        if planned.redacted and not redact_secrets:
            raise InvalidRequestError(
                f"the request for {request.target} has secrets ({', '.join(planned.redacted)}), which Redis does not "
                "keep: submit with redact_secrets=True, and give the workers secrets="
            )
        if request.name is None and not request.unnamed:
            planned = evolve(planned, request=evolve(planned.request, name=f"{GENERATED_NAME}{run}-{request.target}"))
        yield Planned(planned)


async def _each(requests: Iterable[Start] | AsyncIterable[Start]) -> AsyncIterator[Start]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
