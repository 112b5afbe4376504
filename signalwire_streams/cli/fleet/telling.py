"""What the command line tells of runs and workers."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
from attrs import asdict

from signalwire_streams.cli.account import Account
from signalwire_streams.cli.bulk.conduct import words
from signalwire_streams._cli.output import Column, clean, write_aligned, write_json, write_table

if TYPE_CHECKING:
    from signalwire_streams.fleet import FleetStatus, WorkerStatus

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
    click.echo(f"Run {clean(found.run)} was submitted on {_moment(found.began)}.")
    rows = [("planned", f"{found.planned:,}")]
    rows += [(words(state), f"{count:,}") for state, count in found.counts.items()]
    rows += [("attempts", f"{found.attempts:,}"), ("workers", f"{len(found.workers)}, {speed(found)}")]
    if found.undone:
        rows += [("stopped again", f"{found.undone:,}")]
    write_aligned(rows, indent="  ")
    if found.errors:
        click.echo("Errors:")
        write_aligned([(f"{count:,} x", label) for label, count in list(found.errors.items())[:10]], indent="  ")
    if found.ended is not None:
        click.echo(f"It takes no further starts: {clean(found.why)}.")
    if not found.queued and found.ended is None:
        click.echo("Not all of it is with the workers: if its submit or resume was cut off, repeat that as it was.")
    if not found.over and not found.workers:
        click.echo(NO_WORKER)
    if found.resumed is not None:
        click.echo(f"What it left goes on as run {clean(found.resumed)}.")
    elif found.over and found.unfinished and not found.stopping:
        click.echo(f"Start what is left:\n  {fleet_command('resume', account.options, found.run)}")
    if sum(found.counts.get(state, 0) for state in MAY_RUN) > found.undone:
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
    state = "over" if run.over else "goes on"
    return run.run, _moment(run.began), f"{run.planned:,}", f"{run.done:,}", run.ended or state


def _worker_row(worker: "WorkerStatus") -> Sequence[str]:
    state = "draining" if worker.draining else "works"
    since, started = _moment(worker.since), f"{worker.ended:,}"
    return worker.name, since, f"{worker.in_hand:,}", started, f"{worker.rate:,.0f}", state


def _facts_of(found: "FleetStatus") -> dict[str, object]:
    facts = asdict(found, filter=lambda attribute, _: attribute.name != "workers")
    return {**facts, "over": found.over}


def _moment(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S UTC")
