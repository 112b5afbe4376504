"""What a file of targets says, line by line: ids, CSV or JSON lines, told apart by how the text begins."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

_SIDS = ("conference_sid", "call_sid")
_SWITCHES = {"unnamed", "realtime"}
_PARAMETER = "parameters."
_FIELDS = (
    *_SIDS,
    "url",
    "name",
    "unnamed",
    "track",
    "codec",
    "realtime",
    "status_callback",
    "status_callback_method",
    "parameters",
    "authorization_bearer_token",
)


@frozen
class Line:
    """A line that could be read.

    Attributes:
        number: its number in the file, from 1.
        fields: what it says, under the names that a request has.
    """

    number: int
    fields: Mapping[str, Any] = field(repr=False)


@frozen
class BadLine:
    """A line that is wrong.

    Attributes:
        number: its number in the file, from 1.
        why: what is wrong, and what to write instead.
        hides_more: whether lines behind it could not be read for it, so that it can't be skipped.
    """

    number: int
    why: str
    hides_more: bool = False


Read: TypeAlias = Line | BadLine


def read_lines(text: str, sid_field: str) -> Iterator[Read]:
    """Read a file of targets.

    Args:
        text: the file.
        sid_field: what a bare id is: ``conference_sid`` or ``call_sid``.
    """
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if first.startswith("{"):
        return _each(text, _from_json)
    if not {cell.strip().strip('"') for cell in first.split(",")}.isdisjoint(_SIDS):
        return _from_csv(text)
    return _each(text, lambda line: _from_id(line, sid_field))


def _each(text: str, read: Callable[[str], Mapping[str, Any] | None]) -> Iterator[Read]:
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            fields = read(line.strip()) if line.strip() else None
        except ValueError as error:
            yield BadLine(number, str(error))
            continue
        if fields is not None:
            yield Line(number, fields)


def _from_id(line: str, sid_field: str) -> Mapping[str, Any] | None:
    if line.startswith("#"):
        return None
    if "," in line or ";" in line:
        raise ValueError("this is no id: write one id per line, or CSV whose first line names its columns")
    return {sid_field: line}


def _from_json(line: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {getattr(error, 'msg', 'it can not be read')}") from None
    if not isinstance(fields, dict):
        raise ValueError('this is no JSON object: write it as {"conference_sid": "..."}')  # noqa: TRY004  (of a text)
    _check_names(fields, ", ".join(_FIELDS))
    return {name: value for name, value in fields.items() if value is not None}


def _from_csv(text: str) -> Iterator[Read]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: Sequence[str] = ()
    began = 1
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = rows.line_num > began or "unexpected end" in str(error)
            why = "a quote opens here and is never closed" if is_open else f"this is no CSV: {error}"
            yield BadLine(began, why, hides_more=is_open or not header)
            began = rows.line_num + 1
            continue
        number, began = began, rows.line_num + 1
        try:
            if not header:
                header = _header(cells)
            elif any(cell.strip() for cell in cells):
                yield Line(number, _row(header, cells))
        except ValueError as error:
            yield BadLine(number, str(error), hides_more=not header)
            if not header:
                return


def _header(cells: Sequence[str]) -> Sequence[str]:
    names = [cell.strip() for cell in cells]
    if not any(names):
        return ()
    known = [name for name in names if not (name.startswith(_PARAMETER) and name != _PARAMETER)]
    columns = ", ".join(field for field in _FIELDS if field != "parameters") + ", parameters.NAME"
    _check_names({name: None for name in known if name != "parameters"}, columns)
    if "parameters" in known:
        raise ValueError("a parameter has a column of its own: write it as parameters.NAME")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the column {twice[0]} is there twice")
    return names


def _row(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, Any]:
    if len(cells) != len(header):
        raise ValueError(f"this line has {len(cells)} columns, and the first one names {len(header)}")
    fields: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    for name, cell in zip(header, cells, strict=True):
        value = cell.strip()
        if not value:
            continue
        if name.startswith(_PARAMETER):
            parameters[name.removeprefix(_PARAMETER)] = cell
        else:
            fields[name] = _switch(name, value) if name in _SWITCHES else value
    return fields | ({"parameters": parameters} if parameters else {})


def _switch(name: str, value: str) -> bool:
    if value not in {"true", "false"}:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value == "true"


def _check_names(fields: Mapping[str, Any], choices: str) -> None:
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown: write {choices}")
