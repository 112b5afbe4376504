"""The exception hierarchy of this package.

::

    StreamsError
    ├── InvalidRequestError        (ValueError)    invalid argument; nothing was sent
    ├── ClientStateError           (RuntimeError)  the client is closed, or belongs to another event loop
    ├── JournalError                               a bulk run's journal can't be read or written
    ├── FleetError                                 the Redis that a fleet shares can't be used
    ├── TransportError                             no valid response
    │   ├── CircuitOpenError                       the circuit breaker is open; not sent, or not sent again
    │   └── RunCancelledError                      the bulk run ended before the item was sent
    ├── MalformedResponseError                     the response did not come from the API
    ├── OpenError                                  a stream that was started with its receiver did not begin
    ├── MalformedFrameError                        a frame of the audio socket can't be parsed
    ├── ApiError                                   the Space rejected the request
    │   ├── BadRequestError        400
    │   ├── AuthenticationError    401
    │   ├── PermissionDeniedError  403
    │   ├── NotFoundError          404
    │   ├── UnprocessableError     422
    │   ├── RateLimitedError       429, or code 20429
    │   └── ServerError            5xx, or code 20504
    └── StreamOutcomeUnknownError                  the stream may be running

`signalwire_streams.receiver.audio` adds ``UnknownEncodingError`` and ``RecordingError``.

Every message is one line. No message and no attribute holds an API token, a bearer token or a custom parameter's
value. The errors can be pickled.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from attrs import define

__all__ = [
    "ApiError",
    "AuthenticationError",
    "BadRequestError",
    "CircuitOpenError",
    "ClientStateError",
    "FleetError",
    "InvalidRequestError",
    "JournalError",
    "MalformedFrameError",
    "MalformedResponseError",
    "NotFoundError",
    "OpenError",
    "PermissionDeniedError",
    "Phase",
    "RateLimitedError",
    "RunCancelledError",
    "ServerError",
    "StreamOutcomeUnknownError",
    "StreamsError",
    "TransportError",
    "UnprocessableError",
]

StartAgain: TypeAlias = Callable[[float | None], Awaitable[Any]]
_START_AGAIN = "_start_again"

Sent = Literal["no", "maybe", "yes"]
"""Whether the Space received the request: certainly not, perhaps, or certainly (it responded)."""


class Phase(StrEnum):
    """How far one attempt got before it ended."""

    QUEUED = "queued"
    """Waiting for a connection slot or for the rate limiter. Nothing was sent."""
    CONNECTING = "connecting"
    """Getting a connection: DNS, TCP, TLS, or a kept-alive one that turned out dead. Nothing was sent."""
    WRITING = "writing"
    """The request was being written. The Space may have all of it, or a part."""
    WAITING = "waiting"
    """The request was written; no status line has arrived."""
    RESPONDED = "responded"
    """A status line arrived (the body may still have been lost)."""


@define(eq=False, slots=False, str=False)
class StreamsError(Exception):
    """Base class of all errors of this package.

    Attributes:
        message: one human-readable line.
        sent: whether the Space received the request, over all attempts of the call.
        attempts: how many attempts the call made.
        retry_after: seconds to wait before retrying, if known.
        request_id: the Space's own id of the response, for SignalWire's support.
    """

    message: str
    sent: Sent = "no"
    attempts: int = 0
    retry_after: float | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(StreamsError, ValueError):
    """Invalid argument; the message says what to write instead."""


class ClientStateError(StreamsError, RuntimeError):
    """The client is closed, or belongs to another event loop."""


class JournalError(StreamsError):
    """The journal of a bulk run or keeper can't be read or written. Nothing is sent that it could not record first."""


@define(eq=False, slots=False, str=False)
class FleetError(StreamsError):
    """The Redis that a fleet shares can't be used. Nothing is sent that could not be recorded first."""


@define(eq=False, slots=False, str=False)
class TransportError(StreamsError):
    """No valid response arrived.

    Attributes:
        phase: how far the last attempt got.
    """

    phase: Phase = Phase.QUEUED


class CircuitOpenError(TransportError):
    """Circuit breaker open: too many recent requests failed, so this one was not sent, or not sent again."""


class RunCancelledError(TransportError):
    """The bulk run ended before this item was sent, or sent again; it is safe to retry."""


@define(eq=False, slots=False, str=False)
class MalformedResponseError(StreamsError):
    """The response is not the API's: not HTTP, not JSON, to another request, or with a next page on another host.

    Attributes:
        status: the HTTP status, if there was a readable one.
    """

    status: int | None = None


@define(eq=False, slots=False, str=False)
class OpenError(StreamsError):
    """A stream that was started with its receiver did not begin, or could not be stopped; see its ``__cause__``.

    Attributes:
        stage: what failed: the ``start`` (the REST call), the ``socket`` (no connection, or no start event), the
            ``callback`` (which reported that the stream failed), or at the end the ``stop``.
    """

    stage: Literal["start", "socket", "callback", "stop"] = "start"


class MalformedFrameError(StreamsError):
    """A frame of the audio socket can't be parsed; the message does not repeat it."""


@define(eq=False, slots=False, str=False)
class ApiError(StreamsError):
    """The Space rejected the request.

    Source: https://signalwire.com/docs/compatibility-api/rest/error-codes

    Attributes:
        status: the HTTP status.
        code: the platform's own error code, such as 20404.
        errors: the messages in the response, from any of the API's error shapes.
        more_info: the URL of the platform's page about the code.
    """

    status: int = 0
    code: int | None = None
    errors: tuple[str, ...] = ()
    more_info: str | None = None


class BadRequestError(ApiError):
    """400: the request can't be processed."""


class AuthenticationError(ApiError):
    """401: the project id or the API token is wrong."""


class PermissionDeniedError(ApiError):
    """403: the token lacks a scope, or the feature is off for this Space."""


class NotFoundError(ApiError):
    """404: no such conference, call or stream."""


class UnprocessableError(ApiError):
    """422: a field was rejected; see ``errors``."""


class RateLimitedError(ApiError):
    """429 or code 20429; retries were exhausted or would take too long."""


class ServerError(ApiError):
    """5xx or code 20504: server error."""


@define(eq=False, slots=False, str=False)
class StreamOutcomeUnknownError(StreamsError):
    """A start was sent, and the stream may or may not be running.

    The API has no way to look a stream up. Your options:

    - Stop the stream by its ``name``.
    - Start it again under the same ``name``: ``await error.start_again()``, or ``start_stream(..., name=error.name,
      may_be_running=True)``. The result is ``ambiguous``, and is stopped by its name. Only a rejection as a duplicate
      (``already_started``), or the status callback ``Duplicated stream name``, proves that the stream was running;
      a successful response proves nothing, since its sid may belong to a stream that the Space then rejected.
      Rejection of duplicate names is documented for conferences only; a call may accept a second stream.
    - Without a name, a second start may create a second stream.

    Attributes:
        target: the sid of the conference or call.
        name: the Name that was sent, or None.
        phase: how far the attempt got that made the outcome unknown.
        status: the HTTP status of the last response, if there was one.
        accepted: True if the response was a 2xx of the API without a readable sid: the stream is running.
    """

    target: str = ""
    name: str | None = None
    phase: Phase = Phase.WAITING
    status: int | None = None
    accepted: bool = False

    async def start_again(self, *, deadline: float | None = None) -> Any:  # noqa: ANN401  (a model, which is a layer above)
        """Start the stream again under the same name, with the same fields, over the same client.

        Args:
            deadline: seconds for the whole call, retries included.

        Returns:
            The `ConferenceStream` or `CallStream`, with ``ambiguous=True``; ``stop_stream`` stops it by its name.

        Raises:
            InvalidRequestError: the start had no name, or the error was copied, pickled, or read from a journal or a
                fleet, which drops the request.
            StreamsError: as in ``start_stream``.
        """
        start: StartAgain | None = vars(self).get(_START_AGAIN)
        if self.name is None:
            raise InvalidRequestError(
                "the stream was started without a name, so starting again may start a second one: if that is "
                "acceptable, call start_stream(...) again"
            )
        if start is None:
            raise InvalidRequestError(
                "this error does not contain the request: "
                f"call start_stream(..., name={self.name!r}, may_be_running=True) with the same fields"
            )
        return await start(deadline)

    def keep_start(self, start: StartAgain) -> None:
        """Store what `start_again` calls. It holds the request's secrets, so it is neither shown nor copied."""
        vars(self)[_START_AGAIN] = start

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {name: value for name, value in vars(self).items() if name != _START_AGAIN}
