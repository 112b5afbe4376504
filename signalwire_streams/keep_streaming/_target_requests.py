"""Sends a target's requests; turns responses and callbacks into observations of its attempts."""

import logging
import re
from collections.abc import Sequence
from math import inf
from typing import Any, TypeAlias

from attrs import frozen

from signalwire_streams._http.messages import CallState
from signalwire_streams.bulk._serialization import stream_of
from signalwire_streams.callbacks._events import CallbackEvent, StreamStarted
from signalwire_streams.errors import (
    ApiError,
    ClientStateError,
    NotFoundError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.keep_streaming._decisions import MAX_ATTEMPTS
from signalwire_streams.keep_streaming._settings import KeepSettings
from signalwire_streams.keep_streaming._state import (
    EndedCallback,
    Fate,
    NameRefused,
    ResponseLost,
    StartAccepted,
    StartedCallback,
    StartRejected,
    StopAnswered,
    StopByName,
    StopBySid,
    StopResult,
    StreamAttempt,
    TargetChecked,
    TargetState,
)
from signalwire_streams.keep_streaming._template import ATTEMPT, Item, Start
from signalwire_streams.middleware._retry import REJECTED_FOR_NOW
from signalwire_streams.models import (
    AttemptResult,
    Call,
    CallStatus,
    Conference,
    ConferenceStatus,
    Priority,
    TargetKind,
)
from signalwire_streams.resources._streams import Paginator, Streams

StartAnswer: TypeAlias = StartAccepted | NameRefused | StartRejected | ResponseLost
CallbackObservation: TypeAlias = StartedCallback | NameRefused | EndedCallback

_LOG = logging.getLogger("signalwire_streams.keep_streaming")
_PAGE_SIZE = 1000  # the most that a page may have
_ENDED = frozenset(
    {
        ConferenceStatus.COMPLETED,
        CallStatus.COMPLETED,
        CallStatus.CANCELED,
        CallStatus.BUSY,
        CallStatus.FAILED,
        CallStatus.NO_ANSWER,
    }
)
_MAY_HAVE_STARTED = REJECTED_FOR_NOW - {AttemptResult.THROTTLED}
_NO_FAILURE = frozenset({None, AttemptResult.DONE, AttemptResult.ACCEPTED})
_MODELS: dict[TargetKind, type[Item]] = {TargetKind.CONFERENCE: Conference, TargetKind.CALL: Call}
_MAX_DIGITS = 20  # a number of ours is shorter, and a very long one would take long to parse
_NEEDLESS = re.compile(
    r"^(start|stop) a stream on (conference|call) \S+: "  # which an event has as its target
    r"|; stop it by its name .*$"  # which the keeper does
    r"| \([^()]*(retry after|request id)[^()]*\)$"  # which differs each time
)
_NO_SID = "the Space accepted it, but its response does not say which stream it started"


@frozen(kw_only=True)
class TargetRequests:
    """Sends the requests about the targets of one kind.

    Attributes:
        kind: conference or call.
        settings: those of the kind.
        streams: for starts and stops.
        reads: for lists and checks, which no circuit breaker holds back.
        priority: of the starts and stops; those of a keeper go below those of other callers.
    """

    kind: TargetKind
    settings: KeepSettings
    streams: Streams[Any]
    reads: Streams[Any]
    priority: Priority = Priority.BULK

    def list(self) -> Paginator[Any]:
        """Return the list of those in progress, in pages as large as there are."""
        return self.reads.paginate(_MODELS[self.kind], {"Status": "in-progress"}, _PAGE_SIZE)

    async def get(self, sid: str) -> Item | None:
        """Fetch a target. Return None if it has ended.

        Raises:
            StreamsError: whether it has ended is not known.
        """
        try:
            item = await self.reads.get(sid, _MODELS[self.kind])
        except NotFoundError as error:
            if _is_bare(error):  # which may be a proxy's
                raise
            return None
        return None if item.status in _ENDED else item

    async def check(self, sid: str) -> tuple[TargetChecked, Item | None]:
        """Return whether a target is in progress, and the target if it could be fetched."""
        try:
            item = await self.get(sid)
        except StreamsError as error:
            _LOG.info("%s could not be checked: %s", sid, error, extra={f"{self.kind}": sid})
            return TargetChecked(in_progress=None), None
        return TargetChecked(in_progress=item is not None), item

    async def start(self, request: Start, attempt: int, *, deadline_at: float = inf) -> StartAnswer:
        """Start a stream with one request."""
        state = CallState(priority=self.priority, is_sent_once=True, deadline_at=deadline_at)
        try:
            stream = await self.streams.start(request, state=state)
        except ClientStateError:  # the keeper can't continue
            raise
        except StreamsError as error:
            if state.result is AttemptResult.DUPLICATE_NAME:
                return NameRefused(attempt=attempt)
            if self._may_run(error, state):
                return ResponseLost(attempt=attempt, reason=_reason(error))
            return StartRejected(attempt=attempt, reason=_reason(error), may_have_ended=error.sent != "no")
        if stream.sid is None or stream.ambiguous:
            return ResponseLost(attempt=attempt, reason=_NO_SID)
        return StartAccepted(attempt=attempt, sid=stream.sid)

    def _may_run(self, error: StreamsError, state: CallState) -> bool:
        if state.result in _NO_FAILURE:  # a middleware failed, or a token could not be made
            return state.sent != "no"
        # A gateway may refuse what the Space has accepted. Where a second start is safe, that is not ruled out.
        may_run = state.result in _MAY_HAVE_STARTED and self.settings.is_guarded
        return may_run or isinstance(error, StreamOutcomeUnknownError)

    async def stop(
        self, target: str, stop: StopBySid | StopByName, name: str, *, deadline_at: float = inf
    ) -> StopAnswered:
        """Stop a stream by its sid, or by its name."""
        handle = {"sid": stop.sid} if isinstance(stop, StopBySid) else {"name": name}
        stream = stream_of(self.kind, target, **handle)
        try:
            state = CallState(priority=self.priority, deadline_at=deadline_at)
            await self.streams.stop(target, stream, state=state)
        except ClientStateError:
            raise
        except StreamsError as error:
            is_unknown = isinstance(error, NotFoundError) and not _is_bare(error)
            result = StopResult.NOT_FOUND if is_unknown else StopResult.FAILED
            return StopAnswered(stop=stop, result=result, reason=_reason(error))
        return StopAnswered(stop=stop, result=StopResult.ENDED)

    async def stop_all(
        self, target: str, attempts: Sequence[StreamAttempt], prefix: str, *, deadline_at: float
    ) -> tuple[str, ...]:
        """Stop the streams of all attempts, by their sids or else by their names. Return why some may still run."""
        by_name = [attempt for attempt in attempts if attempt.sid is None]
        if len(attempts) >= MAX_ATTEMPTS and self.settings.is_guarded:
            by_name = by_name or [attempts[-1]]  # which stops one that was forgotten
        stops: dict[str, StopBySid | StopByName] = {
            attempt.sid: StopBySid(sid=attempt.sid) for attempt in attempts if attempt.sid is not None
        }
        for attempt in by_name:
            stops[self.settings.stream_name(prefix, target, attempt.number)] = StopByName(attempt=attempt.number)
        answers = [await self.stop(target, stop, name, deadline_at=deadline_at) for name, stop in stops.items()]
        return tuple(answer.reason for answer in answers if answer.result is not StopResult.ENDED)


def _reason(error: StreamsError) -> str:
    """Return an error's message without what an event need not have, so that it is reported once."""
    return _NEEDLESS.sub("", str(error))


def _is_bare(error: ApiError) -> bool:
    """Return whether a rejection does not come with an error of the API."""
    return error.code is None and not error.errors


def observation_of(callback: CallbackEvent, state: TargetState) -> CallbackObservation | None:
    """Return what a status callback says about an attempt, or None if it says nothing of one.

    The callback's URL says of which one it is, or else the stream's sid. A name does not, since several attempts have
    it, and other starts may. If a gateway sent the start of an attempt twice, its URL is that of two streams.
    """
    number = _number(callback.extra.get(ATTEMPT))
    if number is None:
        if callback.stream_sid is None or callback.is_duplicate:  # which may have the sid of the stream that runs
            return None
        number = next((each.number for each in state.attempts if each.sid == callback.stream_sid), None)
        if number is None:
            return None
    if callback.is_duplicate:
        return NameRefused(attempt=number)
    if callback.end_reason is not None:
        heard = [each.sid for each in state.of_fate(Fate.HEARD) if each.number == number]
        is_of_other = heard and callback.stream_sid not in {None, *heard}
        return None if is_of_other else EndedCallback(attempt=number, reason=callback.end_reason)
    if isinstance(callback, StreamStarted) and callback.stream_sid is not None:
        return StartedCallback(attempt=number, sid=callback.stream_sid)
    return None


def _number(text: object) -> int | None:
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    return None
