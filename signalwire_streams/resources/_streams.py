"""Requests shared by conferences and calls: streams, get, end, and lists in pages."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from secrets import token_hex
from typing import Any, Generic, TypeVar

from attrs import evolve

from signalwire_streams._http import requests
from signalwire_streams._http.account import Account
from signalwire_streams._http.error_mapping import to_exception
from signalwire_streams._http.messages import CallState, Request, Result
from signalwire_streams._http.responses import read_item, read_page, read_stream
from signalwire_streams._http.session import Dispatcher
from signalwire_streams.errors import (
    InvalidRequestError,
    MalformedResponseError,
    StartAgain,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.middleware._retry import REJECTED_STOPS, SUCCESSES
from signalwire_streams.models import (
    GENERATED_NAME,
    AttemptResult,
    CallStream,
    ConferenceStream,
    Operation,
    Page,
    Participant,
    RetryDecision,
    StreamStatus,
    TargetKind,
)
from signalwire_streams.models._validation import (
    a_kind_of,
    check_deadline,
    check_flag,
    check_path_segment,
    check_text,
    from_masked,
)

_Item = TypeVar("_Item")
_Stream = TypeVar("_Stream", ConferenceStream, CallStream)

# Looked up once: Python 3.11 looks up each member of an enum in Python.
_SUCCEED, _ALREADY_STARTED = RetryDecision.SUCCEED, RetryDecision.ALREADY_STARTED
_STARTED = {AttemptResult.DONE, AttemptResult.ACCEPTED}
# Empty pages, or pages of items that were listed before: filters, and items that move during the listing, cause some.
_PAGES_WITHOUT_NEWS = 10


class Paginator(Generic[_Item]):
    """A list on the Space: ``async for item in paginator`` fetches page after page, as they are needed.

    Each iteration starts at the first page. The URI of the next page is followed as the Space returned it, on the same
    host only.
    Source: https://signalwire.com/docs/compatibility-api/rest/overview (pagination)
    """

    def __init__(
        self, send: Callable[[Request], Awaitable[Result]], account: Account, first: Request, model: type[_Item]
    ) -> None:
        """Called by the ``list`` methods."""
        self._send, self._account, self._first, self._model = send, account, first, model

    async def __aiter__(self) -> AsyncIterator[_Item]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[_Item]]:
        """Iterate over the pages.

        Raises:
            MalformedResponseError: a page can't be read, leads to another host or back to an earlier page, or is the
                tenth in a row without a new item and leads to another.
            StreamsError: a page could not be fetched.
        """
        path, seen = self._first.path, set[str]()
        known: set[int] = set()
        without_news = 0
        while True:
            seen.add(path)
            page = await self._fetch(path)
            before = len(known)
            known.update(hash(_id_of(item)) for item in page.items)
            without_news = without_news + 1 if len(known) == before else 0
            yield page
            if not page.next_page_uri:
                return
            path = self._account.same_host_path(page.next_page_uri)
            if path in seen or without_news == _PAGES_WITHOUT_NEWS:
                raise MalformedResponseError("the Space's pages form a loop, so the list never ends", sent="yes")

    async def _fetch(self, path: str) -> Page[_Item]:
        # A method of its own, so that the response is freed while the caller works on the page.
        result = await self._send(requests.page_at(self._first, path))
        response = result.response
        try:
            return read_page(response and response.document, self._model, self._first.required_key)
        except MalformedResponseError as error:
            error.attempts, error.status = result.attempts, None if response is None else response.status
            raise


def _id_of(item: object) -> str:
    return item.call_sid if isinstance(item, Participant) else str(getattr(item, "sid", ""))


def check_stream(stream: ConferenceStream | CallStream) -> str:
    """Check a stream that a caller may have recreated from stored values, and return its conference or call."""
    key = stream.kind.target_key
    target = check_path_segment(getattr(stream, key), key)
    if stream.sid:
        check_path_segment(stream.sid, "the stream's sid")
    if stream.name is not None:
        check_text(stream.name, "the stream's name")  # a name by which it is not stopped may have other characters
    return target


class Streams(Generic[_Stream]):
    def __init__(
        self, dispatcher: Dispatcher, account: Account, *, request: type[requests.Start], stream: type[_Stream]
    ) -> None:
        self._dispatcher, self._account = dispatcher, account
        self._request = request
        self._model: type[_Stream] = stream
        self.kind: TargetKind = stream.kind

    def over(self, dispatcher: Dispatcher) -> "Streams[_Stream]":
        """Return the same, whose requests go through another dispatcher."""
        return Streams(dispatcher, self._account, request=self._request, stream=self._model)

    def request(self, target: str, **fields: Any) -> requests.Start:  # noqa: ANN401  (the request validates them)
        return self._request(**fields | {self.kind.target_key: target})

    async def _send(self, request: Request) -> Result:
        """Send a request and return its result; raise a `StreamsError` if it failed or its outcome is unknown."""
        result = await self._dispatcher.send(request)
        if result.decision not in SUCCESSES:
            raise to_exception(request, result)
        return result

    async def get(self, sid: str, model: type[_Item]) -> _Item:
        request = requests.read(self._account, self.kind, check_path_segment(sid, self.kind.target_key))
        result = await self._send(request)
        return read_item(result.response and result.response.document, model)

    async def end(self, sid: str, model: type[_Item], deadline: float | None) -> _Item:
        """End a call or conference. If it had ended before, the result has only its sid and "completed"."""
        check_path_segment(sid, self.kind.target_key)
        request = requests.end(self._account, self.kind, sid, deadline=check_deadline(deadline))
        result = await self._send(request)
        document: object = {"sid": sid, "status": "completed"}
        if result.response is not None and result.decision is _SUCCEED:
            document = result.response.document
        return read_item(document, model)

    def paginate(
        self, model: type[_Item], filters: Mapping[str, object], page_size: int | None, *inside: str
    ) -> Paginator[_Item]:
        first = requests.read_list(self._account, self.kind, *inside, filters=filters, page_size=page_size)
        return Paginator(self._send, self._account, first, model)

    async def start_stream(
        self,
        *,
        name: str | None,
        unnamed: bool,
        parameters: Mapping[str, str] | None,
        may_be_running: bool,
        deadline: float | None,
        **fields: Any,  # noqa: ANN401  (the request validates them)
    ) -> _Stream:
        """Start a stream with a caller's arguments, under a generated name if there is none."""
        check_flag(may_be_running, "may_be_running")
        check_deadline(deadline)
        if name is None and not (unnamed or may_be_running):
            name = f"{GENERATED_NAME}{token_hex(12)}"
        if parameters is not None:
            fields["parameters"] = parameters
        request = from_masked(self._request, name=name, unnamed=unnamed, **fields)
        return await self.start(request, may_be_running=may_be_running, deadline=deadline)

    async def start(
        self,
        request: requests.Start,
        *,
        may_be_running: bool = False,
        deadline: float | None = None,
        state: CallState | None = None,
    ) -> _Stream:
        """Start a stream; if one of that name may be running, the result is as ambiguous as after another attempt."""
        state = state or CallState()
        if may_be_running:
            if request.name is None:
                raise InvalidRequestError(
                    "may_be_running=True needs the name that the stream may be running under: pass it as name=..."
                )
            state.may_have_succeeded = True
        start = requests.start(self._account, request, deadline=deadline, state=state)
        try:
            result = await self._dispatcher.send(start)
        except Exception as error:  # of a middleware of the caller's, which may have sent it before
            if state.may_have_succeeded or state.result in _STARTED:
                error.add_note(
                    f"a stream may be running on {self.kind} {start.target}, under the name {request.name!r}"
                )
            raise
        if result.decision not in SUCCESSES:
            raise self._start_error(request, start, result)
        known: dict[str, object] = {
            self.kind.target_key: start.target,
            "ambiguous": result.ambiguous,
            "already_started": result.decision is _ALREADY_STARTED,
        }
        if request.name is not None:
            known["name"] = request.name
        # The rejection of a second stream says nothing about the first one.
        response = result.response if result.decision is _SUCCEED else None
        return read_stream(response and response.document, self._model, known)

    def _start_error(self, request: requests.Start, start: Request, result: Result) -> StreamsError:
        error = to_exception(start, result)
        if isinstance(error, StreamOutcomeUnknownError):
            error.keep_start(self._starter(request))
        return error

    def _starter(self, request: requests.Start) -> StartAgain:
        # Not a partial, whose repr shows its arguments.
        async def start_again(deadline: float | None) -> _Stream:
            return await self.start(request, may_be_running=True, deadline=check_deadline(deadline))

        return start_again

    async def stop(
        self,
        target: str | _Stream | None,
        stream: _Stream | str | None,
        *,
        deadline: float | None = None,
        state: CallState | None = None,
    ) -> _Stream:
        """Stop a stream, passed as an object, or by its call or conference and its sid or name.

        If the Space rejects it because the stream has ended before, it counts as stopped, with ``already_ended``.
        """
        model, field = self._model, self.kind.target_key
        check_deadline(deadline)
        if stream is None and not isinstance(target, str):
            stream, target = target, None
        if stream is None:
            raise InvalidRequestError(
                f"the stream is missing: pass a {model.__name__}, or the {field} and a sid or a name"
            )
        if not isinstance(stream, str | model):
            raise InvalidRequestError(f"stream is {a_kind_of(stream)}: pass a {model.__name__}, a sid or a name")
        own_target = None if isinstance(stream, str) else check_stream(stream)
        sid = check_path_segment(own_target if target is None else target, field)
        if own_target is not None and own_target != sid:
            raise InvalidRequestError(f"the stream belongs to another {field}: pass that one, or none")
        build = partial(requests.stop, self._account, self.kind, sid, deadline=deadline, state=state or CallState())
        if not isinstance(stream, str):
            return await self._stop_known(build, stream)
        operation = requests.stop_kind(stream)
        known = {field: sid, "sid" if operation is Operation.STOP else "name": stream}
        return await self._send_stop(build(stream, operation), read_stream({}, model, known))

    async def _stop_known(self, build: Callable[[str, Operation], Request], stream: _Stream) -> _Stream:
        # For another project's client the stream may be a 404 although it is running.
        returned = Operation.STOP_RETURNED if stream.account_sid in {None, self._account.sid} else Operation.STOP
        sid = stream.sid
        if sid and not stream.ambiguous:
            return await self._send_stop(build(sid, returned), stream)
        # The sid of an ambiguous start may be that of a second stream, which was rejected, so the name goes first.
        if stream.name:
            return await self._stop_ambiguous(build, stream, stream.name, returned)
        if sid:
            return await self._send_stop(build(sid, Operation.STOP_AMBIGUOUS), stream)
        raise InvalidRequestError("the stream has neither sid nor name, so it can't be stopped: end its call instead")

    async def _stop_ambiguous(
        self, build: Callable[[str, Operation], Request], stream: _Stream, name: str, returned: Operation
    ) -> _Stream:
        sid, by_name = stream.sid, build(name, Operation.STOP_BY_NAME)
        result = await self._dispatcher.send(by_name)
        if result.decision not in SUCCESSES:
            # A bare 404 may be a proxy's, so the Space may find the stream by its name after all.
            if not sid or result.attempt_result is not AttemptResult.NOT_FOUND:
                raise to_exception(by_name, result)
            by_sid = build(sid, Operation.STOP_AMBIGUOUS)
            second = await self._send(by_sid)
            if self._model is CallStream and second.attempt_result is not AttemptResult.TARGET_ENDED:
                # A call takes several streams of one name, so the first one may still be running.
                error = to_exception(by_name, result)
                error.add_note(
                    f"the stream with the sid {sid} was stopped, but an earlier one of that name may still be running"
                )
                raise error
            return self._stopped(by_sid, second, stream)
        stopped = self._stopped(by_name, result, stream)
        # A call may have taken the second stream too, and so may a conference whose first one had ended by then.
        took_one = self._model is ConferenceStream or stopped.sid == sid
        if not sid or (result.decision is _SUCCEED and took_one):
            return stopped
        second_stopped = await self._send_stop(build(sid, returned), stream)
        return second_stopped if stopped.already_ended else stopped

    async def _send_stop(self, request: Request, stream: _Stream) -> _Stream:
        return self._stopped(request, await self._send(request), stream)

    def _stopped(self, request: Request, result: Result, stream: _Stream) -> _Stream:
        """Return the stopped stream, as in the response, or else as it was known."""
        if result.response is not None and result.decision is _SUCCEED:
            known: Mapping[str, object] = {self.kind.target_key: request.target}
            stopped = read_stream(result.response.document, self._model, known)
            # A name that a caller passed may be the stream's sid after all.
            is_named = stopped.name is not None or stream.name == stopped.sid
            return stopped if is_named else evolve(stopped, name=stream.name)
        # If an earlier attempt of this stop may have succeeded, it is unknown what ended the stream.
        ended_before = result.attempt_result in REJECTED_STOPS and not result.ambiguous
        return evolve(stream, status=StreamStatus.STOPPED, already_ended=ended_before)
