"""Fault rules: which request or connection runs into which fault (pure).

Rules are tried in the order in which they were added. A request trips at most one rule, and only a request that no
earlier rule has taken moves a later rule's counter: which requests are spoiled is exact and, under one seed, the same
in each run.
"""

import random
from typing import Final

from attrs import define, field

from signalwire_streams.simulator.fault_kinds import FaultKind, FaultSettings, read_settings
from signalwire_streams.simulator.routes import OPERATIONS, UNKNOWN

__all__ = ["FaultRule", "Faults"]

_START: Final = frozenset({"start-conference-stream", "start-call-stream"})
_SCOPES: Final = {
    "any": OPERATIONS - {UNKNOWN},
    "start": _START,
    "stop": frozenset({"stop-conference-stream", "stop-call-stream"}),
    "list": frozenset({"list-conferences", "list-participants", "list-calls"}),
    "get": frozenset({"get-conference", "get-call"}),
    **{operation: frozenset({operation}) for operation in OPERATIONS},
}

# These spoil an answer that must exist first, so they carry the operation out unless told otherwise.
_CARRIED_OUT: Final = frozenset(
    {
        FaultKind.LATENCY,
        FaultKind.CUT_BODY,
        FaultKind.WRONG_CONTENT_TYPE,
        FaultKind.NO_SID,
        FaultKind.EMPTY,
        FaultKind.NOT_JSON,
    }
)


@define(eq=False, kw_only=True)
class FaultRule:
    """One rule.

    Attributes:
        kind: what it does.
        operations: the operations it applies to.
        target: the only conference or call it applies to; None for all.
        times: how often it trips at most; None for without end.
        one_in: every so manieth matching request trips it.
        per_target: how often it trips at most for each conference or call.
        created: whether the operation is carried out although its answer is spoiled.
        settings: how the fault goes about it.
        hits: how often it has tripped.
    """

    kind: FaultKind
    operations: frozenset[str]
    target: str | None
    times: int | None
    one_in: int | None
    per_target: int | None
    created: bool
    settings: FaultSettings
    hits: int = field(default=0, init=False)
    _counter: int
    _rules: "list[FaultRule]" = field(repr=False)
    _hits_per_target: dict[str | None, int] = field(factory=dict, init=False)

    def remove(self) -> None:
        """Take the rule out; once it is out, this does nothing."""
        if self in self._rules:
            self._rules.remove(self)

    def trip(self, operation: str, target: str | None) -> bool:
        """Tell whether a request that no earlier rule has taken trips this one, and count it."""
        if operation not in self.operations or (self.target is not None and target != self.target):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        of_target = self._hits_per_target.get(target, 0)
        if self.per_target is not None and of_target >= self.per_target:
            return False
        if self.one_in is not None:
            self._counter += 1
            if self._counter % self.one_in:
                return False
        self.hits += 1
        if self.per_target is not None:
            self._hits_per_target[target] = of_target + 1
        return True


#: Connections have no operation; this stands for it in a reset-on-connect rule.
_CONNECT: Final = frozenset({"connect"})


@define(eq=False)
class Faults:
    """The Space's fault rules."""

    _random: random.Random = field(repr=False)
    _rules: list[FaultRule] = field(factory=list, init=False)

    def __len__(self) -> int:
        return len(self._rules)

    def add(
        self,
        kind: FaultKind | str,
        *,
        on: str | None = None,
        target: str | None = None,
        times: int | None = None,
        one_in: int | None = None,
        per_target: int | None = None,
        created: bool | None = None,
        **settings: object,
    ) -> FaultRule:
        """Add a rule behind those that stand.

        Args:
            kind: what happens, a FaultKind or its text.
            on: "start", "stop", "list", "get", "any" or one operation's name; "any" unless given.
            target: only requests for this conference or call.
            times: trip so often at most; times=1 is "the next one".
            one_in: trip on every so manieth matching request, from an offset drawn with the Space's seed.
            per_target: trip so often at most for each conference or call.
            created: True carries the operation out before the answer is spoiled, False carries nothing out. Unless
                given, latency, cut-body, wrong-content-type, no-sid, empty and not-json carry it out, the others not.
            **settings: what the kind takes, see FaultSettings.

        Raises:
            ValueError: the kind, the scope or a setting is unknown or does not fit.
        """
        known = _read_kind(kind)
        for name, number in (("times", times), ("one_in", one_in), ("per_target", per_target)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        read = read_settings(known, settings)
        if known is FaultKind.RESET_ON_CONNECT:
            _refuse_request_scopes(on=on, target=target, per_target=per_target, created=created)
        carried_out = known in _CARRIED_OUT if created is None else created
        if carried_out and known is FaultKind.DUPLICATE_NAME:
            raise ValueError("'duplicate-name' starts nothing: leave created out")
        rule = FaultRule(
            kind=known,
            operations=_read_scope(known, on),
            target=target,
            times=times,
            one_in=one_in,
            per_target=per_target,
            created=carried_out,
            settings=read,
            counter=self._random.randrange(one_in) if one_in is not None else 0,
            rules=self._rules,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Take every rule out."""
        self._rules.clear()

    def trip(self, operation: str, target: str | None) -> FaultRule | None:
        """Find the rule that a request trips, and count it there."""
        return next((rule for rule in self._rules if rule.trip(operation, target)), None)

    def trip_connection(self) -> bool:
        """Tell whether a new connection is to be reset before anything is read."""
        return any(rule.trip("connect", None) for rule in self._rules)


def _read_kind(kind: FaultKind | str) -> FaultKind:
    try:
        return FaultKind(kind)
    except ValueError:
        kinds = ", ".join(sorted(FaultKind))
        raise ValueError(f"{kind!r} is no kind of fault; there are {kinds}") from None


def _read_scope(kind: FaultKind, on: str | None) -> frozenset[str]:
    if kind is FaultKind.RESET_ON_CONNECT:
        return _CONNECT
    if kind is FaultKind.DUPLICATE_NAME:
        scope = _SCOPES.get("start" if on is None else on, frozenset())
        if not scope or not scope <= _START:
            raise ValueError(f"'duplicate-name' happens to starts: write on='start' or leave it out, not {on!r}")
        return scope
    scope = _SCOPES.get("any" if on is None else on, frozenset())
    if not scope:
        raise ValueError(f"on={on!r} is no scope; write one of {', '.join(sorted(_SCOPES))}")
    return scope


def _refuse_request_scopes(**scopes: object) -> None:
    given = [name for name, value in scopes.items() if value is not None]
    if given:
        raise ValueError(
            f"'reset-on-connect' happens before a request is known: leave out {', '.join(given)}, use times or one_in"
        )
