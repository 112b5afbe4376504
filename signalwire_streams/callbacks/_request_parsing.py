"""Addresses, taken apart and put together byte for byte.

What is signed is the address as the platform knows it. A server sees another one: without user and password,
without the fragment, with a port or without, and behind a proxy with another scheme, host or path.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Self, TypeAlias
from urllib.parse import parse_qsl, quote

from attrs import evolve, frozen

from signalwire_streams.errors import InvalidRequestError

Pairs: TypeAlias = tuple[tuple[str, str], ...]
Fields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values of a form; pairs where a name may come more than once."""

_MOST_FIELDS = 1_000
_WANTED = "fields must be a mapping of str to str, or pairs of them: write parse_qsl(text, keep_blank_values=True)"

# What no encoder of forms leaves as it is. JSON always has some of it, so that no body is both a form and JSON.
_NO_FORM = re.compile(rb"[^!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]|%(?![0-9A-Fa-f]{2})")


def read_form(body: bytes) -> Pairs | None:
    """Read a form's fields in the order in which they came, blank values kept.

    Args:
        body: the raw body.

    Returns:
        The pairs, or None where the body can't be a form: raw blanks, quotes, braces or bytes beyond ASCII,
        wrong escapes, text that is not UTF-8, a field without a name, more than 1,000 fields.
    """
    if _NO_FORM.search(body):
        return None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        return None
    return tuple(pairs) if all(name for name, _ in pairs) else None


def read_query(query: str) -> Pairs:
    """Read a query's fields; a query may hold what the caller's own address brings, so anything can be read."""
    return tuple(parse_qsl(query, keep_blank_values=True))


def as_pairs(fields: object) -> Pairs:
    """Give a form's names and values as pairs.

    Raises:
        InvalidRequestError: they are not all of type str, or not pairs.
    """
    items = fields.items() if isinstance(fields, Mapping) else fields
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidRequestError(_WANTED)
    pairs = tuple(items)
    if not all(_is_pair(pair) for pair in pairs):
        raise InvalidRequestError(_WANTED)
    return tuple((name, value) for name, value in pairs)


def header_values(headers: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Give a header's values, one for each time it came; a name's letters may be of either case.

    Blanks around a value go, since they are no part of it in HTTP; what is no str counts as an empty one.
    """
    wanted = name.lower()
    found = [value for key, value in headers.items() if str(key).lower() == wanted]
    return tuple(value.strip(" \t") if isinstance(value, str) else "" for value in found)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple | list) and len(pair) == len(("name", "value")) and all(map(_is_text, pair))


def _is_text(text: object) -> bool:
    return isinstance(text, str)


_STANDARD_PORTS = {"http://": ":80", "https://": ":443"}
_SUB_DELIMS = "!$&'()*+,;="
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(.*@)?(\[[^\]]*\]|[^:@]*)(:\d*)?", re.DOTALL)
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FIRST_HOP = re.compile(rf'(?:[^,"]|{_QUOTED})*')
_HOP_PART = re.compile(rf'([\w-]+)\s*=\s*({_QUOTED}|[^;\s"]*)')


@frozen(kw_only=True)
class Address:
    """An absolute address in parts that give it back unchanged when they are joined.

    Attributes:
        scheme: with its separator, as ``https://``.
        userinfo: user and password with their ``@``, or nothing.
        host: a name or an address.
        port: with its colon, as ``:8443``, or nothing.
        path: as it came; may be nothing.
        query: with its question mark, or nothing.
        fragment: with its ``#``, or nothing.
    """

    scheme: str
    userinfo: str
    host: str
    port: str
    path: str
    query: str
    fragment: str

    def __str__(self) -> str:
        return self.scheme + self.userinfo + self.host + self.port + self.path + self.query + self.fragment

    @classmethod
    def split(cls, url: str) -> Self | None:
        """Take an address apart, or give None where it is not absolute."""
        outer = _ADDRESS.fullmatch(url)
        inner = _AUTHORITY.fullmatch(outer[2]) if outer else None
        if outer is None or inner is None:
            return None
        return cls(
            scheme=outer[1],
            userinfo=inner[1] or "",
            host=inner[2],
            port=inner[3] or "",
            path=outer[3],
            query=outer[4] or "",
            fragment=outer[5] or "",
        )

    @property
    def standard_port(self) -> str:
        """The port that the scheme stands for, with its colon, or nothing."""
        return _STANDARD_PORTS.get(self.scheme.lower(), "")


def spellings(url: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Give the spellings of one address that the platform may have signed, the one given first.

    With and without a port, user and password, and the fragment. User and password that the address does not
    name are taken from the request's own ``Authorization``, which is where a client puts those of an address.

    A fragment that looks like a path or a query stays: it would be the work of a sender who wrote a ``#`` into
    ``Host``, where the address was made of that.
    """
    address = Address.split(url)
    if address is None:
        return (url,)
    plain = not set(address.fragment) & set("/?")
    parts = product(
        (address.port, "", address.standard_port),
        (address.userinfo, "", _userinfo(headers)),
        (address.fragment, "" if plain else address.fragment),
    )
    return tuple(
        dict.fromkeys(
            str(evolve(address, port=port, userinfo=userinfo, fragment=fragment)) for port, userinfo, fragment in parts
        )
    )


@frozen
class HostPattern:
    """A host that requests may name, or a group of them.

    Attributes:
        host: a name or an address in lower case; empty for each.
        port: with its colon, or nothing for each.
        subdomains: whether the names below the host are meant, and not the host.
    """

    host: str
    port: str
    subdomains: bool

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Parse ``example.com``, ``example.com:8443``, ``*.example.com`` or ``*``; None for anything else."""
        if text == "*":
            return cls("", "", subdomains=False)
        found = _HOST.fullmatch(text.removeprefix("*."))
        return cls(_plain(found[1]), found[2] or "", subdomains=text.startswith("*.")) if found else None

    def matches(self, url: str) -> bool:
        """Return whether an absolute address has this host."""
        address = Address.split(url)
        if address is None:
            return False
        host = _plain(address.host)
        if self.port not in {"", address.port or address.standard_port}:
            return False
        return host.endswith("." + self.host) if self.subdomains else self.host in {"", host}


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")


@frozen(kw_only=True)
class Forwarded:
    """What proxies say about the request that they were sent; None where they don't, or not readably.

    Attributes:
        scheme: with its separator, as ``https://``.
        host: a name or an address, without a port.
        port: with its colon, or nothing.
        prefix: the beginning of the path that a proxy took off.
    """

    scheme: str | None
    host: str | None
    port: str
    prefix: str | None


def read_forwarded(headers: Mapping[str, str]) -> Forwarded:
    """Read ``X-Forwarded-*`` and ``Forwarded`` (RFC 7239), as the proxy nearest to the sender wrote them."""
    hop = {name.lower(): value for name, value in _HOP_PART.findall(_first_hop(headers))}
    scheme = (_first(headers, "X-Forwarded-Proto") or _unquoted(hop.get("proto", ""))).lower() + "://"
    host = _HOST.fullmatch(_first(headers, "X-Forwarded-Host") or _unquoted(hop.get("host", "")))
    port = _first(headers, "X-Forwarded-Port")
    prefix = _first(headers, "X-Forwarded-Prefix").rstrip("/")
    named = f":{port}" if re.fullmatch(r"\d{1,5}", port, re.ASCII) else ""
    return Forwarded(
        scheme=scheme if scheme in _STANDARD_PORTS else None,
        host=host[1] if host else None,
        port=(host[2] if host else None) or named,
        prefix=prefix if prefix.startswith("/") else None,
    )


def seen_address(*, scheme: str, host: str, target: str, proxies: Forwarded | None = None) -> str | None:
    """Put together the address that a server sees, or that proxies say they were asked for.

    A host is taken only if it can be one: else a sender could write a whole address with a ``#`` there, and what
    it is really asking for would be no more than a fragment of that.

    Args:
        scheme: ``http`` or ``https``.
        host: the ``Host`` header.
        target: the request's target as it came; usually a path with a query. Where it is a whole address, that one
            counts, as HTTP wants it.
        proxies: what proxies say, if they are to be believed.

    Returns:
        The address, byte for byte in its path and query; None where no host is named.
    """
    asked = Address.split(target)
    authority = _HOST.fullmatch(host if asked is None else asked.host + asked.port)
    beginning = f"{scheme}://" if asked is None else asked.scheme
    name, port = (authority[1], authority[2] or "") if authority else ("", "")
    if proxies is not None:
        beginning = proxies.scheme or beginning
        port = proxies.port or ("" if proxies.host else port)
        name = proxies.host or name
    return beginning + name + port + path_and_query(target) if name else None


def configured_addresses(public_url: str, target: str) -> tuple[str, ...]:
    """Give the addresses that a configured one can stand for, with the request's query, byte for byte.

    Args:
        public_url: the whole address, or what stands before the request's path.
        target: the request's target as it came.
    """
    base, separator, fragment = public_url.partition("#")
    path, mark, query = path_and_query(target).partition("?")
    rest = mark + query + separator + fragment
    return base + rest, base.removesuffix("/") + path + rest


def path_and_query(target: str) -> str:
    """Give the part of a request's target that counts; HTTP knows no fragment there, so one that came is cut off."""
    address = Address.split(target)
    return target.partition("#")[0] if address is None else address.path + address.query


def _userinfo(headers: Mapping[str, str]) -> str:
    """Give the user and password of a request as an address spells them, or nothing.

    They are quoted, so that nothing which a sender puts there can pass for another part of the address.
    """
    values = header_values(headers, "Authorization")
    kind, _, credentials = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if kind.lower() != "basic":
        return ""
    try:
        user, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return f"{quote(user, _SUB_DELIMS)}:{quote(password, _SUB_DELIMS)}@" if colon else ""


def _first(headers: Mapping[str, str], name: str) -> str:
    values = header_values(headers, name)
    return values[0].partition(",")[0].strip() if values else ""


def _first_hop(headers: Mapping[str, str]) -> str:
    hop = _FIRST_HOP.match((*header_values(headers, "Forwarded"), "")[0])
    return hop[0] if hop else ""


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
