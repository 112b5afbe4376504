"""Sessions whose streams are lost and started again, over a line that breaks, and a Space that counts the streams."""

import asyncio
import re
import ssl
import wave
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import InvalidRequestError, OpenError, StreamOutcomeUnknownError, TransportError
from signalwire_streams.receiver import EndReason, GapEvent, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import PcmFrame, WavRecorder
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests import waiting
from tests.uvicorn_server import for_each_server as pytest_generate_tests  # noqa: F401  (a hook of pytest)

from .lossy_line import LossyLine, lossy_line

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]
until = partial(waiting.until, timeout=110.0, interval=0.01)  # on the clock that skips what is idle


class Setting:
    """A Space, a receiver, and a line between them."""

    def __init__(self, space: SimulatedSpace, receiver: MediaReceiver, line: LossyLine, client: Any) -> None:
        self.space, self.receiver, self.line, self.client = space, receiver, line, client
        self.conference, self.call = space.conference_sids[0], space.call_sids[0]
        self.events: list[Any] = []

    @asynccontextmanager
    async def open(self, *, call: bool = False, **fields: Any) -> AsyncIterator[StreamSession]:
        streams, sid = (self.client.calls, self.call) if call else (self.client.conferences, self.conference)
        fields = {"track": "inbound_track", "when_lost": "restart", "name": "mine"} | fields
        async with self.receiver.open(streams, sid, url=self.line.url, **fields) as session:
            await until(lambda: session.statistics.of("inbound").frames >= 3)
            yield session

    async def read(self, session: StreamSession) -> None:
        async for event in session:
            self.events.append(event)

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
        await until(lambda: there.gaps)
        [gap] = there.gaps
        assert (gap.lost_stream_sid, gap.stream_sid) == (first, session.stream_sid)
        assert session.stream_sid != first
        assert session.label == first
        assert gap.seconds < (6 if how == "half-open" else 2)
        assert (session.statistics.restarts, session.statistics.gap_seconds) == (1, gap.seconds)
        frames = session.statistics.of("inbound").frames
        await until(lambda: session.statistics.of("inbound").frames >= frames + 5)
        assert session.end_reason is None
        assert there.receiver.sessions == {session}
        assert len(there.space.streams.active()) == 1
    await reading
    assert session.end_reason is EndReason.STOPPED
    assert there.space.streams.active() == there.space.streams.duplicates() == []
    media = [event for event in there.events if isinstance(event, MediaEvent)]
    assert [event.chunk for event in media] == sorted({event.chunk for event in media})


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


@pytest.mark.parametrize("refusal", [{"kind": "status", "status": 503}, {"kind": "status", "status": 401}])
async def test_restart_is_repeated_while_it_is_rejected(
    make: Any, refusal: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        there.space.faults.add(**refusal, on="start", times=4)
        there.line.reset()
        await until(lambda: there.gaps)
        [gap] = there.gaps
        assert 1 + 2 + 4 + 8 <= gap.seconds < 30
        assert there.space.requests.count("start-conference-stream") == 1 + 4 + 1
    await reading
    assert there.space.streams.active() == there.space.streams.duplicates() == []
    reasons = [line for line in caplog.messages if "is not back yet" in line]
    assert len(reasons) == 2  # that its socket was closed soon after its start, and why the restarts failed


async def test_every_loss_is_a_gap(make: Any) -> None:
    """Three losses in a row; a stream that is lost soon after its start is not started again at once."""
    there: Setting = await make()
    async with there.open() as session:
        reading = asyncio.create_task(there.read(session))
        for number in range(1, 4):
            there.line.reset()
            await until(lambda: len(there.gaps) == number)  # noqa: B023  (it is called at once)
        first, second, third = there.gaps
        assert first.stream_sid == second.lost_stream_sid
        assert second.stream_sid == third.lost_stream_sid
        assert third.stream_sid == session.stream_sid
        assert first.seconds < second.seconds < third.seconds
        assert session.statistics.restarts == 3
        assert session.statistics.gap_seconds == pytest.approx(sum(gap.seconds for gap in there.gaps))
    await reading
    assert len(there.space.streams) == 4
    assert there.space.streams.active() == there.space.streams.duplicates() == []
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
    assert there.space.streams.active() == there.space.streams.duplicates() == []
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
    assert there.space.streams.active() == there.space.streams.duplicates() == []
    assert not there.receiver._pending_streams._by_token


async def test_stream_whose_socket_does_not_come_is_started_again(make: Any) -> None:
    """The Space accepts the start, but does not reach the receiver for a while."""
    there: Setting = await make()
    async with there.open(socket_timeout=3) as session:
        reading = asyncio.create_task(there.read(session))
        there.line.is_refusing = True
        there.line.reset()
        await until(lambda: there.line.opened >= 4)
        there.line.is_refusing = False
        await until(lambda: there.gaps)
        assert session.statistics.restarts == 1
    await reading
    assert there.space.streams.active() == there.space.streams.duplicates() == []


async def test_response_of_a_restart_may_be_lost_on_a_conference(make: Any) -> None:
    """The socket shows that the stream was started; if it does not come, the Space refuses a second one."""
    there: Setting = await make()
    for executed in (True, False):
        there.events.clear()
        async with there.open() as session:
            reading = asyncio.create_task(there.read(session))
            there.space.faults.add("reset", on="start", executed=executed, times=1)
            there.line.reset()
            await until(lambda: there.gaps)
            await asyncio.sleep(5)
            assert len(there.space.streams.active()) == 1
        await reading
    assert there.space.streams.active() == there.space.streams.duplicates() == []


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


async def test_socket_ends_the_doubt_on_a_call(make: Any) -> None:
    there: Setting = await make()
    async with there.open(call=True) as session:
        reading = asyncio.create_task(there.read(session))
        there.space.faults.add("reset", on="start", executed=True, times=1)
        there.line.reset()
        await until(lambda: there.gaps)
        assert session.end_reason is None
    await reading
    assert there.space.streams.active() == there.space.streams.duplicates() == []


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
            await until(lambda: there.gaps)
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
        assert (begin / 1000, end / 1000) == (pytest.approx(lost, abs=0.1), pytest.approx(back, abs=0.1))
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
        await until(lambda: there.gaps)
        [gap] = there.gaps
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


async def test_open_says_what_to_write_for_when_lost(make: Any) -> None:
    there: Setting = await make()

    class Streams:
        pass

    for streams, when_lost, message in (
        (there.client.conferences, "start", "must be 'end' or 'restart', not 'start'"),
        (there.client.conferences, None, "must be 'end' or 'restart', not None"),
        (Streams(), "restart", "pass client.conferences or client.calls"),
    ):
        opening: Any = there.receiver.open
        with pytest.raises(InvalidRequestError, match=message):
            await opening(streams, there.conference, url=there.line.url, when_lost=when_lost).__aenter__()
    assert not there.receiver._pending_streams._by_token
    assert len(there.space.requests) == 0
