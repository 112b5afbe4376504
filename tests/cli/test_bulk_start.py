"""``bulk start``: from files of every kind, on all live targets, dry runs, and rejected input."""

import asyncio
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import BulkJournal, RateLimit
from signalwire_streams._cli.bulk_runner import rate_limit
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import bytes_in, files_in, held_space, ids_file, json_file, offered, table, until
from .shell import URL, Shell, assert_usage_error, credentials

START = ("bulk", "start")
TO_URL = ("--url", URL)


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def ids(tmp_path: Path, space: SimulatedSpace) -> str:
    """A file with the id of each of the Space's conferences."""
    return ids_file(tmp_path / "ids.txt", space.conference_sids)


def write_to_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize("command", ["start", "resume", "status", "stop"])
async def test_each_help_has_an_example(bare_shell: Shell, command: str) -> None:
    ran = await bare_shell("bulk", command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"  signalwire-streams bulk {command} " in ran.out.partition("Example")[2]
    assert ("SIGNALWIRE_API_TOKEN" in ran.out) is (command != "status")


async def test_bulk_start_starts_a_stream_for_each_id(
    shell: Shell, space: SimulatedSpace, ids: str, folder: Path
) -> None:
    ran = await shell(*START, ids, *TO_URL)
    assert (ran.code, ran.err) == (0, "")
    assert [stream.target_sid for stream in space.streams.active()] == space.conference_sids
    assert re.match(r"Started 3 of 3 streams in \d+ s\.\n", ran.out)
    assert table(ran)["started"] == "3"
    assert table(ran)["attempts"] == "3 (0 retried)"
    assert table(ran)["latency"].endswith(" ms")
    assert "resume" not in ran.out

    [journal] = files_in(folder, ".db")
    assert re.fullmatch(r"bulk-\d{8}T\d{6}Z-[0-9a-f]{4}\.db", journal.name)
    assert f"Journal: {journal.name}\n" in ran.out
    run = BulkJournal(journal).status().run
    assert [stream.name for stream in space.streams] == [f"sws-{run}-{sid}" for sid in space.conference_sids]


async def test_bulk_start_prints_the_command_that_stops_its_streams(
    shell: Shell, space: SimulatedSpace, ids: str
) -> None:
    """It has the options for the Space, and quotes the name of the file."""
    options = ("--space", space.base_url, "--project", space.project, "--journal", "-run of 'today'.db")
    shell.set({"SIGNALWIRE_SPACE": "elsewhere", "SIGNALWIRE_PROJECT_ID": "another"})
    started = await shell(*START, ids, *TO_URL, *options)
    assert (started.code, started.err) == (0, "")
    ran = await shell(*offered(started, "stop"))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Stopped 3 of 3 streams in ")
    assert space.streams.active() == []


async def test_bare_ids_may_be_calls(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    ran = await shell(*START, ids_file(tmp_path / "ids.txt", space.call_sids), *TO_URL, "--kind", "call")
    assert (ran.code, ran.err) == (0, "")
    assert [stream.target_sid for stream in space.streams.active()] == space.call_sids


async def test_every_column_of_csv_arrives(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    first, second, third = space.conference_sids
    path = tmp_path / "targets.csv"
    path.write_bytes(
        "\ufeffconference_sid,call_sid,url,name,unnamed,track,codec,realtime,status_callback,status_callback_method,"
        "authorization_bearer_token,parameters.tenant,parameters.note\r\n"
        f"{first},,wss://b.example.com/x,audit,,inbound_track,PCMA,false,https://app.example.com/hear,GET,bearer,"
        'a,"one, ""two""\r\nthree"\r\n'
        "\r\n"
        f"{second},,,,true,,,,,,,,\r\n"
        f",{space.call_sids[0]},,,,,,,,,,,\r\n"
        f"{third},,,,,,,,,,,,\r\n".encode()
    )
    ran = await shell(*START, str(path), *TO_URL, "--codec", "PCMU", "--track", "both_tracks")
    assert (ran.code, ran.err) == (0, "")
    streams = {stream.target_sid: stream for stream in space.streams.active()}
    assert len(streams) == 4
    full = streams[first]
    assert (full.url, full.name, full.track, full.codec) == ("wss://b.example.com/x", "audit", "inbound_track", "PCMA")
    assert (full.realtime, full.authorization_bearer_token) == (False, "bearer")
    assert (full.status_callback, full.status_callback_method) == ("https://app.example.com/hear", "GET")
    assert full.parameters == {"tenant": "a", "note": 'one, "two"\nthree'}
    assert (streams[second].name, streams[second].codec, streams[second].track) == (None, "PCMU", "both_tracks")
    assert streams[third].url == URL
    assert streams[space.call_sids[0]].track == "both_tracks"


async def test_json_lines_may_name_conferences_and_calls(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"conference_sid": space.conference_sids[0], "name": "a", "parameters": {"line": "1"}},
        {"conference_sid": space.conference_sids[0], "name": "b", "url": "wss://b.example.com/x"},
        {"call_sid": space.call_sids[0], "parameters": {"tenant": "other"}},
    ]
    path = json_file(tmp_path / "targets.jsonl", lines)
    ran = await shell(*START, path, *TO_URL, "--parameter", "tenant=all", "--realtime")
    assert (ran.code, ran.err) == (0, "")
    assert [(stream.target_sid, stream.url, stream.parameters) for stream in space.streams.active()] == [
        (space.conference_sids[0], URL, {"tenant": "all", "line": "1"}),
        (space.conference_sids[0], "wss://b.example.com/x", {"tenant": "all"}),
        (space.call_sids[0], URL, {"tenant": "other"}),
    ]


async def test_bulk_start_applies_options_to_every_line(
    shell: Shell, space: SimulatedSpace, ids: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("bearer-of-audio\n", encoding="utf-8")
    ran = await shell(
        *(*START, ids, *TO_URL, "--name", "audit", "--track", "outbound_track", "--codec", "L16", "--no-realtime"),
        *("--status-callback", "https://app.example.com/hear", "--status-callback-method", "POST"),
        *("--parameter", "tenant=a", "--bearer-token-file", str(tmp_path / "token")),
    )
    assert (ran.code, ran.err) == (0, "")
    assert len(space.streams.active()) == 3
    for stream in space.streams:
        assert (stream.name, stream.track, stream.codec, stream.realtime) == ("audit", "outbound_track", "L16", False)
        assert (stream.status_callback, stream.status_callback_method) == ("https://app.example.com/hear", "POST")
        assert (stream.parameters, stream.authorization_bearer_token) == ({"tenant": "a"}, "bearer-of-audio")


async def test_the_file_may_be_standard_input(
    shell: Shell, space: SimulatedSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to_stdin(monkeypatch, "\n".join(["# of today", *space.conference_sids]))
    ran = await shell(*START, "-", *TO_URL)
    assert (ran.code, ran.err) == (0, "")
    assert len(space.streams.active()) == 3


async def test_standard_input_may_be_the_token_instead(
    shell: Shell, space: SimulatedSpace, ids: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to_stdin(monkeypatch, "bearer-of-audio\n")
    assert (await shell(*START, ids, *TO_URL, "--bearer-token-file", "-")).code == 0
    assert {stream.authorization_bearer_token for stream in space.streams} == {"bearer-of-audio"}


async def test_standard_input_is_not_both(offline_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    write_to_stdin(monkeypatch, "hush\n")
    ran = await offline_shell(*START, "-", *TO_URL, "--bearer-token-file", "-")
    assert_usage_error(ran, "standard input can't be the FILE and the bearer token")


@pytest.mark.parametrize("kind", ["conference", "call"])
async def test_bulk_start_all_in_progress_starts_a_stream_on_each(
    shell: Shell, space: SimulatedSpace, kind: str
) -> None:
    """Those that have ended get none."""
    space.add_conference(status="completed")
    space.add_call(status="completed")
    live = (space.conference_sids[:3], space.call_sids[:2])[kind == "call"]
    ran = await shell(*START, "--all-in-progress", "--kind", kind, *TO_URL)
    assert (ran.code, ran.err) == (0, "")
    assert sorted(stream.target_sid for stream in space.streams.active()) == sorted(live)


@pytest.mark.parametrize("source", ["file", "list"])
async def test_bulk_start_without_targets_succeeds(
    bare_shell: Shell, tmp_path: Path, folder: Path, source: str
) -> None:
    async with SimulatedSpace() as space:
        bare_shell.set(credentials(space))
        what = ids_file(tmp_path / "ids.txt", []) if source == "file" else "--all-in-progress"
        ran = await bare_shell(*START, what, *TO_URL)
        as_json = await bare_shell(*START, what, *TO_URL, "--json")
    assert (ran.code, ran.out, ran.err) == (0, "There is nothing to start.\n", "")
    assert (as_json.code, as_json.json, as_json.err) == (0, {"report": {"ok": True, "planned": 0, "completed": 0}}, "")
    assert files_in(folder) == []


async def test_bulk_start_writes_outcomes_and_report_as_json(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {"conference_sid": space.conference_sids[0], "name": "audit"},
        {"call_sid": space.call_sids[0], "unnamed": True},
        {"conference_sid": "no-such-room"},
    ]
    path = json_file(tmp_path / "targets.jsonl", lines)
    ran = await shell(*START, path, *TO_URL, "--json", "--journal", "run.db")
    assert (ran.code, ran.err) == (1, "")
    *outcomes, report = ran.lines
    room, leg, missing = sorted(outcomes, key=lambda outcome: outcome["index"])
    sids = {stream.target_sid: stream.sid for stream in space.streams}

    assert room.pop("duration") > 0
    assert room == {
        "index": 0,
        "kind": "conference",
        "target": space.conference_sids[0],
        "status": "started",
        "sid": sids[space.conference_sids[0]],
        "name": "audit",
        "ambiguous": False,
        "attempts": 1,
        "error": None,
        "message": None,
    }
    assert (leg["kind"], leg["target"], leg["status"]) == ("call", space.call_sids[0], "started")
    assert leg["sid"] == sids[space.call_sids[0]]
    assert (missing["status"], missing["sid"], missing["error"]) == ("rejected", None, "NotFoundError")
    assert "no-such-room" in missing["message"]

    facts = report.pop("report")
    assert report == {}
    assert facts.pop("seconds") > 0
    latencies = facts.pop("latencies")
    assert list(latencies) == ["p50", "p95", "p99", "p100"]
    assert sorted(latencies.values()) == list(latencies.values())
    assert facts == {
        "ok": False,
        "planned": 3,
        "completed": 3,
        "already_done": 0,
        "counts": {"started": 2, "rejected": 1},
        "attempts": 3,
        "retries": 0,
        "errors": {"NotFoundError 20404": 1},
        "interrupted": False,
        "journal": "run.db",
        "resume_command": "signalwire-streams bulk resume run.db",
    }
    assert (folder / "run.db").exists()


@pytest.mark.parametrize("as_json", [False, True])
async def test_bulk_start_counts_retries(shell: Shell, space: SimulatedSpace, ids: str, *, as_json: bool) -> None:
    """A start whose response is lost is sent again under its name."""
    space.faults.add("reset", on="start", executed=True, times=1)
    ran = await shell(*START, ids, *TO_URL, *(["--json"] if as_json else []))
    assert (ran.code, len(space.streams.active()), space.streams.duplicates()) == (0, 3, [])
    if as_json:
        report = ran.lines[-1]["report"]
        assert (report["attempts"], report["retries"], report["ok"], report["resume_command"]) == (4, 1, True, None)
        assert sum(outcome["ambiguous"] for outcome in ran.lines[:-1]) == 1
    else:
        assert table(ran)["attempts"] == "4 (1 retried)"


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (400, "BadRequestError", "The Space rejected the request"),
        (403, "PermissionDeniedError", "add the scope in the dashboard"),
        (404, "NotFoundError", "check the sid, or skip it"),
        (422, "UnprocessableError", "The Space rejected a field"),
    ],
)
async def test_bulk_summary_has_an_example_and_advice_for_errors(
    shell: Shell, space: SimulatedSpace, ids: str, status: int, error: str, advice: str
) -> None:
    space.faults.add("status", on="start", status=status, target=space.conference_sids[2], body="api")
    ran = await shell(*START, ids, *TO_URL, "--concurrency", "1")
    assert (ran.code, ran.err) == (1, "")
    assert (table(ran)["started"], table(ran)["rejected"]) == ("2", "1")
    _, errors = ran.out.split("Errors:\n")
    count, example, sentence, *_ = errors.splitlines()
    assert re.fullmatch(rf"  1 x {error}( \d+)?", count)
    assert example.startswith(f"      for example: start a stream on conference {space.conference_sids[2]}: ")
    assert advice in sentence
    assert offered(ran, "resume")[-1] == offered(ran, "stop")[-1]


async def test_a_wrong_token_ends_the_run_at_once(shell: Shell, space: SimulatedSpace, ids: str) -> None:
    shell.set({"SIGNALWIRE_API_TOKEN": "PTwrong-and-hush"})
    ran = await shell(*START, ids, *TO_URL, "--concurrency", "1")
    assert (ran.code, ran.err) == (1, "")
    assert space.requests.count() == 1
    assert (table(ran)["rejected"], table(ran)["pending"]) == ("1", "2")
    assert "  1 x AuthenticationError 20003\n" in ran.out
    assert "check SIGNALWIRE_PROJECT_ID and SIGNALWIRE_API_TOKEN." in ran.out
    assert "RunCancelledError" not in ran.out
    assert "hush" not in ran.out


@pytest.mark.parametrize("resend", [False, True])
async def test_call_start_with_lost_response_is_resent_only_on_request(
    shell: Shell, space: SimulatedSpace, *, resend: bool
) -> None:
    space.faults.add("reset", on="start", executed=True, times=1)
    options = ["--resend-call-starts"] if resend else []
    ran = await shell(*START, "--all-in-progress", "--kind", "call", *TO_URL, *options)
    assert space.requests.count("start-call-stream") == 2 + resend
    assert ran.code == (0 if resend else 1)
    assert ("These may be running." in ran.out) is not resend
    assert table(ran).get("unknown") == (None if resend else "1")


@pytest.mark.parametrize("options", [(), ("--no-journal",)])
async def test_concurrency_option_limits_requests_in_flight(bare_shell: Shell, options: tuple[str, ...]) -> None:
    async with held_space(conferences=7) as (space, held):
        bare_shell.set(credentials(space))
        going = asyncio.create_task(bare_shell(*START, "--all-in-progress", *TO_URL, "--concurrency", "3", *options))
        await until(lambda: held.most == 3)
        held.let_go()
        ran = await going
    assert (ran.code, table(ran)["started"]) == (0, "7")
    assert held.most == 3


@pytest.mark.parametrize(("rate", "requests"), [(0.1, 1), (2.5, 25), (10.0, 100), (1380.0, 13_800)])
def test_rate_option_is_used_in_full(rate: float, requests: int) -> None:
    """No part of it is left to other clients."""
    limit = rate_limit(rate)
    assert (limit.max_requests, limit.window) == (requests, 10.0)


def test_default_rate_leaves_a_part_of_the_limit() -> None:
    assert rate_limit(None) == RateLimit()


# Dry runs.


async def test_a_dry_run_needs_no_account_and_leaves_nothing(bare_shell: Shell, tmp_path: Path, folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"conference_sid": "room-1", "track": "both_tracks", "codec": "PCMU", "realtime": True},
        {"call_sid": "leg", "url": "wss://b.example.com/x", "name": "a"},
        {"conference_sid": "room-2", "unnamed": True},
    ]
    ran = await bare_shell(*START, json_file(tmp_path / "targets.jsonl", lines), *TO_URL, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert [row.split() for row in ran.rows] == [
        ["conference", "room-1", "sws-RUN-room-1", URL, "track=both_tracks", "codec=PCMU", "realtime=True"],
        ["call", "leg", "a", "wss://b.example.com/x"],
        ["conference", "room-2", "-", URL, "unnamed=True"],
        ["3", "streams", "would", "be", "started.", "Nothing", "was", "sent."],
    ]
    assert files_in(folder) == []


async def test_a_dry_run_gives_json(bare_shell: Shell, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"conference_sid": "room", "realtime": False, "status_callback": "https://app.example.com/hear"},
        {"call_sid": "leg", "name": "a"},
    ]
    ran = await bare_shell(*START, json_file(tmp_path / "targets.jsonl", lines), *TO_URL, "--dry-run", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        {
            "kind": "conference",
            "target": "room",
            "url": URL,
            "name": "sws-RUN-room",
            "unnamed": False,
            "realtime": False,
            "status_callback": "https://app.example.com/hear",
        },
        {"kind": "call", "target": "leg", "url": URL, "name": "a", "unnamed": False},
    ]


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_dry_run_names_secrets_and_shows_none(bare_shell: Shell, tmp_path: Path, *, as_json: bool) -> None:
    line = {
        "conference_sid": "room",
        "parameters": {"pin": "hush", "card": "hush"},
        "authorization_bearer_token": "hush",
        "status_callback": "https://user:hush@app.example.com/hear?key=hush",
    }
    path = json_file(tmp_path / "targets.jsonl", [line])
    ran = await bare_shell(*START, path, *TO_URL, "--dry-run", *(["--json"] if as_json else []))
    assert (ran.code, ran.err) == (0, "")
    assert "hush" not in ran.out
    if as_json:
        assert ran.json["parameters"] == {"pin": "***", "card": "***"}
        assert ran.json["authorization_bearer_token"] == ran.json["status_callback"] == "***"
    else:
        assert set(ran.rows[0].split()[4:]) == {
            "parameters=pin,card",
            "authorization_bearer_token=***",
            "status_callback=***",
        }


async def test_a_dry_run_on_all_that_is_live_only_lists(shell: Shell, space: SimulatedSpace, folder: Path) -> None:
    ran = await shell(*START, "--all-in-progress", *TO_URL, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert [row.split()[1] for row in ran.rows[:-1]] == space.conference_sids
    assert space.requests.counts() == {"list-conferences": 1}
    assert files_in(folder) == []


# Without a journal.


async def test_bulk_start_without_a_journal_warns_once(
    shell: Shell, space: SimulatedSpace, ids: str, folder: Path
) -> None:
    note = "No journal: this run can't be resumed after a crash, nor rolled back with 'bulk stop'.\n"
    before = files_in(folder)
    ran = await shell(*START, ids, *TO_URL, "--no-journal", "--name", "audit")
    assert (ran.code, ran.err, table(ran)["started"]) == (0, note, "3")
    assert not {"Journal", "Resume", "Roll back"} & {row.partition(":")[0] for row in ran.rows}
    again = await shell(*START, ids, *TO_URL, "--no-journal", "--json", "--unnamed")
    report = again.lines[-1]["report"]
    assert (again.code, again.err) == (0, note)
    assert (report["ok"], report["planned"], report["journal"], report["resume_command"]) == (True, 3, None, None)
    assert files_in(folder) == before
    assert len(space.streams.active()) == 6


async def test_bulk_start_without_a_journal_reports_failures(shell: Shell, space: SimulatedSpace, ids: str) -> None:
    space.faults.add("status", on="start", status=404, times=1)
    ran = await shell(*START, ids, *TO_URL, "--no-journal")
    assert (ran.code, table(ran)["rejected"]) == (1, "1")
    assert "bulk resume" not in ran.out


async def test_journal_and_no_journal_exclude_each_other(offline_shell: Shell, ids: str) -> None:
    assert_usage_error(
        await offline_shell(*START, ids, *TO_URL, "--no-journal", "--journal", "run.db"),
        "--journal and --no-journal contradict each other",
    )


async def test_a_dry_run_of_nothing(bare_shell: Shell, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "ids.txt", [])
    ran = await bare_shell(*START, path, "--dry-run")
    as_json = await bare_shell(*START, path, "--dry-run", "--json")
    assert (ran.code, ran.out) == (0, "0 streams would be started. Nothing was sent.\n")
    assert (as_json.code, as_json.out) == (0, "")


# Invalid lines, options and files.


async def test_one_bad_line_starts_nothing(shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path) -> None:
    path = ids_file(tmp_path / "ids.txt", [space.conference_sids[0], "a,b", space.conference_sids[1], "a b"])
    ran = await shell(*START, path, *TO_URL)
    assert (ran.code, ran.out) == (2, "")
    second, fourth, verdict = ran.err.splitlines()
    assert second.startswith(f"{path}:2: this is not a sid: ")
    assert fourth.startswith(f"{path}:4: conference_sid 'a b' can't be part of a path: ")
    assert verdict == (
        "error: 2 of 4 lines are invalid, and nothing was started: fix them, or skip them with --skip-invalid"
    )
    assert space.requests.count() == 0
    assert files_in(folder) == []


async def test_invalid_lines_are_reported_in_json(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    path = ids_file(tmp_path / "ids.txt", [space.conference_sids[0], "a,b"])
    ran = await shell(*START, path, *TO_URL, "--json")
    assert ran.code == 2
    assert ran.json["error"] == "InvalidLines"
    [line] = ran.json["lines"]
    assert line["line"] == 2
    assert line["message"].startswith("this is not a sid: ")
    assert len(ran.err.splitlines()) == 2
    assert space.requests.count() == 0


async def test_skip_invalid_starts_the_valid_lines(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    first, second, _ = space.conference_sids
    path = json_file(tmp_path / "targets.jsonl", [{"conference_sid": first}, {}, {"conference_sid": second}])
    ran = await shell(*START, path, *TO_URL, "--skip-invalid")
    assert ran.code == 0
    told, left_out = ran.err.splitlines()
    assert told == f"{path}:2: a line needs a conference_sid or a call_sid, and not both"
    assert left_out == "1 invalid lines skipped."
    assert ran.out.startswith("Started 2 of 2 streams in ")
    assert [stream.target_sid for stream in space.streams.active()] == [first, second]


async def test_unreadable_rest_of_a_file_starts_nothing(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    """Lines that cannot be read cannot be skipped knowingly."""
    path = tmp_path / "targets.csv"
    path.write_text(f'conference_sid,name\n{space.conference_sids[0]},n\nroom,"open\nother,n\n', encoding="utf-8")
    ran = await shell(*START, str(path), *TO_URL, "--skip-invalid")
    assert ran.code == 2
    assert "not every line could be read" in ran.err
    assert space.requests.count() == 0


async def test_all_invalid_lines_of_thousands_are_reported(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    wrong = (1, 2_000, 2_001, 4_000)
    path = ids_file(
        tmp_path / "ids.txt", ["a b" if number in wrong else f"room-{number}" for number in range(1, 4_001)]
    )
    ran = await shell(*START, path, *TO_URL)
    assert ran.code == 2
    *lines, verdict = ran.err.splitlines()
    assert [line.removeprefix(f"{path}:").partition(":")[0] for line in lines] == [str(number) for number in wrong]
    assert "4 of 4,000 lines are invalid" in verdict
    assert space.requests.count() == 0


async def test_error_of_a_line_has_no_control_characters(bare_shell: Shell, tmp_path: Path) -> None:
    """Neither can a file's name."""
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text(json.dumps({"\x1b[2J": 1}) + "\n", encoding="utf-8")
    ran = await bare_shell(*START, str(path), *TO_URL)
    assert ran.code == 2
    assert "\x1b" not in ran.err


async def test_error_of_a_line_has_no_secret(bare_shell: Shell, tmp_path: Path) -> None:
    secrets = {"parameters": {"pin": "hush"}, "authorization_bearer_token": "hush"}
    lines: list[dict[str, Any]] = [
        {"conference_sid": "a b", **secrets},
        {"conference_sid": "room", "url": f"{URL}?key=hush"},
        {"conference_sid": "room", "status_callback": "app.example.com/hear?key=hush"},
        {"conference_sid": "room", "authorization_bearer_token": "Bearer hush"},
    ]
    path = json_file(tmp_path / "targets.jsonl", lines)
    ran = await bare_shell(*START, path, *TO_URL, "--json")
    assert (ran.code, len(ran.json["lines"])) == (2, 4)
    assert "hush" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "pass a FILE of sids, - for standard input, or --all-in-progress"),
        (("ids", "--all-in-progress"), "pass a FILE of sids, - for standard input, or --all-in-progress"),
        (("ids", "more"), "unexpected extra argument (more)"),
        (("ids", "--kind", "call", "--codec", "PCMU"), "--codec is for conference streams only"),
        (("ids", "--kind", "call", "--no-realtime"), "--realtime is for conference streams only"),
        (("ids", "--kind", "room"), "'room' is not one of 'conference', 'call'"),
        (("ids", "--concurrency", "0"), "0 is not in the range x>=1"),
        (("ids", "--rate", "0"), "0.0 is not in the range 0.1<=x<=1380.0"),
        (("ids", "--rate", "1381"), "1381.0 is not in the range 0.1<=x<=1380.0"),
        (("ids", "--track", "left"), "'left' is not one of 'inbound_track'"),
        (("ids", "--deadline", "3"), "No such option '--deadline'"),
        (("ids", "--parameter", "hush"), "write it as NAME=VALUE"),
        (("ids", "--bearer-token-file", "hush"), "can't be read: No such file"),
        (("ids",), "ids can't be read: No such file or directory"),
        (("ids\0",), "ids can't be read: write the name of a text file in UTF-8, or -"),
        ((".",), ". can't be read: "),
        (("ids", "--codec", "MP3"), "MP3"),
        (("ids", "--url", "ws://host/x"), "wss://host/x"),
        (("ids", *TO_URL, "--status-callback", "x"), "is not an http(s) URL"),
        (("--all-in-progress",), "there is no url: pass --url"),
        (("--all-in-progress", "--url", "ws://host/x"), "wss://host/x"),
        (("--all-in-progress", *TO_URL, "--name", "a", "--unnamed"), "contradict each other"),
    ],
)
async def test_invalid_line_is_rejected_in_one_sentence(
    shell: Shell, space: SimulatedSpace, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = await shell(*START, *arguments)
    assert_usage_error(ran, sentence)
    assert "hush" not in ran.err
    assert space.streams.active() == []


async def test_file_that_is_not_text_is_a_usage_error(offline_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xff\xfe\x00")
    assert_usage_error(
        await offline_shell(*START, str(tmp_path / "ids"), *TO_URL), "write the name of a text file in UTF-8"
    )


async def test_a_closed_standard_input_is_a_usage_error(bare_shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ran = await bare_shell(*START, "-", *TO_URL, "--dry-run")
    assert_usage_error(ran, "standard input is closed: name a FILE, or pipe it in")


async def test_missing_credentials_are_a_usage_error(bare_shell: Shell, tmp_path: Path) -> None:
    ran = await bare_shell(*START, ids_file(tmp_path / "ids.txt", ["room"]), *TO_URL)
    assert_usage_error(ran, "set SIGNALWIRE_SPACE (or --space)")


async def test_bulk_start_never_overwrites_a_journal(
    shell: Shell, space: SimulatedSpace, ids: str, folder: Path
) -> None:
    (folder / "run.db").write_text("somebody's", encoding="utf-8")
    ran = await shell(*START, ids, *TO_URL, "--journal", "run.db")
    assert_usage_error(ran, "the journal run.db already exists: resume it, or choose another file")
    assert (folder / "run.db").read_text(encoding="utf-8") == "somebody's"
    assert space.requests.count() == 0


async def test_journal_in_a_missing_folder_is_a_usage_error(shell: Shell, space: SimulatedSpace, ids: str) -> None:
    ran = await shell(*START, ids, *TO_URL, "--journal", "no/run.db", "--json")
    assert (ran.code, ran.json["error"]) == (2, "InvalidRequestError")
    assert "name a file in a writable folder" in ran.json["message"]
    assert space.requests.count() == 0


async def test_no_output_and_no_journal_holds_a_secret(
    shell: Shell, space: SimulatedSpace, tmp_path: Path, folder: Path
) -> None:
    """Not even when the Space repeats what it was sent."""
    (tmp_path / "token").write_text("hush-bearer", encoding="utf-8")
    space.faults.add("status", on="start", status=422, target=space.conference_sids[1], body="api")
    space.faults.add("reset", on="start", target=space.conference_sids[2], executed=True)
    secrets = ["hush-bearer", "hush-parameter", "hush-callback", space.token]
    options = ["--parameter", "key=hush-parameter", "--bearer-token-file", str(tmp_path / "token")]
    options += ["--status-callback", "https://user:hush-callback@app.example.com/hear?key=hush-callback"]
    lines: list[dict[str, Any]] = [
        {"conference_sid": sid, "unnamed": True, "parameters": {"own": "hush-own"}} for sid in space.conference_sids
    ]
    path = json_file(tmp_path / "targets.jsonl", lines)
    runs = [await shell(*START, path, *TO_URL, *options), await shell(*START, path, *TO_URL, *options, "--json")]
    assert [ran.code for ran in runs] == [1, 1]
    assert "(and pass its secrets again)" in runs[0].out
    assert {tuple(stream.parameters.values()) for stream in space.streams} == {("hush-parameter", "hush-own")}
    kept = bytes_in(folder) + "".join(ran.out + ran.err for ran in runs).encode()
    assert space.conference_sids[0].encode() in kept
    assert [secret for secret in [*secrets, "hush-own"] if secret.encode() in kept] == []


async def test_resume_command_can_be_pasted(shell: Shell, space: SimulatedSpace, ids: str) -> None:
    space.faults.add("status", on="start", status=404, times=1)
    started = await shell(*START, ids, *TO_URL, "--json", "--journal", "to day.db", "--project", space.project)
    command = shlex.split(started.lines[-1]["report"]["resume_command"])
    assert command == ["signalwire-streams", "bulk", "resume", "--project", space.project, "to day.db"]
    ran = await shell(*command[1:])
    assert (ran.code, table(ran)["started"], table(ran)["from earlier runs"]) == (0, "3", "2")
    assert len(space.streams.active()) == 3
