"""What a bulk run came to, in a few numbers that stay small however long the run is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import exp, log
from typing import Any, Generic, TypeVar

from attrs import define, field, frozen

from signalwire_streams.errors import (
    ApiError,
    InvalidRequestError,
    RateLimitedError,
    ServerError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.models import CallStream, ConferenceStream

_Item = TypeVar("_Item")


class BulkStatus(StrEnum):
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


SUCCEEDED = frozenset({BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.STOPPED})


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
    status: BulkStatus
    stream: ConferenceStream | CallStream | None = None
    error: StreamsError | None = None
    attempts: int = 0
    duration: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether what was asked for is so now."""
        return self.status in SUCCEEDED


def error_label(error: StreamsError) -> str:
    """Give an error's class and, where the Space told one, its code: what errors are counted by."""
    code = getattr(error, "code", None)
    return type(error).__name__ + (f" {code}" if code is not None else "")


def to_status(error: StreamsError, *, starting: bool) -> BulkStatus:
    """Tell how an item ended that ended in an error.

    Args:
        error: the error of its call.
        starting: whether it was a start. A start that may have been carried out ends in `StreamOutcomeUnknownError`
            and in nothing else, so its other errors are certain; a stop's are not.
    """
    if isinstance(error, StreamOutcomeUnknownError):
        return BulkStatus.UNKNOWN
    if isinstance(error, InvalidRequestError):
        return BulkStatus.REJECTED
    if isinstance(error, ApiError) and not isinstance(error, ServerError) and error.status not in _FOR_NOW:
        return BulkStatus.NOT_ATTEMPTED if isinstance(error, RateLimitedError) else BulkStatus.REJECTED
    return BulkStatus.NOT_ATTEMPTED if starting or error.sent == "no" else BulkStatus.UNKNOWN


_FOR_NOW = frozenset({408, 425, 429})


_KEPT_FAILURES = 1_000
_STEP = 0.02  # of the latencies' logarithm: percentiles are exact to two percent
_LEAST_LATENCY = 1e-6


class BulkError(ExceptionGroup[StreamsError]):
    """Some items of a bulk run failed. It groups their errors and carries the ``report``."""

    report: "BulkReport"

    def derive(self, excs: Sequence[StreamsError]) -> "BulkError":  # type: ignore[override]
        """Make the group of some of the errors; it keeps the report."""
        group = BulkError(self.message, excs)
        group.report = self.report
        return group


@frozen(kw_only=True)
class BulkReport:
    """What a bulk run came to.

    Attributes:
        counts: items by how they ended.
        failures: the outcomes that did not succeed, the first thousand of them.
        errors: how often each error's class and code came, most frequent first.
        attempts: attempts that were made in all.
        latencies: seconds by percentile (50, 95, 99 and 100), exact to two percent.
        seconds: how long the run took.
    """

    counts: Mapping[BulkStatus, int]
    failures: tuple[BulkOutcome[Any], ...]
    errors: Mapping[str, int]
    attempts: int
    latency_percentiles: Mapping[int, float]
    seconds: float

    @property
    def total(self) -> int:
        """How many items there were."""
        return sum(self.counts.values())

    @property
    def ok(self) -> bool:
        """Whether every item succeeded."""
        return all(state in SUCCEEDED for state, count in self.counts.items() if count)

    def raise_if_failed(self) -> None:
        """Raise unless every item succeeded.

        Raises:
            BulkError: it groups the errors of the first thousand failures and carries this report.
        """
        if self.ok:
            return
        failed = self.total - sum(self.counts.get(state, 0) for state in SUCCEEDED)
        errors = [outcome.error for outcome in self.failures if outcome.error is not None]
        group = BulkError(f"{failed} of {self.total} items failed", errors)
        group.report = self
        raise group


@define(eq=False)
class ReportBuilder:
    """Counts outcomes as they come."""

    counts: Counter[BulkStatus] = field(factory=Counter)
    failures: list[BulkOutcome[Any]] = field(factory=list)
    errors: Counter[str] = field(factory=Counter)
    attempts: int = 0
    slowest: float = 0.0
    _latencies: Counter[int] = field(factory=Counter)

    def add(self, outcome: BulkOutcome[Any]) -> None:
        """Count one outcome."""
        self.counts[outcome.status] += 1
        self.attempts += outcome.attempts
        if outcome.attempts:
            self._latencies[int(log(max(outcome.duration, _LEAST_LATENCY)) / _STEP)] += 1
            self.slowest = max(self.slowest, outcome.duration)
        if outcome.error is not None:
            self.errors[error_label(outcome.error)] += 1
        if not outcome.ok and len(self.failures) < _KEPT_FAILURES:
            self.failures.append(outcome)

    def report(self, seconds: float) -> BulkReport:
        """Sum up what was counted so far."""
        return BulkReport(
            counts=dict(self.counts),
            failures=tuple(self.failures),
            errors=dict(self.errors.most_common()),
            attempts=self.attempts,
            latency_percentiles={percent: self._percentile(percent) for percent in (50, 95, 99)} | {100: self.slowest},
            seconds=seconds,
        )

    def _percentile(self, percent: int) -> float:
        wanted = self._latencies.total() * percent / 100
        seen = 0
        for step in sorted(self._latencies):
            seen += self._latencies[step]
            if seen >= wanted:
                return min(exp((step + 1) * _STEP), self.slowest)
        return 0.0
