"""The numbers behind every decision: the defaults, and which numbers are rejected."""

from typing import Any

import pytest
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from signalwire_streams import CircuitBreakerPolicy, RateLimit, RetryPolicy, Timeouts
from signalwire_streams.errors import InvalidRequestError

NAN, ENDLESS = float("nan"), float("inf")
NO_COUNT = [-1, 1.5, "3", None, True, NAN, ENDLESS]
NO_TIME = [0, -1, -0.1, "5", None, True, NAN, ENDLESS, -ENDLESS, 366 * 86_400 + 1, 10**400]
NO_WAIT = [-0.1, NAN, ENDLESS, (1, 2), "1", None, True]
NO_SHARE = [0, -0.1, 1.1, "half", None, True, NAN, ENDLESS]


def test_policies_have_the_documented_defaults() -> None:
    """Each default is the one that the documentation promises."""
    retry = RetryPolicy()
    assert (retry.max_attempts, retry.max_connect_retries, retry.max_throttle_retries) == (3, 3, 6)
    assert (retry.max_resends, retry.resend_window, retry.resend_call_starts) == (2, 30.0, False)
    assert (retry.deadline, retry.max_retry_after) == (45.0, 60.0)
    assert (retry.wait_initial, retry.wait_max) == (0.2, 5.0)
    assert (retry.throttle_wait_initial, retry.throttle_wait_max) == (1.0, 20.0)
    timeouts = Timeouts()
    assert (timeouts.connect, timeouts.read, timeouts.attempt) == (5.0, 15.0, 20.0)
    limit = RateLimit()
    assert (limit.requests, limit.window, limit.utilization, limit.burst, limit.max_requests) == (
        13_800,
        10.0,
        0.9,
        None,
        12_420,
    )
    breaker = CircuitBreakerPolicy()
    assert (breaker.min_requests, breaker.failure_rate, breaker.window, breaker.open_duration) == (20, 0.5, 30.0, 5.0)


REFUSED: list[tuple[type[Any], str, list[Any]]] = [
    (RetryPolicy, "max_attempts", [0, *NO_COUNT]),
    (RetryPolicy, "max_connect_retries", NO_COUNT),
    (RetryPolicy, "max_throttle_retries", NO_COUNT),
    (RetryPolicy, "max_resends", NO_COUNT),
    (RetryPolicy, "resend_window", NO_TIME),
    (RetryPolicy, "deadline", NO_TIME),
    (RetryPolicy, "max_retry_after", NO_TIME),
    (RetryPolicy, "wait_initial", [5.1, *NO_WAIT]),
    (RetryPolicy, "wait_max", NO_WAIT),
    (RetryPolicy, "throttle_wait_initial", [20.1, *NO_WAIT]),
    (RetryPolicy, "throttle_wait_max", NO_WAIT),
    (RetryPolicy, "resend_call_starts", ["no", 1, 0, None]),
    (Timeouts, "connect", NO_TIME),
    (Timeouts, "read", NO_TIME),
    (Timeouts, "attempt", NO_TIME),
    (RateLimit, "requests", [0, *NO_COUNT]),
    (RateLimit, "window", NO_TIME),
    (RateLimit, "utilization", NO_SHARE),
    (RateLimit, "burst", [0, -1, 12_421, 2.5, True, "x", NAN]),
    (CircuitBreakerPolicy, "min_requests", [0, *NO_COUNT]),
    (CircuitBreakerPolicy, "failure_rate", NO_SHARE),
    (CircuitBreakerPolicy, "window", NO_TIME),
    (CircuitBreakerPolicy, "open_duration", NO_TIME),
]


@pytest.mark.parametrize(
    ("policy", "field", "values"), REFUSED, ids=[f"{policy.__name__}.{field}" for policy, field, _ in REFUSED]
)
def test_invalid_number_is_rejected_by_the_name_of_its_field(
    policy: type[Any], field: str, values: list[object]
) -> None:
    """A nonsense number is rejected by the name of its field, in a new policy as in a changed one."""
    for value in values:
        with pytest.raises(InvalidRequestError, match=f"^{field} must be ") as caught:
            policy(**{field: value})
        assert str(caught.value).isprintable()
        with pytest.raises(InvalidRequestError):
            evolve(policy(), **{field: value})


TAKEN: list[tuple[type[Any], str, Any]] = [
    (RetryPolicy, "max_attempts", 1),
    (RetryPolicy, "max_connect_retries", 0),
    (RetryPolicy, "max_throttle_retries", 0),
    (RetryPolicy, "max_resends", 0),
    (RetryPolicy, "deadline", 0.001),
    (RetryPolicy, "wait_initial", 0),
    (RetryPolicy, "wait_initial", 5),
    (RetryPolicy, "wait_max", 0.2),
    (RetryPolicy, "throttle_wait_initial", 20.0),
    (RetryPolicy, "throttle_wait_max", 1),
    (RetryPolicy, "resend_call_starts", True),
    (Timeouts, "connect", 1),
    (RateLimit, "requests", 1),
    (RateLimit, "utilization", 1),
    (RateLimit, "utilization", 0.00001),
    (RateLimit, "burst", 1),
    (RateLimit, "burst", 12_420),
    (CircuitBreakerPolicy, "min_requests", 1),
    (CircuitBreakerPolicy, "failure_rate", 1.0),
]


@pytest.mark.parametrize(("policy", "field", "value"), TAKEN, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_number_at_the_edge_is_accepted(policy: type[Any], field: str, value: object) -> None:
    """The least and the most that make sense are taken."""
    assert getattr(policy(**{field: value}), field) == value


@pytest.mark.parametrize("policy", [RetryPolicy, Timeouts, RateLimit, CircuitBreakerPolicy])
def test_policies_are_frozen_values(policy: type[Any]) -> None:
    """A policy is frozen, a value, and given by names."""
    made = policy()
    assert made == policy()
    assert len({made, policy()}) == 1
    with pytest.raises(FrozenInstanceError):
        made.window = 1.0
    with pytest.raises(TypeError):
        policy(1)


@pytest.mark.parametrize(
    ("requests", "utilization", "max_requests"),
    [(13_800, 0.9, 12_420), (10, 0.9, 9), (1, 0.9, 1), (3, 0.5, 1), (100, 1, 100), (7, 0.999, 6)],
)
def test_max_requests_is_rounded_down_to_at_least_one(requests: int, utilization: float, max_requests: int) -> None:
    """A client takes no request more than its share, except that it always may take one."""
    assert RateLimit(requests=requests, utilization=utilization).max_requests == max_requests
