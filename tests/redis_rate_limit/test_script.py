"""The Lua script, on a real Redis whose clock the test sets."""

from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any, TypeAlias

import pytest
from redis.exceptions import ConnectionError as ConnectionLost, NoScriptError, ResponseError

from signalwire_streams import RateLimit
from signalwire_streams.redis_rate_limit import RateLimiterError
from signalwire_streams.redis_rate_limit._state import LEASE, LocalState, Quota, State, StateUpdate
from signalwire_streams.redis_rate_limit._store import SCRIPT, LeaseReply, RedisUnavailableError, Store
from tests.redis_server import RedisServer

LIMIT = RateLimit(requests=1000, utilization=1.0)
QUOTA = Quota.from_limit(LIMIT)
KEY = "signalwire-streams:{x}:state"
Exchange: TypeAlias = Callable[..., Awaitable[LeaseReply]]


class Shared:
    """A store whose Redis takes the time from the test."""

    def __init__(self, redis: RedisServer) -> None:
        self.now = 1_800_000_000.0
        self.store = Store(f"{redis.url}?socket_timeout=30")  # however busy the machine is
        time = "redis.call('TIME')"
        assert SCRIPT.count(time) == 1
        self._run = self.store._redis.register_script(SCRIPT.replace(time, "{tonumber(ARGV[16]), ARGV[17]}"))
        self.store._script = self._at  # type: ignore[assignment]

    async def _at(self, keys: list[str], args: list[Any]) -> Any:
        seconds = int(self.now)
        return await self._run(keys=keys, args=[*args, seconds, round((self.now - seconds) * 1e6)])

    async def __call__(self, known: State | None = None, **options: Any) -> LeaseReply:
        settings = {"rate": QUOTA.rate, "burst": QUOTA.burst}
        return await self.store.exchange("x", known or State(), **(settings | options))


@pytest.fixture
async def shared(redis: RedisServer) -> AsyncIterator[Shared]:
    shared = Shared(redis)
    yield shared
    await shared.store.aclose()


async def test_new_bucket_starts_empty_and_fills_at_the_rate(shared: Shared) -> None:
    """Requests sent before Redis began to count are covered; a lease gets what there is, up to the burst."""
    assert (await shared(tokens=25)).tokens == 0
    shared.now += 2.5 / QUOTA.rate
    assert (await shared(tokens=25)).tokens == 2
    shared.now += 3600
    reply = await shared(tokens=25)
    assert (reply.tokens, reply.left) == (QUOTA.burst, 0)
    assert reply.redis_now == pytest.approx(shared.now)


async def test_bulk_lease_leaves_the_reserve(shared: Shared) -> None:
    await shared()
    shared.now += 60

    bulk = await shared(tokens=25, reserve=QUOTA.reserve)
    assert (bulk.tokens, bulk.left) == (QUOTA.burst - QUOTA.reserve, 0)
    assert (await shared(tokens=25, reserve=QUOTA.reserve)).tokens == 0
    interactive = await shared(tokens=25)
    assert (interactive.tokens, interactive.left) == (QUOTA.reserve, 0)


async def test_closed_gate_grants_nothing_to_any_client(shared: Shared) -> None:
    await shared()
    shared.now += 60
    reply = await shared(tokens=5, update=StateUpdate(throttled_after=0, pause=2.0), rate=50.0)

    assert reply.tokens == 0
    assert reply.state.cuts == 1
    assert (reply.state.rate_before, reply.state.pause) == (50.0, 2.0)
    assert reply.state.cut_at == pytest.approx(shared.now)
    assert reply.state.closed_until == pytest.approx(shared.now + 2.0)
    shared.now += 1.9
    assert (await shared(tokens=5)).tokens == 0
    shared.now += 0.2
    assert (await shared(tokens=5)).tokens == 5


async def test_rejections_at_the_same_time_are_one_cut(shared: Shared) -> None:
    first = await shared(update=StateUpdate(throttled_after=0, pause=1.0))
    again = await shared(update=StateUpdate(throttled_after=0, pause=1.0))
    later = await shared(update=StateUpdate(throttled_after=1, pause=0.0, closed_until=100.0), now=70.0)

    assert (first.state.cuts, again.state.cuts, later.state.cuts) == (1, 1, 2)
    assert later.state.pause == 1.0, "a pause that the Space asked for does not count as ours"
    assert later.state.closed_until == pytest.approx(shared.now + 30.0)


@pytest.mark.parametrize("loss", ["everything", "the last cut"])
async def test_lost_state_is_restored_by_the_next_client(shared: Shared, redis: RedisServer, loss: str) -> None:
    """After a FLUSHALL, or from an older copy, Redis knows the gate and the cut again after one exchange."""
    before = (await shared()).state
    known = (await shared(update=StateUpdate(throttled_after=0, pause=8.0))).state
    redis.ask("FLUSHALL")
    if loss == "the last cut":
        for name in ("epoch", "cuts", "closed_until", "cut_at", "rate_before", "pause"):
            redis.ask("HSET", KEY, name, str(getattr(before, name)))
        redis.ask("HSET", KEY, "tokens", "5", "filled_at", str(shared.now))

    reply = await shared(known, tokens=5)
    other = await shared(before if loss == "the last cut" else State(), tokens=5)

    assert reply.tokens == other.tokens == 0
    names = ("cuts", "closed_until", "cut_at", "rate_before", "pause")
    assert [getattr(reply.state, name) for name in names] == [getattr(known, name) for name in names]
    assert other.state == reply.state
    assert (reply.state.epoch == known.epoch) is (loss == "the last cut")


async def test_lost_state_does_not_replace_a_newer_cut(shared: Shared, redis: RedisServer) -> None:
    known = (await shared(update=StateUpdate(throttled_after=0, pause=8.0))).state
    redis.ask("FLUSHALL")
    shared.now += 100
    await shared()
    newer = (await shared(update=StateUpdate(throttled_after=0, pause=1.0))).state

    reply = await shared(known)

    assert (reply.state.cut_at, reply.state.pause) == (newer.cut_at, 1.0)
    assert reply.state.closed_until == newer.closed_until


async def test_clock_that_is_set_back_neither_stops_nor_bursts(shared: Shared) -> None:
    """The bucket fills as before, and the gate opens when it would have."""
    await shared()
    shared.now += 60
    await shared(tokens=25, update=StateUpdate(throttled_after=0, pause=5.0))
    shared.now -= 3600

    reply = await shared(tokens=25)
    assert reply.tokens == 0
    assert reply.state.closed_until == pytest.approx(shared.now + 5.0)
    assert reply.state.cut_at == pytest.approx(shared.now)
    shared.now += 5.0
    assert (await shared(tokens=25)).tokens == QUOTA.burst
    assert (await shared(tokens=25)).tokens == 0


@pytest.mark.parametrize("seed", range(8))
async def test_no_window_exceeds_the_limit_whatever_happens(shared: Shared, redis: RedisServer, seed: int) -> None:
    """Clients lease as fast as they can and send as late as they may, while Redis forgets, and its clock jumps."""
    chance = Random(seed)  # noqa: S311
    limit = RateLimit(requests=chance.choice([50, 400, 3000]), window=10.0, utilization=1.0)
    clients = [LocalState(limit) for _ in range(chance.randint(1, 5))]
    quota = clients[0].quota
    sent, elapsed = list[float](), 0.0
    flushed_at, set_back_at = chance.uniform(0, 30), chance.uniform(0, 30)
    while elapsed < 30:
        step = chance.expovariate(2 * quota.rate / quota.burst)
        if elapsed < flushed_at <= elapsed + step:
            redis.ask("FLUSHALL")
        if elapsed < set_back_at <= elapsed + step:
            shared.now -= 1000
        elapsed, shared.now = elapsed + step, shared.now + step
        client = chance.choice(clients)
        update = StateUpdate(throttled_after=client.shared.cuts) if chance.random() < 0.002 else StateUpdate()
        reply = await shared(
            client.shared,
            rate=client.rate(elapsed),
            burst=quota.burst,
            reserve=chance.choice([0, quota.reserve]),
            tokens=chance.randint(1, LEASE),
            update=update,
        )
        client.receive(reply.state, reply.redis_now, elapsed)
        sent += [elapsed + chance.choice([0.0, quota.age]) for _ in range(reply.tokens)]

    sent.sort()
    assert len(sent) > limit.requests
    assert max(bisect_left(sent, at + limit.window) - first for first, at in enumerate(sent)) <= limit.requests


NUMBERS = ("cuts", "closed_until", "cut_at", "rate_before", "pause", "tokens", "filled_at")


@pytest.mark.parametrize(
    "stored",
    [
        ("SET", KEY, "text"),
        ("LPUSH", KEY, "x"),
        ("HSET", KEY, "a", "b"),
        ("HSET", KEY, "epoch", "e"),
        ("HSET", KEY, *(word for name in NUMBERS for word in (name, "0"))),
    ],
)
async def test_key_that_holds_something_else_is_left_alone(
    shared: Shared, redis: RedisServer, stored: tuple[str, ...]
) -> None:
    redis.ask(*stored)
    before = redis.ask("DUMP", KEY)

    with pytest.raises(RateLimiterError, match="has other data under this package's key"):
        await shared()

    assert redis.ask("DUMP", KEY) == before


def test_connection_lost_while_script_is_loaded_is_an_outage() -> None:
    """A restarted Redis has no scripts, and may be gone again before it gets this one."""
    error = ConnectionLost("gone")
    error.__context__ = NoScriptError("NOSCRIPT")

    assert isinstance(Store("redis://localhost")._translate(error), RedisUnavailableError)


@pytest.mark.parametrize("error", [ConnectionLost, ResponseError])
def test_error_of_redis_is_one_line_of_200_characters_at_most(error: type[Exception]) -> None:
    translated = str(Store("redis://localhost")._translate(error("a\n  b " + "c" * 300)))

    assert translated.removeprefix("the Redis at redis://localhost can't be used: ") == "a b " + "c" * 196


def test_errors_that_pass_are_transient() -> None:
    """Before Redis 7 an error within a script has a text of its own, without the code at its start."""
    store = Store("redis://localhost")
    wrapped = (
        "Error running script (call to f_1): @user_script:1: -OOM command not allowed when used memory > 'maxmemory'"
    )

    assert isinstance(store._translate(ResponseError(wrapped)), RedisUnavailableError)
    for code in ("BUSY Redis is busy running a script", "NOREPLICAS Not enough good replicas to write"):
        assert isinstance(store._translate(ResponseError(code)), RedisUnavailableError)
    assert isinstance(store._translate(ResponseError("unknown command 'evalsha'")), RateLimiterError)
