"""Reading the response headers that matter."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite

from signalwire_streams.models.dates import parse_date

# The vendor says that each response tells limit and remaining in X- headers, and not how they are called:
# https://signalwire.com/docs/platform/rate-limits
_LIMIT = re.compile(r"x-.*rate-?limit.*limit|x-rate-?limit", re.IGNORECASE)
_REQUEST_ID = ("X-Request-Id", "X-Amzn-RequestId", "X-Correlation-Id", "CF-Ray")
_MAX_ID = 128


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Read how long the Space asks to wait.

    ``retry-after-ms`` in milliseconds; ``Retry-After`` in seconds, whole or with a fraction, or as an HTTP date
    measured against the response's own ``Date``, so that a wrong clock here does no harm. Of several the longest.

    Returns:
        Seconds, at least 0, or None where nothing readable is said.
    """
    now = parse_date(headers.get("Date")) or datetime.now(UTC)
    milliseconds = _seconds(headers.get("retry-after-ms"))
    waits = [_wait(text, now) for name, text in headers.items() if name.lower() == "retry-after"]
    waits.append(None if milliseconds is None else milliseconds / 1000)
    return max((wait for wait in waits if wait is not None), default=None)


def _wait(text: str, now: datetime) -> float | None:
    seconds = _seconds(text)
    if seconds is not None:
        return seconds
    until = parse_date(text)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def request_id(headers: Mapping[str, str]) -> str | None:
    """Read the Space's own id of the answer, for its support."""
    for name in _REQUEST_ID:
        value = headers.get(name)
        if value and value.isprintable():
            return value[:_MAX_ID]
    return None


def advertised_limit(headers: Mapping[str, str]) -> int | None:
    """Read how many requests the Space says it takes in a window, or None."""
    for name, value in headers.items():
        if name[:2] in {"X-", "x-"} and _LIMIT.fullmatch(name) and value.isascii() and value.isdigit():
            return int(value[:9]) or None
    return None
