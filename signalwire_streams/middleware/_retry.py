"""Retries: which attempts may be repeated, when, and the result of the call. The decisions do no I/O."""

import logging
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from functools import cache

from attrs import define, evolve, field, frozen

from signalwire_streams._http.error_mapping import describe_result, describe_unknown
from signalwire_streams._http.messages import CallState, Handler, Request, Result, create_result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase, Sent
from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.models import Attempt, AttemptResult, Operation, Priority, RetryDecision
from signalwire_streams.models._fast import fast_constructor

_RETRY_LOG = logging.getLogger("signalwire_streams.retry")
_OUTCOME_LOG = logging.getLogger("signalwire_streams.outcome")

_Row = tuple[RetryDecision, RetryDecision, RetryDecision]


def _always(decision: RetryDecision) -> _Row:
    return decision, decision, decision


_STOPS = frozenset(operation for operation in Operation if operation.is_stop)
REJECTED_STOPS: Mapping[AttemptResult, frozenset[Operation]] = {
    AttemptResult.TARGET_ENDED: _STOPS,
    # The sid of an ambiguous start may be that of a second stream that was rejected, while the first one runs.
    AttemptResult.ALREADY_STOPPED: _STOPS - {Operation.STOP_AMBIGUOUS},
    # The Space returned this sid from a start, so if it no longer knows the stream, the stream has ended. A string from
    # a caller may be misspelled, and a Space may not find streams by name.
    AttemptResult.NOT_FOUND: frozenset({Operation.STOP_RETURNED}),
}
"""Rejections of a stop or an end that count as success, because the stream, call or conference has ended."""

_REJECTIONS = frozenset(
    {
        AttemptResult.REJECTED,
        AttemptResult.UNREADABLE_REJECTION,
        AttemptResult.FORBIDDEN,
        AttemptResult.DUPLICATE_NAME,
        AttemptResult.NOT_FOUND,
        AttemptResult.ALREADY_STOPPED,
        AttemptResult.TARGET_ENDED,
    }
)
_DENIALS = frozenset({AttemptResult.REJECTED, AttemptResult.NOT_FOUND})
SERVED = _REJECTIONS | {AttemptResult.DONE, AttemptResult.ACCEPTED}
"""Responses that show that the Space is working: it executed the request or rejected it permanently."""
REJECTED_FOR_NOW = frozenset({AttemptResult.TRY_AGAIN, AttemptResult.UNAVAILABLE, AttemptResult.THROTTLED})
"""The Space rejects it for now and asks to come back.

A gateway may respond like this although the Space has accepted the request.
"""

#                           idempotent     named start       unnamed start
_MAY_HAVE_HAPPENED: _Row = (RetryDecision.RETRY, RetryDecision.RESEND, RetryDecision.UNKNOWN)

RULES: Mapping[AttemptResult, _Row] = {
    AttemptResult.DONE: _always(RetryDecision.SUCCEED),
    # The Space never saw it.
    AttemptResult.NOT_SENT: _always(RetryDecision.RETRY_UNSENT),
    AttemptResult.STALE_CONNECTION: (
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY_ONCE,
    ),
    AttemptResult.UNRETRYABLE: _always(RetryDecision.FAIL),
    AttemptResult.DEADLINE_EXCEEDED: _always(RetryDecision.FAIL),
    AttemptResult.BREAKER_OPEN: _always(RetryDecision.FAIL),
    # The Space may have carried it out.
    AttemptResult.NO_RESPONSE: _MAY_HAVE_HAPPENED,
    AttemptResult.MALFORMED: _MAY_HAVE_HAPPENED,
    AttemptResult.SERVER_FAULT: _MAY_HAVE_HAPPENED,
    # The same, but another attempt would fail in the same way.
    AttemptResult.SESSION_FAILED: (RetryDecision.FAIL, RetryDecision.UNKNOWN, RetryDecision.UNKNOWN),
    # The Space did carry it out.
    AttemptResult.ACCEPTED: (RetryDecision.RETRY, RetryDecision.SUCCEED_WITHOUT_SID, RetryDecision.UNKNOWN),
    # The Space rejected it permanently.
    AttemptResult.REDIRECTED: _always(RetryDecision.FAIL),
    **dict.fromkeys(_REJECTIONS, _always(RetryDecision.FAIL)),
    # The Space rejected it for now.
    AttemptResult.TRY_AGAIN: _always(RetryDecision.RETRY),
    AttemptResult.UNAVAILABLE: _always(RetryDecision.RETRY),
    AttemptResult.THROTTLED: _always(RetryDecision.WAIT_FOR_RATE_LIMIT),  # 429
}
_RULES_AFTER_AMBIGUOUS: Mapping[AttemptResult, _Row] = {
    **RULES,
    # It was carried out.
    AttemptResult.DUPLICATE_NAME: _always(RetryDecision.ALREADY_STARTED),
    # What can't be read may be the rejection of a duplicate, or of a stream that has ended.
    AttemptResult.UNREADABLE_REJECTION: _MAY_HAVE_HAPPENED,
}
"""The rules once an earlier attempt of the call may have been carried out."""

_UNSENT = frozenset({RetryDecision.RETRY_UNSENT, RetryDecision.RETRY_IMMEDIATELY, RetryDecision.RETRY_IMMEDIATELY_ONCE})
_RETRIES = _UNSENT | {RetryDecision.RETRY, RetryDecision.RESEND, RetryDecision.WAIT_FOR_RATE_LIMIT}
SUCCESSES = frozenset(
    {
        RetryDecision.SUCCEED,
        RetryDecision.ALREADY_STARTED,
        RetryDecision.ALREADY_STOPPED,
        RetryDecision.SUCCEED_WITHOUT_SID,
    }
)
_MAX_DOUBLINGS = 32
_LEAST_TIME = 0.1
"""Seconds that a retry must have until the deadline: with less, what is known now would become an unknown outcome."""

BUDGET = 500
COST_TRANSIENT = 14
COST_UNEXECUTED = 5
"""The cost of a retry after an attempt that certainly was not carried out: throttled, or not sent."""
REWARD = 1  # added to the budget by a success without a retry


@cache
def rule_for(operation: Operation, result: AttemptResult, *, ambiguous_before: bool) -> RetryDecision:
    """Look up the decision for a result; *ambiguous_before* if an earlier attempt may have been carried out."""
    if operation in REJECTED_STOPS.get(result, ()):
        return RetryDecision.ALREADY_STOPPED
    # A call or conference that the Space no longer knows was ended by that attempt, or by somebody else.
    if operation is Operation.END and result is AttemptResult.NOT_FOUND and ambiguous_before:
        return RetryDecision.ALREADY_STOPPED
    idempotent, named_start, unnamed_start = _row(result, ambiguous_before=ambiguous_before)
    if operation is Operation.UNNAMED_START:
        return unnamed_start
    return named_start if operation.is_start else idempotent


def _row(result: AttemptResult, *, ambiguous_before: bool) -> _Row:
    return (_RULES_AFTER_AMBIGUOUS if ambiguous_before else RULES)[result]


def full_jitter(initial: float, most: float, retries: int, random: Callable[[], float]) -> float:
    return float(random() * min(most, initial * 2 ** min(retries, _MAX_DOUBLINGS)))


def at_least(asked: float, jitter: float) -> float:
    """Return a wait that is never shorter than *asked*, and a little longer so that not all clients return at once.

    The jitter is at most a tenth of *asked*, or 50 ms if that is more. If *asked* is 0, the wait is the jitter alone.
    """
    return asked + min(jitter, max(asked * 0.1, 0.05)) if asked else jitter


class RetryBudget:
    """Prevents retry storms: in a full outage it runs dry, and the calls of a client fail after their first attempt.

    While the Space serves requests, a call gets back what its retries cost.
    """

    def __init__(self, tokens: int = BUDGET) -> None:
        self.tokens = tokens

    def spend(self, cost: int) -> bool:
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def refund(self, tokens: int) -> None:
        self.tokens = min(BUDGET, self.tokens + tokens)


@frozen
class Decision:
    """Another attempt after ``delay`` seconds, or the end of the call."""

    action: RetryDecision
    delay: float = 0.0
    is_final: bool = field(init=False)

    @is_final.default
    def _is_final(self) -> bool:
        return self.action not in _RETRIES


_ENDS = {action: Decision(action) for action in RetryDecision if action not in _RETRIES}


@define(eq=False)
class RetryState:
    """The memory and the decisions of one call. Time and randomness are passed in."""

    policy: RetryPolicy
    operation: Operation
    budget: RetryBudget
    random: Callable[[], float]
    deadline_at: float
    ambiguous_since: float | None = None  # when an attempt was first made that may have been carried out
    has_unique_name: bool = False
    was_rejected_for_now: bool = False  # in this call, or before it
    _accepted: bool = False
    _retries: dict[RetryDecision, int] = field(factory=dict)
    _spent: int = 0

    @property
    def ambiguous(self) -> bool:
        return self.ambiguous_since is not None

    def decide(self, result: AttemptResult, now: float, retry_after: float | None = None) -> Decision:
        """Return what follows an attempt with this result, if the Space asked to wait *retry_after* seconds."""
        # Only an earlier attempt of this start can have used a unique name, even one that was rejected for now.
        is_repeated = self.ambiguous_since is not None or (self.has_unique_name and self.was_rejected_for_now)
        action = rule_for(self.operation, result, ambiguous_before=is_repeated)
        if action in SUCCESSES:
            self.budget.refund(self._spent or REWARD)
            return _ENDS[action]
        self._accepted |= result is AttemptResult.ACCEPTED
        self.was_rejected_for_now |= result in REJECTED_FOR_NOW
        may_have_happened = _row(result, ambiguous_before=is_repeated)[-1] is RetryDecision.UNKNOWN
        if may_have_happened and self.ambiguous_since is None:
            self.ambiguous_since = now
        is_on_call = self.operation is Operation.CALL_START
        if action is RetryDecision.RESEND and is_on_call and not self.policy.resend_call_starts:
            return _ENDS[RetryDecision.UNKNOWN]
        if action not in _RETRIES:
            if result in SERVED:
                self.budget.refund(self._spent)
            return _ENDS[self._end(action, result)]
        delay = self._delay(action, retry_after)
        if not self._is_allowed(action, now, delay, retry_after):
            return _ENDS[self._end(RetryDecision.FAIL, result)]
        self._retries[action] = self._retries.get(action, 0) + 1
        return Decision(action, delay)

    def _end(self, action: RetryDecision, result: AttemptResult) -> RetryDecision:
        """Escalate FAIL to UNKNOWN if an earlier attempt may have succeeded."""
        # A 2xx that identifies nothing may be another request's, so a rejection of this one takes precedence.
        if self._accepted and self.operation.is_stop and result not in _DENIALS:
            return RetryDecision.ALREADY_STOPPED
        if action is RetryDecision.FAIL and self.ambiguous and self.operation.is_start:
            return RetryDecision.UNKNOWN
        return action

    def _delay(self, action: RetryDecision, retry_after: float | None) -> float:
        policy = self.policy
        if action in {RetryDecision.RETRY_IMMEDIATELY, RetryDecision.RETRY_IMMEDIATELY_ONCE}:
            return 0.0
        initial, most = policy.wait_initial, policy.wait_max
        if action is RetryDecision.WAIT_FOR_RATE_LIMIT:
            initial, most = policy.throttle_wait_initial, policy.throttle_wait_max
        return at_least(retry_after or 0.0, full_jitter(initial, most, self._count(action), self.random))

    def _is_allowed(self, action: RetryDecision, now: float, delay: float, retry_after: float | None) -> bool:
        policy = self.policy
        if (retry_after or 0.0) > policy.max_retry_after or now + delay + _LEAST_TIME >= self.deadline_at:
            return False
        if self.ambiguous_since is not None and self.operation.is_start:
            is_late = now + delay - self.ambiguous_since > policy.resend_window
            if is_late or self._count(RetryDecision.RESEND) >= policy.max_resends:
                return False
        cost = COST_UNEXECUTED
        if action is RetryDecision.WAIT_FOR_RATE_LIMIT:
            is_within = self._count(action) < policy.max_throttle_retries
        elif action is RetryDecision.RETRY_IMMEDIATELY_ONCE:
            is_within = self._count(action) < 1
        elif action in _UNSENT:
            is_within = self._count(*_UNSENT) < policy.max_connect_retries
        else:
            is_within = self._count(RetryDecision.RETRY, RetryDecision.RESEND) < policy.max_attempts - 1
            cost = COST_TRANSIENT
        if not (is_within and self.budget.spend(cost)):
            return False
        self._spent += cost
        return True

    def _count(self, *actions: RetryDecision) -> int:
        return sum(self._retries.get(action, 0) for action in actions)


# Looked up once: Python 3.11 looks up each member of an enum in Python.
_QUEUED, _DEADLINE_EXCEEDED = Phase.QUEUED, AttemptResult.DEADLINE_EXCEEDED
_ALREADY_STARTED, _FAIL, _UNKNOWN = RetryDecision.ALREADY_STARTED, RetryDecision.FAIL, RetryDecision.UNKNOWN

_STARTED = frozenset({AttemptResult.DONE, AttemptResult.ACCEPTED})
_create_attempt = fast_constructor(Attempt)
_ONE_ATTEMPT = RetryPolicy(max_attempts=1, max_connect_retries=0, max_throttle_retries=0, max_resends=0)

OnAttempt = Callable[[Attempt], object]
"""Called with each attempt as it ends."""


class RetryMiddleware:
    def __init__(
        self, policy: RetryPolicy, budget: RetryBudget, clock: Clock, on_attempt: OnAttempt | None = None
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._clock = clock
        self.on_attempt = on_attempt
        self._outcome_log = OutcomeLog()

    async def __call__(self, request: Request, send: Handler) -> Result:
        state = request.state
        try:
            return await self._send(request, send)
        except CancelledError:
            if request.operation.is_start and (state.may_have_succeeded or state.record_attempt() != "no"):
                self._outcome_log.record(request, _cancelled(state), self._clock.now())
            raise

    async def watch(self, request: Request, send: Handler) -> Result:
        """Log a start that succeeded and whose result a middleware of the caller's lost, since it raised afterwards."""
        try:
            return await send(request)
        except BaseException as error:
            if request.operation.is_start and request.state.result in _STARTED:
                lost = evolve(_cancelled(request.state), detail=f"a middleware raised {type(error).__name__}")
                self._outcome_log.record(request, lost, self._clock.now())
            raise

    async def _send(self, request: Request, send: Handler) -> Result:
        now, state = self._clock.now, request.state
        policy = _ONE_ATTEMPT if state.is_sent_once else self._policy
        state.target, state.name = request.target, request.name
        deadline = policy.deadline if request.deadline is None else request.deadline
        # A call may take a second request; its deadline is that of the first.
        state.deadline_at = min(state.deadline_at, now() + deadline)
        retry = RetryState(
            policy=policy,
            operation=request.operation,
            budget=self._budget,
            random=self._clock.random,
            deadline_at=state.deadline_at,
            ambiguous_since=now() if state.may_have_succeeded else None,
            has_unique_name=request.has_unique_name,
            was_rejected_for_now=state.was_rejected_for_now,
        )
        ambiguous_phase = _QUEUED
        last: Result | None = None
        number = state.attempts
        while True:
            number += 1
            started_at = now()
            state.acquired_at = None
            try:
                result = await send(request)
            except CancelledError:
                sent = state.record_attempt()
                self._report(request, _cancelled(state), number, started_at, _ENDS[_FAIL], sent=sent)
                raise
            attempted = result
            if result.attempt_result is _DEADLINE_EXCEEDED and last is not None:
                # The Space's last response says more than that there was no time for another attempt.
                result = evolve(
                    last,
                    attempt_result=_DEADLINE_EXCEEDED,
                    retry_after=result.retry_after or last.retry_after,
                )
            last = result
            state.result = result.attempt_result
            ambiguous_before = retry.ambiguous_since is not None
            decision = retry.decide(result.attempt_result, now(), result.retry_after)
            is_ambiguous = retry.ambiguous_since is not None
            ambiguous_before |= decision.action is _ALREADY_STARTED
            sent = state.record_attempt()
            if self.on_attempt is not None or not decision.is_final:
                self._report(request, attempted, number, started_at, decision, sent=sent)
            if result.attempt_result in REJECTED_FOR_NOW:
                state.rejections |= {result.attempt_result}
                state.was_rejected_for_now = True
            state.may_have_succeeded |= is_ambiguous
            if is_ambiguous and not ambiguous_before:
                ambiguous_phase = result.phase
            if decision.is_final:
                break
            state.phase = _QUEUED
            if decision.delay:
                await self._clock.sleep(decision.delay)
        if decision.action is _FAIL:
            state.phase = _QUEUED  # nothing is in flight, whatever the caller waits for next
        phase = ambiguous_phase if decision.action is _UNKNOWN else result.phase
        ambiguous = ambiguous_before or result.ambiguous
        result = create_result(
            attempt_result=result.attempt_result,
            phase=phase,
            response=result.response,
            detail=result.detail,
            retry_after=result.retry_after,
            decision=decision.action,
            attempts=number - (attempted.phase is _QUEUED),  # one that was not made does not count
            ambiguous=ambiguous,
            sent=state.sent,
            cause=result.cause,
        )
        self._outcome_log.record(request, result, now())
        return result

    def _report(
        self, request: Request, result: Result, number: int, started_at: float, decision: Decision, *, sent: Sent
    ) -> None:
        if not decision.is_final and _RETRY_LOG.isEnabledFor(logging.DEBUG):
            _RETRY_LOG.debug(
                "%s: attempt %d: %s; %s, next attempt in %.2f s",
                describe_call(request),
                number,
                describe_result(request, result),
                decision.action.description,
                decision.delay,
                extra=log_fields(request, number),
            )
        if self.on_attempt is None:
            return
        response, now = result.response, self._clock.now()
        problem = response.problem if response is not None else None
        acquired_at = now if request.state.acquired_at is None else request.state.acquired_at
        attempt = _create_attempt(
            operation=request.operation,
            target=request.target,
            name=request.name,
            number=number,
            result=result.attempt_result,
            phase=result.phase,
            sent=sent,
            status=response.status if response is not None else None,
            code=problem.code if problem is not None else None,
            queue_time=acquired_at - started_at,
            duration=now - acquired_at,
            decision=decision.action,
            next_delay=decision.delay,
        )
        try:
            self.on_attempt(attempt)
        except Exception:  # noqa: BLE001  (a broken hook must not lose a stream that was just started)
            _RETRY_LOG.exception("on_attempt raised an exception, which is ignored")


def _cancelled(state: CallState) -> Result:
    return Result(attempt_result=AttemptResult.CANCELLED, phase=state.phase, decision=_UNKNOWN, attempts=state.attempts)


class OutcomeLog:
    """Logs the starts of one client whose outcome is unknown or ambiguous.

    A bulk run logs at most one of these per minute at WARNING and the others at DEBUG, because each `BulkOutcome`
    reports its own.
    """

    _BULK_INTERVAL = 60.0

    def __init__(self) -> None:
        self._bulk_warning_at = float("-inf")
        self._unreported = 0

    def record(self, request: Request, result: Result, now: float) -> None:
        is_unknown = result.decision is _UNKNOWN
        is_ambiguous = request.operation.is_start and result.ambiguous and result.decision is not _FAIL
        if not (is_unknown or is_ambiguous):
            return
        level, suffix = self._level(request.priority, now)
        if _OUTCOME_LOG.isEnabledFor(level):
            said = _describe_outcome(request, result)
            fields = log_fields(request, result.attempts)
            _OUTCOME_LOG.log(level, "%s: %s%s", describe_call(request), said, suffix, extra=fields)

    def _level(self, priority: Priority, now: float) -> tuple[int, str]:
        if priority is Priority.INTERACTIVE:
            return logging.WARNING, ""
        if now - self._bulk_warning_at < self._BULK_INTERVAL:
            self._unreported += 1
            return logging.DEBUG, ""
        suffix = f" ({self._unreported:,} more since the last warning)" if self._unreported else ""
        self._bulk_warning_at, self._unreported = now, 0
        return logging.WARNING, suffix


def _describe_outcome(request: Request, result: Result) -> str:
    if result.decision is _UNKNOWN:
        return f"outcome unknown: {describe_unknown(result, describe_result(request, result))}"
    is_duplicate = result.decision is _ALREADY_STARTED
    is_repeated = is_duplicate or request.state.may_have_succeeded
    reason = "an earlier attempt may have started it" if is_repeated else "the response does not identify its request"
    advice = "its sid may be another stream's" if request.name is None else "stop it by its name"
    return f"{'already running' if is_duplicate else 'started'}, ambiguous because {reason}: {advice}"


def describe_call(request: Request) -> str:
    name = f" (name {request.name!r})" if request.operation.is_start and request.name is not None else ""
    return f"{request.description} {request.target}{name}"


def log_fields(request: Request, attempt: int) -> dict[str, object]:
    """Return the values of a log record's ``extra``, for structured logs."""
    fields: dict[str, object] = {"attempt": attempt}
    if request.operation is not Operation.READ:  # which may be that of a list
        fields["call" if "/Calls/" in request.path else "conference"] = request.target
    if request.name is not None:
        fields["stream"] = request.name
    return fields
