"""The whole command line, and its run."""

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TextIO, cast

import click

from signalwire_streams._cli.output import (
    FAILED,
    INTERRUPTED,
    PIPE_CLOSED,
    clean,
    logging_to_stderr,
    say_misuse,
    verbose_option,
    write_note,
)

_NAME = "signalwire-streams"
_MODULES = {
    "bulk": "bulk",
    "callbacks": "callbacks",
    "calls": "streams",
    "conferences": "streams",
    "demo": "demo",
    "fleet": "fleet",
    "listen": "listen",
    "simulate": "simulate",
}


class _OutputError(Exception):
    """The output can't be written. It is no OSError, because click treats some of those as its own.

    Attributes:
        cause: what the system said, with notes of the command.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _output_errors() -> Iterator[None]:
    """Raise an `_OutputError` for output that can't be written; any other OSError is a bug and stays one."""
    try:
        yield
    except OSError as error:
        # The stream can't be asked: Python drops its buffer when a write fails, and the next flush succeeds.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if isinstance(error, BrokenPipeError) or frame.f_code in {click.echo.__code__, _flush.__code__}:
            raise _OutputError(error) from error
        raise


class _Program(click.Group):
    """The commands, each imported when it is asked for: all of them together take half a second."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Name the commands."""
        return list(_MODULES)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Fetch a command."""
        if name not in _MODULES:
            return None
        return cast("click.Command", getattr(import_module(f"signalwire_streams._cli.{_MODULES[name]}"), name))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Parse the command line, which is where click prints ``--help``."""
        with _output_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Ctrl-C ends it quietly; click would write an empty line."""
        try:
            with _output_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None


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
@verbose_option
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
    with logging_to_stderr():
        try:
            with _output_errors():
                code = _run(arguments)
                _flush()
        except _OutputError as error:
            return _end_without_output(error.cause)
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


def _end_without_output(error: OSError) -> int:
    """Say on stderr why there is no output, with what the command noted. A closed pipe alone is no failure."""
    notes = "".join(f"; {clean(note)}" for note in getattr(error, "__notes__", ()))
    is_pipe = isinstance(error, BrokenPipeError)
    if notes or not is_pipe:
        write_note(f"error: the output can't be written: {error.strerror}{notes}")
    # Python flushes what is still buffered at exit, and would complain.
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    return PIPE_CLOSED if is_pipe else FAILED
