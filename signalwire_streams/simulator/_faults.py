"""Fault rules: which request or connection runs into which fault (pure).

Rules are tried in the order in which they were added. A request, connection or callback trips at most one rule, and
only one that no earlier rule has taken moves a later rule's counter: which are spoiled is exact and, under one seed,
the same in each run. A stream that is dialled trips all the rules that apply to it.
"""

import random
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from attrs import define, evolve, field, frozen

from signalwire_streams.simulator._routes import OPERATIONS, UNKNOWN

Body = Literal["api", "html", "empty"]
DuplicateAnswer = Literal["http-error", "stream-error"]


class FaultKind(StrEnum):
    """What a fault does: to a request, an answer or a connection; to a stream's socket or frames; to a callback."""

    LATENCY = "latency"
    HANG = "hang"
    RESET = "reset"
    DISCONNECT = "disconnect"
    RESET_ON_CONNECT = "reset-on-connect"
    THROTTLE = "throttle"
    STATUS = "status"
    PROXY_500 = "500"
    PROXY_502 = "502"
    PROXY_503 = "503"
    PROXY_504 = "504"
    API_503 = "503-api"
    GARBAGE = "garbage"
    HTML = "html"
    TRUNCATED_HEADERS = "truncated-headers"
    TRUNCATED_BODY = "truncated-body"
    WRONG_CONTENT_TYPE = "wrong-content-type"
    MISSING_SID = "missing-sid"
    EMPTY = "empty"
    INVALID_JSON = "invalid-json"
    REDIRECT = "redirect"
    DUPLICATE_NAME = "duplicate-name"
    SOCKET_FIRST = "socket-first"
    SOCKET_REFUSED = "socket-refused"
    SOCKET_SLOW = "socket-slow"
    TLS_UNTRUSTED = "tls-untrusted"
    CONNECTION_DROPPED = "connection-dropped"
    NO_STOP = "no-stop"
    FRAMES_LOST = "frames-lost"
    FRAMES_DUPLICATED = "frames-duplicated"
    FRAMES_REORDERED = "frames-reordered"
    FRAMES_CORRUPTED = "frames-corrupted"
    FRAMES_IN_BURSTS = "frames-in-bursts"
    CALLBACK_LOST = "callback-lost"
    CALLBACK_DUPLICATED = "callback-duplicated"
    CALLBACK_DELAYED = "callback-delayed"
    CALLBACK_REORDERED = "callback-reordered"
    CALLBACK_BAD_SIGNATURE = "callback-bad-signature"


@frozen(kw_only=True)
class FaultSettings:
    """How a fault goes about it; each kind takes only its own settings.

    Attributes:
        seconds: how long ``latency`` holds an answer back. The request stands in the journal before that, unless
            the rule has executed=False, which carries it out behind the delay. Also what ``socket-slow`` waits
            between connection and upgrade, and ``callback-delayed`` before its first try.
        read_body: whether ``hang`` and ``reset`` take the request's body off the socket.
        status: the HTTP status of ``throttle``, ``status`` and ``redirect``.
        body: ``api`` for the API's JSON error body, ``html`` for a proxy's page, ``empty`` for nothing.
        code: the API's error code in that body; None chooses one that fits the status.
        retry_after: seconds, or the header's text.
        headers: more headers.
        location: where ``redirect`` points to.
        as_: how ``duplicate-name`` is told: ``http-error`` or ``stream-error``.
        after: media frames that go out before ``connection-dropped``.
        every: every so manieth media frame is lost, doubled, overtaken or broken.
        frames: media frames that come together with ``frames-in-bursts``.
    """

    seconds: float = 0.0
    read_body: bool = True
    status: int = 500
    body: Body = "html"
    code: int | None = None
    retry_after: float | str | None = None
    headers: Mapping[str, str] = MappingProxyType({})
    location: str = "/"
    as_: DuplicateAnswer = "http-error"
    after: int = 10
    every: int = 10
    frames: int = 10


_STATUS_SETTINGS: Final = ("body", "code", "retry_after", "headers")

# What each kind can be told, and what it does when it is not told.
_KINDS: Final[Mapping[FaultKind, tuple[tuple[str, ...], FaultSettings]]] = MappingProxyType(
    {
        FaultKind.LATENCY: (("seconds",), FaultSettings()),
        FaultKind.HANG: (("read_body",), FaultSettings()),
        FaultKind.RESET: (("read_body",), FaultSettings(read_body=False)),
        FaultKind.THROTTLE: (("status", *_STATUS_SETTINGS), FaultSettings(status=429, body="api")),
        FaultKind.STATUS: (("status", *_STATUS_SETTINGS), FaultSettings()),
        FaultKind.PROXY_500: (_STATUS_SETTINGS, FaultSettings(status=500)),
        FaultKind.PROXY_502: (_STATUS_SETTINGS, FaultSettings(status=502)),
        FaultKind.PROXY_503: (_STATUS_SETTINGS, FaultSettings(status=503)),
        FaultKind.PROXY_504: (_STATUS_SETTINGS, FaultSettings(status=504)),
        FaultKind.API_503: (_STATUS_SETTINGS, FaultSettings(status=503, body="api")),
        FaultKind.REDIRECT: (("status", "location"), FaultSettings(status=307)),
        FaultKind.DUPLICATE_NAME: (("as_",), FaultSettings()),
        FaultKind.SOCKET_SLOW: (("seconds",), FaultSettings()),
        FaultKind.CONNECTION_DROPPED: (("after",), FaultSettings()),
        FaultKind.FRAMES_LOST: (("every",), FaultSettings()),
        FaultKind.FRAMES_DUPLICATED: (("every",), FaultSettings()),
        FaultKind.FRAMES_REORDERED: (("every",), FaultSettings()),
        FaultKind.FRAMES_CORRUPTED: (("every",), FaultSettings()),
        FaultKind.FRAMES_IN_BURSTS: (("frames",), FaultSettings()),
        FaultKind.CALLBACK_DELAYED: (("seconds",), FaultSettings()),
    }
)
_NO_SETTINGS: Final[tuple[tuple[str, ...], FaultSettings]] = ((), FaultSettings())
_NEEDED: Final = MappingProxyType(
    {
        FaultKind.LATENCY: "seconds",
        FaultKind.STATUS: "status",
        FaultKind.SOCKET_SLOW: "seconds",
        FaultKind.CALLBACK_DELAYED: "seconds",
    }
)


def read_settings(kind: FaultKind, given: Mapping[str, Any]) -> FaultSettings:
    """Check a kind's settings and fill in the rest.

    Raises:
        ValueError: a setting that the kind does not take or needs, or a value out of range.
    """
    allowed, defaults = _KINDS.get(kind, _NO_SETTINGS)
    for name in given:
        if name not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no settings"
            raise ValueError(f"{name} is no setting of {kind.value!r}, which {takes}")
    needed = _NEEDED.get(kind)
    if needed is not None and needed not in given:
        raise ValueError(f"{kind.value!r} needs {needed}=..., as in faults.add({kind.value!r}, {needed}=...)")
    for name, value in given.items():
        sentence = _RULES[name](value)
        if sentence is not None:
            raise ValueError(f"{name} must be {sentence}, not {value!r}")
    return evolve(defaults, **given)


def _seconds(value: object) -> str | None:
    return None if isinstance(value, int | float) and value >= 0 else "a number of seconds"


def _number(value: object) -> str | None:
    return None if isinstance(value, int) and value >= 1 else "a whole number from 1"


def _boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _status(value: object) -> str | None:
    lowest, highest = 200, 599
    return None if isinstance(value, int) and lowest <= value <= highest else "an HTTP status from 200 to 599"


def _body(value: object) -> str | None:
    return None if value in get_args(Body) else "'api', 'html' or 'empty'"


def _code(value: object) -> str | None:
    return None if value is None or isinstance(value, int) else "an error code such as 20429"


def _retry_after(value: object) -> str | None:
    return None if value is None or isinstance(value, int | float | str) else "seconds or the header's text"


def _headers(value: object) -> str | None:
    return None if isinstance(value, Mapping) else "a mapping of header names to values"


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else "a text"


def _duplicate(value: object) -> str | None:
    return None if value in get_args(DuplicateAnswer) else "'http-error' or 'stream-error'"


_RULES: Final = MappingProxyType(
    {
        "seconds": _seconds,
        "read_body": _boolean,
        "status": _status,
        "body": _body,
        "code": _code,
        "retry_after": _retry_after,
        "headers": _headers,
        "location": _text,
        "as_": _duplicate,
        "after": _number,
        "every": _number,
        "frames": _number,
    }
)


_START: Final = frozenset({"start-conference-stream", "start-call-stream"})
_SCOPES: Final = {
    "any": OPERATIONS - {UNKNOWN},
    "start": _START,
    "stop": frozenset({"stop-conference-stream", "stop-call-stream"}),
    "list": frozenset({"list-conferences", "list-participants", "list-calls"}),
    "get": frozenset({"get-conference", "get-call"}),
    **{operation: frozenset({operation}) for operation in OPERATIONS},
}
_CALLBACKS: Final = frozenset({"stream-started", "stream-stopped", "stream-error"})
_CALLBACK_SCOPES: Final = {"any": _CALLBACKS, **{event: frozenset({event}) for event in _CALLBACKS}}

# A connection has no operation, and neither has the dialling of a stream; these stand for them.
_CONNECT: Final = frozenset({"connect"})
_DIAL: Final = frozenset({"dial"})

# These spoil an answer that must exist first, so they carry the operation out unless told otherwise.
_CARRIED_OUT: Final = frozenset(
    {
        FaultKind.LATENCY,
        FaultKind.TRUNCATED_BODY,
        FaultKind.WRONG_CONTENT_TYPE,
        FaultKind.MISSING_SID,
        FaultKind.EMPTY,
        FaultKind.INVALID_JSON,
        FaultKind.SOCKET_FIRST,
    }
)

_OF_STARTS: Final = frozenset({FaultKind.DUPLICATE_NAME, FaultKind.SOCKET_FIRST})
_OF_SOCKETS: Final = frozenset(
    {
        FaultKind.SOCKET_REFUSED,
        FaultKind.SOCKET_SLOW,
        FaultKind.TLS_UNTRUSTED,
        FaultKind.CONNECTION_DROPPED,
        FaultKind.NO_STOP,
        FaultKind.FRAMES_LOST,
        FaultKind.FRAMES_DUPLICATED,
        FaultKind.FRAMES_REORDERED,
        FaultKind.FRAMES_CORRUPTED,
        FaultKind.FRAMES_IN_BURSTS,
    }
)
_OF_CALLBACKS: Final = frozenset(
    {
        FaultKind.CALLBACK_LOST,
        FaultKind.CALLBACK_DUPLICATED,
        FaultKind.CALLBACK_DELAYED,
        FaultKind.CALLBACK_REORDERED,
        FaultKind.CALLBACK_BAD_SIGNATURE,
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
        every_nth: every so manieth matching request trips it.
        per_target: how often it trips at most for each conference or call.
        executed: whether the operation is carried out although its answer is spoiled.
        settings: how the fault goes about it.
        hits: how often it has tripped.
    """

    kind: FaultKind
    operations: frozenset[str]
    target: str | None
    times: int | None
    every_nth: int | None
    per_target: int | None
    executed: bool
    settings: FaultSettings
    hits: int = field(default=0, init=False)
    _counter: int
    _rules: "list[FaultRule]" = field(repr=False)
    _hits_per_target: dict[str | None, int] = field(factory=dict, init=False)

    def remove(self) -> None:
        """Take the rule out; once it is out, this does nothing."""
        if self in self._rules:
            self._rules.remove(self)

    def _matches(self, operation: str, target: str | None) -> bool:
        """Tell whether a request that no earlier rule has taken trips this one, and count it."""
        if operation not in self.operations or (self.target is not None and target != self.target):
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        of_target = self._hits_per_target.get(target, 0)
        if self.per_target is not None and of_target >= self.per_target:
            return False
        if self.every_nth is not None:
            self._counter += 1
            if self._counter % self.every_nth:
                return False
        self.hits += 1
        if self.per_target is not None:
            self._hits_per_target[target] = of_target + 1
        return True


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
        every_nth: int | None = None,
        per_target: int | None = None,
        executed: bool | None = None,
        **settings: object,
    ) -> FaultRule:
        """Add a rule behind those that stand.

        Args:
            kind: what happens, a FaultKind or its text.
            on: "start", "stop", "list", "get", "any" or one operation's name; "any" unless given. For callbacks
                "stream-started", "stream-stopped" or "stream-error".
            target: only requests for this conference or call.
            times: trip so often at most; times=1 is "the next one".
            every_nth: trip on every so manieth matching request, from an offset drawn with the Space's seed.
            per_target: trip so often at most for each conference or call.
            executed: True carries the operation out before the answer is spoiled, False carries nothing out. Unless
                given, latency, truncated-body, wrong-content-type, missing-sid, empty, invalid-json and socket-first carry it out, the
                others not.
            **settings: what the kind takes, see FaultSettings.

        Raises:
            ValueError: the kind, the scope or a setting is unknown or does not fit.
        """
        known = _read_kind(kind)
        for name, number in (("times", times), ("every_nth", every_nth), ("per_target", per_target)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        read = read_settings(known, settings)
        if known is FaultKind.RESET_ON_CONNECT:
            _refuse_scopes(
                known, "before a request is known", on=on, target=target, per_target=per_target, executed=executed
            )
        elif known in _OF_SOCKETS:
            _refuse_scopes(known, "to a stream that is dialled", on=on, executed=executed)
        elif known is FaultKind.SOCKET_FIRST:
            _refuse_scopes(known, "to a start that is carried out", executed=executed)
        elif known in _OF_CALLBACKS:
            _refuse_scopes(known, "to a callback", executed=executed)
        carried_out = known in _CARRIED_OUT if executed is None else executed
        if carried_out and known is FaultKind.DUPLICATE_NAME:
            raise ValueError("'duplicate-name' starts nothing: leave executed out")
        rule = FaultRule(
            kind=known,
            operations=_read_scope(known, on),
            target=target,
            times=times,
            every_nth=every_nth,
            per_target=per_target,
            executed=carried_out,
            settings=read,
            counter=self._random.randrange(every_nth) if every_nth is not None else 0,
            rules=self._rules,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Take every rule out."""
        self._rules.clear()

    def trip(self, operation: str, target: str | None) -> FaultRule | None:
        """Find the rule that a request trips, and count it there."""
        return next((rule for rule in self._rules if rule._matches(operation, target)), None)

    def trip_dialling(self, target: str) -> "list[FaultRule]":
        """Find the rules that the dialling of a stream trips, and count it there: all that apply."""
        return [rule for rule in self._rules if rule._matches("dial", target)]

    def trip_callback(self, event: str, target: str) -> "FaultRule | None":
        """Find the rule that a callback trips, and count it there."""
        return self.trip(event, target)

    def trip_connection(self) -> bool:
        """Tell whether a new connection is to be reset before anything is read."""
        return any(rule._matches("connect", None) for rule in self._rules)


def _read_kind(kind: FaultKind | str) -> FaultKind:
    try:
        return FaultKind(kind)
    except ValueError:
        kinds = ", ".join(sorted(FaultKind))
        raise ValueError(f"{kind!r} is no kind of fault; there are {kinds}") from None


def _read_scope(kind: FaultKind, on: str | None) -> frozenset[str]:
    if kind is FaultKind.RESET_ON_CONNECT:
        return _CONNECT
    if kind in _OF_SOCKETS:
        return _DIAL
    scopes, usual = _SCOPES, "any"
    if kind in _OF_CALLBACKS:
        scopes = _CALLBACK_SCOPES
    elif kind in _OF_STARTS:
        scopes, usual = {name: scope for name, scope in _SCOPES.items() if scope <= _START}, "start"
    scope = scopes.get(usual if on is None else on)
    if scope is None:
        raise ValueError(f"on={on!r} is no scope of {kind.value!r}; write one of {', '.join(sorted(scopes))}")
    return scope


def _refuse_scopes(kind: FaultKind, when: str, **scopes: object) -> None:
    given = [name for name, value in scopes.items() if value is not None]
    if given:
        raise ValueError(f"{kind.value!r} happens {when}: leave out {', '.join(given)}, use times or every_nth")
