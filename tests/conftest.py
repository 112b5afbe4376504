"""Fixtures for all tests: a Space on a real socket, and a client whose waits take no time."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.simulator import SimulatedSpace
from tests.idle_clock import idle_clock

__all__ = ["ClientFactory", "idle_clock"]

ClientFactory: TypeAlias = Callable[..., StreamsClient]

# Neither measures time. Where CI is set, the examples follow from the test, so that a run can be repeated.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", UNTIMED, max_examples=20)
settings.register_profile("long", UNTIMED, max_examples=200, derandomize=True, database=None, print_blob=True)
settings.load_profile("long" if os.environ.get("CI") else "short")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--receiver-tls", action="store_true", help="have the tests of the receiver speak TLS")
    parser.addoption("--every-server", action="store_true", help="repeat them over each WebSocket implementation")


def pytest_configure() -> None:
    """Accept SIGINT, which shells ignore for what they run in the background, and children would ignore in turn."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Run two workers per core: many tests wait, for processes, for Redis, and for bytes to arrive."""
    cores = yield
    return cores if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else 2 * cores


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector all that stays until the end: what was imported and collected."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Have each worker begin elsewhere: what the others have compiled by then, it need not compile."""
    report = yield
    worker = getattr(collector.config, "workerinput", None)
    if worker is not None and isinstance(collector, pytest.Directory):
        found = report.result
        begin = len(found) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
        report.result = found[begin:] + found[:begin]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Sort the tests, so that all workers shuffle them in the same way."""
    items.sort(key=lambda item: item.path)
    yield


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=3) as running:
        yield running


@pytest.fixture
async def client_for() -> AsyncIterator[ClientFactory]:
    """Create clients of a Space; each is closed at the end of the test."""
    async with AsyncExitStack() as stack:

        def make(space: SimulatedSpace, **options: Any) -> StreamsClient:
            settings: dict[str, Any] = {
                "base_url": space.base_url,
                "project": space.project,
                "token": space.token,
                "clock": Clock.fake(),
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
