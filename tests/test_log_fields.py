"""What a log line names is also an attribute of its record, for structured logs."""

import ast
from pathlib import Path

import pytest

import signalwire_streams

_LEVELS = {"debug", "info", "warning", "error", "exception", "log"}
_FIELDS = {"session.label": "stream", "sid": "kind", "self.attempt": "attempt"}  # a sid's field is that of its kind
_PACKAGE = Path(signalwire_streams.__file__).parent


def _log_calls() -> list[tuple[str, ast.Call]]:
    return [
        (f"{path.relative_to(_PACKAGE)}:{node.lineno}", node)
        for path in _PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _LEVELS
        and ast.unparse(node.func.value).lower().endswith("_log")
    ]


@pytest.mark.parametrize(("shown", "field"), _FIELDS.items())
def test_each_line_that_names_something_has_it_as_an_attribute(shown: str, field: str) -> None:
    calls = [
        (place, {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords})
        for place, call in _log_calls()
        if any(ast.unparse(each).removeprefix("self._") == shown for each in call.args[1:])
    ]
    assert calls
    known = {field, "log_fields"}
    assert [place for place, options in calls if not any(each in options.get("extra", "") for each in known)] == []
