"""Many joined starts over one bulk run of starts, and one of stops."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeAlias

from attrs import Factory, define, evolve, field, frozen

from signalwire_streams.errors import InvalidRequestError, RunEndedError, StreamsError
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream
from signalwire_streams.receiver._start_and_receive import JoinedStart
from signalwire_streams.receiver.joinings import Joining, Joinings
from signalwire_streams.receiver.session import StreamSession

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
class JoinedOutcome:
    """What became of one of many joined starts.

    Attributes:
        request: the request, as it was given.
        session: the stream, once it has begun to come in.
        error: what kept it from that: a `JoinError`, or an `InvalidRequestError` for what is no such request.
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
    _outcomes: "asyncio.Queue[JoinedOutcome | None]" = field(init=False, factory=asyncio.Queue)
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

    async def __aiter__(self) -> AsyncIterator[JoinedOutcome]:
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
        self._run.drain()
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
        await session.ended()
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
                self._outcomes.put_nowait(JoinedOutcome(request=request, error=error))
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
            self._outcomes.put_nowait(JoinedOutcome(request=request, error=error))
            self._keep(self._ends, self._end(key))
        else:
            self._outcomes.put_nowait(JoinedOutcome(request=request, session=session))
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
        why: StreamsError = RunEndedError("not stopped, since the run of the stops ended early")
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
