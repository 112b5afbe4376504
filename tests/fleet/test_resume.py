"""Resuming finished runs."""

from collections.abc import AsyncIterator

import pytest
from attrs import evolve

from signalwire_streams import BulkStatus, InvalidRequestError, PlannedRequest, StartCallStream, StartConferenceStream
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._items import read_streams
from signalwire_streams.fleet._redis import next_run
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import URL, all_results, connection_of, keys_of, on_calls, on_conferences, record_of, redis_of, set_marks

DEAD = "i:dead.1"


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3, duplicate_names="http-error") as running:
        yield running


@pytest.fixture
async def nightly(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> str:
    """A cancelled run of six items, three of them in doubt after a worker died; one of those is running."""
    run = await fleet.submit([*on_conferences(space.conference_sids), *on_calls(space.call_sids)], run_id="nightly")
    await set_marks(fleet, run, {0: DEAD, 1: DEAD, 3: DEAD})
    sid = space.conference_sids[0]
    await workers.client.conferences.start_stream(sid, url=URL, name=f"sws-nightly-{sid}")
    await fleet.cancel(run)
    worker = workers()
    await all_results(fleet, run)
    assert (await fleet.status(run)).counts == {"unknown": 3, "not_attempted": 3}
    await workers.end(worker)
    return run


async def test_resume_starts_what_is_left_once(
    nightly: str, space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    assert (await fleet.status(nightly)).unfinished == 6
    run = await fleet.resume(nightly)
    assert run == "nightly-r2"
    assert (await fleet.status(run)).counts == {"pending": 6}
    assert await fleet.resume(nightly) == run  # as after one whose answer was lost

    workers()
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [
        BulkStatus.ALREADY_STARTED,
        BulkStatus.STARTED,
        BulkStatus.STARTED,
        BulkStatus.UNKNOWN,
        BulkStatus.STARTED,
        BulkStatus.STARTED,
    ]
    assert {stream.name for stream in space.streams} == {
        f"sws-nightly-{sid}" for sid in (*space.conference_sids, *space.call_sids[1:])
    }
    assert space.streams.duplicates() == []
    assert [found.run for found in await fleet.runs()] == ["nightly", "nightly-r2"]

    assert await fleet.resume(nightly) == run
    with pytest.raises(InvalidRequestError, match="was resumed as 'nightly-r2': use that one"):
        await fleet.resume(nightly, run_id="other")
    assert (await fleet.status(nightly)).resumed_as == run
    assert await fleet.resume(run, run_id="last") == "last"
    assert (await fleet.status("last")).planned == 1


async def test_unknown_items_stay_unknown_over_resumed_runs(
    nightly: str, space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    """A resumed run that is cancelled at once leaves its unknown items to the next one."""
    run = await fleet.resume(nightly)
    assert run is not None
    assert (await fleet.cancel(run)).counts == {"unknown": 3, "not_attempted": 3}
    stopped = {stream.name async for _, stream in read_streams(connection_of(fleet), await record_of(fleet, run))}
    assert stopped == {f"sws-nightly-{sid}" for sid in (*space.conference_sids[:2], space.call_sids[0])}

    again = await fleet.resume(run)
    assert again == "nightly-r3"
    workers()
    states = [outcome.status for outcome in await all_results(fleet, again)]
    assert states[:4] == [BulkStatus.ALREADY_STARTED, BulkStatus.STARTED, BulkStatus.STARTED, BulkStatus.UNKNOWN]
    assert space.streams.duplicates() == []


async def test_resume_with_taken_name_is_rejected(nightly: str, space: SimulatedSpace, fleet: Fleet) -> None:
    starts: list[StartConferenceStream | StartCallStream] = [
        *on_conferences(space.conference_sids),
        *on_calls(space.call_sids),
    ]
    await fleet.submit([evolve(start, name=f"sws-nightly-{start.target}") for start in starts], run_id="taken")
    with pytest.raises(InvalidRequestError, match="different requests already exists"):
        await fleet.resume(nightly, run_id="taken")

    assert (await fleet.status(nightly)).resumed_as is None
    assert await fleet.resume(nightly) == "nightly-r2"
    await redis_of(fleet).delete((await keys_of(fleet, nightly)).requests(0))
    with pytest.raises(InvalidRequestError, match="older than its retention period"):
        await fleet.resume(nightly)
    assert (await fleet.status(nightly)).resumed_as == "nightly-r2"


async def test_resume_of_partly_expired_run_is_rejected(nightly: str, space: SimulatedSpace, fleet: Fleet) -> None:
    await redis_of(fleet).delete((await keys_of(fleet, nightly)).requests(0))
    with pytest.raises(InvalidRequestError, match="older than its retention period"):
        await fleet.resume(nightly)
    assert [found.run for found in await fleet.runs()] == ["nightly"]


async def test_expired_run_leaves_nothing_to_new_run_of_its_name(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    workers()
    for _ in range(2):
        run = await fleet.submit(on_conferences(space.conference_sids), run_id="weekly")
        assert {outcome.status for outcome in await all_results(fleet, run)} == {BulkStatus.STARTED}
        assert [outcome.ok async for outcome in fleet.stop_streams(run, workers.client)] == [True] * 3
        await redis_of(fleet).delete(fleet._keys.run(run))
    assert len(space.streams) == 6
    assert space.streams.active() == []


async def test_resumed_run_asks_workers_for_secrets(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    requests = on_conferences(space.conference_sids, parameters={"key": "hidden"})
    run = await fleet.submit(requests, redact_secrets=True)
    await fleet.cancel(run)
    resumed = await fleet.resume(run)
    assert resumed is not None

    def give(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        assert planned.parameters == ("key",)
        return evolve(planned.request, parameters={"key": "hidden"})

    workers(secrets=give)
    assert {outcome.status for outcome in await all_results(fleet, resumed)} == {BulkStatus.STARTED}
    assert [stream.parameters for stream in space.streams] == [{"key": "hidden"}] * 3


async def test_resume_rejects_runs_that_are_running_or_unknown(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    with pytest.raises(InvalidRequestError, match="wait until it ends, or cancel it"):
        await fleet.resume(run)
    dead = await fleet.submit(on_calls(space.call_sids))
    await set_marks(fleet, dead, {0: DEAD})
    await fleet.cancel(dead)
    with pytest.raises(InvalidRequestError, match="or had when they died: start a worker"):
        await fleet.resume(dead)
    workers()
    await all_results(fleet, run)
    assert await fleet.resume(run) is None

    await workers.end_all()
    other = await fleet.submit(on_calls(space.call_sids))
    assert [outcome async for outcome in fleet.stop_streams(other, workers.client)] == []
    with pytest.raises(InvalidRequestError, match="have been stopped: submit a new run"):
        await fleet.resume(other)


async def test_runs_omits_expired_runs(space: SimulatedSpace, fleet: Fleet) -> None:
    assert await fleet.runs() == ()
    await fleet.submit(on_conferences(space.conference_sids), run_id="old")
    await fleet.submit(on_conferences(space.conference_sids), run_id="new")
    await redis_of(fleet).delete(fleet._keys.run("old"))

    assert [(found.run, found.planned, found.is_finished) for found in await fleet.runs()] == [("new", 3, False)]
    assert [found.run for found in await fleet.runs()] == ["new"]


@pytest.mark.parametrize(
    ("run", "following"),
    [("nightly", "nightly-r2"), ("nightly-r2", "nightly-r3"), ("2026-11-21", "2026-11-21-r2"), ("-r2", "-r2-r2")],
)
def test_next_run_counts_up(run: str, following: str) -> None:
    assert next_run(run) == following


def test_next_run_rejects_names_that_are_too_long() -> None:
    with pytest.raises(InvalidRequestError, match="too long for a run's id: pass an id"):
        next_run("a" * 62)
