"""Request bodies: parsing, and the documented validation (pure).

Source: https://signalwire.com/docs/compatibility-api/ and its OpenAPI description, which also forbids every field
that it does not name. Codes: 21402 bad URL, 21456 bad callback URL, 53404 unsupported codec, 10000 the rest. The
sentences are ours; the vendor does not document its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import SplitResult, unquote_plus, urlsplit

from attrs import field, frozen

from signalwire_streams.simulator._routes import TargetKind

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
            return Fields(problem=f"{name} must be a text, a number or a boolean")
    return Fields(values)


_INVALID_ARGUMENT = 10000
_INVALID_URL = 21402
_INVALID_CALLBACK = 21456
_INVALID_CODEC = 53404

_CODEC = re.compile(r"(PCMU|PCMA|G722|L16)(@[1-9][0-9]{3,5}h)?(@[1-9][0-9]{0,2}i)?")
_PARAMETER = re.compile(r"Parameter([1-9][0-9]{0,5})\.(Name|Value)")
_MAX_PARAMETERS = 99


@frozen
class Problem:
    """A validation error of a request, with the API's error code."""

    message: str
    code: int = _INVALID_ARGUMENT


_Check = Callable[[str], str | None]
"""Validates a value: returns the problem, if any."""


def _one_of(*values: str) -> _Check:
    return lambda value: None if value in values else f"must be one of {', '.join(values)}"


def _not_blank(value: str) -> str | None:
    return None if value.strip() else "can't be blank"


def _split(value: str) -> SplitResult | None:
    if not value.isprintable() or " " in value:
        return None
    try:
        return urlsplit(value)
    except ValueError:
        return None


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
_CALL_STREAM: _Checks = {
    "Url": (_stream_url, _INVALID_URL),
    "Name": (_not_blank, _INVALID_ARGUMENT),
    "Track": (_one_of("inbound_track", "outbound_track", "both_tracks"), _INVALID_ARGUMENT),
    "StatusCallback": (_callback_url, _INVALID_CALLBACK),
    "StatusCallbackMethod": (_one_of("GET", "POST"), _INVALID_ARGUMENT),
    "AuthorizationBearerToken": (lambda _: None, _INVALID_ARGUMENT),
}
_CONFERENCE_STREAM: _Checks = {
    **_CALL_STREAM,
    "StreamCodec": (_codec, _INVALID_CODEC),
    "StreamRealTime": (_one_of("true", "false"), _INVALID_ARGUMENT),
}
_STOP: _Checks = {"Status": (_one_of("stopped"), _INVALID_ARGUMENT)}
_END_CONFERENCE: _Checks = {
    "Status": (_one_of("completed"), _INVALID_ARGUMENT),
    "AnnounceUrl": (_callback_url, _INVALID_URL),
    "AnnounceMethod": (_one_of("GET", "POST"), _INVALID_ARGUMENT),
}


def check_start(kind: TargetKind, values: Mapping[str, str]) -> list[Problem]:
    """Return all validation errors of a start's fields."""
    checks = _CALL_STREAM if kind == "call" else _CONFERENCE_STREAM
    missing = [] if "Url" in values else [Problem("Url is required", _INVALID_URL)]
    others = {name: value for name, value in values.items() if name not in checks}
    return [*missing, *_known(checks, values), *_parameters(others)]


def check_stop(values: Mapping[str, str]) -> list[Problem]:
    """Return all validation errors of a stop's fields."""
    missing = [] if "Status" in values else [Problem("Status is required")]
    return [*missing, *_known(_STOP, values), *_unknown(_STOP, values)]


def check_end_conference(values: Mapping[str, str]) -> list[Problem]:
    """Return all validation errors of a conference update's fields."""
    return [*_known(_END_CONFERENCE, values), *_unknown(_END_CONFERENCE, values)]


def parameters_of(values: Mapping[str, str]) -> dict[str, str]:
    """Return the custom parameters by name, from fields that have been checked."""
    return {
        value: values[f"{field.removesuffix('.Name')}.Value"]
        for field, value in values.items()
        if field.startswith("Parameter") and field.endswith(".Name")
    }


def _known(checks: _Checks, values: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in values.items():
        if name in checks:
            check, code = checks[name]
            fault = check(value)
            if fault is not None:
                yield Problem(f"{name} {fault}", code)


def _unknown(checks: _Checks, values: Mapping[str, str]) -> Iterator[Problem]:
    return (Problem(f"{name} is not a known field") for name in values if name not in checks)


def _parameters(values: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in values.items():
        match = _PARAMETER.fullmatch(name)
        if match is None:
            yield from _unknown({}, {name: value})
            continue
        number, part = match.groups()
        if int(number) > _MAX_PARAMETERS:
            yield Problem(f"{name}: custom parameters are numbered 1 to {_MAX_PARAMETERS}")
        partner = f"Parameter{number}.{'Value' if part == 'Name' else 'Name'}"
        if partner not in values:
            yield Problem(f"{name} has no {partner}")
        if part == "Name" and not value:
            yield Problem(f"{name} can't be blank")
