"""The report: a table of plain text, the machine, and one plot per family."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.figures import Section, Series, Spread

_HEADINGS = ("", "median", "min … max", "÷ baseline", "this package ÷ it")
_TEN, _HUNDRED = 10, 100


def lines(sections: Sequence[Section]) -> Iterator[str]:
    """Yield the lines of the table: a part for each section, all as wide as the widest."""
    parts = [[_row(section, series) for series in section.series] for section in sections]
    cells = [_HEADINGS, *(row for part in parts for row in part)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    yield _aligned(_HEADINGS, widths)
    for section, part in zip(sections, parts, strict=True):
        yield ""
        yield f"{section.title} [{section.unit}]"
        yield from (_aligned(row, widths) for row in part)
        yield from (f"    ({note})" for note in section.notes)


def _row(section: Section, series: Series) -> tuple[str, ...]:
    spread = series.spread
    return (
        f"  {series.name}" + (" *" if series.name == section.baseline else ""),
        number(spread.median),
        f"{number(spread.low)} … {number(spread.high)}",
        _ratio(section.over_baseline(series)),
        _ratio(section.ours_over(series)),
    )


def number(value: float) -> str:
    """Format a figure with its significant digits."""
    if abs(value) >= _HUNDRED:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= _TEN else f"{value:.2f}"


def _ratio(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} … {spread.high:.2f})"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *others = row
    cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join([name.ljust(widths[0]), *cells]).rstrip()


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
