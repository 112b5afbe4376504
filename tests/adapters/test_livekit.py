"""Audio input and output in an agent session of livekit, with a Space that sends and plays."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from signalwire_streams import InvalidRequestError, TransportError
from signalwire_streams.receiver.audio import AudioFormat, UnknownEncodingError
from signalwire_streams.simulator import Tone
from tests.guides.documents import run_code
from tests.waiting import until

from .conftest import Conversation, Converse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("livekit.agents", reason="livekit is not installed: `nox --session adapters` runs these tests")
    from livekit import rtc
    from livekit.agents import Agent, AgentSession, stt
    from livekit.agents.voice.io import PlaybackFinishedEvent

    from signalwire_streams.adapters.livekit import SignalWireAudioInput, SignalWireAudioOutput

pytestmark = pytest.mark.filterwarnings("ignore")


def frame(seconds: float, rate: int = 24_000, channels: int = 1) -> rtc.AudioFrame:
    samples = round(seconds * rate)
    return rtc.AudioFrame(b"\x00\x10" * samples * channels, rate, channels, samples)


async def speech(seconds: float, rate: int = 24_000) -> AsyncIterator[rtc.AudioFrame]:
    """Yield speech at once, as a model does."""
    for _ in range(round(seconds * 20)):
        yield frame(0.05, rate)


class Ear(stt.RecognizeStream):  # type: ignore[misc]
    async def _run(self) -> None:
        async for one in self._input_ch:
            if isinstance(one, rtc.AudioFrame):
                self._stt.frames.append(one)


class Ears(stt.STT):  # type: ignore[misc]
    """Receives frames, and recognizes nothing."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self.frames: list[rtc.AudioFrame] = []

    async def _recognize_impl(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("only streams are recognized")

    def stream(self, **options: Any) -> Ear:
        return Ear(stt=self, conn_options=options["conn_options"])


class Agents:
    """A session of livekit on the audio of a stream."""

    def __init__(self, there: Conversation) -> None:
        self.there = there
        self.ears = Ears()
        self.session: AgentSession[None] = AgentSession(stt=self.ears, turn_detection="manual")
        self.session.input.audio = SignalWireAudioInput(there.session)
        self.output = SignalWireAudioOutput(there.session)
        self.session.output.audio = self.output
        self.finished: list[PlaybackFinishedEvent] = []
        self.output.on("playback_finished", self.finished.append)

    def say(self, seconds: float) -> Any:
        return self.session.say("words", audio=speech(seconds))

    @property
    def reported(self) -> list[Any]:  # pairs of seconds, and whether it was interrupted
        return [(event.playback_position, event.interrupted) for event in self.finished]


Start: TypeAlias = Callable[..., Awaitable[Agents]]


@pytest.fixture
async def start(converse: Converse) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(**fields: Any) -> Agents:
            agents = Agents(await converse(**fields))
            await agents.session.start(Agent(instructions=""))
            stack.push_async_callback(agents.session.aclose)
            return agents

        yield begin


@pytest.mark.parametrize("codec", ["L16@16000h", "PCMU", "PCMA@40i"])
@pytest.mark.parametrize("rate", [8000, 16_000, 24_000])
async def test_frames_arrive_at_the_rate_that_was_asked_for(converse: Converse, codec: str, rate: int) -> None:
    there = await converse(audio=Tone(seconds=1.0), codec=codec)
    frames = [one async for one in SignalWireAudioInput(there.session, rate=rate)]
    assert {(one.sample_rate, one.num_channels, one.samples_per_channel) for one in frames} == {(rate, 1, rate // 50)}
    assert sum(one.duration for one in frames) == pytest.approx(1.0, abs=0.15)
    assert any(bytes(one.data).strip(b"\0") for one in frames)


async def test_agent_hears_the_caller_while_its_input_is_enabled(start: Start) -> None:
    agents = await start(audio=Tone(), codec="L16@16000h")
    frames = agents.ears.frames
    await until(lambda: any(bytes(one.data).strip(b"\0") for one in frames))
    assert {(one.sample_rate, one.num_channels) for one in frames} == {(16_000, 1)}
    agents.session.input.set_audio_enabled(False)
    await asyncio.sleep(0.1)
    count = len(frames)
    await asyncio.sleep(0.5)
    assert len(frames) == count
    agents.session.input.set_audio_enabled(True)
    await asyncio.sleep(0.5)
    assert 15 <= len(frames) - count <= 30


async def test_caller_hears_the_agent(start: Start) -> None:
    """Model and stream have different rates; playout ends when the last word was heard."""
    clock = asyncio.get_running_loop().time
    agents = await start(codec="L16@16000h")
    began = clock()
    await agents.say(1.0)
    assert clock() - began == pytest.approx(1.0, abs=0.3)
    assert agents.reported == [(pytest.approx(1.0, abs=0.02), False)]
    assert agents.there.played == pytest.approx(1.0, abs=0.02)


async def test_interruption_tells_what_was_heard(start: Start) -> None:
    agents = await start()
    saying = agents.say(5.0)
    await asyncio.sleep(1.0)
    await agents.session.interrupt()
    await saying
    [(heard, interrupted)] = agents.reported
    assert interrupted
    assert 0.5 < heard < 1.3
    await agents.say(0.5)
    assert agents.reported[1] == (pytest.approx(0.5, abs=0.02), False)
    assert agents.there.played == pytest.approx(heard + 0.5, abs=0.06)
    assert agents.there.stream.ignored_messages == 0


async def test_caller_who_hangs_up_interrupts_the_agent(start: Start) -> None:
    """The session of livekit can be closed at once, and what is said afterwards is not heard."""
    agents = await start()
    saying = agents.say(5.0)
    await asyncio.sleep(0.5)
    agents.there.space.end_conference(agents.there.space.conference_sids[0])
    await saying
    assert agents.reported == [(pytest.approx(0.5, abs=0.3), True)]
    await agents.say(0.5)
    assert agents.reported[1] == (0.0, True)
    async with asyncio.timeout(30):
        await agents.session.aclose()


async def test_frames_of_any_rate_are_played(converse: Converse) -> None:
    """They need not come from an agent session."""
    there = await converse()
    output = SignalWireAudioOutput(there.session)
    assert (output.sample_rate, output.can_pause) == (8000, True)
    for rate in (8000, 16_000, 48_000):
        await output.capture_frame(frame(0.2, rate))
        output.flush()
    event = await output.wait_for_playout()
    assert (event.playback_position, event.interrupted) == (pytest.approx(0.2), False)
    assert there.played == pytest.approx(0.6)
    output.pause()
    await output.capture_frame(frame(0.2))
    output.clear_buffer()
    event = await output.wait_for_playout()
    assert (event.playback_position, event.interrupted) == (0.0, True)
    output.resume()
    await output.capture_frame(frame(0.2))
    output.flush()
    assert (await output.wait_for_playout()).playback_position == pytest.approx(0.2)


async def test_streams_and_frames_that_cannot_be_used_are_rejected(converse: Converse) -> None:
    there = await converse()
    with pytest.raises(InvalidRequestError, match="the frame has 2 channels, and the stream takes one"):
        await SignalWireAudioOutput(there.session).capture_frame(frame(0.1, channels=2))
    with pytest.raises(InvalidRequestError, match="rate must be a whole number"):
        SignalWireAudioInput(there.session, rate=0)
    for encoding in (SignalWireAudioOutput, SignalWireAudioInput):
        there.session.audio_format = AudioFormat("audio/G722")
        with pytest.raises(UnknownEncodingError, match="have the stream encoded as PCMU or L16"):
            encoding(there.session)
        there.session.audio_format = AudioFormat("audio/x-L16", channels=2)
        with pytest.raises(InvalidRequestError, match="has 2 channels in each track"):
            encoding(there.session)


async def test_output_needs_a_stream_that_plays(converse: Converse) -> None:
    there = await converse(bidirectional=False)
    with pytest.raises(InvalidRequestError, match="this stream is one-way"):
        SignalWireAudioOutput(there.session)
    there = await converse()
    there.space.end_conference(there.space.conference_sids[0])
    await there.session.wait_closed()
    with pytest.raises(TransportError, match="the stream has ended"):
        SignalWireAudioOutput(there.session)


async def test_the_guide_answers_a_call(converse: Converse) -> None:
    """The guide's program: the agent hears and answers, and ends with the stream."""
    ears = Ears()
    session: AgentSession[None] = AgentSession(stt=ears, turn_detection="manual")
    scope = run_code("agents-and-transcription/livekit_agent.py", my_agent_session=lambda: session)
    there = await converse(audio=Tone())
    answering = asyncio.create_task(scope["answer"](there.session))
    await until(lambda: ears.frames)
    await session.say("words", audio=speech(0.5))
    assert there.played == pytest.approx(0.5, abs=0.02)
    there.space.end_conference(there.space.conference_sids[0])
    async with asyncio.timeout(30):
        await answering
