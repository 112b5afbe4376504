"""The settings of the middleware and their defaults."""

from attrs import field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    check_count,
    check_waits,
    validate_backoff,
    validate_count,
    validate_flag,
    validate_fraction,
    validate_seconds,
)

__all__ = ["CircuitBreakerPolicy", "RateLimit", "RetryPolicy"]

_AT_LEAST_ONE = {"least": 1}


@frozen(kw_only=True)
class RetryPolicy:
    """How often, how long and how fast a call is retried.

    Waits grow exponentially from ``wait_initial`` to ``wait_max`` with full jitter: each is random between 0 and a
    limit that doubles. A ``Retry-After`` is always honored in full.

    Attributes:
        max_attempts: attempts that may reach the Space, in all.
        max_connect_retries: further attempts after ones that certainly did not reach it.
        max_throttle_retries: how often a call waits after "too many requests".
        max_resends: how often a named start is sent again once an attempt may have been carried out; ``max_attempts``
            limits it as well. Attempts that were throttled or did not reach the Space execute nothing and do not
            count.
        resend_window: seconds after the first such attempt in which it may be sent again.
        resend_call_starts: whether a named start on a **call** is sent again as well. Rejection of duplicate names is
            documented for conferences only, so the default is False, and a start on a call whose response was lost
            raises `StreamOutcomeUnknownError`.
        deadline: seconds for a whole call, waiting included.
        wait_initial: seconds; the limit of the first wait after a failure.
        wait_max: seconds; the limit of all waits after a failure.
        throttle_wait_initial: seconds; the limit of the first wait after "too many requests" without ``Retry-After``.
        throttle_wait_max: seconds; the limit of all waits after "too many requests".
        max_retry_after: seconds; a longer ``Retry-After`` is not waited for.
    """

    max_attempts: int = field(default=3, validator=validate_count, metadata=_AT_LEAST_ONE)
    max_connect_retries: int = field(default=3, validator=validate_count)
    max_throttle_retries: int = field(default=6, validator=validate_count)
    max_resends: int = field(default=2, validator=validate_count)
    resend_window: float = field(default=30.0, validator=validate_seconds)
    resend_call_starts: bool = field(default=False, validator=validate_flag)
    deadline: float = field(default=45.0, validator=validate_seconds)
    wait_initial: float = field(default=0.2, validator=validate_backoff)
    wait_max: float = field(default=5.0, validator=validate_backoff)
    throttle_wait_initial: float = field(default=1.0, validator=validate_backoff)
    throttle_wait_max: float = field(default=20.0, validator=validate_backoff)
    max_retry_after: float = field(default=60.0, validator=validate_seconds)

    def __attrs_post_init__(self) -> None:
        check_waits(self, "wait")
        check_waits(self, "throttle_wait")


@frozen(kw_only=True)
class RateLimit:
    """The Space's limit on POST, PUT and PATCH requests, and how much of it this client uses.

    The limit applies to the whole Space, all projects together. Requests are paced when they are handed to a
    connection. If connections are slow to open, some requests may arrive in a burst of at most the rate times that
    delay; the unused part of the limit covers that as well.
    Source: https://signalwire.com/docs/platform/rate-limits (13,800 requests in 10 seconds)

    Attributes:
        requests: requests that the Space accepts in one window.
        window: seconds.
        utilization: the fraction of it that this client uses; the rest is for others and for network jitter.
        burst: requests that may go out at once after a pause; None for half a percent of `max_requests`.
    """

    requests: int = field(default=13_800, validator=validate_count, metadata=_AT_LEAST_ONE)
    window: float = field(default=10.0, validator=validate_seconds)
    utilization: float = field(default=0.9, validator=validate_fraction)
    burst: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.burst is not None and not 1 <= check_count(self.burst, "burst") <= self.max_requests:
            raise InvalidRequestError(
                f"burst must be from 1 to {self.max_requests} (the limit times its utilization), not {self.burst!r}"
            )

    @property
    def max_requests(self) -> int:
        """Maximum number of this client's requests in any window."""
        return max(1, int(self.requests * self.utilization))

    @property
    def rate(self) -> float:
        """This client's average requests per second."""
        return self.max_requests / self.window


@frozen(kw_only=True)
class CircuitBreakerPolicy:
    """When to stop sending requests to a Space that keeps failing.

    Attributes:
        min_requests: requests in the window before the breaker can open.
        failure_rate: the fraction of them that must have failed.
        window: seconds that a request counts.
        open_duration: seconds without requests, before one probe is sent.
    """

    min_requests: int = field(default=20, validator=validate_count, metadata=_AT_LEAST_ONE)
    failure_rate: float = field(default=0.5, validator=validate_fraction)
    window: float = field(default=30.0, validator=validate_seconds)
    open_duration: float = field(default=5.0, validator=validate_seconds)
