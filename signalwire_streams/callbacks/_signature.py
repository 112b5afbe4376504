"""Signatures of status callbacks, and the forms they cover.

A body is read either as a form or as JSON, by its content type and its first byte; no body passes for both. The hash
does not say which kind it was, so otherwise a signature over a form's bare names and values could be replayed as one
over a raw body, or the other way round.
"""

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import Literal, Self, TypeAlias
from urllib.parse import parse_qsl

from attrs import field, frozen

from signalwire_streams.callbacks._urls import Headers, equivalent_urls, query_of
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import HiddenItems, Secret, kind_of, masks_secrets

Algorithm: TypeAlias = Literal["sha1", "sha256"]
Encoding: TypeAlias = Literal["hex", "base64"]
Pairs: TypeAlias = tuple[tuple[str, str], ...]
Fields: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values of a form; pairs if a name may come more than once."""

SIGNATURE_HEADER = "X-SignalWire-Signature"
"""The header with the SHA-1 signature."""
SHA256_SIGNATURE_HEADER = "X-SignalWire-SHA256-Signature"
"""The header with the SHA-256 signature, which only JSON callbacks have."""
ALIAS_HEADER = "X-Twilio-Signature"

MAX_BODY = 1024 * 1024
"""Bytes; a longer body is rejected, since it would be hashed once for each key and URL."""
FORM_TYPE = "application/x-www-form-urlencoded"

MISMATCH = "the signature does not match"

_MAX_FIELDS = 1_000
_ERRORS = "surrogateescape"
_BODY_HASH = "bodySHA256"
_WANTED = "fields must be a mapping of str to str, or pairs of them: write parse_qsl(text, keep_blank_values=True)"

# Characters that every form encoder escapes. JSON always contains some, so no body is both a form and JSON.
_NO_FORM = re.compile(rb"[^!$%&'()*+,\-./0-9:;=?@A-Z_a-z~]|%(?![0-9A-Fa-f]{2})")


def read_form(body: bytes) -> Pairs | None:
    """Return a form's fields in their order, blank values included.

    The result is None if the body cannot be a form: unescaped blanks, quotes, braces or bytes beyond ASCII, invalid
    escapes, text that is not UTF-8, a field without a name, more than 1,000 fields.
    """
    if _NO_FORM.search(body):
        return None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except ValueError:
        return None
    return tuple(pairs) if all(name for name, _ in pairs) else None


def as_pairs(fields: object) -> Pairs:
    items = fields.items() if isinstance(fields, Mapping) else fields
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidRequestError(_WANTED)
    pairs = []
    for item in items:
        match item:
            case [str(name), str(value)]:
                pairs.append((name, value))
            case _:
                raise InvalidRequestError(_WANTED)
    return tuple(pairs)


@frozen(kw_only=True)
class SignedRequest:
    url: str = field(repr=False)
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    method: str

    @classmethod
    def read(cls, *, url: object, headers: object, body: object, method: object) -> Self:
        """Return a request, or raise `InvalidRequestError` if a part has the wrong type."""
        if not isinstance(headers, Mapping | HiddenItems):
            raise InvalidRequestError(f"headers must be a mapping, not {kind_of(headers)}: write dict(headers)")
        if not isinstance(method, str):
            raise InvalidRequestError(f"method must be a str, not {type(method).__name__}: write 'GET' or 'POST'")
        return cls(url=_url(url), headers=Headers(headers), body=_raw(body), method=method.upper())

    @property
    def query(self) -> bytes:
        return encoded(query_of(self.url)) or b""

    @property
    def query_fields(self) -> Pairs:
        """The query's fields. Any query can be read, since it may include that of the user's own URL."""
        return tuple(parse_qsl(query_of(self.url), keep_blank_values=True))

    @property
    def form(self) -> Pairs | None:
        return read_form(self.body)

    @property
    def is_json(self) -> bool:
        """Whether the body is read as JSON, and not as a form; `UnverifiableError` if its content type contradicts."""
        types = self.headers.getall("Content-Type", []) if self.method == "POST" else []
        if len(types) > 1:
            raise UnverifiableError("Content-Type appears more than once")
        media_type = (*types, "")[0].partition(";")[0].strip().lower()
        looks_like_json = self.body.lstrip()[:1] in {b"{", b"["}
        if media_type == FORM_TYPE and looks_like_json:
            raise UnverifiableError("Content-Type is form data, but the body is not")
        if (media_type == "application/json" or media_type.endswith("+json")) and not looks_like_json:
            raise UnverifiableError("Content-Type is JSON, but the body is not")
        return looks_like_json

    def check(self, keys: Sequence[str], *urls: str) -> None:
        """Raise `UnverifiableError` if the request was not signed with one of the keys; the message holds no secret.

        If several URLs may have been signed, they have the same query.
        """
        # All are compared, so that timing does not reveal which one is valid.
        if not any([is_signed for *_, is_signed in self.comparisons(keys, *urls)]):  # noqa: C419
            raise UnverifiableError(MISMATCH)

    def comparisons(self, keys: Sequence[str], *urls: str) -> Iterator[tuple[str, str, bool]]:
        """Yield each form of the URLs, each key, and whether it signed that: one hash of the body at a time."""
        signatures = self._signatures()
        if not keys:
            raise UnverifiableError("there is no key")
        forms = [form for url in urls or (self.url,) for form in equivalent_urls(url, self.headers)]
        for key, url in product(keys, (form for form in forms if encoded(form) is not None)):
            for signature in signatures:
                yield url, key, signature.verify(url, key)

    def _signatures(self) -> "tuple[Signature, ...]":
        """Return the signatures, one of which must be valid.

        For JSON, the SHA-256 signature decides if there is one. For a form, any signature counts: the SHA-256 header is
        defined for JSON only, so a wrong value in it does not invalidate the form's SHA-1 signature.
        """
        if self.method not in {"GET", "POST"}:
            raise UnverifiableError("the method is neither GET nor POST")
        if self.method == "GET" and self.body:
            raise UnverifiableError("a GET has a body")
        if len(self.body) > MAX_BODY:
            raise UnverifiableError("the body is too large")
        strong = self.headers.getall(SHA256_SIGNATURE_HEADER, [])
        weak = _given(self.headers, SIGNATURE_HEADER) + _given(self.headers, ALIAS_HEADER)
        if not strong and not weak:
            raise UnverifiableError("there is no signature")
        by_sha1 = tuple(
            Signature(given=weak, algorithm="sha1", encoding=encoding, tail=tail)
            for encoding, tail in self._covered_by_sha1()
            if weak
        )
        is_json = self.is_json
        if not is_json and weak and (len(strong) != 1 or not strong[0]):
            return by_sha1
        given = _given(self.headers, SHA256_SIGNATURE_HEADER)
        by_sha256 = (Signature(given=given, algorithm="sha256", encoding="hex", tail=self.body),) if given else ()
        return by_sha256 or by_sha1 if is_json else by_sha256 + by_sha1

    def _covered_by_sha1(self) -> list[tuple[Encoding, bytes]]:
        """Return the possible encodings of a SHA-1 signature, each with the data that it covers after the URL."""
        raw: list[tuple[Encoding, bytes]] = [("hex", self.body)] if self.is_json else []
        if _names_body(self.query_fields, self.body):
            return [("base64", b""), *raw]
        if raw:
            return raw
        pairs = self.form
        if pairs is None:
            raise UnverifiableError(f"the body is neither JSON nor a form of up to {_MAX_FIELDS:,} fields")
        return [("base64", canonical_form(pairs))]


class UnverifiableError(Exception):
    """A request that was not signed with one of the keys, and why. It never leaves this package."""


@frozen(kw_only=True)
class Signature:
    """One kind of signature: its values in a request, one of which must be valid, and what is signed after the URL."""

    given: tuple[bytes, ...] = field(repr=False)
    algorithm: Algorithm
    encoding: Encoding
    tail: bytes = field(repr=False)

    def verify(self, url: str, key: str) -> bool:
        """Return, in constant time, whether the key signed this URL."""
        # The expected signature is in no local variable, so that no traceback shows it.
        matches = map(
            partial(hmac.compare_digest, _signature_of(key, url, self.tail, self.algorithm, self.encoding)), self.given
        )
        return any([*matches])


def _signature_of(key: str, url: str, tail: bytes, algorithm: Algorithm, encoding: Encoding) -> bytes:
    # The bytes of key and URL are in no local variable, so that no traceback shows them.
    digest = hmac.digest(key.encode("utf-8", _ERRORS), url.encode("utf-8", _ERRORS) + tail, algorithm)
    return digest.hex().encode() if encoding == "hex" else b64encode(digest)


def canonical_form(pairs: Pairs) -> bytes:
    """Return the signed text of a form: names and values, sorted by name; values of one name stay in their order."""
    return "".join(name + value for name, value in sorted(pairs, key=lambda pair: pair[0])).encode()


def _given(headers: Headers, name: str) -> tuple[bytes, ...]:
    values = headers.getall(name, [])
    if len(values) > 1:
        raise UnverifiableError(f"{name} appears more than once")
    if "" in values:
        raise UnverifiableError(f"{name} is empty")
    return tuple(value.encode("ascii", "replace") for value in values)


def _names_body(query: Pairs, body: bytes) -> bool:
    """Return whether the URL names the hash of the body, which is how such a body is signed.

    The hash is checked on each request to such a URL: otherwise a signature for one body would be good for another.
    """
    named = [value for name, value in query if name == _BODY_HASH]
    if not named:
        return False
    given = "".join(named).lower().encode("ascii", "replace")
    if len(named) > 1 or not hmac.compare_digest(given, hashlib.sha256(body).hexdigest().encode()):
        raise UnverifiableError(f"the URL names another body with {_BODY_HASH}")
    return True


@masks_secrets
def verify_signature(
    *, url: str, headers: Mapping[str, str], body: bytes = b"", keys: Sequence[str], method: str = "POST"
) -> bool:
    """Return whether the platform signed a request with one of these keys.

    ==================  =================================  =====================================================
    request             header                             value
    ==================  =================================  =====================================================
    POST of a form      ``X-SignalWire-Signature``, or     base64 HMAC-SHA1 of the URL and each name and value,
                        its alias ``X-Twilio-Signature``   sorted by name
    POST of JSON        the same                           hex HMAC-SHA1 of the URL and the raw body
    any                 ``X-SignalWire-SHA256-Signature``  hex HMAC-SHA256 of the URL and the raw body
    ``bodySHA256=`` in  as a form                          as a form without fields; the hash has to be the body's
    the URL
    GET                 as a form                          base64 HMAC-SHA1 of the URL
    ==================  =================================  =====================================================

    - For JSON the stronger header decides. If ``X-SignalWire-SHA256-Signature`` is present and wrong, the request
      is rejected whatever the others say; if it is missing, the others count. It is defined for JSON only, so for a
      form, and for a GET, any valid signature is enough, whatever that header says.
    - ``X-SignalWire-Signature`` and its alias are equally strong, so it is enough if one of the two is valid.
    - A repeated signature header is rejected, and so is a body that contradicts its ``Content-Type``.
    - The URL may have been signed with the standard port or without a port, with user and password or without, and
      without its fragment. Everything else in it, including a trailing slash and the query, counts byte for byte.

    The platform signs neither the method, nor the boundaries between names and values, nor a timestamp. So route only
    the method that you chose for the callback, and expect replays of intercepted requests.

    Args:
        url: the URL as the platform knows it, query included: the public one if there is a proxy.
        headers: the request's headers; names ignore case.
        body: the raw body, before anything parsed it; at most 1 MiB.
        keys: the project's Signing Keys (``PSK_...``, not API tokens): several during a rotation.
        method: ``GET`` or ``POST``.

    Returns:
        False also if there is no key or no signature, if either is empty, and if an argument is None: it fails closed.

    Raises:
        InvalidRequestError: an argument has the wrong type; the message says what to write.

    Sources: https://developer.signalwire.com/guides/webhook-security/ and
    https://signalwire.com/docs/server-sdks/reference/python/core/security
    """
    usable = usable_keys(keys)
    if any(part is None for part in (url, headers, body, method)):
        return False
    try:
        SignedRequest.read(url=url, headers=headers, body=body, method=method).check(usable)
    except UnverifiableError:
        return False
    return True


@masks_secrets
def sign(
    *, url: str, fields: Fields | None = None, body: bytes | None = None, key: str, algorithm: Algorithm = "sha1"
) -> str:
    """Sign a request as the platform does, for tests and simulators.

    Args:
        url: the URL, query included.
        fields: the form's fields; as pairs, a name may come more than once.
        body: the raw JSON body. Without fields and body the URL alone is signed, as for a GET.
        key: the Signing Key.
        algorithm: ``sha1``, or ``sha256`` for the header ``X-SignalWire-SHA256-Signature``.

    Returns:
        The header's value: base64 for fields or the URL alone with SHA-1, hex otherwise.

    Raises:
        InvalidRequestError: an argument is invalid; the message says what to write.
    """
    if algorithm not in {"sha1", "sha256"}:
        raise InvalidRequestError(f"algorithm {algorithm!r} is unknown: write 'sha1' or 'sha256'")
    if fields is not None and (body is not None or algorithm == "sha256"):
        raise InvalidRequestError(
            "fields are signed without a body and with SHA-1: write either fields=... or body=..."
        )
    if not usable_keys([key]):
        raise InvalidRequestError("key must be a str that is not blank: write the project's Signing Key")
    text, raw = _url(url), _raw(b"" if body is None else body)
    pairs = None if fields is None else as_pairs(fields)
    encoding: Encoding = "base64" if body is None and algorithm == "sha1" else "hex"
    with suppress(UnicodeEncodeError):
        tail = raw if pairs is None else canonical_form(pairs)
        text.encode()
        return _signature_of(key, text, tail, algorithm, encoding).decode()
    raise InvalidRequestError("url, fields and key must be encodable as UTF-8: remove lone surrogates")


def usable_keys(keys: object) -> tuple[Secret, ...]:
    """Return the keys that can have signed something: strings that are not blank."""
    if keys is None:
        return ()
    if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
        raise InvalidRequestError(f"keys must be a list of Signing Keys, not {kind_of(keys)}: write keys=[key]")
    usable = [Secret(key) for key in keys if isinstance(key, str) and key.strip() and encoded(key) is not None]
    return tuple(dict.fromkeys(usable))


def encoded(text: str) -> bytes | None:
    """Return a string's bytes; servers and environments represent bytes that are not UTF-8 as surrogates."""
    try:
        return text.encode("utf-8", _ERRORS)
    except UnicodeEncodeError:
        return None


def _url(url: object) -> str:
    if not isinstance(url, str):
        raise InvalidRequestError(f"url must be a str, not {kind_of(url)}: write str(url)")
    return url


def _raw(body: object) -> bytes:
    if not isinstance(body, bytes | bytearray | memoryview):
        raise InvalidRequestError(
            f"body must be the raw bytes of the request, not {type(body).__name__}: read them before any parser does"
        )
    return bytes(body)
