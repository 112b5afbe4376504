"""Dates as the platform writes them, which are not always dates."""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given, strategies as st

from signalwire_streams.models._responses import parse_date

READABLE = {
    "documented, with a month of four letters": (
        "Tue, 25 Sept 2018 20:00:00 +0000",
        datetime(2018, 9, 25, 20, tzinfo=UTC),
    ),
    "documented, a day before": ("Mon, 24 Sept 2018 21:00:00 +0000", datetime(2018, 9, 24, 21, tzinfo=UTC)),
    "documented, of a call": ("Wed, 19 Sep 2018 20:00:01 +0000", datetime(2018, 9, 19, 20, 0, 1, tzinfo=UTC)),
    "a month in full": ("Tue, 25 September 2018 20:00:00 +0000", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "June with four letters": ("Mon, 25 June 2018 20:00:00 +0000", datetime(2018, 6, 25, 20, tzinfo=UTC)),
    "March in capitals": ("Sun, 25 MARCH 2018 20:00:00 +0000", datetime(2018, 3, 25, 20, tzinfo=UTC)),
    "GMT": ("Tue, 25 Sep 2018 20:00:00 GMT", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "no day of the week": ("25 Sep 2018 20:00:00 +0000", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "another zone": (
        "Tue, 25 Sep 2018 20:00:00 -0500",
        datetime(2018, 9, 25, 20, tzinfo=timezone(-timedelta(hours=5))),
    ),
    "no zone, said as -0000": ("Tue, 25 Sep 2018 20:00:00 -0000", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "no zone": ("Tue, 25 Sep 2018 20:00:00", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "ISO 8601 in UTC": ("2018-09-25T20:00:00Z", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "ISO 8601 with a fraction": ("2018-09-25T20:00:00.123456Z", datetime(2018, 9, 25, 20, 0, 0, 123456, tzinfo=UTC)),
    "ISO 8601 with milliseconds": ("2018-09-25T20:00:00.123Z", datetime(2018, 9, 25, 20, 0, 0, 123000, tzinfo=UTC)),
    "ISO 8601 with a zone": (
        "2018-09-25T20:00:00+02:00",
        datetime(2018, 9, 25, 20, tzinfo=timezone(timedelta(hours=2))),
    ),
    "ISO 8601 without a zone": ("2018-09-25T20:00:00", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "ISO 8601, the day alone": ("2018-09-25", datetime(2018, 9, 25, tzinfo=UTC)),
    "ISO 8601 with a blank": ("2018-09-25 20:00:00", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "a time for people": ("2018-09-25 20:00:00 UTC", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "a time for people in GMT": ("2018-09-25 20:00:00.5 GMT", datetime(2018, 9, 25, 20, 0, 0, 500000, tzinfo=UTC)),
    "a time for people in a zone": (
        "2018-09-25 20:00:00 +0200",
        datetime(2018, 9, 25, 20, tzinfo=timezone(timedelta(hours=2))),
    ),
    "blanks around it": (" 2018-09-25T20:00:00 Z\n", datetime(2018, 9, 25, 20, tzinfo=UTC)),
    "RFC 2822 with a leap second": ("Sat, 31 Dec 2016 23:59:60 +0000", datetime(2017, 1, 1, tzinfo=UTC)),
    "ISO 8601 with a leap second": ("2016-12-31T23:59:60Z", datetime(2017, 1, 1, tzinfo=UTC)),
    "a leap second in a zone": (
        "2017-01-01T00:59:60.25+01:00",
        datetime(2017, 1, 1, 1, 0, 0, 250000, tzinfo=timezone(timedelta(hours=1))),
    ),
    "RFC 2822 at the end of a day": ("Tue, 25 Sept 2018 24:00:00 GMT", datetime(2018, 9, 26, tzinfo=UTC)),
    "ISO 8601 at the end of a day": ("2018-12-31T24:00:00.000Z", datetime(2019, 1, 1, tzinfo=UTC)),
    "ISO 8601 at the end of a day, without seconds": ("2018-12-31 24:00", datetime(2019, 1, 1, tzinfo=UTC)),
}


@pytest.mark.parametrize(("text", "moment"), READABLE.values(), ids=READABLE)
def test_parse_date_reads_rfc_2822_and_iso_8601_as_aware(text: str, moment: datetime) -> None:
    """RFC 2822, with the documentation's own months, and ISO 8601 are read; without a zone they are UTC."""
    read = parse_date(text)
    assert read == moment
    assert read is not None
    assert read.utcoffset() == moment.utcoffset()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "yesterday",
        "Tue, 25 Foo 2018 20:00:00 +0000",
        "Tue, 99 Sep 2018 20:00:00 +0000",
        "Tue, 25 Sep 2018 25:61:61 +0000",
        "2018-13-45",
        "2018-09-25T23:59:61Z",
        "2018-09-25T24:00:01Z",
        "2018-09-25T24:00:00.001Z",
        "2018-09-25T24:01Z",
        "2018-09-25T23:60:60Z",
        "Tue, 25 Sep 2018 24:00:60 +0000",
        "9999-12-31T23:59:60Z",
        "9999-12-31T24:00:00Z",
        "2018-09-25 20:00:00 Mars",
        "UTC",
        "2018-09-25T20:00:00+99:00",
        "Tue, 25 Sep 2018 20:00:00 +9999",
        "0",
        "Tue, ",
        ",",
        "1 Jan 99999999999999999999 00:00:00 +0000",
        "\x00",
        "\ud800",
        "9" * 5000,
    ],
)
def test_unparsable_date_is_none(text: str | None) -> None:
    """An unreadable date is None, so the stream is not lost because of it."""
    assert parse_date(text) is None


PIECES = st.sampled_from(
    [
        "Tue,",
        "25",
        "Sept",
        "Sep",
        "2018",
        "20:00:00",
        "23:59:60",
        "24:00:00",
        "2018-09-25",
        "UTC",
        "+0000",
        "-9999",
        "GMT",
        ":",
        "-",
        "T",
        "Z",
        "(",
        ")",
        ",",
        ".",
        "%",
    ]
)


@given(st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=9).map(" ".join)))
@example("((((((")
@example('"')
@example("1 1 1 1:1:1 +1")
def test_any_text_is_date_or_none(text: str) -> None:
    """Any text is an aware date or None, and never an error."""
    read = parse_date(text)
    assert read is None or read.tzinfo is not None


@given(st.integers(min_value=0, max_value=200_000_000_000))
def test_formatted_date_round_trips(seconds: int) -> None:
    """A moment that is written in either format is read as that moment."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert parse_date(format_datetime(moment)) == moment
    assert parse_date(format_datetime(moment, usegmt=True)) == moment
    assert parse_date(moment.isoformat()) == moment
