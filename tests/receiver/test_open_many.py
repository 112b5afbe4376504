"""Starting and receiving many streams: one run of starts, one of stops."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    CallStream,
    CircuitBreakerPolicy,
    Clock,
    ConferenceStream,
    InvalidRequestError,
    OpenError,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams.errors import (
    ClientStateError,
    NotFoundError,
    PermissionDeniedError,
    RunCancelledError,
    UnprocessableError,
)
from signalwire_streams.receiver import EndReason, MediaEvent, MediaReceiver, OpenOutcome
from signalwire_streams.simulator import SimulatedSpace, Tone

from .conftest import Heard, until

pytestmark = pytest.mark.usefixtures("idle_clock")


@pytest.fixture
async def space(trust: ssl.SSLContext) -> AsyncIterator[SimulatedSpace]:
    """A Space that dials, and goes on speaking."""
    async with SimulatedSpace(conferences=12, calls=3, audio=Tone(), ssl_context=trust) as running:
        yield running


@pytest.fixture
def receiver(heard: Heard) -> MediaReceiver:
    return MediaReceiver(heard, bearer_tokens="nobody-elses")


@pytest.fixture
async def url(receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext) -> str:
    served: str = await serve(receiver, ssl_context=certificate)
    return served


def requests_to(space: SimulatedSpace, url: str, **fields: Any) -> list[StartConferenceStream | StartCallStream]:
    fields = {"track": "inbound_track"} | fields
    return [
        *(StartConferenceStream(conference_sid=sid, url=url, **fields) for sid in space.conference_sids),
        *(StartCallStream(call_sid=sid, url=url, **fields) for sid in space.call_sids),
    ]


async def test_open_many_starts_receives_and_stops_all_streams(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str, heard: Heard
) -> None:
    """Each comes once with its own audio; after the block nothing runs, nothing is open, nothing was doubled."""
    client: StreamsClient = client_for(space)
    requests = requests_to(space, url)
    outcomes: list[OpenOutcome] = []
    async with receiver.open_many(client, requests) as joined:
        async for outcome in joined:
            outcomes.append(outcome)
            assert outcome.session is not None
            async for event in outcome.session:
                assert isinstance(event, MediaEvent)
                break
        assert len(space.streams.active()) == 15
    assert {outcome.request for outcome in outcomes} == set(requests)
    sids = {outcome.session.stream_sid: outcome.request.target for outcome in outcomes if outcome.session}
    assert sids == {stream.sid: stream.target_sid for stream in space.streams}
    assert {outcome.session.end_reason for outcome in outcomes if outcome.session} == {EndReason.STOPPED}
    assert (space.streams.active(), space.streams.duplicates(), receiver.sessions) == ([], [], set())
    assert heard.sessions == []


async def test_open_many_survives_lost_answers_without_duplicates(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """Lost answers to starts and stops double nothing and leave nothing, and requests may come one by one."""
    space.faults.add("reset", on="start", executed=True, every_nth=2, per_target=1)
    space.faults.add("reset", on="stop", executed=True, every_nth=2, per_target=1)
    space.faults.add("503-api", on="stop", every_nth=3, per_target=1)

    # In no time at all so many failures would open the breaker, whose pause takes real time.
    client = client_for(space, clock=Clock(), circuit_breaker=CircuitBreakerPolicy(min_requests=1_000))

    async def one_by_one() -> AsyncIterator[StartConferenceStream]:
        for sid in space.conference_sids[:6]:
            yield StartConferenceStream(conference_sid=sid, url=url, name="mine", track="inbound_track")

    async with receiver.open_many(client, one_by_one()) as joined:
        assert [outcome.error async for outcome in joined] == [None] * 6
        assert [outcome async for outcome in joined] == []
    assert (space.streams.active(), space.streams.duplicates(), receiver.sessions) == ([], [], set())


async def test_open_many_reports_each_failure_with_its_stage(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """The other streams continue, and all that may run are stopped at the end."""
    first, second, third, *_ = space.conference_sids
    space.faults.add("socket-refused", target=second)
    space.faults.add("reset", on="start", executed=True, target=third)
    client = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
    requests: list[Any] = [
        StartConferenceStream(conference_sid=first, url=url, name="a"),
        StartConferenceStream(conference_sid=first, url=url, name="a"),
        StartConferenceStream(conference_sid=second, url=url),
        StartConferenceStream(conference_sid=third, url=url, unnamed=True),
        StartConferenceStream(conference_sid="nowhere", url=url),
        StartConferenceStream(conference_sid=first, url=url, authorization_bearer_token="mine"),
        "no request",
    ]
    async with receiver.open_many(client, requests, socket_timeout=0.3) as joined:
        outcomes = [outcome async for outcome in joined]
        assert {stream.target_sid for stream in space.streams.active()} == {first, third}
    assert space.streams.active() == []

    good = [outcome.request for outcome in outcomes if outcome.session is not None]
    assert {request.target for request in good} == {first, third}
    told = {str(outcome.request): outcome.error for outcome in outcomes if outcome.error is not None}
    assert len(told) == 5
    for request, match in (
        (requests[1], "already has an open stream named"),
        (requests[5], "omit authorization_bearer_token"),
        (requests[6], "an item is a str: pass StartConferenceStream"),
    ):
        error = (
            told[str(request)]
            if request != requests[1]
            else next(outcome.error for outcome in outcomes if outcome.request == request and outcome.error is not None)
        )
        assert isinstance(error, InvalidRequestError)
        assert match in str(error)
    unreachable, nowhere = told[str(requests[2])], told[str(requests[4])]
    assert isinstance(unreachable, OpenError)
    assert unreachable.stage == "socket"
    assert isinstance(nowhere, OpenError)
    assert nowhere.stage == "start"
    assert isinstance(nowhere.__cause__, NotFoundError)


async def test_leaving_open_many_early_stops_everything(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """Pending starts are not sent any more, and streams that may run are stopped."""
    asked: list[str] = []

    async def endless() -> AsyncIterator[StartConferenceStream]:
        number = 0
        while True:
            [*sids] = space.conference_sids
            asked.append(sids[number % len(sids)])
            yield StartConferenceStream(conference_sid=asked[-1], url=url, name=f"n{number}", track="inbound_track")
            number += 1

    async with receiver.open_many(client_for(space), endless(), concurrency=4) as joined:
        async for outcome in joined:
            assert outcome.session is not None
            break
    assert 0 < len(space.streams) <= len(asked)
    assert (space.streams.active(), receiver.sessions) == ([], set())


async def test_error_of_the_requests_is_raised_after_streams_are_stopped(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """An error of the caller's iterable is raised after the streams were stopped."""

    def broken() -> Any:
        yield StartConferenceStream(conference_sid=space.conference_sids[0], url=url)
        raise LookupError("no more of them")

    async def use() -> None:
        async with receiver.open_many(client_for(space), broken()) as joined:
            async for _ in joined:
                pass

    with pytest.raises(LookupError, match="no more of them"):
        await use()
    assert space.streams.active() == []


async def test_open_many_raises_group_of_failed_stops(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """They may still be running, so the block ends in their errors; the others are stopped."""
    first = space.conference_sids[0]
    space.faults.add("status", on="stop", status=422, target=first)

    async def use() -> None:
        async with receiver.open_many(client_for(space), requests_to(space, url)) as joined:
            async for _ in joined:
                pass

    with pytest.raises(ExceptionGroup, match="1 streams could not be stopped") as caught:
        await use()
    [error] = caught.value.exceptions
    assert isinstance(error, OpenError)
    assert error.stage == "stop"
    assert isinstance(error.__cause__, UnprocessableError)
    assert receiver.sessions == set()


async def test_revoked_token_reports_every_stream_that_was_not_stopped(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """403 ends the run of the stops early; each stream that was not stopped is in the group."""
    space.faults.add("status", on="stop", status=403)

    async def use() -> None:
        async with receiver.open_many(client_for(space), requests_to(space, url)) as joined:
            async for _ in joined:
                pass

    with pytest.raises(ExceptionGroup, match="15 streams could not be stopped") as caught:
        await use()
    causes = {type(error.__cause__) for error in caught.value.exceptions}
    assert PermissionDeniedError in causes
    assert causes <= {PermissionDeniedError, RunCancelledError}
    assert receiver.sessions == set()


async def test_stream_that_ended_itself_is_not_stopped(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    async with receiver.open_many(client_for(space), requests_to(space, url)) as joined:
        async for outcome in joined:
            space.end_conference(outcome.request.target) if isinstance(
                outcome.request, StartConferenceStream
            ) else space.end_call(outcome.request.target)
            assert outcome.session is not None
            await outcome.session.wait_closed()
        await until(lambda: not receiver.sessions)
    assert space.requests.count("stop-conference-stream") == space.requests.count("stop-call-stream") == 0


async def test_cancelled_open_many_stops_everything(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    begun = asyncio.Event()

    async def use() -> None:
        async with receiver.open_many(client_for(space), requests_to(space, url)) as joined:
            async for _ in joined:
                begun.set()

    using = asyncio.ensure_future(use())
    await begun.wait()
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await until(lambda: not space.streams.active() and not receiver.sessions)


class Ending:
    """A client whose starts have unknown outcomes, and whose run of stops ends before any stop."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked: list[ConferenceStream | CallStream] = []

    def start_streams(self, requests: Any, *, concurrency: int | None) -> Any:
        return Unknown(requests)

    async def stop_streams(self, streams: Any) -> AsyncIterator[Any]:
        async for stream in streams:
            self.asked.append(stream)
            if self.error is not None:
                raise self.error
            return
            yield


class Unknown:
    def __init__(self, requests: Any) -> None:
        self.requests = requests

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for request in self.requests:
            error = StreamOutcomeUnknownError("nobody knows", name=request.name)
            yield BulkOutcome(index=0, item=request, status=BulkStatus.UNKNOWN, error=error)

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "kind"), [(None, RunCancelledError), (ClientStateError("the client is closed"), ClientStateError)]
)
async def test_stop_run_that_ends_early_fails_the_remaining_stops(
    receiver: MediaReceiver, error: Exception | None, kind: type[Exception]
) -> None:
    """Each stream is passed to the stops, by name if the sid is unknown."""
    client = Ending(error)
    requests: list[Any] = [
        StartConferenceStream(conference_sid="room", url="wss://a.example/b", name="mine"),
        StartCallStream(call_sid="call", url="wss://a.example/b", name="mine"),
    ]

    async def use() -> None:
        async with receiver.open_many(client, requests, socket_timeout=0.01) as joined:
            assert [type(outcome.error) async for outcome in joined] == [OpenError, OpenError]

    with pytest.raises(ExceptionGroup, match="2 streams could not be stopped") as caught:
        await use()
    assert [type(each.__cause__) for each in caught.value.exceptions] == [kind, kind]
    assert set(client.asked) <= {
        ConferenceStream(conference_sid="room", name="mine"),
        CallStream(call_sid="call", name="mine"),
    }


async def test_call_with_lost_answer_is_stopped_by_name(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """The response to its start was lost, and no socket connected."""
    [call, *_] = space.call_sids
    space.faults.add("reset", on="start", executed=True)
    space.faults.add("socket-slow", seconds=4)
    request = StartCallStream(call_sid=call, url=url)
    client = client_for(space, retry=RetryPolicy(max_attempts=1, max_resends=0))
    async with receiver.open_many(client, [request], socket_timeout=0.01) as joined:
        [outcome] = [outcome async for outcome in joined]
        assert isinstance(outcome.error, OpenError)
        assert len(space.streams.active()) == 1
    assert space.streams.active() == []


async def test_endless_run_forgets_ended_streams(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """A stream that ended needs no memory."""
    begun = asyncio.Event()
    [first, *_] = space.conference_sids

    async def one_after_the_other() -> AsyncIterator[StartConferenceStream]:
        for _ in range(3):
            begun.clear()
            yield StartConferenceStream(conference_sid=first, url=url, name=f"n{len(space.streams)}")
            await begun.wait()

    async with receiver.open_many(client_for(space), one_after_the_other()) as joined:
        async for outcome in joined:
            assert outcome.session is not None
            [stream] = space.streams.active()
            space._state.stop_stream(stream)
            await outcome.session.wait_closed()
            await until(lambda: not receiver._pending_streams._by_name)
            begun.set()
    assert len(space.streams) == 3


async def test_stream_that_ends_before_its_answer_is_not_stopped(
    trust: ssl.SSLContext, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """The socket proves that it ended; the answer is awaited, and nothing is stopped."""
    answer = asyncio.Event()

    async def held(seconds: float) -> None:
        await answer.wait()

    async with SimulatedSpace(
        conferences=1, audio=Tone(seconds=0.1), real_time=False, ssl_context=trust, sleep=held
    ) as space:
        space.faults.add("latency", on="start", seconds=1)
        [sid] = space.conference_sids
        async with receiver.open_many(
            client_for(space), [StartConferenceStream(conference_sid=sid, url=url)]
        ) as joined:
            async for outcome in joined:
                assert outcome.session is not None
                await outcome.session.wait_closed()
                assert outcome.session.end_reason is EndReason.STOPPED
                answer.set()
        assert space.requests.count("stop-conference-stream") == 0
        assert receiver._pending_streams._by_name == {}


async def test_error_of_the_requests_is_raised_without_iteration(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """Even if the outcomes are not iterated."""

    def broken() -> Any:
        raise LookupError("no more of them")
        yield

    async def use() -> None:
        async with receiver.open_many(client_for(space), broken()):
            await asyncio.sleep(0)

    with pytest.raises(LookupError, match="no more of them"):
        await use()


class Run:
    def __init__(self, outcomes: Any) -> None:
        self.outcomes = outcomes

    def __aiter__(self) -> Any:
        return self.outcomes

    def shutdown(self) -> None:
        pass


async def test_start_run_that_breaks_off_stops_unanswered_streams_by_name(receiver: MediaReceiver) -> None:
    """What was taken from the requests may run for all that is known, so it is stopped by its name."""

    class Client(Ending):
        def start_streams(self, requests: Any, *, concurrency: int | None) -> Any:
            return Run(self.broken(requests))

        async def broken(self, requests: Any) -> AsyncIterator[Any]:
            async for _ in requests:
                raise ClientStateError("the client is closed")
            yield

    client = Client(None)
    request = StartConferenceStream(conference_sid="room", url="wss://a.example/b", name="mine")

    async def use() -> None:
        async with receiver.open_many(client, [request], socket_timeout=0.01) as joined:
            assert [type(outcome.error) async for outcome in joined] == [OpenError]

    with pytest.raises((ClientStateError, ExceptionGroup)):
        await use()
    assert [stream.name for stream in client.asked] == ["mine"]


async def test_error_of_the_block_takes_precedence_over_error_of_the_requests(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, url: str
) -> None:
    """A cancellation above all: the error of the requests is noted on it."""

    def broken() -> Any:
        raise LookupError("no more of them")
        yield

    async def use() -> None:
        async with receiver.open_many(client_for(space), broken()) as joined:
            await until(joined._running.done)  # type: ignore[attr-defined]
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError) as caught:
        await use()
    assert caught.value.__notes__ == ["LookupError: no more of them"]
