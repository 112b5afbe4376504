"""Starting and stopping streams, the same on conferences and on calls."""

from collections.abc import Mapping
from typing import Generic, TypeVar

from attrs import evolve, frozen

from signalwire_streams.errors import InvalidRequestError, NotFoundError
from signalwire_streams.models import (
    Action,
    CallStream,
    ConferenceStream,
    StreamStatus,
)
from signalwire_streams.models.checks import check_handle
from signalwire_streams.transport.line import Line
from signalwire_streams.wire import exchanges
from signalwire_streams.wire.account import Account
from signalwire_streams.wire.answers import read_stream
from signalwire_streams.wire.exchange import Errand, Exchange, Outcome
from signalwire_streams.wire.failures import failure_of

_Stream = TypeVar("_Stream", ConferenceStream, CallStream)
_SUCCEEDED = frozenset({Action.FINISH, Action.ALREADY_STARTED, Action.ALREADY_STOPPED, Action.BY_NAME})


async def settle(line: Line, exchange: Exchange) -> Outcome:
    """Perform an exchange, and raise what kept it from succeeding.

    Raises:
        StreamsError: the typed error of the call.
    """
    outcome = await line.perform(exchange)
    if outcome.action not in _SUCCEEDED:
        raise failure_of(exchange, outcome)
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

    line: Line
    account: Account
    collection: str
    model: type[_Stream]
    target_field: str

    async def start(
        self, request: exchanges.Start, *, deadline: float | None = None, errand: Errand | None = None
    ) -> _Stream:
        """Start a stream, under a generated name where the caller gave none."""
        if request.name is None and not request.unnamed:
            request = evolve(request, name=exchanges.generate_name())
        exchange = exchanges.start(self.account, request, deadline=deadline, errand=errand or Errand())
        outcome = await settle(self.line, exchange)
        known: dict[str, object] = {
            self.target_field: request.target,
            "ambiguous": outcome.ambiguous,
            "already_started": outcome.action is Action.ALREADY_STARTED,
        }
        if request.name is not None:
            known["name"] = request.name
        # What refuses a second stream tells nothing of the first one.
        reply = outcome.reply if outcome.action is Action.FINISH else None
        return read_stream(None if reply is None else reply.document, self.model, known)

    async def stop(
        self, target: str, stream: _Stream | str, *, deadline: float | None = None, errand: Errand | None = None
    ) -> _Stream:
        """Stop a stream, given as itself, its sid or its name."""
        errand = errand or Errand()
        if isinstance(stream, str):
            return await self._stop_by(target, check_handle(stream, "stream"), stream, deadline, errand)
        if not isinstance(stream, self.model):
            raise InvalidRequestError(
                f"stream is a {type(stream).__name__}: pass a {self.model.__name__}, a sid or a name"
            )
        if getattr(stream, self.target_field) != target:
            raise InvalidRequestError(f"the stream belongs to another {self.target_field}: pass that one")
        handles = [handle for handle in (stream.sid, stream.name) if handle]
        if not handles:
            raise InvalidRequestError(
                "the stream has neither sid nor name, so it can't be stopped: end its call instead"
            )
        if not stream.ambiguous:
            return await self._stop_by(target, handles[0], stream, deadline, errand)
        # Its sid may be that of the second stream, which the Space refused, so the name goes first.
        try:
            return await self._stop_by(target, handles[-1], stream, deadline, errand)
        except NotFoundError:
            if len(handles) == 1:
                raise
        return await self._stop_by(target, handles[0], stream, deadline, errand)

    async def _stop_by(
        self, target: str, handle: str, stream: _Stream | str, deadline: float | None, errand: Errand
    ) -> _Stream:
        exchange = exchanges.stop(self.account, self.collection, target, handle, deadline=deadline, errand=errand)
        outcome = await settle(self.line, exchange)
        known: Mapping[str, object] = {self.target_field: target}
        if outcome.reply is not None and outcome.action is Action.FINISH:
            return read_stream(outcome.reply.document, self.model, known)
        # A bare handle may be a sid or a name, so it is neither repeated as the one nor as the other.
        before = read_stream({}, self.model, known) if isinstance(stream, str) else stream
        return evolve(before, status=StreamStatus.STOPPED)
