"""The fields of a request's body, form or JSON (pure)."""

import json
from typing import Final
from urllib.parse import unquote_plus

from attrs import field, frozen

__all__ = ["Fields", "read_fields"]

_FORM: Final = "application/x-www-form-urlencoded"
_JSON: Final = "application/json"


@frozen
class Fields:
    """A body's fields by their wire names, or the problem that kept it from being read."""

    values: dict[str, str] = field(factory=dict, repr=False)
    problem: str | None = None


def read_fields(content_type: str, body: bytes) -> Fields:
    """Read a body.

    Forms are documented (https://signalwire.com/docs/compatibility-api/); JSON is what the vendor's own SDK sends,
    booleans and numbers included. Of a repeated field the last counts.
    """
    if not body:
        return Fields()
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == _FORM:
        return _read_form(body)
    if media_type == _JSON:
        return _read_json(body)
    return Fields(problem=f"Content-Type must be {_FORM} or {_JSON}, not {media_type or 'missing'}")


def _read_form(body: bytes) -> Fields:
    # By hand, since every start comes this way and urllib's parse_qsl takes three times as long.
    values: dict[str, str] = {}
    try:
        for pair in body.decode().split("&"):
            name, _, value = pair.partition("=")
            if pair:
                values[_unquoted(name)] = _unquoted(value)
    except UnicodeDecodeError:
        return Fields(problem="The form is not UTF-8")
    return Fields(values)


def _unquoted(text: str) -> str:
    if "%" in text or "+" in text:
        return unquote_plus(text, errors="strict")
    return text


def _read_json(body: bytes) -> Fields:
    try:
        document = json.loads(body)
    except ValueError:
        return Fields(problem="The body is not valid JSON")
    if not isinstance(document, dict):
        return Fields(problem="The body must be a JSON object")
    values: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, bool):
            values[name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            values[name] = str(value)
        elif value is not None:
            return Fields(problem=f"{name} must be a text, a number or a boolean")
    return Fields(values)
