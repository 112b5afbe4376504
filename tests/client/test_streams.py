"""Starting and stopping streams, as a caller does it, against a Space on a real socket."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from signalwire_streams import (
    CallStream,
    ClientStateError,
    Clock,
    Codec,
    ConferenceStream,
    InvalidRequestError,
    NotFoundError,
    Phase,
    RateLimitedError,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamStatus,
    Track,
    TransportError,
)
from signalwire_streams.simulator import SimulatedSpace

URL = "wss://rx.example.com/audio"


async def test_start_and_a_stop_on_a_conference(space: SimulatedSpace, client: StreamsClient) -> None:
    """One await starts a stream with every field as asked, another stops it."""
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(
        sid,
        url=URL,
        name="audit-1",
        track=Track.BOTH,
        codec=Codec.L16_16K,
        realtime=True,
        status_callback="https://app.example.com/streams",
        status_callback_method="POST",
        parameters={"tenant": "acme"},
        authorization_bearer_token="bearer-of-news",
    )

    held = space.streams[0]
    assert (stream.sid, stream.name, stream.conference_sid) == (held.sid, "audit-1", sid)
    assert stream.status in {StreamStatus.QUEUED, StreamStatus.IN_PROGRESS}
    assert stream.account_sid == space.project
    assert isinstance(stream.date_updated, datetime)
    assert (stream.ambiguous, stream.already_started, stream.extra) == (False, False, {})
    assert (held.codec, held.realtime, held.track) == ("L16@16000h", True, "both_tracks")
    assert (held.parameters, held.authorization_bearer_token) == ({"tenant": "acme"}, "bearer-of-news")

    stopped = await client.conferences.stop_stream(sid, stream)

    assert (stopped.sid, stopped.status) == (stream.sid, StreamStatus.STOPPED)
    assert space.streams.active() == []


async def test_start_and_a_stop_on_a_call(space: SimulatedSpace, client: StreamsClient) -> None:
    """Calls have the same two operations."""
    sid = space.call_sids[0]
    stream = await client.calls.start_stream(sid, url=URL, track="inbound_track", name="listen")

    assert (stream.call_sid, stream.name, space.streams[0].track) == (sid, "listen", "inbound_track")
    assert (await client.calls.stop_stream(sid, stream)).status is StreamStatus.STOPPED
    assert space.streams.active() == []


async def test_name_is_generated_unless_unnamed(space: SimulatedSpace, client: StreamsClient) -> None:
    """Every start carries a name of its own, so that it can be repeated safely; ``unnamed`` sends none."""
    first, second = space.conference_sids[:2]
    one = await client.conferences.start_stream(first, url=URL)
    two = await client.conferences.start_stream(first, url=URL)
    none = await client.conferences.start_stream(second, url=URL, unnamed=True)

    assert one.name != two.name
    assert all(re.fullmatch(r"sws-[0-9a-f]{24}", name or "") for name in (one.name, two.name))
    assert none.name is None
    assert "Name" not in space.requests[-1].fields


@pytest.mark.parametrize("handle", ["sid", "name"])
async def test_stopping_by_sid_or_by_name(space: SimulatedSpace, client: StreamsClient, handle: str) -> None:
    """A stream can be stopped by what was kept of it."""
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL, name="kept")
    await client.conferences.stop_stream(sid, str(getattr(stream, handle)))

    assert space.streams.active() == []


async def test_ambiguous_stream_is_stopped_by_its_name(space: SimulatedSpace, client: StreamsClient) -> None:
    """Where the sid may be that of the rejected second stream, the name stops the one that runs."""
    sid = space.conference_sids[0]
    space.faults.add("reset", executed=True, times=1)
    stream = await client.conferences.start_stream(sid, url=URL)
    assert stream.ambiguous
    assert stream.sid != space.streams.active()[0].sid

    await client.conferences.stop_stream(sid, stream)

    assert space.streams.active() == []
    assert space.requests[-1].path.endswith(f"/Streams/{stream.name}")


async def test_ambiguous_stream_where_names_do_not_stop(client_for: Any) -> None:
    """Where a Space knows no names in paths, the sid is tried after the name."""
    async with SimulatedSpace(conferences=1, streams_by_name=False) as space:
        client = client_for(space)
        space.faults.add("reset", times=1)
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
        assert stream.ambiguous

        await client.conferences.stop_stream(space.conference_sids[0], stream)

        assert space.streams.active() == []


async def test_stream_known_by_name_only_where_names_do_not_stop(client_for: Any) -> None:
    """A stream whose sid was lost, on a Space that knows no names in paths, can't be stopped, and that is said."""
    async with SimulatedSpace(conferences=1, streams_by_name=False) as space:
        client = client_for(space)
        space.faults.add("empty", times=1)
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
        assert stream.sid is None

        with pytest.raises(NotFoundError):
            await client.conferences.stop_stream(space.conference_sids[0], stream)


async def test_ambiguous_stream_that_is_not_there(space: SimulatedSpace, client: StreamsClient) -> None:
    """Where an ambiguous stream is known by its name alone, and that is not found, there is nothing else to try."""
    lost = ConferenceStream(conference_sid=space.conference_sids[0], name="lost", ambiguous=True)

    with pytest.raises(NotFoundError):
        await client.conferences.stop_stream(space.conference_sids[0], lost)

    assert len(space.requests) == 1


async def test_repeated_stop_that_finds_nothing_is_a_success(space: SimulatedSpace, client: StreamsClient) -> None:
    """When a stop's response was lost and the next one finds it stopped, it is stopped."""
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL)
    space.faults.add("reset", on="stop", executed=True, times=2)

    by_stream = await client.conferences.stop_stream(sid, stream)
    assert (by_stream.sid, by_stream.name, by_stream.status) == (stream.sid, stream.name, StreamStatus.STOPPED)

    other = await client.conferences.start_stream(sid, url=URL)
    by_sid = await client.conferences.stop_stream(sid, str(other.sid))
    assert (by_sid.conference_sid, by_sid.status) == (sid, StreamStatus.STOPPED)


async def test_streams_are_not_mixed_up(space: SimulatedSpace, client: StreamsClient) -> None:
    """A stream of something else is rejected before anything is sent."""
    first, second = space.conference_sids[:2]
    stream = await client.conferences.start_stream(first, url=URL)
    of_call = await client.calls.start_stream(space.call_sids[0], url=URL)
    sent = len(space.requests)

    with pytest.raises(InvalidRequestError, match="belongs to another conference_sid"):
        await client.conferences.stop_stream(second, stream)
    with pytest.raises(InvalidRequestError, match="pass a ConferenceStream"):
        await client.conferences.stop_stream(first, of_call)  # type: ignore[call-overload]
    assert len(space.requests) == sent


async def test_stream_without_a_handle_cannot_be_stopped(space: SimulatedSpace, client: StreamsClient) -> None:
    """A stream of which neither sid nor name is known is rejected before anything is sent."""
    with pytest.raises(InvalidRequestError, match="neither sid nor name"):
        await client.conferences.stop_stream("room", ConferenceStream(conference_sid="room"))
    with pytest.raises(InvalidRequestError, match="neither sid nor name"):
        await client.calls.stop_stream("call", CallStream(call_sid="call", ambiguous=True))
    assert len(space.requests) == 0


@pytest.mark.parametrize("by", ["stream", "sid"])
async def test_stop_whose_responses_cannot_be_read_is_a_success(
    space: SimulatedSpace, client: StreamsClient, by: str
) -> None:
    """A stop that is accepted each time has worked, though no response to it ever names the stream."""
    sid = space.conference_sids[0]
    stream = await client.conferences.start_stream(sid, url=URL, name="mine")
    space.faults.add("status", on="stop", status=204, body="empty")

    stopped = await client.conferences.stop_stream(sid, stream if by == "stream" else str(stream.sid))

    assert (stopped.conference_sid, stopped.status) == (sid, StreamStatus.STOPPED)
    assert stopped.name == ("mine" if by == "stream" else None)
    assert space.requests.count("stop-conference-stream") == 3


async def test_unknown_outcome_reports_its_cause(space: SimulatedSpace, client: StreamsClient) -> None:
    """After different failures the phase is that of the first attempt in doubt, and the sentence that of the last."""
    space.faults.add("reset", times=1)
    space.faults.add("503", times=3)
    space.faults.add("reset", times=2)
    sid = space.conference_sids[0]

    with pytest.raises(StreamOutcomeUnknownError) as first_lost:
        await client.conferences.start_stream(sid, url=URL, name="mine")
    assert (first_lost.value.phase, first_lost.value.attempts) == (Phase.WAITING, 3)
    assert "(last attempt: HTTP 503" in str(first_lost.value)

    with pytest.raises(StreamOutcomeUnknownError) as last_lost:
        await client.conferences.start_stream(sid, url=URL, name="mine")
    assert (last_lost.value.phase, last_lost.value.attempts) == (Phase.RESPONDED, 3)
    assert "(last attempt: no response: " in str(last_lost.value)

    space.faults.add("503", times=1)
    space.faults.add("status", status=400, body="api", code=21402)
    with pytest.raises(StreamOutcomeUnknownError) as then_refused:
        await client.conferences.start_stream(sid, url=URL, name="mine")
    assert (then_refused.value.phase, then_refused.value.attempts) == (Phase.RESPONDED, 2)
    assert "(last attempt: HTTP 400 [code 21402]: " in str(then_refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "ws://rx.example.com/a"}, "wss"),
        ({"url": "https://rx.example.com/a"}, "wss"),
        ({"url": "wss://rx.example.com/a?x=1"}, "parameters="),
        ({"url": ""}, "empty"),
        ({"parameters": {str(number): "" for number in range(100)}}, "too many"),
        ({"parameters": {"": "x"}}, "empty name"),
        ({"track": "all"}, "both_tracks"),
        ({"codec": "opus"}, "PCMU"),
        ({"status_callback_method": "PUT"}, "POST"),
        ({"deadline": 0}, "deadline"),
        ({"parameters": {"half": "\ud800"}}, "surrogate"),
    ],
)
async def test_invalid_arguments_send_nothing(
    space: SimulatedSpace, client: StreamsClient, arguments: dict[str, Any], words: str
) -> None:
    """Invalid arguments are rejected with a fix, and the Space receives nothing."""
    with pytest.raises(InvalidRequestError, match=words):
        await client.conferences.start_stream(space.conference_sids[0], **({"url": URL} | arguments))
    for sid in ("a/b", "..", "a?b", "a#b", "a b", ""):
        with pytest.raises(InvalidRequestError, match="sid"):
            await client.conferences.start_stream(sid, url=URL)
        with pytest.raises(InvalidRequestError, match="stream"):
            await client.conferences.stop_stream(space.conference_sids[0], sid)
        with pytest.raises(InvalidRequestError, match="sid"):
            await client.calls.get(sid)
    only_on_conferences: tuple[dict[str, Any], ...] = ({"codec": "PCMU"}, {"realtime": True})
    for argument in only_on_conferences:
        with pytest.raises(InvalidRequestError, match="conference streams only"):
            await client.calls.start_stream("a-call", url=URL, **argument)
    assert len(space.requests) == 0
    assert space.connections.opened == 0


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), True, "5"])
async def test_invalid_deadline_sends_nothing(space: SimulatedSpace, client: StreamsClient, deadline: Any) -> None:
    """A deadline that is no time is rejected on starts, on stops and on a start again."""
    sid = space.conference_sids[0]
    with pytest.raises(InvalidRequestError, match="deadline"):
        await client.conferences.start_stream(sid, url=URL, deadline=deadline)
    with pytest.raises(InvalidRequestError, match="deadline"):
        await client.conferences.stop_stream(sid, "audit", deadline=deadline)
    assert len(space.requests) == 0
    space.faults.add("reset", on="start", times=3)
    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(sid, url=URL)
    sent = len(space.requests)
    with pytest.raises(InvalidRequestError, match="deadline"):
        await caught.value.start_again(deadline=deadline)
    assert len(space.requests) == sent


async def test_call_over_its_deadline_ends_and_sent_start_is_unknown(
    space: SimulatedSpace, client_for: Any, idle_clock: Clock
) -> None:
    """A caller's deadline wins over everything; a start that was out by then is unknown."""
    client = client_for(space, clock=idle_clock)
    await client.conferences.get(space.conference_sids[0])  # from here on there is a connection
    space.faults.add("hang", executed=True)
    began = idle_clock.now()

    with pytest.raises(StreamOutcomeUnknownError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, name="mine", deadline=5)

    assert idle_clock.now() - began == pytest.approx(5, abs=0.1)

    assert (caught.value.name, caught.value.attempts, caught.value.sent) == ("mine", 1, "maybe")
    assert caught.value.target == space.conference_sids[0]


async def test_retry_after_beyond_the_deadline_ends_at_once(space: SimulatedSpace, client: StreamsClient) -> None:
    """Told to wait longer than allowed, the call raises at once and says how long the Space asked for."""
    space.faults.add("throttle", retry_after=59)
    with pytest.raises(Exception, match="429") as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL)
    assert getattr(caught.value, "retry_after", None) == 59

    # The gate is shared: while it is closed, the next call is not sent at all.
    with pytest.raises(TransportError, match="rate limiter") as next_one:
        await client.conferences.start_stream(space.conference_sids[1], url=URL)
    assert next_one.value.sent == "no"
    assert next_one.value.retry_after == pytest.approx(59, abs=1)
    with pytest.raises(TransportError):
        await client.conferences.get(space.conference_sids[1])
    assert len(space.requests) == 1


async def test_call_is_cut_when_no_connection_becomes_free(
    space: SimulatedSpace, client_for: Any, idle_clock: Clock
) -> None:
    """Waiting for a connection ends with the deadline, and nothing is sent."""
    client = client_for(space, connections=1, clock=idle_clock)
    space.faults.add("hang", times=1)
    first = asyncio.create_task(client.conferences.get(space.conference_sids[0]))
    await space.requests.wait_for(1)

    with pytest.raises(TransportError, match="no connection became free") as caught:
        await client.conferences.start_stream(space.conference_sids[1], url=URL, deadline=5)

    assert caught.value.sent == "no"
    assert len(space.requests) == 1
    first.cancel()


async def test_too_many_requests_until_the_deadline(space: SimulatedSpace, client_for: Any, idle_clock: Clock) -> None:
    """If there is no time left to retry, the caller gets the Space's last response."""
    client = client_for(space, clock=Clock(now=idle_clock.now, random=lambda: 0.0))
    space.faults.add("throttle")

    with pytest.raises(RateLimitedError) as caught:
        await client.conferences.start_stream(space.conference_sids[0], url=URL, deadline=0.5)

    assert caught.value.status == 429
    assert (caught.value.attempts, caught.value.sent) == (len(space.requests), "yes")


async def test_unparsable_dates_lose_no_stream(client_for: Any) -> None:
    """A Space that spells September with four letters is understood, and nothing is lost if not."""
    september = datetime(2018, 9, 25, 20, 0, tzinfo=UTC)
    async with SimulatedSpace(conferences=1, long_september=True, clock=september.timestamp) as space:
        stream = await client_for(space).conferences.start_stream(space.conference_sids[0], url=URL)

    assert stream.date_updated_text == "Tue, 25 Sept 2018 20:00:00 +0000"
    assert stream.date_updated == september


async def test_closed_client_in_between_attempts(space: SimulatedSpace, client_for: Any) -> None:
    """A call whose client is closed between two attempts ends with what is known, not with aiohttp's words."""
    closing: list[asyncio.Task[None]] = []

    def close(_: object) -> None:
        closing.append(asyncio.ensure_future(client._dispatcher.sessions.close()))

    client: StreamsClient = client_for(space, on_attempt=close)
    space.faults.add("reset", executed=True)

    with pytest.raises(StreamOutcomeUnknownError, match="closed in the meantime"):
        await client.conferences.start_stream(space.conference_sids[0], url=URL)

    await asyncio.gather(*closing)
    assert len(space.requests) == 1
    with pytest.raises((TransportError, ClientStateError)):
        await client.conferences.get(space.conference_sids[0])


@pytest.mark.parametrize("fault", ["503-api", "throttle"])
async def test_start_that_runs_despite_a_rejection_is_already_started(client_for: Any, fault: str) -> None:
    """A gateway may reject what the API behind it has carried out; the generated name then proves it."""
    async with SimulatedSpace(conferences=1, duplicate_names="http-error") as space:
        space.faults.add(fault, on="start", executed=True, times=1)
        stream = await client_for(space).conferences.start_stream(space.conference_sids[0], url=URL)

        assert (stream.already_started, stream.ambiguous, stream.sid) == (True, True, None)
        assert [alive.name for alive in space.streams.active()] == [stream.name]
