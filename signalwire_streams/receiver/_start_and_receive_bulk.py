"""Many joined starts over one bulk run of starts, and one of stops."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias, Unpack

from attrs import Factory, define, evolve, field, frozen

from signalwire_streams.errors import ClientStateError, InvalidRequestError, RunCancelledError, StreamsError
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream, StartOptions
from signalwire_streams.models._validation import masks_secrets
from signalwire_streams.receiver._session import StreamSession
from signalwire_streams.receiver._start_and_receive import Callback, JoinedStart, Joining, Joinings, Starts

OWN_TOKEN = "each joined start gets a token of its own: leave authorization_bearer_token out"  # noqa: S105  (it is a sentence)

Start: TypeAlias = StartConferenceStream | StartCallStream


class StartsMany(Protocol):
    """What starts and stops many streams: a `StreamsClient`."""

    @property
    def start_streams(self) -> Callable[..., Any]:
        """Start many streams."""
        ...

    @property
    def stop_streams(self) -> Callable[..., Any]:
        """Stop many streams."""
        ...


@frozen(kw_only=True)
class OpenOutcome:
    """What became of one of many joined starts.

    Attributes:
        request: the request, as it was given.
        session: the stream, once it has begun to come in.
        error: what kept it from that: a `OpenError`, or an `InvalidRequestError` for what is no such request.
    """

    request: Start
    session: StreamSession | None = None
    error: StreamsError | None = None


@define(eq=False)
class JoinedRun:
    """Many joined starts: ``async for outcome in run`` gives each as its stream begins, or fails to.

    A stream that ends is forgotten, so that a run may go on for ever.

    Attributes:
        client: starts and stops them.
        joinings: where their sockets will be announced.
        patience: seconds from the answer to a POST to its socket.
    """

    client: StartsMany
    joinings: Joinings
    patience: float
    _starts: dict[tuple[str, str], JoinedStart] = field(init=False, factory=dict)
    _answers: "dict[tuple[str, str], asyncio.Future[Any]]" = field(init=False, factory=dict)
    _outcomes: "asyncio.Queue[OpenOutcome | None]" = field(init=False, factory=asyncio.Queue)
    _joins: "set[asyncio.Task[None]]" = field(init=False, factory=set)
    _ends: "set[asyncio.Task[None]]" = field(init=False, factory=set)
    _unstopped: list[Exception] = field(init=False, factory=list)
    _stops: "_Stops" = field(init=False, default=Factory(lambda self: _Stops(self.client), takes_self=True))
    _run: Any = field(init=False, default=None)
    _running: "asyncio.Task[None]" = field(init=False)
    _told: bool = field(init=False, default=False)

    def begin(self, requests: Iterable[Start] | AsyncIterable[Start], concurrency: int | None) -> None:
        """Begin to start them."""
        self._run = self.client.start_streams(self._prepared(requests), concurrency=concurrency)
        self._running = asyncio.create_task(self._start())

    async def __aiter__(self) -> AsyncIterator[OpenOutcome]:
        while (outcome := await self._outcomes.get()) is not None:
            yield outcome
        self._outcomes.put_nowait(None)  # for whoever goes through it again
        self._told = True
        await self._running

    async def end(self) -> None:
        """Start no more, stop what may run, and let the sockets go.

        Raises:
            ExceptionGroup: some could not be stopped, so that they may still be running.
        """
        self._run.shutdown()
        for join in self._joins:
            join.cancel()
        await asyncio.wait({self._running})
        for key in list(self._starts):
            self._keep(self._ends, self._end(key))
        if self._ends:
            await asyncio.wait(self._ends)
        await self._stops.end()
        if self._unstopped:
            raise ExceptionGroup(f"{len(self._unstopped)} streams could not be stopped", self._unstopped)
        if not self._told:
            await self._running  # an error of the requests' own comes out in any case

    async def _end(self, key: tuple[str, str]) -> None:
        """End a start; whoever is first does it."""
        start = self._starts.pop(key, None)
        if start is None:
            return
        self.joinings.close(start.joining)
        try:
            await start.end()
        except StreamsError as error:
            self._unstopped.append(error)
        finally:
            self.joinings.remove(start.joining)

    async def _end_with(self, session: StreamSession, key: tuple[str, str]) -> None:
        await session.wait_closed()
        await self._end(key)

    def _keep(self, tasks: "set[asyncio.Task[None]]", work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _prepared(self, requests: Iterable[Start] | AsyncIterable[Start]) -> AsyncIterator[Start]:
        """Give each request a token of its own, and wait for its socket; refuse what can't have one."""
        async for request in _each(requests):
            try:
                joining = self._joining(request)
            except InvalidRequestError as error:
                self._outcomes.put_nowait(OpenOutcome(request=request, error=error))
                continue
            answer = asyncio.get_running_loop().create_future()
            start = JoinedStart(joining, answer, partial(self._stops.stop, request, joining.name))
            key = request.target, joining.name
            self._starts[key], self._answers[key] = start, answer
            self._keep(self._joins, self._join(request, start))
            yield evolve(request, name=joining.name, unnamed=False, authorization_bearer_token=joining.token)

    def _joining(self, request: Start) -> Joining:
        if not isinstance(request, StartConferenceStream | StartCallStream):
            raise InvalidRequestError(
                f"an item is a {type(request).__name__}: pass StartConferenceStream or StartCallStream"
            )
        if request.authorization_bearer_token is not None:
            raise InvalidRequestError(OWN_TOKEN)
        return self.joinings.add(request.target, request.name)

    async def _start(self) -> None:
        try:
            async for outcome in self._run:
                answer = self._answers.pop((outcome.item.target, outcome.item.name))
                if outcome.stream is not None:
                    answer.set_result(outcome.stream)
                else:
                    answer.set_exception(outcome.error)
                    answer.exception()  # so that nothing is said of it where nobody waits any more
        finally:
            for answer in self._answers.values():
                answer.cancel()  # what was left when the run broke off
            if self._joins:
                await asyncio.wait(self._joins)
            self._outcomes.put_nowait(None)

    async def _join(self, request: Start, start: JoinedStart) -> None:
        key = request.target, start.joining.name
        try:
            session = await start.session(self.patience)
        except StreamsError as error:
            self._outcomes.put_nowait(OpenOutcome(request=request, error=error))
            self._keep(self._ends, self._end(key))
        else:
            self._outcomes.put_nowait(OpenOutcome(request=request, session=session))
            self._keep(self._ends, self._end_with(session, key))


@define(eq=False)
class _Stops:
    """Stops streams one by one for their owners, over one bulk run."""

    client: StartsMany
    _queue: "asyncio.Queue[ConferenceStream | CallStream | None]" = field(init=False, factory=asyncio.Queue)
    _waiting: "dict[object, asyncio.Future[None]]" = field(init=False, factory=dict)
    _running: "asyncio.Task[None] | None" = field(init=False, default=None)

    async def stop(self, request: Start, name: str, stream: ConferenceStream | CallStream | str) -> None:
        """Stop what a request started, given as it was returned, by its name or by the sid that its socket has.

        Raises:
            StreamsError: it may still be running.
        """
        if isinstance(stream, str):
            stream = _handled(request, name if stream == name else None, None if stream == name else stream)
        stopped = self._waiting[id(stream)] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(stream)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await stopped

    async def end(self) -> None:
        """Take no more."""
        if self._running is not None:
            self._queue.put_nowait(None)
            await asyncio.wait({self._running})

    async def _run(self) -> None:
        why: StreamsError = RunCancelledError("not stopped, since the run of the stops ended early")
        try:
            async for outcome in self.client.stop_streams(self._queued()):
                stopped = self._waiting.pop(id(outcome.item))
                if outcome.ok:
                    stopped.set_result(None)
                else:
                    stopped.set_exception(outcome.error)
        except StreamsError as error:
            why = error
        finally:
            for stopped in self._waiting.values():
                stopped.set_exception(why)
            self._waiting.clear()
            self._queue = asyncio.Queue()  # what it did not take is told of now

    async def _queued(self) -> AsyncIterator[ConferenceStream | CallStream]:
        while (stream := await self._queue.get()) is not None:
            yield stream


async def _each(requests: Iterable[Start] | AsyncIterable[Start]) -> AsyncIterator[Start]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


def _handled(request: Start, name: str | None, sid: str | None) -> ConferenceStream | CallStream:
    """Return the stream that a request started, as far as its sid or its name identifies it."""
    if isinstance(request, StartConferenceStream):
        return ConferenceStream(conference_sid=request.target, name=name, sid=sid)
    return CallStream(call_sid=request.target, name=name, sid=sid)


_LOG = logging.getLogger("signalwire_streams.receiver")


class Opener:
    """The part of a `MediaReceiver` that starts what it receives."""

    def __init__(self) -> None:
        """Begin without a stream."""
        self._joinings = Joinings()
        self._closing = asyncio.Event()

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
        **fields: Unpack[StartOptions],
    ) -> AsyncIterator[StreamSession]:
        """Start a stream, and receive it: ``async with receiver.open(client.conferences, sid, url=...) as session``.

        A token of its own is made for the stream's socket. The session is there as soon as the socket has begun,
        whether or not the start was answered by then. At the end of the block the stream is stopped.

        Args:
            streams: ``client.conferences`` or ``client.calls``.
            sid: the conference or call.
            url: where this receiver is reached from outside, as `serve` gives it or as your proxy has it.
            name: the stream's Name; one is made up if left out.
            socket_timeout: seconds from the answer to the socket.
            fields: further fields of ``start_stream``; ``codec`` and ``realtime`` are for conferences only.

        Raises:
            OpenError: the stream was not started, nobody dialled, or the Space told that it failed; whatever may
                run was stopped.
            StreamsError: at the end, when the stream could not be stopped, so that it may still be running.
        """
        self._check_open()
        if "authorization_bearer_token" in fields:
            raise InvalidRequestError(OWN_TOKEN)
        if fields.keys() & {"unnamed", "may_be_running"}:
            raise InvalidRequestError("open starts a new stream with a name: leave unnamed and may_be_running out")
        joining = self._joinings.add(sid, name)
        try:
            start: Callable[..., Awaitable[Any]] = streams.start_stream  # which fields it takes, it checks itself
            starting = start(sid, url=url, name=joining.name, authorization_bearer_token=joining.token, **fields)
            joined = JoinedStart(joining, asyncio.ensure_future(starting), partial(streams.stop_stream, sid))
        except BaseException:  # most likely a TypeError over a field that no start has; whatever it is, it goes on
            self._joinings.remove(joining)
            raise
        async with self._ending(self._end(joined)):
            yield await joined.session(socket_timeout)

    async def _end(self, joined: JoinedStart) -> None:
        self._joinings.close(joined.joining)
        try:
            await joined.end()
        finally:
            self._joinings.remove(joined.joining)

    @asynccontextmanager
    async def _ending(self, end: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Leave nothing that runs behind, also when somebody does not want to wait for it."""
        try:
            yield
        except BaseException as error:  # a cancellation too leaves nothing behind
            try:
                await asyncio.shield(asyncio.create_task(end))
            except Exception as failure:  # noqa: BLE001  (what went wrong in the block goes first, whatever else does)
                told = f"{type(failure).__name__}: {failure}"
                _LOG.error("%s", told)
                error.add_note(told)
            raise
        await asyncio.shield(asyncio.create_task(end))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClientStateError("this receiver is closed: make a new MediaReceiver")

    @asynccontextmanager
    async def open_many(
        self,
        client: StartsMany,
        requests: Iterable[Start] | AsyncIterable[Start],
        *,
        concurrency: int | None = None,
        socket_timeout: float = 15.0,
    ) -> AsyncIterator[AsyncIterable[OpenOutcome]]:
        """Start many streams, and receive them: ``async with receiver.open_many(client, requests) as outcomes``.

        Then ``async for outcome in outcomes`` gives each as its stream begins to come in, or fails to. The starts
        are a run of ``client.start_streams``; at the end of the block all that may run is stopped the same way.

        Args:
            client: a `StreamsClient`.
            requests: what to start, conferences and calls mixed as they come; each ``url`` leads to this receiver.
            concurrency: as in ``client.start_streams``.
            socket_timeout: seconds from an answer to its socket.

        Raises:
            ExceptionGroup: at the end, when some could not be stopped, so that they may still be running.
        """
        self._check_open()
        run = JoinedRun(client, self._joinings, socket_timeout)
        run.begin(requests, concurrency)
        async with self._ending(run.end()):
            yield run

    async def handle_status_callback(self, callback: Callback) -> None:
        """Hear a status callback, so that an `open` ends at once where the Space says that its stream failed.

        It is a handler for a `CallbackReceiver`, or to be called from yours.

        Args:
            callback: a callback of `signalwire_streams.callbacks`, which was verified.
        """
        self._joinings.told(callback)
