"""Pagination."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from signalwire_streams._http import requests
from signalwire_streams._http.account import Account
from signalwire_streams._http.decoding import read_page
from signalwire_streams._http.messages import Request, Result
from signalwire_streams.errors import MalformedResponseError
from signalwire_streams.models import Page, Participant

_Item = TypeVar("_Item")

# Empty pages, or pages of items that were listed before. A filter, or items that move while they are read, leave some.
_PAGES_WITHOUT_NEWS = 10


class Paginator(Generic[_Item]):
    """A list on the Space: ``async for item in paginator`` fetches page after page, as they are needed.

    Each iteration starts at the first page. The URI of the next page is followed as the Space returned it, on the same
    host only.
    Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)
    """

    def __init__(
        self, send: Callable[[Request], Awaitable[Result]], account: Account, first: Request, model: type[_Item]
    ) -> None:
        """Called by the ``list`` methods."""
        self._send, self._account, self._first, self._model = send, account, first, model

    async def __aiter__(self) -> AsyncIterator[_Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[_Item]]:
        """Iterate over the pages.

        Raises:
            MalformedResponseError: a page can't be read, leads to another host or back to an earlier page, or is the
                tenth in a row without a new item and leads to another.
            StreamsError: a page could not be fetched.
        """
        path, seen = self._first.path, set[str]()
        known: set[int] = set()
        without_news = 0
        while True:
            seen.add(path)
            page = await self._fetch(path)
            before = len(known)
            known.update(hash(_id_of(item)) for item in page.items)
            without_news = without_news + 1 if len(known) == before else 0
            yield page
            if not page.next_page_uri:
                return
            path = self._account.same_host_path(page.next_page_uri)
            if path in seen or without_news == _PAGES_WITHOUT_NEWS:
                raise MalformedResponseError("the Space's pages form a loop, so the list never ends", sent="yes")

    async def _fetch(self, path: str) -> Page[_Item]:
        # By itself, so that the response is not kept while the caller works on the page.
        result = await self._send(requests.page_at(self._first, path))
        return read_page(result.response and result.response.document, self._model, self._first.required_key)


def _id_of(item: object) -> str:
    return item.call_sid if isinstance(item, Participant) else str(getattr(item, "sid", ""))
