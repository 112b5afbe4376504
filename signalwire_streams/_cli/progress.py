"""How a long command shows how far it is: a display on a terminal, a line now and then into a pipe."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import TypeAlias

from attrs import define, field, frozen
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from signalwire_streams import Attempt, Operation, RetryDecision
from signalwire_streams._cli.output import clean, on_terminal, telling, write_note

_WINDOW = 3.0
_DRAWN_EVERY, _WRITTEN_EVERY = 0.2, 5.0
_MINUTE, _HOUR = 60, 3600

REPEATED = frozenset(
    {
        RetryDecision.RETRY,
        RetryDecision.RETRY_UNSENT,
        RetryDecision.RETRY_IMMEDIATELY,
        RetryDecision.RETRY_IMMEDIATELY_ONCE,
        RetryDecision.RESEND,
        RetryDecision.WAIT_FOR_RATE_LIMIT,
    }
)
"""What is done after an attempt that another one of the same call follows."""


@define(eq=False)
class Meter:
    """Counts attempts as they end; give its `note` to the client as ``on_attempt``.

    Attributes:
        clock: where the time comes from, in seconds.
        requests: requests that went out and that the Space's limit counts.
        repeats: attempts that were followed by another one.
    """

    clock: Callable[[], float] = time.monotonic
    requests: int = 0
    repeats: int = 0
    _recent: deque[float] = field(init=False, factory=deque)
    _began: float | None = field(init=False, default=None)

    def note(self, attempt: Attempt) -> None:
        """Hear of an attempt."""
        now = self.clock()
        if self._began is None:
            self._began = now
        self.repeats += attempt.decision in REPEATED
        if attempt.operation is not Operation.READ and attempt.sent != "no":
            self.requests += 1
            self._recent.append(now)

    @property
    def rate(self) -> float:
        """Requests per second, over the last three."""
        now = self.clock()
        while self._recent and self._recent[0] < now - _WINDOW:
            self._recent.popleft()
        if self._began is None:
            return 0.0
        return len(self._recent) / max(min(now - self._began, _WINDOW), 1.0)


@frozen(kw_only=True)
class Progress:
    """How far a command is.

    Attributes:
        title: what it does.
        done: items that ended.
        total: items there are.
        facts: what else there is to say, most important first.
        left: seconds that the rest will take, or None where nobody knows.
    """

    title: str
    done: int
    total: int
    facts: tuple[str, ...]
    left: float | None = None

    @property
    def line(self) -> str:
        """All of it in one line."""
        left = () if self.left is None else (f"{spell_seconds(self.left)} left",)
        return f"{self.title}: " + ", ".join((f"{self.done:,} of {self.total:,}", *self.facts, *left))


Show: TypeAlias = Callable[[Progress], None]


@asynccontextmanager
async def shown(look: Callable[[], Progress], *, as_json: bool) -> AsyncIterator[Callable[[], None]]:
    """Show on stderr, while the block runs, how far it is.

    Args:
        look: says how far it is.
        as_json: whether stdout gets JSON, which no display may disturb, and no line may double.

    Yields:
        What shows it at once, for news that should not wait.
    """
    console = Console(stderr=True)
    live = console.is_terminal and not console.is_dumb_terminal and not (as_json and on_terminal())
    with ExitStack() as stack:
        show = stack.enter_context(_drawn(console)) if live else _write
        ticking = None
        if live or not as_json:
            ticking = asyncio.create_task(_tick(look, show, _DRAWN_EVERY if live else _WRITTEN_EVERY))
        try:
            yield lambda: show(look())
        finally:
            if ticking is not None:
                ticking.cancel()
                await asyncio.wait([ticking])


async def _tick(look: Callable[[], Progress], show: Show, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        show(look())


def _write(progress: Progress) -> None:
    write_note(progress.line)


@contextmanager
def _drawn(console: Console) -> Iterator[Show]:
    with (
        Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False) as live,
        telling(
            "signalwire_streams",
            lambda line: console.print(Text(clean(line)), soft_wrap=True),
            level=logging.NOTSET,
            with_level=True,
        ),
    ):
        yield lambda progress: live.update(draw(progress), refresh=True)


def draw(progress: Progress) -> Group:
    """Draw the bar and, below it, the facts."""
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    left = "" if progress.left is None else f"{spell_seconds(progress.left)} left"
    bar = ProgressBar(total=max(progress.total, 1), completed=progress.done)
    row.add_row(progress.title, bar, f"{progress.done:,} of {progress.total:,}", left)
    return Group(row, Text(", ".join(progress.facts), style="dim", no_wrap=True, overflow="ellipsis"))


def spell_seconds(seconds: float) -> str:
    """Spell a duration as people say it."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
