"""What happens while Redis is away: requests wait for it, or each client goes on with its own part of the limit."""

import logging

from attrs import define, field

from signalwire_streams.resilience.pace import Pace
from signalwire_streams.redis_rate_limit._state import View

_LOG = logging.getLogger("signalwire_streams.redis_rate_limit")
_SETTLING = 1.0


@define(eq=False)
class Outage:
    """Whether Redis is away, and what this client may do on its own then.

    Attributes:
        address: of the Redis, for the log.
        clients: how many clients share the limit, each of which goes on with its part of it; None to wait instead.
    """

    address: str
    clients: int | None
    _began: float | None = field(init=False, default=None)
    _pace: Pace | None = field(init=False, default=None)
    _settled_at: float = field(init=False, default=float("-inf"))

    @property
    def lasts(self) -> bool:
        """Whether Redis is away."""
        return self._began is not None

    @property
    def waits(self) -> bool:
        """Whether requests wait for Redis."""
        return self.lasts and self._pace is None

    def begin(self, why: str, view: View, now: float) -> None:
        """Note that Redis is away, and say so once."""
        if self._began is not None:
            return
        self._began = now
        meanwhile = "requests wait for it, as long as their deadlines allow"
        if self.clients is not None:
            meanwhile = f"this client goes on with its part of the limit, one of {self.clients}"
            self._pace = self._pace or _empty_pace(view, self.clients, now)
        _LOG.warning("the Redis at %s is away (%s): %s", self.address, why, meanwhile)

    def end(self, now: float) -> None:
        """Note that Redis is back, and say so once."""
        if self._began is None:
            return
        _LOG.warning("the Redis at %s is back after %.1f s: the limit is shared again", self.address, now - self._began)
        self._began = None
        self._settled_at = now + _SETTLING

    def take(self, now: float) -> float:
        """Take a token of this client's own part; returns the seconds until there is one, or 0."""
        return self._pace.take(now) if self._pace is not None else 0.0

    def take_up_to(self, tokens: int, now: float) -> tuple[int, float]:
        """Say how many tokens may be leased now.

        Others may not know yet that Redis is back, and still go on with their own parts. So for a moment a client
        that was on its own takes no more than its part, wherever it takes it from.

        Returns:
            how many of those wanted, and where that is none, the seconds until there is one.
        """
        if self._pace is None:
            return tokens, 0.0
        if now >= self._settled_at:
            self._pace = None
            return tokens, 0.0
        taken, wait = 0, 0.0
        while taken < tokens and not (wait := self._pace.take(now)):
            taken += 1
        return taken, wait

    def give_back(self, tokens: int) -> None:
        """Return tokens of this client's own part that were not leased after all."""
        if self._pace is not None:
            for _ in range(tokens):
                self._pace.give_back()

    def throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Note that the Space refused a request: this client's own part gets smaller as well."""
        if self._pace is not None:
            self._pace.throttled(now, sent_at, retry_after)


def _empty_pace(view: View, clients: int, now: float) -> Pace:
    pace = Pace(view.law.part(view.rate(now), clients))
    # What went out through Redis a moment ago counts, so nobody begins with a burst.
    while not pace.take(now):
        pass
    return pace
