"""Execution of a bulk run: its options, its client, its progress and its summary."""

import contextlib
import functools
import math
import shlex
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

import click
from attrs import field, frozen

from signalwire_streams import (
    ApiError,
    BulkOutcome,
    BulkReport,
    BulkRun,
    BulkStatus,
    RateLimit,
    RetryPolicy,
    RunCancelledError,
    StartCallStream,
    StreamsClient,
    StreamsError,
)
from signalwire_streams._cli.options import Account, Decorator, adding
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
    write_counts,
    write_errors,
    write_json,
)
from signalwire_streams._cli.progress import Meter, Progress, format_duration, on_signals, seconds_left, shown

_SPACE_LIMIT = RateLimit().requests / RateLimit().window
_SUCCEEDED = {BulkStatus.STARTED, BulkStatus.ALREADY_STARTED, BulkStatus.STOPPED}


def _not_nan(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number: write requests per second, such as 100")
    return value


def rate_limit(rate: float | None) -> RateLimit:
    """Return the rate limit of a client for a number of requests per second."""
    if rate is None:
        return RateLimit()
    return RateLimit(requests=max(1, round(rate * RateLimit().window)), utilization=1.0)


@frozen(kw_only=True)
class RunOptions:
    """The options of a run. Without a concurrency it is tuned automatically."""

    concurrency: int | None = None
    rate: float | None = None
    resend_call_starts: bool = False
    meter: Meter = field(init=False, factory=Meter)

    def client_options(self) -> dict[str, Any]:
        return {
            "on_attempt": self.meter.record,
            "rate_limit": rate_limit(self.rate),
            "retry": RetryPolicy(resend_call_starts=self.resend_call_starts),
        }


def run_options(*, resend: bool, concurrency: int | None = None, whose: str = "") -> Decorator:
    """Add ``--concurrency`` and ``--rate``, and pass them to the command as its `RunOptions`.

    Args:
        resend: whether to add ``--resend-call-starts``.
        concurrency: the default; None tunes it automatically.
        whose: what the rate limit applies to, if not to this process.
    """
    automatic = "; tuned automatically by default." if concurrency is None else "."
    options: list[Decorator] = [
        click.option(
            "--concurrency",
            type=click.IntRange(min=1),
            metavar="N",
            default=concurrency,
            show_default=concurrency is not None,
            help=f"Concurrent requests{automatic}",
        ),
        click.option(
            "--rate",
            type=click.FloatRange(min=0.1, max=_SPACE_LIMIT),
            callback=_not_nan,
            metavar="N",
            help=f"Maximum requests per second{whose}; by default 90 % of the Space's {_SPACE_LIMIT:,.0f}.",
        ),
    ]
    if resend:
        options.append(_RESEND)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @adding(*options)
        @functools.wraps(command)
        def with_options(
            *, concurrency: int | None, rate: float | None, resend_call_starts: bool = False, **others: object
        ) -> None:
            found = RunOptions(concurrency=concurrency, rate=rate, resend_call_starts=resend_call_starts)
            command(options=found, **others)

        return with_options

    return decorate


_RESEND: Decorator = click.option(
    "--resend-call-starts",
    is_flag=True,
    help="Also retry a start on a call whose response was lost. This may start a second stream: rejection "
    "of duplicate names is documented for conferences only.",
)


class BulkRunner:
    """Iterates over a run, shows its progress, and sums it up.

    Attributes:
        run: the run.
        already_done: items that an earlier part of the run had completed.
        stuck: unknown starts that a resumed run would only report again.
        stopped_by: the first signal that arrived, or None.
        error: what ended the run, apart from its items, or None.
    """

    def __init__(
        self,
        run: BulkRun[Any],
        *,
        operation: str,
        total: int,
        options: RunOptions,
        as_json: bool,
        journal: Path | None = None,
        command: Callable[[str], str] | None = None,
        has_secrets: bool = False,
    ) -> None:
        self.run = run
        self.already_done = self.stuck = 0
        self.stopped_by: Signals | None = None
        self.error: StreamsError | None = None
        self._operation = operation
        self._total = total
        self._options = options
        self._as_json = as_json
        self._journal = journal
        self._command = command
        self._has_secrets = has_secrets
        self._counts: Counter[BulkStatus] = Counter()
        self._show: Callable[[], None] = lambda: None
        self._started_at = time.monotonic()

    async def execute(self) -> BulkReport:
        """Iterate over the run, and return its report. What ended it early is in ``error`` and ``stopped_by``."""
        with on_signals(self._interrupt):
            async with shown(self._progress, as_json=self._as_json) as self._show:
                try:
                    async with contextlib.aclosing(aiter(self.run)) as outcomes:
                        async for outcome in outcomes:
                            self._record(outcome)
                except StreamsError as error:
                    self.error = error
        return self.run.snapshot

    async def execute_and_report(self) -> None:
        """Execute the run and write its summary, unless it ended before its first item."""
        status = "the run has no journal" if self._command is None else self._command("status")
        with noting(f"check the run: {status}", also_for_pipes=True):
            report = await self.execute()
            if report.total or self.error is None:
                summary = Summary(
                    report=report,
                    operation=self._operation,
                    planned=self._total,
                    already_done=self.already_done,
                    stuck=self.stuck,
                    retries=self._options.meter.retries,
                    journal=self._journal,
                    command=self._command,
                    interrupted=self.stopped_by is not None,
                    has_secrets=self._has_secrets,
                )
                (summary.write_json if self._as_json else summary.write)()

    def end(self) -> None:
        """End the command with the error that ended the run, or with its exit code."""
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
        if self._as_json:
            write_json(outcome_facts(outcome))

    def _can_be_resent(self, item: Any) -> bool:  # noqa: ANN401  (a request, or a stream to stop)
        if getattr(item, "unnamed", False):
            return False
        return self._options.resend_call_starts or not isinstance(item, StartCallStream)

    def _interrupt(self, number: Signals) -> None:
        if self.stopped_by is not None:
            self.run.shutdown(0)
            return
        self.stopped_by = number
        self.run.shutdown()
        self._show()

    def _progress(self) -> Progress:
        done = self._counts.total()
        outcomes = tuple(f"{count:,} {in_words(status)}" for status, count in self._counts.most_common())
        if self.stopped_by is not None:
            notice = "interrupted: 5 s for requests in flight, interrupt again to abort them"
            return Progress(title="Ending", done=done, total=self._total, facts=(notice, *outcomes))
        meter, limit = self._options.meter, rate_limit(self._options.rate).rate
        rate = f"{meter.rate:,.0f} of {limit:,{'.0f' if limit >= 1 else '.1f'}} requests/s"
        return Progress(
            title="Starting" if self._operation == "start" else "Stopping",
            done=done,
            total=self._total,
            facts=(rate, f"{meter.retries:,} retried", *outcomes),
            left=seconds_left(done - self.already_done, self._total - done, self._started_at),
        )


def outcome_facts(outcome: BulkOutcome[Any]) -> dict[str, object]:
    item, stream, error = outcome.item, outcome.stream, outcome.error
    kind = "conference" if hasattr(item, "conference_sid") else "call"
    return {
        "index": outcome.index,
        "kind": kind,
        "target": getattr(item, f"{kind}_sid"),
        "status": outcome.status,
        "sid": stream.sid if stream is not None else None,
        "name": stream.name if stream is not None else getattr(error, "name", None) or item.name,
        "ambiguous": stream.ambiguous if stream is not None else False,
        "attempts": outcome.attempts,
        "duration": round(outcome.duration, 4),
        "error": type(error).__name__ if error is not None else None,
        "message": clean(for_command_line(str(error))) if error is not None else None,
    }


_MILLISECONDS = 1_000
_ADVICE = {
    "AuthenticationError": "The Space does not accept this project and token: check SIGNALWIRE_PROJECT_ID and "
    "SIGNALWIRE_API_TOKEN.",
    "PermissionDeniedError": "The token lacks a permission: give it the scope in the dashboard.",
    "NotFoundError": "The conference, call or stream does not exist (any more): check the id, or skip it.",
    "ApiError": "The Space refused the request with an unusual status: its message is above.",
    "BadRequestError": "The Space refused the request: its message is above.",
    "UnprocessableError": "The Space refused a field: its message is above.",
    "RateLimitedError": "Other clients use up the Space's rate limit: resume later, or with a lower --rate.",
    "ServerError": "The Space failed: resume when it works again.",
    "TransportError": "No response: check the network, then resume.",
    "CircuitOpenError": "The Space kept failing, so these were not sent: resume when it works again.",
    "MalformedResponseError": "The response did not come from the API, but perhaps from a proxy: check "
    "SIGNALWIRE_SPACE.",
    "StreamOutcomeUnknownError": "These may be running. Resuming sends those on conferences again under their names, "
    "so that the Space can refuse a second stream. Those on calls are sent again with --resend-call-starts only, "
    "which may start a second stream; those without a name never are.",
    "InvalidRequestError": "These are invalid, and were not sent.",
    "JournalError": "The journal can't be written, so these were not sent: free some disk space, then resume.",
}


def bulk_command(verb: str, options: Sequence[str], journal: Path) -> str:
    """Return a command for a run that can be pasted into a shell."""
    file = str(journal)
    return shlex.join(["signalwire-streams", "bulk", verb, *options, *(["--"] if file.startswith("-") else []), file])


@frozen(kw_only=True)
class Summary:
    """The summary of a run.

    Attributes:
        report: its report.
        operation: ``start`` or ``stop``.
        planned: how many items it had.
        already_done: items that an earlier part of the run had completed.
        stuck: unknown starts that a resumed run would only report again.
        retries: attempts that were retried.
        journal: the run's file, or None.
        command: returns the command of a verb (``resume``, ``stop``) for this run, or None if there is none.
        interrupted: whether a signal ended it.
        has_secrets: whether its requests have secrets, which no journal keeps.
    """

    report: BulkReport
    operation: str
    planned: int
    already_done: int = 0
    stuck: int = 0
    retries: int
    journal: Path | None
    command: Callable[[str], str] | None
    interrupted: bool = False
    has_secrets: bool = False

    @property
    def resume_command(self) -> str | None:
        """The command that resumes the run, or None if there is none."""
        if self._succeeded + self.stuck >= self.planned or self.command is None:
            return None
        return self.command("resume" if self.operation == "start" else "stop")

    @property
    def _succeeded(self) -> int:
        return sum(count for status, count in self.report.counts.items() if status in _SUCCEEDED)

    def write_json(self) -> None:
        report = self.report
        latencies = {f"p{percent}": round(value, 4) for percent, value in report.latency_percentiles.items()}
        write_json(
            {
                "report": {
                    "ok": report.ok and self._succeeded >= self.planned,
                    "planned": self.planned,
                    "completed": report.total,
                    "already_done": self.already_done,
                    "counts": dict(report.counts),
                    "attempts": report.attempts,
                    "retries": self.retries,
                    "errors": dict(report.errors),
                    "seconds": round(report.seconds, 3),
                    "latencies": latencies,
                    "interrupted": self.interrupted,
                    "journal": None if self.journal is None else str(self.journal),
                    "resume_command": self.resume_command,
                }
            }
        )

    def write(self) -> None:
        report = self.report
        if self.planned == 0:
            click.echo(f"There is nothing left to {self.operation}.")
            return
        verb = "Started" if self.operation == "start" else "Stopped"
        click.echo(f"{verb} {self._succeeded:,} of {self.planned:,} streams in {format_duration(report.seconds)}.")
        pending = report.errors.get(RunCancelledError.__name__, 0)
        counts = {**report.counts, BulkStatus.NOT_ATTEMPTED: report.counts.get(BulkStatus.NOT_ATTEMPTED, 0) - pending}
        pending += max(self.planned - report.total, 0)
        latency = [("latency", format_latencies(report.latency_percentiles))] if report.attempts else []
        write_counts(
            {**dict(sorted(counts.items())), "from earlier runs": self.already_done, "pending": pending},
            ("attempts", f"{report.attempts:,} ({self.retries:,} retried)"),
            *latency,
        )
        errors = {label: count for label, count in report.errors.items() if label != RunCancelledError.__name__}
        write_errors(errors, self._details)
        if self.journal is not None:
            click.echo(f"Journal: {self.journal}")
        if self.resume_command is not None:
            again = " (and pass its secrets again)" if self.has_secrets else ""
            click.echo(f"Resume{again}:\n  {self.resume_command}")
        if self.operation == "start" and report.total and self.command is not None:
            click.echo(f"Roll back:\n  {self.command('stop')}")

    def _details(self, label: str) -> Iterable[str]:
        """Return an example of an error, and what to do about it."""
        kind = label.partition(" ")[0]
        errors = (outcome.error for outcome in self.report.failures if outcome.error is not None)
        example = next((error for error in errors if type(error).__name__ == kind), None)
        if example is not None:
            yield f"for example: {clean(for_command_line(str(example)))}"
        yield _ADVICE.get(kind, _ADVICE[ApiError.__name__])


def format_latencies(latencies: Mapping[int, float]) -> str:
    """Return percentiles in milliseconds: "p50 31, p95 80, max 250 ms"."""
    names = {100: "max"}
    return ", ".join(f"{names.get(p, f'p{p}')} {value * _MILLISECONDS:,.0f}" for p, value in latencies.items()) + " ms"


def execute(
    account: Account, options: RunOptions, prepare: Callable[[StreamsClient], Awaitable[BulkRunner | None]]
) -> None:
    """Execute a run, write its summary, and end the command with its exit code.

    Args:
        account: the account.
        options: the options of the run.
        prepare: creates the runner, or reports that there is nothing to do and returns None.
    """

    async def work(client: StreamsClient) -> BulkRunner | None:
        runner = await prepare(client)
        if runner is not None:
            await runner.execute_and_report()
        return runner

    with silenced(OUTCOMES):
        runner = account.run(work, **options.client_options())
    if runner is not None:
        runner.end()
