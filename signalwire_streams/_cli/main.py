"""The main program: its commands, and their exit codes."""

import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import TextIO, cast

import click

from signalwire_streams import StreamsError
from signalwire_streams._cli.options import wants_json
from signalwire_streams._cli.output import (
    BROKEN_PIPE,
    FAILED,
    INTERRUPTED,
    Failure,
    Interruption,
    clean,
    logging_to_stderr,
    to_failure,
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
    "dial": "dial",
    "fleet": "fleet",
    "keep": "keep",
    "listen": "listen",
    "simulate": "simulate",
}


class _OutputError(Exception):
    """The output cannot be written. Not an OSError, because click handles some of those itself."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _output_errors() -> Iterator[None]:
    """Raise `_OutputError` for output that cannot be written; any other OSError is a bug and stays one."""
    try:
        yield
    except OSError as error:
        # The stream cannot be asked: Python drops its buffer when a write fails, and the next flush succeeds.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if isinstance(error, BrokenPipeError) or frame.f_code in {click.echo.__code__, _flush.__code__}:
            raise _OutputError(error) from error
        raise


class _Program(click.Group):
    """The commands, each imported when it is used: all of them together take half a second."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        return cast("click.Command", getattr(import_module(f"signalwire_streams._cli.{_MODULES[name]}"), name))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        with _output_errors():  # click prints --help while it parses
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command. Every error of the library, and Ctrl-C, becomes an exit code here."""
        try:
            with _output_errors():
                return super().invoke(ctx)
        except StreamsError as error:
            raise to_failure(error, as_json=wants_json(ctx)) from None
        except KeyboardInterrupt:
            raise Interruption(as_json=wants_json(ctx)) from None


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="""\b
Without an account:
  signalwire-streams demo        start and stop 1,000 streams under faults
  signalwire-streams simulate    run a simulated Space on this machine
  signalwire-streams listen      run a WebSocket server that records streams
  signalwire-streams dial        test your own WebSocket server

\b
Exit codes:
  0 success        1 failure        2 usage error
  130 interrupted  141 broken pipe  143 terminated (SIGTERM)
""",
)
@verbose_option
@click.version_option(package_name=_NAME, prog_name=_NAME)
def program() -> None:
    """Start and stop SignalWire audio streams, without ever starting one twice."""


program.commands.update(dict.fromkeys(_MODULES, program))  # their names, for suggestions; `get_command` imports them


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default on the arguments of the process, and return the exit code."""
    with _writable_stdout(), logging_to_stderr():
        try:
            with _output_errors():
                code = _run(arguments)
                _flush()
        except _OutputError as error:
            code = _end_without_output(error.cause)
        stderr: TextIO | None = sys.stderr  # None if the shell closed it
        if stderr is not None:
            try:
                stderr.flush()
            except OSError:
                _discard(stderr)
        return code


@contextmanager
def _writable_stdout() -> Iterator[None]:
    stdout: TextIO | None = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="replace")  # a conference's name may not be encodable for the terminal
    if stdout is not None:
        yield
        return
    # The shell closed it, as with ``>&-``. Python would discard the output; here each write fails, as on a full disk.
    with os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8") as closed, redirect_stdout(closed):
        yield


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(program.main(args=arguments, prog_name=_NAME, standalone_mode=False) or 0)
    except (Failure, click.exceptions.NoArgsIsHelpError) as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        write_note(f"error: {clean(error.format_message()).removesuffix('.')}{hint}")
        return error.exit_code
    except click.Abort:
        return INTERRUPTED


def _flush() -> None:
    sys.stdout.flush()


def _end_without_output(error: OSError) -> int:
    """Print on stderr why there is no output, with the command's notes. A broken pipe alone is not a failure."""
    notes = "".join(f"; {clean(note)}" for note in getattr(error, "__notes__", ()))
    is_pipe = isinstance(error, BrokenPipeError)
    if notes or not is_pipe:
        write_note(f"error: the output can't be written: {error.strerror}{notes}")
    _discard(sys.stdout)
    return BROKEN_PIPE if is_pipe else FAILED


def _discard(stream: TextIO) -> None:
    """Discard what is still buffered, which Python flushes at exit; a failure would replace the exit code by 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
