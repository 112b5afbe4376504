"""Callbacks of a simulated Space are accepted with its key only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver, StreamFailed, StreamStarted, StreamStopped
from signalwire_streams.simulator import SimulatedSpace, Tone

pytestmark = pytest.mark.usefixtures("idle_clock")


@asynccontextmanager
async def served(receiver: CallbackReceiver) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", "/callbacks", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks"
    finally:
        await receiver.aclose()
        await runner.cleanup()


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("query", ["", "?tenant=a%20b"])
async def test_start_and_stop_of_a_stream_are_delivered(client_for: Any, method: str, query: str) -> None:
    """By both methods, for conferences and calls, with and without a query in the callback URL."""
    events = asyncio.Queue[CallbackEvent]()

    async def heard(event: CallbackEvent) -> None:
        events.put_nowait(event)

    async with SimulatedSpace(conferences=1, calls=1, callbacks=True) as space:
        receiver = CallbackReceiver(heard, keys=[space.signing_key])
        async with served(receiver) as url:
            client = client_for(space)
            for streams, sid in (
                (client.conferences, space.conference_sids[0]),
                (client.calls, space.call_sids[0]),
            ):
                stream = await streams.start_stream(
                    sid, url="wss://a.example/b", status_callback=url + query, status_callback_method=method
                )
                started = await events.get()
                assert isinstance(started, StreamStarted)
                assert (started.stream_sid, started.stream_name) == (stream.sid, stream.name)
                assert sid in {started.conference_sid, started.call_sid}
                assert started.timestamp is not None
                await streams.stop_stream(sid, stream)
                assert isinstance(await events.get(), StreamStopped)
        assert (receiver.statistics.handled, receiver.statistics.rejected) == (4, 0)


async def test_callback_with_another_key_is_sent_and_rejected_three_times(client_for: Any) -> None:
    async def heard(event: CallbackEvent) -> None:
        raise AssertionError

    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0)

    async with SimulatedSpace(conferences=1, callbacks=True, sleep=at_once) as space:
        receiver = CallbackReceiver(heard, keys=["PSK_another"])
        async with served(receiver) as url:
            await client_for(space).conferences.start_stream(
                space.conference_sids[0], url="wss://a.example/b", status_callback=url
            )
            while receiver.statistics.rejected < 3:  # noqa: ASYNC110  (counters raise no event)
                await asyncio.sleep(0)
        assert receiver.statistics.handled == 0


async def test_unreachable_websocket_server_is_reported_as_failed(client_for: Any) -> None:
    events = asyncio.Queue[CallbackEvent]()

    async def heard(event: CallbackEvent) -> None:
        events.put_nowait(event)

    async with SimulatedSpace(conferences=1, audio=Tone(), callbacks=True) as space:
        async with served(CallbackReceiver(heard, keys=[space.signing_key])) as url:
            await client_for(space).conferences.start_stream(
                space.conference_sids[0], url="wss://127.0.0.1:9/nobody", status_callback=url
            )
            event = await events.get()
        assert isinstance(event, StreamFailed)
        assert event.error == "connection_refused"
        assert space.streams.active() == []
