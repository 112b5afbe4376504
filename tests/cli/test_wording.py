"""Error messages of the command line name options and JSON, not Python."""

import json
import re
from typing import Any

import pytest

from signalwire_streams._cli.output import for_command_line

from .bulk_runs import json_file
from .shell import URL, Shell

PYTHON = re.compile(
    r"\b(str|int|bool|list|dict|NoneType|True|False|None|mapping)\b|\w=(\W|$|True|False)|\w\(\)|async with"
)
STREAM: dict[str, Any] = {"conference_sid": "room", "url": URL}
JSON: tuple[Any, ...] = (5, 1.5, True, [], {}, "", " ", "a b")


def streams_with(name: str, *values: Any) -> list[dict[str, Any]]:
    """Return a stream for each value of a field."""
    return [{**STREAM, name: value} for value in values]


WRONG: list[dict[str, Any]] = [
    *(stream for name in ("conference_sid", "url", "name") for stream in streams_with(name, *JSON)),
    *(stream for name in ("track", "codec", "status_callback_method") for stream in streams_with(name, *JSON)),
    *(stream for name in ("unnamed", "realtime") for stream in streams_with(name, "true", 1, [], {})),
    *streams_with("status_callback", 5, "", "nowhere", "https://u:hush@", "ftp://host/"),
    *streams_with("authorization_bearer_token", 5, "", "hush hush", "hüsh"),
    *streams_with("parameters", 5, [], "a", True, {"": "a"}, {"a": 5}, {"a": None}, {"a": []}, {"a": "\ud800"}),
    *streams_with("parameters", {str(number): "a" for number in range(100)}),
    *streams_with("url", "wss://h/x?hush=1", "wss://u:hush@h/x", "wss://h/#a", "//h/x", "h/x", "ws://h", "wss://:0"),
    {**STREAM, "name": "n", "unnamed": True},
    {**STREAM, "call_sid": "leg"},
    {"call_sid": "leg", "url": URL, "codec": "PCMU"},
    {"call_sid": "leg", "url": URL, "realtime": True},
    {"url": URL},
    {"conference_sid": "room"},
]


async def test_errors_of_lines_use_no_python_terms(offline_shell: Shell, tmp_path: Any) -> None:
    file = json_file(tmp_path / "lines", WRONG)
    ran = await offline_shell("bulk", "start", file, "--json")
    assert ran.code == 2
    told = {line["line"]: line["message"] for line in ran.json["lines"]}
    assert set(told) == set(range(1, len(WRONG) + 1))
    assert [message for message in told.values() if PYTHON.search(message)] == []
    assert "hush" not in ran.out + ran.err


@pytest.mark.parametrize(
    "options",
    [
        ("--url", f"{URL}?key=hush"),
        ("--url", "wss://u:hush@host/x"),
        ("--url", URL, "--name", "n", "--unnamed"),
        ("--url", URL, "--may-be-running"),
        ("--url", URL, "--deadline", "-1"),
        ("--url", URL, "--status-callback", "nowhere"),
        ("--url", URL, "--space", "https://u:hush@host"),
        ("--url", URL, "--space", "a b"),
        ("--url", URL, "--project", "a:b"),
        ("--url", URL, "--project", "a b"),
    ],
)
async def test_errors_of_options_use_no_python_terms(offline_shell: Shell, options: tuple[str, ...]) -> None:
    ran = await offline_shell("conferences", "start-stream", "room", *options, "--json")
    assert ran.code == 2
    assert PYTHON.search(ran.json["message"]) is None
    assert ran.err == f"error: {ran.json['message']}\n"
    assert "hush" not in ran.out + ran.err


async def test_an_unknown_outcome_advises_options(shell: Shell, space: Any) -> None:
    space.faults.add("reset", on="start", executed=True)
    ran = await shell("conferences", "start-stream", space.conference_sids[0], "--url", URL, "--name", "n", "--json")
    assert (ran.code, ran.json["error"]) == (1, "StreamOutcomeUnknownError")
    assert PYTHON.search(json.dumps(ran.json["message"])) is None


@pytest.mark.parametrize(
    ("python", "command_line"),
    [
        ("start it again with that name and may_be_running=True", "start it again with --name and --may-be-running"),
        ("unnamed must be True or False, not True", "unnamed must be true or false, not true"),
        ("x must be a str, not dict", "x must be a string, not an object"),
        ("the listing of strings is of type A", "the listing of strings is of type A"),
    ],
)
def test_phrases_are_replaced_and_the_rest_is_left(python: str, command_line: str) -> None:
    assert for_command_line(python) == command_line
