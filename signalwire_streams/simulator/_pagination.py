"""The three lists: their documented filters, and their pages (pure).

https://signalwire.com/docs/compatibility-api/ documents the names and the enumerations. That other fields are ignored,
and that a value outside an enumeration is a 422, is our interpretation.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from operator import attrgetter, eq, gt, lt
from typing import Any, TypeVar
from urllib.parse import urlencode

from signalwire_streams.simulator._requests import INVALID_ARGUMENT, Route
from signalwire_streams.simulator._responses import Json, Rejected, api_error
from signalwire_streams.simulator._state import Resource

_INVALID_PAGE_TOKEN = 21481
_DEFAULT_SIZE, _MAX_SIZE = 50, 1000
_MAX_PAGE = 2**31 - 1
_PAGING_FIELDS = frozenset({"Page", "PageSize", "PageToken"})
_FORWARD, _BACKWARD = "PA", "PB"
_TOKEN = re.compile(r"(?P<direction>PA|PB)(?P<ordinal>[0-9a-f]+)")


Item = TypeVar("Item", bound=Resource)
_Parser = Callable[[str], object]
_ordinal = attrgetter("ordinal")


def _one_of(*words: str) -> _Parser:
    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return parse


def _up_to_64_characters(value: str) -> str:
    if len(value) > 64:  # noqa: PLR2004
        raise ValueError("must have at most 64 characters")
    return value


def _flag(value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise ValueError("must be one of true, false")
    return value.lower() == "true"


def _day(value: str) -> date:
    try:
        return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ValueError("must be a date, YYYY-MM-DD") from None


def _day_or_moment(value: str) -> date | int:
    with suppress(ValueError):
        return _day(value)
    try:
        moment = parsedate_to_datetime(value)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, IndexError, TypeError):
        raise ValueError("must be a time in RFC 2822 format or a date, YYYY-MM-DD") from None


_Filter = tuple[str, _Parser, Callable[[Any, Any], bool]]


def _compared(name: str, attribute: str, parser: _Parser) -> dict[str, _Filter]:
    operators = {"": eq, "<": lt, ">": gt}
    return {name + sign: (attribute, parser, operator) for sign, operator in operators.items()}


_CALL_STATUSES = ("queued", "ringing", "in-progress", "canceled", "completed", "busy", "failed", "no-answer")

# By list: parameter, attribute of the listed resource, parser of the value, operator.
_FILTERS: dict[str, dict[str, _Filter]] = {
    "conferences": {
        "Status": ("status", _one_of("init", "in-progress", "completed"), eq),
        "FriendlyName": ("friendly_name", _up_to_64_characters, eq),
        **_compared("DateCreated", "created_at", _day),
        **_compared("DateUpdated", "updated_at", _day),
    },
    "calls": {
        "Status": ("status", _one_of(*_CALL_STATUSES), eq),
        "From": ("from_number", str, eq),
        "To": ("to_number", str, eq),
        "ParentCallSid": ("parent_call_sid", str, eq),
        **_compared("StartTime", "started_at", _day_or_moment),
        **_compared("EndTime", "ended_at", _day_or_moment),
    },
    "participants": {"Muted": ("muted", _flag, eq), "Hold": ("hold", _flag, eq)},
}


def list_document(name: str, items: Iterable[Item], serialize: Callable[[Item], Json], route: Route) -> Json:
    """Return the page of a list that a request asks for: "conferences", "calls" or "participants".

    Raises:
        Rejected: a filter or a paging field is invalid.
    """
    query = route.query_fields()
    tests = [_test(field, value, *_FILTERS[name][field]) for field, value in query.items() if field in _FILTERS[name]]
    matching = [item for item in items if all(test(item) for test in tests)]
    number = _number(query, "Page", 0, 0, _MAX_PAGE)
    size = _number(query, "PageSize", _DEFAULT_SIZE, 1, _MAX_SIZE)
    token = query.get("PageToken")
    start, end = (number * size, (number + 1) * size) if token is None else _from_token(matching, token, size)
    page = matching[start:end]
    filters = [(field, value) for field, value in query.items() if field not in _PAGING_FIELDS]

    def uri(page_number: int, page_token: str | None) -> str:
        paging = [("Page", str(page_number)), ("PageSize", str(size))]
        if page_token is not None:
            paging.append(("PageToken", page_token))
        return f"{route.path}?{urlencode([*paging, *filters])}"

    following = f"{_FORWARD}{page[-1].ordinal if page else 0:08x}"
    preceding = f"{_BACKWARD}{page[0].ordinal if page else 0:08x}"
    return {
        "uri": uri(number, token),
        "first_page_uri": uri(0, None),
        "next_page_uri": uri(number + 1, following) if end < len(matching) else None,
        "previous_page_uri": uri(max(number - 1, 0), preceding) if start > 0 and page else None,
        "page": number,
        "page_size": size,
        name: [serialize(item) for item in page],
    }


def _test(
    field: str, value: str, attribute: str, parser: _Parser, operator: Callable[[Any, Any], bool]
) -> Callable[[object], bool]:
    try:
        wanted = parser(value)
    except ValueError as error:
        raise Rejected(api_error(422, INVALID_ARGUMENT, f"{field.rstrip('<>')} {error}")) from None

    def test(item: object) -> bool:
        actual = getattr(item, attribute)
        if actual is None:
            return False
        if isinstance(wanted, date):
            return operator(datetime.fromtimestamp(actual, UTC).date(), wanted)
        return operator(int(actual) if isinstance(actual, float) else actual, wanted)

    return test


def _from_token(items: Sequence[Item], token: str, size: int) -> tuple[int, int]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise Rejected(api_error(400, _INVALID_PAGE_TOKEN, "PageToken is not valid: it must start with PA or PB"))
    ordinal = int(match["ordinal"], base=16)
    if match["direction"] == _FORWARD:
        start = bisect_right(items, ordinal, key=_ordinal)
        return start, start + size
    end = bisect_left(items, ordinal, key=_ordinal)
    return max(end - size, 0), end


def _number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) else -1
    if not least <= number <= most:
        raise Rejected(api_error(400, INVALID_ARGUMENT, f"{name} must be a number from {least} to {most}"))
    return number
