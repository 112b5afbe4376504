"""A keeper's records and its lease in Redis: who may act, what is written, and what is fenced off."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from signalwire_streams import Clock, InvalidRequestError, JournalError, StreamsClient
from signalwire_streams.keep_streaming import Fate, StreamAttempt, TargetState
from signalwire_streams.keep_streaming._records import KeeperOwner, KeptTarget, LeaseLostError
from signalwire_streams.keep_streaming._redis_journal import SCRIPT, RedisJournal
from signalwire_streams.models import TargetKind
from tests.ports import free_port
from tests.redis_proxy import redis_proxy
from tests.redis_rate_limit.conftest import common_redis, redis
from tests.redis_server import RedisServer
from tests.waiting import until

__all__ = ["common_redis", "redis"]

OWNER = KeeperOwner("https://example.signalwire.com", "p1", "audit")
KEY = "signalwire-streams:{example.signalwire.com:p1:audit}:keep-1"
LEASE, RECORDS = f"{KEY}:lease", f"{KEY}:targets"
ROOM, CALL = (TargetKind.CONFERENCE, "room-1"), (TargetKind.CALL, "call-1")
SECONDS = 60.0


def kept(number: int, fate: Fate = Fate.SENDING) -> KeptTarget:
    return KeptTarget(state=TargetState(last=number, attempts=(StreamAttempt(number=number, fate=fate),)))


class Time:
    """A clock that a test sets; waits on it are short."""

    def __init__(self) -> None:
        self.now, self.suspended = 1000.0, 0.0
        self.waits = 0  # that are over
        self.clock = Clock(
            now=lambda: self.now,
            sleep=self._sleep,
            wall_time=lambda: self.now + self.suspended,
        )

    async def _sleep(self, _: float) -> None:
        await asyncio.sleep(0.01)
        self.waits += 1

    async def several_waits(self) -> None:
        """Wait until those on standby have looked again several times."""
        enough = self.waits + 5
        await until(lambda: self.waits >= enough)


@pytest.fixture
def time() -> Time:
    return Time()


class Hosts:
    """Journals of several hosts, each of which is closed at the end."""

    def __init__(self, url: str, time: Time, stack: AsyncExitStack) -> None:
        self.url, self.time, self.stack = url, time, stack

    async def open(self, owner: KeeperOwner = OWNER) -> RedisJournal:
        journal = RedisJournal(self.url, owner, lease=SECONDS, clock=self.time.clock)
        await journal.open()
        self.stack.push_async_callback(journal.aclose)
        return journal


@asynccontextmanager
async def opened(url: str, time: Time) -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        yield Hosts(url, time, stack)


@pytest.fixture
async def hosts(redis: RedisServer, time: Time) -> AsyncIterator[Hosts]:
    async with opened(redis.url, time) as hosts:
        yield hosts


def record(redis: RedisServer, name: str) -> bytes:
    return redis.ask("HGET", RECORDS, name)


class TestHolder:
    async def test_record_is_in_redis_when_its_save_returns(self, redis: RedisServer, hosts: Hosts) -> None:
        journal = await hosts.open()
        assert await journal.acquire()
        assert (journal.targets, journal.obstacle) == ({}, None)
        await journal.save(ROOM, kept(7))
        assert kept(7).encode().encode() in record(redis, "conference:room-1")
        assert not await journal.acquire()

    async def test_ended_target_is_removed(self, redis: RedisServer, hosts: Hosts) -> None:
        journal = await hosts.open()
        await journal.acquire()
        await journal.save(ROOM, kept(7))
        journal.forget(ROOM)
        await journal.save(CALL, kept(1))
        assert record(redis, "conference:room-1") == b"$-1\r\n"

    async def test_what_is_saved_later_is_written_soon_and_if_it_changed(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        for number in range(200):  # also while an earlier one is being written
            journal.save_later(ROOM, kept(number))
            await asyncio.sleep(0)
        journal.save_later(ROOM, kept(8))
        await until(lambda: kept(8).encode().encode() in record(redis, "conference:room-1"))
        redis.ask("HDEL", RECORDS, "conference:room-1")
        journal.save_later(ROOM, kept(8))
        await journal.save(CALL, kept(1))
        assert record(redis, "conference:room-1") == b"$-1\r\n"

    async def test_thousands_of_records_are_read_back(self, hosts: Hosts) -> None:
        journal = await hosts.open()
        await journal.acquire()
        for number in range(5_000):
            journal.save_later((TargetKind.CALL, f"call-{number}"), kept(number))
        await journal.aclose()
        journal = await hosts.open()
        assert await journal.acquire()
        assert len(journal.targets) == 5_000
        assert journal.targets[TargetKind.CALL, "call-4999"] == kept(4999)

    async def test_redis_expires_the_lease_before_the_lease_is_over_and_the_keeper_trusts_it_for_less(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        assert SECONDS * 800 < int(redis.ask("PTTL", LEASE)[1:]) <= SECONDS * 900
        assert await journal.permit() == time.now + SECONDS * 0.65
        time.now += SECONDS * 0.5
        await journal.save(ROOM, kept(7))
        assert await journal.permit() == time.now + SECONDS * 0.65, "it was renewed, so that no request outlasts it"
        time.now += SECONDS
        assert journal.obstacle == "the lease was not renewed in time"

    async def test_request_is_sent_only_if_a_fifth_of_the_lease_is_left(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        """A request that had less time might be ended with its outcome unknown."""
        journal = await hosts.open()
        await journal.acquire()
        redis.kill()
        time.now += SECONDS * 0.44
        assert await journal.permit() == pytest.approx(time.now + SECONDS * 0.21)
        time.now += SECONDS * 0.02
        permitting = asyncio.create_task(journal.permit())
        await time.several_waits()
        assert journal.obstacle is None
        assert not permitting.done()
        redis.start()
        assert await permitting == pytest.approx(time.now + SECONDS * 0.65)

    async def test_records_of_a_keeper_that_does_not_come_back_are_forgotten_after_thirty_days(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.ask("EXPIRE", RECORDS, "60")
        await journal.save(ROOM, kept(7))
        assert 30 * 24 * 3600 - 60 < int(redis.ask("TTL", RECORDS)[1:]) <= 30 * 24 * 3600

    async def test_lease_is_not_trusted_after_a_suspension(self, redis: RedisServer, hosts: Hosts, time: Time) -> None:
        """The monotonic clock of a machine that is suspended stands still, and its renewals with it."""
        first, second = await hosts.open(), await hosts.open()
        await first.acquire()
        time.suspended += SECONDS
        assert first.obstacle == "the lease was not renewed in time"
        redis.ask("DEL", LEASE)  # as it expired meanwhile
        await second.acquire()
        with pytest.raises(LeaseLostError):
            await first.permit()
        time.suspended -= 2 * SECONDS  # a clock that is set back gives no lease more time
        assert second.obstacle is None
        assert await second.permit() <= time.now + SECONDS

    async def test_lease_that_expired_and_was_not_taken_goes_on(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.ask("DEL", LEASE)
        time.now += SECONDS
        await journal.save(ROOM, kept(1))
        assert not await journal.acquire()
        assert record(redis, "conference:room-1") != b"$-1\r\n"

    async def test_redis_that_lost_its_memory_gets_the_records_again(self, redis: RedisServer, hosts: Hosts) -> None:
        journal = await hosts.open()
        await journal.acquire()
        await journal.save(ROOM, kept(1))
        redis.ask("FLUSHALL")
        await journal.save(CALL, kept(2))
        assert not await journal.acquire()
        assert kept(1).encode().encode() in record(redis, "conference:room-1")
        assert kept(2).encode().encode() in record(redis, "call:call-1")

    async def test_redis_that_lost_its_memory_and_then_a_response_gets_the_records_again(
        self, redis: RedisServer, time: Time
    ) -> None:
        """A Redis that restarts may well be too slow for its first response."""
        async with redis_proxy(redis.socket, redis.folder / "proxy.sock") as proxy, opened(proxy.url, time) as hosts:
            journal = await hosts.open()
            await journal.acquire()
            await journal.save(ROOM, kept(1))
            redis.ask("FLUSHALL")
            proxy.spoil(SCRIPT, "", times=2)
            await journal.save(CALL, kept(2))
            assert not await journal.acquire()
            assert kept(1).encode().encode() in record(redis, "conference:room-1")
            assert kept(2).encode().encode() in record(redis, "call:call-1")

    async def test_save_of_a_target_that_ends_while_redis_loses_its_memory_returns(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        await journal.save(ROOM, kept(1))
        redis.ask("FLUSHALL")
        saving = asyncio.create_task(journal.save(CALL, kept(2)))
        await asyncio.sleep(0)
        journal.forget(CALL)
        async with asyncio.timeout(10):
            await saving
        assert kept(1).encode().encode() in record(redis, "conference:room-1")
        assert record(redis, "call:call-1") == b"$-1\r\n"

    async def test_outage_is_waited_for(self, redis: RedisServer, hosts: Hosts, time: Time) -> None:
        journal = await hosts.open()
        await journal.acquire()
        await journal.save(ROOM, kept(1))
        redis.kill()
        saving = asyncio.create_task(journal.save(CALL, kept(2)))
        await until(lambda: journal._why.startswith("Redis is unavailable: "))
        assert journal.obstacle is None, "the lease is not over yet"
        time.now += SECONDS
        obstacle = journal.obstacle
        assert obstacle is not None
        assert obstacle.startswith("Redis is unavailable: ")
        permitting = asyncio.create_task(journal.permit())
        await time.several_waits()
        assert not saving.done()
        assert not permitting.done()
        redis.start()
        await saving
        assert await permitting > time.now
        assert kept(1).encode().encode() in record(redis, "conference:room-1")


class TestSecond:
    async def test_second_keeper_takes_over_with_the_records_and_the_first_is_fenced_off(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        first, second = await hosts.open(), await hosts.open()
        assert await first.acquire()
        await first.save(ROOM, kept(1))
        assert second.obstacle == "another keeper has the lease"
        waiting = asyncio.create_task(second.acquire())
        await hosts.time.several_waits()
        assert not waiting.done()
        redis.ask("DEL", LEASE)
        assert await waiting
        assert second.targets == {ROOM: kept(1)}
        await second.save(ROOM, kept(2))
        with pytest.raises(LeaseLostError):
            await first.save(ROOM, kept(3))
        assert first.is_lost
        assert kept(2).encode().encode() in record(redis, "conference:room-1")
        for refused in (first.permit(), first.save(ROOM, kept(3))):
            with pytest.raises(LeaseLostError):
                await refused
        first.save_later(ROOM, kept(4))
        first.forget(ROOM)
        redis.ask("DEL", LEASE)
        await second.aclose()
        assert await first.acquire()
        assert first.targets == {ROOM: kept(2)}
        await first.save((TargetKind.CALL, "call-1"), kept(5))
        assert kept(2).encode().encode() in record(redis, "conference:room-1"), "what it wrote meanwhile is dropped"

    @pytest.mark.parametrize(("left", "wait"), [(50.0, SECONDS * 0.2), (5.0, 5.0)], ids=["long", "nearly over"])
    async def test_lease_of_another_is_asked_for_again_soon_and_as_soon_as_it_is_over(
        self, redis: RedisServer, hosts: Hosts, time: Time, left: float, wait: float
    ) -> None:
        waits = list[float]()

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            await asyncio.Event().wait()

        time.clock = Clock(now=time.clock.now, sleep=sleep, wall_time=time.clock.wall_time)
        redis.ask("SET", LEASE, "another", "PX", str(round(left * 1000)))
        await hosts.open()
        await until(lambda: waits)
        assert waits == [pytest.approx(wait, abs=2.0)]

    async def test_request_that_waits_while_another_keeper_takes_over_is_not_sent(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        first = await hosts.open()
        await first.acquire()
        redis.kill()
        time.now += SECONDS
        permitting, saving = asyncio.create_task(first.permit()), asyncio.create_task(first.save(ROOM, kept(1)))
        await time.several_waits()
        redis.start()
        redis.ask("SET", LEASE, "another")
        for task in (permitting, saving):
            with pytest.raises(LeaseLostError):
                await task

    async def test_request_that_waits_is_not_sent_in_a_later_tenure(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        """Even if another keeper came and went, so that this one has the lease again when it hears of it."""
        first = await hosts.open()
        await first.acquire()
        redis.kill()
        time.now += SECONDS
        acquiring, permitting = asyncio.create_task(first.acquire()), asyncio.create_task(first.permit())
        await time.several_waits()
        redis.start()
        redis.ask("HSET", RECORDS, "tenure", "another", "names", OWNER.names)
        assert await acquiring
        with pytest.raises(LeaseLostError):
            await permitting

    async def test_lease_is_released_at_the_end(self, redis: RedisServer, hosts: Hosts) -> None:
        first = await hosts.open()
        await first.acquire()
        first.save_later(ROOM, kept(1))
        await first.aclose()
        assert redis.ask("EXISTS", LEASE) == b":0\r\n"
        second = await hosts.open()
        assert await second.acquire()
        assert second.targets == {ROOM: kept(1)}

    async def test_keeper_that_stands_by_releases_nothing(self, redis: RedisServer, hosts: Hosts) -> None:
        first, second = await hosts.open(), await hosts.open()
        await first.acquire()
        await second.aclose()
        assert redis.ask("EXISTS", LEASE) == b":1\r\n"
        assert first.obstacle is None

    async def test_keepers_of_other_names_do_not_meet(self, hosts: Hosts) -> None:
        for name, project in (("audit", "p1"), ("sales", "p1"), ("audit", "p2")):
            journal = await hosts.open(KeeperOwner(OWNER.origin, project, name))
            assert journal.obstacle is None

    async def test_names_of_another_kind_are_rejected_with_and_without_the_lease(self, hosts: Hosts) -> None:
        first = await hosts.open()
        await first.acquire()
        await first.save(ROOM, kept(1))
        once = KeeperOwner(OWNER.origin, OWNER.project, OWNER.name, "once")
        match = r"in the Redis at .* has streams that were started with names='reusable'.*: pass .* another name="
        with pytest.raises(InvalidRequestError, match=match):
            await hosts.open(once)
        await first.aclose()
        with pytest.raises(InvalidRequestError, match=match):
            await hosts.open(once)
        await (again := await hosts.open()).acquire()
        assert again.targets == {ROOM: kept(1)}

    async def test_lost_response_is_asked_for_again(self, redis: RedisServer, time: Time) -> None:
        socket = redis.folder / "proxy.sock"
        async with redis_proxy(redis.socket, socket) as proxy, opened(redis.url, time) as hosts:
            first = await hosts.open()
            await first.acquire()
            await first.save(ROOM, kept(1))
            hosts.url = proxy.url
            second = await hosts.open()
            taking = proxy.spoil(SCRIPT, "")
            await first.aclose()
            assert await second.acquire()
            assert second.targets == {ROOM: kept(1)}
            writing = proxy.spoil(SCRIPT, "")
            await second.save(ROOM, kept(2))
            assert not await second.acquire()
            assert kept(2).encode().encode() in record(redis, "conference:room-1")
            assert min(taking.seen, writing.seen) >= 2


class TestEnd:
    async def test_nothing_waits_for_a_redis_that_is_away(self, redis: RedisServer, hosts: Hosts, time: Time) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.kill()
        waits = [asyncio.create_task(journal.permit()), asyncio.create_task(journal.save(ROOM, kept(1)))]
        await waits[0]
        time.now += SECONDS
        waits[0] = asyncio.create_task(journal.permit())
        await asyncio.sleep(0)
        journal.stop_waiting()
        for task in waits:
            with pytest.raises(LeaseLostError):
                await task
        with pytest.raises(LeaseLostError):
            await journal.save(ROOM, kept(1))
        await journal.aclose()

    async def test_redis_that_goes_away_during_the_end_is_not_waited_for(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.kill()
        saving = asyncio.create_task(journal.save(ROOM, kept(1)))
        await asyncio.sleep(0)
        journal.stop_waiting()
        assert not saving.done()
        time.now += SECONDS
        with pytest.raises(LeaseLostError):
            await saving

    async def test_save_that_waits_for_redis_ends_with_the_journal(self, redis: RedisServer, hosts: Hosts) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.kill()
        saving = asyncio.create_task(journal.save(ROOM, kept(1)))
        await asyncio.sleep(0)
        await journal.aclose()
        async with asyncio.timeout(10):
            with pytest.raises(LeaseLostError):
                await saving

    async def test_cancellation_that_is_lost_does_not_hang_the_end(
        self, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in redis-py, or in Python 3.11's wait_for."""
        journal = await hosts.open()
        assert await journal.acquire()
        exchange, begun = journal._exchange, asyncio.Event()

        async def swallow(**options: Any) -> float:
            if begun.is_set():
                return await exchange(**options)
            begun.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return 1.0

        monkeypatch.setattr(journal, "_exchange", swallow)
        await asyncio.sleep(0)
        journal._queued.set()
        await begun.wait()
        await journal.aclose()
        assert journal._task.done()

    async def test_many_records_are_written_before_the_end(self, hosts: Hosts) -> None:
        journal = await hosts.open()
        assert await journal.acquire()
        await journal._stop_renewing()  # which would write them first
        records = {(TargetKind.CALL, f"call-{number}"): kept(number) for number in range(1_200)}
        for target, record in records.items():
            journal.save_later(target, record)
        await journal.aclose()
        again = await hosts.open()
        assert await again.acquire()
        assert again.targets == records

    async def test_redis_that_lost_its_memory_before_the_end_gets_the_records_again(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        await journal.save(ROOM, kept(1))
        redis.ask("FLUSHALL")
        await journal.aclose()
        assert redis.ask("EXISTS", LEASE) == b":0\r\n"
        again = await hosts.open()
        assert await again.acquire()
        assert again.targets == {ROOM: kept(1)}

    async def test_end_that_is_cancelled_releases_the_lease(self, hosts: Hosts) -> None:
        journal = await hosts.open()
        assert await journal.acquire()
        closing = asyncio.create_task(journal.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        async with asyncio.timeout(30):
            assert await (await hosts.open()).acquire()


class TestErrors:
    async def test_redis_that_can_not_be_reached_is_one_sentence(self, time: Time) -> None:
        journal = RedisJournal(f"redis://:hush@127.0.0.1:{free_port()}/0", OWNER, lease=SECONDS, clock=time.clock)
        with pytest.raises(JournalError, match=r"can't reach the Redis at redis://127.0.0.1:\d+/0: ") as caught:
            await journal.open()
        assert "hush" not in repr(caught.value)

    async def test_other_data_under_the_key_is_reported(self, redis: RedisServer, hosts: Hosts) -> None:
        redis.ask("SET", RECORDS, "mine")
        with pytest.raises(JournalError, match="has other data under this package's key"):
            await hosts.open()
        assert b"mine" in redis.ask("GET", RECORDS)

    async def test_record_of_another_version_is_reported(self, redis: RedisServer, hosts: Hosts) -> None:
        redis.ask("HSET", RECORDS, "tenure", "t", "conference:room-1", "[]")
        with pytest.raises(JournalError, match="the record 'conference:room-1' in Redis is not in this version's"):
            await hosts.open()

    async def test_record_that_is_no_text_is_reported_at_once_and_after_a_standby(
        self, redis: RedisServer, hosts: Hosts
    ) -> None:
        first, second = await hosts.open(), await hosts.open()
        await first.acquire()
        acquiring = asyncio.create_task(second.acquire())
        redis.ask(
            "EVAL", "redis.call('HSET', KEYS[1], 'call:1', '\\255'); redis.call('DEL', KEYS[2])", "2", RECORDS, LEASE
        )
        message = "a record in Redis is not in this version's format"
        async with asyncio.timeout(10):
            with pytest.raises(JournalError, match=message):
                await acquiring
        redis.ask("DEL", LEASE)
        with pytest.raises(JournalError, match=message):
            await hosts.open()

    async def test_bug_ends_all_waits(self, hosts: Hosts, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = await hosts.open()
        await journal.acquire()

        async def fail(**_: object) -> float:
            raise ZeroDivisionError

        monkeypatch.setattr(journal, "_exchange", fail)
        time.now += SECONDS
        async with asyncio.timeout(10):
            save = partial(journal.save, ROOM, kept(1))
            for wait in (save, journal.permit, journal.acquire, save):
                with pytest.raises(ZeroDivisionError):
                    await wait()
        monkeypatch.undo()

    async def test_redis_that_can_not_be_used_any_more_ends_all_waits(
        self, redis: RedisServer, hosts: Hosts, time: Time
    ) -> None:
        journal = await hosts.open()
        await journal.acquire()
        redis.ask("DEL", RECORDS)
        redis.ask("SET", RECORDS, "mine")
        time.now += SECONDS
        permitting = asyncio.create_task(journal.permit())
        with pytest.raises(JournalError, match="has other data"):
            await journal.save(ROOM, kept(1))
        for refused in (permitting, journal.acquire()):
            with pytest.raises(JournalError, match="has other data"):
                await refused

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"journal": "redis://:hush@host:port/0"}, "is not a Redis URL, or has an invalid option: write it as"),
            ({"journal": "redis://localhost", "lease": 0}, "lease must be"),
            (
                {"journal": "redis://localhost", "lease": 0.03},
                "lease must be at least 1 second, not 0.03: it is in sec",
            ),
        ],
    )
    async def test_wrong_argument_is_one_sentence(
        self, client: StreamsClient, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=message) as caught:
            client.keep_streaming({"url": "wss://a.example"}, name="audit", **options)
        assert "hush" not in repr(caught.value)

    async def test_missing_package_is_one_sentence(
        self, client: StreamsClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "redis", None)
        monkeypatch.setattr("signalwire_streams.keep_streaming._keeper.find_spec", lambda _: None)
        with pytest.raises(InvalidRequestError, match=r"pip install 'signalwire-streams\[redis\]'"):
            client.keep_streaming({"url": "wss://a.example"}, name="audit", journal="redis://localhost")
