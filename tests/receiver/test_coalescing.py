"""Reading several frames at once: how many, how late, and never so that something is not read at all."""

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import aiohttp
import pytest

from signalwire_streams import Clock, InvalidRequestError
from signalwire_streams.receiver import DtmfEvent, EndReason, MediaEvent, MediaReceiver, _aiohttp_socket
from signalwire_streams.receiver._read_coalescing import CoalescedReads

from .conftest import Heard, until
from .test_receiver import START, media, reset

SECONDS = 0.1


class Option:
    """A transport whose socket notes what is set."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.set: list[int] = []
        self._error = error

    def get_extra_info(self, _: str) -> "Option":
        return self

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.set.append(value)
        if self._error is not None:
            raise self._error


def reads_over(option: Option) -> CoalescedReads:
    return CoalescedReads(option, SECONDS, set())  # type: ignore[arg-type]


def feed(reads: CoalescedReads, first: int, last: int, size: int = 400) -> None:
    """Read frames of 20 ms, by number."""
    for number in range(first, last):
        reads.on_read(size, 100 + number * 0.02)


def test_low_water_is_set_once_half_a_second_was_measured() -> None:
    option = Option()
    reads = reads_over(option)
    feed(reads, 0, 25)
    assert option.set == []
    feed(reads, 25, 200)
    assert option.set == [1700]  # 85 % of five frames


def test_low_water_follows_the_stream() -> None:
    option = Option()
    reads = reads_over(option)
    feed(reads, 0, 30)
    feed(reads, 30, 100, size=800)
    feed(reads, 100, 200, size=100)
    assert option.set[0] == 1700
    assert 3400 in option.set
    assert option.set[-1] == 425


def test_low_water_is_lowered_when_nothing_was_read_and_restored_by_the_next_read() -> None:
    option = Option()
    reads = reads_over(option)
    feed(reads, 0, 30)
    reads.check(100 + 29 * 0.02 + 0.09)
    assert option.set == [1700]
    for _ in range(2):
        reads.check(100 + 29 * 0.02 + 0.11)
    assert option.set == [1700, 1]
    reads.on_read(10, 100.7)
    assert option.set == [1700, 1, 1700]


def test_ended_reads_stay_immediate() -> None:
    option = Option()
    reads = reads_over(option)
    feed(reads, 0, 30)
    reads.end()
    feed(reads, 30, 100)
    reads.end()
    assert option.set == [1700, 1]


@pytest.mark.parametrize("error", [OSError, ValueError, AttributeError])
def test_socket_without_the_option_is_read_at_once(error: type[Exception]) -> None:
    option = Option(error)
    reads = reads_over(option)
    feed(reads, 0, 100)
    reads.end()
    assert option.set == [1700, 1]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan"), "0.1", True, [0.1]], ids=repr)
def test_wrong_value_is_rejected(wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"^coalesce must be a number of seconds from 0 to 1, not "):
        MediaReceiver(coalesce=wrong)


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, certificate: ssl.SSLContext) -> ssl.SSLContext | None:
    return certificate if request.param == "tls" else None


class Speaker:
    """A stream that speaks in real time, by the clock of the test."""

    def __init__(self, peer: aiohttp.ClientWebSocketResponse, receiver: MediaReceiver, reads: list[float]) -> None:
        self.peer, self.receiver, self.reads = peer, receiver, reads
        self._chunks = itertools.count(1)

    @property
    def low_water(self) -> int:
        [connection] = self.receiver._watchdog.connections
        transport: Any = connection.socket.transport  # type: ignore[attr-defined]
        value: int = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        return value

    async def speak(self, frames: int) -> None:
        for _ in range(frames):
            await self.peer.send_json(media(next(self._chunks)))
            await asyncio.sleep(0.02)


Start: TypeAlias = Callable[..., Awaitable[Speaker]]


@pytest.fixture
async def start(
    idle_clock: Clock,
    serve: Any,
    heard: Heard,
    tls: ssl.SSLContext | None,
    trust: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Start]:
    """Start a stream on a receiver that coalesces."""
    reads: list[float] = []
    buffer_updated = _aiohttp_socket._BufferedReads.buffer_updated

    def noting(self: Any, nbytes: int) -> None:
        reads.append(idle_clock.now())
        buffer_updated(self, nbytes)

    monkeypatch.setattr(_aiohttp_socket._BufferedReads, "buffer_updated", noting)
    async with aiohttp.ClientSession() as session, AsyncExitStack() as stack:

        async def begin(*, handler: Any = heard, autoping: bool = True, **options: Any) -> Speaker:
            receiver = MediaReceiver(handler, bearer_tokens=None, **({"coalesce": SECONDS} | options))
            url = await serve(receiver, ssl_context=tls)
            dialing = session.ws_connect(url, ssl=trust, autoping=autoping)
            peer = await stack.enter_async_context(dialing)
            await peer.send_json(START)
            return Speaker(peer, receiver, reads)

        yield begin


def chunks_of(heard: Heard) -> list[int | None]:
    return [event.chunk for event in heard.events if isinstance(event, MediaEvent)]


async def test_several_frames_are_read_at_once(start: Start, heard: Heard) -> None:
    speaker = await start()
    await speaker.speak(50)
    assert speaker.low_water > 1
    before = len(speaker.reads)
    await speaker.speak(100)
    assert 15 <= len(speaker.reads) - before <= 50
    await speaker.peer.send_json({"event": "stop"})
    assert (await heard.end()).end_reason is EndReason.STOPPED
    assert chunks_of(heard) == list(range(1, 151))


async def test_frames_are_not_later_than_they_may_be(start: Start, heard: Heard) -> None:
    speaker = await start()
    await speaker.speak(120)
    await speaker.peer.send_json({"event": "stop"})
    session = await heard.end()
    late = sorted(
        event.elapsed - event.chunk * 0.02
        for event in heard.events
        if isinstance(event, MediaEvent) and event.elapsed and event.chunk
    )
    assert late[len(late) // 2] - late[0] <= SECONDS * 0.6 + 0.01
    assert late[-1] - late[0] <= SECONDS * 1.5 + 0.02
    assert session.statistics.tracks["inbound"].missing == 0


@pytest.mark.parametrize("coalesce", [None, 0])
async def test_receiver_without_coalescing_reads_each_frame_at_once(
    start: Start, heard: Heard, coalesce: float | None
) -> None:
    speaker = await start(coalesce=coalesce)
    await speaker.speak(60)
    assert speaker.low_water == 1
    await speaker.peer.close()
    await heard.end()
    assert len(speaker.reads) >= 60


@pytest.mark.parametrize("end", ["stop", "close", "reset", "eof"])
async def test_end_is_read_though_it_is_short(start: Start, heard: Heard, idle_clock: Clock, end: str) -> None:
    speaker = await start()
    await speaker.speak(48)
    assert speaker.low_water > 1
    await speaker.peer.send_json({"event": "dtmf", "dtmf": {"digit": "5"}})
    began = idle_clock.now()
    if end == "stop":
        await speaker.peer.send_json({"event": "stop"})
    elif end == "close":
        await speaker.peer.close()
    elif end == "reset":
        await until(lambda: DtmfEvent(digit="5") in heard.events)
        reset(speaker.peer)
    else:
        speaker.peer._conn.transport.close()  # type: ignore[union-attr]
    session = await heard.end()
    assert idle_clock.now() - began <= 2 * SECONDS + 0.05
    expected = {"stop": EndReason.STOPPED, "close": EndReason.CLOSED}
    assert session.end_reason is expected.get(end, EndReason.LOST)
    assert chunks_of(heard) == list(range(1, 49))
    assert DtmfEvent(digit="5") in heard.events


async def test_key_in_a_pause_is_read_in_time(start: Start, heard: Heard, idle_clock: Clock) -> None:
    """Again and again, with the stream going on in between."""
    speaker = await start()
    for number in range(1, 4):
        await speaker.speak(30)
        await speaker.peer.send_json({"event": "dtmf", "dtmf": {"digit": "5"}})
        began = idle_clock.now()
        await until(lambda count=number: heard.events.count(DtmfEvent(digit="5")) == count)  # type: ignore[misc]
        assert idle_clock.now() - began <= 2 * SECONDS
        await asyncio.sleep(0.5)
    assert chunks_of(heard) == list(range(1, 91))


async def test_receiver_that_is_closed_does_not_wait_for_audio(start: Start, heard: Heard, idle_clock: Clock) -> None:
    """The answer to its close frame is shorter than what it was reading."""
    speaker = await start()
    await speaker.speak(48)
    began = idle_clock.now()
    closing = asyncio.create_task(speaker.receiver.aclose(0))
    assert (await speaker.peer.receive()).type is aiohttp.WSMsgType.CLOSE
    await closing
    assert speaker.peer.close_code == 1001
    assert idle_clock.now() - began < SECONDS / 2
    assert (await heard.end()).end_reason is EndReason.SHUTDOWN


async def test_stream_that_ends_while_the_receiver_drains_is_read(start: Start, heard: Heard) -> None:
    speaker = await start()
    await speaker.speak(48)
    closing = asyncio.create_task(speaker.receiver.aclose(5))
    await speaker.speak(3)
    await speaker.peer.send_json({"event": "stop"})
    await closing
    assert (await heard.end()).end_reason is EndReason.STOPPED
    assert chunks_of(heard) == list(range(1, 52))


async def test_handler_that_returns_closes_at_once(start: Start, idle_clock: Clock) -> None:
    enough = asyncio.Event()

    async def handler(_: object) -> None:
        await enough.wait()

    speaker = await start(handler=handler)
    await speaker.speak(48)
    began = idle_clock.now()
    enough.set()
    assert (await speaker.peer.receive()).type is aiohttp.WSMsgType.CLOSE
    await until(lambda: not speaker.receiver.sessions)
    assert idle_clock.now() - began < SECONDS / 2


async def test_pong_is_read_in_time(start: Start, heard: Heard) -> None:
    """Also where a ping must be answered sooner than audio would be read."""
    speaker = await start(coalesce=1, heartbeat=0.1)
    await speaker.speak(60)
    answering = asyncio.ensure_future(speaker.peer.receive())
    await speaker.speak(60)
    await asyncio.sleep(2)
    assert not heard.sessions[0].end_reason
    answering.cancel()
    await speaker.peer.close()


async def test_streams_have_one_timer_that_ends_with_the_last_of_them(
    start: Start, heard: Heard, dial: Any, serve: Any
) -> None:
    speaker = await start()
    coalescer = speaker.receiver._coalescer
    assert coalescer is not None
    timer = coalescer._timer
    other = await dial(await serve(speaker.receiver))
    assert len(coalescer._members) == 2
    assert coalescer._timer is timer
    await other.close()
    await speaker.speak(1)
    assert coalescer._timer is not None
    await speaker.peer.close()
    await heard.end()
    await until(lambda: coalescer._timer is None)


async def test_messages_that_are_not_pushed_are_read_at_once(
    start: Start, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an aiohttp whose reader is another."""
    monkeypatch.setattr(_aiohttp_socket, "WebSocketReader", None)
    speaker = await start()
    await speaker.speak(60)
    assert speaker.low_water == 1
    await speaker.peer.close()
    await heard.end()
    assert chunks_of(heard) == list(range(1, 61))
