"""One attempt over aiohttp, from an exchange to an outcome. Nothing that aiohttp raises gets out of here.

aiohttp's exceptions can't tell "not sent" from "maybe sent": a dead kept-alive connection and a request that
was read and then reset raise the same class. So the body is handed over as a payload that notes when it is
written, and the phase decides.
"""

import asyncio
import select
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload
from attrs import define, field
from yarl import URL

from signalwire_streams.errors import Phase
from signalwire_streams.models import Event, Kind
from signalwire_streams.resilience.policy import Timeouts
from signalwire_streams.transport.clock import Clock
from signalwire_streams.transport.limits import Limit, Limits
from signalwire_streams.transport.sessions import SessionManager
from signalwire_streams.wire.exchange import Exchange, Outcome, Progress, Reply
from signalwire_streams.wire.headers import retry_after
from signalwire_streams.wire.replies import event_of, read_reply

# Where the operating system can tell that the other end sent its last byte.
_GONE: int | None = getattr(select, "POLLRDHUP", None)
_FORM = "application/x-www-form-urlencoded"
_REFUSAL_LIMIT = 64 * 1024
_ANSWER_LIMIT = 16 * 1024 * 1024
_ONE_WRITE = 64 * 1024
_REFUSED = 300
_PROXY_AUTH = 407

_NO_TIMERS = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

_MAY_HAVE_ARRIVED = frozenset({Event.BROKEN, Event.MALFORMED})
_UNUSABLE = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    ValueError,  # aiohttp's word for a session whose own settings contradict the request's
)


@define(eq=False)
class _Patience:
    """How long the next step of an attempt may take.

    Attributes:
        limit: what ends the attempt.
        read: seconds between two pieces of an answer.
        at_most: when the attempt ends whatever it does.
    """

    limit: Limit
    read: float
    at_most: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.at_most = self.limit.ends_at

    def allow(self, seconds: float) -> None:
        """Allow the next step so many seconds, within the whole."""
        self.limit.end_at(min(self.at_most, asyncio.get_running_loop().time() + seconds))

    @property
    def is_over(self) -> bool:
        """Whether the step has taken longer than it may; where the process stood still, its timer has not rung yet."""
        return self.limit.ends_at < asyncio.get_running_loop().time()


class _NotedPayload(BytesPayload):
    """A body that notes how far its writing got."""

    def __init__(self, body: bytes, progress: Progress, patience: _Patience) -> None:
        super().__init__(body, content_type=_FORM)
        self._progress = progress
        self._patience = patience

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        transport = writer.transport
        if transport is None or transport.is_closing() or _peer_is_gone(transport):
            raise aiohttp.ClientConnectionResetError("the other end closed the kept-alive connection")
        if self._patience.is_over:
            # Meanwhile somebody else may do in our place what we were to do.
            raise aiohttp.ClientConnectionResetError("its time was over before it was written")
        self._progress.phase = Phase.WRITING
        await writer.write(self._value[:content_length])
        # A small body leaves in one write together with its headers, and that write either took bytes or closed
        # the transport on the spot: then the kernel took none, and the kept-alive connection was dead.
        dead = transport.is_closing() and len(self._value) <= _ONE_WRITE
        self._progress.phase = Phase.CONNECTING if dead else Phase.WAITING
        self._patience.allow(self._patience.read)


def _peer_is_gone(transport: asyncio.WriteTransport) -> bool:
    """Ask the kernel whether the other end has closed or reset a connection, which the loop may not know yet."""
    connection = transport.get_extra_info("socket")
    if _GONE is None or connection is None or connection.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), _GONE)
    return bool(poll.poll(0))


class _SilentResendError(aiohttp.ClientError):
    """What aiohttp would repeat a GET for by itself, unseen by the retry and its counting."""


async def _no_silent_resend(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _SilentResendError(str(error)) from error


@define(eq=False)
class HttpSender:
    """Sends one exchange, once.

    Attributes:
        sessions: where the aiohttp session comes from.
        origin: scheme, host and port of the Space.
        headers: what every request carries, the authorisation among it.
        timeouts: how long an attempt may take.
        clock: where the time comes from.
        limits: end the attempts whose time is up.
    """

    sessions: SessionManager
    origin: str
    headers: Mapping[str, str] = field(repr=False)
    timeouts: Timeouts
    clock: Clock
    limits: Limits
    _root: URL = field(init=False)
    _timeout: aiohttp.ClientTimeout = field(init=False)
    _form_headers: Mapping[str, str] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._root = URL(self.origin)
        self._form_headers = {**self.headers, "Content-Type": _FORM}
        # A read has no body that notes when it was written, so aiohttp's own timers tell its steps apart.
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self.timeouts.connect,
            sock_connect=self.timeouts.connect,
            sock_read=self.timeouts.read,
        )

    async def __call__(self, exchange: Exchange) -> Outcome:
        """Send the exchange and say how it ended."""
        progress = exchange.progress
        if not self.sessions.usable:
            progress.phase = Phase.QUEUED
            return Outcome(event=Event.UNUSABLE, phase=Phase.QUEUED, detail="the client was closed meanwhile")
        progress.phase = Phase.CONNECTING
        left = progress.deadline_at - self.clock.now()
        heard: list[aiohttp.ClientResponse] = []
        try:
            with self.limits.within(min(self.timeouts.attempt, left)) as limit:
                reply = await self._exchange(exchange, heard, _Patience(limit, self.timeouts.read))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if heard or task is None or task.cancelling():
                raise
            # Nobody cancelled this call: a borrowed session was closed, and aiohttp dropped who waited in its pool.
            return _without_reply(exchange, aiohttp.ClientConnectionError("the session was closed"))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if not heard:
                return _without_reply(exchange, error)
            reply = read_reply(heard[0].status, heard[0].headers, b"", complete=False)
        event = event_of(exchange, reply)
        wait = retry_after(reply.headers) if event is not Event.DONE else None
        return Outcome(event=event, phase=Phase.ANSWERED, reply=reply, retry_after=wait)

    def _url(self, path: str) -> URL:
        if "?" in path:
            return URL(self.origin + path, encoded=True)
        return self._root.with_path(path, encoded=True)  # at half the price

    async def _exchange(self, exchange: Exchange, heard: list[aiohttp.ClientResponse], patience: _Patience) -> Reply:
        progress = exchange.progress
        body, headers = None, self.headers
        if exchange.body is not None:
            body, headers = _NotedPayload(exchange.body, progress, patience), self._form_headers
            patience.allow(self.timeouts.connect)
        async with self.sessions.session().request(
            exchange.method,
            self._url(exchange.path),
            data=body,
            headers={**headers, **exchange.headers} if exchange.headers else headers,
            # Said with each request, since a borrowed session may have another one as its default.
            timeout=self._timeout if body is None else _NO_TIMERS,
            allow_redirects=False,
            raise_for_status=False,
            auto_decompress=True,
            # The session's own middlewares are left out: one that repeats a POST would double a stream.
            middlewares=(_no_silent_resend,) if exchange.kind is Kind.READ else (),
        ) as response:
            progress.phase = Phase.ANSWERED
            heard.append(response)
            content, complete = await _read_body(response, patience)
            return read_reply(response.status, response.headers, content, complete=complete)


async def _read_body(response: aiohttp.ClientResponse, patience: _Patience) -> tuple[bytes, bool]:
    """Read what there is of a body, and say whether that is all of it."""
    limit = _REFUSAL_LIMIT if response.status >= _REFUSED else _ANSWER_LIMIT
    stream, body = response.content, bytearray()
    try:
        while not stream.at_eof():
            if not stream.is_eof():  # else all of it came together with the headers
                patience.allow(patience.read)
            body += await stream.readany()
            if len(body) > limit:
                response.close()
                return bytes(body[:limit]), False
    except (aiohttp.ClientError, TimeoutError, OSError):
        return bytes(body), False
    return bytes(body), True


def _without_reply(exchange: Exchange, error: Exception) -> Outcome:
    progress = exchange.progress
    event = _event_of_error(exchange.kind, progress.phase, error)
    if exchange.kind is Kind.READ and event in _MAY_HAVE_ARRIVED:
        progress.phase = Phase.WAITING  # a read has no body that could note its writing
    return Outcome(event=event, phase=progress.phase, detail=_in_words(error, progress.phase))


def _event_of_error(kind: Kind, phase: Phase, error: Exception) -> Event:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return Event.UNUSABLE if error.status == _PROXY_AUTH else Event.UNSENT
    if isinstance(error, _UNUSABLE):
        return Event.UNUSABLE
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Event.UNSENT
    if isinstance(error, aiohttp.ClientResponseError):
        return Event.MALFORMED
    if phase is not Phase.CONNECTING or kind is Kind.READ:
        return Event.BROKEN
    return Event.UNSENT if isinstance(error, TimeoutError) else Event.STALE


def _in_words(error: Exception, phase: Phase) -> str:
    """Describe an error of aiohttp's; its ``repr`` would show the request's headers."""
    if type(error) is TimeoutError:  # our own, which says nothing
        return "timeout: no connection in time" if phase is Phase.CONNECTING else "timeout: no answer in time"
    if isinstance(error, _SilentResendError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    words = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    kind = "timeout" if isinstance(error, TimeoutError) else type(error).__name__.removeprefix("_")
    return f"{kind}: {words}" if words else kind
