"""Reading the platform's dates, which are not always dates."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# The documentation's own examples spell months with four letters ("25 Sept 2018"), which RFC 2822 does not
# know and the standard parser refuses.
_LONG_MONTH = re.compile(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]+\b", re.IGNORECASE)


def parse_date(text: str | None) -> datetime | None:
    """Read an RFC 2822 or ISO 8601 date.

    Args:
        text: the date as the platform wrote it, for example ``Tue, 25 Sept 2018 20:00:00 +0000``.

    Returns:
        An aware ``datetime`` (UTC where the text names no zone), or None where the text can't be read.
    """
    if not text:
        return None
    for read in (_rfc_2822, datetime.fromisoformat):
        try:
            moment = read(text)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError, IndexError, TypeError):
            continue
    return None


def _rfc_2822(text: str) -> datetime:
    return parsedate_to_datetime(_LONG_MONTH.sub(r"\1", text))
