"""A Redis, and rate limiters that share a limit through it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from signalwire_streams import RateLimit
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from tests import waiting
from tests.redis_server import RedisServer, redis_servers

LimiterFactory: TypeAlias = Callable[..., RedisRateLimiter]
ServerFactory: TypeAlias = Callable[..., RedisServer]


@pytest.fixture
def redis_server() -> Iterator[ServerFactory]:
    """Start servers; each is ended with the test."""
    with redis_servers() as start:
        yield start


@pytest.fixture(scope="session")
def common_redis() -> Iterator[RedisServer]:
    with redis_servers() as start:
        yield start()


@pytest.fixture
def redis(common_redis: RedisServer) -> RedisServer:
    """An empty server: one for all tests of this process, since a start costs more than most of them."""
    if common_redis.reconfigured:
        common_redis.kill()
    if common_redis.answers():
        common_redis.ask("FLUSHALL")
        common_redis.ask("SCRIPT", "FLUSH")
        return common_redis
    return common_redis.start()


@pytest.fixture
async def limiter_for() -> AsyncIterator[LimiterFactory]:
    """Create rate limiters on a Redis for one Space; each is closed with the test."""
    async with AsyncExitStack() as stack:

        def make(redis: RedisServer, **options: Any) -> RedisRateLimiter:
            limit = RateLimit(
                requests=options.pop("requests", 1000), window=options.pop("window", 10.0), utilization=1.0
            )
            settings: dict[str, Any] = {"space": "example.signalwire.com", "rate_limit": limit}
            limiter = RedisRateLimiter(f"{redis.url}?socket_timeout=30", **(settings | options))  # however busy it is
            stack.push_async_callback(limiter.aclose)
            return limiter

        yield make


async def until(holds: Callable[[], object]) -> None:
    await waiting.until(holds, interval=0.005)
