"""One attempt over aiohttp, from an exchange to an outcome. Nothing that aiohttp raises gets out of here.

aiohttp's exceptions can't tell "not sent" from "maybe sent": a dead kept-alive connection and a request that
was read and then reset raise the same class. So the attempt's guard records when the request is written, and the
phase decides.
"""

import asyncio
import os
from collections.abc import Mapping

import aiohttp
from attrs import define, field
from yarl import URL

from signalwire_streams._http.connection_guard import (
    FORM,
    AttemptGuard,
    GuardedPayload,
    RepeatedRequestError,
    SilentResendError,
    UnaskedAnswerError,
)
from signalwire_streams._http.deadlines import DeadlineTimer, Timeouts
from signalwire_streams._http.decoding import classify, confirms, contradiction, read_response
from signalwire_streams._http.error_bodies import retry_after
from signalwire_streams._http.messages import Request, Result
from signalwire_streams._http.session import SessionManager
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.models import AttemptResult, Operation

_SMALL_ANSWER = 64 * 1024
"""Bytes of an unpacked body that a start or a stop may answer, or a refusal; real ones have a few hundred."""
_LARGE_ANSWER = 4 * 1024 * 1024
"""Bytes of an unpacked body that a read may answer."""
_LARGE_ANSWERS = 8
"""Answers above the small limit that a client reads at once; the others wait, and so do their servers."""
_BUFFER = 64 * 1024
"""Bytes that aiohttp unpacks ahead of what was read. A session's own value may be any."""
_MAX_LINE, _MAX_HEADERS = 64 * 1024, 512
"""Gateways add cookies and policies that are longer than aiohttp's 8,190 bytes, and more of them than its 128."""
_REFUSED = 300
_PROXY_AUTH = 407
_AUTHORIZATION = "Authorization"

_NO_TIMERS = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

_UNUSABLE = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    ValueError,  # aiohttp's word for a session whose own settings contradict the request's
)

_IN_WORDS = {
    aiohttp.ClientResponseError: "the answer is no valid HTTP, or its head is too long",
    UnaskedAnswerError: "an answer arrived before the request was sent",
    RepeatedRequestError: "the session itself sends requests again",
}


@define(eq=False)
class HttpTransport:
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
    limits: DeadlineTimer
    _root: URL = field(init=False)
    _form_headers: Mapping[str, str] = field(init=False, repr=False)
    _large_answers: asyncio.Semaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._root = URL(self.origin)
        self._form_headers = {**self.headers, "Content-Type": FORM}
        self._large_answers = asyncio.Semaphore(_LARGE_ANSWERS)

    async def __call__(self, exchange: Request) -> Result:
        """Send the exchange and say how it ended."""
        progress = exchange.state
        if not self.sessions.usable:
            progress.phase = Phase.QUEUED
            return Result(
                attempt_result=AttemptResult.UNRETRYABLE, phase=Phase.QUEUED, detail="the client was closed meanwhile"
            )
        progress.phase = Phase.CONNECTING
        left = progress.deadline_at - self.clock.now()
        received: list[aiohttp.ClientResponse] = []
        content, complete = b"", False
        limit = self.limits.within(min(self.timeouts.attempt, left))
        guard = AttemptGuard(progress, limit, self.timeouts.read, exchange.operation is Operation.READ)
        try:
            with limit:
                content, complete = await self._exchange(exchange, guard, received)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if received or task is None or task.cancelling():
                raise
            # Nobody cancelled this call: a borrowed session was closed, and aiohttp dropped who waited in its pool.
            return _without_reply(exchange, aiohttp.ClientConnectionError("the session was closed"))
        except Exception as error:  # noqa: BLE001  (trace hooks, a resolver and more of a borrowed session run in it)
            if not received:
                return _without_reply(exchange, error)
        response = received[0]
        reply = read_response(response.status, response.headers, content, complete=complete)
        transport = guard.transport
        # An answer without a connection is that of a test which mocks aiohttp, and may say anything.
        different = "" if transport is None else contradiction(exchange, reply)
        if transport is not None and different:
            # All later answers of this connection may belong to other requests as well. aiohttp may have taken it back
            # into its pool already.
            transport.abort()
            return Result(
                attempt_result=AttemptResult.MALFORMED, phase=Phase.ANSWERED, response=reply, detail=different
            )
        event = classify(exchange, reply)
        wait = retry_after(reply.headers) if event is not AttemptResult.DONE else None
        return Result(
            attempt_result=event,
            phase=Phase.ANSWERED,
            response=reply,
            retry_after=wait,
            # Its sid may be that of another request's stream.
            ambiguous=transport is not None
            and event is AttemptResult.DONE
            and exchange.operation.is_start
            and not confirms(exchange, reply),
        )

    def _url(self, path: str) -> URL:
        if "?" in path:
            return URL(self.origin + path, encoded=True)
        return self._root.with_path(path, encoded=True)  # at half the price

    async def _exchange(
        self, exchange: Request, guard: AttemptGuard, received: list[aiohttp.ClientResponse]
    ) -> tuple[bytes, bool]:
        guard.allow(self.timeouts.connect)
        session = self.sessions.session()
        body, headers = None, self.headers
        if exchange.body is not None:
            body, headers = GuardedPayload(exchange.body, guard), self._form_headers
        if exchange.headers:
            headers = {**headers, **exchange.headers}
        if session.trust_env:
            # aiohttp refuses the header beside an entry of netrc, so the guard sets it later.
            guard.headers = {_AUTHORIZATION: headers[_AUTHORIZATION]}
            headers = {name: value for name, value in headers.items() if name != _AUTHORIZATION}
        async with session.request(
            exchange.method,
            self._url(exchange.path),
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
            exchange.state.phase = Phase.ANSWERED
            received.append(response)
            return await self._read_body(exchange, response, guard)

    async def _read_body(
        self, exchange: Request, response: aiohttp.ClientResponse, guard: AttemptGuard
    ) -> tuple[bytes, bool]:
        """Return the body, as far as it can be read and may be kept, and True if that is all of it."""
        stream, body, limit = response.content, bytearray(), _SMALL_ANSWER
        try:
            complete = await _read_up_to(limit, body, stream, guard)
            if not complete and exchange.operation is Operation.READ and response.status < _REFUSED:
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
        if not stream.is_eof():  # else all of it came together with the headers
            guard.allow(guard.read_timeout)
        body += await stream.readany()
        if len(body) > limit:
            return False
    return True


def _without_reply(exchange: Request, error: Exception) -> Result:
    phase, cause = exchange.state.phase, _foreign_cause(error)
    return Result(
        attempt_result=_event_of_error(phase, error, cause), phase=phase, detail=_in_words(error, phase), cause=cause
    )


def _foreign_cause(error: Exception) -> Exception | None:
    """Return the error if it was raised by code of the borrowed session, and not by aiohttp."""
    if not isinstance(error, aiohttp.ClientError | TimeoutError):
        return error
    cause = error.__cause__ if isinstance(error, aiohttp.ClientConnectionError) else None
    return cause if isinstance(cause, Exception) and not isinstance(cause, aiohttp.ClientError | OSError) else None


def _event_of_error(phase: Phase, error: Exception, cause: Exception | None) -> AttemptResult:
    if phase is Phase.CONNECTING:
        return _event_before_writing(error, cause)
    # Whatever the error is called: the Space may have all of the request.
    if cause is not None:
        return AttemptResult.SESSION_FAILED
    return (
        AttemptResult.MALFORMED
        if isinstance(error, aiohttp.ClientResponseError | UnaskedAnswerError)
        else AttemptResult.NO_RESPONSE
    )


def _event_before_writing(error: Exception, cause: Exception | None) -> AttemptResult:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return AttemptResult.UNRETRYABLE if error.status == _PROXY_AUTH else AttemptResult.NOT_SENT
    if isinstance(error, _UNUSABLE):
        return AttemptResult.UNRETRYABLE
    if cause is not None or isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return AttemptResult.NOT_SENT
    return AttemptResult.STALE_CONNECTION


def _in_words(error: Exception, phase: Phase) -> str:
    """Describe an error without its text, which may repeat bytes of an answer's head or the request's headers."""
    if phase is Phase.CONNECTING and isinstance(error, aiohttp.ClientConnectorError):
        # No answer was read yet, and the text says what is wrong.
        return f"{type(error).__name__}: {error}"
    if isinstance(error, TimeoutError):
        return "timeout: no connection in time" if phase is Phase.CONNECTING else "timeout: no answer in time"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered HTTP {error.status}"
    for kind, words in _IN_WORDS.items():
        if isinstance(error, kind):
            return words
    number = error.errno if isinstance(error, OSError) else None
    name = type(error.__cause__ if isinstance(error, SilentResendError) else error).__name__
    return f"{name}: {os.strerror(number)}" if number is not None else name
