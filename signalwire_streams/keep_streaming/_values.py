"""Inputs and outputs of a keeper's decisions: settings, the state of a target, observations, actions and events."""

from enum import StrEnum
from math import inf
from typing import TypeAlias

from attrs import field, frozen

from signalwire_streams.errors import InvalidRequestError
from signalwire_streams.models import Call, Conference
from signalwire_streams.models._enums import TargetKind, _Choice
from signalwire_streams.models._validation import validate_flag, validate_seconds


class DuplicateNames(_Choice):
    """Whether a Space refuses a second stream with the name of one that is running.

    Attributes:
        REFUSED: documented for conferences.
        ALLOWED: the safe assumption for calls, about which the documentation says nothing.
    """

    __field__ = "duplicate_names"
    REFUSED = "refused"
    ALLOWED = "allowed"


class StreamNames(_Choice):
    """Whether a Space accepts a name again after its stream has ended, which is not documented.

    Attributes:
        REUSABLE: all streams of a conference or call have one name.
        ONCE: each stream has a name of its own, so that the Space can't refuse a second one.
    """

    __field__ = "names"
    REUSABLE = "reusable"
    ONCE = "once"


class InDoubtPolicy(_Choice):
    """What follows a start whose response was lost, if the Space would not refuse a second stream.

    Attributes:
        HOLD: nothing, until its socket or a callback proves that it runs, or its target ends: at most one stream.
        RESTART: stop the stream by its name, and start another one: at least one stream.
    """

    __field__ = "in_doubt"
    HOLD = "hold"
    RESTART = "restart"


@frozen(kw_only=True)
class KeepSettings:
    """How the streams of one kind of target, conferences or calls, are kept.

    Attributes:
        duplicate_names: ``"refused"`` is documented for conferences. For calls it is unknown, so assume ``"allowed"``.
        names: ``"reusable"`` or ``"once"``; which of them is true of a Space is unknown.
        in_doubt: ``"hold"`` or ``"restart"``. It matters unless duplicate names are refused and names are reusable.
        receives: whether the sockets of the streams are opened to this process.
        patience: seconds in which the socket of a stream has to be opened.
        reassert: seconds after which a stream that is not received here is started again, for the Space to refuse it.
        min_lifetime: seconds; a stream that ends sooner counts as failed.
        wait_initial: seconds until the start that follows a failure; they double with each further one.
        wait_max: seconds; the longest such wait.
    """

    duplicate_names: DuplicateNames = field(converter=DuplicateNames)
    names: StreamNames = field(default=StreamNames.REUSABLE, converter=StreamNames)
    in_doubt: InDoubtPolicy = field(default=InDoubtPolicy.HOLD, converter=InDoubtPolicy)
    receives: bool = field(default=False, validator=validate_flag)
    patience: float = field(default=10.0, validator=validate_seconds)
    reassert: float = field(default=60.0, validator=validate_seconds)
    min_lifetime: float = field(default=10.0, validator=validate_seconds)
    wait_initial: float = field(default=1.0, validator=validate_seconds)
    wait_max: float = field(default=60.0, validator=validate_seconds)

    def __attrs_post_init__(self) -> None:
        if self.wait_initial > self.wait_max:
            raise InvalidRequestError(
                f"wait_initial must be at most wait_max, which is {self.wait_max!r}, not {self.wait_initial!r}: "
                "pass both"
            )

    @property
    def is_guarded(self) -> bool:
        """Whether starting again is safe: the Space refuses a second stream, and accepts the name of an ended one."""
        return self.duplicate_names is DuplicateNames.REFUSED and self.names is StreamNames.REUSABLE

    def stream_name(self, prefix: str, target: str, attempt: int) -> str:
        """Return the name of an attempt's stream.

        A target's streams have one name: the Space's refusal of that name protects from late requests, from a second
        keeper and from a lost journal. Only where a name can be used once does each attempt have its own.
        """
        name = f"{prefix}-{target}"
        return f"{name}-{attempt}" if self.names is StreamNames.ONCE else name


class OnChange(_Choice):
    """What becomes of streams that were started with other fields, when a keeper is restarted.

    The journal keeps neither tokens nor the values of parameters, so a change of these is not seen.

    Attributes:
        KEEP: they go on; the new fields are for streams that are started from now on.
        REPLACE: they are stopped, and started again.
    """

    __field__ = "on_change"
    KEEP = "keep"
    REPLACE = "replace"


class OnExit(_Choice):
    """What becomes of the streams when a keeper ends.

    Attributes:
        LEAVE: nothing is sent. Streams to receivers of this process go on until those are closed.
        STOP: they are stopped.
    """

    __field__ = "on_exit"
    LEAVE = "leave"
    STOP = "stop"


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
    """

    number: int
    fate: Fate = Fate.SENDING
    sid: str | None = None
    settles_at: float = inf


class KeepStatus(StrEnum):
    """State of a target, as far as the keeper can know.

    Attributes:
        WAITING: it has no stream; one is being started.
        STREAMING: it has one.
        IN_DOUBT: nobody can know whether it has one, or whose it is.
        FAILING: starts fail, or their streams end at once; the next start waits.
        ENDED: the conference or call has ended.
    """

    WAITING = "waiting"
    STREAMING = "streaming"
    IN_DOUBT = "in_doubt"
    FAILING = "failing"
    ENDED = "ended"


@frozen(kw_only=True)
class TargetSnapshot:
    """A conference or call in progress, and the state of its stream as events have reported it.

    Attributes:
        kind: conference or call.
        target: its sid.
        item: the conference or call as it was listed last; None if that is not known.
        status: what the keeper believes; with receivers in this process, it is streaming once its socket is open.
        reason: why it is in doubt or failing, or why its last stream was lost.
    """

    kind: TargetKind
    target: str
    item: Conference | Call | None
    status: KeepStatus
    reason: str | None


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
    """A start was rejected for another reason, or not sent: it created no stream."""

    reason: str


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
class TargetEvent:
    """What happened to one conference or call.

    Attributes:
        kind: conference or call; None in a decision, which does not know its target.
        target: its sid.
    """

    kind: TargetKind | None = None
    target: str = ""


@frozen(kw_only=True)
class TargetAppeared(TargetEvent):
    """A conference or call was seen for the first time. Its first stream is started now."""


@frozen(kw_only=True)
class StreamingStarted(TargetEvent):
    """The Space accepted its first stream. With receivers, its socket may still be missing (`TargetSnapshot`)."""


@frozen(kw_only=True)
class StreamingLost(TargetEvent):
    """Its stream ended, or may have; another one is started as soon as that is safe.

    Attributes:
        reason: how the keeper learned of it.
    """

    reason: str | None = None


@frozen(kw_only=True)
class StreamingRestarted(TargetEvent):
    """A stream runs again: another one, or after a restart of the keeper perhaps the one that ran before."""


@frozen(kw_only=True)
class StreamingInDoubt(TargetEvent):
    """Nobody can know whether a stream runs, or whose it is.

    Attributes:
        reason: what left it unknown.
    """

    reason: str | None = None


@frozen(kw_only=True)
class TargetFailing(TargetEvent):
    """Starts fail, or their streams end at once; the waits between them grow.

    Attributes:
        reason: the error of the last start, or how its stream ended.
        failures: how many in a row.
    """

    reason: str | None = None
    failures: int = 0


@frozen(kw_only=True)
class TargetEnded(TargetEvent):
    """The conference or call has ended, and is forgotten."""


@frozen(kw_only=True)
class TargetReleased(TargetEvent):
    """``where`` or the template does not choose it any more, so it is not kept; `OnChange` says what that means."""


KeepEvent: TypeAlias = (
    TargetAppeared
    | StreamingStarted
    | StreamingLost
    | StreamingRestarted
    | StreamingInDoubt
    | TargetFailing
    | TargetEnded
    | TargetReleased
)
"""What has become of a target."""


@frozen(kw_only=True)
class PollingFailed:
    """The Space does not answer the keeper's polls. Nothing more is reported of them until it does.

    Attributes:
        reason: the error of the first poll that failed.
    """

    reason: str


@frozen(kw_only=True)
class PollingRecovered:
    """The Space answers the keeper's polls again."""


@frozen(kw_only=True)
class StartsPaused:
    """A receiver refuses everybody, so starts that lead to it wait, but for one at a time that probes it.

    Attributes:
        receiver: its scheme, host and port.
        reason: how the last stream ended.
    """

    receiver: str
    reason: str


@frozen(kw_only=True)
class StartsResumed:
    """Starts no longer wait for a receiver: a stream to it lives, or nothing leads there any more.

    Attributes:
        receiver: its scheme, host and port.
    """

    receiver: str


@frozen(kw_only=True)
class StandbyStarted:
    """This keeper may send nothing: another one has the lease of the journal in Redis, or Redis can't be reached.

    Attributes:
        reason: which of these.
    """

    reason: str


@frozen(kw_only=True)
class StandbyEnded:
    """This keeper has the lease, and keeps the streams."""


@frozen(kw_only=True)
class KeepDecision:
    """The new state of a target, the actions in their order, and the events to report."""

    state: TargetState
    actions: tuple[KeepAction, ...] = ()
    events: tuple[KeepEvent, ...] = ()
