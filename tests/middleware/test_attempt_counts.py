"""An error, an `Attempt` and a log line count the attempts that the Space could see, and tell nothing of others."""

import asyncio
import logging
from typing import Any

import pytest

from signalwire_streams import (
    Attempt,
    BulkStatus,
    CircuitBreakerPolicy,
    Clock,
    Priority,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.errors import Phase
from signalwire_streams.models import AttemptResult
from tests.raw_space import RawConnection, RawSpace, Request, http, raw_space
from tests.waiting import until

URL, ROOM = "wss://rx.example.com/audio", "22222222-2222-4222-8222-222222222222"
BUSY = {"code": 20503, "message": "busy", "status": 503}


class OneToken:
    """Lets one request through, and no other in time."""

    def __init__(self) -> None:
        self.wait = 0.0

    async def acquire(self, _: Priority, timeout: float) -> float:  # noqa: ASYNC109
        wait, self.wait = self.wait, 2 * timeout
        return wait

    async def wait_until_allowed(self, _: float) -> float:
        return 0.0

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None: ...

    def on_success(self) -> None: ...


async def busy(_: RawSpace, __: RawConnection, ___: Request) -> bytes:
    return http(503, BUSY)


def client_of(space: RawSpace, **options: Any) -> StreamsClient:
    return StreamsClient(base_url=space.url, project="p", token="t", **{"clock": Clock.fake()} | options)


LATER: dict[str, Any] = {
    "rate limiter": lambda: {"rate_limiter": OneToken()},
    "circuit breaker": lambda: {"circuit_breaker": CircuitBreakerPolicy(min_requests=1)},
}


@pytest.mark.parametrize("options", LATER.values(), ids=LATER)
async def test_attempt_that_was_never_made_does_not_count(options: Any) -> None:
    """Neither in the error's number nor in its message; its `Attempt` has no status of an earlier response."""
    attempts: list[Attempt] = []
    async with raw_space(busy) as space, client_of(space, on_attempt=attempts.append, **options()) as client:
        with pytest.raises(StreamsError) as first:
            await client.conferences.start_stream(ROOM, url=URL)
        with pytest.raises(StreamsError) as second:
            await client.conferences.start_stream(ROOM, url=URL)

    assert len(space.requests) == 1
    assert (first.value.attempts, first.value.sent) == (1, "yes")
    assert (second.value.attempts, second.value.sent) == (0, "no")
    assert "attempts" not in f"{first.value} {second.value}"
    assert [(each.status, each.code, each.phase, each.sent) for each in attempts] == [
        (503, 20503, Phase.RESPONDED, "yes"),
        *[(None, None, Phase.QUEUED, "no")] * 2,
    ]
    assert {each.result for each in attempts[1:]} <= {AttemptResult.DEADLINE_EXCEEDED, AttemptResult.BREAKER_OPEN}


async def test_cancelled_start_logs_the_number_of_its_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """The second attempt is cancelled, so the warning says that the last one was."""

    async def cut(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        if len(space.requests) == 1:
            connection.writer.transport.abort()
        await connection.reader.read()
        raise ConnectionError

    async with raw_space(cut) as space, client_of(space) as client:
        start = asyncio.create_task(client.conferences.start_stream(ROOM, url=URL))
        await until(lambda: len(space.requests) == 2)
        start.cancel()
        await asyncio.wait([start])

    [record] = [each for each in caplog.records if each.name == "signalwire_streams.outcome"]
    assert (record.levelno, vars(record)["attempt"]) == (logging.WARNING, 2)
    assert "(last attempt: cancelled)" in record.getMessage()


async def test_breaker_that_opens_logs_the_number_of_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        raw_space(busy) as space,
        client_of(space, circuit_breaker=CircuitBreakerPolicy(min_requests=3)) as client,
    ):
        with pytest.raises(StreamsError):
            await client.conferences.start_stream(ROOM, url=URL)

    [record] = [each for each in caplog.records if each.name == "signalwire_streams.circuit_breaker"]
    assert vars(record)["attempt"] == len(space.requests) == 3


async def test_start_in_doubt_waits_for_the_breaker_of_a_resumed_run(tmp_path: Any) -> None:
    """It was not sent again yet, so its outcome is not final, although no attempt was made."""
    item, journal = StartConferenceStream(conference_sid=ROOM, url=URL), tmp_path / "run.db"
    was_lost = False

    async def lose(space: RawSpace, connection: RawConnection, request: Request) -> bytes:
        nonlocal was_lost
        if request.method == "GET" or not was_lost:
            was_lost = was_lost or request.method == "POST"
            connection.writer.transport.abort()
            return b""
        started = space.start(request)
        return http(200, started)

    breaker = CircuitBreakerPolicy(min_requests=1, open_duration=30)
    async with raw_space(lose) as space:
        async with client_of(space, circuit_breaker=breaker) as client:
            run = client.start_streams([item], journal=journal)
            run_task = asyncio.create_task(run.report())
            await until(lambda: was_lost)
            run.shutdown(0)
            assert (await run_task).counts == {BulkStatus.UNKNOWN: 1}
        async with client_of(space, circuit_breaker=breaker) as client:
            with pytest.raises((StreamsError, StreamOutcomeUnknownError)):
                await client.conferences.get(ROOM)  # opens it
            report = await client.start_streams([item], journal=journal, resume=True).report()

    assert report.counts == {BulkStatus.STARTED: 1}
    assert len(space.sids_of(ROOM)) == 1
