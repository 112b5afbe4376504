"""Traces and metrics by OpenTelemetry: ``instrument(client, receiver)``. It needs the extra ``otel``."""
# ruff: noqa: SLF001  (it observes other parts of this package, which know nothing of it)

import logging
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial, wraps
from threading import RLock
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from signalwire_streams._client import StreamsClient
from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.bulk._results import BulkOutcome, BulkReport
from signalwire_streams.callbacks._events import CallbackEvent
from signalwire_streams.callbacks._receiver import CallbackReceiver
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.keep_streaming._events import KeepStatus
from signalwire_streams.keep_streaming._keeper import Keeper
from signalwire_streams.middleware._rate_limit import RateLimiter
from signalwire_streams.models import Attempt, Priority, RetryDecision
from signalwire_streams.models._validation import a_kind_of
from signalwire_streams.receiver._media_receiver import MediaReceiver
from signalwire_streams.receiver._session import EndReason, StreamSession

try:
    from opentelemetry.context import Context as TraceContext, attach, detach
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import (
        INVALID_SPAN,
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
"""A part that can be instrumented."""

_Part = TypeVar("_Part")
_Arguments = ParamSpec("_Arguments")
_Observe: TypeAlias = Callable[..., Iterator[Observation]]
_Frames: TypeAlias = Counter[tuple[str, str]]
"""Numbers of frames, by count and track."""

_LOG = logging.getLogger("signalwire_streams.telemetry")
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
_COUNTS = ("frames", "missing", "dropped", "duplicates")
_STATES = ("closed", "half_open", "open")
_IGNORED = "a tracer or meter provider raised an exception, which is ignored"
_CALL: ContextVar[Span | None] = ContextVar("signalwire_streams.call", default=None)
_RUN: ContextVar[Span | None] = ContextVar("signalwire_streams.run", default=None)
_INSTRUMENTED: dict[int, object] = {}  # by their ids: rate limiters may be unhashable


def _harmless(record: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Keep what a provider raises, such as in a span processor, from the calls and streams that are recorded."""

    @wraps(record)
    def call(*args: _Arguments.args, **options: _Arguments.kwargs) -> None:
        try:
            record(*args, **options)
        except Exception:  # noqa: BLE001  (of any kind: the provider is not ours)
            _LOG.exception(_IGNORED)

    return call


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
      ``frames.dropped`` and ``frames.duplicated`` {track}, ``audio.delay`` (of the most delayed stream), and
      ``queue.depth`` (of all streams together);
    - ``callbacks`` {event, outcome}, ``keeper.targets`` {state}.

    Neither spans nor metrics contain tokens, parameters, URLs, callback queries or audio. Frames are counted when the
    metrics are collected, so a frame costs no more than without telemetry.

    Several instrumentations with the same meter provider add to the same metrics.

    Args:
        parts: what to instrument; a client includes its rate limiter and its bulk runs.
        tracer_provider: by default the global one.
        meter_provider: by default the global one.

    Raises:
        InvalidRequestError: there are no parts, or one can't be instrumented, is passed twice, or is instrumented
            already.

    Source: https://opentelemetry.io/docs/specs/otel/
    """
    return Instrumentation(parts, tracer_provider or get_tracer_provider(), meter_provider)


class Instrumentation:
    """What `instrument` returns: use it with ``with``, or `close` it."""

    def __init__(
        self, parts: Iterable[object], tracer_provider: TracerProvider, meter_provider: MeterProvider | None
    ) -> None:
        """Created by `instrument`."""
        self._undo: list[Callable[[], object]] = []
        additions: dict[int, tuple[object, Callable[[Any], None]]] = {}
        for part in parts:
            if id(part) in additions:
                raise InvalidRequestError(f"{part!r} is passed twice: pass it once")
            additions[id(part)] = part, self._addition(part)
        if not additions:
            raise InvalidRequestError(
                "there is nothing to instrument: write instrument(client) or instrument(receiver)"
            )
        self._tracer = tracer_provider.get_tracer(_NAME)
        self._metrics = _metrics_of(meter_provider)
        for number, (part, add) in additions.items():
            _INSTRUMENTED[number] = part
            self._undo.append(partial(_INSTRUMENTED.pop, number))
            add(part)

    def close(self) -> None:
        """Stop recording. Closing again has no effect."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _addition(self, part: object) -> Callable[[Any], None]:
        if id(part) in _INSTRUMENTED:
            raise InvalidRequestError(f"{part!r} is instrumented already: close that instrumentation first")
        if isinstance(part, StreamsClient):
            return self._add_client
        if isinstance(part, MediaReceiver):
            return self._add_receiver
        if isinstance(part, CallbackReceiver):
            return self._add_callback_receiver
        if isinstance(part, Keeper):
            return self._add_keeper
        if callable(getattr(part, "wait_until_allowed", None)):
            return partial(self._add_rate_limiter, attributes={})
        raise InvalidRequestError(
            f"{a_kind_of(part)} can't be instrumented: pass a StreamsClient, a MediaReceiver, a "
            "CallbackReceiver, a Keeper or a rate limiter"
        )

    def _add(self, observed: list[_Part], part: _Part) -> None:
        observed.append(part)
        self._undo.append(partial(observed.remove, part))

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
        retries.on_attempt, client._observe_run = (
            on_any_attempt,
            partial(_ObservedRun, self._tracer, self._metrics.items),
        )
        self._add(self._metrics.clients, client)
        self._add_rate_limiter(client.rate_limiter, _address(client))

    async def _call(self, request: Request, send: Handler) -> Result:
        # The operation is a str and passed as it is: Python 3.11 looks up the value of an enum's member in Python.
        operation, run = request.operation, _RUN.get() if request.priority is _BULK else None
        span = _start_span(
            self._tracer,
            operation,
            context=None if run is None else TraceContext(),
            kind=_CLIENT,
            attributes=_attributes(request),
            links=None if run is None else [Link(run.get_span_context())],
        )
        # A span of OpenTelemetry's API alone is not, and need not be the current one.
        is_valid = span.get_span_context().is_valid
        tokens = (attach(set_span_in_context(span)), _CALL.set(span)) if is_valid else None
        began, ended = time.perf_counter(), partial(self._end_call, span, operation)
        try:
            result = await send(request)
        except BaseException as error:
            ended(began, "cancelled" if isinstance(error, CancelledError) else "failed", error)
            raise
        else:
            ended(began, result.decision or _FAIL, result)
            return result
        finally:
            if tokens is not None:
                detach(tokens[0])
                _CALL.reset(tokens[1])

    @_harmless
    def _end_call(self, span: Span, operation: str, began: float, outcome: str, end: Result | BaseException) -> None:
        self._metrics.duration.record(time.perf_counter() - began, {"operation": operation, "outcome": outcome})
        if isinstance(end, BaseException):
            span.set_status(StatusCode.ERROR, type(end).__name__)
        elif span.is_recording():
            _describe(span, end, outcome)
        span.end()

    @_harmless
    def _on_attempt(self, attempt: Attempt) -> None:
        status = {} if attempt.status is None else {"status": attempt.status}
        self._metrics.attempts.add(1, {"operation": attempt.operation, "result": attempt.result, **status})
        self._metrics.wait.record(attempt.queue_time)
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

    # Rate limiters

    def _add_rate_limiter(self, limiter: RateLimiter, attributes: Mapping[str, str]) -> None:
        self._add(self._metrics.rate_limiters, (limiter, attributes))

    # Receivers

    def _add_receiver(self, receiver: MediaReceiver) -> None:
        metrics = _ReceiverMetrics(receiver, self._tracer, self._metrics)
        before, receiver._observe = receiver._observe, metrics.observe

        def undo() -> None:
            receiver._observe = before
            metrics.close()

        self._undo.append(undo)
        self._add(self._metrics.receivers, metrics)

    def _add_keeper(self, keeper: Keeper) -> None:
        self._add(self._metrics.keepers, keeper)

    # Callback receivers

    def _add_callback_receiver(self, receiver: CallbackReceiver) -> None:
        dispatcher = receiver._dispatcher

        def undo() -> None:
            dispatcher.on_count = None

        self._undo.append(undo)
        dispatcher.on_count = self._on_callback

    @_harmless
    def _on_callback(self, outcome: str, event: CallbackEvent | None) -> None:
        kind = {} if event is None else {"event": type(event).__name__}
        self._metrics.callbacks.add(1, {"outcome": outcome, **kind})


class _Metrics:
    """The instruments of one meter provider, and what they observe.

    OpenTelemetry's SDK ignores the callbacks of a second instrument of the same name, and keeps those of the first for
    good, so all instrumentations share one.
    """

    def __init__(self, meter: Meter) -> None:
        self.clients: list[StreamsClient] = []
        self.rate_limiters: list[tuple[RateLimiter, Mapping[str, str]]] = []
        self.receivers: list[_ReceiverMetrics] = []
        self.keepers: list[Keeper] = []
        self.totals = _Frames()  # of streams that have ended
        self.rejections = 0  # upgrades, by receivers that are no longer observed
        self.lock = RLock()  # of the sums of frames, which exporters read in threads of their own
        self.duration = meter.create_histogram(
            f"{_PREFIX}operation.duration",
            "s",
            "Duration of a call with all of its attempts.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.wait = meter.create_histogram(
            f"{_PREFIX}rate_limit.wait",
            "s",
            "Time that an attempt waits for a connection and for the rate limiter.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.attempts = meter.create_counter(f"{_PREFIX}attempts", "{attempt}", "Attempts of all calls.")
        self.items = meter.create_counter(f"{_PREFIX}bulk.items", "{item}", "Outcomes of bulk runs.")
        self.ended = meter.create_counter(f"{_PREFIX}sessions.ended", "{session}", "Streams that have ended.")
        self.callbacks = meter.create_counter(f"{_PREFIX}callbacks", "{callback}", "Status callbacks.")
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
            (gauge, "audio.delay", "s", "Delay of the most delayed stream.", self._delays),
            (gauge, "queue.depth", "{event}", "Events that wait for a handler.", self._depths),
            (gauge, "keeper.targets", "{target}", "Conferences and calls of a keeper.", self._targets),
        )
        for create, name, unit, description, observe in observed:
            create(f"{_PREFIX}{name}", [partial(_observations, observe)], unit, description)

    def _breakers(self) -> Iterator[Observation]:
        for client in self.clients:
            state = client._breaker.state(client._clock.now())
            for each in _STATES:
                yield Observation(int(each == state), {"state": each, **_address(client)})

    def _limiters(self) -> Iterable[tuple[RateLimiter, Mapping[str, str]]]:
        """Return each rate limiter once: clients may share it."""
        known = sorted(self.rate_limiters, key=lambda each: len(each[1]))  # those of clients last
        return {id(limiter): (limiter, attributes) for limiter, attributes in known}.values()

    def _limits(self) -> Iterator[Observation]:
        for limiter, attributes in self._limiters():
            if (limit := getattr(limiter, "rate_limit", None)) is not None:
                yield Observation(limit.rate, attributes)

    def _rates(self) -> Iterator[Observation]:
        for limiter, attributes in self._limiters():
            if (rate := getattr(limiter, "rate", None)) is not None:
                yield Observation(rate, attributes)

    def _active(self) -> Iterator[Observation]:
        if self.receivers:
            yield Observation(sum(len(metrics.sessions) for metrics in self.receivers))

    def _rejections(self) -> Iterator[Observation]:
        if self.receivers:
            yield Observation(self.rejections + sum(metrics.rejections for metrics in self.receivers))

    def _frames(self, count: str) -> Iterator[Observation]:
        with self.lock:
            totals = Counter(self.totals)
            for metrics in self.receivers:
                for session in metrics.sessions:
                    totals.update(_frames_of(session, (count,)))
                    totals.subtract(metrics.known[session])
        for (each, track), number in totals.items():
            if each == count:
                yield Observation(number, {"track": track})

    def _delays(self) -> Iterator[Observation]:
        tracks = (track for session in self._sessions() for track in tuple(session.statistics.tracks.values()))
        if self.receivers:
            yield Observation(max((track.delay_ms for track in tracks), default=0.0) / 1_000)

    def _depths(self) -> Iterator[Observation]:
        if self.receivers:
            yield Observation(sum(session._queue.depth for session in self._sessions()))

    def _sessions(self) -> Iterator[StreamSession]:
        return (session for metrics in self.receivers for session in tuple(metrics.sessions))

    def _targets(self) -> Iterator[Observation]:
        counts = Counter(target.status for keeper in self.keepers for target in keeper.snapshot)
        for status in KeepStatus if self.keepers else ():
            yield Observation(counts[status], {"state": status})


class _ObservedRun:
    """The span of a bulk run, and the count of its items."""

    def __init__(self, tracer: Any, items: Any, operation: str) -> None:  # noqa: ANN401  (each provider has its own)
        self._tracer, self._items, self._operation = tracer, items, operation
        self._span: Span

    def begin(self) -> Context:
        self._span = _start_span(self._tracer, f"bulk_{self._operation}")
        context = copy_context()
        context.run(_RUN.set, self._span)
        return context

    @_harmless
    def add(self, outcome: BulkOutcome[Any]) -> None:
        self._items.add(1, {"status": outcome.status.value})

    @_harmless
    def end(self, report: BulkReport) -> None:
        self._span.set_attributes({f"signalwire.bulk.{status.value}": n for status, n in report.counts.items()})
        self._span.end()


class _ReceiverMetrics:
    """The streams of one receiver."""

    def __init__(self, receiver: MediaReceiver, tracer: Any, metrics: _Metrics) -> None:  # noqa: ANN401  (the same)
        # How many sockets each session has now, and how many of its frames are in the totals: if its stream is started
        # again, it has one socket after the other, and two for a moment.
        self.sessions = Counter[StreamSession]()
        self.known = WeakKeyDictionary[StreamSession, _Frames]()
        self._receiver, self._tracer, self._metrics = receiver, tracer, metrics
        self._rejections_before = receiver.rejected_upgrades

    @property
    def rejections(self) -> int:
        return self._receiver.rejected_upgrades - self._rejections_before

    def close(self) -> None:
        with self._metrics.lock:
            self._metrics.rejections += self.rejections
            for session in self.sessions:
                self._keep(session)
            self.sessions.clear()

    def _keep(self, session: StreamSession) -> None:
        """Add the frames of a stream to those of all that have ended."""
        frames = _frames_of(session)
        self._metrics.totals.update(frames)
        self._metrics.totals.subtract(self.known[session])
        self.known[session] = frames

    @contextmanager
    def observe(self, session: StreamSession) -> Iterator[None]:
        """Record a stream while the block runs."""
        start = session.start
        sids = {"stream": session.stream_sid, "conference": start.conference_sid, "call": start.call_sid}
        attributes = {f"signalwire.{kind}.sid": sid for kind, sid in sids.items() if sid is not None}
        with self._metrics.lock:
            before = self.known.setdefault(session, _Frames())
            self.sessions[session] += 1
        span = _start_span(self._tracer, "session", kind=SpanKind.CONSUMER, attributes=attributes)
        token = attach(set_span_in_context(span))
        try:
            yield
        finally:
            detach(token)
            self._leave(session)
            self._end(session, span, before)

    def _leave(self, session: StreamSession) -> None:
        with self._metrics.lock:
            if session in self.sessions:
                self._keep(session)
                self.sessions[session] -= 1
                if not self.sessions[session]:
                    del self.sessions[session]

    @_harmless
    def _end(self, session: StreamSession, span: Span, before: _Frames) -> None:
        reason = session.end_reason or session._loss or EndReason.SHUTDOWN
        self._metrics.ended.add(1, {"reason": reason.value})
        span.set_attribute("signalwire.end_reason", reason.value)
        if reason in _FAILED_SESSIONS:
            span.set_status(StatusCode.ERROR, reason.value)
        for (count, track), number in _frames_of(session).items():
            span.set_attribute(f"signalwire.{track}.{count}", number - before[count, track])
        span.end()


def _start_span(tracer: Any, name: str, **options: Any) -> Span:  # noqa: ANN401  (each provider has its own)
    try:
        span: Span = tracer.start_span(_PREFIX + name, **options)
    except Exception:  # noqa: BLE001  (the same)
        _LOG.exception(_IGNORED)
        return INVALID_SPAN
    return span


def _attributes(request: Request) -> dict[str, str]:
    attributes = {"signalwire.operation": request.operation, "signalwire.target": request.target.partition("?")[0]}
    if request.name is not None:
        attributes["signalwire.stream.name"] = request.name
    return attributes


def _describe(span: Span, result: Result, decision: str) -> None:
    span.set_attributes({"signalwire.outcome": decision, "signalwire.attempts": result.attempts})
    if decision in _FAILURES:
        span.set_attribute("error.type", result.attempt_result)
        span.set_status(StatusCode.ERROR, result.attempt_result.description)


def _observations(observe: _Observe, _: CallbackOptions) -> list[Observation]:
    return list(observe())


def _address(client: StreamsClient) -> dict[str, str]:
    return {"server.address": urlsplit(client.origin).hostname or ""}


def _frames_of(session: StreamSession, counts: Iterable[str] = _COUNTS) -> _Frames:
    frames = _Frames()
    for track, statistics in tuple(session.statistics.tracks.items()):
        for count in counts:
            frames[count, _shown(track)] += getattr(statistics, count)
    return frames


def _shown(track: str) -> str:
    return track if track in _TRACKS else "other"


_METRICS = WeakKeyDictionary[object, _Metrics]()


def _metrics_of(provider: MeterProvider | None) -> _Metrics:
    current = get_meter_provider()
    provider = provider or current
    # The global provider may be set after it was first used, so the function that returns it stands for it.
    key: object = get_meter_provider if provider is current else provider
    if key not in _METRICS:
        _METRICS[key] = _Metrics(provider.get_meter(_NAME))
    return _METRICS[key]
