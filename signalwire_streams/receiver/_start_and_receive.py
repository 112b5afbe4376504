"""Starting a stream and receiving it as one thing: three legs that may come in any order, and one end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from secrets import token_hex, token_urlsafe
from typing import Any, Protocol, TypeVar

from attrs import define, field

from signalwire_streams.errors import (
    ApiError,
    CircuitOpenError,
    InvalidRequestError,
    OpenError,
    RateLimitedError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.models import GENERATED_NAME
from signalwire_streams.models._validation import Secret
from signalwire_streams.receiver._server import token_hash
from signalwire_streams.receiver._session import EndReason, StreamSession


class Callback(Protocol):
    """What a status callback tells: one of `signalwire_streams.callbacks`."""

    @property
    def target(self) -> str | None:
        """The sid of the conference or call."""
        ...

    @property
    def stream_sid(self) -> str | None:
        """The stream."""
        ...

    @property
    def stream_name(self) -> str | None:
        """Its ``Name``."""
        ...

    @property
    def end_reason(self) -> str | None:
        """How it ended, or None where it did not."""
        ...

    @property
    def is_duplicate(self) -> bool:
        """Whether it tells that a second stream was refused; whose sid it then has is not documented."""
        ...


@define(eq=False)
class Joining:
    """One start that is waited for.

    Attributes:
        target: the sid of its conference or call.
        name: the stream's Name, unique on that.
        token: what its socket will carry; nobody else knows it.
        arrived: the session, once the socket has begun; or what keeps it from that.
        left: set when its owner has no use for it any more.
        closed: set when its socket is closed.
    """

    target: str
    name: str
    token: str = field(factory=lambda: Secret(token_urlsafe(32)), repr=False)
    arrived: "asyncio.Future[StreamSession]" = field(factory=lambda: asyncio.get_running_loop().create_future())
    left: asyncio.Event = field(factory=asyncio.Event)
    closed: asyncio.Event = field(factory=asyncio.Event)
    _stream_sid: str | None = field(init=False, default=None)
    _endings: dict[str | None, str] = field(init=False, factory=dict)
    _last_ending: str | None = field(init=False, default=None)

    async def hold(self, session: StreamSession) -> None:
        """Be the session's handler: hand it to the owner, until that leaves or the stream ends."""
        if self.arrived.done():  # a callback was faster, and told that the stream had ended
            return
        self.arrived.set_result(session)
        waiting = [asyncio.create_task(self.left.wait()), asyncio.create_task(session.wait_closed())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def answered(self, stream_sid: str) -> None:
        """Hear which stream the start made; callbacks of others of that name say nothing of it."""
        self._stream_sid = stream_sid
        self._check()

    def told(self, callback: Callback) -> None:
        """Hear what the Space tells of a stream of that name."""
        if callback.end_reason is None:
            return
        self._last_ending = callback.end_reason
        if not callback.is_duplicate:
            self._endings[callback.stream_sid] = callback.end_reason
            self._check()

    def broke(self, why: str) -> None:
        """Hear that its socket came, and that no stream began on it; there will be no other."""
        self._fail(OpenError(f"its socket came, and no stream began on it: {why}", stage="socket"))

    @property
    def last_ending(self) -> str | None:
        """What the Space told last of a stream of that name, be it this one or another."""
        return self._last_ending

    def _check(self) -> None:
        ending = self._endings.get(self._stream_sid) if self._stream_sid is not None else None
        if ending is not None:
            told = f"the Space says that the stream ended before it came in: {ending}"
            self._fail(OpenError(told, stage="callback"))

    def _fail(self, error: OpenError) -> None:
        if not self.arrived.done():
            self.arrived.set_exception(error)
            self.arrived.exception()  # so that nothing is said of it where nobody waits any more


@define(eq=False)
class Joinings:
    """The starts that are waited for now."""

    _by_token: dict[bytes, Joining] = field(init=False, factory=dict, repr=False)
    _by_name: dict[tuple[str, str], Joining] = field(init=False, factory=dict, repr=False)

    def add(self, target: str, name: str | None) -> Joining:
        """Wait for one more.

        Raises:
            InvalidRequestError: a stream of that name is held there already.
        """
        if name is not None and (target, name) in self._by_name:
            raise InvalidRequestError(f"{target} has an open stream of the name {name!r} here: give each its own name")
        joining = Joining(target, name or f"{GENERATED_NAME}{token_hex(8)}")
        self._by_token[token_hash(joining.token)] = self._by_name[target, joining.name] = joining
        return joining

    def close(self, joining: Joining) -> None:
        """Let no socket in for it any more."""
        self._by_token.pop(token_hash(joining.token), None)

    def remove(self, joining: Joining) -> None:
        """Forget it, now that its stream has ended."""
        self.close(joining)
        self._by_name.pop((joining.target, joining.name), None)

    def claim(self, token: str | None) -> Joining | None:
        """Give the start that a socket with this token belongs to; a token opens one socket."""
        return None if token is None else self._by_token.pop(token_hash(token), None)

    def told(self, callback: Callback) -> None:
        """Hand a status callback to the start that it is about."""
        joining = self._by_name.get((callback.target or "", callback.stream_name or ""))
        if joining is not None:
            joining.told(callback)


_Stream = TypeVar("_Stream")
_MOMENT = 2.0
_OUTAGE, _LEAST_PAUSE = 60.0, 0.05


class Starts(Protocol[_Stream]):
    """What starts and stops streams: ``client.conferences`` or ``client.calls``."""

    async def start_stream(
        self, sid: str, /, *, url: str, name: str | None = ..., authorization_bearer_token: str | None = ...
    ) -> _Stream:
        """Start a stream."""
        ...

    async def stop_stream(self, sid: str, stream: _Stream | str, /) -> _Stream:
        """Stop a stream, given as itself, its sid or its name."""
        ...


@define(eq=False)
class JoinedStart:
    """Carries one joined start from its POST to its end.

    Attributes:
        joining: where its socket will be announced.
        start: the POST, as it is under way.
        stop: stops a stream, given as itself, its sid or its name.
    """

    joining: Joining
    start: "asyncio.Future[Any]"
    stop: Callable[[Any], Awaitable[object]]

    def __attrs_post_init__(self) -> None:
        self.start.add_done_callback(self._answered)

    async def session(self, patience: float) -> StreamSession:
        """Wait for the socket, whichever of the three legs comes first.

        Args:
            patience: seconds from the answer to the POST to the socket.

        Raises:
            OpenError: one leg failed.
        """
        arrived = self.joining.arrived
        await asyncio.wait({self.start, arrived}, return_when=asyncio.FIRST_COMPLETED)
        error = self._failure()
        if not arrived.done():
            if error is not None and not isinstance(error, StreamOutcomeUnknownError):
                raise OpenError(f"the stream was not started: {error}", stage="start") from error
            await asyncio.wait({arrived}, timeout=patience)
        if arrived.done():
            return arrived.result()
        told = self.joining.last_ending
        if told is not None:
            raise OpenError(f"no socket came, and the Space says of a stream of that name: {told}", stage="callback")
        if error is not None:
            raise OpenError(f"neither answer nor socket came: {error}", stage="start") from error
        raise OpenError(
            f"the stream was started, but nobody dialled within {patience:g} s: is the url reachable from the Space?",
            stage="socket",
        )

    async def end(self) -> None:
        """Stop the stream, unless it certainly does not run, and let its socket go.

        Raises:
            OpenError: it could not be stopped, so it may still be running; the cause is the stop's error.
        """
        try:
            await self._end()
        except StreamsError as error:
            at = f"stream {self.joining.name!r} on {self.joining.target}"
            raise OpenError(
                f"{at} may still be running, since it could not be stopped: {error}", stage="stop"
            ) from error
        finally:
            self.joining.left.set()
            if self._session() is not None:
                await self.joining.closed.wait()

    async def _end(self) -> None:
        session = self._session()
        stopped = None
        if session is not None and session.stream_sid is not None and not self.start.done():
            # The socket tells what runs. Whoever has heard enough does not wait for an answer that hangs.
            stopped = session.stream_sid
            if session.end_reason is not EndReason.STOPPED:
                await self._stop_and_hear(stopped)
        await asyncio.wait({self.start})
        if self._may_run(stopped):
            await self._stop_and_hear(self.start.result() if self._failure() is None else self.joining.name)

    async def _stop_and_hear(self, handle: Any) -> None:  # noqa: ANN401  (a stream of the client's)
        await self._stop_in_time(handle)
        await self._hear_the_end()

    def _answered(self, start: "asyncio.Future[Any]") -> None:
        # After an ambiguous start the sid may be that of a second stream, which the Space refused.
        if self._failure() is None and not start.result().ambiguous and start.result().sid is not None:
            self.joining.answered(start.result().sid)

    def _failure(self) -> BaseException | None:
        if not self.start.done():
            return None
        if self.start.cancelled():  # as the client was closed over it
            return StreamOutcomeUnknownError("the start was cut", sent="maybe", name=self.joining.name)
        return self.start.exception()

    def _session(self) -> StreamSession | None:
        arrived = self.joining.arrived
        return arrived.result() if arrived.done() and arrived.exception() is None else None

    def _may_run(self, stopped: str | None) -> bool:
        """Tell whether a stream may still be there to be stopped, now that the start has ended."""
        session, error = self._session(), self._failure()
        if error is None:
            stream = self.start.result()
            if stopped is not None:  # a repeated attempt may have started another one since
                return bool(stream.ambiguous) or stream.sid != stopped
            return session is None or session.end_reason is not EndReason.STOPPED
        unknown = isinstance(error, StreamOutcomeUnknownError)
        if session is None or stopped is not None:
            return unknown
        return session.end_reason is not EndReason.STOPPED

    async def _hear_the_end(self) -> None:
        """Give the Space a moment to end in its own way what was just stopped."""
        session = self._session()
        if session is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.wait_closed(), _MOMENT)

    async def _stop_in_time(self, handle: Any) -> None:  # noqa: ANN401  (a stream of the client's)
        """Stop the stream; a Space that takes nothing just now is waited for, since nobody else will stop it."""
        clock = asyncio.get_running_loop().time
        until = clock() + _OUTAGE
        while True:
            try:
                return await self._stop(handle)
            except (CircuitOpenError, RateLimitedError) as error:
                pause = max(error.retry_after or 0.0, _LEAST_PAUSE)
                if clock() + pause > until:
                    raise
            await asyncio.sleep(pause)

    async def _stop(self, handle: Any) -> None:  # noqa: ANN401  (a stream of the client's)
        try:
            await self.stop(handle)
        except RateLimitedError:
            raise
        except ApiError:
            if not self._had_ended():
                raise

    def _had_ended(self) -> bool:
        """Whether a stop was refused since the stream had ended, which its socket tells where the Space does not."""
        session = self._session()
        return session is not None and session.end_reason is not None
