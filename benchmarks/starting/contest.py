"""What every starter is given and asked, so that they differ in nothing but themselves."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

from attrs import frozen

from benchmarks.child import Respond, Serve
from benchmarks.measuring import cpu, peak_memory

STREAM_URL: Final = "wss://rx.example.com/audio"
WORKERS: Final = 16
PROJECT: Final = "3f1c2a68-0000-4000-8000-1f6f0d6a5b11"
TOKEN: Final = "PT0123456789abcdef0123456789abcdef0123456789abcdef"  # noqa: S105  (nobody checks it)

Item: TypeAlias = tuple[str, str]
"""A conference's or call's sid, and the name of the stream."""

Run: TypeAlias = Callable[[Sequence[Item]], Awaitable[int]]
"""Starts a stream for each item, and gives how many were confirmed: answered 200, with what the answer must have."""

_SIDS = tuple(f"3f1c2a68-0000-4000-8000-{number:012x}" for number in range(200))


@frozen(kw_only=True)
class Site:
    """Where to start streams, and how.

    Attributes:
        base_url: the server.
        concurrency: how many starts of a bulk run may be under way; None leaves it to the run.
        share: how much of the Space's limit is used; None takes the limit away.
    """

    base_url: str
    concurrency: int | None = None
    share: float | None = None


Starter: TypeAlias = Callable[[Site], AbstractAsyncContextManager[Run]]


def measured(starter: Starter) -> Serve:
    """Make a child's target of a starter."""

    @asynccontextmanager
    async def serve(settings: dict[str, Any]) -> AsyncIterator[Respond]:
        async with starter(Site(**settings)) as run:

            async def respond(command: dict[str, Any]) -> dict[str, Any]:
                items = [(_SIDS[n % len(_SIDS)], f"{command['tag']}-{n}") for n in range(command["starts"])]
                gc.collect()
                held, began, used = peak_memory(), time.perf_counter(), cpu()
                confirmed = await run(items)
                return {
                    "cpu": cpu() - used,
                    "seconds": time.perf_counter() - began,
                    "confirmed": confirmed,
                    "grown": peak_memory() - held,
                }

            yield respond

    return serve


async def from_workers(start: Callable[[str, str], Awaitable[bool]], items: Iterable[Item]) -> int:
    """Start from a few workers over one iterator, and give how many were confirmed."""
    left = iter(items)
    confirmed = 0

    async def work() -> None:
        nonlocal confirmed
        for sid, name in left:
            done = await start(sid, name)  # in a line of its own: the others count meanwhile
            confirmed += done

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return confirmed
