"""The queue of those who wait, and the semaphore of the connection slots."""

import asyncio

import pytest

from signalwire_streams import ClientStateError, Priority
from signalwire_streams.middleware._rate_limit import PriorityQueue, PrioritySemaphore


async def test_interactive_request_gets_the_next_free_slot() -> None:
    slots = PrioritySemaphore(1)
    assert await slots.acquire(Priority.BULK, 60)
    order: list[str] = []

    async def one(priority: Priority, name: str) -> None:
        assert await slots.acquire(priority, 60)
        order.append(name)
        slots.release()

    waiting = [asyncio.create_task(one(Priority.BULK, f"bulk {n}")) for n in range(3)]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(one(Priority.INTERACTIVE, "interactive")))
    await asyncio.sleep(0)
    slots.release()
    await asyncio.gather(*waiting)

    assert order == ["interactive", "bulk 0", "bulk 1", "bulk 2"]
    assert slots.free == 1


async def test_acquire_that_times_out_takes_no_slot() -> None:
    """The next release is not lost on it either."""
    slots = PrioritySemaphore(0)
    assert not await slots.acquire(Priority.BULK, 0.0)
    slots.release()
    assert slots.free == 1


@pytest.mark.parametrize("after_the_grant", [False, True])
async def test_cancelled_acquire_gives_its_slot_back(after_the_grant: bool) -> None:
    """A wait that is cancelled, even in the very moment of its grant, keeps no slot."""
    slots = PrioritySemaphore(0)
    waiting = asyncio.create_task(slots.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    if after_the_grant:
        slots.release()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if not after_the_grant:
        slots.release()
    assert slots.free == 1


async def test_release_skips_a_wait_that_is_being_cancelled() -> None:
    slots = PrioritySemaphore(0)
    leaving = asyncio.create_task(slots.acquire(Priority.BULK, 60))
    staying = asyncio.create_task(slots.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    leaving.cancel()
    slots.release()

    assert await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert slots.free == 0


def unexpected(grant: float) -> None:
    raise AssertionError(f"{grant} was given back")


async def test_queue_serves_interactive_turns_first_and_counts_what_is_ahead() -> None:
    queue = PriorityQueue(unexpected)
    assert (len(queue), queue.head(), queue.grant()) == (0, (Priority.BULK, 0), False)
    bulk = [queue.add(Priority.BULK) for _ in range(2)]
    interactive = queue.add(Priority.INTERACTIVE)
    assert (queue.ahead(Priority.INTERACTIVE), queue.ahead(Priority.BULK)) == (1, 3)
    assert queue.head() == (Priority.INTERACTIVE, 1)
    assert queue.grant(7.0)
    assert queue.grant()
    assert (interactive.result(), bulk[0].result()) == (7.0, float("inf"))
    assert (queue.head(), bulk[1].done()) == ((Priority.BULK, 1), False)


async def test_grant_in_the_moment_of_the_timeout_is_returned() -> None:
    queue = PriorityQueue(unexpected)
    turn = queue.add(Priority.BULK)
    asyncio.get_running_loop().call_soon(queue.grant, 3.0)
    assert await queue.wait(turn, 1e-9) == 3.0


async def test_wait_that_times_out_leaves_the_queue() -> None:
    queue = PriorityQueue(unexpected)
    assert await queue.wait(queue.add(Priority.BULK), 0.001) is None
    assert len(queue) == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_cancelled_wait_gives_its_grant_back_but_not_an_error(refused: bool) -> None:
    given_back: list[float] = []
    queue = PriorityQueue(given_back.append)
    waiting = asyncio.create_task(queue.wait(queue.add(Priority.BULK), 60))
    await asyncio.sleep(0)
    if refused:
        queue.reject(ClientStateError("closed"))
    else:
        queue.grant(5.0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert given_back == ([] if refused else [5.0])


async def test_refused_queue_ends_each_wait_with_an_error_of_its_own() -> None:
    queue = PriorityQueue(unexpected)
    waits = [asyncio.create_task(queue.wait(queue.add(Priority.BULK), 60)) for _ in range(2)]
    await asyncio.sleep(0)
    queue.reject(ClientStateError("closed"))
    first, second = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(first, ClientStateError)
    assert str(first) == str(second) == "closed"
    assert first is not second
