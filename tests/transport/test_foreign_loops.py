"""A client, its borrowed session and a shared rate limiter belong to one event loop, and harm none in another."""

import asyncio
import os
import threading
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from signalwire_streams import ClientStateError, Clock, RateLimit, StreamsClient
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.models import Priority
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import raw_space

ROOM = "22222222-2222-4222-8222-222222222222"


async def in_another_loop(call: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Run a call in a loop of another thread, and return what it raises."""
    raised: list[BaseException] = []

    async def run() -> None:
        try:
            await call()
        except ClientStateError as error:
            raised.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    await asyncio.to_thread(thread.join)
    return raised[0] if raised else None


async def test_client_is_not_closed_from_another_loop(client: StreamsClient, space: SimulatedSpace) -> None:
    """It says where to close it, and can be used on."""
    await client.conferences.get(space.conference_sids[0])

    error = await in_another_loop(client.aclose)

    assert "this client belongs to another event loop: close it there" in str(error)
    await client.conferences.get(space.conference_sids[0])
    assert len(space.connections) == 1


def test_client_of_a_closed_loop_can_be_closed_in_another() -> None:
    """The calls of that loop never end, so they are neither waited for nor cancelled."""
    client = StreamsClient(space="example", project="p", token="t")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.__aenter__())
    never = asyncio.sleep(0)
    call: Any = loop.create_task(never)
    call._log_destroy_pending = False
    request: Any = "a request"
    client._dispatcher._in_flight[request] = call
    loop.close()

    asyncio.run(client.aclose())

    assert not call.cancelling()
    never.close()


async def _close(client: StreamsClient) -> None:
    await client.aclose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
async def test_forked_process_that_closes_a_client_leaves_the_connections_to_the_other(idle_clock: Clock) -> None:
    """Both share epoll's descriptor, so closing them would leave this process without responses."""
    async with (
        raw_space() as space,
        StreamsClient(base_url=space.url, project="p", token="t", clock=idle_clock) as client,
    ):
        await client.conferences.get(ROOM)
        assert _in_fork(lambda: asyncio.run(_close(client))) == 0
        began = idle_clock.now()
        await client.conferences.get(ROOM)

    assert len(space.connections) == 1
    assert idle_clock.now() - began < 1


def _in_fork(call: Callable[[], object]) -> int:
    """Call something in a forked process, and return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    failed = True
    try:
        call()
        failed = False
    finally:
        os._exit(failed)


async def test_borrowed_session_of_another_loop_is_named_as_the_reason(space: SimulatedSpace) -> None:
    """Before anything is sent, and not as a failure to connect."""
    async with aiohttp.ClientSession() as session:
        client = StreamsClient(base_url=space.base_url, project=space.project, token=space.token, session=session)

        error = await in_another_loop(lambda: client.conferences.get(space.conference_sids[0]))

    assert "the session passed to this client belongs to another event loop: create it inside" in str(error)
    assert len(space.requests) == 0


def limiter(clock: Clock) -> LocalRateLimiter:
    limit = RateLimit(requests=1, window=1.0, utilization=1.0, burst=1)
    return LocalRateLimiter(TokenBucket(limit), clock)


async def test_rate_limiter_on_which_another_loop_waits_says_so() -> None:
    never = asyncio.Event()
    shared = limiter(Clock(now=lambda: 0.0, sleep=lambda _: never.wait()))
    assert await shared.acquire(Priority.BULK, 100.0) == 0.0
    waiting = asyncio.create_task(shared.acquire(Priority.BULK, 100.0))
    await asyncio.sleep(0)

    error = await in_another_loop(lambda: shared.acquire(Priority.INTERACTIVE, 100.0))

    assert "requests of another event loop are waiting for this rate limiter" in str(error)
    assert not waiting.done()
    assert shared._serving is not None
    shared._serving.cancel()
    waiting.cancel()
    await asyncio.wait([waiting, shared._serving])


def test_rate_limiter_forgets_the_requests_of_a_closed_loop() -> None:
    """That loop ended without ending them, and nobody would ever serve the queue."""
    time = 0.0
    shared = limiter(Clock(now=lambda: time))
    first = asyncio.new_event_loop()

    async def leave() -> list[asyncio.Task[Any]]:
        await shared.acquire(Priority.BULK, 100.0)
        left = asyncio.create_task(shared.acquire(Priority.BULK, 100.0))
        await asyncio.sleep(0)
        assert shared._serving is not None
        return [left, shared._serving]

    left = first.run_until_complete(leave())
    first.close()
    time = 10.0
    try:
        assert asyncio.run(shared.acquire(Priority.BULK, 100.0)) == 0.0
    finally:
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.get_coro().close()
