"""When a shared rate limiter asks Redis, grants a request, and detects an outage, on a clock that never sleeps."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from attrs import define, evolve, field

from signalwire_streams import Clock, Priority, RateLimit, StreamsClient
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.redis_rate_limit._state import NO_UPDATE, Fallback, LocalState, Quota, State, StateUpdate
from signalwire_streams.redis_rate_limit._store import LeaseReply, RedisUnavailableError, Store
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_server import RedisServer

from .test_quota import fullest_window

URL = "wss://rx.example.com/audio"
DAY = 24 * 3600
LIMIT = RateLimit(requests=1000, utilization=1.0)
QUOTA = Quota.from_limit(LIMIT)


@define(eq=False)
class Bucket:
    """The Redis of one Space, as a token bucket on the test's clock."""

    now: Callable[[], float]
    delay: float = 0.001  # seconds that a reply takes
    is_away: bool = False
    state: State | None = None
    tokens: float = 0.0
    filled_at: float = 0.0
    leased: list[tuple[float, int, int]] = field(factory=list)  # when, how many were wanted, how many had to stay
    reads: list[float] = field(factory=list)

    async def exchange(
        self,
        space: str,
        known: State,
        *,
        rate: float,
        burst: int,
        reserve: int = 0,
        tokens: int = 0,
        update: StateUpdate = NO_UPDATE,
        now: float = 0.0,
    ) -> LeaseReply:
        redis_now = self.now()
        if tokens:
            self.leased.append((redis_now, tokens, reserve))
        elif update == NO_UPDATE:
            self.reads.append(redis_now)
        await asyncio.sleep(self.delay)
        if self.is_away:
            raise RedisUnavailableError("refused")
        if self.state is None:
            self.state, self.tokens, self.filled_at = State(epoch="e"), 0.0, redis_now
        self.tokens = min(burst, self.tokens + rate * (redis_now - self.filled_at))
        self.filled_at = redis_now
        if update.throttled_after == self.state.cuts:
            self.state = evolve(self.state, cuts=self.state.cuts + 1, cut_at=redis_now, rate_before=rate)
        if update.closed_until is not None:
            self.state = evolve(self.state, closed_until=max(self.state.closed_until, update.closed_until))
        granted = max(0, min(tokens, int(self.tokens - reserve)))
        self.tokens -= granted
        return LeaseReply(self.state, redis_now=redis_now, tokens=granted, left=self.tokens - reserve)


@pytest.fixture
def bucket_of_space(idle_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """For clients that call a Space."""
    bucket = Bucket(idle_clock.now)
    monkeypatch.setattr(Store, "exchange", lambda _, *args, **kwargs: bucket.exchange(*args, **kwargs))
    return bucket


@pytest.fixture
def bucket(bucket_of_space: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr("tests.idle_clock.IN_TRANSIT", 0.0)  # no socket is waited for
    return bucket_of_space


@pytest.fixture
def clock(idle_clock: Clock) -> Clock:
    return Clock(now=idle_clock.now, random=lambda: 0.5)


def limiter_of(clock: Clock, fallback_clients: int | None = None) -> RedisRateLimiter:
    return RedisRateLimiter(
        "redis://localhost", space="x", rate_limit=LIMIT, fallback_clients=fallback_clients, clock=clock
    )


@define
class Traffic:
    """Requests that always wait for the next token."""

    limiter: RedisRateLimiter
    clock: Clock
    granted: list[float] = field(factory=list)

    async def run(self, seconds: float, at_once: int = 40) -> None:
        ends_at = self.clock.now() + seconds

        async def one() -> None:
            while await self.limiter.acquire(Priority.BULK, ends_at - self.clock.now()) == 0:
                self.granted.append(self.clock.now())

        await asyncio.gather(*(one() for _ in range(at_once)))


async def test_busy_client_uses_the_limit_and_never_exceeds_it(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    traffic = Traffic(limiter, clock)
    await traffic.run(20.0)
    await limiter.aclose()

    assert fullest_window(traffic.granted, LIMIT.window) <= LIMIT.requests
    assert len(traffic.granted) > 0.97 * QUOTA.rate * 19.5
    assert len(bucket.leased) <= 100 * 20
    assert max(wanted for _, wanted, _ in bucket.leased) == 25
    assert all(wanted >= 1 for _, wanted, _ in bucket.leased)


async def test_three_clients_use_the_limit_evenly(bucket: Bucket, clock: Clock) -> None:
    clocks = [evolve(clock, random=Random(seed).random) for seed in range(3)]  # noqa: S311  (so that a run can be repeated)
    traffics = [Traffic(limiter_of(each), each) for each in clocks]
    await asyncio.gather(*(traffic.run(20.0, at_once=10) for traffic in traffics))
    for traffic in traffics:
        await traffic.limiter.aclose()

    granted = sorted(at for traffic in traffics for at in traffic.granted)
    assert fullest_window(granted, LIMIT.window) <= LIMIT.requests
    assert len(granted) > 0.97 * QUOTA.rate * 19.5
    assert min(len(traffic.granted) for traffic in traffics) > 0.9 * max(len(traffic.granted) for traffic in traffics)


class TestStarts:
    """Of clients that expect the limit to be 200 requests a second, on one clock with their Space."""

    @pytest.fixture
    def start(self, bucket_of_space: Bucket, idle_clock: Clock) -> Callable[..., Awaitable[None]]:
        async def start(space: SimulatedSpace, conferences: Sequence[str]) -> None:
            limiter = RedisRateLimiter(
                "redis://localhost", rate_limit=RateLimit(requests=200, window=1.0), clock=idle_clock
            )
            account: dict[str, Any] = {"base_url": space.base_url, "project": space.project, "token": space.token}
            async with StreamsClient(**account, rate_limiter=limiter, clock=idle_clock) as client:
                await asyncio.gather(*(client.conferences.start_stream(sid, url=URL) for sid in conferences))
            await limiter.aclose()

        return start

    async def test_three_clients_are_never_rejected_by_the_space(
        self, start: Callable[..., Awaitable[None]], idle_clock: Clock
    ) -> None:
        async with SimulatedSpace(conferences=240, rate_limit=200, window=1.0, monotonic=idle_clock.now) as space:
            await asyncio.gather(*(start(space, space.conference_sids[first::3]) for first in range(3)))

            assert len(space.streams.active()) == space.requests.count() == 240
            assert space.requests.max_in_window(1.0) <= 200

    async def test_clients_slow_down_together_for_a_stricter_space(
        self, start: Callable[..., Awaitable[None]], idle_clock: Clock
    ) -> None:
        stricter: Any = {"rate_limit": 60, "window": 1.0, "advertised_limit": 200}
        async with SimulatedSpace(conferences=90, monotonic=idle_clock.now, **stricter) as space:
            sids = list(space.conference_sids)
            await asyncio.gather(start(space, sids[:45]), start(space, sids[45:]))

            assert len(space.streams.active()) == 90
            assert space.requests.count() > 90


@pytest.mark.parametrize(("jitter", "share"), [(0.0, 0.75), (1.0, 1.25)])
async def test_next_lease_follows_when_a_token_is_there(
    bucket: Bucket, clock: Clock, jitter: float, share: float
) -> None:
    """A quarter sooner or later, so that clients do not ask in step."""
    limit = RateLimit(requests=100, utilization=1.0)
    varied = Clock(now=clock.now, random=lambda: jitter)
    limiter = RedisRateLimiter("redis://localhost", space="x", rate_limit=limit, clock=varied)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    await limiter.aclose()

    first, second = (at for at, *_ in bucket.leased[:2])
    assert second - first == pytest.approx(bucket.delay + share / Quota.from_limit(limit).rate, abs=0.001)


async def test_client_of_a_slow_space_asks_twice_a_second(bucket: Bucket, clock: Clock) -> None:
    """However long its token takes: the rate may grow meanwhile, or another client return a token."""
    slow = RateLimit(requests=1, window=100.0)
    limiter = RedisRateLimiter("redis://localhost", space="x", rate_limit=slow, clock=clock)
    assert await limiter.acquire(Priority.BULK, 10.0) == 10.0
    await limiter.aclose()

    times = [at for at, *_ in bucket.leased]
    assert [after - before for before, after in pairwise(times)] == [pytest.approx(0.5, abs=0.01)] * 19


async def test_bulk_leases_leave_a_quarter_of_the_burst(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    for priority, reserve in ((Priority.BULK, QUOTA.reserve), (Priority.INTERACTIVE, 0)):
        bucket.leased.clear()
        assert await limiter.acquire(priority, 10.0) == 0
        assert {left for _, _, left in bucket.leased} == {reserve}
    await limiter.aclose()

    assert QUOTA.reserve == QUOTA.burst // 4


async def test_returned_token_is_used_next_until_it_lapses(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    leases = len(bucket.leased)

    limiter._leases.refund(clock.now() + QUOTA.age)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    assert len(bucket.leased) == leases

    limiter._leases.refund(clock.now() + QUOTA.age)
    await asyncio.sleep(1.01 * QUOTA.age)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    assert len(bucket.leased) > leases
    await limiter.aclose()


async def test_request_after_one_that_got_a_returned_token_does_not_wait_for_it(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    leases = len(bucket.leased)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10.0))
    await asyncio.sleep(0)
    limiter._leases.refund(clock.now() + QUOTA.age)
    assert await waiting == 0
    assert len(bucket.leased) == leases
    began = clock.now()

    assert await limiter.acquire(Priority.BULK, 10.0) == 0

    assert clock.now() - began < 0.1
    await limiter.aclose()


async def test_retry_after_holds_requests_back(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    closed_until = clock.now() + 3.0
    limiter.on_throttled(clock.now(), 3.0)

    assert await limiter.acquire(Priority.BULK, 10.0) == 0

    assert closed_until <= clock.now() <= closed_until + 0.6
    assert bucket.state is not None
    assert bucket.state.closed_until == pytest.approx(closed_until, abs=0.05)
    assert bucket.state.cuts == 1
    assert bucket.state.rate_before == QUOTA.rate
    await limiter.aclose()


async def test_request_that_waits_for_the_end_of_a_pause_checks_twice_a_second(bucket: Bucket, clock: Clock) -> None:
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.sleep(seconds)

    limiter = limiter_of(evolve(clock, sleep=sleep))
    limiter.on_throttled(clock.now(), 3.0)
    waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 10.0))
    await asyncio.sleep(2.9)
    await limiter.aclose()

    assert sleeps == [pytest.approx(0.5, abs=0.001)] * 6
    assert "closed" in str((await asyncio.gather(waiting, return_exceptions=True))[0])


async def test_wait_until_allowed_refreshes_stale_state(bucket: Bucket, clock: Clock) -> None:
    one, other = limiter_of(clock), limiter_of(clock)
    for limiter in (one, other):
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
    one.on_throttled(clock.now(), 5.0)
    await asyncio.sleep(2.0)

    assert await other.wait_until_allowed(1.0) == pytest.approx(3.0, abs=0.1)
    assert len(bucket.reads) == 1
    assert await other.wait_until_allowed(1.0) == pytest.approx(3.0, abs=0.1)
    assert len(bucket.reads) == 1, "what was heard a moment ago is not asked for again"
    await asyncio.sleep(0.9)
    assert await other.wait_until_allowed(1.0) == pytest.approx(2.1, abs=0.1)
    assert len(bucket.reads) == 1
    await asyncio.sleep(0.2)
    assert await other.wait_until_allowed(1.0) == pytest.approx(1.9, abs=0.1)
    assert len(bucket.reads) == 2, "the state is a second old"
    began = clock.now()
    assert await other.wait_until_allowed(10.0) == 0
    assert clock.now() - began == pytest.approx(1.9, abs=0.1)
    for limiter in (one, other):
        await limiter.aclose()


class TestOutage:
    """Redis is unavailable, or too slow."""

    @pytest.fixture
    def lines(self, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
        with caplog.at_level(logging.WARNING, "signalwire_streams"):
            yield lambda: [record.getMessage() for record in caplog.records]

    async def test_unavailable_redis_is_probed_four_times_a_second(
        self, bucket: Bucket, clock: Clock, lines: Callable[[], list[str]]
    ) -> None:
        limiter = limiter_of(clock)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        bucket.is_away = True
        waiting = asyncio.create_task(limiter.acquire(Priority.BULK, 60.0))
        await asyncio.sleep(10.0)
        assert not waiting.done()
        assert 35 <= len(bucket.reads) <= 41

        bucket.is_away, back_at = False, clock.now()
        assert await waiting == 0
        await limiter.aclose()

        assert clock.now() - back_at < 0.5
        gone, back = lines()
        assert "is unavailable (refused): requests wait for it" in gone
        assert "is available again after 1" in back

    async def test_outage_that_a_start_and_a_read_detect_is_probed_once(self, bucket: Bucket, clock: Clock) -> None:
        limiter = limiter_of(clock)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        bucket.is_away = True
        await asyncio.sleep(2.0)  # what is known of the Space is too old for a read
        waiting = [asyncio.create_task(limiter.acquire(Priority.BULK, 60.0)) for _ in range(2)]
        waiting.append(asyncio.create_task(limiter.wait_until_allowed(60.0)))
        await asyncio.sleep(10.0)
        assert 35 <= len(bucket.reads) <= 42

        bucket.is_away = False
        assert await asyncio.gather(*waiting) == [0, 0, 0]
        await limiter.aclose()

    async def test_rejection_during_an_outage_is_reported_when_it_ends(self, bucket: Bucket, clock: Clock) -> None:
        """No other request comes that would bring it along."""
        limiter = limiter_of(clock)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        bucket.is_away = True
        limiter.on_throttled(clock.now(), None)
        await asyncio.sleep(10.0)
        assert bucket.state is not None
        assert bucket.state.cuts == 0
        bucket.is_away = False
        await asyncio.sleep(1.0)
        assert bucket.state.cuts == 1
        await limiter.aclose()

    async def test_requests_time_out_during_outage(self, bucket: Bucket, clock: Clock) -> None:
        bucket.is_away = True
        limiter = limiter_of(clock)
        began = clock.now()
        assert await limiter.acquire(Priority.BULK, 7.0) == 7.0
        assert clock.now() - began == pytest.approx(7.0, abs=0.05)
        await limiter.aclose()

    async def test_fallback_client_sends_its_share(self, bucket: Bucket, clock: Clock) -> None:
        bucket.is_away = True
        limiter = limiter_of(clock, fallback_clients=3)
        traffic = Traffic(limiter, clock)
        await traffic.run(20.0)

        part = QUOTA.rate / 3
        assert 0.95 * part * 20 < len(traffic.granted) <= part * 20 + QUOTA.burst / 3
        first_second = [at for at in traffic.granted if at <= traffic.granted[0] + 1.0]
        assert len(first_second) <= part + 2

        # Others may not know yet that Redis is back: for a second it takes no more than its part.
        bucket.is_away = False
        after = Traffic(limiter, clock)
        back_at = clock.now()
        await after.run(4.0)
        await limiter.aclose()
        settling = [at for at in after.granted if back_at + 0.3 < at <= back_at + 1.0]
        assert len(settling) <= part * 0.7 + 3
        settled = [at for at in after.granted if at > back_at + 2.0]
        assert len(settled) > QUOTA.rate * 2.0 * 0.9

    async def test_fallback_client_sends_a_burst_at_once_after_a_pause(self, bucket: Bucket, clock: Clock) -> None:
        bucket.is_away = True
        limiter = limiter_of(clock, fallback_clients=1)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        await asyncio.sleep(60.0)
        began = clock.now()
        assert await asyncio.gather(*(limiter.acquire(Priority.BULK, 10.0) for _ in range(QUOTA.burst))) == [0.0] * 5
        assert clock.now() == pytest.approx(began, abs=0.001)
        await limiter.aclose()

    async def test_five_late_leases_are_an_outage(
        self, bucket: Bucket, clock: Clock, lines: Callable[[], list[str]]
    ) -> None:
        limiter = limiter_of(clock)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        before = len(bucket.leased)
        bucket.delay = 1.5 * QUOTA.age

        assert await limiter.acquire(Priority.BULK, 5.0) == 5.0

        assert len(bucket.leased) - before == 5
        assert ["its responses arrive too late" in line for line in lines()] == [True]
        bucket.delay = 0.5 * QUOTA.age
        assert await limiter.acquire(Priority.BULK, 5.0) == 0
        await limiter.aclose()


async def test_new_bucket_starts_empty(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock)
    began = clock.now()
    assert await limiter.acquire(Priority.BULK, 10.0) == 0
    assert bucket.state is not None
    assert clock.now() - began >= 1 / QUOTA.rate
    await limiter.aclose()


async def test_state_expires_after_an_idle_day(redis: RedisServer) -> None:
    async with RedisRateLimiter(redis.url, space="x", rate_limit=LIMIT) as limiter:
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        key = "signalwire-streams:{x}:state"
        assert DAY - 20 < int(redis.ask("TTL", key)[1:]) <= DAY
        for question in (limiter.acquire(Priority.BULK, 10.0), limiter._leases.refresh(10.0)):
            redis.ask("EXPIRE", key, "60")
            await question
            assert DAY - 20 < int(redis.ask("TTL", key)[1:]) <= DAY
        redis.ask("EXPIRE", key, "60")
        limiter.on_throttled(limiter._clock.now(), 0.0)
        assert await limiter.acquire(Priority.BULK, 10.0) == 0
        assert DAY - 20 < int(redis.ask("TTL", key)[1:]) <= DAY


def test_allowance_after_outage_is_the_share() -> None:
    outage = Fallback("redis://x", 1)
    outage.begin("refused", LocalState(LIMIT), 0.0)
    outage.end(100.0)

    assert outage.allowance(0, 100.5) == (0, 0.0)
    assert outage.allowance(2, 100.5) == (2, 0.0)
    assert outage.allowance(2, 100.5) == (2, 0.0)
    left, wait = outage.allowance(25, 100.5)
    assert (left, wait > 0) == (QUOTA.burst - 4, True)
    outage.refund(1)
    assert outage.allowance(1, 100.5) == (1, 0.0)
    assert outage.allowance(25, 101.0) == (25, 0.0)
    outage.begin("refused", LocalState(LIMIT), 300.0)
    assert outage.try_acquire(300.0) > 0, "a later outage begins with a new share, and with no burst"


def test_outage_soon_after_another_continues_with_the_same_share() -> None:
    """A client that loses Redis again at once must not get another share."""
    outage = Fallback("redis://x", 1)
    outage.begin("refused", LocalState(LIMIT), 0.0)
    outage.end(100.0)
    assert outage.allowance(QUOTA.burst, 100.1) == (QUOTA.burst, 0.0)
    outage.begin("refused", LocalState(LIMIT), 100.1)
    assert outage.try_acquire(100.1) > 0


async def test_tokens_that_redis_does_not_grant_after_an_outage_stay_in_the_share(bucket: Bucket, clock: Clock) -> None:
    limiter = limiter_of(clock, fallback_clients=1)
    limiter._fallback.begin("refused", limiter._state, clock.now())
    limiter._fallback.end(clock.now())
    await asyncio.sleep(0.5)  # the share is a full burst then
    bucket.state, bucket.tokens, bucket.filled_at = State(epoch="e"), -1e6, clock.now()
    waiting = [asyncio.create_task(limiter.acquire(Priority.BULK, 10.0)) for _ in range(QUOTA.burst)]
    await asyncio.sleep(0.002)

    assert [wanted for _, wanted, _ in bucket.leased] == [QUOTA.burst]
    assert limiter._fallback.allowance(25, clock.now())[0] == QUOTA.burst
    await limiter.aclose()
    await asyncio.gather(*waiting, return_exceptions=True)
