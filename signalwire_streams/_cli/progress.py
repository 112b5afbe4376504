"""Progress of a long command: a live display on a terminal, a line every few seconds into a pipe."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import frozen
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from signalwire_streams import Attempt, Operation
from signalwire_streams._cli.output import clean, is_terminal, listening_errors, logging_to, write_json, write_note

if TYPE_CHECKING:
    from signalwire_streams.page import LivePage

_Row = TypeVar("_Row")

_WINDOW = 3.0
_DRAWN_EVERY, _WRITTEN_EVERY = 0.2, 5.0
_TABLE_EVERY = 0.25
_OTHER_LINES = 3  # than rows: the titles, the last line, and that of the cursor
_SETTLING = 1.0  # seconds before an estimate of the remaining time is worth showing
_MINUTE, _HOUR = 60, 3600


class Meter:
    """Counts retries, and requests that the Space's limit counts; pass its `record` to the client as ``on_attempt``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests = self.retries = 0
        self._clock = clock
        self._recent: deque[float] = deque()
        self._started_at: float | None = None

    def record(self, attempt: Attempt) -> None:
        now = self._clock()
        if self._started_at is None:
            self._started_at = now
        self.retries += attempt.decision.is_retry
        if attempt.operation is not Operation.READ and attempt.sent != "no":
            self.requests += 1
            self._recent.append(now)

    @property
    def rate(self) -> float:
        now = self._clock()
        while self._recent and self._recent[0] < now - _WINDOW:
            self._recent.popleft()
        if self._started_at is None:
            return 0.0
        return len(self._recent) / max(min(now - self._started_at, _WINDOW), 1.0)


@frozen(kw_only=True)
class Progress:
    """Progress of a command: items done, further facts, most important first, and the seconds left, if known."""

    title: str
    done: int
    total: int
    facts: tuple[str, ...]
    left: float | None = None

    @property
    def line(self) -> str:
        return f"{self.title}: " + ", ".join(word for word in (self.count, *self.facts, self.remaining) if word)

    @property
    def count(self) -> str:
        return f"{self.done:,} of {self.total:,}"

    @property
    def remaining(self) -> str:
        return "" if self.left is None else f"{format_duration(self.left)} left"


def seconds_left(done: int, rest: int, since: float) -> float | None:
    seconds = time.monotonic() - since
    return rest * seconds / done if done and seconds > _SETTLING else None


class Display:
    """Writes lines. Where there is a live display, they go above it."""

    def __init__(self, live: Live | None = None) -> None:
        self._live = live
        self.show: Callable[[], None] = lambda: None  # what is shown repeatedly, at once

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def write(self, text: str) -> None:
        if self._live is not None and is_terminal():
            self._live.console.print(Text(text), soft_wrap=True)
        else:
            click.echo(text)

    def warn(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(Text(clean(text)), soft_wrap=True)
        else:
            write_note(clean(text))

    def update(self, drawn: RenderableType) -> None:
        if self._live is not None:
            self._live.update(drawn, refresh=True)


class Reporter:
    """Writes the output of a command that runs until a signal, and ends the command if that fails."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._display = Display()
        self._ending = asyncio.Event()
        self._output_error: OSError | None = None

    def _write(self, output: str | Mapping[str, object]) -> None:
        """Write a line or a JSON object. A full disk, or a broken pipe as in ``| head``, ends the command."""
        try:
            if isinstance(output, str):
                self._display.write(output)
            else:
                write_json(output)
        except OSError as error:
            self._output_error = self._output_error or error
            self._ending.set()

    def _raise_output_error(self) -> None:
        if self._output_error is not None:
            raise self._output_error


@contextmanager
def live_display(*, as_json: bool) -> Iterator[tuple[Display, Console]]:
    """Draw on stderr while the block runs, if stderr is a terminal, and stdout is not a terminal that gets JSON."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal or (as_json and is_terminal()):
        yield Display(), console
        return
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        yield Display(live), console


@asynccontextmanager
async def repeating(action: Callable[[], None], interval: float) -> AsyncIterator[None]:
    async def repeat() -> None:
        while True:
            await asyncio.sleep(interval)
            action()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def live_table(draw: Callable[[Console], RenderableType], *, as_json: bool) -> AsyncIterator[Display]:
    """Draw a table while the block runs, where there is a live display, and yield the display for lines above it."""
    with live_display(as_json=as_json) as (display, console):
        if not display.is_live:
            yield display
            return
        async with repeating(lambda: display.update(draw(console)), _TABLE_EVERY):
            yield display


def draw_rows(
    rows: Sequence[_Row], last_line: str, *, height: int, make_table: Callable[[Sequence[_Row]], Table]
) -> Group:
    """Draw the first rows in a table as high as the terminal, how many others there are, and a line below it."""
    room = max(height - _OTHER_LINES, 1)
    shown = rows if len(rows) <= room else rows[: max(room - 1, 1)]
    more = len(rows) - len(shown)
    lines = [*([f"and {more:,} more"] if more else []), last_line]
    return Group(
        *([make_table(shown)] if shown else []),
        *(Text(line, style="dim", no_wrap=True, overflow="crop") for line in lines),
    )


@asynccontextmanager
async def show_progress(get_progress: Callable[[], Progress], *, as_json: bool) -> AsyncIterator[Display]:
    """Show the progress of a block on stderr: live on a terminal, else as lines unless stdout gets JSON."""
    async with AsyncExitStack() as stack:
        display, _ = stack.enter_context(live_display(as_json=as_json))
        display.show = (
            (lambda: display.update(draw(get_progress())))
            if display.is_live
            else (lambda: write_note(get_progress().line))
        )
        if display.is_live:
            stack.enter_context(logging_to(display.warn, level=logging.NOTSET, with_level=True))
        if display.is_live or not as_json:
            await stack.enter_async_context(
                repeating(display.show, _DRAWN_EVERY if display.is_live else _WRITTEN_EVERY)
            )
        yield display


page_option = click.option(
    "--page",
    is_flag=False,
    flag_value=0,
    type=click.IntRange(0, 65535),
    metavar="[PORT]",
    help="Also show it in a browser on this machine: serve a page on PORT, or on a free port.",
)


@asynccontextmanager
async def live_page(
    port: int | None,
    note: Callable[[str], None],
    **shown: Any,  # noqa: ANN401  (arguments of LivePage)
) -> "AsyncIterator[LivePage | None]":
    """Serve a page for this machine while the block runs, unless the port is None. Note a link for each browser."""
    if port is None:
        yield None
        return
    from signalwire_streams.page import LivePage  # noqa: PLC0415  (only a command with a page pays for it)

    page = LivePage(**shown)
    async with AsyncExitStack() as stack:
        with listening_errors("127.0.0.1", port):
            offer = partial(_offer, note, "Page, for another browser")
            link = await stack.enter_async_context(page.serve(port=port, on_used=offer))
        _offer(note, "Page, for one browser", link)
        yield page


def _offer(note: Callable[[str], None], title: str, link: str) -> None:
    note(f"{title} on this machine: {link}")


def as_plain(text: str, *, plain: bool) -> str:
    """Return a text without what a terminal can't write that has ASCII alone."""
    return text.encode("ascii", "replace").decode() if plain else text


def draw(progress: Progress) -> Group:
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    bar = ProgressBar(total=max(progress.total, 1), completed=progress.done)
    row.add_row(progress.title, bar, progress.count, progress.remaining)
    facts = Text(", ".join(progress.facts), style="dim", no_wrap=True, overflow="ellipsis")
    # The terminal writes ^C at the cursor: after a full line, it would continue on the next one, which is not erased.
    return Group(row, facts, Text())


def format_duration(seconds: float) -> str:
    """Return a duration in words: "1 min 34 s"."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
