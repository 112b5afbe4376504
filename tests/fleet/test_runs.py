"""Runs from submit to results, with workers in this process."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from docket import Docket

from signalwire_streams import (
    AuthenticationError,
    BulkStatus,
    ClientStateError,
    Clock,
    ConferenceStream,
    FleetError,
    InvalidRequestError,
    NotFoundError,
    PlannedRequest,
    Priority,
    RateLimit,
    RunCancelledError,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams.fleet import Fleet, FleetWorker, WorkerStatus, stop_on_signals
from signalwire_streams.fleet._fleet import Submission
from signalwire_streams.fleet._leases import Leases
from signalwire_streams.fleet._redis import Connection
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import PATIENCE, URL, all_results, keys_of, on_calls, on_conferences, redis_of, set_marks, until


async def test_run_starts_every_item_once(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    workers()
    workers()
    requests: list[StartConferenceStream | StartCallStream] = [
        *on_conferences(space.conference_sids),
        *on_calls(space.call_sids),
    ]

    run = await fleet.submit(requests, run_id="nightly")
    outcomes = await all_results(fleet, run)

    assert run == "nightly"
    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 6
    assert [outcome.item.target for outcome in outcomes] == [request.target for request in requests]
    assert [outcome.stream.name for outcome in outcomes if outcome.stream] == [
        f"sws-nightly-{request.target}" for request in requests
    ]
    assert {stream.sid for stream in space.streams} == {outcome.stream.sid for outcome in outcomes if outcome.stream}
    assert all(outcome.attempts == 1 and outcome.duration >= 0 for outcome in outcomes)


async def test_results_can_be_read_again_by_another_fleet(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    first = await all_results(fleet, run)

    async with Fleet(fleet.url, space=space.base_url, project=space.project) as elsewhere:
        second = await all_results(elsewhere, run)
        status = await elsewhere.status(run)

    assert second == first
    assert status.counts == {"started": 3}
    assert status.is_finished
    assert status.fully_submitted
    assert (status.planned, status.attempts, status.errors, status.cancelled) == (3, 3, {}, None)


async def test_results_arrive_during_the_run(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    asking = asyncio.create_task(all_results(fleet, run))
    await asyncio.sleep(0)

    workers()

    assert len(await asking) == 3


async def test_submit_accepts_any_iterable_of_any_length(fleet: Fleet, workers: Workers, space: SimulatedSpace) -> None:
    async def trickle() -> AsyncIterator[StartConferenceStream]:
        for number in range(60):
            yield StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, name=f"s{number}")

    workers()
    run = await fleet.submit(trickle())

    outcomes = await all_results(fleet, run)
    assert [outcome.item.name for outcome in outcomes] == [f"s{number}" for number in range(60)]
    assert len(space.streams.active()) == 60


async def test_results_cache_few_batches(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signalwire_streams.fleet._items._CACHED_BATCHES", 1)
    monkeypatch.setattr("signalwire_streams.fleet._fleet._BATCHES_AT_ONCE", 1)
    workers()
    sid = space.conference_sids[0]
    requests = [StartConferenceStream(conference_sid=sid, url=URL, name=f"s{number}") for number in range(60)]

    run = await fleet.submit(requests)

    assert [outcome.item for outcome in await all_results(fleet, run)] == requests


async def test_results_wait_for_outcomes_that_come_late(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signalwire_streams.fleet._items._BLOCK", 1)
    requests = on_conferences(space.conference_sids)
    run = await fleet.submit(requests)
    reading = asyncio.create_task(all_results(fleet, run))
    done, _ = await asyncio.wait({reading}, timeout=0.1)  # no outcome comes
    assert not done
    workers()

    assert [outcome.item.target for outcome in await reading] == [request.target for request in requests]


async def test_submit_that_is_repeated_or_rejected_leaves_no_requests_behind(
    space: SimulatedSpace, fleet: Fleet
) -> None:
    requests = on_conferences(space.conference_sids)
    for _ in range(2):
        await fleet.submit(requests, run_id="nightly")
    with pytest.raises(InvalidRequestError, match="already exists"):
        await fleet.submit(requests[:1], run_id="nightly")

    assert len(await redis_of(fleet).keys(f"{fleet._keys.run('nightly')}:*:requests:*")) == 1


async def test_repeated_submit_starts_nothing_twice(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, run_id="nightly")
    await fleet.submit(requests, run_id="nightly")
    workers()
    await all_results(fleet, "nightly")
    await fleet.submit(requests, run_id="nightly")

    assert len(await all_results(fleet, "nightly")) == 3
    assert len(space.streams) == 3


async def test_killed_submit_is_completed_by_the_next(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, run_id="nightly")
    await redis_of(fleet).hdel(fleet._keys.run("nightly"), "queued")
    assert not (await fleet.status("nightly")).fully_submitted

    await fleet.submit(requests, run_id="nightly")
    workers()

    assert len(await all_results(fleet, "nightly")) == 3
    assert (await fleet.status("nightly")).fully_submitted
    assert len(space.streams) == 3


async def test_submit_of_other_requests_under_taken_name_is_rejected(space: SimulatedSpace, fleet: Fleet) -> None:
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, run_id="nightly")

    with pytest.raises(InvalidRequestError, match="choose another id"):
        await fleet.submit(requests[:2], run_id="nightly")

    assert (await fleet.status("nightly")).planned == 3


async def test_submit_with_invalid_item_leaves_nothing_in_redis(space: SimulatedSpace, fleet: Fleet) -> None:
    def wrong() -> Iterator[Any]:
        yield from (StartConferenceStream(conference_sid=f"c{number}", url=URL) for number in range(30))
        yield "no request"

    with pytest.raises(InvalidRequestError, match="an item is a str"):
        await fleet.submit(wrong(), run_id="nightly")
    with pytest.raises(InvalidRequestError, match="appears twice"):
        await fleet.submit(on_conferences(["a", "a"]), run_id="nightly")

    with pytest.raises(InvalidRequestError, match="no run 'nightly'"):
        await fleet.status("nightly")
    assert await redis_of(fleet).keys(f"{fleet._keys.prefix}:our:*") == []


async def test_rejection_keeps_its_error(fleet: Fleet, workers: Workers) -> None:
    workers()
    run = await fleet.submit(on_conferences(["nowhere"]))

    [outcome] = await all_results(fleet, run)

    assert outcome.status is BulkStatus.REJECTED
    assert isinstance(outcome.error, NotFoundError)
    assert outcome.error.status == 404
    assert (await fleet.status(run)).errors == {"NotFoundError 20404": 1}


@pytest.mark.parametrize("heard_at_last", [True, False])
async def test_submit_whose_response_is_lost_loses_no_item(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch, heard_at_last: bool
) -> None:
    create = Submission._create

    async def unheard(self: Submission, digest: str) -> str:
        await create(self, digest)
        if not heard_at_last:
            raise FleetError("Redis can't be used")
        return await create(self, digest)

    monkeypatch.setattr(Submission, "_create", unheard)
    requests = on_conferences(space.conference_sids)
    if not heard_at_last:
        with pytest.raises(FleetError):
            await fleet.submit(requests, run_id="nightly")
        monkeypatch.setattr(Submission, "_create", create)
    run = await fleet.submit(requests, run_id="nightly")
    workers()

    assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
    assert len(space.streams) == 3


async def test_denied_worker_leaves_item_in_doubt(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids[:1]))
    await set_marks(fleet, run, {0: "i:dead"})
    async with StreamsClient(base_url=space.base_url, project=space.project, token="wrong") as stranger:
        refused = workers(stranger)
        with pytest.raises(StreamOutcomeUnknownError, match="401"):
            await workers.running.pop(refused)
    assert (await fleet.status(run)).counts == {"in_doubt": 1}


async def test_denied_worker_ends_and_its_run_continues(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    sid = space.conference_sids[0]
    requests = [StartConferenceStream(conference_sid=sid, url=URL, name=f"s{number}") for number in range(100)]
    run = await fleet.submit(requests)
    async with StreamsClient(base_url=space.base_url, project=space.project, token="wrong") as stranger:
        refused = workers(stranger, concurrency=1)
        with pytest.raises(AuthenticationError):
            await workers.running.pop(refused)
    assert (await fleet.status(run)).counts == {"pending": 100}
    assert len(space.streams) == 0

    workers()
    outcomes = await all_results(fleet, run)
    assert {outcome.status for outcome in outcomes} == {BulkStatus.STARTED}
    assert len(space.streams) == 100


async def test_cancelled_run_finishes_without_workers(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))

    status = await fleet.cancel(run)
    assert status.counts == {"not_attempted": 3}
    assert status.is_finished
    assert (await fleet.cancel(run)).counts == {"not_attempted": 3}

    workers()
    other = await fleet.submit(on_calls(space.call_sids))
    await all_results(fleet, other)
    outcomes = await all_results(fleet, run)
    assert [outcome.status for outcome in outcomes] == [BulkStatus.NOT_ATTEMPTED] * 3
    assert all(isinstance(outcome.error, RunCancelledError) for outcome in outcomes)
    assert len(space.streams) == 3


async def test_cancel_skips_expired_batches(space: SimulatedSpace, fleet: Fleet) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await redis_of(fleet).delete((await keys_of(fleet, run)).requests(0))

    assert (await fleet.cancel(run)).counts == {"pending": 3}


async def test_stop_streams_stops_all_once(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    workers()
    run = await fleet.submit([*on_conferences(space.conference_sids), *on_calls(space.call_sids)])
    first, *_ = await all_results(fleet, run)
    assert isinstance(first.stream, ConferenceStream)
    await client.conferences.stop_stream(first.stream.conference_sid, first.stream)

    report = await fleet.stop_streams(run, client).report()
    again = await fleet.stop_streams(run, client).report()

    assert report.counts == {BulkStatus.STOPPED: 6}
    assert again.total == 0
    assert space.streams.active() == []
    assert (await fleet.status(run)).rolled_back == 6


async def test_failed_stop_is_tried_again_by_next_stop_streams(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await all_results(fleet, run)
    space.faults.add("status", on="stop", status=400, times=1)

    first = await fleet.stop_streams(run, client, concurrency=1).report()
    second = await fleet.stop_streams(run, client).report()

    assert first.counts == {BulkStatus.STOPPED: 2, BulkStatus.REJECTED: 1}
    assert second.counts == {BulkStatus.STOPPED: 1}


async def test_stop_streams_rejects_client_of_another_project(space: SimulatedSpace, fleet: Fleet) -> None:
    async with StreamsClient(base_url=space.base_url, project="another", token="t") as stranger:
        with pytest.raises(InvalidRequestError, match="another Space or project"):
            fleet.stop_streams("nightly", stranger)


class TestSecrets:
    """Secrets of requests, which Redis does not keep."""

    async def test_submit_rejects_secrets_by_default(self, fleet: Fleet) -> None:
        for fields in (
            {"parameters": {"key": "hidden"}},
            {"authorization_bearer_token": "hidden"},
            {"status_callback": "https://example.com/?key=hidden"},
        ):
            with pytest.raises(InvalidRequestError, match="redact_secrets=True") as caught:
                await fleet.submit(on_conferences(["c"], **fields))
            assert "hidden" not in str(caught.value)

    async def test_worker_puts_secrets_back(self, space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
        def secrets(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
            assert planned.parameters == ("key",)
            return StartConferenceStream(
                conference_sid=planned.request.target, url=URL, name=planned.request.name, parameters={"key": "hidden"}
            )

        workers(secrets=secrets)
        requests = on_conferences(space.conference_sids, parameters={"key": "hidden"})
        run = await fleet.submit(requests, redact_secrets=True)

        outcomes = await all_results(fleet, run)
        assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 3
        assert [outcome.item.parameters for outcome in outcomes] == [{}] * 3
        assert [stream.parameters for stream in space.streams] == [{"key": "hidden"}] * 3

    async def test_item_without_its_secrets_is_rejected(
        self, space: SimulatedSpace, fleet: Fleet, workers: Workers
    ) -> None:
        workers()
        requests = on_conferences(space.conference_sids[:1], parameters={"key": "hidden"})
        run = await fleet.submit([*requests, *on_calls(space.call_sids[:1])], redact_secrets=True)

        first, second = await all_results(fleet, run)
        assert first.status is BulkStatus.REJECTED
        assert "pass secrets= to the workers" in str(first.error)
        assert second.status is BulkStatus.STARTED

    @pytest.mark.parametrize("returned", [None, {"parameters": {"key": "hidden"}}, "hidden"])
    async def test_secrets_that_are_no_request_are_rejected(
        self, space: SimulatedSpace, fleet: Fleet, workers: Workers, returned: Any
    ) -> None:
        """Rather than repeated for ever."""
        workers(secrets=lambda _: returned)
        requests = on_conferences(space.conference_sids[:1], parameters={"key": "hidden"})
        run = await fleet.submit(requests, redact_secrets=True)

        async with asyncio.timeout(PATIENCE):
            [outcome] = await all_results(fleet, run)
        assert outcome.status is BulkStatus.REJECTED
        assert (
            f"secrets= returned {type(returned).__name__} for {space.conference_sids[0]}: let it return the Start"
            in (str(outcome.error))
        )

    async def test_secrets_of_another_request_are_rejected(
        self, space: SimulatedSpace, fleet: Fleet, workers: Workers
    ) -> None:
        workers(secrets=lambda _: StartConferenceStream(conference_sid="other", url=URL))
        requests = on_conferences(space.conference_sids[:1], parameters={"key": "hidden"})
        run = await fleet.submit(requests, redact_secrets=True)

        [outcome] = await all_results(fleet, run)
        assert outcome.status is BulkStatus.REJECTED
        assert "a different request" in str(outcome.error)


async def test_workers_reports_active_workers(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    first, second = workers(name="first", lease_seconds=1.0), workers(name="second", lease_seconds=1.0)
    run = await fleet.submit(on_conferences(space.conference_sids))
    await all_results(fleet, run)

    async def has_told() -> bool:
        return sum(worker.completed for worker in await fleet.workers()) == 3

    await until(has_told)
    status = await fleet.status(run)
    assert [worker.name for worker in status.workers] == ["first", "second"]
    assert status.rate > 0
    assert all(worker.pid and worker.host and not worker.draining for worker in status.workers)

    await workers.end(first)
    assert [worker.name for worker in await fleet.workers()] == ["second"]
    await workers.end(second)
    await redis_of(fleet).sadd(fleet._keys.workers, "vanished")
    assert await fleet.workers() == ()
    assert await fleet.workers() == ()


async def test_expired_run_is_skipped_by_workers_and_unknown_to_fleet(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await redis_of(fleet).delete(fleet._keys.run(run))
    workers()
    other = await fleet.submit(on_calls(space.call_sids))

    assert len(await all_results(fleet, other)) == 3
    with pytest.raises(InvalidRequestError, match="there is no run"):
        await all_results(fleet, run)
    assert len(space.streams) == 3


async def test_results_of_partly_expired_run_raise(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await all_results(fleet, run)
    waiting = await fleet.submit(on_calls(["nowhere"]), run_id="pending")
    await all_results(fleet, waiting)
    for name in (run, waiting):
        plans = await redis_of(fleet).keys(f"{fleet._keys.run(name)}*:requests:*")
        await redis_of(fleet).delete(*plans)

    await fleet.cancel(run)
    with pytest.raises(InvalidRequestError, match="older than its retention period"):
        await all_results(fleet, run)


async def test_item_that_waits_for_rate_limiter_is_not_claimed(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    class Held(LocalRateLimiter):
        """Grants one start at once, and the others once it is opened."""

        waiting = 0
        opened = asyncio.Event()

        async def acquire(self, priority: Priority, patience: float) -> float:
            self.waiting += 1
            if self.waiting > 1:
                await self.opened.wait()
            return 0.0

    limiter = Held(TokenBucket(RateLimit()), Clock())
    async with StreamsClient(
        base_url=space.base_url, project=space.project, token=space.token, rate_limiter=limiter
    ) as client:
        run = await fleet.submit(on_calls(space.call_sids))
        worker = workers(client)

        async def one_is_over() -> bool:
            return limiter.waiting == 3 and (await fleet.status(run)).completed == 1

        await until(one_is_over)
        assert (await fleet.status(run)).counts == {"started": 1, "pending": 2}
        limiter.opened.set()
        assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
        await workers.end(worker)


async def test_worker_ends_if_redis_rejects_renewal(
    fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: Leases) -> None:
        raise FleetError("Redis rejects this user or password: no permission")

    monkeypatch.setattr(Leases, "_renew", refuse)
    worker = workers()
    with pytest.raises(FleetError, match="no permission"):
        await workers.running.pop(worker)


async def test_failing_batch_is_logged_and_retried(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]

    def give(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        if broken:
            broken.clear()
            raise LookupError("no such secret yet")
        return evolve(planned.request, parameters={"key": "hidden"})

    run = await fleet.submit(on_conferences(space.conference_sids, parameters={"key": "x"}), redact_secrets=True)
    workers(secrets=give)
    assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
    assert f"batch 0 of {run} failed and will be retried" in caplog.text


async def test_batch_without_requests_is_finished(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    plans = await redis_of(fleet).keys(f"{fleet._keys.run(run)}*:requests:*")
    await redis_of(fleet).delete(*plans)
    worker = workers()
    other = await fleet.submit(on_calls(space.call_sids))
    await all_results(fleet, other)

    await workers.end(worker)
    assert (await fleet.status(run)).counts == {"pending": 3}


async def test_unnamed_item_in_doubt_cannot_be_stopped(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    requests = [StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, unnamed=True)] * 2
    run = await fleet.submit(requests)
    await set_marks(fleet, run, {0: "i:dead", 1: "i:dead"})

    report = await fleet.stop_streams(run, client).report()

    assert report.counts == {BulkStatus.REJECTED: 2}
    assert "neither sid nor name" in str(report.failures[0].error)


async def test_stop_on_signals_without_signal_support(client: StreamsClient, url: str) -> None:
    async def work() -> None:
        worker = FleetWorker(url, client)
        with stop_on_signals(worker):
            worker.stop()

    await asyncio.to_thread(asyncio.run, work())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_signal_stops_worker_and_calls_hook(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    heard: asyncio.Queue[signal.Signals] = asyncio.Queue()
    with stop_on_signals(worker, heard.put_nowait):
        signal.raise_signal(signal.SIGTERM)
        assert await heard.get() is signal.SIGTERM

    assert worker._stop.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_signal_stops_worker_without_hook(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    with stop_on_signals(worker):
        signal.raise_signal(signal.SIGINT)
        await worker._stop.wait()


async def test_worker_rate_covers_last_seconds(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    now = asyncio.get_running_loop().time()
    worker._recent.extend([(now - 60, 1_000), (now, 50)])

    assert worker._rate() == 10


async def test_worker_raises_failure_of_docket(fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("docket.Worker.run_forever", broken)
    worker = workers()
    with pytest.raises(RuntimeError, match="broken"):
        await workers.running.pop(worker)


async def test_invalid_arguments_are_rejected(space: SimulatedSpace, url: str) -> None:
    fleet = Fleet(url, space=space.base_url, project=space.project)
    with pytest.raises(ClientStateError, match="async with"):
        await fleet.submit([])
    for wrong in ("secret@host", "http://host", "redis://[secret", "redis://:secret@host?protocol=4", None):
        with pytest.raises(InvalidRequestError, match="URL is invalid") as caught:
            Fleet(wrong, space="example", project="p")  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match="can't read Redis's protocol 3: omit protocol="):
        Fleet("redis://:secret@host?protocol=3", space="example", project="p")
    assert Fleet("redis://host?protocol=2", space="example", project="p").url == "redis://host?protocol=2"
    with pytest.raises(InvalidRequestError, match="retention"):
        Fleet(url, space="example", project="p", retention=0)
    async with StreamsClient(space="example", project="p", token="t") as client:
        for name in ("", "two\nlines", "\ud800", 7):
            with pytest.raises(InvalidRequestError, match="name must be printable text"):
                FleetWorker(url, client, name=name)  # type: ignore[arg-type]

        async def asynchronous(_: object) -> Any:
            raise AssertionError

        for secrets in ({"key": "hidden"}, asynchronous):
            with pytest.raises(InvalidRequestError, match="secrets must be a function, not an async one") as caught:
                FleetWorker(url, client, secrets=secrets)  # type: ignore[arg-type]
            assert "hidden" not in str(caught.value)
        with pytest.raises(InvalidRequestError, match="client must be a StreamsClient, not str"):
            FleetWorker(url, "example")  # type: ignore[arg-type]
    async with fleet:
        with pytest.raises(ClientStateError, match="the fleet is open already: use it, or create another Fleet"):
            await fleet.__aenter__()
        for wrong_name in ("", "a b", "a:b", 7):
            with pytest.raises(InvalidRequestError, match="a run's id"):
                await fleet.submit([], run_id=wrong_name)  # type: ignore[arg-type]


async def test_worker_runs_once(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A second run would take the connection of the first one, and after its end it would do nothing, silently."""
    worker = workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    assert len(await all_results(fleet, run)) == 3
    for end in (False, True):
        if end:
            await workers.end(worker)
        with pytest.raises(ClientStateError, match="this worker was run before: create a new FleetWorker"):
            await worker.run()


@pytest.mark.parametrize(("given", "kept"), [(0.01, 1.0), (1.0, 1.0), (1.5, 1.5)])
def test_retention_is_a_second_at_least(space: SimulatedSpace, url: str, given: float, kept: float) -> None:
    """Redis rejects a key that would expire at once."""
    assert Fleet(url, space=space.base_url, project=space.project, retention=given).retention == kept


@pytest.mark.parametrize(("given", "lasts"), [(0.01, 0.05), (0.05, 0.05), (0.06, 0.06)])
async def test_lease_lasts_a_twentieth_of_a_second_at_least(
    client: StreamsClient, url: str, given: float, lasts: float
) -> None:
    assert FleetWorker(url, client, lease_seconds=given).lease_seconds == lasts


@pytest.mark.parametrize(
    ("concurrency", "requests", "batches"),
    [(200, None, 8), (24, None, 1), (50, None, 2), (200, 13_800, 8), (200, 100, 3), (200, 1, 1)],
)
async def test_worker_has_as_many_batches_as_the_shared_limit_takes_in_ten_seconds(
    space: SimulatedSpace, url: str, concurrency: int, requests: int | None, batches: int
) -> None:
    """One at least, of 25 starts each."""
    limiter = None
    if requests is not None:
        limiter = RedisRateLimiter("redis://localhost", rate_limit=RateLimit(requests=requests, utilization=1.0))
    async with StreamsClient(base_url=space.base_url, project="p", token="t", rate_limiter=limiter) as client:
        worker = FleetWorker(url, client, concurrency=concurrency, name="w", lease_seconds=7.0)
        docket_worker = worker._docket_worker(Docket(name="fleet", url=url))
    assert docket_worker.concurrency == batches
    assert (docket_worker.name, docket_worker.redelivery_timeout) == ("w", timedelta(seconds=7))
    assert docket_worker.minimum_check_interval == timedelta(milliseconds=20)
    assert docket_worker.reconnection_delay == timedelta(seconds=1)


@pytest.mark.parametrize(("lease", "kept"), [(7.4, 7), (0.1, 1)])
async def test_heartbeat_reports_the_worker_for_a_lease(
    space: SimulatedSpace, url: str, lease: float, kept: int
) -> None:
    """Redis keeps it for whole seconds, one at least."""
    sent: list[tuple[Any, ...]] = []

    class Pipe:
        def set(self, *values: Any, ex: int) -> None:
            sent.append((*values, ex))

        def sadd(self, *values: Any) -> None:
            sent.append(values)

    limiter = RedisRateLimiter("redis://localhost", rate_limit=RateLimit())
    async with StreamsClient(base_url=space.base_url, project="p", token="t", rate_limiter=limiter) as client:
        worker = FleetWorker(url, client, name="w", lease_seconds=lease)
        worker._leases = Leases(Connection(None, 0.0), duration=lease, heartbeat=worker._heartbeat)
        worker._recent.append((asyncio.get_running_loop().time(), 7))
        worker._completed = 3
        worker._heartbeat(Pipe())

    [(key, text, seconds), member] = sent
    assert (key, seconds) == (worker._keys.worker("w"), kept)
    assert member == (worker._keys.workers, "w")
    status = WorkerStatus.from_json(text)
    assert (status.name, status.host, status.pid) == ("w", socket.gethostname(), os.getpid())
    assert (status.active_batches, status.completed, status.draining) == (0, 3, False)
    assert (status.rate, status.limit) == (1.4, 1205.5)


async def test_reprs_of_a_fleet_and_its_worker(client: StreamsClient, url: str) -> None:
    fleet = Fleet(url, space="example", project="p", retention=60.0)
    assert repr(fleet) == "Fleet(space='example', project='p', retention=60.0)"
    assert repr(FleetWorker(url, client, name="w", concurrency=75)) == "FleetWorker(name='w', concurrency=75)"


async def test_empty_run_is_finished(fleet: Fleet) -> None:
    run = await fleet.submit([])

    assert await all_results(fleet, run) == []
    assert (await fleet.status(run)).is_finished


async def test_failing_rate_limiter_requeues_batch(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    tries = []

    async def middleware(request: Any, send: Any) -> Any:
        tries.append(request)
        if len(tries) == 1:
            raise RuntimeError("broken")
        return await send(request)

    async with StreamsClient(
        base_url=space.base_url,
        project=space.project,
        token=space.token,
        middlewares=[middleware],
        clock=Clock.fake(),
    ) as client:
        workers(client)
        run = await fleet.submit(on_conferences(space.conference_sids))
        outcomes = await all_results(fleet, run)
        await workers.end_all()

    assert len(outcomes) == 3
    assert len(space.streams.active()) >= 2
