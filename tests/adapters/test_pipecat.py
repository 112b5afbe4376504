"""The serializer in a pipeline of pipecat behind FastAPI, with a Space that dials in."""

import asyncio
import json
import warnings
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, TypeAlias

import aiohttp
import pytest

from signalwire_streams import InvalidRequestError
from signalwire_streams.receiver import StartEvent, decode_event
from signalwire_streams.receiver.audio import UnknownEncodingError
from signalwire_streams.simulator import Certificates, Silence, SimulatedSpace, Sound, Stream, Tone
from tests.conftest import ClientFactory
from tests.guides.documents import run_code
from tests.uvicorn_server import running
from tests.waiting import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("pipecat", reason="pipecat is not installed: `nox --session adapters` runs these tests")
    from fastapi import FastAPI, WebSocket
    from loguru import logger
    from pipecat.audio.dtmf.types import KeypadEntry
    from pipecat.frames import frames
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
    from pipecat.workers.runner import WorkerRunner

    from signalwire_streams.adapters.pipecat import SignalWireFrameSerializer

pytestmark = pytest.mark.filterwarnings("ignore")

TONE = 440
START = json.dumps(
    {
        "event": "start",
        "start": {"streamSid": "s", "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}},
    }
)
MEDIA = json.dumps({"event": "media", "media": {"track": "inbound", "payload": "/////w=="}})


class Bot(FrameProcessor):  # type: ignore[misc]
    """Stands between both ends of the transport, and remembers what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[frames.Frame] = []

    async def process_frame(self, frame: frames.Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        if not isinstance(frame, frames.InputAudioRawFrame):
            await self.push_frame(frame, direction)

    def of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def heard(self) -> bytes:
        return b"".join(frame.audio for frame in self.of(frames.InputAudioRawFrame))

    async def say(self, seconds: float, rate: int) -> None:
        await self.push_frame(frames.TTSStartedFrame())
        for _ in range(round(seconds * 10)):
            await self.push_frame(frames.TTSAudioRawFrame(b"\x00\x10" * (rate // 10), rate, 1))
        await self.push_frame(frames.TTSStoppedFrame())


class Service:
    """An agent behind a WebSocket, as a user of pipecat writes it, and the Space that dials it."""

    def __init__(self, rate: int = 16_000, *, expects: int = 0, **options: Any) -> None:
        self.rate = rate
        self.expects = expects  # bytes that the bot hears before a disconnection cancels it
        self.options = options
        self.bot = Bot()
        self.serializer: Any = None
        self.worker: Any = None
        self.heard_ms: list[int] = []
        self.ended = asyncio.Event()
        self.application = FastAPI()
        self.application.add_api_websocket_route("/audio", self.serve)
        self.url = ""
        self.space: Any = None
        self.client: Any = None

    async def serve(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.serializer = serializer = SignalWireFrameSerializer(**self.options)
        params = FastAPIWebsocketParams(
            audio_in_enabled=True, audio_out_enabled=True, audio_out_end_silence_secs=0, serializer=serializer
        )
        transport = FastAPIWebsocketTransport(websocket, params)
        self.worker = worker = PipelineWorker(
            Pipeline([transport.input(), self.bot, transport.output()]),
            params=PipelineParams(audio_in_sample_rate=self.rate, audio_out_sample_rate=self.rate),
            enable_rtvi=False,
        )

        @serializer.event_handler("on_interrupted")  # type: ignore[untyped-decorator]
        async def on_interrupted(_: SignalWireFrameSerializer, heard_ms: int) -> None:
            self.heard_ms.append(heard_ms)

        @transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def on_client_disconnected(*_: object) -> None:
            await until(lambda: len(self.bot.heard) >= self.expects)
            await worker.cancel()

        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
        self.ended.set()

    @property
    def stream(self) -> Stream:
        stream: Stream = self.space.streams[-1]
        return stream

    @property
    def is_connected(self) -> bool:
        return self.serializer is not None and self.serializer.start is not None

    async def start_stream(self, *, on_call: bool = False, **fields: Any) -> str:
        """Start the only stream, and return the sid of its conference or call."""
        resource: Any = self.client.calls if on_call else self.client.conferences
        [sid] = self.space.call_sids if on_call else self.space.conference_sids
        await resource.start_stream(sid, url=self.url, **({"track": "inbound_track"} | fields))
        await until(lambda: self.is_connected)
        return str(sid)

    async def end(self) -> None:
        async with asyncio.timeout(20):
            await self.ended.wait()


Serve: TypeAlias = Callable[..., Awaitable[Service]]


@pytest.fixture
async def serve(certificates: Certificates, client_for: ClientFactory) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def begin(service: Service, *, audio: Sound | None = None, real_time: bool = True) -> Service:
            server = await stack.enter_async_context(
                running(service.application, "websockets-sansio", certificates.server)
            )
            service.url = f"wss://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/audio"
            service.space = await stack.enter_async_context(
                SimulatedSpace(
                    conferences=1,
                    calls=1,
                    audio=audio or Silence(),
                    real_time=real_time,
                    ssl_context=certificates.trust,
                    bidirectional=True,
                )
            )
            service.client = client_for(service.space)
            return service

        yield begin


@pytest.fixture
def logged() -> Any:
    """What pipecat logs as an error."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="ERROR")
    yield lines
    logger.remove(sink)


def frequency(pcm: bytes, rate: int) -> float:
    """Return the frequency of a tone: half of its changes of sign."""
    samples = array("h", pcm)
    return sum((one < 0) != (other < 0) for one, other in pairwise(samples)) / 2 / (len(samples) / rate)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
@pytest.mark.parametrize("codec", ["L16@16000h", "L16@24000h", "PCMU", "PCMA@40i"])
async def test_one_second_is_one_second_and_sounds_as_it_did(serve: Serve, codec: str, rate: int) -> None:
    """At the rate of the pipeline, whatever that of the stream is."""
    service = await serve(Service(rate, expects=2 * rate), audio=Tone(seconds=1.0), real_time=False)
    await service.start_stream(codec=codec)
    await service.end()
    heard = service.bot.of(frames.InputAudioRawFrame)
    assert {(frame.sample_rate, frame.num_channels) for frame in heard} == {(rate, 1)}
    assert len(service.bot.heard) == 2 * rate
    assert frequency(service.bot.heard, rate) == pytest.approx(TONE, rel=0.02)


@pytest.mark.parametrize("track", ["inbound", "outbound"])
async def test_one_of_both_tracks_is_heard(serve: Serve, track: str) -> None:
    service = await serve(Service(8000, expects=16_000, track=track), audio=Tone(seconds=1.0), real_time=False)
    await service.start_stream(track="both_tracks")
    await service.end()
    assert len(service.bot.heard) == 16_000


@pytest.mark.parametrize("codec", ["PCMU", "L16@16000h"])
@pytest.mark.parametrize("rate", [8000, 16_000])
async def test_interruption_clears_and_tells_what_was_heard(serve: Serve, codec: str, rate: int) -> None:
    """The Space has played what was reported, though pipecat sends twice as fast as it plays."""
    service = await serve(Service(rate))
    await service.start_stream(codec=codec)
    await service.bot.say(4.0, rate)
    await asyncio.sleep(1.5)
    await service.bot.push_frame(frames.InterruptionFrame())
    await until(lambda: service.heard_ms)
    await asyncio.sleep(0.3)
    [heard_ms] = service.heard_ms
    per_second = 32_000 if codec == "L16@16000h" else 8000
    played_ms = len(service.stream.played_audio) * 1000 / per_second
    assert 1000 < heard_ms < 1700
    assert heard_ms == pytest.approx(played_ms, abs=80)
    await service.bot.say(0.4, rate)
    await asyncio.sleep(0.6)
    await service.bot.push_frame(frames.InterruptionFrame())
    await until(lambda: len(service.heard_ms) == 2)
    assert service.heard_ms[1] == pytest.approx(400, abs=60)  # pipecat may send 40 ms after the interruption
    await until(lambda: len(service.stream.played_audio) * 1000 / per_second >= played_ms + 380)
    assert service.stream.ignored_messages == 0


async def test_keys_are_frames_of_the_keypad(serve: Serve) -> None:
    """Pipecat has none for A to D, which arrive as messages."""
    service = await serve(Service())
    sid = await service.start_stream(on_call=True)
    await service.space.send_dtmf(sid, "5#*A")
    await until(lambda: service.bot.of(frames.InputTransportMessageFrame))
    keys = [frame.button for frame in service.bot.of(frames.InputDTMFFrame)]
    assert keys == [KeypadEntry.FIVE, KeypadEntry.POUND, KeypadEntry.STAR]
    assert service.bot.of(frames.InputTransportMessageFrame)[0].message["dtmf"] == {"digit": "A", "duration": 100}


async def test_marks_are_sent_and_return_as_messages(serve: Serve) -> None:
    service = await serve(Service())
    await service.start_stream()
    mark = {"event": "mark", "mark": {"name": "here"}}
    await service.bot.push_frame(frames.OutputTransportMessageUrgentFrame(message=mark))
    await service.bot.push_frame(frames.OutputTransportMessageUrgentFrame(message={"label": "rtvi-ai"}))
    await until(lambda: service.bot.of(frames.InputTransportMessageFrame))
    assert service.bot.of(frames.InputTransportMessageFrame)[0].message["mark"] == {"name": "here"}
    assert service.stream.ignored_messages == 0


async def test_end_of_the_agent_hangs_up_once_when_its_last_word_was_heard(serve: Serve) -> None:
    calls: list[float] = []

    async def hang_up() -> None:
        calls.append(len(service.stream.played_audio) / 8000)
        await service.client.calls.end(service.serializer.start.call_sid)

    service = await serve(Service(8000, hang_up=hang_up))
    await service.start_stream(on_call=True)
    await service.bot.say(1.0, 8000)
    await service.worker.queue_frame(frames.EndFrame())
    await service.end()
    await until(lambda: not service.stream.alive)
    assert calls == [pytest.approx(1.0, abs=0.1)]  # the Space counts what was played when a message arrives
    assert service.space.requests.count("end-call") == 1


async def test_cancellation_hangs_up_at_once_and_only_once(serve: Serve) -> None:
    calls: list[str] = []

    async def hang_up() -> None:
        calls.append("ended")

    service = await serve(Service(8000, hang_up=hang_up))
    await service.start_stream(on_call=True)
    await service.bot.say(10.0, 8000)
    await service.worker.queue_frame(frames.EndFrame())
    await asyncio.sleep(0.2)
    await service.worker.cancel()
    await service.end()
    assert calls == ["ended"]


async def test_hang_up_that_is_cancelled_does_not_stall_the_pipeline(serve: Serve, logged: list[str]) -> None:
    async def hang_up() -> None:
        raise asyncio.CancelledError  # as a client that is closed meanwhile does

    service = await serve(Service(hang_up=hang_up))
    await service.start_stream(on_call=True)
    await service.worker.queue_frame(frames.EndFrame())
    async with asyncio.timeout(10):
        await service.end()
    assert [line for line in logged if "hang_up was cancelled" in line]


async def test_function_that_hangs_up_need_not_be_async() -> None:
    calls: list[str] = []
    serializer = SignalWireFrameSerializer(hang_up=lambda: calls.append("ended"))
    assert await serializer.serialize(frames.EndFrame()) is None
    assert calls == []  # there is no call yet
    assert await serializer.deserialize(START) is None
    for frame in (frames.EndFrame(), frames.CancelFrame()):
        assert await serializer.serialize(frame) is None
    assert calls == ["ended"]


async def test_caller_who_has_hung_up_is_not_hung_up(serve: Serve) -> None:
    calls: list[str] = []

    async def hang_up() -> None:
        calls.append("ended")

    service = await serve(Service(hang_up=hang_up))
    sid = await service.start_stream(on_call=True)
    service.space.end_call(sid)
    await service.end()
    assert calls == []


@pytest.fixture
async def dial(serve: Serve, certificates: Certificates) -> AsyncIterator[Any]:
    """Send messages to a service by hand; return its answers until it closes the socket."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=certificates.trust)) as session:

        async def send(service: Service, *messages: str) -> list[Any]:
            await serve(service)
            async with asyncio.timeout(10), session.ws_connect(service.url) as socket:
                for message in messages:
                    await socket.send_str(message)
                return [json.loads(message.data) async for message in socket]

        yield send


async def test_codec_that_cannot_be_decoded_ends_the_connection_with_one_sentence(dial: Any, logged: list[str]) -> None:
    service = Service(hang_up=lambda: pytest.fail("there is no stream to end"))
    assert await dial(service, START.replace("x-mulaw", "G722"), MEDIA) == []
    await service.end()
    [line] = logged
    assert "audio encoded as 'audio/G722' can't be decoded: use the raw payloads, or have the stream encoded as" in line


async def test_track_that_the_stream_lacks_ends_it_too(dial: Any, logged: list[str]) -> None:
    service = Service()
    start = START.replace('"mediaFormat"', '"tracks": ["outbound"], "mediaFormat"')
    assert await dial(service, start) == []
    assert "the stream has only its outbound track: write track='outbound'" in logged[0]


async def test_audio_before_the_start_event_ends_the_connection_with_one_sentence(dial: Any, logged: list[str]) -> None:
    service = Service()
    assert await dial(service, MEDIA, START) == []
    await service.end()
    [line] = logged
    assert "audio arrived before the start event: if your code has read that, pass start=" in line


async def test_speech_before_the_start_event_is_reported_and_not_sent(dial: Any, logged: list[str]) -> None:
    class Greeting(Bot):
        async def process_frame(self, frame: frames.Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, frames.ClientConnectedFrame):
                await self.say(0.1, 16_000)

    service = Service()
    service.bot = Greeting()
    dialled = asyncio.create_task(dial(service))
    await until(lambda: logged)
    await service.worker.cancel()
    assert await dialled == []
    assert "audio was sent before the start event: read that first, and pass start=" in logged[0]


async def test_serializer_takes_a_start_event_that_was_read_before() -> None:
    """Without a transport that says a rate, audio keeps that of the stream."""
    start = decode_event(START)
    assert isinstance(start, StartEvent)
    serializer = SignalWireFrameSerializer(start)
    assert serializer.start is start
    frame = await serializer.deserialize(MEDIA)
    assert isinstance(frame, frames.InputAudioRawFrame)
    assert await serializer.deserialize(MEDIA.replace("inbound", "outbound")) is None
    assert (len(frame.audio), frame.sample_rate) == (8, 8000)
    assert await serializer.deserialize("no message") is None
    assert await serializer.deserialize('{"event": "connected"}') is None
    assert await serializer.deserialize('{"event": "unheard of", "secret": "s"}') is None
    sent = await serializer.serialize(frames.OutputAudioRawFrame(bytes(160), 8000, 1))
    assert json.loads(sent or "")["streamSid"] == "s"
    with pytest.raises(InvalidRequestError, match="audio with 2 channels was sent, and the stream takes one"):
        await serializer.serialize(frames.OutputAudioRawFrame(bytes(160), 8000, 2))


async def test_nothing_is_sent_before_the_start_event() -> None:
    serializer = SignalWireFrameSerializer()
    for frame in (frames.InterruptionFrame(), frames.OutputTransportMessageFrame(message={}), frames.EndFrame()):
        assert await serializer.serialize(frame) is None
    assert await serializer.deserialize('{"event": "stop"}') is None


def test_wrong_arguments_are_rejected() -> None:
    options: list[tuple[dict[str, Any], str]] = [
        ({"track": "both"}, "track must be 'inbound' or 'outbound', not 'both'"),
        ({"hang_up": "CA1"}, "hang_up must be a function: write lambda: client"),
        ({"start": json.loads(START)}, "start must be the StartEvent that decode_event returns"),
    ]
    for wrong, why in options:
        with pytest.raises(InvalidRequestError, match=why):
            SignalWireFrameSerializer(**wrong)
    with pytest.raises(UnknownEncodingError, match="can't be decoded"):
        SignalWireFrameSerializer(StartEvent(stream_sid="s"))


async def test_the_guide_answers_a_call(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    """The guide's program: it rejects a stream without the token, hears and answers a call, and hangs up."""
    bot = Bot()
    scope = run_code("agents-and-transcription/pipecat_agent.py", my_agent=lambda: [bot], TOKEN="token")
    service = Service()
    service.application = scope["app"]
    await serve(service, audio=Tone())
    scope["client"] = service.client
    [sid] = service.space.call_sids
    stream = await service.client.calls.start_stream(sid, url=service.url, authorization_bearer_token="wrong")
    await until(lambda: not service.space.streams[0].alive)
    await service.client.calls.start_stream(sid, url=service.url, authorization_bearer_token="token")
    await until(lambda: len(bot.heard) > 8000)
    await bot.say(0.5, 16_000)
    await bot.push_frame(frames.EndWorkerFrame(), FrameDirection.UPSTREAM)
    await until(lambda: not service.stream.alive)
    assert len(service.stream.played_audio) == pytest.approx(4000, abs=800)
    assert service.space.requests.count("end-call") == 1
    assert stream.name
