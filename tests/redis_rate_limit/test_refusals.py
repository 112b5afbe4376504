"""A refusal that one client gets is a refusal for all of them."""

import asyncio
import time

import pytest

from signalwire_streams import Priority, RateLimit, StreamsClient
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer

from .conftest import PacerFactory, until

URL = "wss://rx.example.com/audio"


async def told(pacer: RedisRateLimiter) -> None:
    """Wait until a pacer has told all that it knows."""
    await until(lambda: not pacer._state.has_update)


async def test_a_gate_that_one_client_closes_is_closed_for_all(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """What one client was told to wait, all wait: starts as well as reads, also of a client that comes later."""
    refused, other = pacer_for(redis), pacer_for(redis)
    await refused.acquire(Priority.BULK, 10)
    await other.acquire(Priority.BULK, 10)
    refused.on_throttled(time.monotonic(), 30.0)
    await told(refused)

    assert await other.acquire(Priority.BULK, 0.2) > 0
    assert await other.acquire(Priority.BULK, 5) == pytest.approx(30, abs=5)
    assert await pacer_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=5)


async def test_the_gate_opens_again(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Once the Space takes requests again, those who waited go out, reads and starts."""
    refused, other = pacer_for(redis), pacer_for(redis)
    await other.acquire(Priority.BULK, 10)
    began = time.monotonic()
    refused.on_throttled(began, 0.4)
    await told(refused)

    assert await refused.wait_until_allowed(10) == 0
    assert time.monotonic() - began >= 0.4
    assert await refused.acquire(Priority.BULK, 10) == await other.acquire(Priority.BULK, 10) == 0


async def test_many_refusals_cut_the_rate_of_all_once(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """Requests of two clients that are refused together cut the rate once, for both."""
    pacers = [pacer_for(redis), pacer_for(redis)]
    for pacer in pacers:
        await pacer.acquire(Priority.BULK, 10)
    for pacer in pacers:
        for _ in range(20):
            pacer.on_throttled(time.monotonic(), 0.01)
    for pacer in pacers:
        await told(pacer)
        await pacer.acquire(Priority.BULK, 10)

    rates = [pacer._state.rate(time.monotonic()) / pacer._state.quota.rate for pacer in pacers]
    assert rates == [pytest.approx(0.7, abs=0.15)] * 2
    assert [pacer._state.shared.cuts for pacer in pacers] == [1, 1]


async def test_a_refusal_is_told_though_redis_knows_nothing_yet(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A client whose Redis knows nothing of the Space tells it what it heard."""
    pacer = pacer_for(redis)
    pacer.on_throttled(time.monotonic(), 30.0)
    await told(pacer)

    assert await pacer_for(redis).wait_until_allowed(5) == pytest.approx(30, abs=5)


async def test_redis_forgets_and_is_told_again(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """After a FLUSHALL the gate stays closed: clients tell Redis again what they know."""
    knows = pacer_for(redis)
    await knows.acquire(Priority.BULK, 10)
    knows.on_throttled(time.monotonic(), 2.0)
    await told(knows)
    redis.ask("FLUSHALL")

    assert await knows.acquire(Priority.BULK, 0.1) > 0
    await asyncio.sleep(0)
    newcomer = pacer_for(redis)
    assert await newcomer.acquire(Priority.BULK, 10) == 0
    assert await knows.acquire(Priority.BULK, 10) == 0
    await told(knows)
    assert await pacer_for(redis).wait_until_allowed(0.0) == 0


async def test_nobody_is_told_once_the_pacer_is_closed(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A request that ends after its pacer was closed still ends as it did."""
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 10)
    await pacer.aclose()

    pacer.on_throttled(time.monotonic(), 1.0)
    pacer.on_success()


async def test_a_space_that_is_stricter_than_it_says(redis: RedisServer) -> None:
    """Clients that are refused slow down together, until all streams are started and none twice."""
    async with SimulatedSpace(conferences=120, rate_limit=60, window=1.0, advertised_limit=200) as space:
        space.faults.add("throttle", times=1, retry_after=0)  # the one that comes even where this machine is slow

        async def start(sids: list[str]) -> None:
            limit = RateLimit(requests=200, window=1.0)
            async with (
                RedisRateLimiter(redis.url, rate_limit=limit) as pacer,
                StreamsClient(
                    base_url=space.base_url, project=space.project, token=space.token, rate_limiter=pacer
                ) as client,
            ):
                await asyncio.gather(*(client.conferences.start_stream(sid, url=URL) for sid in sids))

        sids = list(space.conference_sids)
        await asyncio.gather(start(sids[:60]), start(sids[60:]))

        assert len(space.streams.active()) == 120
        assert space.requests.count() > 120
