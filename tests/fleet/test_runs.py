"""Runs that are shared, from their submit to their end."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from attrs import evolve

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
from signalwire_streams.fleet import Fleet, FleetWorker, stop_on_signals
from signalwire_streams.fleet._batches import Leases
from signalwire_streams.fleet._submission import Submission
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import URL, all_results, keys_of, on_calls, on_conferences, redis_of, set_marks, until


async def test_every_start_is_made_once(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A run of conferences and calls is started by whoever works, each once, with the outcomes of a bulk run."""
    workers()
    workers()
    requests: list[StartConferenceStream | StartCallStream] = [
        *on_conferences(space.conference_sids),
        *on_calls(space.call_sids),
    ]

    run = await fleet.submit(requests, name="nightly")
    outcomes = await all_results(fleet, run)

    assert run == "nightly"
    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 6
    assert [outcome.item.target for outcome in outcomes] == [request.target for request in requests]
    assert [outcome.stream.name for outcome in outcomes if outcome.stream] == [
        f"sws-nightly-{request.target}" for request in requests
    ]
    assert {stream.sid for stream in space.streams} == {outcome.stream.sid for outcome in outcomes if outcome.stream}
    assert all(outcome.attempts == 1 and outcome.duration >= 0 for outcome in outcomes)


async def test_results_can_be_asked_again_elsewhere(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """What became of a run can be asked again, and by who did not submit it."""
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


async def test_results_come_while_the_run_goes_on(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """Who asks before anything was done gets each outcome when it is there."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    asking = asyncio.create_task(all_results(fleet, run))
    await asyncio.sleep(0)

    workers()

    assert len(await asking) == 3


async def test_more_than_one_batch_of_any_kind_of_input(fleet: Fleet, workers: Workers, space: SimulatedSpace) -> None:
    """An input that comes by and by is taken as well as a list, however many batches it makes."""

    async def trickle() -> AsyncIterator[StartConferenceStream]:
        for number in range(60):
            yield StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, name=f"s{number}")

    workers()
    run = await fleet.submit(trickle())

    outcomes = await all_results(fleet, run)
    assert [outcome.item.name for outcome in outcomes] == [f"s{number}" for number in range(60)]
    assert len(space.streams.active()) == 60


async def test_plans_of_long_runs_are_not_all_kept(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows a long run keeps the requests of a few batches only."""
    monkeypatch.setattr("signalwire_streams.fleet._runs._CACHED_BATCHES", 1)
    monkeypatch.setattr("signalwire_streams.fleet._submission._BATCHES_AT_ONCE", 1)
    workers()
    sid = space.conference_sids[0]
    requests = [StartConferenceStream(conference_sid=sid, url=URL, name=f"s{number}") for number in range(60)]

    run = await fleet.submit(requests)

    assert [outcome.item for outcome in await all_results(fleet, run)] == requests


async def test_a_repeated_submit_starts_nothing_twice(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """The same run may be submitted as often as one likes, before and after its end."""
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, name="nightly")
    await fleet.submit(requests, name="nightly")
    workers()
    await all_results(fleet, "nightly")
    await fleet.submit(requests, name="nightly")

    assert len(await all_results(fleet, "nightly")) == 3
    assert len(space.streams) == 3


async def test_a_submit_that_was_killed_is_completed_by_the_next(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    """A run that was written down and not yet handed over is handed over by the same submit again."""
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, name="nightly")
    await redis_of(fleet).hdel(fleet._keys.run("nightly"), "queued")
    assert not (await fleet.status("nightly")).fully_submitted

    await fleet.submit(requests, name="nightly")
    workers()

    assert len(await all_results(fleet, "nightly")) == 3
    assert (await fleet.status("nightly")).fully_submitted
    assert len(space.streams) == 3


async def test_another_run_of_that_name_is_refused(space: SimulatedSpace, fleet: Fleet) -> None:
    """A name stands for one run."""
    requests = on_conferences(space.conference_sids)
    await fleet.submit(requests, name="nightly")

    with pytest.raises(InvalidRequestError, match="choose another name"):
        await fleet.submit(requests[:2], name="nightly")

    assert (await fleet.status("nightly")).planned == 3


async def test_a_bad_item_leaves_nothing_behind(space: SimulatedSpace, fleet: Fleet) -> None:
    """Nothing of a run is started, or kept, where an item can't be: neither a wrong one nor one that comes twice."""

    def wrong() -> Iterator[Any]:
        yield from (StartConferenceStream(conference_sid=f"c{number}", url=URL) for number in range(30))
        yield "no request"

    with pytest.raises(InvalidRequestError, match="an item is a str"):
        await fleet.submit(wrong(), name="nightly")
    with pytest.raises(InvalidRequestError, match="comes twice"):
        await fleet.submit(on_conferences(["a", "a"]), name="nightly")

    with pytest.raises(InvalidRequestError, match="no run 'nightly'"):
        await fleet.status("nightly")
    assert await redis_of(fleet).keys(f"{fleet._keys.prefix}:our:*") == []


async def test_a_refusal_is_told_as_it_was(fleet: Fleet, workers: Workers) -> None:
    """An outcome has the error of its start, with all that it knows."""
    workers()
    run = await fleet.submit(on_conferences(["nowhere"]))

    [outcome] = await all_results(fleet, run)

    assert outcome.status is BulkStatus.REJECTED
    assert isinstance(outcome.error, NotFoundError)
    assert outcome.error.status == 404
    assert (await fleet.status(run)).errors == {"NotFoundError 20404": 1}


@pytest.mark.parametrize("heard_at_last", [True, False])
async def test_a_submit_whose_answer_is_lost_loses_no_start(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch, heard_at_last: bool
) -> None:
    """Redis has taken the run, and the answer to that was lost: asking again, or submitting again, finds all of it."""
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
            await fleet.submit(requests, name="nightly")
        monkeypatch.setattr(Submission, "_create", create)
    run = await fleet.submit(requests, name="nightly")
    workers()

    assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
    assert len(space.streams) == 3


async def test_a_wrong_token_leaves_a_doubtful_start_doubtful(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    """What an earlier worker may have started is no less so since a later one was refused."""
    run = await fleet.submit(on_conferences(space.conference_sids[:1]))
    await set_marks(fleet, run, {0: "i:dead"})
    async with StreamsClient(base_url=space.base_url, project=space.project, token="wrong") as stranger:
        refused = workers(stranger)
        with pytest.raises(StreamOutcomeUnknownError, match="401"):
            await workers.running.pop(refused)
    assert (await fleet.status(run)).counts == {"in_doubt": 1}


async def test_a_wrong_token_ends_its_worker_and_no_run(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A host with a stale token is as good as a dead one: what it had in hand goes to those with a better one."""
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


async def test_a_cancelled_run_ends_without_workers(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """Cancelling tells of all that was not begun; a worker that comes later sends none of it."""
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


async def test_what_redis_has_forgotten_is_passed_over(space: SimulatedSpace, fleet: Fleet) -> None:
    """Where a part of a run's plan is gone, as its time was up, the rest can still be ended."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    await redis_of(fleet).delete((await keys_of(fleet, run)).requests(0))

    assert (await fleet.cancel(run)).counts == {"pending": 3}


async def test_what_a_run_started_is_stopped(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    """Stopping stops all that the run started, counts what has ended meanwhile, and has nothing left to do then."""
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


async def test_a_stream_that_could_not_be_stopped_is_tried_again(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    """Only what was stopped is left out the next time."""
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await all_results(fleet, run)
    space.faults.add("status", on="stop", status=400, times=1)

    first = await fleet.stop_streams(run, client, concurrency=1).report()
    second = await fleet.stop_streams(run, client).report()

    assert first.counts == {BulkStatus.STOPPED: 2, BulkStatus.REJECTED: 1}
    assert second.counts == {BulkStatus.STOPPED: 1}


async def test_a_client_of_another_project_stops_nothing(space: SimulatedSpace, fleet: Fleet) -> None:
    """The client that stops is of the fleet's own project."""
    async with StreamsClient(base_url=space.base_url, project="another", token="t") as stranger:
        with pytest.raises(InvalidRequestError, match="another Space or project"):
            fleet.stop_streams("nightly", stranger)


class TestSecrets:
    """Redis keeps no secrets."""

    async def test_are_refused(self, fleet: Fleet) -> None:
        """A request with a secret is refused, and the sentence says what to do, but not the secret."""
        for fields in (
            {"parameters": {"key": "hidden"}},
            {"authorization_bearer_token": "hidden"},
            {"status_callback": "https://example.com/?key=hidden"},
        ):
            with pytest.raises(InvalidRequestError, match="redact_secrets=True") as caught:
                await fleet.submit(on_conferences(["c"], **fields))
            assert "hidden" not in str(caught.value)

    async def test_are_put_back_by_the_worker(self, space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
        """What was left out is given back where the start is made."""

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

    async def test_that_a_worker_lacks(self, space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
        """A worker without them refuses those starts, and makes the others."""
        workers()
        requests = on_conferences(space.conference_sids[:1], parameters={"key": "hidden"})
        run = await fleet.submit([*requests, *on_calls(space.call_sids[:1])], redact_secrets=True)

        first, second = await all_results(fleet, run)
        assert first.status is BulkStatus.REJECTED
        assert "pass secrets= to the workers" in str(first.error)
        assert second.status is BulkStatus.STARTED

    async def test_of_another_request_are_refused(self, space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
        """What gives the secrets back may not change what is started."""
        workers(secrets=lambda _: StartConferenceStream(conference_sid="other", url=URL))
        requests = on_conferences(space.conference_sids[:1], parameters={"key": "hidden"})
        run = await fleet.submit(requests, redact_secrets=True)

        [outcome] = await all_results(fleet, run)
        assert outcome.status is BulkStatus.REJECTED
        assert "another request" in str(outcome.error)


async def test_workers_are_told_of(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """Who works can be asked, with the rate of the last seconds; who left is not told of, nor who vanished."""
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


async def test_a_run_that_redis_has_forgotten(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """What is older than Redis was told to keep it is not started any more, and can't be asked."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    await redis_of(fleet).delete(fleet._keys.run(run))
    workers()
    other = await fleet.submit(on_calls(space.call_sids))

    assert len(await all_results(fleet, other)) == 3
    with pytest.raises(InvalidRequestError, match="there is no run"):
        await all_results(fleet, run)
    assert len(space.streams) == 3


async def test_a_plan_that_redis_has_forgotten(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A run whose requests are gone can be ended, and says why it can't be told."""
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await all_results(fleet, run)
    waiting = await fleet.submit(on_calls(["nowhere"]), name="pending")
    await all_results(fleet, waiting)
    for name in (run, waiting):
        plans = await redis_of(fleet).keys(f"{fleet._keys.run(name)}*:requests:*")
        await redis_of(fleet).delete(*plans)

    await fleet.cancel(run)
    with pytest.raises(InvalidRequestError, match="older than Redis was told to keep"):
        await all_results(fleet, run)


async def test_what_only_waits_is_not_marked(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A start is marked when it has its turn, so that a worker that dies leaves no doubt about what only waited."""

    class Held(LocalRateLimiter):
        """Gives leave for one start, and then for the others when it is told to."""

        waiting = 0
        opened = asyncio.Event()

        async def acquire(self, lane: Priority, patience: float) -> float:
            self.waiting += 1
            if self.waiting > 1:
                await self.opened.wait()
            return 0.0

    pacer = Held(TokenBucket(RateLimit()), Clock())
    async with StreamsClient(
        base_url=space.base_url, project=space.project, token=space.token, rate_limiter=pacer
    ) as client:
        run = await fleet.submit(on_calls(space.call_sids))
        worker = workers(client)

        async def one_is_over() -> bool:
            return pacer.waiting == 3 and (await fleet.status(run)).completed == 1

        await until(one_is_over)
        assert (await fleet.status(run)).counts == {"started": 1, "pending": 2}
        pacer.opened.set()
        assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
        await workers.end(worker)


async def test_a_worker_that_may_not_renew_ends(
    fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that Redis refuses to let renew its leases ends with that; it would be believed to be dead."""

    async def refuse(_: Leases) -> None:
        raise FleetError("Redis refuses this user or password: no permission")

    monkeypatch.setattr(Leases, "_renew", refuse)
    worker = workers()
    with pytest.raises(FleetError, match="no permission"):
        await workers.running.pop(worker)


async def test_a_batch_that_fails_is_told(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    """What breaks in a caller's own code is logged, and the batch is tried again."""
    broken = [True]

    def give(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        if broken:
            broken.clear()
            raise LookupError("no such secret yet")
        return evolve(planned.request, parameters={"key": "hidden"})

    run = await fleet.submit(on_conferences(space.conference_sids, parameters={"key": "x"}), redact_secrets=True)
    workers(secrets=give)
    assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
    assert f"batch 0 of {run} failed and is retried" in caplog.text


async def test_a_batch_whose_plan_is_gone(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A worker lets a batch be whose requests Redis has forgotten."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    plans = await redis_of(fleet).keys(f"{fleet._keys.run(run)}*:requests:*")
    await redis_of(fleet).delete(*plans)
    worker = workers()
    other = await fleet.submit(on_calls(space.call_sids))
    await all_results(fleet, other)

    await workers.end(worker)
    assert (await fleet.status(run)).counts == {"pending": 3}


async def test_streams_that_can_not_be_named_can_not_be_stopped(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client: StreamsClient
) -> None:
    """What may run and has neither sid nor name is told, since only the end of its call stops it."""
    requests = [StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, unnamed=True)] * 2
    run = await fleet.submit(requests)
    await set_marks(fleet, run, {0: "i:dead", 1: "i:dead"})

    report = await fleet.stop_streams(run, client).report()

    assert report.counts == {BulkStatus.REJECTED: 2}
    assert "neither sid nor name" in str(report.failures[0].error)


async def test_signals_where_there_are_none(client: StreamsClient, url: str) -> None:
    """A worker in a thread of its own is not stopped by signals, and works nevertheless."""

    async def work() -> None:
        worker = FleetWorker(url, client)
        with stop_on_signals(worker):
            worker.stop()

    await asyncio.to_thread(asyncio.run, work())


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_a_signal_stops_a_worker_and_is_reported(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    heard: asyncio.Queue[signal.Signals] = asyncio.Queue()
    with stop_on_signals(worker, heard.put_nowait):
        signal.raise_signal(signal.SIGTERM)
        assert await heard.get() is signal.SIGTERM

    assert worker._stop.is_set()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
async def test_a_signal_stops_a_worker_without_a_report(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    with stop_on_signals(worker):
        signal.raise_signal(signal.SIGINT)
        await worker._stop.wait()


async def test_the_rate_is_that_of_the_last_seconds(client: StreamsClient, url: str) -> None:
    """What was attempted some time ago does not count."""
    worker = FleetWorker(url, client)
    now = asyncio.get_running_loop().time()
    worker._recent.extend([(now - 60, 1_000), (now, 50)])

    assert worker._rate() == 10


async def test_an_engine_that_breaks_is_told(fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the engine ends the worker, and is not hidden."""

    async def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("docket.Worker.run_forever", broken)
    worker = workers()
    with pytest.raises(RuntimeError, match="broken"):
        await workers.running.pop(worker)


async def test_what_can_not_be_right_is_refused(space: SimulatedSpace, url: str) -> None:
    """A fleet, a worker and a run's name are checked before anything is done."""
    fleet = Fleet(url, space=space.base_url, project=space.project)
    with pytest.raises(ClientStateError, match="async with"):
        await fleet.submit([])
    for wrong in ("secret@host", "http://host", "redis://[secret", None):
        with pytest.raises(InvalidRequestError, match="URL is invalid") as caught:
            Fleet(wrong, space="example", project="p")  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match="retention"):
        Fleet(url, space="example", project="p", retention=0)
    async with StreamsClient(space="example", project="p", token="t") as client:
        for name in ("", "two\nlines", "\ud800"):
            with pytest.raises(InvalidRequestError, match="name must be printable text"):
                FleetWorker(url, client, name=name)
    async with fleet:
        for wrong_name in ("", "a b", "a:b", 7):
            with pytest.raises(InvalidRequestError, match="a run's name"):
                await fleet.submit([], name=wrong_name)  # type: ignore[arg-type]


async def test_an_empty_run_is_over(fleet: Fleet) -> None:
    """A run of nothing has no outcomes, and has ended."""
    run = await fleet.submit([])

    assert await all_results(fleet, run) == []
    assert (await fleet.status(run)).is_finished


async def test_a_broken_pacer_is_tried_again(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """What a caller's own part raises hands the batch back, and loses nothing of it."""
    tries = []

    async def middleware(exchange: Any, send: Any) -> Any:
        tries.append(exchange)
        if len(tries) == 1:
            raise RuntimeError("broken")
        return await send(exchange)

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
