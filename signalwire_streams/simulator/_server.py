"""The Space's HTTP server: it counts each request, applies the limit and the faults, responds, and logs it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from attrs import evolve, frozen

from signalwire_streams.simulator._connections import Connection
from signalwire_streams.simulator._faults import (
    NOT_EXECUTED,
    Disconnection,
    FaultKind,
    FaultRule,
    RawBytes,
    faulty_response,
    matching_rules,
)
from signalwire_streams.simulator._request_log import ReceivedRequest, count_post, count_request
from signalwire_streams.simulator._requests import Fields, Route, find_route, read_fields
from signalwire_streams.simulator._responses import Response, api_error, http_date, http_message, retry_after_header
from signalwire_streams.simulator._rest import ADMIN_PREFIX, AdminApi, ApiRequest, CompatibilityApi
from signalwire_streams.simulator._state import SpaceSettings, SpaceState

_COUNTED_METHODS = frozenset({"POST", "PUT", "PATCH"})
_TOO_MANY_REQUESTS = 20429


class SpaceLimit:
    """A sliding log: no window ever holds more than ``limit`` admitted requests; None admits all (pure).

    SignalWire documents 13,800 POST, PUT and PATCH requests per 10 seconds for a whole Space, all projects together,
    and that each response reports limit and remainder in X- headers whose names it does not give. The names here are a
    guess at what such headers are commonly called. (https://signalwire.com/docs/compatibility-api/)
    """

    def __init__(self, settings: SpaceSettings) -> None:
        self._settings = settings
        self._admitted: deque[float] = deque()

    def admit(self, now: float) -> bool:
        """Return whether a counted request is within the limit; rejected requests are not counted."""
        if self._settings.rate_limit is None:
            return True
        self._expire(now)
        if len(self._admitted) >= self._settings.rate_limit:
            return False
        self._admitted.append(now)
        return True

    def headers_at(self, now: float) -> dict[str, str]:
        settings = self._settings
        advertised = settings.rate_limit if settings.advertised_limit is None else settings.advertised_limit
        if advertised is None or not settings.limit_headers:
            return {}
        self._expire(now)
        remaining = max(advertised - len(self._admitted), 0)
        return {"X-RateLimit-Limit": str(advertised), "X-RateLimit-Remaining": str(remaining)}

    def rejection(self) -> Response:
        response = api_error(429, _TOO_MANY_REQUESTS, "Too many requests")
        return evolve(response, headers=retry_after_header(self._settings.retry_after))

    def _expire(self, now: float) -> None:
        while self._admitted and self._admitted[0] <= now - self._settings.window:
            self._admitted.popleft()


_LOGGED_HEADERS = ("User-Agent", "Content-Type")  # and never Authorization


class _AlreadySentResponse(web.StreamResponse):
    """Signals to aiohttp that the response has been written; one object serves every request.

    The Space writes its own bytes: that costs half of what aiohttp's responses do, and a Space that sends malformed
    responses has to anyway.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keeps_alive = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._keeps_alive

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, _data: bytes = b"") -> None:
        return


class _NoResponse(web.StreamResponse):
    """Signals to aiohttp that the connection is gone, so that it writes nothing and logs nothing."""

    async def prepare(self, _request: web.BaseRequest) -> AbstractStreamWriter | None:
        raise ConnectionResetError


_KEEP_ALIVE = _AlreadySentResponse(keep_alive=True)
_CLOSE = _AlreadySentResponse(keep_alive=False)


@frozen
class _Arrival:
    request: web.BaseRequest
    route: Route
    connection: Connection
    moment: float
    fault: FaultRule | None = None


class Server:
    def __init__(
        self, settings: SpaceSettings, state: SpaceState, *, wait_for_audio: Callable[[str], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._api = CompatibilityApi(settings, state)
        self._admin = AdminApi(state, settings.requests)
        self._limit = SpaceLimit(settings)
        self._wait_for_audio = wait_for_audio
        self._closing = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        connection.busy = True
        try:
            return await self._serve(request, connection)
        except (ConnectionError, web.RequestPayloadError):
            return _NoResponse()
        finally:
            connection.busy = False

    def close(self) -> None:
        self._closing.set()

    async def _serve(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        method, moment = request.method, self._settings.monotonic()
        route = find_route(method, request.raw_path)
        arrival = _Arrival(request, route, connection, moment)
        if route.path.startswith(ADMIN_PREFIX):
            return self._send(arrival, self._admin.respond(method, route.path))
        if method == "POST":
            count_post(self._settings.requests, moment)
        if method in _COUNTED_METHODS and not self._limit.admit(moment):
            return self._log_and_send(arrival, await self._read(arrival), self._limit.rejection())
        rule = next(matching_rules(self._settings.faults, route.operation, route.target_sid), None)
        if rule is not None:
            return await self._serve_with_fault(evolve(arrival, fault=rule), rule)
        fields = await self._read(arrival)
        return self._log_and_send(arrival, fields, self._execute(arrival, fields))

    async def _serve_with_fault(self, arrival: _Arrival, rule: FaultRule) -> web.StreamResponse:
        fields = await self._read(arrival) if rule.executed or rule.settings.read_body else Fields()
        if rule.kind in {FaultKind.LATENCY, FaultKind.SOCKET_FIRST}:
            return await self._delay(arrival, rule, fields)
        if rule.kind is FaultKind.EXECUTED_LATE:
            return await self._execute_late(arrival, rule, fields)
        is_executed = rule.executed or rule.kind is FaultKind.DUPLICATE_NAME
        genuine = self._execute(arrival, fields) if is_executed else NOT_EXECUTED
        faulty = faulty_response(rule, genuine)
        if isinstance(faulty, Response):
            return self._log_and_send(arrival, fields, evolve(faulty, created=genuine.created))
        self._record(arrival, fields, status=None, created=genuine.created)
        match faulty:
            case RawBytes(pieces, pause, closes):
                for piece in pieces:
                    arrival.connection.send(piece)
                    await self._pause(pause)
                if not closes:
                    return _KEEP_ALIVE
                arrival.connection.finish()
            case Disconnection.RESET:
                arrival.connection.reset()
            case Disconnection.HANG:
                await arrival.connection.wait_gone()
        return _NoResponse()

    async def _delay(self, arrival: _Arrival, rule: FaultRule, fields: Fields) -> web.StreamResponse:
        if not rule.executed:
            await self._pause(rule.settings.seconds)
            return self._log_and_send(arrival, fields, self._execute(arrival, fields))
        response = self._execute(arrival, fields)
        self._record(arrival, fields, status=response.status, created=response.created)
        if rule.kind is FaultKind.LATENCY:
            await self._pause(rule.settings.seconds)
        elif response.created is not None:
            await self._wait_for_audio(response.created)
        return self._send(arrival, response)

    async def _execute_late(self, arrival: _Arrival, rule: FaultRule, fields: Fields) -> web.StreamResponse:
        self._record(arrival, fields, status=None, created=None)
        arrival.connection.finish()
        await self._pause(rule.settings.seconds)
        if not self._closing.is_set():
            _ = self._execute(arrival, fields)
        return _NoResponse()

    async def _pause(self, seconds: float) -> None:
        if not seconds:
            return
        sleeping = asyncio.ensure_future(self._settings.sleep(seconds))
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
            self._record(arrival, Fields(), status=None, created=None)
            raise
        return read_fields(arrival.request.headers.get("Content-Type", ""), body)

    def _execute(self, arrival: _Arrival, fields: Fields) -> Response:
        rule, route = arrival.fault, arrival.route
        duplicate = rule.settings.as_ if rule is not None and rule.kind is FaultKind.DUPLICATE_NAME else None
        authorization = arrival.request.headers.get("Authorization")
        return self._api.respond(ApiRequest(route, authorization, fields, duplicate))

    def _log_and_send(self, arrival: _Arrival, fields: Fields, response: Response) -> web.StreamResponse:
        self._record(arrival, fields, status=response.status, created=response.created)
        return self._send(arrival, response)

    def _send(self, arrival: _Arrival, response: Response) -> web.StreamResponse:
        headers = self._limit.headers_at(arrival.moment)
        headers["Date"] = http_date(int(self._settings.clock()))
        keep_alive = arrival.request.keep_alive
        if not keep_alive:
            headers["Connection"] = "close"
        message = http_message(response, headers)
        if arrival.request.method == "HEAD":
            message = message[: len(message) - len(response.body)]
        arrival.connection.send(message)
        return _KEEP_ALIVE if keep_alive else _CLOSE

    def _record(self, arrival: _Arrival, fields: Fields, *, status: int | None, created: str | None) -> None:
        route = arrival.route
        if not self._settings.requests.keep:
            count_request(self._settings.requests, route.operation, route.target_sid)
            return
        headers = arrival.request.headers
        self._settings.requests.add(
            ReceivedRequest(
                method=arrival.request.method,
                path=route.path,
                operation=route.operation,
                target_sid=route.target_sid,
                stream_sid=route.stream,
                fields=fields.values,
                query=route.query_fields(),
                headers={name: headers[name] for name in _LOGGED_HEADERS if name in headers},
                received_at=arrival.moment,
                created=created,
                status=status,
                fault=None if arrival.fault is None else arrival.fault.kind.value,
                connection=arrival.connection.number,
            )
        )
