"""Why does a signature not fit? For a person who sets a server up, never for the answer to a request."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from signalwire_streams.callbacks._signature import (
    ALIAS_HEADER,
    MAX_BODY,
    SHA256_SIGNATURE_HEADER,
    SIGNATURE_HEADER,
    Claim,
    SignedRequest,
    UnverifiableError,
    read_claims,
)
from signalwire_streams.callbacks.forms import header_values, read_form, read_query
from signalwire_streams.callbacks.guesses import AddressGuess, RequestGuess, address_guesses, request_guesses
from signalwire_streams.callbacks.signature import check_request, encoded, read_request, usable_keys
from signalwire_streams.callbacks._request_parsing import Address, spellings
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import public_url

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
class Explanation:
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

    fits: bool
    finding: str
    advice: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    guesses: int = 0
    url: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = [self.finding]
        if self.advice:
            lines += ["What to change:", *(f"- {sentence}" for sentence in self.advice)]
        if self.tried and not self.fits:
            lines += ["Addresses that verification tries:", *(f"- {url}" for url in self.tried)]
            lines.append(f"Guesses beyond these: {self.guesses}.")
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


def explain_mismatch(
    *,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    keys: Sequence[str],
    method: str = "POST",
    candidates: Sequence[str] = (),
) -> Explanation:
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
        return Explanation(
            fits=False,
            finding=f"Refused: {refusal}.{fit}",
            advice=fit.changes or tuple(_hints(request, usable_keys(keys))),
            tried=tried,
            guesses=fit.guesses,
            url=fit.spelling,
        )
    fit = search.run([AddressGuess(request.url, ())], [RequestGuess(request)])
    return Explanation(
        fits=True, finding=f"The signature fits {_shown(str(fit.spelling))}.", tried=tried, url=fit.spelling
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
            read: dict[str, tuple[Claim, ...]] = {}
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

    def _claims(self, request: SignedRequest, read: dict[str, tuple[Claim, ...]]) -> tuple[Claim, ...]:
        """Give a request's claims; of all of the address only the query counts for them, so each is read once."""
        query = request.url.partition("#")[0].partition("?")[2]
        if query not in read:
            self._work += _A_READING + _READ_AS_HASHED * (len(query) + len(request.body))
            try:
                read[query] = read_claims(request)
            except UnverifiableError:
                read[query] = ()
        return read[query]

    def _fitting(self, request: SignedRequest, claims: Sequence[Claim]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Give the spellings of the address that fit, each with what to change about its key."""
        self._work += _A_GUESS + _SPELT_AS_HASHED * len(request.url)
        for spelling in spellings(request.url, request.headers) if claims else ():
            url = encoded(spelling)
            if url is None:
                continue
            for claim, (key, changes) in product(claims, self.keys):
                self._work += _A_TRY + len(spelling) + len(claim.tail)
                if claim.fits(url, key):
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
        return repr(public_url(url))
    query = re.sub(r"(?<=[=])[^&]*|(?<=[?&])[^&=]+(?=&|$)", "***", address.query)
    fragment = address.fragment and "#***"
    userinfo = address.userinfo and "***@"
    return repr(address.scheme + userinfo + address.host + address.port + address.path + query + fragment)
