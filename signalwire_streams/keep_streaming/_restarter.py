"""Restarts of one stream whose session is open: `MediaReceiver.open` with ``when_lost="restart"``.

The decisions are those for a keeper's target. This module is above the receiver, which knows no requests: the client's
resources bring a `Restarter` with them.
"""

import asyncio
import logging
from functools import partial
from secrets import token_urlsafe
from typing import Any

from attrs import define, evolve, field

from signalwire_streams.bulk._serialization import stream_of
from signalwire_streams.callbacks._events import CallbackEvent
from signalwire_streams.errors import MalformedFrameError, StreamOutcomeUnknownError, StreamsError
from signalwire_streams.keep_streaming._background import Alarm, BackgroundTasks
from signalwire_streams.keep_streaming._decisions import decide
from signalwire_streams.keep_streaming._events import (
    KeepEvent,
    KeepStatus,
    StreamingInDoubt,
    TargetFailing,
)
from signalwire_streams.keep_streaming._settings import DUPLICATE_NAMES, KeepSettings
from signalwire_streams.keep_streaming._state import (
    Fate,
    GetTarget,
    KeepAction,
    KeepObservation,
    NameRefused,
    SocketClosed,
    SocketOpened,
    StartRejected,
    StartStream,
    StopByName,
    StopBySid,
    StreamAttempt,
    TargetState,
    TimePassed,
    WaitUntil,
)
from signalwire_streams.keep_streaming._target_requests import TargetRequests, observation_of
from signalwire_streams.models import Priority
from signalwire_streams.models._validation import Secret
from signalwire_streams.receiver import EndReason, StreamSession
from signalwire_streams.receiver._pending_stream import PendingStream, PendingStreams
from signalwire_streams.resources._streams import Streams

_LOG = logging.getLogger("signalwire_streams.receiver")
_MIN_LIFETIME = 2.0  # seconds; a stream that is lost sooner is not started again at once
_MAX_WAIT = 10.0  # seconds between two starts, since a conversation continues unheard
_REFUSED_WAIT = 3.0  # seconds until a name is tried again that no stream of the session has any more
_MAX_REFUSALS = 3  # of such a name


class Restarter:
    """Starts one stream again whenever it is lost, until its session ends, or its conference or call does."""

    def __init__(
        self,
        streams: Streams[Any],
        reads: Streams[Any],
        pending: PendingStream,
        receiving: PendingStreams,
        *,
        socket_timeout: float,
        **fields: Any,  # noqa: ANN401  (the request validates them)
    ) -> None:
        given = {name: value for name, value in fields.items() if value is not None and name != "deadline"}
        self._request = streams.request(pending.target, name=pending.name, **given)
        settings = KeepSettings(
            duplicate_names=DUPLICATE_NAMES[streams.kind],
            receives=True,
            socket_timeout=socket_timeout,
            min_lifetime=_MIN_LIFETIME,
            reassert=_REFUSED_WAIT,
            wait_max=_MAX_WAIT,
        )
        self._requests = TargetRequests(
            kind=streams.kind, settings=settings, streams=streams, reads=reads, priority=Priority.INTERACTIVE
        )
        self._pending, self._receiving = pending, receiving
        self._state = TargetState()
        self._attached: int  # the attempt whose socket the session has, or had last; from the first restart on
        self._sockets: dict[int, _AttemptSocket] = {}
        self._session: StreamSession  # from the first loss on
        self._reason: EndReason  # of the last loss
        self._was_lost = self._is_over = False
        self._refusals = 0  # in a row
        self._tasks, self._alarm = BackgroundTasks(self._fail), Alarm()

    # --- Called by the receiver

    def on_lost(self, session: StreamSession, reason: EndReason) -> None:
        self._session, self._reason = session, reason
        if self._is_over:
            self.end_session(reason)
            return
        _LOG.warning(
            "stream %s was lost (%s); restarting unless its conference or call has ended",
            session.label,
            reason,
            extra={"stream": session.label},
        )
        if self._was_lost:
            self._observe(SocketClosed(attempt=self._attached))
        else:
            self._was_lost = True
            _ = self._tasks.spawn(self._begin)

    def on_callback(self, callback: Any) -> None:  # noqa: ANN401  (of another layer)
        observation = observation_of(callback, self._state) if isinstance(callback, CallbackEvent) else None
        if observation is not None and self._is_in_gap:
            self._observe(observation)

    def on_receiver_closed(self) -> None:
        self._is_over = True
        if self._is_in_gap:
            self.end_session(EndReason.SHUTDOWN)

    def resume(self, attempt: int, session: StreamSession) -> StreamSession:
        """Continue the open session over a new socket."""
        if self._is_over or session.stream_sid is None or self._state.find(attempt) is None:
            raise MalformedFrameError("nothing waits for this stream any more, or its start event has no sid")
        is_newest = self._is_in_gap or attempt > self._attached
        if is_newest:
            self._session._resume(session)  # noqa: SLF001  (what is private to users is not to this package)
            self._attached = attempt
        self._observe(SocketOpened(attempt=attempt, sid=session.stream_sid))
        if not is_newest:  # which is stopped
            raise MalformedFrameError("a newer stream has taken its place")
        _LOG.info("stream %s continues as %s", self._session.label, session.label, extra=self._log_fields)
        return self._session

    async def end(self) -> list[Any] | None:
        self._is_over = True
        self._alarm.cancel()
        if not self._was_lost:
            return None
        await self._tasks.finish()  # at most one request is under way, and what it did has to be known
        for socket in self._sockets.values():
            self._receiving.forget(socket.token)
        if self._is_in_gap:
            self.end_session(self._reason)
        attempts, of = self._state.attempts, {"kind": self._requests.kind, "target": self._pending.target}
        running = [stream_of(**of, sid=each.sid) for each in reversed(attempts) if each.sid is not None]
        if any(each.sid is None for each in attempts):
            running.append(stream_of(**of, name=self._pending.name))
        return running

    async def wait_closed(self) -> None:
        for socket in self._sockets.values():
            if socket.is_open:
                await socket.socket_closed.wait()

    # --- Decisions and what follows

    async def _begin(self) -> None:
        await asyncio.wait({self._pending.start})
        now = asyncio.get_running_loop().time()
        error, sid = self._pending.start_error(), self._session.stream_sid
        has_second = isinstance(error, StreamOutcomeUnknownError) and error.attempts > 1
        second_sid = None
        if error is None:
            stream = self._pending.start.result()
            sid = sid or stream.sid
            has_second = stream.ambiguous or stream.sid not in {None, sid}
            second_sid = None if stream.ambiguous else stream.sid
        settles_at = (self._session._started_at or now) + self._requests.settings.min_lifetime  # noqa: SLF001  (as above)
        attempts = [StreamAttempt(number=1, fate=Fate.HEARD, sid=sid, settles_at=settles_at)]
        if has_second:
            fate = Fate.IN_DOUBT if second_sid is None else Fate.ENDING
            attempts.append(StreamAttempt(number=2, fate=fate, sid=second_sid, settles_at=now))
        streaming = KeepStatus.STREAMING
        self._state = TargetState(
            last=len(attempts), attempts=tuple(attempts), status=streaming, reported=streaming, has_streamed=True
        )
        self._observe(SocketClosed(attempt=1))

    def _observe(self, observation: KeepObservation) -> None:
        decision = decide(self._state, observation, asyncio.get_running_loop().time(), self._requests.settings)
        self._state = decision.state
        if self._is_over:
            return
        self._alarm.cancel()
        if isinstance(observation, NameRefused) and not self._state.attempts:
            self._refusals += 1
        elif isinstance(observation, SocketOpened):
            self._refusals = 0
        if self._refusals == _MAX_REFUSALS:
            self._end_in_doubt(
                f"the Space refuses the name {self._pending.name}, so it accepts no name twice, or another stream has "
                "it: open a new session with another name"
            )
            return
        for event in decision.events:
            self._report(event)
        if self._state.status is KeepStatus.ENDED:
            self._is_over = True
            self.end_session(self._reason)
        for action in () if self._is_over else decision.actions:
            self._execute(action)

    @property
    def _log_fields(self) -> dict[str, object]:
        return {"stream": self._session.label}

    def _report(self, event: KeepEvent) -> None:
        settings = self._requests.settings
        if isinstance(event, TargetFailing):
            _LOG.warning("stream %s is not back yet: %s", self._session.label, event.reason, extra=self._log_fields)
        elif isinstance(event, StreamingInDoubt) and settings.is_guarded:
            _LOG.warning(
                "stream %s may have been started again already: %s",
                self._session.label,
                event.reason,
                extra=self._log_fields,
            )
        elif isinstance(event, StreamingInDoubt):
            self._end_in_doubt(event.reason or "")

    def _end_in_doubt(self, reason: str) -> None:
        self._is_over = True
        error = StreamOutcomeUnknownError(
            f"the stream was lost, and another one may be running on {self._pending.target}: {reason}",
            sent="maybe",
            name=self._pending.name,
            target=self._pending.target,
        )
        self.end_session(EndReason.IN_DOUBT, error)

    def _execute(self, action: KeepAction) -> None:
        match action:
            case WaitUntil():
                delay = action.at - asyncio.get_running_loop().time()
                self._alarm.set(delay, partial(self._observe, TimePassed()))
            case StartStream():  # no journal has to have it before
                _ = self._tasks.spawn(self._start, action.attempt)
            case StopBySid() | StopByName():
                _ = self._tasks.spawn(self._stop, action)
            case GetTarget():
                _ = self._tasks.spawn(self._check)

    async def _start(self, attempt: int) -> None:
        if self._is_over:
            self._observe(StartRejected(attempt=attempt, reason="the session has ended"))
            return
        self._forget_sockets()
        socket = self._sockets[attempt] = _AttemptSocket(attempt, self, self._pending)
        self._receiving.expect(socket.token, socket)
        request = evolve(self._request, authorization_bearer_token=socket.token)
        self._observe(await self._requests.start(request, attempt))

    async def _stop(self, stop: StopBySid | StopByName) -> None:
        self._observe(await self._requests.stop(self._pending.target, stop, self._pending.name))

    async def _check(self) -> None:
        checked, _ = await self._requests.check(self._pending.target)
        self._observe(checked)

    @property
    def _is_in_gap(self) -> bool:
        return self._was_lost and self._session._socket_ended.is_set()  # noqa: SLF001  (as above)

    def end_session(self, reason: EndReason, error: StreamsError | None = None) -> None:
        self._session._on_lost = None  # noqa: SLF001  (as above)
        self._session._close(reason, error=error)  # noqa: SLF001  (as above)

    def _forget_sockets(self) -> None:
        """Reject the sockets of attempts that are over."""
        for attempt, socket in list(self._sockets.items()):
            if self._state.find(attempt) is None and (socket.socket_closed.is_set() or not socket.is_open):
                self._receiving.forget(self._sockets.pop(attempt).token)

    def _fail(self, error: Exception) -> None:
        """End the session: the client or the receiver is closed, or there is a bug."""
        trace = None if isinstance(error, StreamsError) else error
        _LOG.warning(
            "stream %s is not started again: %s", self._session.label, error, exc_info=trace, extra=self._log_fields
        )
        self._is_over = True
        self.end_session(self._reason)


@define(eq=False)
class _AttemptSocket:
    """The socket of one attempt, which presents a token of its own."""

    attempt: int
    restarter: Restarter
    pending: PendingStream
    token: Secret = field(factory=lambda: Secret(token_urlsafe(32)), repr=False)
    is_open: bool = False
    socket_closed: asyncio.Event = field(factory=asyncio.Event)

    def adopt(self, session: StreamSession) -> StreamSession:
        session = self.restarter.resume(self.attempt, session)
        self.is_open = True
        return session

    async def on_session(self, session: StreamSession) -> None:
        await self.pending.serve(session)

    def on_socket_failed(self, reason: str) -> None:
        _LOG.info("the socket of attempt %d failed: %s", self.attempt, reason, extra={"attempt": self.attempt})
        self.socket_closed.set()
        if self.is_open:
            self.restarter.end_session(EndReason.SHUTDOWN)
