"""Runs docket's worker, and stops it even while Redis fails it."""

import asyncio
from collections.abc import Coroutine

from docket import Worker

_CANCEL_AFTER = 2.0  # seconds that docket's worker gets to return what was cancelled


class Supervisor:
    """Runs docket's worker.

    Cancelling that one does not stop it reliably: if Redis fails it in its last steps, it starts over and accepts work
    again. Leaving its context does stop it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._working: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self.task = asyncio.create_task(self._run())  # ends on its own only if docket's worker failed

    def leave(self) -> None:
        """Accept nothing new; the task ends when everything accepted is finished."""
        self._leaving.set()

    async def stop(self) -> None:
        """Stop, whether Redis answers or not, and however often the caller is cancelled meanwhile."""
        self.leave()
        await _uninterrupted(self._stop())

    def raise_failure(self) -> None:
        """Raise the error that docket's worker failed with, if it did."""
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        async with self._worker:
            working = self._working = asyncio.create_task(self._worker.run_forever())
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
        if not working.cancelled():
            await working

    async def _stop(self) -> None:
        while True:
            await asyncio.wait([self.task], timeout=_CANCEL_AFTER)
            if self.task.done():
                return
            # Each cancellation ends one thing that it waits for.
            waits = self._working if self._working is not None and not self._working.done() else self.task
            waits.cancel()


async def _uninterrupted(coroutine: Coroutine[object, object, None]) -> None:
    task, cancelled = asyncio.ensure_future(coroutine), None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
