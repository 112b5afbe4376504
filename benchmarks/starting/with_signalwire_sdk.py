"""SignalWire's own SDK, the last version that starts streams (3.0.2), from threads since it is not asynchronous."""

import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from signalwire.rest.client import RestClient

from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, WORKERS, Item, Run, Site, measured

os.environ["SIGNALWIRE_LOG_MODE"] = "off"  # its log is not what is measured


@measured
@asynccontextmanager
async def threads(site: Site) -> AsyncIterator[Run]:
    """Start one at a time, from as many threads as the others have workers; each with a client of its own."""
    local = threading.local()

    def begin() -> None:
        local.client = RestClient(project=PROJECT, token=TOKEN, host="localhost")
        local.client._http._base_url = site.base_url  # noqa: SLF001  (it has no other way than https)

    def start(item: Item) -> bool:
        sid, name = item
        answer = local.client.compat.conferences.start_stream(sid, Url=STREAM_URL, Name=name)
        return bool(answer["sid"])

    with ThreadPoolExecutor(WORKERS, initializer=begin) as pool:

        async def run(items: Sequence[Item]) -> int:
            return sum(pool.map(start, items))

        yield run
