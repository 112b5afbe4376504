"""What one client knows of the shared state, and what it has to tell of it (pure).

Times are of the client's own monotonic clock. Where that stands to Redis' clock is measured with every answer, so that
neither a client's wall clock nor the distance between two clocks plays a part.
"""

from attrs import define, evolve, field, frozen

from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.redis_rate_limit.law import Law
from signalwire_streams.redis_rate_limit.state import State

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
