"""Starting a stream and receiving it as one thing: three legs that may come in any order, and one end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from attrs import define

from signalwire_streams.errors import (
    ApiError,
    CircuitOpenError,
    JoinError,
    RateLimitedError,
    StreamOutcomeUnknown,
    StreamsError,
)
from signalwire_streams.receiver.joinings import Joining
from signalwire_streams.receiver.session import EndReason, StreamSession

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
            JoinError: one leg failed.
        """
        arrived = self.joining.arrived
        await asyncio.wait({self.start, arrived}, return_when=asyncio.FIRST_COMPLETED)
        error = self._failure()
        if not arrived.done():
            if error is not None and not isinstance(error, StreamOutcomeUnknown):
                raise JoinError(f"the stream was not started: {error}", leg="start") from error
            await asyncio.wait({arrived}, timeout=patience)
        if arrived.done():
            return arrived.result()
        told = self.joining.last_ending
        if told is not None:
            raise JoinError(f"no socket came, and the Space says of a stream of that name: {told}", leg="callback")
        if error is not None:
            raise JoinError(f"neither answer nor socket came: {error}", leg="start") from error
        raise JoinError(
            f"the stream was started, but nobody dialled within {patience:g} s: is the url reachable from the Space?",
            leg="socket",
        )

    async def end(self) -> None:
        """Stop the stream, unless it certainly does not run, and let its socket go.

        Raises:
            JoinError: it could not be stopped, so it may still be running; the cause is the stop's error.
        """
        try:
            await self._end()
        except StreamsError as error:
            at = f"stream {self.joining.name!r} on {self.joining.target}"
            raise JoinError(f"{at} may still be running, since it could not be stopped: {error}", leg="stop") from error
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
            return StreamOutcomeUnknown("the start was cut", sent="maybe", name=self.joining.name)
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
        unknown = isinstance(error, StreamOutcomeUnknown)
        if session is None or stopped is not None:
            return unknown
        return session.end_reason is not EndReason.STOPPED

    async def _hear_the_end(self) -> None:
        """Give the Space a moment to end in its own way what was just stopped."""
        session = self._session()
        if session is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(session.ended(), _MOMENT)

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
