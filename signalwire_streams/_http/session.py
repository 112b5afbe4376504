"""The aiohttp session and the calls in flight over it."""

import asyncio
import platform
from importlib.metadata import version
from weakref import WeakKeyDictionary

import aiohttp

from signalwire_streams._http.deadlines import Deadline, DeadlineTimer
from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import LoopGuard
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.models import AttemptResult, RetryDecision

_KEEPALIVE, _SHUTDOWN_TIMEOUT = 10.0, 5.0

_FRAMING = ("Content-Length", "Transfer-Encoding", "Content-Encoding", "Expect")
"""Headers that say how a body is sent, so that as a session's default they are wrong for every request."""

_LENT: WeakKeyDictionary[aiohttp.ClientSession, int] = WeakKeyDictionary()
"""The sessions that clients borrowed, and how many of these clients are not closed."""


class SessionManager:
    """Owns one ``aiohttp.ClientSession``, made in the running loop, or borrows the caller's and never closes it."""

    def __init__(self, connections: int, borrowed: aiohttp.ClientSession | None = None) -> None:
        self.connections = connections
        self.borrowed = borrowed
        self._owned: aiohttp.ClientSession | None = None
        self._guard = LoopGuard("client", "StreamsClient")
        self._shut = False
        if borrowed is None:
            return
        if not isinstance(borrowed, aiohttp.ClientSession):
            raise InvalidRequestError(f"session must be an aiohttp.ClientSession, not {type(borrowed).__name__}")
        if borrowed.auth is not None:
            raise InvalidRequestError(
                "the session has its own auth=, which conflicts with the Space's: create it without auth="
            )
        wrong = [name for name in _FRAMING if name in borrowed.headers]
        if wrong:
            raise InvalidRequestError(
                f"the session sends {' and '.join(wrong)} with every request, regardless of its body: "
                "create it without them"
            )
        _LENT[borrowed] = _LENT.get(borrowed, 0) + 1

    def check(self) -> None:
        """Check that requests can be sent in this event loop now.

        Raises:
            ClientStateError: the client is closed, belongs to another event loop, or its session is closed.
        """
        self._guard.enter()
        if self.borrowed is not None and self.borrowed.closed:
            raise ClientStateError("the session passed to this client is closed: keep it open, or pass none")

    def session(self) -> aiohttp.ClientSession:
        """Return the session, creating it on first use. Call `check` before."""
        if self.borrowed is not None:
            return self.borrowed
        if self._owned is None:
            self._owned = aiohttp.ClientSession(
                # The rate-limit middleware limits the concurrency.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._owned

    @property
    def max_concurrency(self) -> int:
        """How many requests may be in flight at once: never more than the pool has connections."""
        connector = self.borrowed.connector if self.borrowed is not None else None
        if connector is None:
            return self.connections
        limits = (self.connections, connector.limit, connector.limit_per_host)
        return min(limit for limit in limits if limit)  # 0 is aiohttp's word for no limit

    @property
    def usable(self) -> bool:
        """Whether a further attempt can be made; between two attempts the client may have been closed."""
        session = self.borrowed or self._owned
        return not self._shut and (session is None or not session.closed)

    def refuse_new(self) -> None:
        self._guard.leave()

    async def close(self) -> None:
        """Prevent further attempts, and close the session unless it is borrowed."""
        if self.borrowed is not None and not self._shut:
            _LENT[self.borrowed] -= 1
        self._shut = True
        if self._owned is not None:
            await self._owned.close()


def idle_in_lent_sessions(port: int | None) -> int:
    """Count the idle connections to a port in the sessions that closed clients had borrowed."""
    connectors = {session.connector for session, clients in _LENT.items() if not clients}
    return sum(
        len(connections)
        for connector in connectors
        if connector is not None
        for key, connections in connector._conns.items()  # noqa: SLF001  (aiohttp has no public way to its idle ones)
        if key.port == port
    )


def user_agent() -> str:
    return (
        f"signalwire-streams/{version('signalwire-streams')} "
        f"aiohttp/{aiohttp.__version__} Python/{platform.python_version()}"
    )


class Dispatcher:
    """Sends requests through the middlewares, and ends the calls in flight when the client closes."""

    def __init__(self, sessions: SessionManager, handler: Handler, timer: DeadlineTimer) -> None:
        self.sessions = sessions
        self._handler = handler
        self._timer = timer
        self._in_flight: set[Deadline] = set()
        self._idle = asyncio.Event()

    async def send(self, request: Request) -> Result:
        """Send a request and return how the call ended.

        Raises:
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        self.sessions.check()
        cut = self._timer.within(None)
        try:
            with cut:
                self._in_flight.add(cut)
                return await self._handler(request)
        except TimeoutError:
            if not cut.expired:
                raise
            return _cut(request)
        finally:
            self._in_flight.discard(cut)
            if not self._in_flight:
                self._idle.set()

    async def aclose(self) -> None:
        """Refuse new calls, wait up to five seconds for those in flight, cancel the rest, close the session."""
        self.sessions.refuse_new()
        try:
            if self._in_flight:
                self._idle.clear()
                async with asyncio.timeout(_SHUTDOWN_TIMEOUT):
                    await self._idle.wait()
        except TimeoutError:
            for cut in self._in_flight:
                cut.expire()
        finally:
            await self.sessions.close()
            self._timer.close()


def _cut(request: Request) -> Result:
    state = request.state
    unknown = request.operation.is_start and (state.record_attempt() != "no" or state.may_have_succeeded)
    return Result(
        attempt_result=AttemptResult.UNRETRYABLE,
        phase=state.phase,
        detail="the client was closed in the meantime",
        decision=RetryDecision.UNKNOWN if unknown else RetryDecision.FAIL,
        attempts=state.attempts,
        sent=state.sent,
    )
