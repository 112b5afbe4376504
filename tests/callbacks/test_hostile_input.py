"""Hostile input: no regular expression and no parser of the package takes quadratic time."""

from collections.abc import Callable
from time import thread_time
from typing import Any

import pytest

from signalwire_streams.callbacks import SIGNATURE_HEADER, parse_callback, verify_signature
from signalwire_streams.callbacks._diagnostics import _shown
from signalwire_streams.callbacks._signature import SignedRequest
from signalwire_streams.callbacks._urls import (
    Forwarded,
    Headers,
    HostPattern,
    UrlParts,
    equivalent_urls,
    is_public_url,
    path_and_query,
    public_urls,
    request_url,
)

LENGTH = 8_000
PIECES = [
    *'a =;,"\\@[./?&%-\t1',
    *(
        "a=",
        'a="',
        '"\\',
        '",',
        "=;",
        "a ",
        " =",
        "@[",
        "://",
        "&=",
        "%4",
        "]@",
        '=" ',
        '""',
        "a;",
        "::",
        ".a",
        "a&",
        "\udcff",
    ),
]
PREFIXES = ["", "a=", 'a="', "http://", "https://u:p@", "/a?"]
ENDS = ["", '"', "="]
MOST_SECONDS = 0.1


def of_header(name: str) -> Callable[[str], object]:
    return lambda text: Forwarded.from_headers(Headers({name: text}))


def verified(text: str) -> object:
    headers = {SIGNATURE_HEADER: text, "Content-Type": text, "Authorization": f"Basic {text}", text: text}
    return verify_signature(url=text, headers=headers, body=text.encode("utf-8", "replace"), keys=["k"])


def a_request(text: str) -> SignedRequest:
    body = text.encode("utf-8", "replace")
    return SignedRequest(url=f"https://example.com/?{text}", headers=Headers({}), body=body, method="POST")


TARGETS: dict[str, Callable[[str], Any]] = {
    **{name: of_header(name) for name in ("Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto")},
    **{name: of_header(name) for name in ("X-Forwarded-Port", "X-Forwarded-Prefix")},
    "URL": UrlParts.split,
    "equivalent URLs": lambda text: equivalent_urls(text, Headers({"Authorization": f"Basic {text}"})),
    "target": path_and_query,
    "request URL": lambda text: request_url(scheme="http", host=text, target=text),
    "public URL": lambda text: public_urls(text, text),
    "public URL of a receiver": is_public_url,
    "host pattern": HostPattern.parse,
    "form": lambda text: a_request(text).form,
    "query": lambda text: a_request(text).query_fields,
    "shown URL": _shown,
    "verification": verified,
    "timestamp": lambda text: parse_callback({"Timestamp": text}).timestamp,
    "timestamp in JSON": lambda text: (
        parse_callback({"event_type": "calling.call.stream", "timestamp": text}).timestamp
    ),
}


def seconds_of(read: Callable[[str], Any], text: str) -> float:
    began = thread_time()
    read(text)
    return thread_time() - began


@pytest.mark.parametrize("read", TARGETS.values(), ids=TARGETS)
def test_reading_long_input_takes_linear_time(read: Callable[[str], Any]) -> None:
    """Repeated pieces between prefixes and suffixes; a quadratic parser would take a second and more."""
    slowest = (0.0, "")
    for piece in PIECES:
        for prefix in PREFIXES:
            for end in ENDS:
                text = prefix + (piece * LENGTH)[: LENGTH - len(prefix)] + end
                seconds = seconds_of(read, text)
                if seconds >= MOST_SECONDS:  # a busy machine can make any single call slow
                    seconds = min(seconds_of(read, text) for _ in range(3))
                slowest = max(slowest, (seconds, text[:40]))
    assert slowest[0] < MOST_SECONDS, slowest
