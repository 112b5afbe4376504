"""Fault rules as they are written on the command line: ``KIND[:key=value[,key=value...]]``."""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from attrs import frozen

from signalwire_streams.simulator import Faults


@frozen
class FaultSpec:
    """A fault rule, read but not yet checked against what its kind takes.

    Attributes:
        kind: what happens.
        options: when, and how.
    """

    kind: str
    options: Mapping[str, Any]

    def add_to(self, faults: Faults) -> None:
        """Add the rule.

        Raises:
            ValueError: the kind is unknown, or an option does not fit it.
        """
        faults.add(self.kind, **self.options)


def read_fault(spec: str) -> FaultSpec:
    """Read one spec.

    Raises:
        ValueError: it is not spelled as a spec is.
    """
    kind, separator, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for pair in rest.split(",") if separator else ():
        key, equals, text = pair.partition("=")
        if not equals or not text:
            raise ValueError(f"{pair!r} is no option: write it as key=value, with a comma between two")
        read = _READERS.get(key)
        if read is None:
            raise ValueError(f"{key!r} is no option: write one of {', '.join(_READERS)}")
        name = _NAMES.get(key, key)
        if name in options:
            raise ValueError(f"{key} is given twice")
        try:
            options[name] = read(text)
        except ValueError as error:
            raise ValueError(f"{key} must be {error}, not {text!r}") from None
    return FaultSpec(kind, options)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0 or not isfinite(seconds):
        raise ValueError("a number of seconds")
    return seconds


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("true or false")
    return text == "true"


_READERS: Mapping[str, Callable[[str], object]] = {
    "on": str,
    "target": str,
    "times": _whole,
    "one_in": _whole,
    "per_target": _whole,
    "created": _flag,
    "seconds": _seconds,
    "read_body": _flag,
    "status": _whole,
    "body": str,
    "code": _whole,
    "retry_after": str,
    "location": str,
    "as": str,
    "after": _whole,
    "every": _whole,
    "frames": _whole,
}
_NAMES = {"as": "as_"}  # a keyword of Python's
