"""``signalwire-streams demo``: the main job on an embedded Space, and what came of it."""

import asyncio

import click

from signalwire_streams import StreamsClient
from signalwire_streams.cli.demo_report import Report
from signalwire_streams.cli.demo_run import Job, simulated_space
from signalwire_streams.cli.failures import FAILED
from signalwire_streams.cli.output import clean, write_json

_SHOWN_FAILURES = 5


@click.command(
    short_help="Start and stop 200 streams on a simulated Space.",
    epilog="""\b
Examples:
  signalwire-streams demo
  signalwire-streams demo --conferences 2000 --seed 7 --json

SIGNALWIRE_SPACE, SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN are not needed: nothing leaves this machine.
""",
)
@click.option(
    "--conferences",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="N",
    help="Live conferences to find.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="N", help="Decides every id and what is spoiled."
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as one JSON object.")
def demo(*, conferences: int, seed: int, as_json: bool) -> None:
    """Start and stop a stream on 200 conferences of a simulated Space that misbehaves.

    No account is needed. The exit code is 0 only if every stream was started and stopped, and by the Space's
    own count none was doubled and none is left.
    """
    if not as_json:
        click.echo(
            f"Simulating a Space with {conferences:,} live conferences; nothing leaves this machine.\n"
            "Its faults: resets that lose the answer after a stream was started or stopped,\n"
            "503s, one 'too many requests', and every other answer is 10 ms late."
        )
    report = asyncio.run(_report(conferences, seed))
    if as_json:
        write_json(report.facts())
    else:
        report.write()
    for failure in report.job.failures[:_SHOWN_FAILURES]:
        click.echo(f"error: {clean(failure)}", err=True)
    if not report.is_good:
        raise click.exceptions.Exit(FAILED)


async def _report(conferences: int, seed: int) -> Report:
    job = Job()
    async with simulated_space(conferences, seed) as space:
        client = StreamsClient(
            space=space.base_url, project=space.project, token=space.token, on_attempt=job.attempts.append
        )
        async with client:
            await job.run(client)
        return Report.of(job, space, conferences, seed)
