"""Misuse of bulk runs ends in one sentence that says what to write instead, and neither hangs nor hides an outcome."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from signalwire_streams import (
    BulkJournal,
    BulkStatus,
    CallStream,
    ClientStateError,
    ConferenceStream,
    InvalidRequestError,
    StartConferenceStream,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.simulator import SimulatedSpace
from tests.bulk.requests import URL, on_conferences
from tests.conftest import ClientFactory

UUID_OF_ROW: Any = UUID("22222222-2222-4222-8222-222222222222")
ROOM = str(UUID_OF_ROW)
WRONG_INPUTS: dict[str, Any] = {
    "one request": StartConferenceStream(conference_sid=ROOM, url=URL),
    "a number": 5,
    "nothing": None,
    "a function": on_conferences,
}
WRONG_STREAMS: dict[str, tuple[Any, str]] = {
    "sid of a database": (ConferenceStream(conference_sid=ROOM, sid=UUID_OF_ROW), "sid must be a str, not UUID"),
    "name of a database": (ConferenceStream(conference_sid=ROOM, name=UUID_OF_ROW), "name must be a str, not UUID"),
    "target of a database": (CallStream(call_sid=UUID_OF_ROW, sid="s"), "call_sid must be a str, not UUID"),
    "sid with a slash": (ConferenceStream(conference_sid=ROOM, sid="a/b"), "sid 'a/b' can't be part of a path"),
    "sid that leads up": (ConferenceStream(conference_sid=ROOM, sid=".."), "sid '..' can't be part of a path"),
    "name with a slash": (ConferenceStream(conference_sid=ROOM, name="a/b"), "stream 'a/b' can't be part of a path"),
    "name that is no text": (ConferenceStream(conference_sid=ROOM, sid="s", name="\udc80"), "a lone surrogate"),
    "ambiguous": (ConferenceStream(conference_sid=ROOM, sid="a/b", name="n", ambiguous=True), "sid 'a/b' can't be"),
}


@pytest.mark.parametrize("wrong", WRONG_INPUTS.values(), ids=WRONG_INPUTS)
def test_input_that_is_no_iterable_is_rejected_at_the_call(wrong: Any, tmp_path: Path) -> None:
    """No journal is left behind, which would be in the way of the next try."""
    client, journal = StreamsClient(space="example", project="p", token="t"), tmp_path / "run.db"
    for call in (client.start_streams, client.stop_streams, client.create_journal):
        with pytest.raises(InvalidRequestError, match=f"are of type {type(wrong).__name__}: pass a list"):
            call(wrong, journal=journal)
    assert list(tmp_path.iterdir()) == []


async def test_async_input_of_a_planned_run_is_rejected(client: StreamsClient, tmp_path: Path) -> None:
    async def items() -> AsyncIterator[StartConferenceStream]:
        yield StartConferenceStream(conference_sid=ROOM, url=URL)

    wrong: Any = items()
    with pytest.raises(InvalidRequestError, match="a generator that is not async"):
        client.create_journal(wrong, journal=tmp_path / "run.db")
    assert not os.listdir(tmp_path)  # noqa: PTH208


async def test_item_of_a_subclass_is_rejected_alone(
    client: StreamsClient, space: SimulatedSpace, tmp_path: Path
) -> None:
    """What it adds would get lost."""

    class Tagged(StartConferenceStream):
        tag = "audit"

    first, *others = on_conferences(space)
    wrong = Tagged(conference_sid=first.target, url=URL)
    for journal in (None, tmp_path / "run.db"):
        run = client.start_streams([wrong, *others], journal=journal)
        errors = [str(outcome.error) async for outcome in run if not outcome.ok]
        assert errors == ["an item is a Tagged: pass StartConferenceStream or StartCallStream"]
        assert (await run.report()).counts == {BulkStatus.REJECTED: 1, BulkStatus.STARTED: 2}
    with pytest.raises(InvalidRequestError, match="an item is a Tagged"):
        client.create_journal([wrong], journal=tmp_path / "plan.db")


async def test_state_that_no_item_has_is_rejected(client: StreamsClient, space: SimulatedSpace, tmp_path: Path) -> None:
    """A misspelled one would select nothing, as if there were no such items."""
    await client.start_streams(on_conferences(space), journal=tmp_path / "run.db").report()
    journal = BulkJournal(tmp_path / "run.db")
    for wrong in ("in-doubt", "pending"):
        with pytest.raises(InvalidRequestError, match=f"no item has the state '{wrong}': pass already_started, in_d"):
            list(journal.items("started", wrong))
    assert len(list(journal.items("started", BulkStatus.UNKNOWN))) == 3


class OldSequence:
    """Iterable without ``__iter__``, as Python still accepts."""

    def __init__(self, space: SimulatedSpace) -> None:
        self._items = on_conferences(space)

    def __getitem__(self, index: int) -> Any:
        return self._items[index]


async def test_input_may_be_a_sequence_without_iter(client: StreamsClient, space: SimulatedSpace) -> None:
    items: Any = OldSequence(space)
    assert (await client.start_streams(items).report()).counts == {BulkStatus.STARTED: 3}


@pytest.mark.parametrize(("wrong", "words"), WRONG_STREAMS.values(), ids=WRONG_STREAMS)
@pytest.mark.parametrize("journaled", [False, True])
async def test_stream_that_was_recreated_wrongly_is_rejected_alone(
    wrong: Any, words: str, *, journaled: bool, client: StreamsClient, space: SimulatedSpace, tmp_path: Path
) -> None:
    """Nothing is sent for it, and the others are stopped."""
    started = [outcome.stream async for outcome in client.start_streams(on_conferences(space))]
    before = len(space.requests)
    resource: Any = client.calls if isinstance(wrong, CallStream) else client.conferences
    with pytest.raises(InvalidRequestError, match=words):
        await resource.stop_stream(wrong)
    assert len(space.requests) == before

    streams: list[Any] = [wrong, *started]
    run = client.stop_streams(streams, journal=tmp_path / "run.db" if journaled else None)
    outcomes = sorted([outcome async for outcome in run], key=lambda outcome: outcome.index)
    assert [outcome.status for outcome in outcomes] == [BulkStatus.REJECTED, *[BulkStatus.STOPPED] * 3]
    assert len(space.requests) == before + 3
    assert not space.streams.active()


async def test_stream_that_was_recreated_wrongly_and_is_not_sent_is_not_attempted(
    client: StreamsClient, tmp_path: Path
) -> None:
    def items() -> Iterator[ConferenceStream]:
        run.shutdown(0)
        yield WRONG_STREAMS["sid of a database"][0]

    run = client.stop_streams(items(), journal=tmp_path / "run.db")
    assert (await run.report()).counts == {BulkStatus.NOT_ATTEMPTED: 1}


async def test_error_that_cannot_be_stored_does_not_block_the_journal(
    space: SimulatedSpace, client_for: ClientFactory, tmp_path: Path
) -> None:
    """A middleware of the caller's may put any text into an error."""

    async def fail(request: Request, send: Handler) -> Result:
        result = await send(request)
        if request.target == space.conference_sids[0]:
            raise StreamsError("not valid: \udc80")
        return result

    client = client_for(space, middlewares=[fail])
    report = await client.start_streams(on_conferences(space), journal=tmp_path / "run.db", concurrency=1).report()
    assert report.counts == {BulkStatus.NOT_ATTEMPTED: 1, BulkStatus.STARTED: 2}


@pytest.mark.parametrize("seconds", ["5", None, -1, float("nan"), True])
async def test_timeout_of_a_shutdown_is_checked(seconds: Any, client: StreamsClient) -> None:
    run = client.start_streams([])
    with pytest.raises(InvalidRequestError, match="timeout must be a number of seconds, 0 or more"):
        run.shutdown(seconds)
    assert (await run.report()).total == 0


async def test_shutdown_from_another_thread_says_how_and_changes_nothing(
    client: StreamsClient, space: SimulatedSpace
) -> None:
    caught: list[BaseException] = []

    def end(in_a_loop: bool) -> None:
        async def shutdown() -> None:
            run.shutdown()

        try:
            asyncio.run(shutdown()) if in_a_loop else run.shutdown()
        except ClientStateError as error:
            caught.append(error)

    run = client.start_streams(on_conferences(space))
    async for _ in run:
        for in_a_loop in (False, True):
            thread = threading.Thread(target=end, args=(in_a_loop,))
            thread.start()
            await asyncio.to_thread(thread.join)

    assert len(caught) == 6
    assert all("loop.call_soon_threadsafe(run.shutdown)" in str(error) for error in caught)
    assert (await run.report()).counts == {BulkStatus.STARTED: 3}


async def test_run_ends_although_its_input_ignores_the_cancellation(
    client: StreamsClient, space: SimulatedSpace
) -> None:
    """In Python 3.11, ``await wait_for(queue.get(), 1)`` does that if an item has just arrived."""
    taken = 0

    async def items() -> AsyncIterator[StartConferenceStream]:
        nonlocal taken
        while taken < 1_000:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            taken += 1
            yield StartConferenceStream(conference_sid=space.conference_sids[0], url=URL, name=f"audit-{taken}")

    run = client.start_streams(items())
    async for _ in run:
        run.shutdown()

    report = await run.report()
    assert taken < 200
    assert report.total == taken
    assert report.counts[BulkStatus.NOT_ATTEMPTED] == 1
    assert len(space.requests) == taken - 1


async def test_report_that_is_awaited_twice_at_once_does_not_end_the_run(
    client: StreamsClient, space: SimulatedSpace
) -> None:
    """The second one would end it before anything was sent, and report no item."""
    run = client.start_streams(on_conferences(space))
    first = asyncio.create_task(run.report())
    await asyncio.sleep(0)
    with pytest.raises(ClientStateError, match="another task awaits the report of this run: await it once"):
        await run.report()
    assert (await first).counts == {BulkStatus.STARTED: 3}
    assert (await run.report()).counts == {BulkStatus.STARTED: 3}


async def test_report_can_be_awaited_again_while_the_run_ends(client: StreamsClient, space: SimulatedSpace) -> None:
    space.faults.add("hang")
    run = client.start_streams(on_conferences(space))
    first = asyncio.create_task(run.report())
    await space.requests.wait_for(3)
    run.shutdown(0)
    second = await run.report()
    assert second.counts == (await first).counts == {BulkStatus.UNKNOWN: 3}
