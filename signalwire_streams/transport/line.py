"""The whole way to the Space and back: middlewares, the sender, and their common lifetime."""

import asyncio

from attrs import define, field

from signalwire_streams.models import Action, Event
from signalwire_streams._http.deadlines import Limit, Limits
from signalwire_streams.transport.middleware import Send
from signalwire_streams._http.session import SessionManager
from signalwire_streams._http.messages import Exchange, Outcome

_DRAIN = 5.0


@define(eq=False)
class Line:
    """What the resources send their exchanges over.

    Attributes:
        sessions: the aiohttp session's owner.
        send: the sender with all middlewares around it.
        limits: end the calls that are cut.
    """

    sessions: SessionManager
    send: Send
    limits: Limits
    _under_way: set[Limit] = field(init=False, factory=set)
    _idle: asyncio.Event = field(init=False, factory=asyncio.Event)

    async def perform(self, exchange: Exchange) -> Outcome:
        """Send an exchange and say how the call ended.

        Raises:
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        self.sessions.check()
        cut = self.limits.within(None)
        try:
            with cut:
                self._under_way.add(cut)
                return await self.send(exchange)
        except TimeoutError:
            if not cut.expired:
                raise
            return _cut(exchange)
        finally:
            self._under_way.discard(cut)
            if not self._under_way:
                self._idle.set()

    async def aclose(self) -> None:
        """Take no new calls, give those under way five seconds to end, cut the rest, close the session."""
        self.sessions.refuse_new()
        try:
            if self._under_way:
                self._idle.clear()
                async with asyncio.timeout(_DRAIN):
                    await self._idle.wait()
        except TimeoutError:
            for cut in self._under_way:
                cut.expire()
        finally:
            await self.sessions.close()
            self.limits.close()


def _cut(exchange: Exchange) -> Outcome:
    progress = exchange.progress
    unknown = exchange.kind.is_start and (progress.note_attempt() != "no" or progress.may_be_done)
    return Outcome(
        event=Event.UNUSABLE,
        phase=progress.phase,
        detail="the client was closed meanwhile",
        action=Action.UNKNOWN if unknown else Action.FAIL,
        attempts=progress.attempts,
        sent=progress.sent,
    )
