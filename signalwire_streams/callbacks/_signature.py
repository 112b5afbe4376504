"""What a request claims: which signature it brings, and what that one must have been made of.

A body is read one way only, as a form or as JSON, by its content type and by what it looks like; nothing can pass
for both. Otherwise a signature over a form's bare names and values could be sent again as one over a raw body, or the
other way round, since what is hashed has no mark of its kind.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl

from attrs import field, frozen

from signalwire_streams.callbacks.forms import Pairs, header_values, read_form

Algorithm: TypeAlias = Literal["sha1", "sha256"]
Encoding: TypeAlias = Literal["hex", "base64"]
Kind: TypeAlias = Literal["form", "json"]

SIGNATURE_HEADER = "X-SignalWire-Signature"
SHA256_SIGNATURE_HEADER = "X-SignalWire-SHA256-Signature"
ALIAS_HEADER = "X-Twilio-Signature"

MAX_BODY = 1024 * 1024
"""Bytes; a longer body is refused unread, since it would be hashed once for each key and spelling."""

_FORM = "application/x-www-form-urlencoded"
_BODY_HASH = "bodySHA256"


@frozen(kw_only=True)
class SignedRequest:
    """A request as its sender may have signed it.

    Attributes:
        url: the address.
        headers: the headers.
        body: the raw body.
        method: in capitals.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    method: str


class UnverifiableError(Exception):
    """A request that was not signed with one of the keys, and why. It stays inside this package."""


@frozen(kw_only=True)
class Claim:
    """One signature that a request brings.

    Attributes:
        given: the signature, as it came.
        algorithm: the hash of the HMAC.
        encoding: how the signature is written.
        tail: what was signed after the address.
    """

    given: bytes = field(repr=False)
    algorithm: Algorithm
    encoding: Encoding
    tail: bytes = field(repr=False)

    def fits(self, url: bytes, key: bytes) -> bool:
        """Tell, in constant time, whether the key signed this address."""
        return hmac.compare_digest(self.given, signature_of(key, url + self.tail, self.algorithm, self.encoding))


def signature_of(key: bytes, message: bytes, algorithm: Algorithm, encoding: Encoding) -> bytes:
    """Make a signature."""
    digest = hmac.digest(key, message, algorithm)
    return digest.hex().encode() if encoding == "hex" else b64encode(digest)


def form_tail(pairs: Pairs) -> bytes:
    """Give what is signed of a form: names and values, sorted by name.

    The order is that of the names alone: values of one name stay in the order in which they came.
    """
    return "".join(name + value for name, value in sorted(pairs, key=lambda pair: pair[0])).encode()


def read_claims(request: SignedRequest) -> tuple[Claim, ...]:
    """Find out which signatures a request brings, and what each must have been made of.

    Of JSON the stronger one decides: where there is a SHA-256 signature, no other is looked at. Of a form either may be
    right: that header is defined for JSON only, so what a form has there says nothing against its SHA-1 signature.

    Returns:
        The claims, of which one has to be right: the header's, the alias's where it stands beside it, and two for
        each where the address names the hash of a JSON body.

    Raises:
        UnverifiableError: the request can't be a signed one.
    """
    _check_size(request.method, request.body)
    strong = header_values(request.headers, SHA256_SIGNATURE_HEADER)
    weak = _signatures(request.headers, SIGNATURE_HEADER) + _signatures(request.headers, ALIAS_HEADER)
    if not strong and not weak:
        raise UnverifiableError("there is no signature")
    kind = _kind(request.headers, request.body) if request.method == "POST" else "form"
    by_sha1 = tuple(
        Claim(given=given, algorithm="sha1", encoding=encoding, tail=tail)
        for encoding, tail in _signed(request, kind)
        for given in weak
    )
    if kind == "form" and weak and (len(strong) != 1 or not strong[0]):
        return by_sha1
    by_sha256 = tuple(
        Claim(given=given, algorithm="sha256", encoding="hex", tail=request.body)
        for given in _signatures(request.headers, SHA256_SIGNATURE_HEADER)
    )
    return by_sha256 + by_sha1 if kind == "form" else by_sha256 or by_sha1


def _check_size(method: str, body: bytes) -> None:
    if method not in {"GET", "POST"}:
        raise UnverifiableError("the method is neither GET nor POST")
    if method == "GET" and body:
        raise UnverifiableError("a GET brings a body")
    if len(body) > MAX_BODY:
        raise UnverifiableError("the body is too large")


def _signatures(headers: Mapping[str, str], name: str) -> tuple[bytes, ...]:
    values = header_values(headers, name)
    if len(values) > 1:
        raise UnverifiableError(f"{name} came more than once")
    if "" in values:
        raise UnverifiableError(f"{name} is empty")
    return tuple(value.encode("ascii", "replace") for value in values)


def _signed(request: SignedRequest, kind: Kind) -> list[tuple[Encoding, bytes]]:
    """Give how a SHA-1 signature may be written, and what it then covers besides the address."""
    body = request.body
    raw: list[tuple[Encoding, bytes]] = [("hex", body)] if kind == "json" else []
    if _names_body(request.url, body):
        return [("base64", b""), *raw]
    return raw or [("base64", form_tail(_fields(body)))]


def _fields(body: bytes) -> Pairs:
    pairs = read_form(body)
    if pairs is None:
        raise UnverifiableError("the body is neither a form nor JSON")
    return pairs


def _kind(headers: Mapping[str, str], body: bytes) -> Kind:
    said = header_values(headers, "Content-Type")
    if len(said) > 1:
        raise UnverifiableError("Content-Type came more than once")
    kind = said[0].partition(";")[0].strip().lower() if said else ""
    looks_like_json = body.lstrip()[:1] in {b"{", b"["}
    if kind == _FORM and looks_like_json:
        raise UnverifiableError("Content-Type says form, and the body is none")
    if (kind == "application/json" or kind.endswith("+json")) and not looks_like_json:
        raise UnverifiableError("Content-Type says JSON, and the body is none")
    return "json" if looks_like_json else "form"


def _names_body(url: str, body: bytes) -> bool:
    """Tell whether the address names the hash of the body, as it does where a body is signed through it.

    It is checked for every request to such an address: else what was signed with one body could come with another.
    """
    query = url.partition("#")[0].partition("?")[2]
    named = [value for name, value in parse_qsl(query, keep_blank_values=True) if name == _BODY_HASH]
    if not named:
        return False
    given = "".join(named).lower().encode("ascii", "replace")
    if len(named) > 1 or not hmac.compare_digest(given, hashlib.sha256(body).hexdigest().encode()):
        raise UnverifiableError(f"the address names another body with {_BODY_HASH}")
    return True
