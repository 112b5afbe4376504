"""The query of a list: days, moments, switches and words."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, strategies as st

from signalwire_streams._http.requests import day, moment, query
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import CallStatus

EAST = timezone(timedelta(hours=9))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("2018-09-25", "2018-09-25"),
        (date(2018, 9, 25), "2018-09-25"),
        (datetime(2018, 9, 25, 23, 59, tzinfo=UTC), "2018-09-25"),
        (datetime(2018, 9, 25, 3, tzinfo=EAST), "2018-09-24"),
    ],
)
def test_day_filter_is_formatted_as_iso_date(value: date | str | None, text: str | None) -> None:
    """A day is ``YYYY-MM-DD``, counted in UTC; text goes as it is."""
    assert day(value, "date_created") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("Wed, 19 Sep 2018 20:00:01 GMT", "Wed, 19 Sep 2018 20:00:01 GMT"),
        (datetime(2018, 9, 19, 20, 0, 1, tzinfo=UTC), "Wed, 19 Sep 2018 20:00:01 GMT"),
        (datetime(2018, 9, 20, 5, 0, 1, 999, tzinfo=EAST), "Wed, 19 Sep 2018 20:00:01 GMT"),
    ],
)
def test_moment_filter_is_formatted_as_rfc_2822(value: datetime | str | None, text: str | None) -> None:
    """A moment is RFC 2822 in GMT; text goes as it is."""
    assert moment(value, "start_time") == text


def test_moment_without_time_zone_is_rejected() -> None:
    """A moment that could be any of two dozen is rejected by the name of its filter."""
    naive = datetime(2018, 9, 19, 20)  # noqa: DTZ001
    with pytest.raises(InvalidRequestError, match=r"^start_time has no time zone: write it as datetime\("):
        moment(naive, "start_time")
    with pytest.raises(InvalidRequestError, match=r"^date_created has no time zone"):
        day(naive, "date_created")


@pytest.mark.parametrize("value", [date(2018, 9, 19), 1_537_387_201, b"Wed, 19 Sep 2018"], ids=repr)
def test_moment_of_wrong_type_is_rejected(value: Any) -> None:
    """A day, a number or bytes are no moment, and the rejection names their type."""
    with pytest.raises(
        InvalidRequestError, match=rf"^start_time is an? {type(value).__name__}: write it as datetime\("
    ):
        moment(value, "start_time")


@pytest.mark.parametrize("value", [5, 17.0, b"2026-12-31", ("2026", "12")])
def test_day_of_wrong_type_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"date_created is an? {type(value).__name__}: write it as date"):
        day(value, "date_created")


def test_half_a_surrogate_pair_is_rejected() -> None:
    """Text that no encoding can carry is rejected as the caller's mistake, and not repeated."""
    with pytest.raises(InvalidRequestError, match="a lone surrogate") as caught:
        query({"FriendlyName": "\ud83d"})
    assert str(caught.value).isprintable()
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("filters", "text"),
    [
        ({}, ""),
        ({"Status": None, "PageSize": None}, ""),
        ({"Status": "in-progress"}, "?Status=in-progress"),
        ({"Status": CallStatus.NO_ANSWER, "From": None}, "?Status=no-answer"),
        (
            {"DateCreated<": "2018-09-25", "DateCreated>": "2018-09-01"},
            "?DateCreated%3C=2018-09-25&DateCreated%3E=2018-09-01",
        ),
        ({"StartTime>": "Wed, 19 Sep 2018 20:00:01 GMT"}, "?StartTime%3E=Wed%2C+19+Sep+2018+20%3A00%3A01+GMT"),
        ({"To": "+13105678901"}, "?To=%2B13105678901"),
        ({"Muted": True, "Hold": False}, "?Muted=true&Hold=false"),
        ({"PageSize": 1000}, "?PageSize=1000"),
        ({"FriendlyName": "Größe & co"}, "?FriendlyName=Gr%C3%B6%C3%9Fe+%26+co"),
        ({"FriendlyName": ""}, "?FriendlyName="),
    ],
)
def test_filters_are_encoded_as_query(filters: dict[str, object], text: str) -> None:
    """None is omitted, booleans are true and false, and the rest is percent-encoded."""
    assert query(filters) == text


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")), min_size=1
    )
)
def test_query_round_trips_any_filters(filters: dict[str, str]) -> None:
    """A server that decodes the query finds each filter as the caller wrote it."""
    assert dict(parse_qsl(query(filters)[1:], keep_blank_values=True, strict_parsing=True)) == filters
