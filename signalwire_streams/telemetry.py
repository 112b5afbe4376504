"""Traces and metrics by OpenTelemetry: ``instrument(client, receiver)``. It needs the extra ``otel``."""
# ruff: noqa: SLF001  (it observes other parts of this package, which know nothing of it)

import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakSet

from signalwire_streams._client import StreamsClient
from signalwire_streams._http.exchange import Handler, Request, Result
from signalwire_streams.bulk._results import BulkOutcome, BulkReport
from signalwire_streams.callbacks._events import CallbackEvent
from signalwire_streams.callbacks._receiver import CallbackReceiver
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._events import (
    KeepStatus,
)
from signalwire_streams.keep_streaming._keeper import Keeper
from signalwire_streams.middleware._rate_limit import RateLimiter
from signalwire_streams.models import Attempt, Priority, RetryDecision
from signalwire_streams.receiver._media_receiver import MediaReceiver
from signalwire_streams.receiver._session import EndReason, StreamSession

try:
    from opentelemetry.context import Context as TraceContext, attach, detach
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import (
        Link,
        Span,
        SpanKind,
        StatusCode,
        TracerProvider,
        get_tracer_provider,
        set_span_in_context,
    )
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "telemetry needs the extra otel: pip install 'signalwire-streams[otel]'", name=_missing.name
    ) from _missing

__all__ = ["Instrumentation", "Part", "instrument"]

Part: TypeAlias = StreamsClient | MediaReceiver | CallbackReceiver | Keeper | RateLimiter
"""What can be instrumented."""

_Observe: TypeAlias = Callable[..., Iterator[Observation]]

_NAME, _PREFIX = "signalwire_streams", "signalwire.streams."
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BULK, _CLIENT, _FAIL = Priority.BULK, SpanKind.CLIENT, RetryDecision.FAIL
_FAILURES = {RetryDecision.FAIL, RetryDecision.UNKNOWN}
_FAILED_SESSIONS = set(EndReason) - {
    EndReason.STOPPED,
    EndReason.CLOSED,
    EndReason.HANDLER_RETURNED,
    EndReason.SHUTDOWN,
}
_TRACKS = {"inbound", "outbound"}  # the sender may make up other names
_STATES = ("closed", "half_open", "open")
_CALL: ContextVar[Span | None] = ContextVar("signalwire_streams.call", default=None)
_RUN: ContextVar[Span | None] = ContextVar("signalwire_streams.run", default=None)
_INSTRUMENTED = WeakSet[Any]()


def instrument(
    *parts: Part, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> "Instrumentation":
    """Trace and measure clients, receivers, callback receivers, keepers and rate limiters until the result is closed.

    ::

        with instrument(client, receiver):
            ...

    Spans:

    - one for each call of a client (start, stop, end, list), with an event ``attempt`` for each attempt. If aiohttp is
      instrumented as well, the spans of its requests are below it.
    - one for each bulk run. The spans of its items are traces of their own, and have a link to it.
    - one for each received stream. Spans of its handler are below it.

    Metrics, all with the prefix ``signalwire.streams.`` and without sids or names; durations are in seconds:

    - ``operation.duration`` {operation, outcome}, ``attempts`` {operation, result, status}, ``rate_limit.wait``,
      ``rate_limit.limit``, ``rate_limit.rate``, ``circuit_breaker.state`` {state}, ``bulk.items`` {status};
    - ``sessions.active``, ``sessions.ended`` {reason}, ``upgrades.refused``, ``frames``, ``frames.lost``,
      ``frames.dropped`` and ``frames.duplicated`` {track}, ``audio.delay`` (of the stream that is most late), and
      ``queue.depth`` (of all streams together);
    - ``callbacks`` {event, outcome}, ``keeper.targets`` {state}.

    Neither contains tokens, parameters, URLs, callback queries or audio. Frames are counted when the metrics are
    collected, so a frame costs no more than without telemetry.

    Args:
        parts: what to instrument; a client includes its rate limiter and its bulk runs.
        tracer_provider: by default the global one.
        meter_provider: by default the global one.

    Raises:
        InvalidRequestError: there are no parts, or one can't be instrumented, or is instrumented already.

    Source: https://opentelemetry.io/docs/specs/otel/
    """
    return Instrumentation(parts, tracer_provider or get_tracer_provider(), meter_provider or get_meter_provider())


class Instrumentation:
    """What `instrument` returns: use it with ``with``, or `close` it."""

    def __init__(self, parts: Iterable[object], tracer_provider: TracerProvider, meter_provider: MeterProvider) -> None:
        """Created by `instrument`."""
        self._undo: list[Callable[[], object]] = []
        self._clients: list[StreamsClient] = []
        self._rate_limiters: list[tuple[RateLimiter, Mapping[str, str]]] = []
        self._receivers: list[_ReceiverMetrics] = []
        self._keepers: list[Keeper] = []
        additions = [(part, self._addition(part)) for part in parts]
        if not additions:
            raise InvalidRequestError(
                "there is nothing to instrument: write instrument(client) or instrument(receiver)"
            )
        self._tracer = tracer_provider.get_tracer(_NAME)
        meter = meter_provider.get_meter(_NAME)
        self._duration = meter.create_histogram(
            f"{_PREFIX}operation.duration",
            "s",
            "Duration of a call with all of its attempts.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._wait = meter.create_histogram(
            f"{_PREFIX}rate_limit.wait",
            "s",
            "Time that an attempt waits for a connection and for the rate limiter.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._attempts = meter.create_counter(f"{_PREFIX}attempts", "{attempt}", "Attempts of all calls.")
        self._items = meter.create_counter(f"{_PREFIX}bulk.items", "{item}", "Outcomes of bulk runs.")
        self._ended = meter.create_counter(f"{_PREFIX}sessions.ended", "{session}", "Streams that have ended.")
        self._callbacks = meter.create_counter(f"{_PREFIX}callbacks", "{callback}", "Status callbacks.")
        counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
        up_down_counter = meter.create_observable_up_down_counter  # a frame that was counted may turn out to be late
        observed: tuple[tuple[Callable[..., object], str, str, str, _Observe], ...] = (
            (gauge, "rate_limit.limit", "{request}/s", "Requests that may be sent.", self._limits),
            (gauge, "rate_limit.rate", "{request}/s", "Requests that may be sent now, after a 429.", self._rates),
            (gauge, "circuit_breaker.state", "1", "1 for the breaker's state, 0 for the others.", self._breakers),
            (up_down_counter, "sessions.active", "{session}", "Streams that are received now.", self._active),
            (counter, "upgrades.refused", "{upgrade}", "Upgrades with a missing or wrong token.", self._rejections),
            (counter, "frames", "{frame}", "Media frames received.", partial(self._frames, "frames")),
            (up_down_counter, "frames.lost", "{frame}", "Frames that never arrived.", partial(self._frames, "missing")),
            (
                counter,
                "frames.dropped",
                "{frame}",
                "Frames that a slow handler lost.",
                partial(self._frames, "dropped"),
            ),
            (
                *(up_down_counter, "frames.duplicated", "{frame}", "Frames that arrived again."),
                partial(self._frames, "duplicates"),
            ),
            (gauge, "audio.delay", "s", "Delay of the stream that is most late.", self._delays),
            (gauge, "queue.depth", "{event}", "Events that wait for a handler.", self._depths),
            (gauge, "keeper.targets", "{target}", "Conferences and calls of a keeper.", self._targets),
        )
        for create, name, unit, description, observe in observed:
            create(f"{_PREFIX}{name}", [partial(_observations, observe)], unit, description)
        for part, add in additions:
            _INSTRUMENTED.add(part)
            self._undo.append(partial(_INSTRUMENTED.discard, part))
            add(part)

    def close(self) -> None:
        """Stop recording. Closing again has no effect."""
        while self._undo:
            self._undo.pop()()
        self._clients, self._rate_limiters, self._receivers, self._keepers = [], [], [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _addition(self, part: object) -> Callable[[Any], None]:
        if part in _INSTRUMENTED:
            raise InvalidRequestError(f"{part!r} is instrumented already: close that instrumentation first")
        if isinstance(part, StreamsClient):
            return self._add_client
        if isinstance(part, MediaReceiver):
            return self._add_receiver
        if isinstance(part, CallbackReceiver):
            return self._add_callback_receiver
        if isinstance(part, Keeper):
            return self._keepers.append
        if callable(getattr(part, "wait_until_allowed", None)):
            return partial(self._add_rate_limiter, attributes={})
        raise InvalidRequestError(
            f"a {type(part).__name__} can't be instrumented: pass a StreamsClient, a MediaReceiver, a "
            "CallbackReceiver, a Keeper or a rate limiter"
        )

    # Clients

    def _add_client(self, client: StreamsClient) -> None:
        retries, on_attempt = client._retries, client._retries.on_attempt
        dispatchers = (client._dispatcher, client._polls)
        handlers = [dispatcher.handler for dispatcher in dispatchers]

        def on_any_attempt(attempt: Attempt) -> None:
            self._on_attempt(attempt)
            if on_attempt is not None:
                on_attempt(attempt)

        def undo() -> None:
            for dispatcher, handler in zip(dispatchers, handlers, strict=True):
                dispatcher.handler = handler
            retries.on_attempt, client._observe_run = on_attempt, None

        self._undo.append(undo)
        for dispatcher, handler in zip(dispatchers, handlers, strict=True):
            dispatcher.handler = partial(self._call, send=handler)
        retries.on_attempt, client._observe_run = on_any_attempt, partial(_ObservedRun, self._tracer, self._items)
        self._clients.append(client)
        self._add_rate_limiter(client.rate_limiter, _address(client))

    async def _call(self, request: Request, send: Handler) -> Result:
        # The operation itself is its word; Python 3.11 looks up the value of an enum's member in Python.
        operation, run = request.operation, _RUN.get() if request.priority is _BULK else None
        span = self._tracer.start_span(
            _PREFIX + operation,
            context=None if run is None else TraceContext(),
            kind=_CLIENT,
            attributes=_attributes(request),
            links=None if run is None else [Link(run.get_span_context())],
        )
        # A span of OpenTelemetry's API alone is not, and need not be the current one.
        is_valid = span.get_span_context().is_valid
        tokens = (attach(set_span_in_context(span)), _CALL.set(span)) if is_valid else None
        began, outcome = time.perf_counter(), "failed"
        try:
            result = await send(request)
            decision = outcome = result.decision or _FAIL
            if span.is_recording():
                _describe(span, result, decision)
        except BaseException as error:
            outcome = "cancelled" if isinstance(error, CancelledError) else "failed"
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        else:
            return result
        finally:
            self._duration.record(time.perf_counter() - began, {"operation": operation, "outcome": outcome})
            if tokens is not None:
                detach(tokens[0])
                _CALL.reset(tokens[1])
            span.end()

    def _on_attempt(self, attempt: Attempt) -> None:
        status = {} if attempt.status is None else {"status": attempt.status}
        self._attempts.add(1, {"operation": attempt.operation, "result": attempt.result, **status})
        self._wait.record(attempt.queue_time)
        span = _CALL.get()
        if span is not None and span.is_recording():
            span.add_event(
                "attempt",
                {
                    "number": attempt.number,
                    "result": attempt.result,
                    "decision": attempt.decision,
                    "sent": attempt.sent,
                    "delay": attempt.next_delay,
                    **status,
                },
            )

    def _breakers(self) -> Iterator[Observation]:
        for client in self._clients:
            state = client._breaker.state(client._clock.now())
            for each in _STATES:
                yield Observation(int(each == state), {"state": each, **_address(client)})

    # Rate limiters

    def _add_rate_limiter(self, limiter: RateLimiter, attributes: Mapping[str, str]) -> None:
        if all(limiter is not known for known, _ in self._rate_limiters):
            self._rate_limiters.append((limiter, attributes))

    def _limits(self) -> Iterator[Observation]:
        for limiter, attributes in self._rate_limiters:
            if (limit := getattr(limiter, "rate_limit", None)) is not None:
                yield Observation(limit.rate, attributes)

    def _rates(self) -> Iterator[Observation]:
        for limiter, attributes in self._rate_limiters:
            if (rate := getattr(limiter, "rate", None)) is not None:
                yield Observation(rate, attributes)

    # Receivers

    def _add_receiver(self, receiver: MediaReceiver) -> None:
        metrics = _ReceiverMetrics(receiver, self._tracer, self._ended)
        before, receiver._observe = receiver._observe, metrics.observe

        def undo() -> None:
            receiver._observe = before

        self._undo.append(undo)
        self._receivers.append(metrics)

    def _active(self) -> Iterator[Observation]:
        yield Observation(sum(len(metrics.sessions) for metrics in self._receivers))

    def _rejections(self) -> Iterator[Observation]:
        yield Observation(sum(metrics.receiver.rejected_upgrades for metrics in self._receivers))

    def _frames(self, count: str) -> Iterator[Observation]:
        totals = Counter[str]()
        for metrics in self._receivers:
            totals += metrics.frames(count)
        for track, number in totals.items():
            yield Observation(number, {"track": track})

    def _delays(self) -> Iterator[Observation]:
        tracks = (track for session in self._sessions() for track in session.statistics.tracks.values())
        yield Observation(max((track.delay_ms for track in tracks), default=0.0) / 1_000)

    def _depths(self) -> Iterator[Observation]:
        yield Observation(sum(session._queue.depth for session in self._sessions()))

    def _sessions(self) -> Iterator[StreamSession]:
        return (session for metrics in self._receivers for session in metrics.sessions)

    # Keepers

    def _targets(self) -> Iterator[Observation]:
        counts = Counter(target.status for keeper in self._keepers for target in keeper.snapshot)
        for status in KeepStatus if self._keepers else ():
            yield Observation(counts[status], {"state": status})

    # Callback receivers

    def _add_callback_receiver(self, receiver: CallbackReceiver) -> None:
        dispatcher = receiver._dispatcher

        def undo() -> None:
            dispatcher.on_count = None

        self._undo.append(undo)
        dispatcher.on_count = self._on_callback

    def _on_callback(self, outcome: str, event: CallbackEvent | None) -> None:
        kind = {} if event is None else {"event": type(event).__name__}
        self._callbacks.add(1, {"outcome": outcome, **kind})


class _ObservedRun:
    """The span of a bulk run, and the count of its items."""

    def __init__(self, tracer: Any, items: Any, operation: str) -> None:  # noqa: ANN401  (each provider has its own)
        self._tracer, self._items, self._operation = tracer, items, operation
        self._span: Span

    def begin(self) -> Context:
        self._span = self._tracer.start_span(f"{_PREFIX}bulk_{self._operation}")
        context = copy_context()
        context.run(_RUN.set, self._span)
        return context

    def add(self, outcome: BulkOutcome[Any]) -> None:
        self._items.add(1, {"status": outcome.status.value})

    def end(self, report: BulkReport) -> None:
        self._span.set_attributes({f"signalwire.bulk.{status.value}": n for status, n in report.counts.items()})
        self._span.end()


class _ReceiverMetrics:
    """The streams of one receiver, and the frames of those that have ended."""

    def __init__(self, receiver: MediaReceiver, tracer: Any, ended: Any) -> None:  # noqa: ANN401  (the same)
        self.receiver = receiver
        self.sessions: set[StreamSession] = set()
        self._tracer, self._ended = tracer, ended
        self._totals = Counter[tuple[str, str]]()

    def frames(self, count: str) -> Counter[str]:
        """Return a count of frames by track."""
        frames = Counter({track: number for (track, each), number in self._totals.items() if each == count})
        for session in self.sessions:
            for track, statistics in session.statistics.tracks.items():
                frames[_shown(track)] += getattr(statistics, count)
        return frames

    @contextmanager
    def observe(self, session: StreamSession) -> Iterator[None]:
        """Record a stream while the block runs."""
        start = session.start
        sids = {"stream": session.stream_sid, "conference": start.conference_sid, "call": start.call_sid}
        attributes = {f"signalwire.{kind}.sid": sid for kind, sid in sids.items() if sid is not None}
        self.sessions.add(session)
        with self._tracer.start_as_current_span(
            f"{_PREFIX}session",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                self.sessions.discard(session)
                self._end(session, span)

    def _end(self, session: StreamSession, span: Span) -> None:
        reason = session.end_reason or EndReason.SHUTDOWN
        self._ended.add(1, {"reason": reason.value})
        span.set_attribute("signalwire.end_reason", reason.value)
        if reason in _FAILED_SESSIONS:
            span.set_status(StatusCode.ERROR, reason.value)
        for track, statistics in session.statistics.tracks.items():
            for count in ("frames", "missing", "dropped", "duplicates"):
                number = getattr(statistics, count)
                self._totals[_shown(track), count] += number
                span.set_attribute(f"signalwire.{_shown(track)}.{count}", number)


def _attributes(request: Request) -> dict[str, str]:
    attributes = {"signalwire.operation": request.operation, "signalwire.target": request.target.partition("?")[0]}
    if request.name is not None:
        attributes["signalwire.stream.name"] = request.name
    return attributes


def _describe(span: Span, result: Result, decision: RetryDecision) -> None:
    span.set_attributes({"signalwire.outcome": decision, "signalwire.attempts": result.attempts})
    if decision in _FAILURES:
        span.set_attribute("error.type", result.attempt_result)
        span.set_status(StatusCode.ERROR, result.attempt_result.description)


def _observations(observe: _Observe, _: CallbackOptions) -> list[Observation]:
    return list(observe())


def _address(client: StreamsClient) -> dict[str, str]:
    return {"server.address": urlsplit(client.origin).hostname or ""}


def _shown(track: str) -> str:
    return track if track in _TRACKS else "other"
