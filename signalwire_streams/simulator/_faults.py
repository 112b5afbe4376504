"""Fault injection: kinds of faults, their subjects, and the replaced responses (pure).

Rules are matched in the order in which they were added. A request, connection or callback triggers at most one rule.
One that triggers an earlier rule does not advance a later rule's counter, so what each rule hits is exact, and the same
in every run with the same seed. A stream that is dialled triggers every rule that applies to it.

To add a kind of fault, add a member with its definition to `FaultKind`; the command line takes it from there. What its
`respond` returns is sent instead of the response: another `Response`, or `RawBytes`, in pieces and with pauses if need
be. Only kinds that change how a stream connects or a callback is sent need further code, in those modules.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, StrEnum, auto
from math import inf
from typing import Any, Literal, Self, TypeAlias, get_args

from attrs import Attribute, Factory, define, evolve, field, frozen

from signalwire_streams.simulator._requests import OPERATIONS, UNKNOWN
from signalwire_streams.simulator._responses import (
    Response,
    api_error,
    http_message,
    json_response,
    reason_phrase,
    retry_after_header,
)

Body = Literal["api", "html", "empty"]
DuplicateResponse = Literal["http-error", "stream-error"]


def _setting(default: object, wanted: str, is_valid: Callable[[Any], bool]) -> Any:  # noqa: ANN401  (as attrs' own field)
    def check(_: object, attribute: "Attribute[Any]", value: object) -> None:
        if not is_valid(value):
            raise ValueError(f"{attribute.name} must be {wanted}, not {value!r}")

    return field(default=default, validator=check)


def _of(kind: Any) -> Callable[[Any], bool]:  # noqa: ANN401  (a type or a union of types)
    return lambda value: isinstance(value, kind)


_COUNT = "a whole number from 1", lambda value: isinstance(value, int) and value >= 1


@frozen(kw_only=True)
class FaultSettings:
    """How a fault behaves; each kind takes only its own settings.

    Attributes:
        seconds: how long ``latency`` delays the response. The request is logged before that, unless the rule has
            executed=False, which executes it after the delay. Also how long ``executed-late`` executes a request after
            its connection was closed without a response, ``socket-slow`` waits between connection and upgrade, and
            ``callback-delayed`` before its first attempt.
        read_body: whether ``hang`` and ``reset`` read the request's body.
        status: the HTTP status of ``throttle``, ``status`` and ``redirect``.
        body: ``api`` for the API's JSON error body, ``html`` for a proxy's page, ``empty`` for nothing.
        code: the API's error code in that body; None chooses one that fits the status.
        retry_after: seconds, or the header's text.
        headers: additional headers.
        location: where ``redirect`` points to.
        as_: how ``duplicate-name`` is reported: ``http-error`` or ``stream-error``.
        after: media frames that are sent before ``connection-dropped``.
        every: every n-th media frame is lost, duplicated, reordered or corrupted; or every n-th item of a page is
            missing from it, as if it had moved to a page that was read before.
        frames: media frames that arrive together with ``frames-in-bursts``.
    """

    seconds: float = _setting(
        0.0, "a number of seconds", lambda value: isinstance(value, int | float) and 0 <= value < inf
    )
    read_body: bool = _setting(True, "True or False", _of(bool))
    status: int = _setting(500, "an HTTP status from 200 to 599", lambda value: value in range(200, 600))
    body: Body = _setting("html", "'api', 'html' or 'empty'", get_args(Body).__contains__)  # noqa: RUF009  (as attrs' own field)
    code: int | None = _setting(None, "an error code such as 20429", _of(int | None))
    retry_after: float | str | None = _setting(None, "seconds or the header's text", _of(int | float | str | None))
    headers: Mapping[str, str] = _setting(Factory(dict), "a mapping of header names to values", _of(Mapping))
    location: str = _setting("/", "a string", _of(str))
    as_: DuplicateResponse = _setting(  # noqa: RUF009  (the same)
        "http-error", "'http-error' or 'stream-error'", get_args(DuplicateResponse).__contains__
    )
    after: int = _setting(10, *_COUNT)
    every: int = _setting(10, *_COUNT)
    frames: int = _setting(10, *_COUNT)


class Disconnection(Enum):
    """A connection that ends without a response."""

    RESET = auto()
    HANG = auto()


@frozen
class RawBytes:
    """Bytes that are sent as they are, in pieces with a pause of some seconds after each; then FIN, if `closes`."""

    pieces: tuple[bytes, ...] = field(repr=False)
    pause: float = 0.0
    closes: bool = True


FaultyResponse: TypeAlias = Response | RawBytes | Disconnection
_Responder: TypeAlias = Callable[[Response, FaultSettings], FaultyResponse]

NOT_EXECUTED = json_response({"sid": "00000000-0000-4000-8000-000000000000", "status": "queued"})
"""Stands for the response to a request that was not executed: a sid that belongs to nothing."""

# The API's codes by HTTP status, where a documented one fits; a 503 is "unknown", not an internal error.
_CODES = {401: 20003, 403: 10003, 404: 20404, 429: 20429, 500: 20504}
_UNKNOWN_ERROR = 20001


def _page(status: int) -> bytes:
    title = f"{status} {reason_phrase(status)}"
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n".encode()


def _error(_: Response, settings: FaultSettings) -> Response:
    status, headers = settings.status, {**settings.headers, **retry_after_header(settings.retry_after)}
    if settings.body == "api":
        code = settings.code if settings.code is not None else _CODES.get(status, _UNKNOWN_ERROR)
        return evolve(api_error(status, code, reason_phrase(status)), headers=headers)
    return Response(status, b"" if settings.body == "empty" else _page(status), "text/html", headers)


def _redirect(_: Response, settings: FaultSettings) -> Response:
    return Response(settings.status, _page(settings.status), "text/html", {"Location": settings.location})


def _without_sid(response: Response) -> Response:
    document = {name: value for name, value in json.loads(response.body).items() if name != "sid"}
    return evolve(response, body=json.dumps(document).encode())


def _tear(response: Response, settings: FaultSettings) -> Response:
    page = json.loads(response.body)
    torn = {
        name: [item for number, item in enumerate(value, 1) if number % settings.every]
        for name, value in page.items()
        if isinstance(value, list)
    }
    return evolve(response, body=json.dumps({**page, **torn}).encode())


@define(eq=False)
class FrameFault:
    """Changes the media frames of one stream before they are sent; `change` returns what is sent for the next one."""

    settings: FaultSettings
    change: "_FrameChange"
    count: int = 0  # of the frames so far, including the next one
    held: list[str] = field(factory=list)

    def process(self, frames: Sequence[str]) -> list[str]:
        sent = []
        for frame in frames:
            self.count += 1
            sent += self.change(self, frame)
        return sent

    def flush(self) -> list[str]:
        held, self.held = self.held, []
        return held


_FrameChange: TypeAlias = Callable[[FrameFault, str], list[str]]


def _replace_every_nth(replace: Callable[[str], list[str]]) -> _FrameChange:
    return lambda fault, frame: [frame] if fault.count % fault.settings.every else replace(frame)


def _swap_every_nth(fault: FrameFault, frame: str) -> list[str]:
    if fault.held or fault.count % fault.settings.every:
        return [frame, *fault.flush()]
    fault.held = [frame]
    return []


def _send_in_bursts(fault: FrameFault, frame: str) -> list[str]:
    fault.held.append(frame)
    return fault.flush() if len(fault.held) >= fault.settings.frames else []


_STARTS = frozenset({"start-conference-stream", "start-call-stream"})
_REQUEST_SCOPES = {
    "any": OPERATIONS - {UNKNOWN},
    "start": _STARTS,
    "stop": frozenset({"stop-conference-stream", "stop-call-stream"}),
    "end": frozenset({"end-conference", "end-call"}),
    "list": frozenset({"list-conferences", "list-participants", "list-calls"}),
    "get": frozenset({"get-conference", "get-call"}),
    **{operation: frozenset({operation}) for operation in OPERATIONS},
}
_EVENTS = frozenset({"stream-started", "stream-stopped", "stream-error"})


@frozen(eq=False)
class _Subject:
    """The subject of a kind of fault, and the arguments of `Faults.add` that it rejects.

    The keys of ``scopes`` are the values of ``on``, the first is the default; ``when`` completes the message
    about a rejected argument.
    """

    scopes: Mapping[str, frozenset[str]]
    when: str = ""
    rejects: tuple[str, ...] = ()


_REQUEST = _Subject(_REQUEST_SCOPES)
_START = _Subject({name: scope for name, scope in _REQUEST_SCOPES.items() if scope <= _STARTS})
_EXECUTED_START = evolve(_START, when="to a start that is executed", rejects=("executed",))
# Neither a connection nor the dialling of a stream is an operation of the API; these stand for them.
_CONNECTION = _Subject(
    {"any": frozenset({"connect"})}, "before a request is read", ("on", "target", "per_target", "executed")
)
_DIALLING = _Subject({"any": frozenset({"dial"})}, "to a stream that is dialled", ("on", "executed"))
_LATE = evolve(_REQUEST, when="to a request that is executed after its response was lost", rejects=("executed",))
_LIST = _Subject(
    {"any": _REQUEST_SCOPES["list"], **{name: frozenset({name}) for name in sorted(_REQUEST_SCOPES["list"])}},
    "to a list that is executed",
    ("executed",),
)
_CALLBACK = _Subject(
    {"any": _EVENTS, **{event: frozenset({event}) for event in sorted(_EVENTS)}}, "to a callback", ("executed",)
)


@frozen(kw_only=True)
class _Definition:
    subject: _Subject = _REQUEST
    takes: tuple[str, ...] = ()
    needs: str | None = None
    defaults: FaultSettings = FaultSettings()
    executed: bool = False
    respond: _Responder = lambda response, _: response
    frames: _FrameChange | None = None


_PLAIN = _Definition()
_DEFINITIONS: dict[str, _Definition] = {}
_ERROR = ("body", "code", "retry_after", "headers")


def _failure(status: int, *takes: str, body: Body = "html", needs: str | None = None) -> _Definition:
    defaults = FaultSettings(status=status, body=body)
    return _Definition(takes=(*takes, *_ERROR), needs=needs, defaults=defaults, respond=_error)


def _raw(*pieces: bytes) -> _Definition:
    return _Definition(respond=lambda *_: RawBytes(pieces))


def _executed(respond: Callable[[Response], FaultyResponse]) -> _Definition:
    return _Definition(executed=True, respond=lambda response, _: respond(response))


def _of_frames(setting: str, change: _FrameChange) -> _Definition:
    return _Definition(subject=_DIALLING, takes=(setting,), frames=change)


def _of_seconds(subject: _Subject, *, executed: bool = False) -> _Definition:
    return _Definition(subject=subject, takes=("seconds",), needs="seconds", executed=executed)


class FaultKind(StrEnum):
    """The effect of a fault: on a request, response or connection; on a stream's socket or frames; on a callback."""

    def __new__(cls, value: str, definition: _Definition = _PLAIN) -> Self:
        kind = str.__new__(cls, value)
        kind._value_ = value
        _DEFINITIONS[value] = definition
        return kind

    @property
    def settings(self) -> tuple[str, ...]:
        """Its settings: names of fields of `FaultSettings`."""
        return _DEFINITIONS[self].takes

    @property
    def affects_dialling(self) -> bool:
        """Whether it happens to a stream that is dialled: to its connection, or to its frames."""
        return _DEFINITIONS[self].subject is _DIALLING

    @property
    def requires_audio(self) -> bool:
        """Whether it requires a Space with audio, which connects to WebSocket servers."""
        return self.affects_dialling or _DEFINITIONS[self].subject is _EXECUTED_START

    @property
    def requires_callbacks(self) -> bool:
        """Whether it requires a Space with callbacks."""
        return _DEFINITIONS[self].subject is _CALLBACK

    LATENCY = "latency", _of_seconds(_REQUEST, executed=True)
    HANG = "hang", _Definition(takes=("read_body",), respond=lambda *_: Disconnection.HANG)
    RESET = (
        "reset",
        _Definition(
            takes=("read_body",), defaults=FaultSettings(read_body=False), respond=lambda *_: Disconnection.RESET
        ),
    )
    DISCONNECT = "disconnect", _raw()
    RESET_ON_CONNECT = "reset-on-connect", _Definition(subject=_CONNECTION)
    THROTTLE = "throttle", _failure(429, "status", body="api")
    STATUS = "status", _failure(500, "status", needs="status")
    PROXY_500 = "500", _failure(500)
    PROXY_502 = "502", _failure(502)
    PROXY_503 = "503", _failure(503)
    PROXY_504 = "504", _failure(504)
    API_503 = "503-api", _failure(503, body="api")
    GARBAGE = "garbage", _raw(b"\x16\x03\x01 this is not HTTP\x00\xff\r\n\r\n")
    HTML = "html", _Definition(respond=lambda *_: Response(200, _page(200), "text/html"))
    TRUNCATED_HEADERS = (
        "truncated-headers",
        _Definition(respond=lambda response, _: RawBytes((http_message(response).partition(b"\r\n\r\n")[0],))),
    )
    TRUNCATED_BODY = (  # by at least a byte
        "truncated-body",
        _executed(lambda response: RawBytes((http_message(response)[: -(len(response.body) + 1) // 2],))),
    )
    WRONG_CONTENT_TYPE = "wrong-content-type", _executed(lambda response: evolve(response, content_type="text/plain"))
    MISSING_SID = "missing-sid", _executed(_without_sid)
    EMPTY = "empty", _executed(lambda response: evolve(response, body=b""))
    INVALID_JSON = (
        "invalid-json",
        _executed(lambda response: evolve(response, body=response.body[: len(response.body) // 2])),
    )
    EXECUTED_LATE = "executed-late", _of_seconds(_LATE)
    LIST_TORN = "list-torn", _Definition(subject=_LIST, takes=("every",), executed=True, respond=_tear)
    REDIRECT = (
        "redirect",
        _Definition(takes=("status", "location"), defaults=FaultSettings(status=307), respond=_redirect),
    )
    DUPLICATE_NAME = "duplicate-name", _Definition(subject=_START, takes=("as_",))
    SOCKET_FIRST = "socket-first", _Definition(subject=_EXECUTED_START, executed=True)
    SOCKET_REFUSED = "socket-refused", _Definition(subject=_DIALLING)
    SOCKET_SLOW = "socket-slow", _of_seconds(_DIALLING)
    TLS_UNTRUSTED = "tls-untrusted", _Definition(subject=_DIALLING)
    CONNECTION_DROPPED = "connection-dropped", _Definition(subject=_DIALLING, takes=("after",))
    NO_STOP = "no-stop", _Definition(subject=_DIALLING)
    FRAMES_LOST = "frames-lost", _of_frames("every", _replace_every_nth(lambda _: []))
    FRAMES_DUPLICATED = "frames-duplicated", _of_frames("every", _replace_every_nth(lambda frame: [frame, frame]))
    FRAMES_REORDERED = "frames-reordered", _of_frames("every", _swap_every_nth)
    FRAMES_CORRUPTED = (  # the inserted character is not Base64
        "frames-corrupted",
        _of_frames("every", _replace_every_nth(lambda frame: [frame.replace('"payload": "', '"payload": "!')])),
    )
    FRAMES_IN_BURSTS = "frames-in-bursts", _of_frames("frames", _send_in_bursts)
    CALLBACK_LOST = "callback-lost", _Definition(subject=_CALLBACK)
    CALLBACK_DUPLICATED = "callback-duplicated", _Definition(subject=_CALLBACK)
    CALLBACK_DELAYED = "callback-delayed", _of_seconds(_CALLBACK)
    CALLBACK_REORDERED = "callback-reordered", _Definition(subject=_CALLBACK)
    CALLBACK_BAD_SIGNATURE = "callback-bad-signature", _Definition(subject=_CALLBACK)


@define(eq=False, kw_only=True)
class FaultRule:
    """One rule; the other attributes are as passed to `Faults.add`.

    Attributes:
        operations: the operations it applies to.
        settings: how the fault behaves.
        hits: how often it has triggered.
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
        """Remove the rule; removing it again does nothing."""
        if self in self._rules:
            self._rules.remove(self)

    def _matches(self, operation: str, target: str | None) -> bool:
        if operation not in self.operations or self.target not in {None, target}:
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        hits = self._hits_per_target.get(target, 0)
        if self.per_target is not None and hits >= self.per_target:
            return False
        if self.every_nth is not None:
            self._counter += 1
            if self._counter % self.every_nth:
                return False
        self.hits += 1
        if self.per_target is not None:
            self._hits_per_target[target] = hits + 1
        return True


class Faults:
    """The Space's fault rules."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._rules: list[FaultRule] = []

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
        **settings: Any,  # noqa: ANN401  (each setting has its own type)
    ) -> FaultRule:
        """Add a rule after the existing ones.

        Args:
            kind: what happens, a FaultKind or its text.
            on: "start", "stop", "end", "list", "get", "any" or one operation's name; "any" unless given. For callbacks
                "stream-started", "stream-stopped" or "stream-error".
            target: only requests for this conference or call.
            times: trigger at most this often; times=1 is "the next one".
            every_nth: trigger on every n-th matching request, from an offset drawn with the Space's seed.
            per_target: trigger at most this often for each conference or call.
            executed: True executes the request before its response is replaced, False does not execute it. By default
                latency, truncated-body, wrong-content-type, missing-sid, empty, invalid-json and socket-first
                execute it, the others do not.
            **settings: the kind's settings, see FaultSettings.

        Raises:
            ValueError: the kind, the scope or a setting is unknown or does not fit.
        """
        if kind not in _DEFINITIONS:
            raise ValueError(f"{kind!r} is not a kind of fault: write one of {', '.join(sorted(FaultKind))}")
        known, definition = FaultKind(kind), _DEFINITIONS[kind]
        for name, number in (("times", times), ("every_nth", every_nth), ("per_target", per_target)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        read = _read_settings(known, definition, settings)
        subject = definition.subject
        given = {"on": on, "target": target, "per_target": per_target, "executed": executed}
        rejected = [name for name in subject.rejects if given[name] is not None]
        if rejected:
            raise ValueError(
                f"{known.value!r} happens {subject.when}: omit {', '.join(rejected)}; use times or every_nth"
            )
        if executed and known is FaultKind.DUPLICATE_NAME:
            raise ValueError("'duplicate-name' starts nothing: omit executed")
        scopes = subject.scopes
        scope = scopes.get(next(iter(scopes)) if on is None else on)
        if scope is None:
            raise ValueError(f"on={on!r} is not a scope of {known.value!r}; write one of {', '.join(sorted(scopes))}")
        rule = FaultRule(
            kind=known,
            operations=scope,
            target=target,
            times=times,
            every_nth=every_nth,
            per_target=per_target,
            executed=definition.executed if executed is None else executed,
            settings=read,
            counter=self._random.randrange(every_nth) if every_nth is not None else 0,
            rules=self._rules,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()


def _read_settings(kind: FaultKind, definition: _Definition, given: Mapping[str, Any]) -> FaultSettings:
    for name in given:
        if name not in definition.takes:
            takes = f"takes {', '.join(definition.takes)}" if definition.takes else "takes no settings"
            raise ValueError(f"{name} is not a setting of {kind.value!r}, which {takes}")
    needs = definition.needs
    if needs is not None and needs not in given:
        raise ValueError(f"{kind.value!r} needs {needs}=..., which has no default")
    return evolve(definition.defaults, **given)


def matching_rules(faults: Faults, operation: str, target: str | None = None) -> Iterator[FaultRule]:
    """Yield the rules that an operation triggers, and count each when it is yielded; not a method that users see."""
    return (rule for rule in faults._rules if rule._matches(operation, target))  # noqa: SLF001


def faulty_response(rule: FaultRule, response: Response) -> FaultyResponse:
    return _DEFINITIONS[rule.kind].respond(response, rule.settings)


def frame_faults(rules: Sequence[FaultRule]) -> list[FrameFault]:
    """Create the frame faults of a stream that triggered these rules, in their order."""
    changes = ((rule.settings, _DEFINITIONS[rule.kind].frames) for rule in rules)
    return [FrameFault(settings, change) for settings, change in changes if change is not None]
