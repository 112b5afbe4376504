"""Lists that page by themselves."""

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from attrs import frozen

from signalwire_streams._http import requests
from signalwire_streams._http.account import Account
from signalwire_streams._http.decoding import read_page
from signalwire_streams._http.messages import Request, Result
from signalwire_streams._http.session import Dispatcher
from signalwire_streams.errors import MalformedResponseError
from signalwire_streams.models import Page, Participant
from signalwire_streams.resources._streams import send_or_raise

_Item = TypeVar("_Item")

# Empty pages, or pages of items that were listed before. A filter, or items that move while they are read, leave some.
_PAGES_WITHOUT_NEWS = 10


@frozen
class Paginator(Generic[_Item]):
    """A list on the Space: ``async for item in listing`` reads page after page, as they are needed.

    Each iteration starts anew at the first page. The next page is where the Space says it is, followed as it
    stands and on the same host only.
    Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)
    """

    _dispatcher: Dispatcher
    _account: Account
    _first: Request
    _model: type[_Item]

    async def __aiter__(self) -> AsyncIterator[_Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[_Item]]:
        """Read page by page.

        Raises:
            MalformedResponseError: a page can't be read, leads to another host or back to an earlier page, or is the
                tenth in a row without a new item and leads to another.
            StreamsError: the typed error of a page that could not be had.
        """
        exchange, seen = requests.copy_for_new_call(self._first), {self._first.path}
        known: set[int] = set()
        without_news = 0
        while True:
            # The raw answer is not kept while the caller works on the page.
            page = read_page(
                _document(await send_or_raise(self._dispatcher, exchange)), self._model, exchange.required_key
            )
            before = len(known)
            known.update(hash(_id_of(item)) for item in page.items)
            without_news = without_news + 1 if len(known) == before else 0
            yield page
            if not page.next_page_uri:
                return
            exchange = requests.next_page(self._account, self._first, page.next_page_uri)
            if exchange.path in seen or without_news == _PAGES_WITHOUT_NEWS:
                raise MalformedResponseError("the Space's pages lead in a circle: the list has no end", sent="yes")
            seen.add(exchange.path)


def _document(outcome: Result) -> object:
    return outcome.response.document if outcome.response is not None else None


def _id_of(item: object) -> str:
    return item.call_sid if isinstance(item, Participant) else str(getattr(item, "sid", ""))
