"""Bearer tokens of audio sockets: which of them admit a stream."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models._validation import Secret, Unusable, mask

Tokens: TypeAlias = str | Collection[str] | Callable[[str], bool | Awaitable[bool]] | None
"""One token, several, a function that checks one, or None to allow anyone."""

_NO_TOKENS: tuple[type[object], ...] = (bytes, bytearray)  # collections of numbers
MaskedTokens: TypeAlias = tuple[object, ...] | Callable[[str], bool | Awaitable[bool]] | Unusable | None


def mask_tokens(tokens: Tokens) -> MaskedTokens:
    """Return tokens as a tuple, hidden from ``repr``. Anything but tokens is replaced by its type."""
    if tokens is None or callable(tokens):
        return tokens
    if isinstance(tokens, str):
        return (Secret(tokens),)
    if isinstance(tokens, _NO_TOKENS) or not isinstance(tokens, Collection):
        return Unusable(type(tokens).__name__)
    return tuple(map(mask, tokens))


class TokenAuthenticator:
    def __init__(self, tokens: MaskedTokens) -> None:
        self._check = tokens if callable(tokens) else None
        self.admits_everybody = tokens is None
        self._hashes: set[bytes] = set()
        for token in tokens if isinstance(tokens, tuple) else ():
            if not token or not isinstance(token, str):
                raise InvalidRequestError("a bearer token is empty or not a str: pass the token that the start sends")
            if not all("!" <= character <= "~" for character in token):
                raise InvalidRequestError(
                    "a bearer token contains whitespace or non-ASCII characters, so no start can pass it: write the "
                    "bare token, without 'Bearer'"
                )
            self._hashes.add(token_hash(token))

    async def allows(self, token: str | None) -> bool:
        if self.admits_everybody:
            return True
        if token is None:
            return False
        if self._check is None:
            return token_hash(token) in self._hashes
        answer = self._check(str(token))  # a plain str, which no local variable here holds
        return (await answer if inspect.isawaitable(answer) else answer) is True


def bearer_token(authorization: str | None) -> str | None:
    """Return the token of an ``Authorization`` header, masked."""
    scheme, _, token = (authorization or "").partition(" ")
    return Secret(token.strip()) if scheme.lower() == "bearer" and token.strip() else None


def token_hash(token: str) -> bytes:
    """Return the hash by which tokens are looked up, so that timing reveals nothing about the valid ones."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
