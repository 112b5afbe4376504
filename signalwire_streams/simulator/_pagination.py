"""The documented filters of the three lists (pure).

https://signalwire.com/docs/compatibility-api/ documents the names and the enumerations. That fields which it does not
name are ignored, and that a value outside an enumeration is a 422, is our reading.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, eq, gt, lt
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlencode

from attrs import frozen

from signalwire_streams.simulator._serializers import Json, day_of, read_day, read_moment
from signalwire_streams.simulator._state import Call, Conference, Participant

INVALID_ARGUMENT: Final = 10000
INVALID_PAGE_TOKEN: Final = 21481
_DEFAULT_SIZE: Final = 50
_LARGEST_SIZE: Final = 1000
_LARGEST_PAGE: Final = 2**31 - 1
_PAGING_FIELDS: Final = frozenset({"Page", "PageSize", "PageToken"})
_FORWARD: Final = "PA"
_BACKWARD: Final = "PB"
_TOKEN: Final = re.compile(r"(?P<direction>PA|PB)(?P<ordinal>[0-9a-f]+)")


class BadQuery(Exception):  # noqa: N818 - an answer for the client, not a failure of the simulator
    """A query that the API refuses with an HTTP status and an error code."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Listed(Protocol):
    """What can stand in a list."""

    ordinal: int
    """The place among everything that the Space ever created; lists are ordered by it."""


T = TypeVar("T", bound=Listed)
_ordinal: Final = attrgetter("ordinal")


@frozen
class Page(Generic[T]):
    """One page: its number and size as the client counts them, and whether there is more on either side."""

    number: int
    size: int
    items: Sequence[T]
    has_previous: bool
    has_next: bool


def cut_page(items: Sequence[T], query: Mapping[str, str]) -> Page[T]:
    """Cut the page that a query asks for out of the matching resources."""
    number = _number(query, "Page", 0, 0, _LARGEST_PAGE)
    size = _number(query, "PageSize", _DEFAULT_SIZE, 1, _LARGEST_SIZE)
    token = query.get("PageToken")
    start, end = (number * size, (number + 1) * size) if token is None else _from_token(items, token, size)
    return Page(number, size, items[start:end], has_previous=start > 0, has_next=end < len(items))


def page_uris(page: Page[T], path: str, query: Mapping[str, str]) -> Json:
    """Spell a page's frame: where it stands, and where the pages around it are. The filters stay in each URI."""
    filters = [(name, value) for name, value in query.items() if name not in _PAGING_FIELDS]

    def uri(number: int, token: str | None) -> str:
        fields = [("Page", str(number)), ("PageSize", str(page.size))]
        if token is not None:
            fields.append(("PageToken", token))
        return f"{path}?{urlencode([*fields, *filters])}"

    after = page.items[-1].ordinal if page.items else 0
    before = page.items[0].ordinal if page.items else 0
    has_previous = page.has_previous and bool(page.items)
    return {
        "uri": uri(page.number, query.get("PageToken")),
        "first_page_uri": uri(0, None),
        "next_page_uri": uri(page.number + 1, f"{_FORWARD}{after:08x}") if page.has_next else None,
        "previous_page_uri": uri(max(page.number - 1, 0), f"{_BACKWARD}{before:08x}") if has_previous else None,
        "page": page.number,
        "page_size": page.size,
    }


def _from_token(items: Sequence[T], token: str, size: int) -> tuple[int, int]:
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise BadQuery(400, INVALID_PAGE_TOKEN, "PageToken is not valid: it must start with PA or PB")
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
        raise BadQuery(400, INVALID_ARGUMENT, f"{name} must be a number from {least} to {most}")
    return number


_Item = TypeVar("_Item")
Test = Callable[[_Item], bool]
Filter = Callable[[str], Test[_Item]]
Comparison = Callable[[Any, Any], bool]

_COMPARISONS: Final[Mapping[str, Comparison]] = {"": eq, "<": lt, ">": gt}
_LONGEST_FRIENDLY_NAME: Final = 64


def _refuse(message: str) -> BadQuery:
    return BadQuery(422, INVALID_ARGUMENT, message)


def _one_of(name: str, choices: Iterable[str], read: Callable[[_Item], str]) -> Filter[_Item]:
    allowed = tuple(choices)

    def parse(value: str) -> Test[_Item]:
        if value not in allowed:
            raise _refuse(f"{name} must be one of {', '.join(allowed)}")
        return lambda item: read(item) == value

    return parse


def _equal(read: Callable[[_Item], str | None]) -> Filter[_Item]:
    return lambda value: lambda item: read(item) == value


def _boolean(name: str, read: Callable[[_Item], bool]) -> Filter[_Item]:
    def spell(item: _Item) -> str:
        return "true" if read(item) else "false"

    as_text: Filter[_Item] = _one_of(name, ("true", "false"), spell)
    return lambda value: as_text(value.lower())


def _friendly_name(value: str) -> Test[Conference]:
    if len(value) > _LONGEST_FRIENDLY_NAME:
        raise _refuse(f"FriendlyName must have at most {_LONGEST_FRIENDLY_NAME} characters")
    return lambda conference: conference.friendly_name == value


def _days(name: str, read: Callable[[Conference], float]) -> dict[str, Filter[Conference]]:
    def on(compare: Comparison) -> Filter[Conference]:
        def parse(value: str) -> Test[Conference]:
            day = read_day(value)
            if day is None:
                raise _refuse(f"{name} must be a date, YYYY-MM-DD")
            return lambda conference: compare(day_of(read(conference)), day)

        return parse

    return {f"{name}{sign}": on(compare) for sign, compare in _COMPARISONS.items()}


def _times(name: str, read: Callable[[Call], float | None]) -> dict[str, Filter[Call]]:
    def on(compare: Comparison) -> Filter[Call]:
        def parse(value: str) -> Test[Call]:
            moment, day = read_moment(value), read_day(value)
            if moment is None and day is None:
                raise _refuse(f"{name} must be a time in RFC 2822 format or a date, YYYY-MM-DD")

            def test(call: Call) -> bool:
                then = read(call)
                if then is None:
                    return False
                return compare(day_of(then), day) if day is not None else compare(int(then), moment)

            return test

        return parse

    return {f"{name}{sign}": on(compare) for sign, compare in _COMPARISONS.items()}


_CONFERENCES: Final[dict[str, Filter[Conference]]] = {
    "Status": _one_of("Status", ("init", "in-progress", "completed"), lambda item: item.status),
    "FriendlyName": _friendly_name,
    **_days("DateCreated", lambda conference: conference.created_at),
    **_days("DateUpdated", lambda conference: conference.updated_at),
}
_CALLS: Final[dict[str, Filter[Call]]] = {
    "Status": _one_of(
        "Status",
        ("queued", "ringing", "in-progress", "canceled", "completed", "busy", "failed", "no-answer"),
        lambda item: item.status,
    ),
    "From": _equal(lambda call: call.from_number),
    "To": _equal(lambda call: call.to_number),
    "ParentCallSid": _equal(lambda call: call.parent_call_sid),
    **_times("StartTime", lambda call: call.started_at),
    **_times("EndTime", lambda call: call.ended_at),
}
_PARTICIPANTS: Final[dict[str, Filter[Participant]]] = {
    "Muted": _boolean("Muted", lambda participant: participant.muted),
    "Hold": _boolean("Hold", lambda participant: participant.hold),
}


def select_conferences(conferences: Iterable[Conference], query: Mapping[str, str]) -> list[Conference]:
    """Give the conferences that a query asks for."""
    return _select(conferences, query, _CONFERENCES)


def select_calls(calls: Iterable[Call], query: Mapping[str, str]) -> list[Call]:
    """Give the calls that a query asks for."""
    return _select(calls, query, _CALLS)


def select_participants(participants: Iterable[Participant], query: Mapping[str, str]) -> list[Participant]:
    """Give a conference's participants that a query asks for."""
    return _select(participants, query, _PARTICIPANTS)


def _select(items: Iterable[_Item], query: Mapping[str, str], filters: Mapping[str, Filter[_Item]]) -> list[_Item]:
    tests = [filters[name](value) for name, value in query.items() if name in filters]
    return [item for item in items if all(test(item) for test in tests)]
