"""The way to the fleet's Redis: one connection pool, and patience with a Redis that goes away and comes back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from re import fullmatch
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qs, urlsplit

from attrs import define, field, frozen
from docket import Docket
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from signalwire_streams.errors import FleetError, InvalidRequestError
from signalwire_streams.redis_rate_limit._store import create_client

BATCH = 25
"""Starts per task: 1 of each would make the engine the bottleneck, and many would be in doubt when a host dies."""

_VERSION = 1
_LONGEST = 64


@frozen
class Keys:
    """The names of one project's things.

    Attributes:
        origin: the Space's address.
        project: the Project ID.
    """

    origin: str
    project: str

    @property
    def prefix(self) -> str:
        """What all names begin with; the engine calls this project's queue so, and ours go on with ``our``."""
        return f"sws-fleet-{_VERSION}:{self.origin.partition('://')[2]}:{self.project}"

    @property
    def workers(self) -> str:
        """The set of workers."""
        return f"{self.prefix}:our:workers"

    @property
    def runs(self) -> str:
        """The runs, by when they are forgotten."""
        return f"{self.prefix}:our:runs"

    def worker(self, name: str) -> str:
        """What one worker tells of itself."""
        return f"{self.prefix}:our:worker:{name}"

    def run(self, run: str) -> str:
        """A run's facts and counts."""
        return f"{self.prefix}:our:run:{run}"

    def of(self, run: str, plan: str) -> "RunKeys":
        """Give the names of one run's things."""
        return RunKeys(self.run(run), plan)


@frozen
class RunKeys:
    """The names of one run's things.

    All but its facts have the name of its plan as well, which no other run has: one of the same name that is submitted
    when this one is forgotten must not take what is left of it for its own.

    Attributes:
        facts: the run's facts and counts.
        plan: the name of its plan.
    """

    facts: str
    plan: str

    def requests(self, batch: int) -> str:
        """The requests of a batch."""
        return f"{self.facts}:{self.plan}:requests:{batch}"

    def marks(self, batch: int) -> str:
        """The marks of a batch's starts."""
        return f"{self.facts}:{self.plan}:marks:{batch}"

    def lease(self, batch: int) -> str:
        """Who works on a batch."""
        return f"{self.facts}:{self.plan}:lease:{batch}"

    @property
    def outcomes(self) -> str:
        """The run's outcomes, in the order of their ends."""
        return f"{self.facts}:{self.plan}:outcomes"

    @property
    def undone(self) -> str:
        """Which of its streams were stopped again."""
        return f"{self.facts}:{self.plan}:undone"


def check_run(run: object) -> str:
    """Check the name of a run: it becomes a part of its streams' names.

    Raises:
        InvalidRequestError: it can't be one.
    """
    if not isinstance(run, str) or not fullmatch(r"[0-9A-Za-z_-]{1,64}", run):
        raise InvalidRequestError("a run's name has 1 to 64 letters, digits, '-' or '_': choose such a one")
    return run


def next_run(run: str) -> str:
    """Call the run that goes on with another: ``nightly-r2`` after ``nightly``, ``nightly-r3`` after that.

    Raises:
        InvalidRequestError: that would be too long.
    """
    found = fullmatch(r"(.+)-r([1-9][0-9]{0,3})", run)
    following = f"{run}-r2" if found is None else f"{found[1]}-r{int(found[2]) + 1}"
    if len(following) > _LONGEST:
        raise InvalidRequestError(f"{following!r} is too long for a run's name: say what the new run is to be called")
    return following


_LOG = logging.getLogger("signalwire_streams.fleet")

_SCHEMES = ("redis", "rediss", "unix", "memory")
_ANSWER_WITHIN = 10.0  # seconds
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
# The engine takes one connection for each task at times, and the pool's own cap of 100 would starve it.
_CONNECTIONS = 1_000


@frozen
class Command:
    """One command to Redis.

    Attributes:
        name: the client's method.
        values: what it takes.
        options: what it takes by name.
    """

    name: str
    values: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(factory=dict)


def command(name: str, *values: Any, **options: Any) -> Command:  # noqa: ANN401  (whatever the method takes)
    """Spell a command."""
    return Command(name, values, options)


@define(eq=False)
class Connection:
    """Carries out commands, again and again while Redis is away. What is carried out must bear to be repeated.

    Attributes:
        client: the client, a pool in itself.
        patience: seconds that a Redis may be away.
    """

    client: Any
    patience: float
    _is_away: bool = field(init=False, default=False)

    async def one(self, single: Command) -> Any:  # noqa: ANN401  (the command's own)
        """Carry out one command.

        Raises:
            FleetError: Redis stayed away, or refused.
        """
        return (await self.all([single]))[0]

    async def all(self, commands: Sequence[Command]) -> list[Any]:
        """Carry out commands in one go, in their order, but not as one.

        Raises:
            FleetError: Redis stayed away, or refused.
        """
        clock = asyncio.get_running_loop()
        began = clock.time()
        pause = _FIRST_PAUSE
        while True:
            try:
                answers = await self._once(commands)
            except (RedisError, OSError) as error:
                if _is_refusal(error):
                    raise FleetError(f"Redis refuses this user or password: {_words(error)}") from None
                if clock.time() + pause - began > self.patience:
                    raise FleetError(f"Redis can't be used: {_words(error)}") from None
                if not self._is_away:  # once, however many are waiting for it
                    self._is_away = True
                    _LOG.warning("the fleet's Redis can't be used, and is asked again: %s", _words(error))
            else:
                if self._is_away:
                    self._is_away = False
                    _LOG.warning("the fleet's Redis is back")
                return answers
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE)

    async def _once(self, commands: Sequence[Command]) -> list[Any]:
        if len(commands) == 1:
            [single] = commands
            return [await getattr(self.client, single.name)(*single.values, **single.options)]
        pipeline = self.client.pipeline(transaction=False) if isinstance(self.client, Redis) else self.client.pipeline()
        for each in commands:
            getattr(pipeline, each.name)(*each.values, **each.options)
        return list(await pipeline.execute())


def check_url(url: object) -> str:
    """Check the address of a Redis; the message does not repeat it, since it may hold a password.

    Raises:
        InvalidRequestError: it is none.
    """
    if not isinstance(url, str) or not _is_address(url):
        raise InvalidRequestError(
            "the fleet's Redis is not an address, or has an option that can't be: write it as 'redis://host:6379/0', "
            "'rediss://...' or 'unix:///path'"
        )
    return url


def _is_address(url: str) -> bool:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        return False
    return "://" in url and (scheme == "memory" or (scheme in _SCHEMES and create_client(url) is not None))


def engine_url(url: str) -> str:
    """Give the address as the engine is to have it."""
    parts = urlsplit(url)
    if parts.scheme == "memory" or "max_connections" in parse_qs(parts.query):
        return url
    return f"{url}{'&' if parts.query else '?'}max_connections={_CONNECTIONS}"


async def make_sure(url: str, patience: float) -> None:
    """Make sure that a Redis answers; the engine itself would wait for it without end.

    Raises:
        FleetError: it does not answer within so many seconds, or refuses.
    """
    if urlsplit(url).scheme != "memory":
        async with Redis.from_url(url, retry=None, socket_connect_timeout=patience, socket_timeout=patience) as client:
            await Connection(client, patience).one(command("ping"))


@asynccontextmanager
async def connected(url: str, docket: Docket, patience: float) -> AsyncIterator[Connection]:
    """Open a way to a Redis, or to the engine's in-memory one."""
    if urlsplit(url).scheme == "memory":
        async with docket.redis() as memory:
            yield Connection(memory, patience)
        return
    options: dict[str, Any] = {"socket_timeout": _ANSWER_WITHIN, "socket_connect_timeout": _ANSWER_WITHIN}
    client = Redis.from_url(url, retry=None, **options)
    try:
        yield Connection(client, patience)
    finally:
        await client.aclose()


def _is_refusal(error: Exception) -> bool:
    # Some of redis-py's versions raise a wrong password as a ConnectionError.
    return isinstance(error, AuthenticationError | NoPermissionError) or any(
        words in str(error) for words in ("invalid username-password", "Authentication required")
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_EACH = """
local counted, kept = {}, {}
local function count(name, more) counted[name] = (counted[name] or 0) + more end
local function keep(key, seconds) kept[key] = seconds end
local function each(shared, size, step)
  local answers = {}
  for i = 1, #KEYS - shared do
    local own = {}
    for j = 1, size do own[j] = ARGV[(i - 1) * size + j] end
    answers[i] = step(KEYS[shared + i], own)
  end
  for name, more in pairs(counted) do redis.call('HINCRBY', KEYS[1], name, more) end
  for key, seconds in pairs(kept) do redis.call('EXPIRE', key, seconds) end
  return answers
end
"""
"""What is done for many starts at once names the keys that they share first, the run's the very first, then one key
for each start, and has the same number of arguments for each; it answers with a word for each."""

INTEND = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
local ended = redis.call('HEXISTS', KEYS[1], 'ended') == 1
return each(1, 4, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if ended then return 'ended' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  if mark == '' then count('c:intended', 1) end
  keep(marks, own[4])
  return 'ok'
end)
"""
)
"""Keys: run, marks of each. Arguments of each: index, the mark that is believed, the new one, seconds to keep it."""

SETTLE = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(2, 0, function() return 'gone' end) end
return each(2, 8, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', marks, own[1], own[3])
  redis.call('XADD', KEYS[2], '*', 'o', own[4])
  if mark ~= '' then count('c:intended', -1) end
  count('c:' .. own[5], 1)
  count('attempts', tonumber(own[6]))
  if own[7] ~= '' then count('e:' .. own[7], 1) end
  keep(marks, own[8])
  keep(KEYS[2], own[8])
  return 'ok'
end)
"""
)
"""Keys: run, outcomes, marks of each. Arguments of each: index, the mark that is believed, the new one, the outcome,
its state, how many attempts it took, its error's label, seconds to keep it."""

RELEASE = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
return each(1, 2, function(marks, own)
  local mark = redis.call('HGET', marks, own[1]) or ''
  if mark ~= own[2] then return 'taken' end
  redis.call('HDEL', marks, own[1])
  count('c:intended', -1)
  return 'ok'
end)
"""
)
"""Keys: run, marks of each. Arguments of each: index, the mark that is believed."""

UNDO = (
    _EACH
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return each(1, 0, function() return 'gone' end) end
return each(1, 2, function(undone, own)
  if redis.call('HSET', undone, own[1], '1') == 1 then count('undone', 1) end
  keep(undone, own[2])
  return 'ok'
end)
"""
)
"""Keys: run, what was stopped again for each. Arguments of each: index, seconds to keep it."""

END = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'taken' end
redis.call('HSET', KEYS[1], 'ended', ARGV[1])
redis.call('HSET', KEYS[1], 'why', ARGV[2])
return 'ok'
"""
"""Keys: run. Arguments: how it ended, and why in words."""

PLAN = """
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then
  if digest == ARGV[2] then return 'known' end
  return 'other'
end
redis.call('DEL', KEYS[1])
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'digest', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[5])
return 'ok'
"""
"""Keys: run, runs. Arguments: seconds to keep it, the plan's digest, when it is forgotten, in seconds, what the run is
called, now, the run's facts by name."""

NOTE = """
if redis.call('HEXISTS', KEYS[1], 'digest') == 0 then return 'gone' end
if ARGV[3] and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 then return 'refused' end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
"""Keys: run. Arguments: a fact's name, its value where it has none yet, a fact that must not be known. It answers with
the value that the fact has then."""

TAKE_BACK = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'ok'
"""
"""Keys: run. Arguments: a fact's name, the value that it had."""

HOLD = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner."""


@frozen
class Step:
    """What is to be done for one start.

    Attributes:
        source: the script; one that is written for many.
        shared: the keys that starts of one run share.
        own: this start's own key.
        values: what it takes beside.
    """

    source: str
    shared: tuple[str, ...]
    own: str
    values: tuple[object, ...]


def script(source: str, keys: Sequence[str], *values: object) -> Command:
    """Spell the run of a script."""
    return command("eval", source, len(keys), *keys, *map(str, values))


def joined(steps: Sequence[Step]) -> list[tuple[Command, list[int]]]:
    """Spell steps as few commands, each with the places of the steps that it takes, in the order of its answers."""
    places: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, step in enumerate(steps):
        places.setdefault((step.source, step.shared), []).append(place)
    commands = []
    for (source, shared), mine in places.items():
        keys = [*shared, *(steps[place].own for place in mine)]
        values = [value for place in mine for value in steps[place].values]
        commands.append((script(source, keys, *values), mine))
    return commands


def reply_of(reply: Any) -> str:  # noqa: ANN401  (Redis gives bytes or text)
    """Give the word that a script answered."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)


_AT_ONCE = 500
_GATHERS = 0.01  # seconds; less than an answer of the Space takes, and a load costs as much as thirty steps in it

_Waiting: TypeAlias = tuple[Step, asyncio.Future[str]]


@define(eq=False)
class Writer:
    """Carries out steps for many at once.

    The first step goes out at once. While it is on its way, and a moment longer, the next ones gather and then go
    out together, so that a busy worker asks Redis no more often than another.

    Attributes:
        connection: the way to Redis.
    """

    connection: Connection
    _waiting: list[_Waiting] = field(init=False, factory=list)
    _load: list[_Waiting] = field(init=False, factory=list)
    _serving: asyncio.Task[None] | None = field(init=False, default=None)

    def later(self, step: Step) -> asyncio.Future[str]:
        """Carry out a step; the future has its answer. If that is cancelled before its turn, nothing is done."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, answered))
        self._go_on()
        return answered

    async def idle(self) -> None:
        """Wait until nothing waits any more."""
        while self._serving is not None:
            await asyncio.wait([self._serving])
            await asyncio.sleep(0)  # its end is heard of in the loop's next turn

    async def close(self) -> None:
        """Give up what waits."""
        if self._serving is not None:
            self._serving.cancel()
            await self.idle()

    def _go_on(self) -> None:
        if self._serving is None and self._waiting:
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        # Not in the task itself, which never begins where it is cancelled at once: whoever waits must hear of it.
        self._serving = None
        if serving.cancelled() or serving.exception() is not None:
            left, self._load, self._waiting = [*self._load, *self._waiting], [], []
            for _, answered in left:
                if serving.cancelled():
                    answered.cancel()
                elif not answered.done():
                    answered.set_exception(cast("BaseException", serving.exception()))
        self._go_on()

    async def _serve(self) -> None:
        while self._waiting:
            self._load = [entry for entry in self._waiting[:_AT_ONCE] if not entry[1].cancelled()]
            del self._waiting[:_AT_ONCE]
            if self._load:
                await self._carry_out(self._load)
            self._load = []
            await asyncio.sleep(_GATHERS)

    async def _carry_out(self, load: Sequence[_Waiting]) -> None:
        commands = joined([step for step, _ in load])
        answers = await self.connection.all([command for command, _ in commands])
        for (_, places), replies in zip(commands, answers, strict=True):
            for place, reply in zip(places, replies, strict=True):
                answered = load[place][1]
                if not answered.done():
                    answered.set_result(reply_of(reply))
