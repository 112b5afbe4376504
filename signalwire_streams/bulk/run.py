"""A bulk run, as its owner holds it."""

import sys
import warnings
from collections.abc import AsyncGenerator
from typing import Generic, Protocol, TypeVar

from attrs import define, field

from signalwire_streams.bulk._runner import DRAIN, Engine
from signalwire_streams.bulk.outcomes import BulkOutcome
from signalwire_streams.bulk._results import BulkReport, Tally
from signalwire_streams.errors import ClientStateError
from signalwire_streams.clock import Clock

_Item = TypeVar("_Item")


class Keeper(Protocol):
    """Keeps a journal of the run."""

    async def begin(self) -> None:
        """Open the journal; the run begins."""
        ...

    async def end(self) -> None:
        """Write what waits and close the journal; the run has ended. Safe to repeat.

        Raises:
            StreamsError: something could not be recorded; the same each time.
        """
        ...


@define(eq=False)
class BulkRun(Generic[_Item]):
    """Many starts or stops: ``async for outcome in run``, then ``await run.report()``.

    Outcomes come as the items end, in no particular order, one for each item. Leaving the loop early ends the
    run: nothing more is taken in, what is under way gets five seconds to end, and the report tells the rest.
    """

    _engine: Engine[_Item]
    _clock: Clock
    _keeper: Keeper | None = None
    _tally: Tally = field(init=False, factory=Tally)
    _is_used: bool = field(init=False, default=False)
    _began_at: float | None = field(init=False, default=None)
    _seconds: float | None = field(init=False, default=None)

    async def __aiter__(self) -> AsyncGenerator[BulkOutcome[_Item], None]:
        self._is_used = True
        if self._began_at is not None:
            raise ClientStateError("a run can be gone through once: make a new one")
        if self._keeper is not None:
            await self._keeper.begin()
        self._began_at = self._clock.now()
        try:
            while (outcome := await self._engine.next()) is not None:
                self._tally.add(outcome)
                yield outcome
        finally:
            await self._end()

    def drain(self, seconds: float = DRAIN) -> None:
        """End the run early: take nothing more in, and cut what is under way after these seconds.

        The loop goes on until that is done, so that it sees every outcome; a signal's handler may call this. A
        second call shortens the first: ``drain(0)`` cuts at once.

        Args:
            seconds: for what is under way.
        """
        self._is_used = True
        _ = self._engine.drain(seconds)

    async def report(self) -> BulkReport:
        """Sum the run up. Carries it out first where nobody went through it; ends it where somebody left it."""
        if self._began_at is None:
            async for _ in self:
                pass
        await self._end()
        return self.so_far

    @property
    def so_far(self) -> BulkReport:
        """What the run came to until now, for a display; without waiting for anything."""
        seconds = self._seconds
        if seconds is None:
            seconds = 0.0 if self._began_at is None else self._clock.now() - self._began_at
        return self._tally.report(seconds)

    def __del__(self) -> None:
        # As Python does for a coroutine. Where __init__ failed there is no such attribute.
        if not getattr(self, "_is_used", True) and not sys.is_finalizing():
            warnings.warn(
                "a bulk run was never iterated, so nothing was sent: write 'async for outcome in run' or "
                "'await run.report()'",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )

    async def _end(self) -> None:
        try:
            async for outcome in self._engine.close():
                self._tally.add(outcome)
        finally:
            if self._seconds is None:
                self._seconds = self._clock.now() - (self._began_at or self._clock.now())
            if self._keeper is not None:
                await self._keeper.end()
