"""What `play` and `play_pcm` send: whole frames, of the stream's packet time, with the audio that was passed."""

import asyncio
import sys
from math import log10, pi, sin
from random import Random
from struct import pack, unpack
from typing import Any

import pytest

from signalwire_streams import InvalidRequestError, TransportError
from signalwire_streams.receiver import Playback
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio import AudioFormat, UnknownEncodingError

from .audio.pcm_streams import Whole
from .conftest import Importing, until
from .test_playback import Line, payloads

MULAW, ALAW = AudioFormat("audio/x-mulaw"), AudioFormat("audio/x-alaw")
L16, WIDE = AudioFormat("audio/x-L16", 16_000), AudioFormat("audio/x-L16", 24_000, "big")


def playback_over(line: Line, audio_format: AudioFormat, *arrived: int) -> Playback:
    """Create one over a stream from which payloads of those lengths have arrived."""
    statistics = StreamStatistics()
    for chunk, size in enumerate(arrived, 1):
        statistics.of("inbound")._record(chunk, None, bytes(size), 0.0)
    return Playback(line, "sid", audio_format, True, statistics=statistics, now=lambda: line.time, sleep=line.sleep)


def tone(rate: int, samples: int) -> bytes:
    return pack(f"<{samples}h", *(round(9000 * sin(2 * pi * 440 * n / rate)) for n in range(samples)))


def signal_to_noise(found: bytes, expected: bytes) -> float:
    """Decibels."""
    pairs = list(zip(unpack(f"<{len(found) // 2}h", found), unpack(f"<{len(expected) // 2}h", expected), strict=True))
    return 10 * log10(sum(y * y for _, y in pairs) / (sum((x - y) ** 2 for x, y in pairs) or 1e-9))


@pytest.mark.parametrize(
    ("audio_format", "arrived", "milliseconds"),
    [
        (MULAW, (), 20),
        (MULAW, (0,), 20),
        (MULAW, (160, 160), 20),
        (MULAW, (320,), 40),
        (L16, (960, 960, 960), 30),
        (L16, (1920, 1920, 1919), 60),
        (MULAW, (1, 1, 1), 20),
    ],
)
async def test_frames_are_as_long_as_those_that_arrive(
    audio_format: AudioFormat, arrived: tuple[int, ...], milliseconds: int
) -> None:
    line = Line()
    playback = playback_over(line, audio_format, *arrived)
    assert playback.packet_time == milliseconds
    await playback.play(bytes(audio_format.bytes_in(1000)))
    await playback.flush()
    assert {len(payload) for payload in payloads(line)} == {audio_format.bytes_in(milliseconds)}


@pytest.mark.parametrize("audio_format", [MULAW, ALAW, L16, WIDE], ids=["mulaw", "alaw", "L16", "L16 big-endian"])
@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 11_025])
async def test_pcm_of_any_rate_is_sent_in_whole_frames(audio_format: AudioFormat, rate: int) -> None:
    """In pieces of random size, odd ones included."""
    line, pcm, random = Line(), tone(rate, rate), Random(rate)  # noqa: S311
    playback, begin, heard = playback_over(line, audio_format), 0, 0
    while begin < len(pcm):
        size = random.choice([1, 2, 3, 320, 641, 1000, 4001])
        heard += await playback.play_pcm(pcm[begin : begin + size], rate=rate)
        begin += size
    await playback.flush()
    sent = b"".join(payloads(line))
    assert {len(payload) for payload in payloads(line)} == {audio_format.bytes_in(20)}
    assert len(sent) == audio_format.bytes_in(1000)
    found, expected = audio_format.to_pcm(sent), tone(audio_format.sample_rate, audio_format.sample_rate)
    edge = len(expected) // 20 // 2 * 2  # where the tone begins and ends, it is not band-limited
    noise = signal_to_noise(found[edge:-edge], expected[edge:-edge])
    assert noise > (70 if audio_format.encoding == L16.encoding else 35)
    assert playback._heard.utterance.accepted == pytest.approx(audio_format.sample_rate)


async def test_change_of_the_rate_loses_no_audio() -> None:
    """What one resampler holds back is sent before the audio of the next, or before encoded audio."""
    line = Line()
    playback = playback_over(line, L16)
    await playback.play_pcm(tone(8000, 800), rate=8000)
    await playback.play_pcm(tone(24_000, 2400), rate=24_000)
    await playback.play_pcm(tone(16_000, 1600), rate=16_000)
    await playback.play(tone(16_000, 1600))
    assert len(b"".join(payloads(line))) == L16.bytes_in(400)


async def test_cleared_audio_leaves_nothing_in_the_resampler() -> None:
    line = Line()
    playback = playback_over(line, L16)
    await playback.play_pcm(tone(8000, 800), rate=8000)
    await playback.clear()
    line.sent.clear()
    await playback.play_pcm(bytes(640), rate=16_000)
    assert payloads(line) == [bytes(640)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("abc", 8000), "audio must be bytes, not str"),
        ((b"ab", 0), "rate must be a whole number from 1 to 768000, not 0"),
        ((b"ab", True), "not True"),
        ((b"ab", 8000.0), "not 8000.0"),
    ],
)
async def test_wrong_pcm_is_one_clear_sentence(arguments: tuple[Any, Any], match: str) -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    await playback.play(bytes(100))
    with pytest.raises(InvalidRequestError, match=match):
        await playback.play_pcm(arguments[0], rate=arguments[1])
    await playback.play(bytes(60))
    assert payloads(line) == [bytes(160)]


async def test_rate_may_be_a_whole_number_of_any_type() -> None:
    line = Line()
    assert await playback_over(line, MULAW).play_pcm(bytes(320), rate=Whole(8000)) == 20  # type: ignore[arg-type]
    assert payloads(line) == [b"\xff" * 160]


async def test_encoded_audio_must_be_bytes() -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    with pytest.raises(InvalidRequestError, match="audio must be bytes, not list"):
        await playback.play([1, 2])  # type: ignore[arg-type]
    for audio in (bytearray(80), memoryview(bytes(80)).cast("H")):
        await playback.play(audio)  # type: ignore[arg-type]
    assert payloads(line) == [bytes(160)]


async def test_pcm_for_a_format_that_it_cannot_be_converted_to() -> None:
    line = Line()
    with pytest.raises(InvalidRequestError, match="the stream has 2 channels: use play, with encoded audio"):
        await playback_over(line, AudioFormat("audio/x-L16", channels=2)).play_pcm(b"ab", rate=8000)
    with pytest.raises(UnknownEncodingError):
        await playback_over(line, AudioFormat("audio/x-new")).play_pcm(b"ab", rate=8000)
    assert line.sent == []


async def test_another_rate_without_the_extra_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    line = Line()
    playback = playback_over(line, MULAW)
    await playback.play_pcm(bytes(160), rate=8000)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'signalwire-streams\[audio\]'"):
        await playback.play_pcm(bytes(160), rate=16_000)
    await playback.play_pcm(bytes(160), rate=8000)
    assert len(payloads(line)) == 1


async def test_first_conversion_imports_beside_the_loop(importing: Importing) -> None:
    """What is played meanwhile takes its turn behind it, and a clear drops both."""
    line = Line()
    playback = playback_over(line, MULAW)
    for is_cleared in (True, False):
        playing = [asyncio.ensure_future(playback.play_pcm(bytes(640), rate=16_000))]
        playing.append(asyncio.ensure_future(playback.play(bytes(160))))
        await asyncio.sleep(0)
        if is_cleared:
            assert payloads(line) == []
            await playback.clear()
        importing.may_end.set()
        assert await asyncio.gather(*playing) == ([0, 0] if is_cleared else [20, 20])
    assert payloads(line) == [b"\xff" * 160, bytes(160)]


@pytest.mark.parametrize("before", [0, 400, 1601])
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.35])
async def test_interrupted_play_returns_what_was_heard_of_its_own_audio(before: int, seconds: float) -> None:
    """However much of earlier calls was waiting."""
    line = Line()
    playback = playback_over(line, MULAW)
    began = line.time
    await playback.play(bytes(before))
    cleared: list[int] = []

    async def sleep(wait: float) -> None:
        await line.sleep(wait)
        if line.time - began >= before / 8000 + seconds and not cleared:
            cleared.append(await playback.clear())

    playback.sleep = sleep
    own = await playback.play(bytes(8000))
    assert cleared == [pytest.approx((line.time - began) * 1000, abs=1)]
    assert own == pytest.approx(cleared[0] - before / 8, abs=1)
    assert playback.position == cleared[0]


async def test_audio_of_a_cancelled_play_is_not_counted() -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    playback.sleep = lambda _: asyncio.get_running_loop().create_future()
    playing = asyncio.ensure_future(playback.play(bytes(8000)))
    await asyncio.sleep(0)
    playing.cancel()
    await asyncio.wait([playing])
    line.time += 1
    playback.sleep = line.sleep

    async def clear_then(_: float) -> None:
        line.time += 0.11
        await playback.clear()

    await playback.play(bytes(800))
    playback.sleep = clear_then
    assert await playback.play(bytes(160)) == 10


async def test_position_of_a_stream_that_sends_nothing() -> None:
    assert Playback(Line(), None, MULAW, bidirectional=False).position == 0


async def test_rate_changes_while_a_call_waits_for_its_turn() -> None:
    line = Line()
    playback = playback_over(line, L16)
    pieces = [(tone(rate, rate // 10), rate) for rate in (8000, 24_000, 8000)]
    await asyncio.gather(*(playback.play_pcm(pcm, rate=rate) for pcm, rate in pieces))
    await playback.flush()
    assert len(b"".join(payloads(line))) == L16.bytes_in(300)


async def test_hang_up_amid_audio_says_that_some_of_it_was_sent() -> None:
    line = Line()
    playback = playback_over(line, MULAW)

    async def sleep(_: float) -> None:
        playback._close()

    playback.sleep = sleep
    with pytest.raises(TransportError) as caught:
        await playback.play(bytes(8000))
    assert caught.value.sent == "maybe"
    with pytest.raises(TransportError) as caught:
        await playback.play(bytes(8000))
    assert caught.value.sent == "no"


async def test_marks_that_never_return_are_forgotten() -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    for _ in range(1100):
        marking = asyncio.ensure_future(playback.mark("a"))
        await asyncio.sleep(0)
        marking.cancel()
        await asyncio.wait({marking})
    assert len(playback._marks) <= 1001


async def test_lost_echo_of_one_finish_holds_up_no_other() -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    await playback.play(bytes(800))
    given_up = asyncio.ensure_future(playback.finish())
    await until(lambda: playback._marks)
    given_up.cancel()
    await asyncio.wait({given_up})
    await playback.play(bytes(1600))
    finishing = asyncio.ensure_future(playback.finish())
    await until(lambda: len(playback._marks) == 2)
    line.time += 0.2
    assert not playback._on_mark(line.sent[-1]["mark"]["name"])
    async with asyncio.timeout(1):
        assert await finishing == 200


async def test_clear_while_finish_sends_the_last_frame() -> None:
    line = Line()
    playback = playback_over(line, MULAW)
    await playback.play(bytes(810))
    heard: list[int] = []

    async def clear_then(_: float) -> None:
        line.time += 0.05
        heard.append(await playback.clear())

    playback.sleep = clear_then
    finishing = asyncio.ensure_future(playback.finish())
    await until(lambda: playback._marks)
    assert not playback._on_mark(playback._marks[0].name)
    assert await finishing == heard[0] == 50
    assert playback.position == 50
