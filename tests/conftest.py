"""What every test may ask for: a Space on a real socket, and a client whose waiting takes no time."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.simulator import SimulatedSpace

ClientFactory: TypeAlias = Callable[..., StreamsClient]
ON_ITS_WAY = 0.002  # seconds that what was sent may take from one end of a socket to the other
A_LEAP = 0.05  # seconds of the loop's clock: the clock skips more than these only after further looks
LOOKS = 10  # how often a socket is looked at before that
STUCK = 10.0  # seconds that nothing happens in, of a loop that has no timer
PATIENCE = 120.0  # seconds of that clock that a test takes at most
A_TURN = 0.000_01  # seconds that a turn of the loop takes, so that no wait is for ever

# Neither measures time. Where CI is set, the examples follow from the test, so that a run can be repeated.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", UNTIMED, max_examples=20)
settings.register_profile("long", UNTIMED, max_examples=200, derandomize=True, database=None, print_blob=True)
settings.load_profile("long" if os.environ.get("CI") else "short")


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
async def idle_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the loop's clock stand while anybody has something to do, and else go on at once to the next timer.

    So a wait takes no time, and a machine that is slow makes nothing late. It is for tests whose sockets have both
    of their ends in this process, where what was sent is there. A thread that works has something to do. The value is
    that clock for a client, whose waits take as long on it as they say.
    """
    loop: Any = asyncio.get_running_loop()
    look = loop._selector.select
    now = loop.time()
    no_later = now + PATIENCE
    run, in_threads = loop.run_in_executor, set[Any]()

    def run_in_executor(*work: Any) -> Any:
        future = run(*work)
        in_threads.add(future)
        future.add_done_callback(in_threads.discard)
        return future

    def select(seconds: float | None) -> Any:
        nonlocal now, no_later
        happened = look(STUCK if seconds is None else min(seconds, ON_ITS_WAY))
        looks = LOOKS - 1 if seconds is not None and seconds > A_LEAP else 0
        while not happened and looks:  # a busy machine may deliver late
            looks -= 1
            happened = look(ON_ITS_WAY)
        assert happened or seconds is not None, "nothing can happen any more, and somebody waits for it"
        now += seconds if seconds and not happened and not in_threads else A_TURN
        if now >= no_later:
            no_later = now + PATIENCE  # so that the fixtures can still clean up
            raise AssertionError("a wait does not end")
        return happened

    monkeypatch.setattr(loop._selector, "select", select)
    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    return Clock(now=loop.time)


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Check that a test leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    for _ in range(5):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left
