"""URLs in parts that join back to the same bytes, since a signature covers the URL as the platform knows it.

A server sees another one: without userinfo and fragment, with or without a port, and behind a proxy with another
scheme, host or path. The regular expressions here run on what anybody sends, so each is linear in its input.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Self, TypeVar
from urllib.parse import quote

from attrs import field, frozen
from multidict import CIMultiDict

from signalwire_streams.models._validation import HiddenItems, Secret

_DEFAULT_PORTS = {"http://": ":80", "https://": ":443"}
_SUB_DELIMS = "!$&'()*+,;="
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?", re.DOTALL)
_HOST = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\])(:[0-9]{1,5})?")
_PORTS = range(1, 65_536)
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FIRST_HOP = re.compile(rf'(?:[^,"]|{_QUOTED})*')
_HOP_PARTS = re.compile(rf'(?:[^;"]|{_QUOTED})+')  # of a first hop only: its quotes are all closed


class Headers(CIMultiDict[str]):
    """A request's headers, without whitespace around their values; a value that is not a str counts as empty."""

    def __init__(self, headers: Mapping[str, object] | HiddenItems) -> None:
        super().__init__(
            (str(name), Secret(value.strip(" \t") if isinstance(value, str) else "")) for name, value in headers.items()
        )

    def replaced(self, name: str, *values: str) -> "Headers":
        """Return headers with these values instead of a header's own."""
        changed = Headers(self)
        changed.popall(name, None)
        changed.extend((name, value) for value in values)
        return changed


@frozen(kw_only=True)
class UrlParts:
    """An absolute URL in parts that include their separators: `https://`, `user:password@`, `:8443`, `?a=1`, `#top`."""

    scheme: str
    userinfo: str = field(repr=False)
    host: str
    port: str
    path: str
    query: str = field(repr=False)
    fragment: str = field(repr=False)

    def __str__(self) -> str:
        return self.scheme + self.userinfo + self.host + self.port + self.path + self.query + self.fragment

    @classmethod
    def split(cls, url: str) -> Self | None:
        """Split a URL; return None if it is not absolute."""
        outer = _URL.fullmatch(url)
        if outer is None:
            return None
        user, at, authority = outer[2].rpartition("@")
        inner = _HOST_AND_PORT.fullmatch(authority)
        if inner is None:
            return None
        return cls(
            scheme=outer[1],
            userinfo=user + at,
            host=inner[1],
            port=inner[2] or "",
            path=outer[3],
            query=outer[4] or "",
            fragment=outer[5] or "",
        )

    @property
    def default_port(self) -> str:
        return _DEFAULT_PORTS.get(self.scheme.lower(), "")


def equivalent_urls(url: str, headers: Headers) -> tuple[Secret, ...]:
    """Return the forms of one URL that the platform may have signed, the given one first.

    They are with and without a port, userinfo and fragment. Clients send the userinfo of a URL as `Authorization`, so
    it is taken from there as well.

    A fragment that looks like a path or a query stays: a sender who wrote a `#` into `Host` would get the rest of the
    URL dropped.
    """
    parts = UrlParts.split(url)
    if parts is None:
        return (Secret(url),)
    is_plain = not set(parts.fragment) & set("/?")
    variants = product(
        (parts.port, "", parts.default_port),
        (parts.userinfo, "", _userinfo(headers)),
        (parts.fragment, "" if is_plain else parts.fragment),
    )
    before, after = parts.scheme, parts.path + parts.query
    urls = (Secret(f"{before}{user}{parts.host}{port}{after}{fragment}") for port, user, fragment in variants)
    return tuple(dict.fromkeys(urls))


_Parsed = TypeVar("_Parsed")


def parse_each(values: object, parse: Callable[[str], _Parsed | None]) -> tuple[_Parsed, ...] | None:
    """Parse a list of strings; return None if it is not a list, or if one of them is invalid."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return None
    listed = list(values)
    parsed = tuple(found for text in listed if isinstance(text, str) and (found := parse(text)) is not None)
    return parsed if len(parsed) == len(listed) else None


def _userinfo(headers: Headers) -> str:
    """Return the credentials of a request as userinfo, quoted so that they cannot pass for another part of a URL."""
    values = headers.getall("Authorization", ())
    kind, _, credentials = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if kind.lower() != "basic":
        return ""
    try:
        user, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"{quote(user, _SUB_DELIMS)}:{quote(password, _SUB_DELIMS)}@" if colon else ""


def split_host(authority: str) -> tuple[str, str] | None:
    """Return a host, and its port with a colon or nothing; None if it cannot be a host."""
    found = _HOST.fullmatch(authority)
    if found is None or (found[2] and int(found[2][1:]) not in _PORTS):
        return None
    return found[1], found[2] or ""


def is_public_url(url: str) -> bool:
    """Return whether a URL is one of http or https that a callback can be sent to."""
    parts = UrlParts.split(url)
    if parts is None or not parts.default_port or re.search(r"[\s\x00-\x1f\x7f]", url):
        return False
    try:
        host = parts.host.encode("idna").decode()
    except UnicodeError:
        return False
    return split_host(host + parts.port.rstrip(":")) is not None


@frozen
class HostPattern:
    """Hosts that requests may name; an empty host or port stands for any."""

    host: str
    port: str
    subdomains: bool

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `example.com`, `example.com:8443`, `*.example.com` or `*`; return None for anything else."""
        if text == "*":
            return cls("", "", subdomains=False)
        found = split_host(text.removeprefix("*."))
        return cls(_normalized(found[0]), found[1], subdomains=text.startswith("*.")) if found else None

    def matches(self, url: str) -> bool:
        parts = UrlParts.split(url)
        if parts is None or self.port not in {"", parts.port or parts.default_port}:
            return False
        host = _normalized(parts.host)
        return host.endswith("." + self.host) if self.subdomains else self.host in {"", host}


def _normalized(host: str) -> str:
    return host.lower().removesuffix(".")


@frozen(kw_only=True)
class Forwarded:
    """The original request according to proxies; None for each part that they do not report readably."""

    scheme: str | None
    host: str | None
    port: str
    prefix: str | None

    @classmethod
    def from_headers(cls, headers: Headers) -> Self:
        """Parse `X-Forwarded-*` and `Forwarded` (RFC 7239), as written by the proxy nearest to the sender."""
        hop = _first_hop(headers.get("Forwarded", ""))

        def first(name: str) -> str:
            return headers.get(name, "").partition(",")[0].strip()

        scheme = (first("X-Forwarded-Proto") or hop.get("proto", "")).lower() + "://"
        host = split_host(first("X-Forwarded-Host") or hop.get("host", ""))
        port = first("X-Forwarded-Port")
        prefix = first("X-Forwarded-Prefix").rstrip("/")
        named = f":{port}" if re.fullmatch(r"[0-9]{1,5}", port) else ""
        return cls(
            scheme=scheme if scheme in _DEFAULT_PORTS else None,
            host=host[0] if host else None,
            port=(host[1] if host else "") or named,
            prefix=prefix if prefix.startswith("/") else None,
        )


def _first_hop(header: str) -> dict[str, str]:
    hop = _FIRST_HOP.match(header)
    pairs = [part.partition("=") for part in _HOP_PARTS.findall(hop[0] if hop else "")]
    return {name.strip().lower(): _unquoted(value.strip()) for name, _, value in pairs}


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def request_url(*, scheme: str, host: str, target: str, proxies: Forwarded | None = None) -> str | None:
    """Return the URL that a server sees, or that proxies say they were asked for; None if no host is named.

    A host must look like one. Otherwise a sender could write a whole URL and a `#` there, and the URL that was really
    asked for would be a mere fragment of it.
    The target is kept byte for byte; an absolute one overrides the `Host` header, as in HTTP.
    """
    asked = UrlParts.split(target)
    start = f"{scheme}://" if asked is None else asked.scheme
    name, port = split_host(host if asked is None else asked.host + asked.port) or ("", "")
    if proxies is not None:
        start = proxies.scheme or start
        port = proxies.port or ("" if proxies.host else port)
        name = proxies.host or name
    return start + name + port + path_and_query(target) if name else None


def public_urls(public_url: str, target: str) -> tuple[str, str]:
    """Return the URLs that a configured one may stand for: itself, or itself followed by the request's path."""
    base, separator, fragment = public_url.partition("#")
    path, mark, query = path_and_query(target).partition("?")
    rest = mark + query + separator + fragment
    return base + rest, f"{base.removesuffix('/')}/{path.removeprefix('/')}{rest}"


def path_and_query(target: str) -> str:
    """Return a request's target without host and fragment; HTTP allows no fragment there."""
    parts = UrlParts.split(target)
    return target.partition("#")[0] if parts is None else parts.path + parts.query


def query_of(url: str) -> str:
    return url.partition("#")[0].partition("?")[2]
