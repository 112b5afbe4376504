"""The Space-wide rate limit (pure; the caller reads the monotonic clock).

SignalWire documents 13,800 POST, PUT and PATCH requests per 10 seconds for a whole Space, all projects together, and
that each response reports limit and remainder in X- headers whose names it does not give. The names here are a guess
at what such headers are commonly called. (https://signalwire.com/docs/compatibility-api/)
"""

from collections import deque

from attrs import evolve

from signalwire_streams.simulator._serializers import Response, api_error, retry_after_header

COUNTED_METHODS = frozenset({"POST", "PUT", "PATCH"})
_TOO_MANY_REQUESTS = 20429


class SpaceLimit:
    """A sliding log: no window ever holds more than ``limit`` admitted requests; None admits all."""

    def __init__(
        self,
        *,
        limit: int | None,
        window: float,
        advertised: int | None = None,
        headers: bool = True,
        retry_after: float | None = None,
    ) -> None:
        self._limit = limit
        self._window = window
        self._advertised = limit if advertised is None else advertised
        self._has_headers = headers
        self._retry_after = retry_after
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> bool:
        """Return whether a counted request is within the limit; refused requests are not counted."""
        if self._limit is None:
            return True
        self._expire(now)
        if len(self._admitted) >= self._limit:
            return False
        self._admitted.append(now)
        return True

    def headers_at(self, now: float) -> dict[str, str]:
        if self._advertised is None or not self._has_headers:
            return {}
        self._expire(now)
        remaining = max(self._advertised - len(self._admitted), 0)
        return {"X-RateLimit-Limit": str(self._advertised), "X-RateLimit-Remaining": str(remaining)}

    def refusal(self) -> Response:
        refused = api_error(429, _TOO_MANY_REQUESTS, "Too many requests")
        return evolve(refused, headers=retry_after_header(self._retry_after))

    def _expire(self, now: float) -> None:
        while self._admitted and self._admitted[0] <= now - self._window:
            self._admitted.popleft()
