"""The Space's front door: each HTTP request is counted, limited, perhaps spoiled, answered and journalled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from attrs import define, evolve, field, frozen

from signalwire_streams.simulator._admin import PREFIX, Inspection
from signalwire_streams.simulator._connections import Connection
from signalwire_streams.simulator._faults import FaultKind, FaultRule, Faults
from signalwire_streams.simulator._rate_limit import COUNTED_METHODS, SpaceLimit, http_message
from signalwire_streams.simulator._request_log import ReceivedRequest, RequestLog
from signalwire_streams.simulator._rest import ApiRequest, CompatibilityApi
from signalwire_streams.simulator._routes import Route, find_route
from signalwire_streams.simulator._serializers import Answer, http_date
from signalwire_streams.simulator._spoil import NOT_CARRIED_OUT, Ending, RawBytes, spoil
from signalwire_streams.simulator._validation import Fields, read_fields

__all__ = ["Gateway"]

#: Headers that the journal keeps; Authorization is never one of them.
_KEPT_HEADERS: Final = ("User-Agent", "Content-Type")


class _Sent(web.StreamResponse):
    """Tells aiohttp that the answer is on the wire already; one object serves every request.

    The Space writes its own bytes: it costs half of what aiohttp's responses do, and a Space that sends rubbish on
    purpose has to anyway.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._goes_on = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._goes_on

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, _data: bytes = b"") -> None:
        return


class _Unanswered(web.StreamResponse):
    """Tells aiohttp that the connection is gone, so that it writes nothing and logs nothing."""

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        raise ConnectionResetError


_KEPT_ALIVE: Final = _Sent(keep_alive=True)
_LAST: Final = _Sent(keep_alive=False)


@frozen
class _Arrival:
    """A request as it came in, before its body was read."""

    request: web.BaseRequest
    route: Route
    connection: Connection
    moment: float
    fault: FaultRule | None = None


@define(eq=False, kw_only=True)
class Gateway:
    """Serves the requests of every connection."""

    _api: CompatibilityApi
    _journal: RequestLog
    _faults: Faults
    _limit: SpaceLimit
    _inspection: Inspection
    _clock: Callable[[], float]
    _monotonic: Callable[[], float]
    _sleep: Callable[[float], Awaitable[None]]
    _spoke: Callable[[str], Awaitable[None]]
    _closing: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request; this is aiohttp's handler."""
        connection = cast(Connection, request.protocol)
        connection.busy = True
        try:
            return await self._serve(request, connection)
        except (ConnectionError, web.RequestPayloadError):
            return _Unanswered()
        finally:
            connection.busy = False

    def close(self) -> None:
        """Let go of every answer that is being held back."""
        self._closing.set()

    async def _serve(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        method, moment = request.method, self._monotonic()
        arrival = _Arrival(request, find_route(method, request.raw_path), connection, moment)
        route = arrival.route
        if route.path.startswith(PREFIX):
            return self._send(arrival, self._inspection.answer(method, route.path))
        if method == "POST":
            self._journal._post_arrived(moment)
        if method in COUNTED_METHODS and not self._limit.admit(moment):
            return self._give(arrival, await self._read(arrival), self._limit.refusal())
        rule = self._faults.trip(route.operation, route.target_sid)
        if rule is not None:
            return await self._spoil(evolve(arrival, fault=rule), rule)
        fields = await self._read(arrival)
        return self._give(arrival, fields, self._carry_out(arrival, fields))

    async def _spoil(self, arrival: _Arrival, rule: FaultRule) -> web.StreamResponse:
        must_read = rule.executed or rule.settings.read_body
        fields = await self._read(arrival) if must_read else Fields()
        if rule.kind in {FaultKind.LATENCY, FaultKind.SOCKET_FIRST}:
            return await self._delay(arrival, rule, fields)
        carried_out = rule.executed or rule.kind is FaultKind.DUPLICATE_NAME
        genuine = self._carry_out(arrival, fields) if carried_out else NOT_CARRIED_OUT
        spoiled = spoil(rule.kind, rule.settings, genuine)
        if isinstance(spoiled, Answer):
            return self._give(arrival, fields, evolve(spoiled, created=genuine.created))
        self._note(arrival, fields, answered=None, created=genuine.created)
        await _end(arrival.connection, spoiled)
        return _Unanswered()

    async def _delay(self, arrival: _Arrival, rule: FaultRule, fields: Fields) -> web.StreamResponse:
        if not rule.executed:
            await self._pause(rule.settings.seconds)
            return self._give(arrival, fields, self._carry_out(arrival, fields))
        answer = self._carry_out(arrival, fields)
        self._note(arrival, fields, answered=answer.status, created=answer.created)
        if rule.kind is FaultKind.LATENCY:
            await self._pause(rule.settings.seconds)
        elif answer.created is not None:
            await self._spoke(answer.created)
        return self._send(arrival, answer)

    async def _pause(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(self._sleep(seconds))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((sleeping, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            closing.cancel()
            await asyncio.gather(sleeping, closing, return_exceptions=True)

    async def _read(self, arrival: _Arrival) -> Fields:
        try:
            body = await arrival.request.content.read()
        except (ConnectionError, web.RequestPayloadError):
            self._note(arrival, Fields(), answered=None, created=None)
            raise
        return read_fields(arrival.request.headers.get("Content-Type", ""), body)

    def _carry_out(self, arrival: _Arrival, fields: Fields) -> Answer:
        rule = arrival.fault
        duplicate = rule.settings.as_ if rule is not None and rule.kind is FaultKind.DUPLICATE_NAME else None
        authorization = arrival.request.headers.get("Authorization")
        return self._api.answer(
            ApiRequest(arrival.route, authorization, arrival.route.query_fields(), fields, duplicate)
        )

    def _give(self, arrival: _Arrival, fields: Fields, answer: Answer) -> web.StreamResponse:
        self._note(arrival, fields, answered=answer.status, created=answer.created)
        return self._send(arrival, answer)

    def _send(self, arrival: _Arrival, answer: Answer) -> web.StreamResponse:
        headers = self._limit.headers_at(arrival.moment)
        headers["Date"] = http_date(self._clock())
        keep_alive = arrival.request.keep_alive
        if not keep_alive:
            headers["Connection"] = "close"
        message = http_message(answer, headers)
        if arrival.request.method == "HEAD":
            message = message[: len(message) - len(answer.body)]
        arrival.connection.send(message)
        return _KEPT_ALIVE if keep_alive else _LAST

    def _note(self, arrival: _Arrival, fields: Fields, *, answered: int | None, created: str | None) -> None:
        if not self._journal.keep:
            self._journal._tally(arrival.route.operation, arrival.route.target_sid)
            return
        headers = arrival.request.headers
        self._journal.add(
            ReceivedRequest(
                method=arrival.request.method,
                path=arrival.route.path,
                operation=arrival.route.operation,
                target_sid=arrival.route.target_sid,
                stream_sid=arrival.route.stream,
                fields=fields.values,
                query=arrival.route.query_fields(),
                headers={name: headers[name] for name in _KEPT_HEADERS if name in headers},
                received_at=arrival.moment,
                created=created,
                answered=answered,
                fault=None if arrival.fault is None else arrival.fault.kind.value,
                connection=arrival.connection.number,
            )
        )


async def _end(connection: Connection, spoiled: RawBytes | Ending) -> None:
    match spoiled:
        case RawBytes(data):
            connection.finish(data)
        case Ending.RESET:
            connection.reset()
        case Ending.HANG:
            await connection.wait_gone()
