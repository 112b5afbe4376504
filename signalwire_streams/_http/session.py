"""A client's state in its event loop: the aiohttp session, deadlines, and the calls in flight."""

import asyncio
import os
from collections.abc import Callable
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import aiohttp
from attrs import field, frozen

from signalwire_streams._http.messages import Handler, Request, Result
from signalwire_streams.errors import ClientStateError, InvalidRequestError
from signalwire_streams.models import AttemptResult, RetryDecision
from signalwire_streams.models._validation import validate_seconds

__all__ = ["Timeouts"]

_NEVER = float("inf")
_SHUTDOWN_TIMEOUT = 5.0

_FRAMING = ("Content-Length", "Transfer-Encoding", "Content-Encoding", "Expect")
"""Headers that say how a body is sent, so that as a session's default they are wrong for every request."""

_LENT: WeakKeyDictionary[aiohttp.ClientSession, int] = WeakKeyDictionary()
"""The sessions that clients borrowed, and how many of these clients are not closed."""


class LoopGuard:
    """Binds an object to the event loop and the process in which it is first used."""

    def __init__(self, what: str, name: str) -> None:
        """Describe the object for messages: *what* it is, and the *name* of its class."""
        self._what, self._name = what, name
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def enter(self) -> None:
        """Check that the object can be used in this event loop and process.

        Raises:
            ClientStateError: it is closed, or belongs to another event loop or process.
        """
        if self._closed:
            raise ClientStateError(f"this {self._what} is closed: create a new {self._name}")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._process = loop, os.getpid()
        elif self._process != os.getpid():
            raise ClientStateError(
                f"this {self._what} belongs to the process that forked this one: create a {self._name} in each"
            )
        elif self._loop is not loop:
            raise ClientStateError(
                f"this {self._what} belongs to another event loop: create one {self._name} inside each asyncio.run()"
            )

    def leave(self) -> bool:
        """Close the object. Return False if there is nothing (more) to close in this loop and process."""
        was_open, self._closed = not self._closed, True
        return was_open and self.is_here()

    def is_here(self) -> bool:
        return self._loop is asyncio.get_running_loop() and self._process == os.getpid()

    def may_close(self) -> bool:
        """Return False in a process that was forked: its connections are those of the other process.

        Raises:
            ClientStateError: the object belongs to another event loop, which is not closed.
        """
        if self._loop is None or self._process != os.getpid():
            return False
        if not (self.is_here() or self._loop.is_closed()):
            raise ClientStateError(f"this {self._what} belongs to another event loop: close it there")
        return True


@frozen(kw_only=True)
class Timeouts:
    """Seconds that one attempt may take.

    Attributes:
        connect: DNS, TCP and TLS together.
        read: between two pieces of a response.
        attempt: the whole attempt, once it has a connection slot and a rate-limit token.
    """

    connect: float = field(default=5.0, validator=validate_seconds)
    read: float = field(default=15.0, validator=validate_seconds)
    attempt: float = field(default=20.0, validator=validate_seconds)


class Deadline:
    """Cancels the block that runs within it when its time is up, and raises TimeoutError, as ``asyncio.timeout`` does.

    Made by `DeadlineTimer.within`: ``with timer.within(5.0) as deadline``.
    """

    def __init__(self, timer: "DeadlineTimer", ends_at: float, *, latest: float) -> None:
        self.ends_at: float = ends_at  # on the loop's clock
        self.expired: bool = False
        self._latest = latest
        self._timer = timer
        self._task: asyncio.Task[object]
        self._cancelling: int

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()  # type: ignore[assignment]  # a coroutine runs in one
        self._cancelling = self._task.cancelling()
        self._timer.running[self] = None
        self._timer.fire_by(self.ends_at)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._timer.running[self]  # the timer stays armed: another deadline will soon need it
        if self.expired:
            # A cancellation from elsewhere must still reach the task.
            own = self._task.uncancel() <= self._cancelling
            if own and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def allow(self, seconds: float) -> None:
        """Limit the next step to *seconds*, within the limit of the whole block."""
        self.ends_at = min(self._latest, asyncio.get_running_loop().time() + seconds)
        self._timer.fire_by(self.ends_at)

    def expire(self) -> None:
        if not self.expired:
            self.expired = True
            self._task.cancel()


class DeadlineTimer:
    """The active deadlines of one event loop, over one timer, since nearly all of them end long before it fires."""

    def __init__(self) -> None:
        self.running: dict[Deadline, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = _NEVER

    def within(self, seconds: float, *, step: float = _NEVER) -> Deadline:
        """Return a deadline this many seconds from now, whose first step may take *step* seconds."""
        now = asyncio.get_running_loop().time()
        return Deadline(self, now + min(seconds, step), latest=now + seconds)

    def fire_by(self, moment: float) -> None:
        if moment < self._fires_at:
            self.close()
            self._fires_at = moment
            self._timer = asyncio.get_running_loop().call_at(moment, self._fire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._fires_at = None, _NEVER

    def _fire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer, self._fires_at = None, _NEVER
        for deadline in list(self.running):
            if deadline.ends_at <= now:
                deadline.expire()
        self.fire_by(min((deadline.ends_at for deadline in self.running if not deadline.expired), default=_NEVER))


class SessionManager:
    """Owns one ``aiohttp.ClientSession``, made in the running loop, or borrows the caller's and never closes it."""

    def __init__(self, connections: int, borrowed: aiohttp.ClientSession | None = None) -> None:
        self.connections = connections
        self.borrowed = borrowed
        self.timer: DeadlineTimer = DeadlineTimer()
        self.create: Callable[[], aiohttp.ClientSession] = aiohttp.ClientSession  # replaced by the transport
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
            ClientStateError: the client is closed, its session is, or one of them belongs to another event loop.
        """
        self._guard.enter()
        if self.borrowed is None:
            return
        if self.borrowed.closed:
            raise ClientStateError("the session passed to this client is closed: keep it open, or pass none")
        loop = asyncio.get_running_loop()
        if getattr(self.borrowed, "_loop", loop) is not loop:  # aiohttp has no public way to it
            raise ClientStateError(
                "the session passed to this client belongs to another event loop: create it inside the same "
                "asyncio.run(), or pass none"
            )

    def session(self) -> aiohttp.ClientSession | None:
        """Return the session, creating it on first use, or None if it or the client was closed since `check`."""
        session = self.borrowed or self._owned
        if session is None and not self._shut:
            self._owned = session = self.create()
        return session if session is not None and not (self._shut or session.closed) else None

    @property
    def max_concurrency(self) -> int:
        """Maximum number of requests in flight, limited by the size of the connection pool."""
        connector = self.borrowed.connector if self.borrowed is not None else None
        if connector is None:
            return self.connections
        limits = (self.connections, connector.limit, connector.limit_per_host)
        return min(limit for limit in limits if limit)  # 0 is aiohttp's word for no limit

    def reject_new(self) -> bool:
        """Accept no more calls, and return whether those in flight are in this event loop.

        Raises:
            ClientStateError: they are in another one, which is not closed.
        """
        self._guard.may_close()
        self._guard.leave()
        return self._guard.is_here()

    async def close(self) -> None:
        """Prevent further attempts, and close the session unless it is borrowed."""
        if self.borrowed is not None and not self._shut:
            _LENT[self.borrowed] -= 1
        self._shut = True
        try:
            if self._owned is not None and self._guard.may_close():
                await self._owned.close()
        finally:
            self.timer.close()


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


class Dispatcher:
    """Sends requests through the middleware, and ends the calls in flight when the client closes."""

    def __init__(self, sessions: SessionManager, handler: Handler) -> None:
        self.sessions = sessions
        self.handler = handler
        self._in_flight: dict[Request, asyncio.Task[object]] = {}
        self._cut: set[Request] = set()
        self._idle = asyncio.Event()

    async def send(self, request: Request) -> Result:
        """Send a request and return how the call ended.

        Raises:
            ClientStateError: the client is closed, or belongs to another event loop.
        """
        self.sessions.check()
        task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]  # a coroutine runs in one
        self._in_flight[request] = task
        cancelling = task.cancelling()
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            # A cancellation from elsewhere must still reach the task.
            if request not in self._cut or task.cancelling() - 1 > cancelling:
                raise
            return _cut(request)
        finally:
            del self._in_flight[request]
            if not self._in_flight:
                self._idle.set()
            if request in self._cut:
                self._cut.remove(request)
                task.uncancel()

    async def aclose(self) -> None:
        """Reject new calls, wait up to five seconds for those in flight, cancel the rest, close the session.

        Raises:
            ClientStateError: the client belongs to another event loop, which is not closed.
        """
        is_here = self.sessions.reject_new()
        try:
            if self._in_flight and is_here:
                self._idle.clear()
                async with asyncio.timeout(_SHUTDOWN_TIMEOUT):
                    await self._idle.wait()
        except TimeoutError:
            for request in self._in_flight.keys() - self._cut:
                self._cut.add(request)
                self._in_flight[request].cancel()
        finally:
            await self.sessions.close()


def _cut(request: Request) -> Result:
    state = request.state
    unknown = request.operation.is_start and (state.record_attempt() != "no" or state.may_have_succeeded)
    return Result(
        attempt_result=AttemptResult.CANCELLED,
        phase=state.phase,
        detail="the client was closed in the meantime",
        decision=RetryDecision.UNKNOWN if unknown else RetryDecision.FAIL,
        attempts=state.attempts,
        sent=state.sent,
    )
