"""Files of targets: fields of valid lines, and numbers and messages of invalid ones."""

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from signalwire_streams import StartCallStream, StartConferenceStream
from signalwire_streams._cli.bulk_targets import BadLine, Line, Start, make_requests, read_lines

URL = "wss://audio.example.com/live"
JSON_FIELDS = (
    "conference_sid, call_sid, url, name, unnamed, track, status_callback, status_callback_method, parameters, "
    "authorization_bearer_token, codec, realtime"
)
CSV_COLUMNS = JSON_FIELDS.replace(" parameters,", "") + ", parameters.NAME"
COUNT, WRONG = 6_000, 3_001
NO_ID = "this is not a sid: write one sid per line, or CSV whose first line names its columns"


def read(text: str, sid_field: str = "conference_sid") -> list[tuple[int, Any]]:
    """Return each line's number with its fields, or with its message."""
    return [(line.number, line.fields if isinstance(line, Line) else line.why) for line in read_lines(text, sid_field)]


def requests_of(text: str, **fields: Any) -> tuple[list[Start], list[BadLine]]:
    """Return the requests of a file, with a default URL, and its invalid lines."""
    requests, bad = make_requests(read_lines(text, "conference_sid"), {"url": URL, **fields})
    return list(requests.values()), bad


def only_bad(text: str, **fields: Any) -> BadLine:
    """Return the only line of a file, which is invalid."""
    good, [bad] = requests_of(text, **fields)
    assert good == []
    return bad


@pytest.mark.parametrize("sid_field", ["conference_sid", "call_sid"])
def test_bare_ids_have_the_requested_kind(sid_field: str) -> None:
    assert read("one\ntwo\n", sid_field) == [(1, {sid_field: "one"}), (2, {sid_field: "two"})]


def test_blank_lines_and_comments_are_skipped_but_numbered() -> None:
    text = "\n# of today\none\n\n   \n  # of yesterday, too\n\ttwo  \n"
    assert read(text) == [(3, {"conference_sid": "one"}), (7, {"conference_sid": "two"})]


@pytest.mark.parametrize("comment", ["#", "# x", "#\tx", "## x", "# a, b; c", "# #N/A"])
def test_hash_and_blank_start_a_comment(comment: str) -> None:
    assert read(f"{comment}\none\n{comment}\n") == [(2, {"conference_sid": "one"})]


@pytest.mark.parametrize("line", ["#room-1", "#!x", "#a,b", "'#room-1'", "##x"])
def test_hash_without_a_blank_is_rejected(line: str) -> None:
    """It may be a target."""
    [first, second] = read_lines(f"{line}\none\n", "conference_sid")
    assert isinstance(first, BadLine)
    assert not first.hides_more
    assert second == Line(2, {"conference_sid": "one"})


def test_ids_accept_crlf_and_a_missing_last_line_break() -> None:
    assert read("one\r\n\r\ntwo") == [(1, {"conference_sid": "one"}), (3, {"conference_sid": "two"})]


@pytest.mark.parametrize("text", ["", "\n", "   \r\n\t\n", "# nothing yet\n"])
def test_empty_file_has_no_targets(text: str) -> None:
    assert read(text) == []


@pytest.mark.parametrize("line", ["two,URL", "two;URL", "two,", ",", "sid;url"])
def test_columns_without_a_header_are_rejected(line: str) -> None:
    assert read(f"one\n{line}\nthree\n") == [
        (1, {"conference_sid": "one"}),
        (2, NO_ID),
        (3, {"conference_sid": "three"}),
    ]


@pytest.mark.parametrize("line", ["a b", "a/b", "..", "a?b", "a%20b", "a\0b"])
def test_id_that_no_url_path_can_hold_is_rejected(line: str) -> None:
    bad = only_bad(f"\n{line}\n")
    assert bad.number == 2
    assert bad.why.startswith("conference_sid ")
    assert "can't be part of a path" in bad.why


def test_json_line_sets_fields_and_null_sets_none() -> None:
    first = {
        "conference_sid": "room",
        "url": URL,
        "name": "audit",
        "track": "both_tracks",
        "codec": "PCMU",
        "realtime": False,
        "status_callback": "https://app.example.com/hear",
        "status_callback_method": "GET",
        "parameters": {"tenant": "a,b"},
        "authorization_bearer_token": "bearer",
    }
    second = {"call_sid": "leg", "name": None, "unnamed": True, "parameters": None}
    text = f"{json.dumps(first)}\n\n   {json.dumps(second)}  \r\n"
    assert read(text) == [(1, first), (3, {"call_sid": "leg", "unnamed": True})]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "this is not JSON: Expecting property name enclosed in double quotes"),
        ('{"conference_sid": "a"} {"conference_sid": "b"}', "this is not JSON: Extra data"),
        ("room-2", "this is not JSON: Expecting value"),
        ("# of today", "this is not JSON: Expecting value"),
        ("[" * 100_000, "this is not JSON: it cannot be parsed"),
        ("9" * 5_000, "this is not JSON: it cannot be parsed"),
        ("5", 'this is not a JSON object: write it as {"conference_sid": "..."}'),
        ("null", 'this is not a JSON object: write it as {"conference_sid": "..."}'),
        ('["room"]', 'this is not a JSON object: write it as {"conference_sid": "..."}'),
        ('{"sid": "a"}', f"'sid' is unknown: write {JSON_FIELDS}"),
        ('{"conference_sid": "a", "Url": null}', f"'Url' is unknown: write {JSON_FIELDS}"),
        ('{"conference_sid": "a", "conference_sid": "b"}', "the field 'conference_sid' appears twice"),
        ('{"conference_sid": "a", "parameters": {"pin": "1", "pin": "2"}}', "the field 'pin' appears twice"),
    ],
)
def test_invalid_json_line_is_reported(line: str, sentence: str) -> None:
    good = '{"conference_sid": "room"}'
    assert read(f"{good}\n{line}\n{good}\n") == [
        (1, {"conference_sid": "room"}),
        (2, sentence),
        (3, {"conference_sid": "room"}),
    ]


def test_error_of_a_json_line_does_not_quote_it() -> None:
    [(number, sentence)] = read('{"authorization_bearer_token": "hush", "parameters": {"pin": "hush"}')
    assert number == 1
    assert "hush" not in sentence


def test_csv_columns_may_be_in_any_order() -> None:
    text = "url, conference_sid ,name\nwss://a,room-1,x\nwss://b, room-2 ,y z\n"
    assert read(text) == [
        (2, {"url": "wss://a", "conference_sid": "room-1", "name": "x"}),
        (3, {"url": "wss://b", "conference_sid": "room-2", "name": "y z"}),
    ]


def test_csv_accepts_one_column() -> None:
    assert read("call_sid\nleg-1\nleg-2\n") == [(2, {"call_sid": "leg-1"}), (3, {"call_sid": "leg-2"})]


def test_csv_header_alone_has_no_targets() -> None:
    assert read("conference_sid,url\n") == []


def test_csv_blank_and_empty_rows_are_skipped_but_numbered() -> None:
    assert read("\n\nconference_sid,name\n\nroom-1,\n,\n  , \nroom-2,n\n\n") == [
        (5, {"conference_sid": "room-1"}),
        (8, {"conference_sid": "room-2", "name": "n"}),
    ]


def test_csv_accepts_crlf() -> None:
    assert read("conference_sid,name\r\nroom-1,n\r\n\r\nroom-2,n\r\n") == [
        (2, {"conference_sid": "room-1", "name": "n"}),
        (4, {"conference_sid": "room-2", "name": "n"}),
    ]


def test_csv_parameter_columns_skip_empty_cells() -> None:
    text = "conference_sid,parameters.tenant,parameters.a.b\nroom-1, x ,\nroom-2,,y\nroom-3,,\n"
    assert read(text) == [
        (2, {"conference_sid": "room-1", "parameters": {"tenant": " x "}}),
        (3, {"conference_sid": "room-2", "parameters": {"a.b": "y"}}),
        (4, {"conference_sid": "room-3"}),
    ]


def test_csv_switches_are_true_or_false() -> None:
    text = (
        "conference_sid,unnamed,realtime\nroom-1,true,false\nroom-2, FALSE ,\nroom-3,yes,\nroom-4,,True\nroom-5,,JA\n"
    )
    assert read(text) == [
        (2, {"conference_sid": "room-1", "unnamed": True, "realtime": False}),
        (3, {"conference_sid": "room-2", "unnamed": False}),
        (4, "unnamed must be true or false, not 'yes'"),
        (5, {"conference_sid": "room-4", "realtime": True}),
        (6, "realtime must be true or false, not 'JA'"),
    ]


def test_csv_quoted_cell_holds_commas_quotes_and_line_breaks() -> None:
    """A row after a cell of several lines has the number that an editor shows."""
    text = 'conference_sid,parameters.note\nroom-1,"a, ""b"""\nroom-2,"one\ntwo\n\nfour"\nroom-3,\nroom-4\n'
    assert read(text) == [
        (2, {"conference_sid": "room-1", "parameters": {"note": 'a, "b"'}}),
        (3, {"conference_sid": "room-2", "parameters": {"note": "one\ntwo\n\nfour"}}),
        (7, {"conference_sid": "room-3"}),
        (8, "this line has 1 columns, but the first line names 2"),
    ]


@pytest.mark.parametrize("row", ["room", "room,a,b", "# a comment"])
def test_csv_row_with_wrong_number_of_cells_is_rejected(row: str) -> None:
    count = len(row.split(","))
    assert read(f"conference_sid,name\n{row}\nroom-2,n\n") == [
        (2, f"this line has {count} columns, but the first line names 2"),
        (3, {"conference_sid": "room-2", "name": "n"}),
    ]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("conference_sid,urls", f"'urls' is unknown: write {CSV_COLUMNS}"),
        ("conference_sid,Names", f"'Names' is unknown: write {CSV_COLUMNS}"),
        ("conference_sid,parameters.", f"'parameters.' is unknown: write {CSV_COLUMNS}"),
        ("conference_sid,parameters", "each parameter needs its own column: write it as parameters.NAME"),
        ("conference_sid,url,url", "the column url appears twice"),
        ("conference_sid,Url,URL", "the column url appears twice"),
        ("conference_sid,ConferenceSid", "the column conference_sid appears twice"),
        ("conference_sid,parameters.a,parameters.a", "the column parameters.a appears twice"),
    ],
)
def test_invalid_csv_header_is_the_only_error(header: str, sentence: str) -> None:
    assert read(f"\n{header}\nroom-1,a,b\nroom-2\n") == [(2, sentence)]


@pytest.mark.parametrize("last", ['room-3,"a"b', 'room-3,"never ends', 'room-3,"never\nends\n\n'])
def test_malformed_csv_row_is_reported_at_its_first_line(last: str) -> None:
    first, second = read(f'conference_sid,name\nroom-1,"a"\n{last}')
    assert first == (2, {"conference_sid": "room-1", "name": "a"})
    assert second[0] == 3
    assert second[1].startswith("this is not CSV: " if '"a"b' in last else "a quote opens here and is never closed")


def test_malformed_csv_row_does_not_hide_later_rows() -> None:
    """Rows after a malformed one are read; those after an unclosed quote cannot be, and that is reported."""
    lines = list(read_lines('conference_sid,name\nCF1,n\nCF2,"a"b\nCF3,n\nCF4,"open\nCF5,n\n', "conference_sid"))
    assert [line.number for line in lines] == [2, 3, 4, 5]
    assert [line.hides_more for line in lines if isinstance(line, BadLine)] == [False, True]


@given(
    st.lists(
        st.tuples(st.text("ab,;\"'\n {#é☎", max_size=8), st.text("ab,;\"'\n {#é☎", max_size=8)),
        min_size=1,
        max_size=6,
    )
)
def test_csv_from_the_csv_module_is_read_back_unchanged(rows: list[tuple[str, str]]) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["parameters.a", "conference_sid", "parameters.b"])
    expected: list[tuple[int, Any]] = []
    for index, (a, b) in enumerate(rows):
        number = written.getvalue().count("\n") + 1
        writer.writerow([a, f"room-{index}", b])
        own = {name: cell for name, cell in (("a", a), ("b", b)) if cell.strip()}
        expected.append((number, {"conference_sid": f"room-{index}"} | ({"parameters": own} if own else {})))
    assert read(written.getvalue()) == expected


def check_thousands(text: str, sentence: str) -> None:
    """Check that one of thousands of lines is reported, and all others are accepted."""
    good, bad = requests_of(text)
    assert bad == [BadLine(WRONG, sentence)]
    assert len(good) == COUNT - 1
    assert "room-2999" in {request.target for request in good}
    assert f"room-{WRONG}" not in {request.target for request in good}


def thousands(good: str, bad: str, first: int = 1) -> str:
    """Write thousands of lines, of which one is invalid."""
    numbers = range(first, first + COUNT)
    return "".join(f"{bad if number == WRONG else good % number}\n" for number in numbers)


def test_one_bad_line_of_thousands_of_ids() -> None:
    check_thousands(thousands("room-%d", "room;3001"), NO_ID)


def test_one_bad_line_of_thousands_of_json() -> None:
    check_thousands(
        thousands('{"conference_sid": "room-%d"}', '{"conference_sid": "room-3001"'),
        "this is not JSON: Expecting ',' delimiter",
    )


def test_one_bad_line_of_thousands_of_csv() -> None:
    check_thousands(
        "conference_sid,track\n" + thousands("room-%d,both_tracks", "room-3001,left", first=2),
        "track 'left' is unknown: write one of 'inbound_track', 'outbound_track', 'both_tracks'",
    )


def test_options_apply_to_every_line() -> None:
    good, bad = requests_of("one\ntwo\n", track="both_tracks", codec="PCMU", name=None, parameters={"tenant": "a"})
    assert bad == []
    assert good == [
        StartConferenceStream(
            conference_sid=sid, url=URL, track="both_tracks", codec="PCMU", parameters={"tenant": "a"}
        )
        for sid in ("one", "two")
    ]


def test_line_overrides_options_and_adds_parameters() -> None:
    [request], _ = requests_of(
        'conference_sid,url,realtime,parameters.tenant,parameters.line\nroom,"wss://b.example.com/x",false,b,1\n',
        realtime=True,
        parameters={"tenant": "a", "all": "0"},
    )
    assert request == StartConferenceStream(
        conference_sid="room",
        url="wss://b.example.com/x",
        realtime=False,
        parameters={"tenant": "b", "all": "0", "line": "1"},
    )


def test_call_ignores_conference_options() -> None:
    text = '{"call_sid": "leg"}\n{"conference_sid": "room"}\n'
    assert requests_of(text, codec="PCMU", realtime=True, track="both_tracks")[0] == [
        StartCallStream(call_sid="leg", url=URL, track="both_tracks"),
        StartConferenceStream(conference_sid="room", url=URL, codec="PCMU", realtime=True, track="both_tracks"),
    ]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "a line needs a conference_sid or a call_sid, and not both"),
        ({"conference_sid": "a", "call_sid": "b"}, "a line needs a conference_sid or a call_sid, and not both"),
        ({"conference_sid": ""}, "conference_sid is empty"),
        ({"conference_sid": 5}, "conference_sid must be a string, not a number"),
        ({"conference_sid": "a", "url": "ws://host/x"}, "wss://host/x"),
        ({"conference_sid": "a", "url": f"{URL}?key=hush"}, "has a query string"),
        ({"conference_sid": "a", "url": True}, "url must be a string, not a boolean"),
        ({"conference_sid": "a", "name": ["hush"]}, "name must be a string, not an array"),
        ({"conference_sid": "a", "name": "n", "unnamed": True}, "contradict each other"),
        ({"conference_sid": "a", "unnamed": "true"}, "unnamed must be true or false, not 'true'"),
        ({"conference_sid": "a", "track": "left"}, "track 'left' is unknown"),
        ({"conference_sid": "a", "codec": "MP3"}, "codec 'MP3' is unknown"),
        ({"conference_sid": "a", "realtime": 1}, "realtime must be true or false, not 1"),
        ({"conference_sid": "a", "status_callback": "https://u:hush@"}, "is not an http(s) URL"),
        ({"conference_sid": "a", "status_callback_method": "PUT"}, "status_callback_method 'PUT' is unknown"),
        ({"conference_sid": "a", "parameters": ["hush"]}, "parameters must be an object, not an array"),
        ({"conference_sid": "a", "parameters": {"pin": 5}}, "parameter 'pin' is a number: write its value as a string"),
        ({"conference_sid": "a", "parameters": {" ": "hush"}}, "a parameter has an empty name"),
        (
            {"conference_sid": "a", "authorization_bearer_token": "hush hush"},
            "contains whitespace or non-ASCII characters",
        ),
        ({"call_sid": "a", "codec": "PCMU"}, "codec is for conference streams only"),
        ({"call_sid": "a", "realtime": False}, "realtime is for conference streams only"),
    ],
)
def test_invalid_field_makes_its_line_invalid(fields: dict[str, Any], sentence: str) -> None:
    bad = only_bad(f"\n{json.dumps(fields)}\n")
    assert bad.number == 2
    assert sentence in bad.why
    assert "hush" not in bad.why


def test_line_without_any_url_is_invalid() -> None:
    requests, bad = make_requests(read_lines(f"conference_sid,url\none,\ntwo,{URL}\n", "call_sid"), {"url": None})
    assert bad == [BadLine(2, "there is no url: pass --url, or add one to the line")]
    assert requests == {3: StartConferenceStream(conference_sid="two", url=URL)}


def test_duplicate_target_and_name_is_invalid() -> None:
    good, bad = requests_of("conference_sid,name\nroom,a\nroom,b\nroom,\nother,a\nroom,a\nroom,\n")
    advice = "remove it, or give each of its streams its own name"
    assert bad == [
        BadLine(6, f"room is already on line 2: {advice}"),
        BadLine(7, f"room is already on line 4: {advice}"),
    ]
    assert [(request.target, request.name) for request in good] == [
        ("room", "a"),
        ("room", "b"),
        ("room", None),
        ("other", "a"),
    ]


def test_uuid_in_other_case_is_the_same_target() -> None:
    sid = "aaaaaaaa-0000-4000-8000-00000000000b"
    good, bad = requests_of(f"{sid}\n{sid.upper()}\nroom\nROOM\n")
    assert [line.number for line in bad] == [2]
    assert [request.target for request in good] == [sid, "room", "ROOM"]


def test_target_may_have_several_unnamed_streams() -> None:
    good, bad = requests_of("room\nroom\n", unnamed=True)
    assert (len(good), bad) == (2, [])


def test_invalid_lines_are_reported_in_file_order() -> None:
    good, bad = requests_of("a b\none\ntwo,three\none\n")
    assert [(line.number, line.why.partition(":")[0]) for line in bad] == [
        (1, "conference_sid 'a b' can't be part of a path"),
        (3, "this is not a sid"),
        (4, "one is already on line 2"),
    ]
    assert [request.target for request in good] == ["one"]


def test_repr_of_lines_and_requests_hides_secrets() -> None:
    text = '{"conference_sid": "room", "parameters": {"pin": "hush"}, "authorization_bearer_token": "hush"}'
    [line] = read_lines(text, "conference_sid")
    assert repr(line) == "Line(number=1)"
    assert "hush" not in repr(make_requests([line], {"url": URL}))
