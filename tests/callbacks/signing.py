"""Signed requests, computed independently of the package."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlencode

KEY = "PSK_9f1c3a7e5b2d4860"
FORM = "application/x-www-form-urlencoded"
URL = "https://example.com/callbacks"
STARTED = [
    ("AccountSid", "b08dacad-85c6-40f7-83e5-f8ae3f1b8d3a"),
    ("ConferenceSid", "6f3f1cb6-4b5c-4b1f-b0ad-3a2b4b0c2f11"),
    ("CallSid", ""),
    ("StreamSid", "stream-1"),
    ("StreamName", "audit 1 é+&="),
    ("StreamTrack", "both_tracks"),
    ("StreamEvent", "stream-started"),
    ("Timestamp", "2026-11-21T10:15:00Z"),
    ("Unique-ID", "u-1"),
]
JSON_BODY = b'{"event":"stream-started","params":{"name":"audit"}}'


def fields(event: str = "stream-started", sid: str = "stream-1", **others: str) -> list[tuple[str, str]]:
    """Return the fields of a callback."""
    return list({**dict(STARTED), "StreamEvent": event, "StreamSid": sid, **others}.items())


def form(pairs: Sequence[tuple[str, str]]) -> bytes:
    return urlencode(pairs).encode()


def form_signature(url: str, pairs: Sequence[tuple[str, str]], key: str = KEY) -> str:
    names = sorted({name for name, _ in pairs})
    values = "".join(name + value for wanted in names for name, value in pairs if name == wanted)
    return base64.b64encode(hmac.new(key.encode(), (url + values).encode(), hashlib.sha1).digest()).decode()


def raw_signature(url: str, body: bytes, key: str = KEY, algorithm: str = "sha1") -> str:
    return hmac.new(key.encode(), url.encode() + body, algorithm).hexdigest()
