"""Fast creation of frozen values, for those of which each request needs some."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from attrs import NOTHING, Factory, fields

_Fields = ParamSpec("_Fields")
_Model = TypeVar("_Model")


def fast_constructor(model: Callable[_Fields, _Model]) -> Callable[_Fields, _Model]:
    """Return a function that creates instances of a frozen attrs class, a third as expensive as the class itself.

    attrs has to set each field of a frozen instance with ``object.__setattr__``. This function sets the fields of an
    instance of a subclass that is not frozen, and then changes its class. Values are neither converted nor validated,
    and passed by keyword.
    """
    kind: Any = model
    # CPython sets attributes directly only if neither of the two is written in Python.
    plain = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    thawed = type(kind.__name__, (kind,), {"__slots__": (), **plain})
    names: dict[str, Any] = {"model": model, "thawed": thawed, "new": object.__new__}
    parameters, lines = [], []
    for attribute in fields(kind):
        name, default = attribute.name, attribute.default
        parameters.append(name if default is NOTHING else f"{name}=default_{name}")
        names[f"default_{name}"] = default
        if isinstance(default, Factory):  # type: ignore[arg-type]  # a class, for all but type checkers
            names[f"create_{name}"] = default.factory
            lines.append(f"value.{name} = create_{name}() if {name} is default_{name} else {name}")
        else:
            lines.append(f"value.{name} = {name}")
    source = f"def construct(*, {', '.join(parameters)}):\n value = new(thawed)\n "
    exec(source + "\n ".join([*lines, "value.__class__ = model", "return value"]), names)  # noqa: S102  (as attrs does)
    construct: Callable[_Fields, _Model] = names["construct"]
    return construct
