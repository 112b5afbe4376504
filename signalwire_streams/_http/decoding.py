"""JSON to values: tolerant, because a started stream must never be lost to an unreadable detail.

A key that is missing or of the wrong type becomes None, a word that no vocabulary knows stays a ``str``, a
key that nobody knows is kept in ``extra``. Only an id must be there.
"""

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache, partial
from http import HTTPStatus
from operator import eq
from typing import Any, TypeAlias, TypeVar

from attrs import fields
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from signalwire_streams._http.error_bodies import TOO_MANY_REQUESTS, Problem, read_problem, retry_after
from signalwire_streams._http.messages import Request, Response
from signalwire_streams.errors import MalformedResponseError
from signalwire_streams.models import (
    AnsweredBy,
    AttemptResult,
    CallDirection,
    CallStatus,
    ConferenceStatus,
    Operation,
    Page,
    Participant,
    ParticipantStatus,
    StreamStatus,
)
from signalwire_streams.models._validation import is_path_segment

_Value = TypeVar("_Value")

_RENAMES = {
    "from_": "from",
    "date_created_text": "date_created",
    "date_updated_text": "date_updated",
    "start_time_text": "start_time",
    "end_time_text": "end_time",
}
IDS = frozenset({"sid", "call_sid"})
"""Keys under which an answer has an id; under any other that is expected, it has a list."""
# What the client knows of a stream, and no answer says.
_OURS = {"ambiguous": False, "already_started": False, "already_ended": False}


def _text(value: object, _: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):  # ids and codes come as numbers too
        return str(value)
    return value if isinstance(value, str) else None


def _flag(value: object, _: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: object, _: object) -> int | None:
    number = _real(value, _)
    return int(number) if number is not None else None


def _real(value: object, _: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _mapping(value: object, _: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _word(vocabulary: type[StrEnum], value: object, _: object) -> StrEnum | str | None:
    if not isinstance(value, str):
        return None
    words: Mapping[str, StrEnum] = vocabulary._value2member_map_  # type: ignore[assignment]
    return words.get(value, value)


_Hook: TypeAlias = Callable[[Any, Any], Any]


@cache
def _converter() -> Converter:
    converter = Converter()
    for hint, hook in (
        (str | None, _text),
        (bool | None, _flag),
        (int | None, _whole),
        (float | None, _real),
        (Mapping[str, object], _mapping),
    ):
        converter.register_structure_hook_func(partial(eq, hint), hook)
    for vocabulary in (
        StreamStatus,
        ConferenceStatus,
        ParticipantStatus,
        CallStatus,
        CallDirection,
        AnsweredBy,
    ):
        converter.register_structure_hook_func(partial(eq, vocabulary | str | None), partial(_word, vocabulary))
    return converter


# Called by hand: looking a hook up takes the converter as long as the hook takes.
_HOOKS: dict[type, tuple[_Hook, frozenset[str]]] = {}


def _make_hook(model: type[Any]) -> tuple[_Hook, frozenset[str]]:
    """Make what structures a model; with it go the keys that it knows."""
    names = {attribute.name: _RENAMES.get(attribute.name, attribute.name) for attribute in fields(model)}
    overrides: dict[str, Any] = {name: override(rename=key) for name, key in names.items()}
    known = frozenset(key for name, key in names.items() if name not in _OURS and name != "extra")
    _HOOKS[model] = hook = make_dict_structure_fn(model, _converter(), **overrides), known
    return hook


def _structure(document: Mapping[str, object], model: type[_Value], ours: Mapping[str, object]) -> _Value:
    inner, known = _HOOKS.get(model) or _make_hook(model)
    extra = {key: entry for key, entry in document.items() if key not in known}
    value: _Value = inner({**document, **ours, "extra": extra}, model)
    return value


def has_key(document: object, key: str) -> bool:
    """Tell whether an answer has what it is read for: an id that can stand in a path, or a list."""
    found = document.get(key) if isinstance(document, dict) else None
    if key not in IDS:
        return isinstance(found, list)
    sid = _text(found, None)
    return sid is not None and is_path_segment(sid)


def differs(document: Mapping[str, object], key: str, asked: str) -> bool:
    """Return True if a document has another value under a key than was asked for; upper and lower case are the same.

    A key that is missing or null does not differ. A list or an object does.
    """
    found = document.get(key)
    return found is not None and found != asked and not has_text(document, key, asked)


def has_text(document: Mapping[str, object], key: str, asked: str) -> bool:
    """Return True if a document has a text under a key; upper and lower case are the same."""
    found = _text(document.get(key), None)
    return found is not None and found.casefold() == asked.casefold()


def read_stream(document: object, model: type[_Value], asked: Mapping[str, object]) -> _Value:
    """Structure the answer to a start or a stop.

    Args:
        document: the decoded JSON.
        model: `ConferenceStream` or `CallStream`.
        asked: what is known without the answer, the target's sid among it; it goes before the answer.
    """
    return _structure(document if isinstance(document, dict) else {}, model, {**_OURS, **asked})


def read_item(document: object, model: type[_Value]) -> _Value:
    """Structure one conference, call or participant.

    Raises:
        MalformedResponseError: it is no JSON object, or has no id.
    """
    key = "call_sid" if model is Participant else "sid"
    if not isinstance(document, dict) or not has_key(document, key):
        raise MalformedResponseError(
            f"the Space answered with a {model.__name__.lower()} that has no {key}", sent="yes"
        )
    return _structure(document, model, {})


def read_page(document: object, model: type[_Value], key: str) -> Page[_Value]:
    """Structure one page of a list.

    Args:
        document: the decoded JSON.
        model: what the list holds.
        key: under which key the list is.

    Raises:
        MalformedResponseError: there is no list, an item in it has no id, or the next page's address is no text.
    """
    items = document.get(key) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(items, list):
        raise MalformedResponseError(f"the Space answered with a page that has no list of {key}", sent="yes")
    return Page(
        items=tuple(read_item(item, model) for item in items),
        uri=_text(document.get("uri"), None),
        first_page_uri=_text(document.get("first_page_uri"), None),
        next_page_uri=_next_page(document.get("next_page_uri")),
        previous_page_uri=_text(document.get("previous_page_uri"), None),
        page=_whole(document.get("page"), None),
        page_size=_whole(document.get("page_size"), None),
    )


def _next_page(value: object) -> str | None:
    # Anything else than None would otherwise end the list early, as if it were complete.
    if value is None or isinstance(value, str):
        return value
    raise MalformedResponseError(f"the Space's next_page_uri is of type {type(value).__name__}, not text", sent="yes")


# Source: https://signalwire.com/docs/compatibility-api/rest/error-codes
_INTERNAL_ERROR = 20504

_BY_STATUS = {
    HTTPStatus.UNAUTHORIZED: AttemptResult.FORBIDDEN,
    HTTPStatus.FORBIDDEN: AttemptResult.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT: AttemptResult.TRY_AGAIN,
    HTTPStatus.TOO_EARLY: AttemptResult.TRY_AGAIN,
    HTTPStatus.TOO_MANY_REQUESTS: AttemptResult.THROTTLED,
}
_BY_CODE = {TOO_MANY_REQUESTS: AttemptResult.THROTTLED, _INTERNAL_ERROR: AttemptResult.SERVER_FAULT}
# To the end where it has none, so that each byte is looked at once.
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
# A full page has some 3,000 objects and lists. A million of them holds the event loop for seconds.
_MOST_CONTAINERS = 20_000
_OTHER_TARGET = {"conference_sid": "call_sid", "call_sid": "conference_sid"}
_OTHER_HANDLE = {"sid": "name", "name": "sid"}
_OTHER_STATUS = {
    True: frozenset({StreamStatus.STOPPED}),
    False: frozenset({StreamStatus.QUEUED, StreamStatus.IN_PROGRESS}),
}
_TEXT_STOPS = frozenset({Operation.STOP, Operation.STOP_BY_NAME})
_OK, _REDIRECT, _REFUSED, _FAULT, _NO_STATUS = 200, 300, 400, 500, 600


def read_response(status: int, headers: Mapping[str, str], body: bytes, *, complete: bool) -> Response:
    """Make a reply of what came over the wire.

    Args:
        status: the HTTP status.
        headers: case-insensitive.
        body: as far as it was read.
        complete: False when the body broke off or was too long to be read whole.
    """
    document = _decode(body) if complete and body else None
    # Of an answer that is fine, nothing is asked; a 2xx may still carry the code for "too many requests".
    fine = status < _REDIRECT and not (isinstance(document, dict) and document.keys() & {"code", "errors"})
    problem = None if fine else read_problem(document)
    return Response(status=status, headers=headers, body=body, complete=complete, document=document, problem=problem)


def _decode(body: bytes) -> object:
    if _containers(body) > _MOST_CONTAINERS and _containers(_TEXT.sub(b"", body)) > _MOST_CONTAINERS:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # broken, not UTF-8, a number without end, or nested without end
        return None


def _containers(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def confirms(exchange: Request, reply: Response) -> bool:
    """Return True if an answer names what was asked for: its target, or the name of its stream."""
    document = reply.document if isinstance(reply.document, dict) else {}
    named = exchange.echo.items() - {("account_sid", exchange.echo.get("account_sid"))}
    return any(document.get(key) is not None and not differs(document, key, asked) for key, asked in named)


def contradiction(exchange: Request, reply: Response) -> str:
    """Describe in which key an answer differs from the request, or return an empty string.

    Such an answer belongs to another request: the connection delivers answers to the wrong ones. An answer that names
    nothing, such as a refusal, cannot be told from the request's own if it arrives after the request's last byte: a
    refusal is believed, and a start that is answered so is reported as ambiguous.

    Args:
        exchange: what was asked for.
        reply: what was answered.
    """
    document = reply.document
    if not isinstance(document, dict):
        return ""
    listed = document.get(exchange.required_key) if exchange.required_key not in IDS else None
    for entry in listed if isinstance(listed, list) else (document,):
        key = _contradicted_key(exchange, entry) if isinstance(entry, dict) else ""
        if key:
            return f"it names another {key}, so it answers another request"
    return ""


def _contradicted_key(exchange: Request, entry: Mapping[str, object]) -> str:
    for key, asked in exchange.echo.items():
        if differs(entry, key, asked) and not _is_meant(exchange, entry, key):
            return key
        # A conference's stream has no call_sid, and a call's no conference_sid.
        other = _OTHER_TARGET.get(key) if exchange.operation is not Operation.READ else None
        if other is not None and entry.get(key) is None and entry.get(other) is not None:
            return other
    # The answer to a start that is repeated as that to a stop says that the stream runs, and the other way round.
    status = _text(entry.get("status"), None)
    wrong = _OTHER_STATUS[exchange.operation.is_start] if exchange.operation is not Operation.READ else ()
    return "status" if status is not None and status.casefold() in wrong else ""


def _is_meant(exchange: Request, entry: Mapping[str, object], key: str) -> bool:
    """Return True if the text that a caller passed as a stream is its name instead of its sid, or the reverse."""
    other = _OTHER_HANDLE.get(key) if exchange.operation in _TEXT_STOPS else None
    return other is not None and has_text(entry, other, exchange.echo[key])


def classify(exchange: Request, reply: Response) -> AttemptResult:
    """Return what an answer means for a request."""
    status, problem = reply.status, reply.problem or Problem()
    if _OK <= status < _REDIRECT:
        if has_key(reply.document, exchange.required_key):
            return AttemptResult.DONE
        if exchange.operation.is_stop and not _may_confirm_stop(reply):
            return AttemptResult.MALFORMED
        # Some gateways replace the status of an error by their own.
        status = problem.status or status
    if status < _OK or status >= _NO_STATUS:
        return AttemptResult.MALFORMED
    if problem.code in _BY_CODE:
        return _BY_CODE[problem.code]
    if status < _REDIRECT:
        return AttemptResult.ACCEPTED
    if status in _BY_STATUS:
        return _BY_STATUS[HTTPStatus(status)]
    if status >= _FAULT:
        return _fault(status, reply, problem)
    return AttemptResult.REDIRECTED if status < _REFUSED else _refusal(exchange.operation, status, problem)


def _may_confirm_stop(reply: Response) -> bool:
    """Return False for what is not the API's, such as a proxy's page."""
    if reply.complete:
        return isinstance(reply.document, dict) or not reply.body.strip()
    return reply.body.strip()[:1] in {b"", b"{"} and "html" not in reply.headers.get("Content-Type", "")


def _fault(status: int, reply: Response, problem: Problem) -> AttemptResult:
    # A 503 in the API's own words, or one that says when to come back, was refused before it was processed.
    # A bare one comes from a proxy, and the Space behind it may have done the work.
    said = problem.is_api or retry_after(reply.headers) is not None
    return (
        AttemptResult.UNAVAILABLE if status == HTTPStatus.SERVICE_UNAVAILABLE and said else AttemptResult.SERVER_FAULT
    )


def _refusal(kind: Operation, status: int, problem: Problem) -> AttemptResult:
    if kind.is_start and problem.says_duplicate_name:
        return AttemptResult.DUPLICATE_NAME
    if kind.is_stop and problem.says_target_ended:
        return AttemptResult.TARGET_ENDED
    if kind.is_stop and problem.says_already_stopped:
        return AttemptResult.ALREADY_STOPPED
    # A bare 404 may be anybody's, a proxy's for instance.
    if kind.is_stop and status == HTTPStatus.NOT_FOUND and problem.is_api:
        return AttemptResult.NOT_FOUND
    return AttemptResult.REJECTED
