"""Traces and metrics, as OpenTelemetry's in-memory exporters see them."""

import asyncio
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from signalwire_streams import (
    BulkStatus,
    CircuitBreakerPolicy,
    CircuitOpenError,
    Clock,
    InvalidRequestError,
    RateLimit,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
    telemetry,
)
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver
from signalwire_streams.keep_streaming._kept_targets import KeptTargets
from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace
from signalwire_streams.telemetry import instrument
from tests.conftest import ClientFactory
from tests.waiting import until

URL = "wss://rx.example.com/audio"
SECRETS: dict[str, Any] = {
    "authorization_bearer_token": "TOKEN-SECRET",
    "parameters": {"name": "PARAMETER-SECRET"},
    "status_callback": "https://cb.example.com/?key=CALLBACK-SECRET",
}


class Exported:
    """What was exported, without a network."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])
        self.providers: dict[str, Any] = {
            "tracer_provider": self.tracer_provider,
            "meter_provider": self.meter_provider,
        }

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [
            span for span in self._exporter.get_finished_spans() if span.name.startswith(f"signalwire.streams.{name}")
        ]

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """Return the data points by name of the metric: attributes, and the value or the count of a histogram."""
        data: Any = self._reader.get_metrics_data()
        found = [
            each for resource in data.resource_metrics for scope in resource.scope_metrics for each in scope.metrics
        ]
        return {
            metric.name.removeprefix("signalwire.streams."): [
                (dict(point.attributes or {}), getattr(point, "value", getattr(point, "count", None)))
                for point in metric.data.data_points
            ]
            for metric in found
        }

    def histogram(self, name: str) -> Any:
        """Return the one data point of a histogram."""
        data: Any = self._reader.get_metrics_data()
        metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
        [point] = metrics[f"signalwire.streams.{name}"].data.data_points
        return point

    def text(self) -> str:
        return json.dumps(self.metrics()) + "".join(span.to_json() for span in self.spans())


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    yield exported
    exported.tracer_provider.shutdown()
    exported.meter_provider.shutdown()


async def test_start_with_two_lost_responses_is_one_span_with_three_attempts(
    client_for: ClientFactory, exported: Exported
) -> None:
    async with SimulatedSpace(conferences=1, duplicate_names="http-error") as space:
        space.faults.add("reset", on="start", executed=True, times=2)
        client = client_for(space)
        with instrument(client, **exported.providers):
            await client.conferences.start_stream(space.conference_sids[0], url=URL, name="named", **SECRETS)
            metrics = exported.metrics()
    [span] = exported.spans()
    assert (span.name, span.kind, span.status.status_code) == (
        "signalwire.streams.conference_start",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert dict(span.attributes or {}) == {
        "signalwire.operation": "conference_start",
        "signalwire.target": space.conference_sids[0],
        "signalwire.stream.name": "named",
        "signalwire.outcome": "already_started",
        "signalwire.attempts": 3,
    }
    attempts: list[Any] = [event.attributes for event in span.events]
    assert [(each["number"], each["result"], each["decision"], each["sent"]) for each in attempts] == [
        (1, "no_response", "resend", "maybe"),
        (2, "no_response", "resend", "maybe"),
        (3, "duplicate_name", "already_started", "yes"),
    ]
    assert "status" not in attempts[0]
    assert attempts[0]["delay"] >= 0
    assert metrics["operation.duration"] == [({"operation": "conference_start", "outcome": "already_started"}, 1)]
    assert {(each["result"], number) for each, number in metrics["attempts"]} == {
        ("no_response", 2),
        ("duplicate_name", 1),
    }
    assert metrics["rate_limit.wait"] == [({}, 3)]
    for secret in ("TOKEN-SECRET", "PARAMETER-SECRET", "CALLBACK-SECRET", space.token):
        assert secret not in exported.text()


@pytest.mark.parametrize("name", ["operation.duration", "rate_limit.wait"])
async def test_durations_are_seconds_in_buckets_up_to_a_minute(
    space: SimulatedSpace, client: StreamsClient, exported: Exported, name: str
) -> None:
    began = time.perf_counter()
    with instrument(client, **exported.providers):
        await client.conferences.get(space.conference_sids[0])
        point = exported.histogram(name)
    assert point.explicit_bounds == (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
    assert 0 <= point.sum <= time.perf_counter() - began


async def test_call_within_a_call_is_below_it_and_leaves_it_its_attempts(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    sid = space.conference_sids[0]
    other = client_for(space)

    async def ask(request: Any, send: Any) -> Any:
        await other.calls.get(space.call_sids[0])
        return await send(request)

    client = client_for(space, middlewares=[ask])
    with instrument(client, other, **exported.providers):
        await client.conferences.get(sid)
        await other.conferences.get(sid)
    inner, outer, after = exported.spans()
    assert inner.parent == outer.context
    assert outer.parent is None
    assert after.parent is None
    assert [len(span.events) for span in (inner, outer, after)] == [1, 1, 1]


async def test_failed_call_says_why(space: SimulatedSpace, client: StreamsClient, exported: Exported) -> None:
    space.faults.add("reset", on="start", executed=True)
    with instrument(client, **exported.providers), pytest.raises(StreamOutcomeUnknownError):
        await client.conferences.start_stream(space.conference_sids[0], url=URL)
    [span] = exported.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "no response"
    attributes = dict(span.attributes or {})
    assert (attributes["signalwire.outcome"], attributes["error.type"]) == ("unknown", "no_response")


async def test_bulk_run_counts_its_items_and_is_linked_to_their_spans(
    exported: Exported, client_for: ClientFactory
) -> None:
    async with SimulatedSpace(conferences=1_000) as space:
        space.faults.add("status", on="start", status=404, body="api", code=20404, every_nth=10)
        client = client_for(space)
        requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
        with instrument(client, **exported.providers):
            report = await client.start_streams(requests).report()
            await client.conferences.get(space.conference_sids[0])
            metrics = exported.metrics()
    counts = {status.value: number for status, number in report.counts.items() if number}
    assert counts == {"started": 900, "rejected": 100}
    assert {each["status"]: number for each, number in metrics["bulk.items"]} == counts
    [run] = exported.spans("bulk_start")
    assert dict(run.attributes or {})["signalwire.bulk.started"] == 900
    items = exported.spans("conference_start")
    assert len(items) == 1_000
    assert all(item.parent is None and [link.context for link in item.links] == [run.context] for item in items)
    [single] = exported.spans("read")
    assert (single.links, single.parent) == ((), None)


async def test_bulk_run_that_never_begins_has_no_span(
    space: SimulatedSpace, client: StreamsClient, exported: Exported
) -> None:
    with instrument(client, **exported.providers):
        run = client.start_streams([], journal="missing/run.db")
        with pytest.raises(InvalidRequestError):
            await run.report()
    assert exported.spans() == []


async def test_cancelled_call_and_failing_middleware_are_told_apart(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    async def fail(*_: object) -> Any:
        raise ValueError("SECRET in an error of the user's")

    space.faults.add("hang")
    slow, broken = client_for(space), client_for(space, middlewares=[fail])
    with instrument(slow, broken, **exported.providers):
        call = asyncio.create_task(slow.conferences.get("room"))
        await until(lambda: len(space.requests) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(ValueError, match="SECRET"):
            await broken.conferences.get("room")
        metrics = exported.metrics()
    assert {each["outcome"] for each, _ in metrics["operation.duration"]} == {"cancelled", "failed"}
    assert [span.status.description for span in exported.spans()] == ["CancelledError", "ValueError"]
    assert "SECRET" not in exported.text()


async def test_limits_and_breaker_are_observed(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    client = client_for(
        space,
        rate_limit=RateLimit(requests=100, window=1.0),
        circuit_breaker=CircuitBreakerPolicy(min_requests=1, failure_rate=0.1, open_duration=60.0),
    )
    address = {"server.address": "127.0.0.1"}
    with instrument(client, client.rate_limiter, **exported.providers):
        metrics = exported.metrics()
        assert metrics["rate_limit.limit"] == [(address, 90.0)]
        assert metrics["rate_limit.rate"][0][1] <= 90.0
        assert {each["state"]: value for each, value in metrics["circuit_breaker.state"]} == {
            "closed": 1,
            "half_open": 0,
            "open": 0,
        }
        space.faults.add("status", status=500, body="empty")
        with pytest.raises(CircuitOpenError):
            await client.conferences.get("room")
        states = {each["state"]: value for each, value in exported.metrics()["circuit_breaker.state"]}
        assert states == {"closed": 0, "half_open": 0, "open": 1}


async def test_breaker_is_half_open_when_its_time_is_over(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    client = client_for(
        space, circuit_breaker=CircuitBreakerPolicy(min_requests=1, failure_rate=0.1, open_duration=60.0)
    )
    space.faults.add("status", status=500, body="empty")
    with instrument(client, **exported.providers):
        with pytest.raises(CircuitOpenError):
            await client.conferences.get("room")
        await client._clock.sleep(61)
        states = {each["state"]: value for each, value in exported.metrics()["circuit_breaker.state"]}
        assert states == {"closed": 0, "half_open": 1, "open": 0}


START = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": "stream-sid",
    "start": {
        "streamSid": "stream-sid",
        "callSid": "call-sid",
        "tracks": ["inbound"],
        "customParameters": {"name": "PARAMETER-SECRET"},
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
    },
}


def media(chunk: int, track: str = "inbound") -> dict[str, object]:
    frame = {"track": track, "chunk": str(chunk), "timestamp": str(20 * chunk), "payload": "/w=="}
    return {"event": "media", "sequenceNumber": str(chunk + 1), "media": frame, "streamSid": "stream-sid"}


class Handler:
    """Counts events, and goes on until the stream ends."""

    def __init__(self, may_listen: asyncio.Event | None = None) -> None:
        self.events = 0
        self.may_listen = may_listen or asyncio.Event()
        self.may_listen.set() if may_listen is None else None

    async def __call__(self, session: StreamSession) -> None:
        await self.may_listen.wait()
        async for _ in session:
            self.events += 1


async def test_session_is_a_span_with_its_frames_loss_and_reason(exported: Exported) -> None:
    handler = Handler()
    receiver = MediaReceiver(handler, bearer_tokens="t")
    with instrument(receiver, **exported.providers):
        async with receiver.serve() as url, aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(url, headers={"Authorization": "Bearer WRONG-SECRET"})
            async with http.ws_connect(url, headers={"Authorization": "Bearer t"}) as socket:
                for message in (START, media(1), media(2), media(2), media(5), media(1, "made up"), media(1, "also")):
                    await socket.send_json(message)
                await until(lambda: handler.events == 6)
                running = exported.metrics()
                await socket.send_json({"event": "stop", "streamSid": "stream-sid", "stop": {}})
                await until(lambda: not receiver.sessions)
            ended = exported.metrics()
    for metrics in (running, ended):
        assert {each["track"]: number for each, number in metrics["frames"]} == {"inbound": 4, "other": 2}
        assert ({"track": "inbound"}, 2) in metrics["frames.lost"]
        assert ({"track": "inbound"}, 1) in metrics["frames.duplicated"]
        assert metrics["upgrades.refused"] == [({}, 1)]
    assert [metrics["sessions.active"] for metrics in (running, ended)] == [[({}, 1)], [({}, 0)]]
    assert "sessions.ended" not in running
    assert ended["sessions.ended"] == [({"reason": "stopped"}, 1)]
    assert running["audio.delay"][0][1] >= 0
    [span] = exported.spans()
    assert (span.name, span.kind) == ("signalwire.streams.session", SpanKind.CONSUMER)
    attributes = dict(span.attributes or {})
    assert attributes["signalwire.stream.sid"] == "stream-sid"
    assert attributes["signalwire.call.sid"] == "call-sid"
    assert attributes["signalwire.end_reason"] == "stopped"
    assert attributes["signalwire.inbound.frames"] == 4
    assert attributes["signalwire.inbound.missing"] == 2
    assert span.status.status_code is StatusCode.UNSET
    assert "SECRET" not in exported.text()


async def test_waiting_events_are_the_depth_and_a_lost_session_is_an_error(exported: Exported) -> None:
    may_listen = asyncio.Event()
    receiver = MediaReceiver(Handler(may_listen), bearer_tokens="t")
    with instrument(receiver, **exported.providers):
        async with receiver.serve() as url, aiohttp.ClientSession() as http:
            socket = await http.ws_connect(url, headers={"Authorization": "Bearer t"})
            for message in (START, media(1), media(2), {"event": "dtmf", "dtmf": {"digit": "1"}}):
                await socket.send_json(message)
            await until(lambda: exported.metrics().get("queue.depth") == [({}, 3)])
            socket._response.connection.transport.abort()  # type: ignore[union-attr]
            may_listen.set()
            await until(lambda: not receiver.sessions)
    [span] = exported.spans()
    assert dict(span.attributes or {})["signalwire.end_reason"] == "connection_lost"
    assert span.status.status_code is StatusCode.ERROR


async def test_session_with_two_sockets_is_one_until_both_are_closed(exported: Exported) -> None:
    """As while a stream that was started again takes over from one that is still there."""
    receiver = MediaReceiver(Handler(), bearer_tokens="t")
    with instrument(receiver, **exported.providers):
        async with receiver.serve() as url, aiohttp.ClientSession() as http:
            socket = await http.ws_connect(url, headers={"Authorization": "Bearer t"})
            for message in (START, media(1), media(2)):
                await socket.send_json(message)
            await until(lambda: exported.metrics().get("frames") == [({"track": "inbound"}, 2)])
            [session], [metrics] = receiver.sessions, telemetry._metrics_of(exported.meter_provider).receivers
            with metrics.observe(session):
                await socket.close()
                await until(lambda: len(exported.spans()) == 1)
                assert exported.metrics()["sessions.active"] == [({}, 1)]
            assert exported.metrics()["sessions.active"] == [({}, 0)]
    assert exported.metrics()["frames"] == [({"track": "inbound"}, 2)]


async def test_tracks_and_targets_that_come_while_metrics_are_collected_do_no_harm(
    client_for: ClientFactory, exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exporters collect them in threads of their own."""
    receiver, shown, status_of = MediaReceiver(Handler(), bearer_tokens="t"), telemetry._shown, KeptTargets._status_of
    tracks = list[str]()

    def show(track: str) -> str:
        """Show a track after another one has begun."""
        [session] = receiver.sessions
        tracks.append(f"track {len(tracks)}")
        session.statistics.of(tracks[-1])
        return shown(track)

    def status(targets: KeptTargets, kept: Any) -> Any:
        """Return a status after another target has appeared."""
        targets._kept.setdefault("another", kept)
        return status_of(targets, kept)

    async with SimulatedSpace(conferences=2, participants=0) as space:
        client = client_for(space)
        keeping = client.keep_streaming({"url": URL}, name="kept", journal=tmp_path / "kept.db")
        async with receiver.serve() as url, aiohttp.ClientSession() as http, keeping as keeper:
            with instrument(receiver, keeper, **exported.providers):
                async with http.ws_connect(url, headers={"Authorization": "Bearer t"}) as socket:
                    for message in (START, media(1), media(1, "outbound")):
                        await socket.send_json(message)
                    await until(lambda: len(exported.metrics().get("frames", ())) == len(keeper.snapshot) == 2)
                    with monkeypatch.context() as patch:
                        patch.setattr(telemetry, "_shown", show)
                        patch.setattr(KeptTargets, "_status_of", status)
                        metrics = exported.metrics()
                    del keeper._targets._kept["another"]
            assert len(tracks) >= 2
            assert sum(number for _, number in metrics["frames"]) == 2
            assert sum(number for _, number in metrics["keeper.targets"]) == 2


async def test_spans_of_a_handler_are_below_its_session(exported: Exported) -> None:
    async def handler(session: StreamSession) -> None:
        with exported.tracer_provider.get_tracer("user").start_as_current_span("signalwire.streams.own"):
            async for _ in session:
                pass

    receiver = MediaReceiver(handler, bearer_tokens="t")
    with instrument(receiver, **exported.providers):
        async with receiver.serve() as url, aiohttp.ClientSession() as http:
            async with http.ws_connect(url, headers={"Authorization": "Bearer t"}) as socket:
                await socket.send_json(START)
                await until(lambda: receiver.sessions)
            await until(lambda: not receiver.sessions)
    [own], [session] = exported.spans("own"), exported.spans("session")
    assert own.parent is not None
    assert own.parent.span_id == session.context.span_id


async def test_callbacks_are_counted_by_event_and_outcome(client_for: ClientFactory, exported: Exported) -> None:
    handled: list[CallbackEvent] = []

    async def handler(event: CallbackEvent) -> None:
        handled.append(event)

    async with SimulatedSpace(conferences=1, callbacks=True) as space:
        receiver = CallbackReceiver(handler, keys=[space.signing_key], allowed_hosts=["*"])
        application = web.Application()
        application.router.add_post("/callbacks", receiver.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks"
        with instrument(receiver, **exported.providers):
            async with aiohttp.ClientSession() as http, http.post(url, data={"a": "UNSIGNED-SECRET"}) as response:
                assert response.status == 403
            await client_for(space).conferences.start_stream(
                space.conference_sids[0], url=URL, status_callback=f"{url}?key=CALLBACK-SECRET"
            )
            await until(lambda: handled)
            await until(lambda: receiver.statistics.handled)
            metrics = exported.metrics()
        async with aiohttp.ClientSession() as http, http.post(url) as response:
            assert response.status == 403
        assert exported.metrics()["callbacks"] == metrics["callbacks"], "it was closed"
        await receiver.aclose()
        await runner.cleanup()
    assert sorted(metrics["callbacks"], key=str) == sorted(
        [({"outcome": "rejected"}, 1), ({"event": "StreamStarted", "outcome": "handled"}, 1)], key=str
    )
    assert "SECRET" not in exported.text()


async def test_targets_of_a_keeper_are_counted_by_state(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported, idle_clock: Clock, tmp_path: Path
) -> None:
    def states() -> dict[str, int]:
        return {each["state"]: number for each, number in exported.metrics()["keeper.targets"]}

    client = client_for(space, clock=idle_clock)
    async with client.keep_streaming({"url": URL}, name="kept", journal=tmp_path / "kept.db") as keeper:
        with instrument(client, keeper, **exported.providers):
            await until(lambda: len(space.streams.active()) == 3, timeout=60)
            await until(lambda: states()["streaming"] == 3, timeout=60)
            assert sum(states().values()) == 3
            space.faults.add("status", on="list", status=503, body="empty")
            lists = len(exported.spans("read"))
            await until(lambda: len(exported.spans("read")) > lists, timeout=60)
    assert not exported.metrics().get("keeper.targets")


async def test_nothing_is_recorded_after_it_was_closed(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    attempts: list[object] = []
    client = client_for(space, on_attempt=attempts.append)
    receiver, callbacks = MediaReceiver(), CallbackReceiver(print, keys=["k"], allowed_hosts=["*"])  # type: ignore[arg-type]
    telemetry = instrument(client, receiver, callbacks, **exported.providers)
    await client.conferences.get(space.conference_sids[0])
    telemetry.close()
    telemetry.close()
    await client.conferences.get(space.conference_sids[0])
    assert len(exported.spans()) == 1
    assert len(attempts) == 2, "the user's own hook is called all the time"
    assert [each for each, _ in exported.metrics()["attempts"]] == [
        {"operation": "read", "result": "done", "status": 200}
    ]
    assert exported.metrics()["attempts"][0][1] == 1
    with instrument(client, receiver, callbacks, **exported.providers):
        await client.conferences.get(space.conference_sids[0])
    assert len(exported.spans()) == 2
    await receiver.aclose()


async def test_what_cannot_be_instrumented_is_said(client: StreamsClient, exported: Exported) -> None:
    with pytest.raises(InvalidRequestError, match=r"there is nothing to instrument: write instrument\(client\)"):
        instrument()
    with pytest.raises(InvalidRequestError, match="a dict can't be instrumented: pass a StreamsClient"):
        instrument(client, {})  # type: ignore[arg-type]
    already = "is instrumented already: close that instrumentation first"
    with instrument(client, **exported.providers), pytest.raises(InvalidRequestError, match=already):
        instrument(client, **exported.providers)
    with instrument(client) as instrumentation:
        assert [each async for each in client.conferences.list()]
        instrumentation.close()
        instrument(client).close()


async def test_part_is_instrumented_once(client: StreamsClient, exported: Exported) -> None:
    with pytest.raises(InvalidRequestError, match="is passed twice: pass it once"):
        instrument(client, client, **exported.providers)
    with instrument(client, **exported.providers):
        assert [each async for each in client.conferences.list()]
    assert len(exported.spans()) == 1


async def test_instrumentations_share_the_metrics_of_a_provider(
    space: SimulatedSpace, client: StreamsClient, client_for: ClientFactory, exported: Exported
) -> None:
    """OpenTelemetry's SDK ignores the callbacks of a second instrument of the same name."""
    handler = Handler()
    receiver = MediaReceiver(handler, bearer_tokens="t")
    other = client_for(space, rate_limiter=client.rate_limiter)
    first, second = instrument(client, **exported.providers), instrument(receiver, other, **exported.providers)
    async with receiver.serve() as url, aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(url)
        async with http.ws_connect(url, headers={"Authorization": "Bearer t"}) as socket:
            for message in (START, media(1), media(2)):
                await socket.send_json(message)
            await until(lambda: handler.events == 2)
            first.close()
            assert exported.metrics()["sessions.active"] == [({}, 1)]
            second.close()
            assert not {"sessions.active", "upgrades.refused", "rate_limit.limit"} & set(exported.metrics())
            with instrument(receiver, client, **exported.providers):
                again = exported.metrics()
            await socket.send_json({"event": "stop", "streamSid": "stream-sid", "stop": {}})
            await until(lambda: not receiver.sessions)
        with instrument(receiver, client, other, **exported.providers):
            last = exported.metrics()
    assert ({"track": "inbound"}, 2) in again["frames"]
    assert ({"track": "inbound"}, 2) in last["frames"]
    assert last["upgrades.refused"] == again["upgrades.refused"] == [({}, 1)]
    assert len(last["rate_limit.limit"]) == 1, "a limiter that clients share is observed once"
    assert len(last["circuit_breaker.state"]) == 3


@dataclass(slots=True)
class UserLimiter:
    """Neither hashable nor weakly referenced."""

    rate: float = 5.0

    async def wait_until_allowed(self, priority: Any = None) -> None: ...


async def test_any_rate_limiter_can_be_instrumented(exported: Exported) -> None:
    limiter: Any = UserLimiter()
    with instrument(limiter, **exported.providers):
        assert exported.metrics()["rate_limit.rate"] == [({}, 5.0)]


class Failing(SpanProcessor):
    """The SDK catches what an exporter raises, but not what a processor does."""

    def __init__(self, at: str) -> None:
        self._at = at

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self._fail("start")

    def on_end(self, span: ReadableSpan) -> None:
        self._fail("end")

    def _fail(self, at: str) -> None:
        if at == self._at:
            raise OSError("the disk is full")


@pytest.mark.parametrize("at", ["start", "end"])
async def test_failing_provider_harms_no_call_run_and_stream(
    space: SimulatedSpace, client: StreamsClient, exported: Exported, caplog: pytest.LogCaptureFixture, at: str
) -> None:
    exported.tracer_provider.add_span_processor(Failing(at))
    handler = Handler()
    receiver = MediaReceiver(handler, bearer_tokens="t")
    requests = [StartConferenceStream(conference_sid=sid, url=URL) for sid in space.conference_sids]
    with instrument(client, receiver, **exported.providers):
        stream = await client.conferences.start_stream(space.conference_sids[0], url=URL)
        report = await client.start_streams(requests[1:]).report()
        async with receiver.serve() as url, aiohttp.ClientSession() as http:
            async with http.ws_connect(url, headers={"Authorization": "Bearer t"}) as socket:
                await socket.send_json(START)
                await socket.send_json(media(1))
                await until(lambda: handler.events == 1)
            await until(lambda: not receiver.sessions)
    assert stream.name
    assert report.counts[BulkStatus.STARTED] == len(requests) - 1
    assert exported.metrics()["bulk.items"] == [({"status": "started"}, len(requests) - 1)]
    assert "a tracer or meter provider raised an exception, which is ignored" in caplog.text


def test_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(ModuleNotFoundError, match=r"^telemetry needs the extra otel: pip install .*\[otel\]'$"):
        runpy.run_path(telemetry.__file__)


class OwnRateLimiter:
    """A user's own, which says nothing about its limit."""

    async def acquire(self, *_: object) -> float:
        return 0.0

    wait_until_allowed = acquire

    def on_throttled(self, *_: object) -> None: ...

    def on_success(self) -> None: ...


async def test_rate_limiter_that_says_no_limit_is_not_observed(
    space: SimulatedSpace, client_for: ClientFactory, exported: Exported
) -> None:
    client = client_for(space, rate_limiter=OwnRateLimiter())
    with instrument(client, **exported.providers):
        await client.conferences.get(space.conference_sids[0])
        assert {"rate_limit.limit", "rate_limit.rate"}.isdisjoint(exported.metrics())


def test_client_does_not_import_it() -> None:
    code = "import sys, signalwire_streams as s; s.StreamsClient; print('opentelemetry' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert shown.stdout == "False\n"
