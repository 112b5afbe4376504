"""Circuit breaker: stops sending requests to a Space that keeps failing."""

import logging
from collections import deque

from attrs import frozen

from signalwire_streams._http.error_mapping import describe_result
from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.middleware._policies import CircuitBreakerPolicy
from signalwire_streams.middleware._retry import SERVED, describe_call, log_fields
from signalwire_streams.models import AttemptResult

_LOG = logging.getLogger("signalwire_streams.circuit_breaker")

_FAILED = frozenset(
    {
        AttemptResult.NOT_SENT,
        AttemptResult.NO_RESPONSE,
        AttemptResult.MALFORMED,
        AttemptResult.SERVER_FAULT,
        AttemptResult.UNAVAILABLE,
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


@frozen
class Permit:
    """A request may be sent if ``wait`` is 0, or else in that many seconds."""

    wait: float = 0.0
    is_probe: bool = False


_ALLOWED, _PROBE = Permit(), Permit(is_probe=True)


class _Step:
    def __init__(self, since: float) -> None:
        self.since = since
        self.requests = self.failures = 0


class CircuitBreaker:
    """Closed, then open for a while, then one probe decides. It does no I/O and has no clock.

    A permanent rejection (most 4xx) shows that the Space is working and counts as a success. Otherwise, in a run over
    conferences that no longer exist (all 404), twenty transient failures would open the breaker. "Too many requests"
    does not count.
    """

    def __init__(self, policy: CircuitBreakerPolicy) -> None:
        self.policy = policy
        self._steps: deque[_Step] = deque()
        self._open_until: float | None = None
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    def state(self, now: float) -> str:
        """Return ``closed``, ``open``, or ``half_open`` if the next request is, or was, the probe."""
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def allow(self, now: float) -> Permit:
        if self._open_until is None:
            return _ALLOWED
        if now < self._open_until:
            return Permit(wait=self._open_until - now)
        if self._is_probing:
            return Permit(wait=self.policy.open_duration)
        self._is_probing = True
        return _PROBE

    def release(self, permit: Permit) -> None:
        """Return the permit of a request that ended without a result; if it was the probe, another one may follow."""
        if permit.is_probe:
            self._is_probing = False

    def record(self, permit: Permit, result: AttemptResult, now: float) -> bool:
        """Record a result. Return True if the breaker has opened or closed with it."""
        failed, was_open = result in _FAILED, self._open_until is not None
        if permit.is_probe:
            self._is_probing = False
            if result not in _NOT_TRIED:
                self._open_until = now + self.policy.open_duration if failed else None
        elif self._open_until is None and (failed or result in SERVED):
            self._count(now, failed=failed)
        return (self._open_until is not None) is not was_open

    def _count(self, now: float, *, failed: bool) -> None:
        steps = self._steps
        if not steps or now - steps[-1].since >= self.policy.window / _STEPS:
            steps.append(_Step(now))
            while now - steps[0].since > self.policy.window:
                steps.popleft()
        steps[-1].requests += 1
        if not failed:
            return
        steps[-1].failures += 1
        requests, failures = sum(step.requests for step in steps), sum(step.failures for step in steps)
        if requests >= self.policy.min_requests and failures >= requests * self.policy.failure_rate:
            self._open_until = now + self.policy.open_duration
            steps.clear()


class CircuitBreakerMiddleware:
    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self._breaker = breaker
        self._clock = clock

    async def __call__(self, request: Request, send: Handler) -> Result:
        breaker = self._breaker
        permit = breaker.allow(self._clock.now())
        if permit.wait:
            request.state.phase = Phase.QUEUED
            return Result(attempt_result=AttemptResult.BREAKER_OPEN, phase=Phase.QUEUED, retry_after=permit.wait)
        try:
            result = await send(request)
        except BaseException:  # a probe that is cancelled must not keep the breaker waiting forever
            breaker.release(permit)
            raise
        if not breaker.record(permit, result.attempt_result, self._clock.now()):
            return result
        if breaker.is_open:
            _LOG.warning(
                "circuit breaker opened: at least %g %% of the last requests failed, most recently %s: %s; "
                "no requests for %g s, then one probe",
                breaker.policy.failure_rate * 100,
                describe_call(request),
                describe_result(request, result),
                breaker.policy.open_duration,
                extra=log_fields(request, request.state.attempts),
            )
        else:
            _LOG.info("circuit breaker closed: the probe succeeded")
        return result
