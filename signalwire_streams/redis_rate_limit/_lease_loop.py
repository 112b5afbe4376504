"""The task that leases tokens and gives them to those who wait; it runs only while somebody does."""

import asyncio
from collections import deque

from attrs import define, field

from signalwire_streams.clock import Clock
from signalwire_streams.errors import ClientStateError
from signalwire_streams.middleware._queueing import PriorityQueue
from signalwire_streams.models import Priority
from signalwire_streams.redis_rate_limit._state import LEASE, Outage, View
from signalwire_streams.redis_rate_limit._store import Leased, RateLimiterError, RedisAwayError, Store

_LATEST, _SOONEST = 10, 50
"""Parts of a token's age to wait between two leases when tokens are short: others ask too, so nobody waits for long."""
_LONGEST_NAP = 0.5
_PROBE_EVERY = 0.25
_SLOW_LEASES = 5


@define(eq=False)
class Pump:
    """Leases tokens for this client.

    A lease is for requests that wait already, so tokens are used as they come. Those whose request went away meanwhile
    are kept for the next one, until they lapse.

    Attributes:
        queue: who waits.
    """

    _store: Store
    _view: View
    _outage: Outage
    _clock: Clock
    queue: PriorityQueue = field(factory=PriorityQueue, init=False)
    _spare: deque[float] = field(factory=deque, init=False)
    _task: asyncio.Task[None] | None = field(init=False, default=None)
    _probing: asyncio.Task[None] | None = field(init=False, default=None)
    _back: asyncio.Event = field(factory=asyncio.Event, init=False)
    _in_a_row: int = field(init=False, default=0)
    _left: int | None = field(init=False, default=None)
    _closed: bool = field(init=False, default=False)

    def wait(self, space: str, lane: Priority) -> "asyncio.Future[float]":
        """Make a turn at the end of a lane; its result says until when its token may be used."""
        turn = self.queue.add(lane)
        self.start(space)
        return turn

    def start(self, space: str) -> None:
        """Lease what is wanted and tell what is new, until there is nothing left to do."""
        # It is not the task that resets this: an eager one may end before it is assigned.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(space))

    def take_spare(self) -> bool:
        """Take a token that is there, if it still counts and nobody waits for it."""
        if self.queue or self._view.gate_wait(self._clock.now()):
            return False
        return self._spare_until() is not None and bool(self._spare.popleft())

    def give_back(self, usable_until: float) -> None:
        """Return a token whose request was not sent after all."""
        self._spare.append(usable_until)

    async def look(self, space: str) -> None:
        """Ask for the state alone.

        Raises:
            RateLimiterError: Redis refuses to be used.
        """
        try:
            self._hear(await self._store.look(space))
        except RedisAwayError as gone:
            self._lose(space, str(gone))

    async def aclose(self) -> None:
        """End the tasks, and the waiting of all who wait."""
        # Beside being cancelled they are told, since redis-py may take a cancellation for a connection that broke.
        self._closed = True
        for task in (self._task, self._probing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self.queue.refuse(ClientStateError("this pacer is closed: make a new RedisRateLimiter"))

    async def _run(self, space: str) -> None:
        try:
            while self._has_work:
                nap = await self._round(space)
                if nap:
                    await self._clock.sleep(nap)
        except Exception as error:  # noqa: BLE001  (whoever waits must hear of it, whatever it is)
            self.queue.refuse(error)

    @property
    def _has_work(self) -> bool:
        return not self._closed and bool(self.queue or (self._view.has_news and not self._outage.lasts))

    async def _round(self, space: str) -> float:
        """Do what can be done now; returns the seconds after which there may be more."""
        if self._outage.waits:
            await self._back.wait()
            return 0.0
        if self._outage.lasts:
            return self._serve_alone()
        try:
            if self._view.has_news:
                await self._tell(space)
            return await self._lease(space) if self.queue else 0.0
        except RedisAwayError as gone:
            self._lose(space, str(gone))
            return 0.0

    async def _tell(self, space: str) -> None:
        news = self._view.news
        asked_at = self._clock.now()
        told = await self._store.change(
            space, lambda state, redis_now: news.told_to(state, redis_now, asked_at, self._view.law)
        )
        if told.state is None:
            await self._store.found(space, self._view.law.rate, self._view.law.burst)
            return
        self._view.told(news)
        self._hear(told)

    def _hear(self, answer: Leased) -> None:
        if answer.state is not None:
            self._view.hear(answer.state, answer.redis_now, self._clock.now())

    async def _lease(self, space: str) -> float:
        self._hand_out()
        lane, waiting = self.queue.head()
        if not waiting:
            return 0.0
        asked_at = self._clock.now()
        gate = self._view.gate_wait(asked_at)
        if gate:
            return min(gate, _LONGEST_NAP)
        law = self._view.law
        burst = law.burst if lane is Priority.INTERACTIVE else law.bulk_burst
        left, self._left = self._left, None
        wanted, wait = self._outage.take_up_to(min(waiting, LEASE, burst, left or LEASE), asked_at)
        if not wanted:
            return max(wait, law.age / _SOONEST)
        answer = await self._store.lease(space, self._view.rate(asked_at), burst, wanted)
        self._hear(answer)
        if answer.state is None:
            await self._store.found(space, law.rate, law.burst)
            return 0.0
        nap = self._accept(space, answer, wanted, asked_at + law.age)
        return nap or (law.age / _LATEST if left else 0.0)

    def _accept(self, space: str, answer: Leased, wanted: int, usable_until: float) -> float:
        if self._clock.now() > usable_until:
            self._in_a_row += 1
            if self._in_a_row >= _SLOW_LEASES:
                self._lose(space, "its answers come too late")
            return 0.0
        self._in_a_row = 0
        self._outage.give_back(wanted - answer.tokens)
        self._spare.extend([usable_until] * answer.tokens)
        self._hand_out()
        if answer.left:
            self._left = answer.left
            return 0.0
        if answer.tokens:
            return 0.0
        age = self._view.law.age
        nap = max(min(answer.wait, age / _LATEST), answer.wait_for_one, age / _SOONEST)
        # Clients that ask in step would always find the same one first.
        return min(nap * (0.75 + self._clock.random() / 2), _LONGEST_NAP)

    def _hand_out(self) -> None:
        if self._view.gate_wait(self._clock.now()):
            return
        while self.queue and (until := self._spare_until()) is not None and self.queue.grant(until):
            self._spare.popleft()

    def _spare_until(self) -> float | None:
        now = self._clock.now()
        while self._spare and self._spare[0] < now:
            self._spare.popleft()
        return self._spare[0] if self._spare else None

    def _serve_alone(self) -> float:
        now = self._clock.now()
        wait = self._view.gate_wait(now)
        while not wait and self.queue:
            wait = self._outage.take(now)
            if not wait:
                self.queue.grant(now + self._view.law.age)
        return min(max(wait, self._view.law.age / _SOONEST), _LONGEST_NAP)

    def _lose(self, space: str, why: str) -> None:
        """Note that Redis is away, and ask now and then whether it is back."""
        self._in_a_row = 0
        self._outage.begin(why, self._view, self._clock.now())
        self._back.clear()
        if not (self._closed or (self._probing is not None and not self._probing.done())):
            self._probing = asyncio.create_task(self._probe(space))

    async def _probe(self, space: str) -> None:
        # With an eager task factory, another outage may begin within `start`.
        while self._outage.lasts and not self._closed:
            if await self._is_back(space) and not self._closed:
                self._outage.end(self._clock.now())
                self._back.set()
                self.start(space)
            else:
                await self._clock.sleep(_PROBE_EVERY)

    async def _is_back(self, space: str) -> bool:
        asked_at = self._clock.now()
        try:
            answer = await self._store.look(space)
        except RedisAwayError:
            return False
        except RateLimiterError:
            return True  # who asks next is told what is wrong
        if self._clock.now() - asked_at > self._view.law.age:
            return False
        self._hear(answer)
        return True
