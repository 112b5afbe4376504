"""The Space-wide rate limit (pure; the monotonic clock is read by the caller).

SignalWire documents 13,800 POST, PUT and PATCH requests per 10 seconds for a whole Space, all projects together, and
that each answer tells limit and remainder in X- headers whose names it does not give. The names here are a guess of
what such headers are commonly called. (https://signalwire.com/docs/compatibility-api/)
"""

from collections import deque
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from attrs import define, field

from signalwire_streams.simulator._serializers import Answer, api_error

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


COUNTED_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
TOO_MANY_REQUESTS: Final = 20429


def spell_seconds(seconds: float | str) -> str:
    """Spell a Retry-After value: whole seconds without a fraction, a text as it is."""
    return seconds if isinstance(seconds, str) else f"{seconds:g}"


@define(eq=False, kw_only=True)
class SpaceLimit:
    """A strict sliding log: no window of ``window`` seconds ever holds more than ``limit`` admitted requests.

    Attributes:
        limit: admitted requests per window; None admits everything.
        window: the window's length in seconds.
        advertised: what the headers claim instead of ``limit``, for a Space that lies.
        headers: whether answers carry the headers.
        retry_after: seconds, sent with the 429; None sends no Retry-After.
    """

    limit: int | None
    window: float
    advertised: int | None = None
    headers: bool = True
    retry_after: float | None = None
    _admitted: deque[float] = field(factory=deque, init=False, repr=False)

    def admit(self, now: float) -> bool:
        """Let a counted request in, or not; refused ones leave no trace."""
        if self.limit is None:
            return True
        self._forget(now)
        if len(self._admitted) >= self.limit:
            return False
        self._admitted.append(now)
        return True

    def headers_at(self, now: float) -> dict[str, str]:
        """Give the headers that tell limit and remainder."""
        claimed = self.advertised if self.advertised is not None else self.limit
        if claimed is None or not self.headers:
            return {}
        self._forget(now)
        remaining = max(claimed - len(self._admitted), 0)
        return {"X-RateLimit-Limit": str(claimed), "X-RateLimit-Remaining": str(remaining)}

    def refusal(self) -> Answer:
        """Give the answer to a request over the limit."""
        answer = api_error(429, TOO_MANY_REQUESTS, "Too many requests")
        if self.retry_after is None:
            return answer
        return Answer(answer.status, answer.body, headers={"Retry-After": spell_seconds(self.retry_after)})

    def _forget(self, now: float) -> None:
        oldest_kept = now - self.window
        while self._admitted and self._admitted[0] <= oldest_kept:
            self._admitted.popleft()
