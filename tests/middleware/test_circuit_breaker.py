"""When the client stops asking a Space that keeps failing, and how it begins again."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import CircuitBreakerPolicy
from signalwire_streams.middleware._circuit_breaker import CircuitBreaker, Permit
from signalwire_streams.models import AttemptResult

FAILED = [
    AttemptResult.NOT_SENT,
    AttemptResult.NO_RESPONSE,
    AttemptResult.MALFORMED,
    AttemptResult.SERVER_FAULT,
    AttemptResult.UNAVAILABLE,
]
SERVED = [
    AttemptResult.DONE,
    AttemptResult.ACCEPTED,
    AttemptResult.REJECTED,
    AttemptResult.UNREADABLE_REJECTION,
    AttemptResult.FORBIDDEN,
    AttemptResult.DUPLICATE_NAME,
    AttemptResult.NOT_FOUND,
    AttemptResult.ALREADY_STOPPED,
    AttemptResult.TARGET_ENDED,
]
PUT_OFF = [
    AttemptResult.THROTTLED,
    AttemptResult.TRY_AGAIN,
    AttemptResult.REDIRECTED,
    AttemptResult.SESSION_FAILED,
]
NOT_TRIED = [
    AttemptResult.DEADLINE_EXCEEDED,
    AttemptResult.BREAKER_OPEN,
    AttemptResult.STALE_CONNECTION,
    AttemptResult.UNRETRYABLE,
]


def pass_through(breaker: CircuitBreaker, event: AttemptResult, now: float) -> Permit:
    """Record one request with this result."""
    admission = breaker.allow(now)
    assert admission.wait == 0
    breaker.record(admission, event, now)
    return admission


def opened(at: float = 100.0) -> CircuitBreaker:
    """Create a breaker that opened just then."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for _ in range(20):
        pass_through(breaker, AttemptResult.SERVER_FAULT, at)
    assert breaker.allow(at).wait == 5.0
    return breaker


def is_open(breaker: CircuitBreaker, now: float) -> bool:
    return breaker.allow(now).wait > 0


def test_each_result_counts_as_a_failure_or_as_served_or_not_at_all() -> None:
    groups = [*FAILED, *SERVED, *PUT_OFF, *NOT_TRIED, AttemptResult.CANCELLED]
    assert sorted(groups) == sorted(AttemptResult)


@pytest.mark.parametrize("event", FAILED)
def test_breaker_opens_after_twenty_failures(event: AttemptResult) -> None:
    """The twentieth failure in a row opens the breaker, and not the nineteenth."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for _ in range(19):
        pass_through(breaker, event, 100.0)
    assert not is_open(breaker, 100.0)
    pass_through(breaker, event, 100.0)
    assert is_open(breaker, 100.0)


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize(
    ("successes", "failures", "opens"),
    [(10, 10, True), (11, 10, False), (11, 11, True), (100, 99, False), (100, 100, True)],
)
def test_breaker_opens_when_half_of_the_requests_failed(
    successes: int, failures: int, served: AttemptResult, *, opens: bool
) -> None:
    """The breaker opens when half of at least twenty outcomes failed."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for _ in range(successes):
        pass_through(breaker, served, 100.0)
    for _ in range(failures):
        assert not is_open(breaker, 100.0)
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    assert is_open(breaker, 100.0) is opens


@pytest.mark.parametrize(
    "event", [*PUT_OFF, AttemptResult.DEADLINE_EXCEEDED, AttemptResult.STALE_CONNECTION, AttemptResult.UNRETRYABLE]
)
def test_throttled_and_unsent_requests_do_not_count(event: AttemptResult) -> None:
    """They are not failures, and do not dilute the failure rate either."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for _ in range(1000):
        pass_through(breaker, event, 100.0)
    for _ in range(19):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    assert not is_open(breaker, 100.0)
    for _ in range(1000):
        pass_through(breaker, event, 100.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    assert is_open(breaker, 100.0)


def test_requests_before_the_window_do_not_count() -> None:
    """The window is exact to one of its steps."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for _ in range(19):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    for _ in range(19):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 132.0)
    assert not is_open(breaker, 132.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 132.0)
    assert is_open(breaker, 132.0)


def test_failures_count_for_as_long_as_their_own_step() -> None:
    breaker = CircuitBreaker(CircuitBreakerPolicy(min_requests=4))
    pass_through(breaker, AttemptResult.DONE, 100.0)
    for _ in range(2):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 115.0)
    pass_through(breaker, AttemptResult.DONE, 131.0)
    assert not is_open(breaker, 131.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 131.0)
    assert is_open(breaker, 131.0)


def test_window_moves_in_steps_of_a_second() -> None:
    """A request counts for thirty seconds after the beginning of its step."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    for _ in range(10):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 101.0)
    for _ in range(9):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 131.0)
    assert not is_open(breaker, 131.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 131.0)
    assert is_open(breaker, 131.0)


def test_requests_of_the_last_thirty_seconds_count_together() -> None:
    """Failures that are spread over the window open the breaker as well."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for number in range(19):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0 + 1.5 * number)
    assert not is_open(breaker, 128.5)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 128.5)
    assert is_open(breaker, 128.5)


def test_breaker_stays_open_for_five_seconds() -> None:
    """While it is open, each permit says for how long."""
    breaker = opened()
    assert breaker.allow(100.0) == Permit(wait=5.0)
    assert breaker.allow(104.0).wait == pytest.approx(1.0)
    assert not breaker.allow(104.0).is_probe
    assert breaker.allow(105.0) == Permit(is_probe=True)


def test_open_breaker_allows_one_probe() -> None:
    """After the pause one request goes, and the others wait for what becomes of it."""
    breaker = opened()
    assert breaker.allow(105.0).is_probe
    for now in (105.0, 106.0, 150.0):
        assert breaker.allow(now) == Permit(wait=5.0)


@pytest.mark.parametrize("event", FAILED)
def test_failed_probe_opens_the_breaker_again(event: AttemptResult) -> None:
    """A failed probe means another pause, counted from its end, and then another probe."""
    breaker = opened()
    probe = breaker.allow(105.0)
    breaker.record(probe, event, 112.0)
    assert breaker.allow(112.0) == Permit(wait=5.0)
    assert breaker.allow(116.9).wait == pytest.approx(0.1)
    assert breaker.allow(117.0).is_probe


@pytest.mark.parametrize("event", [*SERVED, *PUT_OFF])
def test_probe_with_a_response_closes_the_breaker(event: AttemptResult) -> None:
    breaker = opened()
    probe = breaker.allow(105.0)
    breaker.record(probe, event, 105.5)
    for _ in range(100):
        assert breaker.allow(105.5) == Permit()


@pytest.mark.parametrize("event", NOT_TRIED)
def test_unsent_probe_leaves_the_breaker_open(event: AttemptResult) -> None:
    """The next request is the probe."""
    breaker = opened()
    breaker.record(breaker.allow(105.0), event, 106.0)
    assert breaker.allow(106.0).is_probe
    assert breaker.allow(106.0) == Permit(wait=5.0)


def test_released_probe_allows_another_one() -> None:
    """Where the probe was cancelled the next request is the probe."""
    breaker = opened()
    breaker.release(breaker.allow(105.0))
    assert breaker.allow(106.0).is_probe


def test_releasing_an_ordinary_permit_changes_nothing() -> None:
    """A cancelled request that was not the probe does not free the probe's place."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    ordinary = breaker.allow(99.0)
    for _ in range(20):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    assert breaker.allow(105.0).is_probe
    breaker.release(ordinary)
    assert breaker.allow(105.0) == Permit(wait=5.0)


@pytest.mark.parametrize("event", [*FAILED, *SERVED, *PUT_OFF])
def test_results_of_requests_sent_before_the_opening_are_ignored(event: AttemptResult) -> None:
    """Requests in flight when the breaker opened neither close it nor prolong its pause."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    ordinary = [breaker.allow(99.0) for _ in range(50)]
    for _ in range(20):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 100.0)
    for admission in ordinary[:25]:
        breaker.record(admission, event, 103.0)
    assert breaker.allow(103.0).wait == pytest.approx(2.0)
    assert breaker.allow(105.0).is_probe
    for admission in ordinary[25:]:
        breaker.record(admission, event, 105.5)
    assert breaker.allow(105.5) == Permit(wait=5.0)


def test_closed_breaker_counts_from_zero() -> None:
    """A breaker that closed again needs as many failures as at first."""
    breaker = opened()
    breaker.record(breaker.allow(105.0), AttemptResult.DONE, 105.0)
    for _ in range(19):
        pass_through(breaker, AttemptResult.NO_RESPONSE, 105.0)
    assert not is_open(breaker, 105.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 105.0)
    assert is_open(breaker, 105.0)


def test_breaker_follows_the_policy() -> None:
    """How many outcomes, which share, which window and which pause can be set."""
    breaker = CircuitBreaker(CircuitBreakerPolicy(min_requests=2, failure_rate=1.0, window=3.0, open_duration=7.0))
    pass_through(breaker, AttemptResult.NO_RESPONSE, 0.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 4.0)
    assert not is_open(breaker, 4.0)
    pass_through(breaker, AttemptResult.NO_RESPONSE, 4.0)
    assert breaker.allow(4.0) == Permit(wait=7.0)


def test_breaker_keeps_a_bounded_number_of_steps() -> None:
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    for number in range(10_000):
        pass_through(breaker, AttemptResult.DONE if number % 3 else AttemptResult.NO_RESPONSE, number * 0.1)
    assert len(breaker._steps) <= 32


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5), st.sampled_from([event for event in AttemptResult if event is not AttemptResult.CANCELLED])
        ),
        max_size=120,
    )
)
def test_breaker_opens_only_after_failures_and_always_closes_again(steps: list[tuple[float, AttemptResult]]) -> None:
    """It opens only on a failure after twenty requests, and allows a probe after its pause."""
    breaker = CircuitBreaker(CircuitBreakerPolicy())
    now, counted, was_open = 0.0, 0, False
    for pause, event in steps:
        now += pause
        admission = breaker.allow(now)
        if admission.wait:
            assert was_open
            now += admission.wait
            admission = breaker.allow(now)
            assert admission.is_probe
        breaker.record(admission, event, now)
        counted += event in FAILED or event in SERVED
        opens = breaker.allow(now).wait > 0
        if opens and not admission.is_probe:
            assert event in FAILED
            assert counted >= 20
        if opens or admission.is_probe:
            counted = 0
        was_open = opens or was_open
