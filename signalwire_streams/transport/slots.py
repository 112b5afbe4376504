"""Connection slots: how many exchanges may be under way at once, interactive ones first."""

import asyncio
from typing import TypeVar

from attrs import define, field

from signalwire_streams.models import Lane

_Grant = TypeVar("_Grant")


@define(eq=False)
class Slots:
    """A semaphore with two lanes: whoever waits in the interactive one gets the next free slot.

    Attributes:
        free: how many slots nobody has.
    """

    free: int
    _waiting: dict[Lane, dict[asyncio.Future[None], None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._waiting = {lane: {} for lane in Lane}

    async def acquire(self, lane: Lane, patience: float) -> bool:
        """Take a slot, waiting for one no longer than so many seconds; False when there was none."""
        if self.free > 0:
            self.free -= 1
            return True
        if patience <= 0:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane][turn] = None
        try:
            async with asyncio.timeout(patience):
                await turn
        except TimeoutError:
            return was_granted(turn)
        except asyncio.CancelledError:
            if was_granted(turn):
                self.release()
            raise
        finally:
            self._waiting[lane].pop(turn, None)
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
