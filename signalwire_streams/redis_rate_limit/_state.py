"""What one client knows of the shared state, and what it has to tell of it (pure).

Times are of the client's own monotonic clock. Where that stands to Redis' clock is measured with every answer, so that
neither a client's wall clock nor the distance between two clocks plays a part.
"""

import json
import logging
from secrets import token_hex
from typing import Self

from attrs import asdict, define, evolve, field, frozen

from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.middleware._rate_limit import (
    BURST_SHARE,
    CUT,
    FIRST_PAUSE,
    LEAST_RATE,
    LONGEST_PAUSE,
    TokenBucket,
    recovered_rate,
)

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
        most = limit.max_requests
        if requests is not None and requests < limit.requests:
            most = max(1, int(requests * limit.utilization))
        burst = min(limit.burst or max(1, round(most * BURST_SHARE)), most)
        age = limit.window / _AGES_PER_WINDOW
        rate = max((most - 2 * burst) / (limit.window + age), LEAST_RATE / limit.window)
        return cls(limit.window, burst, max(1, burst - burst // _RESERVED), age, rate)

    def part(self, rate: float, clients: int) -> RateLimit:
        """Give the limit that one of so many clients keeps to on its own, so that all of them go at that rate."""
        burst = max(1, self.burst // clients)
        requests = max(1, int(rate / clients * self.window)) + burst
        return RateLimit(requests=requests, window=self.window, utilization=1.0, burst=burst)


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


_NEVER = float("-inf")


@frozen(kw_only=True)
class News:
    """What a client has to tell the others.

    Attributes:
        refused_after: how many cuts it knew of when the Space refused a request; None when it did not.
        pause: seconds to pause after that refusal; 0 where the Space itself said how long.
        asked_until: until when the Space asked to be left alone.
        advertised: the limit that the Space told.
        lost: what Redis knew before it lost its memory.
    """

    refused_after: int | None = None
    pause: float = 0.0
    asked_until: float | None = None
    advertised: int | None = None
    lost: State | None = None

    def told_to(self, state: State, redis_now: float, now: float, law: Law) -> State:
        """Give the state as it is once it was told.

        Args:
            state: as Redis has it.
            redis_now: the time there.
            now: the same moment on the client's clock.
            law: the numbers to keep to.
        """
        if self.lost is not None:
            state = state.remembering(self.lost)
        if self.refused_after == state.cuts:
            state = state.cut(redis_now, law, self.pause)
        if self.asked_until is not None:
            state = state.closed(redis_now + self.asked_until - now)
        return state if self.advertised is None else evolve(state, requests=self.advertised)


_NOTHING = News()


@define(eq=False)
class View:
    """The shared state as this client knows it.

    Attributes:
        limit: the limit as it was configured.
        law: the numbers that follow from it, and from what the Space told.
        heard_at: when Redis told the state the last time.
        news: what is to be told.
    """

    limit: RateLimit
    law: Law = field(init=False)
    heard_at: float = field(init=False, default=_NEVER)
    news: News = field(init=False, default=_NOTHING)
    _state: State | None = field(init=False, default=None)
    _redis_is_ahead: float = field(init=False, default=0.0)
    _closed_until: float = field(init=False, default=_NEVER)
    _cut_seen_at: float = field(init=False, default=_NEVER)
    _served: bool = field(init=False, default=True)

    def __attrs_post_init__(self) -> None:
        self.law = Law.of(self.limit, None)

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""
        return self.news != _NOTHING

    def told(self, news: News) -> None:
        """Note that it was told; what came up meanwhile is told the next time."""
        if self.news is news:
            self.news = _NOTHING

    def gate_wait(self, now: float) -> float:
        """Seconds until the gate is open; 0 when it is."""
        shared = self._state.closed_until - self._redis_is_ahead if self._state else _NEVER
        return max(0.0, shared - now, self._closed_until - now)

    def rate(self, now: float) -> float:
        """Requests per second that go out now, of all clients together."""
        return self._state.rate(now + self._redis_is_ahead, self.law) if self._state else self.law.rate

    def hear(self, state: State, redis_now: float, now: float) -> None:
        """Take in what Redis told, and note what it no longer knows."""
        known = self._state or State(epoch=state.epoch)
        if state.forgot(known):
            self.news = evolve(self.news, lost=known)
            self._closed_until = max(self._closed_until, known.closed_until - self._redis_is_ahead)
        if state.cuts > known.cuts:
            self._cut_seen_at = now
            self._served = False
        if state.requests != known.requests:
            self.law = Law.of(self.limit, state.requests)
        self._state = state
        self._redis_is_ahead = redis_now - now
        self.heard_at = now

    def throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Note that the Space refused a request that was sent at that time; the gate is closed here from now on."""
        if sent_at > self._cut_seen_at:
            state = self._state or State()
            pause = state.next_pause(served=self._served) if retry_after is None else 0.0
            self.news = evolve(self.news, refused_after=state.cuts, pause=pause)
            self._cut_seen_at = now
            self._served = False
            self._closed_until = max(self._closed_until, now + pause)
        if retry_after is not None:
            self._closed_until = max(self._closed_until, now + retry_after)
            self.news = evolve(self.news, asked_until=self._closed_until)

    def served(self, advertised: int | None) -> None:
        """Note that the Space took a request, and the limit that it told, if any."""
        self._served = True
        known = self._state.requests if self._state else None
        if advertised is not None and advertised != (known or self.limit.requests):
            self.news = evolve(self.news, advertised=advertised)


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
    _pace: TokenBucket | None = field(init=False, default=None)
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
        return self._pace.try_acquire(now) if self._pace is not None else 0.0

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
        while taken < tokens and not (wait := self._pace.try_acquire(now)):
            taken += 1
        return taken, wait

    def give_back(self, tokens: int) -> None:
        """Return tokens of this client's own part that were not leased after all."""
        if self._pace is not None:
            for _ in range(tokens):
                self._pace.refund()

    def throttled(self, now: float, sent_at: float, retry_after: float | None) -> None:
        """Note that the Space refused a request: this client's own part gets smaller as well."""
        if self._pace is not None:
            self._pace.on_throttled(now, sent_at, retry_after)


def _empty_pace(view: View, clients: int, now: float) -> TokenBucket:
    pace = TokenBucket(view.law.part(view.rate(now), clients))
    # What went out through Redis a moment ago counts, so nobody begins with a burst.
    while not pace.try_acquire(now):
        pass
    return pace
