"""Starting and stopping streams, the same on conferences and on calls."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, TypeVar

from attrs import evolve, frozen

from signalwire_streams._http import requests
from signalwire_streams._http.account import Account
from signalwire_streams._http.decoding import read_stream
from signalwire_streams._http.error_mapping import to_exception
from signalwire_streams._http.messages import CallContext, Request, Result
from signalwire_streams._http.session import Dispatcher
from signalwire_streams.errors import InvalidRequestError, StartAgain, StreamOutcomeUnknownError
from signalwire_streams.middleware._retry import REFUSED_STOPS
from signalwire_streams.models import (
    AttemptResult,
    CallStream,
    ConferenceStream,
    Operation,
    RetryDecision,
    StreamStatus,
)
from signalwire_streams.models._validation import check_flag, check_path_segment

_Stream = TypeVar("_Stream", ConferenceStream, CallStream)
_SUCCEEDED = frozenset(
    {
        RetryDecision.SUCCEED,
        RetryDecision.ALREADY_STARTED,
        RetryDecision.ALREADY_STOPPED,
        RetryDecision.SUCCEED_WITHOUT_SID,
    }
)


async def send_or_raise(line: Dispatcher, exchange: Request) -> Result:
    """Perform an exchange, and raise what kept it from succeeding.

    Raises:
        StreamsError: the typed error of the call.
    """
    outcome = await line.send(exchange)
    if outcome.decision not in _SUCCEEDED:
        raise to_exception(exchange, outcome)
    return outcome


@frozen
class Streams(Generic[_Stream]):
    """The streams of conferences, or of calls.

    Attributes:
        line: the way to the Space.
        account: who asks.
        collection: ``Conferences`` or ``Calls``.
        model: what a stream of theirs is.
        target_field: under which name the model has its conference or call.
    """

    dispatcher: Dispatcher
    account: Account
    collection: str
    model: type[_Stream]
    target_field: str

    async def start(
        self,
        request: requests.Start,
        *,
        may_be_running: bool = False,
        deadline: float | None = None,
        errand: CallContext | None = None,
    ) -> _Stream:
        """Start a stream, under a generated name where the caller gave none.

        Where an earlier start of that name may be running, the result is as ambiguous as after a repeated attempt.
        """
        errand = errand or CallContext()
        if check_flag(may_be_running, "may_be_running"):
            if request.name is None:
                raise InvalidRequestError(
                    "may_be_running=True needs the name that the stream may be running under: pass it as name=..."
                )
            errand.state.may_have_succeeded = True
        if request.name is None and not request.unnamed:
            request = request.with_name(requests.generate_name())
        exchange = requests.start(self.account, request, deadline=deadline, errand=errand)
        try:
            outcome = await send_or_raise(self.dispatcher, exchange)
        except StreamOutcomeUnknownError as error:
            error.keep_start(self._starter(request))
            raise
        known: dict[str, object] = {
            self.target_field: request.target,
            "ambiguous": outcome.ambiguous,
            "already_started": outcome.decision is RetryDecision.ALREADY_STARTED,
        }
        if request.name is not None:
            known["name"] = request.name
        # What refuses a second stream tells nothing of the first one.
        reply = outcome.response if outcome.decision is RetryDecision.SUCCEED else None
        return read_stream(None if reply is None else reply.document, self.model, known)

    def _starter(self, request: requests.Start) -> StartAgain:
        # No partial, whose repr shows its arguments.
        async def start_again(deadline: float | None) -> _Stream:
            return await self.start(request, may_be_running=True, deadline=deadline)

        return start_again

    async def stop(
        self,
        target: str | _Stream | None,
        stream: _Stream | str | None,
        *,
        deadline: float | None = None,
        errand: CallContext | None = None,
    ) -> _Stream:
        """Stop a stream, given as itself, or by its call or conference and its sid or name.

        Where the Space refuses since the stream has ended before, it counts as stopped, with ``already_ended``.
        """
        if stream is None and not isinstance(target, str):
            stream, target = target, None
        if stream is None:
            raise InvalidRequestError(
                f"the stream is missing: pass a {self.model.__name__}, or the {self.target_field} and a sid or a name"
            )
        if not isinstance(stream, str | self.model):
            raise InvalidRequestError(
                f"stream is a {type(stream).__name__}: pass a {self.model.__name__}, a sid or a name"
            )
        own_target = None if isinstance(stream, str) else getattr(stream, self.target_field)
        sid = check_path_segment(own_target if target is None else target, self.target_field)
        if own_target is not None and own_target != sid:
            raise InvalidRequestError(f"the stream belongs to another {self.target_field}: pass that one, or none")
        write = partial(
            requests.stop, self.account, self.collection, sid, deadline=deadline, errand=errand or CallContext()
        )
        if not isinstance(stream, str):
            return await self._stop_known(write, stream)
        handle = check_path_segment(stream, "stream")
        kind = requests.stop_kind(handle)
        asked = {self.target_field: sid, "sid" if kind is Operation.STOP else "name": handle}
        return await self._settle_stop(write(handle, kind), read_stream({}, self.model, asked))

    async def _stop_known(self, write: Callable[[str, Operation], Request], stream: _Stream) -> _Stream:
        # Another project's client may be told that there is no such stream, although it runs.
        returned = Operation.STOP_RETURNED if stream.account_sid in {None, self.account.sid} else Operation.STOP
        sid = stream.sid
        if sid and not stream.ambiguous:
            return await self._settle_stop(write(sid, returned), stream)
        # The sid of an ambiguous start may be that of a second stream, which the Space refused, so the name goes first.
        if stream.name:
            return await self._stop_ambiguous(write, stream, stream.name, returned)
        if sid:
            return await self._settle_stop(write(sid, Operation.STOP_AMBIGUOUS), stream)
        raise InvalidRequestError("the stream has neither sid nor name, so it can't be stopped: end its call instead")

    async def _stop_ambiguous(
        self, write: Callable[[str, Operation], Request], stream: _Stream, name: str, returned: Operation
    ) -> _Stream:
        sid, by_name = stream.sid, write(name, Operation.STOP_BY_NAME)
        outcome = await self.dispatcher.send(by_name)
        if outcome.decision not in _SUCCEEDED:
            # A bare 404 may be a proxy's, so the Space may find the stream by its name after all.
            if not sid or outcome.attempt_result is not AttemptResult.NOT_FOUND:
                raise to_exception(by_name, outcome)
            by_sid = write(sid, Operation.STOP_AMBIGUOUS)
            found = await send_or_raise(self.dispatcher, by_sid)
            if self.model is CallStream and found.attempt_result is not AttemptResult.TARGET_ENDED:
                # A call takes several streams of one name, so the first one may still be running.
                failure = to_exception(by_name, outcome)
                failure.add_note(f"the stream with the sid {sid} was stopped, but an earlier one of that name may run")
                raise failure
            return self._stopped(by_sid, found, stream)
        stopped = self._stopped(by_name, outcome, stream)
        # A call may have taken the second stream too, and so may a conference whose first one had ended by then.
        took_one = self.model is ConferenceStream or stopped.sid == sid
        if not sid or (outcome.decision is RetryDecision.SUCCEED and took_one):
            return stopped
        second = await self._settle_stop(write(sid, returned), stream)
        return second if stopped.already_ended else stopped

    async def _settle_stop(self, exchange: Request, stream: _Stream) -> _Stream:
        return self._stopped(exchange, await send_or_raise(self.dispatcher, exchange), stream)

    def _stopped(self, exchange: Request, outcome: Result, stream: _Stream) -> _Stream:
        """Return the stopped stream: what the answer says of it, and else what was known of it."""
        if outcome.response is not None and outcome.decision is RetryDecision.SUCCEED:
            known: Mapping[str, object] = {self.target_field: exchange.target}
            stopped = read_stream(outcome.response.document, self.model, known)
            # A name that a caller passed may be the stream's sid after all.
            is_named = stopped.name is not None or stream.name == stopped.sid
            return stopped if is_named else evolve(stopped, name=stream.name)
        # After an attempt of this stop that may have worked, nobody can tell what ended the stream.
        ended_before = outcome.attempt_result in REFUSED_STOPS and not outcome.ambiguous
        return evolve(stream, status=StreamStatus.STOPPED, already_ended=ended_before)
