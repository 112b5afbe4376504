"""One picture for each family: bars for the medians, a thin line from the least to the most."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import Section, Series
from benchmarks.table import number

_OURS, _OTHER, _INK = "#1f6f8b", "#c4cdd3", "#333333"
_WIDTH, _BAR, _FRAME = 8.0, 0.32, 0.9  # inches
_OWN_WORDS = ("this client", "MediaReceiver", "import signalwire_streams", "from signalwire_streams")


def draw(family: str, sections: Sequence[Section], directory: Path) -> Path | None:
    """Draw those sections of a family that are worth it, below each other; None where there are none."""
    shown = [section for section in sections if section.plotted and section.series]
    if not shown:
        return None
    mpl.rcParams.update(
        {
            "svg.hashsalt": family,  # the same figures give the same file
            "svg.fonttype": "none",  # texts stay texts, which is a fifth of the size
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
    # Matplotlib ends some lines with blanks, which version control complains of.
    path.write_text("\n".join(line.rstrip() for line in path.read_text("utf-8").splitlines()) + "\n", "utf-8")
    return path


def _bars(axes: Axes, section: Section) -> None:
    spreads = [section.over_yardstick(series) or series.spread for series in section.series]
    relative = section.find(section.yardstick) is not None
    places = list(range(len(spreads)))
    medians = [spread.median for spread in spreads]
    alone = not any(map(_is_ours, section.series))  # then all of it is this package's
    colours = [_OURS if alone or _is_ours(series) else _OTHER for series in section.series]
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
    return series.name.startswith(_OWN_WORDS)
