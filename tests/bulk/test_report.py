"""How the outcomes of a run are summed up."""

import pytest

from signalwire_streams import BulkError, BulkOutcome, BulkStatus, NotFoundError, ServerError, StreamsError
from signalwire_streams.bulk._results import ReportBuilder


def outcome(
    state: BulkStatus, seconds: float = 1.0, attempts: int = 1, error: StreamsError | None = None
) -> BulkOutcome[str]:
    return BulkOutcome(index=0, item="x", status=state, duration=seconds, attempts=attempts, error=error)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-8])
def test_percentiles_are_exact_to_two_percent(unit: float) -> None:
    """Latencies of 1 to 1,000 units, each once: the percentiles are those of the sorted list."""
    tally = ReportBuilder()
    for number in range(1, 1_001):
        tally.add(outcome(BulkStatus.STARTED, number * unit))
    latencies = tally.report(1.0).latency_percentiles

    assert latencies == pytest.approx({50: 500 * unit, 95: 950 * unit, 99: 990 * unit, 100: 1_000 * unit}, rel=0.021)
    assert latencies[100] == 1_000 * unit
    assert latencies[50] >= 500 * unit


def test_median_of_three_latencies_is_the_second() -> None:
    tally = ReportBuilder()
    for seconds in (100.0, 1.0, 10.0):
        tally.add(outcome(BulkStatus.STARTED, seconds))
    latencies = tally.report(1.0).latency_percentiles
    assert latencies == pytest.approx({50: 10.0, 95: 100.0, 99: 100.0, 100: 100.0}, rel=0.021)


def test_single_latency_is_every_percentile() -> None:
    tally = ReportBuilder()
    tally.add(outcome(BulkStatus.STARTED, 0.25))
    assert tally.report(1.0).latency_percentiles == dict.fromkeys((50, 95, 99, 100), 0.25)


def test_unsent_items_have_no_latency() -> None:
    tally = ReportBuilder()
    tally.add(outcome(BulkStatus.NOT_ATTEMPTED, 60.0, attempts=0))
    report = tally.report(7.5)
    assert report.latency_percentiles == dict.fromkeys((50, 95, 99, 100), 0.0)
    assert (report.counts, report.attempts, report.seconds) == ({BulkStatus.NOT_ATTEMPTED: 1}, 0, 7.5)


def test_report_keeps_a_thousand_failures() -> None:
    """The report counts all failures, lists the first thousand, and raises these as a group."""
    tally = ReportBuilder()
    tally.add(outcome(BulkStatus.STARTED, attempts=2))
    tally.add(outcome(BulkStatus.ALREADY_STARTED, attempts=3))
    for number in range(1_005):
        tally.add(outcome(BulkStatus.REJECTED, error=NotFoundError(f"{number}", status=404, code=20404)))
    tally.add(outcome(BulkStatus.UNKNOWN, error=ServerError("late", status=500)))

    report = tally.report(1.0)

    assert (report.total, report.attempts, report.ok) == (1_008, 1_011, False)
    assert [str(failure.error.message) for failure in report.failures if failure.error] == [
        str(number) for number in range(1_000)
    ]
    assert list(report.errors.items()) == [("NotFoundError 20404", 1_005), ("ServerError", 1)]
    with pytest.raises(BulkError, match="1006 of 1008 items failed") as caught:
        report.raise_if_failed()
    assert len(caught.value.exceptions) == 1_000
    assert caught.value.report is report


def test_raise_if_failed_without_failures_does_nothing() -> None:
    tally = ReportBuilder()
    tally.add(outcome(BulkStatus.STOPPED))
    tally.add(outcome(BulkStatus.ALREADY_STARTED))
    report = tally.report(1.0)
    assert (report.ok, report.failures, report.errors) == (True, (), {})
    report.raise_if_failed()
