"""Bulk runs against a Space on a real socket."""

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkError,
    BulkOutcome,
    BulkRun,
    BulkStatus,
    CallStream,
    CircuitBreakerPolicy,
    CircuitOpenError,
    ClientStateError,
    Clock,
    ConferenceStream,
    InvalidRequestError,
    RetryPolicy,
    RunCancelledError,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._runner import FixedConcurrency, WorkerPool
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences
from tests.fake_operation import FakeOperation


def states(outcomes: list[BulkOutcome[Any]]) -> Counter[BulkStatus]:
    return Counter(outcome.status for outcome in outcomes)


def tasks_of_runs() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if "_runner.py" in repr(task)]


async def test_bulk_run_starts_and_stops_conferences_and_calls(client_for: Any) -> None:
    """Every item of a mixed input gets one outcome, and the streams that came of it can all be stopped."""
    async with SimulatedSpace(conferences=20, calls=20) as space:
        client: StreamsClient = client_for(space)
        requests: list[StartConferenceStream | StartCallStream] = [*on_conferences(space)]
        requests += [StartCallStream(call_sid=sid, url=URL) for sid in space.call_sids]

        async def slowly() -> AsyncIterator[StartConferenceStream | StartCallStream]:
            for request in requests:
                await asyncio.sleep(0)
                yield request

        run = client.start_streams(slowly())
        outcomes = [outcome async for outcome in run]
        report = await run.report()

        assert sorted(outcome.index for outcome in outcomes) == list(range(40))
        assert all(outcome.item is requests[outcome.index] for outcome in outcomes)
        assert states(outcomes) == report.counts == {BulkStatus.STARTED: 40}
        assert (report.total, report.attempts, report.ok, report.failures) == (40, 40, True, ())
        assert 0 < report.latency_percentiles[50] <= report.latency_percentiles[95] <= report.latency_percentiles[100]
        assert report.seconds > 0
        report.raise_if_failed()
        assert len(space.streams.active()) == 40

        stopped = await client.stop_streams([o.stream for o in outcomes if o.stream is not None]).report()
        assert stopped.counts == {BulkStatus.STOPPED: 40}
        assert space.streams.active() == []


async def test_generated_names_follow_from_run_and_target(client_for: Any) -> None:
    """In one run a target has one name; explicit names stay, and unnamed items stay unnamed."""
    async with SimulatedSpace(conferences=3) as space:
        client = client_for(space)
        first, second, third = space.conference_sids
        requests = [
            StartConferenceStream(conference_sid=first, url=URL),
            StartConferenceStream(conference_sid=second, url=URL, name="mine"),
            StartConferenceStream(conference_sid=third, url=URL, unnamed=True),
            StartConferenceStream(conference_sid=third, url=URL, unnamed=True),
            StartConferenceStream(conference_sid=first, url=URL),
            StartConferenceStream(conference_sid=second, url=URL, name="mine"),
        ]
        outcomes = sorted([o async for o in client.start_streams(requests)], key=lambda o: o.index)

        names = [o.stream.name if o.stream else None for o in outcomes]
        assert names[0] is not None
        assert names[0].startswith("sws-")
        assert names[0].endswith(first)
        assert names[1:4] == ["mine", None, None]
        for twice in outcomes[4:]:
            assert twice.status is BulkStatus.REJECTED
            assert isinstance(twice.error, InvalidRequestError)
        assert len(space.streams) == 4


async def test_failed_items_end_in_outcomes_and_do_not_raise(client_for: Any) -> None:
    """Rejections, lost responses and mistakes are outcomes; the report can raise them all together."""
    async with SimulatedSpace(conferences=4) as space:
        client = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        refused, unknown, unserved, fine = space.conference_sids
        space.faults.add("status", status=422, body="api", code=21402, target=refused)
        space.faults.add("reset", executed=True, target=unknown)
        space.faults.add("503-api", target=unserved)
        items: list[Any] = [*on_conferences(space), "no request"]

        run = client.start_streams(items)
        outcomes = {outcome.index: outcome async for outcome in run}
        report = await run.report()

        assert [outcomes[index].status for index in range(5)] == [
            BulkStatus.REJECTED,
            BulkStatus.UNKNOWN,
            BulkStatus.NOT_ATTEMPTED,
            BulkStatus.STARTED,
            BulkStatus.REJECTED,
        ]
        assert isinstance(outcomes[1].error, StreamOutcomeUnknownError)
        assert space.requests.count() == 4
        assert not report.ok
        assert report.errors["UnprocessableError 21402"] == 1
        with pytest.raises(BulkError, match="4 of 5 items failed") as caught:
            report.raise_if_failed()
        assert caught.value.report is report
        some, rest = caught.value.split(StreamOutcomeUnknownError)
        assert isinstance(some, BulkError)
        assert isinstance(rest, BulkError)
        assert some.report is rest.report is report
        assert fine in {stream.target_sid for stream in space.streams.active()}


async def test_failed_stops_are_rejected_or_unknown(client_for: Any) -> None:
    """An unknown stream is rejected, a lost response is unknown, and an item of another type is rejected."""
    async with SimulatedSpace(conferences=1, calls=1) as space:
        client = client_for(space, retry=RetryPolicy(max_attempts=1))
        sid = space.conference_sids[0]
        space.faults.add("reset", target=sid)
        items: list[Any] = [
            CallStream(call_sid=space.call_sids[0], name="not-there"),
            ConferenceStream(conference_sid=sid, name="perhaps"),
            7,
        ]
        outcomes = {o.index: o async for o in client.stop_streams(items, concurrency=1)}

        assert [outcomes[n].status for n in range(3)] == [BulkStatus.REJECTED, BulkStatus.UNKNOWN, BulkStatus.REJECTED]


async def test_wrong_token_ends_the_run_early(space: SimulatedSpace, client_for: Any) -> None:
    """After a 401 nothing more is sent; every item still has its outcome."""
    client = client_for(space, token="wrong")
    requests = [StartConferenceStream(conference_sid=f"room-{n}", url=URL) for n in range(100)]
    run = client.start_streams(requests, concurrency=2)
    outcomes = [outcome async for outcome in run]

    assert states(outcomes)[BulkStatus.NOT_ATTEMPTED] >= 95
    assert states(outcomes)[BulkStatus.REJECTED] == space.requests.count()
    assert sorted(outcome.index for outcome in outcomes) == list(range(100))
    with pytest.raises(BulkError):
        (await run.report()).raise_if_failed()


async def test_items_wait_for_the_end_of_an_outage(client_for: Any) -> None:
    """While the breaker is open a run waits instead of failing item after item."""
    async with SimulatedSpace(conferences=60) as space:
        client = client_for(
            space,
            circuit_breaker=CircuitBreakerPolicy(min_requests=5, open_duration=0.5),
            retry=RetryPolicy(max_attempts=1),
        )
        space.faults.add("503-api", on="start", times=5)
        report = await client.start_streams(on_conferences(space), concurrency=4).report()

        assert report.counts[BulkStatus.STARTED] == 55
        assert report.counts[BulkStatus.NOT_ATTEMPTED] == 5


async def test_items_wait_while_the_space_throttles(client_for: Any) -> None:
    """However many items are throttled together."""
    async with SimulatedSpace(conferences=30) as space:
        space.faults.add("throttle", on="start", times=60, retry_after=2)
        run = client_for(space, retry=RetryPolicy(max_throttle_retries=0)).start_streams(on_conferences(space))
        assert (await run.report()).counts == {BulkStatus.STARTED: 30}
        assert len(space.streams.active()) == 30


async def test_item_that_is_throttled_for_five_minutes_is_not_attempted(client_for: Any, space: SimulatedSpace) -> None:
    space.faults.add("throttle", on="start", retry_after=20)
    run = client_for(space).start_streams(on_conferences(space))
    report = await run.report()
    assert report.counts == {BulkStatus.NOT_ATTEMPTED: 3}
    # Who comes to the closed gate of somebody else is not even told by the Space.
    assert "RateLimitedError 20429" in report.errors
    assert set(report.errors) <= {"RateLimitedError 20429", "TransportError"}


async def test_item_that_meets_an_open_breaker_for_a_minute_is_not_attempted() -> None:
    async def never_served(item: str, _: CallState) -> ConferenceStream:
        raise CircuitOpenError("not sent, the circuit breaker is open", retry_after=5.0)

    clock = Clock.fake()
    run = BulkRun(WorkerPool(["room"], FakeOperation(never_served), limit=FixedConcurrency(1), clock=clock))
    report = await run.report()

    assert report.counts == {BulkStatus.NOT_ATTEMPTED: 1}
    assert 50 < report.seconds < 100


async def test_input_that_raises_ends_the_run_after_all_outcomes(client_for: Any) -> None:
    """When the input raises, the outcomes of what it gave come first."""
    async with SimulatedSpace(conferences=5) as space:

        def input_that_fails() -> Iterator[StartConferenceStream]:
            yield from on_conferences(space)
            raise LookupError("the database went away")

        run = client_for(space).start_streams(input_that_fails())
        outcomes: list[BulkOutcome[Any]] = []

        async def go_through() -> None:
            async for outcome in run:
                outcomes.append(outcome)  # noqa: PERF401  (what came before the error is the point)

        with pytest.raises(LookupError, match="went away"):
            await go_through()
        assert states(outcomes) == {BulkStatus.STARTED: 5}
        assert (await run.report()).counts == {BulkStatus.STARTED: 5}


async def test_leaving_the_loop_early_leaves_no_task_running(client_for: Any) -> None:
    """No more items are taken in, requests in flight end, and the report covers all of them."""
    async with SimulatedSpace(conferences=200) as space:
        client = client_for(space)
        taken = 0

        def counted() -> Iterator[StartConferenceStream]:
            nonlocal taken
            for request in on_conferences(space):
                taken += 1
                yield request

        run = client.start_streams(counted(), concurrency=8)
        async for _ in run:
            assert tasks_of_runs()
            break
        report = await run.report()

        assert taken < 200
        assert report.total == taken
        assert len(space.streams.active()) == report.counts[BulkStatus.STARTED]
        await asyncio.sleep(0)
        assert not tasks_of_runs()


async def test_requests_in_flight_after_the_timeout_are_cancelled_and_classified(
    client_for: Any, monkeypatch: pytest.MonkeyPatch, space: SimulatedSpace
) -> None:
    """They are unknown if they were sent, and not attempted if not."""
    monkeypatch.setattr("signalwire_streams.bulk._runner.SHUTDOWN_TIMEOUT", 0.01)
    space.faults.add("hang", executed=True)
    client = client_for(space, connections=2)
    run = client.start_streams(on_conferences(space), concurrency=3)

    async def go_through() -> None:
        async for _ in run:
            pass

    consumer = asyncio.create_task(go_through())
    await space.requests.wait_for(2)
    assert run.snapshot.total == 0
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    report = await run.report()

    assert report.counts == {BulkStatus.UNKNOWN: 2, BulkStatus.NOT_ATTEMPTED: 1}
    assert {type(outcome.error) for outcome in report.failures} == {StreamOutcomeUnknownError, RunCancelledError}


async def test_cancelled_start_is_reported_with_its_name(
    client_for: Any, monkeypatch: pytest.MonkeyPatch, space: SimulatedSpace
) -> None:
    monkeypatch.setattr("signalwire_streams.bulk._runner.SHUTDOWN_TIMEOUT", 0.01)
    space.faults.add("hang", executed=True)
    run = client_for(space).start_streams(on_conferences(space)[:1])
    outcomes = aiter(run)
    first = asyncio.ensure_future(anext(outcomes))
    await space.requests.wait_for(1)
    first.cancel()
    await asyncio.wait([first])

    [failure] = (await run.report()).failures
    assert isinstance(failure.error, StreamOutcomeUnknownError)
    assert failure.error.target == space.conference_sids[0]
    assert failure.error.name == space.requests[0].fields["Name"]


async def test_middleware_that_raises_ends_the_run_after_all_outcomes(client_for: Any) -> None:
    """An error that is not ours ends the run after the outcomes, and the item that met it keeps one."""
    async with SimulatedSpace(conferences=30) as space:

        async def breaks(request: Request, send: Handler) -> Result:
            if request.target == space.conference_sids[5]:
                raise LookupError("no such tenant")
            return await send(request)

        run = client_for(space, middlewares=[breaks]).start_streams(on_conferences(space), concurrency=2)
        with pytest.raises(LookupError, match="no such tenant"):
            await run.report()
        report = run.snapshot

        assert report.counts[BulkStatus.STARTED] == len(space.streams.active())
        assert report.counts[BulkStatus.NOT_ATTEMPTED] >= 1
        assert report.total < 30


async def test_input_generator_is_closed_when_the_run_ends(client_for: Any, space: SimulatedSpace) -> None:
    """A run that is left early closes the generator it took its items from."""
    closed = asyncio.Event()

    async def source() -> AsyncIterator[StartConferenceStream]:
        try:
            while True:
                for request in on_conferences(space):
                    yield StartConferenceStream(conference_sid=request.conference_sid, url=URL, unnamed=True)
        finally:
            closed.set()

    run = client_for(space).start_streams(source(), concurrency=1)
    async for _ in run:
        break
    await run.report()

    assert closed.is_set()


async def test_cancelling_the_shutdown_leaves_no_task_running(client_for: Any, space: SimulatedSpace) -> None:
    """A second cancellation cancels the requests in flight at once."""
    space.faults.add("hang")
    run = client_for(space).start_streams(on_conferences(space))

    async def go_through() -> None:
        async for _ in run:
            pass

    consumer = asyncio.create_task(go_through())
    await space.requests.wait_for(3)
    assert tasks_of_runs()
    consumer.cancel()
    await asyncio.sleep(0.01)
    consumer.cancel()
    await asyncio.wait([consumer])
    for _ in range(5):
        await asyncio.sleep(0)

    assert not tasks_of_runs()
    assert (await run.report()).counts == {BulkStatus.UNKNOWN: 3}


async def test_run_that_is_shut_down_yields_every_outcome(client_for: Any) -> None:
    """No more items are taken in, and the loop continues until the requests in flight have ended."""
    async with SimulatedSpace(conferences=50) as space:
        run = client_for(space).start_streams(on_conferences(space), concurrency=4)
        outcomes = []
        async for outcome in run:
            outcomes.append(outcome)
            if len(outcomes) == 3:
                run.shutdown()
        assert states(outcomes) == (await run.report()).counts
        assert 3 < len(outcomes) < 20
        assert len(space.streams) == states(outcomes)[BulkStatus.STARTED]


async def test_second_shutdown_cancels_at_once(client_for: Any, space: SimulatedSpace) -> None:
    space.faults.add("hang", executed=True)
    run = client_for(space).start_streams(on_conferences(space))
    ended = asyncio.create_task(run.report())
    await space.requests.wait_for(3)
    run.shutdown()
    await asyncio.sleep(0)
    run.shutdown(0)
    assert (await ended).counts == {BulkStatus.UNKNOWN: 3}


async def test_every_item_taken_from_the_input_has_an_outcome(client_for: Any, space: SimulatedSpace) -> None:
    """Even if the run is cancelled in the moment of the intake."""
    taken = []
    run: BulkRun[Any]

    def items() -> Iterator[StartConferenceStream]:
        for request in on_conferences(space):
            taken.append(request)
            run.shutdown(0)
            yield request

    run = client_for(space).start_streams(items())
    report = await run.report()
    assert report.total == len(taken)


async def test_run_that_is_shut_down_before_it_started_sends_nothing(client_for: Any, space: SimulatedSpace) -> None:
    """It ends without having done anything."""
    run = client_for(space).start_streams(on_conferences(space))
    run.shutdown()
    assert (await run.report()).total == 0
    assert len(space.requests) == 0


async def test_slow_consumer_stops_the_intake(client_for: Any) -> None:
    """While outcomes are not taken, no more items are taken in than the backlog holds."""
    async with SimulatedSpace(conferences=400, participants=0) as space:
        client = client_for(space)
        taken = 0

        def counted() -> Iterator[StartConferenceStream]:
            nonlocal taken
            for request in on_conferences(space):
                taken += 1
                yield request

        run = client.start_streams(counted(), concurrency=8)
        outcomes = aiter(run)
        await anext(outcomes)
        await space.requests.wait_for(70)
        for _ in range(200):
            await asyncio.sleep(0.001)
        assert taken <= 64 + 8 + 2

        rest = [outcome async for outcome in outcomes]
        assert len(rest) == 399


async def test_run_can_be_iterated_once(space: SimulatedSpace, client: StreamsClient) -> None:
    """A run that was gone through says so."""
    run = client.start_streams(on_conferences(space))
    assert run.snapshot.seconds == 0
    await run.report()

    with pytest.raises(ClientStateError, match="already iterated"):
        async for _ in run:
            pass
    assert (await run.report()).total == 3
    with pytest.raises(InvalidRequestError, match="concurrency"):
        client.start_streams([], concurrency=0)


async def test_empty_run_has_an_empty_report(client: StreamsClient) -> None:
    report = await client.start_streams([]).report()

    assert (report.total, report.ok, report.latency_percentiles[50]) == (0, True, 0.0)


async def test_run_that_is_never_iterated_warns(client_for: Any, space: SimulatedSpace) -> None:
    """A run that is only made sends nothing, and warns as a coroutine does that was never awaited."""
    client: StreamsClient = client_for(space)
    for make in (lambda: client.start_streams(on_conferences(space)), lambda: client.stop_streams([])):
        with pytest.warns(RuntimeWarning, match="never iterated, so nothing was sent"):
            assert [make() for _ in range(1)]  # freed with the list
    gc.collect()
    await asyncio.sleep(0)

    assert len(space.requests) == 0


async def test_run_that_was_used_does_not_warn(client_for: Any, space: SimulatedSpace, tmp_path: Path) -> None:
    """Neither after its end, nor after a beginning that failed, nor when it was drained before."""
    client: StreamsClient = client_for(space)
    assert (await client.start_streams([]).report()).total == 0
    client.start_streams([]).shutdown()
    missing = tmp_path / "missing.db"
    with pytest.raises(InvalidRequestError, match="there is no journal"):
        await client.start_streams([], journal=missing, resume=True).report()
    with pytest.raises(InvalidRequestError, match="there is no journal"):
        async for _ in client.stop_started(missing):
            pass
    with pytest.raises(InvalidRequestError, match="concurrency"):
        client.start_streams([], concurrency=0)
    gc.collect()


def test_run_does_not_warn_at_the_end_of_the_process() -> None:
    """On any version of Python."""
    code = (
        "from signalwire_streams import StreamsClient\n"
        "client = StreamsClient(space='example', project='p', token='t')\n"
        "run = client.start_streams([])\n"
    )
    ran = subprocess.run([sys.executable, "-Werror", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert (ran.stdout, ran.stderr) == ("", "")


async def test_single_start_goes_before_the_items_of_a_run(client_for: Any) -> None:
    """A single start in the middle of a run does not wait for the run to end."""
    clock = Clock.fake()
    async with SimulatedSpace(conferences=120, participants=0) as space:
        client: StreamsClient = client_for(space, clock=clock)
        run = client.start_streams(on_conferences(space)[:-1])
        outcomes = aiter(run)
        await anext(outcomes)
        await client.conferences.start_stream(space.conference_sids[-1], url=URL, name="now")

        received = [request.fields["Name"] for request in space.requests if request.method == "POST"]
        assert "now" in received
        assert len(received) < 120
        _ = [outcome async for outcome in outcomes]


async def test_run_whose_outcomes_are_not_read_waits_with_64_of_them(client_for: Any, idle_clock: Clock) -> None:
    async with SimulatedSpace(conferences=100) as space:
        outcomes = aiter(client_for(space, clock=idle_clock).start_streams(on_conferences(space), concurrency=1))
        await anext(outcomes)
        await idle_clock.sleep(5)
        assert space.requests.count() == 65
        assert len([outcome async for outcome in outcomes]) == 99
