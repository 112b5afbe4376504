"""Waiting for a turn: who gives up, what a cancelled one gives back, and when tokens lapse."""

import asyncio
import time
from typing import Any

import pytest

from signalwire_streams import Clock, Priority
from signalwire_streams.middleware._queueing import PriorityQueue
from signalwire_streams.redis_rate_limit._store import Store
from tests.redis_server import RedisServer

from .conftest import PacerFactory, until


async def test_who_would_wait_too_long_is_told_at_once(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A wait that is longer than the caller's patience is not begun, and takes nothing."""
    pacer = pacer_for(redis, requests=20, window=10.0)
    assert await pacer.acquire(Priority.BULK, 10) == 0
    pacer.on_throttled(0.0, 30.0)
    began = time.monotonic()

    assert await pacer.acquire(Priority.INTERACTIVE, 5) == pytest.approx(30, abs=5)
    assert await pacer.wait_until_allowed(5) == pytest.approx(30, abs=5)
    assert time.monotonic() - began < 5


async def test_too_many_before_one(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Who comes after more requests than can go out in time is told so at once."""
    pacer = pacer_for(redis, requests=20, window=10.0)
    waiting = [asyncio.create_task(pacer.acquire(Priority.BULK, 60)) for _ in range(40)]
    await asyncio.sleep(0)

    assert await pacer.acquire(Priority.BULK, 5) > 5
    for task in waiting:
        task.cancel()


async def test_patience_ends_a_wait_that_was_begun(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A turn that does not come within the caller's patience is given up, and nobody else loses by it."""
    pacer = pacer_for(redis, requests=10, window=4.0)
    assert await pacer.acquire(Priority.BULK, 10) == 0

    assert await pacer.acquire(Priority.BULK, 0.1) == 0.1
    assert not pacer._leases.queue
    assert await pacer.acquire(Priority.BULK, 10) == 0


async def test_no_patience_takes_nothing(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Who can't wait at all is told that there is a wait, and takes nothing."""
    pacer = pacer_for(redis)

    assert await pacer.acquire(Priority.BULK, 0.0) > 0
    assert await pacer.acquire(Priority.BULK, -1.0) > 0
    assert b"*0" in redis.ask("KEYS", "*")


async def test_a_token_that_lapsed_on_the_way_is_not_used(
    redis: RedisServer, pacer_for: PacerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stood still after a grant asks again, instead of sending all that it held at once."""
    grants, stood_still = 0, 0.0
    grant = PriorityQueue.grant

    def standing_still(self: PriorityQueue, usable_until: float) -> bool:
        nonlocal grants, stood_still
        grants += 1
        stood_still = 30.0
        return grant(self, usable_until)

    monkeypatch.setattr(PriorityQueue, "grant", standing_still)
    pacer = pacer_for(redis, clock=Clock(now=lambda: time.monotonic() + stood_still))

    assert await pacer.acquire(Priority.BULK, 60) == 0
    assert grants == 2


async def test_a_cancelled_request_gives_its_token_back(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Who is cancelled costs nobody a turn, even when the turn had just been granted."""
    pacer = pacer_for(redis, requests=100, window=60.0)
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 60))
    await until(lambda: pacer._leases.queue)
    pacer._leases.queue.grant(time.monotonic() + 60)  # as the pump does
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert await pacer.acquire(Priority.BULK, 0.0) == 0


async def test_a_request_that_went_away_while_its_token_came(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A token whose request was cancelled on the way is there for the next one, and counted once."""
    pacer = pacer_for(redis, requests=100, window=60.0)
    asking = asyncio.create_task(pacer.acquire(Priority.BULK, 60))
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
        await until(lambda: pacer._leases._task is not None and pacer._leases._task.done())

    assert await pacer.acquire(Priority.BULK, 0.0) == 0
    assert await pacer.acquire(Priority.BULK, 0.0) > 0


async def test_a_token_lapses(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A token that was not used in time is never used: a late bunch could break the limit."""
    late = 0.0
    pacer = pacer_for(redis, clock=Clock(now=lambda: time.monotonic() + late))
    for seconds in (5, 9, 7):
        pacer._leases.give_back(time.monotonic() + seconds)

    assert await pacer.acquire(Priority.BULK, 0.0) == 0
    late = 8.0
    assert await pacer.acquire(Priority.BULK, 0.0) == 0
    assert await pacer.acquire(Priority.BULK, 0.0) > 0


async def test_a_clock_that_is_off_does_not_matter(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Only Redis' clock counts, and two clients' clocks need not agree."""
    fast, slow = pacer_for(redis), pacer_for(redis, clock=Clock(now=lambda: time.monotonic() + 1e6))
    assert await fast.acquire(Priority.BULK, 10) == await slow.acquire(Priority.BULK, 10) == 0

    fast.on_throttled(time.monotonic(), 30.0)
    await until(lambda: not fast._state.has_update)

    assert await slow.acquire(Priority.BULK, 0.2) > 0
    assert await slow.wait_until_allowed(5) == pytest.approx(30, abs=5)
