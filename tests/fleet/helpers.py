"""Helpers of the fleet tests."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from attrs import define, field

from signalwire_streams import BulkOutcome, StartCallStream, StartConferenceStream
from signalwire_streams.fleet import Fleet
from signalwire_streams.fleet._redis import BATCH, Connection, RunKeys
from signalwire_streams.fleet._status import RunRecord, read_run
from tests import waiting

URL = "wss://rx.example.com/audio"
PATIENCE = 30.0


def on_conferences(sids: Iterable[str], **fields: object) -> list[StartConferenceStream]:
    return [StartConferenceStream(conference_sid=sid, url=URL, **fields) for sid in sids]  # type: ignore[arg-type]


def on_calls(sids: Iterable[str], **fields: object) -> list[StartCallStream]:
    return [StartCallStream(call_sid=sid, url=URL, **fields) for sid in sids]  # type: ignore[arg-type]


async def all_results(fleet: Fleet, run: str) -> list[BulkOutcome[StartConferenceStream | StartCallStream]]:
    """Return a run's outcomes in the order of its items."""
    async with asyncio.timeout(PATIENCE):
        return sorted([outcome async for outcome in fleet.results(run)], key=lambda outcome: outcome.index)


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    """Wait for a condition that other processes or tasks bring about."""
    await waiting.until(holds, timeout=PATIENCE)


def connection_of(fleet: Fleet) -> Connection:
    connection = fleet._connection
    assert connection is not None
    return connection


def redis_of(fleet: Fleet) -> Any:
    """Return the client of the fleet's Redis."""
    return connection_of(fleet).client


def no_heartbeat(pipe: object) -> None:
    """Queue nothing with the renewals of leases."""


@define(eq=False)
class Pipe:
    """A pipeline that runs its commands on a test's Redis, one after the other."""

    redis: Any
    queued: list[tuple[str, tuple[Any, ...]]] = field(init=False, factory=list)

    def eval(self, *args: Any) -> None:
        self.queued.append(("eval", args))

    async def execute(self) -> list[Any]:
        return [await getattr(self.redis, name)(*args) for name, args in self.queued]


async def record_of(fleet: Fleet, run: str) -> RunRecord:
    record = await read_run(connection_of(fleet), fleet._keys, run)
    assert record is not None
    return record


async def keys_of(fleet: Fleet, run: str) -> RunKeys:
    return (await record_of(fleet, run)).keys


async def set_marks(fleet: Fleet, run: str, marks: dict[int, str]) -> None:
    """Set marks as a worker that died may have left them."""
    redis, keys = redis_of(fleet), await keys_of(fleet, run)
    for index, mark in marks.items():
        await redis.hset(keys.marks(index // BATCH), str(index), mark)
        if mark.startswith("i:"):
            await redis.hincrby(fleet._keys.run(run), "c:in_doubt", 1)
