"""A test's own Redis, workers that end with the test, and a fleet of the Space's project."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
from attrs import define, field

from signalwire_streams import StreamsClient
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer, redis_servers

# As README says: with everysec, the default, a Redis that is killed while the disk is busy loses what it has confirmed.
KEEPING = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis set up as the README says."""
    with redis_servers() as start:
        yield start(*KEEPING)


Start: TypeAlias = Callable[..., FleetWorker]


@define(eq=False)
class Workers:
    """Starts workers in this process, and ends them with the test."""

    url: str
    client: StreamsClient
    running: dict[FleetWorker, "asyncio.Task[None]"] = field(factory=dict)

    def __call__(self, client: StreamsClient | None = None, **options: Any) -> FleetWorker:
        worker = FleetWorker(self.url, client or self.client, **({"shutdown_timeout": 5.0} | options))
        self.running[worker] = asyncio.create_task(worker.run())
        return worker

    async def end(self, worker: FleetWorker) -> None:
        worker.stop()
        async with asyncio.timeout(30):
            await self.running.pop(worker)

    async def end_all(self) -> None:
        for worker in list(self.running):
            worker.stop()
            await self.end(worker)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """docket's in-memory Redis, a new one for each test."""
    return f"memory://{id(request)}"


@pytest.fixture
async def fleet(url: str, space: SimulatedSpace) -> AsyncIterator[Fleet]:
    async with Fleet(url, space=space.base_url, project=space.project) as fleet:
        yield fleet


@pytest.fixture
async def workers(url: str, client: StreamsClient, fleet: Fleet) -> AsyncIterator[Workers]:
    workers = Workers(url, client)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(workers.end_all)
        yield workers
