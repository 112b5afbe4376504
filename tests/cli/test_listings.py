"""``conferences list`` and ``calls list``."""

import os
import sys

import pytest

from signalwire_streams.simulator import SimulatedSpace

from .shell import Ran, Shell, credentials, end_of, process


async def test_conferences_list_writes_columns(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "list")
    assert (ran.code, ran.err) == (0, "")
    header, *rows = ran.out.splitlines()
    assert header.split("  ")[0] == "SID"
    assert [row.split()[:3] for row in rows] == [
        [sid, "in-progress", name]
        for sid, name in zip(space.conference_sids, ["conference-1", "conference-4", "conference-7"], strict=True)
    ]
    assert "\x1b" not in ran.out
    assert all(row.split()[3].endswith("Z") for row in rows)


async def test_calls_list_writes_columns(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("calls", "list")
    assert (ran.code, ran.err) == (0, "")
    assert [row.split()[0] for row in ran.out.splitlines()[1:]] == space.call_sids


async def test_json_list_has_every_field_and_each_date_twice(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "list", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert [line["sid"] for line in ran.lines] == space.conference_sids
    first = ran.lines[0]
    assert first["date_created"].endswith("+00:00")
    assert first["date_created_text"].endswith("+0000")
    assert first["friendly_name"] == "conference-1"
    assert "extra" in first


async def test_json_call_has_from_as_in_the_api(shell: Shell) -> None:
    ran = await shell("calls", "list", "--json", "--limit", "1")
    [call] = ran.lines
    assert call["from"].startswith("+1")
    assert "from_" not in call
    assert call["end_time"] is None


async def test_conferences_list_filters_by_status_and_name(shell: Shell, space: SimulatedSpace) -> None:
    done = space.add_conference(status="completed", friendly_name="late")
    by_status = await shell("conferences", "list", "--json", "--status", "completed")
    by_name = await shell("conferences", "list", "--json", "--friendly-name", "late")
    assert [line["sid"] for line in by_status.lines] == [line["sid"] for line in by_name.lines] == [done]


async def test_calls_list_filters_by_caller_and_called_number(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.add_call(from_number="+12015550100", to_number="+12015550101")
    ran = await shell("calls", "list", "--json", "--from", "+12015550100", "--to", "+12015550101")
    assert [line["sid"] for line in ran.lines] == [sid]


async def test_limit_ends_the_list_and_the_reading(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "list", "--json", "--limit", "2")
    assert [line["sid"] for line in ran.lines] == space.conference_sids[:2]
    [request] = space.requests
    assert request.query["PageSize"] == "2"


async def test_list_follows_pages(shell: Shell, space: SimulatedSpace) -> None:
    for _ in range(250):
        space.add_conference(participants=0)
    ran = await shell("conferences", "list", "--json")
    assert [line["sid"] for line in ran.lines] == space.conference_sids
    assert space.requests[0].query["PageSize"] == "200"
    assert space.requests.count("list-conferences") == 2


async def test_list_removes_control_characters_from_names(shell: Shell, space: SimulatedSpace) -> None:
    space.add_conference(friendly_name="a\x1b[31m\r\nb [bold]c")
    ran = await shell("conferences", "list")
    assert "a [31m b [bold]c" in ran.out
    assert "\x1b" not in ran.out


async def test_empty_list_writes_only_the_header(shell: Shell) -> None:
    ran = await shell("conferences", "list", "--status", "completed")
    assert (ran.code, len(ran.out.splitlines())) == (0, 1)


@pytest.mark.parametrize(("columns", "titles"), [(80, "SID STATUS FROM TO"), (120, "SID STATUS FROM TO CREATED (UTC)")])
async def test_table_drops_columns_that_do_not_fit_the_terminal(
    shell: Shell, space: SimulatedSpace, columns: int, titles: str
) -> None:
    """A column that does not fit is omitted; sids are never truncated."""
    shell.pretend_terminal(columns)
    ran = await shell("calls", "list")
    assert max(map(len, ran.rows)) <= columns
    assert " ".join(ran.rows[0].split()) == titles
    assert [row.split()[0] for row in ran.rows[1:]] == space.call_sids


async def test_table_truncates_long_names_and_no_sid(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.add_conference(friendly_name="n" * 100)
    shell.pretend_terminal(60)
    ran = await shell("conferences", "list")
    titles, *_, row = ran.rows
    assert "CREATED" not in titles
    assert row.startswith(f"{sid}  in-progress  nnnn")
    assert row.endswith("…")
    assert len(row) <= 60


async def test_sid_is_not_truncated_on_a_very_narrow_terminal(shell: Shell, space: SimulatedSpace) -> None:
    shell.pretend_terminal(30)
    ran = await shell("conferences", "list")
    assert [row.split()[0] for row in ran.rows[1:]] == space.conference_sids


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
async def test_list_fits_a_pseudo_terminal(space: SimulatedSpace) -> None:
    ours, theirs = os.openpty()
    environment = {**credentials(space), "COLUMNS": "80", "TERM": "xterm"}
    try:
        async with process("calls", "list", environment=environment, stdout=theirs) as child:
            assert await end_of(child) == Ran(0, "", "")
        text = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "\x1b[1mSID" in text  # the titles are bold
    assert [line.split()[0] for line in text.splitlines()[1:]] == space.call_sids


@pytest.mark.parametrize("arguments", [("--status", "gone"), ("--limit", "0"), ("--limit", "many"), ("extra",)])
async def test_list_rejects_invalid_arguments(offline_shell: Shell, arguments: tuple[str, ...]) -> None:
    ran = await offline_shell("conferences", "list", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.endswith("(see 'signalwire-streams conferences list --help')\n")
    assert len(ran.err.splitlines()) == 1
