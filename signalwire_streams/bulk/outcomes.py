"""What became of each item of a bulk run."""

from enum import StrEnum
from typing import Generic, TypeVar

from attrs import frozen

from signalwire_streams.errors import (
    ApiError,
    InvalidRequestError,
    RateLimitedError,
    ServerError,
    StreamOutcomeUnknown,
    StreamsError,
)
from signalwire_streams.models import CallStream, ConferenceStream

_Item = TypeVar("_Item")


class BulkState(StrEnum):
    """How an item ended."""

    STARTED = "started"
    ALREADY_STARTED = "already_started"
    STOPPED = "stopped"
    REJECTED = "rejected"
    """The Space, or a check before it, refused it for good."""
    UNKNOWN = "unknown"
    """It may have been carried out, and nobody can tell."""
    NOT_ATTEMPTED = "not_attempted"
    """It was certainly not carried out, and may be tried again."""


SUCCEEDED = frozenset({BulkState.STARTED, BulkState.ALREADY_STARTED, BulkState.STOPPED})


@frozen(kw_only=True)
class BulkOutcome(Generic[_Item]):
    """What became of one item.

    Attributes:
        index: the item's place in the input, from 0.
        item: the item as it came.
        state: how it ended.
        stream: the stream, where one was started or stopped.
        error: what kept it from that.
        attempts: attempts that were made.
        seconds: from its first attempt to its end, waiting included.
    """

    index: int
    item: _Item
    state: BulkState
    stream: ConferenceStream | CallStream | None = None
    error: StreamsError | None = None
    attempts: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether what was asked for is so now."""
        return self.state in SUCCEEDED


def label_of(error: StreamsError) -> str:
    """Give an error's class and, where the Space told one, its code: what errors are counted by."""
    code = getattr(error, "code", None)
    return type(error).__name__ + (f" {code}" if code is not None else "")


def state_of(error: StreamsError, *, starting: bool) -> BulkState:
    """Tell how an item ended that ended in an error.

    Args:
        error: the error of its call.
        starting: whether it was a start. A start that may have been carried out ends in `StreamOutcomeUnknown`
            and in nothing else, so its other errors are certain; a stop's are not.
    """
    if isinstance(error, StreamOutcomeUnknown):
        return BulkState.UNKNOWN
    if isinstance(error, InvalidRequestError):
        return BulkState.REJECTED
    if isinstance(error, ApiError) and not isinstance(error, ServerError) and error.status not in _FOR_NOW:
        return BulkState.NOT_ATTEMPTED if isinstance(error, RateLimitedError) else BulkState.REJECTED
    return BulkState.NOT_ATTEMPTED if starting or error.sent == "no" else BulkState.UNKNOWN


_FOR_NOW = frozenset({408, 425, 429})
