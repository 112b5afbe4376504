"""The Space-wide rate limit: a strict window, its headers, its rejections."""

import pytest
from hypothesis import given, strategies as st

from signalwire_streams.simulator import SimulatedSpace
from signalwire_streams.simulator._server import SpaceLimit

from .peer import Clock, simulated
from .shapes import ERROR, mismatches


async def test_request_over_the_limit_is_rejected_until_the_window_has_moved() -> None:
    clock = Clock()
    async with simulated(rate_limit=3, window=10.0, monotonic=clock) as peer:
        replies = []
        for _ in range(3):
            replies.append(await peer.start())
            clock.now += 1
        assert [reply.status for reply in replies] == [200] * 3
        assert [reply.headers["X-RateLimit-Remaining"] for reply in replies] == ["2", "1", "0"]
        assert {reply.headers["X-RateLimit-Limit"] for reply in replies} == {"3"}
        clock.now += 6.99
        refused = await peer.start()
        assert (refused.status, refused.json["code"], refused.json["status"]) == (429, 20429, 429)
        assert mismatches(refused.json, ERROR) == []
        assert "Retry-After" not in refused.headers
        clock.now += 0.02
        assert (await peer.start()).status == 200
        assert (await peer.start()).status == 429
        assert len(peer.space.streams) == 4
        assert [request.status for request in peer.space.requests] == [200, 200, 200, 429, 200, 429]


async def test_reads_are_not_limited() -> None:
    async with simulated(rate_limit=0) as peer:
        assert (await peer.get("Conferences")).status == 200
        assert (await peer.start()).status == 429
        assert (await peer.send("PUT", peer.path("Conferences"))).status == 429
        assert (await peer.send("PATCH", peer.path("Conferences"))).status == 429
        assert (await peer.send("DELETE", peer.path("Conferences"))).status == 404
        assert (await peer.get("Conferences")).headers["X-RateLimit-Remaining"] == "0"


async def test_space_without_limit_sends_no_limit_headers() -> None:
    async with simulated(rate_limit=None) as peer:
        reply = await peer.start()
        assert reply.status == 200
        assert not [name for name in reply.headers if name.startswith("X-RateLimit")]


async def test_limit_headers_can_be_left_out() -> None:
    async with simulated(limit_headers=False) as peer:
        assert not [name for name in (await peer.start()).headers if name.startswith("X-RateLimit")]


@pytest.mark.parametrize(("seconds", "header"), [(2, "2"), (1.0, "1"), (0.25, "0.25")])
async def test_rejection_can_have_retry_after(seconds: float, header: str) -> None:
    async with simulated(rate_limit=0, retry_after=seconds) as peer:
        assert (await peer.start()).headers["Retry-After"] == header


async def test_advertised_limit_can_differ_from_the_limit() -> None:
    async with simulated(rate_limit=2, advertised_limit=100) as peer:
        replies = [await peer.start() for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        assert [reply.headers["X-RateLimit-Limit"] for reply in replies] == ["100"] * 3
        assert replies[-1].headers["X-RateLimit-Remaining"] == "98"


@given(
    gaps=st.lists(st.integers(min_value=0, max_value=9), max_size=60),
    limit=st.integers(min_value=0, max_value=6),
)
def test_no_window_ever_holds_more_than_the_limit(gaps: list[int], limit: int) -> None:
    """And no request within the limit is rejected."""
    window = SpaceLimit(SimulatedSpace(rate_limit=limit, window=10.0))
    now, admitted = 0.0, list[float]()
    for gap in gaps:
        now += gap
        fits = sum(now - moment < 10.0 for moment in admitted) < limit
        assert window.admit(now) == fits
        if fits:
            admitted.append(now)
    assert all(sum(0 <= other - start < 10.0 for other in admitted) <= limit for start in admitted)
