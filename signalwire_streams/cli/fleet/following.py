"""``signalwire-streams fleet status``, ``results`` and ``cancel``: a run as it goes on."""

import asyncio
import time
from typing import TYPE_CHECKING

import click
from attrs import define, field

from signalwire_streams.cli.account import Account, account_options
from signalwire_streams.cli.bulk.conduct import facts_of, words
from signalwire_streams.cli.failures import FAILED
from signalwire_streams._cli.fleet.render import redis_option, with_fleet
from signalwire_streams.cli.fleet.telling import NO_WORKER, speed, write_overview, write_status
from signalwire_streams._cli.output import clean, on_terminal, write_json
from signalwire_streams._cli.progress import Progress, shown

if TYPE_CHECKING:
    from signalwire_streams.fleet import Fleet, FleetStatus

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
            speed(found),
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
        return not found.over or sum(found.counts.get(state, 0) for state in _WENT_WELL) == found.planned

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
        if not found.over and not found.workers:
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
        state = "cancelled" if before.ended is not None else "finished" if before.over else "running"
        if not account.as_json:
            click.echo(_FOUND[state].format(run=clean(run)))
        write_status(found, account, {"state_before": state})

    with_fleet(account, url_of_redis, work)
