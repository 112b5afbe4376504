"""Why does a signature not fit? For a person who sets a server up, never for the answer to a request."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain, combinations, permutations, product
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

from attrs import define, evolve, field, frozen

from signalwire_streams.callbacks._events import FIELD_NAMES
from signalwire_streams.callbacks._request_parsing import (
    Address,
    header_values,
    read_form,
    read_forwarded,
    read_query,
    spellings,
)
from signalwire_streams.callbacks._signature import (
    ALIAS_HEADER,
    MAX_BODY,
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    Signature,
    SignedRequest,
    UnverifiableError,
    check_request,
    encoded,
    read_claims,
    read_request,
    usable_keys,
)
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import redact_url

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


_MOST_WORK = 512 * 1024 * 1024
"""What all guesses together may cost, as the bytes that could be hashed in that time: about a second."""

# What each of these costs on that scale, as measured.
_A_GUESS, _A_READING, _A_TRY = 64 * 1024, 16 * 1024, 4 * 1024
_READ_AS_HASHED = 64  # reading a form or a query, for each of its bytes
_SPELT_AS_HASHED = 64  # changing and spelling an address, for each of its characters

_LONGEST_SHOWN = 80
_Key: TypeAlias = tuple[bytes, tuple[str, ...]]  # with what to change if it fits
_SIGNATURES = (SIGNATURE_HEADER, ALIAS_HEADER, SHA256_SIGNATURE_HEADER)


@frozen(kw_only=True)
class SignatureDiagnosis:
    """What was found about a signature. It holds no key and no signature, neither a given nor an expected one.

    ``str()`` of it is some lines for a person.

    Attributes:
        fits: whether `verify_signature` accepts the request as it stands.
        finding: one sentence about what is wrong, or that nothing is.
        advice: what to change, in sentences, the likeliest first.
        tried: the addresses that `verify_signature` tries. Passwords and the values of queries are left out.
        guesses: how many further addresses and bodies were tried.
        url: the address that was signed, where one fits, with all its parts.
    """

    valid: bool
    summary: str
    suggestions: tuple[str, ...] = ()
    candidate_urls: tuple[str, ...] = ()
    attempts: int = 0
    url: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [self.summary]
        if self.suggestions:
            lines += ["What to change:", *(f"- {sentence}" for sentence in self.suggestions)]
        if self.candidate_urls and not self.valid:
            lines += ["Addresses that verification tries:", *(f"- {url}" for url in self.candidate_urls)]
            lines.append(f"Guesses beyond these: {self.attempts}.")
        return "\n".join(lines)


@frozen
class _Fit:
    """What fits, how many were tried until then, and whether that were not all although nothing fits."""

    spelling: str | None
    changes: tuple[str, ...]
    guesses: int
    stopped: bool = False

    def __str__(self) -> str:
        if self.spelling is not None:
            return f" It would fit as {_shown(self.spelling)}, with the changes below."
        return " The search stopped early: there is more to guess than it may try." if self.stopped else ""


def diagnose_signature(
    *,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    keys: Sequence[str],
    method: str = "POST",
    candidates: Sequence[str] = (),
) -> SignatureDiagnosis:
    """Find out why `verify_signature` refuses a request that should be a genuine one.

    It tries what proxies and frameworks usually change: the scheme, the host (as ``Host``, ``X-Forwarded-Host``
    and ``Forwarded`` have it), the port, a slash at the end of the path, a prefix that was taken off, order and
    encoding of the query, the content type, a body that was written anew or lost its blank fields. That takes up
    to about a second, so do not call it for each request. Where there is more to guess than that allows, as there
    may be with a large body, a long query, or many keys and candidates, the finding says that it stopped early.

    Args:
        url: as for `verify_signature`.
        headers: as for `verify_signature`, all of them.
        body: as for `verify_signature`.
        keys: as for `verify_signature`.
        method: as for `verify_signature`.
        candidates: absolute addresses to try as well, such as the one that was given as ``StatusCallback``.

    Returns:
        What was found, and what to change.

    Raises:
        InvalidRequestError: an argument is of a type that can't be meant; the message says what to write.
    """
    request = read_request(url=url, headers=headers, body=body, method=method)
    suspected = _candidates(candidates)
    tried = tuple(dict.fromkeys(_shown(spelling) for spelling in spellings(request.url, request.headers)))
    search = _Search(_keys(keys))
    try:
        check_request(request, usable_keys(keys))
    except UnverifiableError as refusal:
        fit = search.run(address_guesses(request, suspected), request_guesses(request))
        return SignatureDiagnosis(
            valid=False,
            summary=f"Refused: {refusal}.{fit}",
            suggestions=fit.changes or tuple(_hints(request, usable_keys(keys))),
            candidate_urls=tried,
            attempts=fit.guesses,
            url=fit.spelling,
        )
    fit = search.run([AddressGuess(request.url, ())], [RequestGuess(request)])
    return SignatureDiagnosis(
        valid=True, summary=f"The signature fits {_shown(str(fit.spelling))}.", candidate_urls=tried, url=fit.spelling
    )


def _candidates(candidates: object) -> list[Address]:
    listed = list(candidates) if isinstance(candidates, Iterable) and not isinstance(candidates, str) else [None]
    split = [Address.split(candidate) if isinstance(candidate, str) else None for candidate in listed]
    absolute = [address for address in split if address is not None]
    if len(absolute) < len(split):
        raise InvalidRequestError("candidates must be a list of absolute addresses: write ['https://host/path']")
    return absolute


def _keys(keys: Sequence[str]) -> list[_Key]:
    given: list[_Key] = [(key, ()) for key in usable_keys(keys)]
    change = "A key has blanks or a line break around it: take them off."
    return given + [(key.strip(), (change,)) for key, _ in given if key != key.strip()]


@define(eq=False)
class _Search:
    """One search for what fits, which ends when it has cost too much."""

    keys: Sequence[_Key] = field(repr=False)
    _guesses: int = field(init=False, default=0)
    _work: int = field(init=False, default=0)

    def run(self, addresses: Iterable[AddressGuess], requests: Iterable[RequestGuess]) -> _Fit:
        """Search; guesses at the rest are tried only at addresses that need at most one change as well."""
        simple: list[AddressGuess] = []
        for guess in requests:
            read: dict[str, tuple[Signature, ...]] = {}
            for address in simple if guess.changes else addresses:
                if self._work > _MOST_WORK:
                    return _Fit(None, (), self._guesses, stopped=True)
                if not guess.changes and len(address.changes) <= 1:
                    simple.append(address)
                self._guesses += bool(guess.changes or address.changes)
                request = evolve(guess.request, url=address.url)
                for spelling, changes in self._fitting(request, self._claims(request, read)):
                    return _Fit(spelling, (*guess.changes, *address.changes, *changes), self._guesses)
        return _Fit(None, (), self._guesses)

    def _claims(self, request: SignedRequest, read: dict[str, tuple[Signature, ...]]) -> tuple[Signature, ...]:
        """Give a request's claims; of all of the address only the query counts for them, so each is read once."""
        query = request.url.partition("#")[0].partition("?")[2]
        if query not in read:
            self._work += _A_READING + _READ_AS_HASHED * (len(query) + len(request.body))
            try:
                read[query] = read_claims(request)
            except UnverifiableError:
                read[query] = ()
        return read[query]

    def _fitting(self, request: SignedRequest, claims: Sequence[Signature]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Give the spellings of the address that fit, each with what to change about its key."""
        self._work += _A_GUESS + _SPELT_AS_HASHED * len(request.url)
        for spelling in spellings(request.url, request.headers) if claims else ():
            url = encoded(spelling)
            if url is None:
                continue
            for claim, (key, changes) in product(claims, self.keys):
                self._work += _A_TRY + len(spelling) + len(claim.tail)
                if claim.verify(url, key):
                    yield spelling, changes


def _hints(request: SignedRequest, keys: Sequence[bytes]) -> Iterator[str]:
    """Say what may be wrong where no guess fits; what is certain comes first."""
    if not keys:
        yield "There is no key: give the project's Signing Key, which begins with PSK_."
    if not any(header_values(request.headers, name) for name in _SIGNATURES):
        yield (
            f"No {SIGNATURE_HEADER} came: either the platform did not send this, or something in front takes that "
            "header off."
        )
    if Address.split(request.url) is None:
        yield "The address is not absolute: give all of it, as 'https://host/path?query'."
    length = (*header_values(request.headers, "Content-Length"), "")[0]
    if re.fullmatch(r"[0-9]{1,15}", length) and int(length) != len(request.body):
        yield (
            f"Content-Length says {length} bytes, and the body has {len(request.body)}: something read or rewrote it. "
            "Pass the raw bytes, as they came."
        )
    if any(key.startswith(b"PT") for key in keys):
        yield "A key begins as API tokens do: requests are signed with the Signing Key, which begins with PSK_."
    project = _fields(request).get("AccountSid", "")[:_LONGEST_SHOWN]
    if project:
        yield f"The request says that it is of project {project!r}: use the Signing Key of that one."
    yield (
        "Make sure that the keys are Signing Keys (PSK_..., under API Credentials) and no API tokens, since that "
        "can't be seen from a request; after a reset give the new key and the old one."
    )
    yield "Give the address that was passed as StatusCallback as a candidate, so that it is tried as well."


def _fields(request: SignedRequest) -> dict[str, str]:
    if request.method == "GET":
        return dict(read_query(request.url.partition("?")[2]))
    return dict(read_form(request.body) or ()) if len(request.body) <= MAX_BODY else {}


def _shown(url: str) -> str:
    """Give an address as it may be shown: names of a query stay, its values and a password go."""
    address = Address.split(url)
    if address is None:
        return repr(redact_url(url))
    query = re.sub(r"(?<=[=])[^&]*|(?<=[?&])[^&=]+(?=&|$)", "***", address.query)
    fragment = address.fragment and "#***"
    userinfo = address.userinfo and "***@"
    return repr(address.scheme + userinfo + address.host + address.port + address.path + query + fragment)
