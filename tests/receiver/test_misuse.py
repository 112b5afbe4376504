"""What a user does wrong with a receiver ends in one sentence that says what to write instead."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams import ClientStateError, InvalidRequestError, StreamsClient
from signalwire_streams.receiver import MediaReceiver, StreamSession, decode_event
from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.simulator import SimulatedSpace

from .conftest import Heard
from .test_receiver import begin

TWO_LOOPS = "this receiver belongs to another event loop: create one MediaReceiver inside each asyncio.run()"


async def start_one(receiver: MediaReceiver) -> int:
    """Start a stream on a receiver in an application; return the status of the upgrade."""
    application = web.Application()
    application.router.add_get("/audio", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            peer = await session.ws_connect(f"ws://127.0.0.1:{runner.addresses[0][1]}/audio")
            await begin(peer)
            await peer.close()
            return peer._response.status
    except aiohttp.WSServerHandshakeError as error:
        return error.status
    finally:
        await runner.cleanup()


def test_receiver_in_another_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: StreamSession) -> None:
        async for _ in session:
            pass

    async def serve() -> None:
        async with receiver.serve():
            pass

    receiver = MediaReceiver(handler, bearer_tokens=None)
    assert asyncio.run(start_one(receiver)) == 101
    assert asyncio.run(start_one(receiver)) == 500
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == TWO_LOOPS
    with pytest.raises(ClientStateError, match=r"another event loop"):
        asyncio.run(serve())


@pytest.mark.parametrize("answer", ["yes", 1, None])
@pytest.mark.usefixtures("idle_clock")
async def test_token_check_that_returns_no_bool_is_logged(
    heard: Heard, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    async def check(token: str) -> Any:
        return answer

    url = await serve(MediaReceiver(heard, bearer_tokens=check))
    for _ in range(2):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await dial(url, "secret")
    kind = type(answer).__name__
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"the token check returned a {kind}, which admits nobody: return True or False"
    ]


def not_async(session: StreamSession) -> None:
    pass


async def generator(session: StreamSession) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "kind"), [(not_async, "a NoneType"), (generator, "an async_generator")], ids=["def", "yield"]
)
@pytest.mark.usefixtures("idle_clock")
async def test_handler_that_is_not_async(
    serve: Any, dial: Any, caplog: pytest.LogCaptureFixture, handler: Callable[[StreamSession], Any], kind: str
) -> None:
    peer = await dial(await serve(MediaReceiver(handler, bearer_tokens=None)))
    await begin(peer)
    assert (await peer.receive()).data == 1011
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == (
        f"the handler returned {kind}, which can't be awaited: write async def handler(session)"
    )


@pytest.mark.parametrize(
    ("use", "match"),
    [
        (
            lambda receiver, client: receiver.open(client, "CF1", url="wss://x/"),
            "a StreamsClient can't start a stream: pass client.conf",
        ),
        (
            lambda receiver, client: receiver.open(client.calls, "CA1", url="wss://x/", socket_timeout="15"),
            "socket_timeout must be a number of seconds",
        ),
        (
            lambda receiver, client: receiver.open_many(client.calls, []),
            "a Calls can't start many streams: pass the client",
        ),
        (
            lambda receiver, client: receiver.open_many(client, [], socket_timeout=None),
            "socket_timeout must be a number of seconds",
        ),
    ],
    ids=["client", "timeout", "calls", "timeout of many"],
)
async def test_open_with_wrong_arguments_sends_nothing(
    space: SimulatedSpace, client: StreamsClient, use: Callable[[MediaReceiver, StreamsClient], Any], match: str
) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        async with use(MediaReceiver(), client):
            pass
    assert not space.requests


@pytest.mark.parametrize("frame", [{"event": "start", "secret": "hush"}, None, 5, memoryview(b"{}")])
def test_frame_that_is_no_text(frame: Any) -> None:
    kind = type(frame).__name__
    with pytest.raises(InvalidRequestError, match=f"text of a WebSocket message, not {kind}: pass what") as caught:
        decode_event(frame)
    shown = [entry.frame.f_locals.get("frame") for entry in caught.traceback if entry.name == "decode_event"]
    assert shown == [""]


@pytest.mark.parametrize("encoding", ["audio/x-mulaw", "audio/x-L16"])
def test_text_is_no_audio(encoding: str) -> None:
    audio_format, text = AudioFormat(encoding), "AAAA"
    convert: list[Callable[[Any], Any]] = [audio_format.to_pcm, audio_format.from_pcm, audio_format.trim]
    for one in convert:
        with pytest.raises(InvalidRequestError, match="audio must be bytes, not str: decode base64 first"):
            one(text)
