"""The command ``fleet``: runs that workers on many hosts share over one Redis."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from signal import Signals
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import asdict, frozen

from signalwire_streams import InvalidRequestError, PlannedRequest, StreamsClient
from signalwire_streams._cli.bulk import FILES, IN_DOUBT, Targets, target_options
from signalwire_streams._cli.bulk_runner import SUCCEEDED, BulkRunner, RunOptions, outcome_facts, run_options, sum_of
from signalwire_streams._cli.bulk_secrets import Secrets, secret_options
from signalwire_streams._cli.options import ACCOUNT, ENVIRONMENT, Account, make_account, passing, reject_password
from signalwire_streams._cli.output import (
    FAILED,
    Column,
    Interruption,
    UsageError,
    clean,
    in_words,
    is_terminal,
    moment,
    noting,
    write_json,
    write_note,
    write_report,
    write_table,
)
from signalwire_streams._cli.progress import Progress, seconds_left, show_progress

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet, FleetStatus, WorkerStatus

_Result = TypeVar("_Result")

_REDIS = "SIGNALWIRE_FLEET_REDIS"
_ENVIRONMENT = f"""\
  {_REDIS}  the Redis of the fleet: redis://host:6379/0,
                          rediss://user:password@host, unix:///path
"""
_NO_WORKER = "No active workers: start one with signalwire-streams fleet worker"
_MAY_RUN = ("started", "already_started", "unknown", IN_DOUBT)
_LOW_LIMIT = 10
_POLL_INTERVAL = 0.5
_CONCURRENCY = 200

_SHARED_RATE = " of all workers and stops together (use the same value everywhere)"
_DRAINING = (
    "Worker {} is draining ({}): it takes no new work and finishes what is in progress within {:g} s; the rest goes "
    "to other workers. Signal again to hand it over at once."
)
_HANDING_OVER = "Worker {} hands over its work at once ({})."
_run_id_option = partial(click.option, "--run-id", metavar="ID")


@frozen
class _FleetAccount(Account):
    redis_url: str | None = None

    @property
    def redis(self) -> str:
        if not self.redis_url:
            raise InvalidRequestError(f"set {_REDIS} (or --redis) to the Redis that the fleet shares")
        return self.redis_url

    def run_on_fleet(self, work: "Callable[[Fleet], Awaitable[_Result]]") -> _Result:
        module = _fleet_module()

        async def with_fleet() -> _Result:
            if not self.space or not self.project:
                raise InvalidRequestError("set SIGNALWIRE_SPACE (or --space) and SIGNALWIRE_PROJECT_ID (or --project)")
            async with module.Fleet(self.redis, space=self.space, project=self.project) as found:
                return await work(found)

        return asyncio.run(with_fleet())

    @asynccontextmanager
    async def shared_client(self, options: RunOptions) -> AsyncIterator[StreamsClient]:
        """Create a client that shares the Space's limit, or the ``--rate``, with the whole fleet."""
        shared = import_module("signalwire_streams.redis_rate_limit")
        settings = options.client_options()
        async with (
            shared.RedisRateLimiter(self.redis, rate_limit=settings.pop("rate_limit")) as limiter,
            self.client(rate_limiter=limiter, **settings) as client,
        ):
            yield client


def _make_account(*, redis_url: str | None, **values: Any) -> _FleetAccount:  # noqa: ANN401  (the options of an account)
    reject_password(redis_url, _REDIS)
    found = redis_url or os.environ.get(_REDIS)
    return _FleetAccount(**asdict(make_account(**values), recurse=False), redis_url=found)


_fleet_options = passing(
    "account",
    _make_account,
    click.option(
        "--redis",
        "redis_url",
        metavar="URL",
        help=f"URL of the fleet's Redis; overrides {_REDIS}, which is required for a URL with a password.",
    ),
    ACCOUNT,
)


def _fleet_module() -> Any:  # noqa: ANN401  (a module)
    # docket's messages are for developers; the fleet itself logs that Redis is unavailable.
    logging.getLogger("docket").setLevel(logging.CRITICAL)
    try:
        return import_module("signalwire_streams.fleet")
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None


@click.group(short_help="Start streams from many hosts over one Redis.")
def fleet() -> None:
    """Start streams from many hosts over one Redis, so that a run continues when a host dies."""


@fleet.command(
    short_help="Submit a run: start a stream on each of many conferences or calls.",
    epilog=f"""{FILES}
{ENVIRONMENT}{_ENVIRONMENT}
The API token is needed for --all-in-progress only.

\b
Example:
  signalwire-streams fleet submit targets.csv --run-id nightly-1121 \\
      --url wss://audio.example.com/live
""",
)
@_run_id_option(help="Id of the run; repeating the submit starts nothing twice.")
@click.option("--redact-secrets", is_flag=True, help="Submit without the secrets; the workers must have them.")
@target_options
@_fleet_options
def submit(account: _FleetAccount, *, targets: Targets, run_id: str | None, redact_secrets: bool) -> None:
    """Submit a run: start a stream on each of many conferences or calls, from a file or on all that are live.

    All lines are checked before anything is submitted. A submit that was killed can be repeated with the same
    --run-id.
    """
    requests = targets.find(account)
    if not requests:
        return
    if not (redact_secrets or all(PlannedRequest.from_request(request).is_complete for request in requests)):
        raise click.UsageError(
            "Redis keeps no bearer tokens, parameter values or private callbacks: start the workers with the options "
            "that provide them, and write --redact-secrets"
        )

    async def work(fleet: "Fleet") -> "FleetStatus":
        return await fleet.status(await fleet.submit(requests, run_id=run_id, redact_secrets=redact_secrets))

    _submit(account, work)


@fleet.command(short_help="Resubmit what a finished run left undone.")
@click.argument("run")
@_run_id_option(help="Id of the new run; by default that of RUN with a number.")
@_fleet_options
def resume(account: _FleetAccount, *, run: str, run_id: str | None) -> None:
    """Resubmit what a finished run left undone, as a new run.

    These are the starts that were not attempted, and those whose outcome is unknown. A conference's stream that is
    already running is not started again.
    """

    async def work(fleet: "Fleet") -> "FleetStatus | None":
        resumed = await fleet.resume(run, run_id=run_id)
        return None if resumed is None else await fleet.status(resumed)

    if _submit(account, work):
        return
    if account.as_json:
        write_json({"run": None, "planned": 0})
    else:
        click.echo(f"Run {clean(run)} has nothing left to start.")


def _submit(account: _FleetAccount, work: "Callable[[Fleet], Awaitable[FleetStatus | None]]") -> bool:
    """Submit a run, and write the result; return whether there was anything to submit.

    If the run existed before, this only makes sure that the workers have all of it.
    """
    since = datetime.now(UTC)
    try:
        submitted = account.run_on_fleet(work)
    except KeyboardInterrupt:
        message = f"interrupted: a part of the run may have been submitted; see {account.command('fleet status')}"
        raise Interruption(message, as_json=account.as_json) from None
    if submitted is None:
        return False
    is_new = datetime.fromisoformat(submitted.started_at) >= since.replace(microsecond=since.microsecond // 1000 * 1000)
    with noting(f"the run was submitted as {submitted.run}"):
        if account.as_json:
            write_json({"run": submitted.run, "planned": submitted.planned, "is_new": is_new})
        elif is_new:
            click.echo(f"Submitted {submitted.planned:,} streams as run {submitted.run}.")
            click.echo(f"Follow it:\n  {account.command('fleet status', submitted.run)}")
            click.echo(f"Roll back:\n  {account.command('fleet stop', submitted.run)}")
        else:
            click.echo("Run already submitted; nothing new was queued.")
            _write_status(submitted, account)
    if not is_new and (submitted.cancelled is not None or submitted.unfinished):
        raise click.exceptions.Exit(FAILED)
    return True


@fleet.command(
    short_help="Show run progress and active workers.",
    epilog="""\b
Examples:
  signalwire-streams fleet status nightly-1121
  signalwire-streams fleet status nightly-1121 --once --json
""",
)
@click.argument("run", required=False)
@click.option(
    "--follow/--once",
    default=None,
    help="Follow the run until it ends, or show it once. Default: --follow on a terminal without --json.",
)
@_fleet_options
def status(account: _FleetAccount, *, run: str | None, follow: bool | None) -> None:
    """Show the progress of a RUN, or of all runs by default, and the active workers. No API token is needed."""

    async def work(fleet: "Fleet") -> bool:
        if run is None:
            _write_overview(await fleet.runs(), await fleet.workers(), as_json=account.as_json)
            return True
        found = await fleet.status(run)
        if follow or (follow is None and is_terminal() and not account.as_json):
            found = await _follow(fleet, found, as_json=account.as_json)
        _write_status(found, account)
        return not found.is_finished or sum_of(found.counts, *SUCCEEDED) == found.planned

    if not account.run_on_fleet(work):
        raise click.exceptions.Exit(FAILED)


async def _follow(fleet: "Fleet", found: "FleetStatus", *, as_json: bool) -> "FleetStatus":
    started_at, done_before = time.monotonic(), found.completed

    def progress() -> Progress:
        counts = {state: count for state, count in found.counts.items() if state != "pending"}
        workers = f"{len(found.workers)} worker{'' if len(found.workers) == 1 else 's'}"
        return Progress(
            title=f"Run {clean(found.run)}" if found.cancelled is None else found.cancelled.capitalize(),
            done=found.completed,
            total=found.planned,
            facts=(_speed(found), workers, *(f"{count:,} {in_words(state)}" for state, count in counts.items())),
            left=seconds_left(found.completed - done_before, found.planned - found.completed, started_at),
        )

    async with show_progress(progress, as_json=as_json) as display:
        while not found.is_finished:
            await asyncio.sleep(_POLL_INTERVAL)
            found = await fleet.status(found.run)
        display.show()
    return found


@fleet.command(short_help="Write the outcomes of a run as JSON.")
@click.argument("run")
@_fleet_options
def results(account: _FleetAccount, *, run: str) -> None:
    """Write the outcome of each start of a run as JSON, one object per line, until the run is finished."""

    async def work(fleet: "Fleet") -> None:
        found = await fleet.status(run)
        if not found.is_finished and not found.workers:
            write_note(_NO_WORKER)
        async for outcome in fleet.results(run):
            write_json(outcome_facts(outcome))

    account.run_on_fleet(work)


@fleet.command()
@click.argument("run")
@_fleet_options
def cancel(account: _FleetAccount, *, run: str) -> None:
    """Cancel a run: start no more streams. Streams already running are left alone; `fleet stop` stops them too.

    A run that is already finished or cancelled is unchanged.
    """
    messages = {
        "running": f"Run {clean(run)} is cancelled.",
        "finished": f"Run {clean(run)} had already finished, so there was nothing to cancel.",
        "cancelled": f"Run {clean(run)} was already cancelled.",
    }

    async def work(fleet: "Fleet") -> None:
        before = await fleet.status(run)
        found = await fleet.cancel(run)
        state = "cancelled" if before.cancelled is not None else "finished" if before.is_finished else "running"
        if not account.as_json:
            click.echo(messages[state])
        _write_status(found, account, {"status_before": state})

    account.run_on_fleet(work)


@fleet.command(short_help="Stop every stream that a run started.", epilog=f"{ENVIRONMENT}{_ENVIRONMENT}")
@click.argument("run")
@run_options(resend=False, rate_of=_SHARED_RATE)
@_fleet_options
def stop(account: _FleetAccount, *, run: str, options: RunOptions) -> None:
    """Stop every stream that a run started, or may have started. The run is cancelled, too.

    Each is stopped by its sid, or by its name if only that is known. Repeat the command until none is left.
    """
    module = _fleet_module()

    async def work() -> BulkRunner:
        async with (
            account.shared_client(options) as client,
            module.Fleet(account.redis, space=client.origin, project=client.project) as found,
        ):
            before = await found.cancel(run)
            runner = BulkRunner(
                found.stop_streams(run, client, concurrency=options.concurrency),
                account,
                options,
                total=sum_of(before.counts, *_MAY_RUN) - before.rolled_back,
                operation="stop",
                command=lambda verb: account.command(f"fleet {verb}", run),
            )
            await runner.execute_and_report()
        return runner

    asyncio.run(work()).end()


@fleet.command(
    short_help="Execute the submitted runs.",
    epilog=f"""{ENVIRONMENT}{_ENVIRONMENT}

\b
Example:
  signalwire-streams fleet worker --bearer-token-file token.txt
""",
)
@click.option(
    "--lease-seconds",
    type=float,
    default=15.0,
    metavar="N",
    help="Seconds without a heartbeat before a worker's work is reassigned.",
)
@click.option(
    "--shutdown-timeout",
    type=float,
    default=25.0,
    metavar="SECONDS",
    help="Time to finish work in progress after SIGTERM.",
)
@click.option(
    "--health-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Respond with 200 to HTTP requests on this port.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Serve metrics for Prometheus on this port.",
)
@click.option(
    "--monitoring-host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Address for both ports; 0.0.0.0 for probes from other machines.",
)
@run_options(resend=True, concurrency=_CONCURRENCY, rate_of=_SHARED_RATE)
@secret_options
@_fleet_options
def worker(
    account: _FleetAccount,
    *,
    options: RunOptions,
    secrets: Secrets,
    **settings: Any,  # noqa: ANN401  (a worker's own, each of another type)
) -> None:
    """Execute the submitted runs, together with all other workers, until SIGTERM or Ctrl-C.

    The worker then accepts no new work, finishes its work in progress, and requeues whatever is unfinished after
    --shutdown-timeout; a second signal requeues everything at once. The workers share the Space's limit, or the
    --rate, through Redis.
    """
    module = _fleet_module()

    async def work() -> None:
        async with account.shared_client(options) as client:
            one = module.FleetWorker(
                account.redis, client, concurrency=options.concurrency, secrets=secrets.add_to, **settings
            )
            write_note(f"Worker {clean(one.name)} serving project {client.project} at {client.origin}.")
            notes = iter((_DRAINING, _HANDING_OVER))

            def write_next_note(number: Signals) -> None:
                if note := next(notes, None):
                    write_note(note.format(clean(one.name), number.name, settings["shutdown_timeout"]))

            with module.stop_on_signals(one, write_next_note):
                await one.run()
            write_note(f"Worker {clean(one.name)} ended.")

    asyncio.run(work())


def _write_status(found: "FleetStatus", account: _FleetAccount, facts: Mapping[str, object] | None = None) -> None:
    """Write the progress of a run, and the possible next steps; *facts* are added to the JSON."""
    if account.as_json:
        workers = [asdict(one) for one in found.workers]
        speeds = {"rate": round(found.rate, 1), "limit": found.limit}
        write_json({**_run_facts(found), **speeds, "workers": workers, **(facts or {})})
        return
    rows = [("attempts", f"{found.attempts:,}"), ("workers", f"{len(found.workers)}, {_speed(found)}")]
    if found.rolled_back:
        rows += [("rolled back", f"{found.rolled_back:,}")]
    write_report(
        f"Run {clean(found.run)}, submitted on {moment(found.started_at)}.",
        found.counts,
        *rows,
        first=[("planned", f"{found.planned:,}")],
        errors=found.errors,
        steps=_next_steps(found, account),
    )


def _next_steps(found: "FleetStatus", account: _FleetAccount) -> Iterable[str]:
    if found.cancelled is not None:
        yield f"Nothing more is started: {clean(found.cancel_reason)}."
    elif not found.fully_submitted:
        yield "It is not fully submitted: if its submit or resume was interrupted, repeat the same command."
    if not found.is_finished and not found.workers:
        yield _NO_WORKER
    if found.resumed_as is not None:
        yield f"It was resumed as run {clean(found.resumed_as)}."
    elif found.is_finished and found.unfinished and not found.is_rolling_back:
        yield f"Resume:\n  {account.command('fleet resume', found.run)}"
    if sum_of(found.counts, *_MAY_RUN) > found.rolled_back:
        yield f"Roll back:\n  {account.command('fleet stop', found.run)}"


def _speed(found: "FleetStatus") -> str:
    digits = 1 if found.limit is not None and found.limit < _LOW_LIMIT else 0
    limit = "" if found.limit is None else f" of {found.limit:,.{digits}f}"
    return f"{found.rate:,.{digits}f}{limit} requests/s"


def _write_overview(runs: "Sequence[FleetStatus]", workers: "Sequence[WorkerStatus]", *, as_json: bool) -> None:
    if as_json:
        write_json({"runs": [_run_facts(run) for run in runs], "workers": [asdict(one) for one in workers]})
        return
    if runs:
        columns = [Column("RUN", whole=True), Column("SUBMITTED", spare=True)]
        columns += map(Column, ("STREAMS", "COMPLETED", "STATUS"))
        write_table(columns, [_run_row(run) for run in runs])
    else:
        click.echo("There are no runs.")
    click.echo()
    if workers:
        columns = [Column("WORKER", whole=True), Column("SINCE", spare=True)]
        columns += map(Column, ("BATCHES", "COMPLETED", "REQUESTS/S", "STATUS"))
        write_table(columns, [_worker_row(worker) for worker in workers])
    else:
        click.echo("No active workers.")


def _run_row(run: "FleetStatus") -> Sequence[str]:
    status = run.cancelled or ("finished" if run.is_finished else "running")
    return run.run, moment(run.started_at), f"{run.planned:,}", f"{run.completed:,}", status


def _worker_row(worker: "WorkerStatus") -> Sequence[str]:
    numbers = f"{worker.active_batches:,}", f"{worker.completed:,}", f"{worker.rate:,.0f}"
    return worker.name, moment(worker.started_at), *numbers, "draining" if worker.draining else "active"


def _run_facts(found: "FleetStatus") -> dict[str, object]:
    facts = asdict(found, filter=lambda attribute, _: attribute.name != "workers")
    return {**facts, "is_finished": found.is_finished}
