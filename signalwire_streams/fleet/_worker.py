"""A worker of the fleet: gets batches from docket, starts their streams, and shuts down gracefully."""

import asyncio
import inspect
import json
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from signal import Signals
from typing import Any, TypeAlias

from attrs import asdict
from docket import Docket, ExponentialRetry, Worker
from docket.instrumentation import healthcheck_server, metrics_server

from signalwire_streams._client import StreamsClient
from signalwire_streams._signals import on_signals
from signalwire_streams.bulk._serialization import PlannedRequest, Start
from signalwire_streams.errors import ClientStateError, FleetError, InvalidRequestError, StreamsError
from signalwire_streams.fleet._items import Batch, ScannedItem, key_of
from signalwire_streams.fleet._leases import Leases
from signalwire_streams.fleet._ledger import BatchLedger
from signalwire_streams.fleet._redis import BATCH, TASK, Connection, Keys, Writer, check_url, connect, docket_url
from signalwire_streams.fleet._status import WorkerStatus, read_run
from signalwire_streams.middleware._rate_limit import RateLimiter, SpaceRateLimiter
from signalwire_streams.models._validation import check_count, check_seconds, kind_of, masks_secrets
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.telemetry import instrument

_LOG = logging.getLogger("signalwire_streams.fleet")

_ENDLESS = float("inf")
_RATE_WINDOW = 5.0  # seconds
_POLL_INTERVAL = timedelta(milliseconds=20)
_RECONNECTION_DELAY = timedelta(seconds=1)
_EXECUTION_TTL = timedelta(minutes=1)
_AHEAD = 10.0  # seconds' worth of the shared rate that one worker has in flight at most
_RETRY_DELAY, _MAX_RETRY_DELAY = timedelta(milliseconds=100), timedelta(seconds=5)
_CLOSE_TIMEOUT = 5.0
_CANCEL_AFTER = 2.0  # seconds that docket's worker gets to return cancelled tasks


SecretProvider: TypeAlias = Callable[[PlannedRequest], Start]
"""Returns the request with its redacted secrets."""


class RequeueBatch(Exception):  # noqa: N818  (an instruction to docket)
    """A batch is not finished, so docket must deliver it again."""


class Supervisor:
    """Runs docket's worker, and stops it even if Redis fails.

    Cancelling docket's worker is not enough: if Redis fails during its last steps, it starts over and accepts work
    again. Leaving its context does stop it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._working: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self.task = asyncio.create_task(self._run())  # ends on its own only if docket's worker failed

    def leave(self) -> None:
        """Accept nothing new; the task ends when everything accepted is finished."""
        self._leaving.set()

    async def stop(self) -> None:
        """Stop, whether Redis responds or not, and even if the caller is cancelled several times."""
        self.leave()
        stopping, cancelled = asyncio.create_task(self._stop()), None
        while not stopping.done():
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def raise_failure(self) -> None:
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        async with self._worker:
            working = self._working = asyncio.create_task(self._worker.run_forever())
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
        if not working.cancelled():
            await working

    async def _stop(self) -> None:
        while True:
            await asyncio.wait([self.task], timeout=_CANCEL_AFTER)
            if self.task.done():
                return
            # Each cancellation ends one thing that it waits for.
            waits = self._working if self._working is not None and not self._working.done() else self.task
            waits.cancel()


class FleetWorker:
    """Executes the runs submitted for its client's project: ``await FleetWorker(url, client).run()``.

    Any number of workers, on any hosts, share the work. The in-flight work of a worker that died passes to the others
    after about a lease. Two workers never work on the same start at once.
    """

    @masks_secrets
    def __init__(
        self,
        url: str,
        client: StreamsClient,
        *,
        concurrency: int = 200,
        lease_seconds: float = 15.0,
        shutdown_timeout: float = 25.0,
        secrets: SecretProvider | None = None,
        name: str | None = None,
        health_port: int | None = None,
        metrics_port: int | None = None,
        monitoring_host: str = "127.0.0.1",
    ) -> None:
        """Check the arguments; nothing is connected yet.

        Args:
            url: the Redis that the fleet shares, such as ``redis://host:6379/0``.
            client: starts the streams, with its own rate limiter and token. The worker does not close it.
            concurrency: number of concurrent starts, including those that wait for the rate limiter, in batches of 25;
                fewer, but one batch at least, if the shared limit is low when the worker starts.
            lease_seconds: seconds without a heartbeat before a worker's work is reassigned. A worker that was
                only suspended for that long sends none of it when it resumes.
            shutdown_timeout: seconds that starts in flight get after `stop`.
            secrets: returns a request with the secrets that Redis does not keep; raises `InvalidRequestError` if it
                can't.
            name: the worker's name; host and process by default.
            health_port: port of an HTTP server that responds with 200 while `run` runs; None for none.
            metrics_port: port of an HTTP server with the metrics of the worker's client (see
                `signalwire_streams.telemetry`) and of docket, in the format of Prometheus; None for none. It sets the
                global meter provider of OpenTelemetry, so nothing else in the process may have set one.
            monitoring_host: address that both listen on.

        Raises:
            InvalidRequestError: an argument is invalid.
        """
        _check_parts(client, name, secrets)
        self.url: str = check_url(url)
        self.client = client
        self.concurrency: int = check_count(concurrency, "concurrency")
        self.lease_seconds: float = max(0.05, check_seconds(lease_seconds, "lease_seconds"))
        self.shutdown_timeout: float = check_seconds(shutdown_timeout, "shutdown_timeout")
        self.name: str = name or f"{socket.gethostname()}-{os.getpid()}-{token_hex(2)}"
        self.secrets = secrets
        self.health_port: int | None = _check_port(health_port, "health")
        self.metrics_port: int | None = _check_port(metrics_port, "metrics")
        self.monitoring_host: str = monitoring_host
        self._keys = Keys(client.origin, client.project)
        self._stop = asyncio.Event()
        self._denied: StreamsError | None = None
        self._completed = 0
        self._recent: deque[tuple[float, int]] = deque()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._has_begun = self._is_connected = False
        self._connection: Connection
        self._writer: Writer
        self._leases: Leases

    def __repr__(self) -> str:
        return f"FleetWorker(name={self.name!r}, concurrency={self.concurrency!r})"

    def stop(self) -> None:
        """Accept no new batches, and finish the starts in flight within ``shutdown_timeout``; then `run` returns.

        Starts that take longer are left to other workers. A signal handler may call this. A second call leaves all of
        them to other workers immediately.
        """
        if self._stop.is_set():
            self._cut()
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop` is called. If cancelled, leave the starts in flight to other workers immediately.

        If Redis becomes unavailable, the worker waits for it.

        Raises:
            ClientStateError: the worker was run before.
            InvalidRequestError: a port of the monitoring is taken, or its host is unknown.
            FleetError: Redis rejects the user or password, or is a Redis Cluster.
            AuthenticationError: the Space rejects the client's token; its starts in flight go to other workers.
            PermissionDeniedError: the same.
            StreamOutcomeUnknownError: the same, for a start that an earlier worker may have made.
        """
        if self._has_begun:
            raise ClientStateError("this worker was run before: create a new FleetWorker")
        with self._monitoring():
            self._has_begun = True
            await self._run()

    @contextmanager
    def _monitoring(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(healthcheck_server(self.monitoring_host, self.health_port))
                stack.enter_context(metrics_server(self.monitoring_host, self.metrics_port))
            except OSError as error:
                ports = " and ".join(str(port) for port in (self.health_port, self.metrics_port) if port is not None)
                raise InvalidRequestError(
                    f"can't listen on {self.monitoring_host} port {ports}: {error.strerror}: pass another host or port"
                ) from None
            if self.metrics_port is not None:
                stack.enter_context(instrument(self.client))
            yield

    async def _run(self) -> None:
        docket = Docket(name=self._keys.prefix, url=docket_url(self.url), execution_ttl=_EXECUTION_TTL)
        async with docket, connect(self.url, docket, _ENDLESS) as self._connection:
            self._writer = Writer(self._connection)
            self._leases = Leases(self._connection, duration=self.lease_seconds, heartbeat=self._heartbeat)
            self._is_connected = True
            docket.register(self._task, names=[TASK])
            if not await self._is_reachable():
                return
            supervisor = Supervisor(self._docket_worker(docket))
            renewing = self._leases.start()
            try:
                await self._work(supervisor, renewing)
            finally:
                await self._leases.stop()
                await self._deregister()
                await self._writer.close()

    async def _is_reachable(self) -> bool:
        """Wait for Redis. Return False if the worker is stopped first."""
        asking = asyncio.ensure_future(self._connection.run(lambda redis: redis.exists(self._keys.workers)))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([asking, stopping], return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
            return asking.done()
        finally:
            asking.cancel()
            stopping.cancel()
            await asyncio.wait([asking, stopping])

    def _docket_worker(self, docket: Docket) -> Worker:
        concurrency, rate_limiter = self.concurrency, self.client.rate_limiter
        if isinstance(rate_limiter, SpaceRateLimiter):
            # More would wait longer than necessary: other workers could start it sooner, and it might time out.
            concurrency = min(concurrency, int(rate_limiter.rate * _AHEAD))
        return Worker(
            docket,
            name=self.name,
            concurrency=max(1, concurrency // BATCH),
            redelivery_timeout=timedelta(seconds=self.lease_seconds),
            reconnection_delay=_RECONNECTION_DELAY,
            minimum_check_interval=_POLL_INTERVAL,
            schedule_automatic_tasks=False,
            dependencies=[ExponentialRetry.forever(delay=_RETRY_DELAY, maximum_delay=_MAX_RETRY_DELAY)],
        )

    async def _work(self, supervisor: Supervisor, renewing: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([supervisor.task, stopping, renewing], return_when=asyncio.FIRST_COMPLETED)
            access_denied = renewing.done()
            if not access_denied:
                supervisor.leave()
                await asyncio.wait([supervisor.task], timeout=self.shutdown_timeout)
        finally:
            stopping.cancel()
            self._cut()
            await supervisor.stop()
        if access_denied:
            await renewing
        supervisor.raise_failure()
        if self._denied is not None:
            raise self._denied

    def _cut(self) -> None:
        if self._is_connected:
            self._connection.timeout = 0.0  # no more waiting for Redis: anything left there expires
            self._leases.lose_all()

    async def _task(self, run: str, batch: int) -> None:
        """Process a batch once no other worker has it. docket calls this, and again if it fails."""
        while True:
            try:
                if await self._process(run, batch):
                    return
            except (RequeueBatch, FleetError):
                raise
            except Exception:  # docket would only retry, silently
                extra = {"run": run, "batch": batch}
                _LOG.exception("batch %d of %s failed and will be retried", batch, run, extra=extra)
                raise
            if self._stop.is_set():
                raise RequeueBatch(f"another worker has batch {batch} of {run}")
            await asyncio.sleep(self.lease_seconds / 8)  # it may finish the batch, or lose it

    async def _process(self, run: str, number: int) -> bool:
        """Process a batch, however often docket delivers it. Return False if another worker has it.

        Settled items are skipped and the others started; `RequeueBatch` is raised if some are left to other workers.
        """
        record = await read_run(self._connection, self._keys, run)
        if record is None:
            extra = {"run": run, "batch": number}
            _LOG.warning("batch %d of %s is skipped: it has expired, or Redis has lost it", number, run, extra=extra)
            return True
        owner = f"{self.name}.{token_hex(4)}"
        ledger = BatchLedger(Batch(record, number), owner=owner, writer=self._writer)
        lease = await self._leases.acquire(record.keys.lease(number), owner, ledger.requeue)
        if lease is None:
            return False
        try:
            finished = await self._process_items(ledger)
        finally:
            await self._leases.release(lease)
        if not finished:
            raise RequeueBatch(f"batch {number} of {run} is left to other workers")
        return True

    async def _process_items(self, ledger: BatchLedger) -> bool:
        plan, marks = await self._connection.pipeline(ledger.batch.get_plan, ledger.batch.get_marks)
        if plan is None:
            return True  # the run has expired
        items = ledger.batch.items(plan, marks)
        ledger.marks = {item.index: item.mark for item in items}
        requests = self._with_secrets([item for item in items if not item.mark.is_completed], ledger)
        for index, request in requests.items():
            ledger.expect(key_of(request), index)
        if ledger.cancelled is None and requests and not ledger.requeued:
            await self._start(ledger, list(requests.values()))
        if ledger.cancelled is not None:
            ledger.complete_rest(requests)
        return await ledger.written()

    async def _start(self, ledger: BatchLedger, requests: Sequence[Start]) -> None:
        run = self.client.start_streams(requests, concurrency=len(requests), journal=ledger)
        async for outcome in run:
            self._completed += outcome.ok
            self._recent.append((asyncio.get_running_loop().time(), outcome.attempts))
            if ledger.denied is not None:
                run.shutdown()  # the starts in flight will be denied as well
            elif ledger.requeued:
                run.shutdown(0)
        if ledger.denied is not None:
            self._denied = ledger.denied
            self._stop.set()

    def _with_secrets(self, items: Sequence[ScannedItem], ledger: BatchLedger) -> Mapping[int, Start]:
        requests = {}
        for item in items:
            try:
                requests[item.index] = self._complete(item.planned)
            except InvalidRequestError as error:
                ledger.complete_unsent(item.index, item.planned.request, error)
        return requests

    def _complete(self, planned: PlannedRequest) -> Start:
        if planned.is_complete:
            return planned.request
        if self.secrets is None:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that Redis does not keep: pass secrets= to the workers"
            )
        request = self.secrets(planned)
        if not isinstance(request, type(planned.request)):
            raise InvalidRequestError(
                f"secrets= returned {kind_of(request)} for {planned.request.target}: let it return the "
                f"{type(planned.request).__name__}"
            )
        if any(getattr(request, name) != getattr(planned.request, name) for name in ("target", "name", "unnamed")):
            raise InvalidRequestError(f"secrets= returned a different request than that of {planned.request.target}")
        if planned.signed_tokens and request.authorization_bearer_token is None:
            raise InvalidRequestError(
                f"{planned.request.target} was submitted with SignedTokens, which Redis does not keep: let secrets= "
                "return the request with authorization_bearer_token=tokens"
            )
        return request

    def _rate(self) -> float:
        now = asyncio.get_running_loop().time()
        while self._recent and self._recent[0][0] < now - _RATE_WINDOW:
            self._recent.popleft()
        return sum(attempts for _, attempts in self._recent) / _RATE_WINDOW

    def _heartbeat(self, pipe: Any) -> None:  # noqa: ANN401  (redis-py's pipeline, or docket's)
        rate_limiter = self.client.rate_limiter
        status = WorkerStatus(
            name=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
            active_batches=len(self._leases.active),
            completed=self._completed,
            rate=self._rate(),
            limit=round(rate_limiter.rate, 1) if isinstance(rate_limiter, SpaceRateLimiter) else None,
            draining=self._stop.is_set(),
        )
        pipe.set(self._keys.worker(self.name), json.dumps(asdict(status)), ex=max(1, round(self.lease_seconds)))
        pipe.sadd(self._keys.workers, self.name)

    async def _deregister(self) -> None:
        worker, workers = self._keys.worker(self.name), self._keys.workers
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._connection.pipeline(lambda pipe: [pipe.srem(workers, self.name), pipe.delete(worker)])
        except Exception as error:  # noqa: BLE001  (any error: the worker's entry expires anyway)
            _LOG.debug("the worker could not be deregistered: %s", error)


@masks_secrets
async def run_worker(
    url: str,
    *,
    rate_limiter: RateLimiter | None = None,
    concurrency: int = 200,
    lease_seconds: float = 15.0,
    shutdown_timeout: float = 25.0,
    secrets: SecretProvider | None = None,
) -> None:
    """Run a worker until SIGTERM or SIGINT; a second signal immediately leaves the starts in flight to other workers.

    Its client is created from ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN``.

    Without a ``rate_limiter``, it shares the Space's limit with the other workers through a `RedisRateLimiter` on the
    fleet's Redis. The other arguments are those of `FleetWorker`.

    Raises:
        InvalidRequestError: an argument is invalid, or an environment variable is missing.
        RateLimiterError: Redis can't be reached at the start, or rejects the user or password.
        FleetError: the same, with a rate limiter of the caller's own.
    """
    async with AsyncExitStack() as stack:
        if rate_limiter is None:
            rate_limiter = await stack.enter_async_context(RedisRateLimiter(url))
        client = await stack.enter_async_context(StreamsClient.from_env(rate_limiter=rate_limiter))
        worker = FleetWorker(
            url,
            client,
            concurrency=concurrency,
            lease_seconds=lease_seconds,
            shutdown_timeout=shutdown_timeout,
            secrets=secrets,
        )
        with stop_on_signals(worker):
            await worker.run()


@contextmanager
def stop_on_signals(worker: FleetWorker, on_signal: Callable[[Signals], object] | None = None) -> Iterator[None]:
    """Stop a worker on SIGTERM or SIGINT; *on_signal* is called with each signal, after `FleetWorker.stop`."""

    def stop(signal: Signals) -> None:
        worker.stop()
        if on_signal is not None:
            on_signal(signal)

    with on_signals(stop):
        yield


def _check_parts(client: object, name: object, secrets: object) -> None:
    if not isinstance(client, StreamsClient):
        raise InvalidRequestError(f"client must be a StreamsClient, not {kind_of(client)}")
    if name is not None and not (isinstance(name, str) and name and name.isprintable()):
        raise InvalidRequestError("name must be printable text, such as the host's name")
    if (secrets is not None and not callable(secrets)) or inspect.iscoroutinefunction(secrets):
        raise InvalidRequestError("secrets must be a function, not an async one: def secrets(planned)")


def _check_port(port: int | None, name: str) -> int | None:
    if port is None or (type(port) is int and 0 < port < 1 << 16):
        return port
    raise InvalidRequestError(f"{name}_port must be a whole number from 1 to 65535, not {port!r}")
