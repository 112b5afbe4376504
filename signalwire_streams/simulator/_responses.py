"""The Space's HTTP responses: JSON, errors, dates, messages (pure)."""

import json
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from http.client import responses

from attrs import field, frozen

Json = dict[str, object]

_MORE_INFO = "https://signalwire.com/docs/compatibility-api/reference/errors"


@frozen
class Response:
    """An HTTP response. ``created`` is the sid of the stream that it started, for the request log."""

    status: int
    body: bytes = field(repr=False)
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(factory=dict)
    created: str | None = None


class Rejected(Exception):  # noqa: N818  (a response to the client, not a failure of the simulator)
    """Ends an operation with an error response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response


def json_response(body: Mapping[str, object], *, status: int = 200, created: str | None = None) -> Response:
    return Response(status, json.dumps(body).encode(), created=created)


def api_error(status: int, code: int, message: str) -> Response:
    """Return the API's usual error, ``{code, message, more_info, status}``."""
    return json_response(
        {"code": code, "message": message, "more_info": f"{_MORE_INFO}#{code}", "status": status}, status=status
    )


@lru_cache(maxsize=1024)
def http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def reason_phrase(status: int) -> str:
    return responses.get(status, "Unknown")


def retry_after_header(retry_after: float | str | None) -> dict[str, str]:
    """Return a Retry-After header: seconds without a trailing fraction of zero, a string unchanged; empty for None."""
    if retry_after is None:
        return {}
    return {"Retry-After": retry_after if isinstance(retry_after, str) else f"{retry_after:g}"}


def http_message(response: Response, more_headers: Mapping[str, str] | None = None) -> bytes:
    """Encode a response: status line, headers, body; its own headers override the additional ones."""
    head = (
        f"HTTP/1.1 {response.status} {reason_phrase(response.status)}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
    )
    headers = {**(more_headers or {}), **response.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{lines}\r\n".encode("latin-1") + response.body
