"""Outcomes of items and the report of a run, whose size does not depend on the number of items."""

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import exp, floor, log
from typing import Any, Generic, TypeVar

from attrs import frozen

from signalwire_streams.errors import (
    ApiError,
    InvalidRequestError,
    RateLimitedError,
    ServerError,
    StreamOutcomeUnknownError,
    StreamsError,
)
from signalwire_streams.models import CallStream, ConferenceStream
from signalwire_streams.models._fast import fast_constructor

_Item = TypeVar("_Item")

_REJECTED_TEMPORARILY = frozenset({408, 425})
_KEPT_FAILURES = 1_000
_STEP = 0.02  # of the latencies' logarithm: percentiles are exact to two percent
_LEAST_LATENCY = 1e-6


class BulkStatus(StrEnum):
    """How an item ended."""

    STARTED = "started"
    ALREADY_STARTED = "already_started"
    STOPPED = "stopped"
    REJECTED = "rejected"
    """It was rejected permanently, by the Space or by validation before it was sent."""
    UNKNOWN = "unknown"
    """It may or may not have been carried out."""
    NOT_ATTEMPTED = "not_attempted"
    """It was not carried out, if the Space's temporary rejections (408, 429, 503) can be trusted. It may be retried."""


SUCCEEDED = frozenset({BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.STOPPED})


@frozen(kw_only=True)
class BulkOutcome(Generic[_Item]):
    """The outcome of one item.

    Attributes:
        index: the item's place in the input, from 0.
        item: the item as it was passed.
        status: how it ended.
        stream: the stream, if one was started or stopped.
        error: the error otherwise.
        attempts: attempts that were made.
        duration: seconds from its first attempt to its end, waiting included.
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
        """Whether the stream was started, or stopped, as asked."""
        return self.status in SUCCEEDED


create_outcome = fast_constructor(BulkOutcome)


def error_label(error: StreamsError) -> str:
    """Return the class of an error and the platform's code, if there is one. Errors are counted by it."""
    code = getattr(error, "code", None)
    return type(error).__name__ + (f" {code}" if code is not None else "")


def to_status(error: StreamsError, *, starting: bool) -> BulkStatus:
    """Return the status of an item that failed with this error, and that no earlier attempt may have carried out.

    A start that may have been carried out fails with `StreamOutcomeUnknownError` only. A stop that the Space did not
    respond to may have been carried out too, and fails with other errors.
    """
    if isinstance(error, StreamOutcomeUnknownError):
        return BulkStatus.UNKNOWN
    if isinstance(error, InvalidRequestError):
        return BulkStatus.REJECTED
    if isinstance(error, ApiError):
        is_temporary = isinstance(error, RateLimitedError | ServerError) or error.status in _REJECTED_TEMPORARILY
        return BulkStatus.NOT_ATTEMPTED if is_temporary else BulkStatus.REJECTED
    return BulkStatus.NOT_ATTEMPTED if starting or error.sent == "no" else BulkStatus.UNKNOWN


ADVICE = {
    "AuthenticationError": "The Space does not accept this project and token: check SIGNALWIRE_PROJECT_ID and "
    "SIGNALWIRE_API_TOKEN.",
    "PermissionDeniedError": "The token lacks a permission: add the scope in the dashboard.",
    "NotFoundError": "The conference, call or stream does not exist (any more): check the sid, or skip it.",
    "ApiError": "The Space rejected the request with an unusual status: its message is above.",
    "BadRequestError": "The Space rejected the request: its message is above.",
    "UnprocessableError": "The Space rejected a field: its message is above.",
    "RateLimitedError": "Other clients use up the Space's rate limit: {again} later, or with a lower --rate.",
    "ServerError": "The Space failed: {again} when it works again.",
    "TransportError": "No response: check the network, then {again}.",
    "CircuitOpenError": "The Space kept failing, so these were not sent: {again} when it works again.",
    "MalformedResponseError": "The response did not come from the API; it may be a proxy's: check SIGNALWIRE_SPACE.",
    "InvalidRequestError": "These are invalid, and were not sent.",
    "JournalError": "The journal can't be written, so these were not sent: free some disk space, then {again}.",
}


def advice(kind: str, again: str) -> str:
    """Return what to do about errors of this class; *again* says how to try again."""
    return ADVICE.get(kind, ADVICE[ApiError.__name__]).format(again=again)


class BulkError(ExceptionGroup[StreamsError]):
    """Some items of a bulk run failed. It groups their errors and carries the ``report``."""

    report: "BulkReport"

    def derive(self, excs: Sequence[StreamsError]) -> "BulkError":  # type: ignore[override]
        """Create the group of some of the errors, with the same report."""
        group = BulkError(self.message, excs)
        group.report = self.report
        return group


@frozen(kw_only=True)
class BulkReport:
    """The result of a bulk run.

    Attributes:
        counts: number of items by status.
        failures: the first thousand outcomes that did not succeed.
        errors: number of errors by class and code, most frequent first.
        attempts: total number of attempts.
        latency_percentiles: seconds by percentile (50, 95, 99 and 100), exact to two percent.
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
        """The number of items."""
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


class ReportBuilder:
    def __init__(self) -> None:
        self.counts = Counter[BulkStatus]()
        self.failures: list[BulkOutcome[Any]] = []
        self.errors = Counter[str]()
        self.attempts = 0
        self.slowest = 0.0
        self._latencies = Counter[int]()

    def add(self, outcome: BulkOutcome[Any]) -> None:
        self.counts[outcome.status] += 1
        self.attempts += outcome.attempts
        if outcome.attempts:
            self._latencies[floor(log(max(outcome.duration, _LEAST_LATENCY)) / _STEP)] += 1
            self.slowest = max(self.slowest, outcome.duration)
        if outcome.error is not None:
            self.errors[error_label(outcome.error)] += 1
        if outcome.status not in SUCCEEDED and len(self.failures) < _KEPT_FAILURES:
            self.failures.append(outcome)

    def report(self, seconds: float) -> BulkReport:
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
