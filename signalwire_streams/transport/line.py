"""The whole way to the Space and back: middlewares, the sender, and their common lifetime."""

import asyncio

from attrs import define, field

from signalwire_streams.transport.middleware import Send
from signalwire_streams.transport.sessions import SessionManager
from signalwire_streams.wire.exchange import Exchange, Outcome

_DRAIN = 5.0


@define(eq=False)
class Line:
    """What the resources send their exchanges over.

    Attributes:
        sessions: the aiohttp session's owner.
        send: the sender with all middlewares around it.
    """

    sessions: SessionManager
    send: Send
    _under_way: int = field(init=False, default=0)
    _idle: asyncio.Event = field(init=False, factory=asyncio.Event)

    async def perform(self, exchange: Exchange) -> Outcome:
        """Send an exchange and say how the call ended.

        Raises:
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        self.sessions.check()
        self._under_way += 1
        try:
            return await self.send(exchange)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def aclose(self) -> None:
        """Take no new calls, give those under way five seconds to end, then close the session."""
        self.sessions.refuse_new()
        try:
            if self._under_way:
                self._idle.clear()
                async with asyncio.timeout(_DRAIN):
                    await self._idle.wait()
        except TimeoutError:
            pass  # the connections are cut now; each call then ends by the rules for a lost answer
        finally:
            await self.sessions.close()
