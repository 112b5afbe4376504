"""Several clients on one limit, through a real Redis."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest

from signalwire_streams import InvalidRequestError, Priority, StreamsClient
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from tests.redis_server import RedisServer

from .conftest import LimiterFactory
from .test_quota import fullest_window

URL = "wss://rx.example.com/audio"


async def drain(
    limiters: Sequence[RedisRateLimiter], seconds: float, each: int = 30, *, least: int = 1
) -> list[list[float]]:
    """Acquire as much as possible for some seconds, and until each has the least. Return the times of the grants."""
    now = asyncio.get_running_loop().time
    ends_at = now() + seconds
    went: list[list[float]] = [[] for _ in limiters]

    async def ask(number: int) -> None:
        while now() < ends_at or len(went[number]) < least:
            if await limiters[number].acquire(Priority.BULK, ends_at - now() if now() < ends_at else 10.0) == 0:
                went[number].append(now())
            else:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(ask(number) for number in range(len(limiters)) for _ in range(each)))
    return went


async def test_no_window_of_three_clients_exceeds_the_limit(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiters = [limiter_for(redis, requests=600, window=2.0) for _ in range(3)]

    went = await drain(limiters, 2.6)

    assert fullest_window(sorted(itertools.chain(*went)), 2.0) <= 600


async def test_spaces_have_separate_keys(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiters = [
        limiter_for(redis, requests=200, window=10.0, space=f"{name}.signalwire.com") for name in ("one", "two")
    ]

    for limiter in limiters:
        assert await limiter.acquire(Priority.BULK, 10.0) == 0

    keys = redis.ask("KEYS", "*").decode().splitlines()
    assert sorted(key for key in keys if key.startswith("s")) == [
        f"signalwire-streams:{{{name}.signalwire.com}}:state" for name in ("one", "two")
    ]


async def test_rate_limiter_is_bound_to_space_of_first_client(redis: RedisServer) -> None:
    limiter = RedisRateLimiter(redis.url)
    with pytest.raises(InvalidRequestError, match="pass it to a StreamsClient"):
        await limiter.acquire(Priority.BULK, 1.0)
    for _ in range(2):
        StreamsClient(space="example", project="p", token="t", rate_limiter=limiter)
    assert repr(limiter) == f"RedisRateLimiter('{redis.url}', space='example.signalwire.com')"

    with pytest.raises(InvalidRequestError, match=r"one RedisRateLimiter for each Space.*other\.signalwire\.com"):
        StreamsClient(space="other", project="p", token="t", rate_limiter=limiter)

    proxied = RedisRateLimiter(redis.url, space="example.signalwire.com")
    StreamsClient(base_url="https://proxy.example.com", project="p", token="t", rate_limiter=proxied)
    assert "example.signalwire.com" in repr(proxied)


async def test_bulk_requests_leave_tokens_for_interactive_ones(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    busy = limiter_for(redis, requests=2000, window=10.0)
    quick = limiter_for(redis, requests=2000, window=10.0)
    draining = asyncio.create_task(drain([busy], 1.0, each=100))
    await asyncio.sleep(0.3)

    assert (await quick.acquire(Priority.BULK, 0.001)) > 0
    assert (await quick.acquire(Priority.INTERACTIVE, 30)) == 0
    await draining


async def test_interactive_requests_precede_bulk_ones(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=40, window=1.0)
    order: list[str] = []

    async def one(priority: Priority, name: str) -> None:
        assert await limiter.acquire(priority, 10) == 0
        order.append(name)

    async with limiter._store._lock:  # so that none is leased before all wait
        bulk = [asyncio.create_task(one(Priority.BULK, f"bulk {n}")) for n in range(3)]
        await asyncio.sleep(0)
        interactive = asyncio.create_task(one(Priority.INTERACTIVE, "interactive"))
        await asyncio.sleep(0)
    await asyncio.gather(interactive, *bulk)

    assert order == ["interactive", "bulk 0", "bulk 1", "bulk 2"]


async def test_flushall_causes_no_burst(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiters = [limiter_for(redis, requests=1000, window=10.0) for _ in range(3)]
    now = asyncio.get_running_loop().time
    began = now()

    draining = asyncio.create_task(drain(limiters, 1.2))
    for _ in range(5):
        await asyncio.sleep(0.2)
        redis.ask("FLUSHALL")
    times = sorted(itertools.chain(*await draining))

    quota = limiters[0]._state.quota
    assert times[0] > began
    for first, time in enumerate(times):
        assert len(times) - first <= 1 + quota.rate * (times[-1] - time + quota.age) + quota.burst
