"""Who may see a live page: links that work once, the cookies they are exchanged for, and the checks of a request."""

import asyncio
import hashlib
import inspect
import ipaddress
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from secrets import token_urlsafe
from time import monotonic
from typing import TypeAlias, TypeVar

from aiohttp import web

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import a_kind_of, kind_of

Authorize: TypeAlias = Callable[[web.BaseRequest], bool | Awaitable[bool]]
"""A function that returns True if a request may see the page."""

_Value = TypeVar("_Value")

_LOG = logging.getLogger("signalwire_streams.page")

_LINK_SECONDS = 24 * 3600.0
_MAX_LINKS, _MAX_COOKIES = 100, 100
_COOKIE = "signalwire-streams-page"
_AUTHORIZE_TIMEOUT = 10.0

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response: nothing is stored, framed, or loaded from elsewhere."""


def is_loopback(host: str | None) -> bool:
    """Return whether a host names this machine only. A name that is looked up in the DNS does not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class RejectedError(Exception):
    """A request is not admitted. Its text is shown to the person in front of the browser."""


class Access:
    """Decides which requests may see a page. Only hashes of what admits a browser are kept."""

    def __init__(self, authorize: Authorize | None, allowed_hosts: Collection[str]) -> None:
        if authorize is not None and not callable(authorize):
            raise InvalidRequestError(
                f"authorize is {a_kind_of(authorize)}: write async def authorize(request), which returns True or False"
            )
        hosts: object = allowed_hosts
        if isinstance(hosts, str) or not isinstance(hosts, Collection) or not all(map(_is_host, hosts)):
            raise InvalidRequestError(
                "allowed_hosts is not a list of hosts: write ['example.com'], without a scheme or '*'"
            )
        self._authorize = authorize
        self._hosts = frozenset(_without_brackets(host.lower()) for host in allowed_hosts)
        self._links: OrderedDict[bytes, float] = OrderedDict()  # until when they can be used
        self._cookies: OrderedDict[bytes, None] = OrderedDict()

    def create_link(self, address: object) -> str:
        if not isinstance(address, str) or not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", address):
            raise InvalidRequestError(
                "address is not a URL of the page: write 'https://example.com/live/', without '?' or '#'"
            )
        token = token_urlsafe(32)
        _add(self._links, _hash(token), monotonic() + _LINK_SECONDS, _MAX_LINKS)
        return f"{address.rstrip('/')}/?token={token}"

    async def check(self, request: web.BaseRequest, *, is_socket: bool) -> str | None:
        """Admit a request; return the cookie that its browser must get, if it came with a link.

        Raises:
            RejectedError: it is not admitted; the text says why.
        """
        self._check_origin(request, is_socket=is_socket)
        if self._authorize is not None:
            await self._ask(self._authorize, request)
            return None
        cookie = _hash(request.cookies.get(_cookie_name(request), ""))
        if cookie in self._cookies:
            self._cookies.move_to_end(cookie)
            return None
        token = request.query.get("token") if request.method == "GET" and not is_socket else None
        if token is None:
            raise RejectedError("This page needs the link that the program printed: open it in this browser.")
        if self._links.pop(_hash(token), 0.0) < monotonic():
            raise RejectedError("This link is invalid, or was used before: a link opens the page in one browser only.")
        return self._create_cookie()

    async def _ask(self, authorize: Authorize, request: web.BaseRequest) -> None:
        allowed = authorize(request)
        if inspect.isawaitable(allowed):
            try:
                async with asyncio.timeout(_AUTHORIZE_TIMEOUT):
                    allowed = await allowed
            except TimeoutError:
                raise RejectedError("The check of your access takes too long: try again.") from None
        if not isinstance(allowed, bool):
            _LOG.error("authorize returned a %s, which admits nobody: return True or False", kind_of(allowed))
        if allowed is not True:
            raise RejectedError("You may not see this page.")

    def _create_cookie(self) -> str:
        value = token_urlsafe(32)
        _add(self._cookies, _hash(value), None, _MAX_COOKIES)
        return value

    def _check_origin(self, request: web.BaseRequest, *, is_socket: bool) -> None:
        """Check that the browser reached the page under its own name, and that no other site sent the request.

        A site whose name is looked up as this machine's address (DNS rebinding) is known by its ``Host``. Over TLS its
        certificate would not match, and an `authorize` function decides for itself.
        """
        host = _host(request)
        is_known = bool({host, _name(host)} & self._hosts) if self._hosts else is_loopback(_name(host))
        if not is_known and (self._hosts or not (request.secure or self._authorize is not None)):
            raise RejectedError(
                "The page is not served under this host name: open it as localhost, or add the name to "
                "allowed_hosts=[...]."
            )
        origin = request.headers.get("Origin")
        if origin is None and not is_socket:
            return
        source = (origin or "").lower().partition("://")[2]
        # A name that is allowed without a port is a site's at its default port: another one may be another program's.
        if not source or (source != host and not {source, _without_brackets(source)} & self._hosts):
            raise RejectedError(
                "This request came from another site. If it is the page's own, add its host and port to "
                "allowed_hosts=[...]."
            )


def set_cookie(response: web.Response, request: web.BaseRequest, value: str) -> None:
    response.set_cookie(
        _cookie_name(request),
        value,
        path=None,  # type: ignore[arg-type]  # the link's own, which a proxy may have shortened for this server
        httponly=True,
        secure=request.secure,
        samesite="Strict",
    )


def _cookie_name(request: web.BaseRequest) -> str:
    """Return a name for each port: browsers send a host's cookies to all of its ports."""
    port = _host(request).rpartition(":")[2]
    return f"{_COOKIE}-{port}" if port.isascii() and port.isdecimal() else _COOKIE


def _host(request: web.BaseRequest) -> str:
    return request.headers.get("Host", "").lower()  # `request.host` would look up this machine's name if there is none


def _name(host: str) -> str:
    """Return a host without its port, and an IPv6 address without its brackets."""
    name, colon, port = host.rpartition(":")
    return _without_brackets(name if colon and port.isdigit() else host)


def _without_brackets(host: str) -> str:
    return host.strip("[]") if host.endswith("]") else host


def _is_host(host: object) -> bool:
    return isinstance(host, str) and bool(host) and not set(host) & set("/@* ")


def _hash(secret: str) -> bytes:
    """Return the hash by which a secret is looked up, so that timing reveals nothing about the valid ones."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _add(known: OrderedDict[bytes, _Value], key: bytes, value: _Value, most: int) -> None:
    known[key] = value
    if len(known) > most:
        known.popitem(last=False)
