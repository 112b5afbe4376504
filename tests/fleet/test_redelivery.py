"""Batches that come a second time: what a worker that died, stalled or was cut off left of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from signalwire_streams import BulkStatus, RetryPolicy, StartConferenceStream, StreamOutcomeUnknownError, StreamsClient
from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._results import BulkOutcome
from signalwire_streams.errors import RunCancelledError
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.fleet._batches import Lease, Leases
from signalwire_streams.fleet._items import ItemMark, key_of
from signalwire_streams.fleet._ledger import Batch, BatchLedger
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
    redis_of,
    set_marks,
    until,
)

DEAD = "i:dead.1"


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3, duplicate_names="http-error") as running:
        yield running


async def test_what_may_run_is_sent_again_under_its_name(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """Of a dead worker's starts on conferences those that run are found running, and the others are started."""
    requests = on_conferences(space.conference_sids)
    run = await fleet.submit(requests, name="nightly")
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


async def test_what_can_not_be_told_is_not_sent_again(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A dead worker's starts on calls, and those without a name, are reported as unknown; the others are made."""
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


async def test_a_call_is_sent_again_where_the_policy_says_so(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, client_for: Callable[..., StreamsClient]
) -> None:
    """With ``resend_call_starts`` a dead worker's start on a call is sent again under its name."""
    run = await fleet.submit(on_calls(space.call_sids))
    await set_marks(fleet, run, {0: DEAD})

    workers(client_for(space, retry=RetryPolicy(resend_call_starts=True)))
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * 3
    assert len(space.streams) == 3


async def test_what_is_settled_is_let_be(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A batch that is delivered once more sends nothing that has ended."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    worker = workers()
    await all_results(fleet, run)
    sent = space.requests.count("start-conference-stream")

    await worker._task(run, 0)

    assert space.requests.count("start-conference-stream") == sent
    assert (await fleet.status(run)).counts == {"started": 3}


async def test_a_cancelled_run_says_what_may_run(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """What a dead worker may have sent of a run that was cancelled is unknown, and not sent again; it is stopped."""
    run = await fleet.submit(on_conferences(space.conference_sids), name="nightly")
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


async def test_stopping_waits_for_what_is_under_way(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker has sent when the run is stopped is stopped as well, once its answer is there."""
    monkeypatch.setattr("signalwire_streams.fleet._fleet._POLL_EVERY", 0.02)
    space.faults.add("latency", on="start", seconds=0.2, executed=True)
    workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await until(lambda: _is_intended(fleet, run, 3))

    report = await fleet.stop_streams(run, workers.client).report()

    assert report.counts == {BulkStatus.STOPPED: 3}
    assert space.streams.active() == []


async def _is_intended(fleet: Fleet, run: str, count: int) -> bool:
    return (await fleet.status(run)).counts.get("in_doubt") == count


async def test_secrets_that_the_next_worker_lacks(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """What may run is not said to be refused by a worker that has no secrets for it."""
    requests = on_conferences(space.conference_sids, parameters={"key": "hidden"})
    run = await fleet.submit(requests, redact_secrets=True)
    await set_marks(fleet, run, {0: DEAD})

    workers()
    outcomes = await all_results(fleet, run)

    assert [outcome.status for outcome in outcomes] == [BulkStatus.UNKNOWN, BulkStatus.REJECTED, BulkStatus.REJECTED]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each try to take a batch in hand."""
    tries: list[str] = []
    take = Leases.acquire

    async def noting(self: Leases, key: str, owner: str, cut: Callable[[], None]) -> Lease | None:
        lease = await take(self, key, owner, cut)
        tries.append(key)
        return lease

    monkeypatch.setattr(Leases, "acquire", noting)
    return tries


async def test_a_batch_in_hand_is_waited_for(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, asked: list[str]
) -> None:
    """A batch that another worker has in hand is not touched until that one lets go of it."""
    run = await fleet.submit(on_conferences(space.conference_sids))
    lease = (await keys_of(fleet, run)).lease(0)
    await connection_of(fleet).script(ACQUIRE_LEASE, lease, "other", 60_000)

    workers(lease_seconds=4.0)
    await until(lambda: _holds(len(asked) > 1))
    assert space.requests.count("start-conference-stream") == 0
    await redis_of(fleet).delete(lease)

    assert len(await all_results(fleet, run)) == 3


async def test_a_worker_that_ends_does_not_wait_for_a_batch(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, asked: list[str]
) -> None:
    """A worker that waits for another's batch lets go of it when it is told to end."""
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


async def test_what_is_in_hand_is_finished_at_the_end(space: SimulatedSpace, fleet: Fleet, workers: Workers) -> None:
    """A worker that is told to end finishes what it has in hand, and takes nothing new."""
    space.faults.add("latency", on="start", seconds=0.2, executed=True)
    worker = workers()
    run = await fleet.submit(on_conferences(space.conference_sids))
    await until(lambda: _is_intended(fleet, run, 3))

    await workers.end(worker)

    assert (await fleet.status(run)).counts == {"started": 3}
    later = await fleet.submit(on_calls(space.call_sids))
    assert (await fleet.status(later)).counts == {"pending": 3}


@pytest.mark.parametrize("how", ["drain", "twice", "cancel"])
async def test_what_takes_too_long_is_handed_back(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, how: str
) -> None:
    """A worker that may not wait hands back what it has in hand, at once; the next one doubles and loses nothing."""
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


async def test_a_worker_ends_before_redis_answers(
    client: StreamsClient, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that still waits for Redis ends when it is told to, however often."""
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
    """Whoever lost a start to another worker does nothing more of it."""

    @pytest.fixture
    async def ledger(self, space: SimulatedSpace, fleet: Fleet) -> BatchLedger:
        run = await fleet.submit(on_conferences(space.conference_sids))
        writer = Writer(connection_of(fleet))
        batch = Batch(keys=await keys_of(fleet, run), run=run, number=0, retention=60)
        ledger = BatchLedger(batch, owner="old", writer=writer)
        ledger.expect(enumerate(on_conferences(space.conference_sids)))
        return ledger

    async def test_sends_nothing(self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger) -> None:
        """A mark that is another's now keeps its start from being sent, and from having an outcome."""
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        entry = ledger.known(key, progress)
        await set_marks(fleet, ledger.run, {0: "i:new"})

        with pytest.raises(RunCancelledError, match="another worker") as caught:
            await ledger.intend(key, progress, entry)
        ledger.note(progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value))
        await ledger.written()

        assert ledger.lost == {0}
        assert (await fleet.status(ledger.run)).counts == {"in_doubt": 1, "pending": 2}

    async def test_settles_nothing(self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger) -> None:
        """An answer that comes after another worker took over is not written."""
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        await ledger.intend(key, progress, ledger.known(key, progress))
        await redis_of(fleet).hset(ledger.batch.marks, "0", "i:new")

        ledger.note(progress, BulkOutcome(index=0, item=None, status=BulkStatus.STARTED))
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"in_doubt": 1, "pending": 2}

    async def test_sends_nothing_of_a_run_that_was_ended(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        """A run that is cancelled when a batch is about to be sent keeps it from being sent."""
        requests = dict(enumerate(on_conferences(space.conference_sids)))
        await connection_of(fleet).script(CANCEL_RUN, fleet._keys.run(ledger.run), "cancelled", "it was cancelled")
        key, progress = key_of(requests[0]), CallState()
        entry = ledger.known(key, progress)

        with pytest.raises(RunCancelledError, match="cancelled before its turn") as caught:
            await ledger.intend(key, progress, entry)
        ledger.note(progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value))
        ledger.settle_rest(requests)
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"not_attempted": 3}

    async def test_a_mark_that_is_there_is_there(
        self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger
    ) -> None:
        """A mark that was set when the run was ended, and whose answer was lost, is found when it is set again."""
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        await set_marks(fleet, ledger.run, {0: "i:old"})
        await connection_of(fleet).script(CANCEL_RUN, fleet._keys.run(ledger.run), "cancelled", "it was cancelled")

        await ledger.intend(key, progress, ledger.known(key, progress))
        assert not ledger.lost

    async def test_hands_back_what_was_not_sent(self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger) -> None:
        """What was cut before it was sent is as good as new."""
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()

        async def cut() -> None:
            await ledger.intend(key, progress, ledger.known(key, progress))
            await asyncio.sleep(60)

        task = asyncio.create_task(cut())
        await until(lambda: _is_intended(fleet, ledger.run, 1))
        ledger.hand_back()
        with pytest.raises(asyncio.CancelledError):
            await task
        ledger.note(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("cut"))
        )
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"pending": 3}
        other, later = key_of(on_conferences(space.conference_sids)[1]), CallState()
        entry = ledger.known(other, later)
        with pytest.raises(RunCancelledError, match="left to other workers") as caught:
            await ledger.intend(other, later, entry)
        ledger.note(later, BulkOutcome(index=1, item=None, status=BulkStatus.NOT_ATTEMPTED, error=caught.value))
        await ledger.written()
        assert (await fleet.status(ledger.run)).counts == {"pending": 3}

    async def test_says_no_less_than_is_known(self, space: SimulatedSpace, fleet: Fleet, ledger: BatchLedger) -> None:
        """A start that may have been sent before does not end as one that was not."""
        ledger.marks = {0: ItemMark(DEAD)}
        await set_marks(fleet, ledger.run, {0: DEAD})
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState(may_have_succeeded=True)
        await ledger.intend(key, progress, ledger.known(key, progress))

        ledger.note(
            progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("ended"))
        )
        await ledger.written()

        assert (await fleet.status(ledger.run)).counts == {"unknown": 1, "pending": 2}


class TestLeases:
    """A worker knows by its own clock when what it has in hand may be another's."""

    async def test_a_stalled_worker_cuts_first(self, fleet: Fleet) -> None:
        """After a pause that was too long, what is in hand is cut before anything else goes on."""
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

    async def test_a_lease_that_is_another_s_is_lost(self, fleet: Fleet) -> None:
        """A lease that Redis gave to another is cut at the next renewal; ours are renewed."""
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

    async def test_what_is_taken_after_the_cut_is_lost(self, fleet: Fleet) -> None:
        """A lease that was on its way when the worker let go of all is let go of as well."""
        cuts: list[str] = []
        leases = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        taking = asyncio.create_task(leases.acquire("late", "me", lambda: cuts.append("cut")))
        await asyncio.sleep(0)

        leases.lose_all()
        lease = await taking
        assert lease is not None

        assert (lease.is_lost, cuts) == (True, ["cut"])
        await leases.release(lease)
        assert (
            await Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat).acquire(
                "late", "other", lambda: None
            )
            is not None
        )

    async def test_only_what_was_not_renewed_is_cut(self, fleet: Fleet) -> None:
        """A look at the clock cuts what was renewed too long ago, and nothing else."""
        leases = Leases(connection_of(fleet), duration=20.0, heartbeat=no_heartbeat)
        old = await leases.acquire("old", "me", lambda: None)
        fresh = await leases.acquire("fresh", "me too", lambda: None)
        assert old is not None
        assert fresh is not None
        old.renewed_at -= 15.0

        leases._check()
        await leases.stop()

        assert (old.is_lost, fresh.is_lost) == (True, False)

    async def test_ends_where_it_did_not_begin(self, fleet: Fleet) -> None:
        """What was not begun can be ended; what is lost is lost once."""
        cuts: list[int] = []
        lease = Lease("key", "me", lambda: cuts.append(1), 0.0)
        lease.lose()
        lease.lose()
        await Leases(connection_of(fleet), duration=1.0, heartbeat=no_heartbeat).stop()

        assert cuts == [1]


async def _holds(what: bool) -> bool:
    return what
