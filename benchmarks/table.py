"""The figures as one table of plain text."""

from collections.abc import Iterator, Sequence

from benchmarks.figures import Section, Series, Spread

_HEADINGS = ("", "median", "min … max", "÷ yardstick", "this package ÷ it")
_TEN, _HUNDRED = 10, 100


def lines(sections: Sequence[Section]) -> Iterator[str]:
    """Give the lines of the table: a part for each section, all as wide as the widest."""
    parts = [[_row(section, series) for series in section.series] for section in sections]
    cells = [_HEADINGS, *(row for part in parts for row in part)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    yield _spaced(_HEADINGS, widths)
    for section, part in zip(sections, parts, strict=True):
        yield ""
        yield f"{section.title} [{section.unit}]"
        yield from (_spaced(row, widths) for row in part)
        yield from (f"    ({note})" for note in section.notes)


def _row(section: Section, series: Series) -> tuple[str, ...]:
    name = f"  {series.name}" + (" *" if series.name == section.yardstick else "")
    spread = series.spread
    return (
        name,
        number(spread.median),
        f"{number(spread.low)} … {number(spread.high)}",
        _ratio(section.over_yardstick(series)),
        _ratio(section.ours_over(series)),
    )


def number(value: float) -> str:
    """Spell a figure with the digits that mean something."""
    if abs(value) >= _HUNDRED:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= _TEN else f"{value:.2f}"


def _ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} … {spread.high:.2f})"


def _spaced(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *others = row
    cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join([name.ljust(widths[0]), *cells]).rstrip()
