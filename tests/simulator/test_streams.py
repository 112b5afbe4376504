"""Starting and stopping streams: the four operations, their validation and their shapes."""

import json

import pytest

from .peer import URL, Peer, simulated
from .shapes import CALL, CALL_STREAM, CONFERENCE_STREAM, ERROR, mismatches


async def test_conference_stream_is_started_with_all_fields() -> None:
    async with simulated() as peer:
        reply = await peer.start(
            Name="audit-1",
            Track="inbound_track",
            StatusCallback="https://app.example.com/status",
            StatusCallbackMethod="GET",
            StreamCodec="L16@16000h",
            StreamRealTime="true",
            AuthorizationBearerToken="bearer-of-audio",
            **{"Parameter1.Name": "tenant", "Parameter1.Value": "a b&c=d", "Parameter99.Name": "é"},
            **{"Parameter99.Value": ""},
        )
        assert reply.status == 200
        assert mismatches(reply.json, CONFERENCE_STREAM) == []
        assert reply.json["status"] == "queued"
        assert reply.json["name"] == "audit-1"
        [stream] = peer.space.streams
        assert stream.sid == reply.json["sid"]
        assert stream.target_kind == "conference"
        assert stream.target_sid == peer.space.conference_sids[0] == reply.json["conference_sid"]
        assert (stream.url, stream.track, stream.codec, stream.realtime) == (
            URL,
            "inbound_track",
            "L16@16000h",
            True,
        )
        assert stream.parameters == {"tenant": "a b&c=d", "é": ""}
        assert stream.status_callback == "https://app.example.com/status"
        assert stream.status_callback_method == "GET"
        assert stream.authorization_bearer_token == "bearer-of-audio"
        assert stream.alive
        assert "bearer-of-audio" not in repr(stream)
        assert "a b&c=d" not in repr(stream)


async def test_call_stream_is_started_with_nothing_but_a_url() -> None:
    """The defaults: both tracks, POST callbacks, and the sid as the name."""
    async with simulated() as peer:
        reply = await peer.start_on_call()
        assert reply.status == 200
        assert mismatches(reply.json, CALL_STREAM) == []
        assert reply.json["name"] == reply.json["sid"]
        [stream] = peer.space.streams
        assert (stream.name, stream.track, stream.status_callback_method) == (None, "both_tracks", "POST")
        assert (stream.codec, stream.realtime) == (None, None)


async def test_unnamed_conference_stream_has_a_null_name() -> None:
    async with simulated() as peer:
        assert (await peer.start()).json["name"] is None


@pytest.mark.parametrize("suffix", ["", ".json"])
@pytest.mark.parametrize("collection", ["Conferences", "Calls"])
async def test_paths_are_valid_with_and_without_json_suffix(suffix: str, collection: str) -> None:
    async with simulated() as peer:
        sid = (peer.space.conference_sids if collection == "Conferences" else peer.space.call_sids)[0]
        started = await peer.send("POST", peer.path(collection, sid, "Streams") + suffix, b"Url=wss://a.b/c")
        assert started.status == 200
        assert started.json["uri"].endswith(f"/{collection}/{sid}/Streams/{started.json['sid']}.json")
        path = started.json["uri"].removesuffix(".json") + suffix
        stopped = await peer.send("POST", path, b"Status=stopped")
        assert (stopped.status, stopped.json["status"]) == (200, "stopped")


async def test_json_body_is_parsed_like_a_form() -> None:
    """The vendor's own SDK sends JSON, with real booleans."""
    async with simulated() as peer:
        body = {"Url": URL, "StreamRealTime": True, "Name": "n", "Track": None}
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        reply = await peer.send(
            "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"}
        )
        assert reply.status == 200
        assert peer.space.streams[0].realtime is True
        assert peer.space.requests[0].fields == {"Url": URL, "StreamRealTime": "true", "Name": "n"}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("application/json", b'{"Url": []}'),
        ("text/plain", b"Url=wss://a.b/c"),
        ("application/x-www-form-urlencoded", b"Url=%ff"),
        ("application/x-www-form-urlencoded", b"Url=\xff"),
    ],
)
async def test_unparsable_body_is_400(content_type: str, body: bytes) -> None:
    async with simulated() as peer:
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        reply = await peer.send("POST", path, body, {"Content-Type": content_type})
        assert reply.status == 400
        assert mismatches(reply.json, ERROR) == []
        assert list(peer.space.streams) == []


@pytest.mark.parametrize(
    ("authorization", "account", "status", "code"),
    [
        ("", None, 401, 20003),
        ("Basic bm90OnJpZ2h0", None, 401, 20003),
        ("Bearer token", None, 401, 20003),
        (None, "00000000-0000-4000-8000-000000000000", 404, 20404),
    ],
)
async def test_wrong_credentials_are_401_and_another_account_is_404(
    authorization: str | None, account: str | None, status: int, code: int
) -> None:
    async with simulated() as peer:
        path = peer.path("Conferences", peer.space.conference_sids[0], "Streams")
        if account is not None:
            path = path.replace(peer.space.project, account)
        headers = {} if authorization is None else {"Authorization": authorization}
        reply = await peer.send("POST", path, b"Url=wss://a.b/c", headers)
        assert (reply.status, reply.json["code"], reply.json["status"]) == (status, code, status)
        assert mismatches(reply.json, ERROR) == []
        assert list(peer.space.streams) == []


async def test_authorization_scheme_is_case_insensitive() -> None:
    async with simulated() as peer:
        headers = {"Authorization": peer.authorization().replace("Basic", "basic")}
        assert (await peer.send("GET", peer.path("Conferences"), headers=headers)).status == 200


async def test_second_stop_of_a_stream_is_400() -> None:
    """Not documented; the status is our reading."""
    async with simulated() as peer:
        sid = (await peer.start(Name="n")).json["sid"]
        first = await peer.stop(sid)
        assert (first.status, first.json["sid"], first.json["status"]) == (200, sid, "stopped")
        assert mismatches(first.json, CONFERENCE_STREAM) == []
        [stream] = peer.space.streams
        assert (stream.alive, stream.status) == (False, "stopped")
        assert stream.stopped_at is not None
        for reference in (sid, "n"):
            again = await peer.stop(reference)
            assert (again.status, again.json["code"]) == (400, 21220)
            assert again.json["message"] == "Stream is already stopped"


async def test_stream_can_be_stopped_by_its_name() -> None:
    """The name is one path segment, whatever it contains."""
    async with simulated() as peer:
        name = "audit 1/ä.json"
        started = await peer.start_on_call(Name=name)
        stopped = await peer.send(
            "POST", peer.path("Calls", peer.space.call_sids[0], "Streams", name) + ".json", b"Status=stopped"
        )
        assert (stopped.status, stopped.json["sid"]) == (200, started.json["sid"])


async def test_stop_by_name_can_be_disabled() -> None:
    async with simulated(streams_by_name=False) as peer:
        started = await peer.start(Name="audit")
        assert (await peer.stop("audit")).status == 404
        assert (await peer.stop(started.json["sid"])).status == 200


async def _is_not_found(peer: Peer, fields: dict[str, str], *segments: str) -> None:
    reply = await peer.post(fields, *segments)
    assert (reply.status, reply.json["code"]) == (404, 20404)
    assert mismatches(reply.json, ERROR) == []


async def test_unknown_target_or_stream_is_404() -> None:
    async with simulated(conferences=2) as peer:
        conference, other = peer.space.conference_sids
        [call] = peer.space.call_sids
        stream = (await peer.start(conference)).json["sid"]
        start: dict[str, str] = {"Url": URL}
        stop = {"Status": "stopped"}
        await _is_not_found(peer, start, "Conferences", call, "Streams")
        await _is_not_found(peer, start, "Calls", conference, "Streams")
        await _is_not_found(peer, stop, "Conferences", conference, "Streams", "nobody")
        await _is_not_found(peer, stop, "Conferences", other, "Streams", stream)
        await _is_not_found(peer, stop, "Conferences", "nobody", "Streams", stream)
        await _is_not_found(peer, start, "Conferences", conference, "Recordings")
        await _is_not_found(peer, start, "Rooms")
        await _is_not_found(peer, {"Status": "completed"}, "Conferences", "nobody")


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"])
async def test_unsupported_method_is_404(method: str) -> None:
    async with simulated() as peer:
        reply = await peer.send(method, peer.path("Conferences"))
        assert (reply.status, reply.body == b"") == (404, method == "HEAD")
        assert peer.space.requests[0].operation == "unknown"
        assert (await peer.start()).status == 200
        assert peer.space.connections.opened == 1


@pytest.mark.parametrize("status", ["init", "completed"])
async def test_conference_not_in_progress_rejects_a_stream(status: str) -> None:
    async with simulated() as peer:
        reply = await peer.start(peer.space.add_conference(status=status))
        assert (reply.status, reply.json["code"]) == (400, 21220)


@pytest.mark.parametrize("status", ["queued", "ringing", "busy", "completed"])
async def test_call_not_in_progress_rejects_a_stream(status: str) -> None:
    async with simulated() as peer:
        reply = await peer.start_on_call(peer.space.add_call(status=status))
        assert (reply.status, reply.json["code"]) == (400, 21220)


async def test_ending_a_conference_ends_its_streams_and_participants() -> None:
    async with simulated(conferences=2) as peer:
        sid, other = peer.space.conference_sids
        stream = (await peer.start(sid)).json["sid"]
        kept = (await peer.start(other)).json["sid"]
        participants = (await peer.get("Conferences", sid, "Participants")).json["participants"]
        leg = (await peer.start_on_call(participants[0]["call_sid"])).json["sid"]
        ended = await peer.post({"Status": "completed"}, "Conferences", sid)
        assert (ended.status, ended.json["status"]) == (200, "completed")
        assert [stream.sid for stream in peer.space.streams.active()] == [kept]
        assert {stream, leg} == {one.sid for one in peer.space.streams if one.status == "stopped"}
        after = (await peer.get("Conferences", sid, "Participants")).json["participants"]
        assert {participant["status"] for participant in after} == {"completed"}
        assert (await peer.stop(stream, sid)).json["message"] == "Stream is already stopped"
        assert (await peer.start(sid)).json["code"] == 21220
        assert (await peer.post({"Status": "completed"}, "Conferences", sid)).status == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"AnnounceUrl": "https://app.example.com/hello", "AnnounceMethod": "GET"}, 200),
        ({"Status": "init"}, 422),
        ({"AnnounceUrl": "hello"}, 422),
        ({"AnnounceMethod": "PUT"}, 422),
        ({"Colour": "red"}, 422),
    ],
)
async def test_conference_update_that_ends_nothing(fields: dict[str, str], status: int) -> None:
    """A conference's own 422 has the usual error body, unlike that of its streams."""
    async with simulated() as peer:
        reply = await peer.post(fields, "Conferences", peer.space.conference_sids[0])
        assert reply.status == status
        assert status == 200 or mismatches(reply.json, ERROR) == []
        assert (await peer.start()).status == 200


async def test_call_can_be_ended() -> None:
    """Its streams stop, and it can't be ended again, nor a stream started."""
    async with simulated() as peer:
        call = peer.space.call_sids[0]
        await peer.start_on_call()
        ended = await peer.post({"Status": "completed"}, "Calls", call)
        assert (ended.status, mismatches(ended.json, CALL), ended.json["status"]) == (200, [], "completed")
        assert peer.space.streams.active() == []
        again = await peer.post({"Status": "completed"}, "Calls", call)
        assert (again.status, again.json["code"], again.json["message"]) == (400, 21220, "Call is already completed")
        assert (await peer.start_on_call()).json["code"] == 21220


@pytest.mark.parametrize(
    ("status", "fields", "answered", "after"),
    [
        ("ringing", {"Status": "canceled"}, 200, "canceled"),
        ("queued", {"Status": "completed"}, 200, "completed"),
        ("in-progress", {"Status": "canceled"}, 400, "in-progress"),
        ("busy", {"Status": "completed"}, 400, "busy"),
        ("in-progress", {}, 200, "in-progress"),
        ("in-progress", {"StatusCallback": "https://a.example/b", "StatusCallbackMethod": "GET"}, 200, "in-progress"),
        ("in-progress", {"Status": "stopped"}, 422, "in-progress"),
        ("in-progress", {"Colour": "red"}, 422, "in-progress"),
    ],
)
async def test_call_update_ends_live_call_and_rejects_others(
    status: str, fields: dict[str, str], answered: int, after: str
) -> None:
    async with simulated() as peer:
        call = peer.space.add_call(status)
        assert (await peer.post(fields, "Calls", call)).status == answered
        assert (await peer.get("Calls", call)).json["status"] == after
        assert (await peer.post(fields, "Calls", "unknown")).status == 404


async def test_call_that_ends_leaves_its_conference() -> None:
    async with simulated() as peer:
        sid = peer.space.conference_sids[0]
        legs = [one["call_sid"] for one in (await peer.get("Conferences", sid, "Participants")).json["participants"]]
        await peer.post({"Status": "completed"}, "Calls", legs[0])
        left = (await peer.get("Conferences", sid, "Participants")).json["participants"]
        assert {one["call_sid"]: one["status"] for one in left} == {legs[0]: "completed", legs[1]: "in-progress"}


async def test_calls_and_conferences_can_be_ended_directly() -> None:
    async with simulated() as peer:
        await peer.start()
        await peer.start_on_call()
        peer.space.end_conference(peer.space.conference_sids[0])
        assert [stream.target_kind for stream in peer.space.streams.active()] == ["call"]
        peer.space.end_call(peer.space.call_sids[0])
        assert peer.space.streams.active() == []
