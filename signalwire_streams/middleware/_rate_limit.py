"""Waiting for a turn: a connection slot first, then the pacer's leave, then the request goes at once.

In that order, because a leave that is held while something else is waited for would let requests bunch up
afterwards, and a bunch is what breaks the Space's limit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from attrs import define, field

from signalwire_streams.errors import Phase, StreamsError
from signalwire_streams.models import Event, Kind, Lane
from signalwire_streams.resilience.pace import Pace
from signalwire_streams.middleware._policies import RateLimit
from signalwire_streams.clock import Clock
from signalwire_streams.middleware._logs import log_pause
from signalwire_streams.transport.middleware import Send
from signalwire_streams.transport.slots import Slots, was_granted
from signalwire_streams._http.messages import Exchange, Outcome
from signalwire_streams.wire.headers import advertised_limit

_TICK = 0.004
_FRESH = 0.1  # seconds that a leave may be held for what is done before sending


class Pacer(Protocol):
    """Decides when a request may go out. One is shared by everything that shares a Space's limit."""

    async def acquire(self, lane: Lane, patience: float) -> float:
        """Wait until one POST may go out.

        Args:
            lane: interactive requests go before bulk ones.
            patience: seconds that the caller will wait.

        Returns:
            0 when the request may go now, and is counted; otherwise the seconds it would have had to wait,
            when that is more than the caller's patience, and nothing is counted.
        """
        ...

    async def pass_gate(self, patience: float) -> float:
        """Wait while the Space takes no requests at all; for reads, which the limit does not count."""
        ...

    def throttled(self, sent_at: float, retry_after: float | None) -> None:
        """Hear that the Space refused a request, sent at that time of the client's clock, as too many."""
        ...

    def served(self, advertised: int | None) -> None:
        """Hear that the Space took a request, and which limit its headers told, if any."""
        ...


@runtime_checkable
class SpacePacer(Pacer, Protocol):
    """A pacer that is shared beyond its process, and wants to know which Space it paces."""

    @property
    def rate(self) -> float:
        """Requests per second that all who share it may make now, as far as it knows."""
        ...

    def join(self, origin: str) -> None:
        """Hear the scheme, host and port of the Space that a client is made for."""
        ...


def choose_pacer(origin: str, pacer: Pacer | None, rate_limit: RateLimit | None, clock: Clock) -> Pacer:
    """Take the caller's pacer, telling it the Space if it asks; or make one of this client's own."""
    if isinstance(pacer, SpacePacer):
        pacer.join(origin)
    return pacer or LocalPacer(Pace(rate_limit or RateLimit()), clock)


@define(eq=False)
class LocalPacer:
    """Paces the requests of one process.

    Attributes:
        pace: the decisions.
        clock: where time and waiting come from.
    """

    pace: Pace
    clock: Clock
    _waiting: dict[Lane, dict[asyncio.Future[None], None]] = field(init=False)
    _pump: asyncio.Task[None] | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._waiting = {lane: {} for lane in Lane}

    async def acquire(self, lane: Lane, patience: float) -> float:
        """See `Pacer.acquire`."""
        now = self.clock.now()
        ahead = len(self._waiting[Lane.INTERACTIVE])
        if lane is Lane.BULK:
            ahead += len(self._waiting[Lane.BULK])
        wait = self.pace.gate_wait(now) if ahead else self.pace.take(now)
        if not (ahead or wait):
            return 0.0
        least = max(wait, ahead / self.pace.rate)
        if least >= patience:
            return least
        return await self._turn(lane, patience)

    async def _turn(self, lane: Lane, patience: float) -> float:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane][turn] = None
        # It is not the task that resets this: an eager one may end before it is assigned.
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve())
        try:
            async with asyncio.timeout(patience):
                await turn
        except TimeoutError:
            if not was_granted(turn):
                return patience
        except asyncio.CancelledError:
            if was_granted(turn):
                self.pace.give_back()
            raise
        finally:
            self._waiting[lane].pop(turn, None)
        return 0.0

    async def _serve(self) -> None:
        """Grant turns, interactive ones first, until nobody waits."""
        while (turn := self._next()) is not None:
            wait = self.pace.take(self.clock.now())
            if wait:
                await self.clock.sleep(max(wait, _TICK))
            else:
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        for waiting in self._waiting.values():
            while waiting:
                turn = next(iter(waiting))
                if not turn.done():
                    return turn
                del waiting[turn]
        return None

    async def pass_gate(self, patience: float) -> float:
        """See `Pacer.pass_gate`."""
        wait = self.pace.gate_wait(self.clock.now())
        if not wait:
            return 0.0
        if wait >= patience:
            return wait
        await self.clock.sleep(wait)
        return await self.pass_gate(patience - wait)

    def throttled(self, sent_at: float, retry_after: float | None) -> None:
        """See `Pacer.throttled`."""
        now = self.clock.now()
        was_open = not self.pace.gate_wait(now)
        self.pace.throttled(now, sent_at, retry_after)
        pause = self.pace.gate_wait(now)
        if was_open and pause:
            log_pause(pause)

    def served(self, advertised: int | None) -> None:
        """See `Pacer.served`."""
        self.pace.served()
        if advertised is not None:
            self.pace.advertised(advertised)


@define(eq=False)
class Turns:
    """The middleware that makes an exchange wait for its turn.

    Attributes:
        slots: how many exchanges may be under way at once, at most as many as the pool has connections.
        pacer: who gives leave.
        clock: where the time comes from.
    """

    slots: Slots
    pacer: Pacer
    clock: Clock

    async def __call__(self, exchange: Exchange, send: Send) -> Outcome:
        """Wait for a turn, then send; or say that there was none in time."""
        progress = exchange.progress
        progress.phase = Phase.QUEUED
        if not await self.slots.acquire(exchange.lane, progress.deadline_at - self.clock.now()):
            return _expired("no connection became free in time", None)
        try:
            missed = await self._turn(exchange)
            prepare = progress.before_sending
            if prepare is not None and not missed:
                missed = await self._prepare(exchange, prepare)
            if missed:
                return _expired("the pacer would have held it longer than the call may take", missed)
            progress.turn_at = sent_at = self.clock.now()
            outcome = await send(exchange)
        finally:
            self.slots.release()
        self._report(outcome, sent_at)
        return outcome

    async def _turn(self, exchange: Exchange) -> float:
        patience = exchange.progress.deadline_at - self.clock.now()
        if exchange.kind is Kind.READ:
            return await self.pacer.pass_gate(patience)
        return await self.pacer.acquire(exchange.lane, patience)

    async def _prepare(self, exchange: Exchange, prepare: Callable[[], Awaitable[None]]) -> float:
        granted_at = self.clock.now()
        try:
            await prepare()
        except StreamsError:
            exchange.progress.attempts -= 1  # this one is not made, and the next one is to be prepared as well
            raise
        exchange.progress.before_sending = None
        # A leave that was held for long would be used in a window of others.
        return await self._turn(exchange) if self.clock.now() - granted_at > _FRESH else 0.0

    def _report(self, outcome: Outcome, sent_at: float) -> None:
        if outcome.event is Event.THROTTLED:
            self.pacer.throttled(sent_at, outcome.retry_after)
        elif outcome.reply is not None:
            self.pacer.served(advertised_limit(outcome.reply.headers))


def _expired(why: str, retry_after: float | None) -> Outcome:
    return Outcome(event=Event.EXPIRED, phase=Phase.QUEUED, detail=why, retry_after=retry_after)
