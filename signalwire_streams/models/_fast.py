"""Fast creation of frozen values, for those of which each request needs some.

attrs sets each field of a frozen instance with ``object.__setattr__``, and converts and validates the defaults too. The
functions that are generated here set the fields of an instance of a subclass that is not frozen, and then change its
class. That costs a third of it without checks, and two thirds with them.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import unwrap
from typing import Any, ParamSpec, TypeVar

from attrs import NOTHING, Attribute, Factory, fields

_Fields = ParamSpec("_Fields")
_Model = TypeVar("_Model")


def fast_constructor(model: Callable[_Fields, _Model]) -> Callable[_Fields, _Model]:
    """Return a function that creates instances of a frozen attrs class.

    Values are neither converted nor validated, and passed by keyword.
    """
    kind: Any = model
    lines = [f"value.{each.name} = {_value(each, each.name)}" for each in fields(kind)]
    names = {"model": model, "new": object.__new__}
    construct: Callable[_Fields, _Model] = _function(
        kind, "", ["value = new(thawed[model])", *lines, "value.__class__ = model", "return value"], names
    )
    return construct


def fast_reader(
    model: type[_Model], keys: Mapping[str, tuple[str, Callable[..., object]]], *, texts: Callable[..., object]
) -> Callable[[Callable[[str], object], Mapping[str, object]], _Model]:
    """Return a function that creates instances of a frozen attrs class from JSON objects.

    It is passed the ``get`` of an object, and values of fields that take precedence over what that returns.

    Args:
        model: the class.
        keys: the key of a field in an object, and the function that converts its value.
        texts: the function that returns a text unchanged, so that it is not called for one.
    """
    kind: Any = model
    names: dict[str, Any] = {"model": model, "new": object.__new__, "convert": texts}
    lines = ["value = new(thawed[model])"]
    for each in fields(kind):
        name = each.name
        if name not in keys:
            lines.append(f"value.{name} = default_{name}")
            continue
        key, names[f"convert_{name}"] = keys[name]
        read = f"convert_{name}(get({key!r}), None)"
        if names[f"convert_{name}"] is texts:
            read = f"found if type(found := get({key!r})) is str else convert(found)"
        lines.append(f"value.{name} = {read}")
    lines += ["for name in known: setattr(value, name, known[name])", "value.__class__ = model", "return value"]
    read_object: Callable[[Callable[[str], object], Mapping[str, object]], _Model] = _compiled(
        kind, "get, known", lines, names
    )
    return read_object


def fast_init(model: type) -> Callable[..., None]:
    """Return an ``__init__`` for a frozen attrs class with keyword-only fields.

    It converts and validates each value that is not its field's default.
    """
    names: dict[str, object] = {}
    lines, checks = [], []
    for each in fields(model):
        name, given = each.name, each.name
        names |= {f"convert_{name}": each.converter, f"field_{name}": each}
        if each.converter is not None:
            given = f"convert_{name}({name})"
        lines.append(f"self.{name} = {_value(each, given)}")
        if each.validator is not None:
            names[f"validate_{name}"] = unwrap(each.validator)  # without `if_given`: a default is not validated
            condition = "" if each.default is NOTHING else f"if {name} is not default_{name}: "
            checks.append(f"{condition}validate_{name}(self, field_{name}, self.{name})")
    names["set_attribute"] = object.__setattr__
    first = ["model = self.__class__", "set_attribute(self, '__class__', thawed[model])"]
    init = _function(model, "self, ", [*first, *lines, *checks, "self.__class__ = model"], names)
    return wraps(model.__init__)(init)  # type: ignore[misc]  # the class is not instantiated


class _Thawed(dict[type, type]):
    """Subclasses that are not frozen."""

    def __missing__(self, model: type) -> type:
        # CPython sets attributes directly only if neither of the two is written in Python.
        plain = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
        thawed = self[model] = type(model.__name__, (model,), {"__slots__": (), **plain})
        return thawed


def _value(attribute: "Attribute[Any]", given: str) -> str:
    name, default = attribute.name, attribute.default
    if isinstance(default, Factory):  # type: ignore[arg-type]  # a class, for all but type checkers
        return f"create_{name}() if {name} is default_{name} else {given}"
    return given if default is NOTHING or given == name else f"{name} if {name} is default_{name} else {given}"


def _function(model: type, first: str, lines: list[str], names: dict[str, Any]) -> Callable[..., Any]:
    parameters = [
        each.name if each.default is NOTHING else f"{each.name}=default_{each.name}" for each in fields(model)
    ]
    return _compiled(model, f"{first}*, {', '.join(parameters)}", lines, names)


def _compiled(model: type, parameters: str, lines: list[str], names: dict[str, Any]) -> Callable[..., Any]:
    names["thawed"] = _Thawed()
    for each in fields(model):
        names[f"default_{each.name}"] = each.default
        names[f"create_{each.name}"] = getattr(each.default, "factory", None)
    exec(f"def function({parameters}):\n " + "\n ".join(lines), names)  # noqa: S102  (as attrs does)
    function: Callable[..., Any] = names["function"]
    return function
