"""The session that a client makes for itself, and the parts of its requests that are always the same."""

from collections.abc import Mapping
from functools import cache
from platform import python_version

import aiohttp
from multidict import istr
from yarl import URL

_KEEPALIVE = 10.0


@cache  # the version is read from a file, which would be half of what a client costs
def user_agent() -> str:
    from importlib.metadata import version  # noqa: PLC0415  (slow to import, and not needed before)

    return f"signalwire-streams/{version('signalwire-streams')} aiohttp/{aiohttp.__version__} Python/{python_version()}"


def create_session(headers: Mapping[str, str], request_class: type[aiohttp.ClientRequest]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # The rate-limit middleware limits the concurrency.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        request_class=request_class,
    )


def post_head(origin: URL, headers: Mapping[str, str]) -> bytes:
    """Return the head of a POST from behind its path up to its last value, which is the length of the body."""
    encodings = aiohttp.ClientRequest.DEFAULT_HEADERS[istr("Accept-Encoding")]
    lines = {"Host": origin.host_port_subcomponent, **headers, "Accept-Encoding": encodings}
    written = "".join(f"\r\n{name}: {value}" for name, value in lines.items())
    return f" HTTP/1.1{written}\r\nContent-Length: ".encode("ascii")
