"""Resumed runs: nothing is started twice, nothing is lost, nothing is claimed that is not known."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    CallStream,
    CircuitBreakerPolicy,
    ConferenceStream,
    InvalidRequestError,
    Priority,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences
from tests.forks import fork

PART_OF_A_RUN = """
import asyncio, json, sys
from signalwire_streams import StartConferenceStream, StreamsClient

async def main():
    base_url, project, token, sids, journal = json.loads(sys.argv[1])
    async with StreamsClient(base_url=base_url, project=project, token=token) as client:
        requests = [StartConferenceStream(conference_sid=sid, url="wss://rx.example.com/audio") for sid in sids]
        await client.start_streams(requests, journal=journal, resume=len(sys.argv) > 2).report()

asyncio.run(main())
"""


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=40, calls=5, participants=0) as running:
        yield running


def list_of(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class NeverReady:
    """A rate limiter that never grants a request.

    Attributes:
        asked: set when a request waits.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        self.asked.set()
        await asyncio.Event().wait()
        return 0.0

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        return 0.0

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None: ...

    def on_success(self) -> None: ...


async def leave_early(client: StreamsClient, requests: list[Any], journal: Path) -> int:
    """Go through a part of a run."""
    run = client.start_streams(requests, journal=journal, concurrency=4)
    async for outcome in run:
        if outcome.index >= 10:
            break
    return (await run.report()).counts[BulkStatus.STARTED]


async def test_resume_starts_only_what_was_not_started(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    journal = tmp_path / "run.db"
    started = await leave_early(client, on_conferences(space), journal)
    assert 10 <= started < 40
    sent = space.requests.count("start-conference-stream")

    run = client.start_streams(on_conferences(space), journal=str(journal), resume=True)
    outcomes = [outcome async for outcome in run]

    assert (await run.report()).counts == {BulkStatus.STARTED: 40}
    assert space.requests.count("start-conference-stream") == sent + 40 - started
    assert {outcome.stream.sid for outcome in outcomes if outcome.stream} == {s.sid for s in space.streams.active()}
    assert len(space.streams.active()) == 40

    again = await client.start_streams(on_conferences(space), journal=journal, resume=True).report()
    assert again.counts == {BulkStatus.STARTED: 40}
    assert again.attempts == 0
    assert len(space.streams) == 40


@pytest.mark.parametrize("duplicate_names", ["stream-error", "http-error"])
async def test_resume_resends_a_doubtful_start_under_its_name(
    client_for: Any, tmp_path: Path, duplicate_names: Any
) -> None:
    """A start whose response was lost is found to run, or is started, under the name that the journal kept."""
    async with SimulatedSpace(conferences=6, calls=2, duplicate_names=duplicate_names) as space:
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        requests: list[Any] = [*on_conferences(space)]
        requests += [StartCallStream(call_sid=sid, url=URL) for sid in space.call_sids]
        space.faults.add("reset", on="start", executed=True, every_nth=2)
        first = await client.start_streams(requests, journal=tmp_path / "run.db").report()
        assert first.counts[BulkStatus.UNKNOWN] == 4
        unknown_calls = sum(isinstance(outcome.item, StartCallStream) for outcome in first.failures)
        space.faults.clear()

        second = await client.start_streams(requests, journal=tmp_path / "run.db", resume=True).report()

        assert second.counts.get(BulkStatus.UNKNOWN, 0) == unknown_calls
        assert all(isinstance(outcome.error, StreamOutcomeUnknownError) for outcome in second.failures)
        if duplicate_names == "http-error":
            assert second.counts[BulkStatus.ALREADY_STARTED] == 4 - unknown_calls
        assert len(space.streams.active()) == 8
        assert space.streams.duplicates() == []

        sent = space.requests.count()
        willing: StreamsClient = client_for(space, retry=RetryPolicy(resend_call_starts=True))
        third = await willing.start_streams(requests, journal=tmp_path / "run.db", resume=True).report()
        assert third.ok
        assert space.requests.count() == sent + unknown_calls
        assert space.streams.duplicates() == []


async def test_resume_distinguishes_two_names_on_one_target(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """In whatever order they come again; none is started twice."""
    sid = space.conference_sids[0]
    requests = [StartConferenceStream(conference_sid=sid, url=URL, name=name) for name in ("audit", "captions")]
    journal = tmp_path / "run.db"
    first = client.start_streams(requests, journal=journal, concurrency=1)
    started = {outcome.item.name: outcome.stream async for outcome in first}
    for again in (requests, requests[::-1], requests[1:]):
        run = client.start_streams(again, journal=journal, resume=True, concurrency=1)
        outcomes = [outcome async for outcome in run]
        assert [outcome.status for outcome in outcomes] == [BulkStatus.STARTED] * len(again)
        assert [outcome.attempts for outcome in outcomes] == [0] * len(again)
        for outcome in outcomes:
            known = started[outcome.item.name]
            assert known is not None
            assert outcome.stream is not None
            assert outcome.stream.sid == known.sid
    assert space.requests.count("start-conference-stream") == 2


async def test_resume_reports_a_doubtful_unnamed_start_as_unknown(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """An unnamed start whose response was lost is never sent again, and the report says that it may run."""
    space.faults.add("reset", on="start", executed=True, times=1)
    requests = on_conferences(space, unnamed=True)[:3]
    first = await client.start_streams(requests, journal=tmp_path / "run.db").report()
    assert first.counts == {BulkStatus.STARTED: 2, BulkStatus.UNKNOWN: 1}

    second = await client.start_streams(requests, journal=tmp_path / "run.db", resume=True).report()

    assert second.counts == {BulkStatus.STARTED: 2, BulkStatus.UNKNOWN: 1}
    assert space.requests.count() == 3
    assert "without a name, so it is not sent again" in str(second.failures[0].error)


@pytest.mark.parametrize("how", ["shut down", "token rejected"])
async def test_resume_that_ends_early_reports_what_the_journal_knows(how: str, client_for: Any, tmp_path: Path) -> None:
    """Items that ran or may run are not reported as safe to try again, although their turn did not come."""
    async with SimulatedSpace(conferences=1, calls=3) as space:
        calls = [StartCallStream(call_sid=sid, url=URL) for sid in space.call_sids]
        requests = [*on_conferences(space), *calls]
        space.faults.add("reset", on="start", target=space.call_sids[2], executed=True, times=1)
        journal = tmp_path / "run.db"
        first = await client_for(space).start_streams(requests[1:], journal=journal).report()
        assert first.counts == {BulkStatus.STARTED: 2, BulkStatus.UNKNOWN: 1}

        space.faults.add("status", on="start", status=401, body="api", times=1)
        run = client_for(space).start_streams(requests, journal=journal, resume=True, concurrency=1)
        found = {}
        async for outcome in run:
            found[outcome.item.target] = outcome.status
            if how == "shut down":
                run.shutdown(0)
        expected = dict.fromkeys(space.call_sids[:2], BulkStatus.STARTED) | {space.call_sids[2]: BulkStatus.UNKNOWN}
        if how == "token rejected":
            assert set(expected) <= set(found)
        assert {target: expected.get(target, status) for target, status in found.items()} == found


@pytest.mark.parametrize("journal", [None, "run.db"], ids=["in memory", "journaled"])
async def test_items_of_another_type_are_not_attempted_in_a_run_that_ends_early(
    journal: str | None, client_for: Any, tmp_path: Path
) -> None:
    """Their turn to be rejected does not come."""
    path = None if journal is None else tmp_path / journal
    async with SimulatedSpace(conferences=2) as space:
        wrong: StreamsClient = client_for(space, token="wrong")
        room = space.conference_sids[0]
        starts: Any = [*on_conferences(space)[:1], "room", "call"]
        stops: Any = [ConferenceStream(conference_sid=room, sid="s"), "s-1", "s-2"]
        started = await wrong.start_streams(starts, concurrency=1, journal=path).report()
        stopped = await wrong.stop_streams(stops, concurrency=1).report()
    assert started.counts == stopped.counts == {BulkStatus.REJECTED: 1, BulkStatus.NOT_ATTEMPTED: 2}


async def test_doubtful_start_stays_doubtful_until_it_is_sent_again(client_for: Any, tmp_path: Path) -> None:
    """A resumed run that ends before it sends a doubtful item again neither says nor writes that nothing runs."""
    async with SimulatedSpace(conferences=2, duplicate_names="http-error") as space:
        journal = tmp_path / "run.db"
        space.faults.add("reset", on="start", executed=True, times=1)
        impatient: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
        first = await impatient.start_streams(on_conferences(space)[:1], journal=journal).report()
        assert first.counts == {BulkStatus.UNKNOWN: 1}

        sent = space.requests.count()
        limiter = NeverReady()
        run = client_for(space, rate_limiter=limiter).start_streams(
            on_conferences(space)[:1], journal=journal, resume=True
        )
        ended = asyncio.create_task(run.report())
        await limiter.asked.wait()
        run.shutdown(0)
        assert (await ended).counts == {BulkStatus.UNKNOWN: 1}
        assert BulkJournal(journal).status().counts == {BulkStatus.UNKNOWN: 1}
        assert space.requests.count() == sent

        last = await client_for(space).start_streams(on_conferences(space)[:1], journal=journal, resume=True).report()
        assert last.counts == {BulkStatus.ALREADY_STARTED: 1}
        assert space.streams.duplicates() == []


async def test_resume_stops_only_what_was_not_stopped(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """A stop that worked is not sent again; one that may have worked is, and finding nothing is then fine."""
    streams: list[Any] = [await client.calls.start_stream(space.call_sids[0], url=URL)]
    streams += [await client.conferences.start_stream(sid, url=URL) for sid in space.conference_sids[:3]]
    space.faults.add("reset", on="stop", executed=True, target=space.conference_sids[0])
    first = await client.stop_streams(streams, journal=tmp_path / "stop.db").report()
    assert first.counts == {BulkStatus.STOPPED: 3, BulkStatus.UNKNOWN: 1}
    space.faults.clear()
    sent = space.requests.count()

    second = await client.stop_streams(streams, journal=tmp_path / "stop.db", resume=True).report()

    assert second.counts == {BulkStatus.STOPPED: 4}
    assert space.requests.count() == sent + 1
    assert space.streams.active() == []


async def test_journal_is_checked_when_the_run_starts(
    space: SimulatedSpace, client: StreamsClient, tmp_path: Path
) -> None:
    """A journal that is there already, is missing, or is not named, is a mistake, and nothing is sent."""
    journal = tmp_path / "run.db"
    with pytest.raises(InvalidRequestError, match="resume=True needs"):
        client.start_streams([], resume=True)
    with pytest.raises(InvalidRequestError, match="no journal"):
        await client.start_streams(on_conferences(space), journal=journal, resume=True).report()
    await client.start_streams([], journal=journal).report()
    with pytest.raises(InvalidRequestError, match="already exists"):
        await client.start_streams(on_conferences(space), journal=journal).report()
    with pytest.raises(InvalidRequestError, match="starts streams"):
        await client.stop_streams([], journal=journal, resume=True).report()
    assert len(space.requests) == 0


async def test_invalid_items_are_not_recorded(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """An item of another type, or one that occurs twice, is rejected and changes nothing in the journal."""
    requests: list[Any] = [*on_conferences(space)[:1], *on_conferences(space)[:1], "room"]
    report = await client.start_streams(requests, journal=tmp_path / "run.db", concurrency=1).report()
    assert report.counts == {BulkStatus.STARTED: 1, BulkStatus.REJECTED: 2}

    stops: list[Any] = [
        ConferenceStream(conference_sid=space.conference_sids[0]),
        CallStream(call_sid=space.call_sids[0], name="not-there"),
    ]
    stopped = await client.stop_streams(stops, journal=tmp_path / "stop.db").report()
    assert stopped.counts == {BulkStatus.REJECTED: 2}


async def test_item_that_waits_for_an_outage_is_recorded_once(
    client_for: Any, space: SimulatedSpace, tmp_path: Path
) -> None:
    """The journal keeps its final outcome."""
    client: StreamsClient = client_for(
        space,
        circuit_breaker=CircuitBreakerPolicy(min_requests=3, open_duration=0.1),
        retry=RetryPolicy(max_attempts=1),
    )
    space.faults.add("503-api", on="start", times=3)
    report = await client.start_streams(on_conferences(space), journal=tmp_path / "run.db", concurrency=4).report()
    assert report.counts == {BulkStatus.STARTED: 37, BulkStatus.NOT_ATTEMPTED: 3}

    streams = [ConferenceStream(conference_sid=stream.target_sid, sid=stream.sid) for stream in space.streams]
    stops: list[Any] = [*streams, 7]
    space.faults.add("503-api", on="stop", times=3)
    stopped = await client.stop_streams(stops, journal=tmp_path / "stop.db", concurrency=4).report()
    assert (stopped.counts[BulkStatus.STOPPED], stopped.counts[BulkStatus.REJECTED]) == (34, 1)

    rest = await client.start_streams(on_conferences(space), journal=tmp_path / "run.db", resume=True).report()
    assert rest.ok
    assert space.streams.duplicates() == []


async def test_journal_holds_no_secret(space: SimulatedSpace, client: StreamsClient, tmp_path: Path) -> None:
    """Neither token nor parameter value reaches the file, not even through an error."""
    requests = on_conferences(space, parameters={"card": "hush-value"}, authorization_bearer_token="hush-token")
    space.faults.add("status", status=422, body="api", code=21402, every_nth=2)
    await client.start_streams(requests, journal=tmp_path / "run.db").report()

    written = b"".join(path.read_bytes() for path in list_of(tmp_path))
    assert b"hush" not in written
    assert space.token.encode() not in written


async def test_resume_after_kill_starts_nothing_twice(tmp_path: Path) -> None:
    """After kill -9 in mid-run, twice, each conference has exactly one stream."""
    async with SimulatedSpace(conferences=600, participants=0) as space:
        space.faults.add("reset", on="start", executed=True, every_nth=10)
        known = [space.base_url, space.project, space.token, space.conference_sids, str(tmp_path / "run.db")]
        for enough, resuming in ((150, []), (400, ["resume"]), (None, ["resume"])):
            process = await fork(
                *(json.dumps(known), *resuming),
                code=PART_OF_A_RUN,
                imports=["signalwire_streams"],
                environment=os.environ,
            )
            if enough is not None:
                await space.requests.wait_for(enough, timeout=30)
                process.kill()
            _, complaints = await process.communicate()
            process.close()
            assert process.returncode == (0 if enough is None else -9), complaints

        assert len(space.streams.active()) == 600
        assert {stream.target_sid for stream in space.streams.active()} == set(space.conference_sids)
        assert space.streams.duplicates() == []
