"""Redis goes away: requests wait, or each client goes on with its part; never is there a burst."""

import asyncio
import itertools
import re
import time
from typing import Any

import pytest

from signalwire_streams import Clock, Priority
from signalwire_streams.redis_rate_limit import RateLimiterError
from signalwire_streams.redis_rate_limit._store import Store
from tests.redis_server import RedisServer

from .conftest import PacerFactory, ServerFactory, until
from .test_quota import fullest_window
from .test_sharing import drain


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "signalwire_streams.redis_rate_limit"]


async def test_requests_wait_for_redis(
    redis: RedisServer, pacer_for: PacerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is away requests wait, as long as they may; one line says that it went and one that it is back."""
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 10)
    redis.kill()

    assert await pacer.acquire(Priority.BULK, 0.3) == 0.3
    waiting = [asyncio.create_task(pacer.acquire(Priority.BULK, 10)) for _ in range(3)]
    assert await pacer.acquire(Priority.INTERACTIVE, 0.3) == 0.3
    assert await pacer.wait_until_allowed(1) == 0
    redis.start()

    assert await asyncio.gather(*waiting) == [0, 0, 0]
    went, came = said(caplog)
    assert re.fullmatch(
        rf"the Redis at {redis.url} is unavailable \(.+\): requests wait for it, as long as .* allow", went
    )
    assert re.fullmatch(
        rf"the Redis at {redis.url} is available again after [0-9.]+ s: the limit is shared again", came
    )


async def test_redis_may_come_later(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A client that is started before its Redis waits for it."""
    redis.kill()
    pacer = pacer_for(redis)
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 10))
    await until(lambda: pacer._fallback.is_active)
    assert not waiting.done()
    redis.start()

    assert await waiting == 0


async def test_a_read_needs_no_redis(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Reads are not counted, so they do not wait for Redis, only for the gate as far as it is known."""
    redis.kill()
    pacer = pacer_for(redis)

    assert await pacer.wait_until_allowed(1) == 0
    assert pacer._fallback.is_active


async def test_a_refusal_while_redis_is_away_is_told_later(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """What the Space said while Redis was away is told to the others once it is back."""
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 10)
    redis.kill()
    assert await pacer.acquire(Priority.BULK, 0.1) == 0.1
    pacer.on_throttled(time.monotonic(), 30.0)
    redis.start()
    await until(lambda: not pacer._state.has_update)

    assert await pacer_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=5)


async def test_a_connection_that_was_closed_meanwhile_is_no_outage(
    redis: RedisServer, pacer_for: PacerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that closes idle connections is not away."""
    pacer = pacer_for(redis)
    for _ in range(3):
        assert await pacer.acquire(Priority.BULK, 10) == 0
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.05)

    assert said(caplog) == []


async def test_clients_go_on_with_their_parts(
    redis: RedisServer, pacer_for: PacerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis dies and comes back empty under load: the limit holds in every window, and requests go on meanwhile."""
    pacers = [pacer_for(redis, requests=400, window=2.0, fallback_clients=3) for _ in range(3)]
    draining = asyncio.create_task(drain(pacers, 4.5))
    await asyncio.sleep(1.0)
    redis.kill()
    away_from = time.monotonic()
    await asyncio.sleep(1.5)
    away_until = time.monotonic()
    redis.start()
    times = sorted(itertools.chain(*await draining))

    assert fullest_window(times, 2.0) <= 400
    meanwhile = [one for one in times if away_from + 0.2 <= one <= away_until]
    assert len(meanwhile) > 25
    assert len([one for one in times if one > away_until + 0.5]) > 25
    assert len(said(caplog)) == 6
    assert f"the Redis at {redis.url} is unavailable" in said(caplog)[0]
    assert said(caplog)[0].endswith("this client continues with its share of the limit, one of 3")


async def test_clients_that_wait_do_not_burst_either(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Redis dies, loses its memory, and comes back at once, twice: still no window holds more than the limit."""
    pacers = [pacer_for(redis, requests=400, window=2.0) for _ in range(3)]
    draining = asyncio.create_task(drain(pacers, 3.0))
    for _ in range(2):
        await asyncio.sleep(0.8)
        redis.kill()
        redis.start()
    times = sorted(itertools.chain(*await draining))

    assert fullest_window(times, 2.0) <= 400
    assert len(times) > 50


async def test_a_part_has_the_gate_and_the_refusals_too(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A client that goes on by itself still waits at the gate, and slows down when it is refused."""
    pacer = pacer_for(redis, requests=1000, window=2.0, fallback_clients=2)
    await pacer.acquire(Priority.BULK, 10)
    redis.kill()
    assert await pacer.acquire(Priority.BULK, 10) == 0
    began = time.monotonic()
    pacer.on_throttled(began, 0.5)
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 10))
    assert await pacer.acquire(Priority.BULK, 10) == 0

    assert time.monotonic() - began >= 0.5
    assert await waiting == 0
    assert pacer._fallback._bucket is not None
    assert pacer._fallback._bucket.rate < pacer._state.quota.rate / 2


async def test_a_client_that_was_on_its_own_returns_slowly(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """For a second after Redis is back a client takes no more than its part: others may not know yet."""
    pacer = pacer_for(redis, requests=1000, window=10.0, fallback_clients=10)
    await pacer.acquire(Priority.BULK, 10)
    redis.kill()
    assert await pacer.acquire(Priority.BULK, 10) == 0
    redis.start()
    await until(lambda: not pacer._fallback.is_active)
    back = time.monotonic()

    [times] = await drain([pacer], 2.0)

    assert len([one for one in times if one < back + 0.9]) <= 12
    assert len([one for one in times if one > back + 1.1]) >= 50


async def test_answers_that_come_too_late(
    redis: RedisServer, pacer_for: PacerFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens that were too long on their way are not used; a Redis that is always late is as good as away."""
    asked, late, skipped = 0, True, 0.0
    ask = {name: getattr(Store, name) for name in ("exchange",)}

    def slowed(name: str) -> Any:
        async def answer(store: Store, *args: Any, **kwargs: Any) -> object:
            nonlocal asked, skipped
            asked += 1
            answered = await ask[name](store, *args, **kwargs)
            if late:
                skipped += 1.0
            return answered

        return answer

    for name in ask:
        monkeypatch.setattr(Store, name, slowed(name))
    pacer = pacer_for(redis, clock=Clock(now=lambda: time.monotonic() + skipped))
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 10))
    await until(lambda: asked >= 9)
    assert not waiting.done()
    assert "its answers come too late" in said(caplog)[0]

    late = False
    assert await waiting == 0
    assert len(said(caplog)) == 2


async def test_a_full_or_a_read_only_redis_may_recover(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A Redis that can't write just now is waited for, as one that is away."""
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    pacer = pacer_for(redis)
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 10))
    await until(lambda: pacer._fallback.is_active)
    redis.ask("CONFIG", "SET", "maxmemory", "0")

    assert await waiting == 0


async def test_a_redis_that_comes_back_with_another_password(
    redis_server: ServerFactory, pacer_for: PacerFactory
) -> None:
    """Who waits for a Redis that then refuses to be used is told so."""
    redis = redis_server()
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 10)
    redis.kill()
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 10))
    await until(lambda: pacer._fallback.is_active)
    redis.options = ("--requirepass", "s3cret")
    redis.start()

    with pytest.raises(RateLimiterError, match="requires a different user or password"):
        await waiting
