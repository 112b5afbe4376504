"""What goes wrong, as a person or a program reads it: one line on stderr, one JSON object on stdout."""

from collections.abc import Mapping
from typing import IO, Any

import click
from attrs import asdict

from signalwire_streams import InvalidRequestError, StreamsError
from signalwire_streams._cli.output import clean, write_json
from signalwire_streams.cli.wording import for_command_line

FAILED, MISUSE, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 2, 130, 141, 143
"""The exit codes; the last three are 128 and the signal's number, as a shell has it."""


class Failure(click.ClickException):
    """What kept a command from succeeding, on its way to the user.

    Args:
        message: one line for a person.
        facts: the same for a program, or None when the command was not asked for JSON.
    """

    exit_code = FAILED

    def __init__(self, message: str, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self._facts = facts

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it."""
        click.echo(f"error: {clean(self.message)}", file=file, err=file is None)
        self.write_facts()

    def write_facts(self) -> None:
        """Write the JSON object, if the command was asked for JSON."""
        if self._facts is not None:
            write_json(self._facts)


class Misuse(Failure):
    """What the user wrote can't be right; nothing was sent."""

    exit_code = MISUSE


class Interruption(Failure):
    """Ctrl-C ended the command.

    Args:
        message: what it may have left behind, or nothing.
        facts: more for a program than the message.
        as_json: whether the command was asked for JSON.
    """

    exit_code = INTERRUPTED

    def __init__(self, message: str = "", facts: Mapping[str, object] | None = None, *, as_json: bool) -> None:
        known = {"error": "Interrupted", "status": None, "code": None, "message": message or "interrupted"}
        super().__init__(message, {**known, **(facts or {})} if as_json else None)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what it may have left behind."""
        if self.message:
            click.echo(clean(self.message), file=file, err=file is None)
        self.write_facts()


def failure_of(error: StreamsError, *, as_json: bool) -> Failure:
    """Make a failure of what the library raised; none of its attributes is a secret."""
    message = for_command_line(str(error))
    facts = {"error": type(error).__name__, "status": None, "code": None, **asdict(error), "message": message}
    kind = Misuse if isinstance(error, InvalidRequestError) else Failure
    return kind(message, facts if as_json else None)


def say_misuse(error: click.UsageError) -> None:
    """Say in one line what is wrong with the command line, and where to read how it goes."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    hint = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
    click.echo(f"error: {clean(error.format_message())}{hint}", err=True)
