"""``bulk resume JOURNAL FILE``: a secret is sent only with the stream whose line in the FILE it came from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from signalwire_streams import InvalidRequestError, PlannedRequest
from signalwire_streams._cli.bulk_secrets import Secrets, by_target
from signalwire_streams._cli.bulk_targets import Defaults, Requests, read_lines
from signalwire_streams.simulator import SimulatedSpace

from .bulk_runs import json_file
from .shell import Shell

ROOM = "aaaaaaaa-0000-0000-0000-000000000001"
OLD, NEW = "wss://old.example.com/a", "wss://new.example.com/a"
Fields = Mapping[str, Any]


def line(url: str | None = NEW, token: Any = "new", **fields: Any) -> dict[str, Any]:  # noqa: S107
    """Return a line for the room; without a url, one that relies on ``--url``."""
    own = {"conference_sid": ROOM, "authorization_bearer_token": token, "url": url, **fields}
    return {name: value for name, value in own.items() if value is not None}


def resumed(
    lines: Sequence[Fields], options: Fields, again: Sequence[Fields] | None = None
) -> list[tuple[str, str | None]]:
    """Start what the lines say, resume it with the same file or another, and return each url with its token."""

    def read(found: Sequence[Fields]) -> Any:
        return read_lines("".join(f"{json.dumps(one)}\n" for one in found), "conference_sid")

    plan = [PlannedRequest.from_request(one) for one in Requests.from_lines(read(lines), Defaults(options)).good]
    secrets = Secrets(lines=by_target(read(lines if again is None else again)))
    return [(one.url, one.authorization_bearer_token) for one in secrets.complete(lambda: plan)]


@pytest.mark.parametrize(
    "skipped",
    [
        line("http://old.example.com/a", "old"),
        line(OLD, "old", track="both"),
        line(OLD, "old", codec="MP3"),
        line(OLD, "old", name="n", unnamed=True),
        line(OLD, "old old"),
        line(OLD, "old", call_sid=ROOM),
        line(OLD, "old", parameters={"pin": 5}),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_resume_takes_no_secret_of_a_line_that_the_start_skipped(skipped: Fields, *, is_first: bool) -> None:
    lines = [skipped, line()] if is_first else [line(), skipped]
    assert resumed(lines, {}) == [(NEW, "new")]


def test_resume_takes_the_first_of_two_lines_for_one_stream() -> None:
    assert resumed([line(), line(token="old")], {}) == [(NEW, "new")]
    assert resumed([line(), line(OLD, "old")], {}) == [(NEW, "new")]


def test_resume_tells_a_call_from_a_conference_of_the_same_id() -> None:
    call = {"call_sid": ROOM, "url": NEW, "authorization_bearer_token": "call"}
    assert resumed([call, line(name="audit")], {}) == [(NEW, "call"), (NEW, "new")]
    assert resumed([{**call, "url": "no"}, line()], {}) == [(NEW, "new")]


def test_resume_matches_streams_without_a_name_by_their_order() -> None:
    lines = [line(token=f"{number}", unnamed=True) for number in range(3)]
    assert resumed(lines, {}) == [(NEW, "0"), (NEW, "1"), (NEW, "2")]
    lines = [line(OLD, "a", unnamed=True), line(NEW, "b", unnamed=True), line(OLD, "c")]
    assert resumed(lines, {}) == [(OLD, "a"), (NEW, "b"), (OLD, "c")]


def test_resume_matches_lines_that_rely_on_options_of_the_start() -> None:
    options = {"url": NEW, "track": "both_tracks", "name": "audit"}
    assert resumed([line(None, "a"), line(OLD, "b", name="other")], options) == [(NEW, "a"), (OLD, "b")]
    assert resumed([line(None, "a"), line(None, "b")], {"url": NEW, "unnamed": True}) == [(NEW, "a"), (NEW, "b")]


def test_resume_does_not_give_the_secret_of_a_duplicate_to_a_named_stream() -> None:
    """The second line was skipped as a duplicate. No option named it, since the first stream has no name."""
    lines = [line(token="first"), line(token="duplicate"), line(token="named", name="audit")]
    assert resumed(lines, {}) == [(NEW, "first"), (NEW, "named")]


def test_resume_refuses_to_guess_between_two_lines() -> None:
    """With ``--url`` the start took the first line and skipped the second, without it the other way round."""
    lines = [line(None, "a"), line(NEW, "b")]
    for options in ({}, {"url": NEW}):
        with pytest.raises(click.UsageError, match="lines 1 and 2 of the FILE have different secrets"):
            resumed(lines, options)
    assert resumed([line(None), line(NEW)], {}) == [(NEW, "new")]


def test_resume_refuses_a_file_whose_line_makes_another_stream() -> None:
    with pytest.raises(click.UsageError, match=r"no line of the FILE makes .* \(see line 1\)"):
        resumed([line(NEW)], {}, again=[line(OLD)])


def test_resume_accepts_a_file_that_only_repeats_the_secrets() -> None:
    lines = [line(token="a"), line(token="b", name="audit")]
    again = [line(None, "a"), line(None, "b", parameters={"more": "1"})]
    assert resumed(lines, {}, again) == [(NEW, "a"), (NEW, "b")]


def test_secrets_of_options_are_added_or_named_as_missing() -> None:
    [request] = Requests.from_lines(read_lines(json.dumps(line()), "conference_sid"), Defaults({})).good
    planned = PlannedRequest.from_request(request)
    assert Secrets(bearer_token="new").add_to(planned) == request
    with pytest.raises(InvalidRequestError, match=r"not kept in Redis \(bearer_token\)"):
        Secrets().add_to(planned)


async def test_bulk_resume_sends_the_secrets_of_the_lines_that_were_started(
    shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    sid = space.conference_sids[0]
    skipped, good = line("http://old.example.com/a", "old"), line(NEW, "new")
    file = json_file(tmp_path / "targets", [{**one, "conference_sid": sid} for one in (skipped, good)])
    journal = str(tmp_path / "run.db")
    space.faults.add("status", on="start", status=422, times=1)
    assert (await shell("bulk", "start", file, "--skip-invalid", "--journal", journal)).code == 1
    assert (await shell("bulk", "resume", journal, file)).code == 0
    [stream] = space.streams.active()
    assert (stream.url, stream.authorization_bearer_token) == (NEW, "new")


async def test_bulk_resume_reads_bare_ids_as_the_run_did(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    """The file has no secrets then, but it does not keep those of the options from being used."""
    (tmp_path / "calls").write_text(f"{space.call_sids[0]}\n")
    journal, calls = str(tmp_path / "run.db"), str(tmp_path / "calls")
    space.faults.add("status", on="start", status=422, times=1)
    start = ("bulk", "start", calls, "--kind", "call", "--url", NEW, "--parameter", "pin=1", "--journal", journal)
    assert (await shell(*start)).code == 1
    assert (await shell("bulk", "resume", journal, calls, "--parameter", "pin=1")).code == 0
    assert [stream.parameters for stream in space.streams.active()] == [{"pin": "1"}]
