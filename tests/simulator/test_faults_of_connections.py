"""Faults of the connection and of HTTP itself: what the client sees, what the Space did, what the journal says."""

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

from signalwire_streams.simulator import FaultKind

from .peer import assert_journal, simulated

CREATED = pytest.mark.parametrize("created", [False, True])


@CREATED
async def test_a_reset(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", executed=created, times=1)
        with pytest.raises(ClientOSError) as caught:
            await peer.start()
        assert caught.value.errno == errno.ECONNRESET
        assert_journal(peer, "reset", None, created=created)
        assert peer.space.connections.resets == 1
        assert (await peer.start()).status == 200


async def test_a_reset_does_not_wait_for_the_body() -> None:
    """The request is cut while it is being written, and the journal has no fields of it."""
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", times=1)
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        with pytest.raises(ClientError):
            await peer.send("POST", path, BytesIO(b"x" * 8_000_000))
        assert_journal(peer, "reset", None, created=False)
        assert peer.space.requests[0].fields == {}


async def test_a_reset_can_read_the_body_first() -> None:
    async with simulated() as peer:
        peer.space.faults.add("reset", on="start", times=1, read_body=True)
        with pytest.raises(ClientOSError):
            await peer.start(Name="read")
        assert peer.space.requests[0].fields["Name"] == "read"


@CREATED
async def test_a_disconnect(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("disconnect", on="start", executed=created)
        with pytest.raises(ServerDisconnectedError):
            await peer.start()
        assert_journal(peer, "disconnect", None, created=created)
        assert peer.space.connections.resets == 0


@CREATED
async def test_a_hang_lasts_until_the_client_goes(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("hang", on="start", executed=created)
        starting = asyncio.create_task(peer.start())
        await peer.space.requests.wait_for(1, "start-conference-stream", peer.space.conference_sids[0])
        assert not starting.done()
        assert_journal(peer, "hang", None, created=created)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_a_hang_can_leave_the_body_on_the_socket() -> None:
    async with simulated() as peer:
        peer.space.faults.add("hang", on="start", read_body=False)
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        starting = asyncio.create_task(peer.send("POST", path, BytesIO(b"x" * 8_000_000)))
        await peer.space.requests.wait_for()
        assert peer.space.requests[0].fields == {}
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting


@pytest.mark.parametrize("created", [None, False, True])
async def test_latency(*, created: bool | None) -> None:
    """The operation comes before the delay unless created=False puts it behind."""
    slept, asked, seconds_asked = asyncio.Event(), asyncio.Event(), list[float]()

    async def sleep(seconds: float) -> None:
        seconds_asked.append(seconds)
        asked.set()
        await slept.wait()

    async with simulated(sleep=sleep) as peer:
        peer.space.faults.add("latency", on="start", seconds=2.5, executed=created)
        starting = asyncio.create_task(peer.start())
        if created is not False:
            await peer.space.requests.wait_for()
            assert_journal(peer, "latency", 200, created=True)
        else:
            await asked.wait()
            assert len(peer.space.streams) == len(peer.space.requests) == 0
        assert not starting.done()
        slept.set()
        assert (await starting).json["sid"] == peer.space.streams[0].sid
        assert seconds_asked == [2.5]
        assert_journal(peer, "latency", 200, created=True)


async def test_a_connection_is_reset_before_anything_is_read() -> None:
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


@CREATED
async def test_garbage_is_no_http(*, created: bool) -> None:
    """Aiohttp's client reports it as a 400 that nobody sent."""
    async with simulated() as peer:
        peer.space.faults.add("garbage", on="start", executed=created)
        with pytest.raises(ClientResponseError) as caught:
            await peer.start()
        assert caught.value.status == 400
        assert_journal(peer, "garbage", None, created=created)


@CREATED
async def test_headers_are_cut(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("truncated-headers", on="start", executed=created)
        with pytest.raises(ServerDisconnectedError):
            await peer.start()
        assert_journal(peer, "truncated-headers", None, created=created)


@CREATED
async def test_a_body_is_cut(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("truncated-body", on="start", executed=created)
        with pytest.raises(ClientPayloadError):
            await peer.start()
        assert_journal(peer, "truncated-body", None, created=created)


@CREATED
async def test_a_stop_is_spoiled_like_a_start(*, created: bool) -> None:
    async with simulated() as peer:
        sid = (await peer.start()).json["sid"]
        peer.space.faults.add("reset", on="stop", executed=created, times=1)
        with pytest.raises(ClientOSError):
            await peer.stop(sid)
        assert peer.space.streams[0].alive is not created
        assert (await peer.stop(sid)).status == (400 if created else 200)


async def test_a_list_is_spoiled_too() -> None:
    async with simulated() as peer:
        peer.space.faults.add("truncated-body", on="list", times=1)
        with pytest.raises(ClientPayloadError):
            await peer.get("Conferences")
        assert (await peer.get("Conferences")).status == 200


async def test_what_is_carried_out_is_checked_like_any_request() -> None:
    async with simulated() as peer:
        peer.space.faults.add("wrong-content-type", on="start")
        reply = await peer.start(Url="ws://rx.example.com/a")
        assert (reply.status, reply.headers["Content-Type"]) == (422, "text/plain")


async def test_a_request_over_the_limit_trips_no_fault() -> None:
    async with simulated(rate_limit=0) as peer:
        rule = peer.space.faults.add("500")
        assert (await peer.start()).status == 429
        assert rule.hits == 0


def test_every_kind_is_shown_here() -> None:
    """A kind that is added needs a test here, among the faults of answers, or in the receiver's `test_faults`."""
    assert len(FaultKind) == 38
