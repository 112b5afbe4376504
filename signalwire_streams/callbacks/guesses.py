"""What usually goes wrong between the platform and a server, as guesses at what was signed instead.

Each guess brings sentences that say what to change if it is the one that fits.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain, combinations, permutations, product
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from attrs import evolve, field, frozen

from signalwire_streams.callbacks._signature import SHA256_SIGNATURE_HEADER, SignedRequest
from signalwire_streams.callbacks._events import FIELD_NAMES
from signalwire_streams.callbacks.forms import header_values, read_form
from signalwire_streams.callbacks.signature import encoded
from signalwire_streams.callbacks._request_parsing import Address, read_forwarded

_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
_SCHEMES = frozenset({"http://", "https://"})
_MOST_BLANKS = 3
_MOST_SHUFFLED = 4
_LONGEST_QUERY = 64 * 1024  # characters: no server takes as long a one, and writing it anew takes its time
_PROXIED = "set public_url, or trust_forwarded=True where your own proxy sets X-Forwarded-*"
_RAW_QUERY = "pass the raw query of the request, not one that was put together again"
_RAW_BODY = "pass the raw bytes as they came, not ones that were put together again"


@frozen
class AddressGuess:
    """An address that may have been signed.

    Attributes:
        url: the address.
        changes: what to change if it fits; nothing for the address as it was given.
    """

    url: str = field(repr=False)
    changes: tuple[str, ...]


@frozen
class RequestGuess:
    """A request that may have been signed, at whatever address.

    Attributes:
        request: its method, headers and body.
        changes: what to change if it fits; nothing for what was given.
    """

    request: SignedRequest
    changes: tuple[str, ...] = ()


_Options: TypeAlias = Iterator[tuple[Address, str]]
_Option: TypeAlias = Callable[[Address, Mapping[str, str]], _Options]
_Changed: TypeAlias = tuple[Address, tuple[str, ...], Sequence[_Option]]  # with the options that are left to it


def address_guesses(request: SignedRequest, candidates: Sequence[Address]) -> Iterator[AddressGuess]:
    """Guess at the address, those with the fewest changes first and the given one before all.

    There may be a great many, so each is made when it is asked for.

    Args:
        request: what was verified; its headers tell about proxies.
        candidates: addresses that the caller suspects, whole or without the end of the path.
    """
    given = Address.split(request.url)
    yield AddressGuess(request.url, ())
    if given is None:
        return
    options = (_schemes, _hosts, _prefixes, _slashes, _encodings, _queries())
    suspected = [(address, changes, options) for address, changes in _suspected(given, candidates)]
    level: list[_Changed] = [(given, (), options)]
    made = {request.url}
    while level:
        changed = chain(suspected, (more for guess in level for more in _changed(guess, request.headers)))
        level, suspected = [], []
        for guess in changed:
            level.append(guess)
            address, changes, _ = guess
            url = str(address)
            if url not in made:
                made.add(url)
                yield AddressGuess(url, changes)


def _changed(guess: _Changed, headers: Mapping[str, str]) -> Iterator[_Changed]:
    """Give what comes of a guess by one change more."""
    address, changes, options = guess
    for number, option in enumerate(options, 1):
        for other, change in option(address, headers):
            yield other, (*changes, change), options[number:]


def _suspected(given: Address, candidates: Sequence[Address]) -> Iterator[tuple[Address, tuple[str, ...]]]:
    for candidate in candidates:
        whole = evolve(candidate, query=given.query, fragment="")
        shown = str(evolve(candidate, userinfo="", query="", fragment=""))
        changes = (f"It is made of the candidate {shown!r}: set it as public_url, or verify with it.",)
        yield candidate, changes
        yield whole, changes
        yield evolve(whole, path=candidate.path.removesuffix("/") + given.path), changes


def _schemes(address: Address, _: Mapping[str, str]) -> _Options:
    for other in _SCHEMES - {address.scheme.lower()}:
        change = f"The signed address begins with {other}, not with {address.scheme}: {_PROXIED}."
        yield evolve(address, scheme=other), change


def _hosts(address: Address, headers: Mapping[str, str]) -> _Options:
    said = read_forwarded(headers)
    host = Address.split("http://" + (*header_values(headers, "Host"), "")[0])
    sources = {
        "X-Forwarded-Host or Forwarded": (said.host or address.host, said.port),
        "the Host header": (host.host, host.port) if host else ("", ""),
    }
    for source, (name, port) in sources.items():
        if name and (name, port) != (address.host, address.port):
            yield (
                evolve(address, host=name, port=port),
                f"The signed host is {name + port!r}, as in {source}, not {address.host + address.port!r}: {_PROXIED}.",
            )


def _prefixes(address: Address, headers: Mapping[str, str]) -> _Options:
    prefix = read_forwarded(headers).prefix
    if prefix:
        yield (
            evolve(address, path=prefix + address.path),
            f"The signed path begins with {prefix!r}, which a proxy took off: set public_url with it.",
        )


def _slashes(address: Address, _: Mapping[str, str]) -> _Options:
    path = address.path
    if path.endswith("/"):
        yield evolve(address, path=path[:-1]), "The signed path does not end with a slash: write it without one."
    else:
        yield evolve(address, path=path + "/"), "The signed path ends with a slash: write it with one."


def _encodings(address: Address, _: Mapping[str, str]) -> _Options:
    path = address.path
    for other in (unquote(path), quote(path, "/%:@!$&'()*+,;=~", errors="replace")):
        if other != path:
            yield evolve(address, path=other), "The signed path is percent-encoded another way: pass the raw one."


def _queries() -> _Option:
    """Make an option that writes each query anew only once, however many addresses have it."""

    @cache
    def rewritten(query: str) -> list[tuple[str, str]]:
        return list(_rewritten_queries(query))

    def option(address: Address, _: Mapping[str, str]) -> _Options:
        for query, change in rewritten(address.query.removeprefix("?")):
            yield evolve(address, query=query), change

    return option


def _rewritten_queries(query: str) -> Iterator[tuple[str, str]]:
    if not query:
        return
    yield "", "The signed address has no query: something in between adds it."
    if len(query) > _LONGEST_QUERY:
        return
    pieces = query.split("&")
    orders = permutations(pieces) if len(pieces) <= _MOST_SHUFFLED else [tuple(sorted(pieces))]
    for order in orders:
        if list(order) != pieces:
            yield "?" + "&".join(order), f"The signed query is in another order: {_RAW_QUERY}."
    pairs = parse_qsl(query, keep_blank_values=True)
    rewritten = [urlencode(pairs, errors="replace", quote_via=way) for way in (quote_plus, quote)]
    for other in (*rewritten, unquote(query), re.sub(r"=(?=&|$)", "", query)):
        if other != query:
            yield "?" + other, f"The signed query is encoded another way: {_RAW_QUERY}."


def request_guesses(request: SignedRequest) -> Iterator[RequestGuess]:
    """Guess at method, content type and body; what was given comes first."""
    body = request.body
    yield RequestGuess(request)
    for method, signed in {"GET": b"", "POST": body}.items():
        changes = (f"It was signed as a {method}: verify it as one{'' if signed else ', without a body'}.",)
        yield RequestGuess(evolve(request, method=method, body=signed), changes)
    if request.method == "GET":
        query = request.url.partition("#")[0].partition("?")[2]
        as_form = evolve(request, method="POST", body=encoded(query) or b"")
        yield RequestGuess(as_form, ("Its query was signed as a form, which is not taken: choose POST for callbacks.",))
    if header_values(request.headers, SHA256_SIGNATURE_HEADER):
        weaker = {name: value for name, value in request.headers.items() if not _is(name, SHA256_SIGNATURE_HEADER)}
        changes = (f"Its {SHA256_SIGNATURE_HEADER} is wrong and the weaker one right: find what changed the former.",)
        yield RequestGuess(evolve(request, headers=weaker), changes)
    others = {name: value for name, value in request.headers.items() if not _is(name, "Content-Type")}
    for kind in (_FORM, _JSON):
        changes = (f"It was signed as {kind}: pass the request's own Content-Type, and only one.",)
        yield RequestGuess(evolve(request, headers={**others, "Content-Type": kind}), changes)
    for raw in (body.strip(), body + b"\n", *_rewritten_json(body)):
        if raw != body:
            changes = (f"The signed body is written another way: {_RAW_BODY}.",)
            yield RequestGuess(evolve(request, body=raw), changes)
    yield from _with_blanks(request)


def _is(name: str, header: str) -> bool:
    return str(name).lower() == header.lower()


def _rewritten_json(body: bytes) -> Iterator[bytes]:
    with suppress(ValueError, RecursionError):
        document = json.loads(body)
        for separators, ascii_only in product(((",", ":"), (", ", ": ")), (False, True)):
            text = json.dumps(document, separators=separators, ensure_ascii=ascii_only)
            yield text.encode("utf-8", "replace")


def _with_blanks(given: SignedRequest) -> Iterator[RequestGuess]:
    """Guess that something dropped the fields whose values are blank."""
    pairs = read_form(given.body)
    if not pairs:
        return
    present = {name for name, _ in pairs}
    missing = [name for name in FIELD_NAMES if name not in present]
    for count in range(1, _MOST_BLANKS + 1):
        for names in combinations(missing, count):
            body = given.body + b"".join(b"&" + name.encode() + b"=" for name in names)
            listed = ", ".join(names)
            change = f"The signed form has blank fields that this one lacks ({listed}): keep blank values; {_RAW_BODY}."
            yield RequestGuess(evolve(given, body=body), (change,))
