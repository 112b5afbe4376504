"""``signalwire-streams calls``."""

from collections.abc import Callable
from typing import Unpack

import click

from signalwire_streams.cli.account import ENVIRONMENT, Account, account_options
from signalwire_streams._cli.streams import get_call, list_calls
from signalwire_streams._cli.options import StartFields, start_options
from signalwire_streams.cli.streaming import Start, stop


@click.group()
def calls() -> None:
    """List and show calls; start and stop streams on them."""


calls.add_command(list_calls)
calls.add_command(get_call)


def _refuse(_: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None:
        raise click.UsageError(f"--{option.name} is for conference streams only: leave it out on a call")


def _conference_options(command: Callable[..., None]) -> Callable[..., None]:
    """Take the options that only a conference's start has, to say so."""
    for names, is_switch in ((("--codec",), False), (("--realtime/--no-realtime",), True)):
        command = click.option(
            *names, default=None, is_flag=is_switch, hidden=True, expose_value=False, callback=_refuse
        )(command)
    return command


@calls.command(
    "start-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls start-stream CALL_SID --url wss://audio.example.com/live
""",
)
@click.argument("call_sid")
@start_options
@_conference_options
@account_options
def start_call_stream(account: Account, *, call_sid: str, **fields: Unpack[StartFields]) -> None:
    """Copy a call's audio to a WebSocket server.

    That a Space refuses a second stream of the same name is documented for conferences only. So a start on a
    call whose answer was lost is not sent again: the error then says that the stream may be running.
    """
    Start(account, "call", call_sid, lambda client: client.calls.start_stream(call_sid, **fields)).run()


@calls.command(
    "stop-stream",
    epilog=f"""{ENVIRONMENT}
\b
Example:
  signalwire-streams calls stop-stream CALL_SID audit-1
""",
)
@click.argument("call_sid")
@click.argument("stream")
@account_options
def stop_call_stream(account: Account, *, call_sid: str, stream: str) -> None:
    """Stop a call's stream, given by its sid or its name."""
    stop(account, "call", call_sid, lambda client: client.calls.stop_stream(call_sid, stream))
