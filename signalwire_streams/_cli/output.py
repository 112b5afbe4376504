"""Output of all commands: JSON lines, tables, logs on stderr, and errors with their exit codes."""

import json
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, Any

import click
from attrs import asdict, frozen
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from signalwire_streams import InvalidRequestError, StreamsError

FAILED, USAGE_ERROR, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 2, 130, 141, 143
"""Exit codes; the last three are 128 plus the number of a signal, as in a shell."""

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
_BOOLEANS = re.compile(r"must be True or False(, not (True|False))?| (True|False) is unknown")
_PHRASES = (
    ("pass the values as parameters={...}", "pass each value as --parameter NAME=VALUE"),
    ("pass authorization_bearer_token=... instead", "pass the token with --bearer-token-file instead"),
    ("name and unnamed=True contradict each other", "a name and --unnamed contradict each other"),
    ("write its value as a str", "write its value as a string"),
    ("must be a mapping of names to values", "must be an object"),
    ("must be a str", "must be a string"),
    ("with that name and may_be_running=True", "with --name and --may-be-running"),
    ("may_be_running=True needs", "--may-be-running needs"),
    ("pass it as name=...", "pass it as --name"),
    ("pass name=", "pass --name "),
    ("pass project= and token= instead", "set SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN instead"),
    ("and the token as token=", "and the token in SIGNALWIRE_API_TOKEN"),
)


def for_command_line(message: str) -> str:
    """Replace Python's terms in a message of the library with those of the command line."""
    message = _TYPE.sub(lambda found: f"{found[1].removesuffix(' of type')} {_JSON_TYPES[found[2]]}", message)
    message = _BOOLEANS.sub(lambda found: found[0].lower(), message)
    for python, words in _PHRASES:
        message = message.replace(python, words)
    return message


def clean(text: object) -> str:
    """Return text of a peer as one line without control and escape characters."""
    printable = (character if character.isprintable() else " " for character in str(text))
    return " ".join("".join(printable).split())


def in_words(status: str) -> str:
    """Return a machine word as people write it: ``not_attempted`` as "not attempted"."""
    return status.replace("_", " ")


def is_terminal() -> bool:
    return sys.stdout.isatty()


def write_json(facts: Mapping[str, object]) -> None:
    click.echo(json.dumps(facts))


def write_note(text: str) -> None:
    """Write a line to stderr. A stderr that cannot be written, such as a full disk, ends no command."""
    with suppress(OSError):
        click.echo(text, err=True)


def moment(text: str) -> str:
    """Return a time of a journal or a fleet in readable form; an invalid one is returned as it is."""
    with suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo is None else time.astimezone(UTC)).strftime("%Y-%m-%d %H:%M:%S UTC")
    return clean(text)


@contextmanager
def noting(text: str, *, also_for_pipes: bool = False) -> Iterator[None]:
    """Add a note, for stderr, to the error of a block whose output can't be written: facts that must not be lost."""
    try:
        yield
    except OSError as error:
        if also_for_pipes or not isinstance(error, BrokenPipeError):
            error.add_note(text)
        raise


_GAP = "  "
_EMPTY = "-"
_UNLIMITED = 10_000
_MIN_WIDTH = 60
"""Minimum width: below it, lines wrap instead of cutting a sid."""

_MAX_ERRORS = 10
_DETAIL = " " * 6


@frozen
class Column:
    """A column of a table: ``whole`` cells are never cut; a ``spare`` column is dropped on a narrow terminal."""

    title: str
    whole: bool = False
    spare: bool = False


def write_table(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> None:
    """Write a table, cut to fit a terminal, uncut elsewhere; a cell that is None or empty is a dash."""
    cells = [[clean("" if cell is None else cell) or _EMPTY for cell in row] for row in rows]
    if not is_terminal() or Console().width < _MIN_WIDTH:
        write_aligned([[column.title for column in columns], *cells])
        return
    console = Console()
    table = _table(columns, cells, range(len(columns)))
    unlimited = console.options.update(max_width=_UNLIMITED)
    if Measurement.get(console, unlimited, table).maximum > console.width:
        table = _table(columns, cells, [index for index, column in enumerate(columns) if not column.spare])
    write_rich(table)


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    table = bare_table()
    for index in shown:
        column = columns[index]
        width = max(cell_len(row[index]) for row in rows) if column.whole and rows else None
        table.add_column(column.title, width=width)
    for row in rows:
        table.add_row(*(Text(row[index], no_wrap=True, overflow="ellipsis") for index in shown))
    return table


def write_aligned(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    rows = list(rows)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + _GAP.join(padded).rstrip())


def write_report(
    headline: str,
    counts: Mapping[str, int],
    *rows: tuple[str, str],
    first: Sequence[tuple[str, str]] = (),
    errors: Mapping[str, int],
    details: Callable[[str], Iterable[str]] = lambda _: (),
    steps: Iterable[str],
) -> None:
    """Write the state of a run: its items by status, its most frequent errors with details, and possible next steps.

    Rows of further numbers come after the counts, or first.
    """
    click.echo(headline)
    found = [(clean(in_words(status)), f"{count:,}") for status, count in counts.items() if count]
    write_aligned([*first, *found, *rows], indent="  ")
    width = Console().width if is_terminal() else _UNLIMITED
    if errors:
        click.echo("Errors:")
    for label, count in list(errors.items())[:_MAX_ERRORS]:
        click.echo(f"  {count:,} x {clean(label)}")
        for line in details(label):
            click.echo(textwrap.fill(line, width, initial_indent=_DETAIL, subsequent_indent=_DETAIL))
    for step in steps:
        click.echo(step)


def bare_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0))


def write_rich(table: Table) -> None:
    """Write a table that rich draws. Rich itself would end the process on a broken pipe."""
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(table)
    click.echo(captured.get(), nl=False)


_LIBRARY = logging.getLogger("signalwire_streams")
OUTCOMES, RATE_LIMIT = "signalwire_streams.outcome", "signalwire_streams.rate_limit"
KEEPING = "signalwire_streams.keep_streaming"


class _Handler(logging.Handler):
    def __init__(self, write: Callable[[str], None], level: int, *, with_level: bool) -> None:
        super().__init__(level)
        self._write = write
        self._with_level = with_level

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if self._with_level else ""
            error = record.exc_info[1] if record.exc_info else None
            cause = "" if error is None else f" ({type(error).__name__}: {error})"
            self._write(level + record.getMessage() + cause)
        except Exception:  # noqa: BLE001  (a broken display must not break the code that logs)
            self.handleError(record)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write the library's log to stderr while the block runs: warnings, or everything after ``--verbose``."""
    with ExitStack() as undo:
        undo.callback(_LIBRARY.setLevel, _LIBRARY.level)
        undo.enter_context(logging_to(lambda line: write_note(clean(line)), level=logging.NOTSET, with_level=True))
        yield


@contextmanager
def logging_to(
    write: Callable[[str], None], *, name: str = _LIBRARY.name, level: int = logging.WARNING, with_level: bool = False
) -> Iterator[None]:
    """Pass the log of a logger and its children to a display, and not to stderr, while the block runs."""
    logger = logging.getLogger(name)
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers = [_Handler(write, level, with_level=with_level)]
    logger.propagate = logger is _LIBRARY
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagates


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Drop the warnings of loggers, whose events the command reports itself, but not after ``--verbose``."""
    with ExitStack() as undo:
        for logger in [] if _LIBRARY.level == logging.DEBUG else map(logging.getLogger, names):
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


def _log_everything(_: click.Context, __: click.Parameter, value: bool) -> None:  # noqa: FBT001  (click's signature)
    if value:
        _LIBRARY.setLevel(logging.DEBUG)


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_log_everything,
    help="Log retries and more to stderr.",
)


class Failure(click.ClickException):
    """A failed command: one line for a person, and the JSON object for a program if the command was asked for JSON."""

    exit_code = FAILED

    def __init__(self, message: str, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self._facts = facts

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002  (click's signature)
        if text := self._line():
            write_note(text)
        if self._facts is not None:
            write_json(self._facts)

    def _line(self) -> str:
        return f"error: {clean(self.message)}"


class UsageError(Failure):
    exit_code = USAGE_ERROR


class Interruption(Failure):
    """Ctrl-C ended the command; the message and the facts say what may still be running or stored."""

    exit_code = INTERRUPTED

    def __init__(self, message: str = "", facts: Mapping[str, object] | None = None, *, as_json: bool) -> None:
        known = {"error": "Interrupted", "status": None, "code": None, "message": message or "interrupted"}
        super().__init__(message, {**known, **(facts or {})} if as_json else None)

    def _line(self) -> str:
        return clean(self.message)


def to_failure(error: StreamsError, *, as_json: bool) -> Failure:
    """Turn an error of the library into a failure; none of its attributes is a secret."""
    message = for_command_line(str(error))
    facts = {"error": type(error).__name__, "status": None, "code": None, **asdict(error), "message": message}
    kind = UsageError if isinstance(error, InvalidRequestError) else Failure
    return kind(message, facts if as_json else None)


@contextmanager
def listening_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = clean(getattr(error, "strerror", None) or error).partition(" (while ")[0]  # Python repeats the address
        address = getattr(error, "filename", None) or f"{host} port {port}"  # that of the health port, or this one
        raise Failure(f"can't listen on {address}: {reason}") from None
