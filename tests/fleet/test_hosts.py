"""Workers as processes on a real Redis: killed, suspended, terminated; and Redis restarts."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from attrs import define, field

from signalwire_streams import (
    BulkStatus,
    Clock,
    FleetError,
    RateLimit,
    RateLimiter,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.fleet import Fleet, FleetWorker, run_worker
from signalwire_streams.fleet._lua import LuaCall
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.simulator import SimulatedSpace
from tests.forks import Fork, fork
from tests.redis_server import RedisServer

from .helpers import PATIENCE, URL, all_results, on_calls, on_conferences, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
PROCESS = """
import asyncio, sys
from signalwire_streams.fleet import run_worker

asyncio.run(run_worker(sys.argv[1], lease_seconds=float(sys.argv[2]), concurrency=50, shutdown_timeout=10))
"""


@define(eq=False)
class Hosts:
    """Processes, each of them a worker."""

    url: str
    environment: dict[str, str]
    running: list[Fork] = field(factory=list)

    async def __call__(self, lease: float = 15.0) -> Fork:
        host = await fork(
            *(self.url, str(lease)),
            code=PROCESS,
            imports=["signalwire_streams.fleet"],
            environment=os.environ | self.environment,
            stderr=None,
        )
        self.running.append(host)
        return host

    async def end(self) -> None:
        for host in self.running:
            if host.returncode is None:
                host.kill()
            await host.wait()
            host.close()


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=200, calls=50, duplicate_names="http-error") as running:
        yield running


@pytest.fixture
async def hosts(url: str, fleet: Fleet, space: SimulatedSpace) -> AsyncIterator[Hosts]:
    environment = {
        "SIGNALWIRE_SPACE": space.base_url,
        "SIGNALWIRE_PROJECT_ID": space.project,
        "SIGNALWIRE_API_TOKEN": space.token,
    }
    hosts = Hosts(url, environment)
    yield hosts
    await hosts.end()


def working(fleet: Fleet, count: int) -> Callable[[], Awaitable[bool]]:
    async def are_there() -> bool:
        return len(await fleet.workers()) == count

    return are_there


async def some_done(fleet: Fleet, run: str) -> bool:
    return (await fleet.status(run)).completed > 20


async def test_killed_worker_loses_and_doubles_nothing(space: SimulatedSpace, fleet: Fleet, hosts: Hosts) -> None:
    """A worker is killed with -9 during a run: each conference has one stream, and each start an outcome."""
    space.faults.add("latency", on="start", seconds=0.1, executed=True)
    space.faults.add("reset", on="start", executed=True, every_nth=10)
    victim, _ = await hosts(lease=2.0), await hosts(lease=2.0)
    await until(working(fleet, 2))
    run = await fleet.submit(on_conferences(space.conference_sids))
    await until(lambda: some_done(fleet, run))

    victim.kill()
    await hosts(lease=2.0)
    outcomes = await all_results(fleet, run)

    assert len(outcomes) == 200
    assert {outcome.status for outcome in outcomes} <= {
        BulkStatus.STARTED,
        BulkStatus.ALREADY_STARTED,
        BulkStatus.UNKNOWN,
    }
    assert len(space.streams.active()) == 200
    assert space.streams.duplicates() == []


async def test_calls_of_killed_worker_are_unknown_and_not_sent_again(
    space: SimulatedSpace, fleet: Fleet, hosts: Hosts
) -> None:
    """A call may accept a second stream of the same name."""
    space.faults.add("hang", on="start", executed=True, times=10)
    victim = await hosts(lease=2.0)
    run = await fleet.submit(on_calls(space.call_sids))

    async def has_sent() -> bool:
        return len(space.streams) == 50

    await until(has_sent)
    victim.kill()
    await hosts(lease=2.0)
    outcomes = await all_results(fleet, run)

    assert len(space.streams) == 50
    assert sum(outcome.status is BulkStatus.UNKNOWN for outcome in outcomes) >= 10
    assert {outcome.status for outcome in outcomes} <= {BulkStatus.STARTED, BulkStatus.UNKNOWN}


async def test_worker_suspended_beyond_its_lease_sends_nothing_more(
    space: SimulatedSpace, fleet: Fleet, hosts: Hosts
) -> None:
    """A worker that SIGSTOP held finds its batch taken over."""
    space.faults.add("hang", on="start", executed=True, times=25)
    sleeper = await hosts(lease=1.5)
    run = await fleet.submit(on_conferences(space.conference_sids[:25]))

    async def has_sent() -> bool:
        return len(space.streams) == 25

    await until(has_sent)
    sleeper.send_signal(signal.SIGSTOP)
    await hosts(lease=1.5)
    outcomes = await all_results(fleet, run)
    sent = space.requests.count("start-conference-stream")
    await until(working(fleet, 1))
    sleeper.send_signal(signal.SIGCONT)
    await until(working(fleet, 2))
    later = await fleet.submit(on_calls(space.call_sids))
    await all_results(fleet, later)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.ALREADY_STARTED] * 25
    assert space.requests.count("start-conference-stream") == sent >= 50  # more if a busy machine stalls a worker
    assert len(space.streams.active()) == 75
    assert (await fleet.status(run)).counts == {"already_started": 25}


async def test_sigterm_finishes_starts_in_flight(space: SimulatedSpace, fleet: Fleet, hosts: Hosts) -> None:
    space.faults.add("latency", on="start", seconds=0.3, executed=True)
    host = await hosts()
    await until(working(fleet, 1))
    run = await fleet.submit(on_conferences(space.conference_sids))

    async def has_begun() -> bool:
        return bool((await fleet.status(run)).counts.get("in_doubt"))

    await until(has_begun)
    host.terminate()
    assert await host.wait() == 0
    status = await fleet.status(run)
    assert "in_doubt" not in status.counts
    assert status.counts["started"] + status.counts["pending"] == 200
    assert len(space.streams) == status.counts["started"]

    await hosts()
    await all_results(fleet, run)
    assert len(space.streams.active()) == 200
    assert len(space.streams) == 200


async def test_redis_restart_during_run_loses_and_doubles_nothing(
    space: SimulatedSpace, fleet: Fleet, hosts: Hosts, redis_server: RedisServer
) -> None:
    space.faults.add("latency", on="start", seconds=0.1, executed=True)
    await hosts()
    await hosts()
    await until(working(fleet, 2))
    run = await fleet.submit(on_conferences(space.conference_sids))
    reading = asyncio.create_task(all_results(fleet, run))
    await until(lambda: some_done(fleet, run))

    redis_server.kill()
    redis_server.start()
    outcomes = await reading

    assert len(outcomes) == 200
    assert [outcome for outcome in outcomes if not outcome.ok] == []
    assert len(space.streams.active()) == 200
    assert space.streams.duplicates() == []


async def test_worker_stops_while_redis_is_down(client: StreamsClient, fleet: Fleet, redis_server: RedisServer) -> None:
    worker = FleetWorker(redis_server.url, client, lease_seconds=1.0, shutdown_timeout=1.0)
    task = asyncio.create_task(worker.run())
    await until(working(fleet, 1))

    redis_server.kill()
    worker.stop()
    async with asyncio.timeout(PATIENCE):
        await task


@pytest.fixture
async def silenced(
    space: SimulatedSpace,
    client: StreamsClient,
    fleet: Fleet,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[FleetWorker, "asyncio.Task[None]"]]:
    """A worker with three starts in flight, whose Redis accepts commands and no longer replies."""
    monkeypatch.setattr("signalwire_streams.fleet._worker._CANCEL_AFTER", 0.3)
    monkeypatch.setattr("signalwire_streams.fleet._worker._CLOSE_TIMEOUT", 0.3)
    space.faults.add("hang", on="start", executed=True)
    worker = FleetWorker(redis_server.url, client, shutdown_timeout=0.1)
    task = asyncio.create_task(worker.run())
    await fleet.submit(on_conferences(space.conference_sids[:3]))

    async def has_sent() -> bool:
        return len(space.streams) == 3

    await until(has_sent)
    redis_server.ask("CLIENT", "PAUSE", "60000", "ALL")
    yield worker, task
    redis_server.kill()
    assert space.requests.count("start-conference-stream") == 3


async def test_worker_stops_while_redis_does_not_respond(silenced: tuple[FleetWorker, "asyncio.Task[None]"]) -> None:
    """What it is writing just then is cancelled."""
    worker, task = silenced
    writing = worker._writer.call(LuaCall("return {'ok'}", ("run",), "marks", ()))
    worker.stop()
    async with asyncio.timeout(PATIENCE):
        await task
    assert writing.cancelled()


async def test_cancelled_worker_ends_while_redis_does_not_respond(
    silenced: tuple[FleetWorker, "asyncio.Task[None]"],
) -> None:
    """However often it is cancelled, it raises CancelledError at the end."""
    _, task = silenced
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_redis_files_contain_no_secrets(
    space: SimulatedSpace, fleet: Fleet, hosts: Hosts, redis_server: RedisServer
) -> None:
    await hosts()
    requests = [
        StartConferenceStream(
            conference_sid=sid,
            url=URL,
            authorization_bearer_token="hidden-token",
            parameters={"shown": "hidden-value"},
            status_callback="https://example.com/?key=hidden-key",
        )
        for sid in space.conference_sids[:3]
    ]
    run = await fleet.submit(requests, redact_secrets=True)
    await all_results(fleet, run)

    kept = redis_server.kept
    assert space.conference_sids[0].encode() in kept
    assert space.token.encode() not in kept
    assert b"hidden" not in kept


@pytest.mark.parametrize("limiter", [None, LocalRateLimiter(TokenBucket(RateLimit()), Clock())])
async def test_run_worker_can_be_cancelled(
    space: SimulatedSpace, fleet: Fleet, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, limiter: RateLimiter | None
) -> None:
    for name, value in hosts.environment.items():
        monkeypatch.setenv(name, value)
    task = asyncio.create_task(run_worker(fleet.url, rate_limiter=limiter))
    run = await fleet.submit(on_conferences(space.conference_sids[:3]))
    await all_results(fleet, run)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fleet.workers() == ()


async def test_wrong_redis_password_ends_worker_and_submit_at_once(
    space: SimulatedSpace, client: StreamsClient, redis_server: RedisServer
) -> None:
    url = redis_server.url.replace("unix://", "unix://user:hidden@")
    with pytest.raises(FleetError, match="rejects this user or password") as caught:
        async with asyncio.timeout(PATIENCE):
            await FleetWorker(url, client).run()
    assert "hidden" not in str(caught.value)
