"""The commands of ``signalwire-streams bulk``."""

import click

from signalwire_streams._cli.bulk.manage import resume, stop
from signalwire_streams._cli.bulk.start import start
from signalwire_streams.cli.bulk.status import status


@click.group()
def bulk() -> None:
    """Start streams on thousands of conferences or calls; go on after a crash; stop them all."""


bulk.add_command(start)
bulk.add_command(resume)
bulk.add_command(status)
bulk.add_command(stop)
