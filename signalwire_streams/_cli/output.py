"""What goes to stdout: JSON lines, tables on a terminal, plain columns into a pipe."""

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO, TypeVar

import click
from attrs import asdict, frozen
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from signalwire_streams import InvalidRequestError, StreamsError

_JSON_TYPES = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
    "list": "an array",
    "dict": "an object",
    "NoneType": "null",
}
_TYPE = re.compile(rf"(must be [\w ]+, not|is of type) ({'|'.join(_JSON_TYPES)})\b")
_PHRASES = (
    ("pass the values as parameters={...}", "pass each value as --parameter NAME=VALUE"),
    ("pass authorization_bearer_token=... instead", "pass the token with --bearer-token-file instead"),
    ("name and unnamed=True contradict each other", "a name and --unnamed contradict each other"),
    ("write its value as a str", "write its value as a string"),
    ("must be a mapping of names to values", "must be an object"),
    ("must be True or False, not True", "must be true or false, not true"),
    ("must be True or False, not False", "must be true or false, not false"),
    ("must be True or False", "must be true or false"),
    ("must be a str", "must be a string"),
    (" True is unknown", " true is unknown"),
    (" False is unknown", " false is unknown"),
    ("with that name and may_be_running=True", "with --name and --may-be-running"),
    ("pass project= and token= instead", "set SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN instead"),
    ("and the token as token=", "and the token in SIGNALWIRE_API_TOKEN"),
)


def for_command_line(message: str) -> str:
    """Return a message with Python's words replaced."""
    message = _TYPE.sub(_in_json_words, message)
    for python, words in _PHRASES:
        message = message.replace(python, words)
    return message


def _in_json_words(found: "re.Match[str]") -> str:
    beginning = "is" if found[1] == "is of type" else found[1]
    return f"{beginning} {_JSON_TYPES[found[2]]}"


_GAP = "  "
_NOTHING = "-"
_ENDLESS = 10_000
_NARROWEST = 60
"""Where not even a sid and a status fit, the terminal may wrap the lines: better than half a sid."""


@frozen
class Column:
    """A column of a table.

    Attributes:
        title: what stands above it.
        whole: whether its cells may never be cut.
        spare: whether it is left out of a terminal that is too narrow for the whole table.
    """

    title: str
    whole: bool = False
    spare: bool = False


def write_json(facts: Mapping[str, object]) -> None:
    """Write one JSON object on one line."""
    click.echo(json.dumps(facts))


def write_note(text: str) -> None:
    """Write a line to stderr. A stderr that can't be written, such as a full disk, ends no command."""
    with suppress(OSError):
        click.echo(text, err=True)


@contextmanager
def noting(text: str, *, also_for_pipes: bool = False) -> Iterator[None]:
    """Add a note to the error of a block whose output can't be written.

    Args:
        text: what the user must not lose; it is printed on stderr with that error.
        also_for_pipes: whether it is printed for a pipe as well whose reader closed it.
    """
    try:
        yield
    except OSError as error:
        if also_for_pipes or not isinstance(error, BrokenPipeError):
            error.add_note(text)
        raise


def clean(text: object) -> str:
    """Make foreign text fit for one line of a terminal: no line break, no control or escape character."""
    printable = (character if character.isprintable() else " " for character in str(text))
    return " ".join("".join(printable).split())


def on_terminal() -> bool:
    """Whether a person looks at stdout."""
    stdout: TextIO | None = sys.stdout  # None where the shell closed it
    return stdout is not None and stdout.isatty()


def write_table(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, cut to fit a terminal, uncut elsewhere; a cell that is None or empty is a dash."""
    cells = [[clean(cell) if cell is not None else "" for cell in row] for row in rows]
    filled = [[cell or _NOTHING for cell in row] for row in cells]
    if on_terminal() and Console().width >= _NARROWEST:
        _write_fitting(columns, filled)
    else:
        write_aligned([[column.title for column in columns], *filled])


def write_aligned(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    """Write rows in plain columns, uncut."""
    rows = list(rows)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + _GAP.join(padded).rstrip())


def bare_table(*, show_header: bool = True) -> Table:
    """Make a table without lines, which look the same in every terminal."""
    return Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), show_header=show_header)


def write_rich(table: Table) -> None:
    """Write what rich draws.

    It goes by way of click, since rich ends the process by itself when the pipe is closed.
    """
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    click.echo(captured.get(), nl=False)


def _write_fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    console = Console()
    table = _drawn(columns, rows, range(len(columns)))
    endless = console.options.update(max_width=_ENDLESS)
    if Measurement.get(console, endless, table).maximum > console.width:
        table = _drawn(columns, rows, [index for index, column in enumerate(columns) if not column.spare])
    write_rich(table)


def _drawn(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    table = bare_table()
    for index in shown:
        column = columns[index]
        width = max(cell_len(row[index]) for row in rows) if column.whole and rows else None
        table.add_column(column.title, width=width)
    for row in rows:
        table.add_row(*(Text(row[index], no_wrap=True, overflow="ellipsis") for index in shown))
    return table


_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)

_LIBRARY = logging.getLogger("signalwire_streams")
OUTCOMES, RATE_LIMIT = "signalwire_streams.outcome", "signalwire_streams.rate_limit"
_shown_elsewhere: list[str] = []
"""Names of loggers whose records a display shows."""


class _Handler(logging.Handler):
    def __init__(self, write: Callable[[str], None], level: int, *, with_level: bool) -> None:
        super().__init__(level)
        self._write = write
        self._with_level = with_level

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if self._with_level else ""
            self._write(level + self._words(record))
        except Exception:  # noqa: BLE001  (a display that broke is no matter of whoever logs)
            self.handleError(record)

    @staticmethod
    def _words(record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        return record.getMessage() + why


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write what the library logs to stderr while the block runs: warnings, or everything after ``--verbose``."""

    def is_shown_here(record: logging.LogRecord) -> bool:
        return not any(f"{record.name}.".startswith(f"{name}.") for name in _shown_elsewhere)

    handler = _Handler(lambda line: write_note(clean(line)), logging.NOTSET, with_level=True)
    handler.addFilter(is_shown_here)
    level = _LIBRARY.level
    _LIBRARY.addHandler(handler)
    try:
        yield
    finally:
        _LIBRARY.removeHandler(handler)
        _LIBRARY.setLevel(level)


@contextmanager
def telling(
    name: str, tell: Callable[[str], None], *, level: int = logging.WARNING, with_level: bool = False
) -> Iterator[None]:
    """Pass what a logger and its children log to a display instead of to stderr while the block runs.

    Args:
        name: the logger.
        tell: shows one record.
        level: the lowest level to pass on.
        with_level: whether the line begins with the record's level.
    """
    handler = _Handler(tell, level, with_level=with_level)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    _shown_elsewhere.append(name)
    try:
        yield
    finally:
        _shown_elsewhere.remove(name)
        logger.removeHandler(handler)


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Drop the warnings of loggers while the block runs, unless ``--verbose`` asks for everything.

    It is for what the command reports itself.
    """
    loggers = [] if _LIBRARY.level == logging.DEBUG else [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show_everything(_: click.Context, __: click.Parameter, value: bool) -> None:  # noqa: FBT001  (click's signature)
    if value:
        _LIBRARY.setLevel(logging.DEBUG)


def verbose_option(command: _Command) -> _Command:
    """Add ``--verbose`` to a command."""
    add = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_show_everything,
        help="Log retries and more to stderr.",
    )
    return add(command)


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
