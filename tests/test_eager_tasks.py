"""An eager task factory, which runs the first step of a task before `create_task` returns, changes no result."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    Clock,
    ConferenceStream,
    Priority,
    RateLimit,
    StartConferenceStream,
)
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner
from signalwire_streams.bulk._runner import FixedConcurrency, WorkerPool
from signalwire_streams.callbacks import parse_callback
from signalwire_streams.callbacks._receiver import Dispatcher
from signalwire_streams.middleware._rate_limit import LocalRateLimiter, TokenBucket
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.redis_rate_limit import RedisRateLimiter
from signalwire_streams.simulator import SimulatedSpace
from tests.fake_operation import FakeOperation

EAGER: Any = getattr(asyncio, "eager_task_factory", None)
if EAGER is None:
    pytest.skip("asyncio has eager tasks from Python 3.12 on", allow_module_level=True)

URL = "wss://rx.example.com/audio"


@pytest.fixture(autouse=True)
async def eager_tasks() -> None:
    asyncio.get_running_loop().set_task_factory(EAGER)


async def test_rate_limiter_grants_turns_after_a_task_that_ended_in_its_first_step() -> None:
    """The task that grants turns ends before it is assigned, and the next waiting request starts another one."""
    now = 0.0

    def later() -> float:
        nonlocal now
        now += 1.0
        return now - 1.0

    limiter = LocalRateLimiter(
        TokenBucket(RateLimit(requests=100, window=10.0, utilization=1.0, burst=1)), Clock(now=later)
    )
    assert await limiter.acquire(Priority.BULK, 60.0) == 0
    granted = 0
    async with asyncio.timeout(10):
        for _ in range(5):
            now -= 1.0  # so that a token is short at first, and there a moment later
            granted += await limiter.acquire(Priority.BULK, 60.0) == 0
    assert granted == 5


async def test_shared_rate_limiter_grants_turns_after_a_task_with_nothing_to_do(
    idle_clock: Clock, tmp_path: Path
) -> None:
    """A rejection while Redis is away starts a task that ends at once; the next request gets its turn nevertheless."""
    async with asyncio.timeout(60):
        limiter = RedisRateLimiter(f"unix://{tmp_path}/none", space="a.example", fallback_clients=1, clock=idle_clock)
        assert await limiter.acquire(Priority.BULK, 60.0) == 0
        await asyncio.sleep(1.0)
        limiter.on_throttled(idle_clock.now(), 2.0)
        assert await limiter.acquire(Priority.BULK, 60.0) == 0
        await limiter.aclose()


@pytest.mark.usefixtures("idle_clock")
async def test_starts_beyond_the_burst_are_all_sent(client_for: Any) -> None:
    """Starts that have to wait for the rate limiter are granted in the end."""
    async with SimulatedSpace(conferences=30, participants=0) as space:
        client = client_for(space, rate_limit=RateLimit(requests=100, window=10.0, utilization=1.0, burst=2))
        starts = (client.conferences.start_stream(sid, url=URL) for sid in space.conference_sids)
        streams = await asyncio.gather(*starts)
        stops = await asyncio.gather(*map(client.conferences.stop_stream, streams))
        assert len({stream.sid for stream in stops}) == 30
        assert space.streams.active() == []


@pytest.mark.usefixtures("idle_clock")
async def test_journaled_run_records_each_start(client_for: Any, tmp_path: Path) -> None:
    """A bulk run ends, and its journal has all outcomes."""
    async with SimulatedSpace(conferences=50, participants=0) as space:
        requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
        run = client_for(space).start_streams(requests, journal=tmp_path / "run.db", concurrency=8)
        assert (await run.report()).counts == {BulkStatus.STARTED: 50}
    assert BulkJournal(tmp_path / "run.db").status().counts == {"started": 50}


async def test_journal_continues_after_a_lock_that_ends_before_the_first_retry(tmp_path: Path) -> None:
    """The task that repeats a commit ends before it is assigned, and later commits are still made."""
    path = tmp_path / "run.db"
    other = sqlite3.connect(path.with_name("unused"))

    def now() -> float:
        other.rollback()
        return 0.0

    whose = JournalOwner("start", "https://example.signalwire.com", "project")
    with closing(Journal.create(path, whose, run="r1", clock=Clock(now=now))) as journal:
        other.close()
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(10):
            await journal.intend(journal.new_row(), "conference", "room", "a")
            await journal.intend(journal.new_row(), "conference", "room", "b")
        assert other.execute("SELECT name FROM items ORDER BY name").fetchall() == [("a",), ("b",)]
        other.close()


async def test_input_that_shuts_its_own_run_down_ends_it() -> None:
    """A run that its endless input drains before the first item ends."""

    def items() -> Iterator[str]:
        assert not pool.shutdown(60.0).done()
        yield from repeat("room")

    async def perform(item: str, _: object) -> ConferenceStream:
        return ConferenceStream(conference_sid=item)

    pool = WorkerPool(items(), FakeOperation(perform), limit=FixedConcurrency(1), clock=Clock.fake())
    outcomes = 0
    async with asyncio.timeout(10):
        while await pool.next() is not None:
            outcomes += 1
    assert outcomes < 10


@pytest.fixture
async def socket() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.usefixtures("idle_clock")
async def test_receiver_delivers_all_frames(socket: aiohttp.ClientSession) -> None:
    """A session begins, gets its frames in order, and ends."""
    chunks = asyncio.Queue[list[str]]()

    async def handle(session: StreamSession) -> None:
        chunks.put_nowait([event.payload.hex() async for event in session if isinstance(event, MediaEvent)])

    media_format = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"streamSid": "stream-1", "tracks": ["inbound"], "mediaFormat": media_format}
    receiver = MediaReceiver(handle, bearer_tokens="t")
    async with receiver.serve() as url:
        for _ in range(3):
            async with socket.ws_connect(url, headers={"Authorization": "Bearer t"}) as peer:
                await peer.send_json({"event": "start", "sequenceNumber": "1", "start": start})
                for chunk, payload in enumerate(["AAAA", "////"], start=1):
                    media = {"track": "inbound", "chunk": str(chunk), "timestamp": "0", "payload": payload}
                    await peer.send_json({"event": "media", "sequenceNumber": str(chunk + 1), "media": media})
                await peer.send_json({"event": "stop", "sequenceNumber": "4"})
                assert await chunks.get() == ["000000", "ffffff"]
    assert receiver.sessions == set()


async def test_dispatcher_handles_callbacks_in_order() -> None:
    """Handlers that never wait end before their task is assigned, and each event is still counted once."""
    handled: list[str] = []

    async def handle(event: Any) -> None:
        handled.append(f"{event.stream_sid} {type(event).__name__}")
        if event.stream_sid == "slow":
            await asyncio.sleep(0)

    dispatcher = Dispatcher(handle, max_pending=4, dedup_size=100, shutdown_timeout=60.0)
    for _ in range(3):
        for sid in ("slow", "quick"):
            for kind in ("started", "stopped"):
                values = {"StreamEvent": f"stream-{kind}", "StreamSid": sid, "CallSid": "call", "AccountSid": "project"}
                assert dispatcher.offer(parse_callback(values), b"")
    await dispatcher.aclose()
    expected = [f"{sid} Stream{kind}" for sid in ("slow", "quick") for kind in ("Started", "Stopped")]
    assert sorted(handled) == sorted(expected)
    assert [entry for entry in handled if "slow" in entry] == expected[:2]
