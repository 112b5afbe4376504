"""Time and chance, injected, so that a test need neither wait nor be lucky."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Self

from attrs import frozen


@frozen(kw_only=True)
class Clock:
    """Where the client takes time and chance from.

    Attributes:
        now: seconds on a clock that never goes back.
        sleep: waits so many seconds.
        random: gives numbers from 0 to 1, for the jitter.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random.random

    @classmethod
    def fake(cls) -> Self:
        """Make a clock for tests, on which waiting takes no time: `sleep` moves `now` on and returns."""
        skipped = 0.0

        def now() -> float:
            return time.monotonic() + skipped

        async def sleep(seconds: float) -> None:
            nonlocal skipped
            skipped += seconds
            await asyncio.sleep(0)

        return cls(now=now, sleep=sleep)
