"""``conferences get``, ``calls get`` and ``conferences participants``."""

import pytest

from signalwire_streams.simulator import SimulatedSpace

from .shell import Shell


async def test_conferences_get_shows_fields_of_the_conference(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.conference_sids[1]
    ran = await shell("conferences", "get", sid)
    assert (ran.code, ran.err) == (0, "")
    fields = dict(row.split(maxsplit=1) for row in ran.rows)
    assert list(fields) == ["sid", "name", "status", "region", "created", "updated"]
    assert (fields["sid"], fields["name"], fields["status"]) == (sid, "conference-4", "in-progress")
    assert fields["created"].endswith("Z")


async def test_a_conference_as_json_has_every_field(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "get", space.conference_sids[0], "--json")
    listed = await shell("conferences", "list", "--limit", "1", "--json")
    assert ran.json == listed.json


async def test_calls_get_shows_fields_of_the_call(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.add_call(from_number="+12015550100", to_number="+12015550101")
    ran = await shell("calls", "get", sid)
    assert (ran.code, ran.err) == (0, "")
    fields = dict(row.split("  ", maxsplit=1) for row in ran.rows)
    assert {name: value.strip() for name, value in fields.items()}.items() >= {
        ("sid", sid),
        ("status", "in-progress"),
        ("from", "+12015550100"),
        ("to", "+12015550101"),
    }


async def test_a_call_as_json_has_every_field(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("calls", "get", space.call_sids[0], "--json")
    assert ran.json["sid"] == space.call_sids[0]
    assert "extra" in ran.json
    assert "from" in ran.json


async def test_participants_are_listed_in_columns(shell: Shell, space: SimulatedSpace) -> None:
    ran = await shell("conferences", "participants", space.conference_sids[0])
    assert (ran.code, ran.err) == (0, "")
    assert ran.rows[0].split("  ")[0] == "CALL SID"
    assert [row.split()[2:4] for row in ran.rows[1:]] == [["no", "no"]] * 2


async def test_participants_as_json_are_one_per_line(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.conference_sids[0]
    ran = await shell("conferences", "participants", sid, "--json")
    assert [line["conference_sid"] for line in ran.lines] == [sid] * 2
    assert all(line["date_created"].endswith("+00:00") for line in ran.lines)
    one = await shell("conferences", "participants", sid, "--json", "--limit", "1")
    assert one.lines == ran.lines[:1]


async def test_participants_command_filters_by_muted_and_on_hold(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.conference_sids[0]
    assert (await shell("conferences", "participants", sid, "--muted", "--json")).lines == []
    assert len((await shell("conferences", "participants", sid, "--not-muted", "--not-on-hold", "--json")).lines) == 2


async def test_a_conference_without_participants_is_a_header(shell: Shell, space: SimulatedSpace) -> None:
    sid = space.add_conference(participants=0)
    ran = await shell("conferences", "participants", sid)
    assert (ran.code, ran.err, len(ran.rows)) == (0, "", 1)


@pytest.mark.parametrize("columns", [60, 80, 120])
async def test_a_table_of_participants_fits(shell: Shell, space: SimulatedSpace, columns: int) -> None:
    shell.pretend_terminal(columns)
    ran = await shell("conferences", "participants", space.conference_sids[0])
    assert max(map(len, ran.rows)) <= columns
    assert ("JOINED" in ran.rows[0]) is (columns >= 80)


COMMANDS = [("conferences", "get"), ("calls", "get"), ("conferences", "participants")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_an_unknown_sid_is_a_failure(shell: Shell, command: tuple[str, ...], options: tuple[str, ...]) -> None:
    ran = await shell(*command, "no-such-sid", *options)
    assert ran.code == 1
    assert "HTTP 404" in ran.err
    assert len(ran.err.splitlines()) == 1
    if options:
        assert (ran.json["error"], ran.json["status"]) == ("NotFoundError", 404)
    else:
        assert ran.out == ""


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_wrong_token_is_a_failure(shell: Shell, space: SimulatedSpace, command: tuple[str, ...]) -> None:
    shell.set({"SIGNALWIRE_API_TOKEN": "PTwrong-and-hush"})
    ran = await shell(*command, space.conference_sids[0], "--json")
    assert (ran.code, ran.json["error"], ran.json["status"]) == (1, "AuthenticationError", 401)
    assert "hush" not in ran.out + ran.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("sid", ["a/b", "..", "a b", ""])
async def test_a_sid_that_cannot_be_one_is_a_usage_error(
    offline_shell: Shell, command: tuple[str, ...], sid: str
) -> None:
    ran = await offline_shell(*command, sid)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
