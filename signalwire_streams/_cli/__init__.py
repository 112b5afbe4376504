"""The command line. It uses public names only, needs the extra ``cli``, and is imported by nothing else."""

import signal
from contextlib import suppress


def ignore_interrupts() -> None:
    """Ignore SIGINT: it would print a traceback and change the exit code while loop and interpreter shut down."""
    with suppress(ValueError):  # outside the main thread, which alone may set signal handlers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
