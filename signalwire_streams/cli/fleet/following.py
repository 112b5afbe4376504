"""``signalwire-streams fleet status``, ``results`` and ``cancel``: a run as it goes on."""

import asyncio
import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
from attrs import asdict, define, field

from signalwire_streams import RateLimit
from signalwire_streams.cli.account import Account, account_options
from signalwire_streams.cli.bulk.conduct import facts_of, words
from signalwire_streams.cli.failures import FAILED
from signalwire_streams.cli.fleet.redis import redis_option, with_fleet
from signalwire_streams.cli.output import Column, clean, on_terminal, write_aligned, write_json, write_table
from signalwire_streams.cli.progress import Progress, shown

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet, FleetStatus, WorkerStatus

_WENT_WELL = ("started", "already_started")
MAY_RUN = ("started", "already_started", "unknown", "intended")
"""The states of starts whose streams may run."""

_ASKED_EVERY = 0.5
_SETTLING = 1.0
_LIMIT = RateLimit().requests / RateLimit().window


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
        self._done_before = self.status.done

    async def until_over(self, *, as_json: bool) -> "FleetStatus":
        """Show how far it is, until every start has ended."""
        async with shown(self._progress, as_json=as_json) as show:
            while not self.status.over:
                await asyncio.sleep(_ASKED_EVERY)
                self.status = await self.fleet.status(self.status.run)
            show()
        return self.status

    def _progress(self) -> Progress:
        found = self.status
        seconds = time.monotonic() - self._began
        done = found.done - self._done_before
        facts = [
            f"{found.rate:,.0f} of {_LIMIT:,.0f} requests/s",
            f"{len(found.workers)} worker{'' if len(found.workers) == 1 else 's'}",
            *(f"{count:,} {words(state)}" for state, count in found.counts.items() if state != "waiting"),
        ]
        return Progress(
            title=f"Run {clean(found.run)}" if found.ended is None else found.ended.capitalize(),
            done=found.done,
            total=found.planned,
            facts=tuple(facts),
            left=(found.planned - found.done) * seconds / done if done and seconds > _SETTLING else None,
        )


@click.command(
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
    """Show how far a run is, and who works; without a RUN only who works. No API token is needed."""

    async def work(fleet: "Fleet") -> bool:
        if run is None:
            _write_workers(await fleet.workers(), as_json=account.as_json)
            return True
        found = await fleet.status(run)
        if follow or (follow is None and on_terminal() and not account.as_json):
            found = await Following(fleet, found).until_over(as_json=account.as_json)
        if account.as_json:
            write_json({**asdict(found), "over": found.over, "rate": round(found.rate, 1)})
        else:
            _write(found, account.options)
        return not found.over or sum(found.counts.get(state, 0) for state in _WENT_WELL) == found.planned

    if not with_fleet(account, url_of_redis, work):
        raise click.exceptions.Exit(FAILED)


@click.command()
@click.argument("run")
@redis_option
@account_options
def results(account: Account, *, url_of_redis: str | None, run: str) -> None:
    """Write the outcome of each start of a run as JSON, one object per line, until the run is over."""

    async def work(fleet: "Fleet") -> None:
        async for outcome in fleet.results(run):
            write_json(facts_of(outcome))

    with_fleet(account, url_of_redis, work)


@click.command()
@click.argument("run")
@redis_option
@account_options
def cancel(account: Account, *, url_of_redis: str | None, run: str) -> None:
    """Take no further starts of a run; what runs goes on. To stop that as well, write `fleet stop` instead."""

    async def work(fleet: "Fleet") -> None:
        found = await fleet.cancel(run)
        if account.as_json:
            write_json({**asdict(found), "over": found.over, "rate": round(found.rate, 1)})
        else:
            _write(found, account.options)

    with_fleet(account, url_of_redis, work)


def fleet_command(verb: str, options: Sequence[str], run: str) -> str:
    """Spell a command about a run, to be pasted into a shell."""
    return shlex.join(["signalwire-streams", "fleet", verb, *options, *(["--"] if run.startswith("-") else []), run])


def _write(found: "FleetStatus", options: Sequence[str]) -> None:
    began = datetime.fromisoformat(found.began).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"Run {clean(found.run)} was submitted on {began}.")
    rows = [("planned", f"{found.planned:,}")]
    rows += [(words(state), f"{count:,}") for state, count in found.counts.items()]
    rows += [("attempts", f"{found.attempts:,}"), ("workers", f"{len(found.workers)}, {found.rate:,.0f} requests/s")]
    if found.undone:
        rows += [("stopped again", f"{found.undone:,}")]
    write_aligned(rows, indent="  ")
    if found.errors:
        click.echo("Errors:")
        write_aligned([(f"{count:,} x", label) for label, count in list(found.errors.items())[:10]], indent="  ")
    if found.ended is not None:
        click.echo(f"It takes no further starts: {clean(found.why)}.")
    if not found.queued:
        click.echo("Its submit was cut off: submit it again with the same --run.")
    if not found.over and not found.workers:
        click.echo("No worker works now: start one with signalwire-streams fleet worker")
    if sum(found.counts.get(state, 0) for state in MAY_RUN) > found.undone:
        click.echo(f"Stop what it started:\n  {fleet_command('stop', options, found.run)}")


def _write_workers(workers: "Sequence[WorkerStatus]", *, as_json: bool) -> None:
    if as_json:
        for worker in workers:
            write_json(asdict(worker))
        return
    if not workers:
        click.echo("No worker works now.")
        return
    columns = [Column("WORKER", whole=True), Column("HOST", spare=True), Column("SINCE"), Column("BATCHES")]
    columns += [Column("STARTED"), Column("REQUESTS/S"), Column("STATE")]
    write_table(
        columns,
        [
            (
                worker.name,
                worker.host,
                worker.since,
                f"{worker.in_hand:,}",
                f"{worker.ended:,}",
                f"{worker.rate:,.0f}",
                "draining" if worker.draining else "works",
            )
            for worker in workers
        ],
    )
