"""The documented validations of request bodies (pure).

Source: https://signalwire.com/docs/compatibility-api/ and its OpenAPI description, which also forbids every field
that it does not name. Codes: 21402 bad URL, 21456 bad callback URL, 53404 unsupported codec, 10000 the rest. The
sentences are ours; the vendor does not document its own.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final
from urllib.parse import SplitResult, unquote_plus, urlsplit

from attrs import field, frozen

from signalwire_streams.simulator._routes import TargetKind

_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"


@frozen
class Fields:
    """A body's fields by their wire names, or the problem that kept it from being read."""

    values: dict[str, str] = field(factory=dict, repr=False)
    problem: str | None = None


def read_fields(content_type: str, body: bytes) -> Fields:
    """Read a body.

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
    # By hand, since every start comes this way and urllib's parse_qsl takes three times as long.
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
    if "%" in text or "+" in text:
        return unquote_plus(text, errors="strict")
    return text


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


INVALID_ARGUMENT: Final = 10000
INVALID_URL: Final = 21402
INVALID_CALLBACK: Final = 21456
INVALID_CODEC: Final = 53404

_CODEC: Final = re.compile(r"(PCMU|PCMA|G722|L16)(@[1-9][0-9]{3,5}h)?(@[1-9][0-9]{0,2}i)?")
_PARAMETER: Final = re.compile(r"Parameter([1-9][0-9]{0,5})\.(Name|Value)")
_MOST_PARAMETERS: Final = 99


@frozen
class Problem:
    """What is wrong with a request, with the API's error code for it."""

    message: str
    code: int = INVALID_ARGUMENT


Check = Callable[[str], str | None]


def _one_of(*values: str) -> Check:
    choices = frozenset(values)
    sentence = f"must be one of {', '.join(values)}"

    def check(value: str) -> str | None:
        return None if value in choices else sentence

    return check


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
    """Tell whether an address is one of this machine's, without TLS, which no real Space dials."""
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


def _anything(_value: str) -> str | None:
    return None


_CALL_STREAM: Final[Mapping[str, tuple[Check, int]]] = MappingProxyType(
    {
        "Url": (_stream_url, INVALID_URL),
        "Name": (_not_blank, INVALID_ARGUMENT),
        "Track": (_one_of("inbound_track", "outbound_track", "both_tracks"), INVALID_ARGUMENT),
        "StatusCallback": (_callback_url, INVALID_CALLBACK),
        "StatusCallbackMethod": (_one_of("GET", "POST"), INVALID_ARGUMENT),
        "AuthorizationBearerToken": (_anything, INVALID_ARGUMENT),
    }
)
_CONFERENCE_STREAM: Final[Mapping[str, tuple[Check, int]]] = MappingProxyType(
    {
        **_CALL_STREAM,
        "StreamCodec": (_codec, INVALID_CODEC),
        "StreamRealTime": (_one_of("true", "false"), INVALID_ARGUMENT),
    }
)
_STOP: Final[Mapping[str, tuple[Check, int]]] = MappingProxyType({"Status": (_one_of("stopped"), INVALID_ARGUMENT)})
_END_CONFERENCE: Final[Mapping[str, tuple[Check, int]]] = MappingProxyType(
    {
        "Status": (_one_of("completed"), INVALID_ARGUMENT),
        "AnnounceUrl": (_callback_url, INVALID_URL),
        "AnnounceMethod": (_one_of("GET", "POST"), INVALID_ARGUMENT),
    }
)


def check_start(kind: TargetKind, values: Mapping[str, str]) -> list[Problem]:
    """Find everything that is wrong with the fields of a start."""
    checks = _CALL_STREAM if kind == "call" else _CONFERENCE_STREAM
    problems = [] if "Url" in values else [Problem("Url is required", INVALID_URL)]
    others: dict[str, str] = {}
    for name, value in values.items():
        if name in checks:
            problems.extend(_apply(checks, name, value))
        else:
            others[name] = value
    if others:
        problems.extend(_check_parameters(others))
    return problems


def check_stop(values: Mapping[str, str]) -> list[Problem]:
    """Find everything that is wrong with the fields of a stop."""
    missing = [] if "Status" in values else [Problem("Status is required")]
    return [*missing, *_check_known(_STOP, values)]


def check_end_conference(values: Mapping[str, str]) -> list[Problem]:
    """Find everything that is wrong with the fields of a conference's update."""
    return _check_known(_END_CONFERENCE, values)


def parameters_of(values: Mapping[str, str]) -> dict[str, str]:
    """Give the custom parameters, name to value, of fields that have passed the check."""
    return {
        value: values[f"{field.removesuffix('.Name')}.Value"]
        for field, value in values.items()
        if field.startswith("Parameter") and field.endswith(".Name")
    }


def _apply(checks: Mapping[str, tuple[Check, int]], name: str, value: str) -> Iterator[Problem]:
    check, code = checks[name]
    fault = check(value)
    if fault is not None:
        yield Problem(f"{name} {fault}", code)


def _check_known(checks: Mapping[str, tuple[Check, int]], values: Mapping[str, str]) -> list[Problem]:
    problems: list[Problem] = []
    for name, value in values.items():
        problems.extend(_apply(checks, name, value) if name in checks else [_unknown(name)])
    return problems


def _unknown(name: str) -> Problem:
    return Problem(f"{name} is not a known field")


def _check_parameters(values: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in values.items():
        match = _PARAMETER.fullmatch(name)
        if match is None:
            yield _unknown(name)
            continue
        number, part = match.groups()
        if int(number) > _MOST_PARAMETERS:
            yield Problem(f"{name}: custom parameters are numbered 1 to {_MOST_PARAMETERS}")
        partner = f"Parameter{number}.{'Value' if part == 'Name' else 'Name'}"
        if partner not in values:
            yield Problem(f"{name} has no {partner}")
        if part == "Name" and not value:
            yield Problem(f"{name} can't be blank")
