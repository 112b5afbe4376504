"""Status of runs and workers, and behaviour in long runs and outages."""

import asyncio
import json
from typing import Any

import pytest
from attrs import asdict, define, evolve, field
from docket import Docket
from redis.exceptions import ConnectionError as NotThere

from signalwire_streams import BulkStatus, Clock, FleetError, StartConferenceStream, StreamsClient
from signalwire_streams.fleet import Fleet, FleetStatus, FleetWorker, WorkerStatus
from signalwire_streams.fleet._lua import LuaCall
from signalwire_streams.fleet._redis import Connection, Keys, RunKeys, Writer, connect
from signalwire_streams.simulator import SimulatedSpace
from tests.ports import free_port

from .conftest import Workers
from .helpers import URL, Pipe, all_results, connection_of, keys_of, on_conferences, redis_of, until

WORKER = WorkerStatus(
    name="w", host="h", pid=1, started_at="2026", active_batches=0, completed=0, rate=1.5, limit=None, draining=False
)


async def test_status_of_submitted_run_is_all_pending(space: SimulatedSpace, fleet: Fleet) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids), run_id="nightly")
    status = await fleet.status(run)

    assert status == FleetStatus(
        run="nightly",
        started_at=status.started_at,
        planned=3,
        counts={"pending": 3},
        attempts=0,
        errors={},
        cancelled=None,
        cancel_reason=None,
        fully_submitted=True,
        rolled_back=0,
        is_rolling_back=False,
        resumed_as=None,
    )
    assert (status.completed, status.unfinished, status.is_finished, status.rate, status.limit) == (
        0,
        0,
        False,
        0,
        None,
    )


async def test_status_sorts_errors_by_frequency_and_name(space: SimulatedSpace, fleet: Fleet) -> None:
    """States with a count of zero are omitted."""
    run = await fleet.submit(on_conferences(space.conference_sids), run_id="nightly")
    facts = {"e:C": "2", "c:rejected": "2", "c:unknown": "1", "c:in_doubt": "0", "stopped": "2"}
    facts |= {f"e:{name}": "1" for name in "FBEADG"}  # which Redis returns in an order of its own
    await redis_of(fleet).hset(fleet._keys.run(run), mapping=facts)

    status = await fleet.status(run)

    assert list(status.errors.items()) == [("C", 2), *((name, 1) for name in "ABDEFG")]
    assert status.counts == {"rejected": 2, "unknown": 1}
    assert (status.completed, status.unfinished, status.is_finished, status.rolled_back) == (3, 1, True, 2)


def test_status_sums_up_workers() -> None:
    workers = (WORKER, evolve(WORKER, rate=2.0, limit=5.0), evolve(WORKER, limit=7.0))
    status = FleetStatus(
        run="r",
        started_at="2026",
        planned=0,
        counts={},
        attempts=0,
        errors={},
        cancelled=None,
        cancel_reason=None,
        fully_submitted=True,
        rolled_back=0,
        is_rolling_back=False,
        resumed_as=None,
        workers=workers,
    )
    assert (status.rate, status.limit, status.is_finished) == (5.0, 7.0, True)


def test_worker_of_a_newer_release_is_shown_as_far_as_it_is_known() -> None:
    assert WorkerStatus.from_json(json.dumps(asdict(WORKER) | {"mood": "good"})) == WORKER


def test_redis_keys_keep_their_names_across_releases() -> None:
    """Workers and submitters of several releases share one Redis, so the names of its keys are a contract."""
    keys = Keys("https://example.signalwire.com", "p")
    run = RunKeys(keys.run("nightly"), "abc")
    assert keys.prefix == "sws-fleet-1:example.signalwire.com:p"
    assert (keys.workers, keys.runs) == (f"{keys.prefix}:our:workers", f"{keys.prefix}:our:runs")
    assert (keys.worker("w"), run.run) == (f"{keys.prefix}:our:worker:w", f"{keys.prefix}:our:run:nightly")
    assert [run.requests(1), run.marks(2), run.lease(3), run.outcomes, run.stopped] == [
        f"{keys.prefix}:our:run:nightly:abc:{last}"
        for last in ("requests:1", "marks:2", "lease:3", "outcomes", "stopped")
    ]


async def test_worker_with_one_slot_processes_batches_one_by_one(fleet: Fleet, workers: Workers) -> None:
    worker = workers(concurrency=25)
    requests = [StartConferenceStream(conference_sid="none", url=URL, name=f"s{number}") for number in range(60)]
    run = await fleet.submit(requests)

    outcomes = await all_results(fleet, run)

    assert len(outcomes) == 60
    await until(lambda: _is_idle(fleet, worker))
    await workers.end(worker)
    assert await fleet.workers() == ()


async def _is_idle(fleet: Fleet, worker: FleetWorker) -> bool:
    await worker._connection.pipeline(worker._heartbeat)  # the next is due only in some seconds
    return [each.active_batches for each in await fleet.workers()] == [0]


async def test_expired_batch_is_not_retried(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await redis_of(fleet).delete((await keys_of(fleet, run)).requests(0))
    worker = workers(concurrency=25)
    other = await fleet.submit(on_conferences(["nowhere"]))
    await all_results(fleet, other)
    await workers.end(worker)

    snapshot = await fleet._docket.snapshot()
    assert (list(snapshot.future), list(snapshot.running)) == ([], [])


async def test_long_run_has_one_outcome_per_item(fleet: Fleet) -> None:
    """The run has more batches than are written, scanned or read at once."""
    requests = [StartConferenceStream(conference_sid=f"c{number}", url=URL) for number in range(1_030)]
    run = await fleet.submit(requests, run_id="long")
    status = await fleet.cancel(run)

    outcomes = [outcome async for outcome in fleet.results(run)]

    assert status.counts == {"not_attempted": 1_030}
    assert [outcome.index for outcome in outcomes] == list(range(1_030))
    assert [outcome.item.target for outcome in outcomes] == [request.target for request in requests]
    assert {outcome.status for outcome in outcomes} == {BulkStatus.NOT_ATTEMPTED}
    assert [request.name for request in [outcome.item for outcome in outcomes]] == [
        f"sws-long-{request.target}" for request in requests
    ]


@define(eq=False)
class Away:
    """A Redis whose first replies fail."""

    now: Any
    failures: int
    asked: list[float] = field(init=False, factory=list)
    loads: list[int] = field(init=False, factory=list)

    def pipeline(self) -> Pipe:
        return Pipe(self)

    async def get(self, _: str) -> bytes:
        self.asked.append(self.now())
        if len(self.asked) <= self.failures:
            raise NotThere("gone")
        return b"there"

    async def eval(self, _: str, keys: int, *__: object) -> list[bytes]:
        self.asked.append(self.now())
        self.loads.append(keys - 1)
        return [b"ok"] * (keys - 1)


class TestConnection:
    """How often an unavailable Redis is asked."""

    async def test_connection_pauses_double_up_to_a_second(self, idle_clock: Clock) -> None:
        redis = Away(idle_clock.now, 8)
        assert await Connection(redis, 60.0).run(lambda redis: redis.get("key")) == b"there"
        pauses = [round(later - earlier, 2) for earlier, later in zip(redis.asked, redis.asked[1:], strict=False)]
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]

    async def test_connection_gives_up_when_patience_ends(self, idle_clock: Clock) -> None:
        redis = Away(idle_clock.now, 100)
        began = idle_clock.now()
        with pytest.raises(FleetError, match="unavailable: gone"):
            await Connection(redis, 5.0).run(lambda redis: redis.get("key"))
        assert 3.9 < idle_clock.now() - began <= 5.0

    async def test_fleet_waits_three_seconds_for_redis_when_it_is_entered(self, idle_clock: Clock) -> None:
        began = idle_clock.now()
        with pytest.raises(FleetError, match="unavailable"):
            async with Fleet(f"redis://127.0.0.1:{free_port()}", space="example", project="p"):
                raise AssertionError("it was entered")
        assert 1.9 < idle_clock.now() - began <= 3.1

    async def test_redis_gets_ten_seconds_to_connect_and_to_respond(self) -> None:
        async with connect("redis://localhost", Docket(name="fleet"), 60.0) as connection:
            settings = connection.client.connection_pool.connection_kwargs
        assert (settings["socket_connect_timeout"], settings["socket_timeout"]) == (10.0, 10.0)

    async def test_call_waits_half_a_minute_for_redis(self, fleet: Fleet, idle_clock: Clock) -> None:
        class Gone:
            async def zrange(self, *_: object) -> None:
                raise NotThere("gone")

        connection_of(fleet).client = Gone()
        began = idle_clock.now()
        with pytest.raises(FleetError, match="unavailable: gone"):
            await fleet.runs()
        assert 28.9 < idle_clock.now() - began <= 30.1

    async def test_batch_of_another_worker_is_asked_for_eight_times_per_lease(
        self, client: StreamsClient, idle_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[float] = []

        async def is_free(*_: object) -> bool:
            asked.append(idle_clock.now())
            return len(asked) == 4

        worker = FleetWorker("memory://", client, lease_seconds=4.0)
        monkeypatch.setattr(worker, "_process", is_free)
        await worker._task("nightly", 0)
        assert [round(at - asked[0], 3) for at in asked] == [0.0, 0.5, 1.0, 1.5]

    async def test_writer_sends_at_most_500_calls_at_once(self, idle_clock: Clock) -> None:
        """Calls gather for a hundredth of a second."""
        redis = Away(idle_clock.now, 0)
        writer = Writer(Connection(redis, 0.0))
        answers = [writer.call(LuaCall("script", ("run",), "marks", (number,))) for number in range(1_101)]
        assert set(await asyncio.gather(*answers)) == {"ok"}
        assert redis.loads == [500, 500, 101]
        assert redis.asked[1] - redis.asked[0] == pytest.approx(0.01, abs=0.005)
        await writer.idle()
