"""One attempt over aiohttp, from a request to its result. No aiohttp exception escapes.

aiohttp's exceptions don't distinguish "not sent" from "maybe sent": a dead kept-alive connection and a request that
was read and then reset raise the same class. So the attempt's guard records when the request is written, and the
phase decides.
"""

import asyncio
import os
from collections.abc import Mapping
from importlib.metadata import version
from platform import python_version

import aiohttp
from yarl import URL

from signalwire_streams._http.account import Account
from signalwire_streams._http.connection_guard import (
    FORM,
    AttemptGuard,
    GuardedPayload,
    RepeatedRequestError,
    SilentResendError,
    UnaskedAnswerError,
)
from signalwire_streams._http.decoding import classify, confirms, contradiction, read_response
from signalwire_streams._http.error_bodies import retry_after
from signalwire_streams._http.messages import Request, Result
from signalwire_streams._http.session import SessionManager, Timeouts
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
_PROXY_AUTH = 407
_AUTHORIZATION = "Authorization"

_NO_TIMERS = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

_UNUSABLE = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    ValueError,  # raised by aiohttp if a session's own settings contradict the request's
)

_DESCRIPTIONS = {
    aiohttp.ClientResponseError: "the response is not valid HTTP, or its head is too long",
    UnaskedAnswerError: "a response arrived before the request was sent",
    RepeatedRequestError: "the session itself retries requests",
}


class HttpTransport:
    """Sends one request, once."""

    def __init__(self, account: Account, sessions: SessionManager, timeouts: Timeouts, clock: Clock) -> None:
        self._origin, self._root = account.origin, URL(account.origin)
        self._headers: Mapping[str, str] = {
            _AUTHORIZATION: account.authorization,
            "Accept": "application/json",
            "User-Agent": f"signalwire-streams/{version('signalwire-streams')} "
            f"aiohttp/{aiohttp.__version__} Python/{python_version()}",
        }
        self._form_headers = {**self._headers, "Content-Type": FORM}
        self._sessions, self._timeouts, self._clock = sessions, timeouts, clock
        self._large_answers = asyncio.Semaphore(_LARGE_ANSWERS)

    async def __call__(self, request: Request) -> Result:
        """Send the request and return how the attempt ended."""
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
            return _without_response(request, aiohttp.ClientConnectionError("the session was closed"))
        except Exception as error:  # noqa: BLE001  (trace hooks, a resolver and more of a borrowed session run in it)
            if not received:
                return _without_response(request, error)
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
        is_started = request.operation.is_start and result is AttemptResult.DONE
        return Result(
            attempt_result=result,
            phase=Phase.ANSWERED,
            response=response,
            retry_after=None if result is AttemptResult.DONE else retry_after(response.headers),
            # The sid may be that of another request's stream.
            ambiguous=is_started and guard.transport is not None and not confirms(request, response),
        )

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
        url, body, headers = self._url(request.path), None, self._headers
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


def _without_response(request: Request, error: Exception) -> Result:
    phase, cause = request.state.phase, _foreign_cause(error)
    return Result(
        attempt_result=_classify_error(phase, error, cause), phase=phase, detail=_describe(error, phase), cause=cause
    )


def _foreign_cause(error: Exception) -> Exception | None:
    """Return the error if it was raised by code of the borrowed session, and not by aiohttp."""
    if not isinstance(error, aiohttp.ClientError | TimeoutError):
        return error
    cause = error.__cause__ if isinstance(error, aiohttp.ClientConnectionError) else None
    return cause if isinstance(cause, Exception) and not isinstance(cause, aiohttp.ClientError | OSError) else None


def _classify_error(phase: Phase, error: Exception, cause: Exception | None) -> AttemptResult:
    if phase is Phase.CONNECTING:
        return _classify_unsent(error, cause)
    # Whatever the error is called: the Space may have all of the request.
    if cause is not None:
        return AttemptResult.SESSION_FAILED
    return (
        AttemptResult.MALFORMED
        if isinstance(error, aiohttp.ClientResponseError | UnaskedAnswerError)
        else AttemptResult.NO_RESPONSE
    )


def _classify_unsent(error: Exception, cause: Exception | None) -> AttemptResult:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return AttemptResult.UNRETRYABLE if error.status == _PROXY_AUTH else AttemptResult.NOT_SENT
    if isinstance(error, _UNUSABLE):
        return AttemptResult.UNRETRYABLE
    if cause is not None or isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return AttemptResult.NOT_SENT
    return AttemptResult.STALE_CONNECTION


def _describe(error: Exception, phase: Phase) -> str:
    """Describe an error without its text, which may repeat bytes of an answer's head or the request's headers."""
    if phase is Phase.CONNECTING and isinstance(error, aiohttp.ClientConnectorError):
        # No answer was read yet, and the text says what is wrong.
        return f"{type(error).__name__}: {error}"
    if isinstance(error, TimeoutError):
        return "timeout: could not connect in time" if phase is Phase.CONNECTING else "timeout: no response in time"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answered HTTP {error.status}"
    for kind, description in _DESCRIPTIONS.items():
        if isinstance(error, kind):
            return description
    number = error.errno if isinstance(error, OSError) else None
    name = type(error.__cause__ if isinstance(error, SilentResendError) else error).__name__
    return f"{name}: {os.strerror(number)}" if number is not None else name
