"""One attempt over aiohttp, from a request to its result. No aiohttp exception escapes.

aiohttp hands out a kept-alive connection even if an unsolicited response has already arrived on it, and takes
the first response that it reads for the response to the request, whether that was written or not. So the attempt's
guard records when the request is written: the connection is checked before that and watched until then, and a response
counts only once all of the request has left.
"""

import asyncio
import re
import select
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict
from yarl import URL

from signalwire_streams._http.account import Account
from signalwire_streams._http.decoding import classify, confirms, contradiction, read_response
from signalwire_streams._http.error_bodies import retry_after
from signalwire_streams._http.messages import Request, Result
from signalwire_streams._http.own_session import create_session, post_head, user_agent
from signalwire_streams._http.session import Deadline, SessionManager, Timeouts
from signalwire_streams._http.transport_errors import (
    RepeatedRequestError,
    SilentResendError,
    UnaskedAnswerError,
    without_response,
)
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.models import AttemptResult, Operation

_SMALL_ANSWER = 64 * 1024
"""Limit in bytes of the unpacked response to a start or a stop, or of a refusal; real ones have a few hundred."""
_LARGE_ANSWER = 4 * 1024 * 1024
"""Limit in bytes of the unpacked response to a read."""
_LARGE_ANSWERS = 8
"""How many responses above the small limit a client reads at once; the others wait, and so do their servers."""
_BUFFER = 64 * 1024
"""Bytes that aiohttp unpacks ahead; a borrowed session may use any other value."""
_MAX_LINE, _MAX_HEADERS = 64 * 1024, 512
"""Gateways add cookies and policies that are longer than aiohttp's 8,190 bytes, and more of them than its 128."""
_REFUSED = 300
_AUTHORIZATION = "Authorization"

_FORM = "application/x-www-form-urlencoded"
_ONE_WRITE = 64 * 1024
_READING_TURNS = 4  # turns of the loop within which it reads what has arrived
_MAX_OVERHEAD = 256 * 1024  # bytes of a head or of trailers; aiohttp limits only each line and their number
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |$)")
_RECORD_HEADER, _RECORD_TAG, _RECORD_NONCE = 5, 16, 8  # bytes of a TLS record besides its content
_TLS_PROTOCOL = "_ssl_protocol"  # asyncio's; on event loops that hide it, what needs it is not checked
_NO_TLS = object()
_CLOSED = "the other end closed the kept-alive connection"
_poll = getattr(select, "poll", None)  # not on Windows

_UNPREPARED = ("params", "skip_auto_headers", "cookies", "auth", "compress", "chunked", "expect100", "proxy", "traces")
"""What a prepared request does not have, by aiohttp's names."""
_TARGET = re.compile("[!-~]+")
_WRITTEN: Any = SimpleNamespace(output_size=0)

_NO_TIMERS = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class AttemptGuard:
    """aiohttp client middleware that records the phase of one attempt and rejects another request's response.

    Attributes:
        transport: that of the connection, once there is one.
        headers: set on the request after netrc and the like.
    """

    def __init__(self, request: Request, deadline: Deadline, read_timeout: float) -> None:
        self.state = request.state
        self.deadline = deadline
        self.read_timeout = read_timeout
        self.transport: asyncio.Transport | None = None
        self.headers: Mapping[str, str] | None = None
        self._has_body = request.body is not None
        self._wrappers: list[_ProtocolWrapper] = []
        self._writer: AbstractStreamWriter | None = None

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        self._check_not_written()
        if self.headers is not None:
            request.headers.update(self.headers)
        if type(request) is not PreparedRequest:
            # The only place where the connection is known and nothing is written yet; aiohttp looks it up on the
            # instance.
            request.send = partial(self._send, request.send)  # type: ignore[method-assign]
        response = None
        try:
            response = await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if self._has_body:
                raise
            raise SilentResendError from error
        finally:
            for wrapper in self._wrappers:
                wrapper.limit_body_of(response)
        if self.state.phase is not Phase.WAITING or _unsent_bytes(self.transport) or _has_foreign_head(response):
            response.close()
            raise UnaskedAnswerError
        self.state.phase = Phase.ANSWERED
        return response

    async def _send(
        self, send: Callable[[Connection], Awaitable[aiohttp.ClientResponse]], conn: Connection
    ) -> aiohttp.ClientResponse:
        await self._watch(conn)
        response = await send(conn)
        if not self._has_body:
            self._record_written(in_one_write=True)
        return response

    async def _watch(self, conn: Connection) -> asyncio.Transport:
        """Check a connection, and watch it from now on.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to it.
        """
        self.transport = transport = conn.transport
        if conn.protocol is None or transport is None:
            raise aiohttp.ClientConnectionResetError(_CLOSED)
        wrapper = _ProtocolWrapper(self, conn.protocol, transport)
        self._wrappers.append(wrapper)
        await wrapper.check()
        return transport

    async def write_prepared(self, conn: Connection, body: "PreparedBody") -> None:
        """Write a request to a connection, head and body at once.

        Raises:
            aiohttp.ClientConnectionError: it must not be written to this connection.
            RepeatedRequestError: it is written already.
        """
        transport = await self._watch(conn)
        self._check_not_written()
        self.state.phase = Phase.WRITING
        transport.write(body.head + body)
        self._record_written(in_one_write=True)

    async def write(self, writer: AbstractStreamWriter, payload: "GuardedPayload") -> None:
        """Write the body, together with the headers. It has secrets, so no local variable is bound to it.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to this connection.
            RepeatedRequestError: it is written already.
        """
        await self._wrappers[-1].check()  # once more, since the loop may have run
        self._check_not_written()
        self._writer = writer
        self.state.phase = Phase.WRITING
        try:
            await writer.write(payload.content)
        except Exception:
            self.record_unwritten()  # a trace hook, which aiohttp calls before it writes, may have raised it
            raise
        self._record_written(in_one_write=len(payload.content) <= _ONE_WRITE)

    def record_unwritten(self) -> None:
        """Correct the phase if nothing was written and nothing can be written any more."""
        if self.state.phase is Phase.WRITING and self._writer is not None and not self._writer.output_size:
            self.state.phase = Phase.CONNECTING

    def _record_written(self, *, in_one_write: bool) -> None:
        # One write either took bytes or closed the transport at once: then the kernel took none, and the kept-alive
        # connection was dead.
        if in_one_write and (self.transport is None or self.transport.is_closing()):
            self.state.phase = Phase.CONNECTING
        else:
            self.state.phase = Phase.WAITING
            self.deadline.allow(self.read_timeout)

    def _check_not_written(self) -> None:
        if self.state.phase is not Phase.CONNECTING:
            raise RepeatedRequestError


class GuardedPayload(BytesPayload):
    """A body that its attempt's guard writes."""

    def __init__(self, body: bytes, guard: AttemptGuard) -> None:
        super().__init__(body, content_type=_FORM)
        self.content, self._guard = body, guard

    async def write_with_length(self, writer: AbstractStreamWriter, _: int | None) -> None:
        await self._guard.write(writer, self)


class PreparedBody(bytes):
    """A body whose head is prepared too, for `PreparedRequest`. Its ``repr`` hides it, since it has secrets."""

    guard: AttemptGuard
    head: bytes
    headers: CIMultiDict[str]  # those that the head is made of

    def __repr__(self) -> str:
        return "***"


def _omit(*_: object) -> None:
    """Do nothing, since the head and the body are prepared."""


class PreparedRequest(aiohttp.ClientRequest):
    """A request of our own session, which writes prepared bytes instead of making them from headers and a payload.

    A request with anything that the bytes do not have becomes one of aiohttp's own: without a body, through a proxy,
    with trace hooks, with another header. An instrumentation of aiohttp may have added these.
    """

    _prepared: PreparedBody

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (aiohttp's own)
        body = options.get("data")
        if isinstance(body, PreparedBody):
            if options["headers"] == body.headers and not any(map(options.get, _UNPREPARED)):
                self._prepared = body
                super().__init__(*arguments, **options)
                return
            options["data"] = GuardedPayload(body, body.guard)
        self.__class__ = aiohttp.ClientRequest  # type: ignore[assignment]
        aiohttp.ClientRequest.__init__(self, *arguments, **options)

    def update_headers(self, headers: Any) -> None:  # noqa: ANN401
        self.headers = headers

    update_host: Any = _omit
    update_auto_headers: Any = _omit
    update_cookies: Any = _omit
    update_content_encoding: Any = _omit
    update_auth: Any = _omit
    update_body_from_data: Any = _omit
    update_transfer_encoding: Any = _omit
    update_expect_continue: Any = _omit

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        response = self.respond()  # before anything is written
        await self._prepared.guard.write_prepared(conn, self._prepared)
        return response

    def respond(self) -> aiohttp.ClientResponse:
        return self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self._session,
            stream_writer=_WRITTEN,
        )


class _ProtocolWrapper(asyncio.Protocol):
    """Receives what arrives until the response is complete, and passes it on to aiohttp's protocol.

    It aborts the connection if data arrives before the request is written, or if too much of it is not body data:
    heads, trailers, chunk extensions. A TLS session ticket is not data. Some event loops look methods up once, so
    replacing them on aiohttp's protocol is not enough.

    A part of a TLS record may arrive before the request is written; it shows only when the rest has arrived. Then more
    was decrypted since the request than arrived since.
    """

    def __init__(self, guard: AttemptGuard, protocol: ResponseHandler, transport: asyncio.Transport) -> None:
        self._guard = guard
        self._protocol = protocol
        self._transport = transport
        self._overhead = 0
        self._body: aiohttp.StreamReader | None = None
        self._body_bytes = 0
        self._removed = False
        transport.set_protocol(self)
        tls: Any = getattr(transport, _TLS_PROTOCOL, None)
        self._tls = tls if hasattr(tls, "buffer_updated") else None
        self._decrypted = self._encrypted = 0
        if self._tls is not None:
            self._encrypted = -_record_overhead(transport.get_extra_info("ssl_object"))
            self._tls.buffer_updated = partial(self._count_encrypted, self._tls.buffer_updated)

    async def check(self) -> None:
        """Raise the reason not to use the connection, if there is one once the loop has read what has arrived.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to it.
        """
        if not (self._is_unfit() or self._has_data()):
            return
        # It also closes the other kept-alive connections that have ended meanwhile. If the process was suspended, so
        # that another one may have taken the request over, the timer of this attempt ends it here.
        for _ in range(_READING_TURNS):
            await asyncio.sleep(0)
        if isinstance(self._protocol.exception(), UnaskedAnswerError):
            raise UnaskedAnswerError
        if self._transport.is_closing():
            raise aiohttp.ClientConnectionResetError(_CLOSED)
        # Over TLS it may have been a session ticket, which never reaches the protocol.
        if self._transport.get_extra_info("ssl_object") is None or self._is_unfit():
            raise UnaskedAnswerError

    def _is_unfit(self) -> bool:
        return (
            self._transport.is_closing()
            or self._protocol.should_close
            or self._guard.deadline.ends_at < asyncio.get_running_loop().time()
        )

    def _has_data(self) -> bool:
        """Ask the kernel: the loop may not have read yet what has arrived, an end of the connection included."""
        connection = self._transport.get_extra_info("socket")
        if _poll is None or connection is None or connection.fileno() < 0:
            return False
        poll = _poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _count_encrypted(self, buffer_updated: Callable[[int], None], size: int) -> None:
        if self._guard.state.phase in {Phase.WRITING, Phase.WAITING, Phase.ANSWERED}:
            self._encrypted += size
        buffer_updated(size)

    def limit_body_of(self, response: aiohttp.ClientResponse | None) -> None:
        """Limit the data that arrives before the body; stop if there is no response or it is complete."""
        self._body, self._overhead = response.content if response is not None else None, 0
        if self._body is None or self._body.is_eof():
            self._remove()

    def _remove(self) -> None:
        self._removed = True
        if getattr(self._transport, _TLS_PROTOCOL, self) is None:
            return  # closed; its connection_lost is still to come
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._protocol)
            if self._tls is not None:
                del self._tls.buffer_updated

    def data_received(self, data: bytes) -> None:
        body = self._body
        # The rest of the request may leave in the very turn in which this was read, so it is looked at here.
        if body is None and (self._guard.state.phase is not Phase.WAITING or _unsent_bytes(self._transport)):
            self._guard.record_unwritten()
            self._refuse(UnaskedAnswerError())
            return
        self._decrypted += len(data)
        if self._tls is not None and self._decrypted > self._encrypted:
            self._refuse(UnaskedAnswerError())
            return
        self._protocol.data_received(data)
        self._overhead += len(data)
        if body is None:
            complete = self._protocol.should_close  # it has read a head
        else:
            complete = body.is_eof()
            if body.total_bytes != self._body_bytes:
                self._body_bytes, self._overhead = body.total_bytes, 0
            if complete:
                self._remove()
        if self._overhead > _MAX_OVERHEAD and not complete:
            self._refuse(HttpProcessingError(code=400, message="the head is too long"))

    def eof_received(self) -> None:
        self._guard.record_unwritten()
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._removed:  # else the phase is that of a later attempt
            self._guard.record_unwritten()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _refuse(self, reason: Exception) -> None:
        self._protocol.set_exception(reason)
        self._transport.abort()


def _unsent_bytes(transport: asyncio.Transport | None) -> int:
    """Return how much of the request waits in this process; below TLS is another transport with its own buffer."""
    size = 0
    # asyncio drops the protocol of a TLS transport that is closed.
    while transport is not None and (tls := getattr(transport, _TLS_PROTOCOL, _NO_TLS)) is not None:
        size += transport.get_write_buffer_size()
        transport = getattr(tls, "_transport", None)
    return size


def _record_overhead(tls: ssl.SSLObject) -> int:
    """Return by how many bytes a TLS record is at least longer than its content."""
    cipher, version, _ = tls.cipher() or ("", "", 0)
    extra = 1 if version == "TLSv1.3" else _RECORD_NONCE if "GCM" in cipher else 0
    return _RECORD_HEADER + _RECORD_TAG + extra


def _has_foreign_head(response: aiohttp.ClientResponse) -> bool:
    """Return True if the head begins with a part of another one, so that the response's status line ended up within it.

    A gateway may quote a status line in one of its headers; that belongs to the response.
    """
    if _STATUS_LINE.search((response.reason or "").encode("utf-8", "surrogateescape")):
        return True
    quoted = (_STATUS_LINE.search(value) for _, value in response.raw_headers)
    return any(int(line[1]) != response.status for line in quoted if line is not None)


class HttpTransport:
    """Sends one request, once."""

    def __init__(self, account: Account, sessions: SessionManager, timeouts: Timeouts, clock: Clock) -> None:
        self._origin, self._root = account.origin, URL(account.origin)
        self._headers: Mapping[str, str] = {
            _AUTHORIZATION: account.authorization,
            "Accept": "application/json",
            "User-Agent": user_agent(),
        }
        self._form_headers = {**self._headers, "Content-Type": _FORM}
        self._own_headers = CIMultiDict(self._headers)
        self._post_head: bytes | None = None  # where requests are prepared
        self._sessions, self._timeouts, self._clock = sessions, timeouts, clock
        sessions.create = self._create_session
        self._large_answers = asyncio.Semaphore(_LARGE_ANSWERS)

    async def __call__(self, request: Request) -> Result:
        state = request.state
        session = self._sessions.session()
        if session is None:
            state.phase = Phase.QUEUED
            return Result(
                attempt_result=AttemptResult.UNRETRYABLE,
                phase=Phase.QUEUED,
                detail="the client was closed in the meantime",
            )
        state.phase = Phase.CONNECTING
        received: list[aiohttp.ClientResponse] = []
        content, complete = b"", False
        limit = min(self._timeouts.attempt, state.deadline_at - self._clock.now())
        try:
            with self._sessions.timer.within(limit) as deadline:
                deadline.allow(self._timeouts.connect)
                guard = AttemptGuard(request, deadline, self._timeouts.read)
                content, complete = await self._exchange(session, request, guard, received)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if received or task is None or task.cancelling():
                raise
            # Nobody cancelled this call: a borrowed session was closed, and aiohttp dropped the waiters of its pool.
            return without_response(request, aiohttp.ClientConnectionError("the session was closed"))
        except Exception as error:  # noqa: BLE001  (trace hooks, a resolver and more of a borrowed session run in it)
            if not received:
                return without_response(request, error)
        head = received[0]
        response = read_response(head.status, head.headers, content, complete=complete)
        # A response without a connection is that of a test which mocks aiohttp, and may say anything.
        different = "" if guard.transport is None else contradiction(request, response)
        if guard.transport is not None and different:
            # All later responses of this connection may belong to other requests as well. aiohttp may have taken it
            # back into its pool already.
            guard.transport.abort()
            return Result(
                attempt_result=AttemptResult.MALFORMED, phase=Phase.ANSWERED, response=response, detail=different
            )
        result = classify(request, response)
        is_unconfirmed = (
            result is AttemptResult.DONE and guard.transport is not None and not confirms(request, response)
        )
        if is_unconfirmed and request.operation.is_stop:
            result = AttemptResult.ACCEPTED
        return Result(
            attempt_result=result,
            phase=Phase.ANSWERED,
            response=response,
            retry_after=None if result is AttemptResult.DONE else retry_after(response.headers),
            # The sid may be that of another request's stream.
            ambiguous=is_unconfirmed and request.operation.is_start,
        )

    def _create_session(self) -> aiohttp.ClientSession:
        try:
            head, body = post_head(self._root, self._form_headers), PreparedBody()
            body.headers = self._own_headers
            loop, kind = asyncio.get_running_loop(), aiohttp.ClientResponse
            probe = PreparedRequest("POST", self._root, headers=body.headers, data=body, loop=loop, response_class=kind)
            probe.respond()
        except Exception:  # noqa: BLE001  (an aiohttp whose requests are different: its own class knows them)
            return create_session(self._headers, aiohttp.ClientRequest)
        self._post_head = head
        return create_session(self._headers, PreparedRequest)

    def _url(self, path: str) -> URL:
        if "?" in path:
            return URL(self._origin + path, encoded=True)
        return self._root.with_path(path, encoded=True)  # at half the price

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        guard: AttemptGuard,
        received: list[aiohttp.ClientResponse],
    ) -> tuple[bytes, bool]:
        url = self._url(request.path)
        body: GuardedPayload | PreparedBody | None = None
        headers: Mapping[str, str]
        if self._sessions.borrowed is None:
            body, headers = self._own_body(request, url, guard), request.headers  # the session has the others
        else:
            headers = self._headers
            if request.body is not None:
                body, headers = GuardedPayload(request.body, guard), self._form_headers
            if request.headers:
                headers = {**headers, **request.headers}
            if session.trust_env:
                # aiohttp refuses the header beside an entry of netrc, so the guard sets it later.
                guard.headers = {_AUTHORIZATION: headers[_AUTHORIZATION]}
                headers = {name: value for name, value in headers.items() if name != _AUTHORIZATION}
        async with session.request(
            request.method,
            url,
            data=body,
            headers=headers,
            # Set for each request, since a borrowed session may have other defaults.
            timeout=_NO_TIMERS,
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=True,
            read_bufsize=_BUFFER,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
            # The session's own middlewares are left out: one that repeats a POST would double a stream.
            middlewares=(guard,),
        ) as response:
            request.state.phase = Phase.ANSWERED
            received.append(response)
            return await self._read_body(request, response, guard)

    def _own_body(self, request: Request, url: URL, guard: AttemptGuard) -> "GuardedPayload | PreparedBody | None":
        if request.body is None:
            return None
        path, size = url.raw_path_qs, len(request.body)
        # A path that a middleware has changed may be one that aiohttp refuses.
        if self._post_head is None or request.method != "POST" or size > _ONE_WRITE or not _TARGET.fullmatch(path):
            return GuardedPayload(request.body, guard)
        body = PreparedBody(request.body)
        body.guard, body.headers = guard, self._own_headers
        body.head = b"POST %b%b%d\r\n\r\n" % (path.encode("ascii"), self._post_head, size)
        return body

    async def _read_body(
        self, request: Request, response: aiohttp.ClientResponse, guard: AttemptGuard
    ) -> tuple[bytes, bool]:
        """Return the body as far as it was read and kept, and True if that is all of it."""
        stream, body, limit = response.content, bytearray(), _SMALL_ANSWER
        try:
            complete = await _read_up_to(limit, body, stream, guard)
            if not complete and request.operation is Operation.READ and response.status < _REFUSED:
                limit = _LARGE_ANSWER
                async with self._large_answers:
                    complete = await _read_up_to(limit, body, stream, guard)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return bytes(body), False
        if not complete:
            response.close()
            del body[limit:]
        return bytes(body), complete


async def _read_up_to(limit: int, body: bytearray, stream: aiohttp.StreamReader, guard: AttemptGuard) -> bool:
    """Read into *body*. Return False once it is longer than *limit*."""
    while not stream.at_eof():
        if not stream.is_eof():  # else all of it arrived with the headers
            guard.deadline.allow(guard.read_timeout)
        body += await stream.readany()
        if len(body) > limit:
            return False
    return True
