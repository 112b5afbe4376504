"""Bytes to a reply, and a reply to the event that decides what is done next."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from signalwire_streams.models import Event, Kind
from signalwire_streams._http.decoding import IDS, differs, has_key, has_text
from signalwire_streams._http.messages import Exchange, Reply
from signalwire_streams.wire.headers import retry_after
from signalwire_streams._http.error_bodies import TOO_MANY_REQUESTS, Problem, read_problem

# Source: https://signalwire.com/docs/compatibility-api/rest/error-codes
_INTERNAL_ERROR = 20504

_BY_STATUS = {
    HTTPStatus.UNAUTHORIZED: Event.DENIED,
    HTTPStatus.FORBIDDEN: Event.DENIED,
    HTTPStatus.REQUEST_TIMEOUT: Event.TRY_AGAIN,
    HTTPStatus.TOO_EARLY: Event.TRY_AGAIN,
    HTTPStatus.TOO_MANY_REQUESTS: Event.THROTTLED,
}
_BY_CODE = {TOO_MANY_REQUESTS: Event.THROTTLED, _INTERNAL_ERROR: Event.SERVER_FAULT}
# A full page has some 3,000 objects and lists. A million of them holds the event loop for seconds.
_MOST_CONTAINERS = 20_000
_OTHER_TARGET = {"conference_sid": "call_sid", "call_sid": "conference_sid"}
_OTHER_HANDLE = {"sid": "name", "name": "sid"}
_TEXT_STOPS = frozenset({Kind.STOP, Kind.STOP_BY_NAME})
_OK, _REDIRECT, _REFUSED, _FAULT, _NO_STATUS = 200, 300, 400, 500, 600


def read_reply(status: int, headers: Mapping[str, str], body: bytes, *, complete: bool) -> Reply:
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
    return Reply(status=status, headers=headers, body=body, complete=complete, document=document, problem=problem)


def _decode(body: bytes) -> object:
    if body.count(b"[") + body.count(b"{") > _MOST_CONTAINERS:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # broken, not UTF-8, a number without end, or nested without end
        return None


def contradiction(exchange: Exchange, reply: Reply) -> str:
    """Say in which key an answer names something else than was asked for, or return an empty string.

    Such an answer belongs to another request: the connection delivers answers to the wrong ones. A refusal names
    nothing, so one that arrives between a request's last byte and its own answer cannot be told from that answer.

    Args:
        exchange: what was asked for.
        reply: what was answered.
    """
    document = reply.document
    if not isinstance(document, dict):
        return ""
    listed = document.get(exchange.expects) if exchange.expects not in IDS else None
    for entry in listed if isinstance(listed, list) else (document,):
        key = _contradicted_key(exchange, entry) if isinstance(entry, dict) else ""
        if key:
            return f"it names another {key}, so it answers another request"
    return ""


def _contradicted_key(exchange: Exchange, entry: Mapping[str, object]) -> str:
    for key, asked in exchange.echo.items():
        if differs(entry, key, asked) and not _is_meant(exchange, entry, key):
            return key
        # A conference's stream has no call_sid, and a call's no conference_sid.
        other = _OTHER_TARGET.get(key) if exchange.kind is not Kind.READ else None
        if other is not None and entry.get(key) is None and entry.get(other) is not None:
            return other
    return ""


def _is_meant(exchange: Exchange, entry: Mapping[str, object], key: str) -> bool:
    """Return True if the text that a caller passed as a stream is its name instead of its sid, or the reverse."""
    other = _OTHER_HANDLE.get(key) if exchange.kind in _TEXT_STOPS else None
    return other is not None and has_text(entry, other, exchange.echo[key])


def event_of(exchange: Exchange, reply: Reply) -> Event:
    """Tell what an answer means for an exchange.

    Args:
        exchange: what was asked for.
        reply: what was answered.
    """
    status = reply.status
    if _OK <= status < _REDIRECT:
        return _success(exchange, reply)
    problem = reply.problem or Problem()
    if status < _OK or status >= _NO_STATUS:
        return Event.MALFORMED
    if problem.code in _BY_CODE:
        return _BY_CODE[problem.code]
    if status in _BY_STATUS:
        return _BY_STATUS[HTTPStatus(status)]
    if status >= _FAULT:
        return _fault(status, reply, problem)
    return Event.REDIRECTED if status < _REFUSED else _refusal(exchange.kind, status, problem)


def _success(exchange: Exchange, reply: Reply) -> Event:
    if has_key(reply.document, exchange.expects):
        return Event.DONE
    throttled = reply.problem is not None and reply.problem.code == TOO_MANY_REQUESTS
    return Event.THROTTLED if throttled else Event.ACCEPTED


def _fault(status: int, reply: Reply, problem: Problem) -> Event:
    # A 503 in the API's own words, or one that says when to come back, was refused before it was processed.
    # A bare one comes from a proxy, and the Space behind it may have done the work.
    said = problem.is_api or retry_after(reply.headers) is not None
    return Event.UNAVAILABLE if status == HTTPStatus.SERVICE_UNAVAILABLE and said else Event.SERVER_FAULT


def _refusal(kind: Kind, status: int, problem: Problem) -> Event:
    if kind.is_start and problem.says_duplicate_name:
        return Event.DUPLICATE_NAME
    if kind.is_stop and problem.says_target_ended:
        return Event.TARGET_ENDED
    if kind.is_stop and problem.says_already_stopped:
        return Event.ENDED
    # A bare 404 may be anybody's, a proxy's for instance.
    if kind.is_stop and status == HTTPStatus.NOT_FOUND and problem.is_api:
        return Event.GONE
    return Event.REJECTED
