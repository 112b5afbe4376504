"""Two keepers of one name with their journal in Redis: one keeps the streams, the other one takes over."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.keep_streaming import (
    Keeper,
    KeeperEvent,
    StandbyEnded,
    StandbyStarted,
    StreamingInDoubt,
    StreamingLost,
    StreamingStarted,
)
from signalwire_streams.redis_rate_limit._store import RedisUnavailableError
from signalwire_streams.simulator import SimulatedSpace
from tests.redis_rate_limit.conftest import common_redis, redis
from tests.redis_server import RedisServer
from tests.waiting import until

__all__ = ["common_redis", "redis"]

LEASE = 4.0
TEMPLATE: Any = {"url": "wss://rx.example.com/audio"}
_KEEP = """
import asyncio, sys
from signalwire_streams import StreamsClient

def tell(*words):
    print(*words, flush=True)

async def main(base_url, project, token, journal, lease, kind, host):
    async with StreamsClient(base_url=base_url, project=project, token=token) as client:
        template = {"url": f"wss://{host}.example.com/audio"}
        options = {"conferences": kind == "conferences", "calls": kind == "calls", "poll": 0.5, "reassert": 1.0}
        async with client.keep_streaming(
            template, name="audit", journal=journal, lease=float(lease), **options
        ) as keeper:
            tell("ready")
            async for event in keeper:
                tell(type(event).__name__, getattr(event, "reason", ""))

asyncio.run(main(*sys.argv[1:]))
"""


class Host:
    """A keeper in a process of its own, and what it printed."""

    def __init__(self, process: Process) -> None:
        self.process, self.lines = process, list[str]()
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())

    def has(self, line: str, count: int = 1) -> Callable[[], bool]:
        return lambda: self.lines.count(line) >= count

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reading


class Hosts:
    def __init__(self, space: SimulatedSpace, redis: RedisServer, stack: AsyncExitStack, kind: str) -> None:
        self.space, self.redis, self.stack, self.kind = space, redis, stack, kind

    async def start(self, name: str) -> Host:
        space = self.space
        where = space.base_url, space.project, space.token, self.redis.url
        arguments = sys.executable, "-c", _KEEP, *where, str(LEASE), self.kind, name
        host = Host(await asyncio.create_subprocess_exec(*arguments, stdout=PIPE))
        self.stack.push_async_callback(host.end)
        await until(host.has("ready"), timeout=60.0)
        return host


@asynccontextmanager
async def hosts_of(space: SimulatedSpace, redis: RedisServer, kind: str = "conferences") -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        yield Hosts(space, redis, stack, kind)


def has_streams(space: SimulatedSpace, count: int) -> Callable[[], bool]:
    return lambda: len(space.streams.active()) >= count


def starts_of(host: str, space: SimulatedSpace) -> int:
    return sum(request.fields.get("Url") == f"wss://{host}.example.com/audio" for request in space.requests)


async def eventually(condition: Callable[[], object]) -> None:
    await until(condition, timeout=55.0)


async def test_second_takes_over_from_a_suspended_keeper_that_then_sends_nothing(redis: RedisServer) -> None:
    """The first one takes over again once the second one is killed."""
    async with SimulatedSpace(conferences=20, participants=0) as space, hosts_of(space, redis) as hosts:
        space.faults.add("disconnect", on="start-conference-stream", executed=True, every_nth=5)
        first = await hosts.start("first")
        await eventually(has_streams(space, 20))
        second = await hosts.start("second")
        await eventually(second.has("StandbyStarted another keeper has the lease"))
        assert starts_of("second", space) == 0
        first.process.send_signal(signal.SIGSTOP)
        [new, *_] = [space.add_conference() for _ in range(5)]
        await eventually(second.has("StandbyEnded"))
        await eventually(has_streams(space, 25))
        before = starts_of("first", space)
        first.process.send_signal(signal.SIGCONT)
        await eventually(lambda: any(line.startswith("StandbyStarted") for line in first.lines))
        requests = space.requests.count()
        await eventually(lambda: space.requests.count() >= requests + 50)
        assert starts_of("first", space) == before
        assert space.requests.count("stop-conference-stream") == 0
        second.process.kill()
        space.end_conference(new)
        space.add_conference()
        await eventually(first.has("StandbyEnded"))
        await eventually(lambda: len({stream.target_sid for stream in space.streams.active()}) == 25)
        assert space.streams.duplicates() == []


async def test_killed_keeper_of_calls_is_replaced_and_no_call_has_two_streams(redis: RedisServer) -> None:
    """Nobody refuses a second stream there, so what was under way stays in doubt."""
    async with (
        SimulatedSpace(conferences=0, calls=40, participants=0) as space,
        hosts_of(space, redis, "calls") as hosts,
    ):
        space.faults.add("latency", on="start-call-stream", seconds=0.2)
        first, second = await hosts.start("first"), await hosts.start("second")
        await eventually(has_streams(space, 1))
        first.process.kill()
        new = [space.add_call() for _ in range(3)]
        await eventually(second.has("StandbyEnded"))
        await eventually(lambda: {stream.target_sid for stream in space.streams.active()} >= set(new))
        lists = space.requests.count("list-calls")
        await eventually(lambda: space.requests.count("list-calls") >= lists + 5)
        assert space.streams.duplicates() == []


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=5, participants=0) as running:
        yield running


class Leap:
    """A clock that a test sets forward, and on which waits are short."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self.clock = Clock(
            now=lambda: monotonic() + self.skipped, sleep=lambda seconds: asyncio.sleep(min(seconds, 0.2))
        )


class Watched:
    """A keeper in this process, and what it tells."""

    def __init__(self, space: SimulatedSpace, redis: RedisServer, stack: AsyncExitStack) -> None:
        self.space, self.redis, self.stack = space, redis, stack
        self.leap, self.seen = Leap(), list[KeeperEvent]()

    async def keep(self, template: Any = TEMPLATE, **options: Any) -> Keeper:
        space = self.space
        client = StreamsClient(base_url=space.base_url, project=space.project, token=space.token, clock=self.leap.clock)
        await self.stack.enter_async_context(client)
        keeper = client.keep_streaming(template, name="audit", journal=self.redis.url, lease=60.0, **options)
        await keeper.__aenter__()
        reading = asyncio.create_task(self._read(keeper))

        async def end() -> None:
            if not reading.done():
                await keeper.__aexit__(None, None, None)
                await reading

        self.end = end
        self.stack.push_async_callback(end)
        return keeper

    async def _read(self, keeper: Keeper) -> None:
        async for event in keeper:
            self.seen.append(event)

    def count(self, kind: type[object]) -> int:
        return sum(isinstance(event, kind) for event in self.seen)


@pytest.fixture
async def watched(space: SimulatedSpace, redis: RedisServer) -> AsyncIterator[Callable[[], Watched]]:
    async with AsyncExitStack() as stack:
        yield lambda: Watched(space, redis, stack)


async def test_redis_that_is_away_for_a_while_costs_no_stream(
    space: SimulatedSpace, redis: RedisServer, watched: Callable[[], Watched]
) -> None:
    """It has lost its memory when it is back, and the keeper has not."""
    host = watched()
    await host.keep()
    await eventually(lambda: host.count(StreamingStarted) == 5)
    redis.kill()
    host.leap.skipped += 60.0
    await eventually(lambda: host.count(StandbyStarted) == 1)
    new = space.add_conference()
    lists = space.requests.count("list-conferences")
    redis.start()
    await eventually(lambda: host.count(StreamingStarted) == 6)
    assert host.count(StandbyEnded) == 1
    assert space.requests.count("start-conference-stream", target=new) == 1
    assert space.requests.count("list-conferences") > lists
    assert host.count(StreamingLost) == 0
    await host.end()
    assert new in {stream.target_sid for stream in space.streams.active()}
    assert space.streams.duplicates() == []


async def test_stop_at_the_end_tells_what_it_could_not_stop(
    space: SimulatedSpace, redis: RedisServer, watched: Callable[[], Watched]
) -> None:
    host = watched()
    await host.keep(on_exit="stop")
    await eventually(lambda: host.count(StreamingStarted) == 5)
    redis.kill()
    host.leap.skipped += 60.0
    await host.end()
    assert host.count(StreamingInDoubt) == 5
    assert space.requests.count("stop-conference-stream") == 0


async def test_keeper_that_gets_the_lease_back_begins_with_what_the_other_one_recorded(
    space: SimulatedSpace, redis: RedisServer, watched: Callable[[], Watched]
) -> None:
    """What it was doing when it lost the lease is not carried on."""
    asked, goes_on = Counter[str](), asyncio.Event()
    [sid, *_] = space.conference_sids

    async def template(item: Any) -> Any:
        asked[item.sid] += 1
        if item.sid == sid and asked[sid] == 2:  # after a start that failed
            await goes_on.wait()
        return TEMPLATE

    space.faults.add("status", on="start-conference-stream", status=403, times=1, target=sid)
    first, second = watched(), watched()
    keeper = await first.keep(template)
    await second.keep()
    first.stack.callback(goes_on.set)  # the end waits for a start that is under way
    await eventually(lambda: asked[sid] == 2)
    await eventually(lambda: first.count(StreamingStarted) == 4)
    await eventually(lambda: second.count(StandbyStarted) == 1)
    link: Any = keeper._targets.journal._link  # type: ignore[attr-defined]
    call = link.call

    async def is_away(*_: object, **__: object) -> None:
        raise RedisUnavailableError("no route to host")

    link.call = is_away
    first.leap.skipped += 60.0
    await eventually(lambda: first.count(StandbyStarted) == 1)
    keeper.notice(space.conference_sids[1])
    redis.ask("DEL", redis.ask("KEYS", "*:lease").split()[2].decode())
    await eventually(lambda: second.count(StandbyEnded) == 1)
    await eventually(lambda: len(space.streams.active()) == 5)
    assert space.requests.count("get-conference") == 1  # after the start that failed
    link.call = call
    starts = space.requests.count("start-conference-stream")
    await second.end()
    await eventually(lambda: first.count(StandbyEnded) == 1)
    goes_on.set()
    await eventually(lambda: space.requests.count("start-conference-stream") >= starts + 5)  # which are refused
    await first.end()
    assert len(space.streams.active()) == 5
    assert space.streams.duplicates() == []
