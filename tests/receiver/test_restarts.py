"""Sessions whose streams are lost and started again, over a line that breaks, and a Space that counts the streams."""

import asyncio
import re
import ssl
import wave
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from signalwire_streams import InvalidRequestError, OpenError, RetryPolicy, StreamOutcomeUnknownError, TransportError
from signalwire_streams.callbacks import StreamFailed
from signalwire_streams.keep_streaming import StartStream
from signalwire_streams.keep_streaming._restarter import Restarter
from signalwire_streams.keep_streaming._target_requests import TargetRequests
from signalwire_streams.receiver import EndReason, GapEvent, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import PcmFrame, WavRecorder
from signalwire_streams.simulator import SimulatedSpace, Tone
from signalwire_streams.telemetry import instrument
from tests import waiting
from tests.uvicorn_server import for_each_server as pytest_generate_tests  # noqa: F401  (a hook of pytest)

from .lossy_line import LossyLine, lossy_line

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]
any_server = pytest.mark.server_owns("nothing: the server has no part in it, so that one is enough")
until = partial(waiting.until, timeout=110.0, interval=0.5)  # on the clock that skips what is idle


class Setting:
    """A Space, a receiver, and a line between them."""

    def __init__(self, space: SimulatedSpace, receiver: MediaReceiver, line: LossyLine, client: Any) -> None:
        self.space, self.receiver, self.line, self.client = space, receiver, line, client
        self.conference, self.call = space.conference_sids[0], space.call_sids[0]
        self.events: list[Any] = []
        self._gaps: asyncio.Queue[GapEvent] = asyncio.Queue()

    @asynccontextmanager
    async def open(self, *, call: bool = False, **fields: Any) -> AsyncIterator[StreamSession]:
        streams, sid = (self.client.calls, self.call) if call else (self.client.conferences, self.conference)
        fields = {"track": "inbound_track", "when_lost": "restart", "name": "mine"} | fields
        async with self.receiver.open(streams, sid, url=self.line.url, **fields) as session:
            await asyncio.sleep(0.05)
            yield session

    async def read(self, session: StreamSession) -> None:
        async for event in session:
            self.events.append(event)
            if isinstance(event, GapEvent):
                self._gaps.put_nowait(event)

    async def gap(self) -> GapEvent:
        """Wait for the next gap that is read."""
        async with asyncio.timeout(110):
            return await self._gaps.get()

    async def drain(self, listener: Any) -> list[Any]:
        return [item async for item in listener]

    @property
    def gaps(self) -> list[GapEvent]:
        return [event for event in self.events if isinstance(event, GapEvent)]

    async def close_with(self, code: int) -> None:
        """Have the Space close its socket without a stop event."""
        [call] = self.space._dialer._calls.values()
        assert call.media is not None
        await call.media._socket.close(code=code)

    async def lose(self, how: str) -> None:
        match how:
            case "reset":
                self.line.reset()
            case "half-open":
                self.line.freeze()
            case _:
                await self.close_with(1011)


@pytest.fixture
async def make(trust: ssl.SSLContext, client_for: Any, serve: Any, certificate: ssl.SSLContext) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def make(*, real_time: bool = True, **options: Any) -> Setting:
            receiver = MediaReceiver(bidirectional=True, **{"heartbeat": 2.0} | options)
            line = await stack.enter_async_context(lossy_line(await serve(receiver, ssl_context=certificate)))
            space = SimulatedSpace(
                conferences=1,
                calls=1,
                participants=0,
                audio=Tone(),
                ssl_context=trust,
                bidirectional=True,
                real_time=real_time,
            )
            await stack.enter_async_context(space)
            return Setting(space, receiver, line, client_for(space))

        yield make


@pytest.mark.parametrize("how", ["reset", "half-open", "1011"])
@pytest.mark.parametrize("call", [False, True])
async def test_session_goes_on_over_a_new_socket(make: Any, how: str, call: bool) -> None:
    there: Setting = await make()
    async with there.open(call=call) as session:
        reading = asyncio.create_task(there.read(session))
        first = session.stream_sid
        await there.lose(how)
        gap = await there.gap()
        assert (gap.lost_stream_sid, gap.stream_sid) == (first, session.stream_sid)
        assert session.stream_sid != first
        assert session.label == first
        assert gap.seconds < (6 if how == "half-open" else 2)
        assert (session.statistics.restarts, session.statistics.gap_seconds) == (1, gap.seconds)
        frames = session.statistics.of("inbound").frames
        await asyncio.sleep(0.2)
        assert session.statistics.of("inbound").frames >= frames + 5
        assert session.end_reason is None
        assert there.receiver.sessions == {session}
        assert len(there.space.streams.active()) == 1
    await reading
    assert session.end_reason is EndReason.STOPPED
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])
    media = [event for event in there.events if isinstance(event, MediaEvent)]
    assert [event.chunk for event in media] == sorted({event.chunk for event in media})


@any_server
async def test_telemetry_counts_each_frame_once_and_each_stream_by_its_own_end(make: Any) -> None:
    there: Setting = await make()
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    providers: dict[str, Any] = {"meter_provider": MeterProvider([reader]), "tracer_provider": TracerProvider()}
    providers["tracer_provider"].add_span_processor(SimpleSpanProcessor(exporter))

    def metric(name: str) -> dict[str, int]:
        data: Any = reader.get_metrics_data()
        [metrics] = [scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics]
        [found] = [each for each in metrics if each.name == f"signalwire.streams.{name}"]
        return {next(iter(point.attributes.values())): point.value for point in found.data.data_points}

    with instrument(there.receiver, **providers):
        async with there.open() as session:
            reading = asyncio.create_task(there.read(session))
            for _ in range(2):
                there.line.reset()
                await there.gap()
                await asyncio.sleep(0.2)
            assert metric("frames")["inbound"] == session.statistics.tracks["inbound"].frames
        await reading
        await until(lambda: len(exporter.get_finished_spans()) == 3)
        inbound = session.statistics.tracks["inbound"]
        assert metric("frames")["inbound"] == inbound.frames
        assert metric("frames.lost")["inbound"] == inbound.missing
        ends = metric("sessions.ended")
    assert ends.pop("stopped") == 1
    assert sum(ends.values()) == 2
    assert ends.keys() <= {"connection_lost", "closed"}
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert sum(int(str(span["signalwire.inbound.frames"])) for span in spans) == inbound.frames
    assert len({span["signalwire.stream.sid"] for span in spans}) == 3


async def test_session_ends_when_the_conference_is_over(make: Any) -> None:
    """It ends as it would have ended without a restart, and nothing more is started."""
    there: Setting = await make()
    async with there.open() as session:
        there.space.end_conference(there.conference)
        there.line.reset()
        async with asyncio.timeout(20):
            await there.read(session)
        assert session.end_reason in {EndReason.LOST, EndReason.CLOSED}  # as the server reports it
        assert there.gaps == []
    assert len(there.space.streams) == 1
    assert there.space.requests.count("stop-conference-stream") == 0


@any_server
async def test_stop_event_ends_the_session(make: Any) -> None:
    """Somebody stopped the stream, which is no loss."""
    there: Setting = await make()
    async with there.open() as session:
        there.space.streams.stop(there.space.streams.active(), 0.0)
        await session.wait_closed()
        assert session.end_reason is EndReason.STOPPED
    assert len(there.space.streams) == 1


async def test_default_is_to_end_with_the_stream(make: Any) -> None:
    there: Setting = await make()
    async with there.open(when_lost="end") as session:
        there.line.reset()
        await session.wait_closed()
    assert session.end_reason in {EndReason.LOST, EndReason.CLOSED}  # as the server reports it
    assert len(there.space.streams) == 1


@any_server
@pytest.mark.parametrize(
    ("refusal", "times", "least"),
    [
        ({"kind": "status", "status": 503}, 4, 1 + 2 + 4 + 8),
        ({"kind": "status", "status": 401}, 4, 1 + 2 + 4 + 8),
        ({"kind": "duplicate-name"}, 2, 3 + 3),
    ],
)
async def test_restart_is_repeated_while_it_is_rejected(
    make: Any, refusal: dict[str, Any], times: int, least: int, caplog: pytest.LogCaptureFixture
) -> None:
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        there.space.faults.add(**refusal, on="start", times=times)
        there.line.reset()
        gap = await there.gap()
        assert least <= gap.seconds < 30
        assert there.space.requests.count("start-conference-stream") == 1 + times + 1
    await reading
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])
    reasons = [line for line in caplog.messages if "is not back yet" in line or "started again already" in line]
    assert len(reasons) == 2  # that its socket was closed soon after its start, and why the restarts failed


@any_server
async def test_stream_that_lasted_for_some_seconds_is_started_again_at_once(make: Any) -> None:
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        for _ in range(2):
            await asyncio.sleep(3.0)
            there.line.reset()
            assert (await there.gap()).seconds < 0.5
    await reading


@any_server
async def test_every_loss_is_a_gap(make: Any) -> None:
    """Three losses in a row; a stream that is lost soon after its start is not started again at once."""
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        for _ in range(3):
            there.line.reset()
            await there.gap()
        first, second, third = there.gaps
        assert first.stream_sid == second.lost_stream_sid
        assert second.stream_sid == third.lost_stream_sid
        assert third.stream_sid == session.stream_sid
        assert first.seconds < second.seconds < third.seconds
        assert session.statistics.restarts == 3
        assert session.statistics.gap_seconds == pytest.approx(sum(gap.seconds for gap in there.gaps))
    await reading
    assert len(there.space.streams) == 4
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])
    assert not there.receiver._pending_streams._by_token


@pytest.mark.parametrize("turns", range(0, 60, 12))
async def test_loss_while_the_block_ends_leaves_nothing_running(make: Any, turns: int) -> None:
    """However far the restart has got."""
    there: Setting = await make()
    async with there.open() as session:
        there.line.reset()
        for _ in range(turns):
            await asyncio.sleep(0)
    assert session.end_reason is not None
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])
    assert not there.receiver._pending_streams._by_token
    assert there.receiver.sessions == set()


@pytest.mark.parametrize("moment", ["waiting", "starting", "dialling"])
async def test_block_that_is_cancelled_in_a_gap_leaves_nothing_running(make: Any, moment: str) -> None:
    there: Setting = await make()
    in_gap = asyncio.Event()

    async def use() -> None:
        async with there.open() as session:
            there.line.is_refusing = moment == "dialling"
            if moment == "waiting":
                there.space.faults.add("status", on="start", status=503)
            elif moment == "starting":
                there.space.faults.add("latency", on="start", seconds=3)
            there.line.reset()
            in_gap.set()
            await session.wait_closed()

    using = asyncio.create_task(use())
    await in_gap.wait()
    await until(lambda: there.space.requests.count("start-conference-stream") >= 2)
    await asyncio.sleep(1)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await until(lambda: not there.receiver._pending_streams._by_name)
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])
    assert not there.receiver._pending_streams._by_token


@any_server
async def test_stream_whose_socket_does_not_come_is_started_again(make: Any) -> None:
    """The Space accepts the start, but does not reach the receiver for a while."""
    there: Setting = await make()
    async with there.open(socket_timeout=3) as session:
        reading = asyncio.create_task(there.read(session))
        there.line.is_refusing = True
        there.line.reset()
        await until(lambda: there.line.opened >= 4)
        there.line.is_refusing = False
        await there.gap()
        assert session.statistics.restarts == 1
    await reading
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])


@any_server
async def test_response_of_a_restart_may_be_lost_on_a_conference(make: Any) -> None:
    """The socket shows that the stream was started; if it does not come, the Space rejects a second one."""
    there: Setting = await make()
    for executed in (True, False):
        there.events.clear()
        async with there.open() as session:
            reading = asyncio.create_task(there.read(session))
            there.space.faults.add("reset", on="start", executed=executed, times=1)
            there.line.reset()
            await there.gap()
            await asyncio.sleep(5)
            assert len(there.space.streams.active()) == 1
        await reading
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])


@any_server
async def test_session_ends_in_doubt_on_a_call(make: Any) -> None:
    """Nobody can know whether the restart whose response was lost will still be carried out."""
    there: Setting = await make()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(there.open(call=True, socket_timeout=3))
        tap, pcm = session.tap(), session.pcm(8000)
        there.space.faults.add("reset", on="start", executed=False, times=1)
        there.line.reset()
        for loop in (there.read(session), there.drain(tap), there.drain(pcm), there.drain(session.tap())):
            with pytest.raises(StreamOutcomeUnknownError, match="another one may be running") as caught:
                await loop
            assert (caught.value.name, caught.value.target, caught.value.sent) == ("mine", there.call, "maybe")
        assert session.end_reason is EndReason.IN_DOUBT
        assert there.space.requests.count("start-call-stream") == 2
        there.space.faults.add("status", on="stop", status=404, body="api")
        with pytest.raises(OpenError, match="may still be running") as failed:
            await stack.aclose()
        assert failed.value.stage == "stop"


@any_server
async def test_session_ends_if_the_space_takes_no_name_twice(make: Any) -> None:
    """Rather than wait for a name that is refused for ever; and a name that was refused at first may be taken later."""
    there: Setting = await make()
    there.space.duplicate_names = "http-error"
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        rule = there.space.faults.add("duplicate-name", on="start", as_="http-error", times=2)
        for _ in range(2):
            there.line.reset()
            await there.gap()
            rule.remove()
            rule = there.space.faults.add("duplicate-name", on="start", as_="http-error", times=2)
        rule.remove()
        there.space.faults.add("duplicate-name", on="start", as_="http-error")
        before = there.space.requests.count("start-conference-stream")
        began = asyncio.get_running_loop().time()
        there.line.reset()
        with pytest.raises(StreamOutcomeUnknownError, match=r"refuses the name mine, so it .*: open a new session"):
            await reading
        assert session.end_reason is EndReason.IN_DOUBT
        assert there.space.requests.count("start-conference-stream") == before + 3
        assert asyncio.get_running_loop().time() - began == pytest.approx(10.0, abs=1.0), "the last two waits are 3 s"
    assert there.space.streams.active() == []


@any_server
async def test_socket_ends_the_doubt_on_a_call(make: Any) -> None:
    there: Setting = await make()
    async with there.open(call=True) as session:
        reading = asyncio.create_task(there.read(session))
        there.space.faults.add("reset", on="start", executed=True, times=1)
        there.line.reset()
        await there.gap()
        assert session.end_reason is None
    await reading
    assert (there.space.streams.active(), there.space.streams.duplicates()) == ([], [])


def silent_spans(frames: "list[PcmFrame]") -> list[tuple[int, int]]:
    """Return the spans of silence among frames, in milliseconds from the first one."""
    spans: list[tuple[int, int]] = []
    for number, frame in enumerate(frames):
        if not any(frame.data):
            begin = spans.pop()[0] if spans and spans[-1][1] == 20 * number else 20 * number
            spans.append((begin, 20 * number + 20))
    return spans


@pytest.mark.parametrize("seconds", [0.2, 1.3, 5.0])
async def test_audio_after_a_gap_is_in_its_place(make: Any, seconds: float, tmp_path: Path) -> None:
    """In PCM of both kinds and in recordings, the gap is silence for as long as it was."""
    there: Setting = await make()
    loop = asyncio.get_running_loop()
    async with there.open(track="both_tracks") as session:
        begun_at = session._started_at
        assert begun_at is not None
        heard = [asyncio.create_task(there.drain(session.pcm(8000, late=late))) for late in ("keep", "drop")]
        with WavRecorder(tmp_path / "all.wav", session.audio_format) as recording:
            reading = asyncio.create_task(there.read(session))
            await asyncio.sleep(2.5)
            there.space.faults.add("latency", on="start", seconds=seconds, executed=False)
            lost = loop.time() - begun_at
            there.line.reset()
            await there.gap()
            back = loop.time() - begun_at
            await asyncio.sleep(2)
            ended = loop.time() - begun_at
            there.space.streams.stop(there.space.streams.active(), 0.0)
            await reading
            for event in there.events:
                if isinstance(event, MediaEvent):
                    recording.write(event)
        frames = [await task for task in heard]
    assert there.gaps[0].seconds == pytest.approx(back - lost, abs=0.03)
    with wave.open(str(tmp_path / "all.wav")) as recorded:
        assert recorded.getnframes() / 8000 == pytest.approx(ended, abs=0.041)
        stereo = recorded.readframes(recorded.getnframes())
    [silence] = [len(run) / 32_000 for run in re.findall(rb"\0{4000,}", stereo)]
    assert silence == pytest.approx(back - lost, abs=0.041)
    for late in frames:
        assert 0.02 * len(late) == pytest.approx(ended, abs=0.12)
        begin, end = max(silent_spans(late), key=lambda span: span[1] - span[0])
        assert [begin / 1000, end / 1000] == pytest.approx([lost, back], abs=0.1)
        assert sum(frame.missing_ms for frame in late) == 0
    statistics = session.statistics.of("inbound")
    assert statistics.gaps == 1
    assert 0.02 * statistics.missing == pytest.approx(back - lost, abs=0.041)
    assert (statistics.sequence_resets, statistics.invalid_sequence) == (0, 0)


async def test_playback_across_a_gap(make: Any) -> None:
    """What was not heard is dropped, and said; what is passed in the gap is heard after it."""
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        playback, loop = session.playback, asyncio.get_running_loop()
        playback.now = loop.time
        playing = asyncio.create_task(playback.play(b"\x01" * 16_000))
        queued = asyncio.create_task(playback.play(b"\x02" * 8000))
        flushing = asyncio.create_task(playback.flush())
        finishing = asyncio.create_task(playback.finish())
        marking = asyncio.create_task(playback.mark("never"))
        await asyncio.sleep(0.75)
        there.space.faults.add("latency", on="start", seconds=2, executed=False)
        there.line.reset()
        heard = await playing
        assert heard == pytest.approx(750, abs=40)
        assert await queued == 0
        in_gap = asyncio.create_task(playback.play(b"\x03" * 1600))
        cleared = asyncio.create_task(playback.play(b"\x04" * 1600))
        await asyncio.sleep(0.1)
        assert await playback.clear() == 0
        assert (await in_gap, await cleared) == (0, 0)
        assert there.gaps == []
        in_gap = asyncio.create_task(playback.play(b"\x05" * 1600))
        pressing = asyncio.create_task(playback.send_dtmf("12"))
        await asyncio.sleep(0)
        gap = await there.gap()
        assert gap.unheard_ms == pytest.approx(2000 - heard, abs=1)
        assert await in_gap == 200
        await asyncio.gather(flushing, marking, pressing)
        assert await finishing == 0
        await playback.mark("here")
        lost, there_now = there.space.streams
        assert set(lost.played_audio) <= {1}
        assert bytes(there_now.played_audio) == b"\x05" * 1600
        assert there_now.dtmf_received == "12"
        assert there_now.ignored_messages == 0
        assert playback.position == pytest.approx(heard + 200, abs=40)
    await reading
    with pytest.raises(TransportError, match="has ended"):
        await playback.play(b"\x06")


async def test_audio_that_went_into_a_dead_line_was_not_heard(make: Any) -> None:
    """The loss is noticed some seconds later, but nothing has arrived since."""
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        session.playback.now = asyncio.get_running_loop().time
        playing = asyncio.create_task(session.playback.play(b"\x01" * 80_000))
        await asyncio.sleep(1)
        there.line.freeze()
        assert await playing == pytest.approx(1000, abs=40)
        gap = await there.gap()
        assert gap.unheard_ms == pytest.approx(9000, abs=40)
    await reading


@any_server
async def test_playback_waits_in_a_gap_until_the_session_ends(make: Any) -> None:
    there: Setting = await make()
    async with there.open() as session:
        there.space.faults.add("status", on="start", status=503)
        there.line.reset()
        await asyncio.sleep(0.1)
        playing = asyncio.create_task(session.playback.play(bytes(160)))
        await asyncio.sleep(1)
        assert not playing.done()
    with pytest.raises(TransportError, match="has ended"):
        await playing


async def test_receiver_that_is_closed_in_a_gap_ends_the_session(make: Any) -> None:
    there: Setting = await make()
    async with there.open() as session:
        there.space.faults.add("status", on="start", status=503)
        there.line.reset()
        await asyncio.sleep(1)
        await there.receiver.aclose()
        assert session.end_reason is EndReason.SHUTDOWN
    assert there.space.streams.active() == []


async def test_stream_is_not_started_again_once_the_receiver_closes(make: Any) -> None:
    there: Setting = await make()
    async with there.open() as session:
        closing = asyncio.create_task(there.receiver.aclose(30))
        await asyncio.sleep(0.1)
        there.line.reset()
        await session.wait_closed()
        assert session.end_reason in {EndReason.LOST, EndReason.CLOSED}
        await closing
    assert len(there.space.streams) == 1


@any_server
async def test_client_that_is_closed_in_a_gap_ends_the_session(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    there: Setting = await make()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(there.open())
        there.space.faults.add("status", on="start", status=503)
        there.line.reset()
        await asyncio.sleep(0.5)
        await there.client.aclose()
        await session.wait_closed()
        assert session.end_reason in {EndReason.LOST, EndReason.CLOSED}
        assert "is not started again" in caplog.text
        assert "Traceback" not in caplog.text
        with pytest.raises(OpenError, match="may still be running"):
            await stack.aclose()


@any_server
async def test_open_says_what_to_write_for_when_lost(make: Any) -> None:
    there: Setting = await make()

    class Streams:
        start_stream = None  # which is not called

    for streams, when_lost, message in (
        (there.client.conferences, "start", "must be 'end' or 'restart', not 'start'"),
        (there.client.conferences, None, "must be 'end' or 'restart', not None"),
        (Streams(), "restart", "needs more than a Streams can do: pass client.conferences or client.calls"),
    ):
        opening: Any = there.receiver.open
        with pytest.raises(InvalidRequestError, match=message):
            await opening(streams, there.conference, url=there.line.url, when_lost=when_lost).__aenter__()
    assert not there.receiver._pending_streams._by_token
    assert len(there.space.requests) == 0


def start_event(sid: str | None, rate: int = 8000, **more: Any) -> dict[str, Any]:
    audio = {"encoding": "audio/x-mulaw", "sampleRate": rate, "channels": 1}
    return {"event": "start", "start": {"streamSid": sid, "tracks": ["inbound"], "mediaFormat": audio} | more}


def media_event(chunk: int, *, timestamp: int | None = None, track: str = "inbound") -> dict[str, Any]:
    body = {"track": track, "chunk": chunk, "payload": "/////w=="} | (
        {} if timestamp is None else {"timestamp": timestamp}
    )
    return {"event": "media", "media": body}


class ByHand:
    """A Space that starts streams, whose sockets are opened by the test."""

    def __init__(self, space: SimulatedSpace, receiver: MediaReceiver, url: str, client: Any, dial: Any) -> None:
        self.space, self.receiver, self.url, self.client, self._dial = space, receiver, url, client, dial
        self.call, self.conference = space.call_sids[0], space.conference_sids[0]
        self.client_for: Any

    async def dial(self, number: int, *events: dict[str, Any]) -> Any:
        """Open the socket of a stream that was started, counted from 0, and send events; by default a start event."""
        await until(lambda: len(self.space.streams) > number, interval=0.1)
        stream = self.space.streams[number]
        peer = await self._dial(self.url, stream.authorization_bearer_token)
        for event in events or (start_event(stream.sid),):
            await peer.send_json(event)
        return peer

    @asynccontextmanager
    async def open(self, *events: dict[str, Any], call: bool = False, **fields: Any) -> AsyncIterator[Any]:
        """Open a stream; return the session and the other end of its socket."""
        streams, sid = (self.client.calls, self.call) if call else (self.client.conferences, self.conference)
        dialling = asyncio.create_task(self.dial(len(self.space.streams), *events))
        opening: Any = self.receiver.open
        fields = {"name": "mine", "when_lost": "restart", "socket_timeout": 3.0} | fields
        async with opening(streams, sid, url="wss://rx.example.com/a", **fields) as session:
            yield session, await dialling


@pytest.fixture
async def by_hand(client_for: Any, serve: Any, dial: Any) -> AsyncIterator[ByHand]:
    receiver = MediaReceiver(bidirectional=True, max_queue=20)
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1, calls=1, participants=0) as space:
        there = ByHand(space, receiver, url, client_for(space), dial)
        there.client_for = client_for
        yield there


def lose(peer: Any) -> None:
    peer._response.connection.transport.abort()


@any_server
async def test_numbering_goes_on_after_a_gap(by_hand: ByHand) -> None:
    """Also that of frames that come before the start event; a frame without a number stays without."""
    async with by_hand.open() as (session, peer):
        await asyncio.sleep(3)
        for chunk in (1, 2):
            await peer.send_json(media_event(chunk, timestamp=20 * chunk))
        await peer.send_json(media_event(7, track="untimed"))
        events = aiter(session)
        before = [await anext(events), await anext(events)]
        await anext(events)
        lose(peer)
        early = media_event(1, timestamp=0)
        peer_again = await by_hand.dial(1, early, start_event("next"))
        for frame in (
            media_event(2, timestamp=20),
            media_event(2, track="outbound"),
            {"event": "media", "media": {"payload": ""}},
            media_event(1, track="untimed"),
        ):
            await peer_again.send_json(frame)
        gap, first, second, other, bare, untimed = [await anext(events) for _ in range(6)]
        assert isinstance(gap, GapEvent)
        assert gap.stream_sid == session.stream_sid == "next"
        assert first.timestamp == pytest.approx(3000 + 1000 * gap.seconds, abs=50)
        assert first.elapsed == pytest.approx(first.timestamp / 1000, abs=0.05)
        assert second.timestamp == first.timestamp + 20
        assert (first.chunk, second.chunk) == (first.timestamp // 20, first.chunk + 1)
        assert [event.chunk for event in before] == [1, 2]
        assert (other.chunk, other.timestamp) == (2, None)
        assert (bare.chunk, bare.timestamp) == (None, None)
        assert (untimed.chunk, untimed.timestamp) == (8, None)


@any_server
@pytest.mark.parametrize(("before", "after"), [(None, None), (140, None), (None, 20)])
async def test_numbering_without_timestamps_goes_on_as_if_nothing_was_lost(
    by_hand: ByHand, before: int | None, after: int | None
) -> None:
    async with by_hand.open() as (session, peer):
        await peer.send_json(media_event(7, timestamp=before))
        events = aiter(session)
        await anext(events)
        lose(peer)
        peer_again = await by_hand.dial(1)
        for chunk in (1, 2):
            await peer_again.send_json(media_event(chunk, timestamp=after))
        gap, first, second = [await anext(events) for _ in range(3)]
        assert isinstance(gap, GapEvent)
        assert (first.chunk, second.chunk) == (8, 9)


@any_server
async def test_other_encoding_does_not_continue_a_session(by_hand: ByHand) -> None:
    """The socket is closed, and the stream is started again."""
    async with by_hand.open() as (session, peer):
        lose(peer)
        odd = await by_hand.dial(1, start_event("odd", rate=16_000))
        assert (await odd.receive()).data == 1008
        nameless = await by_hand.dial(2, start_event(None))
        assert (await nameless.receive()).data == 1008
        await by_hand.dial(3)
        assert isinstance(await anext(aiter(session)), GapEvent)
        assert session.audio_format.sample_rate == 8000
    assert (by_hand.space.streams.active(), by_hand.space.streams.duplicates()) == ([], [])
    assert not by_hand.receiver._pending_streams._by_token


@any_server
async def test_newest_stream_has_the_session(by_hand: ByHand) -> None:
    """Where a Space allows two of one name, and the first socket comes late: the older stream is stopped."""
    space = by_hand.space
    async with by_hand.open() as (session, peer):
        events = aiter(session)
        space.faults.add("reset", on="start", executed=True, times=1)
        lose(peer)
        await until(lambda: len(space.streams) == 2)
        second = space.streams[1]
        space.streams.stop([second], 0.0)
        await until(lambda: len(space.streams) == 3)
        await by_hand.dial(2)
        gap = await anext(events)
        assert gap.stream_sid == space.streams[2].sid
        late = await by_hand.dial(1)
        assert (await late.receive()).data == 1008
        assert session.stream_sid == space.streams[2].sid
        await asyncio.sleep(1)
        assert session.end_reason is None
        assert space.streams[2].alive


@any_server
async def test_newer_stream_takes_over_from_an_older_one(by_hand: ByHand) -> None:
    space = by_hand.space
    async with by_hand.open() as (session, peer):
        events = aiter(session)
        space.faults.add("reset", on="start", executed=True, times=1)
        lose(peer)
        await until(lambda: len(space.streams) == 2)
        space.streams.stop([space.streams[1]], 0.0)  # as a Space does that allows a second one
        await until(lambda: len(space.streams) == 3)
        older = await by_hand.dial(1)
        first = await anext(events)
        await by_hand.dial(2)
        second = await anext(events)
        assert (first.stream_sid, second.lost_stream_sid) == (space.streams[1].sid, space.streams[1].sid)
        assert second.stream_sid == session.stream_sid == space.streams[2].sid
        assert (await older.receive()).type in {
            aiohttp.WSMsgType.ERROR,
            aiohttp.WSMsgType.CLOSED,
            aiohttp.WSMsgType.CLOSE,
        }
        await asyncio.sleep(1)
        assert (session.end_reason, session.statistics.restarts) == (None, 2)
    assert space.streams.active() == []


@any_server
async def test_session_without_a_sid_is_started_again(by_hand: ByHand) -> None:
    """The response has the sid of its stream."""
    async with by_hand.open(start_event(None)) as (session, peer):
        lose(peer)
        await by_hand.dial(1)
        gap = await anext(aiter(session))
        assert gap.lost_stream_sid is None
        assert not by_hand.space.streams[0].alive
    assert (by_hand.space.streams.active(), by_hand.space.streams.duplicates()) == ([], [])


@any_server
async def test_callback_tells_in_a_gap_that_the_stream_failed(by_hand: ByHand) -> None:
    """So the next start does not wait for its socket; a callback that is not about it changes nothing."""
    async with by_hand.open(socket_timeout=60) as (session, peer):
        lose(peer)
        await until(lambda: len(by_hand.space.streams) == 2)
        failed = by_hand.space.streams[1]
        began = asyncio.get_running_loop().time()
        await until(lambda: by_hand.space.requests.count("start-conference-stream") == 2)
        about: Any = {"conference_sid": by_hand.conference, "stream_name": "mine", "error": "connection_refused"}
        await by_hand.receiver.handle_status_callback(StreamFailed(stream_sid="another", **about))
        await asyncio.sleep(0.1)
        await by_hand.receiver.handle_status_callback(StreamFailed(stream_sid=failed.sid, **about))
        by_hand.space.streams.stop([failed], 0.0)
        await by_hand.dial(2)
        assert isinstance(await anext(aiter(session)), GapEvent)
        assert asyncio.get_running_loop().time() - began < 10
        await by_hand.receiver.handle_status_callback(StreamFailed(stream_sid=by_hand.space.streams[2].sid, **about))
        assert session.end_reason is None
    assert by_hand.space.streams.active() == []


@any_server
async def test_restart_waits_for_the_response_of_the_first_start(by_hand: ByHand) -> None:
    """If it names another stream than the socket's, that one is stopped too."""
    second_sid = ""
    by_hand.space.faults.add("latency", on="start", seconds=2, times=1)
    async with by_hand.open(start_event("elsewhere")) as (session, peer):
        lose(peer)
        await asyncio.sleep(0.5)
        assert by_hand.space.requests.count("start-conference-stream") == 1
        await by_hand.dial(1)
        assert isinstance(await anext(aiter(session)), GapEvent)
        second_sid = by_hand.space.streams[0].sid
        assert not by_hand.space.streams[0].alive
    assert second_sid
    assert (by_hand.space.streams.active(), by_hand.space.streams.duplicates()) == ([], [])


@any_server
@pytest.mark.parametrize("responds", [True, False])
async def test_first_start_of_several_attempts_leaves_a_doubt_on_a_call(by_hand: ByHand, responds: bool) -> None:
    """Either of them may have made another stream; on a conference the Space would have rejected it."""
    by_hand.client = by_hand.client_for(by_hand.space, retry=RetryPolicy(resend_call_starts=True))
    by_hand.space.faults.add("reset", on="start", executed=True, times=1)
    if not responds:
        by_hand.space.faults.add("reset", on="start", executed=False)
    async with AsyncExitStack() as stack:
        session, peer = await stack.enter_async_context(by_hand.open(call=True))
        lose(peer)
        with pytest.raises(StreamOutcomeUnknownError):
            await anext(aiter(session))
        assert session.end_reason is EndReason.IN_DOUBT
    assert by_hand.space.streams.active() == []


@any_server
async def test_target_that_cannot_be_looked_at_counts_as_in_progress(by_hand: ByHand) -> None:
    async with by_hand.open() as (session, peer):
        by_hand.space.faults.add("status", on="get", status=403)
        lose(peer)
        await by_hand.dial(1)
        assert isinstance(await anext(aiter(session)), GapEvent)


async def test_unreadable_socket_is_a_loss(by_hand: ByHand) -> None:
    async with by_hand.open() as (session, peer):
        await peer.send_str("x" * 100_000)
        await by_hand.dial(1)
        assert isinstance(await anext(aiter(session)), GapEvent)


async def test_queue_without_room_for_the_gap_ends_the_session(by_hand: ByHand) -> None:
    async with by_hand.open() as (session, peer):
        for _ in range(20):
            await peer.send_json({"event": "dtmf", "dtmf": {"digit": "1"}})
        lose(peer)
        await by_hand.dial(1)
        await session.wait_closed()
        assert session.end_reason is EndReason.OVERFLOW
    assert by_hand.space.streams.active() == []


@any_server
async def test_bug_in_a_restart_ends_the_session(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with by_hand.open() as (session, peer):
        monkeypatch.setattr(TargetRequests, "get", None)
        lose(peer)
        await session.wait_closed()
        assert "TypeError" in caplog.text
    assert by_hand.space.streams.active() == []


@any_server
async def test_block_that_ends_before_a_restart_is_sent_sends_none(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out, decided = Restarter._execute, asyncio.Event()

    def carry_out_and_end(restarter: Restarter, action: Any) -> None:
        carry_out(restarter, action)
        if isinstance(action, StartStream):
            decided.set()
            restarter._is_over = True  # as `end` does

    monkeypatch.setattr(Restarter, "_execute", carry_out_and_end)
    async with by_hand.open() as (session, peer):
        lose(peer)
        await decided.wait()
    assert session.end_reason is not None
    assert len(by_hand.space.streams) == 1
    assert by_hand.space.streams.active() == []


async def test_receiver_that_closes_as_the_socket_opens_ends_the_session(
    by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume, closing = Restarter.resume, []

    def resume_and_close(restarter: Restarter, attempt: int, session: StreamSession) -> StreamSession:
        closing.append(asyncio.create_task(by_hand.receiver.aclose()))
        return resume(restarter, attempt, session)

    monkeypatch.setattr(Restarter, "resume", resume_and_close)
    async with by_hand.open() as (session, peer):
        lose(peer)
        await by_hand.dial(1)
        await session.wait_closed()
        assert session.end_reason is EndReason.SHUTDOWN
        await closing[0]
    assert by_hand.space.streams.active() == []


class Sending:
    """A socket whose messages go no further than this function."""

    def __init__(self, send: Callable[[], Awaitable[None]]) -> None:
        self._send = send

    async def send_str(self, _: str) -> None:
        await self._send()
        raise ConnectionError


@any_server
async def test_playback_may_notice_the_loss_first(by_hand: ByHand) -> None:
    """It drops what can't be sent, as it does when the session is told; a digit that may be lost is an error."""
    async with by_hand.open() as (session, peer):
        playback = session.playback
        playback.now = asyncio.get_running_loop().time

        async def nowhere() -> None:
            pass

        playback.socket = Sending(nowhere)
        assert await playback.play(bytes(1600)) == 0
        playback.socket, playback._connected = Sending(nowhere), open_event()
        await playback.mark("never")
        playback.socket, playback._connected = Sending(nowhere), open_event()
        assert await playback.clear() == 0
        playback.socket, playback._connected = Sending(nowhere), open_event()
        with pytest.raises(TransportError, match="lost while a digit was sent") as caught:
            await playback.send_dtmf("5")
        assert caught.value.sent == "maybe"
        lose(peer)
        there = await by_hand.dial(1)
        await playback.send_dtmf("6")
        assert (await there.receive_json())["dtmf"] == {"digit": "6"}


@any_server
async def test_send_that_fails_late_does_not_interrupt_the_new_stream(by_hand: ByHand) -> None:
    async with by_hand.open() as (session, peer):
        playback, may_fail = session.playback, asyncio.Event()
        playback.now = asyncio.get_running_loop().time

        async def late() -> None:
            await may_fail.wait()

        cancelled = asyncio.create_task(playback.mark("for nobody"))
        assert (await peer.receive_json())["event"] == "mark"
        cancelled.cancel()

        playback.socket = Sending(late)
        playing = asyncio.create_task(playback.play(bytes(1600)))
        await asyncio.sleep(0)
        lose(peer)
        there = await by_hand.dial(1)
        assert isinstance(await anext(aiter(session)), GapEvent)
        may_fail.set()
        assert await playing == 0
        await playback.send_dtmf("6")
        assert (await there.receive_json())["dtmf"] == {"digit": "6"}


@any_server
async def test_send_that_fails_because_the_session_has_ended_is_an_error(by_hand: ByHand) -> None:
    async with by_hand.open() as (session, _):

        async def last() -> None:
            session._close(EndReason.STOPPED)

        session.playback.socket = Sending(last)
        with pytest.raises(TransportError, match="broke while sending"):
            await session.playback.play(bytes(160))


def open_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
