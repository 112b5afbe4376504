"""A keeper against a Space on a real socket that counts the streams of each conference and call."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams import ClientStateError, Clock, InvalidRequestError, JournalError, StreamsClient
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver, StreamStopped
from signalwire_streams.keep_streaming import (
    Keeper,
    KeeperEvent,
    KeepSettings,
    KeepStatus,
    OnChange,
    PollingFailed,
    PollingRecovered,
    StandbyEnded,
    StartsPaused,
    StartsResumed,
    StreamingInDoubt,
    StreamingLost,
    StreamingRestarted,
    StreamingStarted,
    TargetAppeared,
    TargetEnded,
    TargetFailing,
    TargetReleased,
    TargetState,
    TimePassed,
)
from signalwire_streams.keep_streaming._background import BackgroundTasks
from signalwire_streams.keep_streaming._kept_targets import KeeperOptions, KeptTargets
from signalwire_streams.keep_streaming._receiving import AttemptSocket
from signalwire_streams.keep_streaming._records import KeptTarget
from signalwire_streams.models import TargetKind
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, NoFrames, SimulatedSpace
from tests import waiting

until = partial(waiting.until, timeout=110.0, interval=0.5)  # on the clock that skips what is idle
URL = "wss://rx.example.com/audio"
TEMPLATE: Any = {"url": URL, "parameters": {"tenant": "hush-value"}}


@pytest.fixture
async def space() -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(conferences=3, calls=2, participants=0) as running:
        yield running


@pytest.fixture
async def client(space: SimulatedSpace, idle_clock: Clock) -> AsyncIterator[StreamsClient]:
    async with StreamsClient(
        base_url=space.base_url, project=space.project, token=space.token, clock=idle_clock
    ) as client:
        yield client


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "kept.db"


class Events:
    """The events of a keeper, as they come."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.seen = keeper, list[KeeperEvent]()

    async def read(self) -> None:
        async for event in self.keeper:
            self.seen.append(event)

    def of(self, target: str) -> list[type[object]]:
        return [type(event) for event in self.seen if getattr(event, "target", None) == target]

    def count(self, kind: type[object]) -> int:
        return sum(isinstance(event, kind) for event in self.seen)


@asynccontextmanager
async def keeping(client: StreamsClient, journal: Path, template: Any = TEMPLATE, **options: Any) -> AsyncIterator[Any]:
    async with client.keep_streaming(template, name="audit", journal=journal, **options) as keeper:
        events = Events(keeper)
        reading = asyncio.create_task(events.read())
        try:
            yield events
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading


async def asynchronous(_: object) -> bool:
    return False


def alive(space: SimulatedSpace) -> list[str]:
    return sorted(stream.target_sid for stream in space.streams.active())


class TestStart:
    async def test_each_conference_gets_one_stream(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            new = space.add_conference()
            await until(lambda: events.count(StreamingStarted) == 4)
            assert events.of(new) == [TargetAppeared, StreamingStarted]
            assert {event.kind for event in events.seen} == {TargetKind.CONFERENCE}
            shown = {each.target: each for each in events.keeper.snapshot}
            assert shown.keys() == set(space.conference_sids)
            assert {(each.kind, each.status, each.reason) for each in shown.values()} == {
                (TargetKind.CONFERENCE, KeepStatus.STREAMING, None)
            }
            assert all(each.item is not None and each.item.sid == sid for sid, each in shown.items())
        assert alive(space) == sorted(space.conference_sids)  # they are left alone
        assert {stream.name for stream in space.streams.active()} == {f"audit-{sid}" for sid in space.conference_sids}

    async def test_calls_are_kept_if_asked_for(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal, conferences=False, calls=True):
            await until(lambda: alive(space) == sorted(space.call_sids))

    async def test_only_chosen_targets_get_a_stream(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        chosen = space.add_conference(friendly_name="support-1")
        where: Callable[[Any], bool] = lambda item: (item.friendly_name or "").startswith("support-")  # noqa: E731
        async with keeping(client, journal, where=where) as events:
            await until(lambda: space.requests.count("list-conferences") >= 3)
            assert events.of(chosen) == [TargetAppeared, StreamingStarted]
        assert alive(space) == [chosen]

    async def test_template_may_be_a_function_that_skips_some(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [skipped, *others] = space.conference_sids

        async def template(item: Any) -> Any:
            await asyncio.sleep(0)
            return None if item.sid == skipped else {"url": URL}

        async with keeping(client, journal, template):
            await until(lambda: space.requests.count("list-conferences") >= 3)
        assert alive(space) == sorted(others)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(KeyError("hush-value"), "the template raised KeyError for {}"), (InvalidRequestError("no {}"), "no {}")],
    )
    async def test_template_that_raises_makes_its_target_fail(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, error: Exception, reason: str
    ) -> None:
        [broken, *others] = space.conference_sids

        def template(item: Any) -> Any:
            if item.sid == broken:
                raise error
            return {"url": URL}

        async with keeping(client, journal, template) as events:
            await until(lambda: events.count(TargetFailing))
            await until(lambda: alive(space) == sorted(others))
            [failing, *_] = [event for event in events.seen if isinstance(event, TargetFailing)]
            assert failing.reason == (reason.format(broken) if isinstance(error, KeyError) else reason)
            assert space.requests.count("get-conference") == 0, "it was listed, so it has not ended"

    async def test_notice_starts_before_the_next_list(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal, poll=1000.0) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            new = space.add_conference()
            events.keeper.notice(new)
            await until(lambda: events.count(StreamingStarted) == 4)
            space.end_conference(new)
            events.keeper.notice(new)
            await until(lambda: TargetEnded in events.of(new))
            events.keeper.notice("unknown")
            await until(lambda: space.requests.count("get-conference") == 3)
            rule = space.faults.add("status", on="get-conference", status=403, times=2)
            events.keeper.notice("unreadable")
            events.keeper.notice(space.conference_sids[0])
            await until(lambda: rule.hits == 2)
            events.keeper.notice(space.add_conference(status="init"))
            await until(lambda: space.requests.count("get-conference") == 6)
            assert space.requests.count("list-conferences") == 1
        assert len(space.streams.active()) == 3

    async def test_many_that_appear_at_once_take_turns(
        self, space: SimulatedSpace, idle_clock: Clock, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rather than wait in the client until the 45 seconds of a start are over."""
        monkeypatch.setattr("signalwire_streams.keep_streaming._kept_targets._AT_ONCE", 5)
        for _ in range(27):
            space.add_conference()
        space.faults.add("latency", on="start", seconds=10.0)
        account: Any = {"base_url": space.base_url, "project": space.project, "token": space.token}
        async with (
            StreamsClient(**account, connections=6, clock=idle_clock) as client,
            keeping(client, journal, poll=50.0) as events,
        ):
            await until(lambda: events.count(StreamingStarted) == 30)
            assert events.count(TargetFailing) == 0
        assert space.requests.count("start-conference-stream") == 30

    async def test_starts_that_are_not_sent_cost_no_request(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """While the circuit breaker is open, no target is looked at for each of its starts."""
        for _ in range(30):
            space.add_conference()
        space.faults.add("502", on="start")
        async with keeping(client, journal) as events:
            await until(lambda: events.count(TargetFailing) >= 60)
        assert any("circuit breaker" in (getattr(event, "reason", None) or "") for event in events.seen)
        assert space.requests.count("get-conference") == 0

    async def test_starts_are_sent_once_though_responses_are_lost(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.faults.add("disconnect", on="start-conference-stream", executed=True, per_target=2)
        async with keeping(client, journal):
            await until(lambda: space.requests.count("start-conference-stream") >= 9)
            await until(lambda: space.requests.count("list-conferences") >= 5)
        assert space.streams.duplicates() == []
        assert alive(space) == sorted(space.conference_sids)


class TestLoss:
    async def test_stream_that_ends_is_started_again(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal, reassert=30.0) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            [stream] = [stream for stream in space.streams.active() if stream.target_sid == sid]
            await client.conferences.stop_stream(sid, stream.sid)
            await until(lambda: len(space.streams.active()) == 3)
        assert space.streams.duplicates() == []

    async def test_ended_target_is_forgotten(self, space: SimulatedSpace, client: StreamsClient, journal: Path) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            space.end_conference(sid)
            await until(lambda: TargetEnded in events.of(sid))
        with closing(sqlite3.connect(journal)) as database:
            assert database.execute("SELECT count(*) FROM targets WHERE sid = ?", (sid,)).fetchone() == (0,)
        assert space.requests.count("get-conference") == 1


class TestOutage:
    @pytest.mark.parametrize(("fault", "settings"), [("503-api", {}), ("throttle", {}), ("status", {"status": 401})])
    async def test_outage_is_one_event_and_its_end_another(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, fault: str, settings: dict[str, Any]
    ) -> None:
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            rule = space.faults.add(fault, on="list-conferences", **settings)
            await until(lambda: rule.hits >= 8)
            assert events.count(PollingFailed) == 1
            rule.remove()
            await until(lambda: events.count(PollingRecovered) == 1)
            assert events.count(StreamingLost) == events.count(TargetEnded) == 0

    async def test_target_that_ended_while_it_was_listed_does_not_appear_again(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signalwire_streams.keep_streaming._target_requests._PAGE_SIZE", 1)
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            slow = space.faults.add("latency", on="list-conferences", seconds=5.0)
            await until(lambda: slow.hits == 2)  # the first page has been returned
            for sid in space.conference_sids:
                space.end_conference(sid)
                events.keeper.notice(sid)
            await until(lambda: events.count(TargetEnded) == 3)
            assert slow.hits == 2
            await asyncio.sleep(30.0)
        assert events.count(TargetAppeared) == events.count(TargetEnded) == 3
        assert space.requests.count("start-conference-stream") == 3

    async def test_target_that_was_wrongly_said_to_have_ended_appears_with_the_next_list(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            space.faults.add("status", on="get-conference", status=404, body="api", code=20404, times=1)
            events.keeper.notice(sid)
            await until(lambda: TargetEnded in events.of(sid))
            await until(lambda: events.of(sid).count(TargetAppeared) == 2)
        assert space.streams.duplicates() == []

    async def test_check_that_fails_leaves_what_is_known_of_its_target(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal, poll=1000.0) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            failed = space.faults.add("status", on="get-conference", status=403)
            events.keeper.notice(sid)
            await until(lambda: failed.hits)
            await asyncio.sleep(1.0)
            items = {each.target: each.item for each in events.keeper.snapshot}
            assert items.keys() == set(space.conference_sids)
            assert all(item is not None and item.sid == target for target, item in items.items())

    async def test_list_of_one_kind_that_fails_holds_up_no_other(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Neither a new conference nor those of an earlier keeper, and no call is missed for it."""
        async with keeping(client, journal, calls=True) as events:
            await until(lambda: events.count(StreamingStarted) == 5)
        rule = space.faults.add("status", on="list-calls", status=403, body="api", code=20003)
        async with keeping(client, journal, calls=True) as events:
            await until(lambda: events.count(PollingFailed) == 1)
            new = space.add_conference()
            await until(lambda: events.of(new) == [TargetAppeared, StreamingStarted])
            assert events.count(TargetEnded) == 0
            assert {each.kind for each in events.keeper.snapshot} == {TargetKind.CONFERENCE}
            rule.remove()
            await until(lambda: events.count(PollingRecovered) == 1)
            await until(lambda: len(alive(space)) == 6)
        assert space.streams.duplicates() == []

    @pytest.mark.parametrize(
        ("kind", "fault", "settings"), [("conference", "502", {}), ("call", "status", {"status": 403})]
    )
    async def test_starts_that_waited_for_its_end_are_made_then(
        self,
        space: SimulatedSpace,
        client: StreamsClient,
        journal: Path,
        idle_clock: Clock,
        kind: str,
        fault: str,
        settings: dict[str, Any],
    ) -> None:
        """Each has failed so often by then that it would wait for up to a minute; on a call, nothing was started."""
        space.add_call()
        rules = [space.faults.add(fault, on=f"start-{kind}-stream", **settings)]
        async with keeping(client, journal, conferences=kind == "conference", calls=kind == "call") as events:
            await until(lambda: events.count(TargetFailing) >= 3)
            rules.append(space.faults.add("502", on=f"list-{kind}s"))
            await asyncio.sleep(70.0)  # of a clock that skips them
            for rule in rules:
                rule.remove()
            ended = idle_clock.now()
            await until(lambda: len(space.streams.active()) == 3)
            assert idle_clock.now() - ended <= 20.0  # the next poll, and the circuit breaker's probe
            assert events.count(PollingFailed) == events.count(PollingRecovered) == 1
        assert space.streams.duplicates() == []

    async def test_polls_go_on_while_the_circuit_breaker_is_open(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        rule = space.faults.add("502", on="start-conference-stream")
        for _ in range(10):
            space.add_conference()
        async with keeping(client, journal) as events:
            await until(lambda: events.count(TargetFailing) >= 13)
            before = space.requests.count("list-conferences")
            await until(lambda: space.requests.count("list-conferences") >= before + 5)
            assert events.count(PollingFailed) == 0
            rule.remove()
            await until(lambda: len(space.streams.active()) == 13)
        assert space.streams.duplicates() == []


_KEEP = """
import asyncio, sys
from signalwire_streams import StreamsClient

async def main(base_url, project, token, journal):
    async with StreamsClient(base_url=base_url, project=project, token=token) as client:
        template = {"url": "wss://rx.example.com/audio"}
        async with client.keep_streaming(template, name="audit", journal=journal) as keeper:
            async for event in keeper:
                pass

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_keepers_leave_no_second_stream_and_no_gap(journal: Path) -> None:
    """Each is killed while its starts are under way, some of whose responses are lost."""
    async with SimulatedSpace(conferences=200, participants=0) as space:
        space.faults.add("disconnect", on="start-conference-stream", executed=True, every_nth=7)
        command = [sys.executable, "-c", _KEEP, space.base_url, space.project, space.token, str(journal)]

        def has_started(least: int) -> bool:
            return len(space.streams.active()) >= least

        for started in (20, 60, 100):
            process = await asyncio.create_subprocess_exec(*command)
            try:
                await waiting.until(partial(has_started, started), timeout=60.0)
            finally:
                process.kill()
                await process.wait()
        async with (
            StreamsClient(base_url=space.base_url, project=space.project, token=space.token) as client,
            client.keep_streaming(TEMPLATE, name="audit", journal=journal),
        ):
            await waiting.until(partial(has_started, 200), timeout=60.0)
        assert space.streams.duplicates() == []


class TestRestart:
    async def test_keeper_that_is_started_again_takes_over(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [ended, *others] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        space.end_conference(ended)
        async with keeping(client, journal) as events:
            await until(lambda: space.requests.count("start-conference-stream") == 5)
            await until(lambda: events.count(TargetEnded) == 1)
        assert alive(space) == sorted(others)
        assert space.streams.duplicates() == []

    async def test_other_fields_are_for_new_streams_or_replace_those_that_run(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.duplicate_names = "http-error"  # otherwise the refusal is in a callback only
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        first = {stream.sid for stream in space.streams.active()}
        other = {"url": URL, "codec": "PCMU"}
        async with keeping(client, journal, other):
            await until(lambda: space.requests.count("start-conference-stream") == 6)
        assert {stream.sid for stream in space.streams.active()} == first
        async with keeping(client, journal, TEMPLATE, on_change="replace"):  # those that run are of this one
            await until(lambda: space.requests.count("start-conference-stream") == 9)
        assert {stream.sid for stream in space.streams.active()} == first
        async with keeping(client, journal, other, on_change="replace"):
            await until(lambda: first.isdisjoint(stream.sid for stream in space.streams.active()))
            await until(lambda: len(space.streams.active()) == 3)
        assert space.streams.duplicates() == []

    async def test_streams_that_replaced_others_are_not_replaced_again(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Though starts whose responses were lost, and whose names were stopped, stay in the journal."""
        space.duplicate_names = "http-error"
        space.faults.add("reset", on="start-conference-stream", executed=True, times=3)
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        first = {stream.sid for stream in space.streams.active()}
        other = {"url": URL, "codec": "PCMU"}
        async with keeping(client, journal, other, on_change="replace"):
            await until(lambda: first.isdisjoint(stream.sid for stream in space.streams.active()))
            await until(lambda: len(space.streams.active()) == 3)
        second, stopped = (
            {stream.sid for stream in space.streams.active()},
            space.requests.count("stop-conference-stream"),
        )
        async with keeping(client, journal, other, on_change="replace") as events:
            await until(lambda: events.count(StreamingRestarted) == 3)
        assert {stream.sid for stream in space.streams.active()} == second
        assert space.requests.count("stop-conference-stream") == stopped

    async def test_stream_that_was_started_late_is_replaced_too(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """After the stop by its name, and before the start of the other one, which it makes the Space refuse."""
        space.duplicate_names = "http-error"
        [sid, *_] = space.conference_sids
        options: Any = {"where": lambda item: item.sid == sid, "on_change": "replace", "reassert": 10.0}
        late = space.faults.add("executed-late", on="start", seconds=20.0, times=1)
        async with keeping(client, journal, **options):
            await until(lambda: late.hits == 1)
        space.faults.add("status", on="start", status=403, times=5)
        other = {**TEMPLATE, "url": "wss://other.example.com/audio"}
        async with keeping(client, journal, other, **options) as events:
            await until(lambda: events.count(StreamingStarted))
            reasons = [event.reason for event in events.seen if isinstance(event, StreamingInDoubt)]
            assert reasons[-1] == "the Space refuses the name, which a stream with other fields may have"
        assert [stream.url for stream in space.streams] == [TEMPLATE["url"], other["url"]]
        assert [stream.url for stream in space.streams.active()] == [other["url"]]

    async def test_streams_are_replaced_once_their_template_is_known(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        failing, ended, _ = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        first = {stream.sid: stream.target_sid for stream in space.streams.active()}
        asked = list[str]()

        def template(item: Any) -> Any:
            asked.append(item.sid)
            if item.sid in {failing, ended} and asked.count(failing) < 4:
                raise RuntimeError
            return {"url": URL, "codec": "PCMU"}

        async with keeping(client, journal, template, on_change="replace") as events:
            await until(lambda: asked.count(failing) == 2)
            space.end_conference(ended)
            await until(lambda: asked.count(failing) == 3)
            assert [first[stream.sid] for stream in space.streams.active() if stream.sid in first] == [failing]
            assert events.of(failing) == [TargetFailing]  # once
            assert {event.failures for event in events.seen if isinstance(event, TargetFailing)} == {1}
            await until(lambda: events.of(failing) == [TargetFailing, StreamingRestarted])
            assert events.of(ended) == [TargetFailing, TargetAppeared, TargetEnded]
        assert first.keys().isdisjoint(stream.sid for stream in space.streams.active())
        assert len(space.streams.active()) == 2
        assert space.streams.duplicates() == []

    async def test_template_that_hangs_holds_up_few_polls(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [slow, *_] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        asked = list[str]()

        async def template(item: Any) -> Any:
            asked.append(item.sid)
            if item.sid == slow:
                await asyncio.sleep(1e6)
            return TEMPLATE

        async with keeping(client, journal, template, on_change="replace") as events:
            await until(lambda: TargetFailing in events.of(slow))
            listed = space.requests.count("list-conferences")
            await until(lambda: space.requests.count("list-conferences") == listed + 10)
        assert asked.count(slow) == 1

    async def test_second_keeper_of_a_journal_is_rejected(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal):
            with pytest.raises(InvalidRequestError, match="another process is using the journal"):
                async with keeping(client, journal):
                    pass

    async def test_keeper_that_knows_nothing_doubles_nothing(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal) as first, keeping(client, journal.with_name("other.db")):
            await until(lambda: first.count(StreamingStarted) == 3)
            await until(lambda: space.requests.count("list-conferences") >= 10)
        assert space.streams.duplicates() == []

    @pytest.mark.parametrize("template", [TEMPLATE, lambda _: TEMPLATE], ids=["mapping", "function"])
    async def test_target_that_can_not_be_looked_at_is_taken_over(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, template: Any
    ) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal, template) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        space.end_conference(sid)
        rule = space.faults.add("status", on="get-conference", status=403)
        async with keeping(client, journal, template, on_change="replace") as events:
            await until(lambda: rule.hits >= 5)
            assert TargetEnded not in events.of(sid)
            rule.remove()
            await until(lambda: TargetEnded in events.of(sid))
        assert len(space.streams.active()) == 2

    async def test_target_that_ended_before_its_template_was_asked_is_not_failing(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [sid, *_] = space.conference_sids
        template: Any = lambda _: TEMPLATE  # noqa: E731
        async with keeping(client, journal, template) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        space.end_conference(sid)
        space.faults.add("status", on="get-conference", status=403, times=1)
        async with keeping(client, journal, template) as events:
            await until(lambda: TargetEnded in events.of(sid))
            assert TargetFailing not in events.of(sid)

    @pytest.mark.parametrize("on_change", ["keep", "replace"])
    @pytest.mark.parametrize("chooser", ["where", "template"])
    async def test_target_that_is_not_chosen_any_more_is_released(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, on_change: str, chooser: str
    ) -> None:
        [dropped, *others] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        options: dict[str, Any] = {"on_change": on_change, "reassert": 5.0}
        if chooser == "where":
            options["where"] = lambda item: item.sid != dropped
        else:
            options["template"] = lambda item: TEMPLATE if item.sid != dropped else None
        async with keeping(client, journal, **options) as events:
            await until(lambda: events.of(dropped) == [TargetReleased])
            await until(lambda: space.requests.count("start-conference-stream") >= 9)
        assert alive(space) == sorted(others if on_change == "replace" else space.conference_sids)
        assert space.requests.count("stop-conference-stream") == (on_change == "replace")
        with closing(sqlite3.connect(journal)) as database:
            [records] = database.execute("SELECT count(*) FROM targets WHERE sid = ?", (dropped,)).fetchone()
        assert records == (on_change == "keep"), "its stream is known as long as it may run"
        assert space.requests.count("start-conference-stream", target=dropped) == 1

    @pytest.mark.parametrize("kind", ["conference", "call"])
    @pytest.mark.parametrize("by", ["the same keeper", "the next keeper"])
    async def test_target_that_was_released_and_is_chosen_again_has_one_stream(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, kind: str, by: str
    ) -> None:
        """Such as one that the next version does not choose, until that is rolled back."""
        space.duplicate_names = "allow" if kind == "call" else "http-error"
        [sid, *_] = space.call_sids if kind == "call" else space.conference_sids
        chosen = {sid}
        options: Any = {
            "where": lambda item: item.sid in chosen,
            "conferences": kind != "call",
            "calls": kind == "call",
        }
        async with keeping(client, journal, **options) as events:
            await until(lambda: events.count(StreamingStarted) == 1)
        chosen.clear()
        async with keeping(client, journal, **options) as events:
            await until(lambda: events.of(sid) == [TargetReleased])
            chosen.add(sid)
            if by == "the same keeper":
                events.keeper.notice(sid)
                await until(lambda: StreamingRestarted in events.of(sid))
        async with keeping(client, journal, **options) as events:
            await until(lambda: StreamingRestarted in events.of(sid))
            assert StreamingInDoubt not in events.of(sid)
        assert alive(space) == [sid]
        assert space.streams.duplicates() == []

    async def test_doubt_about_a_call_that_was_released_is_held_if_it_is_chosen_again(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """A stop by its name proved nothing."""
        space.duplicate_names, chosen = "allow", set(space.call_sids)
        options: Any = {"where": lambda item: item.sid in chosen, "conferences": False, "calls": True}
        late = space.faults.add("executed-late", on="start", seconds=60.0, times=2)
        async with keeping(client, journal, **options):
            await until(lambda: late.hits == 2)
        chosen.clear()
        async with keeping(client, journal, on_change="replace", **options) as events:
            await until(lambda: events.count(TargetReleased) == 2)
            chosen.update(space.call_sids)
            for sid in space.call_sids:
                events.keeper.notice(sid)
            await asyncio.sleep(60.0)
            assert [each.status for each in events.keeper.snapshot] == [KeepStatus.IN_DOUBT] * 2
            assert [len(space.streams.alive_on(sid)) for sid in space.call_sids] == [1, 1]

    @pytest.mark.parametrize("on_change", ["keep", "replace"])
    async def test_template_that_skips_a_running_target_releases_it(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, on_change: str
    ) -> None:
        skipped = set[str]()
        options: Any = {"reassert": 5.0, "on_change": on_change}
        template: Any = lambda item: None if item.sid in skipped else TEMPLATE  # noqa: E731
        async with keeping(client, journal, template, **options) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            skipped.add(space.conference_sids[0])
            await until(lambda: events.count(TargetReleased) == 1)
            await until(lambda: space.requests.count("list-conferences") >= 10)
            assert events.count(TargetFailing) == events.count(StreamingInDoubt) == 0
        assert len(space.streams.active()) == (2 if on_change == "replace" else 3)

    async def test_streams_of_another_kind_stay_in_the_journal(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal, calls=True) as events:
            await until(lambda: events.count(StreamingStarted) == 5)
        async with keeping(client, journal):
            await until(lambda: space.requests.count("list-conferences") >= 4)
        with closing(sqlite3.connect(journal)) as database:
            assert database.execute("SELECT count(*) FROM targets WHERE kind = 'call'").fetchone() == (2,)


class TestEnd:
    async def test_start_under_way_is_waited_for(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.faults.add("latency", on="start-conference-stream", seconds=3.0)
        async with client.keep_streaming(TEMPLATE, name="audit", journal=journal) as keeper:
            await until(lambda: space.requests.count("start-conference-stream") == 3)
        events = [event async for event in keeper]
        assert sum(isinstance(event, StreamingStarted) for event in events) == 3
        keeper.notice(space.conference_sids[0])  # which changes nothing any more
        keeper.notice("unknown")
        assert space.requests.count("start-conference-stream") == 3

    async def test_cancelled_end_closes_the_journal_and_leaves_a_doubt(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.faults.add("hang", on="start-conference-stream", times=3)

        async def keep() -> None:
            async with client.keep_streaming(TEMPLATE, name="audit", journal=journal):
                await until(lambda: space.requests.count("start-conference-stream") == 3)

        with suppress(TimeoutError):
            await asyncio.wait_for(keep(), 3.0)
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        assert space.streams.duplicates() == []
        assert len(space.streams.active()) == 3

    @pytest.mark.parametrize("times", [2, 3])
    async def test_end_that_is_cancelled_repeatedly_closes_the_journal(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, times: int
    ) -> None:
        space.faults.add("hang", on="start-conference-stream", times=3)
        keeper, leaving = client.keep_streaming(TEMPLATE, name="audit", journal=journal), asyncio.Event()

        async def keep() -> None:
            async with keeper:
                await until(lambda: space.requests.count("start-conference-stream") == 3)
                leaving.set()

        keeping_one = asyncio.create_task(keep())
        await leaving.wait()
        for _ in range(times):
            keeping_one.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({keeping_one})
        assert keeping_one.cancelled()
        assert [event async for event in keeper]  # which ends
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        assert space.streams.duplicates() == []

    async def test_starts_that_wait_for_their_template_are_not_sent(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        called, ending = list[str](), asyncio.Event()

        async def template(item: Any) -> Any:
            called.append(item.sid)
            if len(called) > 3:  # the second time, after a start that failed
                await ending.wait()
            return TEMPLATE

        space.faults.add("status", on="start-conference-stream", status=403, times=3)
        async with client.keep_streaming(template, name="audit", journal=journal):
            await until(lambda: len(called) == 6)
            asyncio.get_running_loop().call_later(1.0, ending.set)
        assert space.requests.count("start-conference-stream") == 3

    async def test_client_that_is_closed_ends_the_keeper(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async def keep() -> None:
            async with client.keep_streaming(TEMPLATE, name="audit", journal=journal):
                await until(lambda: len(space.streams.active()) == 3)
                await client.aclose()
                await asyncio.sleep(20.0)

        with pytest.raises(ClientStateError, match="this client is closed"):
            await keep()

    async def test_where_that_raises_fails_its_own_target(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        broken_sid, *others = space.conference_sids

        def where(item: Any) -> bool:
            if item.sid == broken_sid:
                raise AttributeError("nothing")
            return True

        async with keeping(client, journal, where=where) as events:
            await until(lambda: events.count(StreamingStarted) == 2 and events.count(TargetFailing) == 1)
        [failing] = [event for event in events.seen if isinstance(event, TargetFailing)]
        assert failing.reason == f"where raised AttributeError for {broken_sid}"
        assert alive(space) == sorted(others)

    async def test_where_that_returns_an_awaitable_chooses_nothing(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """It would be true for each conference, whatever it comes to."""
        nothing = asyncio.get_running_loop().create_future()
        async with keeping(client, journal, where=lambda _: nothing) as events:
            await until(lambda: events.count(TargetFailing) == 3)
        assert {event.reason for event in events.seen if isinstance(event, TargetFailing)} == {
            "where returns an awaitable: write def, or let an async template return None"
        }
        assert alive(space) == []

    async def test_streams_that_were_not_taken_over_yet_are_stopped_too(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Those of an earlier keeper, while the first list cannot be read."""
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        space.faults.add("status", on="list", status=503, body="empty")
        async with keeping(client, journal, on_exit="stop") as events:
            await until(lambda: events.count(PollingFailed) == 1)
        assert alive(space) == []

    async def test_receiver_that_is_closed_leaves_no_start_in_doubt(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Nothing is recorded of a start that can't be sent, so that a call is not held for it."""

        async def handle(_: object) -> None: ...

        receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
        await receiver.aclose(0)
        options = {"receivers": [receiver], "conferences": False, "calls": True}
        async with keeping(client, journal, **options) as events:
            await until(lambda: events.count(TargetFailing) == 2)
        async with keeping(client, journal, conferences=False, calls=True):
            await until(lambda: alive(space) == sorted(space.call_sids))

    async def test_stop_ends_all_streams(self, space: SimulatedSpace, client: StreamsClient, journal: Path) -> None:
        space.faults.add("status", on="start-conference-stream", status=403, target=space.add_conference())
        async with keeping(client, journal, on_exit="stop") as events:
            await until(lambda: events.count(StreamingStarted) == 3)
        assert space.streams.active() == []
        with closing(sqlite3.connect(journal)) as database:
            assert database.execute("SELECT count(*) FROM targets").fetchone() == (1,)  # which has no stream

    async def test_stop_ends_a_stream_whose_start_was_forgotten(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """The Space refuses names in callbacks that nobody gets, so each start looks accepted."""
        [sid, *_] = space.conference_sids
        async with keeping(client, journal, on_exit="stop", reassert=1.0):
            await until(lambda: space.requests.count("start-conference-stream", target=sid) == 3)
            [first] = [stream for stream in space.streams.active() if stream.target_sid == sid]
            await client.conferences.stop_stream(sid, first.sid)
            await until(lambda: space.requests.count("start-conference-stream", target=sid) == 20)
            assert len(space.streams.active()) == 3
        assert space.streams.active() == []

    async def test_stop_reports_what_may_still_run(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with client.keep_streaming(TEMPLATE, name="audit", journal=journal, on_exit="stop") as keeper:
            await until(lambda: len(space.streams.active()) == 3)
            await until(lambda: len(keeper._events) >= 6)
            space.faults.add("status", on="stop-conference-stream", status=403, target=space.conference_sids[0])
        left = [event async for event in keeper]
        assert [event.target for event in left if isinstance(event, StreamingInDoubt)] == [space.conference_sids[0]]
        assert alive(space) == [space.conference_sids[0]]

    async def test_error_of_the_journal_ends_the_keeper(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async def keep() -> None:
            async with client.keep_streaming(TEMPLATE, name="audit", journal=journal) as keeper:
                await until(lambda: len(space.streams.active()) == 3)
                journal.with_name("kept.db.lock").unlink()
                space.add_conference()
                async for _ in keeper:
                    pass

        with pytest.raises(JournalError, match=r"kept\.db\.lock was removed"):
            await keep()
        assert len(space.streams.active()) == 3  # what can't be recorded is not started

    async def test_keeper_that_has_failed_lists_nothing_more(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Even if nobody reads its events until the block ends."""

        async def keep() -> None:
            async with client.keep_streaming(TEMPLATE, name="audit", journal=journal):
                await until(lambda: len(space.streams.active()) == 3)
                journal.with_name("kept.db.lock").unlink()
                space.add_conference()
                await asyncio.sleep(11.0)
                lists = space.requests.count("list-conferences")
                await asyncio.sleep(30.0)
                assert space.requests.count("list-conferences") == lists

        with pytest.raises(JournalError):
            await keep()

    async def test_refused_token_is_reported(self, space: SimulatedSpace, idle_clock: Clock, journal: Path) -> None:
        async with (
            StreamsClient(base_url=space.base_url, project=space.project, token="wrong", clock=idle_clock) as client,
            keeping(client, journal) as events,
        ):
            await until(lambda: events.count(PollingFailed) == 1)
            [failed] = events.seen
            assert isinstance(failed, PollingFailed)
            assert "401" in failed.reason


@asynccontextmanager
async def told(space: SimulatedSpace, events: "list[CallbackEvent]") -> AsyncIterator[tuple[str, list[Keeper]]]:
    """Serve callbacks of the Space; the keepers in the list get them."""
    keepers: list[Keeper] = []

    async def handle(event: CallbackEvent) -> None:
        events.append(event)
        for keeper in keepers:
            await keeper.handle_status_callback(event)

    receiver = CallbackReceiver(handle, keys=[space.signing_key], allowed_hosts=["127.0.0.1"])
    application = web.Application()
    application.router.add_post("/callbacks", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks?tenant=1", keepers
    finally:
        await receiver.aclose()
        await runner.cleanup()


class TestCallbacks:
    async def test_end_callback_starts_another_stream_at_once(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.callbacks = True
        [sid, *_] = space.conference_sids
        seen: list[CallbackEvent] = []
        async with told(space, seen) as (url, keepers):
            template = {"url": URL, "status_callback": url}
            async with keeping(client, journal, template, reassert=1000.0, poll=1000.0) as events:
                keepers.append(events.keeper)
                await until(lambda: len(seen) == 3)
                assert all(event.extra["keep_attempt"].isdigit() for event in seen)
                await asyncio.sleep(20.0)  # of a clock that skips them: by now an end is no failure
                [stream] = [stream for stream in space.streams.active() if stream.target_sid == sid]
                await client.conferences.stop_stream(sid, stream.sid)
                await until(lambda: StreamingRestarted in events.of(sid))
                assert events.of(sid) == [TargetAppeared, StreamingStarted, StreamingLost, StreamingRestarted]
        assert len(space.streams.active()) == 3

    async def test_callbacks_of_other_streams_change_nothing(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        [sid, *_] = space.conference_sids
        async with keeping(client, journal) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            before = list(events.seen)
            for event in (
                StreamStopped(conference_sid=sid, stream_name=f"audit-{sid}", stream_sid="other"),
                StreamStopped(conference_sid=sid, extra={"keep_attempt": "1"}),
                StreamStopped(conference_sid="unknown", stream_name="audit-unknown"),
                StreamStopped(),
            ):
                await events.keeper.handle_status_callback(event)
            await asyncio.sleep(20.0)
            assert events.seen == before


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates.make()


class TestReceivers:
    @pytest.fixture
    async def space(self, certificates: Certificates) -> AsyncIterator[SimulatedSpace]:
        async with SimulatedSpace(
            conferences=3, calls=2, participants=0, audio=NoFrames(), ssl_context=certificates.trust
        ) as running:
            yield running

    @pytest.mark.parametrize("kind", ["conference", "call"])
    async def test_lost_socket_is_followed_by_another_stream(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates, kind: str
    ) -> None:
        sessions: list[StreamSession] = []
        leaves: list[asyncio.Event] = []

        async def handle(session: StreamSession) -> None:
            """Return when the test says so, which closes the socket."""
            sessions.append(session)
            leaves.append(asyncio.Event())
            await leaves[-1].wait()

        receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
        kinds = {"conferences": kind == "conference", "calls": kind == "call"}
        sids = space.conference_sids if kind == "conference" else space.call_sids
        async with receiver.serve(ssl_context=certificates.server) as url:
            async with keeping(client, journal, {"url": url}, receivers=[receiver], **kinds) as events:
                await until(lambda: len(sessions) == len(sids))
                attempts = {session.start.custom_parameters["keep_attempt"] for session in sessions}
                assert len(attempts) == len(sids)
                await asyncio.sleep(15.0)
                [target] = [each.target_sid for each in space.streams.active() if each.sid == sessions[0].stream_sid]
                leaves[0].set()
                await until(lambda: StreamingRestarted in events.of(target))
                assert len(sessions) == len(sids) + 1
                assert alive(space) == sorted(sids)
            assert receiver.rejected_upgrades == 0

    async def test_stream_whose_socket_is_not_open_is_waited_for(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async def handle(session: StreamSession) -> None:
            raise AssertionError

        receiver = MediaReceiver(handle, bearer_tokens=None)
        async with keeping(client, journal, {"url": URL}, receivers=[receiver]) as events:
            await until(lambda: space.requests.count("start-conference-stream") == 3)
            assert {each.status for each in events.keeper.snapshot} == {KeepStatus.WAITING}
            await until(lambda: space.requests.count("start-conference-stream") >= 5)
            assert {*map(type, events.seen)} == {TargetAppeared, TargetFailing, StartsPaused}
            assert events.count(TargetFailing) == 3, "each reason once"

    async def test_late_socket_of_a_keeper_that_ended_is_rejected(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates
    ) -> None:
        async def handle(session: StreamSession) -> None:
            await session.wait_closed()

        receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
        space.faults.add("socket-slow", seconds=3.0)
        async with receiver.serve(ssl_context=certificates.server) as url:
            async with keeping(client, journal, {"url": url}, receivers=[receiver]):
                await until(lambda: space.requests.count("start-conference-stream") == 3)
            await until(lambda: receiver.rejected_upgrades == 3)

    async def test_late_socket_of_a_target_that_was_released_is_rejected(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates
    ) -> None:
        [sid, *_] = space.conference_sids
        served, asked = list[StreamSession](), list[str]()

        async def handle(session: StreamSession) -> None:
            served.append(session)

        receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
        late = space.faults.add("executed-late", on="start", seconds=20.0, times=1)
        async with receiver.serve(ssl_context=certificates.server) as url:

            def template(item: Any) -> Any:
                asked.append(item.sid)
                return {"url": url} if len(asked) == 1 else None

            async with keeping(
                client, journal, template, receivers=[receiver], where=lambda item: item.sid == sid
            ) as events:
                await until(lambda: events.of(sid)[-1:] == [TargetReleased])
                assert (late.hits, len(asked)) == (1, 2)
                await until(lambda: receiver.rejected_upgrades == 1)
        assert served == []

    @pytest.mark.parametrize(
        ("sid", "is_expected", "reason"),
        [
            (None, True, "its start event has no sid"),  # so that it could not be stopped
            ("s7", False, "its start was rejected, or is forgotten"),  # since the upgrade
        ],
    )
    async def test_socket_that_can_not_be_kept_is_not_served(
        self, caplog: pytest.LogCaptureFixture, sid: str | None, is_expected: bool, reason: str
    ) -> None:
        seen: list[object] = []

        async def handle(session: StreamSession) -> None:
            raise AssertionError

        receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
        socket = AttemptSocket(attempt=7, receiver=receiver, observe=seen.append, is_expected=lambda: is_expected)
        session: Any = SimpleNamespace(stream_sid=sid)
        await socket.on_session(session)
        with caplog.at_level("INFO", "signalwire_streams.keep_streaming"):
            socket.on_socket_failed("the connection broke")
        assert seen == []
        assert f"attempt 7 is closed, since {reason}" in caplog.text
        assert "the socket of attempt 7 failed: the connection broke" in caplog.text


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "a/b"}, "name 'a/b' can't be part of a path"),
            ({"template": {}}, "the template has no url"),
            ({"template": URL}, "write the fields of a start"),
            ({"template": {"url": URL, "codec": "PCMU"}, "calls": True}, "codec is for conference streams only"),
            ({"conferences": False}, "pass conferences=True or calls=True"),
            ({"conferences": "yes"}, "conferences"),
            ({"where": "support"}, "where is .*: write a function"),
            ({"where": asynchronous}, "where is an async function: write def, or let an async template return None"),
            ({"poll": 0}, "poll"),
            ({"reassert": -1}, "reassert"),
            ({"journal": ""}, "journal is empty"),
            ({"journal": "redis+cluster://host:6379/0"}, "journal is a URL: .* written as 'redis://host:6379/0'"),
            ({"receivers": [URL]}, "receivers contains a str: write receivers="),
            ({"receivers": MediaReceiver()}, r"receivers contains a MediaReceiver|no handler"),
            ({"receivers": [MediaReceiver()]}, "has no handler for the streams"),
            ({"in_doubt": "guess"}, "in_doubt 'guess' is unknown: write one of 'hold', 'restart'"),
            ({"names": "twice"}, "names 'twice' is unknown"),
            ({"duplicate_names": "refused"}, "duplicate_names must be a mapping by kind"),
            ({"duplicate_names": {"room": "refused"}}, "duplicate_names must be a mapping by kind"),
            ({"duplicate_names": {"call": "maybe"}, "calls": True}, "duplicate_names 'maybe' is unknown"),
            ({"on_change": "drop"}, "on_change 'drop' is unknown"),
            ({"template": lambda _: TEMPLATE, "in_doubt": "guess"}, "in_doubt 'guess' is unknown"),
            ({"on_exit": "drop"}, "on_exit 'drop' is unknown"),
        ],
    )
    async def test_wrong_argument_is_one_sentence(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, arguments: dict[str, Any], message: str
    ) -> None:
        given: dict[str, Any] = {"template": TEMPLATE, "name": "audit", "journal": journal, **arguments}
        with pytest.raises(InvalidRequestError, match=message):
            client.keep_streaming(given.pop("template"), **given)
        assert list(journal.parent.iterdir()) == []
        assert space.requests.count() == 0

    async def test_token_of_the_template_and_receivers_exclude_each_other(self, client: StreamsClient) -> None:
        async def handle(session: StreamSession) -> None:
            raise AssertionError

        receiver = MediaReceiver(handle, bearer_tokens=None)
        template: Any = {"url": URL, "authorization_bearer_token": "mine"}
        with pytest.raises(InvalidRequestError, match="omit authorization_bearer_token"):
            client.keep_streaming(template, name="audit", receivers=[receiver])

    async def test_notice_needs_an_open_keeper_and_a_sid(self, client: StreamsClient) -> None:
        keeper = client.keep_streaming({"url": URL}, name="audit")
        with pytest.raises(ClientStateError, match="write 'async with"):
            keeper.notice("room")
        with pytest.raises(InvalidRequestError, match="sid 'a/b' can't be part of a path"):
            keeper.notice("a/b")

    async def test_another_thread_or_event_loop_is_one_sentence_and_changes_nothing(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Such as that of a web application, which is told of a new conference."""
        [sid, *_] = space.conference_sids

        async def handle(keeper: Keeper) -> None:
            await keeper.handle_status_callback(StreamStopped(conference_sid=sid))

        async def read(keeper: Keeper) -> None:
            await anext(aiter(keeper))

        async with keeping(client, journal, reassert=10.0) as events:
            await until(lambda: events.count(StreamingStarted) == 3)
            keeper = events.keeper
            for work in (
                lambda: keeper.notice(sid),
                lambda: keeper.notice("another"),
                lambda: asyncio.run(handle(keeper)),
                lambda: asyncio.run(read(keeper)),
            ):
                with pytest.raises(ClientStateError, match=r"write loop\.call_soon_threadsafe\(keeper\.notice, sid\)"):
                    await asyncio.to_thread(work)
            starts = space.requests.count("start-conference-stream", target=sid)
            await until(lambda: space.requests.count("start-conference-stream", target=sid) == starts + 2)

    async def test_one_loop_reads_an_open_keeper(self, client: StreamsClient, journal: Path) -> None:
        keeper = client.keep_streaming({"url": URL}, name="audit", journal=journal, where=lambda _: False)
        with pytest.raises(ClientStateError, match="write 'async with"):
            async for _ in keeper:
                pass

        async def first_event() -> KeeperEvent:
            return await anext(aiter(keeper))

        async with keeper:
            reading = asyncio.create_task(first_event())
            await asyncio.sleep(0)
            with pytest.raises(ClientStateError, match="only one loop at a time"):
                await anext(aiter(keeper))
            reading.cancel()  # and another one may begin before that has had its effect
            reading = asyncio.create_task(first_event())
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await reading

    async def test_keeper_is_used_once(self, client: StreamsClient, journal: Path) -> None:
        keeper = client.keep_streaming({"url": URL}, name="audit", journal=journal)
        async with keeper:
            with pytest.raises(ClientStateError, match="was used before"):
                await keeper.__aenter__()


async def test_journal_has_no_secret(space: SimulatedSpace, client: StreamsClient, journal: Path) -> None:
    template = {**TEMPLATE, "authorization_bearer_token": "hush-token", "status_callback": "https://a.example/?hush=1"}
    async with keeping(client, journal, template) as events:
        await until(lambda: events.count(StreamingStarted) == 3)
        assert "hush" not in repr(events.keeper) + repr(events.seen)
        for file in journal.parent.iterdir():
            assert b"hush" not in file.read_bytes()
            assert b"rx.example.com" not in file.read_bytes()


async def test_template_that_returns_after_another_keeper_took_over_changes_nothing() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    emitted: list[object] = []

    async def template(_: object) -> None:
        asked.set()
        await answer.wait()

    options = KeeperOptions(name="audit", template=template, where=None, on_change=OnChange.KEEP)
    targets = KeptTargets(
        options,
        {TargetKind.CONFERENCE: SimpleNamespace(settings=KeepSettings(duplicate_names="refused"))},  # type: ignore[dict-item]
        receivers=(),
        clock=Clock.fake(),
        tasks=BackgroundTasks(emitted.append),
        emit=emitted.append,
    )
    targets.journal = SimpleNamespace(targets={}, is_lost=True)
    kept = targets.of_record((TargetKind.CONFERENCE, "room"), KeptTarget(state=TargetState()))
    kept.item = SimpleNamespace(sid="room")  # type: ignore[assignment]
    targets.take_over(kept, TimePassed())
    starting = asyncio.create_task(targets._start(kept, 1))
    await asked.wait()
    targets.begin_again()
    answer.set()
    await starting
    assert (emitted, targets.ignored, len(targets)) == ([], set(), 0)


async def test_end_before_the_first_poll_takes_the_lease_to_stop_what_runs() -> None:
    emitted: list[object] = []
    journal = SimpleNamespace(targets={}, is_lost=True, obstacle=None)

    async def acquire() -> None:
        journal.is_lost = False

    journal.acquire = acquire
    options = KeeperOptions(name="audit", template={"url": "wss://rx.example.com"}, where=None, on_change=OnChange.KEEP)
    tasks = BackgroundTasks(emitted.append)
    targets = KeptTargets(options, {}, receivers=(), clock=Clock.fake(), tasks=tasks, emit=emitted.append)
    targets.journal = journal
    await targets.stop_all()
    assert not journal.is_lost


async def test_pause_is_over_when_another_keeper_may_have_acted() -> None:
    emitted: list[Any] = []
    options = KeeperOptions(name="audit", template=TEMPLATE, where=None, on_change=OnChange.KEEP)
    tasks = BackgroundTasks(emitted.append)
    targets = KeptTargets(options, {}, receivers=(), clock=Clock.fake(), tasks=tasks, emit=emitted.append)
    targets.journal = SimpleNamespace(targets={})
    settings, receiver = KeepSettings(duplicate_names="refused"), "wss://rx.example.com"
    for target in ("room-1", "room-2", "room-3"):
        targets.breakers.move(target, "", receiver, settings, 0.0)
        targets.breakers.on_decision(receiver, target, TargetState(), 0.0, is_start=True)
        targets.breakers.on_decision(receiver, target, TargetState(early_ends=1), 0.0, is_start=False)
    assert [type(event) for event in emitted] == [StartsPaused]
    targets.begin_again()
    assert emitted[1:] == [StartsResumed(receiver=receiver)]
    assert targets.breakers.paused_until(receiver) == -inf


async def test_obstacles_are_those_whose_end_was_not_reported(client: StreamsClient) -> None:
    keeper = client.keep_streaming(TEMPLATE, name="audit")
    here, there = (StartsPaused(receiver=receiver, reason="refused") for receiver in ("wss://a", "wss://b"))
    before, outage = (PollingFailed(reason=reason) for reason in ("503", "504"))

    def left_after(*events: KeeperEvent) -> list[object]:
        for event in events:
            keeper._emit(event)
        return list(keeper.obstacles)

    assert left_after(here, there, before, outage) == [here, there, outage]
    assert left_after(StartsResumed(receiver="wss://a")) == [there, outage]
    assert left_after(PollingRecovered(), StandbyEnded()) == [there]


async def test_oldest_events_are_dropped_if_nobody_reads_them(client: StreamsClient, journal: Path) -> None:
    async with client.keep_streaming(TEMPLATE, name="audit", journal=journal, where=lambda _: False) as keeper:
        reading = asyncio.ensure_future(anext(aiter(keeper)))
        await asyncio.sleep(0)
        first = PollingFailed(reason="0")
        keeper._emit(first)
        assert await reading == first, "an event wakes the reader"
        for number in range(1, 10_002):
            keeper._emit(PollingFailed(reason=str(number)))
        assert await anext(aiter(keeper)) == PollingFailed(reason="2")
        assert len(keeper._events) == 9_999
