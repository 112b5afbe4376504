"""Conferences and calls that come and go, sockets that are lost, and what the Space records of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from signalwire_streams.simulator import Churn, Lifetime, NoFrames, Silence, Stream
from tests.leaping_clock import LeapingClock
from tests.waiting import until

from .peer import Peer, simulated

BUSY = Churn(conferences_per_hour=600, calls_per_hour=300, mean_life=60.0)
ONE = Churn(conferences_per_hour=3600, mean_life=100.0)


def live(churn: Churn | None, work: Callable[[Peer, Callable[[], float]], Awaitable[Any]], **settings: Any) -> Any:
    """Run a Space with a clock that leaps over what is idle."""
    clock = LeapingClock()

    async def run() -> Any:
        times = {"clock": clock.time, "monotonic": clock.time}
        async with simulated(0, 0, churn=churn, participants=0, **times, **settings) as peer:
            return await work(peer, clock.time)

    return clock.run(run)


def lives_of(churn: Churn, *, hours: float = 1.0, **settings: Any) -> list[Lifetime]:
    async def work(peer: Peer, _: object) -> list[Lifetime]:
        await asyncio.sleep(hours * 3600.0)
        return peer.space.lifetimes

    lives: list[Lifetime] = live(churn, work, **settings)
    return lives


async def first(peer: Peer) -> Lifetime:
    await until(lambda: peer.space.lifetimes, timeout=1000.0, interval=0.1)
    return peer.space.lifetimes[0]


def test_schedule_depends_on_the_seed_only() -> None:
    first, again, other = (
        [(life.target_sid, life.began, life.ended) for life in lives_of(BUSY, hours=0.2, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_as_many_come_as_are_asked_for_and_live_as_long() -> None:
    async def work(peer: Peer, now: Callable[[], float]) -> None:
        began = now()
        await asyncio.sleep(3600.0)
        lives = peer.space.lifetimes
        kinds = [life.target_kind for life in lives]
        assert kinds.count("conference") == pytest.approx(600, rel=0.15)
        assert kinds.count("call") == pytest.approx(300, rel=0.2)
        ended = [life.ended - life.began for life in lives if life.ended is not None]
        assert sum(ended) / len(ended) == pytest.approx(60.0, rel=0.15)
        assert all(began <= life.began <= now() for life in lives)
        living = [life.target_sid for life in lives if life.target_kind == "conference" and life.ended is None]
        listed = await peer.get("Conferences", query={"Status": "in-progress", "PageSize": "1000"})
        assert [item["sid"] for item in listed.json["conferences"]] == living
        assert 0 < len(living) < 40
        assert peer.space.conference_sids == [life.target_sid for life in lives if life.target_kind == "conference"]

    live(BUSY, work)


def test_space_without_churn_has_no_lifetimes() -> None:
    async def work(peer: Peer, _: object) -> None:
        before = len(asyncio.all_tasks())
        sid = peer.space.add_conference()
        assert (await peer.start(sid)).status == 200
        assert peer.space.lifetimes == []
        assert len(asyncio.all_tasks()) <= before + 1  # that of the connection

    live(None, work)


def test_life_that_is_ended_by_a_request_ends_then() -> None:
    async def work(peer: Peer, now: Callable[[], float]) -> None:
        life = await first(peer)
        ended = now()
        assert (await peer.post({"Status": "completed"}, "Conferences", life.target_sid)).status == 200
        await until(lambda: life.ended, timeout=1000.0, interval=10.0)
        assert life.ended == pytest.approx(ended, abs=1.0)

    live(ONE, work)


def test_streamed_seconds_and_most_streams_are_counted() -> None:
    async def work(peer: Peer, _: object) -> None:
        life = await first(peer)
        await peer.start(life.target_sid, Name="a")
        await asyncio.sleep(2.0)
        second = await peer.start(life.target_sid, Name="a")
        await asyncio.sleep(2.0)
        assert life.most_streams == 2
        [running, _] = peer.space.streams
        await peer.stop(running.sid, life.target_sid)
        await asyncio.sleep(1.0)
        await peer.stop(second.json["sid"], life.target_sid)
        await asyncio.sleep(10.0)
        assert life.most_streams == 2
        assert life.streamed == pytest.approx(5.0, abs=0.2)

    live(ONE, work, duplicate_names="allow")


@pytest.mark.parametrize("audio", [None, NoFrames()])
def test_sockets_are_lost_at_a_rate(audio: NoFrames | None) -> None:
    """A third of them in a minute."""

    async def work(peer: Peer, _: object) -> None:
        async with endpoint() as (url, opened):
            for _ in range(200):
                await peer.start(peer.space.add_conference(), Url=url)
            await asyncio.sleep(60.0)
            assert 30 <= 200 - len(peer.space.streams.active()) <= 110
            assert len(opened) == (200 if audio else 0)

    live(Churn(lost_sockets=1 / 3), work, audio=audio, allow_ws=True)


class Socket:
    """What an endpoint sees of one stream."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.websocket = web.WebSocketResponse(autoping=False)
        self.pongs = 0
        self.is_closed = asyncio.Event()


@asynccontextmanager
async def endpoint() -> AsyncIterator[tuple[str, list[Socket]]]:
    sockets: list[Socket] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = Socket()
        await socket.websocket.prepare(request)
        sockets.append(socket)
        async for message in socket.websocket:
            if message.type is WSMsgType.TEXT:
                socket.events.append(message.json()["event"])
            elif message.type is WSMsgType.PONG:
                socket.pongs += 1
        socket.is_closed.set()
        return socket.websocket

    application = web.Application()
    application.router.add_get("/", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/", sockets
    finally:
        await runner.cleanup()


def lose(noticed_by: str, check: Callable[[Peer, Stream, Socket], Awaitable[None]], audio: Any) -> None:
    async def work(peer: Peer, _: object) -> None:
        async with endpoint() as (url, sockets):
            sid = peer.space.add_conference()
            assert (await peer.start(sid, Url=url)).status == 200
            [stream] = peer.space.streams
            await until(lambda: sockets and "start" in sockets[0].events, interval=0.1)
            await sockets[0].websocket.ping()
            await asyncio.sleep(1.0)
            assert sockets[0].pongs == 1
            frames = sockets[0].events.count("media")
            assert peer.space.lose_socket(stream, noticed_by)  # type: ignore[arg-type]
            await asyncio.sleep(2.0)
            await check(peer, stream, sockets[0])
            assert not stream.alive
            assert not peer.space.lose_socket(stream)
            assert "stop" not in sockets[0].events
            assert sockets[0].events.count("media") <= frames + 8  # in transit

    live(None, work, audio=audio, allow_ws=True)


@pytest.mark.parametrize("audio", [NoFrames(), Silence()])
class TestLostSocket:
    def test_socket_is_lost_to_both_ends(self, audio: NoFrames | Silence) -> None:
        async def check(_: Peer, stream: Stream, socket: Socket) -> None:
            assert socket.is_closed.is_set()
            assert not stream.alive
            assert socket.websocket.close_code == 1006

        lose("both", check, audio)

    def test_stream_whose_loss_only_the_receiver_notices_runs_until_it_is_stopped(
        self, audio: NoFrames | Silence
    ) -> None:
        async def check(peer: Peer, stream: Stream, socket: Socket) -> None:
            assert socket.is_closed.is_set()
            await asyncio.sleep(10.0)
            assert stream.alive
            assert (await peer.stop(stream.sid)).status == 200

        lose("receiver", check, audio)

    def test_socket_whose_loss_only_the_space_notices_gives_no_sign_of_life(self, audio: NoFrames | Silence) -> None:
        async def check(_: Peer, stream: Stream, socket: Socket) -> None:
            assert not stream.alive
            await socket.websocket.ping()
            await asyncio.sleep(60.0)
            assert socket.pongs == 1
            assert not socket.is_closed.is_set()
            await asyncio.sleep(300.0)
            assert socket.is_closed.is_set()

        lose("space", check, audio)


def test_stream_without_a_connection_ends_unless_only_the_receiver_would_notice() -> None:
    async def work(peer: Peer, _: object) -> None:
        await peer.start(peer.space.add_conference())
        [stream] = peer.space.streams
        assert not peer.space.lose_socket(stream, "receiver")
        assert stream.alive
        assert peer.space.lose_socket(stream, "space")
        assert not stream.alive

    live(None, work)


def test_stream_that_is_not_connected_yet_has_no_socket_to_lose() -> None:
    async def work(peer: Peer, _: object) -> None:
        async with endpoint() as (url, _sockets):
            peer.space.faults.add("socket-slow", seconds=3.0)
            await peer.start(peer.space.add_conference(), Url=url)
            [stream] = peer.space.streams
            assert not peer.space.lose_socket(stream)
            assert stream.alive

    live(None, work, audio=NoFrames(), allow_ws=True)


def test_half_open_time_is_not_streamed() -> None:
    async def work(peer: Peer, _: object) -> None:
        async with endpoint() as (url, sockets):
            life = await first(peer)
            await peer.start(life.target_sid, Url=url)
            [stream] = peer.space.streams
            await until(lambda: sockets, interval=0.1)
            await asyncio.sleep(3.0)
            assert peer.space.lose_socket(stream, "receiver")
            await asyncio.sleep(3.0)
            assert stream.alive
            assert life.streamed == pytest.approx(3.0, abs=0.3)

    live(ONE, work, audio=NoFrames(), allow_ws=True)


def test_foreign_stream_takes_a_name_for_a_part_of_the_life() -> None:
    async def work(peer: Peer, _: object) -> None:
        life = await first(peer)
        [stream] = [stream for stream in peer.space.streams if stream.target_sid == life.target_sid]
        name = f"audit-{life.target_sid}"
        assert (stream.name, stream.alive, stream.is_foreign) == (name, True, True)
        assert (await peer.start(life.target_sid, Name=name)).status == 422
        assert (await peer.stop(name, life.target_sid)).status == 200
        await until(lambda: life.ended, timeout=1000.0, interval=10.0)
        others = [stream for stream in peer.space.streams if not stream.alive and stream.error is None]
        assert others
        assert (life.streamed, life.most_streams) == (0.0, 1)
        by_sid = {life.target_sid: life for life in peer.space.lifetimes}
        shorter = [
            stream.stopped_at < ended
            for stream in others
            if stream.stopped_at is not None and (ended := by_sid[stream.target_sid].ended) is not None
        ]
        assert all(shorter)
        assert peer.space.requests.count() == 2

    churn = Churn(
        calls_per_hour=0, conferences_per_hour=60, mean_life=60.0, foreign_streams=1.0, foreign_name="audit-{sid}"
    )
    live(churn, work, audio=NoFrames(), callbacks=True, duplicate_names="http-error")


def test_names_are_used_once_if_the_space_says_so() -> None:
    async def work(peer: Peer, _: object) -> None:
        sid = peer.space.add_conference()
        assert (await peer.start(sid, Name="a")).status == 200
        assert (await peer.stop("a", sid)).status == 200
        assert (await peer.start(sid, Name="a")).status == 422
        assert (await peer.start(sid, Name="b")).status == 200
        assert (await peer.start(sid)).status == (await peer.start(sid)).status == 200

    live(None, work, reusable_names=False, duplicate_names="http-error")


@pytest.mark.parametrize(
    "arguments",
    [
        {"conferences_per_hour": -1.0},
        {"calls_per_hour": -1.0},
        {"mean_life": 0.0},
        {"lost_sockets": 1.1},
        {"half_open": -0.1},
        {"foreign_streams": 2.0},
    ],
)
def test_impossible_churn_is_rejected(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Churn(**arguments)
