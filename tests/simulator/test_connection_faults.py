"""Faults of the connection and of HTTP itself: what the client sees, what the Space does, what it logs."""

import asyncio
import errno
from io import BytesIO

import pytest
from aiohttp import (
    ClientError,
    ClientOSError,
    ClientPayloadError,
    ClientResponseError,
    ServerDisconnectedError,
)

from signalwire_streams import Clock
from signalwire_streams.simulator import FaultKind, FaultSettings, Tone, _faults
from signalwire_streams.simulator._faults import RawBytes
from signalwire_streams.simulator._responses import Response, http_message
from tests.waiting import until

from .endpoints import Endpoint, serving
from .peer import assert_logged, simulated

EXECUTED = pytest.mark.parametrize("executed", [False, True])


@EXECUTED
async def test_reset_fault_resets_the_connection(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", executed=executed, times=1)
        with pytest.raises(ClientOSError) as caught:
            await peer.start()
        assert caught.value.errno == errno.ECONNRESET
        assert_logged(peer, "reset", None, executed=executed)
        assert peer.space.connections.resets == 1
        assert (await peer.start()).status == 200


async def test_reset_fault_does_not_read_the_body() -> None:
    """The connection is reset while the request is being written, and its fields are not logged."""
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", times=1)
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        with pytest.raises(ClientError):
            await peer.send("POST", path, BytesIO(b"x" * 8_000_000))
        assert_logged(peer, "reset", None, executed=False)
        assert peer.space.requests[0].fields == {}


async def test_reset_fault_with_read_body_reads_the_body_first() -> None:
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", times=1, read_body=True)
        with pytest.raises(ClientOSError):
            await peer.start(Name="read")
        assert peer.space.requests[0].fields["Name"] == "read"


@EXECUTED
async def test_disconnect_fault_closes_the_connection(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("disconnect", on="start", executed=executed)
        with pytest.raises(ServerDisconnectedError):
            await peer.start()
        assert_logged(peer, "disconnect", None, executed=executed)
        assert peer.space.connections.resets == 0


@EXECUTED
async def test_hang_fault_lasts_until_the_client_disconnects(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("hang", on="start", executed=executed)
        starting = asyncio.create_task(peer.start())
        await peer.space.requests.wait_for(1, "start-conference-stream", peer.space.conference_sids[0])
        assert not starting.done()
        assert_logged(peer, "hang", None, executed=executed)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_hang_fault_without_read_body_does_not_read_the_body() -> None:
    async with simulated() as peer:
        peer.space.faults.add("hang", on="start", read_body=False)
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        starting = asyncio.create_task(peer.send("POST", path, BytesIO(b"x" * 8_000_000)))
        await peer.space.requests.wait_for()
        assert peer.space.requests[0].fields == {}
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


@pytest.mark.parametrize("executed", [None, False, True])
async def test_latency_fault_delays_the_response(*, executed: bool | None) -> None:
    """The request is executed before the delay, or after it with executed=False."""
    slept, asked, seconds_asked = asyncio.Event(), asyncio.Event(), list[float]()

    async def sleep(seconds: float) -> None:
        seconds_asked.append(seconds)
        asked.set()
        await slept.wait()

    async with simulated(sleep=sleep) as peer:
        peer.space.faults.add("latency", on="start", seconds=2.5, executed=executed)
        starting = asyncio.create_task(peer.start())
        if executed is not False:
            await peer.space.requests.wait_for()
            assert_logged(peer, "latency", 200, executed=True)
        else:
            await asked.wait()
            assert len(peer.space.streams) == len(peer.space.requests) == 0
        assert not starting.done()
        slept.set()
        assert (await starting).json["sid"] == peer.space.streams[0].sid
        assert seconds_asked == [2.5]
        assert_logged(peer, "latency", 200, executed=True)


async def test_executed_late_fault_executes_the_request_after_its_connection_was_closed() -> None:
    late = asyncio.Event()
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await late.wait()

    async with simulated(sleep=sleep) as peer:
        peer.space.faults.add("executed-late", on="start", times=1, seconds=30.0)
        with pytest.raises(ServerDisconnectedError):
            await peer.start(Name="late")
        assert_logged(peer, "executed-late", None, executed=False)
        assert peer.space.requests[0].fields["Name"] == "late"
        late.set()
        await until(lambda: peer.space.streams)
        [stream] = peer.space.streams
        assert (stream.name, stream.alive, waited) == ("late", True, [30.0])


async def test_request_that_is_late_when_the_space_is_closed_is_not_executed() -> None:
    async with simulated() as peer:
        peer.space.faults.add("executed-late", on="start", seconds=1000.0)
        with pytest.raises(ServerDisconnectedError):
            await peer.start()
    assert len(peer.space.streams) == 0


async def test_reset_on_connect_fault_resets_before_reading() -> None:
    async with simulated() as peer:
        rule = peer.space.faults.add("reset-on-connect", times=2)
        for _ in range(2):
            with pytest.raises((ClientOSError, ServerDisconnectedError)):
                await peer.start()
        assert rule.hits == peer.space.connections.resets == 2
        assert len(peer.space.requests) == 0
        assert (await peer.start()).status == 200
        assert peer.space.connections.opened == 3
        assert len(peer.space.connections) == 1


@EXECUTED
async def test_garbage_fault_sends_bytes_that_are_not_http(*, executed: bool) -> None:
    """Aiohttp's client reports a 400, which was not sent."""
    async with simulated() as peer:
        peer.space.faults.add("garbage", on="start", executed=executed)
        with pytest.raises(ClientResponseError) as caught:
            await peer.start()
        assert caught.value.status == 400
        assert_logged(peer, "garbage", None, executed=executed)


@EXECUTED
async def test_truncated_headers_fault_sends_part_of_the_headers(idle_clock: Clock, *, executed: bool) -> None:
    """At once."""
    began = idle_clock.now()
    async with simulated() as peer:
        peer.space.faults.add("truncated-headers", on="start", executed=executed)
        with pytest.raises(ServerDisconnectedError):
            await peer.start()
        assert idle_clock.now() - began < 0.5
        assert_logged(peer, "truncated-headers", None, executed=executed)


@EXECUTED
async def test_truncated_body_fault_sends_part_of_the_body(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("truncated-body", on="start", executed=executed)
        with pytest.raises(ClientPayloadError):
            await peer.start()
        assert_logged(peer, "truncated-body", None, executed=executed)


@EXECUTED
async def test_fault_applies_to_stops(*, executed: bool) -> None:
    async with simulated() as peer:
        sid = (await peer.start()).json["sid"]
        peer.space.faults.add("reset", on="stop", executed=executed, times=1)
        with pytest.raises(ClientOSError):
            await peer.stop(sid)
        assert peer.space.streams[0].alive is not executed
        assert (await peer.stop(sid)).status == (400 if executed else 200)


async def test_fault_applies_to_lists() -> None:
    async with simulated() as peer:
        peer.space.faults.add("truncated-body", on="list", times=1)
        with pytest.raises(ClientPayloadError):
            await peer.get("Conferences")
        assert (await peer.get("Conferences")).status == 200


@pytest.mark.parametrize("closes", [False, True])
async def test_new_kind_may_send_a_response_in_pieces(monkeypatch: pytest.MonkeyPatch, *, closes: bool) -> None:
    """Its definition is all that it needs."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def bytewise(response: Response, settings: FaultSettings) -> RawBytes:
        pieces = tuple(bytes([byte]) for byte in http_message(response))
        return RawBytes(pieces, pause=settings.seconds, closes=closes)

    definition = _faults._Definition(takes=("seconds",), executed=True, respond=bytewise)
    monkeypatch.setitem(_faults._DEFINITIONS, "garbage", definition)
    async with simulated(sleep=sleep) as peer:
        peer.space.faults.add("garbage", on="start", times=1, seconds=0.25)
        reply = await peer.start()
        assert reply.json["sid"] == peer.space.streams[0].sid
        assert pauses == [0.25] * len(pauses)
        assert len(pauses) > len(reply.body)
        assert (await peer.get("Conferences")).status == 200
        assert peer.space.connections.opened == 1 + closes


async def test_request_with_a_fault_is_validated() -> None:
    async with simulated() as peer:
        peer.space.faults.add("wrong-content-type", on="start")
        reply = await peer.start(Url="ws://rx.example.com/a")
        assert (reply.status, reply.headers["Content-Type"]) == (422, "text/plain")


async def test_request_over_the_limit_triggers_no_fault() -> None:
    async with simulated(rate_limit=0) as peer:
        rule = peer.space.faults.add("500")
        assert (await peer.start()).status == 429
        assert rule.hits == 0


def test_number_of_kinds_is_that_of_the_tested_ones() -> None:
    """A new kind needs a test here, in `test_response_faults` or in the receiver's `test_faults`."""
    assert len(FaultKind) == 40


async def test_socket_first_fault_responds_once_the_audio_was_sent() -> None:
    async def behave(there: Endpoint) -> None:
        await there.until("media", 5)

    async with serving(behave) as (url, sockets), simulated(audio=Tone(seconds=0.1), allow_ws=True) as peer:
        peer.space.faults.add("socket-first")
        assert (await peer.start(Url=url)).status == 200
        [there] = sockets
        await until(lambda: there.messages)
        assert_logged(peer, "socket-first", 200, executed=True)


@pytest.mark.usefixtures("nothing_left")
async def test_closing_the_space_ends_a_connection_that_is_being_made() -> None:
    async def behave(there: Endpoint) -> None:
        raise AssertionError

    async with serving(behave) as (url, _), simulated(audio=Tone(), allow_ws=True) as peer:
        peer.space.faults.add("socket-slow", seconds=4)
        assert (await peer.start(Url=url)).status == 200
