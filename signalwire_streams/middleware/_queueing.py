"""Who waits for a token: interactive requests before bulk ones, and each lane in the order in which they came."""

import asyncio
import os
from copy import copy
from typing import TypeVar

from attrs import define, field

from signalwire_streams.errors import ClientStateError
from signalwire_streams.models import Priority

_Grant = TypeVar("_Grant")


@define(eq=False)
class PrioritySemaphore:
    """A semaphore with two lanes: whoever waits in the interactive one gets the next free slot.

    Attributes:
        free: how many slots nobody has.
    """

    free: int
    _waiting: dict[Priority, dict[asyncio.Future[None], None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._waiting = {lane: {} for lane in Priority}

    async def acquire(self, priority: Priority, timeout: float) -> bool:
        """Take a slot, waiting for one no longer than so many seconds; False when there was none."""
        if self.free > 0:
            self.free -= 1
            return True
        if timeout <= 0:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[priority][turn] = None
        try:
            async with asyncio.timeout(timeout):
                await turn
        except TimeoutError:
            return was_granted(turn)
        except asyncio.CancelledError:
            if was_granted(turn):
                self.release()
            raise
        finally:
            self._waiting[priority].pop(turn, None)
        return True

    def release(self) -> None:
        """Give a slot back, to whoever waits for one."""
        for waiting in self._waiting.values():
            while waiting:
                turn = next(iter(waiting))
                del waiting[turn]
                if not turn.done():  # its owner is on the way out
                    turn.set_result(None)
                    return
        self.free += 1


def was_granted(turn: asyncio.Future[_Grant]) -> bool:
    """Tell whether a turn was given, be its owner still there or not."""
    return turn.done() and not turn.cancelled()


@define(eq=False)
class PriorityQueue:
    """The requests that wait. A turn that is granted holds the time until which its token may be used."""

    _lanes: dict[Priority, dict[asyncio.Future[float], None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lanes = {lane: {} for lane in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def ahead(self, lane: Priority) -> int:
        """Count who would be served before a newcomer of that lane."""
        return len(self._lanes[Priority.INTERACTIVE]) if lane is Priority.INTERACTIVE else len(self)

    def head(self) -> tuple[Priority, int]:
        """Give the lane that is served next, and how many wait there; 0 when nobody waits."""
        for lane, turns in self._lanes.items():
            if turns:
                return lane, len(turns)
        return Priority.BULK, 0

    def add(self, lane: Priority) -> asyncio.Future[float]:
        """Make a turn at the end of a lane."""
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._lanes[lane][turn] = None
        return turn

    def remove(self, turn: asyncio.Future[float]) -> None:
        """Forget a turn whose owner is on the way out."""
        for turns in self._lanes.values():
            turns.pop(turn, None)

    def grant(self, usable_until: float) -> bool:
        """Give a token to who is next; False when nobody waits for it."""
        turn = self._next()
        if turn is None:
            return False
        turn.set_result(usable_until)
        return True

    def refuse(self, error: Exception) -> None:
        """End all waiting with an error."""
        while (turn := self._next()) is not None:
            turn.set_exception(copy(error))  # each raises its own, or their tracebacks would become one

    def _next(self) -> asyncio.Future[float] | None:
        for turns in self._lanes.values():
            while turns:
                turn = next(iter(turns))
                del turns[turn]
                if not turn.done():
                    return turn
        return None


@define(eq=False)
class LoopGuard:
    """The event loop and the process that a pacer was first used in."""

    _closed: bool = field(init=False, default=False)
    _loop: asyncio.AbstractEventLoop | None = field(init=False, default=None)
    _process: int = field(init=False, factory=os.getpid)

    def enter(self) -> None:
        """Check that the pacer can be used here and now.

        Raises:
            ClientStateError: it is closed, or belongs to another event loop or process.
        """
        if self._closed:
            raise ClientStateError("this pacer is closed: make a new RedisRateLimiter")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        elif self._process != os.getpid():
            raise ClientStateError(
                "this pacer belongs to the process that forked this one: make a RedisRateLimiter in each"
            )
        elif self._loop is not loop:
            raise ClientStateError(
                "this pacer belongs to another event loop: make one RedisRateLimiter inside each asyncio.run()"
            )

    def leave(self) -> bool:
        """Note that the pacer is closed; False when there is nothing to close (any more) in this loop and process."""
        was_open, self._closed = not self._closed, True
        return was_open and self._loop is asyncio.get_running_loop() and self._process == os.getpid()
