"""No repr shows what may be a secret: a field of such a name is hidden, or is written by a function of its own."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import attrs

import signalwire_streams

PRIVATE = {
    *("authorization", "authorization_bearer_token", "bearer_token", "bearer_tokens", "token", "tokens", "password"),
    *("key", "keys", "secrets", "redact", "parameters", "headers", "body", "fields", "echo", "document", "extra"),
    *("given", "tail", "cause", "problem", "userinfo", "query", "fragment"),
}
"""Names of fields that hold credentials, or text that a peer sent."""
SHOWN = {
    ("Lease", "key"),  # the name of a key in Redis
    ("LeaseReply", "tokens"),  # how many
    ("PlannedRequest", "bearer_token"),  # whether there is one
    ("PlannedRequest", "parameters"),  # the names of parameters
    ("RunRecord", "keys"),  # the names of keys in Redis
    ("VerifiedToken", "_tokens"),  # how many keys
    ("_Admission", "token"),  # its claims, without values
}
PRIVATE_URLS = {"callbacks": {"url", "target"}, "fleet": {"url"}, "redis_rate_limit": {"url"}}
"""Packages whose URLs may hold the password of a Redis, or the query of a callback; and the fields with them."""
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
        and field.name.strip("_") in PRIVATE | PRIVATE_URLS.get(kind.__module__.split(".")[1], set())
    }
    assert shown == SHOWN
