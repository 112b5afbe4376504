"""The numbers behind every decision, with the defaults that the project stands by."""

from attrs import field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    check_count,
    validate_backoff,
    validate_count,
    validate_flag,
    validate_fraction,
    validate_seconds,
)

_AT_LEAST_ONE = {"least": 1}


@frozen(kw_only=True)
class RetryPolicy:
    """How often, how long and how fast a call is tried.

    Attributes:
        attempts: attempts that may reach the Space, in all.
        max_connect_retries: further attempts after ones that certainly did not reach it.
        max_throttle_retries: how often a call waits because the Space said "too many requests".
        max_resends: how often a named start is sent again once an attempt may have been carried out; ``attempts``
            limits it as well. (Attempts that
            the Space turned away with 429, or that did not reach it, carry nothing out and are not counted.)
        resend_window: seconds after the first such attempt in which it may be sent again.
        resend_call_starts: whether a named start on a **call** is sent again as well. That a Space refuses the
            second stream of one name is documented for conferences only, so the default is not to; the call
            then ends in `StreamOutcomeUnknownError`.
        deadline: seconds for a whole call, waiting included.
        wait_transient: seconds, base and cap of the backoff after a fault.
        wait_throttled: seconds, base and cap of the backoff after "too many requests" without ``Retry-After``.
        max_retry_after: seconds; a ``Retry-After`` beyond it is not waited for.
    """

    max_attempts: int = field(default=3, validator=validate_count, metadata=_AT_LEAST_ONE)
    max_connect_retries: int = field(default=3, validator=validate_count)
    max_throttle_retries: int = field(default=6, validator=validate_count)
    max_resends: int = field(default=2, validator=validate_count)
    resend_window: float = field(default=30.0, validator=validate_seconds)
    resend_call_starts: bool = field(default=False, validator=validate_flag)
    deadline: float = field(default=45.0, validator=validate_seconds)
    wait_transient: tuple[float, float] = field(default=(0.2, 5.0), validator=validate_backoff)
    wait_throttled: tuple[float, float] = field(default=(1.0, 20.0), validator=validate_backoff)
    max_retry_after: float = field(default=60.0, validator=validate_seconds)


@frozen(kw_only=True)
class RateLimit:
    """The Space's limit on POST, PUT and PATCH requests, and how much of it this client takes.

    The limit belongs to the whole Space, all projects together. Requests are spaced when they leave for a
    connection; where connections are slow to open, some may arrive bunched, by at most the rate times the time
    that takes. The part that is left free is for that as well.
    Source: https://signalwire.com/docs/platform/rate-limits (13,800 requests in 10 seconds)

    Attributes:
        requests: requests that the Space takes in one window.
        window: seconds.
        share: the part of it that this client uses; the rest is for others and for the network's jitter.
        burst: requests that may go out at once after a pause; None for half a percent of the limit.
    """

    requests: int = field(default=13_800, validator=validate_count, metadata=_AT_LEAST_ONE)
    window: float = field(default=10.0, validator=validate_seconds)
    utilization: float = field(default=0.9, validator=validate_fraction)
    burst: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.burst is not None and not 1 <= check_count(self.burst, "burst") <= self.max_requests:
            raise InvalidRequestError(
                f"burst must be from 1 to {self.max_requests} (the limit's share), not {self.burst!r}"
            )

    @property
    def max_requests(self) -> int:
        """The requests of this client that any window may hold."""
        return max(1, int(self.requests * self.utilization))

    @property
    def rate(self) -> float:
        """The requests of this client per second, in the long run."""
        return self.max_requests / self.window


@frozen(kw_only=True)
class CircuitBreakerPolicy:
    """When to stop asking a Space that keeps failing.

    Attributes:
        outcomes: so many must have been seen.
        share: the part of them that must have failed.
        window: seconds that an outcome counts.
        pause: seconds without requests, before one probe goes out.
    """

    min_requests: int = field(default=20, validator=validate_count, metadata=_AT_LEAST_ONE)
    failure_rate: float = field(default=0.5, validator=validate_fraction)
    window: float = field(default=30.0, validator=validate_seconds)
    open_duration: float = field(default=5.0, validator=validate_seconds)
