"""Submission of a run: all of it is read, checked and stored before any of it reaches the workers."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from secrets import token_hex

from attrs import evolve
from docket import Docket

from signalwire_streams.bulk._serialization import DuplicateCheck, PlannedRequest, Start, check_request, folded
from signalwire_streams.errors import ClientStateError, FleetError, InvalidRequestError
from signalwire_streams.fleet._items import PlannedItem, write_batch
from signalwire_streams.fleet._lua import CREATE_RUN, SET_ONCE
from signalwire_streams.fleet._redis import BATCH, Connection, Keys, RunKeys
from signalwire_streams.fleet._status import QUEUED, read_run
from signalwire_streams.models import GENERATED_NAME
from signalwire_streams.models._requests import each

TASK = "start_batch"  # the name of docket's task
_REQUESTS_OUTLIVE_RUN = 3600  # seconds, since the run's hash points to them
_BATCHES_AT_ONCE = 40
_TASKS_AT_ONCE = 500


async def start_batch(run: str, batch: int) -> None:
    """Stand in for the task in a process that only submits; workers register their own."""
    raise ClientStateError(f"batch {batch} of {run} was delivered to a process that is not a worker")


class Submission:
    def __init__(self, connection: Connection, docket: Docket, *, keys: Keys, run: str, retention: int) -> None:
        self._connection = connection
        self._docket = docket
        self._run = run
        self._retention = retention
        self._plan = token_hex(6)
        self._all_keys = keys
        self._keys = RunKeys(keys.run(run), self._plan)
        self._planned = 0
        self._batches = 0

    async def submit(self, items: AsyncIterable[PlannedItem]) -> None:
        """Store the run, unless it is stored, and queue its batches, unless they are queued."""
        try:
            digest = await self._store(items)
        except BaseException:  # also a cancellation: nothing points to the requests yet
            with suppress(FleetError):  # no waiting for Redis: the requests expire
                await self._discard(Connection(self._connection.client, 0.0))
            raise
        # If the reply is lost, the plan may belong to the run, so it stays; if it does not, it expires.
        reply = await self._create(digest)
        if reply != "ok":
            await self._discard(self._connection)
        if reply == "other":
            raise InvalidRequestError(f"a run {self._run!r} with different requests already exists: choose another id")
        await self._queue()

    async def _store(self, items: AsyncIterable[PlannedItem]) -> str:
        digest = sha256()
        async for some in _in_chunks(items, BATCH * _BATCHES_AT_ONCE):
            texts = [write_batch(some[first : first + BATCH]) for first in range(0, len(some), BATCH)]
            digest.update("".join(texts).encode())
            stored = {self._keys.requests(number): text for number, text in enumerate(texts, self._batches)}
            self._batches += len(texts)
            self._planned += len(some)
            await self._write(stored)
        return digest.hexdigest()

    async def _write(self, texts: Mapping[str, str]) -> None:
        seconds = self._retention + _REQUESTS_OUTLIVE_RUN
        await self._connection.pipeline(lambda pipe: [pipe.set(key, text, ex=seconds) for key, text in texts.items()])

    async def _create(self, digest: str) -> str:
        now = datetime.now(UTC)
        fields = {
            "plan": self._plan,
            "planned": self._planned,
            "batch_size": BATCH,
            "retention": self._retention,
            "started_at": now.isoformat(timespec="milliseconds"),
        }
        flat = [value for entry in fields.items() for value in entry]
        expires_at = now.timestamp() + self._retention
        arguments = (self._retention, digest, expires_at, self._run, now.timestamp(), *flat)
        return await self._connection.script(CREATE_RUN, (self._keys.run, self._all_keys.runs), *arguments)

    async def _discard(self, connection: Connection) -> None:
        record = await read_run(connection, self._all_keys, self._run)
        if record is not None and record.keys == self._keys:
            return  # the run was created by an attempt whose reply was lost
        keys = [self._keys.requests(number) for number in range(self._batches)]
        await connection.pipeline(lambda pipe: [pipe.delete(key) for key in keys])

    async def _queue(self) -> None:
        record = await read_run(self._connection, self._all_keys, self._run)
        if record is None or record.status.fully_submitted:
            return
        for first in range(0, record.batches, _TASKS_AT_ONCE):
            numbers = range(first, min(first + _TASKS_AT_ONCE, record.batches))
            tasks = [self._docket.call(TASK, key=f"{self._run}:{number}")(self._run, number) for number in numbers]
            failed = [task.schedule_exception for task in await self._docket.add_many(tasks) if task.schedule_exception]
            if failed:
                raise FleetError(f"Redis accepted only a part of the run: {failed[0]}; submit it again")
        await self._connection.script(SET_ONCE, self._keys.run, QUEUED, "1")


async def _in_chunks(items: AsyncIterable[PlannedItem], size: int) -> AsyncIterator[list[PlannedItem]]:
    duplicates = DuplicateCheck()
    chunk: list[PlannedItem] = []
    async for item in items:
        duplicates.check(item.request.request)
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def prepare(
    requests: Iterable[Start] | AsyncIterable[Start], run: str, *, redact_secrets: bool
) -> AsyncIterator[PlannedItem]:
    """Yield requests with a name and without secrets; raise `InvalidRequestError` for one that can't be submitted."""
    async for request in each(requests):
        check_request(request)
        planned = PlannedRequest.from_request(request)
        if planned.redacted and not redact_secrets:
            raise InvalidRequestError(
                f"the request for {request.target} has secrets ({', '.join(planned.redacted)}), which Redis does not "
                "keep: submit with redact_secrets=True, and pass secrets= to the workers"
            )
        if request.name is None and not request.unnamed:
            planned = evolve(
                planned, request=evolve(planned.request, name=f"{GENERATED_NAME}{run}-{folded(request.target)}")
            )
        yield PlannedItem(planned)
