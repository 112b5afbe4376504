"""The clock that other tests rely on: it skips waits, and nothing else."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from signalwire_streams import Clock
from tests import idle_clock as module


async def test_wait_takes_its_time_on_the_clock_only(idle_clock: Clock) -> None:
    began, began_really = idle_clock.now(), time.monotonic()
    await asyncio.sleep(60)
    assert 60 <= idle_clock.now() - began < 60.1
    await idle_clock.sleep(30)
    assert 90 <= idle_clock.now() - began < 90.1
    assert time.monotonic() - began_really < 30


async def test_timers_fire_in_order(idle_clock: Clock) -> None:
    fired: list[int] = []

    async def wait(seconds: int) -> None:
        await asyncio.sleep(seconds)
        fired.append(seconds)

    await asyncio.gather(*map(wait, (50, 7, 20)))
    assert fired == [7, 20, 50]


async def test_timeout_does_not_pass_while_a_socket_has_something_to_read(idle_clock: Clock) -> None:
    """Each exchange goes over a real socket, with a timeout that only an idle loop would reach."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    began = idle_clock.now()
    for _ in range(100):
        writer.write(b"line\n")
        async with asyncio.timeout(0.5):
            assert await reader.readline() == b"line\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    assert idle_clock.now() - began < 0.5


async def test_clock_stands_while_threads_end(idle_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do at the end of each test, which may take a while on a busy machine."""
    loop: Any = asyncio.get_running_loop()
    may_end, turns, select = threading.Event(), count(), loop._selector.select

    class Slow(ThreadPoolExecutor):
        def shutdown(self, *arguments: bool, **options: bool) -> None:
            may_end.wait(30)
            super().shutdown(*arguments, **options)

    def counted(seconds: float | None) -> Any:
        if next(turns) == 20:
            may_end.set()
        return select(seconds)

    loop.set_default_executor(Slow())
    assert await loop.run_in_executor(None, int) == 0
    began, waiting = idle_clock.now(), asyncio.create_task(asyncio.sleep(60))
    monkeypatch.setattr(loop._selector, "select", counted)
    await loop.shutdown_default_executor()
    assert idle_clock.now() - began < 1
    assert not waiting.done()


async def test_clock_stands_while_a_thread_works(idle_clock: Clock) -> None:
    done = threading.Event()
    working = asyncio.get_running_loop().run_in_executor(None, done.wait, 30)
    waiting = asyncio.create_task(asyncio.sleep(60))
    began = idle_clock.now()
    for _ in range(50):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(working), 0.001)
    assert idle_clock.now() - began < 1
    assert not waiting.done()
    done.set()
    assert await working
    await waiting
    assert idle_clock.now() - began >= 60


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_loop_in_which_nothing_can_happen_fails(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STUCK", 0.0)
    module.skip_idle_time(loop, monkeypatch)
    with pytest.raises(AssertionError, match="nothing can happen any more"):
        loop.run_until_complete(loop.create_future())


def test_wait_that_does_not_end_fails_and_can_be_cleaned_up(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.skip_idle_time(loop, monkeypatch)

    async def wait_for_ever() -> None:
        while True:  # noqa: ASYNC110  (no event is the point)
            await asyncio.sleep(30)

    task = loop.create_task(wait_for_ever())
    with pytest.raises(AssertionError, match="a wait does not end"):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    assert task.cancelled()
