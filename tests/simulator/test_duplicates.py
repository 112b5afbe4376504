"""Streams of one name: the three ways to answer a second start, and what is recorded."""

from .peer import Peer, simulated
from .shapes import CALL_STREAM, CONFERENCE_STREAM, ERROR, ERROR_LIST, mismatches


async def test_second_start_of_a_name_gets_200_but_does_not_run() -> None:
    """As documented: only a status callback reports "Duplicated stream name"."""
    async with simulated() as peer:
        first, second = await peer.start(Name="n"), await peer.start(Name="n")
        assert (second.status, second.json["status"], second.json["name"]) == (200, "queued", "n")
        assert mismatches(second.json, CONFERENCE_STREAM) == []
        assert second.json["sid"] != first.json["sid"]
        [lives, refused] = peer.space.streams
        assert (lives.alive, lives.error) == (True, None)
        assert (refused.alive, refused.error, refused.sid) == (
            False,
            "Duplicated stream name",
            second.json["sid"],
        )
        assert peer.space.streams.duplicates() == []
        assert [request.created for request in peer.space.requests] == [lives.sid, None]
        assert (await peer.stop(refused.sid)).status == 400
        assert (await peer.stop("n")).json["sid"] == lives.sid


async def test_second_start_of_a_name_can_be_an_http_error() -> None:
    async with simulated(duplicate_names="http-error") as peer:
        await peer.start(Name="n")
        on_conference = await peer.start(Name="n")
        assert (on_conference.status, on_conference.json) == (422, {"errors": ["Duplicated stream name"]})
        assert mismatches(on_conference.json, ERROR_LIST) == []
        await peer.start_on_call(Name="n")
        on_call = await peer.start_on_call(Name="n")
        assert (on_call.status, on_call.json["message"]) == (422, "Duplicated stream name")
        assert mismatches(on_call.json, ERROR) == []
        assert len(peer.space.streams) == 2


async def test_second_start_of_a_name_can_be_allowed() -> None:
    async with simulated(duplicate_names="allow") as peer:
        replies = [await peer.start_on_call(Name="n") for _ in range(3)]
        assert all(mismatches(reply.json, CALL_STREAM) == [] for reply in replies)
        assert len(peer.space.streams.active()) == 3
        assert peer.space.streams.duplicates() == [(peer.space.call_sids[0], "n")]
        stopped = [(await peer.stop_on_call("n")).json["sid"] for _ in range(3)]
        assert stopped == [reply.json["sid"] for reply in replies]
        assert peer.space.streams.duplicates() == [(peer.space.call_sids[0], "n")]


async def _start_stop_start(peer: Peer) -> None:
    for _ in range(2):
        reply = await peer.start(Name="n")
        assert (await peer.stop(reply.json["sid"])).status == 200
    assert (await peer.start(Name="n")).json["status"] == "queued"


async def test_name_can_be_reused_after_its_stream_has_stopped() -> None:
    async with simulated() as peer:
        await _start_stop_start(peer)
        assert [stream.error for stream in peer.space.streams] == [None] * 3
        assert peer.space.streams.duplicates() == []


async def test_names_are_unique_per_conference_or_call_only() -> None:
    async with simulated(conferences=2, calls=2) as peer:
        for sid in peer.space.conference_sids:
            await peer.start(sid, Name="n")
        for sid in peer.space.call_sids:
            await peer.start_on_call(sid, Name="n")
        assert len(peer.space.streams.active()) == 4
        assert peer.space.streams.duplicates() == []


async def test_unnamed_streams_on_one_target_are_duplicates_under_none() -> None:
    async with simulated() as peer:
        sid = peer.space.conference_sids[0]
        await peer.start()
        assert peer.space.streams.duplicates() == []
        await peer.start()
        assert peer.space.streams.duplicates() == [(sid, None)]


async def test_streams_are_a_sequence() -> None:
    async with simulated() as peer:
        sids = [(await peer.start(Name=name)).json["sid"] for name in "abc"]
        assert len(peer.space.streams) == 3
        assert peer.space.streams[-1].name == "c"
        assert [stream.sid for stream in peer.space.streams[:2]] == sids[:2]
        assert [stream.sid for stream in peer.space.streams] == sids
