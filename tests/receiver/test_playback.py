"""The way back over a bidirectional stream: audio in its own time, marks, keys."""

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest

from signalwire_streams import InvalidRequestError, TransportError
from signalwire_streams.receiver import MarkEvent, MediaReceiver, Playback, StreamSession
from signalwire_streams.receiver.audio import AudioFormat, UnknownEncodingError

pytestmark = pytest.mark.usefixtures("idle_clock")


class Line:
    """A WebSocket that stores messages, with a clock that advances when a task sleeps."""

    def __init__(self, *, broken: bool = False) -> None:
        self.sent: list[Any] = []
        self.waits: list[float] = []
        self.time = 100.0
        self.broken = broken

    async def send_str(self, data: str) -> None:
        if self.broken:
            raise ConnectionResetError("gone")
        self.sent.append(json.loads(data))

    async def sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.time += seconds
        await asyncio.sleep(0)

    def playback(self, *, bidirectional: bool = True) -> Playback:
        audio_format = AudioFormat("audio/x-mulaw")
        return Playback(self, "sid", audio_format, bidirectional, now=lambda: self.time, sleep=self.sleep)


async def test_play_sends_audio_in_real_time() -> None:
    """A tenth of a second goes ahead; from then on each piece waits for its time."""
    line = Line()
    playback = line.playback()
    for _ in range(10):
        await playback.play(b"\xff" * 160)
    assert len(line.sent) == 10
    payload = b64encode(b"\xff" * 160).decode()
    assert line.sent[0] == {"event": "media", "streamSid": "sid", "media": {"payload": payload}}
    assert line.waits == [pytest.approx(0.02)] * 5
    line.time += 5
    await playback.play(b"\xff" * 160)
    assert len(line.waits) == 5


async def test_play_refuses_unknown_encoding() -> None:
    """Its duration is unknown, so it can't be sent in real time."""
    line = Line()
    playback = Playback(line, "sid", AudioFormat("audio/x-new"), True)
    with pytest.raises(UnknownEncodingError):
        await playback.play(b"123")
    assert line.sent == []


async def test_clear_resets_the_playing_time() -> None:
    line = Line()
    playback = line.playback()
    await playback.play(b"\xff" * 800)
    await playback.clear()
    await playback.play(b"\xff" * 160)
    assert line.waits == []
    assert [frame["event"] for frame in line.sent] == [*["media"] * 5, "clear", "media"]


MULAW, L16 = AudioFormat("audio/x-mulaw"), AudioFormat("audio/x-L16", 16_000)


def payloads(line: Line) -> list[bytes]:
    return [b64decode(frame["media"]["payload"]) for frame in line.sent if frame["event"] == "media"]


@pytest.mark.parametrize("piece", [1, 159, 161, 250, 319, 321, 639, 641, 5000])
@pytest.mark.parametrize("audio_format", [MULAW, L16], ids=["mulaw", "L16"])
async def test_play_sends_pieces_of_any_size_in_whole_frames(audio_format: AudioFormat, piece: int) -> None:
    """The rest of a piece waits for the next one, and for `flush` after the last."""
    line = Line()
    playback = Playback(line, "sid", audio_format, True, now=lambda: line.time, sleep=line.sleep)
    audio = bytes(number * 7 % 251 for number in range(9_990))
    step = audio_format.bytes_in(20)
    for begin in range(0, len(audio), piece):
        await playback.play(audio[begin : begin + piece])
    assert {len(payload) for payload in payloads(line)} == {step}
    assert b"".join(payloads(line)) == audio[: len(audio) // step * step]

    await playback.flush()
    await playback.flush()
    whole = -(-len(audio) // step) * step
    assert b"".join(payloads(line)) == audio + (audio_format.silence * step)[: whole - len(audio)]
    assert {len(payload) for payload in payloads(line)} == {step}


async def test_play_keeps_half_a_sample() -> None:
    """A flush between both does not separate them, so that later samples are not shifted by a byte."""
    line = Line()
    playback = Playback(line, "sid", L16, True, now=lambda: line.time, sleep=line.sleep)
    await playback.play(b"aabbc")
    await playback.flush()
    await playback.flush()
    await playback.play(b"cdd")
    await playback.flush()
    assert payloads(line) == [b"aabb".ljust(640, b"\0"), b"ccdd".ljust(640, b"\0")]


async def test_mark_is_sent_after_the_audio_before_it() -> None:
    """Also after the rest that is no whole frame."""
    line = Line()
    playback = line.playback()
    await playback.play(bytes(250))
    mark = asyncio.ensure_future(playback.mark("end"))
    await asyncio.sleep(0)
    playback._on_mark("end")
    await mark
    assert [len(payload) for payload in payloads(line)] == [160, 160]
    assert payloads(line)[1] == bytes(90) + b"\xff" * 70
    assert line.sent[-1]["event"] == "mark"


async def test_clear_drops_the_rest_of_the_audio() -> None:
    """Whether it waits for more, or is behind audio that is being sent."""
    line = Line()
    playback = line.playback()
    await playback.play(b"a" * 250)
    await playback.clear()
    await playback.flush()
    assert [len(payload) for payload in payloads(line)] == [160]

    async def clear_then(seconds: float) -> None:
        playback.sleep = line.sleep
        await playback.clear()

    playback.sleep = clear_then
    await playback.play(b"b" * (160 * 6 + 10))
    await playback.play(b"c" * 160)
    assert payloads(line)[-1] == b"c" * 160


async def test_cancelled_play_leaves_no_rest() -> None:
    """The next audio starts with a new sample."""
    line = Line()
    playback = line.playback()

    async def for_ever(seconds: float) -> None:
        await asyncio.get_running_loop().create_future()

    playback.sleep = for_ever
    playing = asyncio.ensure_future(playback.play(b"a" * (160 * 50 + 1)))
    await asyncio.sleep(0)
    playing.cancel()
    await asyncio.wait([playing])
    playback.sleep = line.sleep
    await playback.play(b"b" * 160)
    assert payloads(line)[-1] == b"b" * 160


async def test_play_sends_at_least_one_sample_per_frame() -> None:
    """A start event may name any rate; its audio goes out sample by sample."""
    line = Line()
    playback = Playback(line, "sid", AudioFormat("audio/x-L16", 10), True, now=lambda: line.time, sleep=line.sleep)
    await playback.play(b"aabbc")
    assert payloads(line) == [b"aa", b"bb"]


async def test_clear_ends_running_play() -> None:
    """Audio that was not sent yet is dropped."""
    line = Line()
    playback = line.playback()
    playing: list[asyncio.Task[int]] = []

    async def clear_then(seconds: float) -> None:
        line.time += seconds
        if len(line.sent) == 10:
            await playback.clear()

    playback.sleep = clear_then
    playing.append(asyncio.ensure_future(playback.play(bytes(160 * 100))))
    await playing[0]
    assert [frame["event"] for frame in line.sent] == [*["media"] * 10, "clear"]


async def test_end_of_stream_ends_running_play() -> None:
    line = Line()
    playback = line.playback()

    async def end_then(seconds: float) -> None:
        playback._close()

    playback.sleep = end_then
    with pytest.raises(TransportError, match="the stream has ended"):
        await playback.play(bytes(160 * 100))
    assert len(line.sent) == 6


async def test_mark_waits_for_its_echo() -> None:
    """Marks of one name come back in order."""
    line = Line()
    playback = line.playback()
    marks = [asyncio.ensure_future(playback.mark("a")) for _ in range(2)]
    await asyncio.sleep(0)
    assert line.sent == [{"event": "mark", "streamSid": "sid", "mark": {"name": "a"}}] * 2
    playback._on_mark("b")
    playback._on_mark("a")
    await asyncio.sleep(0)
    assert [mark.done() for mark in marks] == [True, False]
    playback._on_mark("a")
    await marks[1]
    playback._on_mark("a")


async def test_cancelled_mark_ignores_its_echo() -> None:
    line = Line()
    playback = line.playback()
    ends: list[Callable[[], object]] = [lambda: playback._on_mark("a"), playback._close]
    for end in ends:
        given_up = asyncio.ensure_future(playback.mark("a"))
        await asyncio.sleep(0)
        given_up.cancel()
        end()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        playback._on_mark("a")
        assert not playback._marks


async def test_echoes_of_equal_names_arrive_in_order() -> None:
    """Even if the first of two marks of one name was cancelled."""
    line = Line()
    playback = line.playback()
    given_up = asyncio.ensure_future(playback.mark("a"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    second = asyncio.ensure_future(playback.mark("a"))
    await asyncio.sleep(0)
    playback._on_mark("a")
    await asyncio.sleep(0)
    assert not second.done()
    playback._on_mark("a")
    await second
    assert not playback._marks


async def test_mark_that_could_not_be_sent_is_forgotten() -> None:
    ended, broken = Line().playback(), Line(broken=True).playback()
    ended._close()
    for playback in (ended, broken):
        with pytest.raises(TransportError):
            await playback.mark("a")
        assert not playback._marks


async def test_end_of_stream_fails_waiting_marks() -> None:
    """After the end of a stream, no mark is awaited and nothing is sent."""
    line = Line()
    playback = line.playback()
    mark = asyncio.ensure_future(playback.mark("a"))
    await asyncio.sleep(0)
    playback._close()
    with pytest.raises(TransportError, match="ended before the mark"):
        await mark
    with pytest.raises(TransportError, match="has ended"):
        await playback.play(b"\xff")


async def test_send_dtmf_sends_each_key() -> None:
    line = Line()
    playback = line.playback()
    await playback.send_dtmf("1#")
    assert line.sent == [{"event": "dtmf", "streamSid": "sid", "dtmf": {"digit": digit}} for digit in ("1", "#")]
    for wrong in ("", "x", "1 2", "12d"):
        with pytest.raises(InvalidRequestError, match="are not DTMF digits"):
            await playback.send_dtmf(wrong)


@pytest.mark.parametrize(
    "send",
    [
        lambda playback: playback.play(b"\xff"),
        lambda playback: playback.flush(),
        lambda playback: playback.mark("a"),
        lambda playback: playback.clear(),
        lambda playback: playback.send_dtmf("1"),
    ],
)
async def test_one_way_stream_refuses_to_send(send: Callable[[Playback], Any]) -> None:
    """The error has the reason; the Space would just ignore the message."""
    line = Line()
    with pytest.raises(InvalidRequestError, match="one-way"):
        await send(line.playback(bidirectional=False))
    assert line.sent == []


async def test_broken_connection_raises_transport_error() -> None:
    with pytest.raises(TransportError, match="broke while sending: ConnectionResetError"):
        await Line(broken=True).playback().clear()


async def test_mark_returns_when_its_echo_arrives_on_the_socket(serve: Any, dial: Any) -> None:
    """The handler's own loop need not look for them, and gets them as well."""
    played = asyncio.Event()

    async def speak(session: StreamSession) -> None:
        await session.playback.play(b"\xff" * 160)
        marking = asyncio.create_task(session.playback.mark("end"))
        events = [event async for event in session]
        await marking
        assert events == [MarkEvent(name="end")]
        played.set()

    peer = await dial(await serve(MediaReceiver(speak, bearer_tokens=None, bidirectional=True)))
    await peer.send_json({"event": "start", "start": {"streamSid": "s", "mediaFormat": {"encoding": "audio/x-mulaw"}}})
    assert (await peer.receive_json())["event"] == "media"
    mark = await peer.receive_json()
    await peer.send_json({"event": "mark", "mark": mark["mark"]})
    await peer.send_json({"event": "stop"})
    async with asyncio.timeout(5):
        await played.wait()


async def test_mark_cancelled_while_sending_keeps_its_place() -> None:
    """Its frame is written by then, so its echo will come, and belongs to no other mark."""
    line, written = Line(), asyncio.Event()

    class Slow:
        async def send_str(self, data: str) -> None:
            await line.send_str(data)
            if not written.is_set():
                written.set()
                await asyncio.get_running_loop().create_future()

    playback = line.playback()
    playback.socket = Slow()
    given_up = asyncio.ensure_future(playback.mark("a"))
    await written.wait()
    given_up.cancel()
    await asyncio.wait([given_up])
    second = asyncio.ensure_future(playback.mark("a"))
    await asyncio.sleep(0)
    playback._on_mark("a")
    await asyncio.sleep(0)
    assert not second.done()
    playback._on_mark("a")
    await second


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("", "'' is not a mark name"),
        (None, "None is not a mark name"),
        (5, "5 is not a mark name"),
        (b"a", "b'a' is not a mark name"),
        ("\ud800", "a lone surrogate"),
        ("x" * 900, "would exceed frame_limit: shorten it"),
        ("\u20ac" * 150, "would exceed frame_limit: shorten it"),
    ],
)
async def test_mark_that_could_not_come_back_is_refused(name: Any, match: str) -> None:
    """Nothing is sent, not even the rest of the audio."""
    line = Line()
    playback = Playback(line, "sid", AudioFormat("audio/x-mulaw"), True, sleep=line.sleep, max_message=1000)
    await playback.play(b"a")
    with pytest.raises(InvalidRequestError, match=match):
        await playback.mark(name)
    assert line.sent == []
    assert not playback._marks


async def test_mark_whose_echo_just_fits_is_sent() -> None:
    """128 bytes are left for what the Space adds to it."""
    line = Line()
    playback = Playback(line, "sid", AudioFormat("audio/x-mulaw"), True, sleep=line.sleep, max_message=1000)
    begun = asyncio.ensure_future(playback.mark("x"))
    await asyncio.sleep(0)
    size = len(json.dumps(line.sent[0])) - 1
    longest = "x" * (1000 - 128 - size)
    waiting = asyncio.ensure_future(playback.mark(longest))
    await asyncio.sleep(0)
    assert line.sent[1]["mark"]["name"] == longest
    with pytest.raises(InvalidRequestError, match="would exceed frame_limit"):
        await playback.mark(longest + "x")
    for mark in (begun, waiting):
        mark.cancel()


async def test_thousand_marks_that_nothing_waits_for_are_remembered() -> None:
    """Those of a Space that returns none must not fill the memory; one that is waited for is never forgotten."""
    playback = Line().playback()
    waited = asyncio.ensure_future(playback.mark("waited for"))
    for number in range(1_003):
        given_up = asyncio.ensure_future(playback.mark(str(number)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        if number == 500:
            assert len(playback._marks) == 502
            playback._on_mark("waited for")
            await waited
    assert [mark.name for mark in playback._marks] == [str(number) for number in range(3, 1_003)]


@pytest.mark.parametrize("digits", ["", "1w", "\uff11", "a", None, 5, b"1", ["1"]])
async def test_dtmf_that_is_no_key_is_refused(digits: Any) -> None:
    line = Line()
    with pytest.raises(InvalidRequestError, match="are not DTMF digits: use 0 to 9"):
        await line.playback().send_dtmf(digits)
    assert line.sent == []
