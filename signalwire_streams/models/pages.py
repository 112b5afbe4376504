"""One page of a list."""

from typing import Generic, TypeVar

from attrs import frozen

_Item_co = TypeVar("_Item_co", covariant=True)


@frozen(kw_only=True)
class Page(Generic[_Item_co]):
    """One page of a list, with the addresses of its neighbours as the Space wrote them.

    Attributes:
        items: what is on the page.
        next_page_uri: where the next page is, or None on the last one. It is followed as it stands.
        page: the page's number, from 0.
        page_size: how many items a full page holds.
    """

    items: tuple[_Item_co, ...]
    uri: str | None = None
    first_page_uri: str | None = None
    next_page_uri: str | None = None
    previous_page_uri: str | None = None
    page: int | None = None
    page_size: int | None = None
