"""The corners that the races of a real Redis reach too seldom."""

import asyncio
import importlib
import importlib.util
import logging
import math
from typing import Any

import pytest

import signalwire_streams.redis_rate_limit
from signalwire_streams import Priority, RateLimit
from signalwire_streams.middleware._queueing import PriorityQueue
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.redis_rate_limit._lease_loop import LeaseLoop
from signalwire_streams.redis_rate_limit._state import Fallback, LocalState
from signalwire_streams.redis_rate_limit._store import RedisUnavailableError, Store


async def test_a_queue_passes_over_who_is_on_the_way_out() -> None:
    """A token goes to the first who still waits for it, and to nobody when nobody does."""
    queue = PriorityQueue()
    assert queue.head() == (Priority.BULK, 0)
    assert not queue.grant(1.0)
    turns = [queue.add(Priority.BULK) for _ in range(3)]
    turns[0].cancel()
    turns[2].cancel()

    assert queue.grant(1.0)
    assert not queue.grant(1.0)
    assert turns[1].result() == 1.0
    assert queue.head() == (Priority.BULK, 0)


def test_an_outage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many find out that Redis is away, one line says so; and none that it is back when it was not away."""
    caplog.set_level(logging.INFO)
    outage = Fallback("redis://x", None)
    outage.end(0.0)
    for _ in range(3):
        outage.begin("why", LocalState(RateLimit()), 1.0)
    outage.end(2.0)

    assert len(caplog.records) == 2
    assert outage.try_acquire(3.0) == 0


def test_the_import_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the extra's packages the import ends in a sentence."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ImportError, match=r"pip install 'signalwire-streams\[redis\]'"):
        importlib.reload(signalwire_streams.redis_rate_limit)


async def test_a_turn_in_the_very_moment_that_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the turn is granted while the timeout is already on its way, it is a turn, and counted."""

    def wait(leases: LeaseLoop, priority: Priority) -> "asyncio.Future[float]":
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[float] = loop.create_future()
        loop.call_soon(turn.set_result, math.inf)
        return turn

    monkeypatch.setattr(LeaseLoop, "wait", wait)
    pacer = RedisRateLimiter("redis://localhost", space="example.signalwire.com")

    assert await pacer.acquire(Priority.BULK, 1e-9) == 0


@pytest.mark.parametrize("hangs_in", ["lease", "probe"])
async def test_a_cancellation_that_is_taken_for_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None, hangs_in: str
) -> None:
    """Closing ends the tasks even where a cancellation comes back as a connection that broke."""

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
    pacer = RedisRateLimiter("redis://localhost", space="example.signalwire.com")
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 60))
    await hangs.wait()

    await pacer.aclose()

    assert "closed" in str((await asyncio.gather(waiting, return_exceptions=True))[0])


async def test_tokens_that_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pump that finds tokens given back uses them before it asks for more."""

    async def fail(store: Store, *args: object, **kwargs: object) -> object:
        raise AssertionError("it asked for more")

    monkeypatch.setattr(Store, "exchange", fail)
    pacer = RedisRateLimiter("redis://localhost", space="example.signalwire.com")
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    pacer._leases.give_back(float("inf"))

    assert await waiting == 0
    await pacer.aclose()
