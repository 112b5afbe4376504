"""Waiting by priority: interactive requests before bulk ones, each priority in its order of arrival."""

import asyncio
from collections.abc import Callable
from copy import copy

from signalwire_streams.models import Priority


class PriorityQueue:
    """Requests that wait for a grant. A grant is the time until which it may be used."""

    def __init__(self) -> None:
        self._waiting: dict[Priority, dict[asyncio.Future[float], None]] = {priority: {} for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def ahead(self, priority: Priority) -> int:
        """Return how many would be served before a new one of that priority."""
        return len(self._waiting[Priority.INTERACTIVE]) if priority is Priority.INTERACTIVE else len(self)

    def head(self) -> tuple[Priority, int]:
        """Return the priority that is served next and how many of it wait; 0 if none does."""
        for priority, turns in self._waiting.items():
            if turns:
                return priority, len(turns)
        return Priority.BULK, 0

    def add(self, priority: Priority) -> asyncio.Future[float]:
        """Append a turn, for `wait`."""
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[priority][turn] = None
        return turn

    def remove(self, turn: asyncio.Future[float]) -> None:
        """Remove a turn whose waiter has gone."""
        for turns in self._waiting.values():
            turns.pop(turn, None)

    async def wait(
        self,
        turn: asyncio.Future[float],
        timeout: float,  # noqa: ASYNC109  (it may be 0)
        give_back: Callable[[float], object],
    ) -> float | None:
        """Wait for a turn and return its grant, or None on timeout.

        If cancelled at the moment of its grant, the grant is passed to *give_back*.
        """
        try:
            async with asyncio.timeout(timeout):
                return await turn
        except TimeoutError:
            return turn.result() if was_granted(turn) else None
        except asyncio.CancelledError:
            if was_granted(turn) and turn.exception() is None:
                give_back(turn.result())
            raise
        finally:
            self.remove(turn)

    def grant(self, usable_until: float = float("inf")) -> bool:
        """Grant the next turn. Return False if none waits."""
        turn = self._next()
        if turn is None:
            return False
        turn.set_result(usable_until)
        return True

    def refuse(self, error: Exception) -> None:
        """End all waits with an error."""
        while (turn := self._next()) is not None:
            turn.set_exception(copy(error))  # each raises its own, or their tracebacks would become one

    def _next(self) -> asyncio.Future[float] | None:
        for turns in self._waiting.values():
            while turns:
                turn = next(iter(turns))
                del turns[turn]
                if not turn.done():  # otherwise its wait was cancelled and has not ended yet
                    return turn
        return None


def was_granted(turn: asyncio.Future[float]) -> bool:
    return turn.done() and not turn.cancelled()


class PrioritySemaphore:
    """A semaphore whose free slots go to interactive requests first."""

    def __init__(self, free: int) -> None:
        self.free = free
        self._queue = PriorityQueue()

    async def acquire(self, priority: Priority, timeout: float) -> bool:  # noqa: ASYNC109  (it may be 0)
        """Acquire a slot within *timeout* seconds. Return False on timeout."""
        if self.free > 0:
            self.free -= 1
            return True
        if timeout <= 0:
            return False
        granted = await self._queue.wait(self._queue.add(priority), timeout, lambda _: self.release())
        return granted is not None

    def release(self) -> None:
        if not self._queue.grant():
            self.free += 1
