"""Twilio's asyncio client, whose streams of calls are of the same make."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.rest import Client

from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, Run, Site, from_workers, measured

_HOME = "https://api.twilio.com"


@measured
@asynccontextmanager
async def single(site: Site) -> AsyncIterator[Run]:
    """Start one at a time, from workers."""
    http = AsyncTwilioHttpClient()
    send = http.request

    async def send_here(method: str, url: str, **fields: Any) -> Any:  # noqa: ANN401  (Twilio's own)
        return await send(method, site.base_url + url.removeprefix(_HOME), **fields)

    http.request = send_here
    client = Client(PROJECT, TOKEN, http_client=http)
    try:

        async def start(sid: str, name: str) -> bool:
            stream = await client.calls(sid).streams.create_async(url=STREAM_URL, name=name)
            return stream.status == "in-progress" and bool(stream.sid)

        yield partial(from_workers, start)
    finally:
        await http.close()
