"""Lists that page by themselves."""

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from attrs import frozen

from signalwire_streams.errors import MalformedResponseError
from signalwire_streams.models import Page
from signalwire_streams.resources.streaming import settle
from signalwire_streams.transport.line import Line
from signalwire_streams.wire import exchanges
from signalwire_streams.wire.account import Account
from signalwire_streams.wire.answers import read_page
from signalwire_streams.wire.exchange import Exchange, Outcome

_Item = TypeVar("_Item")


@frozen
class Listing(Generic[_Item]):
    """A list on the Space: ``async for item in listing`` reads page after page, as they are needed.

    Each iteration starts anew at the first page. The next page is where the Space says it is, followed as it
    stands and on the same host only.
    Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)
    """

    _line: Line
    _account: Account
    _first: Exchange
    _model: type[_Item]

    async def __aiter__(self) -> AsyncIterator[_Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[_Item]]:
        """Read page by page.

        Raises:
            MalformedResponseError: a page can't be read, leads to another host, or leads back to an earlier one.
            StreamsError: the typed error of a page that could not be had.
        """
        exchange, seen = exchanges.again(self._first), {self._first.path}
        while True:
            # The raw answer is not kept while the caller works on the page.
            page = read_page(_document(await settle(self._line, exchange)), self._model, exchange.expects)
            yield page
            if not page.next_page_uri:
                return
            exchange = exchanges.read_next(self._account, self._first, page.next_page_uri)
            if exchange.path in seen:
                raise MalformedResponseError("the Space's pages lead in a circle: the list has no end")
            seen.add(exchange.path)


def _document(outcome: Outcome) -> object:
    return outcome.reply.document if outcome.reply is not None else None
