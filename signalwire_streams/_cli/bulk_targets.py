"""Targets of a run, read from a file line by line: sids, CSV or JSON lines, detected by how the text begins.

CSV is read as spreadsheets write it: with ``,``, ``;`` or tabs, a ``sep=`` line, column names in any spelling, and
empty columns at the end. A cell that a spreadsheet has changed beyond repair is rejected.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import click
from attrs import field, frozen

from signalwire_streams import InvalidRequestError, StartCallStream, StartConferenceStream
from signalwire_streams._cli.options import (
    CONFERENCE_ONLY,
    FIELDS,
    STANDARD_INPUT,
    SWITCHES,
    read_input,
    token_is_on_standard_input,
)
from signalwire_streams._cli.output import clean, for_command_line
from signalwire_streams.bulk._serialization import folded

_ENCODINGS = (  # by byte order mark; UTF-32-LE's begins with UTF-16-LE's
    ("UTF-32", codecs.BOM_UTF32_LE),
    ("UTF-32", codecs.BOM_UTF32_BE),
    ("UTF-16", codecs.BOM_UTF16_LE),
    ("UTF-16", codecs.BOM_UTF16_BE),
)
_OTHER_FILES = {
    b"PK\x03\x04": "is a spreadsheet, not CSV: export it as 'CSV UTF-8'",  # .xlsx, .ods
    b"\xd0\xcf\x11\xe0": "is a spreadsheet, not CSV: export it as 'CSV UTF-8'",  # .xls
    b"\x1f\x8b": "is compressed: unpack it with gunzip",
}
_SAVE_AS = "save it as UTF-8 (in Excel: 'CSV UTF-8')"
_NAME_A_FILE = "write the name of a text file in UTF-8, or -"


def read_source(file: str) -> str:
    """Read a file, or standard input for ``-``: UTF-8, or UTF-16 or UTF-32 with a byte order mark, as Excel writes."""
    if file == STANDARD_INPUT and token_is_on_standard_input():
        raise click.UsageError("standard input can't be the FILE and the bearer token: name a file for one of them")
    content = read_input(file, clean(file), "text file in UTF-8")
    for signature, why in _OTHER_FILES.items():
        if content.startswith(signature):
            raise click.UsageError(f"{clean(file)} {why}")
    encoding = next((encoding for encoding, mark in _ENCODINGS if content.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in content[:2]:
        raise click.UsageError(
            f"{clean(file)} can't be read: it is not text, or UTF-16 or UTF-32 without a byte order mark; {_SAVE_AS}"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        why = f":{line}: can't be read: this line is not UTF-8; {_SAVE_AS}"
        if encoding != "utf-8-sig":
            why = f" can't be read, since its {encoding} is damaged: {_NAME_A_FILE}"
        raise click.UsageError(clean(file) + why) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


SIDS = ("conference_sid", "call_sid")
_PARAMETER = "parameters."
_FIELDS = (*SIDS, *(name for name in FIELDS if name not in SIDS))
_COLUMNS = ", ".join(name for name in _FIELDS if name != "parameters") + ", parameters.NAME"
_DELIMITERS = (",", ";", "\t")
_ALIASES = {"streamcodec": "codec", "streamrealtime": "realtime"}
"""The API's own names of fields, where they differ by more than case and separators."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.?)"?[,;\t]*', re.IGNORECASE)
_FORMULA = re.compile(r'="((?:[^"]|"")*)"')
_MANGLED_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?E[+-]\d{2,}", re.IGNORECASE)
_UPPER = r"(?:(?![a-z])[^\W\d_])"
_SPREADSHEET_ERROR = re.compile(
    # In any language: #N/A, #N/D!, #REF!, #¿NOMBRE?, #DIV/0!; German for #N/A; LibreOffice's.
    rf"#[¡¿]?{_UPPER}+(?:/0)?[!?]|#{_UPPER}/{_UPPER}[!?]?|#NV|#GETTING_DATA|Err:\d{{3}}"
)
_COMMENT = re.compile(r"#|#+\s.*")
_NO_COMMENT = "this is neither a sid nor a comment: begin a comment with '# '"
_NO_ID = "this is not a sid: write one sid per line, or CSV whose first line names its columns"
_NO_SID_COLUMN = f"the first line has no column conference_sid or call_sid: write {_COLUMNS}"


@frozen
class Line:
    """A line that could be read: its number in the file, from 1, and its fields under the names of a request."""

    number: int
    fields: Mapping[str, Any] = field(repr=False)


@frozen
class BadLine:
    """An invalid line; one that *hides_more* can't be skipped, since the lines after it could not be read."""

    number: int
    why: str
    hides_more: bool = False


Read: TypeAlias = Line | BadLine


def read_lines(text: str, sid_field: str) -> Iterator[Read]:
    """Read a file of targets, whose lines end in LF; *sid_field* is the field of a bare sid."""
    lines = text.split("\n")
    number, first = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, ""))
    bare = first.strip()
    if bare.startswith("{"):
        return _each(lines, _from_json)
    separator = _SEPARATOR_LINE.fullmatch(first.strip(" "))
    delimiter = separator[1] if separator is not None else _delimiter_of(first)
    if bare.startswith("["):
        why = "this is a JSON array: write one JSON object per line instead"
    elif separator is not None and (not delimiter or delimiter.isalnum() or delimiter in "\"'"):
        why = "the separator of this line can't be used: write sep=; or sep=,"
    elif delimiter:
        return _from_csv(text, delimiter, has_separator_line=separator is not None)
    elif any(delimiter in bare for delimiter in _DELIMITERS) and not bare.startswith("#"):
        why = _NO_SID_COLUMN
    else:
        return _each(lines, lambda line: _from_id(line, sid_field))
    return iter([BadLine(number, why, hides_more=True)])


def _delimiter_of(header: str) -> str:
    """Return the delimiter with which the first line names a column of sids; an empty string if there is none."""
    for delimiter in _DELIMITERS:
        with suppress(csv.Error):
            cells = next(csv.reader([header], delimiter=delimiter), [])
            if not set(map(_field_of, cells)).isdisjoint(SIDS):
                return delimiter
    return ""


def _each(lines: Sequence[str], read: Callable[[str], Mapping[str, Any] | None]) -> Iterator[Read]:
    for number, line in enumerate(lines, start=1):
        try:
            fields = read(line.strip()) if line.strip() else None
            if fields is not None:
                yield Line(number, fields)
        except ValueError as error:
            yield BadLine(number, str(error))


def _from_id(line: str, sid_field: str) -> Mapping[str, Any] | None:
    if _COMMENT.fullmatch(line):
        return None
    sid = _bare_sid(line)
    _check_cell(sid_field, sid)
    if sid.startswith("#"):
        raise ValueError(_NO_COMMENT)
    if any(delimiter in sid for delimiter in _DELIMITERS):
        raise ValueError(_NO_ID)
    return {sid_field: sid}


def _from_json(line: str) -> Mapping[str, Any]:
    twice: list[str] = []

    def read_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        fields = json.loads(line, object_pairs_hook=read_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {getattr(error, 'msg', 'it cannot be parsed')}") from None
    if not isinstance(fields, dict):
        raise ValueError('this is not a JSON object: write it as {"conference_sid": "..."}')  # noqa: TRY004  (of a text)
    if twice:
        raise ValueError(f"the field {twice[0]!r} appears twice")
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown: write {', '.join(_FIELDS)}")
    return {name: value for name, value in fields.items() if value is not None}


def _from_csv(text: str, delimiter: str, *, has_separator_line: bool = False) -> Iterator[Read]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Sequence[str] = ()
    is_separator_line = has_separator_line
    start = 1
    while True:
        number, is_header = start, not header
        try:
            cells = next(rows, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if is_separator_line:
                is_separator_line = False
            elif is_header:
                header = _header(cells)
            else:
                yield Line(number, _row(header, cells))
        except csv.Error as error:
            is_open = rows.line_num > number or "unexpected end" in str(error)
            yield BadLine(number, _why_not_csv(error, is_open=is_open), hides_more=is_open or is_header)
        except ValueError as error:
            yield BadLine(number, str(error), hides_more=is_header)
            if is_header:
                return
        finally:
            start = rows.line_num + 1


def _why_not_csv(error: csv.Error, *, is_open: bool) -> str:
    if is_open:
        return "a quote opens here and is never closed"
    if "field limit" in str(error):
        return f"a cell has more than {csv.field_size_limit():,} characters: shorten it"
    return f"this is not CSV: {error}"


def _header(cells: Sequence[str]) -> Sequence[str]:
    """Return the fields that the columns hold; a column without a name is an empty string."""
    cells = _without_empty_end(cells)
    names = [_field_of(cell) for cell in cells]
    for cell, name in zip(cells, names, strict=True):
        if name == "parameters":
            raise ValueError("each parameter needs its own column: write it as parameters.NAME")
        if name is None:
            raise ValueError(f"{cell.strip()!r} is unknown: write {_COLUMNS}")
    fields = [name or "" for name in names]
    twice = [name for name in fields if name and fields.count(name) > 1]
    if twice:
        raise ValueError(f"the column {twice[0]} appears twice")
    if set(fields).isdisjoint(SIDS):
        raise ValueError(_NO_SID_COLUMN)
    return fields


def _field_of(cell: str) -> str | None:
    """Return the field that a column's name means, an empty string for no name, or None for an unknown one."""
    name = cell.strip()
    if not name:
        return ""
    if name.lower().startswith(_PARAMETER):
        key = name[len(_PARAMETER) :].strip()
        return _PARAMETER + key if key else None
    squashed = re.sub(r"[\s_-]", "", name.lower())
    return _ALIASES.get(squashed) or next((known for known in _FIELDS if known.replace("_", "") == squashed), None)


def _row(header: Sequence[str], cells: Sequence[str]) -> Mapping[str, Any]:
    named = len(header)
    if len(cells) > named:
        cells = [*cells[:named], *_without_empty_end(cells[named:])]
    if len(cells) != named:
        raise ValueError(f"this line has {len(cells)} columns, but the first line names {named}")
    fields: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    for position, (name, cell) in enumerate(zip(header, cells, strict=True), start=1):
        cell = _without_formula(cell)  # noqa: PLW2901
        value = cell.strip()
        if not value:
            continue
        if not name:
            raise ValueError(f"column {position} has no name: name it in the first line, or empty it")
        value = _bare_sid(value) if name in SIDS else value
        _check_cell(name, value)
        if name.startswith(_PARAMETER):
            parameters[name.removeprefix(_PARAMETER)] = cell
        else:
            fields[name] = _switch(name, value) if name in SWITCHES else value
    return fields | ({"parameters": parameters} if parameters else {})


def _without_empty_end(cells: Sequence[str]) -> Sequence[str]:
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _without_formula(cell: str) -> str:
    """Return the text of ``="text"``, which keeps a spreadsheet from turning it into a number."""
    text = cell.strip()
    if not text.startswith('="'):
        return cell
    formula = _FORMULA.fullmatch(text)
    if formula is None:
        raise ValueError('a formula has an odd number of quotes: write it as ="text", or the text alone')
    return formula[1].replace('""', '"')


def _bare_sid(text: str) -> str:
    """Return a sid without the quotes that keep a spreadsheet from turning it into a number."""
    text = _without_formula(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return text.removeprefix("'")


def _check_cell(name: str, value: str) -> None:
    """Reject a cell that a spreadsheet changed. The error quotes only sids and names; other fields may be secret."""
    shown = f" {value!r}" if name in {*SIDS, "name"} else ""
    if _MANGLED_NUMBER.fullmatch(value):
        raise ValueError(
            f"{name}{shown} was turned into a number by a spreadsheet, and digits are lost: format the column as "
            "text there, enter it again, and save again"
        )
    is_too_narrow = name in SIDS and len(value) > 1 and not value.strip("#")
    if is_too_narrow or _SPREADSHEET_ERROR.fullmatch(value):
        remedy = "widen its column there" if is_too_narrow else "correct its formula there"
        raise ValueError(f"{name} holds the spreadsheet's error {value}: {remedy}, and save again")
    if '"' in value and name in SIDS:
        raise ValueError(f"{name}{shown} contains a quote: write only the sid")
    if "\0" in value and name not in SIDS:
        raise ValueError(f"{name} contains a NUL character: remove it")


def _switch(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value.lower() == "true"


Start: TypeAlias = StartConferenceStream | StartCallStream

NAMING = frozenset({"name", "unnamed"})  # a line with one of them overrides both


def make_request(line: Mapping[str, Any], defaults: Mapping[str, Any]) -> Start:
    """Create the request of a line. Its fields override the defaults; its parameters are added to theirs."""
    sids = [name for name in SIDS if name in line]
    if len(sids) != 1:
        raise InvalidRequestError("a line needs a conference_sid or a call_sid, and not both")
    is_call = sids == ["call_sid"]
    omitted = (CONFERENCE_ONLY if is_call else frozenset()) | (NAMING if NAMING & line.keys() else frozenset())
    given = {name: value for name, value in defaults.items() if value is not None and name not in omitted}
    own = line.get("parameters", {})
    parameters = {**given.get("parameters", {}), **own} if isinstance(own, dict) else own
    fields = {**given, **line, "parameters": parameters}
    if "url" not in fields:
        raise InvalidRequestError("there is no url: pass --url, or add one to the line")
    return StartCallStream(**fields) if is_call else StartConferenceStream(**fields)


def make_requests(lines: Iterable[Read], defaults: Mapping[str, Any]) -> tuple[dict[int, Start], list[BadLine]]:
    """Return the requests by line number, and the invalid lines, duplicates included."""
    requests: dict[int, Start] = {}
    bad: list[BadLine] = []
    seen: dict[tuple[str, str | None], int] = {}
    for line in lines:
        if isinstance(line, BadLine):
            bad.append(line)
            continue
        try:
            request = make_request(line.fields, defaults)
        except InvalidRequestError as error:
            bad.append(BadLine(line.number, for_command_line(str(error))))
            continue
        key = (folded(request.target), request.name)
        if not request.unnamed and (first := seen.setdefault(key, line.number)) != line.number:
            why = f"{request.target} is already on line {first}: remove it, or give each of its streams its own name"
            bad.append(BadLine(line.number, why))
        else:
            requests[line.number] = request
    return requests, bad
