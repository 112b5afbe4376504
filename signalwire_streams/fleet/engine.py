"""The engine's worker and its end: in order where Redis answers, and all the same where it does not."""

import asyncio
from collections.abc import Coroutine

from attrs import define, field
from docket import Worker

_ENDS_WITHIN = 2.0  # seconds that it takes to give back what was cut, before it is cancelled


@define(eq=False)
class Engine:
    """A worker of docket's that runs.

    Cancelling it is no way to end it: where Redis fails it in its last steps it begins anew, and takes on work again.
    It is told to end as the end of its own context does that.

    Attributes:
        worker: docket's worker.
        running: its life; ends by itself only where something is wrong with it.
    """

    worker: Worker
    running: asyncio.Task[None] = field(init=False)
    _working: asyncio.Task[None] | None = field(init=False, default=None)
    _left: asyncio.Event = field(init=False, factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self.running = asyncio.create_task(self._run())

    def leave(self) -> None:
        """Take nothing new; it ends with what was taken."""
        self._left.set()

    async def end(self) -> None:
        """End, whether Redis answers or not and however often the caller is cancelled meanwhile.

        Raises:
            CancelledError: the caller was cancelled meanwhile.
        """
        self.leave()
        await _in_any_case(self._end())

    def tell_failure(self) -> None:
        """Raise what it failed with, if it did."""
        if not self.running.cancelled() and (error := self.running.exception()) is not None:
            raise error

    async def _run(self) -> None:
        async with self.worker:
            working = self._working = asyncio.create_task(self.worker.run_forever())
            leaving = asyncio.create_task(self._left.wait())
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
        if not working.cancelled():
            await working

    async def _end(self) -> None:
        while True:
            await asyncio.wait([self.running], timeout=_ENDS_WITHIN)
            if self.running.done():
                return
            # Each time it is cancelled it gives up one thing that it waits for.
            waits = self._working if self._working is not None and not self._working.done() else self.running
            waits.cancel()


async def _in_any_case(ending: Coroutine[object, object, None]) -> None:
    task, cancelled = asyncio.ensure_future(ending), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
