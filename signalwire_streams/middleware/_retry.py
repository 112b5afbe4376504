"""The retry middleware: sends again what may be sent again, and says what came of the call."""

from asyncio import CancelledError
from collections.abc import Callable

from attrs import define, evolve, field

from signalwire_streams.errors import Phase
from signalwire_streams.models import Action, Attempt, Event
from signalwire_streams.resilience.budget import RetryBudget
from signalwire_streams.middleware._policies import RetryPolicy
from signalwire_streams.resilience.retrying import Decision, Retrying
from signalwire_streams.clock import Clock
from signalwire_streams.middleware._logs import RETRY_LOG, OutcomeLog, log_retry
from signalwire_streams.transport.middleware import Send
from signalwire_streams._http.messages import Exchange, Outcome

OnAttempt = Callable[[Attempt], object]
"""Hears of each attempt as it ends."""


_PUSHED_BACK = frozenset({Event.THROTTLED, Event.UNAVAILABLE})
_UNSENT_PHASES = frozenset({Phase.QUEUED, Phase.CONNECTING})


@define(eq=False)
class Retry:
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

    async def __call__(self, exchange: Exchange, send: Send) -> Outcome:
        """Send until the call is decided."""
        try:
            return await self._send(exchange, send)
        except CancelledError:
            progress = exchange.progress
            if exchange.kind.is_start and (progress.may_be_done or progress.phase not in _UNSENT_PHASES):
                self._outcome_log.unknown(exchange, _cancelled(progress.phase), self.clock.now())
            raise

    async def _send(self, exchange: Exchange, send: Send) -> Outcome:
        now = self.clock.now
        progress = exchange.progress
        progress.target, progress.name = exchange.target, exchange.name
        deadline = self.policy.deadline if exchange.deadline is None else exchange.deadline
        # An errand may take a second exchange; its deadline is that of the first.
        progress.deadline_at = min(progress.deadline_at, now() + deadline)
        retrying = Retrying(
            self.policy,
            exchange.kind,
            self.budget,
            self.clock.random,
            progress.deadline_at,
            ambiguous_since=now() if progress.may_be_done else None,
            has_unique_name=exchange.has_unique_name,
        )
        unsure_at = Phase.QUEUED
        last: Outcome | None = None
        while True:
            progress.attempts = number = progress.attempts + 1
            began = now()
            progress.turn_at = None
            try:
                outcome = await send(exchange)
            except CancelledError:
                self._tell(exchange, _cancelled(progress.phase), number, began, Decision(Action.FAIL))
                raise
            if outcome.event is Event.EXPIRED and last is not None:
                # What the Space said last is more telling than that there was no time left to ask again.
                outcome = evolve(last, event=Event.EXPIRED, retry_after=outcome.retry_after or last.retry_after)
            last = outcome
            before = retrying.ambiguous
            decision = retrying.decide(outcome.event, now(), outcome.retry_after)
            before |= decision.action is Action.ALREADY_STARTED
            self._tell(exchange, outcome, number, began, decision)
            progress.pushed_back |= outcome.event in _PUSHED_BACK
            progress.may_be_done |= retrying.ambiguous
            if retrying.ambiguous and not before:
                unsure_at = outcome.phase
            if decision.is_final:
                self._log_outcome(exchange, outcome, decision, ambiguous=before)
                phase = unsure_at if decision.action is Action.UNKNOWN else outcome.phase
                return outcome.of_call(
                    decision.action, phase=phase, attempts=number, ambiguous=before, sent=progress.sent
                )
            log_retry(exchange, outcome, number, decision.action, decision.wait)
            progress.phase = Phase.QUEUED
            if decision.wait:
                await self.clock.sleep(decision.wait)

    def _log_outcome(self, exchange: Exchange, outcome: Outcome, decision: Decision, *, ambiguous: bool) -> None:
        if decision.action is Action.UNKNOWN:
            self._outcome_log.unknown(exchange, outcome, self.clock.now())
        elif ambiguous and exchange.kind.is_start and decision.action is not Action.FAIL:
            self._outcome_log.ambiguous(exchange, decision.action, self.clock.now())

    def _tell(self, exchange: Exchange, outcome: Outcome, number: int, began: float, decision: Decision) -> None:
        sent = exchange.progress.note_attempt()
        if self.on_attempt is None:
            return
        reply = outcome.reply
        now = self.clock.now()
        turn_at = exchange.progress.turn_at
        turn_at = now if turn_at is None else turn_at
        attempt = Attempt(
            kind=exchange.kind,
            target=exchange.target,
            name=exchange.name,
            number=number,
            event=outcome.event,
            phase=outcome.phase,
            sent=sent,
            status=reply.status if reply is not None else None,
            code=reply.problem.code if reply is not None and reply.problem is not None else None,
            queued=turn_at - began,
            seconds=now - turn_at,
            action=decision.action,
            wait=decision.wait,
        )
        try:
            self.on_attempt(attempt)
        except Exception:  # noqa: BLE001  (a broken hook must not lose a stream that was just started)
            RETRY_LOG.exception("on_attempt failed; the call goes on without it")


def _cancelled(phase: Phase) -> Outcome:
    return Outcome(event=Event.CANCELLED, phase=phase)
