"""Log lines of a shared pacer."""

import logging
import time

import pytest

from tests.redis_server import RedisServer

from .conftest import PacerFactory


async def test_a_pause_after_429_is_one_warning_of_the_client_that_got_it(
    redis: RedisServer, pacer_for: PacerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "signalwire_streams")
    pacer = pacer_for(redis)
    pacer.on_throttled(time.monotonic(), 30.0)
    for _ in range(5):
        pacer.on_throttled(time.monotonic(), 31.0)
    pauses = [record for record in caplog.records if record.name == "signalwire_streams.rate_limit"]
    assert [(record.levelname, record.getMessage()) for record in pauses] == [
        ("WARNING", "too many requests (429): all requests pause for 30.0 s")
    ]
