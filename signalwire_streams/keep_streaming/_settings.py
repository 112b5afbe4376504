"""Settings of a keeper: what its user wants, and what it assumes where the API's documentation is silent."""

from collections.abc import Mapping

from attrs import field, frozen

from signalwire_streams.models._enums import Choice, TargetKind
from signalwire_streams.models._validation import check_waits, validate_flag, validate_seconds


class DuplicateNames(Choice):
    """Whether a Space refuses a second stream with the name of one that is running.

    Attributes:
        REFUSED: documented for conferences.
        ALLOWED: the safe assumption for calls, about which the documentation says nothing.
    """

    __field__ = "duplicate_names"
    REFUSED = "refused"
    ALLOWED = "allowed"


DUPLICATE_NAMES: Mapping[str, DuplicateNames] = {
    TargetKind.CONFERENCE: DuplicateNames.REFUSED,
    TargetKind.CALL: DuplicateNames.ALLOWED,
}
"""What is assumed of a Space unless the user says otherwise."""


class StreamNames(Choice):
    """Whether a Space accepts a name again after its stream has ended, which is not documented.

    Attributes:
        REUSABLE: all streams of a conference or call have one name.
        ONCE: each stream has a name of its own, so that the Space can't refuse a second one.
    """

    __field__ = "names"
    REUSABLE = "reusable"
    ONCE = "once"


class InDoubtPolicy(Choice):
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
        socket_timeout: seconds in which the socket of a stream has to be opened.
        reassert: seconds after which a stream that is not received here is started again, for the Space to refuse it.
        min_lifetime: seconds; a stream that ends sooner counts as failed.
        wait_initial: seconds until the start that follows a failure; they double with each further one.
        wait_max: seconds; the longest such wait.
    """

    duplicate_names: DuplicateNames = field(converter=DuplicateNames)
    names: StreamNames = field(default=StreamNames.REUSABLE, converter=StreamNames)
    in_doubt: InDoubtPolicy = field(default=InDoubtPolicy.HOLD, converter=InDoubtPolicy)
    receives: bool = field(default=False, validator=validate_flag)
    socket_timeout: float = field(default=10.0, validator=validate_seconds)
    reassert: float = field(default=60.0, validator=validate_seconds)
    min_lifetime: float = field(default=10.0, validator=validate_seconds)
    wait_initial: float = field(default=1.0, validator=validate_seconds)
    wait_max: float = field(default=60.0, validator=validate_seconds)

    def __attrs_post_init__(self) -> None:
        check_waits(self, "wait")

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


class OnChange(Choice):
    """What happens to streams that were started with other fields, when a keeper is restarted.

    The journal keeps neither tokens nor the values of parameters, so a change of these is not seen.

    Attributes:
        KEEP: they keep running; the new fields apply to streams that are started from now on.
        REPLACE: they are stopped, and started again; so is one whose start was lost, once it is heard.
    """

    __field__ = "on_change"
    KEEP = "keep"
    REPLACE = "replace"


class OnExit(Choice):
    """What happens to the streams when a keeper ends.

    Attributes:
        LEAVE: nothing is sent. Streams to receivers of this process keep running until those are closed.
        STOP: they are stopped. A stop by name proves nothing of a start whose response was lost, since the Space may
            still carry that out: within five minutes of it this is reported (`StreamingInDoubt`), and stays in the
            journal for the next keeper.
    """

    __field__ = "on_exit"
    LEAVE = "leave"
    STOP = "stop"
