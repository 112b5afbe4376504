"""Sending to a Space that plays: audio arrives, marks come back, keys are pressed."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams.receiver import DtmfEvent, EndReason, MarkEvent, MediaReceiver, StreamSession
from signalwire_streams.simulator import Dialect, SimulatedSpace, Stream, Tone

from .conftest import Heard, until

pytestmark = pytest.mark.usefixtures("idle_clock")


class Talking:
    """A Space, a receiver, and a stream between them."""

    def __init__(self, space: SimulatedSpace, session: StreamSession) -> None:
        self.space = space
        self.session = session

    @property
    def stream(self) -> Stream:
        return self.space.streams[-1]


@pytest.fixture
async def talking(
    trust: ssl.SSLContext, client_for: Any, heard: Heard, serve: Any, certificate: ssl.SSLContext
) -> AsyncIterator[Any]:
    """Create a Space that plays, and a stream that runs until the test ends."""
    async with AsyncExitStack() as stack:

        async def make(
            *, dialect: Dialect = "signalwire", real_time: bool = True, call: bool = False, **fields: Any
        ) -> Talking:
            receiver = MediaReceiver(heard, bearer_tokens=None, bidirectional=True)
            url = await serve(receiver, ssl_context=certificate)
            space = SimulatedSpace(
                conferences=1,
                calls=1,
                audio=Tone(),
                ssl_context=trust,
                bidirectional="realtime" not in fields,
                realtime_bidirectional=True,
                dialect=dialect,
                real_time=real_time,
            )
            await stack.enter_async_context(space)
            client = client_for(space)
            streams, [sid] = (client.calls, space.call_sids) if call else (client.conferences, space.conference_sids)
            opened = receiver.open(streams, sid, url=url, track="inbound_track", **fields)
            session = await stack.enter_async_context(opened)
            return Talking(space, session)

        yield make


@pytest.mark.parametrize("dialect", ["signalwire", "twilio"])
async def test_played_audio_arrives_and_marks_come_back(talking: Any, dialect: Dialect) -> None:
    """A mark is awaited until the audio before it was played, which takes as long as it lasts."""
    there = await talking(dialect=dialect)
    clock = asyncio.get_running_loop().time
    began = clock()
    await there.session.playback.play(bytes(range(160)) * 10)
    await there.session.playback.mark("said")
    assert clock() - began >= 0.19
    assert there.stream.played_audio == bytes(range(160)) * 10
    assert there.stream.ignored_messages == 0


async def test_cleared_audio_is_not_played(talking: Any) -> None:
    """The mark that waited for it comes back at once."""
    there = await talking()
    playback = there.session.playback
    for _ in range(2):  # the second one finds the queue empty
        saying = asyncio.ensure_future(playback.play(b"\x01" * 80_000))
        marked = asyncio.ensure_future(playback.mark("never said"))
        await asyncio.sleep(0)
        await playback.clear()
        await marked
        saying.cancel()
        await asyncio.wait({saying})
    assert len(there.stream.played_audio) < 20_000
    await playback.play(b"\x02" * 160)
    await playback.mark("next")
    assert there.stream.played_audio.endswith(b"\x02" * 160)


async def test_marks_come_back_at_once_without_real_time(talking: Any) -> None:
    there = await talking(real_time=False)
    marked = [asyncio.ensure_future(there.session.playback.mark(name)) for name in "abc"]
    await asyncio.gather(*marked)
    assert there.stream.ignored_messages == 0


@pytest.mark.parametrize("codec", ["PCMU", "PCMU@40i", "L16@24000h", "L16@16000h@60i"])
@pytest.mark.parametrize("said", [0.05, 0.73, 1.5])
async def test_clear_returns_what_the_space_has_played(talking: Any, codec: str, said: float) -> None:
    """On a conference's stream that plays since it was started with realtime."""
    there = await talking(codec=codec, realtime=True)
    playback, clock = there.session.playback, asyncio.get_running_loop().time
    playback.now = clock
    size = playback.audio_format.bytes_in(1000)
    began = clock()
    saying = asyncio.ensure_future(playback.play(bytes(2 * size)))
    await asyncio.sleep(said)
    position, heard = playback.position, await playback.clear()
    assert heard == pytest.approx((clock() - began) * 1000, abs=40)
    assert position == pytest.approx(heard, abs=1)
    assert abs(await saying - heard) <= 1
    await playback.mark("cleared")
    played = len(there.stream.played_audio) * 1000 / size
    assert heard == pytest.approx(played, abs=40)
    assert playback.position == heard


async def test_finish_waits_until_the_last_word_was_heard(talking: Any) -> None:
    """Its mark is no event, and the silence that fills up the last frame is no audio."""
    there = await talking(realtime=True)
    playback = there.session.playback
    for length in (1990, 2410):
        assert await playback.play(bytes(length)) == length // 8
        assert await playback.finish() == length // 8
    assert there.stream.played_audio == bytes(1990) + b"\xff" * 90 + bytes(2410) + b"\xff" * 150
    assert await playback.clear() == 0


async def test_cleared_finish_returns_what_was_heard(talking: Any) -> None:
    there = await talking(realtime=True)
    playback = there.session.playback
    playback.now = asyncio.get_running_loop().time
    await playback.play(bytes(800))
    finishing = asyncio.ensure_future(playback.finish())
    await asyncio.sleep(0.06)
    heard = await playback.clear()
    assert await finishing == heard == pytest.approx(60, abs=20)


async def test_calls_take_turns(talking: Any) -> None:
    """Whatever is passed while another call sends, or waits for its mark, is played after it, and is counted apart."""
    there = await talking(realtime=True)
    playback = there.session.playback
    calls = [playback.play(b"a" * 4000), playback.finish(), playback.play(b"b" * 2400), playback.play(b"c" * 1600)]
    tasks = [asyncio.ensure_future(call) for call in [*calls, playback.finish()]]
    assert await asyncio.gather(*tasks) == [500, 500, 300, 200, 500]
    assert there.stream.played_audio == b"a" * 4000 + b"b" * 2400 + b"c" * 1600


async def test_clear_drops_the_calls_that_wait_for_their_turn(talking: Any) -> None:
    there = await talking(realtime=True)
    playback = there.session.playback
    playback.now = asyncio.get_running_loop().time
    tasks = [asyncio.ensure_future(playback.play(audio * 8000)) for audio in (b"a", b"b")]
    tasks.append(asyncio.ensure_future(playback.play_pcm(bytes(16_000), rate=8000)))
    await asyncio.sleep(0.3)
    heard = await playback.clear()
    assert await asyncio.gather(*tasks) == [heard, 0, 0]
    assert heard == pytest.approx(300, abs=40)
    assert await playback.play(b"d" * 1600) == 200
    assert await playback.finish() == 200
    assert there.stream.played_audio.endswith(b"d" * 1600)
    assert b"b" not in there.stream.played_audio


async def test_cancelled_finish_ends_its_utterance(talking: Any) -> None:
    there = await talking(realtime=True)
    playback = there.session.playback
    await playback.play(bytes(800))
    finishing = asyncio.ensure_future(playback.finish())
    await asyncio.sleep(0)
    finishing.cancel()
    await asyncio.wait({finishing})
    await playback.play(bytes(1600))
    assert await playback.finish() == 200


async def test_stream_without_realtime_plays_nothing(talking: Any) -> None:
    there = await talking(realtime=False)
    await there.session.playback.play(bytes(160))
    await until(lambda: there.stream.ignored_messages)
    assert there.stream.played_audio == b""


@pytest.mark.parametrize("dialect", ["signalwire", "twilio"])
async def test_dtmf_is_sent_both_ways(talking: Any, dialect: Dialect) -> None:
    """The caller's keys arrive as events, and sent keys are pressed."""
    there = await talking(dialect=dialect, call=True)
    await there.session.playback.send_dtmf("1*D")
    await until(lambda: there.stream.dtmf_received == "1*D")
    [call] = there.space.call_sids
    await there.space.send_dtmf(there.space.conference_sids[0], "0")  # nobody streams that
    await there.space.send_dtmf(call, "42", milliseconds=80)
    keys: list[Any] = []
    async for event in there.session:
        keys += [(event.digit, event.duration)] if isinstance(event, DtmfEvent) else []
        if len(keys) == 2:
            break
    assert keys == [("4", 80), ("2", 80)]


async def test_marks_are_events(talking: Any) -> None:
    there = await talking()
    await there.session.playback.mark("here")
    async for event in there.session:
        if isinstance(event, MarkEvent):
            assert event.name == "here"
            return


async def test_simulator_refuses_invalid_keys(trust: ssl.SSLContext) -> None:
    space = SimulatedSpace(conferences=1)
    for wrong in ("", "E", "1 2"):
        with pytest.raises(ValueError, match="are not DTMF digits: use 0 to 9"):
            await space.send_dtmf("sid", wrong)
    await space.send_dtmf("sid", "1")  # nothing is dialled here, so nobody hears of it


NOT_TO_BE_FOLLOWED: list[Any] = [
    None,
    [],
    {"event": "media", "media": {"payload": "AAAA"}},
    {"event": "media", "streamSid": "another", "media": {"payload": "AAAA"}},
    {"event": "media", "streamSid": "its own", "media": {"payload": "no base64!"}},
    {"event": "media", "streamSid": "its own"},
    {"event": "mark", "streamSid": "its own", "mark": {"name": 1}},
    {"event": "dtmf", "streamSid": "its own", "dtmf": {"digit": "X"}},
    {"event": "dance", "streamSid": "its own"},
]
GOOD = {"event": "clear", "streamSid": "its own"}


@pytest.mark.parametrize("bidirectional", [True, False])
async def test_invalid_messages_are_ignored_and_counted(
    trust: ssl.SSLContext, client_for: Any, certificate: ssl.SSLContext, bidirectional: bool
) -> None:
    """A Space only obeys documented messages, and none on a one-way stream."""

    async def send(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        start = json.loads((await socket.receive()).data)["start"]
        for each in [*NOT_TO_BE_FOLLOWED, GOOD]:
            if isinstance(each, dict) and each.get("streamSid") == "its own":
                await socket.send_json(each | {"streamSid": start["streamSid"]})
            else:
                await socket.send_json(each)
        await socket.send_str("no json")
        async for _ in socket:
            pass
        return socket

    application = web.Application()
    application.router.add_get("/", send)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate).start()
    async with SimulatedSpace(conferences=1, audio=Tone(), ssl_context=trust, bidirectional=bidirectional) as space:
        await client_for(space).conferences.start_stream(
            space.conference_sids[0], url=f"wss://127.0.0.1:{runner.addresses[0][1]}/"
        )
        expected = len(NOT_TO_BE_FOLLOWED) + 1 + (not bidirectional)
        await until(lambda: space.streams[0].ignored_messages == expected)
        assert space.streams[0].played_audio == b""
    await runner.cleanup()


async def test_simulator_survives_a_receiver_that_hangs_up(talking: Any) -> None:
    """The stream ends with its socket."""
    there = await talking()
    await there.session.playback.socket.close()
    await until(lambda: not there.stream.alive)
    await there.session.wait_closed()
    assert there.session.end_reason is EndReason.CLOSED


@pytest.mark.parametrize("noun", ["call", "conference"])
async def test_call_or_conference_that_is_ended_ends_its_stream(
    trust: ssl.SSLContext, client_for: Any, heard: Heard, serve: Any, certificate: ssl.SSLContext, noun: str
) -> None:
    """With a stop event."""
    url = await serve(MediaReceiver(heard, bearer_tokens=None), ssl_context=certificate)
    async with SimulatedSpace(conferences=1, calls=1, audio=Tone(), ssl_context=trust) as space:
        client = client_for(space)
        resource, [sid] = (
            (client.calls, space.call_sids) if noun == "call" else (client.conferences, space.conference_sids)
        )
        await resource.start_stream(sid, url=url)
        await until(lambda: heard.events)
        await resource.end(sid)
        assert (await heard.end()).end_reason is EndReason.STOPPED
