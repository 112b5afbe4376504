"""Time limits of many calls over one timer of the loop, since nearly all of them end long before it fires."""

import asyncio
from types import TracebackType
from typing import Self, cast

from attrs import field, frozen

from signalwire_streams.models._validation import validate_seconds

__all__ = ["Timeouts"]

_NEVER = float("inf")


@frozen(kw_only=True)
class Timeouts:
    """Seconds that one attempt may take.

    Attributes:
        connect: DNS, TCP and TLS together.
        read: between two pieces of a response.
        attempt: the whole attempt, once it has a connection slot and a rate-limit token.
    """

    connect: float = field(default=5.0, validator=validate_seconds)
    read: float = field(default=15.0, validator=validate_seconds)
    attempt: float = field(default=20.0, validator=validate_seconds)


class Deadline:
    """Cancels the block that runs within it when its time is up, and raises TimeoutError, as ``asyncio.timeout`` does.

    Made by `DeadlineTimer.within`: ``with timer.within(5.0) as deadline``.
    """

    def __init__(self, timer: "DeadlineTimer", ends_at: float) -> None:
        self.ends_at: float = ends_at  # on the loop's clock
        self.expired: bool = False
        self._timer = timer
        self._task: asyncio.Task[object]
        self._cancelling = 0

    def __enter__(self) -> Self:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())  # a coroutine runs in one
        self._cancelling = self._task.cancelling()
        self._timer.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.remove(self)
        if self.expired:
            # A cancellation by somebody else must still reach the task.
            own = self._task.uncancel() <= self._cancelling
            if own and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def end_at(self, moment: float) -> None:
        self.ends_at = moment
        self._timer.expect(moment)

    def expire(self) -> None:
        """End the block now."""
        if not self.expired:
            self.expired = True
            self._task.cancel()


class DeadlineTimer:
    """The active deadlines of one event loop."""

    def __init__(self) -> None:
        self._running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = _NEVER

    def within(self, seconds: float | None) -> Deadline:
        """Return a deadline this many seconds from now; with None, one that only `Deadline.expire` ends."""
        return Deadline(self, _NEVER if seconds is None else asyncio.get_running_loop().time() + seconds)

    def add(self, deadline: Deadline) -> None:
        self._running[deadline] = None
        if deadline.ends_at < self._fires_at:
            self.expect(deadline.ends_at)

    def remove(self, deadline: Deadline) -> None:
        # The timer stays armed: another deadline will soon need it.
        self._running.pop(deadline, None)

    def expect(self, moment: float) -> None:
        """Fire no later than *moment*."""
        if moment >= self._fires_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._fire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._fires_at = None, _NEVER

    def _fire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer, self._fires_at = None, _NEVER
        following = _NEVER
        for deadline in list(self._running):
            if deadline.ends_at <= now:
                deadline.expire()
            elif deadline.ends_at < following:
                following = deadline.ends_at
        if following < _NEVER:
            self.expect(following)
