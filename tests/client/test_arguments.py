"""A client whose arguments are of the wrong class says so when it is created, and not at its first request."""

from typing import Any

import aiohttp
import pytest

from signalwire_streams import (
    Attempt,
    CircuitBreakerPolicy,
    InvalidRequestError,
    RateLimit,
    RetryPolicy,
    StreamsClient,
)


async def on_attempt(_: Attempt) -> None:
    """What a caller may write by mistake: nobody would await it."""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"retry": 5}, "retry must be a RetryPolicy, not int"),
    ({"retry": False}, "retry must be a RetryPolicy, not bool"),
    ({"retry": RetryPolicy}, "retry must be a RetryPolicy, not type"),
    ({"timeouts": 30}, "timeouts must be a Timeouts, not int"),
    ({"timeouts": aiohttp.ClientTimeout(total=3)}, "timeouts must be a Timeouts, not ClientTimeout"),
    ({"rate_limit": 100}, "rate_limit must be a RateLimit, not int"),
    ({"circuit_breaker": False}, "circuit_breaker must be a CircuitBreakerPolicy, not bool"),
    ({"circuit_breaker": RetryPolicy()}, "circuit_breaker must be a CircuitBreakerPolicy, not RetryPolicy"),
    ({"clock": 5}, "clock must be a Clock, not int"),
    ({"rate_limiter": RateLimit()}, "rate_limiter must be a RateLimiter, such as RedisRateLimiter(...), not RateLimit"),
    ({"on_attempt": 5}, "on_attempt must be a function that takes an Attempt: write it with def, and not async def"),
    ({"on_attempt": on_attempt}, "on_attempt must be a function that takes an Attempt: write it with def"),
    ({"middlewares": print}, "middlewares must be a list of async functions, not builtin_function_or_method"),
    ({"middlewares": [5]}, "middlewares must be a list of async functions"),
    ({"middlewares": iter([])}, "middlewares must be a list of async functions, not list_iterator"),
    ({"middlewares": "x"}, "middlewares must be a list of async functions, not str"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_argument_of_a_wrong_class_is_rejected(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        StreamsClient(space="example", project="p", token="t", **options)
    assert str(caught.value).startswith(words)


def test_arguments_may_be_left_to_their_defaults() -> None:
    """None stands for the default, and so does an empty list."""
    options: Any = dict.fromkeys(("retry", "timeouts", "rate_limit", "circuit_breaker", "clock", "on_attempt"))
    StreamsClient(space="example", project="p", token="t", **options, rate_limiter=None, middlewares=[])
    StreamsClient(space="example", project="p", token="t", circuit_breaker=CircuitBreakerPolicy(), on_attempt=print)
