"""Bearer tokens of audio sockets: which of them admit a stream, and what a signed one says."""
# ruff: noqa: SLF001  (what is private to users of tokens is not to this package)

import hashlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from heapq import heappop, heappush
from typing import Any, Self, TypeAlias

from attrs import field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import SignedTokens, TargetKind
from signalwire_streams.models._signed_tokens import LEEWAY, OWN_CLAIMS, RejectedTokenError
from signalwire_streams.models._validation import Secret, Unusable, kind_of, mask, names_only
from signalwire_streams.receiver._protocol import StartEvent
from signalwire_streams.receiver._server import RateLimitedLog

_LOG = logging.getLogger("signalwire_streams.receiver")

Tokens: TypeAlias = str | Collection[str] | SignedTokens | Callable[[str], bool | Awaitable[bool]] | None
"""One token, several, signed ones, a function that checks one, or None to allow anyone."""

_NO_TOKENS: tuple[type[object], ...] = (bytes, bytearray)  # collections of numbers
MaskedTokens: TypeAlias = tuple[object, ...] | SignedTokens | Callable[[str], bool | Awaitable[bool]] | Unusable | None


def mask_tokens(tokens: Tokens) -> MaskedTokens:
    """Return tokens as a tuple, hidden from ``repr``. Anything but tokens is replaced by its type."""
    if tokens is None or isinstance(tokens, SignedTokens) or callable(tokens):
        return tokens
    if isinstance(tokens, str):
        return (Secret(tokens),)
    if isinstance(tokens, _NO_TOKENS) or not isinstance(tokens, Collection):
        return Unusable(type(tokens).__name__)
    return tuple(map(mask, tokens))


@frozen(kw_only=True)
class TokenClaims:
    """The content of a stream's token, which `SignedTokens` have minted.

    Attributes:
        kind: whether the token is for a conference or for a call.
        target: the sid of the conference or call, as the start had it.
        name: the stream's name; None if it was started without one.
        expires_at: when the token expires.
        custom: the ``claims`` of the `SignedTokens`, as JSON has them.
    """

    kind: TargetKind
    target: str
    name: str | None
    expires_at: datetime
    custom: Mapping[str, Any] = field(repr=names_only, hash=False)


class SpentNonces:
    """Nonces of the tokens with which streams have started, until they have expired."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._nonces: set[str] = set()
        self._expiries: list[tuple[float, str]] = []  # a heap

    def check(self, nonce: str) -> None:
        if nonce in self._nonces:
            raise RejectedTokenError("its token was used before")

    def add(self, nonce: str, expires_at: float, now: float) -> None:
        """Add a nonce. Forget those that have expired and, if there are too many, the first that will expire."""
        self.check(nonce)
        while self._expiries and (len(self._expiries) >= self._most or self._expiries[0][0] + LEEWAY <= now):
            self._nonces.discard(heappop(self._expiries)[1])
        self._nonces.add(nonce)
        heappush(self._expiries, (expires_at, nonce))


_SPENT = SpentNonces(100_000)
"""Those of this process; they take 20 MB at most."""


@frozen
class VerifiedToken:
    """A signed token that admits a socket, until its stream starts."""

    claims: TokenClaims
    _nonce: str = field(repr=False)
    _tokens: SignedTokens

    @classmethod
    def read(cls, tokens: SignedTokens, token: str) -> Self:
        """Verify a token.

        Raises:
            RejectedTokenError: it is altered, expired or used, or not one of these.
        """
        content = tokens._decode(token)
        kind, name, nonce = content["kind"], content.get("name"), content["jti"]
        if kind not in tuple(TargetKind) or not isinstance(name, str | None):
            raise RejectedTokenError("its token is not one of SignedTokens")
        _SPENT.check(nonce)
        claims = TokenClaims(
            kind=TargetKind(kind),
            target=content["sub"],
            name=name,
            expires_at=datetime.fromtimestamp(content["exp"], UTC),
            custom={name: value for name, value in content.items() if name not in OWN_CLAIMS},
        )
        return cls(claims, nonce, tokens)

    def spend(self, start: StartEvent) -> None:
        """Use up the token as its stream starts.

        Raises:
            RejectedTokenError: it is for another stream, or was used or has expired since the upgrade.
        """
        claims = self.claims
        # It is not documented that the start event of a conference's stream names the conference.
        sid = start.call_sid if claims.kind is TargetKind.CALL else start.conference_sid or claims.target
        if sid is None or sid.lower() != claims.target.lower():  # the Space ignores the case of its sids
            raise RejectedTokenError(f"its token is for another {claims.kind}")
        expires_at = claims.expires_at.timestamp()
        self._tokens._check_expiry(expires_at)
        _SPENT.add(self._nonce, expires_at, self._tokens._clock.wall_time())


class TokenAuthenticator:
    def __init__(self, tokens: MaskedTokens) -> None:
        self._signed = tokens if isinstance(tokens, SignedTokens) else None
        self._check = tokens if callable(tokens) else None
        self.admits_everybody = tokens is None
        self._log = RateLimitedLog(1)
        self._hashes: set[bytes] = set()
        for token in tokens if isinstance(tokens, tuple) else ():
            if isinstance(token, SignedTokens):
                raise InvalidRequestError("SignedTokens are not one of several tokens: write bearer_tokens=tokens")
            if not token or not isinstance(token, str):
                raise InvalidRequestError("a bearer token is empty or not a str: pass the token that the start sends")
            if not all("!" <= character <= "~" for character in token):
                raise InvalidRequestError(
                    "a bearer token contains whitespace or non-ASCII characters, so no start can pass it: write the "
                    "bare token, without 'Bearer'"
                )
            self._hashes.add(token_hash(token))

    async def allows(self, token: str | None) -> VerifiedToken | bool:
        """Return whether a token is valid; a signed one with what it says."""
        if self.admits_everybody:
            return True
        if token is None:
            return False
        if self._signed is not None:
            try:
                return VerifiedToken.read(self._signed, token)
            except RejectedTokenError as error:
                _LOG.info("rejected a stream: %s", error)
                return False
        if self._check is None:
            return token_hash(token) in self._hashes
        allowed = self._check(str(token))  # a plain str, which no local variable here holds
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not isinstance(allowed, bool):
            kind = kind_of(allowed)
            self._log.warning("the token check returned a %s, which admits nobody: return True or False", kind)
        return allowed is True


def bearer_token(authorization: str | None) -> str | None:
    """Return the token of an ``Authorization`` header, masked."""
    scheme, _, token = (authorization or "").partition(" ")
    return Secret(token.strip()) if scheme.lower() == "bearer" and token.strip() else None


def token_hash(token: str) -> bytes:
    """Return the hash by which tokens are looked up, so that timing reveals nothing about the valid ones."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
