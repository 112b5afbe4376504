"""Starting a stream and receiving it as one operation: REST response, socket and callbacks arrive in any order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from secrets import token_hex, token_urlsafe
from typing import Any, Literal, Protocol, TypeVar

from signalwire_streams.errors import (
    ApiError,
    BadRequestError,
    CircuitOpenError,
    ClientStateError,
    InvalidRequestError,
    NotFoundError,
    OpenError,
    RateLimitedError,
    StreamOutcomeUnknownError,
    StreamsError,
    UnprocessableError,
)
from signalwire_streams.models import GENERATED_NAME
from signalwire_streams.models._validation import Secret
from signalwire_streams.receiver._auth import token_hash
from signalwire_streams.receiver._connection import wait_unless
from signalwire_streams.receiver._session import EndReason, StreamSession

_END_TIMEOUT = 2.0  # seconds that the Space has to end a stream after it was stopped
_OUTAGE, _MIN_DELAY = 60.0, 0.05  # seconds that a stop is retried while the Space rejects it, and between two attempts


class Callback(Protocol):
    """A status callback of `signalwire_streams.callbacks`."""

    @property
    def target(self) -> str | None: ...
    @property
    def stream_sid(self) -> str | None: ...
    @property
    def stream_name(self) -> str | None: ...
    @property
    def end_reason(self) -> str | None: ...
    @property
    def is_duplicate(self) -> bool: ...  # if so, it is not documented which of the two streams' sids it has


_Stream = TypeVar("_Stream")


class Starts(Protocol[_Stream]):
    """Starts and stops streams: ``client.conferences`` or ``client.calls``."""

    async def start_stream(
        self, sid: str, /, *, url: str, name: str | None = ..., authorization_bearer_token: str | None = ...
    ) -> _Stream: ...
    async def stop_stream(self, sid: str, stream: _Stream | str, /) -> _Stream: ...


class Restarts(Protocol):
    """Starts a stream again whenever it is lost, so that its session goes on."""

    def on_lost(self, session: StreamSession, reason: EndReason) -> None:
        """Called when the stream is lost, which may be for good."""

    def on_callback(self, callback: Callback) -> None:
        """Called with each status callback about the stream's name."""

    def on_receiver_closed(self) -> None:
        """Called when no socket can open any more."""

    async def end(self) -> list[Any] | None:
        """Start no further stream. Return those that may be running; None if none was lost."""

    async def wait_closed(self) -> None:
        """Wait until the sockets of the streams that were started again are closed."""


class PendingStream:
    """One stream from its start request to its end. It has arrived when its socket has sent the start event."""

    def __init__(self, target: str, name: str) -> None:
        self.target = target
        self.name = name  # unique on the target
        self.token = Secret(token_urlsafe(32))  # which only this stream's socket presents
        self.socket_closed = asyncio.Event()
        self.restarts: Restarts | None = None
        # The session, or the error that keeps its socket from becoming one.
        self._arrival: asyncio.Future[StreamSession] = asyncio.get_running_loop().create_future()
        self._released = asyncio.Event()  # the user is done with the session
        self._stream_sid: str | None = None
        self._end_reasons: dict[str | None, str] = {}  # from callbacks, by the sid of the stream
        self._last_end_reason: str | None = None  # of any stream of that name
        self.start: asyncio.Future[Any]
        self._stop: Callable[[Any], Awaitable[object]]

    def begin(self, start: "asyncio.Future[Any]", stop: Callable[[Any], Awaitable[object]]) -> None:
        """Attach the start request, and the function that stops a stream by object, sid or name."""
        self.start, self._stop = start, stop
        start.add_done_callback(self._on_response)

    def _on_response(self, start: "asyncio.Future[Any]") -> None:
        # After an ambiguous start the sid may be that of a second stream, which the Space rejected.
        if self.start_error() is None and not start.result().ambiguous and start.result().sid is not None:
            self._stream_sid = start.result().sid
            self._check_end_reason()

    def on_callback(self, callback: Callback) -> None:
        if self.restarts is not None:
            self.restarts.on_callback(callback)
        if callback.end_reason is None:
            return
        self._last_end_reason = callback.end_reason
        if not callback.is_duplicate:
            self._end_reasons[callback.stream_sid] = callback.end_reason
            self._check_end_reason()

    def _check_end_reason(self) -> None:
        reason = self._end_reasons.get(self._stream_sid) if self._stream_sid is not None else None
        if reason is not None:
            self._fail(f"the Space reports that the stream ended before it arrived: {reason}", "callback")

    def on_socket_failed(self, reason: str) -> None:
        """Called when the socket connected but no stream started on it. There will be no other socket."""
        self._fail(f"its socket connected, but no stream started on it: {reason}", "socket")

    def on_receiver_closed(self) -> None:
        self._fail("the receiver was closed before the stream started on its socket", "socket")
        if self.restarts is not None:
            self.restarts.on_receiver_closed()

    def _fail(self, reason: str, stage: Literal["socket", "callback"]) -> None:
        if not self._arrival.done():
            self._arrival.set_exception(OpenError(reason, stage=stage))
            self._arrival.exception()  # retrieved, so that asyncio does not log it if nobody waits

    def adopt(self, session: StreamSession) -> StreamSession:
        if self.restarts is not None:
            session._survive(self.restarts.on_lost)  # noqa: SLF001  (what is private to users is not to this package)
        return session

    async def on_session(self, session: StreamSession) -> None:
        """Pass the session to the user, as its handler, until the user is done or the stream ends."""
        session._target = self.target  # noqa: SLF001  (what is private to users is not to this package)
        if not self._arrival.done():  # otherwise, a callback was faster and reported that the stream had ended
            self._arrival.set_result(session)
            await self.serve(session)

    async def serve(self, session: StreamSession) -> None:
        """Keep the session's socket open until the user is done or its stream ends."""
        await wait_unless(asyncio.create_task(session._socket_ended.wait()), self._released)  # noqa: SLF001  (the same)

    async def wait_session(self, timeout: float) -> StreamSession:  # noqa: ASYNC109  (it begins with the response)
        """Wait for the session, at most *timeout* seconds after the response to the start request."""
        await asyncio.wait({self.start, self._arrival}, return_when=asyncio.FIRST_COMPLETED)
        error = self.start_error()
        if not self._arrival.done():
            if error is not None and not isinstance(error, StreamOutcomeUnknownError):
                raise OpenError(f"the stream was not started: {error}", stage="start") from error
            await asyncio.wait({self._arrival}, timeout=timeout)
        if self._arrival.done():
            return self._arrival.result()
        if self._last_end_reason is not None:
            raise OpenError(
                f"no socket connected, and the Space reports for a stream of that name: {self._last_end_reason}",
                stage="callback",
            )
        if error is not None:
            raise OpenError(f"neither a response nor a socket arrived: {error}", stage="start") from error
        raise OpenError(
            f"the stream was started, but no connection arrived within {timeout:g} s: is the url "
            "reachable from the Space?",
            stage="socket",
        )

    async def close(self) -> None:
        """Stop the stream, unless it is certainly not running, and close its socket."""
        try:
            await self._stop_if_running()
        except StreamsError as error:
            raise OpenError(
                f"stream {self.name!r} on {self.target} may still be running, since it could not be stopped: {error}",
                stage="stop",
            ) from error
        finally:
            self._released.set()
            if self.session is not None:
                await self.socket_closed.wait()
            if self.restarts is not None:
                await self.restarts.wait_closed()

    async def _stop_if_running(self) -> None:
        if self.restarts is not None and (running := await self.restarts.end()) is not None:
            for stream in running:
                await self._stop_and_wait(stream)
            return
        session = self.session
        stopped = None
        if session is not None and session.stream_sid is not None and not self.start.done():
            # The socket has the sid, so the stop need not wait for a response that may never come.
            stopped = session.stream_sid
            if session.end_reason is not EndReason.STOPPED:
                await self._stop_and_wait(stopped)
        await asyncio.wait({self.start})
        if self._may_run(stopped):
            await self._stop_and_wait(self.start.result() if self.start_error() is None else self.name)

    def _may_run(self, stopped: str | None) -> bool:
        """Return whether a stream may be running after the start has ended and the stream `stopped` was stopped."""
        session, error = self.session, self.start_error()
        if stopped is None and session is not None:
            if session.end_reason is not EndReason.STOPPED:
                return True
            stopped = session.stream_sid
        if error is not None:
            return isinstance(error, StreamOutcomeUnknownError)
        if session is None:
            return True
        stream = self.start.result()  # a later attempt of the start may have started another stream
        return bool(stream.ambiguous) or stream.sid != stopped

    async def _stop_and_wait(self, stream: Any) -> None:  # noqa: ANN401  (a stream of the client's)
        """Stop the stream, and retry while the Space rejects requests, since nothing else will stop it."""
        clock = asyncio.get_running_loop().time
        until = clock() + _OUTAGE
        while True:
            try:
                await self._stop(stream)
                break
            except (CircuitOpenError, RateLimitedError) as error:
                delay = max(error.retry_after or 0.0, _MIN_DELAY)
                if clock() + delay > until:
                    raise
            except ApiError as error:
                if not self._has_ended(error):
                    raise
                break
            await asyncio.sleep(delay)
        session = self.session
        if session is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.wait_closed(), _END_TIMEOUT)

    def _has_ended(self, rejection: ApiError) -> bool:
        """Return whether the stream has ended, though its stop was rejected."""
        reason = None if self.session is None else self.session.end_reason
        if reason in {None, EndReason.IN_DOUBT}:
            return False
        # The Space may not have noticed that a socket broke. After a restart, there may be a second stream.
        is_told = reason in {EndReason.STOPPED, EndReason.CLOSED} and self.restarts is None
        return is_told or isinstance(rejection, BadRequestError | NotFoundError | UnprocessableError)

    @property
    def session(self) -> StreamSession | None:
        """The session that has arrived."""
        return self._arrival.result() if self._arrival.done() and self._arrival.exception() is None else None

    def start_error(self) -> BaseException | None:
        if not self.start.done():
            return None
        if self.start.cancelled():  # the client was closed in the meantime
            return StreamOutcomeUnknownError("the start was interrupted", sent="maybe", name=self.name)
        return self.start.exception()


class ExpectedStream(Protocol):
    """A stream whose socket presents a token of its own."""

    socket_closed: asyncio.Event

    def adopt(self, session: StreamSession) -> StreamSession:
        """Return the session of a socket that has sent its start event: this one, or one that goes on over it.

        Raises:
            MalformedFrameError: there is none; the socket is closed.
        """

    async def on_session(self, session: StreamSession) -> None:
        """Receive the stream; its handler."""

    def on_socket_failed(self, reason: str) -> None:
        """Called when the socket connected but no stream started on it. There will be no other socket."""


class PendingStreams:
    """The streams that were started here and have not ended."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, ExpectedStream] = {}
        self._by_name: dict[tuple[str, str], PendingStream] = {}
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # in which streams are received

    def add(self, target: str, name: str | None) -> PendingStream:
        """Prepare a stream; without a name it gets a generated one."""
        self.check_open()
        if name is not None and (target, name) in self._by_name:
            raise InvalidRequestError(f"{target} already has an open stream named {name!r} here: choose another name")
        stream = PendingStream(target, name or f"{GENERATED_NAME}{token_hex(8)}")
        self._by_token[token_hash(stream.token)] = self._by_name[target, stream.name] = stream
        return stream

    def expect(self, token: str, stream: ExpectedStream) -> None:
        """Admit the socket of a stream that is started elsewhere, by a token of its own."""
        self.check_open()
        self._by_token[token_hash(token)] = stream

    def forget(self, token: str) -> None:
        self._by_token.pop(token_hash(token), None)

    def claim(self, token: str | None) -> ExpectedStream | None:
        """Return the stream that a socket with this token belongs to; a token admits one socket."""
        return None if token is None else self._by_token.pop(token_hash(token), None)

    def on_callback(self, callback: Callback) -> None:
        stream = self._by_name.get((callback.target or "", callback.stream_name or ""))
        if stream is not None:
            stream.on_callback(callback)

    async def stop(self, stream: PendingStream) -> None:
        """Reject further sockets of a stream, stop it, and forget it."""
        self.forget(stream.token)
        try:
            await stream.close()
        finally:
            self.discard(stream)

    def discard(self, stream: PendingStream) -> None:
        """Forget a stream that has ended or was never started."""
        self.forget(stream.token)
        self._by_name.pop((stream.target, stream.name), None)

    def check_open(self) -> None:
        """Check that streams can be received in this event loop.

        Raises:
            ClientStateError: the receiver is closed, or belongs to another event loop.
        """
        if self._is_closed:
            raise ClientStateError("this receiver is closed: create a new MediaReceiver")
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise ClientStateError(
                "this receiver belongs to another event loop: create one MediaReceiver inside each asyncio.run()"
            )

    def close(self) -> None:
        """Add no more streams, and fail those whose socket has not started, since it can't any more."""
        self._is_closed = True
        for stream in self._by_name.values():
            stream.on_receiver_closed()
