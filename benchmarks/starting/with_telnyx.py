"""Telnyx's asyncio client, and the action of its API that is nearest to a start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from telnyx import AsyncTelnyx

from benchmarks.starting.contest import STREAM_URL, TOKEN, Run, Site, from_workers, measured


@measured
@asynccontextmanager
async def single(site: Site) -> AsyncIterator[Run]:
    """Start one at a time, from workers."""
    async with AsyncTelnyx(api_key=TOKEN, base_url=f"{site.base_url}/v2") as client:

        async def start(sid: str, name: str) -> bool:
            answer = await client.calls.actions.start_streaming(sid, stream_url=STREAM_URL, command_id=name)
            return answer.data is not None and answer.data.result == "ok"

        yield partial(from_workers, start)
