"""Injected time and randomness, for fast and deterministic tests."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self

from attrs import frozen

__all__ = ["Clock"]


@frozen(kw_only=True)
class Clock:
    """The client's source of time and randomness.

    Attributes:
        now: returns the seconds of a clock that never goes back.
        sleep: waits for a number of seconds.
        random: returns a number from 0 to 1, for the jitter.
        wall_time: returns the seconds since 1970, which other machines share.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random
    wall_time: Callable[[], float] = time.time

    @classmethod
    def fake(cls) -> Self:
        """Create a clock for tests on which waiting takes no time: `sleep` advances `now` and `wall_time`.

        Each such clock returns the same random numbers.
        """
        skipped = 0.0

        def now() -> float:
            return time.monotonic() + skipped

        def wall_time() -> float:
            return time.time() + skipped

        async def sleep(seconds: float) -> None:
            nonlocal skipped
            skipped += seconds
            await asyncio.sleep(0)

        return cls(now=now, sleep=sleep, wall_time=wall_time, random=random.Random(0).random)  # noqa: S311  (jitter)
