"""Answers as HTTP/1.1 messages (pure)."""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from signalwire_streams.simulator._serializers import Answer

__all__ = ["http_message", "reason_phrase"]

_REASONS: Final = MappingProxyType({status.value: status.phrase for status in HTTPStatus})
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def reason_phrase(status: int) -> str:
    """Give a status's usual reason phrase."""
    return _REASONS.get(status, "Unknown")


def http_message(answer: Answer, more_headers: Mapping[str, str] = _NO_HEADERS) -> bytes:
    """Spell an answer: status line, headers, body; an answer's own headers win over the others."""
    head = (
        f"HTTP/1.1 {answer.status} {reason_phrase(answer.status)}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
    )
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**more_headers, **answer.headers}.items())
    return f"{head}{lines}\r\n".encode("latin-1") + answer.body
