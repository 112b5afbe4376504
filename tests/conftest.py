"""What every test may ask for: a Space on a real socket, and a client whose waiting takes no time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.simulator import SimulatedSpace

ClientFactory: TypeAlias = Callable[..., StreamsClient]


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3) as running:
        yield running


@pytest.fixture
async def client_for() -> AsyncIterator[ClientFactory]:
    """Make clients of a Space; each is closed at the end of the test."""
    async with AsyncExitStack() as stack:

        def make(space: SimulatedSpace, **options: Any) -> StreamsClient:
            settings: dict[str, Any] = {
                "base_url": space.base_url,
                "project": space.project,
                "token": space.token,
                "clock": Clock.instant(),
            }
            client = StreamsClient(**(settings | options))
            stack.push_async_callback(client.aclose)
            return client

        yield make


@pytest.fixture
async def client(space: SimulatedSpace, client_for: ClientFactory) -> StreamsClient:
    return client_for(space)


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Check that a test leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left
