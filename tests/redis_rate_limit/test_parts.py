"""Corner cases that races with a real Redis reach too seldom."""

import asyncio
import importlib
import importlib.util
import logging
from typing import Any

import pytest

import signalwire_streams.redis_rate_limit
from signalwire_streams import Priority, RateLimit
from signalwire_streams.middleware._rate_limit import PriorityQueue
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.redis_rate_limit._state import Fallback, LocalState
from signalwire_streams.redis_rate_limit._store import RedisUnavailableError, Store


async def test_priority_queue_skips_cancelled_turns() -> None:
    queue = PriorityQueue(list[float]().append)
    assert queue.head() == (Priority.BULK, 0)
    assert not queue.grant(1.0)
    turns = [queue.add(Priority.BULK) for _ in range(3)]
    turns[0].cancel()
    turns[2].cancel()

    assert queue.grant(1.0)
    assert not queue.grant(1.0)
    assert turns[1].result() == 1.0
    assert queue.head() == (Priority.BULK, 0)


def test_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outage = Fallback("redis://x", None)
    outage.end(0.0)
    for _ in range(3):
        outage.begin("why", LocalState(RateLimit()), 1.0)
    outage.end(2.0)

    assert len(caplog.records) == 2
    assert outage.try_acquire(3.0) == 0


def test_redis_gets_two_seconds_to_connect_and_one_to_respond() -> None:
    settings = Store("redis://localhost")._redis.connection_pool.connection_kwargs
    assert (settings["socket_connect_timeout"], settings["socket_timeout"]) == (2.0, 1.0)


def test_reload_without_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(signalwire_streams.redis_rate_limit, "find_spec", None)  # so that the module's own comes back

    with pytest.raises(ImportError, match=r"pip install 'signalwire-streams\[redis\]'"):
        importlib.reload(signalwire_streams.redis_rate_limit)


@pytest.mark.parametrize("hangs_in", ["lease", "probe"])
async def test_aclose_although_redis_py_swallows_the_cancellation(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None, hangs_in: str
) -> None:
    hangs = asyncio.Event()

    async def hang() -> object:
        hangs.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RedisUnavailableError("Timeout connecting to server") from None
        raise AssertionError("it was not cancelled")

    async def fail() -> object:
        raise RedisUnavailableError("refused")

    async def answer(store: Store, *args: Any, tokens: int = 0, **kwargs: Any) -> object:
        return await (fail() if tokens and hangs_in == "probe" else hang())

    monkeypatch.setattr(Store, "exchange", answer)
    limiter = RedisRateLimiter("redis://localhost", space="example.signalwire.com")
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    await hangs.wait()

    await limiter.aclose()

    assert "closed" in str((await asyncio.gather(waiting, return_exceptions=True))[0])


async def test_lease_loop_uses_returned_tokens_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(store: Store, *args: object, **kwargs: object) -> object:
        raise AssertionError("it asked for more")

    monkeypatch.setattr(Store, "exchange", fail)
    limiter = RedisRateLimiter("redis://localhost", space="example.signalwire.com")
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    limiter._leases.refund(float("inf"))

    assert await waiting == 0
    await limiter.aclose()


def test_fallback_begins_without_a_burst() -> None:
    """Its bucket begins full, but tokens that were leased a moment ago may be in use."""
    outage = Fallback("redis://x", 1)
    outage.begin("refused", LocalState(RateLimit()), 7.0)
    assert 0 < outage.try_acquire(7.0) < 0.1


async def test_wait_of_unknown_length_is_that_of_one_token() -> None:
    """A caller without any time asks nothing of Redis."""
    limiter = RedisRateLimiter("redis://x", space="x", rate_limit=RateLimit(requests=40, utilization=1.0))
    assert limiter.rate == limiter._state.quota.rate
    assert await limiter.acquire(Priority.BULK, 0.0) == pytest.approx(1 / limiter.rate)
    limiter.on_throttled(limiter._clock.now(), 90.0)
    assert await limiter.acquire(Priority.BULK, 0.0) == pytest.approx(90, abs=60)
    await limiter.aclose()


async def test_spare_tokens_are_granted_in_the_order_in_which_they_expire() -> None:
    limiter = RedisRateLimiter("redis://x", space="x")
    now = limiter._clock.now()
    limiter._leases._spare.extend([now - 1, now + 60, now + 90])
    turns = [limiter._leases.queue.add(Priority.BULK) for _ in range(3)]
    limiter._leases._grant_spare()
    assert [turn.done() and turn.result() for turn in turns] == [now + 60, now + 90, False]
    await limiter.aclose()


def test_fallback_pauses_and_slows_down_after_a_429() -> None:
    outage = Fallback("redis://x", 1)
    outage.on_throttled(5.0, 4.0, 30.0)
    outage.begin("refused", LocalState(RateLimit()), 7.0)
    assert outage.try_acquire(8.0) == 0
    outage.on_throttled(9.0, 8.0, 30.0)
    assert outage.try_acquire(10.0) == pytest.approx(29.0)
