"""Processing a batch under a lease, however often docket delivers it: what is settled is skipped, the rest started.

A lease is a key in Redis that expires. A worker that can't renew it assumes at 70 % of its lifetime that it is lost,
and cancels its starts in flight before the batch can pass to another worker.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
from typing import Any, TypeAlias

from attrs import define

from signalwire_streams._client import StreamsClient
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.bulk._serialization import PlannedRequest, Start
from signalwire_streams.errors import InvalidRequestError, StreamsError
from signalwire_streams.fleet._items import Batch, ScannedItem, key_of
from signalwire_streams.fleet._ledger import BatchLedger
from signalwire_streams.fleet._lua import ACQUIRE_LEASE, RELEASE_LEASE, RENEW_LEASE
from signalwire_streams.fleet._redis import Connection, Keys, Writer, decode, decode_hash
from signalwire_streams.fleet._status import read_run

_LOG = logging.getLogger("signalwire_streams.fleet")

_RENEWALS = 4  # per lease
_CHECKS = 16  # per lease
_TRUSTED = 0.7  # of a lease, from when its renewal was sent


@define(eq=False)
class Lease:
    """A worker's lease on one batch.

    Attributes:
        cancel: cancels the starts in flight.
        renewed_at: when the last successful renewal was sent, on the loop's clock.
        is_lost: True if another worker has it, or may have it.
    """

    key: str
    owner: str
    cancel: Callable[[], None]
    renewed_at: float
    is_lost: bool = False

    def lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.cancel()


class Leases:
    """A worker's leases, and the task that renews them.

    Attributes:
        active: the leases by owner.
    """

    def __init__(self, connection: Connection, *, duration: float, heartbeat: Callable[[Any], object]) -> None:
        """Args: the duration of a lease in seconds, and a function that queues the worker's heartbeat on a pipeline."""
        self.active: dict[str, Lease] = {}
        self._connection = connection
        self._duration = duration
        self._heartbeat = heartbeat
        self._all_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Start renewing. The task ends only if Redis refuses access, with the error."""
        self._renewing = asyncio.create_task(self._renew())
        self._check_later()
        return self._renewing

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def acquire(self, key: str, owner: str, cancel: Callable[[], None]) -> Lease | None:
        """Return the lease, or None if another worker has it."""
        asked_at = asyncio.get_running_loop().time()
        if await self._connection.script(ACQUIRE_LEASE, key, owner, self._milliseconds) != "ok":
            return None
        lease = self.active[owner] = Lease(key, owner, cancel, asked_at)
        if self._all_lost:
            lease.lose()
        return lease

    def lose_all(self) -> None:
        """Lose all leases, and those that are acquired later."""
        self._all_lost = True
        for lease in list(self.active.values()):
            lease.lose()

    async def release(self, lease: Lease) -> None:
        """Release a lease, so that another worker can acquire it at once."""
        self.active.pop(lease.owner, None)
        await self._connection.script(RELEASE_LEASE, lease.key, lease.owner)

    @property
    def _milliseconds(self) -> int:
        return round(self._duration * 1_000)

    async def _renew(self) -> None:
        while True:
            leases = [lease for lease in self.active.values() if not lease.is_lost]
            asked_at = asyncio.get_running_loop().time()

            def queue(pipe: Any, leases: Sequence[Lease] = leases) -> None:  # noqa: ANN401
                for lease in leases:
                    pipe.eval(RENEW_LEASE, 1, lease.key, lease.owner, str(self._milliseconds))
                self._heartbeat(pipe)

            answers = await self._connection.pipeline(queue)
            for lease, answer in zip(leases, answers, strict=False):  # the heartbeat has answers too
                if decode(answer) == "ok":
                    lease.renewed_at = max(lease.renewed_at, asked_at)
                else:
                    lease.lose()
            await asyncio.sleep(self._duration / _RENEWALS)

    def _check_later(self) -> None:
        # A timer's callback runs before any task that a timer wakes: after a suspension it is the first to act.
        self._timer = asyncio.get_running_loop().call_later(self._duration / _CHECKS, self._check)

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for lease in list(self.active.values()):
            if now - lease.renewed_at > self._duration * _TRUSTED:
                lease.lose()
        self._check_later()


SecretProvider: TypeAlias = Callable[[PlannedRequest], Start]
"""Returns the request with its redacted secrets."""


class RequeueBatch(Exception):  # noqa: N818  (an instruction to docket)
    """A batch is not finished, so docket must deliver it again."""


class BatchProcessor:
    """Processes batches for a worker."""

    def __init__(
        self,
        client: StreamsClient,
        connection: Connection,
        *,
        writer: Writer,
        leases: Leases,
        keys: Keys,
        worker: str,
        secrets: SecretProvider | None,
        on_outcome: Callable[[BulkOutcome[Start]], None],
        on_denied: Callable[[StreamsError], None],
    ) -> None:
        """Args: *on_outcome* is called with each outcome, *on_denied* if the Space denies access to this worker."""
        self._client = client
        self._connection = connection
        self._writer = writer
        self._leases = leases
        self._keys = keys
        self._worker = worker
        self._secrets = secrets
        self._on_outcome = on_outcome
        self._on_denied = on_denied

    async def process(self, run: str, number: int) -> bool:
        """Process a batch. Return False if another worker has it.

        Raises:
            RequeueBatch: it is not finished, and no worker has it.
            FleetError: Redis is unavailable.
        """
        record = await read_run(self._connection, self._keys, run)
        if record is None:
            _LOG.warning("batch %d of %s has expired and is skipped", number, run)
            return True
        owner = f"{self._worker}.{token_hex(4)}"
        ledger = BatchLedger(Batch(record, number), owner=owner, writer=self._writer)
        lease = await self._leases.acquire(record.keys.lease(number), owner, ledger.hand_back)
        if lease is None:
            return False
        try:
            finished = await self._process(ledger)
        finally:
            await self._leases.release(lease)
        if not finished:
            raise RequeueBatch(f"batch {number} of {run} is left to other workers")
        return True

    async def _process(self, ledger: BatchLedger) -> bool:
        batch = ledger.batch
        plan, marks = await self._connection.pipeline(
            lambda pipe: [pipe.get(batch.record.keys.requests(batch.number)), pipe.hgetall(batch.marks)]
        )
        if plan is None:
            return True  # the run has expired
        items = batch.items(plan, decode_hash(marks))
        ledger.marks = {item.index: item.mark for item in items}
        requests = self._with_secrets([item for item in items if not item.mark.is_settled], ledger)
        for index, request in requests.items():
            ledger.expect(key_of(request), index)
        if ledger.cancelled is None and requests and not ledger.handed_back:
            await self._start(ledger, list(requests.values()))
        if ledger.cancelled is not None:
            ledger.settle_rest(requests)
        return await ledger.written()

    async def _start(self, ledger: BatchLedger, requests: Sequence[Start]) -> None:
        run = self._client.start_streams(requests, concurrency=len(requests), journal=ledger)
        async for outcome in run:
            self._on_outcome(outcome)
            if ledger.denied is not None:
                run.shutdown()  # the starts in flight will be denied as well
            elif ledger.handed_back:
                run.shutdown(0)
        if ledger.denied is not None:
            self._on_denied(ledger.denied)

    def _with_secrets(self, items: Sequence[ScannedItem], ledger: BatchLedger) -> Mapping[int, Start]:
        """Add the secrets, and reject the items that lack them."""
        requests = {}
        for item in items:
            try:
                requests[item.index] = self._completed(item.planned.request)
            except InvalidRequestError as error:
                ledger.refuse(item.index, item.request, error)
        return requests

    def _completed(self, planned: PlannedRequest) -> Start:
        if planned.is_complete:
            return planned.request
        if self._secrets is None:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that Redis does not keep: pass secrets= to the workers"
            )
        request = self._secrets(planned)
        if _identity(request) != _identity(planned.request):
            raise InvalidRequestError(f"secrets= returned a different request than that of {planned.request.target}")
        return request


def _identity(request: Start) -> tuple[str, str | None, bool]:
    return request.target, request.name, request.unnamed
