"""Waiting for a turn: who goes first, who gives up, and what a cancelled one gives back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkState,
    Clock,
    InvalidRequestError,
    Lane,
    Phase,
    RateLimit,
    RateLimitedError,
    RetryPolicy,
    RunEndedError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams._http.messages import Request, Outcome, Progress
from signalwire_streams.middleware._queueing import Slots
from signalwire_streams.middleware._rate_limit import LocalPacer, Pace, Turns
from signalwire_streams.models import Event, Kind
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"


class Stopwatch:
    """A clock that moves only when something sleeps, and lets the test decide when a sleep ends."""

    def __init__(self) -> None:
        self.time = 0.0

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)

    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.sleep)


def pacer(**limit: Any) -> tuple[LocalPacer, Stopwatch]:
    watch = Stopwatch()
    return LocalPacer(Pace(RateLimit(**limit)), watch.clock()), watch


async def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    """After the burst, requests go out evenly."""
    paced, watch = pacer(requests=100, window=10.0, share=1.0, burst=10)
    went: list[float] = []

    async def one() -> None:
        assert await paced.acquire(Lane.BULK, 60) == 0
        went.append(watch.time)

    await asyncio.gather(*(one() for _ in range(100)))

    assert went[:10] == [0.0] * 10
    assert went == sorted(went)
    assert went[-1] == pytest.approx(90 / 9, rel=0.01)


async def test_interactive_requests_go_before_bulk_ones() -> None:
    """Among those who wait, an interactive request goes first, however late it comes."""
    paced, _ = pacer(requests=20, window=10.0, share=1.0, burst=1)
    order: list[str] = []

    async def one(lane: Lane, name: str) -> None:
        await paced.acquire(lane, 1000)
        order.append(name)

    await paced.acquire(Lane.BULK, 60)
    bulk = [asyncio.create_task(one(Lane.BULK, f"bulk {n}")) for n in range(3)]
    await asyncio.sleep(0)
    interactive = asyncio.create_task(one(Lane.INTERACTIVE, "interactive"))
    await asyncio.gather(interactive, *bulk)

    assert order == ["interactive", "bulk 0", "bulk 1", "bulk 2"]


async def test_who_would_wait_too_long_is_told_at_once() -> None:
    """A wait that is longer than the caller's patience is not begun, and takes nothing."""
    paced, watch = pacer(requests=20, window=10.0, share=1.0, burst=1)
    await paced.acquire(Lane.BULK, 60)
    paced.throttled(0.0, 30.0)

    assert await paced.acquire(Lane.INTERACTIVE, 5) == 30
    assert await paced.pass_gate(5) == 30
    assert watch.time == 0
    assert await paced.pass_gate(60) == 0
    assert watch.time == 30


async def test_a_read_waits_for_the_gate_only() -> None:
    """Reads are not counted by the limit, and wait only while the Space takes nothing at all."""
    paced, watch = pacer(requests=20, window=10.0, share=1.0, burst=1)
    for _ in range(10):
        assert await paced.pass_gate(1) == 0
    assert await paced.acquire(Lane.BULK, 1) == 0
    assert watch.time == 0


async def test_patience_ends_a_wait_that_was_begun() -> None:
    """A turn that does not come within the caller's patience is given up, and the next in line gets it."""
    watch = Stopwatch()
    held = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await held.wait()
        watch.time += seconds

    paced = LocalPacer(
        Pace(RateLimit(requests=2_000, window=10.0, share=1.0, burst=1)), Clock(now=lambda: watch.time, sleep=sleep)
    )
    await paced.acquire(Lane.BULK, 60)
    waiting = asyncio.create_task(paced.acquire(Lane.BULK, 0.01))
    patient = asyncio.create_task(paced.acquire(Lane.BULK, 60))

    assert await waiting == 0.01
    held.set()
    assert await patient == 0


async def test_a_turn_in_the_very_moment_that_patience_ends() -> None:
    """Where the turn is granted while the timeout is already on its way, it is a turn, and counted."""
    times = iter([0.0, 0.0, 10.0])
    pace = Pace(RateLimit(requests=10**12, window=10.0, share=1.0, burst=1))
    paced = LocalPacer(pace, Clock(now=lambda: next(times)))
    assert await paced.acquire(Lane.BULK, 60) == 0
    assert await paced.acquire(Lane.BULK, 1e-9) == 0
    assert pace.take(10.0) > 0


async def test_no_patience_takes_nothing() -> None:
    """Who can't wait at all, and would have to, is told so and takes no leave."""
    paced, _ = pacer(requests=20, window=10.0, share=1.0, burst=1)
    assert await paced.acquire(Lane.BULK, 0.0) == 0

    assert await paced.acquire(Lane.BULK, 0.0) > 0
    assert await paced.acquire(Lane.BULK, -1.0) > 0


async def test_without_a_connection_the_pacer_is_not_asked() -> None:
    """Who gets no connection in time takes no leave, and sends nothing."""
    paced, watch = pacer(requests=20, window=10.0, share=1.0, burst=1)
    exchange = Request(
        method="POST", path="/x", kind=Kind.STOP, verb="ask", target="x", progress=Progress(deadline_at=0.0)
    )

    async def send(_: Request) -> Outcome:
        raise AssertionError("it was sent")

    outcome = await Turns(Slots(0), paced, watch.clock())(exchange, send)

    assert (outcome.event, outcome.phase) == (Event.EXPIRED, Phase.QUEUED)
    assert outcome.detail == "no connection became free in time"
    assert await paced.acquire(Lane.BULK, 60) == 0
    assert watch.time == 0


@pytest.mark.parametrize("after_the_grant", [False, True])
async def test_a_cancelled_turn_is_given_back(after_the_grant: bool) -> None:
    """Who is cancelled while waiting costs nobody a turn, even when the turn had just been granted."""
    paced, watch = pacer(requests=20, window=10.0, share=1.0, burst=1)
    await paced.acquire(Lane.BULK, 60)
    waiting = asyncio.create_task(paced.acquire(Lane.BULK, 60))
    await asyncio.sleep(0)
    [turn] = paced._waiting[Lane.BULK]
    if after_the_grant:
        turn.set_result(None)  # as the pump does
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    before = watch.time

    assert await paced.acquire(Lane.BULK, 60) == 0
    assert watch.time - before <= 1.0


async def test_a_lying_space_is_found_out(client_for: Any) -> None:
    """A Space that takes a third of what it says is met with fewer and fewer requests, until all are started."""
    clock = Clock.instant()
    async with SimulatedSpace(
        conferences=300, participants=0, rate_limit=100, window=10.0, advertised_limit=300, monotonic=clock.now
    ) as space:
        client = client_for(
            space,
            clock=clock,
            rate_limit=RateLimit(requests=300, window=10.0),
            retry=RetryPolicy(throttle_waits=50, deadline=10_000, unsent_attempts=50),
        )
        starts = [client.conferences.start_stream(sid, url=URL) for sid in space.conference_sids]
        await asyncio.gather(*starts)

        assert len(space.streams.alive()) == 300
        assert space.requests.count("start-conference-stream") > 300


async def test_headers_lower_the_rate(client_for: Any) -> None:
    """A Space that says it takes fewer is not asked for more, so nothing is refused."""
    clock = Clock.instant()
    async with SimulatedSpace(conferences=100, participants=0, rate_limit=60, monotonic=clock.now) as space:
        client = client_for(space, clock=clock, rate_limit=RateLimit(burst=1))
        for sid in space.conference_sids:
            await client.conferences.start_stream(sid, url=URL)

        assert space.requests.count() == 100
        assert space.requests.busiest_window(10.0) <= 60


async def test_too_many_requests_for_ever(space: SimulatedSpace, client_for: Any) -> None:
    """A Space that never takes the request ends it after six waits."""
    client = client_for(space, retry=RetryPolicy(deadline=1_000))
    space.faults.add("throttle", retry_after=2)

    with pytest.raises(RateLimitedError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert (caught.value.attempts, caught.value.retry_after, caught.value.sent) == (7, 2, "yes")
    assert space.requests.count() == 7


async def test_a_pacer_of_ones_own(space: SimulatedSpace, client_for: Any) -> None:
    """A shared pacer takes the place of the local one, and hears what the Space says."""
    heard: list[object] = []

    class Shared:
        async def acquire(self, lane: Lane, patience: float) -> float:
            heard.append(lane)
            return 0.0

        async def pass_gate(self, patience: float) -> float:
            heard.append("gate")
            return 0.0

        def throttled(self, sent_at: float, retry_after: float | None) -> None:
            heard.append(retry_after)

        def served(self, advertised: int | None) -> None:
            heard.append(advertised)

    client = client_for(space, pacer=Shared())
    space.faults.add("throttle", retry_after=2, times=1)
    await client.conferences.start_stream(space.conference_sids[0], url=URL)
    await client.conferences.get(space.conference_sids[0])

    assert heard == [Lane.INTERACTIVE, 2.0, Lane.INTERACTIVE, 13_800, "gate", 13_800]
    with pytest.raises(InvalidRequestError, match="not both"):
        StreamsClient(space="example", project="p", token="t", pacer=Shared(), rate_limit=RateLimit())


class Counting(LocalPacer):
    """Gives leave to whoever asks, and counts."""

    asked = 0

    async def acquire(self, lane: Lane, patience: float) -> float:
        self.asked += 1
        return 0.0


def start_with(progress: Progress) -> Request:
    return Request(method="POST", path="/x", kind=Kind.CALL_START, verb="start", target="x", progress=progress)


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 1), (0.5, 2)])
async def test_a_leave_that_was_held_too_long_is_asked_for_again(seconds: float, turns: int) -> None:
    """What is done before sending is done once, at the first turn; where it took long the turn is another one's."""
    watch = Stopwatch()
    paced = Counting(Pace(RateLimit()), watch.clock())
    done: list[float] = []

    async def prepare() -> None:
        done.append(watch.time)
        watch.time += seconds

    async def send(_: Request) -> Outcome:
        return Outcome(event=Event.DONE, phase=Phase.ANSWERED)

    progress = Progress(before_sending=prepare)
    for _ in range(2):
        await Turns(Slots(1), paced, watch.clock())(start_with(progress), send)

    assert done == [0.0]
    assert paced.asked == turns + 1


async def test_what_can_not_be_prepared_is_not_sent() -> None:
    """It is no attempt."""
    watch = Stopwatch()

    async def prepare() -> None:
        raise RunEndedError("another worker has it")

    async def send(_: Request) -> Outcome:
        raise AssertionError("it was sent")

    progress = Progress(before_sending=prepare)
    turns = Turns(Slots(1), Counting(Pace(RateLimit()), watch.clock()), watch.clock())
    for _ in range(2):  # also where somebody tries it again
        progress.attempts = 1
        with pytest.raises(RunEndedError):
            await turns(start_with(progress), send)
        assert progress.attempts == 0


class Refusing(LocalPacer):
    """Grants so many requests, and says of the next ones that they would have to wait for a minute."""

    grants = 0

    async def acquire(self, lane: Lane, patience: float) -> float:
        self.grants -= 1
        return 0.0 if self.grants >= 0 else 60.0


@pytest.mark.parametrize(("grants", "prepared"), [(0, 0), (1, 1)])
async def test_what_the_pacer_refuses_is_not_sent(grants: int, prepared: int) -> None:
    """A request that is refused at first is not prepared; one that is refused after a slow preparation is not sent."""
    watch = Stopwatch()
    paced = Refusing(Pace(RateLimit()), watch.clock())
    paced.grants = grants
    done: list[float] = []

    async def prepare() -> None:
        done.append(watch.time)
        watch.time += 0.5

    async def send(_: Request) -> Outcome:
        raise AssertionError("it was sent")

    outcome = await Turns(Slots(1), paced, watch.clock())(start_with(Progress(before_sending=prepare)), send)

    assert (outcome.event, outcome.phase, outcome.retry_after) == (Event.EXPIRED, Phase.QUEUED, 60.0)
    assert len(done) == prepared


async def test_a_journaled_start_that_the_pacer_refuses_is_not_recorded(
    space: SimulatedSpace, client_for: Any, tmp_path: Path
) -> None:
    """It is not sent, and the journal does not say that it may have been."""
    clock = Clock.instant()
    paced = Refusing(Pace(RateLimit()), clock)
    paced.grants = 1
    journal = tmp_path / "run.db"
    client = client_for(space, clock=clock, pacer=paced)
    requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
    outcomes = [outcome async for outcome in client.start_streams(requests, concurrency=1, journal=journal)]

    assert [outcome.state for outcome in outcomes] == [
        BulkState.STARTED,
        BulkState.NOT_ATTEMPTED,
        BulkState.NOT_ATTEMPTED,
    ]
    assert space.requests.count() == 1
    assert [item.target for item in BulkJournal(journal).items()] == space.conference_sids[:1]


async def test_the_patience_for_a_closed_gate_is_not_begun_anew() -> None:
    """A gate that is closed again while a read waits for it is waited for no longer than the read's patience."""
    paced, watch = pacer(requests=20, window=10.0, share=1.0, burst=1)
    paced.throttled(0.0, 30.0)

    async def close_again() -> None:
        paced.throttled(watch.time, 25.0)

    waiting = asyncio.create_task(paced.pass_gate(50.0))
    closing = asyncio.create_task(close_again())
    assert await waiting == 25.0
    await closing
    assert watch.time == 30.0
