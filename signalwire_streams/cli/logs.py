"""What the library logs, on stderr: one line per record, above a display where one is drawn."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from signalwire_streams._cli.output import clean, write_note

_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)

_LIBRARY = logging.getLogger("signalwire_streams")
OUTCOMES, RATE_LIMIT = "signalwire_streams.outcome", "signalwire_streams.rate_limit"
_shown_elsewhere: list[str] = []
"""Names of loggers whose records a display shows."""


class _Handler(logging.Handler):
    def __init__(self, write: Callable[[str], None], level: int, *, with_level: bool) -> None:
        super().__init__(level)
        self._write = write
        self._with_level = with_level

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if self._with_level else ""
            self._write(level + self._words(record))
        except Exception:  # noqa: BLE001  (a display that broke is no matter of whoever logs)
            self.handleError(record)

    @staticmethod
    def _words(record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        return record.getMessage() + why


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write what the library logs to stderr while the block runs: warnings, or everything after ``--verbose``."""

    def is_shown_here(record: logging.LogRecord) -> bool:
        return not any(f"{record.name}.".startswith(f"{name}.") for name in _shown_elsewhere)

    handler = _Handler(lambda line: write_note(clean(line)), logging.NOTSET, with_level=True)
    handler.addFilter(is_shown_here)
    level = _LIBRARY.level
    _LIBRARY.addHandler(handler)
    try:
        yield
    finally:
        _LIBRARY.removeHandler(handler)
        _LIBRARY.setLevel(level)


@contextmanager
def telling(
    name: str, tell: Callable[[str], None], *, level: int = logging.WARNING, with_level: bool = False
) -> Iterator[None]:
    """Pass what a logger and its children log to a display instead of to stderr while the block runs.

    Args:
        name: the logger.
        tell: shows one record.
        level: the lowest level to pass on.
        with_level: whether the line begins with the record's level.
    """
    handler = _Handler(tell, level, with_level=with_level)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    _shown_elsewhere.append(name)
    try:
        yield
    finally:
        _shown_elsewhere.remove(name)
        logger.removeHandler(handler)


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Drop the warnings of loggers while the block runs, unless ``--verbose`` asks for everything.

    It is for what the command reports itself.
    """
    loggers = [] if _LIBRARY.level == logging.DEBUG else [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show_everything(_: click.Context, __: click.Parameter, value: bool) -> None:  # noqa: FBT001  (click's signature)
    if value:
        _LIBRARY.setLevel(logging.DEBUG)


def verbose_option(command: _Command) -> _Command:
    """Add ``--verbose`` to a command."""
    add = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_show_everything,
        help="Log retries and more to stderr.",
    )
    return add(command)
