"""What a file of targets says, line by line: ids, CSV or JSON lines, told apart by how the text begins.

CSV is read as spreadsheets write it: with ``,``, ``;`` or tabs, a ``sep=`` line, column names in any spelling, and
empty columns at the end. What a spreadsheet has changed beyond repair is refused.
"""

import codecs
import csv
import io
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click
from attrs import define, evolve, field, frozen

from signalwire_streams import InvalidRequestError, PlannedRequest, StartCallStream, StartConferenceStream
from signalwire_streams._cli.options import STANDARD_INPUT, token_is_on_standard_input
from signalwire_streams._cli.output import clean, for_command_line

_ENCODINGS = (  # by their byte order marks; that of UTF-32-LE begins with that of UTF-16-LE
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


def read_source(file: str) -> str:
    """Read a file, or standard input for ``-``: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Excel writes UTF-16 as "Unicode text".

    Raises:
        UsageError: it can't be read.
    """
    if file == STANDARD_INPUT and token_is_on_standard_input():
        raise click.UsageError("standard input can't be the FILE and the bearer token: name a file for one of them")
    try:
        content = _content(file)
    except OSError as error:
        raise click.UsageError(f"{clean(file)} can't be read: {error.strerror}") from None
    except ValueError:  # a name that no file can have
        raise click.UsageError(f"{clean(file)} can't be read: write the name of a text file in UTF-8, or -") from None
    return _decoded(content, clean(file))


def _content(file: str) -> bytes:
    if file != STANDARD_INPUT:
        return Path(file).read_bytes()
    if sys.stdin is None:  # the shell closed it
        return b""
    buffer = getattr(sys.stdin, "buffer", None)
    return buffer.read() if buffer is not None else sys.stdin.read().encode()


def _decoded(content: bytes, file: str) -> str:
    encoding = next((encoding for encoding, mark in _ENCODINGS if content.startswith(mark)), None)
    if encoding is not None:
        try:
            return _with_line_feeds(content.decode(encoding))
        except UnicodeDecodeError:
            raise click.UsageError(
                f"{file} can't be read, since its {encoding} is damaged: write the name of a text file in UTF-8, or -"
            ) from None
    for signature, why in _OTHER_FILES.items():
        if content.startswith(signature):
            raise click.UsageError(f"{file} {why}")
    if content[1:2] == b"\0" or content[:1] == b"\0":
        raise click.UsageError(
            f"{file} can't be read: it is no text, or UTF-16 or UTF-32 without a byte order mark; {_SAVE_AS}"
        )
    try:
        return _with_line_feeds(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise click.UsageError(f"{file}:{line}: can't be read: this line is not UTF-8; {_SAVE_AS}") from None


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
_COLUMNS = ", ".join(name for name in _FIELDS if name != "parameters") + ", parameters.NAME"
_DELIMITERS = (",", ";", "\t")
_ALIASES = {"streamcodec": "codec", "streamrealtime": "realtime"}
"""The API's own names of fields, where they differ by more than their spelling."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.?)"?[,;\t]*', re.IGNORECASE)
_FORMULA = re.compile(r'="((?:[^"]|"")*)"')
_MANGLED_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?E[+-]\d{2,}", re.IGNORECASE)
_UPPER = r"(?:(?![a-z])[^\W\d_])"
_SPREADSHEET_ERROR = re.compile(
    # In any language: #N/A, #N/D!, #REF!, #¿NOMBRE?, #DIV/0!; German for #N/A; LibreOffice's.
    rf"#[¡¿]?{_UPPER}+(?:/0)?[!?]|#{_UPPER}/{_UPPER}[!?]?|#NV|#GETTING_DATA|Err:\d{{3}}"
)
_COMMENT = re.compile(r"#|#+\s.*")
_NO_COMMENT = "this is neither an id nor a comment: begin a comment with a # and a blank"
_NO_ID = "this is no id: write one id per line, or CSV whose first line names its columns"
_NO_SID_COLUMN = f"the first line has no column conference_sid or call_sid: write {_COLUMNS}"


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
        text: the file; its lines end in LF.
        sid_field: what a bare id is: ``conference_sid`` or ``call_sid``.
    """
    lines = text.split("\n")
    number, first = next(((number, line) for number, line in enumerate(lines, 1) if line.strip()), (1, ""))
    bare = first.strip()
    if bare.startswith("{"):
        return _each(lines, _from_json)
    separator = _SEPARATOR_LINE.fullmatch(first.strip(" "))
    delimiter = separator[1] if separator is not None else _delimiter_of(first)
    if bare.startswith("["):
        why = "a JSON array is not read: write one JSON object per line"
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
    """Return what separates the columns of a first line that names an id, or an empty text if none is named."""
    for delimiter in _DELIMITERS:
        if not {_field_of(cell) for cell in _cells(header, delimiter)}.isdisjoint(_SIDS):
            return delimiter
    return ""


def _cells(line: str, delimiter: str) -> Sequence[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _each(lines: Sequence[str], read: Callable[[str], Mapping[str, Any] | None]) -> Iterator[Read]:
    for number, line in enumerate(lines, start=1):
        try:
            fields = read(line.strip()) if line.strip() else None
        except ValueError as error:
            yield BadLine(number, str(error))
            continue
        if fields is not None:
            yield Line(number, fields)


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
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON: {getattr(error, 'msg', 'it can not be read')}") from None
    if not isinstance(fields, dict):
        raise ValueError('this is no JSON object: write it as {"conference_sid": "..."}')  # noqa: TRY004  (of a text)
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown: write {', '.join(_FIELDS)}")
    return {name: value for name, value in fields.items() if value is not None}


def _from_csv(text: str, delimiter: str, *, has_separator_line: bool = False) -> Iterator[Read]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Sequence[str] = ()
    began = 1
    skip = has_separator_line
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _no_csv(began, error, is_open=rows.line_num > began, is_header=not header)
            began = rows.line_num + 1
            continue
        number, began = began, rows.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if skip:
            skip = False
            continue
        try:
            if not header:
                header = _header(cells)
            else:
                yield Line(number, _row(header, cells))
        except ValueError as error:
            yield BadLine(number, str(error), hides_more=not header)
            if not header:
                return


def _no_csv(number: int, error: csv.Error, *, is_open: bool, is_header: bool) -> BadLine:
    is_open = is_open or "unexpected end" in str(error)
    if is_open:
        why = "a quote opens here and is never closed"
    elif "field limit" in str(error):
        why = f"a cell has more than {csv.field_size_limit():,} characters: shorten it"
    else:
        why = f"this is no CSV: {error}"
    return BadLine(number, why, hides_more=is_open or is_header)


def _header(cells: Sequence[str]) -> Sequence[str]:
    """Return the fields that the columns hold; a column without a name is an empty text."""
    cells = _without_empty_end(cells)
    names = [_field_of(cell) for cell in cells]
    for cell, name in zip(cells, names, strict=True):
        if name == "parameters":
            raise ValueError("a parameter has a column of its own: write it as parameters.NAME")
        if name is None:
            raise ValueError(f"{cell.strip()!r} is unknown: write {_COLUMNS}")
    fields = [name or "" for name in names]
    twice = [name for name in fields if name and fields.count(name) > 1]
    if twice:
        raise ValueError(f"the column {twice[0]} is there twice")
    if set(fields).isdisjoint(_SIDS):
        raise ValueError(_NO_SID_COLUMN)
    return fields


def _field_of(cell: str) -> str | None:
    """Return the field that a column's name means, an empty text for no name, or None for an unknown one."""
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
        raise ValueError(f"this line has {len(cells)} columns, and the first one names {named}")
    fields: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    for position, (name, cell) in enumerate(zip(header, cells, strict=True), start=1):
        formula = _FORMULA.fullmatch(cell.strip())
        if formula is not None:
            cell = formula[1].replace('""', '"')  # noqa: PLW2901  (a text that is kept from becoming a number)
        value = cell.strip()
        if not value:
            continue
        if not name:
            raise ValueError(f"column {position} has no name: name it in the first line, or empty it")
        value = _bare_sid(value) if name in _SIDS else value
        _check_cell(name, value)
        if name.startswith(_PARAMETER):
            parameters[name.removeprefix(_PARAMETER)] = cell
        else:
            fields[name] = _switch(name, value) if name in _SWITCHES else value
    return fields | ({"parameters": parameters} if parameters else {})


def _without_empty_end(cells: Sequence[str]) -> Sequence[str]:
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _bare_sid(text: str) -> str:
    """Return an id without what a spreadsheet or a person put around it to keep it a text."""
    formula = _FORMULA.fullmatch(text)
    text = formula[1] if formula is not None else text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1].strip()
    return text.removeprefix("'")


def _check_cell(name: str, value: str) -> None:
    """Refuse what a spreadsheet made of a text. Only ids and names are repeated, since others may be secrets."""
    shown = f" {value!r}" if name in {*_SIDS, "name"} else ""
    if _MANGLED_NUMBER.fullmatch(value):
        raise ValueError(
            f"{name}{shown} was turned into a number by a spreadsheet, and digits are lost: format the column as "
            "text there, enter it again, and save again"
        )
    is_too_narrow = name in _SIDS and len(value) > 1 and not value.strip("#")
    if is_too_narrow or _SPREADSHEET_ERROR.fullmatch(value):
        remedy = "widen its column there" if is_too_narrow else "correct its formula there"
        raise ValueError(f"{name} holds the spreadsheet's error {value}: {remedy}, and save again")
    if "\0" in value and name not in _SIDS:
        raise ValueError(f"{name} holds a NUL character: remove it")


def _switch(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value.lower() == "true"


Start: TypeAlias = StartConferenceStream | StartCallStream

_ON_CONFERENCES = {"codec", "realtime"}
_NAMING = {"name", "unnamed"}  # a line that says one of them overrules both


@frozen
class Defaults:
    """What the options say of every stream; a line may say otherwise.

    Attributes:
        fields: the fields of a request.
        parameters: the custom parameters; those of a line are added.
    """

    fields: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, str] = field(factory=dict, repr=False)

    def request(self, line: Mapping[str, Any]) -> Start:
        """Make the request of one line.

        Raises:
            InvalidRequestError: a field is missing, or can't be right.
        """
        sids = [name for name in ("conference_sid", "call_sid") if name in line]
        if len(sids) != 1:
            raise InvalidRequestError("a line needs a conference_sid or a call_sid, and not both")
        is_call = sids == ["call_sid"]
        left_out = (_ON_CONFERENCES if is_call else set()) | (_NAMING if _NAMING & line.keys() else set())
        given = {name: value for name, value in self.fields.items() if value is not None and name not in left_out}
        own = line.get("parameters", {})
        fields = {**given, **line, "parameters": {**self.parameters, **own} if isinstance(own, dict) else own}
        if "url" not in fields:
            raise InvalidRequestError("there is no url: pass --url, or give the line one")
        return StartCallStream(**fields) if is_call else StartConferenceStream(**fields)


@define(eq=False)
class Requests:
    """The requests of a run, and the lines that are none.

    Attributes:
        good: the requests.
        bad: the lines that are wrong.
    """

    good: list[Start] = field(factory=list)
    bad: list[BadLine] = field(factory=list)

    @classmethod
    def of(cls, lines: Iterable[Read], defaults: Defaults) -> "Requests":
        """Make the requests of lines; each may be there once."""
        requests = cls()
        seen: dict[tuple[str, str | None], int] = {}
        for line in lines:
            if isinstance(line, BadLine):
                requests.bad.append(line)
                continue
            try:
                requests.good.append(_once(defaults.request(line.fields), line, seen))
            except InvalidRequestError as error:
                requests.bad.append(BadLine(line.number, for_command_line(str(error))))
        return requests


def _once(request: Start, line: Line, seen: dict[tuple[str, str | None], int]) -> Start:
    if request.unnamed:
        return request
    first = seen.setdefault((request.target, request.name), line.number)
    if first != line.number:
        raise InvalidRequestError(
            f"{request.target} is on line {first} already: leave it out, or give each of its streams a name of its own"
        )
    return request


_TargetAndName = tuple[str, str | None]


@frozen
class Secrets:
    """What was given again: by options for all, and by the lines of the file that the run was started with.

    Attributes:
        parameters: custom parameters for all.
        bearer_token: the token for all.
        status_callback: the address for all.
        lines: the fields of the lines, by target and name, in their order.
    """

    parameters: Mapping[str, str] = field(factory=dict, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    status_callback: str | None = field(default=None, repr=False)
    lines: Mapping[_TargetAndName, Sequence[Mapping[str, Any]]] = field(factory=dict, repr=False)

    def complete(self, planned: Iterable[PlannedRequest]) -> Iterator[Start]:
        """Give each request with its secrets.

        Raises:
            UsageError: one is missing; the sentence says which option gives it.
        """
        left = {key: deque(lines) for key, lines in self.lines.items()}
        for one in planned:
            line = _next(left, one.request)
            yield one.request if one.is_complete else self._completed(one, line)

    def given_to(self, planned: PlannedRequest) -> Start:
        """Give a request what the options say, without a file.

        Raises:
            InvalidRequestError: something is missing.
        """
        try:
            return planned.request if planned.is_complete else self._completed(planned, {})
        except click.UsageError:
            raise InvalidRequestError(
                f"{planned.request.target} needs secrets that are not kept in Redis ({', '.join(planned.redacted)}): "
                "start all workers with the options that give them"
            ) from None

    def _completed(self, planned: PlannedRequest, line: Mapping[str, Any]) -> Start:
        request = planned.request
        own = line.get("parameters")
        values = {**self.parameters, **(own if isinstance(own, dict) else {})}
        missing = [f"--parameter {name}=..." for name in planned.parameters if name not in values]
        token = line.get("authorization_bearer_token", self.bearer_token)
        if planned.bearer_token and token is None:
            missing.append("--bearer-token-file FILE")
        callback = line.get("status_callback", self.status_callback)
        if planned.status_callback and callback is None:
            missing.append("--status-callback URL")
        if missing:
            raise click.UsageError(
                f"the journal keeps no secrets, and {request.target} had some: give them again with "
                f"{' '.join(missing)}, or name the FILE that they came from after the journal"
            )
        parameters = {name: values[name] for name in planned.parameters}
        completed = evolve(request, parameters=parameters)
        if planned.bearer_token:
            completed = evolve(completed, authorization_bearer_token=token)
        return evolve(completed, status_callback=callback) if planned.status_callback else completed


def by_target(lines: Iterable[Read]) -> dict[_TargetAndName, list[Mapping[str, Any]]]:
    """Arrange a file's lines by what they start; those that are wrong started nothing.

    Raises:
        UsageError: a line hides those behind it.
    """
    found: dict[_TargetAndName, list[Mapping[str, Any]]] = {}
    for line in lines:
        if isinstance(line, BadLine) and line.hides_more:
            raise click.UsageError(f"line {line.number} of the FILE: {line.why}")
        if isinstance(line, Line):
            sid, name = line.fields.get("conference_sid") or line.fields.get("call_sid"), line.fields.get("name")
            found.setdefault((str(sid), name if isinstance(name, str) else None), []).append(line.fields)
    return found


def _next(left: Mapping[_TargetAndName, "deque[Mapping[str, Any]]"], request: Start) -> Mapping[str, Any]:
    """Give the line that a request came from: the first one for its target and name that is not used yet."""
    lines = left.get((request.target, request.name)) or left.get((request.target, None))
    return lines.popleft() if lines else {}
