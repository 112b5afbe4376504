"""The kinds of faults, and what each can be told (pure)."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from attrs import evolve, frozen

__all__ = ["FaultKind", "FaultSettings", "read_settings"]

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
    CUT_HEADERS = "cut-headers"
    CUT_BODY = "cut-body"
    WRONG_CONTENT_TYPE = "wrong-content-type"
    NO_SID = "no-sid"
    EMPTY = "empty"
    NOT_JSON = "not-json"
    REDIRECT = "redirect"
    DUPLICATE_NAME = "duplicate-name"
    SOCKET_FIRST = "socket-first"
    SOCKET_REFUSED = "socket-refused"
    SOCKET_SLOW = "socket-slow"
    SOCKET_DISTRUSTED = "socket-distrusted"
    SOCKET_DROPPED = "socket-dropped"
    NO_STOP = "no-stop"
    FRAMES_LOST = "frames-lost"
    FRAMES_DOUBLED = "frames-doubled"
    FRAMES_REORDERED = "frames-reordered"
    FRAMES_BROKEN = "frames-broken"
    FRAMES_IN_BURSTS = "frames-in-bursts"
    CALLBACK_LOST = "callback-lost"
    CALLBACK_DOUBLED = "callback-doubled"
    CALLBACK_LATE = "callback-late"
    CALLBACK_REORDERED = "callback-reordered"
    CALLBACK_BADLY_SIGNED = "callback-badly-signed"


@frozen(kw_only=True)
class FaultSettings:
    """How a fault goes about it; each kind takes only its own settings.

    Attributes:
        seconds: how long ``latency`` holds an answer back. The request stands in the journal before that, unless
            the rule has created=False, which carries it out behind the delay. Also what ``socket-slow`` waits
            between connection and upgrade, and ``callback-late`` before its first try.
        read_body: whether ``hang`` and ``reset`` take the request's body off the socket.
        status: the HTTP status of ``throttle``, ``status`` and ``redirect``.
        body: ``api`` for the API's JSON error body, ``html`` for a proxy's page, ``empty`` for nothing.
        code: the API's error code in that body; None chooses one that fits the status.
        retry_after: seconds, or the header's text.
        headers: more headers.
        location: where ``redirect`` points to.
        as_: how ``duplicate-name`` is told: ``http-error`` or ``stream-error``.
        after: media frames that go out before ``socket-dropped``.
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
        FaultKind.SOCKET_DROPPED: (("after",), FaultSettings()),
        FaultKind.FRAMES_LOST: (("every",), FaultSettings()),
        FaultKind.FRAMES_DOUBLED: (("every",), FaultSettings()),
        FaultKind.FRAMES_REORDERED: (("every",), FaultSettings()),
        FaultKind.FRAMES_BROKEN: (("every",), FaultSettings()),
        FaultKind.FRAMES_IN_BURSTS: (("frames",), FaultSettings()),
        FaultKind.CALLBACK_LATE: (("seconds",), FaultSettings()),
    }
)
_NO_SETTINGS: Final[tuple[tuple[str, ...], FaultSettings]] = ((), FaultSettings())
_NEEDED: Final = MappingProxyType(
    {
        FaultKind.LATENCY: "seconds",
        FaultKind.STATUS: "status",
        FaultKind.SOCKET_SLOW: "seconds",
        FaultKind.CALLBACK_LATE: "seconds",
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
