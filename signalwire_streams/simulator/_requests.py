"""Requests to the Compatibility API: their routing, parsing, documented validation and redaction (pure).

Source: https://signalwire.com/docs/compatibility-api/ and its OpenAPI description, which also forbids every field
that it does not name. Codes: 21402 bad URL, 21456 bad callback URL, 53404 unsupported codec, 10000 the rest. The
sentences are ours; the vendor does not document its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_plus, urlsplit

from attrs import NOTHING, define, field, fields, frozen

from signalwire_streams.simulator._sources import CODECS

TargetKind = Literal["conference", "call"]

BASE_PATH = "/api/laml/2010-04-01/Accounts/"  # https://signalwire.com/docs/compatibility-api/
UNKNOWN = "unknown"

# By method, collection, sub-collection and the number of segments after /Accounts/.
_OPERATIONS = {
    ("GET", "Conferences", "", 2): "list-conferences",
    ("GET", "Conferences", "", 3): "get-conference",
    ("POST", "Conferences", "", 3): "end-conference",
    ("GET", "Conferences", "Participants", 4): "list-participants",
    ("POST", "Conferences", "Streams", 4): "start-conference-stream",
    ("POST", "Conferences", "Streams", 5): "stop-conference-stream",
    ("GET", "Calls", "", 2): "list-calls",
    ("GET", "Calls", "", 3): "get-call",
    ("POST", "Calls", "", 3): "end-call",
    ("POST", "Calls", "Streams", 4): "start-call-stream",
    ("POST", "Calls", "Streams", 5): "stop-call-stream",
}

_ABSENT: list[str | None] = [None] * 5

OPERATIONS = frozenset({*_OPERATIONS.values(), UNKNOWN})


@frozen
class Route:
    operation: str
    path: str
    query: str = ""
    account_sid: str = ""
    target_kind: TargetKind = "conference"
    target_sid: str | None = None
    stream: str | None = None

    def query_fields(self) -> dict[str, str]:
        """Return the query's fields; of a repeated one the last."""
        return dict(parse_qsl(self.query, keep_blank_values=True)) if self.query else {}


def find_route(method: str, raw_path: str) -> Route:
    """Parse a request line.

    Every path is valid with and without ``.json``: the vendor's own ``uri`` values carry the suffix
    (https://signalwire.com/docs/compatibility-api/), its documented paths do not. Segments are percent-decoded
    one by one, so an encoded slash stays inside its segment.
    """
    path, _, query = raw_path.partition("?")
    if not path.startswith(BASE_PATH):
        return Route(UNKNOWN, path, query)
    segments = path[len(BASE_PATH) :].removesuffix(".json").split("/")
    if "%" in path:
        segments = [unquote(segment) for segment in segments]
    account, collection, target, subcollection, stream = [*segments, *_ABSENT][:5]
    return Route(
        operation=_OPERATIONS.get((method, collection or "", subcollection or "", len(segments)), UNKNOWN),
        path=path,
        query=query,
        account_sid=account or "",
        target_kind="call" if collection == "Calls" else "conference",
        target_sid=target,
        stream=stream,
    )


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def redact_url(url: str) -> str:
    """Return a URL without user, password, query and fragment.

    All up to the last ``@`` is taken for user and password, since one that was not encoded can hold anything.
    """
    before, _, rest = url.rpartition("@")
    scheme = _SCHEME.match(before)
    return (scheme[0] if scheme else "") + re.split(r"[?#]", rest, maxsplit=1)[0]


def redact_values(parameters: Mapping[str, str]) -> dict[str, str]:
    return dict.fromkeys(parameters, "***")


_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"


@frozen
class Fields:
    """A body's fields by their wire names, or the problem that kept it from being parsed."""

    values: dict[str, str] = field(factory=dict, repr=False)
    problem: str | None = None


def read_fields(content_type: str, body: bytes) -> Fields:
    """Parse a body.

    Forms are documented (https://signalwire.com/docs/compatibility-api/); JSON is what the vendor's own SDK sends,
    booleans and numbers included. Of a repeated field the last counts.
    """
    if not body:
        return Fields()
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == _FORM:
        return _read_form(body)
    if media_type == _JSON:
        return _read_json(body)
    return Fields(problem=f"Content-Type must be {_FORM} or {_JSON}, not {media_type or 'missing'}")


def _read_form(body: bytes) -> Fields:
    # Every start comes this way, and urllib's parse_qsl takes three times as long.
    values: dict[str, str] = {}
    try:
        for pair in body.decode().split("&"):
            name, _, value = pair.partition("=")
            if pair:
                values[_unquoted(name)] = _unquoted(value)
    except UnicodeDecodeError:
        return Fields(problem="The form is not UTF-8")
    return Fields(values)


def _unquoted(text: str) -> str:
    return unquote_plus(text, errors="strict") if "%" in text or "+" in text else text


def _read_json(body: bytes) -> Fields:
    try:
        document = json.loads(body)
    except ValueError:
        return Fields(problem="The body is not valid JSON")
    if not isinstance(document, dict):
        return Fields(problem="The body must be a JSON object")
    values: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, bool):
            values[name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            values[name] = str(value)
        elif value is not None:
            return Fields(problem=f"{name} must be a string, a number or a boolean")
    return Fields(values)


INVALID_ARGUMENT = 10000
_INVALID_URL = 21402
_INVALID_CALLBACK = 21456
_INVALID_CODEC = 53404

_CODEC = re.compile(rf"({'|'.join(CODECS)}|G722)(@[1-9][0-9]{{3,5}}h)?(@[1-9][0-9]{{0,2}}i)?")
_PARAMETER_NAME = re.compile(r"Parameter[0-9]+\.Name")
_PARAMETER = re.compile(r"Parameter([1-9][0-9]{0,5})\.(Name|Value)")
_MAX_PARAMETERS = 99


@frozen
class Problem:
    message: str
    code: int = INVALID_ARGUMENT


_Check = Callable[[str], str | None]
"""Validates a value: returns the problem, if any."""


def _one_of(*values: str) -> _Check:
    return lambda value: None if value in values else f"must be one of {', '.join(values)}"


def _split(value: str) -> SplitResult | None:
    if not value.isprintable() or " " in value:
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises if it is none
    except ValueError:
        return None
    return parts


def is_ws_on_loopback(url: str) -> bool:
    """Return whether a URL is one of this machine's without TLS, which no real Space dials."""
    parts = _split(url)
    return parts is not None and parts.scheme == "ws" and parts.hostname in {"127.0.0.1", "::1", "localhost"}


@lru_cache(maxsize=1024)
def _stream_url(value: str) -> str | None:
    # "Absolute or relative URL ... The only supported protocol is wss"; custom parameters replace a query string.
    if not value:
        return "can't be blank"
    parts = _split(value)
    if parts is None:
        return "is not a valid URL"
    if "?" in value:
        return "must not have a query string: use custom parameters"
    if not parts.scheme and value.startswith("/"):
        return None
    if parts.scheme != "wss":
        return "must be a wss URL"
    return None if parts.hostname else "is not a valid URL"


def _callback_url(value: str) -> str | None:
    parts = _split(value)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must be an http or https URL"
    return None


def _codec(value: str) -> str | None:
    # The modifiers and G722 are documented for the platform's other APIs; whether this field takes them is not known.
    return None if _CODEC.fullmatch(value) else "is not a supported codec"


_Checks = Mapping[str, tuple[_Check, int]]


@frozen
class _Schema:
    checks: _Checks
    required: str | None = None
    has_parameters: bool = False


def _hide(_: str) -> str:
    return "***"


@frozen
class _StartField:
    """A field of a start: how it is sent and checked, and what may be shown of it."""

    wire_name: str
    check: _Check
    code: int = INVALID_ARGUMENT
    conferences_only: bool = False
    parse: Callable[[str], object] = str
    shown: Callable[[str], str] = str


def _wire(wire_name: str, check: _Check, *, default: object = None, **settings: Any) -> Any:  # noqa: ANN401  (attrs')
    start_field = _StartField(wire_name, check, **settings)
    shown = start_field.shown
    return field(
        default=default,
        repr=shown is not _hide if shown in {str, _hide} else lambda value: repr(value and shown(value)),
        metadata={_StartField: start_field},
    )


@define(eq=False, kw_only=True)
class StreamRequest:
    """The fields of a start. To add a field, add it here: the rest of the Space takes it from this table."""

    url: str = _wire("Url", _stream_url, default=NOTHING, code=_INVALID_URL, shown=redact_url)
    name: str | None = _wire("Name", lambda name: None if name.strip() else "can't be blank")
    track: str = _wire("Track", _one_of("inbound_track", "outbound_track", "both_tracks"), default="both_tracks")
    codec: str | None = _wire("StreamCodec", _codec, code=_INVALID_CODEC, conferences_only=True)
    realtime: bool | None = _wire(
        "StreamRealTime", _one_of("true", "false"), conferences_only=True, parse="true".__eq__
    )
    status_callback: str | None = _wire("StatusCallback", _callback_url, code=_INVALID_CALLBACK, shown=redact_url)
    status_callback_method: str = _wire("StatusCallbackMethod", _one_of("GET", "POST"), default="POST")
    authorization_bearer_token: str | None = _wire("AuthorizationBearerToken", lambda _: None, shown=_hide)
    parameters: Mapping[str, str] = field(factory=dict, repr=lambda parameters: repr(redact_values(parameters)))


_START_FIELDS: Mapping[str, _StartField] = {
    attribute.name: attribute.metadata[_StartField]
    for attribute in fields(StreamRequest)
    if _StartField in attribute.metadata
}


def _start_of(kind: TargetKind) -> _Schema:
    checks = {
        each.wire_name: (each.check, each.code)
        for each in _START_FIELDS.values()
        if kind == "conference" or not each.conferences_only
    }
    return _Schema(checks, required="Url", has_parameters=True)


_STOP = _Schema({"Status": (_one_of("stopped"), INVALID_ARGUMENT)}, required="Status")
_METHOD = _one_of("GET", "POST"), INVALID_ARGUMENT
_SCHEMAS = {
    "start-call-stream": _start_of("call"),
    "start-conference-stream": _start_of("conference"),
    "stop-call-stream": _STOP,
    "stop-conference-stream": _STOP,
    "end-conference": _Schema(
        {
            "Status": (_one_of("completed"), INVALID_ARGUMENT),
            "AnnounceUrl": (_callback_url, _INVALID_URL),
            "AnnounceMethod": _METHOD,
        }
    ),
    # Its other documented fields redirect the call, which this Space does not do.
    "end-call": _Schema(
        {
            "Status": (_one_of("canceled", "completed"), INVALID_ARGUMENT),
            "StatusCallback": (_callback_url, _INVALID_CALLBACK),
            "StatusCallbackMethod": _METHOD,
        }
    ),
}


def check_fields(operation: str, values: Mapping[str, str]) -> list[Problem]:
    schema = _SCHEMAS[operation]
    problems = []
    if schema.required is not None and schema.required not in values:
        problems.append(Problem(f"{schema.required} is required", schema.checks[schema.required][1]))
    others = {}
    for name, value in values.items():
        if name not in schema.checks:
            others[name] = value
            continue
        check, code = schema.checks[name]
        fault = check(value)
        if fault is not None:
            problems.append(Problem(f"{name} {fault}", code))
    return [*problems, *(_parameters(others) if schema.has_parameters else map(_unknown, others))]


def attributes_of(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes of a `StreamRequest` from the fields of a start, which have been checked."""
    attributes = {
        name: start_field.parse(values[start_field.wire_name])
        for name, start_field in _START_FIELDS.items()
        if start_field.wire_name in values
    }
    parameters = {
        value: values[f"{name.removesuffix('.Name')}.Value"]
        for name, value in values.items()
        if _PARAMETER_NAME.fullmatch(name)
    }
    return {**attributes, "parameters": parameters}


_SHOWN: Mapping[str, Callable[[str], str]] = {
    **{each.wire_name: each.shown for each in _START_FIELDS.values()},
    "Status": str,
    "AnnounceMethod": str,
    "AnnounceUrl": redact_url,
}


def redact_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return a body's fields with the values of those that hold no secret.

    An unknown name may be a misspelled one of the others, so its value is hidden.
    """
    return {
        name: _SHOWN.get(name, str if _PARAMETER_NAME.fullmatch(name) else _hide)(value)
        for name, value in values.items()
    }


def _unknown(name: str) -> Problem:
    return Problem(f"{name} is not a known field")


def _parameters(values: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in values.items():
        match = _PARAMETER.fullmatch(name)
        if match is None:
            yield _unknown(name)
            continue
        number, part = match.groups()
        if int(number) > _MAX_PARAMETERS:
            yield Problem(f"{name}: custom parameters are numbered 1 to {_MAX_PARAMETERS}")
        partner = f"Parameter{number}.{'Value' if part == 'Name' else 'Name'}"
        if partner not in values:
            yield Problem(f"{name} has no {partner}")
        if part == "Name" and not value:
            yield Problem(f"{name} can't be blank")
