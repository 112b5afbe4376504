"""The priority semaphore of the connection slots."""

import asyncio

import pytest

from signalwire_streams import Priority
from signalwire_streams.middleware._queueing import PrioritySemaphore


async def test_interactive_request_gets_the_next_free_slot() -> None:
    """However many bulk exchanges wait, an interactive one goes before them."""
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
    """Who waited too long has no slot, and the next release is not lost on it."""
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
    """A slot goes to the first who still wants it."""
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
