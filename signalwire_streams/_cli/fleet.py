"""``signalwire-streams fleet submit`` and ``resume``."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from signal import Signals
from typing import TYPE_CHECKING, Any

import click
from attrs import define, field

from signalwire_streams import (
    BulkReport,
    PlannedRequest,
    RetryPolicy,
    StartCallStream,
    StartConferenceStream,
    StreamsError,
)
from signalwire_streams._cli.bulk_runner import Conduct, Knobs, concurrency_option, facts_of, resend_option, words
from signalwire_streams._cli.bulk_start import FILES, Kind, checked, live, say_nothing_to_do, write_dry_run
from signalwire_streams._cli.bulk_targets import Defaults, Requests, Secrets, Start, read_lines, read_source
from signalwire_streams._cli.fleet_status import (
    FLEET_ENVIRONMENT,
    MAY_RUN,
    NO_WORKER,
    check_redis,
    fleet_command,
    paced_client,
    redis_option,
    shared_rate_option,
    speed,
    the_fleet_room,
    with_fleet,
    write_overview,
    write_status,
)
from signalwire_streams._cli.options import (
    ENVIRONMENT,
    Account,
    account_options,
    bulk_start_options,
    conference_options,
    secret_options,
)
from signalwire_streams._cli.output import (
    FAILED,
    clean,
    failure_of,
    noting,
    on_terminal,
    write_aligned,
    write_json,
    write_note,
)
from signalwire_streams._cli.progress import Meter, Progress, shown, spell_seconds

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet, FleetStatus


@click.command(
    short_help="Give the workers a stream to start on each of many.",
    epilog=f"""{FILES}
{ENVIRONMENT}{FLEET_ENVIRONMENT}
\b
The API token is needed for --all-in-progress only.
\b
Example:
  signalwire-streams fleet submit targets.csv --run nightly-1121 \\
      --url wss://audio.example.com/live
""",
)
@click.argument("file", required=False)
@click.option("--all-in-progress", is_flag=True, help="Instead of FILE: all that are live now.")
@click.option(
    "--kind",
    type=click.Choice(["conference", "call"]),
    default="conference",
    show_default=True,
    help="What bare ids are, and what --all-in-progress lists.",
)
@click.option("--run", metavar="NAME", help="What the run is called. The same again starts nothing twice.")
@click.option("--workers-have-secrets", is_flag=True, help="Leave secrets out; the workers were started with them.")
@click.option("--skip-invalid", is_flag=True, help="Submit the good lines although others are wrong.")
@click.option("--dry-run", is_flag=True, help="Write what would be sent, and submit nothing.")
@redis_option
@bulk_start_options
@conference_options
@account_options
def submit(
    account: Account,
    *,
    url_of_redis: str | None,
    file: str | None,
    all_in_progress: bool,
    kind: Kind,
    run: str | None,
    workers_have_secrets: bool,
    skip_invalid: bool,
    dry_run: bool,
    parameters: dict[str, str],
    **fields: Any,  # noqa: ANN401  (the fields of a request, which checks them)
) -> None:
    """Give the workers a stream to start on each of many conferences or calls, from a file or on all that are live.

    Every line is checked before anything is submitted. A submit that was killed can be repeated with the same --run.
    """
    if (file is None) is not all_in_progress:
        raise click.UsageError("name a FILE of ids, - for standard input, or write --all-in-progress")
    if kind == "call" and {fields["codec"], fields["realtime"]} != {None}:
        raise click.UsageError("--codec and --realtime are for conference streams only: leave them out on calls")
    fields["unnamed"] = fields["unnamed"] or None
    defaults = Defaults(fields, parameters)
    found: Sequence[Start]
    if file is not None:
        lines = read_lines(read_source(file), f"{kind}_sid")
        found = checked(Requests.of(lines, defaults), file, account, skip_invalid=skip_invalid)
    else:
        found = account.perform(lambda client: live(client, kind, defaults))
    if dry_run:
        write_dry_run(found, as_json=account.as_json)
        return
    if not found:
        say_nothing_to_do(as_json=account.as_json)
        return

    if not (workers_have_secrets or all(PlannedRequest.from_request(request).is_complete for request in found)):
        raise click.UsageError(
            "Redis keeps no bearer tokens, parameter values or private callbacks: start the workers with the options "
            "that give them, and write --workers-have-secrets"
        )

    since = datetime.now(UTC)

    async def work(fleet: "Fleet") -> "FleetStatus":
        return await fleet.status(await fleet.submit(found, name=run, redact_secrets=workers_have_secrets))

    _tell(with_fleet(account, url_of_redis, work), account, since)


@click.command(short_help="Start what a run that is over left.")
@click.argument("run")
@click.option("--run", "name", metavar="NAME", help="What the new run is called; RUN with a number if left out.")
@redis_option
@account_options
def resume(account: Account, *, url_of_redis: str | None, run: str, name: str | None) -> None:
    """Give the workers what a run that is over left, as a new run: what was not attempted, and what is unknown.

    A conference's stream that runs already is not started again.
    """
    since = datetime.now(UTC)

    async def work(fleet: "Fleet") -> "FleetStatus | None":
        resumed = await fleet.resume(run, name=name)
        return None if resumed is None else await fleet.status(resumed)

    submitted = with_fleet(account, url_of_redis, work)
    if submitted is not None:
        _tell(submitted, account, since)
    elif account.as_json:
        write_json({"run": None, "planned": 0})
    else:
        click.echo(f"Nothing is left of the run {clean(run)}.")


def _tell(submitted: "FleetStatus", account: Account, since: datetime) -> None:
    """Tell what became of a submit: of a run that was there before, it only made sure that the workers have it."""
    with noting(f"the run was submitted as {submitted.run}"):
        _write_submitted(submitted, account, since)


def _write_submitted(submitted: "FleetStatus", account: Account, since: datetime) -> None:
    is_new = datetime.fromisoformat(submitted.started_at) >= since.replace(microsecond=since.microsecond // 1000 * 1000)
    if account.as_json:
        write_json({"run": submitted.run, "planned": submitted.planned, "is_new": is_new})
    elif is_new:
        click.echo(f"Submitted {submitted.planned:,} streams as run {submitted.run}.")
        click.echo(f"Follow it:\n  {fleet_command('status', account.options, submitted.run)}")
        click.echo(f"Stop what it started:\n  {fleet_command('stop', account.options, submitted.run)}")
    else:
        click.echo("This run was submitted before, and is not begun anew.")
        write_status(submitted, account)
    if not is_new and (submitted.cancelled is not None or submitted.unfinished):
        raise click.exceptions.Exit(FAILED)


_WENT_WELL = ("started", "already_started")
_FOUND = {
    "running": "Run {run} is cancelled.",
    "finished": "Run {run} had already finished, so there was nothing to cancel.",
    "cancelled": "Run {run} was already cancelled.",
}
_ASKED_EVERY = 0.5
_SETTLING = 1.0


@define(eq=False)
class Following:
    """Follows a run until it is over.

    Attributes:
        fleet: where it runs.
        status: what is known of it.
    """

    fleet: "Fleet"
    status: "FleetStatus"
    _began: float = field(init=False, factory=time.monotonic)
    _done_before: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._done_before = self.status.completed

    async def until_over(self, *, as_json: bool) -> "FleetStatus":
        """Show how far it is, until every start has ended."""
        async with shown(self._progress, as_json=as_json) as show:
            while not self.status.is_finished:
                await asyncio.sleep(_ASKED_EVERY)
                self.status = await self.fleet.status(self.status.run)
            show()
        return self.status

    def _progress(self) -> Progress:
        found = self.status
        seconds = time.monotonic() - self._began
        done = found.completed - self._done_before
        facts = [
            speed(found),
            f"{len(found.workers)} worker{'' if len(found.workers) == 1 else 's'}",
            *(f"{count:,} {words(state)}" for state, count in found.counts.items() if state != "waiting"),
        ]
        return Progress(
            title=f"Run {clean(found.run)}" if found.cancelled is None else found.cancelled.capitalize(),
            done=found.completed,
            total=found.planned,
            facts=tuple(facts),
            left=(found.planned - found.completed) * seconds / done if done and seconds > _SETTLING else None,
        )


@click.command(
    short_help="Show how far runs are, and who works.",
    epilog="""\b
Examples:
  signalwire-streams fleet status nightly-1121
  signalwire-streams fleet status nightly-1121 --once --json
""",
)
@click.argument("run", required=False)
@click.option("--follow/--once", default=None, help="Until the run is over, or as it is now; --follow on a terminal.")
@redis_option
@account_options
def status(account: Account, *, url_of_redis: str | None, run: str | None, follow: bool | None) -> None:
    """Show how far a run is, and who works; without a RUN all runs, and who works. No API token is needed."""

    async def work(fleet: "Fleet") -> bool:
        if run is None:
            write_overview(await fleet.runs(), await fleet.workers(), as_json=account.as_json)
            return True
        found = await fleet.status(run)
        if follow or (follow is None and on_terminal() and not account.as_json):
            found = await Following(fleet, found).until_over(as_json=account.as_json)
        write_status(found, account)
        return not found.is_finished or sum(found.counts.get(state, 0) for state in _WENT_WELL) == found.planned

    if not with_fleet(account, url_of_redis, work):
        raise click.exceptions.Exit(FAILED)


@click.command(short_help="Write the outcomes of a run as JSON.")
@click.argument("run")
@redis_option
@account_options
def results(account: Account, *, url_of_redis: str | None, run: str) -> None:
    """Write the outcome of each start of a run as JSON, one object per line, until the run is over."""

    async def work(fleet: "Fleet") -> None:
        found = await fleet.status(run)
        if not found.is_finished and not found.workers:
            click.echo(NO_WORKER, err=True)
        async for outcome in fleet.results(run):
            write_json(facts_of(outcome))

    with_fleet(account, url_of_redis, work)


@click.command()
@click.argument("run")
@redis_option
@account_options
def cancel(account: Account, *, url_of_redis: str | None, run: str) -> None:
    """Cancel a run: it takes no further starts. Streams that are running are left alone; `fleet stop` stops them too.

    A run that has finished, or was cancelled before, is left as it is.
    """

    async def work(fleet: "Fleet") -> None:
        before = await fleet.status(run)
        found = await fleet.cancel(run)
        state = "cancelled" if before.cancelled is not None else "finished" if before.is_finished else "running"
        if not account.as_json:
            click.echo(_FOUND[state].format(run=clean(run)))
        write_status(found, account, {"state_before": state})

    with_fleet(account, url_of_redis, work)


@click.command(short_help="Stop every stream that a run started.", epilog=f"{ENVIRONMENT}{FLEET_ENVIRONMENT}")
@click.argument("run")
@concurrency_option()
@shared_rate_option
@redis_option
@account_options
def stop(account: Account, *, url_of_redis: str | None, run: str, concurrency: int | None, rate: float | None) -> None:
    """Stop every stream that a run started, or may have started; it takes no further starts.

    Each is stopped by its sid, or by its name where only that is known. It can be repeated until nothing is left.
    """
    room = the_fleet_room()
    knobs, meter = Knobs(concurrency, rate), Meter()

    async def work() -> int:
        redis = check_redis(url_of_redis)
        async with AsyncExitStack() as stack:
            client = await paced_client(stack, account, redis, knobs, on_attempt=meter.note)
            fleet = await stack.enter_async_context(room.Fleet(redis, space=client.origin, project=client.project))
            found = await fleet.cancel(run)
            total = sum(found.counts.get(state, 0) for state in MAY_RUN) - found.undone
            conduct = Conduct(
                run=fleet.stop_streams(run, client, concurrency=concurrency),
                title="Stopping",
                total=total,
                meter=meter,
                limit=knobs.limit.rate,
                as_json=account.as_json,
            )
            report = await conduct.perform()
        if conduct.error is not None:
            raise failure_of(conduct.error, as_json=account.as_json)
        _write(report, account, run)
        return conduct.exit_code

    try:
        code = asyncio.run(work())
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None
    if code:
        raise click.exceptions.Exit(code)


def _write(report: BulkReport, account: Account, run: str) -> None:
    if account.as_json:
        counts, errors = dict(report.counts), dict(report.errors)
        write_json({"report": {"ok": report.ok, "ended": report.total, "counts": counts, "errors": errors}})
        return
    stopped = report.total - sum(count for state, count in report.counts.items() if state != "stopped")
    click.echo(f"Stopped {stopped:,} of {report.total:,} streams in {spell_seconds(report.seconds)}.")
    if not report.ok:
        write_aligned([(words(state), f"{count:,}") for state, count in sorted(report.counts.items())], indent="  ")
        write_aligned([(f"{count:,} x", label) for label, count in report.errors.items()], indent="  ")
        click.echo(f"Stop the rest:\n  {fleet_command('stop', account.options, run)}")


_AT_ONCE = 200


@click.command(
    short_help="Carry out what is submitted.",
    epilog=f"""{ENVIRONMENT}{FLEET_ENVIRONMENT}
\b
Example:
  signalwire-streams fleet worker --bearer-token-file token.txt
""",
)
@click.option(
    "--lease", type=float, default=15.0, show_default=True, help="Seconds after which a dead one is replaced."
)
@click.option("--drain", type=float, default=25.0, show_default=True, help="Seconds for what is in hand at SIGTERM.")
@concurrency_option(_AT_ONCE)
@shared_rate_option
@resend_option
@secret_options
@redis_option
@account_options
def worker(
    account: Account,
    *,
    url_of_redis: str | None,
    lease: float,
    drain: float,
    concurrency: int,
    rate: float | None,
    resend_call_starts: bool,
    parameters: dict[str, str],
    authorization_bearer_token: str | None,
    status_callback: str | None,
) -> None:
    """Carry out what is submitted, together with all other workers, until SIGTERM or Ctrl-C.

    Then it takes nothing new, finishes what it has in hand, and hands back what takes too long; a second signal
    hands it all back at once. The workers share the Space's limit, or the --rate, through Redis.
    """
    room = the_fleet_room()
    secrets = Secrets(parameters, authorization_bearer_token, status_callback)

    async def work() -> None:
        redis = check_redis(url_of_redis)
        knobs = Knobs(concurrency, rate, resend_call_starts)
        retry = RetryPolicy(resend_call_starts=resend_call_starts)
        async with AsyncExitStack() as stack:
            client = await paced_client(stack, account, redis, knobs, retry=retry)
            one = room.FleetWorker(
                redis, client, concurrency=concurrency, lease=lease, drain=drain, secrets=_giving(secrets)
            )
            write_note(f"Worker {clean(one.name)} serves project {client.project} on {client.origin}.")
            with room.stop_on_signals(one, _DrainNotes(clean(one.name), drain)):
                await one.run()
            write_note(f"Worker {clean(one.name)} ended.")

    try:
        asyncio.run(work())
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None


@define(eq=False)
class _DrainNotes:
    """Prints what each signal makes a worker do.

    Attributes:
        worker: the worker's name.
        drain: seconds that its work in progress gets.
    """

    worker: str
    drain: float
    _signals: int = field(init=False, default=0)

    def __call__(self, number: Signals) -> None:
        self._signals += 1
        if self._signals == 1:
            write_note(
                f"Worker {self.worker} is draining ({number.name}): it takes no new work and finishes what it has "
                f"within {self.drain:g} s; the rest goes to other workers. Signal again to hand it over at once."
            )
        elif self._signals == 2:  # noqa: PLR2004  (the second signal)
            write_note(f"Worker {self.worker} hands over its work at once ({number.name}).")


def _giving(secrets: Secrets) -> Any:  # noqa: ANN401  (what a worker takes)
    def give(planned: PlannedRequest) -> StartConferenceStream | StartCallStream:
        return secrets.given_to(planned)

    return give


@click.group(short_help="Start streams from many hosts over one Redis.")
def fleet() -> None:
    """Start streams from many hosts over one Redis, so that a run goes on when a host dies."""


fleet.add_command(worker)
fleet.add_command(submit)
fleet.add_command(status)
fleet.add_command(results)
fleet.add_command(cancel)
fleet.add_command(resume)
fleet.add_command(stop)
