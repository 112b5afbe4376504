"""One attempt on one connection: when its bytes are written, and whether an answer can be its own.

aiohttp hands out a kept-alive connection even if an answer that nobody asked for has already arrived on it, and takes
the first answer that it reads for the answer to the request, be that written or not. So the connection is checked
before the request is written, and an answer counts only once all of the request has been written.
"""

import asyncio
import select
import sys
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.payload import BytesPayload
from attrs import define, field

from signalwire_streams.errors import Phase
from signalwire_streams.transport.limits import Limit
from signalwire_streams.wire.exchange import Progress

FORM = "application/x-www-form-urlencoded"
_ONE_WRITE = 64 * 1024
_READING_TURNS = 4  # turns of the loop within which it reads what has arrived
# Before 3.12 a body is written by a task that starts in a later turn of the loop.
_WRITES_LATER = sys.version_info < (3, 12)
_poll = getattr(select, "poll", None)  # not on Windows


class UnaskedAnswerError(aiohttp.ClientConnectionError):
    """Data arrived before the request was sent, so no answer on this connection can be trusted."""


class SilentResendError(aiohttp.ClientError):
    """Stands for an error after which aiohttp would repeat a GET itself, unknown to the retry and its counting."""


@define(eq=False)
class AttemptGuard:
    """Client middleware for one attempt: records its phase, and rejects an answer that belongs to another request.

    Attributes:
        progress: where the phase is recorded.
        limit: what ends the attempt.
        read_timeout: seconds to wait for the answer once the request is written, and for each piece of it.
        is_read: True for a GET, which has no body.
        headers: set on the request whatever else has set them, such as an entry in netrc.
        ends_at: when the attempt ends, whatever it does.
        transport: the connection, once there is one.
    """

    progress: Progress
    limit: Limit
    read_timeout: float
    is_read: bool
    headers: Mapping[str, str] | None = field(init=False, default=None, repr=False)
    ends_at: float = field(init=False)
    _send: Callable[[Connection], Awaitable[aiohttp.ClientResponse]] | None = field(init=False, default=None)
    _protocol: ResponseHandler | None = field(init=False, default=None)
    transport: asyncio.Transport | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.ends_at = self.limit.ends_at

    def allow(self, seconds: float) -> None:
        """Limit the next step to *seconds*, within the limit of the whole attempt."""
        self.limit.end_at(min(self.ends_at, asyncio.get_running_loop().time() + seconds))

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request, and return its answer."""
        if self.headers is not None:
            request.headers.update(self.headers)
        # The only place where the connection is known and nothing is written yet; aiohttp looks it up on the instance.
        self._send, request.send = request.send, self.send  # type: ignore[method-assign]
        try:
            response = await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            if self.is_read:
                raise SilentResendError from error
            raise
        transport = self.transport
        if self.progress.phase is not Phase.WAITING or (transport is not None and transport.get_write_buffer_size()):
            response.close()
            raise UnaskedAnswerError
        self.progress.phase = Phase.ANSWERED
        return response

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send the request on a connection, unless something has arrived on it.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to this connection.
        """
        self._protocol, self.transport = conn.protocol, conn.transport
        if self._is_unfit() or self._has_data():
            await self._refuse()
        # It was set before aiohttp could call this.
        response = await self._send(conn)  # type: ignore[misc]
        if self.is_read:
            self.written(in_one_write=True)
        return response

    async def before_writing(self) -> None:
        """Check the connection once more, if the loop has run since.

        Raises:
            aiohttp.ClientConnectionError: the request must not be written to this connection.
        """
        if _WRITES_LATER and (self._is_unfit() or self._has_data()):
            await self._refuse()

    def written(self, *, in_one_write: bool) -> None:
        """Record that all of the request is written, unless an answer came earlier: it belongs to another request.

        Args:
            in_one_write: True if headers and body went out together. That write either took bytes or closed the
                transport at once: then the kernel took none, and the kept-alive connection was dead.
        """
        if in_one_write and (self.transport is None or self.transport.is_closing()):
            self.progress.phase = Phase.CONNECTING
        elif self._protocol is not None and not self._protocol.should_close:
            self.progress.phase = Phase.WAITING
            self.allow(self.read_timeout)

    def _is_unfit(self) -> bool:
        protocol, transport = self._protocol, self.transport
        return (
            protocol is None
            or transport is None
            or transport.is_closing()
            or protocol.should_close
            or self.limit.ends_at < asyncio.get_running_loop().time()
        )

    def _has_data(self) -> bool:
        """Ask the kernel: the loop may not have read yet what has arrived, an end of the connection included."""
        connection = self.transport.get_extra_info("socket") if self.transport is not None else None
        if _poll is None or connection is None or connection.fileno() < 0:
            return False
        poll = _poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def _refuse(self) -> None:
        """Raise the reason not to use the connection, if there is one once the loop has read what has arrived."""
        # It also closes the other kept-alive connections that have ended meanwhile. If the process stood still, so that
        # another one may have taken the request over, the timer of this attempt ends it here.
        for _ in range(_READING_TURNS):
            await asyncio.sleep(0)
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the other end closed the kept-alive connection")
        # Over TLS it may have been a session ticket, which leaves no trace.
        if transport.get_extra_info("ssl_object") is None or self._is_unfit():
            raise UnaskedAnswerError


class GuardedPayload(BytesPayload):
    """A body that records how far it is written."""

    def __init__(self, body: bytes, guard: AttemptGuard) -> None:
        super().__init__(body, content_type=FORM)
        self._guard = guard

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the body, together with the headers."""
        guard = self._guard
        await guard.before_writing()
        guard.progress.phase = Phase.WRITING
        await writer.write(self._value[:content_length])
        guard.written(in_one_write=len(self._value) <= _ONE_WRITE)
