"""A 429 that one client receives applies to all clients."""

import asyncio
import time

import pytest

from signalwire_streams import Priority
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from tests.redis_server import RedisServer

from .conftest import LimiterFactory, until


async def reported(limiter: RedisRateLimiter) -> None:
    """Wait until a rate limiter has reported everything."""
    await until(lambda: not limiter._state.has_update)


async def test_retry_after_of_one_client_pauses_all(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    """Starts as well as reads, also of a client that comes later."""
    refused, other = limiter_for(redis), limiter_for(redis)
    await refused.acquire(Priority.BULK, 10)
    await other.acquire(Priority.BULK, 10)
    refused.on_throttled(time.monotonic(), 30.0)
    await reported(refused)

    assert await other.acquire(Priority.BULK, 0.2) > 0
    assert await other.acquire(Priority.BULK, 5) == pytest.approx(30, abs=20)
    assert await limiter_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=20)


async def test_requests_continue_after_the_pause(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    refused, other = limiter_for(redis), limiter_for(redis)
    await other.acquire(Priority.BULK, 10)
    began = time.monotonic()
    refused.on_throttled(began, 0.4)
    await reported(refused)

    assert await refused.wait_until_allowed(10) == 0
    assert time.monotonic() - began >= 0.4
    assert await refused.acquire(Priority.BULK, 10) == await other.acquire(Priority.BULK, 10) == 0


async def test_rejections_at_the_same_time_cut_the_rate_once(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiters = [limiter_for(redis), limiter_for(redis)]
    for limiter in limiters:
        await limiter.acquire(Priority.BULK, 10)
    for limiter in limiters:
        for _ in range(20):
            limiter.on_throttled(time.monotonic(), 0.01)
    for limiter in limiters:
        await reported(limiter)
        await limiter.acquire(Priority.BULK, 10)

    rates = [limiter._state.rate(time.monotonic()) / limiter._state.quota.rate for limiter in limiters]
    assert rates == [pytest.approx(0.7, abs=0.15)] * 2
    assert [limiter._state.shared.cuts for limiter in limiters] == [1, 1]
    limiters[0].on_throttled(0.0, None)  # of a request that was sent before the cut
    assert not limiters[0]._state.has_update


async def test_rejection_is_reported_to_an_empty_redis(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis)
    limiter.on_throttled(time.monotonic(), 30.0)
    await reported(limiter)

    assert await limiter_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=20)


async def test_flushall_keeps_the_pause(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    knows = limiter_for(redis)
    await knows.acquire(Priority.BULK, 10)
    knows.on_throttled(time.monotonic(), 2.0)
    await reported(knows)
    redis.ask("FLUSHALL")

    assert await knows.acquire(Priority.BULK, 0.1) > 0
    await asyncio.sleep(0)
    newcomer = limiter_for(redis)
    assert await newcomer.acquire(Priority.BULK, 10) == 0
    assert await knows.acquire(Priority.BULK, 10) == 0
    await reported(knows)
    assert await limiter_for(redis).wait_until_allowed(0.0) == 0


async def test_closed_rate_limiter_ignores_results(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 10)
    await limiter.aclose()

    limiter.on_throttled(time.monotonic(), 1.0)
    limiter.on_success()
