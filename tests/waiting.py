"""Waiting for what sets no event."""

import asyncio
import inspect
from collections.abc import Callable


async def until(condition: Callable[[], object], *, timeout: float = 30.0, interval: float = 0.01) -> None:  # noqa: ASYNC109
    """Wait until a condition holds; it may be an async function.

    Args:
        condition: what has to become true.
        timeout: seconds until the test fails.
        interval: seconds between two checks, in which other processes have the processor, and an idle clock leaps; with
            0, each turn of the event loop is checked.
    """
    async with asyncio.timeout(timeout):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(interval)
