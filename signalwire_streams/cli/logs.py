"""What the library logs, told where a display would be torn by it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Teller(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell(self._words(record))
        except Exception:  # noqa: BLE001  (a display that broke is no matter of whoever logs)
            self.handleError(record)

    @staticmethod
    def _words(record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        return record.getMessage() + why


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
