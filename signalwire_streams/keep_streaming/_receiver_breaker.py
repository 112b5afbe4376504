"""Detects a receiver that rejects all streams, from how its streams end: without I/O and without a clock."""

from collections.abc import Callable, Collection, Sequence
from math import inf

from attrs import define, field

from signalwire_streams.keep_streaming._events import KeepStatus, StartsPaused, StartsResumed
from signalwire_streams.keep_streaming._settings import KeepSettings
from signalwire_streams.keep_streaming._state import Fate, GetTarget, TargetState
from signalwire_streams.receiver import MediaReceiver

_LEAST = 3
_HEARD_SHARE = 10
_MAX_DOUBLINGS = 32


@define(eq=False)
class ReceiverBreaker:
    """The recent outcomes of streams to one receiver.

    A stream is rejected if it ends within ``min_lifetime`` of its start, or is not heard within ``socket_timeout``,
    while its target is in progress. The receiver counts as rejecting all streams if the last streams of three targets
    or more were rejected, if at most a tenth as many have been heard since, and if no more than those are undecided.
    Then one start at a time is a probe, the next after a wait that doubles, until a stream that began after the first
    rejection has lived for ``min_lifetime``.

    Attributes:
        settings: those of the streams.
        paused_until: when the next probe may be started; ``-inf`` if starts are not paused.
        reason: why the last stream was rejected.
    """

    settings: KeepSettings
    paused_until: float = -inf
    reason: str = ""
    _probe: str | None = None
    _probes: int = 0
    _since: float = inf  # the first rejection
    # Targets, the one that changed first before the others, and when it changed.
    _undecided: dict[str, float] = field(factory=dict)
    _heard: dict[str, float] = field(factory=dict)
    _rejected: dict[str, float] = field(factory=dict)
    _counted: dict[str, int] = field(factory=dict)

    @property
    def is_paused(self) -> bool:
        return self.paused_until != -inf

    def on_start(self, target: str, state: TargetState, now: float) -> None:
        """Record the start of a stream."""
        self._counted.setdefault(target, state.early_ends)
        if target not in self._rejected:
            _put(self._undecided, target, now)
        if self.is_paused:
            self._probe, self.paused_until = target, now + self.settings.socket_timeout + self.settings.min_lifetime

    def on_decision(self, target: str, state: TargetState, now: float) -> None:
        """Record a target's new state."""
        counted = self._counted.get(target)
        if counted is None or state.check_due or isinstance(state.pending, GetTarget):
            return  # its stream may have ended with it
        if state.status is KeepStatus.ENDED:
            self.forget(target, now)
        elif state.early_ends > counted:
            self._counted[target], self.reason = state.early_ends, state.reason or ""
            self._undecided.pop(target, None)
            self._heard.pop(target, None)
            _put(self._rejected, target, now)
            if target == self._probe:
                self._pause(now)
        elif target not in self._heard and any(now < one.settles_at for one in state.of_fate(Fate.HEARD)):
            self._undecided.pop(target, None)
            self._rejected.pop(target, None)
            _put(self._heard, target, now)

    def forget(self, target: str, now: float) -> None:
        """Forget a target that ended or moved to another receiver."""
        for targets in (self._undecided, self._heard, self._rejected, self._counted):
            targets.pop(target, None)
        if target == self._probe:
            self._probe, self.paused_until = None, now

    def update(self, now: float) -> bool:
        """Pause or resume starts, and return whether that was done."""
        was_paused, settings = self.is_paused, self.settings
        for since in _pop_until(self._heard, now - settings.min_lifetime):
            _pop_until(self._rejected, since)
            if since >= self._since:
                self._probe, self._probes, self._since, self.paused_until = None, 0, inf, -inf
        _pop_until(self._undecided, now - settings.socket_timeout - settings.min_lifetime)
        rejected, others = len(self._rejected), max(len(self._heard) * _HEARD_SHARE, len(self._undecided))
        if not self.is_paused and rejected >= max(_LEAST, others):
            self._since = next(iter(self._rejected.values()))
            self._pause(now)
        return self.is_paused is not was_paused

    def _pause(self, now: float) -> None:
        wait = self.settings.wait_initial * 2 ** min(self._probes, _MAX_DOUBLINGS)
        self._probe, self.paused_until = None, now + min(self.settings.wait_max, wait)
        self._probes += 1


def _put(targets: dict[str, float], target: str, now: float) -> None:
    targets.pop(target, None)
    targets[target] = now


def _pop_until(targets: dict[str, float], until: float) -> list[float]:
    """Remove those that changed until then, and return when."""
    old = []
    for target, since in targets.items():
        if since > until:
            break
        old.append((target, since))
    for target, _ in old:
        del targets[target]
    return [since for _, since in old]


class ReceiverBreakers:
    """The breakers of all receivers that the targets lead to, by scheme, host and port."""

    def __init__(
        self,
        here: Sequence[MediaReceiver],
        *,
        emit: Callable[[StartsPaused | StartsResumed], None],
        resume: Callable[[], None],
    ) -> None:
        self._here, self._emit, self._resume = here, emit, resume
        self._breakers: dict[str, ReceiverBreaker] = {}
        self._rejected = 0  # upgrades to the receivers of this process when those worked last

    def __len__(self) -> int:
        return len(self._breakers)

    def move(self, target: str, before: str, receiver: str, settings: KeepSettings, now: float) -> None:
        """Record where a target leads, and where it led before."""
        if before != receiver and before in self._breakers:
            self._breakers[before].forget(target, now)
        if receiver not in self._breakers:
            self._breakers[receiver] = ReceiverBreaker(settings)

    def paused_until(self, receiver: str) -> float:
        breaker = self._breakers.get(receiver)
        return -inf if breaker is None else breaker.paused_until

    def on_decision(self, receiver: str, target: str, state: TargetState, now: float, *, is_start: bool) -> None:
        """Record what was decided on a target, and pause or resume starts."""
        breaker = self._breakers.get(receiver)
        if breaker is not None:
            if is_start:
                breaker.on_start(target, state, now)
            breaker.on_decision(target, state, now)
            self._update(receiver, breaker, now)

    def forget_unused(self, in_use: Collection[str], now: float) -> None:
        """Update all, and forget those that no target leads to any more."""
        for receiver, breaker in list(self._breakers.items()):
            self._update(receiver, breaker, now)
            if receiver not in in_use:
                del self._breakers[receiver]
                if breaker.is_paused:
                    self._emit(StartsResumed(receiver=receiver))

    def _update(self, receiver: str, breaker: ReceiverBreaker, now: float) -> None:
        if not breaker.update(now):
            return
        rejected = sum(each.rejected_upgrades for each in self._here)
        if breaker.is_paused:
            reason, here = breaker.reason, rejected - self._rejected
            reason += f"; since it last worked, {here} upgrades were rejected here" if here else ""
            self._emit(StartsPaused(receiver=receiver, reason=reason))
            return
        self._rejected = rejected
        self._emit(StartsResumed(receiver=receiver))
        self._resume()
