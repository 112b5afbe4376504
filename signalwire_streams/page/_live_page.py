"""`LivePage`: an aiohttp sub-application, or a standalone server, that shows streams, runs and keepers in a browser."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files
from math import inf
from ssl import SSLContext
from typing import Any

from aiohttp import web
from yarl import URL

from signalwire_streams.bulk import BulkRun
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming import Keeper
from signalwire_streams.middleware import RateLimit
from signalwire_streams.models._validation import a_kind_of, check_count, kind_of
from signalwire_streams.page._access import HEADERS, Access, Authorize, RejectedError, is_loopback, set_cookie
from signalwire_streams.page._board import Board, KeeperRows, RunRow
from signalwire_streams.page._sockets import PageSocket, Sockets, play
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.receiver._server import Slot, StreamServer
from signalwire_streams.receiver.audio._formats import whole_number

_LOG = logging.getLogger("signalwire_streams.page")
_MAX_PENDING = 64  # connections of the server without a WebSocket
_HANDSHAKE_TIMEOUT = 10.0
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_MAX_ROWS, _MAX_DIGITS = 2_000, 16


def _read_files() -> dict[str, tuple[bytes, str]]:
    """Return the content and the type of each file, by its name in the address."""
    folder = files("signalwire_streams.page").joinpath("static")
    found = {one.name: (one.read_bytes(), _TYPES[one.name.rpartition(".")[2]]) for one in folder.iterdir()}
    return found | {"": found.pop("index.html")}


class LivePage:
    """Shows live streams, bulk runs and keepers in a browser, and plays the audio of a stream.

    ::

        page = LivePage(receivers=[receiver], runs=[run])
        async with page.serve() as link:
            print(link)  # it opens the page once, in one browser

    It costs nothing while no browser shows it, and it never slows a stream. In your own aiohttp application,
    ``application.add_subapp("/live/", LivePage(receivers=[receiver], authorize=is_operator).application)``: there,
    your function decides who sees it. Each time that someone listens to a stream, ``signalwire_streams.page`` logs
    that at INFO.

    Attributes:
        application: the page as an aiohttp sub-application, for one event loop.
        opened: set when a browser first shows the page.
    """

    application: web.Application
    opened: asyncio.Event

    def __init__(
        self,
        *,
        receivers: Iterable[MediaReceiver] = (),
        runs: Iterable[BulkRun[Any]] = (),
        keepers: Iterable[Keeper] = (),
        authorize: Authorize | None = None,
        allowed_hosts: Collection[str] = (),
        max_pages: int = 32,
        max_listeners: int = 8,
    ) -> None:
        """Create a page.

        Args:
            receivers: whose streams are shown.
            runs: bulk runs whose progress is shown; `add_run` adds others later, and knows more about them.
            keepers: whose conferences and calls are shown; `add_keeper` adds others later.
            authorize: function (``def`` or ``async def``) of the ``aiohttp.web.BaseRequest`` of each file and each
                WebSocket, which returns True if it may see the page. Without it, only `create_link` and `serve` admit
                a browser.
            allowed_hosts: host names, with or without a port, under which browsers reach the page; with the port, if a
                proxy changes that. By default the names of this machine's loopback; over TLS, or with ``authorize``,
                any.
            max_pages: pages that may be open.
            max_listeners: pages that may listen to a stream.

        Raises:
            InvalidRequestError: an argument is invalid.
        """
        given: tuple[object, ...] = receivers, runs, keepers
        if not all(isinstance(each, Iterable) and not isinstance(each, BulkRun | Keeper) for each in given):
            raise InvalidRequestError(
                "receivers, runs and keepers are lists: write receivers=[receiver], runs=[run], keepers=[keeper]"
            )
        receivers = tuple(receivers)
        for receiver in receivers:
            if not isinstance(receiver, MediaReceiver):
                raise InvalidRequestError(
                    f"receivers contains {a_kind_of(receiver)}: pass MediaReceivers, as [receiver]"
                )
        self._pages = Sockets(check_count(max_pages, "max_pages"), "Too many pages are open: close one.")
        self._listeners = Sockets(check_count(max_listeners, "max_listeners"), "Too many listen: try again later.")
        self._access = Access(authorize, allowed_hosts)
        self._board = Board(receivers, _MAX_ROWS)
        for run in runs:
            self.add_run(run)
        for keeper in keepers:
            self.add_keeper(keeper)
        self._files = _read_files()
        self.opened = asyncio.Event()
        self.application = web.Application()
        self.application.router.add_get("/{name:[^/]*}", self._handle)
        self.application.router.add_get("", _add_slash)
        self.application.on_shutdown.append(self._close)

    def add_run(
        self, run: BulkRun[Any], *, title: str = "", total: int | None = None, rate_limit: float | None = None
    ) -> None:
        """Show a bulk run. A page shows the last 20.

        Args:
            run: the run.
            title: what the page calls it.
            total: number of its items; by default the length of its input, if that has one.
            rate_limit: requests per second that are allowed, for the chart of the rate.

        Raises:
            InvalidRequestError: ``run`` is not a bulk run, or another argument is invalid.
        """
        if not isinstance(run, BulkRun):
            raise InvalidRequestError(
                f"runs contains {a_kind_of(run)}: pass what client.start_streams returns, as [run]"
            )
        if not isinstance(title, str):
            raise InvalidRequestError(f"title must be a str, not {kind_of(title)}")
        if total is not None:
            check_count(total, "total", least=0)
        if isinstance(rate_limit, RateLimit):
            raise InvalidRequestError("rate_limit must be requests per second: write rate_limit=limit.rate")
        if rate_limit is not None and not _is_rate(rate_limit):
            raise InvalidRequestError(f"rate_limit must be requests per second, such as 1_242.0, not {rate_limit!r}")
        self._board.runs.append(RunRow(run, title, total, rate_limit))

    def add_keeper(self, keeper: Keeper) -> None:
        """Show the conferences and calls of a keeper. A page shows the last 20 keepers.

        Args:
            keeper: the keeper, before or after it begins.

        Raises:
            InvalidRequestError: ``keeper`` is not a keeper.
        """
        if not isinstance(keeper, Keeper):
            raise InvalidRequestError(
                f"keepers contains {a_kind_of(keeper)}: pass what client.keep_streaming returns, as [keeper]"
            )
        self._board.keepers.append(KeeperRows(keeper, _MAX_ROWS))

    def create_link(self, address: str) -> str:
        """Return a link that opens the page in one browser, once, within 24 hours.

        Args:
            address: the page's address, such as ``https://example.com/live/``.

        Raises:
            InvalidRequestError: ``address`` is not one.
        """
        return self._access.create_link(address)

    @asynccontextmanager
    async def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: SSLContext | None = None,
        on_used: Callable[[str], object] | None = None,
    ) -> AsyncIterator[str]:
        """Serve the page while the block runs.

        Args:
            host: address to listen on.
            port: port to listen on; 0 takes a free one.
            ssl_context: context with the server's certificate; needed unless ``host`` is this machine's loopback.
            on_used: called when a link was used, with another one for another browser.

        Yields:
            A link that opens the page in one browser, once.

        Raises:
            InvalidRequestError: an argument is invalid, or the page would be served to other machines without TLS.
            OSError: the host is unknown, or the port is taken.
        """
        if not isinstance(host, str):
            raise InvalidRequestError(f"host must be a str, such as '127.0.0.1', not {kind_of(host)}")
        whole_number("port", port, 0, 65_535)
        if ssl_context is None and not is_loopback(host):
            raise InvalidRequestError(
                f"the page plays calls, so {host!r} needs TLS: pass ssl_context=..., or omit host for this machine only"
            )
        address = ""

        async def respond(request: web.BaseRequest, slot: Slot) -> web.StreamResponse:
            return await self._respond(request, slot, lambda: on_used and on_used(self.create_link(address)))

        server = StreamServer(
            respond, ssl_context=ssl_context, handshake_timeout=_HANDSHAKE_TIMEOUT, max_pending=_MAX_PENDING
        )
        try:
            bound = await server.listen(host, port)
            shown = f"[{host}]" if ":" in host else host
            address = f"{'http' if ssl_context is None else 'https'}://{shown}:{bound}/"
            yield self.create_link(address)
        finally:
            await self._close()
            await server.close()

    async def _close(self, _: object = None) -> None:
        await asyncio.gather(self._pages.close(), self._listeners.close())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        return await self._respond(request, Slot(), lambda: None)

    async def _respond(self, request: web.BaseRequest, slot: Slot, on_used: Callable[[], object]) -> web.StreamResponse:
        name = request.path.rpartition("/")[2]
        is_socket = name in {"socket", "audio"}
        try:
            cookie = await self._access.check(request, is_socket=is_socket)
        except RejectedError as rejection:
            _LOG.info("rejected a request from %s: %s", request.remote, rejection)
            return _text(403, str(rejection))
        slot.admit()
        if request.method != "GET":
            return _text(405, "Use GET.", Allow="GET")
        if is_socket:
            return await self._respond_socket(request, name, slot)
        file = self._files.get(name)
        if file is None:
            return _text(404, "The page has no such file.")
        body, kind = file
        response = web.Response(body=body, content_type=kind, charset="utf-8", headers=HEADERS)
        if cookie is not None:
            set_cookie(response, request, cookie)
            on_used()
        return response

    async def _respond_socket(self, request: web.BaseRequest, name: str, slot: Slot) -> web.StreamResponse:
        if not web.WebSocketResponse().can_prepare(request).ok:
            return _text(400, "This address is for WebSockets.")
        slot.release()
        if name == "socket":
            self.opened.set()
            return await self._pages.serve(request, lambda socket: PageSocket(self._board, request, socket).run())
        stream = request.query.get("stream", "")
        row = self._board.streams.get(int(stream)) if stream.isdecimal() and len(stream) < _MAX_DIGITS else None
        if row is None or not row.is_playable:
            return _text(404, "There is no such stream, or it can't be played.")
        return await self._listeners.serve(request, lambda socket: play(row, request, socket))


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


async def _add_slash(request: web.Request) -> web.StreamResponse:
    """Redirect to the page, whose files are below its address; a proxy may have changed all but the last part."""
    location = URL.build(path=request.path.rpartition("/")[2] + "/", query=request.query)
    return _text(302, "The address of the page ends with a slash.", Location=str(location))


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers={**HEADERS, **headers})
