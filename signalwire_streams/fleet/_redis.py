"""Access to the fleet's Redis: names of keys, commands that outlast an outage, and script calls sent in groups."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from re import fullmatch
from typing import Any, TypeAlias, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

from attrs import frozen
from docket import Docket
from redis.asyncio import Redis
from redis.exceptions import AskError, AuthenticationError, ClusterCrossSlotError, NoPermissionError, RedisError

from signalwire_streams.errors import FleetError, InvalidRequestError
from signalwire_streams.fleet._lua import LuaCall
from signalwire_streams.models._validation import Secret, masks_secrets
from signalwire_streams.redis_rate_limit._store import create_client, decode, describe_error

BATCH = 25
"""Items per task: with one, docket would be the bottleneck; with many, a dead worker leaves many in doubt."""
TASK = "start_batch"
"""The name of docket's task, which processes one batch."""
_VERSION = 1
_LONGEST_ID = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_RESPONSE_TIMEOUT = 10.0
_MAX_CONNECTIONS = 1000
"""docket may use one connection for each task, and the pool's default of 100 would starve it."""
_MOST_AT_ONCE = 500
_GATHER_TIME = 0.01  # seconds; less than the Space takes to respond, and a round trip costs as much as thirty calls

_LOG = logging.getLogger("signalwire_streams.fleet")
_Reply = TypeVar("_Reply")
_Queued: TypeAlias = tuple[LuaCall, asyncio.Future[str]]


class Keys:
    """Key names of one project; docket's own begin with the same prefix, ours continue with ``our``."""

    def __init__(self, origin: str, project: str) -> None:
        self.prefix = f"sws-fleet-{_VERSION}:{origin.partition('://')[2]}:{project}"
        self.workers = f"{self.prefix}:our:workers"
        self.runs = f"{self.prefix}:our:runs"  # a sorted set, by expiry time

    def worker(self, name: str) -> str:
        return f"{self.prefix}:our:worker:{name}"

    def run(self, run: str) -> str:
        return f"{self.prefix}:our:run:{run}"


@frozen
class RunKeys:
    """Key names of one run.

    All but its hash contain the id of its plan too, which is unique: if this run expires and another is submitted
    under its id, that run must not find this one's remains.
    """

    run: str
    plan: str

    def requests(self, batch: int) -> str:
        return f"{self.run}:{self.plan}:requests:{batch}"

    def marks(self, batch: int) -> str:
        return f"{self.run}:{self.plan}:marks:{batch}"

    def lease(self, batch: int) -> str:
        return f"{self.run}:{self.plan}:lease:{batch}"

    @property
    def outcomes(self) -> str:
        return f"{self.run}:{self.plan}:outcomes"

    @property
    def stopped(self) -> str:
        return f"{self.run}:{self.plan}:stopped"


def check_run(run: object) -> str:
    if not isinstance(run, str) or not fullmatch(r"[0-9A-Za-z_-]{1,64}", run):
        raise InvalidRequestError("a run's id must have 1 to 64 letters, digits, '-' or '_'")
    return run


def next_run(run: str) -> str:
    """Return the id of the run that resumes another: ``nightly-r2`` after ``nightly``, then ``nightly-r3``."""
    found = fullmatch(r"(.+)-r([1-9][0-9]{0,3})", run)
    following = f"{run}-r2" if found is None else f"{found[1]}-r{int(found[2]) + 1}"
    if len(following) > _LONGEST_ID:
        raise InvalidRequestError(f"{following!r} is too long for a run's id: pass an id for the new run")
    return following


class Connection:
    """Sends commands to Redis, and repeats them while it is unavailable, so they must be safe to repeat.

    redis-py's ``Retry`` knows no deadline, and its exponential backoff overflows after a thousand failures. Its scripts
    cost a further round trip in each pipeline, so the full scripts are sent.
    """

    def __init__(self, client: Any, timeout: float, url: str = "") -> None:  # noqa: ANN401  (docket's in-memory one has no type)
        self.client = client
        self.timeout = timeout  # seconds that Redis may be unavailable
        self.url = url  # whose secrets are in no message
        self._is_unavailable = False

    async def run(self, send: Callable[[Any], Awaitable[_Reply]]) -> _Reply:
        """Call *send* with the client; raise `FleetError` if Redis stays unavailable or denies access."""
        now = asyncio.get_running_loop().time
        began, pause = now(), _FIRST_PAUSE
        while True:
            try:
                reply = await send(self.client)
            except (RedisError, OSError) as error:
                message = describe_error(error, self.url)
                permanent = _permanent_failure(error, message)
            else:
                if self._is_unavailable:
                    self._is_unavailable = False
                    _LOG.warning("fleet Redis available again")
                return reply
            # Raised outside the handler, so that redis-py's error, whose text may hold anything, is not its context.
            if permanent is not None:
                raise FleetError(permanent)
            if now() + pause - began > self.timeout:
                raise FleetError(f"Redis is unavailable: {message}")
            if not self._is_unavailable:  # logged once, however many commands wait
                self._is_unavailable = True
                _LOG.warning("fleet Redis unavailable, retrying: %s", message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def pipeline(self, *queue: Callable[[Any], object]) -> list[Any]:
        """Return the replies to the commands that functions put on a pipeline, which is not a transaction."""

        async def send(client: Any) -> list[Any]:  # noqa: ANN401
            pipe = client.pipeline(transaction=False) if isinstance(client, Redis) else client.pipeline()
            for put in queue:
                put(pipe)
            return list(await pipe.execute())

        return await self.run(send)

    async def hash(self, key: str) -> dict[str, str]:
        return decode_hash(await self.run(lambda client: client.hgetall(key)))

    async def script(self, source: str, key: str | Sequence[str], *values: object) -> str:
        keys = [key] if isinstance(key, str) else key
        return decode(await self.run(lambda client: client.eval(source, len(keys), *keys, *map(str, values))))

    async def call_all(self, calls: Sequence[LuaCall]) -> list[str]:
        """Make script calls in one round trip; calls of the same script and run are one command."""
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for place, call in enumerate(calls):
            groups.setdefault((call.source, call.shared), []).append(place)

        def queue(pipe: Any) -> None:  # noqa: ANN401
            for (source, shared), places in groups.items():
                keys = [*shared, *(calls[place].own for place in places)]
                values = [len(shared), *(value for place in places for value in calls[place].values)]
                pipe.eval(source, len(keys), *keys, *map(str, values))

        decoded = [""] * len(calls)
        for places, replies in zip(groups.values(), await self.pipeline(queue), strict=True):
            for place, reply in zip(places, replies, strict=True):
                decoded[place] = decode(reply)
        return decoded


def decode_hash(reply: Mapping[Any, Any]) -> dict[str, str]:
    return {decode(name): decode(value) for name, value in reply.items()}


@masks_secrets
def check_url(url: object) -> str:
    if not isinstance(url, str) or not (_is_in_memory(url) or create_client(url) is not None):
        # The message does not repeat it, since it may contain a password.
        raise InvalidRequestError(
            "the fleet's Redis URL is invalid, or has an invalid option: write it as 'redis://host:6379/0', "
            "'rediss://...' or 'unix:///path'"
        )
    if parse_qs(urlsplit(url).query).get("protocol", ["2"]) != ["2"]:
        raise InvalidRequestError("docket can't read Redis's protocol 3: omit protocol= from the fleet's Redis URL")
    return url


def _is_in_memory(url: str) -> bool:
    return url.startswith("memory://")


def docket_url(url: str) -> str:
    query = urlsplit(url).query
    if _is_in_memory(url) or "max_connections" in parse_qs(query):
        return url
    return Secret(f"{url}{'&' if query else '?'}max_connections={_MAX_CONNECTIONS}")


async def check_available(url: str, timeout: float) -> None:  # noqa: ASYNC109  (also the socket's)
    # docket itself would wait for Redis forever.
    if not _is_in_memory(url):
        async with _client(url, timeout) as client:
            await Connection(client, timeout, url).run(lambda client: client.ping())


@asynccontextmanager
async def connect(url: str, docket: Docket, timeout: float) -> AsyncIterator[Connection]:  # noqa: ASYNC109  (of each command)
    async with docket.redis() if _is_in_memory(url) else _client(url, _RESPONSE_TIMEOUT) as client:
        yield Connection(client, timeout, url)


def _client(url: str, timeout: float) -> "Redis":
    return Redis.from_url(url, retry=None, socket_timeout=timeout, socket_connect_timeout=timeout)


def _permanent_failure(error: Exception, message: str) -> str | None:
    """Return the message for a permanent error, or None for a transient one."""
    if isinstance(error, AskError | ClusterCrossSlotError):  # a MovedError is an AskError
        return "this is a Redis Cluster, which is not supported: use a single Redis"
    # Some versions of redis-py raise a wrong password as a plain ConnectionError.
    if isinstance(error, AuthenticationError | NoPermissionError) or any(
        words in str(error) for words in ("invalid username-password", "Authentication required")
    ):
        return f"Redis rejects this user or password: {message}"
    return None


class Writer:
    """Makes script calls in groups.

    The first call is sent at once. While it is in flight, and a moment longer, further calls gather and are then sent
    together, so a busy worker sends Redis no more commands than an idle one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queued: list[_Queued] = []
        self._in_flight: list[_Queued] = []
        self._task: asyncio.Task[None] | None = None

    def call(self, call: LuaCall) -> asyncio.Future[str]:
        """Return a future of the reply. If it is cancelled before the call is sent, the call is not made."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._queued.append((call, future))
        self._start()
        return future

    async def idle(self) -> None:
        while self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)  # its callback runs in the loop's next turn

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await self.idle()

    def _start(self) -> None:
        if self._task is None and self._queued:
            self._task = asyncio.create_task(self._send_all())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Not in the task itself, which never begins if it is cancelled at once: the callers must learn of it.
        self._task = None
        if task.cancelled() or task.exception() is not None:
            left, self._in_flight, self._queued = [*self._in_flight, *self._queued], [], []
            for _, future in left:
                if task.cancelled():
                    future.cancel()
                elif not future.done():
                    future.set_exception(cast("BaseException", task.exception()))
        self._start()

    async def _send_all(self) -> None:
        while self._queued:
            self._in_flight = [entry for entry in self._queued[:_MOST_AT_ONCE] if not entry[1].cancelled()]
            del self._queued[:_MOST_AT_ONCE]
            if self._in_flight:
                replies = await self._connection.call_all([call for call, _ in self._in_flight])
                for (_, future), reply in zip(self._in_flight, replies, strict=True):
                    if not future.done():
                        future.set_result(reply)
            self._in_flight = []
            await asyncio.sleep(_GATHER_TIME)
