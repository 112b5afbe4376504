"""The numbers behind every decision, with the defaults that the project stands by."""

from typing import Any

from attrs import Attribute, field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import check_count, check_flag, check_seconds


def _count(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_count(value, attribute.name, least=attribute.metadata.get("least", 0))


def _seconds(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_seconds(value, attribute.name)


def _switch(_: object, attribute: "Attribute[Any]", value: object) -> None:
    check_flag(value, attribute.name)


def _share(_: object, attribute: "Attribute[Any]", value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidRequestError(f"{attribute.name} must be a part of the whole, above 0 and up to 1, not {value!r}")


def _spread(_: object, attribute: "Attribute[Any]", value: object) -> None:
    numbers = value if isinstance(value, tuple) else ()
    good = [isinstance(number, int | float) and not isinstance(number, bool) for number in numbers] == [True, True]
    if not good or not 0 <= numbers[0] <= numbers[1] < float("inf"):
        raise InvalidRequestError(f"{attribute.name} must be (base, cap) in seconds with base <= cap, not {value!r}")


_AT_LEAST_ONE = {"least": 1}


@frozen(kw_only=True)
class RetryPolicy:
    """How often, how long and how fast a call is tried.

    Attributes:
        attempts: attempts that may reach the Space, in all.
        unsent_attempts: further attempts after ones that certainly did not reach it.
        throttle_waits: how often a call waits because the Space said "too many requests".
        resends: how often a named start is sent again once an attempt may have been carried out; ``attempts``
            limits it as well. (Attempts that
            the Space turned away with 429, or that did not reach it, carry nothing out and are not counted.)
        resend_window: seconds after the first such attempt in which it may be sent again.
        resend_call_starts: whether a named start on a **call** is sent again as well. That a Space refuses the
            second stream of one name is documented for conferences only, so the default is not to; the call
            then ends in `StreamOutcomeUnknown`.
        deadline: seconds for a whole call, waiting included.
        wait_transient: seconds, base and cap of the backoff after a fault.
        wait_throttled: seconds, base and cap of the backoff after "too many requests" without ``Retry-After``.
        wait_longest: seconds; a ``Retry-After`` beyond it is not waited for.
    """

    attempts: int = field(default=3, validator=_count, metadata=_AT_LEAST_ONE)
    unsent_attempts: int = field(default=3, validator=_count)
    throttle_waits: int = field(default=6, validator=_count)
    resends: int = field(default=2, validator=_count)
    resend_window: float = field(default=30.0, validator=_seconds)
    resend_call_starts: bool = field(default=False, validator=_switch)
    deadline: float = field(default=45.0, validator=_seconds)
    wait_transient: tuple[float, float] = field(default=(0.2, 5.0), validator=_spread)
    wait_throttled: tuple[float, float] = field(default=(1.0, 20.0), validator=_spread)
    wait_longest: float = field(default=60.0, validator=_seconds)


@frozen(kw_only=True)
class Timeouts:
    """Seconds that one attempt may take.

    Attributes:
        connect: DNS, TCP and TLS together.
        read: between two pieces of an answer.
        attempt: the whole attempt, once it has a connection slot and the pacer's leave.
    """

    connect: float = field(default=5.0, validator=_seconds)
    read: float = field(default=15.0, validator=_seconds)
    attempt: float = field(default=20.0, validator=_seconds)


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

    requests: int = field(default=13_800, validator=_count, metadata=_AT_LEAST_ONE)
    window: float = field(default=10.0, validator=_seconds)
    share: float = field(default=0.9, validator=_share)
    burst: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.burst is not None and not 1 <= check_count(self.burst, "burst") <= self.most:
            raise InvalidRequestError(f"burst must be from 1 to {self.most} (the limit's share), not {self.burst!r}")

    @property
    def most(self) -> int:
        """The requests of this client that any window may hold."""
        return max(1, int(self.requests * self.share))

    @property
    def rate(self) -> float:
        """The requests of this client per second, in the long run."""
        return self.most / self.window


@frozen(kw_only=True)
class BreakerPolicy:
    """When to stop asking a Space that keeps failing.

    Attributes:
        outcomes: so many must have been seen.
        share: the part of them that must have failed.
        window: seconds that an outcome counts.
        pause: seconds without requests, before one probe goes out.
    """

    outcomes: int = field(default=20, validator=_count, metadata=_AT_LEAST_ONE)
    share: float = field(default=0.5, validator=_share)
    window: float = field(default=30.0, validator=_seconds)
    pause: float = field(default=5.0, validator=_seconds)
