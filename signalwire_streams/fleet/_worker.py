"""A worker of the fleet: takes batches from the engine, starts their streams, and lets go of them in order."""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from signal import Signals
from typing import Any

from attrs import define, field
from docket import Docket, ExponentialRetry, Worker

from signalwire_streams._client import StreamsClient
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.errors import FleetError, InvalidRequestError, StreamsError
from signalwire_streams.fleet._batches import Batches, HandedBackError, Leases, SecretProvider
from signalwire_streams.fleet._redis import (
    BATCH,
    Command,
    Connection,
    Keys,
    Writer,
    check_url,
    command,
    connected,
    engine_url,
)
from signalwire_streams.fleet._status import RunFacts
from signalwire_streams.fleet._submission import TASK
from signalwire_streams.middleware._rate_limit import RateLimiter, SpaceRateLimiter
from signalwire_streams.models._validation import check_count, check_seconds
from signalwire_streams.redis_rate_limit import RedisRateLimiter

_ENDS_WITHIN = 2.0  # seconds that it takes to give back what was cut, before it is cancelled


@define(eq=False)
class Engine:
    """A worker of docket's that runs.

    Cancelling it is no way to end it: where Redis fails it in its last steps it begins anew, and takes on work again.
    It is told to end as the end of its own context does that.

    Attributes:
        worker: docket's worker.
        running: its life; ends by itself only where something is wrong with it.
    """

    worker: Worker
    running: asyncio.Task[None] = field(init=False)
    _working: asyncio.Task[None] | None = field(init=False, default=None)
    _left: asyncio.Event = field(init=False, factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self.running = asyncio.create_task(self._run())

    def leave(self) -> None:
        """Take nothing new; it ends with what was taken."""
        self._left.set()

    async def end(self) -> None:
        """End, whether Redis answers or not and however often the caller is cancelled meanwhile.

        Raises:
            CancelledError: the caller was cancelled meanwhile.
        """
        self.leave()
        await _in_any_case(self._end())

    def tell_failure(self) -> None:
        """Raise what it failed with, if it did."""
        if not self.running.cancelled() and (error := self.running.exception()) is not None:
            raise error

    async def _run(self) -> None:
        async with self.worker:
            working = self._working = asyncio.create_task(self.worker.run_forever())
            leaving = asyncio.create_task(self._left.wait())
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
        if not working.cancelled():
            await working

    async def _end(self) -> None:
        while True:
            await asyncio.wait([self.running], timeout=_ENDS_WITHIN)
            if self.running.done():
                return
            # Each time it is cancelled it gives up one thing that it waits for.
            waits = self._working if self._working is not None and not self._working.done() else self.running
            waits.cancel()


async def _in_any_case(ending: Coroutine[object, object, None]) -> None:
    task, cancelled = asyncio.ensure_future(ending), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


_LOG = logging.getLogger("signalwire_streams.fleet")

_ENDLESS = float("inf")
_WINDOW = 5.0  # seconds that the rate is told over
_LOOKS_FOR_WORK = timedelta(milliseconds=20)
_RECONNECTS = timedelta(seconds=1)
_KEEPS_TASKS = timedelta(minutes=1)
_AHEAD = 10.0  # seconds' worth of what all workers send together that one of them takes in hand at most
_RETRIES = (timedelta(milliseconds=100), timedelta(seconds=5))
_LAST_WORDS = 5.0


def _lease(value: float) -> float:
    return max(0.05, check_seconds(value, "lease_seconds"))


def _own_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{token_hex(2)}"


def _name(value: str) -> str:
    if not value or not value.isprintable():
        raise InvalidRequestError("name must be a text that can be printed, such as the host's")
    return value


def _drain(value: float) -> float:
    return check_seconds(value, "shutdown_timeout")


def _count(value: int) -> int:
    return check_count(value, "concurrency")


@define(eq=False)
class FleetWorker:
    """Carries out what others submit for its client's project: ``await FleetWorker(url, client).run()``.

    Any number of workers, on any hosts, share the work. What a worker had in hand when it died goes to the others
    after about a lease. Two workers never work on the same start at once.

    Attributes:
        url: the Redis that the fleet shares, such as ``redis://host:6379/0``.
        client: starts the streams; its own pacer, its own token. It is not closed here.
        concurrency: starts that may be under way at once, waiting for the pacer included, in batches of 25; fewer,
            but one batch at least, where the limit that all share is low when the worker begins.
        lease_seconds: seconds after which a worker that gives no sign of life loses what it has in hand. One that is only
            stopped for that long sends nothing more of it when it goes on.
        shutdown_timeout: seconds that what is in hand gets when the worker is told to end.
        secrets: gives a request the secrets that Redis does not keep; raises `InvalidRequestError` where it can't.
        name: what the worker is called; host and process by default.

    Raises:
        InvalidRequestError: something can't be right.
    """

    url: str = field(converter=check_url, repr=False)
    client: StreamsClient
    concurrency: int = field(default=200, kw_only=True, converter=_count)
    lease_seconds: float = field(default=15.0, kw_only=True, converter=_lease)
    shutdown_timeout: float = field(default=25.0, kw_only=True, converter=_drain)
    secrets: SecretProvider | None = field(default=None, kw_only=True, repr=False)
    name: str = field(kw_only=True, converter=_name, factory=_own_name)
    _stop: asyncio.Event = field(init=False, factory=asyncio.Event)
    _denied: StreamsError | None = field(init=False, default=None)
    _ended: int = field(init=False, default=0)
    _recent: deque[tuple[float, int]] = field(init=False, factory=deque)
    _since: str = field(init=False, factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _batches: Batches = field(init=False)
    _has_begun: bool = field(init=False, default=False)

    def stop(self) -> None:
        """Take nothing new, finish what is in hand, hand back what takes longer than ``shutdown_timeout``; then `run` ends.

        A signal's handler may call this. A second call hands everything back at once.
        """
        if self._stop.is_set() and self._has_begun:
            self._cut()
        self._stop.set()

    async def run(self) -> None:
        """Work until `stop` is called, or this is cancelled, which hands back at once what is in hand.

        A Redis that goes away is waited for.

        Raises:
            FleetError: Redis refuses the user or password.
            AuthenticationError: the Space refuses the client's token; what this worker had in hand goes to others.
            PermissionDeniedError: the same.
            StreamOutcomeUnknownError: the same, of a start that an earlier worker may have made.
        """
        keys = Keys(self.client.origin, self.client.project)
        async with AsyncExitStack() as stack:
            url = engine_url(self.url)
            docket = await stack.enter_async_context(Docket(name=keys.prefix, url=url, execution_ttl=_KEEPS_TASKS))
            connection = await stack.enter_async_context(connected(self.url, docket, _ENDLESS))
            leases = Leases(connection, self.lease_seconds, lambda: self._tell(keys))
            writer = Writer(connection)
            self._batches = Batches(
                self.client, connection, writer, leases, keys, self.name, self.secrets, self._note, self._give_up
            )
            self._has_begun = True
            docket.register(self._task, names=[TASK])
            if not await self._reaches(connection, keys):
                return
            engine = Engine(self._worker_of(docket))
            renewing = leases.begin()
            try:
                await self._work(engine, renewing)
            finally:
                await leases.end()
                await self._say_farewell(connection, keys)
                await writer.close()

    async def _reaches(self, connection: Connection, keys: Keys) -> bool:
        """Wait for Redis, unless the worker is told to end meanwhile."""
        asking = asyncio.ensure_future(connection.one(command("exists", keys.workers)))
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

    def _worker_of(self, docket: Docket) -> Worker:
        at_once, pacer = self.concurrency, self.client.rate_limiter
        if isinstance(pacer, SpaceRateLimiter):
            at_once = min(at_once, int(pacer.rate * _AHEAD))  # others could have it sooner, or it could time out
        return Worker(
            docket,
            name=self.name,
            concurrency=max(1, at_once // BATCH),
            redelivery_timeout=timedelta(seconds=self.lease_seconds),
            reconnection_delay=_RECONNECTS,
            minimum_check_interval=_LOOKS_FOR_WORK,
            schedule_automatic_tasks=False,
            dependencies=[ExponentialRetry.forever(delay=_RETRIES[0], maximum_delay=_RETRIES[1])],
        )

    async def _work(self, engine: Engine, renewing: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([engine.running, stopping, renewing], return_when=asyncio.FIRST_COMPLETED)
            refused = renewing.done()
            if not refused:
                engine.leave()
                await asyncio.wait([engine.running], timeout=self.shutdown_timeout)
        finally:
            stopping.cancel()
            self._cut()
            await engine.end()
        if refused:
            await renewing
        engine.tell_failure()
        if self._denied is not None:
            raise self._denied

    def _give_up(self, error: StreamsError) -> None:
        self._denied = error
        self._stop.set()

    def _cut(self) -> None:
        # A Redis that is away is waited for no longer; what it does not hear expires there.
        self._batches.connection.patience = 0.0
        self._batches.leases.lose_all()

    async def _task(self, run: str, batch: int) -> None:
        """Carry out one batch; the engine calls this, and again where it fails."""
        try:
            await self._carry_out(run, batch)
        except (HandedBackError, FleetError):
            raise
        except Exception:  # the engine would only try again, and nobody would hear of it
            _LOG.exception("batch %d of %s failed, and is tried again", batch, run)
            raise

    async def _carry_out(self, run: str, batch: int) -> None:
        batches = self._batches
        while True:
            answer = await batches.connection.one(command("hgetall", batches.keys.run(run)))
            facts = RunFacts.of(run, answer)
            if facts is None:
                _LOG.warning("batch %d of %s is not known any more, and is let be", batch, run)
                return
            if await batches.carry_out(facts, batch):
                return
            if self._stop.is_set():
                raise HandedBackError(f"batch {batch} of {run} is somebody else's now")
            await asyncio.sleep(self.lease_seconds / 8)  # whoever has it may finish it, or lose it

    def _note(self, outcome: BulkOutcome[Any]) -> None:
        self._ended += outcome.ok
        self._recent.append((asyncio.get_running_loop().time(), outcome.attempts))

    def _rate(self) -> float:
        now = asyncio.get_running_loop().time()
        while self._recent and self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()
        return sum(attempts for _, attempts in self._recent) / _WINDOW

    def _tell(self, keys: Keys) -> Sequence[Command]:
        pacer = self.client.rate_limiter
        facts = {
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "since": self._since,
            "in_hand": str(len(self._batches.leases.in_hand)),
            "ended": str(self._ended),
            "rate": f"{self._rate():.1f}",
            "limit": f"{pacer.rate:.1f}" if isinstance(pacer, SpaceRateLimiter) else "",
            "draining": str(int(self._stop.is_set())),
        }
        key = keys.worker(self.name)
        return [
            command("hset", key, mapping=facts),
            command("expire", key, max(1, round(self.lease_seconds))),
            command("sadd", keys.workers, self.name),
        ]

    async def _say_farewell(self, connection: Connection, keys: Keys) -> None:
        connection.patience = 0.0
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await connection.all(
                    [command("srem", keys.workers, self.name), command("delete", keys.worker(self.name))]
                )
        except Exception as error:  # noqa: BLE001  (whatever it is: what it told expires by itself)
            _LOG.debug("the worker could not say farewell: %s", error)


async def run_worker(
    url: str,
    *,
    pacer: RateLimiter | None = None,
    concurrency: int = 200,
    lease_seconds: float = 15.0,
    shutdown_timeout: float = 25.0,
    secrets: SecretProvider | None = None,
) -> None:
    """Be a worker of the fleet until SIGTERM or SIGINT comes; a second one hands back at once what is in hand.

    Its client is made from ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN``.

    Args:
        url: the Redis that the fleet shares.
        pacer: what the workers share the Space's limit by; a `RedisRateLimiter` on the fleet's Redis by default.
        concurrency: see `FleetWorker`.
        lease_seconds: see `FleetWorker`.
        shutdown_timeout: see `FleetWorker`.
        secrets: see `FleetWorker`.

    Raises:
        InvalidRequestError: something can't be right, or the environment lacks something.
        RateLimiterError: Redis can't be reached at the start, or refuses the user or password.
        FleetError: the same, with a pacer of the caller's own.
    """
    async with AsyncExitStack() as stack:
        if pacer is None:
            pacer = await stack.enter_async_context(RedisRateLimiter(url))
        client = await stack.enter_async_context(StreamsClient.from_env(rate_limiter=pacer))
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
    """Stop a worker when SIGTERM or SIGINT comes.

    Args:
        worker: the worker.
        on_signal: called with each signal, after the worker was told to stop.
    """

    def stop(number: Signals) -> None:
        worker.stop()
        if on_signal is not None:
            on_signal(number)

    loop = asyncio.get_running_loop()
    numbers = (Signals.SIGINT, Signals.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
    except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
        yield
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
