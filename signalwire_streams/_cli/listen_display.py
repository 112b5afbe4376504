"""The live table of ``listen``: a line for each stream, with its levels and losses."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from rich.console import Group
from rich.table import Table
from rich.text import Text

from signalwire_streams._cli.listen_recording import FLOOR, StreamState
from signalwire_streams._cli.output import bare_table
from signalwire_streams._cli.progress import Display, live_display, repeating

_DRAWN_EVERY = 0.25
_BAR, _EIGHTHS = 8, " ▏▎▍▌▋▊▉"
_LOUD, _HOT = -6.0, -1.0
_SHORT = {"inbound": "in", "outbound": "out"}
_MAX_TRACK = 4
_MAX_LEVELS = 2
_NUMBERS = {"TIME", "FRAMES", "LOST"}
_MIN_WIDTHS = {"TIME": 0, "LEVEL": 56, "FRAMES": 72, "LOST": 0, "STATUS": 72}
"""The columns, and the width that a terminal needs for each, so that there is room for the sid."""

_OTHER_LINES = 3  # the titles, the sum, and the line of the cursor


@asynccontextmanager
async def live_table(look: Callable[[], tuple[Sequence[StreamState], str]], *, as_json: bool) -> AsyncIterator[Display]:
    with live_display(as_json=as_json) as (display, console):
        if not display.is_live:
            yield display
            return

        def show() -> None:
            width, height = console.size
            display.update(draw(*look(), width=width, height=height, plain=console.options.ascii_only))

        async with repeating(show, _DRAWN_EVERY):
            yield display


def draw(streams: Sequence[StreamState], last_line: str, *, width: int, height: int, plain: bool = False) -> Group:
    room = max(height - _OTHER_LINES, 1)
    shown = streams if len(streams) <= room else streams[: max(room - 1, 1)]
    more = len(streams) - len(shown)
    parts: list[Table | Text] = []
    if shown:
        parts.append(_table(shown, width, plain=plain))
    if more:
        parts.append(_line(f"and {more:,} more"))
    parts.append(_line(last_line))
    return Group(*parts)


def _table(streams: Sequence[StreamState], width: int, *, plain: bool) -> Table:
    titles = [title for title, needed in _MIN_WIDTHS.items() if width >= needed]
    table = bare_table()
    table.add_column("STREAM")  # it gives way: half a sid will do, since all of it is printed at the end
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in _NUMBERS else "left")
    for one in streams:
        sid = Text(_as_plain(one.sid, plain=plain), no_wrap=True, overflow="crop" if plain else "ellipsis")
        cells = {
            "TIME": Text("-" if one.seconds is None else str(timedelta(seconds=int(one.seconds)))),
            "LEVEL": _levels(one.levels, plain=plain),
            "FRAMES": Text(f"{one.frames:,}"),
            "LOST": Text(f"{one.lost:,}", style="red" if one.lost else ""),
            "STATUS": Text(one.status),
        }
        table.add_row(sid, *(cells[title] for title in titles))
    return table


def _levels(levels: Sequence[tuple[str, float | None]], *, plain: bool) -> Text:
    text = Text()
    for name, level in levels[:_MAX_LEVELS]:
        text.append(f"{_SHORT.get(name) or _as_plain(name, plain=plain)[:_MAX_TRACK]} ", style="dim")
        style = "green" if level is None or level < _LOUD else "yellow" if level < _HOT else "red"
        text.append(bar(level, plain=plain), style=style)
        text.append(" ")
    return text


def _as_plain(text: str, *, plain: bool) -> str:
    return text.encode("ascii", "replace").decode() if plain else text


def bar(level: float | None, *, plain: bool = False) -> str:
    part = 0.0 if level is None else max(0.0, min(1.0, 1 - level / FLOOR))
    if plain:
        return ("#" * round(part * _BAR)).ljust(_BAR, ".")
    whole, eighths = divmod(round(part * _BAR * len(_EIGHTHS)), len(_EIGHTHS))
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR, "·")


def _line(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="crop")
