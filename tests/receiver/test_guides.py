"""The guide's code for a transcriber and for a voice agent, against a small stand-in of each."""

import asyncio
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Silence, SimulatedSpace, Stream, Tone, dial_media
from tests.guides.documents import run_code

pytestmark = pytest.mark.usefixtures("idle_clock")

PATIENCE = 0.2  # seconds without audio until a transcriber closes its socket

Serve = Callable[[web.WebSocketResponse], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[str]:
    """Serve a WebSocket on loopback; yield its address."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await serve(socket)
        return socket

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


class Call:
    """A conference's stream between a Space and a receiver."""

    def __init__(self, space: SimulatedSpace, session: StreamSession) -> None:
        self.space = space
        self.session = session
        session.playback.now = asyncio.get_running_loop().time

    @property
    def stream(self) -> Stream:
        return self.space.streams[-1]


@pytest.fixture
async def call(trust: ssl.SSLContext, client_for: Any, serve: Any, certificate: ssl.SSLContext) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def begin(handler: Callable[[Call], Awaitable[None]], audio: Any, **fields: Any) -> Call:
            receiver = MediaReceiver(bidirectional=True)
            url = await serve(receiver, ssl_context=certificate)
            space = SimulatedSpace(conferences=1, audio=audio, ssl_context=trust, realtime_bidirectional=True)
            await stack.enter_async_context(space)
            client = client_for(space)
            async with receiver.open(client.conferences, space.conference_sids[0], url=url, **fields) as session:
                there = Call(space, session)
                await handler(there)
            return there

        yield begin


class Transcriber:
    """Closes its socket if it gets no audio for a while."""

    def __init__(self) -> None:
        self.audio = bytearray()
        self.was_starved = False
        self.end = ""

    async def __call__(self, socket: web.WebSocketResponse) -> None:
        try:
            while (message := await socket.receive(PATIENCE)).type is aiohttp.WSMsgType.BINARY:
                self.audio += message.data
                if len(self.audio) == 32_000:
                    await socket.send_str("one second")
            self.end = message.data
        except TimeoutError:
            self.was_starved = True


@pytest.mark.parametrize("sound", [Silence(seconds=10), Tone(seconds=3)], ids=["silence", "a tone"])
async def test_transcriber_gets_all_audio_and_stays_open(
    call: Any, sound: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    transcriber = Transcriber()

    async def handle(there: Call) -> None:
        async with served(transcriber) as url:
            await run_code("agents-and-transcription/transcriber.py")["transcribe"](
                there.session.label, there.session.pcm(16_000), url
            )

    there = await call(handle, sound)
    assert (transcriber.was_starved, transcriber.end) == (False, '{"type": "CloseStream"}')
    assert len(transcriber.audio) / 32_000 == pytest.approx(sound.seconds, abs=0.05)
    assert capsys.readouterr().out == f"{there.session.label} one second\n"


async def run_agent(session: StreamSession, model: aiohttp.ClientWebSocketResponse) -> None:
    await run_code("agents-and-transcription/agent.py")["Agent"](session, model).run()


class Model:
    """Answers at once, with more audio than it takes to be interrupted."""

    def __init__(self, answers: dict[str, float], *, interrupted_after: float | None) -> None:
        self.answers = answers
        self.interrupted_after = interrupted_after
        self.audio = bytearray()
        self.truncated: dict[str, int] = {}

    async def __call__(self, socket: web.WebSocketResponse) -> None:
        for answer, seconds in self.answers.items():
            for number in range(round(seconds * 10)):
                await self.speak(socket, answer, bytes([0, number]) * 2400)
            await socket.send_json({"type": "response.output_audio.done", "item_id": answer})
        async for message in socket:
            event = message.json()
            if event["type"] == "conversation.item.truncate":
                self.truncated[event["item_id"]] = event["audio_end_ms"]
                continue
            assert event["type"] == "input_audio_buffer.append"
            self.audio += b64decode(event["audio"])
            if self.interrupted_after is not None and len(self.audio) / 48_000 >= self.interrupted_after:
                self.interrupted_after = None
                await socket.send_json({"type": "input_audio_buffer.speech_started"})
                for answer in self.answers:  # it was on its way
                    await self.speak(socket, answer, bytes(480))

    async def speak(self, socket: web.WebSocketResponse, answer: str, pcm: bytes) -> None:
        delta = {"item_id": answer, "delta": b64encode(pcm).decode()}
        await socket.send_json({"type": "response.output_audio.delta", **delta})


@pytest.mark.parametrize(
    ("answers", "after", "heard"),
    [
        ({"one": 2.0}, 0.7, {"one": 700}),
        ({"one": 0.5, "two": 2.0}, 0.3, {"one": 300, "two": 0}),
        ({"one": 0.5, "two": 2.0}, 1.0, {"two": 500}),
        ({"one": 0.5}, 1.0, {}),
    ],
)
async def test_interrupted_agent_tells_what_was_heard(
    call: Any, answers: dict[str, float], after: float, heard: dict[str, int]
) -> None:
    """Of the answer that was being played; of those behind it, nothing was."""
    model = Model(answers, interrupted_after=after)

    async def handle(there: Call) -> None:
        async with served(model) as url, aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
            agent = asyncio.create_task(run_agent(there.session, socket))
            await asyncio.sleep(after + 2)
            assert not agent.done()
            there.space.end_conference(there.stream.target_sid)
            await agent

    there = await call(handle, Tone(), realtime=True, codec="L16@16000h", track="inbound_track")
    assert model.truncated.keys() == heard.keys()
    for answer, milliseconds in heard.items():
        assert model.truncated[answer] == pytest.approx(milliseconds, abs=120)
    if heard:
        whole = 500 if "one" not in heard else 0
        played = len(there.stream.played_audio) / 32
        assert sum(model.truncated.values()) + whole == pytest.approx(played, abs=40)


async def test_agent_plays_the_whole_answer_until_the_caller_hangs_up(call: Any) -> None:
    model = Model({"item": 2.0}, interrupted_after=None)

    async def handle(there: Call) -> None:
        async with served(model) as url, aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
            agent = asyncio.create_task(run_agent(there.session, socket))
            await asyncio.sleep(3)
            there.space.end_conference(there.stream.target_sid)
            await agent

    there = await call(handle, Tone(), realtime=True, track="inbound_track")
    assert model.truncated == {}
    assert len(there.stream.played_audio) == pytest.approx(16_000, abs=160)
    assert len(model.audio) / 48_000 == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("answer", "interrupted_after", "options"),
    [
        (0.5, None, {"max_first_audio_ms": 200, "dialect": "twilio"}),
        (0.5, None, {"codec": "L16@16000h@40i"}),
        (5.0, 1.4, {"barge_in": True, "max_clear_ms": 500}),
    ],
)
async def test_agent_passes_the_test_by_dialling(
    serve: Any,
    certificate: ssl.SSLContext,
    trust: ssl.SSLContext,
    answer: float,
    interrupted_after: float | None,
    options: dict[str, Any],
) -> None:
    async def handle(session: StreamSession) -> None:
        session.playback.now = asyncio.get_running_loop().time
        model = Model({"item": answer}, interrupted_after=interrupted_after)
        async with served(model) as url, aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
            await run_agent(session, socket)

    receiver = MediaReceiver(handle, bearer_tokens="t0ken", bidirectional=True)
    url = await serve(receiver, ssl_context=certificate)
    report = await dial_media(
        url, authorization_bearer_token="t0ken", ssl_context=trust, require_mark=not interrupted_after, **options
    )
    assert report.broken_rules == ()
    assert set(report.payload_sizes) == {report.frame_size}
    assert report.close_code == 1000
