"""Batches that are delivered again after a worker died, stalled or was cut off."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable

import pytest
from attrs import evolve

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    Clock,
    RetryPolicy,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams._http.messages import CallState
from signalwire_streams.errors import RunCancelledError
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.fleet._items import Batch, ItemMark, key_of
from signalwire_streams.fleet._leases import Lease, Leases
from signalwire_streams.fleet._ledger import BatchLedger
from signalwire_streams.fleet._lua import ACQUIRE_LEASE, CANCEL_RUN
from signalwire_streams.fleet._redis import Connection, Writer
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import (
    PATIENCE,
    URL,
    all_results,
    connection_of,
    keys_of,
    no_heartbeat,
    on_calls,
    on_conferences,
    record_of,
    redis_of,
    set_marks,
    until,
)

DEAD = "i:dead.1"


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3, duplicate_names="http-error") as running:
        yield running


async def test_conference_in_doubt_is_sent_again_under_its_name(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    """Of a dead worker's starts, those that are running end as already started, and the others are started."""
    requests = on_conferences(space.conference_sids)
    run = await fleet.submit(requests, run_id="nightly")
    await set_marks(fleet, run, {0: DEAD, 1: DEAD})
    await workers.client.conferences.start_stream(requests[0].target, url=URL, name=f"sws-nightly-{requests[0].target}")

    workers()
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [
        BulkStatus.ALREADY_STARTED,
        BulkStatus.STARTED,
        BulkStatus.STARTED,
    ]
    assert [outcome.stream.ambiguous for outcome in outcomes if outcome.stream] == [True, True, False]
    assert len(space.streams.active()) == 3
    assert (await fleet.status(run)).counts == {"already_started": 1, "started": 2}


async def test_calls_and_unnamed_starts_in_doubt_are_unknown(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    unnamed = [StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, unnamed=True) for _ in range(3)]
    run = await fleet.submit([*on_calls(space.call_sids), *unnamed])
    await set_marks(fleet, run, {1: DEAD, 4: DEAD})

    workers()
    outcomes = await all_results(fleet, run)

    states = [BulkStatus.STARTED, BulkStatus.UNKNOWN, BulkStatus.STARTED] * 2
    assert [outcome.status for outcome in outcomes] == states
    assert isinstance(outcomes[1].error, StreamOutcomeUnknownError)
    assert isinstance(outcomes[4].error, StreamOutcomeUnknownError)
    assert len(space.streams) == 4


async def test_call_in_doubt_is_sent_again_if_policy_allows(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client_for: Callable[..., StreamsClient]
) -> None:
    run = await fleet.submit(on_calls(space.call_sids))
    await set_marks(fleet, run, {0: DEAD})

    workers(client_for(space, retry=RetryPolicy(resend_call_starts=True)))
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 3
    assert len(space.streams) == 3


async def test_redelivered_batch_skips_settled_items(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    worker = workers()
    await all_results(fleet, run)
    sent = space.requests.count("start-conference-stream")

    await worker._task(run, 0)

    assert space.requests.count("start-conference-stream") == sent
    assert (await fleet.status(run)).counts == {"started": 3}


async def test_item_in_doubt_of_cancelled_run_is_unknown_and_stopped(
    space: SimulatedSpace, fleet: Fleet, workers: Workers
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids), run_id="nightly")
    target = space.conference_sids[0]
    await set_marks(fleet, run, {0: DEAD})
    await workers.client.conferences.start_stream(target, url=URL, name=f"sws-nightly-{target}")
    assert (await fleet.cancel(run)).counts == {"in_doubt": 1, "not_attempted": 2}

    report = await fleet.stop_streams(run, workers.client).report()
    workers()
    outcomes = await all_results(fleet, run)

    assert report.counts == {BulkStatus.STOPPED: 1}
    states = [BulkStatus.UNKNOWN, BulkStatus.NOT_ATTEMPTED, BulkStatus.NOT_ATTEMPTED]
    assert [outcome.status for outcome in outcomes] == states
    assert space.streams.active() == []
    assert len(space.streams) == 1


async def test_stop_streams_waits_for_starts_in_flight(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signalwire_streams.fleet._fleet._POLL_EVERY", 0.02)
    space.faults.add("latency", on="start", seconds=0.2, executed=True)
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await until(lambda: _is_intended(fleet, run, 3))

    report = await fleet.stop_streams(run, workers.client).report()

    assert report.counts == {BulkStatus.STOPPED: 3}
    assert space.streams.active() == []


async def test_stop_streams_waits_half_a_minute_for_starts_of_a_live_worker(
    space: SimulatedSpace, fleet: Fleet, client: StreamsClient, idle_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks every second, and then stops what may be running."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    await set_marks(fleet, run, {0: DEAD})
    asked: list[float] = []

    async def workers() -> tuple[str, ...]:
        asked.append(idle_clock.now())
        return ("alive",)

    monkeypatch.setattr(fleet, "workers", workers)
    report = await fleet.stop_streams(run, client).report()

    asked_by_cancel, *pauses = [round(later - earlier, 1) for earlier, later in itertools.pairwise(asked)]
    assert (asked_by_cancel, pauses) == (0.0, [1.0] * 29)
    assert report.total == 1


async def _is_intended(fleet: Fleet, run: str, count: int) -> bool:
    return (await fleet.status(run)).counts.get("in_doubt") == count


async def test_item_in_doubt_without_secrets_is_unknown(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    requests = on_conferences(space.conference_sids, parameters={"key": "hidden"})
    run = await fleet.submit(requests, redact_secrets=True)
    await set_marks(fleet, run, {0: DEAD})

    workers()
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.UNKNOWN, BulkStatus.REJECTED, BulkStatus.REJECTED]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each attempt to acquire a lease."""
    tries: list[str] = []
    take = Leases.acquire

    async def noting(self: Leases, key: str, owner: str, cut: Callable[[], None]) -> Lease | None:
        lease = await take(self, key, owner, cut)
        tries.append(key)
        return lease

    monkeypatch.setattr(Leases, "acquire", noting)
    return tries


async def test_batch_of_another_worker_is_waited_for(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, asked: list[str]
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    lease = (await keys_of(fleet, run)).lease(0)
    await connection_of(fleet).script(ACQUIRE_LEASE, lease, "other", 60_000)

    workers(lease_seconds=4.0)
    await until(lambda: _holds(len(asked) > 1))
    assert space.requests.count("start-conference-stream") == 0
    await redis_of(fleet).delete(lease)

    assert len(await all_results(fleet, run)) == 3


async def test_stopping_worker_does_not_wait_for_batch_of_another(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, asked: list[str]
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    lease = (await keys_of(fleet, run)).lease(0)
    await connection_of(fleet).script(ACQUIRE_LEASE, lease, "other", 60_000)
    worker = workers(lease_seconds=4.0)
    await until(lambda: _holds(bool(asked)))

    await workers.end(worker)
    await redis_of(fleet).delete(lease)
    workers()

    assert len(await all_results(fleet, run)) == 3
    assert len(space.streams) == 3


async def test_stopping_worker_finishes_starts_in_flight(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    space.faults.add("latency", on="start", seconds=0.2, executed=True)
    worker = workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await until(lambda: _is_intended(fleet, run, 3))

    await workers.end(worker)

    assert (await fleet.status(run)).counts == {"started": 3}
    later = await fleet.submit(on_calls(space.call_sids))
    assert (await fleet.status(later)).counts == {"pending": 3}


@pytest.mark.parametrize("how", ["drain", "twice", "cancel"])
async def test_starts_in_flight_are_handed_back_and_not_doubled(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, how: str
) -> None:
    space.faults.add("hang", on="start", executed=True, times=3)
    worker = workers(shutdown_timeout=0.1 if how == "drain" else 60)
    requests = on_conferences(space.conference_sids)
    run = await fleet.submit(requests)
    await until(lambda: _are_streams(space, 3))

    if how == "cancel":
        task = workers.running.pop(worker)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        worker.stop()
        if how == "twice":
            worker.stop()
        await workers.running.pop(worker)
    assert (await fleet.status(run)).counts == {"in_doubt": 3}
    workers()

    outcomes = await all_results(fleet, run)
    assert [outcome.status for outcome in outcomes] == [BulkStatus.ALREADY_STARTED] * 3
    assert len(space.streams.active()) == 3


async def test_worker_stopped_before_run_returns_at_once(client: StreamsClient, url: str) -> None:
    worker = FleetWorker(url, client)
    worker.stop()
    worker.stop()
    async with asyncio.timeout(PATIENCE):
        await worker.run()


async def test_worker_stops_before_redis_responds(
    client: StreamsClient, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def silent(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Connection, "run", silent)
    worker = FleetWorker(url, client)
    task = asyncio.create_task(worker.run())
    await asked.wait()
    worker.stop()
    worker.stop()
    async with asyncio.timeout(PATIENCE):
        await task


async def _are_streams(space: SimulatedSpace, count: int) -> bool:
    return len(space.streams) == count


class TestAnOwnerThatWasReplaced:
    """An owner that lost an item to another worker leaves it alone."""

    @pytest.fixture
    async def ledger(self, space: SimulatedSpace, fleet: Fleet) -> BatchLedger:
        run = await fleet.submit(on_conferences(space.conference_sids))
        writer = Writer(connection_of(fleet))
        batch = Batch(evolve(await record_of(fleet, run), retention=60), 0)
        ledger = BatchLedger(batch, owner="old", writer=writer)
        for index, request in enumerate(on_conferences(space.conference_sids)):
            ledger.expect(key_of(request), index)
        return ledger

    @pytest.mark.parametrize(
        ("is_handed_back", "counts"), [(False, {"in_doubt": 1, "pending": 2}), (True, {"pending": 3})]
    )
    async def test_sends_nothing_that_another_worker_claimed(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger, counts: dict[str, int], *, is_handed_back: bool
    ) -> None:
        """Nor does it write an outcome, though the other worker may have left the item as it was found."""
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        entry = ledger.known(key, progress)
        await set_marks(fleet, ledger.run, {0: "i:new"})

        with pytest.raises(RunCancelledError, match="another worker") as caught:
            await ledger.intend(key, progress, entry)
        if is_handed_back:
            await redis_of(fleet).hdel(ledger.batch.marks, "0")
            await redis_of(fleet).hincrby(fleet._keys.run(ledger.run), "c:in_doubt", -1)
        ledger.record_outcome(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value)
        )
        await ledger.written()

        assert ledger.lost == {0}
        assert (await fleet.status(ledger.run)).counts == counts

    async def test_writes_no_outcome_after_another_worker_took_over(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        await ledger.intend(key, progress, ledger.known(key, progress))
        await redis_of(fleet).hset(ledger.batch.marks, "0", "i:new")

        ledger.record_outcome(progress, BulkOutcome(index=0, item=None, status=BulkStatus.STARTED))
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"in_doubt": 1, "pending": 2}

    async def test_reports_item_in_doubt_of_cancelled_run_as_unknown(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        """Nothing is sent again, and the stream of the worker that died may be running."""
        await set_marks(fleet, ledger.run, {0: "i:dead"})
        await connection_of(fleet).script(CANCEL_RUN, fleet._keys.run(ledger.run), "cancelled", "it was cancelled")
        ledger.marks = {0: ItemMark("i:dead")}
        key, state = key_of(on_conferences(space.conference_sids)[0]), CallState()

        with pytest.raises(StreamOutcomeUnknownError, match="may have started it; the run was cancelled") as caught:
            await ledger.intend(key, state, ledger.known(key, state))

        assert (caught.value.target, caught.value.sent) == (space.conference_sids[0], "maybe")
        assert not space.streams

    async def test_sends_nothing_of_cancelled_run(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        requests = dict(enumerate(on_conferences(space.conference_sids)))
        await connection_of(fleet).script(CANCEL_RUN, fleet._keys.run(ledger.run), "cancelled", "it was cancelled")
        key, progress = key_of(requests[0]), CallState()
        entry = ledger.known(key, progress)

        with pytest.raises(RunCancelledError, match="cancelled before its turn") as caught:
            await ledger.intend(key, progress, entry)
        ledger.record_outcome(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value)
        )
        ledger.complete_rest(requests)
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"not_attempted": 3}

    async def test_own_mark_counts_although_its_response_was_lost(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        await set_marks(fleet, ledger.run, {0: "i:old"})
        await connection_of(fleet).script(CANCEL_RUN, fleet._keys.run(ledger.run), "cancelled", "it was cancelled")

        await ledger.intend(key, progress, ledger.known(key, progress))
        assert not ledger.lost

    async def test_releases_items_that_were_not_sent(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()

        async def cut() -> None:
            await ledger.intend(key, progress, ledger.known(key, progress))
            await asyncio.sleep(60)

        task = asyncio.create_task(cut())
        await until(lambda: _is_intended(fleet, ledger.run, 1))
        ledger.requeue()
        with pytest.raises(asyncio.CancelledError):
            await task
        ledger.record_outcome(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("cut"))
        )
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"pending": 3}
        other, later = key_of(on_conferences(space.conference_sids)[1]), CallState()
        entry = ledger.known(other, later)
        with pytest.raises(RunCancelledError, match="left to other workers") as caught:
            await ledger.intend(other, later, entry)
        ledger.record_outcome(
            later, BulkOutcome(index=1, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value)
        )
        await ledger.written()
        assert (await fleet.status(ledger.run)).counts == {"pending": 3}

    async def test_item_in_doubt_is_not_reported_as_not_attempted(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        ledger.marks = {0: ItemMark(DEAD)}
        await set_marks(fleet, ledger.run, {0: DEAD})
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState(may_have_succeeded=True)
        await ledger.intend(key, progress, ledger.known(key, progress))

        ledger.record_outcome(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("ended"))
        )
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"unknown": 1, "pending": 2}


class TestLeases:
    """A worker knows by its own clock when its leases may have passed to another."""

    async def test_suspended_worker_cancels_starts_first(self, fleet: Fleet) -> None:
        """After a suspension, its starts are cancelled before anything else runs."""
        said: list[str] = []
        leases = Leases(connection_of(fleet), duration=0.2, heartbeat=no_heartbeat)
        _ = leases.start()
        lease = await leases.acquire("lease", "me", lambda: said.append("cut"))
        assert lease is not None
        woken = asyncio.create_task(self._after(0.05, said))
        await asyncio.sleep(0)

        time.sleep(0.3)  # noqa: ASYNC251  (the pause itself)
        await woken
        await leases.stop()

        assert said == ["cut", "woken"]
        assert lease.is_lost

    @staticmethod
    async def _after(seconds: float, said: list[str]) -> None:
        await asyncio.sleep(seconds)
        said.append("woken")

    async def test_lease_of_another_is_lost_at_renewal(self, fleet: Fleet) -> None:
        leases = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        lost = await leases.acquire("lost", "me", lambda: None)
        kept = await leases.acquire("kept", "me too", lambda: None)
        assert lost is not None
        assert kept is not None
        await redis_of(fleet).set("lost", "other")
        renewed_at = kept.renewed_at

        _ = leases.start()
        await until(lambda: _holds(lost.is_lost and kept.renewed_at > renewed_at))
        await leases.stop()
        assert not kept.is_lost
        assert await leases.acquire("lost", "third", lambda: None) is None

    async def test_lease_acquired_after_lose_all_is_lost(self, fleet: Fleet) -> None:
        cuts: list[str] = []
        leases = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        leases.lose_all()

        lease = await leases.acquire("late", "me", lambda: cuts.append("cut"))
        assert lease is not None

        assert (lease.is_lost, cuts) == (True, ["cut"])
        await leases.release(lease)
        others = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        assert await others.acquire("late", "other", lambda: None) is not None

    async def test_check_loses_only_leases_without_renewal(self, fleet: Fleet) -> None:
        leases = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        old = await leases.acquire("old", "me", lambda: None)
        fresh = await leases.acquire("fresh", "me too", lambda: None)
        assert old is not None
        assert fresh is not None
        old.renewed_at -= 15.0

        leases._check()
        await leases.stop()

        assert (old.is_lost, fresh.is_lost) == (True, False)

    async def test_leases_stop_without_start(self, fleet: Fleet) -> None:
        """A lost lease is lost once."""
        cuts: list[int] = []
        lease = Lease("key", "me", lambda: cuts.append(1), 0.0)
        lease.lose()
        lease.lose()
        await Leases(connection_of(fleet), duration=1.0, heartbeat=no_heartbeat).stop()

        assert cuts == [1]


async def _holds(what: bool) -> bool:
    return what
