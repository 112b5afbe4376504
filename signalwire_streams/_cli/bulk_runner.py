"""Execution of a bulk run: its options, its client, its progress and its summary."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import click
from attrs import field, frozen

from signalwire_streams import (
    BulkOutcome,
    BulkRun,
    BulkStatus,
    RateLimit,
    RetryPolicy,
    RunCancelledError,
    StartCallStream,
    StreamsClient,
    StreamsError,
)
from signalwire_streams._cli.options import Account, Decorator, FiniteRange, passing
from signalwire_streams._cli.output import (
    FAILED,
    INTERRUPTED,
    OUTCOMES,
    TERMINATED,
    clean,
    for_command_line,
    in_words,
    noting,
    silenced,
    write_json,
    write_note,
    write_report,
)
from signalwire_streams._cli.progress import (
    Display,
    Meter,
    Progress,
    format_duration,
    live_page,
    page_option,
    seconds_left,
    show_progress,
)
from signalwire_streams._signals import on_signals
from signalwire_streams.bulk._results import advice

_SPACE_LIMIT = RateLimit().requests / RateLimit().window
SUCCEEDED = (BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.STOPPED)
_MILLISECONDS = 1_000

_UNKNOWN = "StreamOutcomeUnknownError"
_UNKNOWN_STARTS = (
    "These may be running. Resuming sends those on conferences again under their names, so that the Space can reject "
    "a second stream. Those on calls are sent again only with --resend-call-starts, which may start a second stream; "
    "those without a name are never sent again."
)
_UNKNOWN_STARTS_WITHOUT_JOURNAL = (
    "These may be running, and there is no journal to resume from. Stop each by its name, with 'conferences "
    "stop-stream' or 'calls stop-stream'; to stop one without a name, end its conference or call:"
)
_UNKNOWN_STOPS = "These may still be running: stop them again."


def rate_limit(rate: float | None) -> RateLimit:
    if rate is None:
        return RateLimit()
    return RateLimit(requests=max(1, round(rate * RateLimit().window)), utilization=1.0)


@frozen
class RunOptions:
    concurrency: int | None = None
    rate: float | None = None
    resend_call_starts: bool = False
    page: int | None = None
    meter: Meter = field(init=False, factory=Meter)

    def client_options(self) -> dict[str, Any]:
        return {
            "on_attempt": self.meter.record,
            "rate_limit": rate_limit(self.rate),
            "retry": RetryPolicy(resend_call_starts=self.resend_call_starts),
        }


_RESEND = click.option(
    "--resend-call-starts",
    is_flag=True,
    help="Also retry a start on a call whose response was lost. This may start a second stream: rejection "
    "of duplicate names is documented for conferences only.",
)


def run_options(*, resend: bool, page: bool = False, concurrency: int | None = None, rate_of: str = "") -> Decorator:
    """Add the options of a run, and pass them to the command as its `RunOptions`; *rate_of* says whose rate it is."""
    return passing(
        "options",
        RunOptions,
        click.option(
            "--concurrency",
            type=click.IntRange(min=1),
            metavar="N",
            default=concurrency,
            help=f"Concurrent requests{'; tuned automatically by default' if concurrency is None else ''}.",
        ),
        click.option(
            "--rate",
            type=FiniteRange(min=0.1, max=_SPACE_LIMIT),
            metavar="N",
            help=f"Maximum requests per second{rate_of}; by default 90 % of the Space's {_SPACE_LIMIT:,.0f}.",
        ),
        *([_RESEND] if resend else []),
        *([page_option] if page else []),
    )


class BulkRunner:
    def __init__(
        self,
        run: BulkRun[Any],
        account: Account,
        options: RunOptions,
        *,
        total: int,
        operation: Literal["start", "stop"] = "start",
        journal: Path | None = None,
        command: Callable[[str], str] | None = None,
        has_secrets: bool = False,
    ) -> None:
        self.run = run
        self.already_done = 0  # items that an earlier part of the run had completed
        self.stuck = 0  # unknown starts that a resumed run would only report again
        self.stopped_by: Signals | None = None  # the first signal
        self.error: StreamsError | None = None  # the error that ended the run, if no item's
        self._is_start = operation == "start"
        self._total = total
        self._options = options
        self._as_json = account.as_json
        self._journal = journal
        self._command = command
        if journal is not None:
            self._command = lambda verb: account.command(f"bulk {verb}", str(journal))
        self._has_secrets = has_secrets
        self._counts: Counter[BulkStatus] = Counter()
        self._output_error: OSError | None = None
        self._is_aborted = False
        self._display = Display()
        self._started_at = time.monotonic()

    async def execute(self) -> None:
        with on_signals(self._interrupt):
            async with (
                show_progress(self._progress, as_json=self._as_json) as self._display,
                live_page(self._options.page, self._display.warn) as page,
            ):
                if page is not None:
                    page.add_run(self.run, total=self._total, rate_limit=rate_limit(self._options.rate).rate)
                try:
                    async with contextlib.aclosing(aiter(self.run)) as outcomes:
                        async for outcome in outcomes:
                            self._record(outcome)
                except StreamsError as error:
                    self.error = error

    async def execute_and_report(self) -> None:
        """Execute the run and write its summary, unless it ended before its first item."""
        await self.execute()
        note = self._headline() if self._command is None else f"check the run: {self._command('status')}"
        with noting(note, also_for_pipes=True):
            if self._output_error is not None:
                raise self._output_error
            if not self.run.snapshot.total and self.error is not None:
                return
            try:
                self.write_json() if self._as_json else self.write()
            except OSError:
                if self._command is None and self._is_start and not self._as_json:
                    for handle in self._unknown_handles():
                        write_note(f"may be running: {handle}")
                raise

    def end(self) -> None:
        if self.error is not None:
            raise self.error
        if self.exit_code:
            raise click.exceptions.Exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        if self.stopped_by is not None:
            return INTERRUPTED if self.stopped_by is Signals.SIGINT else TERMINATED
        return 0 if self.error is None and self.run.snapshot.ok else FAILED

    def _record(self, outcome: BulkOutcome[Any]) -> None:
        self._counts[outcome.status] += 1
        self.already_done += outcome.ok and not outcome.attempts
        self.stuck += outcome.status is BulkStatus.UNKNOWN and not self._can_be_resent(outcome.item)
        if not self._as_json:
            return
        facts = outcome_facts(outcome)
        if self._output_error is None:
            try:
                write_json(facts)
            except OSError as error:
                self._output_error = error
                self.run.shutdown()
        if self._output_error is not None and self._command is None:  # else the stream's handle would be lost
            write_note(json.dumps(facts))

    def _can_be_resent(self, item: Any) -> bool:  # noqa: ANN401  (a request, or a stream to stop)
        if getattr(item, "unnamed", False):
            return False
        return self._options.resend_call_starts or not isinstance(item, StartCallStream)

    def _interrupt(self, number: Signals) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
            self.run.shutdown()
        else:
            self._is_aborted = True
            self.run.shutdown(0)
        self._display.show()

    def _progress(self) -> Progress:
        done = self._counts.total()
        outcomes = tuple(f"{count:,} {in_words(status)}" for status, count in self._counts.most_common())
        if self.stopped_by is not None:
            notice = "interrupted: 5 s for requests in flight, interrupt again to abort them"
            notice = "interrupted again: requests in flight are aborted" if self._is_aborted else notice
            return Progress(title="Ending", done=done, total=self._total, facts=(notice, *outcomes))
        meter, limit = self._options.meter, rate_limit(self._options.rate).rate
        rate = f"{meter.rate:,.0f} of {limit:,{'.0f' if limit >= 1 else '.1f'}} requests/s"
        return Progress(
            title="Starting" if self._is_start else "Stopping",
            done=done,
            total=self._total,
            facts=(rate, f"{meter.retries:,} retried", *outcomes),
            left=seconds_left(done - self.already_done, self._total - done, self._started_at),
        )

    @property
    def resume_command(self) -> str | None:
        if self._succeeded + self.stuck >= self._total or self._command is None:
            return None
        return self._command("resume" if self._is_start else "stop")

    @property
    def _succeeded(self) -> int:
        return sum_of(self.run.snapshot.counts, *SUCCEEDED)

    def write_json(self) -> None:
        report = self.run.snapshot
        latencies = {f"p{percent}": round(value, 4) for percent, value in report.latency_percentiles.items()}
        write_json(
            {
                "report": {
                    "ok": report.ok and self._succeeded >= self._total,
                    "planned": self._total,
                    "completed": report.total,
                    "already_done": self.already_done,
                    "counts": dict(report.counts),
                    "attempts": report.attempts,
                    "retries": self._options.meter.retries,
                    "errors": dict(report.errors),
                    "seconds": round(report.seconds, 3),
                    "latencies": latencies,
                    "interrupted": self.stopped_by is not None,
                    "journal": None if self._journal is None else str(self._journal),
                    "resume_command": self.resume_command,
                }
            }
        )

    def write(self) -> None:
        report = self.run.snapshot
        if self._total == 0:
            click.echo(f"There is nothing left to {'start' if self._is_start else 'stop'}.")
            return
        pending = report.errors.get(RunCancelledError.__name__, 0)
        counts = {**report.counts, BulkStatus.NOT_ATTEMPTED: report.counts.get(BulkStatus.NOT_ATTEMPTED, 0) - pending}
        pending += max(self._total - report.total, 0)
        latency = [("latency", format_latencies(report.latency_percentiles))] if report.attempts else []
        write_report(
            f"{self._headline()} in {format_duration(report.seconds)}.",
            {**dict(sorted(counts.items())), "from earlier runs": self.already_done, "pending": pending},
            ("attempts", f"{report.attempts:,} ({self._options.meter.retries:,} retried)"),
            *latency,
            errors={label: count for label, count in report.errors.items() if label != RunCancelledError.__name__},
            details=self._details,
            steps=self._next_steps(),
        )

    def _next_steps(self) -> Iterable[str]:
        if self._journal is not None:
            yield f"Journal: {self._journal}"
        if self.resume_command is not None:
            again = " (and pass its secrets again)" if self._has_secrets else ""
            yield f"Resume{again}:\n  {self.resume_command}"
        if self._is_start and self.run.snapshot.total and self._command is not None:
            yield f"Roll back:\n  {self._command('stop')}"

    def _headline(self) -> str:
        return f"{'Started' if self._is_start else 'Stopped'} {self._succeeded:,} of {self._total:,} streams"

    def _details(self, label: str) -> Iterable[str]:
        kind = label.partition(" ")[0]
        failures = [one for one in self.run.snapshot.failures if type(one.error).__name__ == kind]
        if failures:
            yield f"for example: {clean(for_command_line(str(failures[0].error)))}"
        again = "resume" if self._command is not None else "start them again"
        if kind != _UNKNOWN:
            yield advice(kind, again)
        elif not self._is_start:
            yield _UNKNOWN_STOPS
        elif self._command is not None:
            yield _UNKNOWN_STARTS
        else:
            yield _UNKNOWN_STARTS_WITHOUT_JOURNAL
            yield from self._unknown_handles()

    def _unknown_handles(self) -> Iterable[str]:
        for one in self.run.snapshot.failures:
            if one.status is BulkStatus.UNKNOWN:
                yield f"{one.item.target}  {getattr(one.error, 'name', None) or '(no name)'}"


def sum_of(counts: Mapping[Any, int], *statuses: str) -> int:
    return sum(counts.get(status, 0) for status in statuses)


def outcome_facts(outcome: BulkOutcome[Any]) -> dict[str, object]:
    item, stream, error = outcome.item, outcome.stream, outcome.error
    return {
        "index": outcome.index,
        "kind": item.kind,
        "target": getattr(item, item.kind.target_key),
        "status": outcome.status,
        "sid": stream.sid if stream is not None else None,
        "name": stream.name if stream is not None else getattr(error, "name", None) or item.name,
        "ambiguous": stream.ambiguous if stream is not None else False,
        "attempts": outcome.attempts,
        "duration": round(outcome.duration, 4),
        "error": type(error).__name__ if error is not None else None,
        "message": clean(for_command_line(str(error))) if error is not None else None,
    }


def format_latencies(latencies: Mapping[int, float]) -> str:
    """Return percentiles in milliseconds: "p50 31, p95 80, max 250 ms"."""
    names = {100: "max"}
    return ", ".join(f"{names.get(p, f'p{p}')} {value * _MILLISECONDS:,.0f}" for p, value in latencies.items()) + " ms"


def execute(
    account: Account,
    options: RunOptions,
    start_run: Callable[[StreamsClient], BulkRun[Any]],
    **facts: Any,  # noqa: ANN401  (of the runner)
) -> None:
    async def work(client: StreamsClient) -> BulkRunner:
        runner = BulkRunner(start_run(client), account, options, **facts)
        await runner.execute_and_report()
        return runner

    with silenced(OUTCOMES):
        runner = account.run(work, **options.client_options())
    runner.end()
