"""The guard of one attempt: it records how far the request got, and rejects another request's response.

aiohttp hands out a kept-alive connection even if an unsolicited response has already arrived on it, and treats the
first response that it reads as the response to the request, even if the request has not been written. So the guard
checks the connection before the request is written, watches it until all of the request has left, and accepts a
response only after that.
"""

import asyncio
import re
import select
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.payload import BytesPayload
from multidict import CIMultiDict

from signalwire_streams._http.messages import Request
from signalwire_streams._http.session import Deadline
from signalwire_streams.errors import Phase

FORM = "application/x-www-form-urlencoded"
ONE_WRITE = 64 * 1024
"""Bytes of a body that one write takes, or none of it."""

# Looked up once: Python 3.11 looks up each member of an enum in Python.
_CONNECTING, _WRITING, _WAITING, _RESPONDED = Phase.CONNECTING, Phase.WRITING, Phase.WAITING, Phase.RESPONDED
_READING_TURNS = 4  # turns of the loop within which it reads what has arrived
_MAX_OVERHEAD = 256 * 1024  # bytes of a head or of trailers; aiohttp limits only each line and their number
_VALUE = itemgetter(1)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |$)")
_RECORD_HEADER, _RECORD_TAG, _RECORD_NONCE = 5, 16, 8  # bytes of a TLS record besides its content
_TLS_PROTOCOL = "_ssl_protocol"  # asyncio's; on event loops that hide it, what needs it is not checked
_NO_TLS = object()
_CLOSED = "the other end closed the kept-alive connection"
_poll = getattr(select, "poll", None)  # not on Windows
_UNPREPARED = ("params", "skip_auto_headers", "cookies", "auth", "compress", "chunked", "expect100", "proxy", "traces")
"""What a prepared request does not have, by aiohttp's names."""
_WRITTEN: Any = SimpleNamespace(output_size=0)


class UnsolicitedResponseError(aiohttp.ClientConnectionError):
    """Data arrived before the request was sent, so no response on this connection can be trusted."""


class SilentResendError(aiohttp.ClientError):
    """Replaces an error after which aiohttp would repeat a GET itself, without the retry logic counting it."""


class RepeatedRequestError(aiohttp.ClientError):
    """The session resent a request that was already written, so the retry logic did not count it."""


class AttemptGuard:
    """aiohttp client middleware that records the phase of one attempt and rejects another request's response.

    Attributes:
        transport: that of the connection, once there is one.
        headers: set on the request after aiohttp has added those of netrc.
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

    def __deepcopy__(self, _: object) -> Self:
        """Return the guard itself: what mocks aiohttp copies the arguments of a request, and this leads to the loop."""
        return self

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        self._check_not_written()
        if self.headers is not None:
            request.headers.update(self.headers)
        if not isinstance(request, PreparedRequest):
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
        if self.state.phase is not _WAITING or _unsent_bytes(self.transport) or _has_foreign_head(response):
            response.close()
            raise UnsolicitedResponseError
        self.state.phase = _RESPONDED
        return response

    async def _send(
        self, send: Callable[[Connection], Awaitable[aiohttp.ClientResponse]], conn: Connection
    ) -> aiohttp.ClientResponse:
        await self._watch(conn).check()
        response = await send(conn)
        if not self._has_body:
            self._record_written(in_one_write=True)
        return response

    def _watch(self, conn: Connection) -> "_ProtocolWrapper":
        """Watch a connection from now on.

        Raises:
            aiohttp.ClientConnectionError: it is closed.
        """
        self.transport = transport = conn.transport
        if conn.protocol is None or transport is None:
            raise aiohttp.ClientConnectionResetError(_CLOSED)
        wrapper = _ProtocolWrapper(self, conn.protocol, transport)
        self._wrappers.append(wrapper)
        return wrapper

    async def write_prepared(self, conn: Connection, body: "PreparedBody") -> None:
        """Write head and body at once.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to this connection.
            RepeatedRequestError: it is written already.
        """
        wrapper = self._watch(conn)
        if wrapper.is_doubtful():
            await wrapper.check()
        self._check_not_written()
        self.state.phase = _WRITING
        wrapper.transport.write(body.head + body.content)
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
        self.state.phase = _WRITING
        try:
            await writer.write(payload.content)
        except Exception:  # raised perhaps by a trace hook, which aiohttp calls before it writes
            self.record_unwritten()
            raise
        self._record_written(in_one_write=len(payload.content) <= ONE_WRITE)

    def record_unwritten(self) -> None:
        """Correct the phase if nothing was written and nothing can be written any more."""
        if self.state.phase is _WRITING and self._writer is not None and not self._writer.output_size:
            self.state.phase = _CONNECTING

    def _record_written(self, *, in_one_write: bool) -> None:
        # One write either took bytes or closed the transport at once: then the kernel took none, and the kept-alive
        # connection was dead.
        if in_one_write and (self.transport is None or self.transport.is_closing()):
            self.state.phase = _CONNECTING
        else:
            self.state.phase = _WAITING
            self.deadline.allow(self.read_timeout)

    def _check_not_written(self) -> None:
        if self.state.phase is not _CONNECTING:
            raise RepeatedRequestError


class GuardedPayload(BytesPayload):
    """A body that its attempt's guard writes."""

    def __init__(self, body: bytes, guard: AttemptGuard) -> None:
        super().__init__(body, content_type=FORM)
        self.content, self._guard = body, guard

    async def write_with_length(self, writer: AbstractStreamWriter, _: int | None) -> None:
        await self._guard.write(writer, self)


class PreparedBody:
    """The body of a request whose head is prepared too.

    Any other class of requests takes it for the payload that its attempt's guard writes, since aiohttp looks that up by
    its type. So it is never written without the guard.
    """

    def __init__(self, content: bytes, guard: AttemptGuard, head: bytes, headers: CIMultiDict[str]) -> None:
        self.content, self.guard = content, guard
        self.head, self.headers = head, headers  # those that the head is made of

    def decode(self) -> str:
        """Return the form, as aiohttp's own payloads do, for tests that mock aiohttp."""
        return self.content.decode()


@aiohttp.payload_type(PreparedBody)
class _PreparedPayload(GuardedPayload):
    def __init__(self, body: PreparedBody, **_: object) -> None:
        super().__init__(body.content, body.guard)


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
        if (
            isinstance(body, PreparedBody)
            and options["headers"] == body.headers
            and not any(map(options.get, _UNPREPARED))
        ):
            self._prepared = body
        else:
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
        self.transport = transport
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
        if not self.is_doubtful():
            return
        # aiohttp also closes other kept-alive connections that have ended meanwhile. If the process was suspended, so
        # that another one may have taken the request over, the timer of this attempt ends it here.
        for _ in range(_READING_TURNS):
            await asyncio.sleep(0)
        if isinstance(self._protocol.exception(), UnsolicitedResponseError):
            raise UnsolicitedResponseError
        if self.transport.is_closing():
            raise aiohttp.ClientConnectionResetError(_CLOSED)
        # Over TLS it may have been a session ticket, which never reaches the protocol.
        if self.transport.get_extra_info("ssl_object") is None or self._is_unfit():
            raise UnsolicitedResponseError

    def is_doubtful(self) -> bool:
        """Return False if `check` would find nothing."""
        # The time last, right before the write: the process may be suspended in the system call.
        return self._has_data() or self._is_unfit()

    def _is_unfit(self) -> bool:
        return (
            self.transport.is_closing()
            or self._protocol.should_close
            or self._guard.deadline.ends_at < asyncio.get_running_loop().time()
        )

    def _has_data(self) -> bool:
        """Ask the kernel: the loop may not have read yet what has arrived, an end of the connection included."""
        connection = self.transport.get_extra_info("socket")
        if _poll is None or connection is None or connection.fileno() < 0:
            return False
        poll = _poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _count_encrypted(self, buffer_updated: Callable[[int], None], size: int) -> None:
        if self._guard.state.phase in {_WRITING, _WAITING, _RESPONDED}:
            self._encrypted += size
        buffer_updated(size)

    def limit_body_of(self, response: aiohttp.ClientResponse | None) -> None:
        """Limit the data that arrives before the body; stop if there is no response or it is complete."""
        self._body, self._overhead = response.content if response is not None else None, 0
        if self._body is None or self._body.is_eof():
            self._remove()

    def _remove(self) -> None:
        self._removed = True
        if getattr(self.transport, _TLS_PROTOCOL, self) is None:
            return  # closed; its connection_lost is still to come
        if self.transport.get_protocol() is self:
            self.transport.set_protocol(self._protocol)
            if self._tls is not None:
                del self._tls.buffer_updated

    def data_received(self, data: bytes) -> None:
        body = self._body
        # The rest of the request may leave in the very turn in which this was read, so it is looked at here.
        if body is None and (self._guard.state.phase is not _WAITING or _unsent_bytes(self.transport)):
            self._guard.record_unwritten()
            self._reject(UnsolicitedResponseError())
            return
        self._decrypted += len(data)
        if self._tls is not None and self._decrypted > self._encrypted:
            self._reject(UnsolicitedResponseError())
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
            self._reject(HttpProcessingError(code=400, message="the head is too long"))

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

    def _reject(self, reason: Exception) -> None:
        self._protocol.set_exception(reason)
        self.transport.abort()


def _unsent_bytes(transport: asyncio.Transport | None) -> int:
    """Return how much of the request waits in this process; below TLS is another transport with its own buffer."""
    size = 0
    # asyncio drops the protocol of a TLS transport that is closed.
    while transport is not None and (tls := getattr(transport, _TLS_PROTOCOL, _NO_TLS)) is not None:
        size += transport.get_write_buffer_size()
        transport = None if tls is _NO_TLS else getattr(tls, "_transport", None)
    return size


def _record_overhead(tls: ssl.SSLObject) -> int:
    """Return by how many bytes a TLS record is at least longer than its content."""
    cipher, version, *_ = tls.cipher() or ("", "")
    extra = 1 if version == "TLSv1.3" else _RECORD_NONCE if "GCM" in cipher else 0
    return _RECORD_HEADER + _RECORD_TAG + extra


def _has_foreign_head(response: aiohttp.ClientResponse) -> bool:
    """Return True if the head begins with a part of another one, so that the response's status line ended up within it.

    A gateway may quote a status line in one of its headers; that belongs to the response.
    """
    reason = response.reason or ""
    if "HTTP/" in reason and _STATUS_LINE.search(reason.encode("utf-8", "surrogateescape")):
        return True
    values = [*map(_VALUE, response.raw_headers)]
    if b"HTTP/" not in b"".join(values):
        return False
    return any(int(line[1]) != response.status for line in map(_STATUS_LINE.search, values) if line is not None)
