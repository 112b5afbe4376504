"""Masking of secrets in local variables: a text whose ``repr`` hides it, and a decorator for what takes secrets.

pytest's ``--showlocals``, rich's tracebacks and error trackers print the ``repr`` of the local variables of each frame.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, SupportsIndex, TypeVar

from attrs import frozen

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Model = TypeVar("_Model")
_MASK = "***"
_mark_coroutine_function: Callable[[object], object] = getattr(
    inspect, "markcoroutinefunction", lambda function: function
)


class Secret(str):
    """A text whose ``repr`` hides it. All else is the text's own: it is equal to it, and is sent as it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _MASK

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return Secret(super().__getitem__(index))  # what shortens a long value shows a part of it


@frozen
class Unusable:
    """In place of a value of a wrong type, which may hold a secret all the same: the checks need its type only."""

    kind: str


def kind_of(value: object) -> str:
    """Return the name of a value's type as the caller knows it, for messages."""
    if isinstance(value, Unusable):
        return value.kind
    return "str" if isinstance(value, Secret) else type(value).__name__


def mask(value: object) -> object:
    """Return the value with a ``repr`` that hides it; a mapping keeps the names of its values."""
    if value is None or isinstance(value, Secret | Unusable):
        return value
    if isinstance(value, str):
        return Secret(value)
    if isinstance(value, Mapping):
        return {name: mask(text) for name, text in value.items()}
    return Unusable(type(value).__name__)


def _mask_url(value: object) -> object:
    """Mask an address that has a query, a fragment, a user or a password."""
    return Secret(value) if isinstance(value, str) and any(mark in value for mark in "?#@") else value


def _mask_project(value: object) -> object:
    """Mask a Project ID that has something behind a colon, where the token would be."""
    return Secret(value) if isinstance(value, str) and ":" in value else value


_MASKED_ARGUMENTS: Mapping[str, Callable[[object], object]] = {
    "authorization_bearer_token": mask,
    "parameters": mask,
    "token": mask,
    "base_url": _mask_url,
    "project": _mask_project,
    "space": _mask_url,
    "status_callback": _mask_url,
    "url": _mask_url,
}


def masks_secrets(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function whose keyword arguments may be secrets: its own frame gets them masked, by their names."""

    @wraps(function)
    def masked(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        for name in named.keys() & _MASKED_ARGUMENTS.keys():
            named[name] = _MASKED_ARGUMENTS[name](named[name])
        return function(*arguments, **named)

    if inspect.iscoroutinefunction(function):
        # As asyncio and unittest.mock know a coroutine function before Python 3.12, and as inspect does since.
        vars(masked)["_is_coroutine"] = getattr(asyncio.coroutines, "_is_coroutine", None)
        _mark_coroutine_function(masked)
    return masked


def masks_secrets_of_init(model: type[_Model]) -> type[_Model]:
    """Decorate a class whose generated ``__init__`` takes secrets."""
    model.__init__ = masks_secrets(model.__init__)  # type: ignore[method-assign]  # it has the same signature
    return model
