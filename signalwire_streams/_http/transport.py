"""One attempt over aiohttp, from a request to its result. No aiohttp exception escapes.

aiohttp's exceptions don't distinguish "not sent" from "maybe sent": a dead kept-alive connection and a request that
was read and then reset raise the same class. So the phase decides.
"""

import asyncio
import os
from collections.abc import Mapping
from functools import cache
from platform import python_version
from typing import cast

import aiohttp
from attrs import evolve
from multidict import CIMultiDict, istr
from yarl import URL

from signalwire_streams._http.account import Account
from signalwire_streams._http.attempt_guard import (
    FORM,
    ONE_WRITE,
    AttemptGuard,
    GuardedPayload,
    PreparedBody,
    PreparedRequest,
    RepeatedRequestError,
    SilentResendError,
    UnsolicitedResponseError,
)
from signalwire_streams._http.error_bodies import retry_after
from signalwire_streams._http.messages import Request, Result, create_result
from signalwire_streams._http.responses import classify, confirms, contradiction, read_response
from signalwire_streams._http.session import SessionManager, Timeouts
from signalwire_streams.clock import Clock
from signalwire_streams.errors import Phase
from signalwire_streams.models import AttemptResult, Operation

_SMALL_RESPONSE = 64 * 1024
"""Limit in bytes of the unpacked response to a start or a stop, or of a rejection; real ones have a few hundred."""
_LARGE_RESPONSE = 4 * 1024 * 1024
"""Limit in bytes of the unpacked response to a read."""
_MAX_LARGE_RESPONSES = 8
"""How many responses above the small limit a client reads at once; the others wait, and so do their servers."""
_BUFFER = 64 * 1024
"""Bytes that aiohttp unpacks ahead; a borrowed session may use any other value."""
_MAX_LINE, _MAX_HEADERS = 64 * 1024, 512
"""Gateways add cookies and policies that are longer than aiohttp's 8,190 bytes, and more of them than its 128."""
_REDIRECT = 300
_KEEPALIVE = 10.0
_AUTHORIZATION = "Authorization"
# Looked up once: Python 3.11 looks up each member of an enum in Python.
_CONNECTING, _RESPONDED = Phase.CONNECTING, Phase.RESPONDED
_DONE = AttemptResult.DONE
_NO_TIMERS = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


@cache  # the version is read from a file, which would be half of what a client costs
def user_agent() -> str:
    from importlib.metadata import version  # noqa: PLC0415  (slow to import, and not needed before)

    return f"signalwire-streams/{version('signalwire-streams')} aiohttp/{aiohttp.__version__} Python/{python_version()}"


class OwnSession:
    """Creates the client's own session, and the bodies of its requests."""

    def __init__(self, root: URL, headers: Mapping[str, str]) -> None:
        self._root, self._headers = root, CIMultiDict(headers)
        self._head: bytes | None = None  # of a POST, from its path to its length; None if it can't be prepared

    def create(self) -> aiohttp.ClientSession:
        can_prepare = self._can_prepare()
        self._head = self._post_head() if can_prepare else None
        return aiohttp.ClientSession(
            # The rate-limit middleware limits the concurrency.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            request_class=PreparedRequest if can_prepare else aiohttp.ClientRequest,
        )

    def _can_prepare(self) -> bool:
        """Return False if the requests of the installed aiohttp are different; its own class is used then."""
        own = [name for name in vars(PreparedRequest) if not name.startswith("_") and name != "respond"]
        if not all(hasattr(aiohttp.ClientRequest, name) for name in own):
            return False
        loop, kind, guard = asyncio.get_running_loop(), aiohttp.ClientResponse, cast("AttemptGuard", None)
        body = PreparedBody(b"", guard, b"", self._headers)
        try:
            PreparedRequest(
                "POST", self._root, headers=self._headers, data=body, loop=loop, response_class=kind
            ).respond()
        except Exception:  # noqa: BLE001  (whatever is different)
            return False
        return True

    def _post_head(self) -> bytes:
        encodings = aiohttp.ClientRequest.DEFAULT_HEADERS[istr("Accept-Encoding")]
        lines = {
            "Host": self._root.host_port_subcomponent,
            **self._headers,
            "Content-Type": FORM,
            "Accept-Encoding": encodings,
        }
        written = "".join(f"\r\n{name}: {value}" for name, value in lines.items())
        return f" HTTP/1.1{written}\r\nContent-Length: ".encode("ascii")

    def body(self, request: Request, url: URL, guard: AttemptGuard) -> GuardedPayload | PreparedBody | None:
        if request.body is None:
            return None
        path, size = url.raw_path_qs, len(request.body)
        # A path that a middleware has changed may be one that aiohttp rejects.
        is_plain = path.isascii() and path.isprintable() and " " not in path
        if self._head is None or request.method != "POST" or size > ONE_WRITE or not is_plain:
            return GuardedPayload(request.body, guard)
        head = b"POST %b%b%d\r\n\r\n" % (path.encode("ascii"), self._head, size)
        return PreparedBody(request.body, guard, head, self._headers)


class HttpTransport:
    """Sends one request, once."""

    def __init__(self, account: Account, sessions: SessionManager, timeouts: Timeouts, clock: Clock) -> None:
        self._origin, self._root = account.origin, URL(account.origin)
        self._headers: Mapping[str, str] = {
            _AUTHORIZATION: account.authorization,
            "Accept": "application/json",
            "User-Agent": user_agent(),
        }
        self._own_session = OwnSession(self._root, self._headers)
        self._sessions, self._timeouts, self._clock = sessions, timeouts, clock
        sessions.create = self._own_session.create
        self._large_responses = asyncio.Semaphore(_MAX_LARGE_RESPONSES)

    async def __call__(self, request: Request) -> Result:
        state = request.state
        session = self._sessions.session()
        if session is None:
            state.attempts -= 1  # it is not made
            return Result(
                attempt_result=AttemptResult.UNRETRYABLE,
                phase=Phase.QUEUED,
                detail="the client was closed in the meantime",
            )
        state.phase = _CONNECTING
        if state.mint is not None and request.body is not None:
            # Now, since the start may have waited for long, and for each attempt, since a retry may wait as well.
            request = evolve(request, body=request.body + state.mint())
        received: list[aiohttp.ClientResponse] = []
        content, complete = bytearray(), False  # what arrived of the body counts even if the rest is not in time
        limit = min(self._timeouts.attempt, state.deadline_at - self._clock.now())
        try:
            with self._sessions.timer.within(limit, step=self._timeouts.connect) as deadline:
                guard = AttemptGuard(request, deadline, self._timeouts.read)
                complete = await self._exchange(session, request, guard, received, content)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if received or task is None or task.cancelling():
                raise
            # The caller did not cancel this call: a borrowed session was closed, and aiohttp dropped the waiters of its
            # pool.
            return without_response(request, aiohttp.ClientConnectionError("the session was closed"))
        except Exception as error:  # noqa: BLE001  (trace hooks, a resolver and more of a borrowed session run in it)
            if not received:
                return without_response(request, error)
        head = received[0]
        response = read_response(head.status, head.headers, bytes(content), complete=complete)
        # A response without a connection is that of a test which mocks aiohttp, and may say anything.
        different = "" if guard.transport is None else contradiction(request, response)
        if guard.transport is not None and different:
            # All later responses of this connection may belong to other requests as well. aiohttp may have taken it
            # back into its pool already.
            guard.transport.abort()
            return Result(attempt_result=AttemptResult.MALFORMED, phase=_RESPONDED, response=response, detail=different)
        result = classify(request, response)
        is_unconfirmed = result is _DONE and guard.transport is not None and not confirms(request, response)
        if is_unconfirmed and request.operation.is_stop:
            result = AttemptResult.ACCEPTED
        return create_result(
            attempt_result=result,
            phase=_RESPONDED,
            response=response,
            retry_after=None if result is _DONE else retry_after(response.headers),
            # The sid may be that of another request's stream.
            ambiguous=is_unconfirmed and request.operation.is_start,
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
        content: bytearray,
    ) -> bool:
        url = self._url(request.path)
        body: GuardedPayload | PreparedBody | None = None
        headers: Mapping[str, str]
        if self._sessions.borrowed is None:
            body, headers = self._own_session.body(request, url, guard), request.headers  # the session has the others
        else:
            headers = {**self._headers, **request.headers}
            if request.body is not None:
                body, headers = GuardedPayload(request.body, guard), {"Content-Type": FORM, **headers}
            if session.trust_env:
                # aiohttp rejects the header beside an entry of netrc, so the guard sets it later.
                guard.headers = {_AUTHORIZATION: headers[_AUTHORIZATION]}
                headers = {name: value for name, value in headers.items() if name != _AUTHORIZATION}
        response = await session.request(
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
            # The session's own middlewares are left out: one that repeats a POST would start a second stream.
            middlewares=(guard,),
        )
        request.state.phase = _RESPONDED
        received.append(response)
        try:
            return await self._read_body(request, response, guard, content)
        finally:
            response.release()

    async def _read_body(
        self, request: Request, response: aiohttp.ClientResponse, guard: AttemptGuard, body: bytearray
    ) -> bool:
        """Read the body, as far as it is kept, and return True if that is all of it."""
        stream, limit = response.content, _SMALL_RESPONSE
        if stream.is_eof() and stream.total_bytes <= limit and stream.exception() is None:
            body += stream.read_nowait()  # all of it arrived with the headers, as nearly always
            return True
        try:
            complete = await _read_up_to(limit, body, stream, guard)
            if not complete and request.operation is Operation.READ and response.status < _REDIRECT:
                limit = _LARGE_RESPONSE
                async with self._large_responses:
                    complete = await _read_up_to(limit, body, stream, guard)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        if not complete:
            response.close()
            del body[limit:]
        return complete


async def _read_up_to(limit: int, body: bytearray, stream: aiohttp.StreamReader, guard: AttemptGuard) -> bool:
    """Read into *body*. Return False once it is longer than *limit*."""
    while not stream.at_eof():
        if not stream.is_eof():  # else all of it arrived with the headers
            guard.deadline.allow(guard.read_timeout)
        body += await stream.readany()
        if len(body) > limit:
            return False
    return True


_PROXY_AUTH = 407


_UNUSABLE = (
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.InvalidURL,
    aiohttp.NonHttpUrlClientError,
    ValueError,  # raised by aiohttp if a session's own settings contradict the request's
)

_DESCRIPTIONS = {
    aiohttp.ClientResponseError: "the response is not valid HTTP, or its head is too long",
    UnsolicitedResponseError: "a response arrived before the request was sent",
    RepeatedRequestError: "the session itself retries requests",
}


def without_response(request: Request, error: Exception) -> Result:
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
    if phase is not Phase.CONNECTING:
        # Whatever the error is called: the Space may have all of the request.
        if cause is not None:
            return AttemptResult.SESSION_FAILED
        is_unreadable = isinstance(error, aiohttp.ClientResponseError | UnsolicitedResponseError)
        return AttemptResult.MALFORMED if is_unreadable else AttemptResult.NO_RESPONSE
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return AttemptResult.UNRETRYABLE if error.status == _PROXY_AUTH else AttemptResult.NOT_SENT
    if isinstance(error, _UNUSABLE):
        return AttemptResult.UNRETRYABLE
    if cause is not None or isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return AttemptResult.NOT_SENT
    return AttemptResult.STALE_CONNECTION


def _describe(error: Exception, phase: Phase) -> str:
    """Describe an error without its text, which may repeat bytes of a response's head or the request's headers."""
    if phase is Phase.CONNECTING and isinstance(error, aiohttp.ClientConnectorError):
        # No response was read yet, and the text says what is wrong.
        return f"{type(error).__name__}: {error}"
    if isinstance(error, TimeoutError):
        return "timeout: could not connect in time" if phase is Phase.CONNECTING else "timeout: no response in time"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy responded with HTTP {error.status}"
    for kind, description in _DESCRIPTIONS.items():
        if isinstance(error, kind):
            return description
    number = error.errno if isinstance(error, OSError) else None
    name = type(error.__cause__ if isinstance(error, SilentResendError) else error).__name__
    return f"{name}: {os.strerror(number)}" if number is not None else name
