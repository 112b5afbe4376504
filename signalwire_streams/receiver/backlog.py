"""What waits between the socket and the handler: bounded; audio is dropped where it must be, keys and marks never."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeAlias

from attrs import define, field

from signalwire_streams.errors import ClientStateError
from signalwire_streams.receiver.events import AudioEvent, MediaEvent, UnknownEvent

Droppable: TypeAlias = MediaEvent | UnknownEvent
"""What is dropped when too much waits: audio is only worth something in time, and what is unknown nobody waits for."""


class Overflow(StrEnum):
    """What happens when a handler is too slow, and as much waits as may."""

    DROP_OLDEST = "drop the oldest audio"
    """The oldest audio is dropped and counted; what the handler gets next is newer."""
    CLOSE = "close the stream"
    """The session ends with `EndReason.OVERFLOW`; what waits is still given."""


@define(eq=False)
class Backlog:
    """What waits for the handler, in the order of its arrival.

    Attributes:
        most: how much audio may wait, and how many keys and marks, in events.
        is_awaited: whether somebody waits for the next event.
        pull: reads on until something may have come; None while somebody else reads.
    """

    most: int
    is_awaited: bool = field(init=False, default=False)
    pull: Callable[[], Awaitable[None]] | None = field(init=False, default=None)
    _droppable: deque[Droppable] = field(init=False, factory=deque, repr=False)
    # Each with how many droppable ones came before it.
    _kept: deque[tuple[int, AudioEvent]] = field(init=False, factory=deque, repr=False)
    _came: int = field(init=False, default=0)
    _went: int = field(init=False, default=0)
    _ended: bool = field(init=False, default=False)
    _waiter: asyncio.Future[None] | None = field(init=False, default=None)

    @property
    def is_full(self) -> bool:
        """Whether a further droppable event costs an older one."""
        return len(self._droppable) >= self.most

    def put(self, event: Droppable) -> Droppable | None:
        """Add an event; give the one that was dropped for it."""
        self._came += 1
        self._droppable.append(event)
        waiting = self._waiter is not None
        if waiting:
            self.wake()
        if len(self._droppable) <= self.most + waiting:
            return None
        self._went += 1
        return self._droppable.popleft()

    def keep(self, event: AudioEvent) -> bool:
        """Add an event that is never dropped; False, and nothing is added, when too many of these wait."""
        if len(self._kept) >= self.most:
            return False
        self._kept.append((self._came, event))
        self.wake()
        return True

    def end(self) -> None:
        """Let nothing more come."""
        self._ended = True
        self.wake()

    async def get(self) -> AudioEvent | None:
        """Give the next event, or None when the stream has ended and nothing waits.

        Raises:
            ClientStateError: somebody else waits for it already.
        """
        if self.is_awaited:
            raise ClientStateError("a stream can be gone through by one loop at a time")
        self.is_awaited = True
        try:
            while (event := self.next()) is None and not self._ended:
                await (self.pull or self._wait)()
        finally:
            self.is_awaited = False
        return event

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next(self) -> AudioEvent | None:
        """Give the next event if one waits, else None."""
        if self._kept and self._kept[0][0] <= self._went:
            return self._kept.popleft()[1]
        if not self._droppable:
            return None
        self._went += 1
        return self._droppable.popleft()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
