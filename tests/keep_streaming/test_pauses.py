"""A receiver that rejects all streams gets one start at a time, which one event reports, and another one its end."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import Clock, StreamsClient
from signalwire_streams.callbacks import CallbackEvent
from signalwire_streams.keep_streaming import StartsPaused, StartsResumed, TargetFailing
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, NoFrames, SimulatedSpace
from tests.keep_streaming.test_keeper import Events, alive, certificates, client, journal, keeping, told, until

__all__ = ["certificates", "client", "journal"]


async def handle(session: StreamSession) -> None:
    await session.wait_closed()


@pytest.fixture
async def space(certificates: Certificates) -> AsyncIterator[SimulatedSpace]:
    async with SimulatedSpace(
        conferences=12, calls=0, participants=0, audio=NoFrames(), ssl_context=certificates.trust
    ) as running:
        running.duplicate_names = "http-error"
        yield running


def starts(space: SimulatedSpace) -> int:
    return space.requests.count("start-conference-stream")


async def check_pause(space: SimulatedSpace, events: Events, idle_clock: Clock, rule: Any, receiver: str) -> str:
    """Wait for the pause and for its end; return its reason."""
    await until(lambda: events.count(StartsPaused) == 1)
    before, began = starts(space), idle_clock.now()
    late = space.add_conference()
    await until(lambda: starts(space) >= before + 2)
    await until(lambda: idle_clock.now() >= began + 20.0)
    assert starts(space) <= before + 5, "waits between probes double from a second on"
    rule()
    await until(lambda: events.count(StartsResumed) == 1)
    resumed_at = idle_clock.now()
    await until(lambda: alive(space) == sorted(space.conference_sids))
    assert idle_clock.now() - resumed_at < 1.0, "the others are started at once"
    assert late in space.conference_sids
    assert (events.count(StartsPaused), events.count(StartsResumed)) == (1, 1)
    [paused] = [event for event in events.seen if isinstance(event, StartsPaused)]
    [resumed] = [event for event in events.seen if isinstance(event, StartsResumed)]
    assert paused.receiver == resumed.receiver == receiver.rstrip("/")
    return paused.reason


async def test_receiver_elsewhere_that_refuses_all_streams(
    space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates, idle_clock: Clock
) -> None:
    space.callbacks = True
    rule = space.faults.add("socket-refused")
    seen: list[CallbackEvent] = []
    receiver = MediaReceiver(handle, bearer_tokens=None)
    async with receiver.serve(ssl_context=certificates.server) as url, told(space, seen) as (callback, keepers):
        template = {"url": url, "status_callback": callback, "parameters": {"tenant": "hush-value"}}
        async with keeping(client, journal, template) as events:
            keepers.append(events.keeper)
            reason = await check_pause(space, events, idle_clock, rule.remove, url)
            assert reason == "connection_refused"
            assert "hush" not in repr(events.seen)
    assert space.streams.duplicates() == []


async def test_receiver_of_this_process_that_rejects_every_upgrade(
    space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates, idle_clock: Clock
) -> None:
    receiver = MediaReceiver(handle, bearer_tokens=["another-one"])
    claim = receiver._pending_streams.claim
    receiver._pending_streams.claim = lambda _: None  # type: ignore[method-assign,assignment]  # a proxy drops it

    def mend() -> None:
        receiver._pending_streams.claim = claim  # type: ignore[method-assign]

    async with (
        receiver.serve(ssl_context=certificates.server) as url,
        keeping(client, journal, {"url": url}, receivers=[receiver]) as events,
    ):
        reason = await check_pause(space, events, idle_clock, mend, url)
        assert reason.startswith("its socket was not opened in time; since it last worked, 12 upgrades were")
    assert space.streams.duplicates() == []


async def test_only_starts_to_that_receiver_pause(
    space: SimulatedSpace, client: StreamsClient, journal: Path, certificates: Certificates
) -> None:
    """The other one gets streams of conferences that appear meanwhile."""
    bad = space.conference_sids[:6]
    for sid in bad:
        space.faults.add("socket-refused", target=sid)
    space.callbacks = True
    seen: list[CallbackEvent] = []
    receiver = MediaReceiver(handle, bearer_tokens=None)
    async with receiver.serve(ssl_context=certificates.server) as url, told(space, seen) as (callback, keepers):

        def template(item: Any) -> Any:
            host = url.replace("127.0.0.1", "localhost") if item.sid in bad else url
            return {"url": host, "status_callback": callback}

        async with keeping(client, journal, template) as events:
            keepers.append(events.keeper)
            await until(lambda: events.count(StartsPaused) == 1)
            new = [space.add_conference() for _ in range(3)]
            await until(lambda: set(new) <= set(alive(space)))
            assert {event.target for event in events.seen if isinstance(event, TargetFailing)} == set(bad)
            assert (events.count(StartsPaused), events.count(StartsResumed)) == (1, 0)
            for sid in bad:
                space.end_conference(sid)
            await until(lambda: events.count(StartsResumed) == 1)  # nothing leads there any more


async def test_target_that_leads_elsewhere_is_followed_there(
    space: SimulatedSpace, client: StreamsClient, journal: Path
) -> None:
    asked = list[str]()

    def template(item: Any) -> Any:
        asked.append(item.sid)
        return {"url": f"wss://rx-{len(asked) % 2}.example.com/audio"}

    sid = space.conference_sids[0]
    where = lambda item: item.sid == sid  # noqa: E731
    async with keeping(client, journal, template, reassert=4.0, poll=1.0, where=where) as events:
        await until(lambda: len(asked) >= 3)
        await until(lambda: len(events.keeper._targets.breakers) == 1)
