"""The exception tree: everything this package raises on purpose.

::

    StreamsError
    ├── InvalidRequestError        (ValueError)    the caller wrote something wrong; nothing was sent
    ├── ClientStateError           (RuntimeError)  the client is closed, or belongs to another event loop
    ├── JournalError                               a bulk run's journal can't be read or written
    ├── FleetError                                 the Redis that a fleet shares can't be used
    ├── TransportError                             no answer came that could be believed
    │   ├── CircuitOpenError                       the Space kept failing; not even tried
    │   └── RunCancelledError                          the bulk run ended before it was sent
    ├── MalformedResponseError                     an answer came, and it is not the API's
    ├── OpenError                                  a stream that was to be started and received did not come
    ├── MalformedFrameError                        a frame of the audio socket can't be read
    ├── ApiError                                   the Space refused
    │   ├── BadRequestError        400
    │   ├── AuthenticationError    401
    │   ├── PermissionDeniedError  403
    │   ├── NotFoundError          404
    │   ├── UnprocessableError     422
    │   ├── RateLimitedError       429, or code 20429
    │   └── ServerError            5xx, or code 20504
    └── StreamOutcomeUnknownError                       the stream may be running, and nobody can tell

What only recordings can meet is beside them: `signalwire_streams.receiver.audio` adds ``UnknownEncodingError`` and
``RecordingError``, which are `StreamsError` too.

Every message is one line. No message and no attribute holds an API token, a bearer token or a custom
parameter's value. The errors pickle, so that they can cross a process boundary.
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
"""Whether the Space received the request: certainly not, perhaps, or certainly (it answered)."""


class Phase(StrEnum):
    """How far one attempt got before it ended."""

    QUEUED = "queued"
    """Waiting for a connection slot, for the pacer or for an open gate. Nothing was sent."""
    CONNECTING = "connecting"
    """Getting a connection: DNS, TCP, TLS, or a kept-alive one that turned out dead. Nothing was sent."""
    WRITING = "writing"
    """The request was being written. The Space may have all of it, or a part."""
    WAITING = "waiting"
    """The request is out; no status line came back yet."""
    ANSWERED = "answered"
    """A status line came back (the body may still have been lost)."""


@define(eq=False, slots=False, str=False)
class StreamsError(Exception):
    """The root of every error of this package.

    Attributes:
        message: one line that can be shown to a person.
        sent: whether the Space received the request, over all attempts of the call.
        attempts: how many attempts the call made.
        retry_after: seconds to wait before another try, when the Space or the client knows.
        request_id: the Space's own id of the answer, for its support.
    """

    message: str
    sent: Sent = "no"
    attempts: int = 0
    retry_after: float | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        return self.message


class InvalidRequestError(StreamsError, ValueError):
    """The caller wrote something that can't be right; the message says what to write instead."""


class ClientStateError(StreamsError, RuntimeError):
    """The client can't be used now: it is closed, or it belongs to another event loop."""


class JournalError(StreamsError):
    """The journal of a bulk run can't be read or written. What it could not note beforehand was not sent."""


@define(eq=False, slots=False, str=False)
class FleetError(StreamsError):
    """The Redis that a fleet shares can't be used. What it could not note beforehand was not sent."""


@define(eq=False, slots=False, str=False)
class TransportError(StreamsError):
    """No answer came that could be believed.

    Attributes:
        phase: how far the last attempt got.
    """

    phase: Phase = Phase.QUEUED


class CircuitOpenError(TransportError):
    """Too many recent requests failed, so this one was not tried; ``retry_after`` says when one will be."""


class RunCancelledError(TransportError):
    """An item of a bulk run that was not sent, because the run ended before; it may be tried again."""


@define(eq=False, slots=False, str=False)
class MalformedResponseError(StreamsError):
    """The answer is not one that the API gives: not HTTP, not JSON, or a page to follow on another host.

    Attributes:
        status: the HTTP status, where there was a readable one.
    """

    status: int | None = None


@define(eq=False, slots=False, str=False)
class OpenError(StreamsError):
    """A stream that was to be started and received in one did not come; its ``__cause__`` may tell more.

    Attributes:
        leg: which leg failed: the ``start`` (the REST call), the ``socket`` (nobody dialled, or nothing began), the
            ``callback`` (the Space told that the stream failed), or at the end the ``stop``.
    """

    stage: Literal["start", "socket", "callback", "stop"] = "start"


class MalformedFrameError(StreamsError):
    """A frame of the audio socket that is not one; the message does not repeat it."""


@define(eq=False, slots=False, str=False)
class ApiError(StreamsError):
    """The Space answered, and refused.

    Source: https://signalwire.com/docs/compatibility-api/rest/error-codes

    Attributes:
        status: the HTTP status.
        code: the platform's own error code, such as 20404.
        errors: the sentences of the answer, from either of the API's error shapes.
        more_info: the address of the platform's page about the code.
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
    """422: a field was refused; ``errors`` says which."""


class RateLimitedError(ApiError):
    """429 or code 20429, and waiting did not help or would take too long."""


class ServerError(ApiError):
    """5xx or code 20504: the Space failed."""


@define(eq=False, slots=False, str=False)
class StreamOutcomeUnknownError(StreamsError):
    """A start was sent, and whether the stream runs can't be told.

    The API has no way to look a stream up, so the client says what it knows instead of guessing. What can be done:

    - Stop the stream by its ``name``.
    - Start it again under the same ``name``: ``await error.start_again()``, or ``start_stream(..., name=error.name,
      may_be_running=True)``. The result is ``ambiguous``, and is stopped by its name. Only a refusal as a duplicate
      (``already_started``), or the status callback ``Duplicated stream name``, proves that the stream was running;
      an ordinary answer proves nothing, since its sid may belong to a stream that the Space then refused. That a
      second stream of one name is refused is documented for conferences; a call may take it.
    - Without a name, decide what is worse: a second start may make a second stream.

    Attributes:
        target: the sid of the conference or call.
        name: the Name that was sent, or None.
        phase: how far the attempt got that made the outcome unknown.
        status: the HTTP status of the last answer, if there was one.
        accepted: True when the Space answered 2xx but the answer could not be read: the stream runs.
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
                fleet, so that it does not have the request any more.
            StreamsError: as in ``start_stream``.
        """
        start: StartAgain | None = vars(self).get(_START_AGAIN)
        if self.name is None:
            raise InvalidRequestError(
                "the stream was started without a name, so starting again may make a second one: if that is right, "
                "call start_stream(...) anew"
            )
        if start is None:
            raise InvalidRequestError(
                "this error does not hold the request: "
                f"call start_stream(..., name={self.name!r}, may_be_running=True) with the same fields"
            )
        return await start(deadline)

    def keep_start(self, start: StartAgain) -> None:
        """Keep what `start_again` calls. It holds the request's secrets, so it is no attribute and is not copied."""
        vars(self)[_START_AGAIN] = start

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {name: value for name, value in vars(self).items() if name != _START_AGAIN}
