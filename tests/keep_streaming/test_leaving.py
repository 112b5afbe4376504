"""The end of a keeper's block: what it stops, what may still run, and what it does not wait for."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import ClientStateError, Clock, StreamsClient
from signalwire_streams.keep_streaming import StreamingInDoubt, StreamingStarted, TargetAppeared, TargetFailing
from signalwire_streams.keep_streaming._background import BackgroundTasks
from signalwire_streams.receiver import MediaReceiver
from signalwire_streams.simulator import SimulatedSpace
from tests.keep_streaming.test_keeper import TEMPLATE, alive, client, journal, keeping, space, until

__all__ = ["client", "journal", "space"]

CALLS: Any = {"conferences": False, "calls": True}
LATE = "the response to a start was lost, and the Space may still carry it out"


def records(journal: Path) -> int:
    with closing(sqlite3.connect(journal)) as database:
        [count] = database.execute("SELECT count(*) FROM targets").fetchone()
        return int(count)


class TestStop:
    @pytest.mark.parametrize("had_stream", [False, True], ids=["name is not found", "name of a stream that ended"])
    async def test_late_start_is_told_and_stopped_by_the_next_keeper(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, had_stream: bool
    ) -> None:
        """A stop by name proves nothing, whatever its response: the start may be carried out after it."""
        space.duplicate_names = "http-error"
        [sid, *_] = space.conference_sids
        options: Any = {"where": lambda item: item.sid == sid, "on_exit": "stop", "reassert": 10.0}
        keeper = client.keep_streaming(TEMPLATE, name="audit", journal=journal, **options)
        async with keeper:
            if had_stream:
                await until(lambda: alive(space) == [sid])
                await asyncio.sleep(1.0)
                await client.conferences.stop_stream(sid, space.streams.active()[0].sid)
            late = space.faults.add("executed-late", on="start", seconds=20.0, times=1)
            await until(lambda: late.hits == 1)
            refused = space.faults.add("status", on="start", status=403)
            await until(lambda: refused.hits)
        told = [event async for event in keeper if isinstance(event, StreamingInDoubt)]
        assert alive(space) == []
        assert (told[-1].target, records(journal)) == (sid, 1)
        if had_stream:
            assert told[-1].reason == LATE
        await until(lambda: alive(space) == [sid])
        async with client.keep_streaming(TEMPLATE, name="audit", journal=journal, **options):
            pass
        assert alive(space) == []

    async def test_block_that_ends_at_once_stops_what_an_earlier_keeper_left(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        async with keeping(client, journal):
            await until(lambda: len(space.streams.active()) == 3)
        async with client.keep_streaming(TEMPLATE, name="audit", journal=journal, on_exit="stop"):
            pass
        assert (alive(space), records(journal)) == ([], 0)

    async def test_start_that_was_lost_long_ago_is_over(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signalwire_streams.keep_streaming._kept_targets._LATE", 30.0)
        space.duplicate_names = "http-error"
        space.faults.add("disconnect", on="start", executed=True, times=3)
        keeper = client.keep_streaming(TEMPLATE, name="audit", journal=journal, on_exit="stop", reassert=100.0)
        async with keeper:
            await until(lambda: len(space.streams.active()) == 3)
            await asyncio.sleep(35.0)
        assert not [event async for event in keeper if isinstance(event, StreamingInDoubt)]
        assert (alive(space), records(journal)) == ([], 0)

    async def test_start_is_late_from_when_its_response_was_lost_however_old_its_keeper_is(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        space.duplicate_names = "http-error"
        [sid, *_] = space.conference_sids
        options: Any = {"where": lambda item: item.sid == sid, "on_exit": "stop", "reassert": 400.0}
        keeper = client.keep_streaming(TEMPLATE, name="audit", journal=journal, **options)
        async with keeper:
            await until(lambda: alive(space) == [sid])
            await asyncio.sleep(350.0)
            lost = space.faults.add("disconnect", on="start", executed=True, times=1)
            await until(lambda: lost.hits == 1)
            await asyncio.sleep(2.0)
        told = [event async for event in keeper if isinstance(event, StreamingInDoubt)]
        assert [(event.target, event.reason) for event in told] == [(sid, LATE)]
        assert (alive(space), records(journal)) == ([], 1)

    async def test_call_stays_in_doubt_for_the_next_keeper(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """At most one stream: the start in doubt may be carried out after the stop by its name."""
        late = space.faults.add("executed-late", on="start", seconds=20.0, times=2)
        async with keeping(client, journal, on_exit="stop", **CALLS):
            await until(lambda: late.hits == 2)
            await asyncio.sleep(2.0)
        async with keeping(client, journal, **CALLS):
            await until(lambda: len(space.streams.active()) == 2)
            await asyncio.sleep(10.0)
        assert space.requests.count("start-call-stream") == 2
        assert space.streams.duplicates() == []

    async def test_doubt_that_an_earlier_keeper_left_is_as_young_as_can_be(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        """Its record does not say when the response was lost."""
        lost = space.faults.add("disconnect", on="start", executed=True, times=2)
        async with keeping(client, journal, **CALLS):
            await until(lambda: lost.hits == 2)
            await asyncio.sleep(1.0)
        keeper = client.keep_streaming(TEMPLATE, name="audit", journal=journal, on_exit="stop", **CALLS)
        async with keeper:
            lists = space.requests.count("list-calls")
            await until(lambda: space.requests.count("list-calls") > lists)
            await asyncio.sleep(1.0)
        told = {event.target: event.reason async for event in keeper if isinstance(event, StreamingInDoubt)}
        assert told == dict.fromkeys(space.call_sids, LATE)
        assert (alive(space), records(journal)) == ([], 2)


class TestUnsent:
    """What was never sent is neither waited for, nor reported as failing, nor held as a doubt."""

    @pytest.mark.parametrize("on_exit", ["leave", "stop"])
    async def test_template_that_hangs_does_not_hold_up_the_end(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, on_exit: Any
    ) -> None:
        called = list[str]()

        async def template(item: Any) -> Any:
            called.append(item.sid)
            if len(called) > 1:  # its start is rejected, and the template asked again
                await asyncio.sleep(1e6)
            return TEMPLATE

        space.faults.add("status", on="start", status=403, times=1)
        keeper = client.keep_streaming(template, name="audit", journal=journal, on_exit=on_exit, **CALLS)
        async with keeper:
            await until(lambda: len(called) == 3)
        events = [event async for event in keeper]
        assert [type(event) for event in events] == [TargetAppeared, TargetFailing]
        assert space.requests.count("start-call-stream") == 1
        assert space.requests.count("stop-call-stream") == 0
        async with keeping(client, journal, **CALLS):
            await until(lambda: alive(space) == sorted(space.call_sids))

    async def test_template_that_is_asked_during_the_end_is_not_waited_for(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, idle_clock: Clock
    ) -> None:
        new = ""

        async def template(item: Any) -> Any:
            return await asyncio.sleep(1e6 if item.sid == new else 0.0, TEMPLATE)

        async with client.keep_streaming(template, name="audit", journal=journal, poll=50.0) as keeper:
            await until(lambda: len(space.streams.active()) == 3)
            new = space.add_conference()
            space.faults.add("latency", on="get-conference", seconds=3.0)
            keeper.notice(new)
            await until(lambda: space.requests.count("get-conference") == 1)
            began = idle_clock.now()
        assert idle_clock.now() - began < 10.0
        assert new not in alive(space)

    async def test_starts_that_wait_for_their_turn_are_not_sent(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("signalwire_streams.keep_streaming._kept_targets._AT_ONCE", 1)
        space.faults.add("latency", on="start", seconds=5.0)
        async with client.keep_streaming(TEMPLATE, name="audit", journal=journal, **CALLS) as keeper:
            await until(lambda: space.requests.count("start-call-stream") == 1)
        assert {type(event) for event in [event async for event in keeper]} == {TargetAppeared, StreamingStarted}
        assert space.requests.count("start-call-stream") == 1
        async with keeping(client, journal, **CALLS):
            await until(lambda: alive(space) == sorted(space.call_sids))

    async def test_template_is_given_thirty_seconds(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        slow, cancelled, timed_out = space.conference_sids

        async def template(item: Any) -> Any:
            if item.sid == cancelled:
                raise asyncio.CancelledError
            if item.sid == timed_out:
                raise TimeoutError
            await asyncio.sleep(1e6)

        async with keeping(client, journal, template) as events:
            new = space.add_conference()
            await until(lambda: events.count(TargetFailing) >= 4)
        assert {event.target: event.reason for event in events.seen if isinstance(event, TargetFailing)} == {
            slow: f"the template returned nothing for {slow} within 30 s: make it return sooner",
            new: f"the template returned nothing for {new} within 30 s: make it return sooner",
            cancelled: f"the template was cancelled for {cancelled}: let it return the fields, or None",
            timed_out: f"the template raised TimeoutError for {timed_out}",
        }
        assert space.requests.count("start-conference-stream") == 0

    async def test_client_that_is_closed_leaves_no_call_in_doubt(
        self, space: SimulatedSpace, client: StreamsClient, journal: Path
    ) -> None:
        other = StreamsClient(base_url=space.base_url, project=space.project, token=space.token)

        async def template(_: object) -> Any:
            await other.aclose()
            return TEMPLATE

        async def keep() -> None:
            async with other.keep_streaming(template, name="audit", journal=journal, **CALLS) as keeper:
                async for _ in keeper:
                    pass

        with pytest.raises(ClientStateError, match="this client is closed"):
            await keep()
        async with keeping(client, journal, **CALLS):
            await until(lambda: alive(space) == sorted(space.call_sids))
        assert space.requests.count("start-call-stream") == 2


async def test_token_of_a_template_is_not_replaced_silently(
    space: SimulatedSpace, client: StreamsClient, journal: Path
) -> None:
    async def handle(_: object) -> None: ...

    receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
    template: Any = lambda _: {**TEMPLATE, "authorization_bearer_token": "hush-token"}  # noqa: E731
    async with keeping(client, journal, template, receivers=[receiver]) as events:
        await until(lambda: events.count(TargetFailing) == 3)
    [reason] = {event.reason for event in events.seen if isinstance(event, TargetFailing)}
    assert reason == (
        "each stream gets a token of its own for the receivers: omit authorization_bearer_token in the template"
    )
    assert space.requests.count("start-conference-stream") == 0


async def test_first_failure_of_several_is_the_one_that_counts() -> None:
    heard = list[Exception]()
    tasks = BackgroundTasks(heard.append)

    async def fail(error: Exception) -> None:
        raise error

    for error in (first := ValueError("first"), ValueError("second")):
        _ = tasks.spawn(fail, error)
    await tasks.finish()
    assert heard == [tasks.failure] == [first]


async def test_notice_asks_again_of_what_was_passed_over(
    space: SimulatedSpace, client: StreamsClient, journal: Path
) -> None:
    [sid, *_] = space.conference_sids
    wanted, asked = set[str](), list[str]()

    def where(item: Any) -> bool:
        asked.append(item.sid)
        return item.sid in wanted

    async def template(_: object) -> Any:
        return await asyncio.sleep(1.0, TEMPLATE)

    async with keeping(client, journal, template, where=where) as events:
        await until(lambda: space.requests.count("list-conferences") >= 3)
        assert sorted(asked) == sorted(space.conference_sids), "each once"
        wanted.add(sid)
        for _ in range(2):
            events.keeper.notice(sid)
        await until(lambda: alive(space) == [sid])
        assert events.of(sid)[0] is TargetAppeared
    assert space.requests.count("start-conference-stream") == 1
