"""One start at a time, by this client and by hand in turns, in one process: what a single caller waits."""

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from benchmarks.child import Respond
from benchmarks.figures import percentile
from benchmarks.starting.by_hand import conferences
from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, Site
from benchmarks.starting.this_client import client_for


@asynccontextmanager
async def serve(settings: dict[str, Any]) -> AsyncIterator[Respond]:
    """Answer with the median and the 99th percentile of both, in microseconds."""
    site = Site(**settings)
    root, sid = conferences(site), "3f1c2a68-0000-4000-8000-000000000001"
    auth = aiohttp.BasicAuth(PROJECT, TOKEN)
    async with aiohttp.ClientSession() as session, client_for(site) as client:

        async def by_hand(name: str) -> None:
            form = {"Url": STREAM_URL, "Name": name}
            async with session.post(f"{root}/{sid}/Streams", data=form, auth=auth) as response:
                response.raise_for_status()
                assert (await response.json())["sid"]

        async def ours(name: str) -> None:
            stream = await client.conferences.start_stream(sid, url=STREAM_URL, name=name)
            assert stream.sid

        async def respond(command: dict[str, Any]) -> dict[str, Any]:
            gc.collect()
            hand_times: list[float] = []
            our_times: list[float] = []
            sides = [(by_hand, hand_times), (ours, our_times)]
            for number in range(command["pairs"]):
                for start, times in sides:
                    times.append(await _timed(start, f"{command['tag']}-{number}"))
                sides.reverse()  # neither always comes after the other
            return {"hand": _summary(hand_times), "ours": _summary(our_times)}

        yield respond


async def _timed(start: Callable[[str], Awaitable[None]], name: str) -> float:
    began = time.perf_counter()
    await start(name)
    return (time.perf_counter() - began) * 1e6


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": percentile(times, 0.5), "p99": percentile(times, 0.99)}
