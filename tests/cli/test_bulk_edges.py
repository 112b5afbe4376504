"""``bulk`` with unusual files, responses and values."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import ApiError, RunCancelledError, StreamsClient, TransportError
from signalwire_streams._cli.bulk_runner import BulkRunner, RunOptions
from signalwire_streams._cli.bulk_targets import Line, make_requests, read_lines
from signalwire_streams._cli.options import Account
from signalwire_streams.bulk._results import ADVICE
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import bytes_in, ids_file, json_file, offered
from .shell import URL, Shell, assert_usage_error

TO_URL = ("--url", URL)
RUN = ("--journal", "run.db")
RESUME = ("bulk", "resume", "run.db")


pytestmark = pytest.mark.usefixtures("folder")


def read(text: str) -> list[tuple[int, Any]]:
    return [
        (line.number, line.fields if isinstance(line, Line) else line.why)
        for line in read_lines(text, "conference_sid")
    ]


# Answers.


async def test_bulk_summary_has_advice_for_an_unusual_status(
    shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    space.faults.add("status", on="start", status=409, body="api", times=1)
    path = ids_file(tmp_path / "ids.txt", space.conference_sids)
    ran = await shell("bulk", "start", path, *TO_URL, *RUN)
    assert (ran.code, ran.err) == (1, "")
    assert "  1 x ApiError" in ran.out
    assert offered(ran, "resume") == list(RESUME)


def test_advice_exists_for_each_api_and_transport_error() -> None:
    families = (ApiError, TransportError)
    kinds = {kind for family in families for kind in (family, *family.__subclasses__())} - {RunCancelledError}
    assert {kind.__name__ for kind in kinds} - set(ADVICE) == set()


# Invalid secrets.


async def begin_with_secrets(shell: Shell, space: SimulatedSpace, path: Path, **fields: Any) -> None:
    space.faults.add("status", on="start", status=404, times=1)
    source = json_file(path / "targets.jsonl", [{"conference_sid": space.conference_sids[0], **fields}])
    assert (await shell("bulk", "start", source, *TO_URL, *RUN)).code == 1


@pytest.mark.parametrize("as_json", [False, True])
async def test_resume_rejects_an_invalid_status_callback(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, *, as_json: bool
) -> None:
    await begin_with_secrets(shell, space, tmp_path, status_callback="https://a.example.com/?key=hush")
    options = ["--json"] if as_json else []
    ran = await shell(*RESUME, "--status-callback", "a.example.com/?key=hush", *options)
    assert ran.code == 2
    assert "is not an http(s) URL" in ran.err
    assert "hush" not in ran.err + ran.out
    assert space.requests.count() == 1


async def test_resume_rejects_an_invalid_bearer_token(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    await begin_with_secrets(shell, space, tmp_path, authorization_bearer_token="hush")
    (tmp_path / "token").write_text("Bearer hush", encoding="utf-8")
    ran = await shell(*RESUME, "--bearer-token-file", str(tmp_path / "token"))
    assert_usage_error(ran, "authorization_bearer_token contains whitespace or non-ASCII characters")
    assert "hush" not in ran.err


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": {"pin": 5}},
        {"name": ["hush"]},
        {"name": {"hush": 1}},
    ],
)
async def test_resume_rejects_invalid_secrets_of_the_file(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, fields: dict[str, Any]
) -> None:
    await begin_with_secrets(shell, space, tmp_path, parameters={"pin": "hush"})
    source = json_file(tmp_path / "again.jsonl", [{"conference_sid": space.conference_sids[0], **fields}])
    ran = await shell(*RESUME, source)
    assert (ran.code, ran.out) == (2, "")
    assert "hush" not in ran.err
    assert space.requests.count() == 1


async def test_resume_gives_unnamed_streams_their_own_secrets(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path
) -> None:
    """They are matched by their order, as in the journal."""
    space.faults.add("status", on="start", status=404, times=2)
    lines = [
        {"conference_sid": space.conference_sids[0], "unnamed": True, "parameters": {"side": f"hush-{number}"}}
        for number in (1, 2)
    ]
    source = json_file(tmp_path / "targets.jsonl", lines)
    await shell("bulk", "start", source, *TO_URL, *RUN)
    assert (await shell(*RESUME, source)).code == 0
    assert sorted(stream.parameters["side"] for stream in space.streams.active()) == ["hush-1", "hush-2"]
    assert b"hush" not in bytes_in(folder)


# Values.


async def test_rate_option_rejects_nan(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "ids.txt", space.conference_sids)
    assert_usage_error(await shell("bulk", "start", path, *TO_URL, *RUN, "--rate", "nan"), "nan")


async def test_progress_shows_a_rate_below_one(client: StreamsClient) -> None:
    run = client.start_streams([])
    runner = BulkRunner(run, Account(None, None, as_json=False), RunOptions(rate=0.2), total=1)
    assert " of 0.2 requests/s" in runner._progress().line
    assert (await run.report()).total == 0


# Files.


@pytest.mark.parametrize("text", ["conference_sid,name\nroom,n\n", '{"conference_sid": "room", "name": "n"}\n'])
async def test_byte_order_mark_on_standard_input_is_ignored(
    bare_shell: Shell, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{text}"))
    ran = await bare_shell("bulk", "start", "-", *TO_URL, "--dry-run", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert (ran.json["target"], ran.json["name"]) == ("room", "n")


@pytest.mark.parametrize(
    ("header", "row"), [('"conference_sid","name"', '"room","n"'), ('"name","conference_sid"', '"n","room"')]
)
def test_csv_accepts_quoted_column_names(header: str, row: str) -> None:
    assert read(f"{header}\n{row}\n") == [(2, {"conference_sid": "room", "name": "n"})]


def test_csv_accepts_one_quoted_column() -> None:
    assert read('"call_sid"\n"leg"\n') == [(2, {"call_sid": "leg"})]


def test_unnamed_and_named_stream_of_one_target_are_accepted() -> None:
    lines = [{"conference_sid": "room", "unnamed": True}, {"conference_sid": "room"}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    requests, bad = make_requests(read_lines(text, "conference_sid"), {"url": URL})
    assert (len(requests), bad) == (2, [])


async def test_dry_run_shows_a_disabled_switch(bare_shell: Shell, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "ids.txt", ["room"])
    ran = await bare_shell("bulk", "start", path, *TO_URL, "--dry-run", "--no-realtime")
    assert ran.rows[0].split() == ["conference", "room", "sws-RUN-room", URL, "realtime=False"]
