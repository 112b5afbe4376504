"""How a fault ruins an answer: what goes over the socket instead (pure)."""

import json
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, TypeAlias

from attrs import evolve, field, frozen

from signalwire_streams.simulator._faults import FaultKind, FaultSettings
from signalwire_streams.simulator._rate_limit import http_message, reason_phrase, spell_seconds
from signalwire_streams.simulator._serializers import Answer, api_error, json_answer

__all__ = ["NOT_CARRIED_OUT", "Ending", "RawBytes", "Spoiled", "spoil"]


class Ending(Enum):
    """An end without an answer."""

    RESET = auto()
    HANG = auto()


@frozen
class RawBytes:
    """Bytes that go over the socket as they are; then the connection is closed with FIN."""

    data: bytes = field(repr=False)


Spoiled: TypeAlias = Answer | RawBytes | Ending
Spoiler: TypeAlias = Callable[[Answer, FaultSettings], Spoiled]

UNKNOWN_ERROR: Final = 20001
# The API's codes by HTTP status, where a documented one fits; a 503 is "unknown", not an internal error.
_CODES: Final = MappingProxyType({401: 20003, 403: 10003, 404: 20404, 429: 20429, 500: 20504})
_HTML: Final = "text/html"

#: Stands for the answer of an operation that was not carried out: a sid that nobody holds.
NOT_CARRIED_OUT: Final = json_answer({"sid": "00000000-0000-4000-8000-000000000000", "status": "queued"})


def spoil(kind: FaultKind, settings: FaultSettings, answer: Answer) -> Spoiled:
    """Give what a fault puts in the place of an answer."""
    return _SPOILERS[kind](answer, settings)


def _unspoiled(answer: Answer, _settings: FaultSettings) -> Answer:
    return answer


def _page(status: int) -> bytes:
    title = f"{status} {reason_phrase(status)}"
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n".encode()


def _status(_answer: Answer, settings: FaultSettings) -> Answer:
    status = settings.status
    headers = dict(settings.headers)
    if settings.retry_after is not None:
        headers["Retry-After"] = spell_seconds(settings.retry_after)
    if settings.body == "api":
        code = settings.code if settings.code is not None else _CODES.get(status, UNKNOWN_ERROR)
        return evolve(api_error(status, code, reason_phrase(status)), headers=headers)
    return Answer(status, b"" if settings.body == "empty" else _page(status), _HTML, headers)


def _redirect(_answer: Answer, settings: FaultSettings) -> Answer:
    headers = {"Location": settings.location}
    return Answer(settings.status, _page(settings.status), _HTML, headers)


def _html(_answer: Answer, _settings: FaultSettings) -> Answer:
    return Answer(200, _page(200), _HTML)


def _wrong_content_type(answer: Answer, _settings: FaultSettings) -> Answer:
    return evolve(answer, content_type="text/plain")


def _no_sid(answer: Answer, _settings: FaultSettings) -> Answer:
    document = {name: value for name, value in json.loads(answer.body).items() if name != "sid"}
    return evolve(answer, body=json.dumps(document).encode())


def _empty(answer: Answer, _settings: FaultSettings) -> Answer:
    return evolve(answer, body=b"")


def _not_json(answer: Answer, _settings: FaultSettings) -> Answer:
    return evolve(answer, body=answer.body[: len(answer.body) // 2])


def _garbage(_answer: Answer, _settings: FaultSettings) -> RawBytes:
    return RawBytes(b"\x16\x03\x01 this is no HTTP\x00\xff\r\n\r\n")


def _cut_headers(answer: Answer, _settings: FaultSettings) -> RawBytes:
    return RawBytes(http_message(answer).partition(b"\r\n\r\n")[0])


def _cut_body(answer: Answer, _settings: FaultSettings) -> RawBytes:
    # At least the last byte is missing, whatever the body.
    return RawBytes(http_message(answer)[: -(len(answer.body) + 1) // 2])


def _disconnect(_answer: Answer, _settings: FaultSettings) -> RawBytes:
    return RawBytes(b"")


def _reset(_answer: Answer, _settings: FaultSettings) -> Ending:
    return Ending.RESET


def _hang(_answer: Answer, _settings: FaultSettings) -> Ending:
    return Ending.HANG


_SPOILERS: Final[Mapping[FaultKind, Spoiler]] = MappingProxyType(
    {
        FaultKind.LATENCY: _unspoiled,
        FaultKind.HANG: _hang,
        FaultKind.RESET: _reset,
        FaultKind.DISCONNECT: _disconnect,
        FaultKind.THROTTLE: _status,
        FaultKind.STATUS: _status,
        FaultKind.PROXY_500: _status,
        FaultKind.PROXY_502: _status,
        FaultKind.PROXY_503: _status,
        FaultKind.PROXY_504: _status,
        FaultKind.API_503: _status,
        FaultKind.GARBAGE: _garbage,
        FaultKind.HTML: _html,
        FaultKind.TRUNCATED_HEADERS: _cut_headers,
        FaultKind.TRUNCATED_BODY: _cut_body,
        FaultKind.WRONG_CONTENT_TYPE: _wrong_content_type,
        FaultKind.MISSING_SID: _no_sid,
        FaultKind.EMPTY: _empty,
        FaultKind.INVALID_JSON: _not_json,
        FaultKind.REDIRECT: _redirect,
        FaultKind.DUPLICATE_NAME: _unspoiled,
    }
)
