"""Starts that the Space carries out although it answers 503, 429 or 408, and what later attempts conclude from that."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import Attempt, AuthenticationError, BulkStatus, Clock, RetryPolicy, StreamsClient
from signalwire_streams.fleet import Fleet
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import PATIENCE, all_results, on_calls, on_conferences, until

STARTED_ALREADY = [BulkStatus.ALREADY_STARTED] * 3


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3, duplicate_names="http-error") as running:
        yield running


def refuse_and_execute(space: SimulatedSpace, status: int = 503, retry_after: float = 40) -> None:
    """Answer the next three starts with a refusal, and carry them out."""
    space.faults.add("status", on="start", executed=True, times=3, status=status, body="api", retry_after=retry_after)


@pytest.fixture
async def hand_over(
    space: SimulatedSpace, workers: Workers, client_for: Callable[..., StreamsClient]
) -> Callable[..., Awaitable[None]]:
    """Run a worker until it waits for the retries of three starts, then stop it."""

    async def work(**options: Any) -> None:
        attempts: list[Attempt] = []

        async def are_refused() -> bool:
            return len(attempts) == 3

        worker = workers(client_for(space, clock=Clock(), on_attempt=attempts.append), **options)
        await until(are_refused)
        worker.stop()
        await workers.end(worker)

    return work


@pytest.mark.parametrize("status", [503, 429, 408])
@pytest.mark.parametrize("kind", ["conference", "call"])
async def test_start_temporarily_rejected_and_handed_back_is_already_started(
    space: SimulatedSpace,
    fleet: Fleet,
    workers: Workers,
    hand_over: Callable[[], Awaitable[None]],
    status: int,
    kind: str,
) -> None:
    """A worker that ends while it waits for its retry hands the start back; the next worker learns that it runs."""
    refuse_and_execute(space, status)
    requests = on_conferences(space.conference_sids) if kind == "conference" else on_calls(space.call_sids)
    run = await fleet.submit(requests)
    await hand_over()
    assert (await fleet.status(run)).counts == {"pending": 3}
    workers()
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == STARTED_ALREADY
    assert len(space.streams.active()) == len(space.streams) == 3


async def test_second_handover_keeps_the_first_rejection(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, hand_over: Callable[[], Awaitable[None]]
) -> None:
    """A start that is handed over twice is found running by the third worker."""
    refuse_and_execute(space)
    run = await fleet.submit(on_conferences(space.conference_sids))
    await hand_over()
    space.faults.add("status", on="start", status=429, body="api", retry_after=40)
    await hand_over()
    space.faults.clear()
    workers()

    assert [outcome.status for outcome in await all_results(fleet, run)] == STARTED_ALREADY


async def test_resumed_run_knows_of_rejections_in_the_first(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client_for: Callable[..., StreamsClient]
) -> None:
    """A start that ended as not attempted after a 503 is already started in the resumed run, and can be stopped."""
    refuse_and_execute(space)
    worker = workers(client_for(space, retry=RetryPolicy(max_attempts=1)))
    run = await fleet.submit(on_conferences(space.conference_sids))
    outcomes = await all_results(fleet, run)
    assert [outcome.status for outcome in outcomes] == [BulkStatus.NOT_ATTEMPTED] * 3
    await workers.end(worker)
    workers()

    resumed = await fleet.resume(run)

    assert resumed is not None
    assert [outcome.status for outcome in await all_results(fleet, resumed)] == STARTED_ALREADY
    report = await fleet.stop_streams(resumed, workers.client).report()
    assert report.counts == {BulkStatus.STOPPED: 3}
    assert space.streams.active() == []


@pytest.mark.parametrize("how", ["cancelled", "resumed"])
async def test_cancelled_run_keeps_rejections(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, hand_over: Callable[[], Awaitable[None]], how: str
) -> None:
    """A run that is cancelled after the handover stops what may run, or tells its resumed run about it."""
    refuse_and_execute(space)
    run = await fleet.submit(on_conferences(space.conference_sids))
    await hand_over()
    assert (await fleet.cancel(run)).counts == {"not_attempted": 3}

    if how == "cancelled":
        report = await fleet.stop_streams(run, workers.client).report()
        assert report.counts == {BulkStatus.STOPPED: 3}
        assert space.streams.active() == []
    else:
        resumed = await fleet.resume(run)
        assert resumed is not None
        workers()
        async with asyncio.timeout(PATIENCE):
            assert [outcome.status for outcome in await all_results(fleet, resumed)] == STARTED_ALREADY


async def test_rejection_with_a_name_of_the_caller_is_rejected(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, hand_over: Callable[[], Awaitable[None]]
) -> None:
    """A name that the caller chose may be another stream's, so its duplicate is no proof."""
    refuse_and_execute(space)
    run = await fleet.submit(on_conferences(space.conference_sids, name="chosen"))
    await hand_over()
    workers()

    assert [outcome.status for outcome in await all_results(fleet, run)] == [BulkStatus.REJECTED] * 3


async def test_rejection_before_a_denial_is_already_started(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    """A worker whose token is rejected after a 503 leaves what it learned to the next worker."""
    refuse_and_execute(space, retry_after=0)
    space.faults.add("status", on="start", status=401, body="api")
    run = await fleet.submit(on_calls(space.call_sids))
    denied = workers.running.pop(workers())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(AuthenticationError):
            await denied
    space.faults.clear()
    workers()

    assert [outcome.status for outcome in await all_results(fleet, run)] == STARTED_ALREADY
    assert len(space.streams) == 3


async def test_rejection_without_the_secrets_is_unknown(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, hand_over: Callable[..., Awaitable[None]]
) -> None:
    """A worker that lacks the secrets of a start that may be running does not report it as rejected."""
    refuse_and_execute(space)
    requests = on_conferences(space.conference_sids, authorization_bearer_token="hidden")
    run = await fleet.submit(requests, redact_secrets=True)
    await hand_over(secrets=lambda planned: evolve(planned.request, authorization_bearer_token="hidden"))
    workers()

    assert [outcome.status for outcome in await all_results(fleet, run)] == [BulkStatus.UNKNOWN] * 3
    report = await fleet.stop_streams(run, workers.client).report()
    assert report.counts == {BulkStatus.STOPPED: 3}


@pytest.mark.parametrize("deliveries", [1, 2])
async def test_stop_streams_stops_start_rejected_temporarily_and_then_permanently(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, hand_over: Callable[[], Awaitable[None]], deliveries: int
) -> None:
    """The rejection of the second attempt does not undo the first, by the same worker or by another."""
    refuse_and_execute(space, retry_after=40 if deliveries == 2 else 0)
    if deliveries == 1:
        space.faults.add("status", on="start", status=400, body="api")
    run = await fleet.submit(on_calls(space.call_sids))
    if deliveries == 2:
        await hand_over()
        space.faults.add("status", on="start", status=400, body="api")
    workers()
    assert [outcome.status for outcome in await all_results(fleet, run)] == [BulkStatus.REJECTED] * 3
    assert len(space.streams.active()) == 3

    report = await fleet.stop_streams(run, workers.client).report()

    assert report.counts == {BulkStatus.STOPPED: 3}
    assert space.streams.active() == []
