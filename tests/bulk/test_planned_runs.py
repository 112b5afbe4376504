"""Runs whose journal knows beforehand what they are to start, and tells anybody how far they are."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    CallStream,
    CircuitBreakerPolicy,
    ConferenceStream,
    InvalidRequestError,
    JournalError,
    PlannedRequest,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_created_journal_is_resumed(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """Nothing is sent before; the journal alone says what is left to start."""
    requests = [*on_conferences(space, codec="PCMU"), StartCallStream(call_sid=space.call_sids[0], url=URL)]
    journal = client.create_journal(iter(requests), journal=tmp_path / "run.db")
    assert len(space.requests) == 0
    assert journal.status().counts == {"pending": 4}

    first = client.start_streams(requests, journal=journal.path, resume=True, concurrency=1)
    async for _ in first:
        break
    await first.report()
    waiting = journal.status().counts["pending"]
    assert 0 < waiting < 4

    planned = [planned.request for planned in BulkJournal(tmp_path / "run.db").requests()]
    assert planned == requests
    assert (await client.start_streams(planned, journal=journal.path, resume=True).report()).ok
    status = journal.status()
    assert (status.planned, status.counts, status.remaining) == (4, {"started": 4}, 0)
    assert (status.operation, status.origin, status.project) == ("start", space.base_url, space.project)
    assert space.requests.count() == 4
    assert {stream.name for stream in space.streams} == {f"sws-{status.run}-{request.target}" for request in requests}


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({}, {}),
        ({"track": "both_tracks", "realtime": False, "status_callback": "https://a.example/b"}, {}),
        ({"name": "audit", "codec": "PCMA", "realtime": True, "status_callback_method": "GET"}, {}),
        ({"unnamed": True}, {}),
        ({"parameters": {"card": "hush-1", "pin": "hush-2"}}, {"parameters": ("card", "pin")}),
        ({"authorization_bearer_token": "hush-3"}, {"bearer_token": True}),
        ({"status_callback": "https://u:hush-4@a.example/b?key=hush-5"}, {"status_callback": True}),
    ],
)
async def test_created_journal_holds_everything_but_secrets(
    client: StreamsClient, tmp_path: Path, fields: dict[str, Any], left_out: dict[str, Any]
) -> None:
    """Each public field comes back as it was; of a secret only its name is kept."""
    request = StartConferenceStream(conference_sid="room", url=URL, **fields)
    [planned] = client.create_journal([request], journal=tmp_path / "run.db").requests()

    bare = evolve(request, parameters={}, authorization_bearer_token=None)
    if "status_callback" in left_out:
        bare = evolve(bare, status_callback=None)
    assert planned == PlannedRequest(request=bare, **left_out)
    assert planned.is_complete is not bool(left_out)
    assert b"hush" not in all_bytes(tmp_path)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([StartConferenceStream(conference_sid="room", url=URL)] * 2, "room appears twice"),
        (["room"], "an item is a str"),
    ],
)
async def test_create_journal_that_fails_leaves_no_file_behind(
    client: StreamsClient, tmp_path: Path, items: list[Any], words: str
) -> None:
    """A mistake anywhere in a plan ends in its sentence, and the file can be used again."""
    good = StartConferenceStream(conference_sid="other", url=URL)
    with pytest.raises(InvalidRequestError, match=words):
        client.create_journal([good, *items], journal=tmp_path / "run.db")
    assert client.create_journal([good], journal=tmp_path / "run.db").status().planned == 1


async def test_created_journal_may_be_empty(client: StreamsClient, tmp_path: Path) -> None:
    """A run that is to start nothing is planned as such."""
    journal = client.create_journal([], journal=tmp_path / "run.db")
    assert (journal.status().planned, journal.status().counts, list(journal.requests())) == (0, {}, [])


async def test_stop_started_stops_what_a_run_started(client_for: Any, tmp_path: Path) -> None:
    """By sid where it is known, by name where only that is; what has ended meanwhile counts as stopped."""
    async with SimulatedSpace(conferences=6, calls=1, streams_by_name=True) as space:
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        space.faults.add("reset", on="start", target=space.conference_sids[0], executed=True, times=1)
        space.faults.add("status", on="start", target=space.conference_sids[1], status=422)
        requests = [*on_conferences(space), StartCallStream(call_sid=space.call_sids[0], url=URL)]
        report = await client.start_streams(requests, journal=tmp_path / "run.db").report()
        assert report.counts == {BulkStatus.STARTED: 5, BulkStatus.UNKNOWN: 1, BulkStatus.REJECTED: 1}
        journal = BulkJournal(tmp_path / "run.db")
        space.faults.add("status", on="stop", target=space.conference_sids[2], status=404, body="api", executed=True)

        run = client.stop_started(tmp_path / "run.db")
        outcomes = [outcome async for outcome in run]

        assert (await run.report()).counts == {BulkStatus.STOPPED: 6}
        assert {type(outcome.item) for outcome in outcomes} == {ConferenceStream, CallStream}
        assert space.streams.active() == []
        status = journal.status()
        assert (status.rolled_back, status.counts) == (6, {"started": 5, "unknown": 1, "rejected": 1})
        assert status.rollback_started_at is not None
        assert list(journal.streams()) == []
        assert (await client.stop_started(tmp_path / "run.db").report()).total == 0
        with pytest.raises(InvalidRequestError, match="have been stopped since"):
            await client.start_streams(requests, journal=tmp_path / "run.db", resume=True).report()


async def test_stop_started_does_not_take_an_unknown_name_for_stopped(client_for: Any, tmp_path: Path) -> None:
    """A stream that is known by its name only may be running: stopping it stays an error, and can be repeated."""
    async with SimulatedSpace(conferences=2, streams_by_name=False) as space:
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        space.faults.add("reset", on="start", target=space.conference_sids[0], executed=True)
        await client.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()

        report = await client.stop_started(tmp_path / "run.db").report()

        assert report.counts == {BulkStatus.STOPPED: 1, BulkStatus.REJECTED: 1}
        [left] = BulkJournal(tmp_path / "run.db").streams()
        assert (left.sid, left.name) == (None, space.streams.active()[0].name)


async def test_stop_started_repeats_a_stop_whose_response_was_lost(client_for: Any, tmp_path: Path) -> None:
    """A stop that may have worked is recorded as such and sent again the next time, and so is a failed one."""
    async with SimulatedSpace(conferences=3) as space:
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1))
        await client.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
        space.faults.add("reset", on="stop", target=space.conference_sids[0], executed=True)
        space.faults.add("status", on="stop", target=space.conference_sids[1], status=422)
        first = await client.stop_started(tmp_path / "run.db").report()
        assert first.counts == {BulkStatus.STOPPED: 1, BulkStatus.UNKNOWN: 1, BulkStatus.REJECTED: 1}
        undone = {item.target: item.rollback_status for item in BulkJournal(tmp_path / "run.db").items()}
        assert list(map(undone.get, space.conference_sids)) == ["in_doubt", None, "stopped"]
        space.faults.clear()

        assert (await client.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.STOPPED: 2}
        assert space.streams.active() == []


async def test_stop_started_waits_for_the_end_of_an_outage(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A stop that the breaker sends back is recorded once, and sent when the Space is back."""
    await client_for(space).start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
    client: StreamsClient = client_for(
        space,
        circuit_breaker=CircuitBreakerPolicy(min_requests=2, open_duration=0.1),
        retry=RetryPolicy(max_attempts=1),
    )
    space.faults.add("503-api", on="stop", times=2)
    report = await client.stop_started(tmp_path / "run.db", concurrency=1).report()
    assert report.counts == {BulkStatus.STOPPED: 1, BulkStatus.NOT_ATTEMPTED: 2}
    assert (await client.stop_started(tmp_path / "run.db").report()).counts == {BulkStatus.STOPPED: 2}


async def test_stop_started_rejects_a_stream_without_sid_and_name(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """A stream without name whose response was lost can't be stopped by anyone, and the outcome says so."""
    client: StreamsClient = client_for(space)
    space.faults.add("reset", on="start", executed=True, times=1)
    await client.start_streams(on_conferences(space, unnamed=True)[:1], journal=tmp_path / "run.db").report()

    [failure] = (await client.stop_started(tmp_path / "run.db").report()).failures

    assert "neither sid nor name" in str(failure.error)


async def test_stop_started_rejects_a_journal_of_stops(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """The journal of stops has nothing to stop, and a file that is missing neither."""
    await client.stop_streams([], journal=tmp_path / "stop.db").report()
    with pytest.raises(InvalidRequestError, match="stops streams"):
        await client.stop_started(tmp_path / "stop.db").report()
    with pytest.raises(InvalidRequestError, match="there is no journal"):
        await client.stop_started(tmp_path / "none.db").report()


async def test_journal_can_be_read_while_the_run_continues(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """Another reader sees what was recorded so far, and that the journal is locked."""
    journal = BulkJournal(tmp_path / "run.db")
    with pytest.raises(InvalidRequestError, match="there is no journal"):
        journal.status()
    space.faults.add("status", on="start", status=404, code=20404, body="api", target=space.conference_sids[1])
    async for _ in client.start_streams(on_conferences(space), journal=journal.path, concurrency=1):
        assert journal.status().is_locked
    assert not journal.status().is_locked
    [item] = journal.items("rejected")
    assert (item.kind, item.target, item.error) == ("conference", space.conference_sids[1], "NotFoundError 20404")
    assert journal.status().errors == {"NotFoundError 20404": 1}
    assert len(list(journal.items())) == 3
    (tmp_path / "run.db.lock").unlink()
    assert not journal.status().is_locked


async def test_stop_started_rejects_a_file_that_is_not_a_journal(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing of the kind, and long enough to be looked into" * 40)
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE run (key, value)")
    other.close()
    for name in ("text", "other"):
        with pytest.raises(InvalidRequestError, match="is not a journal that this version can read"):
            BulkJournal(tmp_path / name).status()


async def test_create_journal_rejects_an_impossible_path(client: StreamsClient, tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequestError, match="writable folder"):
        client.create_journal([], journal=tmp_path / "no" / "run.db")
    (tmp_path / "run.db.lock").write_text("something that is no lock of ours, " * 40)
    with pytest.raises(JournalError, match="can't be opened"):
        client.create_journal([], journal=tmp_path / "run.db")


async def test_full_disk_ends_the_run(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """Nothing is sent without being recorded first; the run ends and says why."""
    path = tmp_path / "run.db"
    run = client.start_streams(on_conferences(space), journal=path, concurrency=1)

    async def go_through() -> None:
        async for outcome in run:
            if outcome.index == 0:
                fill(path)

    with pytest.raises(JournalError, match="can't be written"):
        await go_through()

    assert run.snapshot.counts == {BulkStatus.STARTED: 1, BulkStatus.NOT_ATTEMPTED: 2}
    assert space.requests.count() == 1


async def test_full_disk_ends_stop_started(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """A stop that can't be recorded is not sent."""
    path = tmp_path / "run.db"
    await client.start_streams(on_conferences(space), journal=path).report()
    fill(path)
    run = client.stop_started(path)
    with pytest.raises(JournalError, match="can't be written: full"):
        await run.report()
    assert run.snapshot.counts == {BulkStatus.NOT_ATTEMPTED: 3}
    assert len(space.streams.active()) == 3


async def test_journal_damaged_during_stop_started_ends_it(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """A stop whose row can't be found is not sent, and ends the run."""
    path = tmp_path / "run.db"
    await client.start_streams(on_conferences(space), journal=path).report()
    run = client.stop_started(path, concurrency=1)

    async def go_through() -> None:
        async for _ in run:
            database = sqlite3.connect(path)
            database.execute("DROP INDEX IF EXISTS items_by_name")
            with database:
                database.execute("UPDATE items SET target = 'another'")
            database.close()

    with pytest.raises(JournalError, match="no longer contains the stream"):
        await go_through()
    assert run.snapshot.counts == {BulkStatus.STOPPED: 1, BulkStatus.NOT_ATTEMPTED: 2}


def fill(path: Path) -> None:
    """Make every write fail from now on, as on a full disk."""
    database = sqlite3.connect(path)
    with database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'full'); END")
        database.execute("CREATE TRIGGER fuller BEFORE UPDATE ON items BEGIN SELECT RAISE(ABORT, 'full'); END")
    database.close()
