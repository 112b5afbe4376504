"""Waiting for a token: timeouts, cancellation, and tokens that lapse."""

import asyncio
import time
from typing import Any

import pytest

from signalwire_streams import Clock, Priority
from signalwire_streams.middleware._rate_limit import PriorityQueue
from signalwire_streams.redis_rate_limit._store import Store
from tests.redis_server import RedisServer

from .conftest import LimiterFactory, until


async def test_wait_beyond_timeout_is_rejected_at_once(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=20, window=10.0)
    assert await limiter.acquire(Priority.BULK, 10) == 0
    limiter.on_throttled(0.0, 90.0)
    began = time.monotonic()

    assert await limiter.acquire(Priority.INTERACTIVE, 40) == pytest.approx(90, abs=40)
    assert await limiter.wait_until_allowed(40) == pytest.approx(90, abs=40)
    assert time.monotonic() - began < 40


async def test_queue_beyond_timeout_is_rejected_at_once(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=20, window=10.0)
    waiting = [asyncio.create_task(limiter.acquire(Priority.BULK, 60)) for _ in range(40)]
    await asyncio.sleep(0)

    assert await limiter.acquire(Priority.BULK, 5) > 5
    for task in waiting:
        task.cancel()


async def test_timeout_ends_wait_without_taking_a_token(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=10, window=4.0)
    assert await limiter.acquire(Priority.BULK, 10) == 0

    assert await limiter.acquire(Priority.BULK, 0.1) == 0.1
    assert not limiter._leases.queue
    assert await limiter.acquire(Priority.BULK, 10) == 0


async def test_zero_timeout_takes_nothing(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis)

    assert await limiter.acquire(Priority.BULK, 0.0) > 0
    assert await limiter.acquire(Priority.BULK, -1.0) > 0
    assert b"*0" in redis.ask("KEYS", "*")


async def test_token_that_lapsed_while_process_was_suspended_is_not_used(
    redis: RedisServer, limiter_for: LimiterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants, stood_still = 0, 0.0
    grant = PriorityQueue.grant

    def standing_still(self: PriorityQueue, usable_until: float) -> bool:
        nonlocal grants, stood_still
        grants += 1
        stood_still = 30.0
        return grant(self, usable_until)

    monkeypatch.setattr(PriorityQueue, "grant", standing_still)
    limiter = limiter_for(redis, clock=Clock(now=lambda: time.monotonic() + stood_still))

    assert await limiter.acquire(Priority.BULK, 60) == 0
    assert grants == 2


async def test_cancelled_request_returns_its_token(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=100, window=60.0)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    await until(lambda: limiter._leases.queue)
    limiter._leases.queue.grant(time.monotonic() + 60)  # as the pump does
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await limiter.acquire(Priority.BULK, 0.0) == 0


async def test_token_leased_for_cancelled_request_serves_the_next(
    redis: RedisServer, limiter_for: LimiterFactory
) -> None:
    limiter = limiter_for(redis, requests=100, window=60.0)
    asking = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    exchange = Store.exchange

    async def lease_slowly(store: Store, *args: Any, **kwargs: Any) -> object:
        answer = await exchange(store, *args, **kwargs)
        if answer.tokens:
            asking.cancel()
            await asyncio.sleep(0.01)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "exchange", lease_slowly)
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: limiter._leases._task is not None and limiter._leases._task.done())

    assert await limiter.acquire(Priority.BULK, 0.0) == 0
    assert await limiter.acquire(Priority.BULK, 0.0) > 0


async def test_unused_token_expires(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    late = 0.0
    limiter = limiter_for(redis, clock=Clock(now=lambda: time.monotonic() + late))
    for seconds in (5, 9, 7):
        limiter._leases.refund(time.monotonic() + seconds)

    assert await limiter.acquire(Priority.BULK, 0.0) == 0
    late = 8.0
    assert await limiter.acquire(Priority.BULK, 0.0) == 0
    assert await limiter.acquire(Priority.BULK, 0.0) > 0


async def test_clients_clocks_need_not_agree(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    fast, slow = limiter_for(redis), limiter_for(redis, clock=Clock(now=lambda: time.monotonic() + 1e6))
    assert await fast.acquire(Priority.BULK, 10) == await slow.acquire(Priority.BULK, 10) == 0

    fast.on_throttled(time.monotonic(), 30.0)
    await until(lambda: not fast._state.has_update)

    assert await slow.acquire(Priority.BULK, 0.2) > 0
    assert await slow.wait_until_allowed(5) == pytest.approx(30, abs=20)
