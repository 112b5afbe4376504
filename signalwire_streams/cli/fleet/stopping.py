"""``signalwire-streams fleet stop``."""

import asyncio
from contextlib import AsyncExitStack

import click

from signalwire_streams import BulkReport, StreamsError
from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams.cli.bulk.conduct import Conduct, words
from signalwire_streams._cli.bulk.runner import Knobs, concurrency_option
from signalwire_streams.cli.failures import failure_of
from signalwire_streams._cli.fleet.render import (
    FLEET_ENVIRONMENT,
    check_redis,
    paced_client,
    redis_option,
    shared_rate_option,
    the_fleet_room,
)
from signalwire_streams.cli.fleet.telling import MAY_RUN, fleet_command
from signalwire_streams._cli.output import write_aligned, write_json
from signalwire_streams._cli.progress import Meter, spell_seconds


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
