"""No run claims what it can't know, and no journal loses what somebody knew."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    Clock,
    ConferenceStream,
    InvalidRequestError,
    JournalError,
    RateLimit,
    RetryPolicy,
    RunCancelledError,
    StartCallStream,
    StreamsClient,
)
from signalwire_streams.bulk._journal_file import JournalPath
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences


async def by_names(client: StreamsClient, space: SimulatedSpace) -> list[Any]:
    """Start streams, and keep no more than their names."""
    streams = []
    for sid in space.conference_sids:
        started = await client.conferences.start_stream(sid, url=URL)
        streams.append(ConferenceStream(conference_sid=sid, name=started.name))
    return streams


async def test_stop_by_unknown_name_after_a_lost_stop_is_unknown(client_for: Any) -> None:
    """Where names are no ids, a stop by name that was lost may have worked or not."""
    async with SimulatedSpace(conferences=2, streams_by_name=False) as space:
        client: StreamsClient = client_for(space)
        streams = await by_names(client, space)
        space.faults.add("reset", on="stop", per_target=1)
        report = await client.stop_streams(streams).report()
        assert report.counts == {BulkStatus.UNKNOWN: 2}
        assert len(space.streams.active()) == 2


async def test_repeated_stop_that_is_not_found_is_rejected_again(client_for: Any, tmp_path: Path) -> None:
    """A stop that found nothing by a name has not worked because it is repeated."""
    async with SimulatedSpace(conferences=2, streams_by_name=False) as space:
        client: StreamsClient = client_for(space)
        streams = await by_names(client, space)
        for resume in (False, True, True):
            run = client.stop_streams(streams, journal=tmp_path / "stop.db", resume=resume)
            assert (await run.report()).counts == {BulkStatus.REJECTED: 2}
        assert len(space.streams.active()) == 2


async def test_bare_404_of_a_proxy_does_not_prove_a_stop(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """A 404 that is not in the API's words says nothing of a stream."""
    await client.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
    space.faults.add("status", on="stop", status=404, body="html")
    assert (await client.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.REJECTED: 3}
    assert BulkJournal(tmp_path / "run.db").status().rolled_back == 0
    space.faults.clear()
    assert (await client.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.STOPPED: 3}
    assert space.streams.active() == []


async def test_stop_by_the_name_of_an_ended_stream_succeeds(client_for: Any, tmp_path: Path) -> None:
    async with SimulatedSpace(conferences=1) as space:
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        space.faults.add("reset", on="start", executed=True)
        await client.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
        [alive] = space.streams.active()
        await client.conferences.stop_stream(alive.target_sid, alive.sid)
        assert (await client.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.STOPPED: 1}


async def test_invalid_stop_does_not_overwrite_a_doubtful_item(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A resumed run that rejects an item by itself reports, and leaves in the journal, that it may run."""

    async def refuses(request: Request, send: Handler) -> Result:
        raise InvalidRequestError("not like that")

    impatient: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
    space.faults.add("reset", on="start", executed=True)
    await impatient.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
    space.faults.clear()

    mistaken: StreamsClient = client_for(space, middlewares=[refuses])
    run = mistaken.start_streams(on_conferences(space), journal=tmp_path / "run.db", resume=True)
    assert (await run.report()).counts == {BulkStatus.UNKNOWN: 3}

    assert len(list(BulkJournal(tmp_path / "run.db").streams())) == 3
    assert (await impatient.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.STOPPED: 3}


async def test_throttled_start_is_not_attempted_if_the_run_is_cut(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A 429 carries nothing out, even if the run is cancelled while the item waits."""
    client: StreamsClient = client_for(space)
    space.faults.add("throttle", on="start", retry_after=30)
    requests = [StartCallStream(call_sid=sid, url=URL) for sid in space.call_sids]
    waiting = asyncio.Event()

    async def wait(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    patient: StreamsClient = client_for(space, clock=Clock(now=lambda: 0.0, sleep=wait, random=lambda: 0.5))
    run = patient.start_streams(requests, journal=tmp_path / "run.db", concurrency=1)
    ended = asyncio.create_task(run.report())
    await waiting.wait()
    run.shutdown(0)
    report = await ended
    assert set(report.counts) == {BulkStatus.NOT_ATTEMPTED}
    assert {type(outcome.error) for outcome in report.failures} == {RunCancelledError}
    space.faults.clear()
    last = await client.start_streams(requests, journal=tmp_path / "run.db", resume=True).report()
    assert last.counts == {BulkStatus.STARTED: 3}


async def test_resumed_run_with_a_wrong_token_ends_early(client_for: Any, tmp_path: Path) -> None:
    """Doubtful items stay doubtful, and are not all sent with a token that is rejected."""
    async with SimulatedSpace(conferences=40) as space:
        first: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        space.faults.add("reset", on="start", executed=True)
        before = await first.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
        space.faults.clear()
        sent = space.requests.count()
        wrong: StreamsClient = client_for(space, token="wrong")
        run = wrong.start_streams(on_conferences(space), journal=tmp_path / "run.db", resume=True, concurrency=2)
        report = await run.report()
        assert report.counts[BulkStatus.UNKNOWN] == before.counts[BulkStatus.UNKNOWN] > 10
        assert space.requests.count() - sent < 5
        last = (
            await client_for(space)
            .start_streams(on_conferences(space), journal=tmp_path / "run.db", resume=True)
            .report()
        )
        assert last.ok
        assert space.streams.duplicates() == []


async def test_doubtful_items_wait_for_the_end_of_an_outage(client_for: Any, tmp_path: Path) -> None:
    """A resumed run whose breaker opens waits with all of its items."""
    async with SimulatedSpace(conferences=30) as space:
        first: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        space.faults.add("reset", on="start", executed=True)
        await first.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
        space.faults.clear()
        space.faults.add("503-api", on="start", times=25)
        again: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1))
        run = again.start_streams(on_conferences(space), journal=tmp_path / "run.db", resume=True, concurrency=1)
        report = await run.report()
        assert report.counts[BulkStatus.UNKNOWN] <= 25
        assert report.counts[BulkStatus.STARTED] >= 5


async def test_journal_created_by_another_process_meanwhile_is_rejected(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process changes nothing."""
    path = tmp_path / "run.db"

    def late(wanted: JournalPath) -> Any:
        monkeypatch.undo()
        client.create_journal([], journal=path)
        return wanted.lock()

    monkeypatch.setattr(JournalPath, "lock", late)
    with pytest.raises(InvalidRequestError, match="already exists"):
        client.create_journal([], journal=path)
    assert BulkJournal(path).status().planned == 0


async def test_journal_of_a_run_killed_before_it_started_is_reported_as_empty(
    client: StreamsClient, tmp_path: Path
) -> None:
    """A journal with nothing in it says so, and can be used."""
    (tmp_path / "run.db").touch()
    with pytest.raises(InvalidRequestError, match="is empty, so its run was not started yet"):
        BulkJournal(tmp_path / "run.db").status()
    assert client.create_journal([], journal=tmp_path / "run.db").status().planned == 0


@pytest.mark.parametrize("damage", ["removed", "replaced"])
async def test_journal_that_is_removed_ends_the_run(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path, damage: str
) -> None:
    """A record in a file that nobody will find is worthless."""
    path = tmp_path / "run.db"
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for _ in run:
            path.unlink(missing_ok=True)
            if damage == "replaced":
                path.write_text("mine")

    with pytest.raises(JournalError, match="was removed" if damage == "removed" else "was replaced"):
        await go_through()


async def test_symbolic_links_share_the_lock_of_their_journal(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path
) -> None:
    """One process works on a journal, by whichever path it opened it."""
    path, link = tmp_path / "run.db", tmp_path / "link.db"
    client.create_journal(on_conferences(space), journal=path)
    link.symlink_to(path)
    async for _ in client.start_streams(on_conferences(space), journal=path, resume=True, concurrency=1):
        assert BulkJournal(link).status().is_locked
        with pytest.raises(InvalidRequestError, match="another process is using"):
            await client.start_streams([], journal=link, resume=True).report()


async def test_run_that_is_cancelled_twice_releases_the_journal(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A run that is not even given its drain still closes its journal."""
    space.faults.add("hang")
    client: StreamsClient = client_for(space)
    run = client.start_streams(on_conferences(space), journal=tmp_path / "run.db")

    async def go_through() -> None:
        async for _ in run:
            pass

    consumer = asyncio.create_task(go_through())
    await space.requests.wait_for(3)
    for _ in range(2):
        consumer.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([consumer])
    assert not BulkJournal(tmp_path / "run.db").status().is_locked
    assert run.snapshot.total == 0


async def test_damaged_journal_is_rejected(client: StreamsClient, tmp_path: Path) -> None:
    """The message names the damage, and does not take it for another version."""
    journal = client.create_journal([], journal=tmp_path / "run.db")
    with journal.path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 2000)
    with pytest.raises(JournalError, match="malformed"):
        journal.status()


async def test_journal_in_a_read_only_folder_can_be_read(
    client: StreamsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal on a read-only disk can be looked into."""
    journal = client.create_journal([], journal=tmp_path / "run.db")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert journal.status().planned == 0


async def test_journal_with_an_impossible_name_is_rejected(client: StreamsClient) -> None:
    for act in (
        lambda: client.create_journal([], journal="x" * 300),
        lambda: BulkJournal("x" * 300).status(),
    ):
        with pytest.raises((InvalidRequestError, JournalError), match="can't be"):
            act()


async def test_low_rate_limit_fails_no_item_of_a_run(client_for: Any) -> None:
    async with SimulatedSpace(conferences=40) as space:
        client: StreamsClient = client_for(space, rate_limit=RateLimit(requests=1, utilization=1.0))
        assert (await client.start_streams(on_conferences(space)).report()).counts == {BulkStatus.STARTED: 40}
