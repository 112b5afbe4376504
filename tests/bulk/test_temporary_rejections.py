"""Starts that were rejected for now although the Space may have carried them out, or certainly did not."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import (
    ApiError,
    BulkJournal,
    BulkOutcome,
    BulkStatus,
    CircuitBreakerPolicy,
    Clock,
    ConferenceStream,
    RetryPolicy,
    RunCancelledError,
    StartCallStream,
    StartConferenceStream,
    StreamsClient,
)
from signalwire_streams.bulk._journal import Journal
from signalwire_streams.bulk._journal_file import JournalOwner
from signalwire_streams.middleware import Handler, Request, Result
from tests.raw_space import RawConnection, RawSpace, Request as Received, as_documented, http, raw_space

URL = "wss://rx.example.com/audio"
BUSY = http(503, body=b"busy", head="Retry-After: 0\r\n")
API_BUSY = http(503, {"code": 20503, "message": "busy", "more_info": "", "status": 503})
THROTTLED = http(429, {"code": 20429, "message": "many", "more_info": "", "status": 429}, head="Retry-After: 0\r\n")
REFUSALS = {"503 with Retry-After": BUSY, "503 of the API": API_BUSY, "408": http(408), "425": http(425)}
CONFERENCE = StartConferenceStream(conference_sid="room", url=URL)
CALL = StartCallStream(call_sid="call", url=URL)
Answer = Callable[[RawSpace, RawConnection, Received], Awaitable[bytes]]


def client_of(space: RawSpace, **options: Any) -> StreamsClient:
    options.setdefault("clock", Clock.fake())
    return StreamsClient(base_url=space.url, project="p", token="t", **options)


def refusing(*answers: bytes, executes: bool = True) -> Answer:
    """Reject in turn, carrying out the first request all the same unless told otherwise; then respond as the API."""
    left = list(answers)

    async def answer(space: RawSpace, connection: RawConnection, request: Received) -> bytes:
        if not left:
            return await as_documented(space, connection, request)
        if executes:
            space.start(request)
        return left.pop(0)

    return answer


async def run_all(client: StreamsClient, *requests: Any, **options: Any) -> list[BulkOutcome[Any]]:
    return [outcome async for outcome in client.start_streams(requests, **options)]


@pytest.mark.parametrize("refusal", [BUSY, API_BUSY], ids=["of a gateway", "of the API"])
async def test_bulk_start_is_already_started_if_the_breaker_sends_it_back_in_between(refusal: bytes) -> None:
    async with raw_space(refusing(refusal)) as space:
        breaker = CircuitBreakerPolicy(min_requests=1, failure_rate=0.1, open_duration=0.05)
        async with client_of(space, circuit_breaker=breaker, clock=Clock()) as client:
            [outcome] = await run_all(client, CONFERENCE)
    assert outcome.status is BulkStatus.ALREADY_STARTED
    assert len(space.sids_of("room")) == 1


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_bulk_start_is_already_started_if_a_429_sends_it_back_in_between(refusal: bytes) -> None:
    """The retries of one turn are used up, so the item is sent in another turn."""
    async with raw_space(refusing(refusal, *[THROTTLED] * 10)) as space, client_of(space) as client:
        [outcome] = await run_all(client, CONFERENCE)
    assert (outcome.status, outcome.stream and outcome.stream.ambiguous) == (BulkStatus.ALREADY_STARTED, True)


async def test_bulk_start_with_a_callers_name_is_rejected_if_that_is_taken() -> None:
    """The stream of that name may be anybody's."""
    named = StartConferenceStream(conference_sid="room", url=URL, name="mine")
    async with raw_space(refusing(BUSY, *[THROTTLED] * 10)) as space, client_of(space) as client:
        [outcome] = await run_all(client, named)
    assert outcome.status is BulkStatus.REJECTED


@pytest.mark.parametrize("refusal", [*REFUSALS.values(), THROTTLED], ids=[*REFUSALS, "429"])
async def test_resumed_start_is_already_started_if_it_was_temporarily_rejected_before(
    refusal: bytes, tmp_path: Path
) -> None:
    journal = tmp_path / "run.db"
    async with raw_space(refusing(*[refusal] * 1000)) as space, client_of(space) as client:
        [first] = await run_all(client, CONFERENCE, journal=journal)
        space.respond = as_documented
        [second] = await run_all(client, CONFERENCE, journal=journal, resume=True)
        assert (first.status, second.status) == (BulkStatus.NOT_ATTEMPTED, BulkStatus.ALREADY_STARTED)
        [stopped] = [outcome async for outcome in client.stop_started(journal)]
    assert (stopped.status, stopped.item.name) == (BulkStatus.STOPPED, second.stream and second.stream.name)


@pytest.mark.parametrize("request_", [CONFERENCE, CALL], ids=["conference", "call"])
async def test_stop_started_stops_a_start_that_was_temporarily_rejected(request_: Any, tmp_path: Path) -> None:
    """Without resuming the run; a resumed run that could not send it does not lose it either."""
    journal = tmp_path / "run.db"
    async with raw_space(refusing(*[BUSY] * 1000)) as space, client_of(space) as client:
        [first] = await run_all(client, request_, journal=journal)
        space.respond = refusing(*[THROTTLED] * 1000, executes=False)
        [second] = await run_all(client, request_, journal=journal, resume=True)
        assert {first.status, second.status} == {BulkStatus.NOT_ATTEMPTED}
        assert BulkJournal(journal).status().counts == {"not_attempted": 1}
        space.respond = as_documented
        [stopped] = [outcome async for outcome in client.stop_started(journal)]
        assert stopped.status is BulkStatus.STOPPED
        assert space.requests[-1].path.endswith(f"/Streams/{stopped.item.name}")


async def test_stop_started_leaves_out_what_certainly_does_not_run(tmp_path: Path) -> None:
    """Neither a start that got a 429 only, nor one whose name is the caller's."""
    journal = tmp_path / "run.db"
    named = StartConferenceStream(conference_sid="room", url=URL, name="mine")
    answers = {"room": BUSY, "call": THROTTLED}

    async def answer(_: RawSpace, __: RawConnection, request: Received) -> bytes:
        return answers[request.target]

    async with raw_space(answer) as space, client_of(space) as client:
        outcomes = await run_all(client, named, CALL, journal=journal)
        assert {outcome.status for outcome in outcomes} == {BulkStatus.NOT_ATTEMPTED}
        assert [outcome async for outcome in client.stop_started(journal)] == []


@pytest.mark.parametrize("request_", [CONFERENCE, CALL], ids=["conference", "call"])
async def test_start_that_got_a_429_is_not_attempted_when_the_run_is_shut_down(request_: Any, tmp_path: Path) -> None:
    """It waits for another turn, and nothing is in flight. A resumed run starts it, on a call as well."""
    journal = tmp_path / "run.db"
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with raw_space(refusing(*[THROTTLED] * 1000, executes=False)) as space:
        policy = RetryPolicy(max_throttle_retries=0)
        async with client_of(space, retry=policy, clock=Clock(sleep=sleep)) as client:
            run = client.start_streams([request_], journal=journal)
            shutdown = asyncio.create_task(waiting.wait())
            shutdown.add_done_callback(lambda _: run.shutdown(0))
            [outcome] = [outcome async for outcome in run]
        assert (outcome.status, outcome.attempts) == (BulkStatus.NOT_ATTEMPTED, 1)
        assert str(outcome.error) == "the run ended before this was sent again"
        space.respond = as_documented
        async with client_of(space) as client:
            [resumed] = await run_all(client, request_, journal=journal, resume=True)
        assert resumed.status is BulkStatus.STARTED


@pytest.mark.parametrize(
    ("refusal", "request_"), [(http(408), CONFERENCE), (THROTTLED, CALL)], ids=["408, conference", "429, call"]
)
async def test_start_cancelled_between_attempts_reports_whether_it_was_sent(refusal: bytes, request_: Any) -> None:
    """Its error agrees with itself: one attempt, which the Space received."""
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with (
        raw_space(refusing(refusal, executes=False)) as space,
        client_of(space, clock=Clock(sleep=sleep)) as client,
    ):
        run = client.start_streams([request_])
        shutdown = asyncio.create_task(waiting.wait())
        shutdown.add_done_callback(lambda _: run.shutdown(0))
        [outcome] = [outcome async for outcome in run]
    error = outcome.error
    assert isinstance(error, RunCancelledError)
    assert (str(error), error.sent, error.attempts) == ("the run ended before this was sent again", "yes", 1)
    assert (outcome.status, outcome.attempts) == (BulkStatus.NOT_ATTEMPTED, 1)


async def test_start_that_is_cut_in_the_queue_made_no_attempt() -> None:
    async with raw_space() as space, client_of(space, rate_limiter=NeverReady()) as client:
        run = client.start_streams([CONFERENCE])
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(run.shutdown, 0))
        [outcome] = [outcome async for outcome in run]
    error = outcome.error
    assert isinstance(error, RunCancelledError)
    assert (error.sent, error.attempts, outcome.attempts) == ("no", 0, 0)
    assert str(error).startswith("the run ended before")


class NeverReady:
    async def acquire(self, *_: object) -> float:
        await asyncio.Event().wait()
        return 0.0

    async def wait_until_allowed(self, _: float) -> float:
        return 0.0

    def on_throttled(self, *_: object) -> None: ...

    def on_success(self) -> None: ...


async def test_caller_that_cancels_after_a_rejection_does_not_make_it_unknown() -> None:
    """A middleware may wait after the call has failed, when nothing is in flight any more."""
    refused = asyncio.Event()

    async def lingering(request: Request, send: Handler) -> Result:
        result = await send(request)
        refused.set()
        await asyncio.Event().wait()
        return result

    async with (
        raw_space(refusing(http(404, body=b""), executes=False)) as space,
        client_of(space, middlewares=[lingering]) as client,
    ):
        run = client.start_streams([CONFERENCE])
        shutdown = asyncio.create_task(refused.wait())
        shutdown.add_done_callback(lambda _: run.shutdown(0))
        statuses = Counter([outcome.status async for outcome in run])
    assert statuses == {BulkStatus.NOT_ATTEMPTED: 1}


async def test_stop_rejected_temporarily_and_then_permanently_is_not_ambiguous(tmp_path: Path) -> None:
    """Stopping again is safe, so nothing is in doubt."""
    stream = ConferenceStream(conference_sid="room", name="sws-1-room")
    not_found = http(404, {"code": 20404, "message": "not found", "more_info": "", "status": 404})
    async with raw_space(refusing(BUSY, not_found, executes=False)) as space, client_of(space) as client:
        journal = tmp_path / "run.db"
        [stopped] = [outcome async for outcome in client.stop_streams([stream], journal=journal)]
    assert stopped.status is BulkStatus.REJECTED
    assert [item.ambiguous for item in BulkJournal(journal).items()] == [False]


BY_CODE = http(400, {"code": 20429, "message": "many", "more_info": "", "status": 429}, head="Retry-After: 0\r\n")
BAD = http(500)


@pytest.mark.parametrize("first", [None, BAD], ids=["alone", "after a 500"])
@pytest.mark.parametrize("refusal", [*REFUSALS.values(), THROTTLED, BY_CODE], ids=[*REFUSALS, "429", "20429"])
async def test_stop_that_is_temporarily_rejected_to_the_end_is_not_attempted(
    refusal: bytes, first: bytes | None
) -> None:
    """Whichever status or code says so; unless an earlier attempt may have stopped the stream."""

    async def answer(space: RawSpace, _: RawConnection, __: Received) -> bytes:
        return first if first is not None and len(space.requests) == 1 else refusal

    stream = ConferenceStream(conference_sid="room", sid="s")
    async with raw_space(answer) as space, client_of(space, circuit_breaker=None) as client:
        [outcome] = [outcome async for outcome in client.stop_streams([stream])]
    assert isinstance(outcome.error, ApiError)
    assert outcome.status is (BulkStatus.NOT_ATTEMPTED if first is None else BulkStatus.UNKNOWN)


@pytest.mark.parametrize("answered", [BAD, b"garbage\r\n\r\n"], ids=["500", "garbage"])
async def test_stop_that_may_have_been_carried_out_is_unknown(answered: bytes) -> None:
    async def answer(*_: object) -> bytes:
        return answered

    stream = ConferenceStream(conference_sid="room", sid="s")
    async with raw_space(answer) as space, client_of(space, circuit_breaker=None) as client:
        [outcome] = [outcome async for outcome in client.stop_streams([stream])]
    assert outcome.status is BulkStatus.UNKNOWN


async def test_resume_records_a_call_whose_start_was_interrupted_as_unknown(tmp_path: Path) -> None:
    """Its process died after it was recorded, and it is not sent again."""
    path = tmp_path / "run.db"
    async with raw_space() as space, client_of(space) as client:
        owner = JournalOwner("start", client.origin, client.project)
        with closing(Journal.create(path, owner, run="1")) as journal:
            await journal.intend(journal.new_row(), "call", "call", "sws-1-call")
        [outcome] = await run_all(client, CALL, journal=path, resume=True)
        assert (outcome.status, space.requests) == (BulkStatus.UNKNOWN, [])
    assert BulkJournal(path).status().counts == {"unknown": 1}
