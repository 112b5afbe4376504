"""The report: a table of plain text, the machine, and one plot per family."""

import os
import platform
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.figures import Section, Series, Spread

_INDENT = "  "
_NOTE_WIDTH = 110
_NAME = ""
_NOTHING, _TEN, _HUNDRED = 0.005, 10, 100

_Row: TypeAlias = Mapping[str, str]
"""The cells of a line by their heading; the name of the series has none."""


def lines(sections: Sequence[Section]) -> Iterator[str]:
    """Yield the lines of the sections: a table for each, whose columns are as wide as in all others."""
    tables = [[_row(section, series) for series in section.series] for section in sections]
    widths: dict[str, int] = {}
    for row in (row for table in tables for row in table):
        for heading, cell in row.items():
            widths[heading] = max(widths.get(heading, 0), len(heading), len(cell))
    for section, table in zip(sections, tables, strict=True):
        yield ""
        yield section.title
        headings = dict.fromkeys(heading for row in table for heading in row)
        shown = [heading for heading in headings if any(row.get(heading) for row in table)]
        if table:
            yield _aligned({heading: heading for heading in shown}, shown, widths)
        yield from (_aligned(row, shown, widths) for row in table)
        yield from (line for note in section.notes for line in _wrapped(note))


def _row(section: Section, series: Series) -> _Row:
    spread = series.spread
    low, high = number(spread.low), number(spread.high)
    row: dict[str, str] = {
        _NAME: _INDENT + series.name + (" *" if series.name == section.baseline else ""),
        f"median, {section.unit}": number(spread.median),
        "min … max": f"{low} … {high}" if low != high else "",
        "÷ *": ratio(section.over_baseline(series)) if series.name != section.baseline else "",
        "ours ÷ it": ratio(section.ours_over(series)) if series.name not in (section.ours, section.baseline) else "",
        "aim": section.aims.get(series.name, ""),
    }
    for beside in section.beside:
        found = beside.find(series.name)
        if found is None:
            continue
        if beside.baseline is None:
            row[f"{beside.title}, {beside.unit}" if beside.unit else beside.title] = number(found.spread.median)
        elif series.name != beside.baseline:
            row[f"{beside.title} ÷ *"] = ratio(beside.over_baseline(found))
    return row


def number(value: float) -> str:
    """Format a figure with its significant digits."""
    if abs(value) >= _HUNDRED or value.is_integer() or abs(value) < _NOTHING:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= _TEN else f"{value:.2f}"


def ratio(spread: Spread | None) -> str:
    """Format a ratio, or nothing."""
    if spread is None:
        return ""
    low, high = f"{spread.low:.2f}", f"{spread.high:.2f}"
    return f"{spread.median:.2f}" + (f" ({low} … {high})" if low != high else "")


def _aligned(row: _Row, headings: Iterable[str], widths: Mapping[str, int]) -> str:
    cells = [(str.rjust if heading else str.ljust)(row.get(heading, ""), widths[heading]) for heading in headings]
    return _INDENT.join(cells).rstrip()


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, _NOTE_WIDTH, initial_indent=_INDENT * 2, subsequent_indent=_INDENT * 2)


_PACKAGES = (
    *("signalwire-streams", "aiohttp", "attrs", "cattrs", "fastapi", "httpx", "signalwire-sdk", "telnyx", "twilio"),
    *("uvicorn", "uvloop", "websockets", "yarl"),
)


def machine() -> dict[str, Any]:
    """Return what is needed to compare with another machine; nothing that identifies this one."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        described = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in described if line.startswith("model name"))
    return next(names, platform.processor())


_OURS, _OTHER, _INK = "#1f6f8b", "#c4cdd3", "#333333"
_WIDTH, _BAR, _FRAME = 8.0, 0.32, 0.9  # inches
_OWN_NAMES = ("this client", "MediaReceiver", "import signalwire_streams", "from signalwire_streams")


def draw(family: str, sections: Sequence[Section], directory: Path) -> None:
    """Plot the sections of a family that are to be plotted: bars for medians, thin lines from minimum to maximum."""
    import matplotlib as mpl  # noqa: PLC0415  (needed for plots only)
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown = [section for section in sections if section.plotted and section.series]
    if not shown:
        return
    mpl.rcParams.update(
        {
            "svg.hashsalt": family,  # the same figures give the same file
            "svg.fonttype": "none",  # text stays text, which is a fifth of the size
            "font.size": 9,
            "text.color": _INK,
            "axes.labelcolor": _INK,
        }
    )
    heights = [_FRAME + _BAR * len(section.series) for section in shown]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    rows = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
    for section, row in zip(shown, rows, strict=True):
        _bars(row[0], section)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{family}.svg"
    figure.savefig(path, format="svg", metadata={"Date": None})
    # Matplotlib ends some lines with blanks, which version control reports.
    path.write_text("\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines()) + "\n", "utf-8")


def _bars(axes: Any, section: Section) -> None:  # noqa: ANN401  (matplotlib's Axes)
    spreads = [section.over_baseline(series) or series.spread for series in section.series]
    relative = section.find(section.baseline) is not None
    places = list(range(len(spreads)))
    medians = [spread.median for spread in spreads]
    only_ours = not any(map(_is_ours, section.series))
    colours = [_OURS if only_ours or _is_ours(series) else _OTHER for series in section.series]
    axes.barh(places, medians, height=0.62, color=colours)
    axes.hlines(places, [spread.low for spread in spreads], [spread.high for spread in spreads], _INK, linewidth=1)
    furthest = max(spread.high for spread in spreads)
    for place, series, spread in zip(places, section.series, spreads, strict=True):
        absolute = f"{number(series.spread.median)} {section.unit}"
        text = f"{spread.median:.2f}   ({absolute})" if relative else absolute
        axes.text(max(spread.high, 0) + furthest * 0.012, place, text, va="center")
    axes.set_xlim(min(0, *(spread.low for spread in spreads)), furthest * 1.28)
    axes.set_yticks(places, [series.name for series in section.series])
    axes.invert_yaxis()
    axes.set_title(section.title, loc="left", fontsize=10)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


def _is_ours(series: Series) -> bool:
    return series.name.startswith(_OWN_NAMES)
