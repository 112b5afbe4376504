"""`Fleet`: submits runs, follows them, and stops their streams, from any process that reaches the fleet's Redis."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from secrets import token_hex
from typing import Self

from attrs import evolve
from docket import Docket
from redis.exceptions import RedisError

from signalwire_streams._client import StreamsClient
from signalwire_streams._http.account import find_account
from signalwire_streams.bulk._operations import ItemKey
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.bulk._runner import BulkRun
from signalwire_streams.bulk._serialization import (
    DuplicateCheck,
    PlannedRequest,
    Start,
    check_request,
    folded,
    target_of,
)
from signalwire_streams.errors import ClientStateError, FleetError, InvalidRequestError
from signalwire_streams.fleet._items import (
    CANCELLED,
    PlannedItem,
    complete_unclaimed,
    read_results,
    read_streams,
    read_unfinished,
    write_batch,
)
from signalwire_streams.fleet._ledger import StopLedger
from signalwire_streams.fleet._lua import CANCEL_RUN, CREATE_RUN, SET_ONCE, UNSET
from signalwire_streams.fleet._redis import (
    BATCH,
    TASK,
    Connection,
    Keys,
    RunKeys,
    Writer,
    check_available,
    check_run,
    check_url,
    connect,
    decode_hash,
    docket_url,
    next_run,
)
from signalwire_streams.fleet._status import QUEUED, RESUMED, STOPPING, FleetStatus, RunRecord, WorkerStatus, read_run
from signalwire_streams.models import GENERATED_NAME, CallStream, ConferenceStream
from signalwire_streams.models._requests import each
from signalwire_streams.models._validation import check_seconds, masks_secrets
from signalwire_streams.redis_rate_limit._store import decode, describe_error

_TIMEOUT, _TIMEOUT_ON_ENTRY = 30.0, 3.0  # seconds that Redis may be unavailable
_WEEK = 7 * 24 * 3600.0
_POLL_EVERY = 1.0
_REQUESTS_OUTLIVE_RUN = 3600  # seconds, since the run's hash points to them
_BATCHES_AT_ONCE = 40
_TASKS_AT_ONCE = 500


async def start_batch(run: str, batch: int) -> None:
    """Stand in for the task in a process that only submits; workers register their own."""
    raise ClientStateError(f"batch {batch} of {run} was delivered to a process that is not a worker")


class Submission:
    """One submit: all of a run is read, checked and stored before any of it reaches the workers."""

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
                await self._discard(Connection(self._connection.client, 0.0, self._connection.url))
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
                reason = describe_error(failed[0], self._connection.url)
                raise FleetError(f"Redis accepted only a part of the run: {reason}; submit it again")
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


class Fleet:
    """The runs of one project, shared by any number of hosts over one Redis.

    Use it as ``async with Fleet("redis://...", space="example", project="...") as fleet``. It needs no API token:
    the workers have it. Every method raises `FleetError` if Redis is unavailable, and `InvalidRequestError` if there is
    no such run, or if it has expired; a call that failed can be repeated.
    """

    @masks_secrets
    def __init__(self, url: str, *, space: str, project: str, retention: float = _WEEK) -> None:
        """Check the arguments; nothing is connected yet.

        Args:
            url: the Redis, such as ``redis://host:6379/0``.
            space: the Space's name, host, or URL.
            project: the Project ID.
            retention: seconds that Redis keeps a run after its submit.

        Raises:
            InvalidRequestError: an argument is invalid.
        """
        self.url: str = check_url(url)
        self.space = space
        self.project = project
        self.retention: float = max(1.0, check_seconds(retention, "retention"))
        # The token is not used, but an account is checked as a whole.
        account = find_account(space=space, base_url=None, project=project, token="none")  # noqa: S106
        self._account = account.origin, account.sid
        self._keys = Keys(*self._account)
        self._connection: Connection | None = None
        self._stack: AsyncExitStack
        self._docket: Docket
        self._writer: Writer

    def __repr__(self) -> str:
        return f"Fleet(space={self.space!r}, project={self.project!r}, retention={self.retention!r})"

    async def __aenter__(self) -> Self:
        if self._connection is not None:
            raise ClientStateError("the fleet is open already: use it, or create another Fleet")
        await check_available(self.url, _TIMEOUT_ON_ENTRY)
        docket = Docket(name=self._keys.prefix, url=docket_url(self.url))
        async with AsyncExitStack() as stack:
            self._docket = await stack.enter_async_context(docket)
            docket.register(start_batch, names=[TASK])
            self._connection = await stack.enter_async_context(connect(self.url, docket, _TIMEOUT))
            self._writer = Writer(self._connection)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection = None
        async with self._stack:
            await self._writer.idle()

    async def submit(
        self,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        run_id: str | None = None,
        redact_secrets: bool = False,
    ) -> str:
        """Submit a run to the workers. All of it is read and checked before any of it is started.

        A submit that was killed, or that failed, can be repeated with the same id and requests: nothing is started
        twice. Requests without a name get one derived from the run and the target.

        Args:
            requests: conferences and calls to start a stream on, mixed in any order; any number of them.
            run_id: the run's id; a new one by default.
            redact_secrets: True to leave bearer tokens, parameter values and callbacks with a query or password
                out of what Redis keeps; the workers' ``secrets=`` then puts them back. By default they are rejected.

        Returns:
            The run's id.

        Raises:
            InvalidRequestError: an item can't be submitted, or another run has that id; nothing was started.
            FleetError: Redis is unavailable; submit again with the same id.
        """
        run = check_run(token_hex(4) if run_id is None else run_id)
        return await self._submit(run, prepare(requests, run, redact_secrets=redact_secrets))

    async def resume(self, run: str, *, run_id: str | None = None) -> str | None:
        """Resubmit the ``not_attempted`` and ``unknown`` starts of a finished run as a new run.

        Its streams keep their names, so a conference's stream that is running ends as `already_started`, and is not
        started again. An unknown start on a call, or without a name, stays `unknown` (calls: unless the workers'
        ``RetryPolicy.resend_call_starts``). A resume can be repeated.

        Returns:
            The new run's id, or None if nothing is left. By default it is the old one and a number, as ``nightly-r2``.

        Raises:
            InvalidRequestError: it is still running, or its streams have been stopped, or it was resumed with
                another id.
        """
        record = await self._record(run)
        status = record.status
        if not status.is_finished and status.cancelled is None:
            raise InvalidRequestError(f"the run {run!r} is still running: wait until it ends, or cancel it first")
        if not status.is_finished:
            raise InvalidRequestError(
                f"workers have starts of the cancelled run {run!r} in flight, or had when they died: start a worker to "
                "finish them"
            )
        if not status.unfinished:
            return None
        connection, key = self._open(), self._keys.run(run)
        new = check_run((status.resumed_as or next_run(run)) if run_id is None else run_id)
        resumed_as = await connection.script(SET_ONCE, key, RESUMED, new, STOPPING)
        if resumed_as == "conflict":
            raise InvalidRequestError(f"streams of the run {run!r} have been stopped: submit a new run")
        if resumed_as != new:
            raise InvalidRequestError(f"the run {run!r} was resumed as {resumed_as!r}: use that one")
        try:
            return await self._submit(new, read_unfinished(connection, record))
        except InvalidRequestError:  # that id is taken
            if status.resumed_as is None:
                await connection.script(UNSET, key, RESUMED, new)
            raise

    async def _submit(self, run: str, items: AsyncIterable[PlannedItem]) -> str:
        submission = Submission(self._open(), self._docket, keys=self._keys, run=run, retention=round(self.retention))
        try:
            await submission.submit(items)
        except (RedisError, OSError) as error:  # docket's own
            message = describe_error(error, self.url)
        else:
            return run
        raise FleetError(f"Redis is unavailable: {message}; repeat it for {run!r}")

    def results(self, run: str) -> AsyncGenerator[BulkOutcome[Start], None]:
        """Iterate over the outcomes of a run's starts, in the order in which they ended, until the run is finished.

        Every call begins with the first outcome, in any process. The items are those that Redis stores, without their
        secrets, and without keys of a stream's response that this version does not know.
        """
        return read_results(self._open(), partial(self._record, run))

    async def runs(self) -> tuple[FleetStatus, ...]:
        """Return all runs that Redis keeps, in the order in which they were submitted; without the workers."""
        connection = self._open()
        names = [decode(name) for name in await connection.run(lambda redis: redis.zrange(self._keys.runs, 0, -1))]
        hashes = await connection.pipeline(lambda pipe: [pipe.hgetall(self._keys.run(name)) for name in names])
        records = [
            RunRecord.from_hash(run, self._keys, decode_hash(one)) for run, one in zip(names, hashes, strict=True)
        ]
        return tuple(sorted((run.status for run in records if run is not None), key=lambda run: run.started_at))

    async def status(self, run: str) -> FleetStatus:
        """Return a run's progress, and the workers."""
        record = await self._record(run)
        return evolve(record.status, workers=await self.workers())

    async def workers(self) -> tuple[WorkerStatus, ...]:
        """Return the active workers of this project."""
        connection = self._open()
        names = sorted(map(decode, await connection.run(lambda redis: redis.smembers(self._keys.workers))))
        texts = await connection.pipeline(lambda pipe: [pipe.get(self._keys.worker(name)) for name in names])
        expired = [name for name, text in zip(names, texts, strict=True) if text is None]
        if expired:  # one that is alive adds itself again
            await connection.run(lambda redis: redis.srem(self._keys.workers, *expired))
        return tuple(WorkerStatus.from_json(text) for text in texts if text is not None)

    async def cancel(self, run: str) -> FleetStatus:
        """Accept no further starts of a run. Starts not yet sent end as not attempted; this needs no worker.

        Workers finish the starts that they have claimed.
        """
        record = await self._record(run)
        if not record.status.is_finished:
            await self._open().script(CANCEL_RUN, self._keys.run(run), "cancelled", CANCELLED)
            await complete_unclaimed(self._open(), record, record.status.cancel_reason or CANCELLED)
        return await self.status(run)

    def stop_streams(
        self, run: str, client: StreamsClient, *, concurrency: int | None = None
    ) -> BulkRun[ConferenceStream | CallStream]:
        """Stop a run's streams, running or possibly running: ``async for outcome in fleet.stop_streams(run, client)``.

        The run is cancelled first, then starts in flight are awaited while their workers are alive. Streams are
        stopped by their sid, or by their name if only that is known, as for a start that got a 503 and was rejected
        later. Streams that have already ended count as stopped. It can be repeated until nothing is left.

        The client stops them, with its own token. ``concurrency`` is tuned automatically by default.

        Raises:
            InvalidRequestError: the client belongs to another Space or project.
        """
        if (client.origin, client.project) != self._account:
            raise InvalidRequestError(
                "the client belongs to another Space or project than the fleet: pass a client for the fleet's project"
            )
        self._open()
        ledger = StopLedger(run, self._writer)
        return client.stop_streams(self._streams(run, ledger), journal=ledger, concurrency=concurrency)

    async def _streams(self, run: str, ledger: StopLedger) -> AsyncGenerator[ConferenceStream | CallStream, None]:
        await self._writer.idle()  # it may still be recording the stops of an earlier call
        await self._open().script(SET_ONCE, self._keys.run(run), STOPPING, "1")
        await self.cancel(run)
        record = await self._record(run)
        now = asyncio.get_running_loop().time
        until = now() + _TIMEOUT
        while "in_doubt" in record.status.counts and now() < until and await self.workers():
            await asyncio.sleep(_POLL_EVERY)
            record = await self._record(run)
        ledger.record = record
        async for index, stream in read_streams(self._open(), record):
            ledger.expect(ItemKey(*target_of(stream), stream.name or stream.sid), index)
            yield stream

    async def _record(self, run: str) -> RunRecord:
        record = await read_run(self._open(), self._keys, check_run(run))
        if record is None:
            raise InvalidRequestError(f"there is no run {run!r} in this project: name one that was submitted")
        return record

    def _open(self) -> Connection:
        if self._connection is None:
            raise ClientStateError("the fleet is not open: write 'async with Fleet(...) as fleet:'")
        return self._connection
