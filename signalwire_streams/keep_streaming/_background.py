"""Background tasks of a keeper or a session, whose first failure reaches its reader, and a timer that can be reset."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec

from signalwire_streams.keep_streaming._records import LeaseLostError

_Arguments = ParamSpec("_Arguments")


class BackgroundTasks:
    """Tasks that end on their own.

    Attributes:
        failure: the first exception of one of them, of a journal, a template or a client, or a bug.
    """

    failure: Exception | None = None

    def __init__(self, on_failure: Callable[[Exception], object]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Callable[_Arguments, Coroutine[Any, Any, None]], *arguments: _Arguments.args, **_: _Arguments.kwargs
    ) -> "asyncio.Task[None]":
        task = asyncio.create_task(self.guard(partial(work, *arguments)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except LeaseLostError:
            pass  # the keeper that has the lease does the work
        except Exception as error:  # noqa: BLE001  (whatever it is, the reader gets it)
            if self.failure is None:
                self.failure = error
                self._on_failure(error)

    async def finish(self) -> None:
        """Wait for the requests under way, and for what follows from them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class Alarm:
    """A time at which something is decided again; each call replaces the last one."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def set(self, delay: float, action: Callable[[], object]) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay, action)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
