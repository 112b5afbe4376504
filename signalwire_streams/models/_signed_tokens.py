"""`SignedTokens`: bearer tokens that any process with the key can check.

A token is a JSON Web Token (RFC 7519), signed by HMAC with SHA-256. ``aud`` is ``signalwire-streams``, ``kind`` is
``conference`` or ``call``, ``sub`` its sid, ``name`` the stream's name, ``jti`` a nonce, and ``exp`` the second in
which it expires. The claims of the user are beside them.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, TypeAlias

from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import (
    HiddenItems,
    HidesSecrets,
    Secret,
    Unusable,
    a_kind_of,
    is_encodable,
    kind_of,
    mask,
)

if TYPE_CHECKING:
    from signalwire_streams.models._requests import StartCallStream, StartConferenceStream

    _Start: TypeAlias = StartConferenceStream | StartCallStream

LEEWAY = 10.0
"""Seconds for which an expired token is still accepted, since the clocks of two machines differ."""

_AUDIENCE, _ALGORITHM = "signalwire-streams", "HS256"
OWN_CLAIMS = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "kind", "name"})
_REQUIRED = ["aud", "kind", "sub", "jti", "exp"]
_MIN_KEY = 32  # bytes: RFC 7518, 3.2
_MAX_TTL = 24 * 3600
_MAX_TIME = 1e11  # in the year 5138
_MAX_TOKEN = 4096  # characters: half of what aiohttp and nginx accept of one header
_MAX_CONTENT = 2900  # bytes without the expiry: with header and signature, less than 4,000 characters
_MAX_CLAIMS = 2048  # bytes
_NEW_KEY = "create one with secrets.token_urlsafe(32)"


class RejectedTokenError(Exception):
    """A token that admits no stream, and why. It never leaves this package."""


class SignedTokens(HidesSecrets):
    """Bearer tokens that are signed with a key, so that any process that has the key can check them.

    Pass it to starts, ``authorization_bearer_token=tokens``, and to receivers, ``MediaReceiver(handler,
    bearer_tokens=tokens)``, in this process or in any other. It needs the extra ``tokens``.

    - Each token is for one stream, and is minted when its start is sent: items of a bulk run or of a fleet may wait
      longer than ``ttl``. If a start is sent again, it gets a token that expires later, since one that waited for a
      long retry would be useless, and has the same nonce: whichever attempt the Space carried out, one stream is
      admitted.
    - A receiver rejects a token that is altered, expired (10 seconds are tolerated, since clocks differ), or signed
      with a key that it does not have, with HTTP 401 before the upgrade. A stream of another call than the token's is
      closed with code 1008. The start event of a conference's stream does not name the conference, so there the token
      alone counts.
    - A token is spent when its stream starts, once in each process, which remembers up to 100,000 of them until they
      expire. Each of several replicas would accept a stolen token once: if that matters, keep ``ttl`` short.
    - The content is signed and not encrypted, so do not put secrets into claims. `StreamSession.claims` has it.

    Neither a journal nor Redis keeps a token or a key: a resumed run needs the requests with ``tokens`` again, and the
    workers of a fleet add it in ``secrets=``.
    """

    _keys: tuple[Secret, ...] = ()  # so that a traceback can show what could not be created
    _ttl: float = 0.0

    def __init__(
        self,
        keys: str | Sequence[str],
        *,
        ttl: float = 300.0,
        claims: "Mapping[str, Any] | Callable[[_Start], Mapping[str, Any]] | None" = None,
        clock: Clock | None = None,
    ) -> None:
        """Check the arguments.

        Args:
            keys: the key, or several during a rotation: the first one signs, and all are accepted. A new key comes
                last until every receiver has it, then first, and the old one is removed after ``ttl``. A key has 32
                bytes at least, such as ``secrets.token_urlsafe(32)`` returns.
            ttl: seconds, from 1 to 86,400, for which a token is valid after its start was sent. The stream has to start
                by then; the Space connects within seconds.
            claims: what each token says besides: up to 2,048 bytes of JSON by name, or a function that returns them for
                a request. It is called once for each start.
            clock: the source of time; for tests.

        Raises:
            InvalidRequestError: an argument is invalid; the message says what to write instead.
            ModuleNotFoundError: the extra ``tokens`` is not installed.
        """
        claims = _masked_claims({} if claims is None else claims)  # type: ignore[assignment]  # tracebacks show it
        keys = _masked_keys(keys)  # type: ignore[assignment]  # and this
        jwt = _library()
        self._keys = tuple(_checked_key(key) for key in _listed(keys))
        for key in self._keys:
            try:
                jwt.encode({}, key, _ALGORITHM)
            except jwt.InvalidKeyError:
                raise InvalidRequestError(f"a key is a PEM or SSH key, not a secret text: {_NEW_KEY}") from None
        if inspect.iscoroutinefunction(claims):
            raise InvalidRequestError("claims is an async function: write it with def, or load what it needs before")
        self._ttl = _checked_ttl(ttl)
        self._claims = claims if callable(claims) else _encoded(claims)
        self._clock = clock or Clock()

    def __repr__(self) -> str:
        return f"SignedTokens({len(self._keys)} key{'s' * (len(self._keys) > 1)}, ttl={self._ttl:g})"

    def mint(self, request: "_Start") -> str:
        """Return a token for a stream that another program starts, or that a test dials with `simulator.dial_media`.

        Starts of this package mint their own. The request is the one that would start the stream, as in
        ``tokens.mint(StartCallStream(call_sid=sid, url=url))``.

        Raises:
            InvalidRequestError: it is not a request, or its claims are invalid, or too long with its name.
        """
        if not isinstance(getattr(request, "target", None), str):
            raise InvalidRequestError(
                f"the request is {a_kind_of(request)}: pass StartConferenceStream or StartCallStream"
            )
        return self._minter(request)()

    def _minter(self, request: "_Start") -> Callable[[], Secret]:
        """Return a function that mints the tokens of one start, which differ in their expiry only.

        Raises:
            InvalidRequestError: the claims of this request are invalid, or too long with its name.
        """
        claims, nonce = self._claims_of(request), token_urlsafe(12)
        own = {"aud": _AUDIENCE, "kind": request.kind.value, "sub": request.target, "jti": nonce}
        if request.name is not None:
            own["name"] = request.name
        if len(claims) + len(json.dumps(own)) > _MAX_CONTENT:
            raise InvalidRequestError(
                f"the token for {request.target} would be longer than {_MAX_TOKEN:,} characters, which is too much for "
                "a header: shorten the name of the stream, or the claims"
            )

        def mint() -> Secret:
            expiry = {"exp": ceil(self._clock.wall_time() + self._ttl)}
            return Secret(_library().encode(json.loads(claims) | own | expiry, self._keys[0], _ALGORITHM))

        return mint

    def _claims_of(self, request: "_Start") -> Secret:
        if not callable(self._claims):
            return self._claims
        try:
            claims = _masked_claims(self._claims(request))
        except Exception as error:
            raise InvalidRequestError(
                f"claims raised {type(error).__name__} for the stream on {request.target}: let it return a mapping"
            ) from error
        return _encoded(claims)

    def _decode(self, token: str) -> dict[str, Any]:
        """Return the content of a token.

        Raises:
            RejectedTokenError: it is altered, expired, or not one of these tokens.
        """
        jwt = _library()
        if len(token) > _MAX_TOKEN:
            raise RejectedTokenError("its token is too long")
        for key in self._keys:
            try:
                content: dict[str, Any] = jwt.decode(
                    token, key, [_ALGORITHM], audience=_AUDIENCE, options={"require": _REQUIRED, "verify_exp": False}
                )
            except jwt.InvalidSignatureError:
                continue
            except Exception:  # noqa: BLE001  (a header that is nested too deep is a RecursionError, for example)
                raise RejectedTokenError("its token is not one of SignedTokens") from None
            self._check_expiry(content["exp"])
            return content
        raise RejectedTokenError("its token was altered, or signed with another key")

    def _check_expiry(self, expires_at: object) -> None:
        if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not 0 < expires_at < _MAX_TIME:
            raise RejectedTokenError("its token is not one of SignedTokens")
        if expires_at + LEEWAY <= self._clock.wall_time():
            raise RejectedTokenError("its token has expired")


def _library() -> Any:  # noqa: ANN401  (a module of an extra)
    try:
        import jwt  # noqa: PLC0415  (it loads what it finds of cryptography, which takes longer than aiohttp)
    except ImportError:
        raise ModuleNotFoundError(
            "SignedTokens needs one more package: pip install 'signalwire-streams[tokens]'", name="jwt"
        ) from None
    return jwt


def _masked_keys(keys: object) -> "tuple[object, ...] | Unusable":
    if isinstance(keys, str):
        return (Secret(keys),)
    if isinstance(keys, Sequence) and not isinstance(keys, bytes | bytearray | memoryview):
        return tuple(map(mask, keys))
    return Unusable(type(keys).__name__)  # a set has no first key


def _listed(keys: object) -> tuple[object, ...]:
    if not isinstance(keys, tuple):
        raise InvalidRequestError(
            f"keys must be a str, or a list of them with the signing key first, not {kind_of(keys)}"
        )
    if not keys:
        raise InvalidRequestError(f"keys is empty: {_NEW_KEY}, and pass it to starts and receivers")
    return keys


def _checked_key(key: object) -> Secret:
    if not isinstance(key, Secret):
        raise InvalidRequestError(f"a key must be a str, not {kind_of(key)}: {_NEW_KEY}")
    if key != key.strip():
        raise InvalidRequestError(
            "a key begins or ends with whitespace: strip it, as in Path('key.txt').read_text().strip()"
        )
    if len(key.encode("utf-8", "replace")) < _MIN_KEY:
        raise InvalidRequestError(f"a key is shorter than {_MIN_KEY} bytes, so it could be guessed: {_NEW_KEY}")
    if not is_encodable(key):
        raise InvalidRequestError(f"a key contains a lone surrogate, which can't be encoded: {_NEW_KEY}")
    return key


def _checked_ttl(ttl: object) -> float:
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 1 <= ttl <= _MAX_TTL:
        raise InvalidRequestError(f"ttl must be a number of seconds from 1 to {_MAX_TTL:,}, such as 300")
    return ttl


def _masked_claims(claims: object) -> object:
    if isinstance(claims, Mapping):
        return HiddenItems(claims)
    return claims if callable(claims) else Unusable(type(claims).__name__)


def _encoded(claims: object) -> Secret:
    """Return claims as JSON. Their values are in no local variable, so that no traceback shows them."""
    if not isinstance(claims, HiddenItems):
        raise InvalidRequestError(f"claims must be a mapping, or a function that returns one, not {kind_of(claims)}")
    try:
        text = Secret(json.dumps(dict(claims.items()), allow_nan=False, separators=(",", ":")))
        is_json = _has_text_keys(dict(claims.items()))
    except (TypeError, ValueError, RecursionError):
        is_json = False
    if not is_json:
        raise InvalidRequestError(
            "claims must be JSON: a mapping to strings, finite numbers, booleans, None, or lists or mappings of these"
        )
    if len(text) > _MAX_CLAIMS:
        raise InvalidRequestError(
            f"claims have {len(text):,} bytes as JSON, and may have {_MAX_CLAIMS:,}: let them name where the rest is"
        )
    clashing = sorted(OWN_CLAIMS & json.loads(text).keys())
    if clashing:
        raise InvalidRequestError(
            f"claims has {', '.join(map(repr, clashing))}, which each token has: choose other names"
        )
    return text


def _has_text_keys(value: object) -> bool:
    """Return False if a mapping has keys that are not strings, which JSON would turn into strings."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_has_text_keys, value.values()))
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))
