"""When to stop asking a Space that keeps failing."""

from collections import deque

from attrs import define, field, frozen

from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.middleware._logs import log_breaker_closed, log_breaker_opened
from signalwire_streams.middleware._policies import CircuitBreakerPolicy
from signalwire_streams.models import AttemptResult

_FAILED = frozenset(
    {
        AttemptResult.NOT_SENT,
        AttemptResult.NO_RESPONSE,
        AttemptResult.MALFORMED,
        AttemptResult.SERVER_FAULT,
        AttemptResult.UNAVAILABLE,
    }
)
_SERVED = frozenset(
    {
        AttemptResult.DONE,
        AttemptResult.ACCEPTED,
        AttemptResult.REJECTED,
        AttemptResult.FORBIDDEN,
        AttemptResult.DUPLICATE_NAME,
        AttemptResult.NOT_FOUND,
        AttemptResult.ALREADY_STOPPED,
    }
)
_NOT_TRIED = frozenset(
    {
        AttemptResult.DEADLINE_EXCEEDED,
        AttemptResult.BREAKER_OPEN,
        AttemptResult.STALE_CONNECTION,
        AttemptResult.UNRETRYABLE,
    }
)
_STEPS = 30


@define(eq=False)
class CircuitBreaker:
    """A circuit breaker: closed, then open for a pause, then one probe decides. No clock of its own.

    A refusal for good (most of 4xx) is the Space at work, and counts for it: else a run over conferences that are
    gone, all of them 404, would end in a pause at the twentieth hiccup. "Too many requests" counts neither way.
    """

    policy: CircuitBreakerPolicy
    _seen: deque["_Step"] = field(init=False, factory=deque)
    _open_until: float | None = field(init=False, default=None)
    _probing: bool = field(init=False, default=False)

    @property
    def is_open(self) -> bool:
        """Whether requests are held back until a probe succeeds."""
        return self._open_until is not None

    def allow(self, now: float) -> "Permit":
        """Ask whether a request may go."""
        if self._open_until is None:
            return _FREELY
        if now < self._open_until:
            return Permit(wait=self._open_until - now)
        if self._probing:
            return Permit(wait=self.policy.open_duration)
        self._probing = True
        return _AS_PROBE

    def release(self, admission: "Permit") -> None:
        """Note that an admitted request ended without an outcome; was it the probe, a later one may be it."""
        if admission.is_probe:
            self._probing = False

    def record(self, admission: "Permit", event: AttemptResult, now: float) -> None:
        """Note how an admitted request ended."""
        failed = event in _FAILED
        if admission.is_probe:
            self._probing = False
            if event not in _NOT_TRIED:
                self._open_until = now + self.policy.open_duration if failed else None
        elif self._open_until is None and (failed or event in _SERVED):
            self._count(now, failed=failed)

    def _count(self, now: float, *, failed: bool) -> None:
        seen = self._seen
        if not seen or now - seen[-1].since >= self.policy.window / _STEPS:
            seen.append(_Step(now))
            while now - seen[0].since > self.policy.window:
                seen.popleft()
        seen[-1].outcomes += 1
        if not failed:
            return
        seen[-1].failures += 1
        outcomes, failures = sum(step.outcomes for step in seen), sum(step.failures for step in seen)
        if outcomes >= self.policy.min_requests and failures >= outcomes * self.policy.failure_rate:
            self._open_until = now + self.policy.open_duration
            seen.clear()


@frozen
class Permit:
    """The breaker's leave for one request.

    Attributes:
        wait: 0 when the request may go, else the seconds after which to ask again.
        is_probe: whether it is the one that decides after a pause.
    """

    wait: float = 0.0
    is_probe: bool = False


_FREELY = Permit()
_AS_PROBE = Permit(is_probe=True)


@define(eq=False)
class _Step:
    since: float
    outcomes: int = 0
    failures: int = 0


@define(eq=False)
class CircuitBreakerMiddleware:
    """Lets an exchange through unless the breaker is open."""

    breaker: CircuitBreaker
    clock: Clock

    async def __call__(self, exchange: Request, send: Handler) -> Result:
        """Send, or answer at once that it is not tried."""
        admission = self.breaker.allow(self.clock.now())
        if admission.wait:
            exchange.state.phase = Phase.QUEUED
            return Result(attempt_result=AttemptResult.BREAKER_OPEN, phase=Phase.QUEUED, retry_after=admission.wait)
        try:
            outcome = await send(exchange)
        except BaseException:  # a probe that was cancelled must not keep the breaker waiting for it for ever
            self.breaker.release(admission)
            raise
        was_open = self.breaker.is_open
        self.breaker.record(admission, outcome.attempt_result, self.clock.now())
        if self.breaker.is_open and not was_open:
            log_breaker_opened(self.breaker.policy, exchange, outcome)
        elif was_open and not self.breaker.is_open:
            log_breaker_closed()
        return outcome
