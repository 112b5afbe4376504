"""Time limits over one timer: they end what takes too long, and nothing else."""

import asyncio

import pytest

from signalwire_streams._http.session import DeadlineTimer


@pytest.fixture
def limits() -> DeadlineTimer:
    return DeadlineTimer()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_block_is_cancelled_at_deadline(limits: DeadlineTimer) -> None:
    with pytest.raises(TimeoutError), limits.within(0.001) as limit:
        await forever()
    assert limit.expired
    assert not limits.running
    await asyncio.sleep(0)  # the task is not cancelled any further


async def test_block_within_deadline_is_not_cancelled(limits: DeadlineTimer) -> None:
    with limits.within(60) as limit:
        await asyncio.sleep(0)
    assert not limit.expired
    limits.close()


async def test_nested_deadlines_end_in_order(limits: DeadlineTimer) -> None:
    """A later limit that ends earlier is not held up by the timer of the first."""
    with limits.within(60) as longer:
        with pytest.raises(TimeoutError), limits.within(0.001):
            await forever()
        assert not longer.expired
        with pytest.raises(TimeoutError), limits.within(0.001):
            await forever()
    limits.close()


async def test_many_deadlines_end_at_their_times(limits: DeadlineTimer) -> None:
    ended: list[int] = []

    async def run(number: int) -> None:
        try:
            with limits.within(0.001 * number):
                await forever()
        except TimeoutError:
            ended.append(number)

    await asyncio.gather(*map(run, (5, 1, 9, 3, 7)))
    assert sorted(ended) == [1, 3, 5, 7, 9]


async def test_step_ends_at_its_own_limit_but_no_later_than_the_block(limits: DeadlineTimer) -> None:
    """A step may end earlier or later than the one before it."""

    async def soon() -> None:
        with limits.within(60) as limit:
            limit.allow(0.001)
            await forever()

    async def late() -> None:
        with limits.within(0.001) as limit:
            limit.allow(60)
            await forever()

    for step in (soon, late):
        with pytest.raises(TimeoutError):
            await step()
    with limits.within(60) as limit:
        limit.allow(0.001)
        limit.allow(30)
        with pytest.raises(TimeoutError), limits.within(0.01):
            await forever()
        assert not limit.expired
    limits.close()


async def test_deadline_can_be_expired_once(limits: DeadlineTimer) -> None:
    limit = limits.within(60)

    async def run() -> None:
        with limit:
            asyncio.get_running_loop().call_soon(limit.expire)
            asyncio.get_running_loop().call_soon(limit.expire)
            await forever()

    with pytest.raises(TimeoutError):
        await run()
    assert limit.expired
    await asyncio.sleep(0)


async def test_foreign_cancellation_is_kept(limits: DeadlineTimer) -> None:
    """Time that is up and a cancellation at once: the task is cancelled."""

    async def run() -> None:
        with limits.within(60) as limit:
            asyncio.get_running_loop().call_soon(limit.expire)
            await forever()

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_exception_of_block_propagates(limits: DeadlineTimer) -> None:
    """Also when it is raised because the time was up."""

    async def run() -> None:
        with limits.within(0.001):
            try:
                await forever()
            except asyncio.CancelledError:
                raise LookupError from None

    with pytest.raises(LookupError):
        await run()
    await asyncio.sleep(0)
