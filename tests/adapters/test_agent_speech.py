"""Segments of an agent's speech, on a real socket to a Space that plays them."""

import asyncio
import sys
from typing import Any

import pytest

from signalwire_streams import InvalidRequestError
from signalwire_streams.adapters._agent_speech import AgentSpeech
from signalwire_streams.receiver.audio import pcm_to_mulaw

from .conftest import Conversation, Converse

pytestmark = pytest.mark.usefixtures("idle_clock")

RATE = 8000
SECOND = b"\x00\x10" * RATE


class Agent:
    """Speaks, and remembers what was reported."""

    def __init__(self, there: Conversation) -> None:
        self.started = 0
        self.finished: list[Any] = []  # pairs of seconds, and whether it was interrupted
        self.there = there
        self.has_finished = asyncio.Event()
        self.speech = AgentSpeech(there.session.playback, on_started=self.on_started, on_finished=self.on_finished)

    def on_started(self) -> None:
        self.started += 1

    def on_finished(self, seconds: float, interrupted: bool) -> None:
        self.finished.append((seconds, interrupted))
        self.has_finished.set()

    def say(self, seconds: float, rate: int = RATE) -> None:
        self.speech.add(b"\x00\x10" * round(seconds * rate), rate)
        self.speech.end_segment()

    async def reported(self, segments: int) -> list[Any]:
        while len(self.finished) < segments:
            self.has_finished.clear()
            await self.has_finished.wait()
        return self.finished


@pytest.fixture
async def agent(converse: Converse) -> Agent:
    return Agent(await converse())


async def test_segments_are_played_whole_one_after_the_other(agent: Agent) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    for piece in (SECOND[:5000], SECOND[5000:]):
        agent.speech.add(piece, RATE)
    agent.speech.end_segment()
    agent.say(0.5)
    assert clock() == pytest.approx(began, abs=0.01)
    assert await agent.reported(2) == [(1.0, False), (0.5, False)]
    assert agent.there.stream.played_audio == pcm_to_mulaw(SECOND + SECOND[:RATE])
    assert agent.started == 2
    assert clock() - began == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("codec", ["PCMU", "L16@16000h", "L16@24000h@40i"])
async def test_speech_of_another_rate_is_as_long(converse: Converse, codec: str) -> None:
    agent = Agent(await converse(codec=codec))
    agent.say(1.0, rate=22_050)
    assert await agent.reported(1) == [(1.0, False)]
    assert agent.there.played == 1.0


async def test_interruption_reports_at_once_what_was_heard(agent: Agent) -> None:
    """The first segment was heard in part, the others were not; the next one is played whole."""
    agent.say(2.0)
    agent.say(1.0)
    agent.speech.add(SECOND, RATE)
    await asyncio.sleep(0.7)
    agent.speech.interrupt()
    assert agent.finished == [(pytest.approx(0.7, abs=0.04), True), (0.0, True), (0.0, True)]
    agent.speech.interrupt()
    agent.say(0.5)
    assert await agent.reported(4) == [*agent.finished[:3], (0.5, False)]
    assert agent.there.played == pytest.approx(agent.finished[0][0] + 0.5, abs=0.04)
    assert agent.started == 2


async def test_interruption_of_what_was_heard_reports_all_of_it(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark that confirms it may still be on its way."""
    monkeypatch.setattr(agent.there.session.playback, "finish", asyncio.Event().wait)
    agent.say(0.5)
    await asyncio.sleep(2.0)
    agent.speech.interrupt()
    assert agent.finished == [(0.5, True)]


async def test_interruptions_may_follow_each_other(agent: Agent) -> None:
    """The second one comes before the first one was sent."""
    agent.say(1.0)
    await asyncio.sleep(0.3)
    agent.speech.interrupt()
    agent.say(1.0)
    agent.speech.interrupt()
    agent.say(0.2)
    finished = await agent.reported(3)
    assert finished == [(pytest.approx(0.3, abs=0.04), True), (0.0, True), (0.2, False)]
    assert agent.there.played == pytest.approx(0.5, abs=0.04)


async def test_nothing_is_reported_of_nothing(agent: Agent) -> None:
    agent.speech.end_segment()
    agent.speech.interrupt()
    agent.speech.add(b"", RATE)
    agent.speech.end_segment()
    assert await agent.reported(1) == [(0.0, False)]
    agent.speech.interrupt()
    assert (agent.started, agent.finished) == (0, [(0.0, False)])


async def test_pause_holds_the_speech_back(agent: Agent) -> None:
    agent.speech.pause()
    agent.say(0.5)
    await asyncio.sleep(1.0)
    assert (agent.started, agent.there.session.playback.position) == (0, 0)
    agent.speech.resume()
    await asyncio.sleep(0.2)
    agent.speech.pause()
    await asyncio.sleep(1.0)
    position = agent.there.session.playback.position
    assert 200 <= position <= 360
    agent.say(0.3)
    await asyncio.sleep(1.0)
    assert agent.there.session.playback.position == position
    agent.speech.resume()
    assert await agent.reported(2) == [(0.5, False), (0.3, False)]


async def test_speech_that_was_paused_and_interrupted_was_not_heard(agent: Agent) -> None:
    agent.speech.pause()
    agent.say(0.5)
    await asyncio.sleep(1.0)
    agent.speech.interrupt()
    assert agent.finished == [(0.0, True)]
    agent.speech.resume()
    agent.say(0.2)
    assert await agent.reported(2) == [(0.0, True), (0.2, False)]
    assert agent.there.played == pytest.approx(0.2)


async def test_end_of_the_stream_interrupts(agent: Agent) -> None:
    """Whatever follows is reported as well, so that nothing waits for it."""
    agent.say(2.0)
    agent.say(1.0)
    await asyncio.sleep(0.5)
    agent.there.space.end_conference(agent.there.space.conference_sids[0])
    assert await agent.reported(2) == [(pytest.approx(0.6, abs=0.1), True), (0.0, True)]
    await asyncio.sleep(0)
    agent.say(1.0)
    assert (await agent.reported(3))[2:] == [(0.0, True)]


async def test_end_of_the_stream_is_no_error_of_an_interruption(agent: Agent) -> None:
    agent.say(2.0)
    await asyncio.sleep(0.5)
    agent.there.space.end_conference(agent.there.space.conference_sids[0])
    await agent.there.session.wait_closed()
    agent.speech.interrupt()
    assert agent.finished == [(pytest.approx(0.6, abs=0.1), True)]
    await asyncio.sleep(0.1)
    assert len(agent.finished) == 1


async def test_mark_that_does_not_return_ends_its_segment(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.there.session.playback, "finish", asyncio.Event().wait)
    agent.say(0.5)
    assert await agent.reported(1) == [(0.5, False)]


async def test_rate_that_cannot_be_converted_is_rejected(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    agent.speech.check_rate(RATE)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'signalwire-streams\[audio\]'"):
        agent.speech.check_rate(24_000)
    with pytest.raises(InvalidRequestError, match="from_rate must be a whole number"):
        agent.speech.check_rate(0)
