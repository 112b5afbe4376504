"""Reading the platform's dates, which are not always dates."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

# The documentation's own examples spell months with four letters ("25 Sept 2018"), which RFC 2822 does not
# know and the standard parser refuses.
_LONG_MONTH = re.compile(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]+\b", re.IGNORECASE)
# "2018-09-25 20:00:00 UTC" and "2018-09-25 20:00:00 +0200", as many servers write a time for people.
_ZONE = re.compile(r"(?<=\d)\s*(?:(UTC|GMT|Z)|([+-]\d\d(?::?\d\d)?))$", re.IGNORECASE)
# Valid in ISO 8601 and RFC 2822, but datetime has neither: a leap second, and midnight at the end of a day.
_LEAP_SECOND = re.compile(r"(?<=[T\s]\d\d:[0-5]\d:)60(?!\d)", re.IGNORECASE)
_END_OF_DAY = re.compile(r"(?<=[T\s])24(?=:00(?::00(?:[.,]0+)?)?(?![\d:.,]))", re.IGNORECASE)


def parse_date(text: str | None) -> datetime | None:
    """Read an RFC 2822 or ISO 8601 date.

    Args:
        text: the date as the platform wrote it, for example ``Tue, 25 Sept 2018 20:00:00 +0000`` or
            ``2018-09-25 20:00:00 UTC``. A leap second is read as the second after it.

    Returns:
        An aware ``datetime`` (UTC where the text names no zone), or None where the text can't be read.
    """
    if not text:
        return None
    text, leap_seconds = _LEAP_SECOND.subn("59", text.strip(), count=1)
    text, ends_of_day = _END_OF_DAY.subn("00", text, count=1)
    beyond = timedelta(days=ends_of_day, seconds=leap_seconds)
    for read in (_rfc_2822, _iso_8601):
        try:
            moment = read(text) + beyond
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError, IndexError, TypeError):
            continue
    return None


def _rfc_2822(text: str) -> datetime:
    return parsedate_to_datetime(_LONG_MONTH.sub(r"\1", text))


def _iso_8601(text: str) -> datetime:
    return datetime.fromisoformat(_ZONE.sub(lambda zone: zone[2] or "+00:00", text))
