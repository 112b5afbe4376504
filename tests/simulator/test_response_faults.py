"""Faults that are well-formed HTTP: wrong statuses, wrong bodies, wrong names."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from .peer import assert_logged, simulated
from .shapes import CONFERENCE_STREAM, ERROR, ERROR_LIST, mismatches

EXECUTED = pytest.mark.parametrize("executed", [False, True])


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
    ("status", {"status": 401, "body": "api"}, 401, "application/json", 20003),
    ("status", {"status": 403, "body": "api"}, 403, "application/json", 10003),
    ("status", {"status": 404, "body": "api"}, 404, "application/json", 20404),
    ("status", {"status": 599, "body": "html"}, 599, "text/html", None),
]


@pytest.mark.parametrize(("kind", "settings", "status", "content_type", "code"), STATUS_FAULTS)
@EXECUTED
async def test_status_fault_sends_status_and_body(
    kind: str, settings: dict[str, Any], status: int, content_type: str, code: int | None, *, executed: bool
) -> None:
    async with simulated() as peer:
        peer.space.faults.add(kind, on="start", executed=executed, **settings)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (status, content_type)
        if code is None:
            assert (reply.body == b"") == (settings.get("body") == "empty")
        else:
            assert mismatches(reply.json, ERROR) == []
            assert (reply.json["code"], reply.json["status"]) == (code, status)
        assert_logged(peer, kind, status, executed=executed)


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
async def test_status_fault_sends_headers(kind: str, settings: dict[str, Any], headers: Mapping[str, str]) -> None:
    async with simulated() as peer:
        peer.space.faults.add(kind, **settings)
        reply = await peer.start()
        assert headers.items() <= reply.headers.items()


@EXECUTED
async def test_html_fault_sends_a_page_with_status_200(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("html", on="start", executed=executed)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html")
        assert reply.body.startswith(b"<html>")
        assert_logged(peer, "html", 200, executed=executed)


@EXECUTED
async def test_wrong_content_type_fault_changes_only_the_content_type(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("wrong-content-type", on="start", executed=executed)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain")
        assert json.loads(reply.body)["sid"]
        assert (mismatches(reply.json, CONFERENCE_STREAM) == []) == executed
        assert_logged(peer, "wrong-content-type", 200, executed=executed)


@EXECUTED
async def test_missing_sid_fault_removes_only_the_sid(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("missing-sid", on="start", executed=executed)
        reply = await peer.start()
        assert reply.status == 200
        assert "sid" not in reply.json
        assert not executed or mismatches(reply.json, CONFERENCE_STREAM) == ["sid is missing"]
        assert_logged(peer, "missing-sid", 200, executed=executed)


@EXECUTED
async def test_empty_fault_sends_no_body(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("empty", on="start", executed=executed)
        reply = await peer.start()
        assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")
        assert_logged(peer, "empty", 200, executed=executed)


@EXECUTED
async def test_invalid_json_fault_sends_half_of_the_body(*, executed: bool) -> None:
    async with simulated() as peer:
        peer.space.faults.add("invalid-json", on="start", executed=executed)
        reply = await peer.start()
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            json.loads(reply.body)
        assert_logged(peer, "invalid-json", 200, executed=executed)


@pytest.mark.parametrize(
    "kind", ["latency", "truncated-body", "wrong-content-type", "missing-sid", "empty", "invalid-json"]
)
async def test_fault_that_changes_a_response_executes_the_request(kind: str) -> None:
    async with simulated() as peer:
        settings: dict[str, Any] = {"seconds": 0} if kind == "latency" else {}
        assert peer.space.faults.add(kind, **settings).executed


@pytest.mark.parametrize(
    ("settings", "status", "location"),
    [({}, 307, "/"), ({"status": 301, "location": "https://elsewhere.example/"}, 301, "https://elsewhere.example/")],
)
@EXECUTED
async def test_redirect_fault_sends_status_and_location(
    settings: dict[str, Any], status: int, location: str, *, executed: bool
) -> None:
    async with simulated() as peer:
        peer.space.faults.add("redirect", on="start", executed=executed, **settings)
        reply = await peer.start()
        assert (reply.status, reply.headers["Location"]) == (status, location)
        assert_logged(peer, "redirect", status, executed=executed)


async def test_list_torn_fault_leaves_items_out_of_a_page() -> None:
    async with simulated(conferences=7) as peer:
        sids = peer.space.conference_sids
        peer.space.faults.add("list-torn", on="list-conferences", every=3, times=1)
        torn, whole = [(await peer.get("Conferences")).json for _ in range(2)]
        assert [item["sid"] for item in torn.pop("conferences")] == [sids[place] for place in (0, 1, 3, 4, 6)]
        assert [item["sid"] for item in whole.pop("conferences")] == sids
        assert torn == whole
        assert [request.fault for request in peer.space.requests] == ["list-torn", None]


async def test_duplicate_name_fault_rejects_an_unused_name() -> None:
    async with simulated() as peer:
        peer.space.faults.add("duplicate-name", times=2)
        on_conference, on_call = await peer.start(Name="n"), await peer.start_on_call(Name="n")
        assert (on_conference.status, on_call.status) == (422, 422)
        assert on_conference.json == {"errors": ["Duplicated stream name"]}
        assert mismatches(on_conference.json, ERROR_LIST) == []
        assert mismatches(on_call.json, ERROR) == []
        assert [request.fault for request in peer.space.requests] == ["duplicate-name"] * 2
        assert len(peer.space.streams) == 0


async def test_duplicate_name_fault_as_stream_error_starts_nothing() -> None:
    async with simulated() as peer:
        peer.space.faults.add("duplicate-name", as_="stream-error", times=1)
        reply = await peer.start(Name="n")
        assert (reply.status, reply.json["status"]) == (200, "queued")
        [stream] = peer.space.streams
        assert (stream.alive, stream.error) == (False, "Duplicated stream name")
