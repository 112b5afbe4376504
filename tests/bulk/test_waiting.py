"""How long an item of a bulk run pauses before its next turn, and when it is given up."""

import asyncio
from typing import Any

import pytest

from signalwire_streams import BulkRun, BulkStatus, CircuitOpenError, Clock, ConferenceStream, RateLimitedError
from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._runner import FixedConcurrency, WorkerPool
from tests.fake_operation import FakeOperation

STREAM = ConferenceStream(conference_sid="c", sid="s")


class Turns:
    """An operation that the client turns away a number of times, and the pauses that follow."""

    def __init__(self, *errors: CircuitOpenError | RateLimitedError) -> None:
        self.errors = list(errors)
        self.pauses: list[float] = []

    async def send(self, item: str, state: CallState) -> ConferenceStream:
        state.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return STREAM

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def run(self, random: float) -> BulkRun[str]:
        clock = Clock(now=lambda: 1_000.0 + sum(self.pauses), sleep=self.sleep, random=lambda: random)
        return BulkRun(WorkerPool(["item"], FakeOperation(self.send), limit=FixedConcurrency(1), clock=clock))


@pytest.mark.parametrize(("random", "pauses"), [(0.0, [5.0, 20.0, 0.05]), (0.5, [7.5, 30.0, 0.075])])
async def test_pause_is_between_retry_after_and_twice_that(random: float, pauses: list[float]) -> None:
    """Never shorter than asked, and spread so that not all items come back at once."""
    turns = Turns(
        CircuitOpenError("open", retry_after=5.0),
        RateLimitedError("busy", status=429, retry_after=20.0),
        CircuitOpenError("open"),
    )
    report = await turns.run(random).report()

    assert turns.pauses == pytest.approx(pauses)
    assert report.counts == {BulkStatus.STARTED: 1}
    assert report.seconds == pytest.approx(sum(pauses))
    assert report.attempts == 4


@pytest.mark.parametrize(
    ("error", "pause", "tries"),
    [
        (CircuitOpenError("open", retry_after=5.0), 5.0, 13),
        (CircuitOpenError("open", retry_after=61.0), 61.0, 1),
        (RateLimitedError("busy", status=429, retry_after=20.0), 20.0, 16),
        (RateLimitedError("busy", status=429, retry_after=300.0), 300.0, 2),
        (RateLimitedError("busy", status=429, retry_after=301.0), 301.0, 1),
    ],
)
async def test_items_wait_a_minute_for_the_breaker_and_five_for_the_rate_limit(
    error: Any, pause: float, tries: int
) -> None:
    turns = Turns(*[error] * 100)
    report = await turns.run(0.0).report()

    assert turns.pauses == [pause] * (tries - 1)
    assert report.counts == {BulkStatus.NOT_ATTEMPTED: 1}
    assert report.attempts == tries
