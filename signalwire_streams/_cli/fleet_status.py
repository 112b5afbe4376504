"""Which Redis a command goes to, and the run of one command with the fleet there."""

import asyncio
import functools
import logging
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click
from attrs import asdict

from signalwire_streams import InvalidRequestError, StreamsError
from signalwire_streams._cli.bulk_runner import Knobs, rate_option, words
from signalwire_streams._cli.options import Account, Decorator
from signalwire_streams._cli.output import Column, Misuse, clean, failure_of, write_aligned, write_json, write_table

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet, FleetStatus, WorkerStatus


_Result = TypeVar("_Result")

shared_rate_option: Decorator = rate_option(" of all workers and stops together, so say the same to all")
"""Add the option that says how fast the whole fleet goes."""

_REDIS = "SIGNALWIRE_FLEET_REDIS"

FLEET_ENVIRONMENT = f"""\b
  {_REDIS}  the Redis that the fleet shares: redis://host:6379/0,
                          rediss://user:password@host, unix:///path
"""


def redis_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--redis``, and hand the address to the command."""

    @click.option(
        "--redis",
        "url_of_redis",
        metavar="URL",
        help=f"The Redis that the fleet shares; instead of {_REDIS}, where one with a password belongs.",
    )
    @functools.wraps(command)
    def with_redis(*, url_of_redis: str | None, **fields: object) -> None:
        if url_of_redis is not None and "@" in url_of_redis and not _has_no_password(url_of_redis):
            raise click.UsageError(f"others on this machine can read a command line: put the password into {_REDIS}")
        command(url_of_redis=url_of_redis or os.environ.get(_REDIS), **fields)

    return with_redis


def _has_no_password(url: str) -> bool:
    try:
        return urlsplit(url).password is None
    except ValueError:
        return False


def the_fleet_room() -> Any:  # noqa: ANN401  (a module)
    """Import what needs the extra.

    Raises:
        Misuse: it is not installed.
    """
    # The engine's own words are for its developers; a Redis that is away is told by ours.
    logging.getLogger("docket").setLevel(logging.CRITICAL)
    try:
        return import_module("signalwire_streams.fleet")
    except ModuleNotFoundError as error:
        raise Misuse(str(error)) from None


def check_redis(url: str | None) -> str:
    """Check that an address was said.

    Raises:
        InvalidRequestError: it was not.
    """
    if not url:
        raise InvalidRequestError(f"set {_REDIS} (or --redis) to the Redis that the fleet shares")
    return url


async def paced_client(stack: AsyncExitStack, account: Account, redis: str, knobs: Knobs, **options: Any) -> Any:  # noqa: ANN401  (a client, and what it takes)
    """Give a client that shares the Space's limit, or the rate that was said, with all others of the fleet.

    Raises:
        RateLimiterError: the Redis can't be used.
    """
    shared = import_module("signalwire_streams.redis_rate_limit")
    pacer = await stack.enter_async_context(shared.RedisRateLimiter(redis, rate_limit=knobs.limit))
    return await stack.enter_async_context(account.client(rate_limiter=pacer, **options))


def with_fleet(account: Account, url: str | None, work: "Callable[[Fleet], Awaitable[_Result]]") -> _Result:
    """Do a piece of work with the fleet of an account's project.

    Raises:
        Failure: it did not succeed.
    """
    room = the_fleet_room()

    async def with_it() -> _Result:
        if not account.space or not account.project:
            raise InvalidRequestError("set SIGNALWIRE_SPACE (or --space) and SIGNALWIRE_PROJECT_ID (or --project)")
        async with room.Fleet(check_redis(url), space=account.space, project=account.project) as fleet:
            return await work(fleet)

    try:
        return asyncio.run(with_it())
    except StreamsError as error:
        raise failure_of(error, as_json=account.as_json) from None


MAY_RUN = ("started", "already_started", "unknown", "intended")
"""The states of starts whose streams may run."""

_FEW = 10

NO_WORKER = "No worker works now: start one with signalwire-streams fleet worker"


def fleet_command(verb: str, options: Sequence[str], run: str) -> str:
    """Spell a command about a run, to be pasted into a shell."""
    return shlex.join(["signalwire-streams", "fleet", verb, *options, *(["--"] if run.startswith("-") else []), run])


def write_status(found: "FleetStatus", account: Account, facts: Mapping[str, object] | None = None) -> None:
    """Write how far a run is, and what can be done about it.

    Args:
        found: the run.
        account: where the commands that are offered go, and whether JSON is wanted.
        facts: more for a program.
    """
    if account.as_json:
        speeds = {"rate": round(found.rate, 1), "limit": found.limit}
        workers = [asdict(worker) for worker in found.workers]
        write_json({**_facts_of(found), **speeds, "workers": workers, **(facts or {})})
        return
    click.echo(f"Run {clean(found.run)} was submitted on {_moment(found.started_at)}.")
    rows = [("planned", f"{found.planned:,}")]
    rows += [(words(state), f"{count:,}") for state, count in found.counts.items()]
    rows += [("attempts", f"{found.attempts:,}"), ("workers", f"{len(found.workers)}, {speed(found)}")]
    if found.rolled_back:
        rows += [("stopped again", f"{found.rolled_back:,}")]
    write_aligned(rows, indent="  ")
    if found.errors:
        click.echo("Errors:")
        write_aligned([(f"{count:,} x", label) for label, count in list(found.errors.items())[:10]], indent="  ")
    if found.cancelled is not None:
        click.echo(f"It takes no further starts: {clean(found.cancel_reason)}.")
    if not found.fully_submitted and found.cancelled is None:
        click.echo("Not all of it is with the workers: if its submit or resume was cut off, repeat that as it was.")
    if not found.is_finished and not found.workers:
        click.echo(NO_WORKER)
    if found.resumed_as is not None:
        click.echo(f"What it left goes on as run {clean(found.resumed_as)}.")
    elif found.is_finished and found.unfinished and not found.is_rolling_back:
        click.echo(f"Start what is left:\n  {fleet_command('resume', account.options, found.run)}")
    if sum(found.counts.get(state, 0) for state in MAY_RUN) > found.rolled_back:
        click.echo(f"Stop what it started:\n  {fleet_command('stop', account.options, found.run)}")


def speed(found: "FleetStatus") -> str:
    """Spell how fast the workers go."""
    digits = 1 if found.limit is not None and found.limit < _FEW else 0
    most = "" if found.limit is None else f" of {found.limit:,.{digits}f}"
    return f"{found.rate:,.{digits}f}{most} requests/s"


def write_overview(runs: "Sequence[FleetStatus]", workers: "Sequence[WorkerStatus]", *, as_json: bool) -> None:
    """Write which runs there are, and who works."""
    if as_json:
        write_json({"runs": [_facts_of(run) for run in runs], "workers": [asdict(worker) for worker in workers]})
        return
    if runs:
        columns = [Column("RUN", whole=True), Column("SUBMITTED", spare=True), Column("STREAMS"), Column("ENDED")]
        write_table([*columns, Column("STATE")], [_run_row(run) for run in runs])
    else:
        click.echo("There are no runs.")
    click.echo()
    if not workers:
        click.echo("No worker works now.")
        return
    columns = [Column("WORKER", whole=True), Column("SINCE", spare=True), Column("BATCHES"), Column("STARTED")]
    write_table([*columns, Column("REQUESTS/S"), Column("STATE")], [_worker_row(worker) for worker in workers])


def _run_row(run: "FleetStatus") -> Sequence[str]:
    state = "over" if run.is_finished else "goes on"
    return run.run, _moment(run.started_at), f"{run.planned:,}", f"{run.completed:,}", run.cancelled or state


def _worker_row(worker: "WorkerStatus") -> Sequence[str]:
    state = "draining" if worker.draining else "works"
    since, started = _moment(worker.started_at), f"{worker.completed:,}"
    return worker.name, since, f"{worker.active_batches:,}", started, f"{worker.rate:,.0f}", state


def _facts_of(found: "FleetStatus") -> dict[str, object]:
    facts = asdict(found, filter=lambda attribute, _: attribute.name != "workers")
    return {**facts, "over": found.is_finished}


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S UTC")
