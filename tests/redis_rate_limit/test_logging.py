"""Log lines of a shared rate limiter."""

import logging
import time

import pytest

from tests.redis_server import RedisServer

from .conftest import LimiterFactory


async def test_pause_after_429_is_logged_once_by_the_client_that_got_it(
    redis: RedisServer, limiter_for: LimiterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    limiter = limiter_for(redis)
    limiter.on_throttled(time.monotonic(), 30.0)
    for _ in range(5):
        limiter.on_throttled(time.monotonic(), 31.0)
    pauses = [record for record in caplog.records if record.name == "signalwire_streams.rate_limit"]
    assert [(record.levelname, record.getMessage()) for record in pauses] == [
        ("WARNING", "too many requests (429): all requests pause for 30.0 s")
    ]
