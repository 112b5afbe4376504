"""What the tests of the fleet share."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from signalwire_streams import BulkOutcome, StartCallStream, StartConferenceStream
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._redis import BATCH, Connection, RunKeys, command
from signalwire_streams.fleet._status import RunFacts
from tests import waiting

URL = "wss://rx.example.com/audio"
PATIENCE = 30.0


def on_conferences(sids: Iterable[str], **fields: object) -> list[StartConferenceStream]:
    return [StartConferenceStream(conference_sid=sid, url=URL, **fields) for sid in sids]  # type: ignore[arg-type]


def on_calls(sids: Iterable[str], **fields: object) -> list[StartCallStream]:
    return [StartCallStream(call_sid=sid, url=URL, **fields) for sid in sids]  # type: ignore[arg-type]


async def all_results(fleet: Fleet, run: str) -> list[BulkOutcome[StartConferenceStream | StartCallStream]]:
    """Give a run's outcomes in the order of its items."""
    async with asyncio.timeout(PATIENCE):
        return sorted([outcome async for outcome in fleet.results(run)], key=lambda outcome: outcome.index)


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    """Wait for a condition that other processes or tasks bring about."""
    await waiting.until(holds, timeout=PATIENCE, interval=0.01)


def connection_of(fleet: Fleet) -> Connection:
    connection = fleet._connection
    assert connection is not None
    return connection


async def keys_of(fleet: Fleet, run: str) -> RunKeys:
    """Tell what a run's things are called."""
    facts = RunFacts.of(run, await connection_of(fleet).one(command("hgetall", fleet._keys.run(run))))
    assert facts is not None
    return fleet._keys.of(run, facts.plan)


async def set_marks(fleet: Fleet, run: str, marks: dict[int, str]) -> None:
    """Put marks there as a worker that died may have left them."""
    connection, keys = connection_of(fleet), await keys_of(fleet, run)
    for index, mark in marks.items():
        key = keys.marks(index // BATCH)
        await connection.one(command("hset", key, str(index), mark))
        if mark.startswith("i:"):
            await connection.one(command("hincrby", fleet._keys.run(run), "c:intended", 1))
