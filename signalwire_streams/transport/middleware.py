"""The type of everything that stands around an exchange."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from attrs import frozen

from signalwire_streams._http.messages import Exchange, Outcome

Send: TypeAlias = Callable[[Exchange], Awaitable[Outcome]]
"""Sends an exchange and says how it ended."""

Middleware: TypeAlias = Callable[[Exchange, Send], Awaitable[Outcome]]
"""Gets an exchange and the way onward; may change the one, await the other, and change what comes back."""


@frozen(eq=False)
class _Link:
    middleware: Middleware
    onward: Send

    def __call__(self, exchange: Exchange) -> Awaitable[Outcome]:
        return self.middleware(exchange, self.onward)


def chain(middlewares: Iterable[Middleware], send: Send) -> Send:
    """Put middlewares around a sender, the first one outermost."""
    for middleware in reversed(list(middlewares)):
        send = _Link(middleware, send)
    return send
