"""Log lines about requests. No line holds a token, a parameter value or a part of a response body.

Loggers:
    ``signalwire_streams.retry``: DEBUG for each attempt that is followed by another one.
    ``signalwire_streams.outcome``: WARNING for a start whose outcome is unknown or ambiguous. A bulk run logs at most
        one of these per minute at WARNING and the others at DEBUG, because each `BulkOutcome` reports its own.
    ``signalwire_streams.circuit_breaker``: WARNING when the circuit breaker opens, INFO when it closes again.
    ``signalwire_streams.rate_limit``: WARNING when a 429 pauses all requests, once per pause.
"""

import logging

from attrs import define, field

from signalwire_streams._http.error_bodies import redact
from signalwire_streams._http.messages import Request, Result
from signalwire_streams.middleware._policies import CircuitBreakerPolicy
from signalwire_streams.models import AttemptResult, Priority, RetryDecision

RETRY_LOG = logging.getLogger("signalwire_streams.retry")
OUTCOME_LOG = logging.getLogger("signalwire_streams.outcome")
BREAKER_LOG = logging.getLogger("signalwire_streams.circuit_breaker")
RATE_LIMIT_LOG = logging.getLogger("signalwire_streams.rate_limit")

_BULK_INTERVAL = 60.0
"""Seconds between two WARNINGs about the outcomes of bulk starts."""


def log_retry(exchange: Request, outcome: Result, number: int, action: RetryDecision, wait: float) -> None:
    """Log an attempt that is followed by another one."""
    if not RETRY_LOG.isEnabledFor(logging.DEBUG):
        return
    RETRY_LOG.debug(
        "%s: attempt %d: %s; %s, next attempt in %.2f s",
        _call(exchange),
        number,
        _what_happened(exchange, outcome),
        action.description,
        wait,
    )


@define(eq=False)
class OutcomeLog:
    """Logs the starts of one client whose outcome is unknown or ambiguous."""

    _bulk_warning_at: float = field(init=False, default=float("-inf"))
    _unreported: int = field(init=False, default=0)

    def unknown(self, exchange: Request, outcome: Result, now: float) -> None:
        """Log a start that may have been carried out."""
        lost = outcome.attempt_result is AttemptResult.ACCEPTED
        state = "the stream runs, but its sid is lost" if lost else "the stream may be running"
        level, suffix = self._level(exchange.priority, now)
        if OUTCOME_LOG.isEnabledFor(level):
            happened = _what_happened(exchange, outcome)
            OUTCOME_LOG.log(level, "%s: outcome unknown, %s: %s%s", _call(exchange), state, happened, suffix)

    def ambiguous(self, exchange: Request, action: RetryDecision, now: float) -> None:
        """Log a start that succeeded after an attempt that may have been carried out."""
        state = "already running" if action is RetryDecision.ALREADY_STARTED else "started"
        level, suffix = self._level(exchange.priority, now)
        if OUTCOME_LOG.isEnabledFor(level):
            OUTCOME_LOG.log(
                level,
                "%s: %s, ambiguous because an earlier attempt may have started it: stop it by its name%s",
                _call(exchange),
                state,
                suffix,
            )

    def _level(self, lane: Priority, now: float) -> tuple[int, str]:
        if lane is Priority.INTERACTIVE:
            return logging.WARNING, ""
        if now - self._bulk_warning_at < _BULK_INTERVAL:
            self._unreported += 1
            return logging.DEBUG, ""
        suffix = f" ({self._unreported:,} more since the last warning)" if self._unreported else ""
        self._bulk_warning_at, self._unreported = now, 0
        return logging.WARNING, suffix


def log_breaker_opened(policy: CircuitBreakerPolicy, exchange: Request, outcome: Result) -> None:
    """Log that the circuit breaker opened."""
    BREAKER_LOG.warning(
        "circuit breaker opened: at least %g %% of the last requests failed, at last %s: %s; no requests for %g s, "
        "then one probe",
        policy.failure_rate * 100,
        _call(exchange),
        _what_happened(exchange, outcome),
        policy.open_duration,
    )


def log_breaker_closed() -> None:
    """Log that the circuit breaker closed."""
    BREAKER_LOG.info("circuit breaker closed: the probe was answered")


def log_pause(seconds: float) -> None:
    """Log that a 429 pauses all requests."""
    RATE_LIMIT_LOG.warning("too many requests (429): all requests pause for %.1f s", seconds)


def _call(exchange: Request) -> str:
    name = f" (name {exchange.name!r})" if exchange.operation.is_start and exchange.name is not None else ""
    return f"{exchange.description} {exchange.target}{name}"


def _what_happened(exchange: Request, outcome: Result) -> str:
    reply, event = outcome.response, outcome.attempt_result.description
    if reply is None:
        detail = redact(outcome.detail, exchange.redact)
        return f"{event} ({detail})" if detail else event
    code = reply.problem.code if reply.problem is not None else None
    return f"{event} (HTTP {reply.status}" + (f", code {code})" if code is not None else ")")
