"""What every receiver does with the audio, so that they differ in nothing but themselves."""

import asyncio
import gc
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from attrs import define, field

from benchmarks.child import Respond, Serve
from benchmarks.figures import percentile
from benchmarks.measuring import cpu

_STALLED = 3.0  # seconds without a frame, after which no more are waited for
_LOOK = 0.02


@define(eq=False)
class Hall:
    """What was heard, on all sockets together.

    Attributes:
        live: sockets that are open.
        frames: media frames that the handler got.
        octets: of audio.
        epoch: when the first frame was due; None where frames come as fast as they are taken.
        lateness: seconds that each frame came too late.
    """

    live: int = field(init=False, default=0)
    frames: int = field(init=False, default=0)
    octets: int = field(init=False, default=0)
    epoch: float | None = field(init=False, default=None)
    lateness: "array[float]" = field(init=False, factory=lambda: array("d"))

    @contextmanager
    def ear(self, parameters: Mapping[str, str]) -> Iterator["Ear"]:
        """Count a socket while it is open; parameters are those of its start event."""
        self.live += 1
        try:
            yield Ear(self, float(parameters["phase"]))
        finally:
            self.live -= 1

    def clear(self) -> None:
        """Forget what was heard."""
        self.frames = self.octets = 0
        self.epoch = None
        del self.lateness[:]


@define(eq=False)
class Ear:
    """What hears one socket.

    Attributes:
        hall: where it is counted.
        phase: seconds by which this socket's frames come later than the first one's.
    """

    hall: Hall
    phase: float

    def hear(self, timestamp: int, payload: bytes) -> None:
        """Take one frame of audio."""
        hall = self.hall
        hall.frames += 1
        hall.octets += len(payload)
        if hall.epoch is not None:
            hall.lateness.append(time.monotonic() - hall.epoch - self.phase - timestamp / 1_000)


Receiver: TypeAlias = Callable[[Hall], AbstractAsyncContextManager[int]]
"""Serves while its block runs, and gives its port."""


def heard(receiver: Receiver) -> Serve:
    """Make a child's target of a receiver."""

    @asynccontextmanager
    async def serve(_: dict[str, Any]) -> AsyncIterator[Respond]:
        hall = Hall()
        used = 0.0
        async with receiver(hall) as port:

            async def respond(command: dict[str, Any]) -> dict[str, Any]:
                nonlocal used
                if "sockets" in command:
                    await _until(lambda: hall.live == command["sockets"])
                    hall.clear()
                    gc.collect()
                    hall.epoch = command["epoch"]
                    used = cpu()
                if "frames" in command:
                    await _all_heard(hall, command["frames"])
                    return {"cpu": cpu() - used, "frames": hall.frames, "octets": hall.octets, **_lateness(hall)}
                return {"port": port}

            yield respond

    return serve


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110  (nothing is measured meanwhile)
            await asyncio.sleep(_LOOK)


async def _all_heard(hall: Hall, frames: int) -> None:
    last, since = hall.frames, time.monotonic()
    while hall.frames < frames and time.monotonic() - since < _STALLED:
        await asyncio.sleep(_LOOK)
        if hall.frames != last:
            last, since = hall.frames, time.monotonic()


def _lateness(hall: Hall) -> dict[str, float]:
    if not hall.lateness:
        return {}
    return {"p50": percentile(hall.lateness, 0.5), "p99": percentile(hall.lateness, 0.99)}
