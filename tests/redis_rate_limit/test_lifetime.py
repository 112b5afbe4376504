"""Who may use a pacer, from where and until when, and what is imported for it."""

import asyncio
import os
import subprocess
import sys

import pytest

from signalwire_streams import ClientStateError, Priority, RateLimiter, StreamsClient
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer

from .conftest import PacerFactory, until


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return ran.stdout + ran.stderr


def test_without_the_extra() -> None:
    """Importing it without its packages ends in one sentence that says what to install."""
    last = run('import sys; sys.modules["redis"] = None\nimport signalwire_streams.redis_rate_limit').splitlines()[-1]

    assert last == (
        "ImportError: signalwire_streams.redis_rate_limit needs more packages: pip install 'signalwire-streams[redis]'"
    )


def test_nothing_else_imports_it() -> None:
    """Whoever does not share a limit loads nothing for it."""
    code = (
        "import sys, signalwire_streams, signalwire_streams._cli, signalwire_streams.simulator\n"
        "print({'redis', 'signalwire_streams.redis_rate_limit'} & set(sys.modules))"
    )

    assert run(code).strip() == "set()"


def test_it_is_a_pacer() -> None:
    """It fits where a client takes a pacer, and shows no more than where Redis is."""
    pacer: RateLimiter = RedisRateLimiter("rediss://user:secret@redis.example.com:6380/1?socket_timeout=3")

    assert repr(pacer) == "RedisRateLimiter('rediss://redis.example.com:6380/1', space=None)"


async def test_a_client_does_not_close_its_pacer(space: SimulatedSpace, redis: RedisServer) -> None:
    """A pacer outlives the clients that it is passed to."""
    async with RedisRateLimiter(redis.url) as pacer:
        for _ in range(2):
            async with StreamsClient(
                base_url=space.base_url, project=space.project, token=space.token, rate_limiter=pacer
            ) as client:
                await client.conferences.get(space.conference_sids[0])
        assert await pacer.acquire(Priority.INTERACTIVE, 10) == 0


async def test_closing_ends_all_waiting(redis: RedisServer, pacer_for: PacerFactory, nothing_left: None) -> None:
    """Whoever waits hears that the pacer was closed, nothing is left behind, and it can be closed again."""
    pacer = pacer_for(redis, requests=10, window=100.0)
    waiting = [asyncio.create_task(pacer.acquire(Priority.BULK, 99)) for _ in range(3)]
    await asyncio.sleep(0.05)

    await pacer.aclose()
    await pacer.aclose()

    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in ended] == ["this rate limiter is closed: create a new RedisRateLimiter"] * 3
    for again in (pacer.acquire(Priority.BULK, 1), pacer.wait_until_allowed(1)):
        with pytest.raises(ClientStateError, match="is closed"):
            await again
    assert b"cmd=evalsha" not in redis.ask("CLIENT", "LIST")


async def test_closing_while_redis_is_away(redis: RedisServer, pacer_for: PacerFactory, nothing_left: None) -> None:
    """A pacer that looks for its Redis stops doing so when it is closed, and whoever asks for the gate is let go."""
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 1)
    redis.kill()
    waiting = asyncio.create_task(pacer.acquire(Priority.BULK, 99))
    await until(lambda: pacer._fallback.is_active)

    await pacer.aclose()

    with pytest.raises(ClientStateError):
        await waiting


async def test_closing_while_the_gate_is_looked_at(redis: RedisServer, pacer_for: PacerFactory) -> None:
    """A read that is just asking for the gate is let go when the pacer is closed, or when its patience ends."""
    pacer = pacer_for(redis)
    await pacer._store._lock.acquire()  # as another exchange does that takes its time
    impatient = asyncio.create_task(pacer.wait_until_allowed(0.01))
    patient = asyncio.create_task(pacer.wait_until_allowed(99))

    assert await impatient == 0
    await pacer.aclose()
    assert await patient == 0


async def test_a_pacer_that_was_never_used(redis: RedisServer) -> None:
    """A pacer that was made and not used is closed without ado."""
    await RedisRateLimiter(redis.url).aclose()


def test_another_event_loop(redis: RedisServer) -> None:
    """A pacer belongs to the event loop that it was first used in, and says so elsewhere."""
    pacer = RedisRateLimiter(redis.url, space="example.signalwire.com")

    async def use() -> None:
        await pacer.acquire(Priority.BULK, 10)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(
        ClientStateError, match=r"another event loop: make one RedisRateLimiter inside each asyncio\.run"
    ):
        asyncio.run(use())
    loop.run_until_complete(pacer.aclose())
    loop.close()


async def test_another_process(redis: RedisServer, pacer_for: PacerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pacer does not survive a fork: two processes on one connection would read each other's answers."""
    pacer = pacer_for(redis)
    await pacer.acquire(Priority.BULK, 10)

    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ClientStateError, match="make a RedisRateLimiter in each"):
            await pacer.acquire(Priority.BULK, 10)
        pacer.on_throttled(0.0, None)

    assert await pacer.acquire(Priority.BULK, 10) == 0
