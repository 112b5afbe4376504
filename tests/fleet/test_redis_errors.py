"""Redis answers the fleet's scripts with errors, or loses its answers; and workers die between two scripts."""

import asyncio
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import pytest

from signalwire_streams import (
    AuthenticationError,
    BulkStatus,
    FleetError,
    InvalidRequestError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.fleet import Fleet, FleetWorker, _lua
from signalwire_streams.fleet._redis import connect
from signalwire_streams.redis_rate_limit import RateLimiterError, RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_proxy import ERRORS, Moment, RedisProxy, read_command, redis_proxy
from tests.redis_server import RedisServer
from tests.waiting import until

from .conftest import Workers
from .helpers import PATIENCE, URL, all_results, on_calls, on_conferences

VICTIMS_LEASE, LEASE = 0.6, 1.5  # seconds; the other worker must keep its lease even on a busy machine
SOME_ERRORS = ["BUSY", "NOSCRIPT", "lost answer"]  # each kind: not carried out, unknown script, carried out


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3, duplicate_names="http-error") as running:
        yield running


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[RedisProxy]:
    async with redis_proxy(redis_server.socket, redis_server.folder / "proxy.sock") as running:
        yield running


@pytest.fixture
def url(proxy: RedisProxy) -> str:
    return proxy.url


def script_of(name: str) -> str:
    script = getattr(_lua, name)
    assert isinstance(script, str)
    return script


def requests_for(space: SimulatedSpace) -> list[Any]:
    unnamed = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, unnamed=True)
    return [*on_conferences(space.conference_sids), *on_calls(space.call_sids), unnamed]


@pytest.mark.parametrize("error", ERRORS)
async def test_submit_and_worker_repeat_scripts_that_failed(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, proxy: RedisProxy, error: str
) -> None:
    """Nothing is started twice, lost, or in doubt, whether Redis has carried the script out or not."""
    scripts = ["CREATE_RUN", "SET_ONCE", "ACQUIRE_LEASE", "CLAIM_ITEM", "COMPLETE_ITEM", "RELEASE_LEASE"]
    spoiled = {name: proxy.spoil(script_of(name), ERRORS[error], times=2) for name in scripts}
    run = await fleet.submit(requests_for(space))
    status = await fleet.status(run)
    assert (status.fully_submitted, status.counts) == (True, {"pending": 7})
    worker = workers()

    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 7
    assert len(space.streams) == 7
    assert (await fleet.status(run)).counts == {"started": 7}
    await workers.end(worker)
    assert all(one.seen for one in spoiled.values())


@pytest.mark.parametrize("error", ["LOADING", "lost answer"])
async def test_worker_keeps_its_lease_if_renewals_fail_for_a_moment(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, proxy: RedisProxy, error: str
) -> None:
    space.faults.add("latency", on="start", seconds=1.4, executed=True)
    spoiled = proxy.spoil(script_of("RENEW_LEASE"), ERRORS[error], times=2)
    run = await fleet.submit(requests_for(space))
    workers(lease_seconds=5.0)  # renewed after a quarter of it

    assert [outcome.status for outcome in await all_results(fleet, run)] == [BulkStatus.STARTED] * 7
    assert spoiled.seen > 0


@pytest.mark.parametrize("error", SOME_ERRORS)
async def test_denied_worker_repeats_the_release_of_its_items(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, proxy: RedisProxy, error: str
) -> None:
    space.faults.add("status", on="start", status=401, body="api", times=7)
    spoiled = proxy.spoil(script_of("RELEASE_ITEM"), ERRORS[error], times=2)
    run = await fleet.submit(requests_for(space))
    denied = workers.running.pop(workers())
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(AuthenticationError):
            await denied
    assert (await fleet.status(run)).counts == {"pending": 7}
    workers()

    assert [outcome.status for outcome in await all_results(fleet, run)] == [BulkStatus.STARTED] * 7
    assert len(space.streams) == 7
    assert spoiled.seen > 2


@pytest.mark.parametrize(
    ("script", "moment"),
    [
        ("ACQUIRE_LEASE", "after"),
        ("CLAIM_ITEM", "before"),
        ("CLAIM_ITEM", "after"),
        ("RENEW_LEASE", "before"),
        ("COMPLETE_ITEM", "before"),
        ("COMPLETE_ITEM", "after"),
        ("RELEASE_ITEM", "before"),
        ("RELEASE_ITEM", "after"),
    ],
)
async def test_worker_that_dies_at_a_script_doubles_and_loses_nothing(
    space: SimulatedSpace,
    fleet: Fleet,
    workers: Workers,
    redis_server: RedisServer,
    client_for: Callable[..., StreamsClient],
    script: str,
    moment: Moment,
) -> None:
    """Another worker finds what its Redis knows: claims without an outcome are in doubt, and nothing else is."""
    if script == "RENEW_LEASE":
        space.faults.add("latency", on="start", seconds=VICTIMS_LEASE / 2, executed=True)
    if script == "RELEASE_ITEM":
        space.faults.add("status", on="start", status=401, body="api", times=7)
    run = await fleet.submit(requests_for(space))
    async with redis_proxy(redis_server.socket, redis_server.folder / "victim.sock") as victims:
        victims.cut_at(script_of(script), moment)
        victim = asyncio.create_task(FleetWorker(victims.url, client_for(space), lease_seconds=VICTIMS_LEASE).run())
        async with asyncio.timeout(PATIENCE):
            await victims.cut.wait()
        victim.cancel()
        with suppress(asyncio.CancelledError):
            await victim
    claimed = (await fleet.status(run)).counts.get("in_doubt", 0)
    running = Counter(stream.target_sid for stream in space.streams.active())
    space.faults.clear()
    workers(lease_seconds=LEASE)
    outcomes = await all_results(fleet, run)

    assert claimed == {("CLAIM_ITEM", "after"): 7, ("COMPLETE_ITEM", "before"): 7}.get((script, moment), claimed)
    found = Counter(outcome.status for outcome in outcomes)
    assert set(found) <= {BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.UNKNOWN}
    assert found[BulkStatus.UNKNOWN] == (4 if claimed == 7 else min(found[BulkStatus.UNKNOWN], claimed))
    assert space.streams.duplicates() == []
    after = Counter(stream.target_sid for stream in space.streams.active())
    assert not after - Counter(outcome.item.target for outcome in outcomes)
    in_doubt = {outcome.item.target for outcome in outcomes if outcome.status is BulkStatus.UNKNOWN}
    assert all(after[sid] == running[sid] for sid in in_doubt & set(space.call_sids)), "it was sent again"
    assert all(after[outcome.item.target] for outcome in outcomes if outcome.ok)


@pytest.mark.parametrize("error", SOME_ERRORS)
async def test_cancel_resume_and_stop_repeat_scripts_that_failed(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, proxy: RedisProxy, error: str
) -> None:
    done = await fleet.submit(requests_for(space))
    worker = workers()
    await all_results(fleet, done)
    await workers.end(worker)
    left = await fleet.submit(requests_for(space), run_id="left")
    scripts = ["CANCEL_RUN", "COMPLETE_ITEM", "MARK_STOPPED", "SET_ONCE", "UNSET"]
    spoiled = [proxy.spoil(script_of(name), ERRORS[error], times=2) for name in scripts]

    assert (await fleet.cancel(left)).counts == {"not_attempted": 7}
    assert [outcome.status for outcome in await all_results(fleet, left)] == [BulkStatus.NOT_ATTEMPTED] * 7
    with pytest.raises(InvalidRequestError, match="already exists"):
        await fleet.resume(left, run_id=done)
    assert (await fleet.status(left)).resumed_as is None
    assert await fleet.resume(left) == "left-r2"
    assert (await fleet.status("left-r2")).counts == {"pending": 7}
    assert (await fleet.stop_streams(done, workers.client).report()).counts == {BulkStatus.STOPPED: 7}
    await fleet._writer.idle()
    assert (await fleet.status(done)).rolled_back == 7
    assert len(space.streams) == 7
    assert all(one.seen > 2 for one in spoiled)


async def test_worker_leaves_items_to_others_if_only_its_claims_are_denied(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, proxy: RedisProxy
) -> None:
    """That Redis denies access to this worker says nothing about the items."""
    proxy.spoil(script_of("CLAIM_ITEM"), "NOPERM this user has no permissions to run the 'eval' command")
    run = await fleet.submit(requests_for(space))
    workers()

    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 7
    assert len(space.streams) == 7


async def test_redis_cluster_is_rejected_at_once(space: SimulatedSpace, fleet: Fleet, proxy: RedisProxy) -> None:
    proxy.spoil(script_of("CREATE_RUN"), "MOVED 3999 127.0.0.1:6381")
    with pytest.raises(FleetError, match="is a Redis Cluster, which is not supported"):
        await fleet.submit(requests_for(space), run_id="nightly")
    await fleet.submit(requests_for(space), run_id="nightly")
    assert (await fleet.status("nightly")).counts == {"pending": 7}


@pytest.mark.parametrize("password", ["hush", "hu%40sh"])
async def test_password_that_redis_repeats_is_in_no_log_and_no_error(
    redis_server: RedisServer, client: StreamsClient, caplog: pytest.LogCaptureFixture, password: str
) -> None:
    """As a Redis before version 6 does, which does not know the command that has it."""

    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                _, words = await read_command(reader)
                command, *arguments = (word.decode() for word in words)
                writer.write(f"-ERR unknown command '{command}', with args beginning with: {arguments}\r\n".encode())
        writer.close()

    socket = redis_server.folder / "repeats.sock"
    async with await asyncio.start_unix_server(repeat, str(socket)):
        url = f"unix://:{password}@{socket}"
        docket: Any = None  # which is for an in-memory Redis
        async with connect(url, docket, 0.0) as connection:
            with pytest.raises(FleetError, match="unknown command 'HELLO'") as caught:
                await connection.run(lambda redis: redis.ping())
        with pytest.raises(RateLimiterError, match="unknown command 'HELLO'") as refused:
            await RedisRateLimiter(url, space="x").__aenter__()
        worker = FleetWorker(url, client)
        working = asyncio.create_task(worker.run())
        await until(lambda: "Redis unavailable, retrying: unknown command" in caplog.text)
        worker.stop()
        await working
    shown = caplog.text + "".join(traceback.format_exception(caught.value))
    shown += "".join(traceback.format_exception(refused.value))
    assert (caught.value.__context__, refused.value.__context__) == (None, None)
    for secret in {password, unquote(password)}:
        assert secret not in shown
