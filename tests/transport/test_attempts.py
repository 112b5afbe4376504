"""Attempts reported to `on_attempt`: exact numbers on a fake clock."""

import asyncio
from typing import Any

import pytest

from signalwire_streams import Attempt, Clock, RateLimit, StreamsClient
from signalwire_streams.models import AttemptResult, Operation, RetryDecision
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
TURN = 10.0 / 9  # seconds between two requests of LIMIT
LIMIT = RateLimit(requests=10, window=10.0, utilization=1.0, burst=1)


@pytest.fixture
def attempts() -> list[Attempt]:
    return []


@pytest.fixture
def client(space: SimulatedSpace, client_for: Any, idle_clock: Clock, attempts: list[Attempt]) -> StreamsClient:
    clock = Clock(now=idle_clock.now, random=lambda: 0.5)
    client: StreamsClient = client_for(space, clock=clock, rate_limit=LIMIT, on_attempt=attempts.append)
    return client


async def test_queue_time_is_separate_from_duration(
    space: SimulatedSpace, client: StreamsClient, attempts: list[Attempt]
) -> None:
    """Of two starts at once the second one waits for the rate limit; both then wait for their responses."""
    space.faults.add("latency", on="start", seconds=2.0)
    await asyncio.gather(
        *(client.conferences.start_stream(sid, url=URL) for sid in space.conference_sids[:2]),
    )

    assert [attempt.target for attempt in attempts] == space.conference_sids[:2]
    assert [attempt.queue_time for attempt in attempts] == pytest.approx([0.0, TURN], abs=0.02)
    assert [attempt.duration for attempt in attempts] == pytest.approx([2.0, 2.0], abs=0.02)
    assert [attempt.next_delay for attempt in attempts] == [0.0, 0.0]


async def test_retry_reports_why_and_how_long_it_waits(
    space: SimulatedSpace, client: StreamsClient, attempts: list[Attempt]
) -> None:
    space.faults.add("status", on="start", status=503, body="api", code=20503, times=1)
    await client.conferences.start_stream(space.conference_sids[0], url=URL, name="one")

    refused, started = attempts
    assert {(attempt.operation, attempt.name) for attempt in attempts} == {(Operation.CONFERENCE_START, "one")}
    assert (refused.number, refused.result, refused.decision, refused.sent) == (
        1,
        AttemptResult.UNAVAILABLE,
        RetryDecision.RETRY,
        "yes",
    )
    assert (refused.status, refused.code) == (503, 20503)
    assert refused.next_delay == pytest.approx(0.1)
    assert (started.number, started.result, started.decision, started.status) == (
        2,
        AttemptResult.DONE,
        RetryDecision.SUCCEED,
        200,
    )
    assert started.queue_time == pytest.approx(TURN - refused.next_delay, abs=0.02)
    assert started.next_delay == 0.0


async def test_cancelled_attempt_is_reported_as_one_that_may_have_been_sent(
    space: SimulatedSpace, client: StreamsClient, attempts: list[Attempt]
) -> None:
    space.faults.add("hang", on="start", executed=True)
    starting = asyncio.create_task(client.conferences.start_stream(space.conference_sids[0], url=URL))
    await asyncio.sleep(3.0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    [attempt] = attempts
    assert (attempt.result, attempt.decision, attempt.status, attempt.code) == (
        AttemptResult.CANCELLED,
        RetryDecision.FAIL,
        None,
        None,
    )
    assert attempt.sent in {"maybe", "yes"}
    assert attempt.duration == pytest.approx(3.0, abs=0.02)
    assert len(space.streams) == 1


async def test_attempt_that_only_waited_has_no_latency(
    space: SimulatedSpace, client: StreamsClient, attempts: list[Attempt]
) -> None:
    """A start that is cancelled in the queue was not sent, and all its time is queue time."""
    await client.conferences.start_stream(space.conference_sids[0], url=URL)
    starting = asyncio.create_task(client.conferences.start_stream(space.conference_sids[1], url=URL))
    await asyncio.sleep(0.5)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    attempt = attempts[-1]
    assert (attempt.result, attempt.sent, attempt.duration) == (AttemptResult.CANCELLED, "no", 0.0)
    assert attempt.queue_time == pytest.approx(0.5, abs=0.02)
    assert space.requests.count("start-conference-stream") == 1
