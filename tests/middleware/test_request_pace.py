"""No window ever holds more than the share of the limit; and the share is used."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from math import inf, nextafter
from random import Random
from typing import TypeAlias

import pytest
from attrs import define, field
from hypothesis import given, strategies as st

from signalwire_streams import RateLimit
from signalwire_streams.middleware._rate_limit import TokenBucket

Step: TypeAlias = tuple[str, float, float]


def fullest_window(times: list[float], window: float) -> int:
    """Count the requests of the fullest window, by sliding one along all requests."""
    return max((bisect_left(times, began + window) - first for first, began in enumerate(times)), default=0)


@define
class Driver:
    """Asks a token bucket for tokens on a clock of its own, and records when requests went out."""

    bucket: TokenBucket
    now: float = 0.0
    sent: list[float] = field(factory=list)

    def wait(self, seconds: float) -> None:
        """Advance the clock, by its smallest step at least."""
        self.now = max(self.now + seconds, nextafter(self.now, inf))

    def ask(self) -> bool:
        """Ask once; record the request if it may be sent, or else wait as long as the bucket says."""
        wait = self.bucket.try_acquire(self.now)
        if wait:
            self.wait(wait)
            return False
        self.sent.append(self.now)
        return True

    def ask_greedily(self, seconds: float, at_most: int) -> None:
        """Ask again after each wait, for a number of seconds."""
        until = self.now + seconds
        for _ in range(2 * at_most):
            if self.now >= until:
                return
            self.ask()

    def poll(self, seconds: float, tick: float) -> None:
        """Send what is allowed, every few milliseconds."""
        began = self.now
        for number in range(1, int(seconds / tick) + 1):
            while not self.bucket.try_acquire(self.now):
                self.sent.append(self.now)
            self.now = began + number * tick

    def refund(self) -> None:
        if self.sent:
            self.sent.pop()
            self.bucket.refund()

    def crowded_windows(self) -> Iterator[tuple[float, int]]:
        """Find the windows that hold more than the limit: when they began and what they hold."""
        limit = self.bucket.limit
        for first, began in enumerate(self.sent):
            held = bisect_left(self.sent, began + limit.window) - first
            if held > limit.max_requests:
                yield began, held


def drive(driver: Driver, steps: list[Step]) -> None:
    """Take each step: its kind, and two numbers from 0 to 1 for its size."""
    bucket, window = driver.bucket, driver.bucket.limit.window
    for what, much, more in steps:
        match what:
            case "greedy":
                driver.ask_greedily(much * 2 * window, 150)
            case "single":
                driver.ask()
            case "pause":
                driver.wait(much * window)
            case "long pause":
                driver.wait(much * 20 * window)
            case "throttled":
                bucket.on_throttled(driver.now, driver.now - much * window, None if more < 0.5 else more * window)
            case "served":
                bucket.on_success()
            case "give back":
                driver.refund()


@st.composite
def limits(draw: st.DrawFn) -> RateLimit:
    requests = draw(st.integers(1, 300))
    share = draw(st.floats(0.01, 1))
    most = RateLimit(requests=requests, utilization=share).max_requests
    return RateLimit(
        requests=requests,
        utilization=share,
        window=draw(st.floats(0.1, 60)),
        burst=draw(st.none() | st.integers(1, most)),
    )


WHAT = ["greedy", "greedy", "single", "pause", "long pause", "throttled", "served", "give back"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=14)


@given(limit=limits(), steps=STEPS, clock=st.sampled_from([0.0, -50.0, 1e5, 3e8]))
def test_no_window_exceeds_the_limit(limit: RateLimit, steps: list[Step], clock: float) -> None:
    """Whatever happens, in whichever order."""
    driver = Driver(TokenBucket(limit), now=clock)
    drive(driver, steps)
    assert list(driver.crowded_windows()) == []


@given(limit=limits(), gaps=st.lists(st.floats(0, 0.2), min_size=1, max_size=300), clock=st.sampled_from([0.0, 1e5]))
def test_no_window_exceeds_the_limit_at_any_request_times(limit: RateLimit, gaps: list[float], clock: float) -> None:
    """Requests come at any time, and are dropped if they are not allowed."""
    bucket, now, sent = TokenBucket(limit), clock, list[float]()
    for gap in gaps:
        now += gap * limit.window
        if not bucket.try_acquire(now):
            sent.append(now)
    assert fullest_window(sent, limit.window) <= limit.max_requests


@pytest.mark.parametrize("seed", range(2))
def test_default_limit_holds_under_greedy_load(seed: int) -> None:
    """Half a minute of requests at random times and rates keeps below 12,420 in every ten seconds."""
    chance = Random(seed)  # noqa: S311
    bucket, now, sent = TokenBucket(RateLimit()), 0.0, list[float]()
    while now < 30.0:
        calm = chance.random() < 0.00003
        now += chance.expovariate(1 / 3) if calm else chance.expovariate(4000)
        if not bucket.try_acquire(now):
            sent.append(now)
        if chance.random() < 0.00002:
            bucket.on_throttled(now, now - chance.random(), chance.choice([None, 0.2]))
    assert len(sent) > 10_000
    assert fullest_window(sent, 10.0) <= 12_420


@pytest.mark.parametrize("tick", [0.001, 0.004, 0.01])
def test_greedy_load_uses_the_whole_limit(tick: float) -> None:
    """In the long run at least 98 percent of it, if asked every few milliseconds."""
    driver = Driver(TokenBucket(RateLimit()))
    driver.poll(30.0, tick)
    for began in (0.0, 10.0, 20.0 - 2 * tick):
        held = bisect_left(driver.sent, began + 10.0) - bisect_left(driver.sent, began)
        assert 0.98 * 12_420 <= held <= 12_420
    assert fullest_window(driver.sent, 10.0) <= 12_420


@pytest.mark.parametrize(
    ("limit", "burst", "rate"),
    [
        (RateLimit(), 62, 1235.8),
        (RateLimit(requests=1000, utilization=1), 5, 99.5),
        (RateLimit(requests=100, utilization=1, window=1.0, burst=20), 20, 80.0),
        (RateLimit(requests=10), 1, 0.8),
        (RateLimit(requests=1), 1, 0.05),
        (RateLimit(requests=10, utilization=1, burst=10), 10, 0.05),
    ],
)
def test_burst_and_rate_add_up_to_the_limit(limit: RateLimit, burst: int, rate: float) -> None:
    """Half a percent may go at once and the rest evenly; at least one request in any case."""
    bucket = TokenBucket(limit)
    assert bucket.rate == pytest.approx(rate)
    assert [bucket.try_acquire(0.0) == 0 for _ in range(burst + 1)] == [*[True] * burst, False]


def test_returned_wait_is_when_a_token_is_available() -> None:
    bucket = TokenBucket(RateLimit(requests=100, utilization=1, window=10.0, burst=1))
    assert bucket.try_acquire(50.0) == 0
    wait = bucket.try_acquire(50.0)
    assert wait == pytest.approx(1 / 9.9)
    for part in (0.5, 0.95, 0.999):
        assert bucket.try_acquire(50.0 + wait * part) == pytest.approx(wait * (1 - part))
    assert bucket.try_acquire(50.0 + wait + 1e-9) == 0


def test_idle_time_adds_no_more_than_the_burst() -> None:
    bucket = TokenBucket(RateLimit())
    for now in (0.0, 1e6, 1e12):
        assert sum(bucket.try_acquire(now) == 0 for _ in range(100)) == 62


def test_clock_that_stands_still_or_goes_back_adds_no_tokens() -> None:
    bucket = TokenBucket(RateLimit(requests=10, utilization=1, burst=1))
    assert bucket.try_acquire(100.0) == 0
    assert bucket.try_acquire(100.0) > 0
    assert bucket.try_acquire(50.0) > 0
    assert bucket.try_acquire(100.0) > 0


def test_refund_makes_a_token_available() -> None:
    """No token beyond the burst is added."""
    bucket = TokenBucket(RateLimit(requests=100, utilization=1, burst=2))
    assert [bucket.try_acquire(0.0) == 0 for _ in range(3)] == [True, True, False]
    bucket.refund()
    assert [bucket.try_acquire(0.0) == 0 for _ in range(2)] == [True, False]
    for _ in range(50):
        bucket.refund()
    assert [bucket.try_acquire(0.0) == 0 for _ in range(3)] == [True, True, False]


def test_429_pauses_for_its_retry_after() -> None:
    bucket = TokenBucket(RateLimit())
    assert bucket.time_until_open(100.0) == 0
    bucket.on_throttled(100.0, 99.0, 7.0)
    assert bucket.time_until_open(100.0) == 7.0
    assert bucket.try_acquire(103.0) == 4.0
    assert bucket.time_until_open(107.0) == 0
    assert bucket.try_acquire(107.0) == 0


def test_429_without_retry_after_pauses_longer_each_time() -> None:
    """The pause is 1, 2, 4 … up to 20 seconds, and 1 again after a success."""
    bucket, now, pauses = TokenBucket(RateLimit()), 0.0, []
    for _ in range(7):
        bucket.on_throttled(now, now, None)
        pauses.append(bucket.time_until_open(now))
        now += 100.0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    bucket.on_success()
    bucket.on_throttled(now, now, None)
    assert bucket.time_until_open(now) == 1.0


def test_shorter_retry_after_does_not_shorten_the_pause() -> None:
    """A later rejection with a shorter wait does not shorten an earlier one."""
    bucket = TokenBucket(RateLimit())
    bucket.on_throttled(100.0, 99.0, 9.0)
    bucket.on_throttled(101.0, 99.0, 1.0)
    assert bucket.time_until_open(101.0) == 8.0
    bucket.on_throttled(102.0, 101.5, None)
    assert bucket.time_until_open(102.0) == 7.0
    bucket.on_throttled(103.0, 99.0, 30.0)
    assert bucket.time_until_open(103.0) == 30.0


def test_429s_of_requests_sent_before_the_cut_cut_the_rate_once() -> None:
    """The cut is to seven tenths."""
    bucket = TokenBucket(RateLimit())
    full = bucket.rate
    bucket.on_throttled(100.0, 99.0, 1.0)
    assert bucket.rate == pytest.approx(full * 0.7)
    for sent_at in (99.0, 99.9, 100.0):
        bucket.on_throttled(101.0, sent_at, None)
    assert bucket.rate == pytest.approx(full * 0.7)
    assert bucket.time_until_open(101.0) == 0


def test_429_of_a_request_sent_after_the_cut_cuts_again() -> None:
    bucket = TokenBucket(RateLimit())
    full = bucket.rate
    bucket.on_throttled(100.0, 99.0, 0.0)
    bucket.on_throttled(100.0002, 100.0001, 0.0)
    assert bucket.rate == pytest.approx(full * 0.49, rel=0.001)


def test_second_cut_is_of_the_rate_that_has_come_back_until_then() -> None:
    """Even if no request has asked for a token in the meantime."""
    bucket = TokenBucket(RateLimit())
    full = bucket.rate
    bucket.on_throttled(100.0, 99.0, 0.0)
    half = (full * 0.3 / 0.4) ** (1 / 3) / 2
    bucket.on_throttled(100.0 + half, 100.1, 0.0)
    assert bucket.rate == pytest.approx(0.7 * (full - 0.4 * half**3))


def test_rate_has_a_lower_bound() -> None:
    """However many 429s there are, a request is sent now and then."""
    bucket = TokenBucket(RateLimit())
    for number in range(1000):
        bucket.on_throttled(100.0 + number / 1e6, 100.0 + number / 1e6, 0.0)
    assert bucket.rate == pytest.approx(0.05)


def rate_at(bucket: TokenBucket, now: float) -> float:
    bucket.try_acquire(now)
    return bucket.rate


def test_rate_recovers_by_cubic() -> None:
    """After a cut the rate grows back, fast, then flat where it was rejected, up to the ceiling and not beyond."""
    bucket = TokenBucket(RateLimit())
    full = bucket.rate
    bucket.on_throttled(100.0, 99.0, 0.0)
    turn = (full * 0.3 / 0.4) ** (1 / 3)
    rates = [rate_at(bucket, 100.0 + turn * part / 10) for part in range(11)]
    assert rates == sorted(rates)
    assert rates[5] == pytest.approx(full - 0.4 * (turn / 2) ** 3)
    steps = [after - before for before, after in itertools.pairwise(rates)]
    assert steps == sorted(steps, reverse=True)
    assert rates[10] == pytest.approx(full)
    assert rate_at(bucket, 1000.0) == full


def test_rate_grows_beyond_the_one_before_the_last_429() -> None:
    """After two cuts the rate first returns to where it was rejected, and then grows on to the ceiling."""
    bucket = TokenBucket(RateLimit())
    full = bucket.rate
    bucket.on_throttled(100.0, 99.0, 0.0)
    bucket.on_throttled(100.001, 100.0005, 0.0)
    refused = full * 0.7
    turn = (refused * 0.3 / 0.4) ** (1 / 3)
    assert rate_at(bucket, 100.001 + turn) == pytest.approx(refused, rel=0.01)
    assert refused < rate_at(bucket, 100.001 + 1.5 * turn) < full
    assert rate_at(bucket, 200.0) == full
