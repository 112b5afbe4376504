"""Import, binding to event loop and process, and closing of a shared rate limiter."""

import asyncio
import os
import subprocess
import sys

import pytest

from signalwire_streams import ClientStateError, Priority, RateLimiter, StreamsClient
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer

from .conftest import LimiterFactory, until


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    return ran.stdout + ran.stderr


def test_import_without_extra_says_what_to_install() -> None:
    last = run('import sys; sys.modules["redis"] = None\nimport signalwire_streams.redis_rate_limit').splitlines()[-1]

    assert last == (
        "ImportError: signalwire_streams.redis_rate_limit needs more packages: pip install 'signalwire-streams[redis]'"
    )


def test_package_does_not_import_redis() -> None:
    code = (
        "import sys, signalwire_streams, signalwire_streams._cli, signalwire_streams.simulator\n"
        "print({'redis', 'signalwire_streams.redis_rate_limit'} & set(sys.modules))"
    )

    assert run(code).strip() == "set()"


def test_rate_limiter_repr_contains_no_password() -> None:
    limiter: RateLimiter = RedisRateLimiter("rediss://user:secret@redis.example.com:6380/1?socket_timeout=3")

    assert repr(limiter) == "RedisRateLimiter('rediss://redis.example.com:6380/1', space=None)"


async def test_client_does_not_close_its_rate_limiter(space: SimulatedSpace, redis: RedisServer) -> None:
    async with RedisRateLimiter(redis.url) as limiter:
        for _ in range(2):
            async with StreamsClient(
                base_url=space.base_url, project=space.project, token=space.token, rate_limiter=limiter
            ) as client:
                await client.conferences.get(space.conference_sids[0])
        assert await limiter.acquire(Priority.INTERACTIVE, 10) == 0


async def test_aclose_fails_waiting_requests(
    redis: RedisServer, limiter_for: LimiterFactory, nothing_left: None
) -> None:
    limiter = limiter_for(redis, requests=10, window=100.0)
    waiting = [asyncio.create_task(limiter.acquire(Priority.BULK, 99)) for _ in range(3)]
    await asyncio.sleep(0.05)

    await limiter.aclose()
    await limiter.aclose()

    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in ended] == ["this rate limiter is closed: create a new RedisRateLimiter"] * 3
    for again in (limiter.acquire(Priority.BULK, 1), limiter.wait_until_allowed(1)):
        with pytest.raises(ClientStateError, match="is closed"):
            await again
    assert b"cmd=evalsha" not in redis.ask("CLIENT", "LIST")


async def test_cancelled_enter_closes_the_rate_limiter() -> None:
    """There is no exit that could do it."""
    asked, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        asked.set()
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        limiter = RedisRateLimiter(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}?socket_timeout=60")
        entering = asyncio.create_task(limiter.__aenter__())
        await asked.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        async with asyncio.timeout(30):
            await closed.wait()
        with pytest.raises(ClientStateError, match="is closed"):
            await limiter.wait_until_allowed(0)


async def test_aclose_while_redis_is_unavailable(
    redis: RedisServer, limiter_for: LimiterFactory, nothing_left: None
) -> None:
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 1)
    redis.kill()
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 99))
    await until(lambda: limiter._fallback.is_active)

    await limiter.aclose()

    with pytest.raises(ClientStateError):
        await waiting


async def test_aclose_releases_reads_that_wait_for_redis(redis: RedisServer, limiter_for: LimiterFactory) -> None:
    """So does the end of their patience."""
    limiter = limiter_for(redis)
    await limiter._store._lock.acquire()  # as another exchange does that takes its time
    impatient = asyncio.create_task(limiter.wait_until_allowed(0.01))
    patient = asyncio.create_task(limiter.wait_until_allowed(99))

    assert await impatient == 0
    await limiter.aclose()
    assert await patient == 0


async def test_aclose_of_unused_rate_limiter(redis: RedisServer) -> None:
    await RedisRateLimiter(redis.url).aclose()


def test_use_in_another_event_loop_raises(redis: RedisServer) -> None:
    limiter = RedisRateLimiter(redis.url, space="example.signalwire.com")

    async def use() -> None:
        await limiter.acquire(Priority.BULK, 10)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(
        ClientStateError, match=r"another event loop: create one RedisRateLimiter inside each asyncio\.run"
    ):
        asyncio.run(use())
    loop.run_until_complete(limiter.aclose())
    loop.close()


async def test_use_after_fork_raises(
    redis: RedisServer, limiter_for: LimiterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on one connection would read each other's replies."""
    limiter = limiter_for(redis)
    await limiter.acquire(Priority.BULK, 10)

    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ClientStateError, match="create a RedisRateLimiter in each"):
            await limiter.acquire(Priority.BULK, 10)
        limiter.on_throttled(0.0, None)

    assert await limiter.acquire(Priority.BULK, 10) == 0
