"""`MediaReceiver.open` and `open_many`. Many streams share one bulk run of starts and one of stops."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias, Unpack, get_args

from attrs import evolve, frozen

from signalwire_streams.errors import InvalidRequestError, RunCancelledError, StreamsError
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream, StartOptions
from signalwire_streams.models._requests import WhenLost, each
from signalwire_streams.models._validation import a_kind_of, check_seconds, masks_secrets
from signalwire_streams.receiver._connection import abandon
from signalwire_streams.receiver._pending_stream import Callback, PendingStream, PendingStreams, Restarts, Starts
from signalwire_streams.receiver._session import StreamSession

_LOG = logging.getLogger("signalwire_streams.receiver")
_OWN_TOKEN = "a token is generated for each start: omit authorization_bearer_token"  # noqa: S105  (a sentence)

Start: TypeAlias = StartConferenceStream | StartCallStream


class StartsMany(Protocol):
    """Starts and stops many streams: a `StreamsClient`."""

    @property
    def start_streams(self) -> Callable[..., Any]: ...
    @property
    def stop_streams(self) -> Callable[..., Any]: ...


@frozen(kw_only=True)
class OpenOutcome:
    """Outcome of one start of `MediaReceiver.open_many`.

    Attributes:
        request: the request, as it was passed.
        session: the session; None if the stream did not start.
        error: why it did not: an `OpenError`, or an `InvalidRequestError` if the item can't be started.
    """

    request: Start
    session: StreamSession | None = None
    error: StreamsError | None = None


class BulkStartAndReceive:
    """Many streams: ``async for outcome in run`` yields each as soon as it starts or fails to.

    A stream that has ended is forgotten, so the requests may be endless.
    """

    def __init__(self, client: StartsMany, pending: PendingStreams, socket_timeout: float) -> None:
        self._pending = pending
        self._socket_timeout = socket_timeout
        self._client = client
        self._stops = BatchedStops(client)
        self._open: set[PendingStream] = set()
        self._responses: dict[tuple[str, str], asyncio.Future[Any]] = {}  # of the starts, by target and name
        self._outcomes: asyncio.Queue[OpenOutcome | None] = asyncio.Queue()
        self._arrivals: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._failed_stops: list[Exception] = []
        self._is_read = False  # to the end, so that an error of the requests was raised
        self._run: Any
        self._running: asyncio.Task[None]

    def start(self, requests: Iterable[Start] | AsyncIterable[Start], concurrency: int | None) -> None:
        self._run = self._client.start_streams(self._prepared(requests), concurrency=concurrency)
        self._running = asyncio.create_task(self._collect_responses())

    async def __aiter__(self) -> AsyncIterator[OpenOutcome]:
        while (outcome := await self._outcomes.get()) is not None:
            yield outcome
        self._outcomes.put_nowait(None)  # ends a second iteration
        self._is_read = True
        await self._running

    async def close(self) -> None:
        """Start no more streams, stop those that may be running, and close their sockets.

        Raises:
            ExceptionGroup: some could not be stopped, so they may still be running.
        """
        self._run.shutdown()
        for arrival in self._arrivals:
            arrival.cancel()
        await asyncio.wait({self._running})
        for stream in list(self._open):
            self._spawn(self._closings, self._stop(stream))
        if self._closings:
            await asyncio.wait(self._closings)
        await self._stops.close()
        if self._failed_stops:
            raise ExceptionGroup(f"{len(self._failed_stops)} streams could not be stopped", self._failed_stops)
        if not self._is_read:
            await self._running

    async def _prepared(self, requests: Iterable[Start] | AsyncIterable[Start]) -> AsyncIterator[Start]:
        """Yield each request with its own token, or report why it can't be started."""
        async for request in each(requests):
            try:
                stream = self._add(request)
            except InvalidRequestError as error:
                self._outcomes.put_nowait(OpenOutcome(request=request, error=error))
                continue
            response: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            stream.begin(response, partial(self._stops.stop, request, stream.name))
            self._open.add(stream)
            self._responses[stream.target, stream.name] = response
            self._spawn(self._arrivals, self._wait_session(request, stream))
            yield evolve(request, name=stream.name, unnamed=False, authorization_bearer_token=stream.token)

    def _add(self, request: Start) -> PendingStream:
        if not isinstance(request, StartConferenceStream | StartCallStream):
            raise InvalidRequestError(f"an item is {a_kind_of(request)}: pass StartConferenceStream or StartCallStream")
        if request.authorization_bearer_token is not None:
            raise InvalidRequestError(_OWN_TOKEN)
        return self._pending.add(request.target, request.name)

    async def _collect_responses(self) -> None:
        try:
            async for outcome in self._run:
                response = self._responses.pop((outcome.item.target, outcome.item.name))
                if outcome.stream is not None:
                    response.set_result(outcome.stream)
                else:
                    response.set_exception(outcome.error)
                    response.exception()  # retrieved, so that asyncio does not log it if nobody waits
        finally:
            for response in self._responses.values():
                response.cancel()  # the run was aborted
            if self._arrivals:
                await asyncio.wait(self._arrivals)
            self._outcomes.put_nowait(None)

    async def _wait_session(self, request: Start, stream: PendingStream) -> None:
        session = error = None
        try:
            session = await stream.wait_session(self._socket_timeout)
        except StreamsError as failure:
            error = failure
        self._outcomes.put_nowait(OpenOutcome(request=request, session=session, error=error))
        self._spawn(self._closings, self._stop(stream, session))

    async def _stop(self, stream: PendingStream, session: StreamSession | None = None) -> None:
        """Stop a stream, at the end of its session if there is one, unless it is stopped or being stopped."""
        if session is not None:
            await session.wait_closed()
        if stream not in self._open:
            return
        self._open.remove(stream)
        try:
            await self._pending.stop(stream)
        except StreamsError as error:
            self._failed_stops.append(error)

    def _spawn(self, tasks: "set[asyncio.Task[None]]", work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


class BatchedStops:
    """Stops streams one at a time for their owners, all over one bulk run."""

    def __init__(self, client: StartsMany) -> None:
        self._client = client
        self._queue: asyncio.Queue[ConferenceStream | CallStream | None] = asyncio.Queue()
        self._waiting: dict[int, asyncio.Future[None]] = {}  # by the id of the stream object
        self._running: asyncio.Task[None] | None = None

    async def stop(self, request: Start, name: str, stream: ConferenceStream | CallStream | str) -> None:
        """Stop the stream of a request, by the object that the start returned, by name or by sid."""
        if isinstance(stream, str):
            sid, name_or_none = (None, name) if stream == name else (stream, None)
            if isinstance(request, StartConferenceStream):
                stream = ConferenceStream(conference_sid=request.target, sid=sid, name=name_or_none)
            else:
                stream = CallStream(call_sid=request.target, sid=sid, name=name_or_none)
        stopped = self._waiting[id(stream)] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(stream)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await stopped

    async def close(self) -> None:
        """Wait until all stops have ended."""
        if self._running is not None:
            self._queue.put_nowait(None)
            await asyncio.wait({self._running})

    async def _run(self) -> None:
        reason: StreamsError = RunCancelledError("not stopped, since the stop run ended early")
        try:
            async for outcome in self._client.stop_streams(self._queued()):
                stopped = self._waiting.pop(id(outcome.item))
                if outcome.ok:
                    stopped.set_result(None)
                else:
                    stopped.set_exception(outcome.error)
        except StreamsError as error:
            reason = error
        finally:
            for stopped in self._waiting.values():
                stopped.set_exception(reason)
            self._waiting.clear()
            self._queue = asyncio.Queue()  # the streams in the old one have just failed

    async def _queued(self) -> AsyncIterator[ConferenceStream | CallStream]:
        while (stream := await self._queue.get()) is not None:
            yield stream


class StarterMixin:
    """The part of `MediaReceiver` that starts the streams that it receives."""

    def __init__(self) -> None:
        self._pending_streams = PendingStreams()

    @masks_secrets
    @asynccontextmanager
    async def open(
        self,
        streams: Starts[Any],
        sid: str,
        *,
        url: str,
        name: str | None = None,
        socket_timeout: float = 15.0,
        when_lost: WhenLost = "end",
        **fields: Unpack[StartOptions],
    ) -> AsyncIterator[StreamSession]:
        """Start a stream and receive it: ``async with receiver.open(client.conferences, sid, url=...) as session``.

        The stream's socket gets its own bearer token. The session is available as soon as the socket has sent its
        start event, even before the response to the start request. The stream is stopped at the end of the block.

        With ``when_lost="restart"``, a stream whose socket breaks, or is closed without a stop event, is stopped and
        started again under the same name while the conference or call is in progress. Then the session goes on: its
        loop yields a `GapEvent`, `StreamStatistics.restarts` counts it, and in recordings and PCM the gap is silence,
        so that all audio is in its place. (In a `WavRecorder`, a gap is at most ``max_gap`` long.) A restart that fails
        is repeated, after one second at first and ten at most.

        There are never two streams on a conference, since it rejects a second one of the same name. A call may not
        reject it. So if the response to a restart on a call is lost, and no socket opens, nothing more is started, and
        the session's loops raise `StreamOutcomeUnknownError`. They also do if the name is rejected three times in a
        row, as by a Space that accepts no name twice; if it says so in status callbacks only, pass those to
        `handle_status_callback`.

        Args:
            streams: ``client.conferences`` or ``client.calls``.
            sid: sid of the conference or call.
            url: public ``wss://`` address of this receiver, from `serve` or from your proxy.
            name: the stream's ``Name``; generated by default.
            socket_timeout: seconds from the response to the start request until the socket has sent its start event.
            when_lost: ``"end"`` ends the session when the stream's socket breaks, ``"restart"`` starts it again.
            fields: other arguments of ``start_stream``; ``codec`` and ``realtime`` are for conferences only.

        Raises:
            OpenError: the start failed, no socket connected, or the Space reported that the stream failed; a stream
                that may be running was stopped. Also raised at the end of the block, with ``stage="stop"``, if the
                stream could not be stopped, so that it may still be running.
            InvalidRequestError: an argument is invalid, or a stream of that name is open here.
            ClientStateError: the receiver was closed.
        """
        self._pending_streams.check_open()
        check_seconds(socket_timeout, "socket_timeout")
        if not hasattr(streams, "start_stream"):
            raise InvalidRequestError(
                f"{a_kind_of(streams)} can't start a stream: pass client.conferences or client.calls"
            )
        if when_lost not in get_args(WhenLost):
            raise InvalidRequestError(f"when_lost must be 'end' or 'restart', not {when_lost!r}")
        if "authorization_bearer_token" in fields:
            raise InvalidRequestError(_OWN_TOKEN)
        if fields.keys() & {"unnamed", "may_be_running"}:
            raise InvalidRequestError("open starts a new stream with a name: omit unnamed and may_be_running")
        stream = self._pending_streams.add(sid, name)
        try:
            if when_lost == "restart":
                restarts = _restarts_of(streams)
                stream.restarts = restarts(
                    stream, self._pending_streams, socket_timeout=socket_timeout, url=url, **fields
                )
            start: Callable[..., Awaitable[Any]] = streams.start_stream  # which checks the fields
            starting = start(sid, url=url, name=stream.name, authorization_bearer_token=stream.token, **fields)
            stream.begin(asyncio.ensure_future(starting), partial(streams.stop_stream, sid))
        except BaseException:  # such as a TypeError for an unknown field
            self._pending_streams.discard(stream)
            raise
        async with _closing_with(self._pending_streams.stop(stream)):
            yield await stream.wait_session(socket_timeout)

    @asynccontextmanager
    async def open_many(
        self,
        client: StartsMany,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        concurrency: int | None = None,
        socket_timeout: float = 15.0,
    ) -> AsyncIterator[AsyncIterable[OpenOutcome]]:
        """Start many streams and receive them: ``async with receiver.open_many(client, requests) as outcomes``.

        ``async for outcome in outcomes`` then yields each stream as soon as it sends its start event, or fails to.
        The starts are one run of ``client.start_streams``. At the end of the block, all streams that may be running
        are stopped in a run of ``client.stop_streams``.

        Args:
            client: a `StreamsClient`.
            requests: conferences and calls in any order; each ``url`` must lead to this receiver.
            concurrency: as in ``client.start_streams``.
            socket_timeout: seconds from the response to a start request until its socket has sent its start event.

        Raises:
            ExceptionGroup: at the end of the block, if some could not be stopped, so that they may still be running.
            InvalidRequestError: an argument is invalid.
            ClientStateError: the receiver was closed.
        """
        self._pending_streams.check_open()
        check_seconds(socket_timeout, "socket_timeout")
        if not hasattr(client, "start_streams"):
            raise InvalidRequestError(f"{a_kind_of(client)} can't start many streams: pass the client itself")
        run = BulkStartAndReceive(client, self._pending_streams, socket_timeout)
        run.start(requests, concurrency)
        async with _closing_with(run.close()):
            yield run

    async def handle_status_callback(self, callback: Callback) -> None:
        """Handle a status callback, so that `open` fails at once when the Space reports that its stream failed.

        Pass it to a `CallbackReceiver` as the handler, or call it from yours.

        Args:
            callback: a verified callback of `signalwire_streams.callbacks`.
        """
        self._pending_streams.on_callback(callback)


def _restarts_of(streams: object) -> Callable[..., Restarts]:
    """Return what starts the streams of a client again. It is above this layer, so the client brings it."""
    restarts: Callable[..., Restarts] | None = getattr(streams, "_restarts", None)
    if restarts is None:
        raise InvalidRequestError(
            f"when_lost='restart' needs more than {a_kind_of(streams)} can do: pass client.conferences or client.calls"
        )
    return restarts


@asynccontextmanager
async def _closing_with(close: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Close at the end of the block, even if cancelled. The error of the block takes precedence."""
    block_error: BaseException | None = None
    try:
        yield
    except BaseException as error:
        block_error = error
        raise
    finally:
        closing = asyncio.create_task(close)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:  # the close continues, and its error has no other way to the user
            closing.add_done_callback(partial(_report_failure, block_error))
            abandon(closing)
            raise
        except Exception:
            if block_error is None:
                raise
            _report_failure(block_error, closing)


def _report_failure(block_error: BaseException | None, closing: "asyncio.Task[None]") -> None:
    """Log the error of a close, and note it on the error of the block; a group has a line for each stream."""
    failure = None if closing.cancelled() else closing.exception()
    failures = failure.exceptions if isinstance(failure, ExceptionGroup) else filter(None, [failure])
    for error in failures:
        text = f"{type(error).__name__}: {error}"
        _LOG.error("%s", text)
        if block_error is not None:
            block_error.add_note(text)
