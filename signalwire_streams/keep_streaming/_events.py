"""Reports of a keeper: events of its targets and of itself, and a snapshot of its targets."""

from enum import StrEnum
from typing import TypeAlias

from attrs import frozen

from signalwire_streams.models import Call, Conference
from signalwire_streams.models._enums import TargetKind


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
class TargetEvent:
    """An event of one conference or call.

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
    """Its first stream runs: the Space accepted it, and if it is received in this process, its socket is open."""


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
    """A receiver rejects all streams, so starts that lead to it wait, except for one probe at a time.

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


KeeperEvent: TypeAlias = (
    KeepEvent | PollingFailed | PollingRecovered | StandbyEnded | StandbyStarted | StartsPaused | StartsResumed
)
"""Any event that a `Keeper` yields."""

Obstacle: TypeAlias = PollingFailed | StandbyStarted | StartsPaused
"""An event that reports what keeps a `Keeper` from starting streams."""


@frozen(kw_only=True)
class TargetSnapshot:
    """A conference or call in progress, and the state of its stream as events have reported it.

    Attributes:
        kind: conference or call.
        target: its sid.
        item: the conference or call as it was listed last; None if that is not known.
        status: what the keeper believes; with receivers in this process, it is streaming once its socket is open.
        reason: why it is in doubt or failing, or why its last stream was lost.
        seconds: how long it has had that status; at most since this keeper began with it.
    """

    kind: TargetKind
    target: str
    item: Conference | Call | None
    status: KeepStatus
    reason: str | None
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """What people call it: the conference's friendly name, or the call's ``from > to``; empty if not known."""
        if isinstance(self.item, Call):
            return f"{self.item.from_ or '?'} > {self.item.to or '?'}"
        return "" if self.item is None else self.item.friendly_name or ""
