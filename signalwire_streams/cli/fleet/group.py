"""The commands of ``signalwire-streams fleet``."""

import click

from signalwire_streams.cli.fleet.following import cancel, results, status
from signalwire_streams.cli.fleet.stopping import stop
from signalwire_streams._cli.fleet.commands import resume, submit
from signalwire_streams.cli.fleet.worker import worker


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
