"""``bulk resume JOURNAL FILE``: a secret is sent only with the stream whose line in the FILE it came from."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, strategies as st

from signalwire_streams import InvalidRequestError, PlannedRequest
from signalwire_streams._cli.bulk_secrets import Secrets, by_target
from signalwire_streams._cli.bulk_targets import make_requests, read_lines
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
) -> list[tuple[str, object]]:
    """Start what the lines say, resume it with the same file or another, and return each url with its token."""

    def read(found: Sequence[Fields]) -> Any:
        return read_lines("".join(f"{json.dumps(one)}\n" for one in found), "conference_sid")

    plan = [PlannedRequest.from_request(one) for one in make_requests(read(lines), options)[0].values()]
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


def test_resume_distinguishes_a_call_from_a_conference_of_the_same_sid() -> None:
    call = {"call_sid": ROOM, "url": NEW, "authorization_bearer_token": "call"}
    assert resumed([call, line(name="audit")], {}) == [(NEW, "call"), (NEW, "new")]
    assert resumed([{**call, "url": "no"}, line()], {}) == [(NEW, "new")]


def test_resume_matches_streams_without_a_name_by_their_order() -> None:
    lines = [line(token=f"{number}", unnamed=True) for number in range(3)]
    assert resumed(lines, {}) == [(NEW, "0"), (NEW, "1"), (NEW, "2")]
    lines = [line(OLD, "a", unnamed=True), line(NEW, "b", unnamed=True), line(OLD, "c")]
    assert resumed(lines, {}) == [(OLD, "a"), (NEW, "b"), (OLD, "c")]


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        # The run had --url, so it started both lines: they are told apart by their order.
        ([line(None, "a", unnamed=True), line(NEW, "b", unnamed=True)], {"url": NEW}, ["a", "b"]),
        ([line(NEW, "a", unnamed=True), line(None, "b", unnamed=True)], {"url": NEW}, ["a", "b"]),
        # It had none, so the line without a url was skipped.
        ([line(None, "a", unnamed=True), line(NEW, "b", unnamed=True)], {}, ["b"]),
        ([line(NEW, "a", unnamed=True), line(None, "b", unnamed=True)], {}, ["a"]),
        ([line(None, "a"), line(NEW, "b"), line(NEW, "c", name="n")], {"url": NEW, "unnamed": True}, ["a", "b", "c"]),
        ([line(None, "a", track="inbound_track"), line(NEW, "b")], {"url": NEW, "unnamed": True}, ["a", "b"]),
        ([line(token="a", unnamed=True), line(token=None, unnamed=True)], {}, ["a", None]),
        (
            [line(None, "a"), line(None, "b", track="inbound_track"), line(NEW, "c")],
            {"url": NEW, "unnamed": True, "track": "inbound_track"},
            ["a", "b", "c"],
        ),
        (
            [
                line(token="a", unnamed=True, parameters={"x": "1"}),
                line(token="b", unnamed=True, parameters={"x": "1", "y": "2"}),
                line(token="c", unnamed=True, parameters={"y": "3", "x": "4"}),
                line(token=None, unnamed=True, parameters={"y": "3", "x": "4"}),
            ],
            {},
            ["a", "b", "c", None],
        ),
    ],
)
def test_resume_gives_each_unnamed_stream_the_token_of_its_own_line(
    lines: Sequence[Fields], options: Fields, expected: Sequence[str | None]
) -> None:
    assert [token for _, token in resumed(lines, options)] == expected


@pytest.mark.parametrize(
    "again",
    [
        [line(token="new", unnamed=True), line(token="a", unnamed=True), line(token="b", unnamed=True)],
        [line(token="b", unnamed=True)],
        [line(None, "x", unnamed=True), line(token="a", unnamed=True), line(None, "b", unnamed=True)],
    ],
)
def test_resume_rejects_a_file_with_other_unnamed_lines_than_the_run(again: Sequence[Fields]) -> None:
    lines = [line(token="a", unnamed=True), line(token="b", unnamed=True)]
    with pytest.raises(click.UsageError, match=r"\(see line 1\) do not match the streams that the run planned"):
        resumed(lines, {}, again)


def some(**values: Sequence[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(found) for name, found in values.items()})


FIELDS_OF_A_LINE = some(
    url=[OLD, NEW, "http://skipped.example.com"],
    name=["n", "m"],
    track=["inbound_track", "both_tracks"],
    parameters=[{"x": "1"}, {"x": "2", "y": "2"}, {"y": "3", "x": "3"}],
    status_callback=["https://a.example.com/", "https://a.example.com/?key=1"],
)
OPTIONS_OF_A_START = some(
    url=[OLD, NEW], name=["n"], track=["inbound_track"], authorization_bearer_token=["of-the-options"]
)


@given(
    st.lists(st.tuples(FIELDS_OF_A_LINE, st.booleans(), st.booleans()), min_size=1, max_size=5),
    OPTIONS_OF_A_START,
    st.booleans(),
)
def test_resume_with_the_file_of_the_start_sends_the_same_secrets_or_fails(
    given_lines: list[tuple[dict[str, Any], bool, bool]], options: dict[str, Any], unnamed: bool
) -> None:
    lines = []
    for number, (fields, has_token, is_unnamed) in enumerate(given_lines):
        own = {"unnamed": True} if is_unnamed and "name" not in fields else {}
        lines.append({"conference_sid": ROOM, **fields, **own})
        if has_token:
            lines[-1]["authorization_bearer_token"] = f"of-line-{number}"
    if unnamed:
        options = {**options, "name": None, "unnamed": True}
    text = "".join(f"{json.dumps(one)}\n" for one in lines)
    started = [*make_requests(read_lines(text, "conference_sid"), options)[0].values()]
    secrets = Secrets(options, by_target(read_lines(text, "conference_sid")))
    with suppress(click.UsageError):
        assert list(secrets.complete(lambda: map(PlannedRequest.from_request, started))) == started


def test_resume_matches_lines_that_rely_on_options_of_the_start() -> None:
    options = {"url": NEW, "track": "both_tracks", "name": "audit"}
    assert resumed([line(None, "a"), line(OLD, "b", name="other")], options) == [(NEW, "a"), (OLD, "b")]
    assert resumed([line(None, "a"), line(None, "b")], {"url": NEW, "unnamed": True}) == [(NEW, "a"), (NEW, "b")]


def test_resume_does_not_give_the_secret_of_a_duplicate_to_a_named_stream() -> None:
    """The second line was skipped as a duplicate. No option named it, since the first stream has no name."""
    lines = [line(token="first"), line(token="duplicate"), line(token="named", name="audit")]
    assert resumed(lines, {}) == [(NEW, "first"), (NEW, "named")]


def test_resume_does_not_guess_between_two_lines() -> None:
    """With ``--url`` the start took the first line and skipped the second, without it the other way round."""
    lines = [line(None, "a"), line(NEW, "b")]
    for options in ({}, {"url": NEW}):
        with pytest.raises(click.UsageError, match="lines 1 and 2 of the FILE have different secrets"):
            resumed(lines, options)
    assert resumed([line(None), line(NEW)], {}) == [(NEW, "new")]


def test_resume_rejects_a_file_whose_line_makes_another_stream() -> None:
    with pytest.raises(click.UsageError, match=r"\(see line 1\) do not match the streams"):
        resumed([line(NEW)], {}, again=[line(OLD)])
    started = [line(token="a", name="first"), line(token="b", name="second")]
    with pytest.raises(click.UsageError, match=r"\(see line 1\) do not match the streams"):
        resumed(started, {}, again=[started[0], line(OLD, "b", name="second")])


def test_resume_accepts_a_file_that_only_repeats_the_secrets() -> None:
    lines = [line(token="a"), line(token="b", name="audit")]
    again = [line(None, "a"), line(None, "b", parameters={"more": "1"})]
    assert resumed(lines, {}, again) == [(NEW, "a"), (NEW, "b")]


def test_secrets_of_options_are_added_or_named_as_missing() -> None:
    [request] = make_requests(read_lines(json.dumps(line()), "conference_sid"), {})[0].values()
    planned = PlannedRequest.from_request(request)
    assert Secrets({"authorization_bearer_token": "new"}).add_to(planned) == request
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


async def test_bulk_resume_sends_each_unnamed_stream_the_token_of_its_line(
    shell: Shell, space: SimulatedSpace, tmp_path: Path
) -> None:
    sid = space.conference_sids[0]
    lines = [line(url, token, conference_sid=sid, unnamed=True) for url, token in ((None, "a"), (NEW, "b"))]
    file, journal = json_file(tmp_path / "targets", lines), str(tmp_path / "run.db")
    space.faults.add("status", on="start", status=422, times=2)
    assert (await shell("bulk", "start", file, "--url", NEW, "--concurrency", "1", "--journal", journal)).code == 1
    assert (await shell("bulk", "resume", journal, file)).code == 0
    assert [stream.authorization_bearer_token for stream in space.streams.active()] == ["a", "b"]


async def test_bulk_resume_reads_bare_ids_as_the_run_did(shell: Shell, space: SimulatedSpace, tmp_path: Path) -> None:
    """The file has no secrets then, but it does not keep those of the options from being used."""
    (tmp_path / "calls").write_text(f"{space.call_sids[0]}\n")
    journal, calls = str(tmp_path / "run.db"), str(tmp_path / "calls")
    space.faults.add("status", on="start", status=422, times=1)
    start = ("bulk", "start", calls, "--kind", "call", "--url", NEW, "--parameter", "pin=1", "--journal", journal)
    assert (await shell(*start)).code == 1
    assert (await shell("bulk", "resume", journal, calls, "--parameter", "pin=1")).code == 0
    assert [stream.parameters for stream in space.streams.active()] == [{"pin": "1"}]
