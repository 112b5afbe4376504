"""Redis outages: requests wait, or each client continues with its share, and the limit always holds."""

import asyncio
import itertools
import re
import time
from typing import Any

import pytest

from signalwire_streams import Clock, Priority, RateLimit
from signalwire_streams.redis_rate_limit import RateLimiterError, RedisRateLimiter
from signalwire_streams.redis_rate_limit._store import SCRIPT, Store
from tests.redis_proxy import ERRORS, redis_proxy
from tests.redis_server import RedisServer

from .conftest import LimiterFactory, ServerFactory, until
from .test_quota import fullest_window
from .test_sharing import drain


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "signalwire_streams.redis_rate_limit"]


async def test_requests_wait_for_redis_until_their_timeout(
    redis: RedisServer, limiter_for: LimiterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says that Redis became unavailable, and one that it is back."""
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 10)
    redis.kill()

    assert await limiter.acquire(Priority.BULK, 0.3) == 0.3
    waiting = [asyncio.create_task(limiter.acquire(Priority.BULK, 10)) for _ in range(3)]
    assert await limiter.acquire(Priority.INTERACTIVE, 0.3) == 0.3
    assert await limiter.wait_until_allowed(1) == 0
    redis.start()

    assert await asyncio.gather(*waiting) == [0, 0, 0]
    went, *_, came = said(caplog)  # more if a busy machine replies late
    assert re.fullmatch(
        rf"the Redis at {redis.url} is unavailable \(.+\): requests wait for it, as long as .* allow", went
    )
    assert re.fullmatch(
        rf"the Redis at {redis.url} is available again after [0-9.]+ s: the limit is shared again", came
    )


async def test_client_started_before_redis_waits(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    redis.kill()
    limiter = limiter_for(redis)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10))
    await until(lambda: limiter._fallback.is_active)
    assert not waiting.done()
    redis.start()

    assert await waiting == 0


async def test_reads_do_not_wait_for_redis(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    redis.kill()
    limiter = limiter_for(redis)

    assert await limiter.wait_until_allowed(1) == 0
    assert limiter._fallback.is_active


async def test_rejection_during_outage_is_reported_afterwards(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 10)
    redis.kill()
    assert await limiter.acquire(Priority.BULK, 0.1) == 0.1
    limiter.on_throttled(time.monotonic(), 30.0)
    redis.start()
    await until(lambda: not limiter._state.has_update)

    assert await limiter_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=20)


async def test_closed_idle_connection_does_not_count_as_outage(
    redis: RedisServer, limiter_for: LimiterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = limiter_for(redis)
    for _ in range(3):
        assert await limiter.acquire(Priority.BULK, 10) == 0
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.05)

    assert said(caplog) == []


async def test_fallback_clients_keep_limit_while_redis_restarts(
    redis: RedisServer, limiter_for: LimiterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    limiters = [limiter_for(redis, requests=400, window=2.0, fallback_clients=3) for _ in range(3)]
    draining = asyncio.create_task(drain(limiters, 3.3))
    await asyncio.sleep(0.6)
    redis.kill()
    away_from = time.monotonic()
    await asyncio.sleep(1.0)
    away_until = time.monotonic()
    redis.start()
    times = sorted(itertools.chain(*await draining))

    assert fullest_window(times, 2.0) <= 400
    assert [one for one in times if away_from + 0.2 <= one <= away_until]
    assert [one for one in times if one > away_until + 0.5]
    await until(lambda: len(said(caplog)) >= 6)  # more if a busy machine replies late
    assert f"the Redis at {redis.url} is unavailable" in said(caplog)[0]
    assert said(caplog)[0].endswith("this client continues with its share of the limit, one of 3")


async def test_waiting_clients_keep_limit_while_redis_restarts(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiters = [limiter_for(redis, requests=400, window=2.0) for _ in range(3)]
    draining = asyncio.create_task(drain(limiters, 2.4, least=17))
    for _ in range(2):
        await asyncio.sleep(0.6)
        redis.kill()
        redis.start()
    times = sorted(itertools.chain(*await draining))

    assert fullest_window(times, 2.0) <= 400


async def test_fallback_waits_and_slows_down_after_429(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    limiter = limiter_for(redis, requests=1000, window=2.0, fallback_clients=2)
    await limiter.acquire(Priority.BULK, 10)
    redis.kill()
    assert await limiter.acquire(Priority.BULK, 10) == 0
    began = time.monotonic()
    limiter.on_throttled(began, 0.5)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10))
    assert await limiter.acquire(Priority.BULK, 10) == 0

    assert time.monotonic() - began >= 0.5
    assert await waiting == 0
    assert limiter._fallback._bucket is not None
    assert limiter._fallback._bucket.rate < limiter._state.quota.rate / 2


async def test_fallback_client_keeps_its_share_for_a_second(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    """Other clients may not know yet that Redis is back."""
    limiter = limiter_for(redis, requests=1000, window=10.0, fallback_clients=10)
    await limiter.acquire(Priority.BULK, 10)
    redis.kill()
    assert await limiter.acquire(Priority.BULK, 10) == 0
    redis.start()
    await until(lambda: not limiter._fallback.is_active)

    [times] = await drain([limiter], 2.0, least=60)

    settled_at = limiter._fallback._settled_at
    assert len([one for one in times if one < settled_at - 0.1]) <= 12
    assert len([one for one in times if one > settled_at + 0.1]) >= 20


async def test_late_responses_are_an_outage(
    redis: RedisServer, limiter_for: LimiterFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their tokens are not used."""
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
    limiter = limiter_for(redis, clock=Clock(now=lambda: time.monotonic() + skipped))
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10))
    await until(lambda: asked >= 9)
    assert not waiting.done()
    assert "its responses arrive too late" in said(caplog)[0]

    late = False
    assert await waiting == 0
    assert len(said(caplog)) == 2


async def test_full_redis_is_waited_for(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    limiter = limiter_for(redis)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10))
    await until(lambda: limiter._fallback.is_active)
    redis.ask("CONFIG", "SET", "maxmemory", "0")

    assert await waiting == 0


async def test_password_changed_during_outage_fails_requests(
    redis_server: ServerFactory, limiter_for: LimiterFactory
) -> None:
    redis = redis_server()
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 10)
    redis.kill()
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10))
    await until(lambda: limiter._fallback.is_active)
    redis.options = ("--requirepass", "s3cret")
    redis.start()

    with pytest.raises(RateLimiterError, match="requires a different user or password"):
        await waiting


@pytest.mark.parametrize("error", ERRORS)
async def test_script_that_failed_is_repeated_and_grants_no_more_than_the_limit(redis: RedisServer, error: str) -> None:
    async with (
        redis_proxy(redis.socket, redis.folder / f"{error}.sock") as proxy,
        RedisRateLimiter(proxy.url, space="s", rate_limit=RateLimit(requests=40, window=10.0)) as limiter,
    ):
        assert await limiter.acquire(Priority.BULK, 10) == 0
        spoiled = proxy.spoil(SCRIPT, ERRORS[error], times=2)
        granted = await asyncio.gather(*(limiter.acquire(Priority.BULK, 0.5 if n else 10) for n in range(80)))
        limiter.on_throttled(time.monotonic(), 30.0)
        await until(lambda: not limiter._state.has_update)
    assert granted[0] == 0
    assert granted.count(0) <= 40
    assert spoiled.seen > 2


async def test_redis_cluster_is_rejected_at_once(redis: RedisServer) -> None:
    async with (
        redis_proxy(redis.socket, redis.folder / "cluster.sock") as proxy,
        RedisRateLimiter(proxy.url, space="s") as limiter,
    ):
        proxy.spoil(SCRIPT, "MOVED 3999 127.0.0.1:6381")
        with pytest.raises(RateLimiterError, match="is a Redis Cluster, which is not supported"):
            await limiter.acquire(Priority.BULK, 10)
