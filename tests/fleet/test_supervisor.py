"""Stopping docket's worker even if it hangs."""

import asyncio
from typing import Any, Self

import pytest

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.fleet import FleetWorker
from signalwire_streams.fleet._redis import Connection
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


@pytest.mark.parametrize(
    ("where", "cancelled", "seconds"), [("begin", 0, 2.0), ("work", 3, 6.0), ("end", 0, 2.0), ("nowhere", 0, 0.0)]
)
async def test_supervisor_stops_wherever_docket_hangs(
    where: str, cancelled: int, seconds: float, idle_clock: Clock
) -> None:
    """It is cancelled every two seconds until it ends; an orderly end needs no cancelling."""
    worker: Any = Stuck(where)
    engine = Supervisor(worker)
    await asyncio.sleep(0)
    began = idle_clock.now()

    await engine.stop()

    assert idle_clock.now() - began == pytest.approx(seconds, abs=0.1)
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


async def test_worker_waits_five_seconds_for_redis_when_it_deregisters(
    client: StreamsClient, idle_clock: Clock
) -> None:
    """Its entry expires anyway."""

    class Hanging:
        def pipeline(self) -> Any:
            return self

        def srem(self, *_: object) -> None: ...

        def delete(self, *_: object) -> None: ...

        async def execute(self) -> None:
            await asyncio.Event().wait()

    worker = FleetWorker("redis://localhost", client)
    worker._connection = Connection(Hanging(), 60.0)
    began = idle_clock.now()

    await worker._deregister()

    assert idle_clock.now() - began == pytest.approx(5.0, abs=0.1)
