"""What is known of one attempt to get an answer from the Space."""

from enum import Enum, StrEnum, auto

from attrs import frozen

from signalwire_streams.errors import Phase, Sent


class Operation(StrEnum):
    """What an exchange does at the Space; it decides what may be sent again."""

    READ = "read"
    STOP = "stop"
    STOP_RETURNED = "stop by returned sid"
    STOP_AMBIGUOUS = "stop by ambiguous sid"
    STOP_BY_NAME = "stop by name"
    CONFERENCE_START = "named start on a conference"
    CALL_START = "named start on a call"
    UNNAMED_START = "unnamed start"

    @property
    def is_start(self) -> bool:
        """Whether doing it twice could make two streams."""
        return self is not Operation.READ and not self.is_stop

    @property
    def is_stop(self) -> bool:
        """Whether it ends a stream."""
        return self in {Operation.STOP, Operation.STOP_RETURNED, Operation.STOP_AMBIGUOUS, Operation.STOP_BY_NAME}


class Priority(Enum):
    """Who goes first where requests have to wait."""

    INTERACTIVE = auto()
    BULK = auto()


class AttemptResult(StrEnum):
    """How one attempt ended, as far as deciding what to do next needs it."""

    DONE = "answered"
    NOT_SENT = "could not connect"
    STALE_CONNECTION = "the kept-alive connection was dead"
    UNRETRYABLE = "the connection can't be used"
    DEADLINE_EXCEEDED = "not sent in time"
    BREAKER_OPEN = "not tried, the Space kept failing"
    NO_RESPONSE = "no answer came"
    SESSION_FAILED = "the borrowed session's own code failed"
    MALFORMED = "the answer can't be read"
    ACCEPTED = "accepted, but the answer can't be read"
    REDIRECTED = "redirected"
    REJECTED = "refused"
    FORBIDDEN = "access refused"
    DUPLICATE_NAME = "refused as a duplicate name"
    NOT_FOUND = "nothing there to stop"
    ALREADY_STOPPED = "stopped already"
    TARGET_ENDED = "its call or conference is not in progress"
    TRY_AGAIN = "asked to try again"
    THROTTLED = "too many requests"
    UNAVAILABLE = "unavailable"
    SERVER_FAULT = "the Space failed"
    CANCELLED = "cancelled"


class RetryDecision(StrEnum):
    """What is done after an attempt."""

    SUCCEED = "finish"
    RETRY = "retry"
    RETRY_UNSENT = "retry, nothing was sent"
    RETRY_IMMEDIATELY = "retry at once"
    RETRY_IMMEDIATELY_ONCE = "retry at once, one time"
    RESEND = "send again under the same name"
    WAIT_FOR_RATE_LIMIT = "wait until the Space takes requests again"
    ALREADY_STARTED = "it runs already"
    ALREADY_STOPPED = "it is stopped already"
    SUCCEED_WITHOUT_SID = "it runs, known by its name"
    FAIL = "fail"
    UNKNOWN = "the outcome is unknown"


@frozen(kw_only=True)
class Attempt:
    """One attempt, as ``on_attempt`` hears of it. It holds no secret.

    Attributes:
        kind: what the exchange does.
        target: the sid of the conference or call, or the path of a list.
        name: the stream's Name, for a start.
        number: counted from 1 within the call.
        event: how the attempt ended.
        phase: how far it got.
        sent: whether the Space received this attempt.
        status: the HTTP status, if one came.
        code: the platform's error code, if one came.
        queued: seconds that it waited for a connection slot and for the pacer.
        seconds: how long it then took.
        action: what is done next.
        wait: seconds until then.
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
