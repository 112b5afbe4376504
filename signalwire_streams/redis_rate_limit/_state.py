"""The quota, the shared state as one client knows it, and what that client does without Redis (pure).

Times are of the client's own monotonic clock. Its offset to Redis' clock is measured with every reply, so neither a
client's wall clock nor the offset between two clients matters.
"""

import logging
from typing import Self

from attrs import evolve, field, frozen

from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._rate_limit import BURST_SHARE, LEAST_RATE, TokenBucket, next_pause, recovered_rate

_LOG = logging.getLogger("signalwire_streams.redis_rate_limit")

LEASE = 25  # most tokens of one lease: enough to keep round trips few, and little to lose
_AGES_PER_WINDOW = 50
_RESERVED = 4
_SETTLING = 1.0  # seconds after an outage in which other clients may not know yet that it is over
_NEVER = float("-inf")


@frozen
class Quota:
    """The numbers that all clients of a Space follow.

    A window holds at most ``rate * (window + age)`` tokens, one burst from a full bucket, and one more from a Redis
    that came back with an old bucket: together no more than the limit.
    """

    window: float
    burst: int
    reserve: int  # tokens for interactive requests, which would otherwise queue behind the bulk ones of other clients
    age: float  # seconds after which an unused token expires
    rate: float

    @classmethod
    def from_limit(cls, limit: RateLimit) -> Self:
        most = limit.max_requests
        burst = min(limit.burst or max(1, round(most * BURST_SHARE)), most)
        age = limit.window / _AGES_PER_WINDOW
        rate = max((most - 2 * burst) / (limit.window + age), LEAST_RATE / limit.window)
        return cls(limit.window, burst, burst // _RESERVED, age, rate)

    def share(self, rate: float, clients: int) -> RateLimit:
        """Return the limit of one of *clients* clients that together send at *rate* without Redis."""
        burst = max(1, self.burst // clients)
        requests = max(1, int(rate / clients * self.window)) + burst
        return RateLimit(requests=requests, window=self.window, utilization=1.0, burst=burst)


@frozen
class State:
    """State that all clients share; the script in `_store` changes it, and times are Redis' own.

    The fields are in the order of the script's arguments and reply. A client reports a 429 with the number of cuts that
    it knew of, so simultaneous ones cause one cut.
    """

    epoch: str = ""  # random; a different one means that Redis has lost its data
    cuts: int = field(default=0, converter=int)
    closed_until: float = field(default=0.0, converter=float)
    cut_at: float = field(default=0.0, converter=float)
    rate_before: float = field(default=0.0, converter=float)  # requests per second before the last cut
    pause: float = field(default=0.0, converter=float)  # seconds of the last one whose length the Space did not choose

    def rate(self, now: float, quota: Quota) -> float:
        if not self.cuts:
            return quota.rate
        elapsed = max(0.0, now - self.cut_at)
        return recovered_rate(self.rate_before, elapsed, window=quota.window, ceiling=quota.rate)


@frozen(kw_only=True)
class StateUpdate:
    throttled_after: int | None = None  # the cuts that it knew of when the Space responded with 429
    pause: float = 0.0  # seconds to pause after that; 0 if the Space said how long
    closed_until: float | None = None  # until when the Space asked not to be called, on the client's clock


NO_UPDATE = StateUpdate()


class LocalState:
    """The shared state as Redis last returned it, and the update that is still to be reported."""

    def __init__(self, limit: RateLimit) -> None:
        self.quota = Quota.from_limit(limit)
        self.shared = State()
        self.received_at = _NEVER
        self.update = NO_UPDATE
        self._redis_offset = 0.0
        self._closed_until = _NEVER
        self._cut_seen_at = _NEVER
        self._served = True

    @property
    def has_update(self) -> bool:
        return self.update != NO_UPDATE

    def reported(self, update: StateUpdate) -> None:
        """Drop an update that Redis has; one that was made meanwhile is still to be reported."""
        if self.update is update:
            self.update = NO_UPDATE

    def time_until_open(self, now: float) -> float:
        """Return the seconds until requests may be sent; 0 if they may."""
        return max(0.0, self.shared.closed_until - self._redis_offset - now, self._closed_until - now)

    def rate(self, now: float) -> float:
        return self.shared.rate(now + self._redis_offset, self.quota)

    def receive(self, shared: State, redis_now: float, now: float) -> None:
        if shared.cuts > self.shared.cuts:
            self._cut_seen_at = now
            self._served = False
        self.shared = shared
        self._redis_offset = redis_now - now
        self.received_at = now

    def on_throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Record a 429 to a request that was sent at *sent_at*; this client pauses from now on."""
        if sent_at > self._cut_seen_at:
            pause = next_pause(0.0 if self._served else self.shared.pause) if retry_after is None else 0.0
            self.update = evolve(self.update, throttled_after=self.shared.cuts, pause=pause)
            self._cut_seen_at = now
            self._closed_until = max(self._closed_until, now + pause)
        if retry_after is not None:
            self._closed_until = max(self._closed_until, now + retry_after)
            self.update = evolve(self.update, closed_until=self._closed_until)

    def on_success(self) -> None:
        self._served = True


class Fallback:
    def __init__(self, address: str, clients: int | None) -> None:
        self._address = address
        self._clients = clients  # share the limit, and each then continues with its share; None: they wait for Redis
        self._since: float | None = None
        self._bucket: TokenBucket | None = None
        self._settled_at = _NEVER

    @property
    def is_active(self) -> bool:
        return self._since is not None

    @property
    def blocks(self) -> bool:
        """True while requests wait for Redis."""
        return self.is_active and self._bucket is None

    def begin(self, why: str, state: LocalState, now: float) -> None:
        if self._since is not None:
            return
        self._since = now
        consequence = "requests wait for it, as long as their deadlines allow"
        if self._clients is not None:
            consequence = f"this client continues with its share of the limit, one of {self._clients}"
            if self._bucket is None:
                self._bucket = TokenBucket(state.quota.share(state.rate(now), self._clients))
                # Tokens leased a moment ago count, so a fallback does not begin with a burst.
                while not self._bucket.try_acquire(now):
                    pass
        _LOG.warning("the Redis at %s is unavailable (%s): %s", self._address, why, consequence)

    def end(self, now: float) -> None:
        if self._since is None:
            return
        away, self._since = now - self._since, None
        _LOG.warning("the Redis at %s is available again after %.1f s: the limit is shared again", self._address, away)
        self._settled_at = now + _SETTLING

    def try_acquire(self, now: float) -> float:
        return self._bucket.try_acquire(now) if self._bucket is not None else 0.0

    def allowance(self, tokens: int, now: float) -> tuple[int, float]:
        """Return how many tokens may be leased now, and if none, the seconds until there is one.

        Other clients may not know yet that Redis is back, and still use their shares. So for a moment a client that was
        on its own leases no more than its share.
        """
        if self._bucket is None or now >= self._settled_at:
            self._bucket = None
            return tokens, 0.0
        taken, wait = 0, 0.0
        while taken < tokens and not (wait := self._bucket.try_acquire(now)):
            taken += 1
        return taken, wait

    def refund(self, tokens: int) -> None:
        """Return tokens of this client's share that were not leased after all."""
        if self._bucket is not None:
            for _ in range(tokens):
                self._bucket.refund()

    def on_throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        if self._bucket is not None:
            self._bucket.on_throttled(now, sent_at, retry_after)
