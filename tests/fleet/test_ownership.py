"""Ownership and expiry in Redis: no worker changes the data of another, and everything the fleet writes expires."""

import asyncio
import itertools
from collections.abc import Callable
from datetime import datetime

import pytest
from attrs import evolve

from signalwire_streams import BulkOutcome, BulkStatus, Clock, InvalidRequestError
from signalwire_streams._http.messages import CallState
from signalwire_streams.errors import RunCancelledError
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._fleet import Submission
from signalwire_streams.fleet._items import Batch, Evidence, ItemMark, key_of
from signalwire_streams.fleet._leases import Leases
from signalwire_streams.fleet._ledger import BatchLedger
from signalwire_streams.fleet._redis import Connection, Writer
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Workers
from .helpers import (
    Pipe,
    all_results,
    connection_of,
    no_heartbeat,
    on_conferences,
    record_of,
    redis_of,
    set_marks,
    until,
)

HOUR = 3600
WEEK = 7 * 24 * HOUR
LEASE = 15.0  # seconds, the default of a worker


async def lifetimes(fleet: Fleet) -> dict[str, int]:
    """Return the seconds until each of the fleet's keys expires (-1: never), by the last word of the key."""
    connection = connection_of(fleet)
    prefix = f"{fleet._keys.prefix}:our:"
    names = [bytes(name).decode() for name in await connection.client.keys(f"{prefix}*")]
    words = [[part for part in name.removeprefix(prefix).split(":") if part.isalpha()][-1] for name in names]
    seconds = [await connection.client.ttl(name) for name in names]
    return dict(zip(words, seconds, strict=True))


@pytest.mark.parametrize("keep", [None, 600.0])
async def test_keys_of_run_expire_after_retention(
    space: SimulatedSpace, url: str, workers: Workers, keep: float | None
) -> None:
    """Requests expire an hour later than the rest."""
    options = {} if keep is None else {"retention": keep}
    expected = WEEK if keep is None else round(keep)
    workers()
    async with Fleet(url, space=space.base_url, project=space.project, **options) as fleet:
        run = await fleet.submit(on_conferences(space.conference_sids), run_id="nightly")
        await all_results(fleet, run)
        _ = [outcome async for outcome in fleet.stop_streams(run, workers.client)]
        await fleet._writer.idle()
        found = await lifetimes(fleet)
        forgotten_at = await redis_of(fleet).zscore(fleet._keys.runs, "nightly")
        began = datetime.fromisoformat((await fleet.status(run)).started_at).timestamp()

    kept = {name: found[name] for name in ("nightly", "marks", "outcomes", "stopped")}
    assert kept == pytest.approx(dict.fromkeys(kept, expected), abs=60)
    assert found["requests"] == pytest.approx(expected + HOUR, abs=60)
    assert forgotten_at == pytest.approx(began + expected, abs=60)
    assert set(found) <= {*kept, "requests", "worker", "workers", "runs"} | {name for name in found if "-" in name}


async def test_claimed_mark_expires(space: SimulatedSpace, fleet: Fleet) -> None:
    """A mark that a worker sets before it sends a start expires even if the worker dies at once."""
    run, ledger = await _ledger_of(space, fleet)
    key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
    await ledger.intend(key, progress, ledger.known(key, progress))

    assert 0 < (await lifetimes(fleet))["marks"] <= 60
    assert (await fleet.status(run)).counts == {"in_doubt": 1, "pending": 2}


async def test_marks_and_outcomes_of_cancel_expire(space: SimulatedSpace, fleet: Fleet) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await fleet.cancel(run)

    found = await lifetimes(fleet)
    assert (found["marks"], found["outcomes"]) == pytest.approx((WEEK, WEEK), abs=60)


async def test_lease_expires_unless_renewed(space: SimulatedSpace, fleet: Fleet) -> None:
    connection = connection_of(fleet)
    leases = Leases(connection, duration=LEASE, heartbeat=no_heartbeat)
    lease = await leases.acquire("lease", "me", lambda: None)
    assert lease is not None
    assert 0 < await connection.client.ttl("lease") <= LEASE

    await connection.client.set("lease", "me")  # without an end
    renewed_at = lease.renewed_at
    _ = leases.start()
    await until(lambda: _holds(lambda: lease.renewed_at > renewed_at))
    await leases.stop()

    assert 0 < await connection.client.ttl("lease") <= LEASE


async def test_worker_entry_expires_after_a_lease(fleet: Fleet, workers: Workers) -> None:
    worker = workers(name="one")
    await until(fleet.workers)

    assert worker.lease_seconds == LEASE
    assert 0 < await redis_of(fleet).ttl(fleet._keys.worker("one")) <= LEASE


async def test_submit_removes_expired_runs_from_index(space: SimulatedSpace, fleet: Fleet) -> None:
    connection = connection_of(fleet)
    await connection.client.zadd(fleet._keys.runs, {"expired": 1.0, "running": 99_999_999_999.0})

    await fleet.submit(on_conferences(space.conference_sids), run_id="nightly")

    names = await connection.client.zrange(fleet._keys.runs, 0, -1)
    assert sorted(names) == [b"nightly", b"running"]


async def _ledger_of(space: SimulatedSpace, fleet: Fleet) -> tuple[str, BatchLedger]:
    run = await fleet.submit(on_conferences(space.conference_sids))
    batch = Batch(evolve(await record_of(fleet, run), retention=60), 0)
    ledger = BatchLedger(batch, owner="old", writer=Writer(connection_of(fleet)))
    ledger.marks = {index: ItemMark() for index in range(3)}
    for index, request in enumerate(on_conferences(space.conference_sids)):
        ledger.expect(key_of(request), index)
    return run, ledger


async def test_replaced_owner_does_not_release_mark_of_successor(space: SimulatedSpace, fleet: Fleet) -> None:
    run, ledger = await _ledger_of(space, fleet)
    key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()

    async def send() -> None:
        await ledger.intend(key, progress, ledger.known(key, progress))
        await asyncio.Event().wait()

    sending = asyncio.create_task(send())
    await until(lambda: _holds(lambda: 0 in ledger._claimed))
    await redis_of(fleet).hset(ledger.batch.marks, "0", "i:new")
    ledger.requeue()
    with pytest.raises(asyncio.CancelledError):
        await sending
    ledger.record_outcome(
        progress, BulkOutcome(index=0, item=None, status=BulkStatus.NOT_ATTEMPTED, error=RunCancelledError("cut"))
    )
    assert not await ledger.written()

    assert await redis_of(fleet).hget(ledger.batch.marks, "0") == b"i:new"
    assert (await fleet.status(run)).counts == {"in_doubt": 1, "pending": 2}


async def test_repeated_script_call_counts_once(space: SimulatedSpace, fleet: Fleet) -> None:
    """A mark or outcome that is written again because its reply was lost changes no count and adds no outcome."""
    run, ledger = await _ledger_of(space, fleet)
    for repetition in range(2):
        key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()
        if repetition:
            ledger.expect(key, 0)
        await ledger.intend(key, progress, ledger.known(key, progress))
        assert (await fleet.status(run)).counts == {"in_doubt": 1, "pending": 2}
    outcome = BulkOutcome(index=0, item=None, status=BulkStatus.STARTED, attempts=2)
    for _ in range(2):
        ledger._complete(0, outcome, Evidence.NONE)
        await ledger.written()

    status = await fleet.status(run)
    assert status.counts == {"started": 1, "pending": 2}
    assert (status.attempts, status.errors) == (2, {})
    assert await redis_of(fleet).xlen(ledger.batch.record.keys.outcomes) == 1


async def test_nothing_is_written_about_expired_run(space: SimulatedSpace, fleet: Fleet) -> None:
    """A worker that still has a batch of an expired run creates no key, which would then never expire."""
    run, ledger = await _ledger_of(space, fleet)
    connection = connection_of(fleet)
    await connection.client.delete(fleet._keys.run(run))
    key, progress = key_of(on_conferences(space.conference_sids)[0]), CallState()

    with pytest.raises(RunCancelledError, match="cancelled before its turn"):
        await ledger.intend(key, progress, ledger.known(key, progress))
    ledger._complete(0, BulkOutcome(index=0, item=None, status=BulkStatus.STARTED), Evidence.NONE)
    ledger._release(0, progress)
    await ledger.written()

    assert set(await lifetimes(fleet)) == {"requests", "runs"}


async def test_worker_does_not_release_lease_of_another(fleet: Fleet) -> None:
    connection = connection_of(fleet)
    old, new = (
        Leases(connection, duration=LEASE, heartbeat=no_heartbeat),
        Leases(connection, duration=LEASE, heartbeat=no_heartbeat),
    )
    lease = await old.acquire("lease", "old", lambda: None)
    assert lease is not None
    await connection.client.delete("lease")  # it expired
    assert await new.acquire("lease", "new", lambda: None) is not None

    await old.release(lease)

    assert await connection.client.get("lease") == b"new"
    assert await old.acquire("lease", "old", lambda: None) is None


async def test_failed_resume_removes_only_its_own_name(
    space: SimulatedSpace, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await fleet.cancel(run)
    facts = fleet._keys.run(run)

    async def refused(self: Submission, requests: object) -> None:
        assert (await fleet.status(run)).resumed_as == "mine"
        await redis_of(fleet).hset(facts, "resumed", "theirs")
        raise InvalidRequestError("that name is taken")

    monkeypatch.setattr(Submission, "submit", refused)
    with pytest.raises(InvalidRequestError, match="that name is taken"):
        await fleet.resume(run, run_id="mine")

    assert (await fleet.status(run)).resumed_as == "theirs"


@pytest.mark.parametrize("state", ["resumed", "stopping"])
async def test_run_is_either_resumed_or_stopped(
    space: SimulatedSpace, fleet: Fleet, workers: Workers, state: str
) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    await fleet.cancel(run)
    if state == "stopping":
        await set_marks(fleet, run, {0: "f:unknown:i:"})
        _ = [outcome async for outcome in fleet.stop_streams(run, workers.client)]
        with pytest.raises(InvalidRequestError, match="have been stopped"):
            await fleet.resume(run)
    else:
        assert await fleet.resume(run, run_id="first") == "first"
        with pytest.raises(InvalidRequestError, match="was resumed as 'first'"):
            await fleet.resume(run, run_id="second")
        assert await fleet.resume(run) == "first"


async def test_second_cancel_keeps_first_reason(space: SimulatedSpace, fleet: Fleet) -> None:
    run = await fleet.submit(on_conferences(space.conference_sids))
    facts = fleet._keys.run(run)
    await redis_of(fleet).hset(facts, mapping={"ended": "cancelled", "reason": "the first reason"})

    status = await fleet.cancel(run)

    assert (status.cancelled, status.cancel_reason) == ("cancelled", "the first reason")
    assert status.counts == {"not_attempted": 3}


class TestRenewal:
    """A worker renews its leases often enough to keep them, and gives them up before Redis does."""

    async def test_lease_is_renewed_several_times_while_it_lasts(self, idle_clock: Clock) -> None:
        """Two renewals may fail, and the lease does not expire."""
        asked: list[float] = []
        redis = Redis()

        def heartbeat(pipe: object) -> None:
            asked.append(idle_clock.now())

        leases = Leases(Connection(redis, 60.0), duration=LEASE, heartbeat=heartbeat)
        lease = await leases.acquire("lease", "me", lambda: None)
        assert lease is not None
        _ = leases.start()
        await asyncio.sleep(4 * LEASE)
        await leases.stop()

        assert not lease.is_lost
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert max(gaps) <= LEASE / 3
        assert min(gaps) >= LEASE / 10
        assert redis.granted == 1 + len(asked)

    async def test_lease_without_renewal_is_lost_before_it_expires(self, idle_clock: Clock) -> None:
        """A worker without replies cancels its starts while the lease still lasts, and not much earlier."""
        redis, cut_at = Redis(), list[float]()
        leases = Leases(Connection(redis, 600.0), duration=LEASE, heartbeat=no_heartbeat)
        began = idle_clock.now()
        lease = await leases.acquire("lease", "me", lambda: cut_at.append(idle_clock.now()))
        assert lease is not None
        redis.answers = False
        _ = leases.start()
        await asyncio.sleep(2 * LEASE)
        await leases.stop()

        assert lease.is_lost
        [seconds] = [at - began for at in cut_at]
        assert LEASE / 2 < seconds < LEASE * 0.8


class Redis:
    """A Redis that grants every lease, until it stops answering."""

    def __init__(self) -> None:
        self.answers = True
        self.granted = 0

    def pipeline(self) -> Pipe:
        return Pipe(self)

    async def eval(self, *_: object) -> bytes:
        if not self.answers:
            await asyncio.Event().wait()
        self.granted += 1
        return b"ok"


async def _holds(what: Callable[[], bool]) -> bool:
    return what()
