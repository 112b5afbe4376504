"""``signalwire-streams conferences``."""

from typing import Unpack

import click

from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams._cli.streams import get_conference, list_conferences, list_participants
from signalwire_streams._cli.options import StartFields, conference_options, start_options
from signalwire_streams.cli.streaming import Start, stop


@click.group()
def conferences() -> None:
    """List and show conferences; start and stop streams on them."""


conferences.add_command(list_conferences)
conferences.add_command(get_conference)
conferences.add_command(list_participants)


@conferences.command(
    "start-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences start-stream CONFERENCE_SID \\
      --url wss://audio.example.com/live --codec PCMU --parameter tenant=acme
""",
)
@click.argument("conference_sid")
@start_options
@conference_options
@account_options
def start_conference_stream(
    account: Account, *, conference_sid: str, codec: str | None, realtime: bool | None, **fields: Unpack[StartFields]
) -> None:
    """Copy a conference's audio to a WebSocket server.

    A lost answer is followed by another attempt under the same name, so that the stream is started once. When
    it can't be told whether it runs, that is what the error says.
    """
    Start(
        account,
        "conference",
        conference_sid,
        lambda client: client.conferences.start_stream(conference_sid, codec=codec, realtime=realtime, **fields),
    ).run()


@conferences.command(
    "stop-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams conferences stop-stream CONFERENCE_SID audit-1
""",
)
@click.argument("conference_sid")
@click.argument("stream")
@account_options
def stop_conference_stream(account: Account, *, conference_sid: str, stream: str) -> None:
    """Stop a conference's stream, given by its sid or its name."""
    stop(
        account,
        "conference",
        conference_sid,
        lambda client: client.conferences.stop_stream(conference_sid, stream),
    )
