"""The audio frames that a Space sends: their length, their continuity, and that encoding them never blocks the loop."""

import asyncio
import json
import time
import wave
from array import array
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from signalwire_streams.receiver.audio import AudioFormat
from signalwire_streams.simulator import Silence, SimulatedSpace, Sound, Stream, Tone, WavFile
from signalwire_streams.simulator._media_session import EncodedAudio, FrameEncoder
from signalwire_streams.simulator._sources import codec_of

from .endpoints import Endpoint, serving
from .peer import simulated


@asynccontextmanager
async def listening(frames: int) -> AsyncIterator[tuple[str, "asyncio.Future[list[dict[str, Any]]]"]]:
    """Serve a WebSocket that collects the first media bodies, then closes."""
    collected: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        media: list[dict[str, Any]] = []
        async for message in socket:
            if message.type is WSMsgType.TEXT and message.json()["event"] == "media":
                media.append(message.json()["media"])
            if len(media) == frames:
                break
        await socket.close()
        collected.set_result(media)
        return socket

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/", collected
    finally:
        await runner.cleanup()


async def media_of(sound: Sound, codec: str, frames: int) -> list[dict[str, Any]]:
    async with (
        listening(frames) as (url, collected),
        simulated(audio=sound, real_time=False, allow_ws=True) as peer,
    ):
        assert (await peer.start(Url=url, StreamCodec=codec, Track="inbound_track")).status == 200
        return await collected


@pytest.mark.parametrize("sound", [Tone(), Silence()])
@pytest.mark.parametrize(
    ("codec", "size"), [("PCMU", 160), ("PCMU@30i", 240), ("PCMA@60i", 480), ("L16@16000h@30i", 960), ("PCMU@7i", 56)]
)
async def test_frames_of_repeating_sound_all_have_packet_length(sound: Sound, codec: str, size: int) -> None:
    """Also where a second is not a whole number of frames."""
    media = await media_of(sound, codec, 150)
    assert {len(b64decode(body["payload"])) for body in media} == {size}


async def test_repeating_sound_continues_across_frames_as_one_signal() -> None:
    media = await media_of(Tone(hertz=100), "L16@30i", 200)
    signal = b"".join(b64decode(body["payload"]) for body in media)
    second = Tone(hertz=100).clip("inbound", 8_000).read(0, 8_000).tobytes()
    assert signal == (second * 7)[: len(signal)]


@pytest.mark.parametrize("codec", ["L16@11025h", "L16@22050h@30i", "PCMU@11025h@10i"])
async def test_frames_that_are_no_whole_number_of_samples_add_up_to_real_time(codec: str) -> None:
    media = await media_of(Tone(), codec, 201)
    rate, width = int(codec.split("@")[1][:-1]), 2 if codec.startswith("L16") else 1
    octets = sum(len(b64decode(body["payload"])) for body in media[:-1])
    assert octets == int(media[-1]["timestamp"]) * rate // 1000 * width


def test_finite_sound_ends_in_a_short_frame() -> None:
    audio = EncodedAudio(Tone(seconds=0.05))
    slots = list(audio.slots(_stream("PCMU@30i")))
    assert [[(track, len(b64decode(payload))) for track, payload in slot] for slot in slots] == [
        [("inbound", 240)],
        [("inbound", 160)],
    ]


def _stream(codec: str | None = None) -> Stream:
    return Stream(
        sid="s", target_kind="conference", target_sid="c", created_at=0, url="", track="inbound_track", codec=codec
    )


def hour_long_file(path: Path) -> Path:
    """Write a sparse WAV file."""
    size = 2 * 11_025 * 3600
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 11_025, 0, "NONE", ""))
        file.writeframes(b"")
    with path.open("r+b") as raw:
        for offset, value in ((4, 36 + size), (40, size)):
            raw.seek(offset)
            raw.write(value.to_bytes(4, "little"))
        raw.truncate(44 + size)
    return path


@pytest.mark.parametrize("kind", ["tone", "silence", "file"])
def test_first_frames_of_an_hour_are_encoded_without_the_rest(kind: str, tmp_path: Path) -> None:
    sounds: dict[str, Callable[[], Sound]] = {
        "tone": lambda: Tone(seconds=3600),
        "silence": lambda: Silence(seconds=3600),
        "file": lambda: WavFile(hour_long_file(tmp_path / "hour.wav")),
    }
    sound = sounds[kind]()
    list(islice(EncodedAudio(Tone()).slots(_stream()), 1))  # the codec's table is computed once per process
    began = time.process_time()
    slots = list(islice(EncodedAudio(sound).slots(_stream()), 50))
    assert time.process_time() - began < 1.5
    assert {len(b64decode(payload)) for slot in slots for _, payload in slot} == {160}


def test_streams_of_one_sound_share_its_encoded_frames() -> None:
    audio = EncodedAudio(Tone())
    first, second = (list(islice(audio.slots(_stream()), 120)) for _ in range(2))
    assert all(one[0] is other[0] for one, other in zip(first, second, strict=True))


async def test_file_that_disappears_ends_its_stream_with_an_error(tmp_path: Path) -> None:
    """The stream stops, and the event loop's exception handler receives the cause."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    sound = WavFile(path)
    path.unlink()
    raised: list[BaseException | None] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context.get("exception")))
    async with listening(1) as (url, collected), simulated(audio=sound, allow_ws=True) as peer:
        await peer.start(Url=url)
        assert await collected == []
        [stream] = peer.space.streams
        while stream.alive:  # noqa: ASYNC110  (a turn of the loop, not a time)
            await asyncio.sleep(0)
        assert (stream.alive, stream.error) == (False, "codec_error")
    assert [type(error) for error in raised] == [FileNotFoundError]


def test_tone_is_a_sine_wave_of_its_frequency() -> None:
    inbound, outbound = (Tone(hertz=100).clip(track, 8_000) for track in ("inbound", "outbound"))
    assert list(inbound.read(0, 81)[::20]) == [0, 9_830, 0, -9_830, 0]
    assert list(outbound.read(0, 161)[::40]) == [0, -9_830, 0, 9_830, 0]
    assert (inbound.length, inbound.repeats) == (8_000, True)
    brief = Tone(seconds=0.25).clip("inbound", 16_000)
    assert (brief.length, brief.repeats) == (4_000, False)


@pytest.mark.parametrize("dialect", ["signalwire", "twilio"])
def test_frames_are_numbered_in_order(dialect: Any) -> None:
    """From 1 on the socket, without marks unless the dialect is Twilio's, and from 1 in each track."""
    encoder = FrameEncoder(_stream(), SimulatedSpace(dialect=dialect))
    slot = [("inbound", "AA=="), ("outbound", "BB==")]
    frames = [encoder.connected(), encoder.start(), *encoder.media(0, slot), *encoder.media(20, slot)]
    decoded = [json.loads(frame) for frame in (*frames, encoder.mark("m"), encoder.dtmf("1", 100), encoder.stop())]
    numbers = [frame.get("sequenceNumber") for frame in decoded]
    expected = [None, "1", "2", "3", "4", "5", None, "6", "7"]
    assert numbers == (expected if dialect == "signalwire" else [*expected[:6], "6", "7", "8"])
    media = [frame["media"] for frame in decoded if frame["event"] == "media"]
    assert [(body["track"], body["chunk"], body["timestamp"]) for body in media] == [
        *(("inbound", "1", "0"), ("outbound", "1", "0")),
        *(("inbound", "2", "20"), ("outbound", "2", "20")),
    ]


@pytest.mark.parametrize(("codec", "encoding"), [("PCMU", "audio/x-mulaw"), ("PCMA", "audio/x-alaw")])
def test_each_code_is_that_of_its_own_sample(codec: str, encoding: str) -> None:
    """By the decoder of the receiver, which is another implementation; µ-law has two codes for 0."""
    codes = bytes(code for code in range(256) if (codec, code) != ("PCMU", 0x7F))
    assert codec_of(codec).encode(array("h", AudioFormat(encoding).to_pcm(codes))) == codes


def test_smallest_and_largest_samples_have_their_codes() -> None:
    samples = array("h", [0, 1, -1, -8, 32_767, -32_768])
    assert codec_of("PCMU").encode(samples).hex(" ") == "ff ff 7e 7e 80 00"
    assert codec_of("PCMA").encode(samples).hex(" ") == "d5 d5 55 55 aa 2a"


@pytest.mark.parametrize("hertz", [0, -440])
def test_tone_needs_a_frequency(hertz: int) -> None:
    with pytest.raises(ValueError, match="hertz"):
        Tone(hertz=hertz)


@pytest.mark.usefixtures("idle_clock")
async def test_frames_are_sent_in_real_time() -> None:
    loop = asyncio.get_running_loop()
    took = loop.create_future()

    async def behave(there: Endpoint) -> None:
        await there.until("media")
        began = loop.time()
        await there.until("media", 100)
        took.set_result(loop.time() - began)

    async with serving(behave) as (url, _), simulated(audio=Tone(), allow_ws=True) as peer:
        assert (await peer.start(Url=url, Track="inbound_track")).status == 200
        assert await took == pytest.approx(2.0, abs=0.0015)
