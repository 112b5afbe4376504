"""No repr shows what may be a secret: a field of such a name is hidden, or is written by a function of its own."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import attrs

import signalwire_streams

PRIVATE = {
    *("authorization", "authorization_bearer_token", "bearer_token", "bearer_tokens", "token", "tokens", "password"),
    *("key", "keys", "secrets", "parameters", "headers", "body", "fields", "document", "extra", "given", "tail"),
}
"""Names of fields that hold credentials, or text that a peer sent."""
SHOWN = {
    ("Lease", "key"),  # the name of a key in Redis
    ("PlannedRequest", "parameters"),  # the names of parameters
}
OF_REDIS = {"fleet", "redis_rate_limit"}
"""Packages whose URLs may hold the password of a Redis."""
NOT_IMPORTED = ("_cli", "adapters", "simulator", "pytest_plugin", "__main__")
"""Parts that no production code imports."""


def classes() -> Iterator[type[Any]]:
    for module in pkgutil.walk_packages(signalwire_streams.__path__, "signalwire_streams."):
        if module.name.split(".")[1] in NOT_IMPORTED:
            continue
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if found.__module__ == module.name and attrs.has(found):
                yield found


def test_private_fields_are_hidden() -> None:
    shown = {
        (kind.__name__, field.name)
        for kind in classes()
        for field in attrs.fields(kind)
        if field.repr is True
        and (field.name.strip("_") in PRIVATE or (field.name == "url" and kind.__module__.split(".")[1] in OF_REDIS))
        and re.search(r"\b(str|bytes|bytearray)\b", str(field.type))
    }
    assert shown <= SHOWN
