"""The live table: one line for each stream, and one for all. Pure."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress

import click
from attrs import define, field, frozen
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from signalwire_streams._cli.listen_recording import FLOOR, Row
from signalwire_streams._cli.output import bare_table, clean, on_terminal, telling
from signalwire_streams._cli.progress import spell_seconds

_BAR, _EIGHTHS = 8, " ▏▎▍▌▋▊▉"
_LOUD, _HOT = -6.0, -1.0
_SHORT = {"inbound": "in", "outbound": "out"}
_LONGEST_TRACK = 4
_MOST_LEVELS = 2
_MINUTE, _HOUR = 60, 3600
_NUMBERS = {"TIME", "FRAMES", "LOST"}
_NEEDED = {"LEVEL": 56, "FRAMES": 72, "STATE": 72}
"""So wide a terminal must be for a column, so that there is room for the sid."""
_AROUND = 3  # lines: the titles, the sum, and the one that the cursor is on


@frozen(kw_only=True)
class Sight:
    """What is to be seen.

    Attributes:
        title: what is going on.
        rows: the streams that come in now.
        ended: streams that came to their end.
        seconds: audio of all of them.
    """

    title: str
    rows: Sequence[Row]
    ended: int
    seconds: float


def draw(sight: Sight, *, width: int, height: int, plain: bool = False) -> Group:
    """Draw it.

    Args:
        sight: what is to be seen.
        width: the terminal's columns.
        height: its lines.
        plain: whether it shows ASCII only.
    """
    room = max(height - _AROUND, 1)
    shown = sight.rows if len(sight.rows) <= room else sight.rows[: max(room - 1, 1)]
    more = len(sight.rows) - len(shown)
    parts: list[Table | Text] = []
    if shown:
        parts.append(_table(shown, width, plain=plain))
    if more:
        parts.append(_line(f"and {more:,} more"))
    facts = (f"{len(sight.rows):,} live", f"{sight.ended:,} ended", f"{spell_seconds(sight.seconds)} of audio")
    parts.append(_line(f"{sight.title}: {', '.join(facts)}"))
    return Group(*parts)


def _table(rows: Sequence[Row], width: int, *, plain: bool) -> Table:
    cells: dict[str, list[Text]] = {
        # The one that gives way: half a sid will do, since all of it is told at the end.
        "STREAM": [_sid(row.sid, plain=plain) for row in rows],
        "TIME": [Text("-" if row.seconds is None else spell_time(row.seconds)) for row in rows],
        "LEVEL": [_levels(row.levels, plain=plain) for row in rows],
        "FRAMES": [Text(f"{row.frames:,}") for row in rows],
        "LOST": [Text(f"{row.lost:,}", style="red" if row.lost else "") for row in rows],
        "STATE": [Text(row.state) for row in rows],
    }
    titles = [title for title in cells if width >= _NEEDED.get(title, 0)]
    table = bare_table()
    for title in titles:
        table.add_column(title, no_wrap=title != "STREAM", justify="right" if title in _NUMBERS else "left")
    for line in zip(*(cells[title] for title in titles), strict=True):
        table.add_row(*line)
    return table


def _sid(sid: str, *, plain: bool) -> Text:
    return Text(_shown(sid, plain=plain), no_wrap=True, overflow="crop" if plain else "ellipsis")


def _levels(levels: Sequence[tuple[str, float | None]], *, plain: bool) -> Text:
    text = Text()
    for name, level in levels[:_MOST_LEVELS]:
        text.append(f"{_SHORT.get(name) or _shown(name, plain=plain)[:_LONGEST_TRACK]} ", style="dim")
        text.append(bar(level, plain=plain), style=_colour(level))
        text.append(" ")
    return text


def _shown(text: str, *, plain: bool) -> str:
    return text.encode("ascii", "replace").decode() if plain else text


def bar(level: float | None, *, plain: bool = False) -> str:
    """Draw a level in dBFS as a bar of eight characters."""
    part = 0.0 if level is None else max(0.0, min(1.0, 1 - level / FLOOR))
    if plain:
        return ("#" * round(part * _BAR)).ljust(_BAR, ".")
    whole, eighths = divmod(round(part * _BAR * len(_EIGHTHS)), len(_EIGHTHS))
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR, "·")


def spell_time(seconds: float) -> str:
    """Spell a time as clocks show it."""
    whole = int(seconds)
    minutes = f"{whole % _HOUR // _MINUTE:02}:{whole % _MINUTE:02}"
    return f"{whole // _HOUR}:{minutes}" if whole >= _HOUR else minutes


def _colour(level: float | None) -> str:
    if level is None or level < _LOUD:
        return "green"
    return "yellow" if level < _HOT else "red"


def _line(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="crop")


_DRAWN_EVERY = 0.25


@define(eq=False)
class Screen:
    """Takes lines, and keeps them apart from a table that is drawn below them."""

    _live: Live | None = field(default=None)

    @property
    def has_table(self) -> bool:
        """Whether somebody looks at a table."""
        return self._live is not None

    def say(self, text: str) -> None:
        """Say what the command is there to say."""
        if self._live is not None and on_terminal():
            self._above(self._live, text)
        else:
            click.echo(text)

    def warn(self, text: str) -> None:
        """Say what went wrong."""
        text = f"error: {clean(text)}"
        if self._live is not None:
            self._above(self._live, text)
        else:
            with suppress(BrokenPipeError):  # recording goes on, whether somebody reads this or not
                click.echo(text, err=True)

    @staticmethod
    def _above(live: Live, text: str) -> None:
        live.console.print(Text(text), soft_wrap=True)


@asynccontextmanager
async def screen(look: Callable[[], Sight], *, as_json: bool) -> AsyncIterator[Screen]:
    """Show on stderr, while the block runs, what is going on, if somebody looks at it.

    Args:
        look: says what is going on.
        as_json: whether stdout gets JSON, which no table may disturb.
    """
    console = Console(stderr=True)
    is_live = console.is_terminal and not console.is_dumb_terminal and not (as_json and on_terminal())
    with ExitStack() as stack:
        ticking, live = None, None
        if is_live:
            live = stack.enter_context(
                Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            )
            ticking = asyncio.create_task(_tick(live, look))
        shown = Screen(live)
        # Its control characters are taken out, too.
        stack.enter_context(telling("signalwire_streams.receiver", shown.warn))
        try:
            yield shown
        finally:
            if ticking is not None:
                ticking.cancel()
                await asyncio.wait([ticking])


async def _tick(live: Live, look: Callable[[], Sight]) -> None:
    while True:
        console = live.console
        width, height = console.size
        live.update(draw(look(), width=width, height=height, plain=console.options.ascii_only), refresh=True)
        await asyncio.sleep(_DRAWN_EVERY)
