"""The demo's job: a stream on every live conference, then none. It is meant to be read, and copied."""

import time
from contextlib import AbstractAsyncContextManager
from typing import Any

from attrs import define, field

from signalwire_streams import Attempt, BulkReport, BulkRun, StartConferenceStream, StreamsClient, StreamStatus
from signalwire_streams._cli.progress import REPEATED, Meter, Progress, shown
from signalwire_streams.simulator import SimulatedSpace

AUDIO_URL = "wss://audio.example.com/live"


@define(eq=False)
class Job:
    """What the client did, as it saw it.

    Attributes:
        as_json: whether the result will be written as JSON.
        found: the sids of the live conferences.
        streams: the streams, each as its start returned it.
        stopped: how many stops returned a stopped stream.
        reports: what the client says of the starts, and of the stops.
        attempts: every attempt, as ``on_attempt`` hears of it.
        seconds: how long the whole job took.
    """

    as_json: bool = False
    found: list[str] = field(factory=list)
    streams: list[Any] = field(factory=list)
    stopped: int = 0
    reports: list[BulkReport] = field(factory=list)
    attempts: list[Attempt] = field(factory=list)
    seconds: float = 0.0
    _meter: Meter = field(init=False, factory=Meter)

    async def run(self, client: StreamsClient) -> None:
        """Find the live conferences, start a stream on each, then stop them all."""
        began = time.perf_counter()
        self.found = [item.sid async for item in client.conferences.list(status="in-progress", page_size=1000)]

        starts = client.start_streams(StartConferenceStream(conference_sid=sid, url=AUDIO_URL) for sid in self.found)
        async with self._shown("Starting", starts):
            async for outcome in starts:
                if outcome.stream is not None:
                    self.streams.append(outcome.stream)
        self.reports.append(await starts.report())

        stops = client.stop_streams(self.streams)
        async with self._shown("Stopping", stops):
            async for end in stops:
                self.stopped += end.stream is not None and end.stream.status == StreamStatus.STOPPED
        self.reports.append(await stops.report())

        self.seconds = time.perf_counter() - began

    def note(self, attempt: Attempt) -> None:
        """Hear of an attempt."""
        self.attempts.append(attempt)
        self._meter.note(attempt)

    @property
    def repeats(self) -> list[Attempt]:
        """The attempts that were followed by another one of the same call."""
        return [attempt for attempt in self.attempts if attempt.action in REPEATED]

    @property
    def failures(self) -> list[str]:
        """What went wrong in the end, in sentences."""
        return [str(outcome.error) for report in self.reports for outcome in report.failures]

    def _shown(self, title: str, run: BulkRun[Any]) -> AbstractAsyncContextManager[object]:
        def look() -> Progress:
            facts = f"{self._meter.rate:,.0f} requests/s", f"{self._meter.repeats:,} attempts repeated"
            return Progress(title=title, done=run.so_far.total, total=len(self.found), facts=facts)

        return shown(look, as_json=self.as_json)


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
