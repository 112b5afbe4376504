"""The clock of a client, and the one for tests on which waiting takes no time."""

import asyncio
import random
import time

from signalwire_streams import Clock


def test_clock_is_that_of_the_process() -> None:
    assert Clock() == Clock(now=time.monotonic, sleep=asyncio.sleep, random=random.random)


async def test_fake_clock_advances_by_what_it_sleeps() -> None:
    clock = Clock.fake()
    before = time.monotonic()
    began = clock.now()
    assert before <= began <= time.monotonic(), "it begins with the process's time"
    for _ in range(2):
        await clock.sleep(3600)
    assert 7200 <= clock.now() - began < 7260
    drawn = [clock.random() for _ in range(3)]
    again = Clock.fake()
    assert drawn == [again.random() for _ in range(3)], "the same in each test"
    assert len(set(drawn)) == 3
    assert all(0 <= number < 1 for number in drawn)


async def test_fake_sleep_lets_other_tasks_run() -> None:
    ran = asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    await Clock.fake().sleep(3600)
    assert ran.is_set()


async def test_fake_sleep_takes_no_time(idle_clock: Clock) -> None:
    began = idle_clock.now()
    await Clock.fake().sleep(3600)
    assert idle_clock.now() - began < 0.1


async def test_fake_clocks_are_independent() -> None:
    one, other = Clock.fake(), Clock.fake()
    await one.sleep(3600)
    assert one.now() - other.now() > 3500
