"""What a journal holds of each item, during a run and after it."""

from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import BulkJournal, Clock, RetryPolicy, StartConferenceStream, StreamsClient
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"


async def test_journal_item_holds_its_outcome(client_for: Any, tmp_path: Path) -> None:
    """A started item holds its sid and no error; a failed one holds the error and its message, and no sid."""
    async with SimulatedSpace(conferences=3) as space:
        started, rejected, unknown = space.conference_sids
        space.faults.add("status", on="start", target=rejected, status=422, body="api", code=21402)
        space.faults.add("reset", on="start", target=unknown, executed=True)
        client: StreamsClient = client_for(space, retry=RetryPolicy(max_attempts=1))
        requests = [StartConferenceStream(conference_sid=sid, url=URL, name="n") for sid in space.conference_sids]
        report = await client.start_streams(requests, journal=tmp_path / "run.db").report()

        journal = BulkJournal(tmp_path / "run.db")
        items = {item.target: item for item in journal.items()}
        status = journal.status()
        errors = {outcome.item.target: outcome.error for outcome in report.failures}

    assert {item.target for item in items.values()} == {started, rejected, unknown}
    assert {(item.kind, item.name, item.attempts, item.rollback_status) for item in items.values()} == {
        ("conference", "n", 1, None)
    }
    good = items[started]
    assert (good.status, good.ambiguous, good.error, good.message) == ("started", False, None, None)
    assert good.sid in {stream.sid for stream in space.streams}
    assert (items[rejected].status, items[rejected].error) == ("rejected", "UnprocessableError 21402")
    assert (items[unknown].status, items[unknown].error) == ("unknown", "StreamOutcomeUnknownError")
    for target in (rejected, unknown):
        assert items[target].sid is None
        assert items[target].message == str(errors[target])
    assert (status.attempts, status.remaining, status.is_locked) == (3, 2, False)


async def test_outcome_is_in_the_journal_after_a_tenth_of_a_second(
    client_for: Any, tmp_path: Path, idle_clock: Clock
) -> None:
    """Another process sees how far a run is, and a process that is killed loses no older outcome."""
    async with SimulatedSpace(conferences=2) as space:
        quick, hanging = space.conference_sids
        space.faults.add("hang", on="start", target=hanging)
        client: StreamsClient = client_for(space, clock=idle_clock)
        requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in (quick, hanging)]
        run = client.start_streams(requests, journal=tmp_path / "run.db")
        async for outcome in run:
            assert outcome.item.target == quick
            await idle_clock.sleep(0.11)
            status = BulkJournal(tmp_path / "run.db").status()
            break
        await run.report()

    assert status.counts == {"started": 1, "in_doubt": 1}
    assert status.is_locked
