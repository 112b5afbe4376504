"""One attempt to send a request: its operation, priority, result and retry decision."""

from enum import StrEnum
from typing import Self

from attrs import frozen

from signalwire_streams.errors import Phase, Sent


class _Word(StrEnum):
    """A word that machines may rely on; `description` is for people and may change."""

    description: str

    def __new__(cls, value: str, description: str) -> Self:
        """Create a member from its value and its description."""
        word = str.__new__(cls, value)
        word._value_, word.description = value, description
        return word


class Operation(_Word):
    """The operation of a request, which decides whether it may be retried."""

    READ = "read", "read"
    STOP = "stop", "stop"
    STOP_RETURNED = "stop_returned", "stop by returned sid"
    STOP_AMBIGUOUS = "stop_ambiguous", "stop by ambiguous sid"
    STOP_BY_NAME = "stop_by_name", "stop by name"
    END = "end", "end of a call or conference"
    CONFERENCE_START = "conference_start", "named start on a conference"
    CALL_START = "call_start", "named start on a call"
    UNNAMED_START = "unnamed_start", "unnamed start"

    is_start: bool
    """Whether it is a start, which could create a second stream if it is repeated."""
    is_stop: bool
    """Whether it is the stop of a stream, or the end of a call or conference."""

    def __init__(self, value: str, _: str) -> None:
        """Derive the kind from the value."""
        self.is_start, self.is_stop = value.endswith("_start"), value.startswith(("stop", "end"))


class Priority(_Word):
    """Priority of a request in queues: interactive requests go first."""

    INTERACTIVE = "interactive", "single calls"
    BULK = "bulk", "items of bulk runs"


class AttemptResult(_Word):
    """How one attempt ended."""

    DONE = "done", "a response arrived"
    NOT_SENT = "not_sent", "could not connect"
    STALE_CONNECTION = "stale_connection", "the kept-alive connection was dead"
    UNRETRYABLE = "unretryable", "not sent"
    DEADLINE_EXCEEDED = "deadline_exceeded", "not sent in time"
    BREAKER_OPEN = "breaker_open", "not sent, the circuit breaker is open"
    NO_RESPONSE = "no_response", "no response"
    SESSION_FAILED = "session_failed", "the borrowed session's own code failed"
    MALFORMED = "malformed", "the response can't be parsed"
    ACCEPTED = "accepted", "accepted, but the response can't be parsed"
    REDIRECTED = "redirected", "redirected"
    REJECTED = "rejected", "rejected"
    UNREADABLE_REJECTION = "unreadable_rejection", "rejected, without a readable error of the API"
    FORBIDDEN = "forbidden", "access denied"
    DUPLICATE_NAME = "duplicate_name", "rejected as a duplicate name"
    NOT_FOUND = "not_found", "not found"
    ALREADY_STOPPED = "already_stopped", "already stopped"
    TARGET_ENDED = "target_ended", "its call or conference is not in progress"
    TRY_AGAIN = "try_again", "asked to try again"
    THROTTLED = "throttled", "too many requests"
    UNAVAILABLE = "unavailable", "unavailable"
    SERVER_FAULT = "server_fault", "the Space failed"
    CANCELLED = "cancelled", "cancelled"


class RetryDecision(_Word):
    """The decision after an attempt."""

    is_retry: bool
    """Whether another attempt of the same call follows."""

    SUCCEED = "succeed", "finish"
    RETRY = "retry", "retry"
    RETRY_UNSENT = "retry_unsent", "retry, nothing was sent"
    RETRY_IMMEDIATELY = "retry_immediately", "retry immediately"
    RETRY_IMMEDIATELY_ONCE = "retry_immediately_once", "retry immediately, once"
    RESEND = "resend", "send again under the same name"
    WAIT_FOR_RATE_LIMIT = "wait_for_rate_limit", "wait until the Space accepts requests again"
    ALREADY_STARTED = "already_started", "already running"
    ALREADY_STOPPED = "already_stopped", "already stopped"
    SUCCEED_WITHOUT_SID = "succeed_without_sid", "running, known by its name"
    FAIL = "fail", "fail"
    UNKNOWN = "unknown", "the outcome is unknown"

    def __init__(self, value: str, _: str) -> None:
        """Derive the kind from the value."""
        self.is_retry = value.startswith(("retry", "resend", "wait"))


@frozen(kw_only=True)
class Attempt:
    """One attempt, as passed to ``on_attempt``. It contains no secrets.

    Attributes:
        target: the sid of the conference or call, or the path of a list.
        name: the stream's Name, for a start.
        number: counted from 1 within the call.
        phase: how far it got.
        sent: whether the Space received this attempt.
        status: the HTTP status, if one arrived.
        code: the platform's error code, if one arrived.
        queue_time: seconds that it waited for a connection slot and for the rate limiter.
        duration: seconds that it then took.
        next_delay: seconds until the next attempt.
    """

    operation: Operation
    target: str
    name: str | None
    number: int
    result: AttemptResult
    phase: Phase
    sent: Sent
    status: int | None
    code: int | None
    queue_time: float
    duration: float
    decision: RetryDecision
    next_delay: float
