"""Response headers: retry delays and request ids."""

import pytest
from hypothesis import given, strategies as st
from multidict import CIMultiDict

from signalwire_streams._http.error_bodies import request_id, retry_after

DATE = "Tue, 25 Sep 2018 20:00:00 GMT"

WAITS: dict[str, tuple[dict[str, str], float | None]] = {
    "nothing": ({}, None),
    "seconds": ({"Retry-After": "7"}, 7.0),
    "a fraction": ({"Retry-After": "0.25"}, 0.25),
    "zero": ({"Retry-After": "0"}, 0.0),
    "another case": ({"RETRY-after": "7"}, 7.0),
    "blanks": ({"Retry-After": " 7 "}, 7.0),
    "milliseconds": ({"retry-after-ms": "250"}, 0.25),
    "milliseconds with a fraction": ({"Retry-After-Ms": "0.5"}, 0.0005),
    "the longer of the two": ({"retry-after-ms": "250", "Retry-After": "7"}, 7.0),
    "milliseconds alone": ({"retry-after-ms": "250"}, 0.25),
    "seconds where milliseconds can't be read": ({"retry-after-ms": "soon", "Retry-After": "7"}, 7.0),
    "seconds where milliseconds are negative": ({"retry-after-ms": "-5", "Retry-After": "7"}, 7.0),
    "an HTTP date": ({"Retry-After": "Tue, 25 Sep 2018 20:00:30 GMT", "Date": DATE}, 30.0),
    "a date in another zone": ({"Retry-After": "Tue, 25 Sep 2018 22:00:30 +0200", "Date": DATE}, 30.0),
    "a date that is past": ({"Retry-After": "Tue, 25 Sep 2018 19:00:00 GMT", "Date": DATE}, 0.0),
    "a date without the response's own": ({"Retry-After": "Tue, 25 Sep 2018 20:00:30 GMT"}, 0.0),
    "a date against an unreadable one": ({"Retry-After": "Tue, 25 Sep 2018 20:00:30 GMT", "Date": "now"}, 0.0),
    "a year": ({"Retry-After": "31622400"}, 31_622_400.0),
    "a date far off": ({"Retry-After": "Tue, 25 Sep 2068 20:00:00 GMT", "Date": DATE}, None),
    "a Unix time": ({"Retry-After": "1764460800"}, None),
    "a Unix time, and a wait": ({"Retry-After": "1764460800", "retry-after-ms": "250"}, 0.25),
    "negative": ({"Retry-After": "-1"}, None),
    "not a number": ({"Retry-After": "nan"}, None),
    "without end": ({"Retry-After": "inf"}, None),
    "beyond measure": ({"Retry-After": "1e999"}, None),
    "a word": ({"Retry-After": "later", "Date": DATE}, None),
    "empty": ({"Retry-After": "", "Date": DATE}, None),
}


@pytest.mark.parametrize(("headers", "seconds"), WAITS.values(), ids=WAITS)
def test_retry_after_reads_seconds_milliseconds_and_http_date(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds or an HTTP date are read; a date is measured by the Space's own clock."""
    assert retry_after(CIMultiDict(headers)) == seconds


@given(st.text(), st.text(), st.sampled_from([DATE, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", ""]))
def test_any_retry_after_text_is_parsed_or_ignored(after: str, milliseconds: str, date: str) -> None:
    """Any headers result in a finite time of at least 0, or None."""
    for headers in (
        {"Retry-After": after, "retry-after-ms": milliseconds, "Date": date},
        {"Retry-After": date, "Date": after},
        {"Retry-After": date, "Date": DATE},
    ):
        seconds = retry_after(CIMultiDict(headers))
        assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({"X-Request-Id": "req-1"}, "req-1"),
        ({"x-request-id": "req-1"}, "req-1"),
        ({"X-Amzn-RequestId": "amzn"}, "amzn"),
        ({"X-Correlation-Id": "corr"}, "corr"),
        ({"CF-Ray": "ray"}, "ray"),
        ({"CF-Ray": "ray", "X-Request-Id": "req-1"}, "req-1"),
        ({"X-Request-Id": "", "CF-Ray": "ray"}, "ray"),
        ({"X-Request-Id": "two\nlines", "CF-Ray": "ray"}, "ray"),
        ({"X-Request-Id": "x" * 500}, "x" * 128),
    ],
)
def test_request_id_is_first_printable_one_of_usual_headers(headers: dict[str, str], found: str | None) -> None:
    """The first of the usual headers that holds one printable line is the request's id, not endless."""
    assert request_id(CIMultiDict(headers)) == found
