"""A rate limiter of the caller's that raises hides no start: what may be running is reported, with its name."""

import asyncio
import logging
from typing import Any

import pytest

from signalwire_streams import (
    BulkStatus,
    Clock,
    Priority,
    RateLimitedError,
    RetryPolicy,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    TransportError,
)
from tests.raw_space import RawConnection, RawSpace, Request, as_documented, http, raw_space

URL, ROOM = "wss://rx.example.com/audio", "22222222-2222-4222-8222-222222222222"


class BrokenLimiter:
    """Raises at this call of `acquire`, or after a request."""

    def __init__(self, *, at: int = 0, after: str = "") -> None:
        self.at, self.after, self.calls = at, after, 0

    async def acquire(self, _: Priority, __: float) -> float:
        self.calls += 1
        if self.calls == self.at:
            raise KeyError("no such limit")
        return 0.0

    async def wait_until_allowed(self, _: float) -> float:
        return 0.0

    def on_throttled(self, _: float, __: float | None) -> None:
        if self.after == "throttled":
            raise KeyError("no such limit")

    def on_success(self) -> None:
        if self.after == "success":
            raise KeyError("no such limit")


async def lose(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
    """Carry a request out, and close the connection instead of responding."""
    space.start(request)
    connection.writer.transport.abort()
    return b""


def client_of(space: RawSpace, limiter: BrokenLimiter, **options: Any) -> StreamsClient:
    return StreamsClient(
        base_url=space.url, project="p", token="t", clock=Clock.fake(), rate_limiter=limiter, **options
    )


async def test_rate_limiter_that_raises_before_a_start_is_repeated_leaves_it_unknown() -> None:
    """The first attempt may have started it, so the caller gets its name; the limiter's own error is the cause."""
    async with raw_space(lose) as space, client_of(space, BrokenLimiter(at=2)) as client:
        with pytest.raises(StreamOutcomeUnknownError, match="the rate limiter raised KeyError") as caught:
            await client.conferences.start_stream(ROOM, url=URL)

    assert list(space.running) == [(ROOM, caught.value.name)]
    assert (caught.value.attempts, caught.value.sent) == (len(space.requests), "maybe") == (1, "maybe")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_rate_limiter_that_raises_before_a_stop_is_repeated_says_that_it_was_sent() -> None:
    async with raw_space(lose) as space, client_of(space, BrokenLimiter(at=2)) as client:
        with pytest.raises(TransportError, match="not sent again: the rate limiter raised KeyError") as caught:
            await client.conferences.stop_stream(ROOM, "audit")

    assert (caught.value.attempts, caught.value.sent) == (len(space.requests), "maybe") == (1, "maybe")


async def test_rate_limiter_that_raises_before_anything_was_sent_raises_its_own_error() -> None:
    async with raw_space() as space, client_of(space, BrokenLimiter(at=1)) as client:
        with pytest.raises(KeyError, match="no such limit"):
            await client.conferences.start_stream(ROOM, url=URL)

    assert space.requests == []


async def test_item_of_a_bulk_run_is_unknown_if_the_rate_limiter_raises_before_it_is_repeated() -> None:
    item = StartConferenceStream(conference_sid=ROOM, url=URL)
    async with raw_space(lose) as space, client_of(space, BrokenLimiter(at=2)) as client:
        [outcome] = [outcome async for outcome in client.start_streams([item])]

    assert (outcome.status, outcome.attempts) == (BulkStatus.UNKNOWN, 1)
    assert isinstance(outcome.error, StreamOutcomeUnknownError)
    assert list(space.running) == [(ROOM, outcome.error.name)]


async def test_rate_limiter_that_raises_after_a_request_loses_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and ignored, as an exception of `on_attempt` is."""
    async with raw_space(as_documented) as space, client_of(space, BrokenLimiter(after="success")) as client:
        stream = await client.conferences.start_stream(ROOM, url=URL)
    assert space.running == {(ROOM, stream.name): stream.sid}

    async def throttle(_: RawSpace, __: RawConnection, ___: Request) -> bytes:
        return http(429, head="Retry-After: 1\r\n")

    retry = RetryPolicy(max_throttle_retries=0)
    async with raw_space(throttle) as space, client_of(space, BrokenLimiter(after="throttled"), retry=retry) as client:
        with pytest.raises(RateLimitedError):
            await client.conferences.start_stream(ROOM, url=URL)

    found = [each for each in caplog.records if each.name == "signalwire_streams.rate_limit"]
    assert [(each.levelno, each.exc_info is not None) for each in found] == [(logging.ERROR, True)] * 2


async def test_client_that_is_closed_before_an_attempt_counts_none() -> None:
    """It had its slot and token, and nothing was sent."""
    closing: list[asyncio.Task[None]] = []

    class Closing(BrokenLimiter):
        async def acquire(self, _: Priority, __: float) -> float:
            closing.append(asyncio.create_task(client._dispatcher.sessions.close()))
            await asyncio.wait(closing)
            return 0.0

    async with raw_space() as space, client_of(space, Closing()) as client:
        with pytest.raises(TransportError, match="not sent: the client was closed in the meantime") as caught:
            await client.conferences.start_stream(ROOM, url=URL)

    assert (caught.value.attempts, caught.value.sent, space.requests) == (0, "no", [])
