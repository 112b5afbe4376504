"""Stopping docket's worker even if it hangs."""

import asyncio
from typing import Any, Self

import pytest

from signalwire_streams.fleet._worker import Supervisor

pytestmark = pytest.mark.usefixtures("idle_clock")


class Stuck:
    """A docket worker that hangs in one place."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.told = asyncio.Event()
        self.cancelled = 0

    async def __aenter__(self) -> Self:
        await self.pass_through("begin")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.told.set()
        await self.pass_through("end")

    async def run_forever(self) -> None:
        while True:
            try:
                await self.pass_through("work")
                await self.told.wait()
            except asyncio.CancelledError:
                # As the engine's worker does where Redis fails it: it goes on, a few times over.
                self.cancelled += 1
                if self.cancelled == 3:
                    raise
            else:
                return

    async def pass_through(self, where: str) -> None:
        if where == self.where:
            await asyncio.Event().wait()


@pytest.mark.parametrize(("where", "cancelled"), [("begin", 0), ("work", 3), ("end", 0), ("nowhere", 0)])
async def test_supervisor_stops_wherever_docket_hangs(where: str, cancelled: int) -> None:
    """It is cancelled until it ends; an orderly end needs no cancelling."""
    worker: Any = Stuck(where)
    engine = Supervisor(worker)
    await asyncio.sleep(0)

    await engine.stop()

    assert engine.task.done()
    assert worker.cancelled == cancelled
    engine.raise_failure()


async def test_supervisor_stops_although_caller_is_cancelled() -> None:
    """The caller's cancellation is raised at the end."""
    worker: Any = Stuck("work")
    engine = Supervisor(worker)
    ending = asyncio.create_task(engine.stop())
    for _ in range(2):
        await asyncio.sleep(0)
        ending.cancel()

    with pytest.raises(asyncio.CancelledError):
        await ending
    assert engine.task.done()


async def test_supervisor_raises_failure_of_docket() -> None:
    worker: Any = Stuck("nowhere")

    async def broken() -> None:
        raise RuntimeError("broken")

    worker.run_forever = broken
    engine = Supervisor(worker)
    await asyncio.wait([engine.task])
    await engine.stop()

    with pytest.raises(RuntimeError, match="broken"):
        engine.raise_failure()
