"""Pages of a list, cut by page number or by an opaque token (pure).

https://signalwire.com/docs/compatibility-api/: ``PageSize`` 1 to 1000, 50 by default; ``PageToken`` starts with PA or
PB, else 400 with code 21481. The next page is what ``next_page_uri`` says and is never computed: a token here names
a position among all resources, so that it stays right while the list changes.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlencode

from attrs import frozen

from signalwire_streams.simulator._serializers import Json

__all__ = ["INVALID_ARGUMENT", "BadQuery", "Listed", "Page", "cut_page", "page_uris"]

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
