"""Starting again what may be running: one name, an ambiguous result, and a stop that ends the stream that runs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from signalwire_streams import (
    InvalidRequestError,
    NotFoundError,
    RetryPolicy,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    TransportError,
)
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"
ONCE = RetryPolicy(max_attempts=1, max_resends=0)


async def lost_start(
    client: StreamsClient, space: SimulatedSpace, noun: str = "conference"
) -> StreamOutcomeUnknownError:
    """Start a stream whose answer is lost."""
    space.faults.add("reset", on="start", executed=True, times=1)
    streams: Any = client.conferences if noun == "conference" else client.calls
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await streams.start_stream((space.conference_sids if noun == "conference" else space.call_sids)[0], url=URL)
    return caught.value


async def by_argument(client: StreamsClient, error: StreamOutcomeUnknownError, space: SimulatedSpace) -> Any:
    streams: Any = client.conferences if error.target in space.conference_sids else client.calls
    return await streams.start_stream(error.target, url=URL, name=error.name, may_be_running=True)


async def by_error(client: StreamsClient, error: StreamOutcomeUnknownError, space: SimulatedSpace) -> Any:
    return await error.start_again()


BOTH = pytest.mark.parametrize("start_again", [by_argument, by_error])


@BOTH
@pytest.mark.parametrize("duplicate_names", ["stream-error", "http-error"])
async def test_start_again_of_running_stream_is_ambiguous_and_stopped_by_name(
    client_for: Any, start_again: Callable[..., Any], duplicate_names: Any
) -> None:
    """However the Space refuses the second stream, the first one is what is stopped."""
    async with SimulatedSpace(conferences=1, duplicate_names=duplicate_names) as space:
        client: StreamsClient = client_for(space, retry=ONCE)
        error = await lost_start(client, space)

        stream = await start_again(client, error, space)

        assert (stream.name, stream.ambiguous) == (error.name, True)
        assert stream.already_started is (duplicate_names == "http-error")
        assert space.streams.duplicates() == []
        await client.conferences.stop_stream(stream)
        assert space.streams.active() == []
        assert space.requests[-1].path.endswith(f"/Streams/{error.name}")


@BOTH
async def test_start_again_of_stream_that_does_not_run_starts_it(
    client_for: Any, start_again: Callable[..., Any]
) -> None:
    """An ordinary answer proves nothing, so the result is ambiguous here as well."""
    async with SimulatedSpace(conferences=1) as space:
        client: StreamsClient = client_for(space, retry=ONCE)
        space.faults.add("reset", on="start", times=1)
        with pytest.raises(StreamOutcomeUnknownError) as caught:
            await client.conferences.start_stream(space.conference_sids[0], url=URL, parameters={"tenant": "acme"})
        stream = await start_again(client, caught.value, space)
        assert stream.ambiguous
        assert [held.sid for held in space.streams.active()] == [stream.sid]
        if start_again is by_error:
            assert space.streams[0].parameters == {"tenant": "acme"}
        await client.conferences.stop_stream(stream)
        assert space.streams.active() == []


@BOTH
@pytest.mark.parametrize("by_name", [True, False])
async def test_start_again_on_call_may_make_second_stream_and_both_are_stopped(
    client_for: Any, start_again: Callable[..., Any], by_name: bool
) -> None:
    """A call that takes two streams of one name has none left after the stop, or the stop is an error."""
    async with SimulatedSpace(calls=1, duplicate_names="allow", streams_by_name=by_name) as space:
        client: StreamsClient = client_for(space)
        error = await lost_start(client, space, "call")
        assert "may start a second one" in str(error)
        stream = await start_again(client, error, space)
        assert stream.ambiguous
        assert len(space.streams.active()) == 2
        if by_name:
            await client.calls.stop_stream(stream)
            assert space.streams.active() == []
        else:  # the second one is stopped, and nothing finds the first one
            with pytest.raises(NotFoundError) as caught:
                await client.calls.stop_stream(stream)
            assert f"the stream with the sid {stream.sid} was stopped" in caught.value.__notes__[0]
            assert stream.sid not in {held.sid for held in space.streams.active()}


async def test_start_again_on_call_is_sent_once(client_for: Any) -> None:
    """start_again does not enable further resends; only ``resend_call_starts`` does."""
    for retry, sent in ((RetryPolicy(), 1), (RetryPolicy(resend_call_starts=True), 3)):
        async with SimulatedSpace(calls=1) as space:
            client: StreamsClient = client_for(space, retry=retry)
            space.faults.add("reset", on="start")
            with pytest.raises(StreamOutcomeUnknownError):
                await client.calls.start_stream(space.call_sids[0], url=URL, name="mine", may_be_running=True)
            assert len(space.requests) == sent


FAULTS: dict[str, dict[str, Any]] = {
    "refused": {"on": "start", "kind": "status", "status": 422, "body": "api"},
    "not sent": {"kind": "reset-on-connect"},
    "lost": {"on": "start", "kind": "reset", "executed": True},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_start_again_that_fails_stays_unknown(client_for: Any, fault: dict[str, Any]) -> None:
    """A failure of the second start does not say that the first one does not run."""
    once = RetryPolicy(max_attempts=1, max_resends=0, max_connect_retries=0)
    async with SimulatedSpace(conferences=1) as space:
        client: StreamsClient = client_for(space, retry=once)
        error = await lost_start(client, space)
        await client.aclose()
        other: StreamsClient = client_for(space, retry=once)
        space.faults.add(**fault)
        with pytest.raises(StreamOutcomeUnknownError) as again:
            await by_argument(other, error, space)
        space.faults.clear()
        assert again.value.name == error.name
        assert (await again.value.start_again()).ambiguous


async def test_may_be_running_needs_name(space: SimulatedSpace, client: StreamsClient) -> None:
    """Without a name there is nothing that a second start could be refused by."""
    sid = space.conference_sids[0]
    untyped: Any = client.conferences.start_stream
    with pytest.raises(InvalidRequestError, match="the name that the stream may be running under"):
        await client.conferences.start_stream(sid, url=URL, may_be_running=True)
    with pytest.raises(InvalidRequestError, match="the name that the stream may be running under"):
        await client.calls.start_stream(space.call_sids[0], url=URL, unnamed=True, may_be_running=True)
    with pytest.raises(InvalidRequestError, match="may_be_running must be True or False"):
        await untyped(sid, url=URL, name="mine", may_be_running="yes")
    assert len(space.requests) == 0


async def test_start_again_of_unnamed_start_is_rejected(space: SimulatedSpace, client: StreamsClient) -> None:
    """It may make a second stream, which the caller has to say."""
    space.faults.add("reset", on="start", times=1)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, unnamed=True)
    with pytest.raises(InvalidRequestError, match="without a name"):
        await caught.value.start_again()
    assert len(space.requests) == 1


@pytest.mark.parametrize("twin_of", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301
async def test_copied_error_cannot_start_again(client_for: Any, twin_of: Callable[[Any], Any]) -> None:
    """A copy has no secrets and no client, and says what to write instead."""
    async with SimulatedSpace(conferences=1) as space:
        error = await lost_start(client_for(space, retry=ONCE), space)
        twin = twin_of(error)
        assert (twin.name, str(twin), twin.target) == (error.name, str(error), error.target)
        with pytest.raises(InvalidRequestError, match=f"name='{error.name}', may_be_running=True"):
            await twin.start_again()
        assert (await error.start_again()).ambiguous


async def test_unknown_item_of_run_can_be_started_again(client_for: Any) -> None:
    """An outcome's error knows its request as well."""
    async with SimulatedSpace(conferences=1) as space:
        client: StreamsClient = client_for(space, retry=ONCE)
        space.faults.add("reset", on="start", executed=True, times=1)
        request = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL)
        [failure] = (await client.start_streams([request]).report()).failures
        assert isinstance(failure.error, StreamOutcomeUnknownError)
        stream = await failure.error.start_again(deadline=5)
        assert (stream.name, stream.ambiguous) == (failure.error.name, True)


async def test_unknown_outcome_message_names_start_again(client_for: Any) -> None:
    """The error of a conference's start says how to start again."""
    async with SimulatedSpace(conferences=1) as space:
        error = await lost_start(client_for(space, retry=ONCE), space)
        assert f"stop it by its name {error.name!r}, or start it again with that name and may_be_running=True" in str(
            error
        )
        assert not isinstance(error, TransportError)
