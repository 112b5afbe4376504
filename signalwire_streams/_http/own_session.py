"""The session that a client makes for itself, whose requests with a body are written at once, from prepared parts."""

import asyncio
from collections.abc import Mapping
from functools import cache
from platform import python_version
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection
from multidict import CIMultiDict, istr
from yarl import URL

from signalwire_streams._http.attempt_guard import (
    FORM,
    ONE_WRITE,
    AttemptGuard,
    GuardedPayload,
    PreparedBody,
    SelfWritingRequest,
)
from signalwire_streams._http.messages import Request

_KEEPALIVE = 10.0
_UNPREPARED = ("params", "skip_auto_headers", "cookies", "auth", "compress", "chunked", "expect100", "proxy", "traces")
"""What a prepared request does not have, by aiohttp's names."""
_WRITTEN: Any = SimpleNamespace(output_size=0)


@cache  # the version is read from a file, which would be half of what a client costs
def user_agent() -> str:
    from importlib.metadata import version  # noqa: PLC0415  (slow to import, and not needed before)

    return f"signalwire-streams/{version('signalwire-streams')} aiohttp/{aiohttp.__version__} Python/{python_version()}"


def _omit(*_: object) -> None:
    """Do nothing, since the head and the body are prepared."""


class PreparedRequest(SelfWritingRequest):
    """A request of our own session, which writes prepared bytes instead of making them from headers and a payload.

    A request with anything that the bytes do not have becomes one of aiohttp's own: without a body, through a proxy,
    with trace hooks, with another header. An instrumentation of aiohttp may have added these.
    """

    _prepared: PreparedBody

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (aiohttp's own)
        body = options.get("data")
        if (
            isinstance(body, PreparedBody)
            and options["headers"] == body.headers
            and not any(map(options.get, _UNPREPARED))
        ):
            self._prepared = body
        else:
            self.__class__ = aiohttp.ClientRequest  # type: ignore[assignment]
        aiohttp.ClientRequest.__init__(self, *arguments, **options)

    def update_headers(self, headers: Any) -> None:  # noqa: ANN401
        self.headers = headers

    update_host: Any = _omit
    update_auto_headers: Any = _omit
    update_cookies: Any = _omit
    update_content_encoding: Any = _omit
    update_auth: Any = _omit
    update_body_from_data: Any = _omit
    update_transfer_encoding: Any = _omit
    update_expect_continue: Any = _omit

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        response = self.respond()  # before anything is written
        await self._prepared.guard.write_prepared(conn, self._prepared)
        return response

    def respond(self) -> aiohttp.ClientResponse:
        return self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self._session,
            stream_writer=_WRITTEN,
        )


class OwnSession:
    """Creates the client's own session, and the bodies of its requests."""

    def __init__(self, root: URL, headers: Mapping[str, str]) -> None:
        self._root, self._headers = root, CIMultiDict(headers)
        self._head: bytes | None = None  # of a POST, from behind its path up to its last value; where it is prepared

    def create(self) -> aiohttp.ClientSession:
        can_prepare = self._can_prepare()
        self._head = self._post_head() if can_prepare else None
        return aiohttp.ClientSession(
            # The rate-limit middleware limits the concurrency.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            request_class=PreparedRequest if can_prepare else aiohttp.ClientRequest,
        )

    def _can_prepare(self) -> bool:
        """Return False for an aiohttp whose requests are different: its own class knows them."""
        own = [name for name in vars(PreparedRequest) if not name.startswith("_") and name != "respond"]
        if not all(hasattr(aiohttp.ClientRequest, name) for name in own):
            return False
        loop, kind, guard = asyncio.get_running_loop(), aiohttp.ClientResponse, cast("AttemptGuard", None)
        body = PreparedBody(b"", guard, b"", self._headers)
        try:
            PreparedRequest(
                "POST", self._root, headers=self._headers, data=body, loop=loop, response_class=kind
            ).respond()
        except Exception:  # noqa: BLE001  (whatever is different)
            return False
        return True

    def _post_head(self) -> bytes:
        encodings = aiohttp.ClientRequest.DEFAULT_HEADERS[istr("Accept-Encoding")]
        lines = {
            "Host": self._root.host_port_subcomponent,
            **self._headers,
            "Content-Type": FORM,
            "Accept-Encoding": encodings,
        }
        written = "".join(f"\r\n{name}: {value}" for name, value in lines.items())
        return f" HTTP/1.1{written}\r\nContent-Length: ".encode("ascii")

    def body(self, request: Request, url: URL, guard: AttemptGuard) -> GuardedPayload | PreparedBody | None:
        if request.body is None:
            return None
        path, size = url.raw_path_qs, len(request.body)
        # A path that a middleware has changed may be one that aiohttp refuses.
        is_plain = path.isascii() and path.isprintable() and " " not in path
        if self._head is None or request.method != "POST" or size > ONE_WRITE or not is_plain:
            return GuardedPayload(request.body, guard)
        head = b"POST %b%b%d\r\n\r\n" % (path.encode("ascii"), self._head, size)
        return PreparedBody(request.body, guard, head, self._headers)
