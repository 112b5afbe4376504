"""Who waits for a token: interactive requests before bulk ones, and each lane in the order in which they came."""

import asyncio
from copy import copy

from attrs import define, field

from signalwire_streams.models import Lane


@define(eq=False)
class Queue:
    """The requests that wait. A turn that is granted holds the time until which its token may be used."""

    _lanes: dict[Lane, dict[asyncio.Future[float], None]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._lanes = {lane: {} for lane in Lane}

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def ahead(self, lane: Lane) -> int:
        """Count who would be served before a newcomer of that lane."""
        return len(self._lanes[Lane.INTERACTIVE]) if lane is Lane.INTERACTIVE else len(self)

    def head(self) -> tuple[Lane, int]:
        """Give the lane that is served next, and how many wait there; 0 when nobody waits."""
        for lane, turns in self._lanes.items():
            if turns:
                return lane, len(turns)
        return Lane.BULK, 0

    def add(self, lane: Lane) -> asyncio.Future[float]:
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
