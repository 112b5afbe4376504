"""The state of a target, what is observed of it, and the actions that a decision asks for."""

from enum import StrEnum
from math import inf
from typing import TypeAlias

from attrs import frozen

from signalwire_streams.keep_streaming._events import KeepEvent, KeepStatus


class Fate(StrEnum):
    """What is known of an attempt to start a stream that may be running."""

    SENDING = "sending"
    """It is in the journal, and its request may be under way."""
    IN_DOUBT = "in_doubt"
    """Its response was lost: its stream may exist, now or later."""
    ANSWERED = "answered"
    """The Space accepted it. It may still refuse the name in a callback."""
    HEARD = "heard"
    """Its socket is open; or, if it is received elsewhere, its callback said that it started."""
    ENDING = "ending"
    """It is to be stopped, by its sid or else by its name: it may have ended, which the Space may not have noticed."""
    ABANDONED = "abandoned"
    """It could not be stopped with certainty, and its stream may still appear."""


@frozen(kw_only=True)
class StreamAttempt:
    """One start of a target's stream, which makes one stream at most.

    Attributes:
        number: unique for its target, also if the journal was lost.
        fate: what is known of it.
        sid: the stream's id; known if the fate is ANSWERED or HEARD.
        settles_at: when its stream will have lived long enough not to count as failed.
        is_unwanted: whether its stream is to be replaced, even if it is heard late.
    """

    number: int
    fate: Fate = Fate.SENDING
    sid: str | None = None
    settles_at: float = inf
    is_unwanted: bool = False


@frozen(kw_only=True)
class StartStream:
    """Start a stream with one request that is not sent again; `SaveAttempt` comes before it."""

    attempt: int


@frozen(kw_only=True)
class SaveAttempt:
    """Commit the attempt to the journal before anything else is done."""

    attempt: int


@frozen(kw_only=True)
class StopBySid:
    """Stop a stream by its sid."""

    sid: str


@frozen(kw_only=True)
class StopByName:
    """Stop the stream of an attempt by its name, since its sid is not known."""

    attempt: int


@frozen(kw_only=True)
class GetTarget:
    """Ask the Space for the conference or call."""


@frozen(kw_only=True)
class WaitUntil:
    """Decide again at a time, with `TimePassed`."""

    at: float


KeepAction: TypeAlias = SaveAttempt | StartStream | StopBySid | StopByName | GetTarget | WaitUntil
"""What a decision asks its caller to do."""


@frozen(kw_only=True)
class TargetState:
    """The state of one conference or call.

    Attributes:
        last: number of the last attempt; numbers of a new journal begin above those of any earlier one.
        attempts: those whose streams may be running or may still appear.
        pending: the request under way, apart from a start.
        check_due: whether the target may have ended.
        next_at: nothing is started or stopped before this time.
        failures: consecutive failures.
        early_ends: how many of its streams ended within `KeepSettings.min_lifetime`, or were not heard in time.
        status: what the keeper believes.
        reason: why the status is IN_DOUBT or FAILING, or why the last stream was lost.
        reported: the last status that an event reported.
        reported_reason: its reason.
        has_streamed: whether a stream was reported as started.
    """

    last: int = 0
    attempts: tuple[StreamAttempt, ...] = ()
    pending: StopBySid | StopByName | GetTarget | None = None
    check_due: bool = False
    next_at: float = -inf
    failures: int = 0
    early_ends: int = 0
    status: KeepStatus = KeepStatus.WAITING
    reason: str | None = None
    reported: KeepStatus | None = None
    reported_reason: str | None = None
    has_streamed: bool = False

    def find(self, number: int) -> StreamAttempt | None:
        """Return an attempt whose stream may be running, or None if that is over."""
        return next((attempt for attempt in self.attempts if attempt.number == number), None)

    def of_fate(self, *fates: Fate) -> tuple[StreamAttempt, ...]:
        """Return the attempts of some fates, oldest first."""
        return tuple(attempt for attempt in self.attempts if attempt.fate in fates)


@frozen(kw_only=True)
class TimePassed:
    """The time of `WaitUntil` came."""


@frozen(kw_only=True)
class TargetListed:
    """The target is in a list of those in progress."""


@frozen(kw_only=True)
class TargetMissing:
    """The target is missing from a list. That proves nothing, since targets move between the pages of a list."""


@frozen(kw_only=True)
class TargetChecked:
    """The response to `GetTarget`.

    Attributes:
        in_progress: False if the target is completed or not found (404); None if there was no usable response.
    """

    in_progress: bool | None


@frozen(kw_only=True)
class KeeperRestarted:
    """The state was read from the journal: the keeper was restarted, or took over from another one.

    Attributes:
        replaces: whether streams that may still run are to be stopped first, since other ones are wanted.
    """

    replaces: bool = False


@frozen(kw_only=True)
class ObservationOfAttempt:
    """An observation of one attempt; the response, the socket or the callback identifies it, never a name alone."""

    attempt: int


@frozen(kw_only=True)
class StartAccepted(ObservationOfAttempt):
    """A start was accepted, with a sid."""

    sid: str


@frozen(kw_only=True)
class NameRefused(ObservationOfAttempt):
    """The response to a start, or its callback, says that another stream has this name."""


@frozen(kw_only=True)
class StartRejected(ObservationOfAttempt):
    """A start was rejected for another reason, or not sent: it created no stream.

    Attributes:
        reason: the error.
        may_have_ended: whether the target may have ended, as after a rejection by the Space.
    """

    reason: str
    may_have_ended: bool = True


@frozen(kw_only=True)
class ResponseLost(ObservationOfAttempt):
    """A start may have created a stream, but its response was lost or has no sid."""

    reason: str


@frozen(kw_only=True)
class SocketOpened(ObservationOfAttempt):
    """The socket of a stream was opened to this process."""

    sid: str


@frozen(kw_only=True)
class SocketClosed(ObservationOfAttempt):
    """That socket is closed. The Space may not have noticed."""


@frozen(kw_only=True)
class StartedCallback(ObservationOfAttempt):
    """The callback ``stream-started``."""

    sid: str


@frozen(kw_only=True)
class EndedCallback(ObservationOfAttempt):
    """The callback ``stream-stopped``, or ``stream-error`` for another reason than its name."""

    reason: str


class StopResult(StrEnum):
    """The result of a stop.

    Attributes:
        ENDED: the stream has ended: a 2xx, "already stopped", or "call or conference not in progress".
        NOT_FOUND: 404.
        FAILED: there was no response, or another rejection.
    """

    ENDED = "ended"
    NOT_FOUND = "not_found"
    FAILED = "failed"


@frozen(kw_only=True)
class StopAnswered:
    """The response to a stop."""

    stop: StopBySid | StopByName
    result: StopResult
    reason: str = ""


KeepObservation: TypeAlias = (
    TimePassed
    | TargetListed
    | TargetMissing
    | TargetChecked
    | KeeperRestarted
    | StartAccepted
    | NameRefused
    | StartRejected
    | ResponseLost
    | SocketOpened
    | SocketClosed
    | StartedCallback
    | EndedCallback
    | StopAnswered
)
"""What a caller of `decide` has observed of a target."""


@frozen(kw_only=True)
class KeepDecision:
    """The new state of a target, the actions in their order, and the events to report."""

    state: TargetState
    actions: tuple[KeepAction, ...] = ()
    events: tuple[KeepEvent, ...] = ()
