"""The loop that one would have written oneself, over httpx."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx

from benchmarks.starting.by_hand import conferences
from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, Run, Site, from_workers, measured


@measured
@asynccontextmanager
async def plain(site: Site) -> AsyncIterator[Run]:
    """Write it down as the documentation has it."""
    root = conferences(site)
    async with httpx.AsyncClient(auth=(PROJECT, TOKEN)) as client:

        async def start(sid: str, name: str) -> bool:
            response = await client.post(f"{root}/{sid}/Streams", data={"Url": STREAM_URL, "Name": name})
            response.raise_for_status()
            return bool(response.json()["sid"])

        yield partial(from_workers, start)
