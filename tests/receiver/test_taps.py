"""Taps and PCM beside a session's handler, in virtual time."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import ClientStateError
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.receiver import (
    AudioEvent,
    DtmfEvent,
    EndReason,
    MarkEvent,
    MediaEvent,
    Overflow,
    Playback,
    StreamSession,
    UnknownEvent,
    decode_event,
)
from signalwire_streams.receiver._event_queue import QueueLimits
from signalwire_streams.receiver._protocol import StartEvent
from signalwire_streams.receiver._statistics import StreamStatistics
from signalwire_streams.receiver.audio import (
    AudioFormat,
    PcmFrame,
    UnknownEncodingError,
    WavRecorder,
)
from signalwire_streams.receiver.audio._resampling import Resampler
from tests.receiver.audio.pcm_streams import Sound, Whole
from tests.receiver.audio.wavs import read_wav
from tests.receiver.conftest import Importing

MULAW = AudioFormat("audio/x-mulaw")
SOUND = Sound(MULAW)


@pytest.fixture(autouse=True)
async def skip_waits() -> AsyncIterator[None]:
    """Advance the loop's clock to its next timer at once: there are no sockets here, which `idle_clock` waits for."""
    loop: Any = asyncio.get_running_loop()
    select, now = loop._selector.select, loop.time()
    Resampler(8000, 16_000)  # so that a thread need not prepare the first one, during which no time should pass

    def skip(seconds: float | None) -> Any:
        nonlocal now
        events = select(seconds and 0)
        now += seconds if seconds and not events else 0.0
        return events

    with pytest.MonkeyPatch.context() as patched:  # until before the loop is closed, which waits for threads
        patched.setattr(loop._selector, "select", skip)
        patched.setattr(loop, "time", lambda: now)
        yield


class Stream:
    """A session whose events come from the test."""

    def __init__(
        self, audio: AudioFormat = MULAW, *, max_events: int = 500, overflow: Overflow = Overflow.DROP_OLDEST
    ) -> None:
        start = decode_event('{"event": "start", "start": {"streamSid": "s", "tracks": ["inbound", "outbound"]}}')
        assert isinstance(start, StartEvent)
        socket: Any = None
        playback = Playback(socket, "s", audio, bidirectional=False)
        limits = QueueLimits(max_events, max_events * 4096, overflow)
        self.session = StreamSession(
            start, audio_format=audio, playback=playback, statistics=StreamStatistics(), limits=limits
        )
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()

    def send(self, event: AudioEvent) -> bool:
        if isinstance(event, MediaEvent):
            event.elapsed = self._loop.time() - self._started_at
        is_open = self.session._enqueue(event, self._loop.time())
        self.session._on_read()
        return is_open

    def burst(self, begin: int, end: int, *tracks: str) -> None:
        for number in range(begin, end):
            for track in tracks or ("inbound", "outbound"):
                self.send(SOUND.event(track, number))

    async def talk(self, begin: int, end: int, *tracks: str) -> None:
        """Send frames in real time."""
        for number in range(begin, end):
            await asyncio.sleep(0.02)
            self.burst(number, number + 1, *tracks)

    def close(self) -> None:
        self.session._close(EndReason.STOPPED)


def heard(frames: list[PcmFrame]) -> bytes:
    return b"".join(frame.data for frame in frames if any(frame.data))


def sent(end: int, track: str = "inbound") -> bytes:
    return MULAW.to_pcm(SOUND.of(track, 0, 160 * end))


async def test_keys_reach_the_handler_beside_pcm() -> None:
    stream = Stream()
    frames: list[PcmFrame] = []

    async def transcribe() -> None:
        frames.extend([frame async for frame in stream.session.pcm(8000, tracks="inbound")])

    task = asyncio.create_task(transcribe())
    events = []

    async def handle() -> None:
        events.extend([event async for event in stream.session])

    handling = asyncio.create_task(handle())
    await stream.talk(0, 50)
    stream.send(DtmfEvent(digit="4"))
    await stream.talk(50, 100)
    stream.close()
    await asyncio.gather(task, handling)
    assert len(events) == 201
    assert events[100] == DtmfEvent(digit="4")
    assert heard(frames) == sent(100)
    assert [frame.timestamp_ms for frame in frames] == list(range(0, 2000, 20))
    assert {(frame.rate, frame.channels, frame.missing_ms) for frame in frames} == {(8000, 1, 0)}


async def test_stuck_tap_harms_nobody() -> None:
    stream = Stream()
    stuck = stream.session.tap(max_frames=10)
    slow_pcm = stream.session.tap(max_frames=10).pcm(8000)
    taps = [stream.session.tap() for _ in range(8)]
    read = [asyncio.create_task(_all(tap)) for tap in (*taps, stream.session)]
    await stream.talk(0, 200)
    assert stuck.dropped == 390
    assert len(stuck._feed.items) == 10
    assert len(slow_pcm._feed.items) == 10
    stream.close()
    assert {len(events) for events in await asyncio.gather(*read)} == {400}
    assert [event.chunk for event in await _all(stuck)] == [n for n in range(196, 201) for _ in "ab"]
    assert {tap.dropped for tap in taps} == {0}
    assert stream.session.statistics.of("inbound").dropped == 0


async def _all(source: Any) -> list[Any]:
    return [item async for item in source]


async def test_big_events_of_a_stuck_tap_are_bounded_too() -> None:
    stream = Stream()
    tap = stream.session.tap(max_frames=2)
    for number in range(5):
        stream.send(MediaEvent("inbound", bytes(4096), number + 1, 20 * number))
        assert sum(len(event.payload) for event in tap._feed.items) == min(number + 1, 2) * 4096
    stream.send(MediaEvent("inbound", bytes(4097), 6, 100))
    assert len(tap._feed.items) == 1
    stream.send(MediaEvent("inbound", bytes(9000), 6, 100))
    stream.close()
    assert [len(event.payload) for event in await _all(tap)] == [9000]


async def test_tap_holds_500_events_unless_it_is_told_otherwise() -> None:
    stream = Stream()
    taps = [stream.session.tap(), stream.session.tap(max_frames=1), stream.session.tap(max_frames=100_000)]
    await stream.talk(0, 300)
    assert [len(tap._feed.items) for tap in taps] == [500, 1, 600]


@pytest.mark.parametrize("late", ["keep", "drop"])
async def test_slow_consumer_loses_the_oldest(late: Any) -> None:
    stream = Stream()
    pcm = stream.session.pcm(8000, tracks="inbound", late=late)
    await stream.talk(0, 600, "inbound")
    stream.close()
    frames = await _all(pcm)
    assert abs(len(frames) - 500) <= 5
    assert frames[0].missing_ms == 20 * (605 if late == "drop" else 600) - 20 * len(frames) or late == "drop"
    assert frames[0].missing_ms >= 1900
    assert not any(frame.missing_ms for frame in frames[1:])
    assert heard(frames)[-160_000 + 3200 :] == sent(600)[-160_000 + 3200 :]


@pytest.mark.parametrize("late", ["keep", "drop"])
@pytest.mark.parametrize("rate", [8000, 16_000])
async def test_transcriber_that_closes_after_silence_stays_open(late: Any, rate: int) -> None:
    """200 ms without audio end it; both tracks are silent for a minute, without a frame at all."""
    stream = Stream()
    pcm = stream.session.pcm(rate, late=late)
    task = asyncio.create_task(stream.talk(0, 25))
    seconds = 0.0
    while seconds < 61:
        async with asyncio.timeout(0.2):
            frame = await anext(pcm)
        seconds += len(frame.data) / 2 / rate
    await task
    stream.close()
    await _all(pcm)


async def test_track_that_pauses_holds_up_the_other_one_for_the_delay_only() -> None:
    stream, loop = Stream(), asyncio.get_running_loop()
    pcm, began = stream.session.pcm(8000, delay_ms=30), loop.time()
    talking = asyncio.create_task(stream.talk(0, 50, "inbound"))
    held: list[float] = []
    while len(held) < 45:
        frame = await anext(pcm)
        held.append(loop.time() - began - (frame.timestamp_ms + 20) / 1000)
    assert held[20:] == [pytest.approx(0.03, abs=0.002)] * 25
    await talking
    stream.close()
    assert heard(await _all(pcm)) == sent(50)[-5 * 320 :]


async def test_pcm_ends_with_the_stream() -> None:
    """Also the one that follows the clock, whose last audio goes out in its time."""
    stream = Stream()
    streams = [stream.session.pcm(8000, late=late, tracks="inbound") for late in ("keep", "drop")]
    await stream.talk(0, 10)
    stream.close()
    loop = asyncio.get_running_loop()
    ended = loop.time()
    assert [heard(await _all(pcm)) for pcm in streams] == [sent(10)] * 2
    assert 0.05 < loop.time() - ended < 0.1
    assert await _all(stream.session.pcm(8000, tracks="inbound")) == []


async def test_what_waits_in_the_session_comes_first() -> None:
    stream = Stream()
    stream.burst(0, 5, "inbound")
    stream.send(UnknownEvent(name="weather", document={}))
    tap, pcm = stream.session.tap(), stream.session.tap().pcm(8000, tracks="inbound")
    stream.burst(5, 10, "inbound")
    stream.close()
    assert [event.chunk for event in await _all(tap)] == list(range(1, 11))
    assert heard(await _all(pcm)) == sent(10)
    assert await _all(stream.session.tap()) == []
    assert await _all(stream.session) == [UnknownEvent(name="weather", document={})]


async def test_what_waits_is_for_all_that_begin_before_more_arrives() -> None:
    stream = Stream()
    stream.burst(0, 5, "inbound")
    stream.send(DtmfEvent(digit="4"))
    sources = [stream.session.tap(), stream.session.tap(), aiter(stream.session)]
    reading = [asyncio.create_task(_all(source)) for source in sources]
    stream.burst(5, 10, "inbound")
    tap = stream.session.tap()
    stream.burst(10, 15, "inbound")
    stream.close()
    assert [len(events) for events in await asyncio.gather(*reading)] == [15, 15, 16]
    assert [event.chunk for event in await _all(tap)] == list(range(11, 16))


@pytest.mark.parametrize("source", ["tap", "pcm"])
async def test_later_tap_repeats_nothing(source: str) -> None:
    """What arrives between two taps is for the second one."""
    stream = Stream()

    def open_one() -> Any:
        return stream.session.tap() if source == "tap" else stream.session.pcm(8000, tracks="inbound")

    async def chunks(listener: Any) -> list[int]:
        listener.close()
        items = await _all(listener)
        if source == "tap":
            return [event.chunk - 1 for event in items]
        return [frame.timestamp_ms // 20 for frame in items if any(frame.data)]

    stream.burst(0, 3, "inbound")
    first = open_one()
    stream.burst(3, 5, "inbound")
    assert await chunks(first) == [0, 1, 2, 3, 4]
    stream.burst(5, 8, "inbound")
    second = open_one()
    third = open_one()
    stream.burst(8, 10, "inbound")
    assert await chunks(second) == [5, 6, 7, 8, 9]
    fourth = open_one()
    stream.burst(10, 12, "inbound")
    assert await chunks(third) == [5, 6, 7, 8, 9, 10, 11]
    assert await chunks(fourth) == [10, 11]
    closed = open_one()
    assert await chunks(closed) == []
    stream.burst(12, 14, "inbound")
    assert await chunks(open_one()) == [12, 13]
    stream.burst(14, 15, "inbound")
    assert await chunks(open_one()) == [14]


async def test_rejected_pcm_consumes_no_events() -> None:
    stream = Stream()
    stream.burst(0, 3, "inbound")
    with pytest.raises(InvalidRequestError):
        stream.session.pcm(0)
    stream.burst(3, 5, "inbound")
    stream.close()
    assert len(await _all(stream.session)) == 5


async def test_loop_after_a_tap_gets_keys_and_later_audio() -> None:
    stream = Stream()
    stream.burst(0, 2, "inbound")
    stream.send(DtmfEvent(digit="1"))
    stream.burst(2, 3, "inbound")
    stream.send(UnknownEvent(name="weather", document={}))
    stream.send(DtmfEvent(digit="2"))
    tap = stream.session.tap()
    stream.burst(3, 5, "inbound")
    stream.send(DtmfEvent(digit="3"))
    stream.burst(5, 6, "inbound")
    loop = aiter(stream.session)
    stream.burst(6, 7, "inbound")
    stream.send(DtmfEvent(digit="4"))
    stream.close()
    assert len(await _all(tap)) == 7
    weather = UnknownEvent(name="weather", document={})
    shown = [event.chunk if isinstance(event, MediaEvent) else event async for event in loop]
    assert shown == [DtmfEvent(digit="1"), weather, DtmfEvent(digit="2"), DtmfEvent(digit="3"), 7, DtmfEvent(digit="4")]


@pytest.mark.parametrize("waiting", [0, 10])
async def test_closed_tap_does_not_overflow_the_session(waiting: int) -> None:
    stream = Stream(max_events=10, overflow=Overflow.CLOSE)
    stream.burst(0, waiting, "inbound")
    pcm = stream.session.pcm(8000, tracks="inbound")
    if not waiting:
        stream.burst(0, 50, "inbound")
    pcm.close()
    assert all(stream.send(SOUND.event("inbound", number)) for number in range(50, 60))
    assert not stream.send(SOUND.event("inbound", 60))
    assert stream.session.statistics.of("inbound").dropped == 1


async def test_pcm_takes_over_what_waits_in_its_tap() -> None:
    stream = Stream()
    tap = stream.session.tap()
    stream.burst(0, 5, "inbound")
    pcm = tap.pcm(8000, tracks="inbound")
    stream.burst(5, 10, "inbound")
    tap.close()
    tap.close()
    stream.burst(10, 15, "inbound")
    assert heard(await _all(pcm)) == sent(10)
    closed = stream.session.tap()
    stream.burst(15, 20, "inbound")
    closed.close()
    assert heard(await _all(closed.pcm(8000))) == sent(20)[len(sent(10)) :]
    assert stream.session._listeners.feeds == ()


async def test_pcm_that_begins_late_has_no_silence_for_what_was_before() -> None:
    stream = Stream()
    reading = asyncio.create_task(_all(stream.session))
    await stream.talk(0, 500)
    pcm = stream.session.pcm(8000, tracks="inbound")
    await stream.talk(500, 550)
    stream.close()
    frames = await _all(pcm)
    await reading
    assert heard(frames) == sent(550)[-16_000:]
    assert [frame.timestamp_ms for frame in frames if any(frame.data)] == list(range(10_000, 11_000, 20))
    assert len(frames) <= 51


async def test_stream_that_is_only_tapped_does_not_overflow() -> None:
    """The oldest of what nobody takes is dropped, and counted."""
    stream = Stream(max_events=10, overflow=Overflow.CLOSE)
    pcm = stream.session.pcm(8000, tracks="inbound")
    await stream.talk(0, 50)
    kinds: list[Any] = [
        lambda number: DtmfEvent(digit=str(number % 10)),
        lambda number: MarkEvent(name=f"mark {number}"),
        lambda number: UnknownEvent(name="weather", document={"day": number}),
    ]
    assert all(stream.send(kind(number)) for kind in kinds for number in range(30))
    stream.close()
    assert heard(await _all(pcm)) == sent(50)
    assert (stream.session.statistics.of("inbound").dropped, stream.session.statistics.dropped) == (0, 70)
    assert await _all(stream.session) == [kind(number) for kind in kinds[1:] for number in range(20, 30)]


async def test_audio_that_a_tap_has_is_not_dropped() -> None:
    """When other events push it out of the session's queue."""
    stream = Stream(max_events=3)
    stream.burst(0, 3, "inbound")
    tap = stream.session.tap()
    for day in range(3):
        stream.send(UnknownEvent(name="weather", document={"day": day}))
    stream.close()
    assert len(await _all(tap)) == len(await _all(stream.session)) == 3
    assert (stream.session.statistics.of("inbound").dropped, stream.session.statistics.dropped) == (0, 0)


async def test_left_taps_are_forgotten() -> None:
    stream = Stream()
    with stream.session.tap() as tap:
        assert stream.session._listeners.feeds
    assert await _all(tap) == []
    for source in (stream.session.tap, stream.session.pcm):
        stream.burst(0, 1)
        async for _ in source():
            break
    left = stream.session.pcm(8000)
    left.close()
    gc.collect()
    assert stream.session._listeners.feeds == ()


async def test_loop_may_begin_where_another_one_is_cancelled() -> None:
    stream = Stream()
    tap = stream.session.tap()
    cancelled = asyncio.create_task(_all(tap))
    await asyncio.sleep(0)
    cancelled.cancel()
    asyncio.get_running_loop().call_soon(stream.burst, 0, 1)
    assert (await anext(tap)).chunk == 1
    await asyncio.wait({cancelled})
    assert cancelled.cancelled()


async def test_only_one_loop_iterates() -> None:
    stream = Stream()
    tap = stream.session.tap()
    waiting = asyncio.create_task(_all(tap))
    await asyncio.sleep(0)
    with pytest.raises(ClientStateError, match="only one loop at a time"):
        await anext(tap)
    with pytest.raises(ClientStateError, match="open another tap for this pcm"):
        tap.pcm(8000)
    waiting.cancel()
    await asyncio.wait({waiting})
    stream.burst(0, 1)
    assert (await anext(tap)).chunk == 1  # cancelling lost nothing
    pcm = tap.pcm(8000)
    with pytest.raises(ClientStateError, match="open another tap for this pcm"):
        tap.pcm(8000)
    with pytest.raises(ClientStateError, match="feeds a pcm"):
        await anext(tap)
    stream.close()
    await _all(pcm)


async def test_recorder_fed_by_tap_records_whole_stream(tmp_path: Path) -> None:
    stream = Stream()
    frames: list[bytes] = []

    async def record() -> None:
        with (
            stream.session.tap() as tap,
            WavRecorder(tmp_path / "call.wav", stream.session.audio_format, layout="stereo") as recorder,
        ):
            async for event in tap:
                recorder.write(event)

    recording = asyncio.create_task(record())
    pcm = asyncio.create_task(_all(stream.session.pcm(8000, tracks="stereo")))
    await stream.talk(0, 50)
    stream.close()
    await recording
    frames = [frame.data for frame in await pcm]
    assert read_wav(tmp_path / "call.wav").audio == b"".join(frames)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rate": 0}, "rate must be a whole number from 1 to 192000, not 0"),
        ({"rate": 16_000.0}, "rate must be a whole number"),
        ({"rate": "8000"}, "rate must be a whole number"),
        ({"rate": True}, "rate must be a whole number"),
        ({"frame_ms": 0}, "frame_ms must be a whole number from 1 to 1000, not 0"),
        ({"delay_ms": -1}, "delay_ms must be a whole number from 0 to 10000, not -1"),
        ({"tracks": "both"}, "tracks must be one of 'inbound', 'outbound', 'mixed', 'stereo', not 'both'"),
        ({"tracks": ["inbound"]}, "tracks must be one of"),
        ({"late": "no"}, "late must be one of 'keep', 'drop', not 'no'"),
        (
            {"rate": 11_025},
            "a frame of 20 ms at 11025 Hz is not a whole number of samples: write a frame_ms that is a multiple of 40",
        ),
    ],
)
async def test_wrong_argument_is_rejected(wrong: dict[str, Any], told: str) -> None:
    session = Stream().session
    with pytest.raises(InvalidRequestError, match=told):
        session.pcm(**wrong)
    assert session._listeners.feeds == ()
    with session.tap() as tap, pytest.raises(InvalidRequestError, match=told):
        tap.pcm(**wrong)
    assert await _all(tap) == []


@pytest.mark.parametrize("wrong", [0, 100_001, 1.0, True, "5"])
async def test_wrong_max_frames_is_rejected(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_frames must be a whole number from 1 to 100000"):
        Stream().session.tap(max_frames=wrong)


@pytest.mark.parametrize(("rate", "least"), [(1, 1000), (40, 25), (49, 21)])
@pytest.mark.parametrize("late", ["keep", "drop"])
async def test_stream_with_less_than_a_sample_in_each_frame_is_rejected(rate: int, least: int, late: Any) -> None:
    session = Stream(AudioFormat("audio/x-mulaw", rate)).session
    told = rf"the stream has {rate} samples? per second.*write a frame_ms of at least {least}"
    with pytest.raises(InvalidRequestError, match=told):
        session.pcm(8000, late=late)
    with pytest.raises(InvalidRequestError, match=told):
        session.pcm(8000, frame_ms=least - 1, late=late)
    session.pcm(8000, frame_ms=least, late=late).close()


async def test_whole_numbers_of_any_type_are_taken() -> None:
    stream, numbers = Stream(), {"rate": Whole(8000), "frame_ms": Whole(40), "delay_ms": Whole(0)}
    pcm = stream.session.pcm(**numbers, tracks="inbound")  # type: ignore[arg-type]
    tap = stream.session.tap(max_frames=Whole(1))  # type: ignore[arg-type]
    stream.burst(0, 2, "inbound")
    assert repr(await anext(pcm)) == "PcmFrame(data=<640 bytes>, timestamp_ms=0, rate=8000, channels=1, missing_ms=0)"
    assert tap.dropped == 1


async def test_audio_that_has_no_pcm_is_rejected() -> None:
    with pytest.raises(UnknownEncodingError):
        Stream(AudioFormat("audio/opus")).session.pcm()
    with pytest.raises(InvalidRequestError, match="2 channels in each track, and pcm takes one"):
        Stream(AudioFormat("audio/x-L16", channels=2)).session.pcm()


async def test_another_rate_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    session = Stream().session
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'signalwire-streams\[audio\]'"):
        session.pcm()
    assert session._listeners.feeds == ()
    assert session.pcm(8000) is not None


@pytest.mark.parametrize("source", ["tap", "pcm"])
async def test_wait_for_one_item_keeps_its_source(source: str) -> None:
    """Nothing else refers to it."""
    stream = Stream()
    session = stream.session
    waiting = asyncio.create_task(_next(session.tap() if source == "tap" else session.pcm(8000, tracks="inbound")))
    await asyncio.sleep(0)
    gc.collect()
    stream.burst(0, 1)
    if source == "tap":
        assert (await waiting).payload == SOUND.of("inbound", 0, 160)
    else:
        assert (await waiting).data == sent(1)
    del waiting
    gc.collect()
    assert session._listeners.feeds == ()


def _next(source: Any) -> Any:
    return anext(source)


async def test_repr_of_a_frame_has_no_audio() -> None:
    stream = Stream()
    stream.burst(0, 1)
    shown = "PcmFrame(data=<320 bytes>, timestamp_ms=0, rate=8000, channels=1, missing_ms=0)"
    assert repr(await anext(stream.session.pcm(8000, tracks="inbound"))) == shown


@pytest.mark.parametrize("is_closed", [False, True])
async def test_audio_waits_while_the_packages_are_imported(importing: Importing, is_closed: bool) -> None:
    """In a thread, so that the loop goes on meanwhile."""
    stream = Stream()
    pcm = stream.session.pcm(tracks="inbound")
    await stream.talk(0, 10, "inbound")
    if is_closed:
        pcm.close()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(pcm)
    importing.may_end.set()
    frames = [await anext(pcm)]
    await stream.talk(10, 20, "inbound")
    stream.close()
    frames += await _all(pcm)
    assert [frame.timestamp_ms for frame in frames] == list(range(0, 200 if is_closed else 400, 20))
    assert all(any(frame.data) for frame in frames)


async def test_pcm_that_is_left_during_the_import_is_forgotten(importing: Importing) -> None:
    stream = Stream()
    stream.session.pcm()
    importing.may_end.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)
    gc.collect()
    stream.burst(0, 1)
    assert stream.session._listeners.feeds == ()


async def test_import_that_fails_is_raised_by_the_loop_over_pcm(
    importing: Importing, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream()
    pcm = stream.session.pcm()
    waiting = asyncio.create_task(_all(pcm))
    await stream.talk(0, 5)
    importing.error = ImportError("a library is broken")
    importing.may_end.set()
    with pytest.raises(ImportError, match="a library is broken"):
        await waiting
    with pytest.raises(ImportError, match="a library is broken"):
        await anext(pcm)
    assert stream.session._listeners.feeds == ()
    assert stream.send(SOUND.event("inbound", 5))
    assert not caplog.records
