"""What a request claims: which signature it brings, and what that one must have been made of.

A body is read one way only, as a form or as JSON, by its content type and by what it looks like; nothing can pass
for both. Otherwise a signature over a form's bare names and values could be sent again as one over a raw body, or the
other way round, since what is hashed has no mark of its kind.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl

from attrs import field, frozen

from signalwire_streams.callbacks._request_parsing import Fields, Pairs, as_pairs, header_values, read_form, spellings
from signalwire_streams.errors import InvalidRequestError

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
class Signature:
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

    def verify(self, url: bytes, key: bytes) -> bool:
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


def read_claims(request: SignedRequest) -> tuple[Signature, ...]:
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
        Signature(given=given, algorithm="sha1", encoding=encoding, tail=tail)
        for encoding, tail in _signed(request, kind)
        for given in weak
    )
    if kind == "form" and weak and (len(strong) != 1 or not strong[0]):
        return by_sha1
    by_sha256 = tuple(
        Signature(given=given, algorithm="sha256", encoding="hex", tail=request.body)
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


def verify_signature(
    *, url: str, headers: Mapping[str, str], body: bytes = b"", keys: Sequence[str], method: str = "POST"
) -> bool:
    """Tell whether the platform signed a request with one of these keys.

    ==================  =================================  =====================================================
    request             header                             value
    ==================  =================================  =====================================================
    POST of a form      ``X-SignalWire-Signature``, or     base64 HMAC-SHA1 of the address and each name and
                        its alias ``X-Twilio-Signature``   value, sorted by name
    POST of JSON        the same                           hex HMAC-SHA1 of the address and the raw body
    any                 ``X-SignalWire-SHA256-Signature``  hex HMAC-SHA256 of the address and the raw body
    ``bodySHA256=`` in  as a form                          as a form without fields; the hash has to be the body's
    the address
    GET                 as a form                          base64 HMAC-SHA1 of the address
    ==================  =================================  =====================================================

    - For JSON the stronger header decides. Where ``X-SignalWire-SHA256-Signature`` is there and wrong, no other one
      saves the request; where it is missing, the others count. It is defined for JSON only, so for a form, and for a
      GET, any right signature is enough, whatever stands in that header.
    - ``X-SignalWire-Signature`` and its alias are equally strong, so one of the two has to be right.
    - A signature header that comes twice is refused, as is a body that is read another way than its
      ``Content-Type`` says.
    - The address may be spelt with the standard port or without a port, with user and password or without, and
      without its fragment. Anything else of it, a slash at its end and its query among it, counts byte for byte.

    The platform signs neither the method nor the borders between names and values, and not the time. So route
    only the method that you chose for the callback, and expect that a request which somebody overheard can be
    repeated.

    Args:
        url: the address as the platform knows it, query included: the public one, where there is a proxy.
        headers: the request's headers; the letters of names may be of either case.
        body: the raw body, before anything parsed it; at most 1 MiB.
        keys: the project's Signing Keys (``PSK_...``, not API tokens): several while one replaces another.
        method: ``GET`` or ``POST``.

    Returns:
        False also where there is no key or no signature, where either is empty, and where something is None: it
        fails closed.

    Raises:
        InvalidRequestError: an argument is of a type that can't be meant; the message says what to write.

    Sources: https://developer.signalwire.com/guides/webhook-security/ and
    https://signalwire.com/docs/server-sdks/reference/python/core/security
    """
    secrets = usable_keys(keys)
    if any(part is None for part in (url, headers, body, method)):
        return False
    try:
        check_request(read_request(url=url, headers=headers, body=body, method=method), secrets)
    except UnverifiableError:
        return False
    return True


def sign(
    *, url: str, fields: Fields | None = None, body: bytes | None = None, key: str, algorithm: Algorithm = "sha1"
) -> str:
    """Sign a request as the platform does, for tests and simulators.

    Args:
        url: the address, query included.
        fields: the form's fields; a name may come more than once where they are pairs.
        body: the raw JSON body. Without fields and body the address alone is signed, as for a GET.
        key: the Signing Key.
        algorithm: ``sha1``, or ``sha256`` for the header ``X-SignalWire-SHA256-Signature``.

    Returns:
        The header's value: base64 for fields or the address alone with SHA-1, hex otherwise.

    Raises:
        InvalidRequestError: an argument can't be right; the message says what to write.
    """
    if algorithm not in {"sha1", "sha256"}:
        raise InvalidRequestError(f"algorithm {algorithm!r} is unknown: write 'sha1' or 'sha256'")
    if fields is not None and (body is not None or algorithm == "sha256"):
        raise InvalidRequestError("fields are signed alone and with SHA-1: write either fields=... or body=...")
    raw = _raw(b"" if body is None else body)
    try:
        address, secret = _address(url).encode(), _key(key).encode()
        tail = raw if fields is None else form_tail(as_pairs(fields))
    except UnicodeEncodeError:
        raise InvalidRequestError("url, fields and key must be encodable as UTF-8: write no surrogates") from None
    encoding: Encoding = "base64" if body is None and algorithm == "sha1" else "hex"
    return signature_of(secret, address + tail, algorithm, encoding).decode()


def read_request(*, url: object, headers: object, body: object, method: object) -> SignedRequest:
    """Put a request together.

    Raises:
        InvalidRequestError: a part is of a type that can't be meant; the message says what to write.
    """
    if not isinstance(headers, Mapping):
        raise InvalidRequestError(f"headers must be a mapping, not {type(headers).__name__}: write dict(headers)")
    if not isinstance(method, str):
        raise InvalidRequestError(f"method must be a str, not {type(method).__name__}: write 'GET' or 'POST'")
    return SignedRequest(url=_address(url), headers=headers, body=_raw(body), method=method.upper())


def check_request(request: SignedRequest, keys: Sequence[bytes]) -> None:
    """Check what `verify_signature` checks, and say why not.

    Raises:
        UnverifiableError: the request was not signed with one of the keys; the message holds nothing secret.
    """
    claims = read_claims(request)
    if not keys:
        raise UnverifiableError("there is no key")
    urls = [spelt for spelling in spellings(request.url, request.headers) if (spelt := encoded(spelling)) is not None]
    matched = False
    # All are compared, so that the time taken does not tell which of them fits.
    for key in keys:
        for url in urls:
            for claim in claims:
                matched |= claim.verify(url, key)
    if not matched:
        raise UnverifiableError("the signature does not fit")


def usable_keys(keys: object) -> tuple[bytes, ...]:
    """Give the keys that can have signed something: no blank ones, nothing that is no str.

    Raises:
        InvalidRequestError: one key was written where a list of them belongs.
    """
    if keys is None:
        return ()
    if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
        raise InvalidRequestError(f"keys must be a list of Signing Keys, not {type(keys).__name__}: write keys=[key]")
    usable = (encoded(key) for key in keys if isinstance(key, str) and key.strip())
    return tuple(dict.fromkeys(key for key in usable if key))


def encoded(text: str) -> bytes | None:
    """Give a text's bytes; servers and environments hand over bytes that are not UTF-8 as surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _address(url: object) -> str:
    if not isinstance(url, str):
        raise InvalidRequestError(f"url must be a str, not {type(url).__name__}: write str(url)")
    return url


def _raw(body: object) -> bytes:
    if not isinstance(body, bytes | bytearray | memoryview):
        raise InvalidRequestError(
            f"body must be the raw bytes of the request, not {type(body).__name__}: read them before any parser does"
        )
    return bytes(body)


def _key(key: object) -> str:
    if not isinstance(key, str) or not key.strip():
        raise InvalidRequestError("key must be a str that is not blank: write the project's Signing Key")
    return key
