"""What aiohttp raised instead of a response, as the result of an attempt.

aiohttp's exceptions don't distinguish "not sent" from "maybe sent": a dead kept-alive connection and a request that
was read and then reset raise the same class. So the phase decides.
"""

import os

import aiohttp

from signalwire_streams._http.exchange import Request, Result
from signalwire_streams.errors import Phase
from signalwire_streams.models import AttemptResult

_PROXY_AUTH = 407


class UnaskedAnswerError(aiohttp.ClientConnectionError):
    """Data arrived before the request was sent, so no response on this connection can be trusted."""


class SilentResendError(aiohttp.ClientError):
    """Replaces an error after which aiohttp would repeat a GET itself, without the retry logic counting it."""


class RepeatedRequestError(aiohttp.ClientError):
    """The session sent a request again that was written already, without the retry logic counting it."""


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
        is_unreadable = isinstance(error, aiohttp.ClientResponseError | UnaskedAnswerError)
        return AttemptResult.MALFORMED if is_unreadable else AttemptResult.NO_RESPONSE
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
