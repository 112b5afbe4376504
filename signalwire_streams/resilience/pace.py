"""How fast requests may go out, so that no window ever holds more of them than the Space's limit.

A bucket of ``burst`` tokens, refilled at ``rate`` (the same admissions as GCRA, and it stays exact when the
rate changes): any window of T seconds sees at most ``burst + rate·T`` requests. So ``rate`` is set such that
``burst + rate·window`` is the limit's share, and not a request more.
"""

from attrs import define, field

from signalwire_streams.middleware._policies import RateLimit

BURST_SHARE = 0.005
"""The part of the limit that may go out at once, unless the caller says otherwise."""
CUT = 0.7
"""CUBIC's multiplicative decrease. Source: RFC 9438, which the growth constant is from as well."""
LEAST_RATE = 0.5
"""Requests per window that are let through in any case."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0
"""Seconds for which the gate closes when the Space did not say how long; it doubles from the first to the longest."""
_GROWTH = 0.4


def recovered_rate(before: float, elapsed: float) -> float:
    """Give the rate that CUBIC allows some time after a cut; it goes on beyond the rate before.

    Args:
        before: requests per second before the cut.
        elapsed: seconds since the cut.
    """
    turn: float = ((before * (1 - CUT)) / _GROWTH) ** (1 / 3)
    grown: float = _GROWTH * (elapsed - turn) ** 3
    return grown + before


@define(eq=False)
class Pace:
    """The state of the pacing, without a clock of its own.

    Attributes:
        limit: the Space's limit and this client's share of it.
        rate: requests per second that are let through now.
        closed_until: the gate's time; until then nothing at all is let through.
    """

    limit: RateLimit
    rate: float = field(init=False)
    closed_until: float = field(init=False, default=float("-inf"))
    _burst: float = field(init=False)
    _ceiling: float = field(init=False)
    _tokens: float = field(init=False)
    _filled_at: float = field(init=False, default=float("-inf"))
    _cut_at: float | None = field(init=False, default=None)
    _rate_before_cut: float = field(init=False, default=0.0)
    _pause: float = field(init=False, default=FIRST_PAUSE)
    _advertised: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._advertised = self.limit.requests
        self._aim_at(self.limit.most, self.limit.burst)
        self.rate = self._ceiling
        self._tokens = self._burst

    def _aim_at(self, most: int, burst: int | None) -> None:
        self._burst = float(burst or max(1, round(most * BURST_SHARE)))
        self._ceiling = max((most - self._burst) / self.limit.window, LEAST_RATE / self.limit.window)

    def gate_wait(self, now: float) -> float:
        """Seconds until the gate is open; 0 when it is."""
        return max(0.0, self.closed_until - now)

    def take(self, now: float) -> float:
        """Take leave for one request.

        Returns:
            0 when it may go now (and it is counted), else the seconds after which to ask again.
        """
        wait = self.gate_wait(now)
        if wait:
            return wait
        self._recover(now)
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + self.rate * min(now - self._filled_at, 1e6))
            self._filled_at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def give_back(self) -> None:
        """Return the leave of a request that was not sent after all."""
        self._tokens = min(self._burst, self._tokens + 1.0)

    def throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Note that the Space said "too many requests": close the gate and slow down.

        Args:
            now: the time.
            sent_at: when the refused request was sent. Refusals of requests from before the last cut tell
                nothing new, so they close the gate but do not cut again.
            retry_after: seconds that the Space asked to wait.
        """
        if self._cut_at is None or sent_at > self._cut_at:
            self._recover(now)
            self._rate_before_cut = self.rate
            self.rate = max(self.rate * CUT, LEAST_RATE / self.limit.window)
            self._cut_at = now
            pause = self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self.closed_until = max(self.closed_until, now + (pause if retry_after is None else 0.0))
        if retry_after is not None:
            self.closed_until = max(self.closed_until, now + retry_after)

    def served(self) -> None:
        """Note that the Space took a request: the next pause starts small again."""
        self._pause = FIRST_PAUSE

    def advertised(self, requests: int) -> None:
        """Follow the limit that the Space's headers tell. It can only lower the configured one."""
        requests = min(requests, self.limit.requests)
        if requests == self._advertised:
            return
        self._advertised = requests
        most = max(1, int(requests * self.limit.share))
        self._aim_at(most, min(self.limit.burst, most) if self.limit.burst else None)
        self.rate = self._ceiling if self._cut_at is None else min(self.rate, self._ceiling)
        self._tokens = min(self._tokens, self._burst)

    def _recover(self, now: float) -> None:
        if self._cut_at is None:
            return
        grown = recovered_rate(self._rate_before_cut, now - self._cut_at)
        self.rate = min(max(grown, self.rate), self._ceiling)
        if self.rate >= self._ceiling:
            self._cut_at = None
