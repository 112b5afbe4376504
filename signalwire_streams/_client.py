"""`StreamsClient`: composes the layers and owns their lifetime."""

import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import iscoroutinefunction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeAlias, TypedDict, Unpack

import aiohttp

import signalwire_streams.bulk as bulk  # noqa: PLR0402  (the package itself is above this layer)
from signalwire_streams._http.account import find_account
from signalwire_streams._http.messages import Handler, Middleware, chain
from signalwire_streams._http.session import Dispatcher, SessionManager, Timeouts
from signalwire_streams._http.transport import HttpTransport
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.middleware._circuit_breaker import CircuitBreaker, CircuitBreakerMiddleware
from signalwire_streams.middleware._policies import CircuitBreakerPolicy, RateLimit, RetryPolicy
from signalwire_streams.middleware._rate_limit import (
    PrioritySemaphore,
    RateLimiter,
    RateLimitMiddleware,
    SpaceRateLimiter,
    choose_rate_limiter,
)
from signalwire_streams.middleware._retry import OnAttempt, RetryBudget, RetryMiddleware
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream, TargetKind
from signalwire_streams.models._validation import Secret, check_count, check_kind, kind_of, masks_secrets
from signalwire_streams.resources import Calls, Conferences
from signalwire_streams.resources._streams import Streams

if TYPE_CHECKING:
    import signalwire_streams.keep_streaming as keeping
    from signalwire_streams.bulk._runs import BulkRuns
    from signalwire_streams.keep_streaming._restarter import Restarter
    from signalwire_streams.models import Call, Conference
    from signalwire_streams.receiver import MediaReceiver

__all__ = ["StreamsClient"]

_Start: TypeAlias = StartConferenceStream | StartCallStream
_Stream: TypeAlias = ConferenceStream | CallStream

_ENVIRONMENT = ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN")


class ClientOptions(TypedDict, total=False):
    """The options of `StreamsClient.from_env`; see `StreamsClient` for each."""

    session: aiohttp.ClientSession | None
    connections: int
    retry: RetryPolicy | None
    timeouts: Timeouts | None
    rate_limit: RateLimit | None
    circuit_breaker: CircuitBreakerPolicy | None
    rate_limiter: RateLimiter | None
    on_attempt: OnAttempt | None
    middlewares: Sequence[Middleware]
    clock: Clock | None


class StreamsClient:
    """Asyncio client for SignalWire's audio streams.

    Use it as ``async with StreamsClient(...) as client``, or call `aclose` when done. One client serves any number of
    concurrent calls, from one event loop.

    Attributes:
        conferences: the conferences and their streams.
        calls: the calls and their streams.
        origin: the Space's address.
        project: the Project ID.
        rate_limiter: paces its requests.
    """

    conferences: Conferences
    calls: Calls
    origin: str
    project: str
    rate_limiter: RateLimiter

    @masks_secrets
    def __init__(
        self,
        *,
        space: str | None = None,
        project: str | None = None,
        token: str | None = None,
        base_url: str | None = None,
        session: aiohttp.ClientSession | None = None,
        connections: int = 256,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        rate_limit: RateLimit | None = None,
        circuit_breaker: CircuitBreakerPolicy | None = None,
        rate_limiter: RateLimiter | None = None,
        on_attempt: OnAttempt | None = None,
        middlewares: Sequence[Middleware] = (),
        clock: Clock | None = None,
    ) -> None:
        """Create a client; no connection is opened before the first request.

        Args:
            space: the Space's name (``example``) or host (``example.signalwire.com``).
            project: the Project ID, which the API also calls AccountSid.
            token: an API token of the project.
            base_url: instead of ``space``: an https address, or plain http on this machine.
            session: an aiohttp session to borrow; it is never closed here. Its middlewares, timeouts and response
                limits are not used, and it must not have ``auth``.
            connections: maximum number of open connections.
            retry: how often and how long calls are retried.
            timeouts: how long one attempt may take.
            rate_limit: the Space's limit and the part of it that this client uses.
            circuit_breaker: when to stop sending requests to a Space that keeps failing.
            rate_limiter: instead of ``rate_limit``: a rate limiter that several clients share.
            on_attempt: called with each `Attempt` as it ends, for metrics and logs.
            middlewares: wrap each call, outside of the retries.
            clock: the source of time and randomness; for tests.

        Raises:
            InvalidRequestError: an argument is missing or invalid; the message says what to write instead.
        """
        if rate_limiter is not None and rate_limit is not None:
            raise InvalidRequestError("pass rate_limit= or rate_limiter=, not both: a rate limiter has its own limit")
        check_count(connections, "connections")
        check_kind(retry, RetryPolicy, "retry")
        check_kind(timeouts, Timeouts, "timeouts")
        check_kind(rate_limit, RateLimit, "rate_limit")
        check_kind(circuit_breaker, CircuitBreakerPolicy, "circuit_breaker")
        check_kind(clock, Clock, "clock")
        _check_code(rate_limiter, on_attempt, middlewares)
        account = find_account(space=space, base_url=base_url, project=project, token=token)
        self._clock = clock = clock or Clock()
        self._retry = retry = retry or RetryPolicy()
        self.origin, self.project = account.origin, account.sid
        self.rate_limiter = choose_rate_limiter(account.origin, rate_limiter, rate_limit, clock)
        sessions = SessionManager(connections, session)
        self._breaker = CircuitBreaker(circuit_breaker or CircuitBreakerPolicy())
        self._retries = retries = RetryMiddleware(retry, RetryBudget(), clock, on_attempt)
        transport = HttpTransport(account, sessions, timeouts or Timeouts(), clock)
        rate_limits = RateLimitMiddleware(PrioritySemaphore(sessions.max_concurrency), self.rate_limiter, clock)
        send: Handler = partial(rate_limits, send=transport)
        wrappers = [retries.watch, *middlewares] if middlewares else ()
        # A keeper's polls are what ends an outage, so no breaker holds them back.
        self._polls = Dispatcher(sessions, chain(wrappers, partial(retries, send=send)))
        send = partial(retries, send=partial(CircuitBreakerMiddleware(self._breaker, clock), send=send))
        self._dispatcher = dispatcher = Dispatcher(sessions, chain(wrappers, send))
        self._conference_streams = Streams(dispatcher, account, request=StartConferenceStream, stream=ConferenceStream)
        self._call_streams = Streams(dispatcher, account, request=StartCallStream, stream=CallStream)
        conferences, calls = self._conference_streams, self._call_streams
        self.conferences = Conferences(conferences, partial(_restarter, conferences, self._polls))
        self.calls = Calls(calls, partial(_restarter, calls, self._polls))
        paced = rate_limiter if isinstance(rate_limiter, SpaceRateLimiter) else rate_limit or RateLimit()
        self._rate = paced.rate
        self._observe_run: Callable[[str], bulk.RunObserver] | None = None  # set by telemetry

    @classmethod
    @masks_secrets
    def from_env(cls, environment: Mapping[str, str] | None = None, **options: Unpack[ClientOptions]) -> Self:
        """Create a client from ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN``.

        By default, they are read from the process's environment. The options are the client's other arguments.

        Raises:
            InvalidRequestError: some are not set, and the message names them all; or an option repeats one of them.
        """
        environment = os.environ if environment is None else environment
        # The address may contain a password, and the project, if pasted carelessly, the token.
        space, project, token = (Secret(environment.get(name) or "") for name in _ENVIRONMENT)
        twice = sorted({"space", "project", "token", "base_url"} & options.keys())
        if twice:
            raise InvalidRequestError(
                f"from_env reads the Space and its credentials from the environment: omit {', '.join(twice)}, "
                "or write StreamsClient(...)"
            )
        missing = [name for name, value in zip(_ENVIRONMENT, (space, project, token), strict=True) if not value]
        if missing:
            raise InvalidRequestError(f"set {', '.join(missing)} in the environment (see your Space's API page)")
        return cls(space=str(space), project=str(project), token=token, **options)

    def start_streams(
        self,
        requests: Iterable[_Start] | AsyncIterable[_Start],
        *,
        concurrency: int | None = None,
        journal: "Path | str | bulk.Ledger | None" = None,
        resume: bool = False,
    ) -> "bulk.BulkRun[_Start]":
        """Start many streams: ``async for outcome in client.start_streams(requests)``.

        The starts use the same client as single ones and yield to them. Each ends in one `BulkOutcome`; nothing raises
        per item. A 401 or 403 ends the run early: later items are not attempted.

        Args:
            requests: the streams to start, conferences and calls mixed in any order. Those without a name get one that
                is derived from the run and the target, so a target may occur only once.
            concurrency: maximum number of starts in flight; tuned automatically if left out.
            journal: SQLite file that records progress, so a killed run can be resumed. Each item is recorded before it
                is sent. The file holds no token and no parameter value.
            resume: True to resume the run of that journal: pass the same requests again. Streams that are running are
                not started again; those that may be running are started again under their names. Without a name, or on
                a call (unless ``RetryPolicy.resend_call_starts``), these are reported as unknown instead.

        Raises:
            InvalidRequestError: on iteration, if the journal exists already, or is missing, or belongs to another
                Space, project or kind of run, or to a process that is still running.
        """
        return self._bulk_runs.start(requests, concurrency=concurrency, journal=journal, resume=resume)

    def create_journal(self, requests: Iterable[_Start], *, journal: Path | str) -> "bulk.BulkJournal":
        """Record the requests of a run in a new journal, and send nothing yet.

        ``client.start_streams(requests, journal=journal, resume=True)`` then starts them. If that run is killed, the
        journal alone is enough to resume it: `BulkJournal.requests` returns the requests, without their secrets. All
        requests are read, and written in one transaction.

        Raises:
            InvalidRequestError: the file exists already or can't be created, an item is not a request, or two of them
                are the same; no file is left behind.
            JournalError: the file can't be written.
        """
        return self._bulk_runs.create_journal(requests, journal)

    def stop_started(self, journal: Path | str, *, concurrency: int | None = None) -> "bulk.BulkRun[_Stream]":
        """Stop what a journaled run of `start_streams` started: ``async for outcome in client.stop_started("run.db")``.

        Streams are stopped by their sid, or by their name if only that is known. Those that have already ended count
        as stopped. It can be repeated until nothing is left; the run can't be resumed after it. ``concurrency`` and
        the errors on iteration are those of `start_streams`.
        """
        return self._bulk_runs.stop_started(journal, concurrency=concurrency)

    def stop_streams(
        self,
        streams: Iterable[_Stream] | AsyncIterable[_Stream],
        *,
        concurrency: int | None = None,
        journal: "Path | str | bulk.Ledger | None" = None,
        resume: bool = False,
    ) -> "bulk.BulkRun[_Stream]":
        """Stop many streams: ``async for outcome in client.stop_streams(streams)``.

        The streams are those that were returned, or recreated from stored values, such as
        ``ConferenceStream(conference_sid="...", name="...")``. Other arguments and errors are those of `start_streams`.
        """
        return self._bulk_runs.stop(streams, concurrency=concurrency, journal=journal, resume=resume)

    @masks_secrets
    def keep_streaming(
        self,
        template: "keeping.Template",
        *,
        name: str,
        conferences: bool = True,
        calls: bool = False,
        where: "Callable[[Conference | Call], bool] | None" = None,
        poll: float = 5.0,
        journal: Path | str = "kept.db",
        lease: float = 30.0,
        receivers: "Iterable[MediaReceiver]" = (),
        reassert: float = 60.0,
        in_doubt: "keeping.InDoubtPolicy | str" = "hold",
        names: "keeping.StreamNames | str" = "reusable",
        duplicate_names: "Mapping[str, keeping.DuplicateNames | str]" = MappingProxyType({}),
        on_change: "keeping.OnChange | str" = "keep",
        on_exit: "keeping.OnExit | str" = "leave",
    ) -> "keeping.Keeper":
        """Keep one stream on each conference: ``async with client.keep_streaming(template, name="audit") as keeper``.

        Each conference or call in progress gets a stream as soon as a list or `Keeper.notice` shows it, and another
        one whenever that is lost, until it ends. ``async for event in keeper`` yields what happens.

        The keeper sees a stream end by its socket, if it leads to one of ``receivers``, or by the status callbacks that
        are passed to `Keeper.handle_status_callback`. Without these, a conference's stream is started again after each
        ``reassert`` seconds; on a call, the keeper does not learn that it ended.

        Args:
            template: the fields of each start besides target and name, as in ``{"url": "wss://example.com/audio"}``;
                or a function, ``def`` or ``async def``, of the `Conference` or `Call` that returns them, or None for
                one that gets no stream; an async one has 30 seconds. The custom parameters ``keep_target``, the
                target's sid, and ``keep_attempt`` are added to those of the template.
            name: first part of the streams' names, which are ``NAME-SID`` with the target's sid. Start no other streams
                with such names.
            conferences: whether conferences get streams.
            calls: whether calls get streams, among them those of the participants of conferences.
            where: a function that returns True for each conference or call that gets a stream; None for all.
            poll: seconds between two lists of what is in progress.
            journal: SQLite file of this keeper, which it continues from when it is started again. One process at a time
                can use it. Or, for keepers on several hosts, a Redis such as ``redis://host:6379/0`` (extra ``redis``):
                one of those with this name keeps the streams, and the others stand by. The journal holds no token and
                no parameter value.
            lease: seconds, one at least, within which another keeper takes over if one fails, with a journal in Redis.
                All of them need the same. It is measured by the monotonic and by the wall clock, whichever goes faster,
                so that it is not believed after the machine was suspended.
            receivers: receivers in this process that the streams lead to, each with a handler, which gets the sessions.
                They admit each stream by a token of its own, besides their other tokens. A handler that returns ends
                its stream, so that another one is started.
            reassert: seconds after which a conference's stream that is not received here is started again, for the
                Space to reject its name if it still runs. Each of these starts counts against the rate limit, and may
                lead to the status callback ``Duplicated stream name``.
            in_doubt: an `InDoubtPolicy`: what follows a start whose response was lost, where the Space would not
                reject a second stream.
            names: ``"once"`` if the Space does not accept the name of a stream that has ended; that is not documented.
            duplicate_names: a `DuplicateNames` for each kind. By default ``{"conference": "refused", "call":
                "allowed"}``, of which the first is documented.
            on_change: an `OnChange`: what happens to streams that this keeper started with other fields before.
            on_exit: an `OnExit`: what happens to the streams when the block ends.

        Returns:
            A keeper that begins when its block is entered.

        Raises:
            InvalidRequestError: an argument is invalid; the message says what to write instead.

        Source: https://signalwire.com/docs/compatibility-api/rest/conference-streams (a conference's stream names are
        unique, and its streams cannot be listed)
        """
        # Imported here, so that a client without a keeper does not pay for it.
        from signalwire_streams.keep_streaming._keeper import make_keeper  # noqa: PLC0415

        streams: Mapping[TargetKind, Streams[Any]] = {
            each.kind: each for each in (self._conference_streams, self._call_streams)
        }
        return make_keeper(
            template,
            name=name,
            streams=streams,
            reads={kind: each.over(self._polls) for kind, each in streams.items()},
            conferences=conferences,
            calls=calls,
            where=where,
            poll=poll,
            journal=journal,
            lease=lease,
            receivers=receivers,
            reassert=reassert,
            in_doubt=in_doubt,
            names=names,
            duplicate_names=duplicate_names,
            on_change=on_change,
            on_exit=on_exit,
            origin=self.origin,
            project=self.project,
            clock=self._clock,
        )

    @property
    def _bulk_runs(self) -> "BulkRuns":
        # Imported here, so that a client without bulk runs does not pay for it.
        from signalwire_streams.bulk._runs import BulkRuns  # noqa: PLC0415

        return BulkRuns(
            conferences=self._conference_streams,
            calls=self._call_streams,
            origin=self.origin,
            project=self.project,
            rate=self._rate,
            resend_call_starts=self._retry.resend_call_starts,
            clock=self._clock,
            observe=self._observe_run,
        )

    async def aclose(self) -> None:
        """Accept no new calls, wait up to five seconds for those in flight, then close the connections.

        Raises:
            ClientStateError: the client was used in another event loop, which is not closed.
        """
        await self._dispatcher.aclose()

    async def __aenter__(self) -> Self:
        self._dispatcher.sessions.check()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError("StreamsClient is asynchronous: write 'async with StreamsClient(...) as client:'")

    def __exit__(self, *_: object) -> None:
        """Do nothing; ``with`` looks it up before ``__enter__`` raises its error."""

    def __repr__(self) -> str:
        return f"StreamsClient({self.origin!r}, project={self.project!r})"


def _check_code(rate_limiter: object, on_attempt: object, middlewares: object) -> None:
    if rate_limiter is not None and not callable(getattr(rate_limiter, "wait_until_allowed", None)):
        raise InvalidRequestError(
            f"rate_limiter must be a RateLimiter, such as RedisRateLimiter(...), not {kind_of(rate_limiter)}"
        )
    if on_attempt is not None and (not callable(on_attempt) or iscoroutinefunction(on_attempt)):
        raise InvalidRequestError(
            "on_attempt must be a function that takes an Attempt: write it with def, and not async def"
        )
    if not isinstance(middlewares, Sequence) or not all(map(callable, middlewares)):
        raise InvalidRequestError(f"middlewares must be a list of async functions, not {kind_of(middlewares)}")


def _restarter(streams: Streams[Any], polls: Dispatcher, *about: Any, **fields: Any) -> "Restarter":  # noqa: ANN401  (its arguments)
    # Imported here, so that a client without one does not pay for it.
    from signalwire_streams.keep_streaming._restarter import Restarter  # noqa: PLC0415

    return Restarter(streams, streams.over(polls), *about, **fields)
