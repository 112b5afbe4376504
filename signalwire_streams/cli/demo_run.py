"""The demo's job: a stream on every live conference, then none. It is meant to be read, and copied."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from attrs import define, field

from signalwire_streams import Action, Attempt, ConferenceStream, StreamsClient, StreamsError, StreamStatus
from signalwire_streams.simulator import SimulatedSpace

WORKERS = 16
"""So many starts or stops are under way at once."""

AUDIO_URL = "wss://audio.example.com/live"

_Item = TypeVar("_Item")
_AGAIN = {
    Action.RETRY,
    Action.RETRY_UNSENT,
    Action.RETRY_NOW,
    Action.RETRY_ONCE,
    Action.RESEND,
    Action.WAIT_FOR_GATE,
}


@define(eq=False)
class Job:
    """What the client did, as it saw it.

    Attributes:
        found: the sids of the live conferences.
        started: the streams, each as its start returned it.
        stopped: the streams, each as its stop returned it.
        failures: what went wrong in the end, in sentences.
        attempts: every attempt, as ``on_attempt`` hears of it.
        start_seconds: how long each successful start took, its repeated attempts included.
        stop_seconds: the same of each successful stop.
        seconds: how long the whole job took.
    """

    found: list[str] = field(factory=list)
    started: list[ConferenceStream] = field(factory=list)
    stopped: list[ConferenceStream] = field(factory=list)
    failures: list[str] = field(factory=list)
    attempts: list[Attempt] = field(factory=list)
    start_seconds: list[float] = field(factory=list)
    stop_seconds: list[float] = field(factory=list)
    seconds: float = 0.0

    async def run(self, client: StreamsClient) -> None:
        """Find the live conferences, start a stream on each, then stop them all."""
        began = time.perf_counter()
        self.found = [conference.sid async for conference in client.conferences.list(status="in-progress")]

        async def start(conference_sid: str) -> None:
            async with self._timed(self.start_seconds):
                self.started.append(await client.conferences.start_stream(conference_sid, url=AUDIO_URL))

        async def stop(stream: ConferenceStream) -> None:
            async with self._timed(self.stop_seconds):
                stopped = await client.conferences.stop_stream(stream.conference_sid, stream)
                if stopped.status == StreamStatus.STOPPED:
                    self.stopped.append(stopped)

        await for_each(self.found, start)
        await for_each(self.started, stop)
        self.seconds = time.perf_counter() - began

    @property
    def repeats(self) -> list[Attempt]:
        """The attempts that were followed by another one of the same call."""
        return [attempt for attempt in self.attempts if attempt.action in _AGAIN]

    @asynccontextmanager
    async def _timed(self, seconds: list[float]) -> AsyncIterator[None]:
        """Note how long a call took, or why it failed; one failure does not end the job."""
        began = time.perf_counter()
        try:
            yield
        except StreamsError as error:
            self.failures.append(str(error))
        else:
            seconds.append(time.perf_counter() - began)


async def for_each(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
    """Work on all items, a bounded number at a time: the workers share one iterator, so each takes the next item."""
    shared = iter(items)

    async def worker() -> None:
        for item in shared:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(worker())


def simulated_space(conferences: int, seed: int) -> SimulatedSpace:
    """Make the Space, with its faults.

    No start and no stop runs into more than one reset and one 503, and a call is tried three times; waiting
    because of "too many requests" does not count as one. So every one of them must succeed, whatever the seed.
    """
    space = SimulatedSpace(conferences=conferences, seed=seed, keep_requests=False)
    one_in = min(12, conferences)  # in a small demo too, each fault happens at least once
    for operation in ("start", "stop"):
        space.faults.add("reset", on=operation, created=True, one_in=one_in, per_target=1)
        space.faults.add("503-api", on=operation, one_in=one_in, per_target=1)
    space.faults.add("throttle", on="start", times=1, retry_after=0.25)
    space.faults.add("latency", seconds=0.01)
    return space
