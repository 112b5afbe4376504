"""The retry middleware: sends again what may be sent again, and says what came of the call."""

from asyncio import CancelledError
from collections.abc import Callable, Mapping

from attrs import define, evolve, field, frozen

from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.middleware._logs import RETRY_LOG, OutcomeLog, log_retry
from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.models import Attempt, AttemptResult, Operation, RetryDecision

_Row = tuple[RetryDecision, RetryDecision, RetryDecision]
_EVERYWHERE: Mapping[RetryDecision, _Row] = {action: (action, action, action) for action in RetryDecision}

_PROOF, _NO_PROOF = RetryDecision.ALREADY_STOPPED, RetryDecision.FAIL

REFUSED_STOPS: Mapping[AttemptResult, Mapping[Operation, RetryDecision]] = {
    AttemptResult.TARGET_ENDED: {
        Operation.STOP_RETURNED: _PROOF,
        Operation.STOP: _PROOF,
        Operation.STOP_BY_NAME: _PROOF,
        Operation.STOP_AMBIGUOUS: _PROOF,
    },
    AttemptResult.ALREADY_STOPPED: {
        Operation.STOP_RETURNED: _PROOF,
        Operation.STOP: _PROOF,
        Operation.STOP_BY_NAME: _PROOF,
        # This sid may be that of a second stream that was refused, while the first one runs.
        Operation.STOP_AMBIGUOUS: _NO_PROOF,
    },
    AttemptResult.NOT_FOUND: {
        # The Space returned this sid from a start, so a stream that it does not know any more has ended.
        Operation.STOP_RETURNED: _PROOF,
        # A text may be misspelt, or a name in the form of a sid, also after an attempt that may have reached the Space.
        Operation.STOP: _NO_PROOF,
        # Not every Space may find streams by their names.
        Operation.STOP_BY_NAME: _NO_PROOF,
        Operation.STOP_AMBIGUOUS: _NO_PROOF,
    },
}
"""When a stop that is refused counts as a stop: whatever was asked for is so, since the stream has ended."""

#                           idempotent     named start       unnamed start
_MAY_HAVE_HAPPENED: _Row = (RetryDecision.RETRY, RetryDecision.RESEND, RetryDecision.UNKNOWN)

RULES: Mapping[AttemptResult, _Row] = {
    AttemptResult.DONE: _EVERYWHERE[RetryDecision.SUCCEED],
    # The Space never saw it.
    AttemptResult.NOT_SENT: _EVERYWHERE[RetryDecision.RETRY_UNSENT],
    AttemptResult.STALE_CONNECTION: (
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY_ONCE,
    ),
    AttemptResult.UNRETRYABLE: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.DEADLINE_EXCEEDED: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.BREAKER_OPEN: _EVERYWHERE[RetryDecision.FAIL],
    # The Space may have carried it out.
    AttemptResult.NO_RESPONSE: _MAY_HAVE_HAPPENED,
    AttemptResult.MALFORMED: _MAY_HAVE_HAPPENED,
    AttemptResult.SERVER_FAULT: _MAY_HAVE_HAPPENED,
    # So it may here, and another attempt would fail in the same way.
    AttemptResult.SESSION_FAILED: (RetryDecision.FAIL, RetryDecision.UNKNOWN, RetryDecision.UNKNOWN),
    # The Space did carry it out.
    AttemptResult.ACCEPTED: (RetryDecision.RETRY, RetryDecision.SUCCEED_WITHOUT_SID, RetryDecision.UNKNOWN),
    # The Space refused it.
    AttemptResult.REDIRECTED: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.REJECTED: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.FORBIDDEN: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.DUPLICATE_NAME: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.NOT_FOUND: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.ALREADY_STOPPED: _EVERYWHERE[RetryDecision.FAIL],
    AttemptResult.TARGET_ENDED: _EVERYWHERE[RetryDecision.FAIL],
    # The Space did not take it up.
    AttemptResult.TRY_AGAIN: _EVERYWHERE[RetryDecision.RETRY],
    AttemptResult.UNAVAILABLE: _EVERYWHERE[RetryDecision.RETRY],
    AttemptResult.THROTTLED: _EVERYWHERE[RetryDecision.WAIT_FOR_RATE_LIMIT],
}

AMBIGUOUS = frozenset(
    {
        AttemptResult.NO_RESPONSE,
        AttemptResult.MALFORMED,
        AttemptResult.SESSION_FAILED,
        AttemptResult.SERVER_FAULT,
        AttemptResult.ACCEPTED,
    }
)
"""After one of these, the request may have been carried out."""

_COLUMNS = {
    Operation.READ: 0,
    Operation.STOP: 0,
    Operation.STOP_RETURNED: 0,
    Operation.STOP_AMBIGUOUS: 0,
    Operation.STOP_BY_NAME: 0,
    Operation.CONFERENCE_START: 1,
    Operation.CALL_START: 1,
    Operation.UNNAMED_START: 2,
}


def action_for(kind: Operation, event: AttemptResult, *, ambiguous_before: bool) -> RetryDecision:
    """Look up what is done.

    Args:
        kind: what was asked for.
        event: what happened.
        ambiguous_before: whether an earlier attempt of the same call may have been carried out. Then a
            refusal as a duplicate proves that it was; what a refused stop proves is in `REFUSED_STOPS` anyway.
    """
    if ambiguous_before and event is AttemptResult.DUPLICATE_NAME:
        return RetryDecision.ALREADY_STARTED
    if event in REFUSED_STOPS and kind.is_stop:
        return REFUSED_STOPS[event][kind]
    return RULES[event][_COLUMNS[kind]]


_MAX_DOUBLINGS = 32


def backoff(spread: tuple[float, float], tries: int, random: Callable[[], float]) -> float:
    """Full jitter: anywhere from 0 to the smaller of the cap and base·2ⁿ.

    Args:
        spread: base and cap, in seconds.
        tries: how often was waited before, n.
        random: gives numbers from 0 to 1.
    """
    base, cap = spread
    return float(random() * min(cap, base * 2 ** min(tries, _MAX_DOUBLINGS)))


def at_least(asked: float, jitter: float) -> float:
    """Wait what was asked for and some more, never less, so that not everyone comes back at once.

    The jitter on top is held to a tenth of what was asked, or to its own size where nothing was asked.
    """
    return asked + min(jitter, max(asked * 0.1, 0.05)) if asked else jitter


CAPACITY = 500
COST_TRANSIENT = 14
COST_CHEAP = 5
"""For what certainly was not carried out: throttled, or not sent."""
EARNED_BY_SUCCESS = 1


@define(eq=False)
class RetryBudget:
    """Tokens that retries cost and successes earn.

    In a full outage the bucket runs dry and calls fail after their first attempt; while the Space serves, a
    retry that succeeds gives back what it cost.
    """

    tokens: int = CAPACITY

    def spend(self, cost: int) -> bool:
        """Take ``cost`` tokens; False when there are not enough, and then none are taken."""
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def succeed(self, spent: int) -> None:
        """Note a success: its last retry's cost comes back, or a first-time success earns one token."""
        self.tokens = min(CAPACITY, self.tokens + (spent or EARNED_BY_SUCCESS))


_UNSENT = frozenset({RetryDecision.RETRY_UNSENT, RetryDecision.RETRY_IMMEDIATELY, RetryDecision.RETRY_IMMEDIATELY_ONCE})
_AGAIN = _UNSENT | {RetryDecision.RETRY, RetryDecision.RESEND, RetryDecision.WAIT_FOR_RATE_LIMIT}
# An answer came that says that the Space did not take the request up.
_REFUSED_FOR_NOW = frozenset({AttemptResult.TRY_AGAIN, AttemptResult.UNAVAILABLE, AttemptResult.THROTTLED})
_DONE = frozenset(
    {
        RetryDecision.SUCCEED,
        RetryDecision.ALREADY_STARTED,
        RetryDecision.ALREADY_STOPPED,
        RetryDecision.SUCCEED_WITHOUT_SID,
    }
)


@frozen
class Decision:
    """What is done next: another attempt after ``wait`` seconds, or the end of the call."""

    action: RetryDecision
    delay: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether the call ends here."""
        return self.action not in _AGAIN


@define(eq=False)
class RetryState:
    """One call's memory and its decisions. Pure: time and chance are handed in.

    Attributes:
        kind: what the call asks for.
        deadline_at: when it gives up, on the clock that `decide` is told.
        ambiguous_since: when an attempt was first made that may have been carried out, or None.
        has_unique_name: True for a start whose name no other start has.
    """

    policy: RetryPolicy
    kind: Operation
    budget: RetryBudget
    random: Callable[[], float]
    deadline_at: float
    ambiguous_since: float | None = None
    has_unique_name: bool = False
    _accepted: bool = False
    _refused_for_now: bool = False
    _tries: dict[RetryDecision, int] = field(factory=dict)
    _spent: int = 0

    @property
    def ambiguous(self) -> bool:
        """Whether an attempt so far may have been carried out without our knowing."""
        return self.ambiguous_since is not None

    def decide(self, event: AttemptResult, now: float, retry_after: float | None = None) -> Decision:
        """Say what is done after an attempt that ended so.

        Args:
            event: how the attempt ended.
            now: the time.
            retry_after: seconds that the Space asked to wait.
        """
        # Only an earlier attempt of this call can have used a unique name, even one that was refused by its answer.
        is_repeated = self.ambiguous or (self.has_unique_name and self._refused_for_now)
        action = action_for(self.kind, event, ambiguous_before=is_repeated)
        if action in _DONE:
            self.budget.succeed(self._spent)
            return Decision(action)
        self._accepted |= event is AttemptResult.ACCEPTED
        self._refused_for_now |= event in _REFUSED_FOR_NOW
        if event in AMBIGUOUS and self.ambiguous_since is None:
            self.ambiguous_since = now
        if action is RetryDecision.RESEND and not self._may_resend():
            return Decision(RetryDecision.UNKNOWN)
        if action not in _AGAIN:
            return Decision(self._end(action))
        wait = self._wait(action, retry_after)
        if not self._allowed(action, now, wait, retry_after):
            return Decision(self._end(RetryDecision.FAIL))
        self._tries[action] = self._tries.get(action, 0) + 1
        return Decision(action, wait)

    def _end(self, action: RetryDecision) -> RetryDecision:
        """Never tell a caller less than is known: a start that may run does not just "fail", nor a stop that worked."""
        if self._accepted and self.kind.is_stop:
            return RetryDecision.ALREADY_STOPPED
        if action is RetryDecision.FAIL and self.ambiguous and self.kind.is_start:
            return RetryDecision.UNKNOWN
        return action

    def _may_resend(self) -> bool:
        return self.kind is not Operation.CALL_START or self.policy.resend_call_starts

    def _wait(self, action: RetryDecision, retry_after: float | None) -> float:
        if action in {RetryDecision.RETRY_IMMEDIATELY, RetryDecision.RETRY_IMMEDIATELY_ONCE}:
            return 0.0
        spread = (
            self.policy.wait_throttled if action is RetryDecision.WAIT_FOR_RATE_LIMIT else self.policy.wait_transient
        )
        return at_least(retry_after or 0.0, backoff(spread, self._tries.get(action, 0), self.random))

    def _allowed(self, action: RetryDecision, now: float, wait: float, retry_after: float | None) -> bool:
        policy = self.policy
        if (retry_after or 0.0) > policy.max_retry_after or now + wait >= self.deadline_at:
            return False
        if self.ambiguous_since is not None and self.kind.is_start and not self._resend_allowed(now + wait):
            return False
        if action is RetryDecision.WAIT_FOR_RATE_LIMIT:
            within = self._count(RetryDecision.WAIT_FOR_RATE_LIMIT) < policy.max_throttle_retries
        elif action is RetryDecision.RETRY_IMMEDIATELY_ONCE:
            within = self._count(RetryDecision.RETRY_IMMEDIATELY_ONCE) < 1
        elif action in _UNSENT:
            within = self._count(*_UNSENT) < policy.max_connect_retries
        else:
            within = self._count(RetryDecision.RETRY, RetryDecision.RESEND) < policy.max_attempts - 1
        return within and self._pay(
            COST_TRANSIENT if action in {RetryDecision.RETRY, RetryDecision.RESEND} else COST_CHEAP
        )

    def _resend_allowed(self, at: float) -> bool:
        since = self.ambiguous_since or 0.0
        return self._count(RetryDecision.RESEND) < self.policy.max_resends and at - since <= self.policy.resend_window

    def _count(self, *actions: RetryDecision) -> int:
        return sum(self._tries.get(action, 0) for action in actions)

    def _pay(self, cost: int) -> bool:
        if not self.budget.spend(cost):
            return False
        self._spent = cost
        return True


OnAttempt = Callable[[Attempt], object]
"""Hears of each attempt as it ends."""


_UNSENT_PHASES = frozenset({Phase.QUEUED, Phase.CONNECTING})


@define(eq=False)
class RetryMiddleware:
    """Repeats an exchange as the retry matrix allows.

    Attributes:
        policy: how often and how long.
        budget: the allowance that all calls of a client share.
        clock: where time, waiting and chance come from.
        on_attempt: hears of each attempt, the telemetry hook.
    """

    policy: RetryPolicy
    budget: RetryBudget
    clock: Clock
    on_attempt: OnAttempt | None = None
    _outcome_log: OutcomeLog = field(init=False, factory=OutcomeLog)

    async def __call__(self, exchange: Request, send: Handler) -> Result:
        """Send until the call is decided."""
        try:
            return await self._send(exchange, send)
        except CancelledError:
            progress = exchange.state
            if exchange.operation.is_start and (progress.may_have_succeeded or progress.phase not in _UNSENT_PHASES):
                self._outcome_log.unknown(exchange, _cancelled(progress.phase), self.clock.now())
            raise

    async def _send(self, exchange: Request, send: Handler) -> Result:
        now = self.clock.now
        progress = exchange.state
        progress.target, progress.name = exchange.target, exchange.name
        deadline = self.policy.deadline if exchange.deadline is None else exchange.deadline
        # An errand may take a second exchange; its deadline is that of the first.
        progress.deadline_at = min(progress.deadline_at, now() + deadline)
        retrying = RetryState(
            self.policy,
            exchange.operation,
            self.budget,
            self.clock.random,
            progress.deadline_at,
            ambiguous_since=now() if progress.may_have_succeeded else None,
            has_unique_name=exchange.has_unique_name,
            refused_for_now=progress.was_refused_for_now,
        )
        unsure_at = Phase.QUEUED
        last: Result | None = None
        while True:
            progress.attempts = number = progress.attempts + 1
            began = now()
            progress.acquired_at = None
            try:
                outcome = await send(exchange)
            except CancelledError:
                self._tell(exchange, _cancelled(progress.phase), number, began, Decision(RetryDecision.FAIL))
                raise
            if outcome.attempt_result is AttemptResult.DEADLINE_EXCEEDED and last is not None:
                # What the Space said last is more telling than that there was no time left to ask again.
                outcome = evolve(
                    last,
                    attempt_result=AttemptResult.DEADLINE_EXCEEDED,
                    retry_after=outcome.retry_after or last.retry_after,
                )
            last = outcome
            before = retrying.ambiguous
            decision = retrying.decide(outcome.attempt_result, now(), outcome.retry_after)
            before |= decision.action is RetryDecision.ALREADY_STARTED
            self._tell(exchange, outcome, number, began, decision)
            progress.was_refused_for_now |= outcome.attempt_result in _REFUSED_FOR_NOW
            progress.may_have_succeeded |= retrying.ambiguous
            if retrying.ambiguous and not before:
                unsure_at = outcome.phase
            if decision.is_final:
                self._log_outcome(exchange, outcome, decision, ambiguous=before)
                phase = unsure_at if decision.action is RetryDecision.UNKNOWN else outcome.phase
                return outcome.as_attempt_of(
                    decision.action, phase=phase, attempts=number, ambiguous=before, sent=progress.sent
                )
            log_retry(exchange, outcome, number, decision.action, decision.delay)
            progress.phase = Phase.QUEUED
            if decision.delay:
                await self.clock.sleep(decision.delay)

    def _log_outcome(self, exchange: Request, outcome: Result, decision: Decision, *, ambiguous: bool) -> None:
        if decision.action is RetryDecision.UNKNOWN:
            self._outcome_log.unknown(exchange, outcome, self.clock.now())
        elif ambiguous and exchange.operation.is_start and decision.action is not RetryDecision.FAIL:
            self._outcome_log.ambiguous(exchange, decision.action, self.clock.now())

    def _tell(self, exchange: Request, outcome: Result, number: int, began: float, decision: Decision) -> None:
        sent = exchange.state.record_attempt()
        if self.on_attempt is None:
            return
        reply = outcome.response
        now = self.clock.now()
        turn_at = exchange.state.acquired_at
        turn_at = now if turn_at is None else turn_at
        attempt = Attempt(
            operation=exchange.operation,
            target=exchange.target,
            name=exchange.name,
            number=number,
            result=outcome.attempt_result,
            phase=outcome.phase,
            sent=sent,
            status=reply.status if reply is not None else None,
            code=reply.problem.code if reply is not None and reply.problem is not None else None,
            queue_time=turn_at - began,
            duration=now - turn_at,
            decision=decision.action,
            next_delay=decision.delay,
        )
        try:
            self.on_attempt(attempt)
        except Exception:  # noqa: BLE001  (a broken hook must not lose a stream that was just started)
            RETRY_LOG.exception("on_attempt failed; the call goes on without it")


def _cancelled(phase: Phase) -> Result:
    return Result(attempt_result=AttemptResult.CANCELLED, phase=phase)
