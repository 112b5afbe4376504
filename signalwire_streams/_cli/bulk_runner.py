"""Carrying out a bulk run from the command line, whatever it does: its options, its client, its end."""

import asyncio
import contextlib
import math
import shlex
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any, Generic, TypeVar

import click
from attrs import define, field, frozen

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
    failure_of,
    for_command_line,
    noting,
    silenced,
    write_aligned,
    write_json,
)
from signalwire_streams._cli.progress import Meter, Progress, shown, spell_seconds

_Item = TypeVar("_Item")
_SETTLING = 1.0  # seconds before a guess at the rest is worth showing


@define(eq=False)
class Conduct(Generic[_Item]):
    """Goes through a run.

    Attributes:
        run: the run.
        title: what it does.
        total: how many items it has.
        meter: hears of the attempts.
        limit: requests per second that it may use.
        as_json: whether each outcome is written as JSON.
        resend_call_starts: whether a resumed run sends unknown starts on calls again.
        early: items that an earlier part of the run had carried out.
        stuck: unknown starts that a resumed run would only report again.
        stopped_by: the first signal that came, or None.
        error: what ended the run, apart from its items, or None.
    """

    run: BulkRun[_Item]
    title: str
    total: int
    meter: Meter
    limit: float
    as_json: bool
    resend_call_starts: bool = False
    early: int = field(init=False, default=0)
    stuck: int = field(init=False, default=0)
    stopped_by: Signals | None = field(init=False, default=None)
    error: StreamsError | None = field(init=False, default=None)
    _done: int = field(init=False, default=0)
    _counts: Counter[BulkStatus] = field(init=False, factory=Counter)
    _show: Callable[[], None] = field(init=False, default=lambda: None)
    _began: float = field(init=False, factory=time.monotonic)

    async def perform(self) -> BulkReport:
        """Go through the run, and tell what it came to. What ended it early is in ``error`` and ``stopped_by``."""
        with self._signals():
            async with shown(self._progress, as_json=self.as_json) as self._show:
                try:
                    async with contextlib.aclosing(aiter(self.run)) as outcomes:
                        async for outcome in outcomes:
                            self._note(outcome)
                except StreamsError as error:
                    self.error = error
        return self.run.snapshot

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        if self.stopped_by is not None:
            return INTERRUPTED if self.stopped_by is Signals.SIGINT else TERMINATED
        return 0 if self.error is None and self.run.snapshot.ok else FAILED

    def _note(self, outcome: BulkOutcome[Any]) -> None:
        self._done += 1
        self._counts[outcome.status] += 1
        self.early += outcome.ok and not outcome.attempts
        self.stuck += outcome.status is BulkStatus.UNKNOWN and not self._can_be_resent(outcome.item)
        if self.as_json:
            write_json(facts_of(outcome))

    def _can_be_resent(self, item: Any) -> bool:  # noqa: ANN401  (a request, or a stream to stop)
        if getattr(item, "unnamed", False):
            return False
        return self.resend_call_starts or not isinstance(item, StartCallStream)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (Signals.SIGINT, Signals.SIGTERM)
        try:
            for number in numbers:
                loop.add_signal_handler(number, self._interrupt, number)
        except (NotImplementedError, RuntimeError):  # Windows' loops, and other threads', take no signals
            yield
            return
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _interrupt(self, number: Signals) -> None:
        if self.stopped_by is not None:
            self.run.shutdown(0)
            return
        self.stopped_by = number
        self.run.shutdown()
        self._show()

    def _progress(self) -> Progress:
        outcomes = tuple(f"{count:,} {words(state)}" for state, count in self._counts.most_common())
        if self.stopped_by is not None:
            ending = "interrupted: 5 s for what is under way, interrupt again to cut it"
            return Progress(title="Ending", done=self._done, total=self.total, facts=(ending, *outcomes))
        seconds = time.monotonic() - self._began
        tried = self._done - self.early
        rate = f"{self.meter.rate:,.0f} of {self.limit:,{'.0f' if self.limit >= 1 else '.1f'}} requests/s"
        return Progress(
            title=self.title,
            done=self._done,
            total=self.total,
            facts=(rate, f"{self.meter.repeats:,} repeated", *outcomes),
            left=(self.total - self._done) * seconds / tried if tried and seconds > _SETTLING else None,
        )


def words(state: str) -> str:
    """Give a state as people say it."""
    return state.replace("_", " ")


def facts_of(outcome: BulkOutcome[Any]) -> dict[str, object]:
    """Give an outcome as JSON has it."""
    item, stream, error = outcome.item, outcome.stream, outcome.error
    kind = "conference" if hasattr(item, "conference_sid") else "call"
    name = stream.name if stream is not None else getattr(error, "name", None) or item.name
    return {
        "index": outcome.index,
        "kind": kind,
        "target": getattr(item, f"{kind}_sid"),
        "state": outcome.status,
        "sid": stream.sid if stream is not None else None,
        "name": name,
        "ambiguous": stream.ambiguous if stream is not None else False,
        "attempts": outcome.attempts,
        "seconds": round(outcome.duration, 4),
        "error": type(error).__name__ if error is not None else None,
        "message": clean(for_command_line(str(error))) if error is not None else None,
    }


_SHOWN_ERRORS = 10
_MILLISECONDS = 1_000
_ADVICE = {
    "AuthenticationError": "The Space does not know this project with this token: check SIGNALWIRE_PROJECT_ID and "
    "SIGNALWIRE_API_TOKEN.",
    "PermissionDeniedError": "The token may not do this: give it the scope in the dashboard.",
    "NotFoundError": "There is no such conference, call or stream (any more): check the id, or let it be.",
    "ApiError": "The Space refuses the request with a status of its own: its words are above.",
    "BadRequestError": "The Space refuses the request as it is: its own words are above.",
    "UnprocessableError": "The Space refuses a field: its own words are above.",
    "RateLimitedError": "Others use up the Space's limit: go on later, or with a lower --rate.",
    "ServerError": "The Space failed: go on when it works again.",
    "TransportError": "No answer came: check the network, then go on.",
    "CircuitOpenError": "The Space kept failing, so these were not sent: go on when it works again.",
    "MalformedResponseError": "Something answered that is not the API, perhaps a proxy: check SIGNALWIRE_SPACE.",
    "StreamOutcomeUnknownError": "These may be running. Resuming sends those on conferences again under their names, so "
    "that the Space can refuse a second stream. Those on calls are sent again with --resend-call-starts only, which "
    "may start a second stream; those without a name never are.",
    "InvalidRequestError": "These can't be right, and were not sent.",
    "JournalError": "The journal can't be written, so these were not sent: make room on the disk, then go on.",
}


@frozen(kw_only=True)
class Closing:
    """The end of a run.

    Attributes:
        report: what it came to.
        doing: ``start`` or ``stop``.
        planned: how many items there were.
        early: items that an earlier part of the run had carried out.
        stuck: unknown starts that a resumed run would only report again.
        repeats: attempts that were followed by another one.
        journal: the run's file.
        options: the options that a further command needs to find the Space.
        interrupted: whether a signal ended it.
        has_secrets: whether its requests have secrets, which no journal keeps.
    """

    report: BulkReport
    doing: str
    planned: int
    early: int
    stuck: int = 0
    repeats: int
    journal: Path
    options: Sequence[str]
    interrupted: bool
    has_secrets: bool

    @property
    def go_on(self) -> str | None:
        """The command that does the rest, or None when there is none."""
        ok = sum(count for state, count in self.report.counts.items() if state in _DONE)
        if ok + self.stuck >= self.planned:
            return None
        return self._command("resume" if self.doing == "start" else "stop")

    def write_json(self) -> None:
        """Write it as one JSON object."""
        report = self.report
        write_json(
            {
                "report": {
                    "ok": report.ok and not self.go_on,
                    "planned": self.planned,
                    "ended": report.total,
                    "earlier": self.early,
                    "counts": dict(report.counts),
                    "attempts": report.attempts,
                    "repeated": self.repeats,
                    "errors": dict(report.errors),
                    "seconds": round(report.seconds, 3),
                    "latencies": {
                        f"p{percent}": round(value, 4) for percent, value in report.latency_percentiles.items()
                    },
                    "interrupted": self.interrupted,
                    "journal": str(self.journal),
                    "go_on": self.go_on,
                }
            }
        )

    def write(self) -> None:
        """Write it for a person."""
        report = self.report
        if self.planned == 0:
            click.echo(f"There is nothing left to {self.doing}.")
            return
        done = sum(count for state, count in report.counts.items() if state in _DONE)
        verb = "Started" if self.doing == "start" else "Stopped"
        click.echo(f"{verb} {done:,} of {self.planned:,} streams in {spell_seconds(report.seconds)}.")
        waiting = report.errors.get(RunCancelledError.__name__, 0)
        counts = {**report.counts, BulkStatus.NOT_ATTEMPTED: report.counts.get(BulkStatus.NOT_ATTEMPTED, 0) - waiting}
        waiting += max(self.planned - report.total, 0)
        rows = [(words(state), f"{count:,}") for state, count in sorted(counts.items()) if count]
        if self.early:
            rows.append(("of them before", f"{self.early:,}"))
        if waiting:
            rows.append(("not tried yet", f"{waiting:,}"))
        rows.append(("attempts", f"{report.attempts:,}, {self.repeats:,} of them followed by another one"))
        if report.attempts:
            rows.append(("time for one", _spell(report.latency_percentiles)))
        write_aligned(rows, indent="  ")
        self._write_errors()
        click.echo(f"Its journal is {self.journal}")
        if self.go_on is not None:
            again = " (and give its secrets again)" if self.has_secrets else ""
            click.echo(f"Go on with it{again}:\n  {self.go_on}")
        if self.doing == "start" and report.total:
            click.echo(f"Stop what it started:\n  {self._command('stop')}")

    def _write_errors(self) -> None:
        errors = [entry for entry in self.report.errors.items() if entry[0] != RunCancelledError.__name__]
        if not errors:
            return
        click.echo("Most frequent errors:")
        examples = {}
        for outcome in reversed(self.report.failures):
            if outcome.error is not None:
                examples[type(outcome.error).__name__] = clean(for_command_line(str(outcome.error)))
        for label, count in errors[:_SHOWN_ERRORS]:
            kind = label.partition(" ")[0]
            click.echo(f"  {count:,} x {label}")
            if kind in examples:
                click.echo(f"      for example: {examples[kind]}")
            click.echo(f"      {_ADVICE.get(kind, _ADVICE[ApiError.__name__])}")

    def _command(self, verb: str) -> str:
        return bulk_command(verb, self.options, self.journal)


def bulk_command(verb: str, options: Sequence[str], journal: Path) -> str:
    """Spell a command about a run, to be pasted into a shell."""
    file = str(journal)
    return shlex.join(["signalwire-streams", "bulk", verb, *options, *(["--"] if file.startswith("-") else []), file])


_DONE = {"started", "already_started", "stopped"}


def _spell(latencies: Mapping[int, float]) -> str:
    spelled = (
        f"{'max' if percent == 100 else f'p{percent}'} {seconds * _MILLISECONDS:,.0f}"  # noqa: PLR2004  (all of it)
        for percent, seconds in latencies.items()
    )
    return ", ".join(spelled) + " ms"


_MOST = RateLimit().requests / RateLimit().window


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number: write requests per second, such as 100")
    return value


def concurrency_option(default: int | None = None) -> Decorator:
    """Make the option that says how many may be under way at once; without a default that is found out."""
    text = "So many at once" + ("; found out while running if left out." if default is None else ".")
    return click.option(
        "--concurrency",
        type=click.IntRange(min=1),
        metavar="N",
        default=default,
        show_default=default is not None,
        help=text,
    )


def rate_option(whose: str = "") -> Decorator:
    """Make the option that says how fast to go, and who does that together."""
    return click.option(
        "--rate",
        type=click.FloatRange(min=0.1, max=_MOST),
        callback=_number,
        metavar="N",
        help=f"Requests per second at most{whose}; nine tenths of the Space's {_MOST:,.0f} if left out.",
    )


run_options: Decorator = adding((concurrency_option(), rate_option()))
"""Add the options that any run has."""

resend_option: Decorator = click.option(
    "--resend-call-starts",
    is_flag=True,
    help="Send a call's start again too when its answer was lost. It may double a stream: that a second one of "
    "its name is refused is documented for conferences only.",
)
"""Add the option that a run of starts has."""


@frozen
class Knobs:
    """How a run goes about it.

    Attributes:
        concurrency: how many at once, or None.
        rate: requests per second at most, or None.
        resend_call_starts: whether a call's start may be sent again.
    """

    concurrency: int | None
    rate: float | None
    resend_call_starts: bool = False

    @property
    def limit(self) -> RateLimit:
        """The rate as the client takes it."""
        if self.rate is None:
            return RateLimit()
        return RateLimit(requests=max(1, round(self.rate * RateLimit().window)), utilization=1.0)


@frozen(kw_only=True)
class Job:
    """A run that is ready to go.

    Attributes:
        run: the run.
        doing: ``start`` or ``stop``.
        planned: how many items it has.
        journal: its file.
        has_secrets: whether its requests have secrets.
    """

    run: BulkRun[Any]
    doing: str
    planned: int
    journal: Path
    has_secrets: bool = False


@define(eq=False)
class _Carrying:
    account: Account
    knobs: Knobs
    meter: Meter
    prepare: Callable[[StreamsClient], Awaitable[Job | None]]

    async def work(self, client: StreamsClient) -> tuple[int, StreamsError | None]:
        job = await self.prepare(client)
        if job is None:
            return 0, None
        conduct = Conduct(
            run=job.run,
            title="Starting" if job.doing == "start" else "Stopping",
            total=job.planned,
            meter=self.meter,
            limit=self.knobs.limit.rate,
            as_json=self.account.as_json,
            resend_call_starts=self.knobs.resend_call_starts,
        )
        with noting(f"see what became of the run: {bulk_command('status', (), job.journal)}"):
            report = await conduct.perform()
            if report.total or conduct.error is None:
                closing = Closing(
                    report=report,
                    doing=job.doing,
                    planned=job.planned,
                    early=conduct.early,
                    stuck=conduct.stuck,
                    repeats=self.meter.repeats,
                    journal=job.journal,
                    options=self.account.options,
                    interrupted=conduct.stopped_by is not None,
                    has_secrets=job.has_secrets,
                )
                (closing.write_json if self.account.as_json else closing.write)()
        return conduct.exit_code, conduct.error


def carry_out(account: Account, knobs: Knobs, prepare: Callable[[StreamsClient], Awaitable[Job | None]]) -> None:
    """Carry out a run, and end the command with what came of it.

    Args:
        account: where it goes.
        knobs: how it goes about it.
        prepare: makes the run, or says that there is nothing to do and gives None.

    Raises:
        Exit: not everything succeeded.
        Failure: the run could not be carried out.
    """
    meter = Meter()
    with silenced(OUTCOMES):
        code, error = account.perform(
            _Carrying(account, knobs, meter, prepare).work,
            on_attempt=meter.note,
            rate_limit=knobs.limit,
            retry=RetryPolicy(resend_call_starts=knobs.resend_call_starts),
        )
    if error is not None:
        raise failure_of(error, as_json=account.as_json)
    if code:
        raise click.exceptions.Exit(code)
