"""Waiting for a turn: who goes first, who gives up, and what a cancelled one gives back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    Clock,
    InvalidRequestError,
    Phase,
    Priority,
    RateLimit,
    RateLimitedError,
    RetryPolicy,
    RunCancelledError,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams._http.messages import CallState, chain
from signalwire_streams.middleware import Request, Result
from signalwire_streams.middleware._rate_limit import (
    LocalRateLimiter,
    PrioritySemaphore,
    RateLimitMiddleware,
    TokenBucket,
)
from signalwire_streams.middleware._retry import RetryBudget, RetryMiddleware
from signalwire_streams.models import AttemptResult, Operation
from signalwire_streams.simulator import SimulatedSpace
from tests.raw_space import RawConnection, RawSpace, Request as Received, http, raw_space

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


def rate_limiter(**limit: Any) -> tuple[LocalRateLimiter, Stopwatch]:
    watch = Stopwatch()
    return LocalRateLimiter(TokenBucket(RateLimit(**limit)), watch.clock()), watch


async def test_rate_limiter_lets_a_burst_through_and_then_the_rate() -> None:
    """After the burst, requests go out evenly."""
    limiter, watch = rate_limiter(requests=100, window=10.0, utilization=1.0, burst=10)
    went: list[float] = []

    async def one() -> None:
        assert await limiter.acquire(Priority.BULK, 60) == 0
        went.append(watch.time)

    await asyncio.gather(*(one() for _ in range(100)))

    assert went[:10] == [0.0] * 10
    assert went == sorted(went)
    assert went[-1] == pytest.approx(90 / 9, rel=0.01)


async def test_rate_limiter_grants_what_has_come_together_in_four_milliseconds() -> None:
    """A timer for each token would cost more than it is worth."""
    limiter, watch = rate_limiter()
    assert await asyncio.gather(*(limiter.acquire(Priority.BULK, 60) for _ in range(62 + 20))) == [0.0] * 82
    assert watch.time == pytest.approx(5 * 0.004)


async def test_rate_limiter_serves_interactive_requests_before_bulk_ones() -> None:
    """An interactive request is served first, however late it comes."""
    limiter, _ = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    order: list[str] = []

    async def one(priority: Priority, name: str) -> None:
        await limiter.acquire(priority, 1000)
        order.append(name)

    await limiter.acquire(Priority.BULK, 60)
    bulk = [asyncio.create_task(one(Priority.BULK, f"bulk {n}")) for n in range(3)]
    await asyncio.sleep(0)
    interactive = asyncio.create_task(one(Priority.INTERACTIVE, "interactive"))
    await asyncio.gather(interactive, *bulk)

    assert order == ["interactive", "bulk 0", "bulk 1", "bulk 2"]


async def test_acquire_returns_the_wait_at_once_if_it_exceeds_the_timeout() -> None:
    """A wait that is longer than the timeout is not started, and takes no token."""
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    await limiter.acquire(Priority.BULK, 60)
    limiter.on_throttled(0.0, 30.0)

    assert await limiter.acquire(Priority.INTERACTIVE, 5) == 30
    assert await limiter.wait_until_allowed(5) == 30
    assert watch.time == 0
    assert await limiter.wait_until_allowed(60) == 0
    assert watch.time == 30


async def test_read_waits_only_while_all_requests_pause() -> None:
    """Reads do not count against the limit."""
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    for _ in range(10):
        assert await limiter.wait_until_allowed(1) == 0
    assert await limiter.acquire(Priority.BULK, 1) == 0
    assert watch.time == 0


async def test_acquire_times_out_while_waiting() -> None:
    """A turn that does not come within the timeout is given up, and the next in the queue gets it."""
    watch = Stopwatch()
    held = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await held.wait()
        watch.time += seconds

    limiter = LocalRateLimiter(
        TokenBucket(RateLimit(requests=2_000, window=10.0, utilization=1.0, burst=1)),
        Clock(now=lambda: watch.time, sleep=sleep),
    )
    await limiter.acquire(Priority.BULK, 60)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 0.01))
    patient = asyncio.create_task(limiter.acquire(Priority.BULK, 60))

    assert await waiting == 0.01
    held.set()
    assert await patient == 0


async def test_grant_in_the_moment_of_the_timeout_counts() -> None:
    """Where the turn is granted while the timeout is already on its way, it is a turn, and counted."""
    times = iter([0.0, 0.0, 10.0])
    pace = TokenBucket(RateLimit(requests=10**12, window=10.0, utilization=1.0, burst=1))
    limiter = LocalRateLimiter(pace, Clock(now=lambda: next(times)))
    assert await limiter.acquire(Priority.BULK, 60) == 0
    assert await limiter.acquire(Priority.BULK, 1e-9) == 0
    assert pace.try_acquire(10.0) > 0


async def test_acquire_without_time_takes_no_token() -> None:
    limiter, _ = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    assert await limiter.acquire(Priority.BULK, 0.0) == 0

    assert await limiter.acquire(Priority.BULK, 0.0) > 0
    assert await limiter.acquire(Priority.BULK, -1.0) > 0


async def test_request_without_a_connection_slot_takes_no_token() -> None:
    """Nothing is sent either."""
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    request = Request(
        method="POST",
        path="/x",
        operation=Operation.STOP,
        description="ask",
        target="x",
        state=CallState(deadline_at=0.0),
    )

    async def send(_: Request) -> Result:
        raise AssertionError("it was sent")

    outcome = await RateLimitMiddleware(PrioritySemaphore(0), limiter, watch.clock())(request, send)

    assert (outcome.attempt_result, outcome.phase) == (AttemptResult.DEADLINE_EXCEEDED, Phase.QUEUED)
    assert outcome.detail == "no connection became free in time"
    assert await limiter.acquire(Priority.BULK, 60) == 0
    assert watch.time == 0


async def test_token_is_not_spent_on_a_turn_that_is_being_cancelled() -> None:
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    await limiter.acquire(Priority.BULK, 60)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    watch.time += 1.0
    await limiter._serve()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await limiter.acquire(Priority.INTERACTIVE, 0.0) == 0


@pytest.mark.parametrize("after_the_grant", [False, True])
async def test_cancelled_wait_gives_its_token_back(after_the_grant: bool) -> None:
    """Even if it had just been granted."""
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    await limiter.acquire(Priority.BULK, 60)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60))
    await asyncio.sleep(0)
    if after_the_grant:
        assert limiter._queue.grant()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    before = watch.time

    assert await limiter.acquire(Priority.BULK, 60) == 0
    assert watch.time - before <= 1.0


async def test_space_that_accepts_less_than_its_headers_say_gets_all_starts(client_for: Any) -> None:
    """The client slows down until the Space accepts them all."""
    clock = Clock.fake()
    async with SimulatedSpace(
        conferences=300, participants=0, rate_limit=100, window=10.0, advertised_limit=300, monotonic=clock.now
    ) as space:
        client = client_for(
            space,
            clock=clock,
            rate_limit=RateLimit(requests=300, window=10.0),
            retry=RetryPolicy(max_throttle_retries=50, deadline=10_000, max_connect_retries=50),
        )
        starts = [client.conferences.start_stream(sid, url=URL) for sid in space.conference_sids]
        await asyncio.gather(*starts)

        assert len(space.streams.active()) == 300
        assert space.requests.count("start-conference-stream") > 300


async def test_header_of_a_response_does_not_change_the_rate() -> None:
    """A proxy may send any ``X-RateLimit-Limit``, and the Space's header has an unknown name."""

    async def answer(space: RawSpace, _: RawConnection, request: Received) -> bytes:
        head = "X-RateLimit-Limit: 1\r\n"
        if len(space.requests) == 1:
            return http(502, body=b"<html>", head=head)
        return http(200, space.start(request), head=head)

    clock = Clock.fake()
    async with (
        raw_space(answer) as space,
        StreamsClient(base_url=space.url, project="p", token="t", clock=clock) as client,
    ):
        before = clock.now()
        for number in range(10):
            await client.conferences.start_stream(f"room-{number}", url=URL)
        assert clock.now() - before < 30


async def test_start_that_is_always_throttled_fails_after_six_waits(space: SimulatedSpace, client_for: Any) -> None:
    client = client_for(space, retry=RetryPolicy(deadline=1_000))
    space.faults.add("throttle", retry_after=2)

    with pytest.raises(RateLimitedError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL)

    assert (caught.value.attempts, caught.value.retry_after, caught.value.sent) == (7, 2, "yes")
    assert space.requests.count() == 7


async def test_rate_limiter_of_the_caller_replaces_the_local_one(space: SimulatedSpace, client_for: Any) -> None:
    """A shared rate limiter takes the place of the local one, and is told of successes and of 429s."""
    heard: list[object] = []

    class Shared:
        async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
            heard.append(priority)
            return 0.0

        async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
            heard.append("gate")
            return 0.0

        def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
            heard.append(retry_after)

        def on_success(self) -> None:
            heard.append("success")

    client = client_for(space, rate_limiter=Shared())
    space.faults.add("throttle", retry_after=2, times=1)
    await client.conferences.start_stream(space.conference_sids[0], url=URL)
    await client.conferences.get(space.conference_sids[0])

    assert heard == [Priority.INTERACTIVE, 2.0, Priority.INTERACTIVE, "success", "gate", "success"]
    with pytest.raises(InvalidRequestError, match="not both"):
        StreamsClient(space="example", project="p", token="t", rate_limiter=Shared(), rate_limit=RateLimit())


class Counting(LocalRateLimiter):
    """Grants every request, and counts them."""

    asked = 0

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        self.asked += 1
        return 0.0


def start_with(progress: CallState) -> Request:
    return Request(
        method="POST", path="/x", operation=Operation.CALL_START, description="start", target="x", state=progress
    )


async def test_request_waits_for_a_slot_until_its_deadline_and_no_longer() -> None:
    watch = Stopwatch()
    watch.time = 100.0
    waits: list[float] = []

    class AllTaken(PrioritySemaphore):
        async def acquire(self, priority: Priority, timeout: float) -> bool:  # noqa: ASYNC109
            waits.append(timeout)
            return False

    async def send(_: Request) -> Result:
        raise AssertionError("it was sent")

    limited = RateLimitMiddleware(AllTaken(0), Counting(TokenBucket(RateLimit()), watch.clock()), watch.clock())
    result = await limited(start_with(CallState(deadline_at=107.0)), send)

    assert waits == [7.0]
    assert (result.attempt_result, result.phase) == (AttemptResult.DEADLINE_EXCEEDED, Phase.QUEUED)


@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 1), (0.1, 1), (0.101, 2)])
async def test_token_held_too_long_before_sending_is_acquired_again(seconds: float, turns: int) -> None:
    """`before_sending` is called once, in the first turn; if it takes long, a new token is acquired."""
    watch = Stopwatch()
    limiter = Counting(TokenBucket(RateLimit()), watch.clock())
    done: list[float] = []

    async def prepare() -> None:
        done.append(watch.time)
        watch.time += seconds

    async def send(_: Request) -> Result:
        return Result(attempt_result=AttemptResult.DONE, phase=Phase.RESPONDED)

    progress = CallState(before_sending=prepare)
    for _ in range(2):
        await RateLimitMiddleware(PrioritySemaphore(1), limiter, watch.clock())(start_with(progress), send)

    assert done == [0.0]
    assert limiter.asked == turns + 1


async def test_request_whose_preparation_fails_is_not_sent_and_does_not_count_as_an_attempt() -> None:
    clock = Stopwatch().clock()

    async def prepare() -> None:
        raise RunCancelledError("another worker has it")

    async def send(_: Request) -> Result:
        raise AssertionError("it was sent")

    state = CallState(before_sending=prepare)
    limited = RateLimitMiddleware(PrioritySemaphore(1), Counting(TokenBucket(RateLimit()), clock), clock)
    handler = chain([RetryMiddleware(RetryPolicy(), RetryBudget(), clock), limited], send)
    for _ in range(2):  # again after a pause as well
        with pytest.raises(RunCancelledError):
            await handler(start_with(state))
        assert (state.attempts, state.before_sending) == (0, prepare)


class Refusing(LocalRateLimiter):
    """Grants a number of requests, and says of the next ones that they would have to wait for a minute."""

    grants = 0

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        self.grants -= 1
        return 0.0 if self.grants >= 0 else 60.0


@pytest.mark.parametrize(("grants", "prepared"), [(0, 0), (1, 1)])
async def test_request_that_the_rate_limiter_rejects_is_not_sent(grants: int, prepared: int) -> None:
    """One that is rejected at first is not prepared; one that is rejected after a slow preparation is not sent."""
    watch = Stopwatch()
    limiter = Refusing(TokenBucket(RateLimit()), watch.clock())
    limiter.grants = grants
    done: list[float] = []

    async def prepare() -> None:
        done.append(watch.time)
        watch.time += 0.5

    async def send(_: Request) -> Result:
        raise AssertionError("it was sent")

    outcome = await RateLimitMiddleware(PrioritySemaphore(1), limiter, watch.clock())(
        start_with(CallState(before_sending=prepare)), send
    )

    assert (outcome.attempt_result, outcome.phase, outcome.retry_after) == (
        AttemptResult.DEADLINE_EXCEEDED,
        Phase.QUEUED,
        60.0,
    )
    assert len(done) == prepared


async def test_journaled_start_that_the_rate_limiter_rejects_is_not_recorded(
    space: SimulatedSpace, client_for: Any, tmp_path: Path
) -> None:
    """It is not sent, and the journal does not say that it may have been."""
    clock = Clock.fake()
    limiter = Refusing(TokenBucket(RateLimit()), clock)
    limiter.grants = 1
    journal = tmp_path / "run.db"
    client = client_for(space, clock=clock, rate_limiter=limiter)
    requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
    outcomes = [outcome async for outcome in client.start_streams(requests, concurrency=1, journal=journal)]

    assert [outcome.status for outcome in outcomes] == [
        BulkStatus.STARTED,
        BulkStatus.NOT_ATTEMPTED,
        BulkStatus.NOT_ATTEMPTED,
    ]
    assert space.requests.count() == 1
    assert [item.target for item in BulkJournal(journal).items()] == space.conference_sids[:1]


async def test_timeout_of_a_pause_that_is_extended_is_not_restarted() -> None:
    """A read waits for a pause that is extended meanwhile no longer than its timeout."""
    limiter, watch = rate_limiter(requests=20, window=10.0, utilization=1.0, burst=1)
    limiter.on_throttled(0.0, 30.0)

    async def close_again() -> None:
        limiter.on_throttled(watch.time, 25.0)

    waiting = asyncio.create_task(limiter.wait_until_allowed(50.0))
    closing = asyncio.create_task(close_again())
    assert await waiting == 25.0
    await closing
    assert watch.time == 30.0
