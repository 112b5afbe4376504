"""How fast many clients may go together, so that no window holds more than the limit (pure).

A lease is a batch of tokens from the bucket in Redis. Any T seconds of Redis' clock see at most ``burst + rate·T``
tokens leased. A token is used within ``age`` seconds of being asked for, or it lapses, so what a window of W seconds
sees used was leased within W + ``age`` seconds. A Redis that lost its memory may hand out one more burst. Together that
is ``2·burst + rate·(W + age)``, and ``rate`` is set such that it is the limit's share, however many clients there are.
"""

from typing import Self

from attrs import frozen

from signalwire_streams.resilience.pace import BURST_SHARE, LEAST_RATE
from signalwire_streams.middleware._policies import RateLimit

LEASE = 25
"""Tokens of one lease at most: enough to make the round trips few, and little to lose."""
_AGES_PER_WINDOW = 50
_RESERVED = 4


@frozen
class Law:
    """The numbers that all clients of a Space keep to.

    Attributes:
        window: seconds.
        burst: tokens that the bucket holds at most.
        bulk_burst: the part of them that bulk requests may take. The rest is kept for interactive ones, so that these
            need not wait behind the bulk requests of other clients.
        age: seconds after which a token that was not used lapses.
        rate: tokens per second, for all clients together.
    """

    window: float
    burst: int
    bulk_burst: int
    age: float
    rate: float

    @classmethod
    def of(cls, limit: RateLimit, requests: int | None) -> Self:
        """Derive the numbers.

        Args:
            limit: what the caller configured.
            requests: the limit that the Space tells, if it does; it can only lower the configured one.
        """
        most = limit.most
        if requests is not None and requests < limit.requests:
            most = max(1, int(requests * limit.share))
        burst = min(limit.burst or max(1, round(most * BURST_SHARE)), most)
        age = limit.window / _AGES_PER_WINDOW
        rate = max((most - 2 * burst) / (limit.window + age), LEAST_RATE / limit.window)
        return cls(limit.window, burst, max(1, burst - burst // _RESERVED), age, rate)

    def part(self, rate: float, clients: int) -> RateLimit:
        """Give the limit that one of so many clients keeps to on its own, so that all of them go at that rate."""
        burst = max(1, self.burst // clients)
        requests = max(1, int(rate / clients * self.window)) + burst
        return RateLimit(requests=requests, window=self.window, share=1.0, burst=burst)
