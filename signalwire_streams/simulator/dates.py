"""Dates as the Compatibility API spells and reads them (pure).

RFC 2822 in answers, RFC 2822 or YYYY-MM-DD in filters (https://signalwire.com/docs/compatibility-api/).
"""

import time
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

__all__ = ["day_of", "http_date", "read_day", "read_moment", "rfc_2822"]

# Spelled out, since strftime would follow the machine's locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SEPTEMBER: Final = 9


@lru_cache(maxsize=1024)
def _spell(seconds: int, sept: bool) -> str:  # noqa: FBT001 - a cache key, called only below
    moment = time.gmtime(seconds)
    month = "Sept" if sept and moment.tm_mon == _SEPTEMBER else _MONTHS[moment.tm_mon - 1]
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    return f"{_DAYS[moment.tm_wday]}, {moment.tm_mday:02} {month} {moment.tm_year} {clock}"


def rfc_2822(moment: float, *, sept: bool = False) -> str:
    """Spell a POSIX timestamp as ``Wed, 19 Sep 2018 21:00:00 +0000``.

    With ``sept`` the month reads "Sept", which is no RFC 2822 month but stands in the vendor's examples.
    """
    return f"{_spell(int(moment), sept)} +0000"


def http_date(moment: float) -> str:
    """Spell a POSIX timestamp as the Date header does, ``Wed, 19 Sep 2018 21:00:00 GMT``."""
    return f"{_spell(int(moment), sept=False)} GMT"


def day_of(moment: float) -> date:
    """Give the UTC day of a POSIX timestamp."""
    return datetime.fromtimestamp(moment, UTC).date()


def read_day(text: str) -> date | None:
    """Read ``YYYY-MM-DD``; None when it is something else."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def read_moment(text: str) -> int | None:
    """Read an RFC 2822 date to whole POSIX seconds; None when it is something else."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
