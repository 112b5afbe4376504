"""`StreamsClient`: puts the floors together and owns their lifetime."""

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import NoReturn, Self, TypeAlias, TypedDict, TypeVar, Unpack

import aiohttp

from signalwire_streams._http.account import Account, find_account
from signalwire_streams._http.deadlines import DeadlineTimer, Timeouts
from signalwire_streams._http.messages import Middleware, chain
from signalwire_streams._http.session import Dispatcher, SessionManager, user_agent
from signalwire_streams._http.transport import HttpTransport
from signalwire_streams.bulk._journal import Holder, Journal
from signalwire_streams.bulk._journal_file import JournalOwner
from signalwire_streams.bulk._journal_reader import BulkJournal
from signalwire_streams.bulk._operations import (
    Both,
    JournaledStarting,
    JournaledStopping,
    Ledger,
    Starting,
    Stopping,
    Undoing,
    ledger_of,
)
from signalwire_streams.bulk._runner import (
    MOST,
    AdaptiveConcurrency,
    BulkRun,
    WorkerPool,
    FixedConcurrency,
    Keeper,
    Note,
    Perform,
)
from signalwire_streams.bulk._write_ahead_log import journal_path
from signalwire_streams.clock import Clock
from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.middleware._circuit_breaker import CircuitBreaker, CircuitBreakerMiddleware
from signalwire_streams.middleware._policies import CircuitBreakerPolicy, RateLimit, RetryPolicy
from signalwire_streams.middleware._queueing import PrioritySemaphore
from signalwire_streams.middleware._rate_limit import (
    RateLimiter,
    RateLimitMiddleware,
    SpaceRateLimiter,
    choose_rate_limiter,
)
from signalwire_streams.middleware._retry import OnAttempt, RetryBudget, RetryMiddleware
from signalwire_streams.models import CallStream, ConferenceStream, StartCallStream, StartConferenceStream
from signalwire_streams.models._validation import Secret, check_count, masks_secrets
from signalwire_streams.resources import Calls, Conferences
from signalwire_streams.resources._streams import Streams

_Item = TypeVar("_Item")
_Start: TypeAlias = StartConferenceStream | StartCallStream
_Stream: TypeAlias = ConferenceStream | CallStream

_BULK_DEADLINE = 300.0
_ENVIRONMENT = ("SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN")


class ClientOptions(TypedDict, total=False):
    """What `StreamsClient.from_env` takes besides what the environment has; see `StreamsClient` for each."""

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
    """The asyncio client for SignalWire's audio streams.

    Use it as ``async with StreamsClient(...) as client``, or call `aclose` when done. One client serves any
    number of calls at once, from one event loop.

    Attributes:
        conferences: the conferences and their streams.
        calls: the calls and their streams.
        origin: the Space's address.
        project: the Project ID.
        pacer: what its requests wait for.
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
        """Prepare a client; nothing is opened before the first request.

        Args:
            space: the Space's name (``example``) or host (``example.signalwire.com``).
            project: the Project ID, which the API also calls AccountSid.
            token: an API token of the project.
            base_url: instead of ``space``: an https address, or plain http on this very machine.
            session: an aiohttp session to borrow; it is never closed here. Its middlewares, timeouts and limits of
                an answer are not used, and it must not have ``auth`` of its own.
            connections: how many connections may be open at once.
            retry: how often and how long calls are tried.
            timeouts: how long one attempt may take.
            rate_limit: the Space's limit and this client's share of it.
            breaker: when to stop asking a Space that keeps failing.
            pacer: instead of ``rate_limit``: a pacer that several clients share.
            on_attempt: called with each `Attempt` as it ends, for metrics and logs.
            middlewares: put around each call, outside of the retry.
            clock: where time, waiting and chance come from; for tests.

        Raises:
            InvalidRequestError: something is missing or can't be right; the message says what to write.
        """
        if rate_limiter is not None and rate_limit is not None:
            raise InvalidRequestError("pass rate_limit= or rate_limiter=, not both: a pacer has the limit within it")
        check_count(connections, "connections")
        account = find_account(space=space, base_url=base_url, project=project, token=token)
        clock = clock or Clock()
        sessions = SessionManager(connections, session)
        self.rate_limiter = choose_rate_limiter(account.origin, rate_limiter, rate_limit, clock)
        around: Sequence[Middleware] = (
            *middlewares,
            RetryMiddleware(retry or RetryPolicy(), RetryBudget(), clock, on_attempt),
            CircuitBreakerMiddleware(CircuitBreaker(circuit_breaker or CircuitBreakerPolicy()), clock),
            RateLimitMiddleware(PrioritySemaphore(sessions.max_concurrency), self.rate_limiter, clock),
        )
        limits = DeadlineTimer()
        sender = HttpTransport(sessions, account.origin, _headers(account), timeouts or Timeouts(), clock, limits)
        self.origin, self.project = account.origin, account.sid
        self._line = Dispatcher(sessions, chain(around, sender), limits)
        self._clock = clock
        self._retry = retry or RetryPolicy()
        # Items of a run wait for the pacer together, so the last of them waits for all others.
        rate = rate_limiter.rate if isinstance(rate_limiter, SpaceRateLimiter) else (rate_limit or RateLimit()).rate
        self._patience = _BULK_DEADLINE + 2 * MOST / rate
        self._streams = Both(
            Streams(self._line, account, "Conferences", ConferenceStream, "conference_sid"),
            Streams(self._line, account, "Calls", CallStream, "call_sid"),
        )
        self.conferences = Conferences(self._line, account, self._streams.conferences)
        self.calls = Calls(self._line, account, self._streams.calls)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, **options: Unpack[ClientOptions]) -> Self:
        """Make a client from ``SIGNALWIRE_SPACE``, ``SIGNALWIRE_PROJECT_ID`` and ``SIGNALWIRE_API_TOKEN``.

        Args:
            environment: where to look them up; the process's own by default.
            options: what else a client takes, such as ``rate_limiter=``.

        Raises:
            InvalidRequestError: some are not set; the message names them all. Or an option is what the environment
                has.
        """
        space, project, token = _read(os.environ if environment is None else environment)
        environment = None  # its repr would show the token in a traceback
        twice = sorted({"space", "project", "token", "base_url"} & options.keys())
        if twice:
            del options  # likewise
            raise InvalidRequestError(
                f"from_env reads the Space and its credentials from the environment: leave out {', '.join(twice)}, "
                "or write StreamsClient(...)"
            )
        missing = [name for name, value in zip(_ENVIRONMENT, (space, project, token), strict=True) if not value]
        if missing:
            raise InvalidRequestError(f"set {', '.join(missing)} in the environment (see your Space's API page)")
        return cls(space=space, project=project, token=token, **options)

    def start_streams(
        self,
        requests: Iterable[_Start] | AsyncIterable[_Start],
        *,
        concurrency: int | None = None,
        journal: Path | str | Ledger | None = None,
        resume: bool = False,
    ) -> BulkRun[_Start]:
        """Start many streams: ``async for outcome in client.start_streams(requests)``.

        The starts go the same way as single ones, and give way to them. Each ends in one `BulkOutcome`; nothing
        raises per item. A 401 or 403 ends the run early: what follows is not attempted.

        Args:
            requests: what to start, conferences and calls mixed as they come. Those without a name get one that
                follows from the run and the target, so a target may come once.
            concurrency: how many starts may be under way at once; found out while running when left out.
            journal: a file to keep book in, so that a run that was killed can be gone on with. Each item is noted
                before it is sent. The file holds no token and no parameter value.
            resume: True to go on with the run of that journal: pass the same requests again. What runs is not
                sent again; what may run is sent again under its name; what may run without a name, or on a call
                (unless ``RetryPolicy.resend_call_starts``), is reported as unknown.

        Raises:
            InvalidRequestError: on going through the run, when the journal is there already, or is missing, or
                belongs to another Space, project or kind of run, or to a process that still runs.
        """
        starting = Starting(self._streams, self._patience)
        book = self._book(journal, "start", resume=resume)
        if book is None:
            return self._bulk(requests, starting, concurrency, starting=True)
        journaled = JournaledStarting(starting, book, self._retry.resend_call_starts)
        return self._bulk(requests, journaled, concurrency, starting=True, keeper=journaled, note=book.note)

    def create_journal(self, requests: Iterable[_Start], *, journal: Path | str) -> BulkJournal:
        """Write down what a run is to start, and send nothing yet.

        ``client.start_streams(requests, journal=journal, resume=True)`` then starts it. Should that be killed,
        the journal alone tells what is left to start: `BulkJournal.requests`. Secrets are left out of it.

        Args:
            requests: what to start; all of it is read, and written in one piece.
            journal: the file to make.

        Raises:
            InvalidRequestError: the file is there already or can't be made, an item is no request, or two of
                them are one; nothing is left behind.
            JournalError: the file can't be written.
        """
        Journal.plan(journal_path(journal), self._whose("start"), run=token_hex(4), requests=requests)
        return BulkJournal(journal)

    def stop_started(self, journal: Path | str, *, concurrency: int | None = None) -> BulkRun[_Stream]:
        """Stop what a journaled run of `start_streams` started: ``async for outcome in client.stop_started("run.db")``.

        Streams are stopped by their sid, or by their name where only that is known. Those that have ended
        meanwhile count as stopped. It can be repeated until nothing is left; the run can't be resumed after it.

        Args:
            journal: the run's file.
            concurrency: how many stops may be under way at once; found out while running when left out.

        Raises:
            InvalidRequestError: on going through the run, when there is no such journal, or it belongs to another
                Space, project or kind of run, or to a process that still runs.
        """
        path = journal_path(journal)
        reopen = partial(Journal.reopen, path, self._whose("start"), clock=self._clock)
        undoing = Undoing(Stopping(self._streams, self._patience), Holder(reopen, self._clock))
        streams = BulkJournal(journal).streams()
        return self._bulk(streams, undoing, concurrency, starting=False, keeper=undoing, note=undoing.note)

    def stop_streams(
        self,
        streams: Iterable[_Stream] | AsyncIterable[_Stream],
        *,
        concurrency: int | None = None,
        journal: Path | str | Ledger | None = None,
        resume: bool = False,
    ) -> BulkRun[_Stream]:
        """Stop many streams: ``async for outcome in client.stop_streams(streams)``.

        Args:
            streams: the streams as they were returned, or made by hand from what was kept, such as
                ``ConferenceStream(conference_sid="...", name="...")``.
            concurrency: how many stops may be under way at once; found out while running when left out.
            journal: a file to keep book in, as in `start_streams`.
            resume: True to go on with the run of that journal.
        """
        stopping = Stopping(self._streams, self._patience)
        book = self._book(journal, "stop", resume=resume)
        if book is None:
            return self._bulk(streams, stopping, concurrency, starting=False)
        journaled = JournaledStopping(stopping, book)
        return self._bulk(streams, journaled, concurrency, starting=False, keeper=journaled, note=book.note)

    def _book(self, journal: Path | str | Ledger | None, doing: str, *, resume: bool) -> Ledger | None:
        whose = self._whose(doing)
        return ledger_of(
            journal,
            resume=resume,
            clock=self._clock,
            create=partial(Journal.create, whose=whose, run=token_hex(4), clock=self._clock),
            reopen=partial(Journal.reopen, whose=whose, clock=self._clock),
        )

    def _whose(self, doing: str) -> JournalOwner:
        return JournalOwner(doing, self.origin, self.project)

    def _bulk(
        self,
        items: Iterable[_Item] | AsyncIterable[_Item],
        perform: Perform[_Item],
        concurrency: int | None,
        *,
        starting: bool,
        keeper: Keeper | None = None,
        note: Note | None = None,
    ) -> BulkRun[_Item]:
        limit = (
            AdaptiveConcurrency() if concurrency is None else FixedConcurrency(check_count(concurrency, "concurrency"))
        )
        return BulkRun(WorkerPool(items, perform, starting, limit, self._clock, note), self._clock, keeper)

    async def aclose(self) -> None:
        """Take no new calls, give those under way five seconds to end, then close the connections."""
        await self._line.aclose()

    async def __aenter__(self) -> Self:
        self._line.sessions.check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> NoReturn:
        raise TypeError("StreamsClient is asynchronous: write 'async with StreamsClient(...) as client:'")

    def __exit__(self, *_: object) -> None:
        """Do nothing; it is here so that ``__enter__`` can explain itself."""

    def __repr__(self) -> str:
        return f"StreamsClient({self.origin!r}, project={self.project!r})"


def _read(environment: Mapping[str, str]) -> tuple[str, str, str]:
    space, project, token = (environment.get(name) or "" for name in _ENVIRONMENT)
    return space, project, Secret(token)


def _headers(account: Account) -> Mapping[str, str]:
    return {"Authorization": account.authorization, "Accept": "application/json", "User-Agent": user_agent()}
