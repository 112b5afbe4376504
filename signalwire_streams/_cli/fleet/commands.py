"""``signalwire-streams fleet submit`` and ``resume``."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from signalwire_streams import PlannedRequest
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams.cli.bulk.dry_run import write_dry_run
from signalwire_streams._cli.bulk.targets import read_lines
from signalwire_streams.cli.bulk.requests import Defaults, Requests, Start
from signalwire_streams.cli.bulk.source import read_source
from signalwire_streams._cli.bulk.start import FILES, Kind, checked, live, say_nothing_to_do
from signalwire_streams.cli.failures import FAILED
from signalwire_streams._cli.fleet.render import FLEET_ENVIRONMENT, redis_option, with_fleet
from signalwire_streams.cli.fleet.telling import fleet_command, write_status
from signalwire_streams._cli.output import clean, noting, write_json
from signalwire_streams._cli.options import bulk_start_options, conference_options

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

    if not (workers_have_secrets or all(PlannedRequest.of(request).complete for request in found)):
        raise click.UsageError(
            "Redis keeps no bearer tokens, parameter values or private callbacks: start the workers with the options "
            "that give them, and write --workers-have-secrets"
        )

    since = datetime.now(UTC)

    async def work(fleet: "Fleet") -> "FleetStatus":
        return await fleet.status(await fleet.submit(found, name=run, secrets_at_workers=workers_have_secrets))

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
    is_new = datetime.fromisoformat(submitted.began) >= since.replace(microsecond=since.microsecond // 1000 * 1000)
    if account.as_json:
        write_json({"run": submitted.run, "planned": submitted.planned, "is_new": is_new})
    elif is_new:
        click.echo(f"Submitted {submitted.planned:,} streams as run {submitted.run}.")
        click.echo(f"Follow it:\n  {fleet_command('status', account.options, submitted.run)}")
        click.echo(f"Stop what it started:\n  {fleet_command('stop', account.options, submitted.run)}")
    else:
        click.echo("This run was submitted before, and is not begun anew.")
        write_status(submitted, account)
    if not is_new and (submitted.ended is not None or submitted.unfinished):
        raise click.exceptions.Exit(FAILED)
