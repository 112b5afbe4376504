"""What goes to stdout: JSON lines, tables on a terminal, plain columns into a pipe."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

import click
from attrs import frozen
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

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
