"""Who may deliver a stream: the bearer tokens that an upgrade must carry one of."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from attrs import define, field

from signalwire_streams.errors import InvalidRequestError

Tokens: TypeAlias = str | Collection[str] | Callable[[str], bool | Awaitable[bool]] | None
"""One token, several, what decides about one, or None to let everybody in."""


@define(eq=False)
class Doorkeeper:
    """Checks bearer tokens.

    Attributes:
        ask: the caller's own check, or None.
        everybody: whether no token is needed.
    """

    ask: Callable[[str], bool | Awaitable[bool]] | None = None
    everybody: bool = False
    _known: set[bytes] = field(init=False, factory=set, repr=False)

    @classmethod
    def of(cls, tokens: Tokens) -> "Doorkeeper":
        """Make one of what the user gave.

        Raises:
            InvalidRequestError: it is no token, and nothing that holds some.
        """
        if tokens is None:
            return cls(everybody=True)
        if callable(tokens):
            return cls(ask=tokens)
        keeper = cls()
        for token in [tokens] if isinstance(tokens, str) else tokens:
            if not token or not isinstance(token, str):
                raise InvalidRequestError("a bearer token is empty or no str: write the token that the start passes")
            keeper._known.add(token_hash(token))
        return keeper

    async def admits(self, token: str | None) -> bool:
        """Tell whether a token, or the lack of one, lets its bearer in."""
        if self.everybody:
            return True
        if token is None:
            return False
        if self.ask is None:
            return token_hash(token) in self._known
        answer = self.ask(token)
        return (await answer if inspect.isawaitable(answer) else answer) is True


def bearer_token(authorization: str | None) -> str | None:
    """Take the token out of an ``Authorization`` header."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def token_hash(token: str) -> bytes:
    """Give what a token is looked up by: how long that takes then tells nothing of a token that is not known."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
