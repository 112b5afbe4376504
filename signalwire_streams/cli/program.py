"""The whole command line, and its run."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO, cast

import click

from signalwire_streams.cli.failures import INTERRUPTED, PIPE_CLOSED, say_misuse

_NAME = "signalwire-streams"
_ROOMS = {
    "bulk": "bulk.group",
    "callbacks": "callbacks",
    "calls": "calls",
    "conferences": "conferences",
    "demo": "demo",
    "fleet": "fleet.group",
    "listen": "listen.command",
    "simulate": "simulate",
}


class _Program(click.Group):
    """The commands, each imported when it is asked for: all of them together take half a second."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Name the commands."""
        return list(_ROOMS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Fetch a command."""
        if name not in _ROOMS:
            return None
        return cast("click.Command", getattr(import_module(f"signalwire_streams.cli.{_ROOMS[name]}"), name))

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and end quietly on Ctrl-C and where the reader has had enough, as in ``| head``.

        Neither is left to click, which would write an empty line, or say that the command failed.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _discard_output()
            raise click.exceptions.Exit(PIPE_CLOSED) from None


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Without an account:
  signalwire-streams demo        1,000 streams started and stopped under faults
  signalwire-streams simulate    a Space of your own, on this machine
  signalwire-streams listen      a WebSocket server that records streams

\b
Exit codes:
  0 all well    1 something failed    2 misuse    130 interrupted
  141 the reader of a pipe left    143 told to end
""",
)
@click.version_option(package_name=_NAME, prog_name=_NAME)
def program() -> None:
    """Start and stop SignalWire audio streams, never twice."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: instead of the process's own.

    Returns:
        The exit code.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a room's name may hold what the terminal can't show
    try:
        code = _run(arguments)
        _flush()
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(program.main(args=arguments, prog_name=_NAME, standalone_mode=False) or 0)
    except click.UsageError as error:
        say_misuse(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED


def _open_streams() -> list[TextIO]:
    """Give stdout and stderr; each is None where the shell closed it, as with ``>&-``."""
    streams: Sequence[TextIO | None] = (sys.stdout, sys.stderr)
    return [stream for stream in streams if stream is not None]


def _flush() -> None:
    for stream in _open_streams():
        stream.flush()


def _discard_output() -> None:
    """Let what is still buffered go nowhere: Python flushes it at exit, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in _open_streams():
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
