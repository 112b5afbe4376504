"""Hundreds of starts on a Space that loses and rejects one in ten: nothing doubled, nothing lost, nothing untyped."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from signalwire_streams import ConferenceStream, StreamOutcomeUnknownError, StreamsClient, StreamsError
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
CONFERENCES = 1_000 if os.environ.get("CI") else 300
WORKERS = 64


async def start_all(client: StreamsClient, sids: list[str]) -> dict[str, ConferenceStream | StreamsError]:
    outcomes: dict[str, ConferenceStream | StreamsError] = {}

    async def work(left: Iterator[str]) -> None:
        for sid in left:
            try:
                outcomes[sid] = await client.conferences.start_stream(sid, url=URL, name=f"record-{sid}")
            except StreamsError as error:
                outcomes[sid] = error

    left = iter(sids)
    await asyncio.gather(*(work(left) for _ in range(WORKERS)))
    return outcomes


@pytest.mark.parametrize("duplicate_names", ["stream-error", "http-error"])
async def test_starts_in_storm_of_faults_never_run_twice_under_one_name(duplicate_names: Any, client_for: Any) -> None:
    """Each start ends started, already started or with a typed error, and no name ever has two streams."""
    async with SimulatedSpace(conferences=CONFERENCES, participants=0, duplicate_names=duplicate_names) as space:
        space.faults.add("reset", on="start", executed=True, every_nth=10)
        space.faults.add("503", on="start", every_nth=10)
        client = client_for(space)
        outcomes = await start_all(client, space.conference_sids)

        alive = Counter((stream.target_sid, stream.name) for stream in space.streams.active())
        assert len(outcomes) == CONFERENCES
        assert max(alive.values()) == 1
        assert space.streams.duplicates() == []
        for sid, outcome in outcomes.items():
            if isinstance(outcome, ConferenceStream):
                assert alive[sid, f"record-{sid}"] == 1
            else:
                assert isinstance(outcome, StreamOutcomeUnknownError)
                assert outcome.name == f"record-{sid}"
        started = sum(isinstance(outcome, ConferenceStream) for outcome in outcomes.values())
        repeated = space.requests.count("start-conference-stream") - CONFERENCES
        assert started > CONFERENCES * 0.9
        assert repeated > 0

        # What an unknown outcome advises: start again under the same name, on a Space that has calmed down.
        space.faults.clear()
        unknown = [sid for sid, outcome in outcomes.items() if not isinstance(outcome, ConferenceStream)]
        for sid, outcome in (await start_all(client, unknown)).items():
            told_a_duplicate = isinstance(outcome, StreamsError) and "Duplicated stream name" in str(outcome)
            assert isinstance(outcome, ConferenceStream) or told_a_duplicate, sid
        assert len(space.streams.active()) == CONFERENCES
        assert space.streams.duplicates() == []
