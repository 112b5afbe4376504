"""The numbers that the documentation promises, as defaults and as the behaviour that each of them stands for."""

import asyncio
from collections.abc import Callable
from inspect import signature
from typing import Any

import aiohttp
import pytest
from attrs import evolve

from signalwire_streams import (
    BulkStatus,
    CircuitBreakerPolicy,
    Clock,
    Priority,
    RateLimit,
    RateLimitedError,
    RetryPolicy,
    SignedTokens,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
    Timeouts,
)
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver, parse_callback
from signalwire_streams.fleet import Fleet, FleetWorker, run_worker
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace

PCMU = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
URL = "wss://rx.example.com/audio"
WEEK = 7 * 24 * 3600.0


def default_of(function: Callable[..., Any], name: str) -> object:
    return signature(function).parameters[name].default


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        pytest.param(RetryPolicy().max_attempts, 3, id="attempts that may reach the Space"),
        pytest.param(RetryPolicy().max_connect_retries, 3, id="attempts that certainly do not reach it"),
        pytest.param(RetryPolicy().max_throttle_retries, 6, id="waits after a 429"),
        pytest.param(RetryPolicy().max_resends, 2, id="max_resends of a named start"),
        pytest.param(RetryPolicy().resend_window, 30.0, id="seconds in which it is sent again"),
        pytest.param(RetryPolicy().resend_call_starts, False, id="max_resends of a start on a call"),
        pytest.param(RetryPolicy().deadline, 45.0, id="seconds of a whole call"),
        pytest.param(RetryPolicy().wait_initial, 0.2, id="first wait after a failure"),
        pytest.param(RetryPolicy().wait_max, 5.0, id="longest wait after a failure"),
        pytest.param(RetryPolicy().throttle_wait_initial, 1.0, id="first wait after a 429"),
        pytest.param(RetryPolicy().throttle_wait_max, 20.0, id="longest wait after a 429"),
        pytest.param(RetryPolicy().max_retry_after, 60.0, id="longest Retry-After"),
        pytest.param(Timeouts().connect, 5.0, id="seconds to connect"),
        pytest.param(Timeouts().read, 15.0, id="seconds between two reads"),
        pytest.param(Timeouts().attempt, 20.0, id="seconds of an attempt"),
        pytest.param(RateLimit().requests, 13_800, id="requests that the Space takes"),
        pytest.param(RateLimit().window, 10.0, id="seconds of its window"),
        pytest.param(RateLimit().utilization, 0.9, id="share of the limit"),
        pytest.param(RateLimit().max_requests, 12_420, id="requests of this client in a window"),
        pytest.param(CircuitBreakerPolicy().min_requests, 20, id="outcomes before the breaker opens"),
        pytest.param(CircuitBreakerPolicy().failure_rate, 0.5, id="share of failures that opens it"),
        pytest.param(CircuitBreakerPolicy().window, 30.0, id="seconds that an outcome counts"),
        pytest.param(CircuitBreakerPolicy().open_duration, 5.0, id="seconds that the breaker is open"),
        pytest.param(default_of(StreamsClient, "connections"), 256, id="connections"),
        pytest.param(default_of(SignedTokens, "ttl"), 300.0, id="seconds of a signed token"),
        pytest.param(default_of(MediaReceiver, "max_queue"), 500, id="media events that wait"),
        pytest.param(MediaReceiver(max_queue=100)._queue_limits.max_bytes, 409_600, id="bytes of 100 media events"),
        pytest.param(default_of(MediaReceiver, "start_timeout"), 10.0, id="seconds until the start event"),
        pytest.param(default_of(MediaReceiver, "frame_limit"), 65_536, id="bytes of a message"),
        pytest.param(default_of(MediaReceiver, "heartbeat"), 30.0, id="seconds of silence before a ping"),
        pytest.param(default_of(CallbackReceiver, "max_pending"), 1_000, id="callbacks that wait"),
        pytest.param(default_of(CallbackReceiver, "dedup_size"), 10_000, id="callbacks that are remembered"),
        pytest.param(default_of(CallbackReceiver, "shutdown_timeout"), 5.0, id="seconds to drain callbacks"),
        pytest.param(default_of(CallbackReceiver, "body_limit"), 65_536, id="bytes of a callback"),
        pytest.param(default_of(CallbackReceiver, "body_timeout"), 5.0, id="seconds of a callback's body"),
        pytest.param(default_of(Fleet, "retention"), WEEK, id="seconds that Redis keeps a run"),
        pytest.param(default_of(FleetWorker, "lease_seconds"), 15.0, id="seconds of a lease"),
        pytest.param(default_of(run_worker, "lease_seconds"), 15.0, id="seconds of a lease, as a process"),
        pytest.param(default_of(FleetWorker, "shutdown_timeout"), 25.0, id="seconds to drain a worker"),
        pytest.param(default_of(run_worker, "shutdown_timeout"), 25.0, id="seconds to drain a worker, as a process"),
        pytest.param(default_of(FleetWorker, "concurrency"), 200, id="concurrent starts of a worker"),
        pytest.param(default_of(run_worker, "concurrency"), 200, id="concurrent starts of a worker, as a process"),
    ],
)
def test_default_is_the_documented_value(default: object, expected: object) -> None:
    assert default == expected


@pytest.mark.usefixtures("idle_clock")  # set up first, so that it is undone last
class TestDrain:
    """Every close and early exit waits five seconds for work in progress."""

    @pytest.fixture
    async def hanging(self, space: SimulatedSpace) -> SimulatedSpace:
        space.faults.add("hang", on="start", executed=True)
        return space

    async def test_aclose_of_a_client_waits_five_seconds(
        self, hanging: SimulatedSpace, client_for: Any, idle_clock: Clock
    ) -> None:
        client: StreamsClient = client_for(hanging, clock=idle_clock)
        starting = asyncio.create_task(client.conferences.start_stream(hanging.conference_sids[0], url=URL))
        await hanging.requests.wait_for(1, "start-conference-stream")
        began = idle_clock.now()

        await client.aclose()
        seconds = idle_clock.now() - began

        with pytest.raises(StreamOutcomeUnknownError):
            await starting
        assert seconds == pytest.approx(5.0, abs=0.1)

    @pytest.mark.parametrize("by", ["leaving the loop", "drain"])
    async def test_end_of_a_run_waits_five_seconds(
        self, hanging: SimulatedSpace, client_for: Any, idle_clock: Clock, by: str
    ) -> None:
        client: StreamsClient = client_for(hanging, clock=idle_clock)
        good, *others = hanging.conference_sids
        hanging.faults.clear()
        for sid in others:
            hanging.faults.add("hang", on="start", executed=True, target=sid)
        run = client.start_streams([StartConferenceStream(conference_sid=sid, url=URL) for sid in (good, *others)])
        began = idle_clock.now()
        async for outcome in run:
            if outcome.status is BulkStatus.STARTED:
                await hanging.requests.wait_for(3, "start-conference-stream")
                began = idle_clock.now()
                if by == "drain":
                    run.shutdown()
                else:
                    break
        report = await run.report()

        assert idle_clock.now() - began == pytest.approx(5.0, abs=0.1)
        assert report.counts == {BulkStatus.STARTED: 1, BulkStatus.UNKNOWN: 2}

    async def test_aclose_of_a_callback_receiver_waits_five_seconds(self, idle_clock: Clock) -> None:
        async def stuck(event: CallbackEvent) -> None:
            await asyncio.Event().wait()

        receiver = CallbackReceiver(stuck, keys=["PSK_test"])
        assert receiver._dispatcher.offer(parse_callback({"StreamSid": "a", "StreamEvent": "stream-started"}), b"")
        await asyncio.sleep(0)
        began = idle_clock.now()

        await receiver.aclose()

        assert idle_clock.now() - began == pytest.approx(5.0, abs=0.1)
        assert receiver.statistics.dropped == 1


@pytest.mark.usefixtures("idle_clock")
class TestDeadline:
    """A call waits no longer, whatever it waits for."""

    async def test_call_ends_after_45_seconds(self, space: SimulatedSpace, client_for: Any, idle_clock: Clock) -> None:
        client: StreamsClient = client_for(space, clock=idle_clock, rate_limiter=Closed(idle_clock))
        began = idle_clock.now()
        with pytest.raises(StreamsError) as caught:
            await client.conferences.start_stream(space.conference_sids[0], url=URL)
        assert idle_clock.now() - began == pytest.approx(45.0, abs=0.1)
        assert caught.value.sent == "no"

    async def test_attempt_without_a_response_ends_after_15_seconds(
        self, space: SimulatedSpace, client_for: Any, idle_clock: Clock
    ) -> None:
        space.faults.add("hang", on="start")
        client: StreamsClient = client_for(space, clock=idle_clock)
        began = idle_clock.now()
        with pytest.raises(StreamOutcomeUnknownError):
            await client.calls.start_stream(space.call_sids[0], url=URL)
        assert idle_clock.now() - began == pytest.approx(15.0, abs=0.1)

    async def test_item_of_a_run_waits_five_minutes_for_a_throttling_space(self, client_for: Any) -> None:
        async with SimulatedSpace(conferences=1) as space:
            space.faults.add("throttle", on="start", retry_after=20)
            request = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL)
            client: StreamsClient = client_for(space, clock=evolve(Clock.fake(), random=lambda: 0.0))
            [outcome] = [outcome async for outcome in client.start_streams([request])]

        assert isinstance(outcome.error, RateLimitedError)
        assert outcome.duration == pytest.approx(300.0, abs=1.0)


class Closed:
    """A rate limiter that never grants a request."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def acquire(self, priority: Priority, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        await self.clock.sleep(timeout)
        return 1.0

    async def wait_until_allowed(self, timeout: float) -> float:  # noqa: ASYNC109  (RateLimiter's)
        return 0.0

    def on_throttled(self, sent_at: float, retry_after: float | None) -> None:
        raise NotImplementedError

    def on_success(self) -> None:
        raise NotImplementedError


@pytest.mark.usefixtures("idle_clock")
async def test_media_queue_holds_500_events() -> None:
    """The oldest audio is dropped once 500 events wait."""
    ready, chunks = asyncio.Event(), list[int | None]()

    async def slow(session: StreamSession) -> None:
        await ready.wait()
        chunks.extend([event.chunk async for event in session if isinstance(event, MediaEvent)])

    receiver = MediaReceiver(slow, bearer_tokens="t")
    headers = {"Authorization": "Bearer t"}
    async with receiver.serve() as url, aiohttp.ClientSession() as http, http.ws_connect(url, headers=headers) as peer:
        await peer.send_json(
            {"event": "start", "start": {"streamSid": "s", "tracks": ["inbound"], "mediaFormat": PCMU}}
        )
        for chunk in range(1, 511):
            media = {"track": "inbound", "chunk": chunk, "timestamp": 20 * chunk, "payload": "//8="}
            await peer.send_json({"event": "media", "media": media})
        while sum(_frames(session) for session in receiver.sessions) < 510:  # noqa: ASYNC110  (no event tells)
            await asyncio.sleep(0.01)
        ready.set()

    assert chunks == list(range(11, 511))


def _frames(session: StreamSession) -> int:
    return sum(track.frames for track in session.statistics.tracks.values())
