"""The request log: entries, counters, waiting, the fullest window."""

import asyncio
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.simulator import RequestLog
from signalwire_streams.simulator._request_log import count_post, count_request

from .peer import Clock, simulated


async def test_logged_request_has_all_but_secrets() -> None:
    clock = Clock(50.0)
    async with simulated(monotonic=clock) as peer:
        sid = peer.space.conference_sids[0]
        reply = await peer.start(Name="a b", AuthorizationBearerToken="bearer-of-audio")
        await peer.stop("a b")
        await peer.get("Calls", query={"Status": "queued"})
        start, stop, listing = peer.space.requests
        assert start.method == "POST"
        assert start.path == peer.path("Conferences", sid, "Streams")
        assert (start.operation, start.target_sid, start.stream_sid) == ("start-conference-stream", sid, None)
        assert start.fields["AuthorizationBearerToken"] == "bearer-of-audio"
        assert "bearer-of-audio" not in repr(start)
        assert set(start.headers) == {"User-Agent", "Content-Type"}
        assert (start.status, start.created, start.fault) == (200, reply.json["sid"], None)
        assert (start.received_at, start.connection) == (50.0, 1)
        assert (stop.operation, stop.stream_sid, stop.created) == ("stop-conference-stream", "a b", None)
        assert stop.path.endswith("/a%20b")
        assert (listing.operation, listing.target_sid, listing.query) == (
            "list-calls",
            None,
            {"Status": "queued"},
        )
        assert peer.space.token not in repr(list(peer.space.requests))


async def test_request_log_is_a_sequence() -> None:
    async with simulated() as peer:
        await peer.start()
        await peer.get("Calls")
        assert len(peer.space.requests) == 2
        assert peer.space.requests[-1].operation == "list-calls"
        assert [request.method for request in peer.space.requests[:1]] == ["POST"]
        assert [request.method for request in peer.space.requests] == ["POST", "GET"]


async def test_requests_are_counted_by_operation_and_target() -> None:
    async with simulated(conferences=2) as peer:
        first, second = peer.space.conference_sids
        await peer.start(first)
        await peer.start(first)
        await peer.start(second)
        await peer.get("Conferences")
        requests = peer.space.requests
        assert requests.count() == 4
        assert requests.count("start-conference-stream") == 3
        assert requests.count("start-conference-stream", first) == 2
        assert requests.count(target=second) == 1
        assert requests.count("start-call-stream") == 0
        assert requests.counts() == {"start-conference-stream": 3, "list-conferences": 1}


async def test_request_with_incomplete_body_is_logged() -> None:
    async with simulated() as peer:
        _, writer = await asyncio.open_connection("127.0.0.1", peer.space.port)
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nUrl=".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await peer.space.requests.wait_for()
        [request] = peer.space.requests
        assert (request.status, request.fields, request.created) == (None, {}, None)


async def test_wait_for_returns_when_the_requests_have_arrived() -> None:
    async with simulated() as peer:
        waiting = asyncio.create_task(peer.space.requests.wait_for(2, "start-conference-stream"))
        await peer.start()
        await peer.get("Calls")
        assert not waiting.done()
        await peer.start()
        await waiting
        await peer.space.requests.wait_for(2, "start-conference-stream")


async def test_wait_for_times_out_with_what_was_received() -> None:
    async with simulated() as peer:
        await peer.get("Calls")
        sentence = "waited 0 s for 1 of start-call-stream for x; received 1 list-calls"
        with pytest.raises(TimeoutError, match=sentence):
            await peer.space.requests.wait_for(1, "start-call-stream", "x", timeout=0)
        with pytest.raises(TimeoutError, match="for 5 of any operation; received 1 list-calls"):
            await peer.space.requests.wait_for(5, timeout=0)
    async with simulated() as peer:
        with pytest.raises(TimeoutError, match="received nothing"):
            await peer.space.requests.wait_for(timeout=0)


async def test_log_that_keeps_nothing_still_counts() -> None:
    async with simulated(log_requests=False, rate_limit=None) as peer:
        await peer.get("Conferences")
        await peer.start()
        assert len(peer.space.requests) == 0
        assert peer.space.requests.counts() == {"list-conferences": 1, "start-conference-stream": 1}
        assert peer.space.requests.max_in_window() == 1
        await peer.space.requests.wait_for(1, "start-conference-stream", timeout=0)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(50_000):
                count_request(peer.space.requests, "start-conference-stream", "a")
                count_post(peer.space.requests, 1.0)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 600_000


async def test_max_in_window_counts_every_post() -> None:
    """Also those that were rejected or replaced by a fault, but no reads."""
    clock = Clock()
    async with simulated(monotonic=clock, rate_limit=3) as peer:
        peer.space.faults.add("500", times=1)
        for _ in range(4):
            await peer.start()
        await peer.get("Conferences")
        clock.now += 9.9
        await peer.start()
        clock.now += 0.2
        await peer.start()
        assert peer.space.requests.max_in_window() == 5
        assert peer.space.requests.max_in_window(0.1) == 4


@given(
    gaps=st.lists(st.integers(min_value=0, max_value=8), max_size=50),
    seconds=st.integers(min_value=1, max_value=20),
)
def test_max_in_window_is_the_maximum_of_all_windows(gaps: list[int], seconds: int) -> None:
    journal, moments, now = RequestLog(), list[float](), 0.0
    for gap in gaps:
        now += gap
        moments.append(now)
        count_post(journal, now)
    counted = max((sum(0 <= later - start < seconds for later in moments) for start in moments), default=0)
    assert journal.max_in_window(seconds) == counted
