"""Was a callback signed by the platform? Pure: no I/O, any web framework."""

from collections.abc import Iterable, Mapping, Sequence

from signalwire_streams.callbacks._signature import (
    Algorithm,
    Encoding,
    SignedRequest,
    UnverifiableError,
    form_tail,
    read_claims,
    signature_of,
)
from signalwire_streams.callbacks.forms import Fields, as_pairs
from signalwire_streams.callbacks._request_parsing import spellings
from signalwire_streams.errors import InvalidRequestError


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
                matched |= claim.fits(url, key)
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
