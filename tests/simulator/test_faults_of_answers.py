"""Faults that are well-formed HTTP: wrong statuses, wrong bodies, wrong names."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from .peer import assert_journal, simulated
from .shapes import CONFERENCE_STREAM, ERROR, ERROR_LIST, mismatches

CREATED = pytest.mark.parametrize("created", [False, True])


STATUS_FAULTS: list[tuple[str, dict[str, Any], int, str, int | None]] = [
    ("throttle", {}, 429, "application/json", 20429),
    ("throttle", {"code": 20001}, 429, "application/json", 20001),
    ("throttle", {"status": 403, "code": 20429}, 403, "application/json", 20429),
    ("throttle", {"body": "html"}, 429, "text/html", None),
    ("throttle", {"body": "empty"}, 429, "text/html", None),
    ("500", {}, 500, "text/html", None),
    ("502", {}, 502, "text/html", None),
    ("503", {"body": "empty"}, 503, "text/html", None),
    ("504", {}, 504, "text/html", None),
    ("503-api", {}, 503, "application/json", 20001),
    ("500", {"body": "api"}, 500, "application/json", 20504),
    ("status", {"status": 408}, 408, "text/html", None),
    ("status", {"status": 425, "body": "api", "code": 1}, 425, "application/json", 1),
    ("status", {"status": 403, "body": "api"}, 403, "application/json", 10003),
    ("status", {"status": 599, "body": "html"}, 599, "text/html", None),
]


@pytest.mark.parametrize(("kind", "settings", "status", "content_type", "code"), STATUS_FAULTS)
@CREATED
async def test_statuses(
    kind: str, settings: dict[str, Any], status: int, content_type: str, code: int | None, *, created: bool
) -> None:
    async with simulated() as peer:
        peer.space.faults.add(kind, on="start", executed=created, **settings)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (status, content_type)
        if code is None:
            assert (reply.body == b"") == (settings.get("body") == "empty")
        else:
            assert mismatches(reply.json, ERROR) == []
            assert (reply.json["code"], reply.json["status"]) == (code, status)
        assert_journal(peer, kind, status, created=created)


@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"retry_after": 3}, {"Retry-After": "3"}),
        ({"retry_after": 0.5}, {"Retry-After": "0.5"}),
        ({"retry_after": "Wed, 19 Sep 2018 21:00:00 GMT"}, {"Retry-After": "Wed, 19 Sep 2018 21:00:00 GMT"}),
        ({"headers": {"Retry-After-Ms": "20"}}, {"Retry-After-Ms": "20"}),
    ],
)
@pytest.mark.parametrize("kind", ["throttle", "503-api", "503"])
async def test_statuses_carry_headers(kind: str, settings: dict[str, Any], headers: Mapping[str, str]) -> None:
    async with simulated() as peer:
        peer.space.faults.add(kind, **settings)
        reply = await peer.start()
        assert headers.items() <= reply.headers.items()


@CREATED
async def test_a_page_of_html_with_200(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("html", on="start", executed=created)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
        assert reply.body.startswith(b"<html>")
        assert_journal(peer, "html", 200, created=created)


@CREATED
async def test_a_wrong_content_type(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("wrong-content-type", on="start", executed=created)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain")
        assert json.loads(reply.body)["sid"]
        assert (mismatches(reply.json, CONFERENCE_STREAM) == []) == created
        assert_journal(peer, "wrong-content-type", 200, created=created)


@CREATED
async def test_an_answer_without_a_sid(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("missing-sid", on="start", executed=created)
        reply = await peer.start()
        assert reply.status == 200
        assert "sid" not in reply.json
        assert not created or mismatches(reply.json, CONFERENCE_STREAM) == ["sid is missing"]
        assert_journal(peer, "missing-sid", 200, created=created)


@CREATED
async def test_an_empty_answer(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("empty", on="start", executed=created)
        reply = await peer.start()
        assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")
        assert_journal(peer, "empty", 200, created=created)


@CREATED
async def test_an_answer_that_is_no_json(*, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("invalid-json", on="start", executed=created)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(reply.body)
        assert_journal(peer, "invalid-json", 200, created=created)


@pytest.mark.parametrize(
    "kind", ["latency", "truncated-body", "wrong-content-type", "missing-sid", "empty", "invalid-json"]
)
async def test_kinds_that_spoil_an_answer_carry_the_operation_out(kind: str) -> None:
    async with simulated() as peer:
        settings: dict[str, Any] = {"seconds": 0} if kind == "latency" else {}
        assert peer.space.faults.add(kind, **settings).executed


@pytest.mark.parametrize(
    ("settings", "status", "location"),
    [({}, 307, "/"), ({"status": 301, "location": "https://elsewhere.example/"}, 301, "https://elsewhere.example/")],
)
@CREATED
async def test_a_redirect(settings: dict[str, Any], status: int, location: str, *, created: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("redirect", on="start", executed=created, **settings)
        reply = await peer.start()
        assert (reply.status, reply.headers["Location"]) == (status, location)
        assert_journal(peer, "redirect", status, created=created)


async def test_a_name_is_called_a_duplicate_although_it_is_none() -> None:
    async with simulated() as peer:
        peer.space.faults.add("duplicate-name", times=2)
        on_conference, on_call = await peer.start(Name="n"), await peer.start_on_call(Name="n")
        assert (on_conference.status, on_call.status) == (422, 422)
        assert on_conference.json == {"errors": ["Duplicated stream name"]}
        assert mismatches(on_conference.json, ERROR_LIST) == []
        assert mismatches(on_call.json, ERROR) == []
        assert [request.fault for request in peer.space.requests] == ["duplicate-name"] * 2
        assert len(peer.space.streams) == 0


async def test_a_start_is_answered_although_its_stream_never_lives() -> None:
    async with simulated() as peer:
        peer.space.faults.add("duplicate-name", as_="stream-error", times=1)
        reply = await peer.start(Name="n")
        assert (reply.status, reply.json["status"]) == (200, "queued")
        [stream] = peer.space.streams
        assert (stream.alive, stream.error) == (False, "Duplicated stream name")
