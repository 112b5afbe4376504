"""The numbers that the documentation promises, as defaults and as the behaviour that each of them stands for."""

import asyncio
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from inspect import isclass, isfunction, ismethod, signature
from typing import Any

import aiohttp
import pytest
from attrs import evolve

from signalwire_streams import (
    BulkStatus,
    Clock,
    Priority,
    RateLimit,
    RateLimitedError,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
)
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver, parse_callback
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace

PCMU = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
URL = "wss://rx.example.com/audio"


MODULES = (
    "",
    ".bulk",
    ".callbacks",
    ".fleet",
    ".middleware",
    ".pytest_plugin",
    ".receiver",
    ".receiver.audio",
    ".redis_rate_limit",
    ".simulator",
)
TRIVIAL = (0, False, "", "no")
DEFAULTS = {
    "AudioFormat(byte_order)": "little",
    "AudioFormat(channels)": 1,
    "AudioFormat(sample_rate)": 8000,
    "AudioFormat.from_start_event(byte_order)": "little",
    "BulkRun.shutdown(timeout)": 5.0,
    "CallbackReceiver(body_limit)": 65536,
    "CallbackReceiver(body_timeout)": 5.0,
    "CallbackReceiver(dedup_size)": 10000,
    "CallbackReceiver(max_pending)": 1000,
    "CallbackReceiver(shutdown_timeout)": 5.0,
    "Churn(foreign_name)": "foreign-{sid}",
    "Churn(mean_life)": 600.0,
    "CircuitBreakerPolicy(failure_rate)": 0.5,
    "CircuitBreakerPolicy(min_requests)": 20,
    "CircuitBreakerPolicy(open_duration)": 5.0,
    "CircuitBreakerPolicy(window)": 30.0,
    "FaultSettings(after)": 10,
    "FaultSettings(as_)": "http-error",
    "FaultSettings(body)": "html",
    "FaultSettings(every)": 10,
    "FaultSettings(frames)": 10,
    "FaultSettings(location)": "/",
    "FaultSettings(read_body)": True,
    "FaultSettings(status)": 500,
    "Fleet(retention)": 604800.0,
    "FleetWorker(concurrency)": 200,
    "FleetWorker(lease_seconds)": 15.0,
    "FleetWorker(monitoring_host)": "127.0.0.1",
    "FleetWorker(shutdown_timeout)": 25.0,
    "MediaReceiver(byte_order)": "little",
    "MediaReceiver(frame_limit)": 65536,
    "MediaReceiver(heartbeat)": 30.0,
    "MediaReceiver(max_queue)": 500,
    "MediaReceiver(start_timeout)": 10.0,
    "MediaReceiver.aclose(deadline)": 5.0,
    "MediaReceiver.open(socket_timeout)": 15.0,
    "MediaReceiver.open(when_lost)": "end",
    "MediaReceiver.open_many(socket_timeout)": 15.0,
    "MediaReceiver.serve(handshake_timeout)": 10.0,
    "MediaReceiver.serve(health_host)": "127.0.0.1",
    "MediaReceiver.serve(host)": "127.0.0.1",
    "MediaReceiver.serve(path)": "/",
    "MediaReceiver.serve(shutdown_timeout)": 5.0,
    "OpenError(stage)": "start",
    "Playback(max_message)": 65536,
    "RateLimit(requests)": 13800,
    "RateLimit(utilization)": 0.9,
    "RateLimit(window)": 10.0,
    "Request(required_key)": "sid",
    "RequestLog(keep)": True,
    "RequestLog.max_in_window(seconds)": 10.0,
    "RequestLog.wait_for(count)": 1,
    "RequestLog.wait_for(timeout)": 15.0,
    "Result(attempts)": 1,
    "RetryPolicy(deadline)": 45.0,
    "RetryPolicy(max_attempts)": 3,
    "RetryPolicy(max_connect_retries)": 3,
    "RetryPolicy(max_resends)": 2,
    "RetryPolicy(max_retry_after)": 60.0,
    "RetryPolicy(max_throttle_retries)": 6,
    "RetryPolicy(resend_window)": 30.0,
    "RetryPolicy(throttle_wait_initial)": 1.0,
    "RetryPolicy(throttle_wait_max)": 20.0,
    "RetryPolicy(wait_initial)": 0.2,
    "RetryPolicy(wait_max)": 5.0,
    "SignedTokens(ttl)": 300.0,
    "SimulatedSpace(dialect)": "signalwire",
    "SimulatedSpace(duplicate_names)": "stream-error",
    "SimulatedSpace(host)": "127.0.0.1",
    "SimulatedSpace(limit_headers)": True,
    "SimulatedSpace(log_requests)": True,
    "SimulatedSpace(participants)": 2,
    "SimulatedSpace(rate_limit)": 13800,
    "SimulatedSpace(real_time)": True,
    "SimulatedSpace(reusable_names)": True,
    "SimulatedSpace(streams_by_name)": True,
    "SimulatedSpace(window)": 10.0,
    "SimulatedSpace.add_call(direction)": "outbound",
    "SimulatedSpace.add_call(status)": "in-progress",
    "SimulatedSpace.add_conference(status)": "in-progress",
    "SimulatedSpace.lose_socket(noticed_by)": "both",
    "SimulatedSpace.send_dtmf(milliseconds)": 100,
    "Stream(status)": "queued",
    "Stream(status_callback_method)": "POST",
    "Stream(track)": "both_tracks",
    "StreamReceiver.next_stream(timeout)": 15.0,
    "StreamSession.pcm(delay_ms)": 60,
    "StreamSession.pcm(frame_ms)": 20,
    "StreamSession.pcm(late)": "keep",
    "StreamSession.pcm(rate)": 16000,
    "StreamSession.pcm(tracks)": "mixed",
    "StreamSession.tap(max_frames)": 500,
    "StreamsClient(connections)": 256,
    "StreamsClient.keep_streaming(conferences)": True,
    "StreamsClient.keep_streaming(in_doubt)": "hold",
    "StreamsClient.keep_streaming(journal)": "kept.db",
    "StreamsClient.keep_streaming(lease)": 30.0,
    "StreamsClient.keep_streaming(names)": "reusable",
    "StreamsClient.keep_streaming(on_change)": "keep",
    "StreamsClient.keep_streaming(on_exit)": "leave",
    "StreamsClient.keep_streaming(poll)": 5.0,
    "StreamsClient.keep_streaming(reassert)": 60.0,
    "Tap.pcm(delay_ms)": 60,
    "Tap.pcm(frame_ms)": 20,
    "Tap.pcm(late)": "keep",
    "Tap.pcm(rate)": 16000,
    "Tap.pcm(tracks)": "mixed",
    "Timeouts(attempt)": 20.0,
    "Timeouts(connect)": 5.0,
    "Timeouts(read)": 15.0,
    "Tone(hertz)": 440,
    "TrackTimeline(max_gap)": 60.0,
    "TrackTimeline(tolerance)": 8,
    "WavRecorder(encoding)": "pcm",
    "WavRecorder(layout)": "stereo",
    "WavRecorder(max_gap)": 60.0,
    "WavRecorder(tolerance)": 8,
    "diagnose_signature(method)": "POST",
    "dial_media(codec)": "PCMU",
    "dial_media(dialect)": "signalwire",
    "dial_media(seconds)": 10.0,
    "run_worker(concurrency)": 200,
    "run_worker(lease_seconds)": 15.0,
    "run_worker(shutdown_timeout)": 25.0,
    "sign(algorithm)": "sha1",
    "verify_signature(method)": "POST",
}
"""The defaults of all public functions, methods and classes that are a number, a text or a flag, and not trivial."""


def test_defaults_are_the_documented_ones() -> None:
    assert dict(defaults()) == DEFAULTS
    assert RateLimit().max_requests == 12_420
    assert MediaReceiver(max_queue=100)._queue_limits.max_bytes == 409_600


def defaults() -> Iterator[tuple[str, object]]:
    for module in (import_module(f"signalwire_streams{name}") for name in MODULES):
        for name in module.__all__:
            public = getattr(module, name)
            if not callable(public) or (isclass(public) and issubclass(public, Enum)):
                continue
            methods = [each for each in dir(public) if not each.startswith("_")] if isclass(public) else []
            functions = {
                "": public.__init__ if isclass(public) else public,
                **{f".{m}": getattr(public, m) for m in methods},
            }
            for called, function in functions.items():
                if not (isfunction(function) or ismethod(function)):
                    continue
                for parameter in signature(function).parameters.values():
                    default = parameter.default
                    if type(default) in {int, float, str, bool} and default not in TRIVIAL:
                        yield f"{name}{called}({parameter.name})", default


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

    async def test_item_of_a_run_waits_five_minutes_for_a_throttling_space(
        self, client_for: Any, idle_clock: Clock
    ) -> None:
        async with SimulatedSpace(conferences=1) as space:
            space.faults.add("throttle", on="start", retry_after=20)
            request = StartConferenceStream(conference_sid=space.conference_sids[0], url=URL)
            client: StreamsClient = client_for(space, clock=evolve(idle_clock, random=lambda: 0.0))
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
