"""The aiohttp session: made late, in the running loop, or borrowed and never closed."""

import asyncio
import platform
from importlib.metadata import version
from weakref import WeakKeyDictionary

import aiohttp
from attrs import define, field

from signalwire_streams._http.deadlines import Deadline, DeadlineTimer
from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.clock import LoopGuard
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.models import AttemptResult, RetryDecision

_KEEPALIVE = 10.0

_FRAMING = ("Content-Length", "Transfer-Encoding", "Content-Encoding", "Expect")
"""Headers that say how a body is sent, so that as a session's default they are wrong for every request."""

_LENT: WeakKeyDictionary[aiohttp.ClientSession, int] = WeakKeyDictionary()
"""The sessions that clients borrowed, and how many of these clients are not closed."""


@define(eq=False)
class SessionManager:
    """Owns one ``aiohttp.ClientSession``, or borrows the caller's.

    Attributes:
        connections: how many connections may be open at once.
        borrowed: the caller's session, which is never closed here.
    """

    connections: int
    borrowed: aiohttp.ClientSession | None = None
    _owned: aiohttp.ClientSession | None = field(init=False, default=None)
    _guard: LoopGuard = field(init=False, factory=lambda: LoopGuard("client", "StreamsClient"))
    _shut: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        if self.borrowed is None:
            return
        if not isinstance(self.borrowed, aiohttp.ClientSession):
            raise InvalidRequestError(f"session must be an aiohttp.ClientSession, not {type(self.borrowed).__name__}")
        if self.borrowed.auth is not None:
            raise InvalidRequestError(
                "the session has auth= of its own, which clashes with the Space's: make it without auth="
            )
        wrong = [name for name in _FRAMING if name in self.borrowed.headers]
        if wrong:
            raise InvalidRequestError(
                f"the session sends {' and '.join(wrong)} with every request, whatever its body: make it without them"
            )
        _LENT[self.borrowed] = _LENT.get(self.borrowed, 0) + 1

    def check(self) -> None:
        """Check that requests can be made here and now.

        Raises:
            ClientStateError: the client is closed, belongs to another event loop, or its session is closed.
        """
        self._guard.enter()
        if self.borrowed is not None and self.borrowed.closed:
            raise ClientStateError("the session that was handed to this client is closed: keep it open, or pass none")

    def session(self) -> aiohttp.ClientSession:
        """Give the session to use, making it when there is none yet. Call `check` before."""
        if self.borrowed is not None:
            return self.borrowed
        if self._owned is None:
            self._owned = aiohttp.ClientSession(
                # `Slots` keeps the count; the pool's own would be a second one.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._owned

    @property
    def max_concurrency(self) -> int:
        """How many exchanges may be under way at once: never more than the pool has connections."""
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
        """Refuse every request from now on."""
        self._guard.leave()

    async def close(self) -> None:
        """Close the session if it is ours, and let no attempt begin any more."""
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
    """Say who is asking: this package, aiohttp and Python, each with its version."""
    return (
        f"signalwire-streams/{version('signalwire-streams')} "
        f"aiohttp/{aiohttp.__version__} Python/{platform.python_version()}"
    )


_DRAIN = 5.0


@define(eq=False)
class Dispatcher:
    """What the resources send their exchanges over.

    Attributes:
        sessions: the aiohttp session's owner.
        handler: the transport with all middlewares around it.
        limits: end the calls that are cut.
    """

    sessions: SessionManager
    handler: Handler
    limits: DeadlineTimer
    _under_way: set[Deadline] = field(init=False, factory=set)
    _idle: asyncio.Event = field(init=False, factory=asyncio.Event)

    async def send(self, exchange: Request) -> Result:
        """Send an exchange and say how the call ended.

        Raises:
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        self.sessions.check()
        cut = self.limits.within(None)
        try:
            with cut:
                self._under_way.add(cut)
                return await self.handler(exchange)
        except TimeoutError:
            if not cut.expired:
                raise
            return _cut(exchange)
        finally:
            self._under_way.discard(cut)
            if not self._under_way:
                self._idle.set()

    async def aclose(self) -> None:
        """Take no new calls, give those under way five seconds to end, cut the rest, close the session."""
        self.sessions.refuse_new()
        try:
            if self._under_way:
                self._idle.clear()
                async with asyncio.timeout(_DRAIN):
                    await self._idle.wait()
        except TimeoutError:
            for cut in self._under_way:
                cut.expire()
        finally:
            await self.sessions.close()
            self.limits.close()


def _cut(exchange: Request) -> Result:
    progress = exchange.state
    unknown = exchange.operation.is_start and (progress.record_attempt() != "no" or progress.may_have_succeeded)
    return Result(
        attempt_result=AttemptResult.UNRETRYABLE,
        phase=progress.phase,
        detail="the client was closed meanwhile",
        decision=RetryDecision.UNKNOWN if unknown else RetryDecision.FAIL,
        attempts=progress.attempts,
        sent=progress.sent,
    )
