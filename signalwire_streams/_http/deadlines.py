"""Time limits of many calls over one timer of the loop, since nearly all of them end long before it rings."""

import asyncio
from types import TracebackType
from typing import Self, cast

from attrs import define, field, frozen

from signalwire_streams.models._validation import validate_seconds

__all__ = ["Timeouts"]

_NEVER = float("inf")


@frozen(kw_only=True)
class Timeouts:
    """Seconds that one attempt may take.

    Attributes:
        connect: DNS, TCP and TLS together.
        read: between two pieces of an answer.
        attempt: the whole attempt, once it has a connection slot and the pacer's leave.
    """

    connect: float = field(default=5.0, validator=validate_seconds)
    read: float = field(default=15.0, validator=validate_seconds)
    attempt: float = field(default=20.0, validator=validate_seconds)


@define(eq=False)
class Deadline:
    """Ends the block that runs within it when its time is up: ``with limits.within(5.0) as limit``.

    It raises TimeoutError then, as ``asyncio.timeout`` does.

    Attributes:
        ends_at: when, on the loop's clock.
    """

    _timer: "DeadlineTimer"
    ends_at: float
    _task: "asyncio.Task[object]" = field(init=False)
    _cancelling: int = field(init=False)
    _expired: bool = field(init=False, default=False)

    def __enter__(self) -> Self:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())  # a coroutine runs in one
        self._cancelling = self._task.cancelling()
        self._timer.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.remove(self)
        if self._expired:
            # Whoever else cancelled this task is not to be disappointed.
            own = self._task.uncancel() <= self._cancelling
            if own and kind is asyncio.CancelledError:
                raise TimeoutError from error

    @property
    def expired(self) -> bool:
        """Whether the time was up before the block ended."""
        return self._expired

    def end_at(self, moment: float) -> None:
        """End at another time."""
        self.ends_at = moment
        self._timer.expect(moment)

    def expire(self) -> None:
        """End the block now."""
        if not self._expired:
            self._expired = True
            self._task.cancel()


@define(eq=False)
class DeadlineTimer:
    """The time limits that run now, in one event loop."""

    _running: dict[Deadline, None] = field(init=False, factory=dict)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _rings_at: float = field(init=False, default=_NEVER)

    def within(self, seconds: float | None) -> Deadline:
        """Give a limit of so many seconds from now; of None, one that ends only when told to."""
        return Deadline(self, _NEVER if seconds is None else asyncio.get_running_loop().time() + seconds)

    def add(self, limit: Deadline) -> None:
        """Watch a limit."""
        self._running[limit] = None
        if limit.ends_at < self._rings_at:
            self.expect(limit.ends_at)

    def remove(self, limit: Deadline) -> None:
        """Watch a limit no longer. The timer is left as it is: another limit will soon need it."""
        self._running.pop(limit, None)

    def expect(self, moment: float) -> None:
        """Ring no later than then."""
        if moment >= self._rings_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._ring)

    def close(self) -> None:
        """Take the timer back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._rings_at = None, _NEVER

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer, self._rings_at = None, _NEVER
        following = _NEVER
        for limit in list(self._running):
            if limit.ends_at <= now:
                limit.expire()
            elif limit.ends_at < following:
                following = limit.ends_at
        if following < _NEVER:
            self.expect(following)
