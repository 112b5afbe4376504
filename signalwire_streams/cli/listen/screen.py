"""Where what happens is told: a live table on a terminal, lines in a pipe."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

import click
from attrs import define, field
from rich.console import Console
from rich.live import Live
from rich.text import Text

from signalwire_streams._cli.listen.display import Sight, draw
from signalwire_streams.cli.logs import telling
from signalwire_streams._cli.output import clean, on_terminal

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
