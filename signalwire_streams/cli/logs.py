"""What the library logs, told where a display would be torn by it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Teller(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        self._tell(record.getMessage() + why)


@contextmanager
def telling(name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hand over what a logger warns of while the block runs; nobody else would keep it off the display."""
    teller = _Teller(tell)
    logger = logging.getLogger(name)
    logger.addHandler(teller)
    try:
        yield
    finally:
        logger.removeHandler(teller)
