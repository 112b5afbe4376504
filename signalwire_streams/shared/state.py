"""What clients tell each other through Redis, beside the tokens (pure; all times are of Redis' clock).

A refusal closes the gate for everybody and cuts the rate, which then recovers by CUBIC as `Pace` has it.
"""

import json
from secrets import token_hex
from typing import Self

from attrs import asdict, evolve, field, frozen

from signalwire_streams.resilience.pace import CUT, FIRST_PAUSE, LEAST_RATE, LONGEST_PAUSE, recovered_rate
from signalwire_streams.redis_rate_limit.law import Law


@frozen(kw_only=True)
class State:
    """What is known of the Space.

    Attributes:
        epoch: drawn when the state was made; another one tells that Redis lost its memory meanwhile.
        cuts: how often the rate was cut. Who tells of a refusal says how many cuts it knew of, so that many refusals of
            one moment are one cut.
        closed_until: the gate's time; until then nothing goes out.
        cut_at: when the rate was cut the last time, or None.
        rate_before: requests per second before that.
        pause: seconds of the last pause that was not of the Space's own wish.
        requests: the limit that the Space tells, or None.
    """

    epoch: str = field(factory=lambda: token_hex(8))
    cuts: int = 0
    closed_until: float = 0.0
    cut_at: float | None = None
    rate_before: float = 0.0
    pause: float = 0.0
    requests: int | None = None

    @classmethod
    def read(cls, text: bytes | str) -> Self:
        """Read what `text` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from None

    def text(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))

    def rate(self, now: float, law: Law) -> float:
        """Give the requests per second that are let through now."""
        if self.cut_at is None:
            return law.rate
        # Another client's clock is not asked, but Redis' own may be set back.
        grown = recovered_rate(self.rate_before, max(0.0, now - self.cut_at))
        least = max(self.rate_before * CUT, LEAST_RATE / law.window)
        return min(max(grown, least), law.rate)

    def next_pause(self, *, served: bool) -> float:
        """Give the seconds to pause after a refusal: few at first, and more where nothing was served since the last."""
        return FIRST_PAUSE if served or not self.pause else min(self.pause * 2, LONGEST_PAUSE)

    def cut(self, now: float, law: Law, pause: float) -> Self:
        """Cut the rate, and close the gate for so many seconds."""
        return evolve(
            self,
            cuts=self.cuts + 1,
            cut_at=now,
            rate_before=self.rate(now, law),
            pause=pause or self.pause,
            closed_until=max(self.closed_until, now + pause),
        )

    def closed(self, until: float) -> Self:
        """Keep the gate closed until then at least."""
        return evolve(self, closed_until=max(self.closed_until, until))

    def remembering(self, earlier: Self) -> Self:
        """Take over what a Redis that lost its memory no longer knows."""
        cut = earlier.cut_at is not None and (self.cut_at is None or self.cut_at < earlier.cut_at)
        known = (
            evolve(self, cut_at=earlier.cut_at, rate_before=earlier.rate_before, pause=earlier.pause) if cut else self
        )
        return evolve(
            known,
            cuts=max(self.cuts, earlier.cuts),
            closed_until=max(self.closed_until, earlier.closed_until),
            requests=earlier.requests if self.requests is None else self.requests,
        )

    def forgot(self, earlier: Self) -> bool:
        """Tell whether Redis lost its memory since it told the earlier state."""
        return self.epoch != earlier.epoch or self.cuts < earlier.cuts
