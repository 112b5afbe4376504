"""How many requests to keep under way at once, found out instead of guessed."""

from attrs import define, field, frozen

LEAST, MOST = 8, 256
_CUT = 0.7
_SLOW = 2.0
_SETTLED = 0.02
_FORGET = 1.02


@define(eq=False)
class AdaptiveConcurrency:
    """Additive increase, multiplicative decrease, on latency and on refusals for lack of capacity.

    While answers come about as fast as the fastest lately, the number grows by one each time that many were
    answered; when they take twice as long, or the Space says 429 or 503, it shrinks by three tenths, at most
    once for the requests that were under way together.

    Attributes:
        limit: how many may be under way now.
    """

    limit: float = float(LEAST * 4)
    _fastest: float | None = field(init=False, default=None)
    _usual: float = field(init=False, default=0.0)
    _grace: int = field(init=False, default=0)

    def answered(self, seconds: float, *, pushed_back: bool) -> None:
        """Note a request that ended.

        Args:
            seconds: how long it took, without its waiting for a turn.
            pushed_back: whether the Space said 429 or 503 meanwhile.
        """
        fastest = seconds if self._fastest is None else min(seconds, self._fastest * _FORGET)
        self._fastest = fastest
        self._usual = seconds if not self._usual else self._usual + 0.1 * (seconds - self._usual)
        if self._grace > 0:
            self._grace -= 1
        slow = self._usual > max(fastest * _SLOW, fastest + _SETTLED)
        if not (pushed_back or slow):
            self.limit = min(self.limit + 1.0 / self.limit, float(MOST))
        elif self._grace == 0:
            self.limit = max(self.limit * _CUT, float(LEAST))
            self._grace = int(self.limit)


@frozen
class FixedConcurrency:
    """A number that somebody chose.

    Attributes:
        limit: how many may be under way.
    """

    limit: float

    def answered(self, seconds: float, *, pushed_back: bool) -> None:
        """Learn nothing: the number stays."""
