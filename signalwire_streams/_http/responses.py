"""Responses: the result that a status and an error code stand for, and the decoding of JSON to values.

Decoding is tolerant, because a started stream must never be lost to an unreadable detail: a key that is missing or of
the wrong type becomes None, an unknown status stays a ``str``, an unknown key is kept in ``extra``. Only an id is
required.
"""

import json
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache, partial
from http import HTTPStatus
from operator import eq
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from attrs import fields

from signalwire_streams._http.error_bodies import TOO_MANY_REQUESTS_CODE, Problem, read_problem, retry_after
from signalwire_streams._http.messages import Request, Response, create_response
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
from signalwire_streams.models._fast import fast_reader
from signalwire_streams.models._validation import is_path_segment

if TYPE_CHECKING:
    from cattrs import Converter

_Value = TypeVar("_Value")

_RENAMES = {
    "from_": "from",
    "date_created_text": "date_created",
    "date_updated_text": "date_updated",
    "start_time_text": "start_time",
    "end_time_text": "end_time",
}
IDS = frozenset({"sid", "call_sid"})
"""Keys that hold a sid; any other required key holds a list."""
_OURS = frozenset({"ambiguous", "already_started", "already_ended"})
"""Fields that only the client knows, whatever a response says."""


def _text(value: object, _: object = None) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):  # ids and codes come as numbers too
        return str(value)
    return value if isinstance(value, str) else None


def _flag(value: object, _: object = None) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: object, _: object = None) -> int | None:
    number = _real(value)
    return int(number) if number is not None else None


def _real(value: object, _: object = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _mapping(value: object, _: object = None) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _word(vocabulary: type[StrEnum], value: object, _: object = None) -> StrEnum | str | None:
    if not isinstance(value, str):
        return None
    words: Mapping[str, StrEnum] = vocabulary._value2member_map_  # type: ignore[assignment]
    return words.get(value, value)


_Hook: TypeAlias = Callable[..., Any]


@cache
def _converter() -> "Converter":
    from cattrs import Converter  # noqa: PLC0415  (with the first response)

    converter = Converter()
    hooks: list[tuple[object, _Hook]] = [
        (str | None, _text),
        (bool | None, _flag),
        (int | None, _whole),
        (float | None, _real),
        (Mapping[str, object], _mapping),
    ]
    vocabularies = (StreamStatus, ConferenceStatus, ParticipantStatus, CallStatus, CallDirection, AnsweredBy)
    hooks += [(vocabulary | str | None, partial(_word, vocabulary)) for vocabulary in vocabularies]
    for hint, hook in hooks:
        converter.register_structure_hook_func(partial(eq, hint), hook)
    converter.register_structure_hook(str, _text)
    return converter


@cache
def _reader(model: type[Any]) -> tuple[Callable[..., Any], frozenset[str]]:
    """Return the function that creates a model from a JSON object, and the keys that it knows."""
    hook_for = _converter().get_structure_hook
    known = [attribute for attribute in fields(model) if attribute.name not in _OURS and attribute.name != "extra"]
    read = {each.name: (_RENAMES.get(each.name, each.name), hook_for(each.type)) for each in known}
    return fast_reader(model, read, texts=_text), frozenset(key for key, _ in read.values())


def _structure(document: Mapping[str, object], model: type[_Value], ours: Mapping[str, object]) -> _Value:
    # The function that cattrs would generate costs three times as much for a frozen model.
    read, known = _reader(model)  # type: ignore[arg-type]  # mypy: no class is hashable
    extra = {} if document.keys() <= known else {key: document[key] for key in document if key not in known}
    structured: _Value = read(document.get, {**ours, "extra": extra})
    return structured


def has_key(document: object, key: str) -> bool:
    """Return True if a response has its required key: an id that can be part of a path, or a list."""
    found = document.get(key) if isinstance(document, dict) else None
    if key not in IDS:
        return isinstance(found, list)
    sid = _text(found)
    return sid is not None and is_path_segment(sid)


def read_stream(document: object, model: type[_Value], asked: Mapping[str, object]) -> _Value:
    """Structure the response to a start or a stop; *asked* has the request's values, and takes precedence."""
    return _structure(document if isinstance(document, dict) else {}, model, asked)


def read_item(document: object, model: type[_Value]) -> _Value:
    key = "call_sid" if model is Participant else "sid"
    if not isinstance(document, dict) or not has_key(document, key):
        raise MalformedResponseError(f"the Space returned a {model.__name__.lower()} without {key}", sent="yes")
    return _structure(document, model, {})


def read_page(document: object, model: type[_Value], key: str) -> Page[_Value]:
    items = document.get(key) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(items, list):
        raise MalformedResponseError(f"the Space returned a page without a list of {key}", sent="yes")
    following = document.get("next_page_uri")
    if following is not None and not isinstance(following, str):  # else the list would end early, as if complete
        kind = type(following).__name__
        raise MalformedResponseError(f"the Space's next_page_uri is of type {kind}, not text", sent="yes")
    return Page(
        items=tuple(read_item(item, model) for item in items),
        uri=_text(document.get("uri")),
        first_page_uri=_text(document.get("first_page_uri")),
        next_page_uri=following,
        previous_page_uri=_text(document.get("previous_page_uri")),
        page=_whole(document.get("page")),
        page_size=_whole(document.get("page_size")),
    )


# Source: https://signalwire.com/docs/compatibility-api/rest/error-codes
_INTERNAL_ERROR = 20504

_BY_STATUS: Mapping[int, AttemptResult] = {
    HTTPStatus.UNAUTHORIZED: AttemptResult.FORBIDDEN,
    HTTPStatus.FORBIDDEN: AttemptResult.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT: AttemptResult.TRY_AGAIN,
    HTTPStatus.TOO_EARLY: AttemptResult.TRY_AGAIN,
    HTTPStatus.TOO_MANY_REQUESTS: AttemptResult.THROTTLED,  # 429
}
_BY_CODE = {TOO_MANY_REQUESTS_CODE: AttemptResult.THROTTLED, _INTERNAL_ERROR: AttemptResult.SERVER_FAULT}
# Without a closing quote up to the end, so that each byte is scanned once.
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_read_json = json.JSONDecoder().raw_decode
# A full page has some 3,000 objects and lists. A million of them holds the event loop for seconds.
_MAX_CONTAINERS = 20_000
_OTHER_TARGET = {"conference_sid": "call_sid", "call_sid": "conference_sid"}
_OTHER_HANDLE = {"sid": "name", "name": "sid"}
_OTHER_STATUS = {
    True: frozenset({StreamStatus.STOPPED}),
    False: frozenset({StreamStatus.QUEUED, StreamStatus.IN_PROGRESS}),
}
_ERROR_KEYS = ("code", "errors", "error", "message", "detail")
# Of streams and pages. A status is not among them, since gateways have one too.
_FIRST_KEYS = tuple(
    f'"{key}"'.encode()
    for key in ("sid", "name", "account_sid", "conference_sid", "call_sid", "uri", "date_updated", "api_version")
)
_STATUSES = frozenset(StreamStatus)
_TEXT_STOPS = frozenset({Operation.STOP, Operation.STOP_BY_NAME})
# Looked up once: Python 3.11 looks up each member of an enum in Python.
_READ, _DONE = Operation.READ, AttemptResult.DONE
_RETURN_NO_STREAM = frozenset({Operation.READ, Operation.END})
_NO_PROBLEM = Problem()
_OK, _REDIRECT, _REJECTED, _FAULT, _NO_STATUS = 200, 300, 400, 500, 600


def read_response(status: int, headers: Mapping[str, str], body: bytes, *, complete: bool) -> Response:
    document = _decode(body) if complete and body else None
    # A 2xx may carry the API's error as well.
    fine = status < _REDIRECT and not (isinstance(document, dict) and ("code" in document or "errors" in document))
    problem = None if fine else read_problem(document)
    return create_response(
        status=status, headers=headers, body=body, complete=complete, document=document, problem=problem
    )


def _decode(body: bytes) -> object:
    if len(body) > _MAX_CONTAINERS and _containers(body) > _MAX_CONTAINERS:
        return None
    try:
        return _parse(body)
    except (ValueError, RecursionError):  # malformed, or a number or nesting beyond Python's limits
        return None


def _containers(body: bytes) -> int:
    """Count the objects and lists; leave out those within strings only if the count is too high otherwise."""
    count = body.count(b"[") + body.count(b"{")
    if count <= _MAX_CONTAINERS:
        return count
    body = _TEXT.sub(b"", body)
    return body.count(b"[") + body.count(b"{")


def _parse(body: bytes) -> object:
    try:
        text = body.decode()
        document, end = _read_json(text)
    except ValueError:  # another encoding, or white space at the beginning
        return json.loads(body)
    return document if end == len(text) else json.loads(text)  # white space at the end, or more than one document


def confirms(request: Request, response: Response) -> bool:
    """Return True if a response names the requested target, or the name or sid of its stream.

    One that names neither may be the response to another request. A start that succeeds with it is ambiguous. A stop is
    sent again, as after a response without a body: if the stream has ended, the Space says so. If all responses to a
    stop are like that, the Space leaves these keys out, and the stop counts as successful.
    """
    document = response.document if isinstance(response.document, dict) else {}
    for key, asked in request.echo.items():
        if key != "account_sid" and (document.get(key) == asked or _names(request, document, key)):
            return True
    return False


def contradiction(request: Request, response: Response) -> str:
    """Describe in which key a response differs from its request, or return an empty string.

    Such a response belongs to another request: the connection delivers responses to the wrong ones. One that names
    nothing, such as a rejection, cannot be distinguished from the request's own if it arrives after the request's last
    byte: it is accepted as genuine, and a start that succeeds with it is reported as ambiguous.
    """
    document = response.document
    if not isinstance(document, dict):
        return ""
    listed = document.get(request.required_key) if request.required_key not in IDS else None
    for entry in listed if isinstance(listed, list) else (document,):
        if isinstance(entry, dict) and (key := _contradicted_key(request, entry)):
            return f"it names another {key}, so it belongs to another request"
    return ""


def _contradicted_key(request: Request, entry: Mapping[str, object]) -> str:
    for key, asked in request.echo.items():
        found = entry.get(key)
        if found == asked:
            continue
        if found is not None:
            if not _names(request, entry, key):
                return key
            continue
        # A conference's stream has no call_sid, and a call's no conference_sid.
        other = _OTHER_TARGET.get(key) if request.operation is not _READ else None
        if other is not None and entry.get(other) is not None:
            return other
    # A start's response that is delivered for a stop says that the stream is running, and vice versa.
    status = entry.get("status")
    wrong = _OTHER_STATUS[request.operation.is_start] if request.operation not in _RETURN_NO_STREAM else ()
    return "status" if isinstance(status, str) and status.casefold() in wrong else ""


def _names(request: Request, entry: Mapping[str, object], key: str) -> bool:
    """Return True if a key has the requested value, in any case.

    What a caller passed as a stream's sid may be its name, or the reverse.
    """
    asked = request.echo[key]
    other = _OTHER_HANDLE.get(key) if request.operation in _TEXT_STOPS else None
    found = [_text(entry.get(name)) for name in (key, other) if name is not None]
    return any(text is not None and text.casefold() == asked.casefold() for text in found)


def classify(request: Request, response: Response) -> AttemptResult:
    status, problem = response.status, response.problem or _NO_PROBLEM
    if _OK <= status < _REDIRECT:
        if has_key(response.document, request.required_key):
            return _DONE
        # A gateway may have replaced the status of the API's own error.
        status = problem.status or status
    if not _OK <= status < _NO_STATUS:
        return AttemptResult.MALFORMED
    if problem.code in _BY_CODE:
        return _BY_CODE[problem.code]
    if status < _REDIRECT:
        return AttemptResult.ACCEPTED if _may_be_api_success(request, response) else AttemptResult.MALFORMED
    if status >= _FAULT:
        # A 503 in the API's own words, or one that says when to come back, was rejected before it was processed.
        # A bare one comes from a proxy, and the Space behind it may have done the work.
        rejected = problem.is_api or retry_after(response.headers) is not None
        unavailable = status == HTTPStatus.SERVICE_UNAVAILABLE and rejected
        return AttemptResult.UNAVAILABLE if unavailable else AttemptResult.SERVER_FAULT
    permanent = AttemptResult.REDIRECTED if status < _REJECTED else _rejection(request.operation, status, problem)
    return _BY_STATUS.get(status, permanent)


def _may_be_api_success(request: Request, response: Response) -> bool:
    """Return False if a 2xx without a sid is not the API's, such as a proxy's page or a gateway's error.

    An empty body or object may be the API's. Gateways' own objects have no common form, so any other has to have a key
    that a stream has; if the rest of it was lost, at its beginning.
    """
    document, body = response.document, response.body.strip()
    if response.complete and body:
        if not isinstance(document, dict) or any(document.get(key) for key in _ERROR_KEYS):
            return False
        is_stream = not document or _text(document.get("status")) in _STATUSES
        return is_stream or not document.keys().isdisjoint({request.required_key, *request.echo})
    if not response.complete and "html" in response.headers.get("Content-Type", "").lower():
        return False
    key = body[1:].lstrip()
    begins_as_stream = any(key.startswith(known) or known.startswith(key) for known in _FIRST_KEYS)
    return not body or (body[:1] == b"{" and begins_as_stream)


def _rejection(operation: Operation, status: int, problem: Problem) -> AttemptResult:
    if operation.is_start and problem.says_duplicate_name:
        return AttemptResult.DUPLICATE_NAME
    if operation.is_stop and problem.says_target_ended:
        return AttemptResult.TARGET_ENDED
    if operation.is_stop and problem.says_already_stopped:
        return AttemptResult.ALREADY_STOPPED
    # A bare 404 may be a proxy's.
    if operation.is_stop and problem.is_api and status == HTTPStatus.NOT_FOUND:
        return AttemptResult.NOT_FOUND
    return AttemptResult.REJECTED if problem.is_of_platform else AttemptResult.UNREADABLE_REJECTION
