"""The decisions of one call, from its first attempt to its end."""

from collections.abc import Callable

from attrs import define, field, frozen

from signalwire_streams.models import Action, Event, Kind
from signalwire_streams.resilience.backoff import at_least, backoff
from signalwire_streams.resilience.budget import COST_CHEAP, COST_TRANSIENT, RetryBudget
from signalwire_streams.resilience.matrix import AMBIGUOUS, action_for
from signalwire_streams.middleware._policies import RetryPolicy

_UNSENT = frozenset({Action.RETRY_UNSENT, Action.RETRY_NOW, Action.RETRY_ONCE})
_AGAIN = _UNSENT | {Action.RETRY, Action.RESEND, Action.WAIT_FOR_GATE}
# An answer came that says that the Space did not take the request up.
_REFUSED_FOR_NOW = frozenset({Event.TRY_AGAIN, Event.UNAVAILABLE, Event.THROTTLED})
_DONE = frozenset({Action.FINISH, Action.ALREADY_STARTED, Action.ALREADY_STOPPED, Action.BY_NAME})


@frozen
class Decision:
    """What is done next: another attempt after ``wait`` seconds, or the end of the call."""

    action: Action
    wait: float = 0.0

    @property
    def is_final(self) -> bool:
        """Whether the call ends here."""
        return self.action not in _AGAIN


@define(eq=False)
class Retrying:
    """One call's memory and its decisions. Pure: time and chance are handed in.

    Attributes:
        kind: what the call asks for.
        deadline_at: when it gives up, on the clock that `decide` is told.
        ambiguous_since: when an attempt was first made that may have been carried out, or None.
        has_unique_name: True for a start whose name no other start has.
    """

    policy: RetryPolicy
    kind: Kind
    budget: RetryBudget
    random: Callable[[], float]
    deadline_at: float
    ambiguous_since: float | None = None
    has_unique_name: bool = False
    _accepted: bool = False
    _refused_for_now: bool = False
    _tries: dict[Action, int] = field(factory=dict)
    _spent: int = 0

    @property
    def ambiguous(self) -> bool:
        """Whether an attempt so far may have been carried out without our knowing."""
        return self.ambiguous_since is not None

    def decide(self, event: Event, now: float, retry_after: float | None = None) -> Decision:
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
        self._accepted |= event is Event.ACCEPTED
        self._refused_for_now |= event in _REFUSED_FOR_NOW
        if event in AMBIGUOUS and self.ambiguous_since is None:
            self.ambiguous_since = now
        if action is Action.RESEND and not self._may_resend():
            return Decision(Action.UNKNOWN)
        if action not in _AGAIN:
            return Decision(self._end(action))
        wait = self._wait(action, retry_after)
        if not self._allowed(action, now, wait, retry_after):
            return Decision(self._end(Action.FAIL))
        self._tries[action] = self._tries.get(action, 0) + 1
        return Decision(action, wait)

    def _end(self, action: Action) -> Action:
        """Never tell a caller less than is known: a start that may run does not just "fail", nor a stop that worked."""
        if self._accepted and self.kind.is_stop:
            return Action.ALREADY_STOPPED
        if action is Action.FAIL and self.ambiguous and self.kind.is_start:
            return Action.UNKNOWN
        return action

    def _may_resend(self) -> bool:
        return self.kind is not Kind.CALL_START or self.policy.resend_call_starts

    def _wait(self, action: Action, retry_after: float | None) -> float:
        if action in {Action.RETRY_NOW, Action.RETRY_ONCE}:
            return 0.0
        spread = self.policy.wait_throttled if action is Action.WAIT_FOR_GATE else self.policy.wait_transient
        return at_least(retry_after or 0.0, backoff(spread, self._tries.get(action, 0), self.random))

    def _allowed(self, action: Action, now: float, wait: float, retry_after: float | None) -> bool:
        policy = self.policy
        if (retry_after or 0.0) > policy.wait_longest or now + wait >= self.deadline_at:
            return False
        if self.ambiguous_since is not None and self.kind.is_start and not self._resend_allowed(now + wait):
            return False
        if action is Action.WAIT_FOR_GATE:
            within = self._count(Action.WAIT_FOR_GATE) < policy.throttle_waits
        elif action is Action.RETRY_ONCE:
            within = self._count(Action.RETRY_ONCE) < 1
        elif action in _UNSENT:
            within = self._count(*_UNSENT) < policy.unsent_attempts
        else:
            within = self._count(Action.RETRY, Action.RESEND) < policy.attempts - 1
        return within and self._pay(COST_TRANSIENT if action in {Action.RETRY, Action.RESEND} else COST_CHEAP)

    def _resend_allowed(self, at: float) -> bool:
        since = self.ambiguous_since or 0.0
        return self._count(Action.RESEND) < self.policy.resends and at - since <= self.policy.resend_window

    def _count(self, *actions: Action) -> int:
        return sum(self._tries.get(action, 0) for action in actions)

    def _pay(self, cost: int) -> bool:
        if not self.budget.spend(cost):
            return False
        self._spent = cost
        return True
