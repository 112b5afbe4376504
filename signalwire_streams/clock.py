"""Injected time and randomness, for fast and deterministic tests, and the guard of an event loop."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self

from attrs import frozen

from signalwire_streams.errors import ClientStateError

__all__ = ["Clock"]


@frozen(kw_only=True)
class Clock:
    """The client's source of time and randomness.

    Attributes:
        now: returns the seconds of a clock that never goes back.
        sleep: waits for a number of seconds.
        random: returns a number from 0 to 1, for the jitter.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random

    @classmethod
    def fake(cls) -> Self:
        """Create a clock for tests on which waiting takes no time: `sleep` advances `now` and returns."""
        skipped = 0.0

        def now() -> float:
            return time.monotonic() + skipped

        async def sleep(seconds: float) -> None:
            nonlocal skipped
            skipped += seconds
            await asyncio.sleep(0)

        return cls(now=now, sleep=sleep)


class LoopGuard:
    """Binds an object to the event loop and the process in which it is first used."""

    def __init__(self, what: str, name: str) -> None:
        """Describe the object for messages: *what* it is, and the *name* of its class."""
        self._what, self._name = what, name
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def enter(self) -> None:
        """Check that the object can be used in this event loop and process.

        Raises:
            ClientStateError: it is closed, or belongs to another event loop or process.
        """
        if self._closed:
            raise ClientStateError(f"this {self._what} is closed: create a new {self._name}")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        elif self._process != os.getpid():
            raise ClientStateError(
                f"this {self._what} belongs to the process that forked this one: create a {self._name} in each"
            )
        elif self._loop is not loop:
            raise ClientStateError(
                f"this {self._what} belongs to another event loop: create one {self._name} inside each asyncio.run()"
            )

    def leave(self) -> bool:
        """Close the object. Return False if there is nothing (more) to close in this loop and process."""
        was_open, self._closed = not self._closed, True
        return was_open and self._loop is asyncio.get_running_loop() and self._process == os.getpid()
