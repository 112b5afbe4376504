"""Summary of a bulk run: counts, errors, and suggested commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from signalwire_streams import (
    BulkOutcome,
    BulkReport,
    BulkRun,
    BulkStatus,
    NotFoundError,
    RunCancelledError,
    StartConferenceStream,
    StreamsError,
)
from signalwire_streams._cli.bulk_runner import BulkRunner, RunOptions
from signalwire_streams._cli.options import Account, command_line

from .shell import URL

ITEM = StartConferenceStream(conference_sid="room", url=URL)
NO_LATENCIES = {50: 0.0, 95: 0.0, 99: 0.0, 100: 0.0}


def report(counts: dict[BulkStatus, int], **fields: Any) -> BulkReport:
    facts: dict[str, Any] = {
        "failures": (),
        "errors": {},
        "attempts": sum(counts.values()),
        "latency_percentiles": NO_LATENCIES,
        "seconds": 1.0,
    }
    return BulkReport(counts=counts, **facts | fields)


def summary(found: BulkReport, *, retries: int = 0, already_done: int = 0, **fields: Any) -> BulkRunner:
    """Return a runner whose run has ended with this report."""
    facts: dict[str, Any] = {"total": found.total, "journal": Path("run.db")}
    run = cast("BulkRun[Any]", SimpleNamespace(snapshot=found))
    runner = BulkRunner(run, Account("example", None, False, ("--space", "example")), RunOptions(), **facts | fields)
    runner._options.meter.retries = retries
    runner.already_done = already_done
    return runner


def failure(error: StreamsError | None) -> BulkOutcome[StartConferenceStream]:
    return BulkOutcome(index=0, item=ITEM, status=BulkStatus.REJECTED, error=error)


def test_summary_of_a_long_run(capsys: pytest.CaptureFixture[str]) -> None:
    latencies = {50: 0.0314, 95: 0.08, 99: 1.2, 100: 2.5}
    found = report(
        {BulkStatus.STARTED: 9_990, BulkStatus.ALREADY_STARTED: 10}, latency_percentiles=latencies, seconds=83.4
    )
    summary(found, retries=1_234, already_done=2_000).write()
    assert capsys.readouterr().out == (
        "Started 10,000 of 10,000 streams in 1 min 23 s.\n"
        "  already started    10\n"
        "  started            9,990\n"
        "  from earlier runs  2,000\n"
        "  attempts           10,000 (1,234 retried)\n"
        "  latency            p50 31, p95 80, p99 1,200, max 2,500 ms\n"
        "Journal: run.db\n"
        "Roll back:\n"
        "  signalwire-streams bulk stop --space example run.db\n"
    )


def test_summary_counts_unsent_and_unread_items_as_pending(capsys: pytest.CaptureFixture[str]) -> None:
    """The other items that were not attempted have errors of their own."""
    counts = {BulkStatus.STARTED: 1, BulkStatus.NOT_ATTEMPTED: 3}
    found = report(counts, errors={"RunCancelledError": 2, "TransportError": 1})
    summary(found, total=10).write()
    out = capsys.readouterr().out
    assert "  not attempted  1\n" in out
    assert "  pending        8\n" in out
    assert "RunCancelledError" not in out
    assert "  1 x TransportError\n      No response: check the network, then resume.\n" in out


def test_summary_shows_the_first_error_of_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [failure(NotFoundError(message)) for message in ("no room\x1b[31m", "no other room")]
    found = report({BulkStatus.REJECTED: 3}, failures=(failure(None), *failures), errors={"NotFoundError 20404": 2})
    summary(found).write()
    out = capsys.readouterr().out
    assert (
        "  2 x NotFoundError 20404\n      for example: no room [31m\n      The conference, call or stream does not"
        in out
    )
    assert "no other room" not in out


def test_summary_shows_the_ten_most_frequent_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those without an example, which only the first thousand failures keep."""
    errors = {"RunCancelledError": 60_000} | {f"NotFoundError {code}": 50_000 - code for code in range(12)}
    summary(report({BulkStatus.REJECTED: sum(errors.values())}, errors=errors)).write()
    told = [line for line in capsys.readouterr().out.splitlines() if " x " in line]
    assert told == [f"  {50_000 - code:,} x NotFoundError {code}" for code in range(10)]


@pytest.mark.parametrize(("operation", "verb"), [("start", "resume"), ("stop", "stop")])
def test_summary_offers_resume_until_nothing_is_left(operation: str, verb: str) -> None:
    done = BulkStatus.STARTED if operation == "start" else BulkStatus.STOPPED
    whole = summary(report({done: 2}), operation=operation)
    early = summary(report({done: 2}), operation=operation, total=3)
    failed = summary(report({done: 2, BulkStatus.UNKNOWN: 1}), operation=operation)
    assert whole.resume_command is None
    assert early.resume_command == failed.resume_command == f"signalwire-streams bulk {verb} --space example run.db"


@pytest.mark.parametrize(("has_secrets", "told"), [(False, "Resume:\n"), (True, "Resume (and pass its")])
def test_summary_asks_for_secrets_of_the_run(
    capsys: pytest.CaptureFixture[str], *, has_secrets: bool, told: str
) -> None:
    waiting = report({BulkStatus.NOT_ATTEMPTED: 1}, failures=(failure(RunCancelledError("not yet")),))
    summary(waiting, has_secrets=has_secrets).write()
    assert f"\n{told}" in capsys.readouterr().out


def test_summary_offers_no_rollback_if_nothing_was_started(capsys: pytest.CaptureFixture[str]) -> None:
    summary(report({}), total=3).write()
    out = capsys.readouterr().out
    assert "bulk resume --space example run.db" in out
    assert "bulk stop" not in out


@pytest.mark.parametrize(
    ("file", "spelled"),
    [
        ("run.db", "run.db"),
        ("my run.db", "'my run.db'"),
        ("$HOME.db", "'$HOME.db'"),
        ("-run.db", "-- -run.db"),
        ("a/-run.db", "a/-run.db"),
    ],
)
def test_a_command_can_be_pasted_into_a_shell(file: str, spelled: str) -> None:
    command = command_line("bulk resume", file, options=("--project", "p"))
    assert command == f"signalwire-streams bulk resume --project p {spelled}"
