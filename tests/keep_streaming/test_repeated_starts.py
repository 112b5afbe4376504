"""A gateway before the Space that sends a start twice: one start makes two streams, or one and a refusal."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.keep_streaming import KeepStatus, StreamingInDoubt, StreamingLost
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, NoFrames, SimulatedSpace
from tests.keep_streaming.test_keeper import certificates, journal, keeping, told

__all__ = ["certificates", "journal"]


@asynccontextmanager
async def repeating(space: SimulatedSpace, pause: float) -> AsyncIterator[str]:
    """Send the first start of each target a second time, after a pause, and return the second response."""
    started = set[str]()

    async def forward(request: web.Request) -> web.Response:
        content, url = await request.read(), f"{space.base_url}{request.path_qs}"
        headers = {"Authorization": request.headers["Authorization"], "Content-Type": request.content_type}
        is_first = request.path.endswith("/Streams") and request.path not in started
        started.add(request.path)
        async with aiohttp.ClientSession(headers=headers) as session:
            if is_first:
                await session.post(url, data=content)
                await asyncio.sleep(pause)
            async with session.request(request.method, url, data=content) as response:
                return web.Response(body=await response.read(), status=response.status, content_type="application/json")

    runner = web.ServerRunner(web.Server(forward))  # type: ignore[arg-type]
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("pause", [0.0, 5.0], ids=["before its socket is open", "after its socket is open"])
@pytest.mark.parametrize("kind", ["conference", "call"])
@pytest.mark.parametrize("duplicate_names", ["stream-error", "http-error", "allow"])
async def test_each_target_has_one_stream_and_the_keeper_knows_it(
    idle_clock: Clock, journal: Path, certificates: Certificates, kind: str, duplicate_names: Any, pause: float
) -> None:
    sessions: list[StreamSession] = []

    async def handle(session: StreamSession) -> None:
        sessions.append(session)
        await session.wait_closed()

    kinds: dict[str, Any] = {"conferences": kind == "conference", "calls": kind == "call"}
    receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
    async with (
        SimulatedSpace(
            **{name: 2 * wanted for name, wanted in kinds.items()},
            participants=0,
            audio=NoFrames(),
            callbacks=True,
            duplicate_names=duplicate_names,
            ssl_context=certificates.trust,
        ) as space,
        repeating(space, pause) as gateway,
        receiver.serve(ssl_context=certificates.server) as url,
        StreamsClient(base_url=gateway, project=space.project, token=space.token, clock=idle_clock) as client,
        told(space, []) as (status_callback, keepers),
    ):
        template = {"url": url, "status_callback": status_callback}
        async with keeping(client, journal, template, receivers=[receiver], on_exit="stop", **kinds) as events:
            keepers.append(events.keeper)
            await asyncio.sleep(80.0)
            alive = space.streams.active()
            assert len({stream.target_sid for stream in alive}) == len(alive) == 2
            assert {stream.sid for stream in alive} == {each.stream_sid for each in sessions if not each.end_reason}
            assert {each.status for each in events.keeper.snapshot} == {KeepStatus.STREAMING}
            if pause:
                assert events.count(StreamingLost) == events.count(StreamingInDoubt) == 0
        assert space.streams.active() == []
