"""Files of targets as spreadsheets write them: accepted, or rejected with line and remedy."""

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams._cli.bulk_targets import BadLine, Line, read_lines

from .shell import URL, Shell, assert_usage_error

START = ("bulk", "start", "--url", URL, "--dry-run", "--json")
IDS = [{"conference_sid": "room-1"}, {"conference_sid": "room-2"}]
SAVE_AS = "save it as UTF-8 (in Excel: 'CSV UTF-8')"
MANGLED = (
    "was turned into a number by a spreadsheet, and digits are lost: format the column as text there, enter it "
    "again, and save again"
)


def fields_of(text: str) -> list[Any]:
    """Return the fields of each line, or what is wrong with it and its number."""
    return [
        line.fields if isinstance(line, Line) else (line.number, line.why)
        for line in read_lines(text, "conference_sid")
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_delimiter_is_detected_in_the_header(delimiter: str) -> None:
    rows = [["conference_sid", "url", "name"], ["room-1", URL, "a"], ["room-2", "", "b"]]
    text = "".join(delimiter.join(row) + "\n" for row in rows)
    assert fields_of(text) == [
        {"conference_sid": "room-1", "url": URL, "name": "a"},
        {"conference_sid": "room-2", "name": "b"},
    ]


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"', "  sep=; ", "sep=;;;"])
def test_separator_line_is_not_a_row(line: str) -> None:
    assert fields_of(f"{line}\nconference_sid;name\nroom-1;a,b\n") == [{"conference_sid": "room-1", "name": "a,b"}]


def test_a_separator_line_may_name_another_delimiter() -> None:
    assert fields_of("sep=|\nname|conference_sid\na;b|room-1\n") == [{"conference_sid": "room-1", "name": "a;b"}]


@pytest.mark.parametrize("separator", ['"', "'", "x", "1", " "])
def test_invalid_separator_is_rejected(separator: str) -> None:
    assert fields_of(f"sep={separator}\nconference_sid\nroom-1\n") == [
        (1, "the separator of this line can't be used: write sep=; or sep=,")
    ]


def test_a_separator_line_keeps_the_numbers_of_lines() -> None:
    assert fields_of("sep=;\n\nconference_sid;name\nroom-1\n") == [
        (4, "this line has 1 columns, but the first line names 2")
    ]


def test_a_separator_line_before_other_columns_is_rejected() -> None:
    [(number, why)] = fields_of("sep=;\nid;name\nroom-1;n\n")
    assert (number, why.partition(":")[0]) == (2, "'id' is unknown")


@pytest.mark.parametrize(
    "name",
    ["ConferenceSid", "CONFERENCE_SID", "Conference SID", "conference-sid", " conference sid ", '"ConferenceSID"'],
)
def test_column_names_ignore_case_and_separators(name: str) -> None:
    assert fields_of(f"{name}\nroom-1\nroom-2\n") == IDS


def test_column_names_of_the_api_are_accepted() -> None:
    header = "CallSid,Url,Name,Track,StatusCallback,StatusCallbackMethod,AuthorizationBearerToken,Parameters.Tenant"
    row = f"leg,{URL},n,both_tracks,https://app.example.com/x,GET,bearer,acme"
    assert fields_of(f"{header}\n{row}\n") == [
        {
            "call_sid": "leg",
            "url": URL,
            "name": "n",
            "track": "both_tracks",
            "status_callback": "https://app.example.com/x",
            "status_callback_method": "GET",
            "authorization_bearer_token": "bearer",
            "parameters": {"Tenant": "acme"},
        }
    ]
    assert fields_of("ConferenceSid,StreamCodec,StreamRealTime\nroom-1,PCMU,TRUE\n") == [
        {"conference_sid": "room-1", "codec": "PCMU", "realtime": True}
    ]


@pytest.mark.parametrize("text", ["conference_sid,,\nroom-1,,\nroom-2,,,\n", "conference_sid,,\nroom-1\nroom-2,\n"])
def test_trailing_empty_columns_are_ignored(text: str) -> None:
    assert fields_of(text) == IDS


def test_a_cell_in_a_column_without_a_name_is_rejected() -> None:
    assert fields_of("conference_sid,,name\nroom-1,,a\nroom-2,b,c\nroom-3,,d,e\n") == [
        {"conference_sid": "room-1", "name": "a"},
        (3, "column 2 has no name: name it in the first line, or empty it"),
        (4, "this line has 4 columns, but the first line names 3"),
    ]


@pytest.mark.parametrize("cell", ['="id""', '="id', '="i"d"', '=""id"', '="id"x'])
@pytest.mark.parametrize("header", ["conference_sid;name", "name;conference_sid", "", "conference_sid;parameters.pin"])
def test_formula_with_an_odd_quote_is_rejected(cell: str, header: str) -> None:
    """It would be sent with its quotes. Its text is not repeated, since it may be a secret."""
    quoted = '"' + cell.replace('"', '""') + '"'
    text = {"": f"{cell}\n", "conference_sid;parameters.pin": f"{header}\nroom;{quoted}\n"}.get(
        header, f"{header}\n{quoted};room\n"
    )
    [bad] = read_lines(text, "conference_sid")
    assert isinstance(bad, BadLine)
    assert bad.why == 'a formula has an odd number of quotes: write it as ="text", or the text alone'


@pytest.mark.parametrize("cell", ['id"', '"id', 'i"d', '"="id'])
def test_id_with_a_quote_is_rejected(cell: str) -> None:
    [bad] = read_lines(f"{cell}\n", "call_sid")
    assert isinstance(bad, BadLine)
    assert bad.why.endswith("contains a quote: write only the sid")


@pytest.mark.parametrize("cell", ['="00123"', '"=""00123"""', "'00123", '"00123"', "'00123'", ' ="00123" '])
def test_quoted_id_is_unquoted(cell: str) -> None:
    assert fields_of(f"name;conference_sid\nn;{cell}\n") == [{"name": "n", "conference_sid": "00123"}]


def test_text_formula_in_other_cells_is_unquoted() -> None:
    assert fields_of('conference_sid;name;parameters.pin\nroom-1;="007";="0""9"\n') == [
        {"conference_sid": "room-1", "name": "007", "parameters": {"pin": '0"9'}}
    ]


@pytest.mark.parametrize("cell", ["1.23E+11", "1,23E+11", "1E+15", "-4.5e+20", "9.9E-10"])
def test_a_number_that_a_spreadsheet_made_is_rejected(cell: str) -> None:
    assert fields_of(f"conference_sid;parameters.phone\n{cell};\nroom-2;{cell}\n") == [
        (2, f"conference_sid {cell!r} {MANGLED}"),
        (3, f"parameters.phone {MANGLED}"),
    ]
    if "," not in cell:
        assert fields_of(f"room-1\n{cell}\n")[1] == (2, f"conference_sid {cell!r} {MANGLED}")


@pytest.mark.parametrize("cell", ["1E11", "E+11", "CF1E+11", "123", "12-34"])
def test_text_like_a_mangled_number_is_accepted(cell: str) -> None:
    assert fields_of(f"conference_sid\n{cell}\n") == [{"conference_sid": cell}]


@pytest.mark.parametrize(
    "cell",
    [
        *("#N/A", "#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#SPILL!", "#GETTING_DATA", "Err:502"),
        *("#NV", "#WERT!", "#BEZUG!", "#ÜBERLAUF!", "#N/D", "#N/D!", "#¡VALOR!", "#¿NOMBRE?", "#¡DIV/0!"),
        *("#\u0417\u041d\u0410\u0427!", "#\u041d/\u0414"),
    ],
)
def test_the_error_of_a_formula_is_rejected(cell: str) -> None:
    sentence = f"holds the spreadsheet's error {cell}: correct its formula there, and save again"
    assert fields_of(f"conference_sid;name\nroom-1;{cell}\n{cell};\n") == [
        (2, f"name {sentence}"),
        (3, f"conference_sid {sentence}"),
    ]
    assert fields_of(f"room-1\n{cell}\n") == [{"conference_sid": "room-1"}, (2, f"conference_sid {sentence}")]
    assert fields_of(f"{cell}\nroom-1\n") == [(1, f"conference_sid {sentence}"), {"conference_sid": "room-1"}]


@pytest.mark.parametrize("cell", ["##", "########"])
def test_an_id_of_a_column_that_was_too_narrow_is_rejected(cell: str) -> None:
    sentence = f"conference_sid holds the spreadsheet's error {cell}: widen its column there, and save again"
    assert fields_of(f"conference_sid;name\n{cell};{cell}\n") == [(2, sentence)]
    assert fields_of(f"{cell}\nroom-1\n") == [(1, sentence), {"conference_sid": "room-1"}]


@pytest.mark.parametrize("name", ["##", "#", "#1", "#urgent!", "#a/b", "Error:502", "# #", "#n/a?"])
def test_name_like_a_spreadsheet_error_is_accepted(name: str) -> None:
    assert fields_of(f"conference_sid;name\nroom-1;{name}\n") == [{"conference_sid": "room-1", "name": name}]


def test_a_nul_in_a_cell_is_rejected() -> None:
    assert fields_of("conference_sid,name\nroom-1,a\0b\n") == [(2, "name contains a NUL character: remove it")]


def test_a_huge_cell_is_rejected_and_the_rows_behind_it_are_read() -> None:
    huge = "x" * 140_000
    assert fields_of(f"conference_sid,name\nroom-1,{huge}\nroom-2,n\n") == [
        (2, "a cell has more than 131,072 characters: shorten it"),
        {"conference_sid": "room-2", "name": "n"},
    ]


@pytest.mark.parametrize("header", ["id;url", "Conference,URL", "room-1,wss://host/x", "a\tb"])
def test_columns_without_an_id_are_one_sentence(header: str) -> None:
    [line] = read_lines(f"{header}\n" + "a;b\n" * 1_000, "conference_sid")
    assert isinstance(line, BadLine)
    assert line.hides_more
    assert line.why.startswith("the first line has no column conference_sid or call_sid: write conference_sid, ")


def test_a_json_array_is_one_sentence() -> None:
    assert fields_of('[{"conference_sid": "a"},\n{"conference_sid": "b"}]\n') == [
        (1, "this is a JSON array: write one JSON object per line instead")
    ]


def test_thousands_of_rows_with_blank_lines_are_read() -> None:
    text = "sep=;\nConferenceSid;Unnamed;\n" + "".join(f"room-{number};TRUE;\n\n" for number in range(5_000))
    lines = list(read_lines(text, "call_sid"))
    assert len(lines) == 5_000
    assert lines[-1] == Line(2 * 4_999 + 3, {"conference_sid": "room-4999", "unnamed": True})


# Files, as bytes.


def file_of(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


async def targets_of(shell: Shell, file: str) -> list[str]:
    ran = await shell(*START, file)
    assert (ran.code, ran.err) == (0, "")
    return [line["target"] for line in ran.lines]


TEXT = "Conference SID;Name\r\nroom-1;Café\r\n\r\nroom-2;b\r\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace(";", "\t").encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"),
        TEXT.replace("\r\n", "\r").encode(),
        b"\r\n".join(TEXT.encode("utf-8-sig").split(b"\r\n")),
    ],
    ids=["UTF-8", "BOM", "UTF-16 with tabs", "UTF-16 big-endian", "UTF-32", "UTF-32 big-endian", "CR", "BOM and CRLF"],
)
async def test_a_file_is_read_in_the_encodings_that_excel_writes(
    offline_shell: Shell, tmp_path: Path, content: bytes
) -> None:
    assert await targets_of(offline_shell, file_of(tmp_path / "targets.csv", content)) == ["room-1", "room-2"]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfroom-1\r\nroom-2", b"room-1\rroom-2\r", b"\"room-1\"\n'room-2'\n"])
async def test_bare_ids_are_read_as_well(offline_shell: Shell, tmp_path: Path, content: bytes) -> None:
    assert await targets_of(offline_shell, file_of(tmp_path / "ids.txt", content)) == ["room-1", "room-2"]


async def test_standard_input_is_read_in_the_same_encodings(
    offline_shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-16"))))
    ran = await offline_shell(*START, "-")
    assert [line["target"] for line in ran.lines] == ["room-1", "room-2"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"conference_sid,name\nroom-1,a\nroom-2,Caf\xe9\n", f":3: can't be read: this line is not UTF-8; {SAVE_AS}"),
        (TEXT.encode("utf-16-le"), f"it is not text, or UTF-16 or UTF-32 without a byte order mark; {SAVE_AS}"),
        (TEXT.encode("utf-16-be"), f"it is not text, or UTF-16 or UTF-32 without a byte order mark; {SAVE_AS}"),
        (TEXT.encode("utf-32-le"), f"it is not text, or UTF-16 or UTF-32 without a byte order mark; {SAVE_AS}"),
        (TEXT.encode("utf-32-be"), f"it is not text, or UTF-16 or UTF-32 without a byte order mark; {SAVE_AS}"),
        (b"\xff\xfea", "its UTF-16 is damaged"),
        (TEXT.encode("utf-32")[:-1], "its UTF-32 is damaged"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\xe9", "is a spreadsheet, not CSV: export it as 'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "is a spreadsheet, not CSV: export it as 'CSV UTF-8'"),
        (gzip.compress(TEXT.encode()), "is compressed: unpack it with gunzip"),
    ],
    ids=[
        "latin-1",
        "UTF-16-LE without BOM",
        "UTF-16-BE without BOM",
        "UTF-32-LE without BOM",
        "UTF-32-BE without BOM",
        "half a UTF-16",
        "half a UTF-32",
        "xlsx",
        "xls",
        "gzip",
    ],
)
async def test_a_file_in_another_encoding_is_rejected(
    offline_shell: Shell, tmp_path: Path, content: bytes, sentence: str
) -> None:
    assert_usage_error(await offline_shell(*START, file_of(tmp_path / "targets.csv", content)), sentence)


async def test_a_file_of_secrets_without_ids_is_rejected(shell: Shell, tmp_path: Path) -> None:
    journal = str(tmp_path / "run.db")
    started = await shell(
        "bulk", "start", "--all-in-progress", "--url", URL, "--parameter", "a=b", "--journal", journal
    )
    assert started.code == 0
    ran = await shell("bulk", "resume", journal, file_of(tmp_path / "secrets.csv", b"id;parameters.a\nroom;b\n"))
    assert_usage_error(ran, "line 1 of the FILE: the first line has no column conference_sid or call_sid")
