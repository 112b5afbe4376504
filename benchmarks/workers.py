"""Workers of a fleet, and who submits a run to them. Each runs in its own child."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.figures import cpu
from benchmarks.processes import Respond
from benchmarks.starters import PROJECT, SIDS, STREAM_URL, TOKEN
from signalwire_streams import RateLimit, StartConferenceStream, StreamsClient
from signalwire_streams.fleet import Fleet, FleetWorker
from signalwire_streams.redis_rate_limit import RedisRateLimiter

_POLL = 0.5  # seconds; each is one round trip


@asynccontextmanager
async def work(settings: dict[str, Any]) -> AsyncIterator[Respond]:
    """Work for the Space at ``base_url``, and share its whole limit through ``redis``."""
    async with (
        RedisRateLimiter(settings["redis"], rate_limit=RateLimit(utilization=1.0)) as rate_limiter,
        StreamsClient(base_url=settings["base_url"], project=PROJECT, token=TOKEN, rate_limiter=rate_limiter) as client,
    ):
        worker = FleetWorker(settings["redis"], client)
        working = asyncio.create_task(worker.run())

        async def respond(_: dict[str, Any]) -> dict[str, Any]:
            return {"cpu": cpu(), "rate": rate_limiter.rate}

        yield respond
        worker.stop()
        await working


@asynccontextmanager
async def submit(settings: dict[str, Any]) -> AsyncIterator[Respond]:
    """Submit runs, and wait for the last one."""
    async with Fleet(settings["redis"], space=settings["base_url"], project=PROJECT) as fleet:
        run = ""

        async def respond(command: dict[str, Any]) -> dict[str, Any]:
            nonlocal run
            if "starts" in command:
                requests = (
                    StartConferenceStream(conference_sid=SIDS[n % len(SIDS)], url=STREAM_URL, name=f"stream-{n}")
                    for n in range(command["starts"])
                )
                run = await fleet.submit(requests)
                return {}
            async with asyncio.timeout(command["timeout"]):
                while not (status := await fleet.status(run)).is_finished:  # noqa: ASYNC110  (others finish it)
                    await asyncio.sleep(_POLL)
            return {"confirmed": status.counts.get("started", 0)}

        yield respond
