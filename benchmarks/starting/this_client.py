"""This package's client: one at a time, many at once, many with a journal; nothing is switched off."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.starting.contest import PROJECT, STREAM_URL, TOKEN, Item, Run, Site, from_workers, measured
from signalwire_streams import BulkStatus, RateLimit, StartConferenceStream, StreamsClient

_NO_LIMIT = 1_000_000_000  # in ten seconds: the pacer is asked as ever, and never lets a start wait


def client_for(site: Site) -> StreamsClient:
    """Make the client."""
    limit = RateLimit(requests=_NO_LIMIT) if site.share is None else RateLimit(utilization=site.share)
    return StreamsClient(base_url=site.base_url, project=PROJECT, token=TOKEN, rate_limit=limit)


@measured
@asynccontextmanager
async def single(site: Site) -> AsyncIterator[Run]:
    """Start one at a time, from workers."""
    async with client_for(site) as client:

        async def start(sid: str, name: str) -> bool:
            stream = await client.conferences.start_stream(sid, url=STREAM_URL, name=name)
            return stream.sid is not None

        yield partial(from_workers, start)


async def _bulk(client: StreamsClient, site: Site, items: Sequence[Item], journal: Path | None) -> int:
    requests = (StartConferenceStream(conference_sid=sid, url=STREAM_URL, name=name) for sid, name in items)
    run = client.start_streams(requests, concurrency=site.concurrency, journal=journal)
    confirmed = 0
    async for outcome in run:
        stream = outcome.stream
        confirmed += outcome.status is BulkStatus.STARTED and stream is not None and stream.sid is not None
    return confirmed


@measured
@asynccontextmanager
async def bulk(site: Site) -> AsyncIterator[Run]:
    """Start many at once."""
    async with client_for(site) as client:

        async def run(items: Sequence[Item]) -> int:
            return await _bulk(client, site, items, None)

        yield run


@measured
@asynccontextmanager
async def journaled(site: Site) -> AsyncIterator[Run]:
    """Start many at once, and keep book."""
    runs = count()
    with TemporaryDirectory() as directory:
        async with client_for(site) as client:

            async def run(items: Sequence[Item]) -> int:
                return await _bulk(client, site, items, Path(directory) / f"{next(runs)}.db")

            yield run
