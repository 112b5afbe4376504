"""Handling of SIGINT and SIGTERM."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress


@contextmanager
def on_signals(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call a function on SIGINT and SIGTERM while the block runs, instead of their default actions."""
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        with suppress(NotImplementedError, RuntimeError):  # not on Windows, nor in other threads
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, handle, number)
                undo.callback(loop.remove_signal_handler, number)
        yield


def ignore_interrupts() -> None:
    """Ignore SIGINT, which would print a traceback and change the exit code while loop and interpreter shut down."""
    with suppress(ValueError):  # outside the main thread, which alone may set signal handlers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
