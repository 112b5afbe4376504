"""Lists and single resources: shapes, pages, filters."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from .peer import Clock, Peer, simulated
from .shapes import CALL, CONFERENCE, ERROR, PARTICIPANT, mismatches, page

SEPTEMBER = 1_537_390_800.0  # Wed, 19 Sep 2018 21:00:00 +0000
DAY = 86_400.0


async def _pages(peer: Peer, path: str) -> AsyncIterator[dict[str, Any]]:
    following: str | None = path
    while following is not None:
        reply = await peer.send("GET", following)
        assert reply.status == 200
        yield reply.json
        following = reply.json["next_page_uri"]


async def test_each_resource_has_its_documented_shape() -> None:
    async with simulated() as peer:
        [conference], [call] = peer.space.conference_sids, peer.space.call_sids
        assert mismatches((await peer.get("Conferences", conference)).json, CONFERENCE) == []
        assert mismatches((await peer.get("Calls", call)).json, CALL) == []
        conferences = (await peer.get("Conferences")).json
        assert mismatches(conferences, page("conferences", CONFERENCE)) == []
        calls = (await peer.get("Calls")).json
        assert mismatches(calls, page("calls", CALL)) == []
        seats = (await peer.get("Conferences", conference, "Participants")).json
        assert mismatches(seats, page("participants", PARTICIPANT)) == []
        assert len(seats["participants"]) == 2


@pytest.mark.parametrize("status", ["queued", "in-progress", "completed"])
async def test_call_of_any_status_has_the_documented_shape(status: str) -> None:
    async with simulated() as peer:
        sid = peer.space.add_call(status=status, from_number="sip:a@example.com", to_number="+442071838750")
        call = (await peer.get("Calls", sid)).json
        assert mismatches(call, CALL) == []
        assert (call["start_time"] is None) == (status == "queued")
        assert (call["end_time"] is None) == (status != "completed")
        assert call["formatted_from"] == call["from"] == "sip:a@example.com"


@pytest.mark.parametrize(
    ("number", "formatted"),
    [("+13105678901", "(310) 567-8901"), ("+442071838750", "+442071838750"), ("+131056789", "+131056789")],
)
async def test_north_american_numbers_are_formatted(number: str, formatted: str) -> None:
    async with simulated() as peer:
        call = (await peer.get("Calls", peer.space.add_call(from_number=number, to_number=number))).json
        assert (call["formatted_from"], call["formatted_to"]) == (formatted, formatted)


async def test_unknown_resource_is_404() -> None:
    async with simulated() as peer:
        for segments in (("Conferences", "x"), ("Calls", "x"), ("Conferences", "x", "Participants")):
            reply = await peer.get(*segments)
            assert (reply.status, reply.json["code"]) == (404, 20404)


async def test_ended_call_has_its_duration() -> None:
    clock = Clock()
    async with simulated(clock=clock) as peer:
        [sid] = peer.space.call_sids
        clock.now += 20.5
        peer.space.end_call(sid)
        assert (await peer.get("Calls", sid)).json["duration"] == 20


@pytest.mark.parametrize(("sept", "month"), [(False, "Sep"), (True, "Sept")])
async def test_september_is_abbreviated_as_configured(month: str, *, sept: bool) -> None:
    async with simulated(clock=Clock(SEPTEMBER), long_september=sept) as peer:
        reply = await peer.get("Conferences", peer.space.conference_sids[0])
        assert reply.json["date_created"] == f"Wed, 19 {month} 2018 21:00:00 +0000"
        assert reply.headers["Date"] == "Wed, 19 Sep 2018 21:00:00 GMT"


@pytest.mark.parametrize(
    ("size", "pages"), [(None, [50, 50, 23]), ("1000", [123]), ("100", [100, 23]), ("123", [123]), ("41", [41] * 3)]
)
async def test_following_next_page_uri_reads_everything_once(size: str | None, pages: list[int]) -> None:
    async with simulated(conferences=123, participants=0) as peer:
        suffix = f"?PageSize={size}" if size else ""
        read = [one async for one in _pages(peer, peer.path("Conferences") + suffix)]
        assert [len(one["conferences"]) for one in read] == pages
        assert [one["page"] for one in read] == list(range(len(pages)))
        sids = [conference["sid"] for one in read for conference in one["conferences"]]
        assert sids == peer.space.conference_sids


async def test_page_links_to_previous_and_first_page() -> None:
    async with simulated(conferences=5, participants=0) as peer:
        first, second, third = [one async for one in _pages(peer, peer.path("Conferences") + ".json?PageSize=2")]
        assert first["previous_page_uri"] is None
        assert (await peer.send("GET", third["previous_page_uri"])).json["conferences"] == second["conferences"]
        wider = second["previous_page_uri"].replace("PageSize=2", "PageSize=3")
        assert (await peer.send("GET", wider)).json["conferences"] == first["conferences"]
        back = (await peer.send("GET", second["previous_page_uri"])).json
        assert back["conferences"] == first["conferences"]
        assert (await peer.send("GET", third["uri"])).json == third
        assert (await peer.send("GET", third["first_page_uri"])).json["conferences"] == first["conferences"]
        assert third["uri"].startswith(peer.path("Conferences") + ".json?")


async def test_page_token_stays_correct_while_the_list_shrinks() -> None:
    """A client that computes the next page itself misses one; a client that follows the URI does not."""
    async with simulated(conferences=4, participants=0) as peer:
        query = {"Status": "in-progress", "PageSize": "2"}
        first = (await peer.get("Conferences", query=query)).json
        peer.space.end_conference(peer.space.conference_sids[0])
        followed = (await peer.send("GET", first["next_page_uri"])).json["conferences"]
        computed = (await peer.get("Conferences", query={**query, "Page": "1"})).json["conferences"]
        assert [one["sid"] for one in followed] == peer.space.conference_sids[2:]
        assert [one["sid"] for one in computed] == peer.space.conference_sids[3:]


async def test_page_behind_the_end_is_empty() -> None:
    async with simulated() as peer:
        read = (await peer.get("Conferences", query={"Page": "7"})).json
        assert (read["conferences"], read["next_page_uri"], read["page"]) == ([], None, 7)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"PageSize": "0"}, 400, 10000),
        ({"PageSize": "1001"}, 400, 10000),
        ({"PageSize": "many"}, 400, 10000),
        ({"PageSize": "-1"}, 400, 10000),
        ({"Page": "-1"}, 400, 10000),
        ({"Page": "1e3"}, 400, 10000),
        ({"PageToken": "QA00000001"}, 400, 21481),
        ({"PageToken": "PAnothing!"}, 400, 21481),
        ({"PageToken": ""}, 400, 21481),
        ({"Status": "running"}, 422, 10000),
        ({"FriendlyName": "x" * 65}, 422, 10000),
        ({"DateCreated>": "19.9.2018"}, 422, 10000),
        ({"DateUpdated": "Wed, 19 Sep 2018 21:00:00 +0000"}, 422, 10000),
    ],
)
async def test_invalid_query_is_rejected(query: dict[str, str], status: int, code: int) -> None:
    async with simulated() as peer:
        reply = await peer.get("Conferences", query=query)
        assert (reply.status, reply.json["code"]) == (status, code)
        assert mismatches(reply.json, ERROR) == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [0, 1, 2]),
        ({"Status": "in-progress"}, [1]),
        ({"Status": "completed"}, [2]),
        ({"FriendlyName": "lobby"}, [1]),
        ({"FriendlyName": "lobby", "Status": "init"}, []),
        ({"DateCreated": "2018-09-20"}, [1]),
        ({"DateCreated<": "2018-09-20"}, [0]),
        ({"DateCreated>": "2018-09-19"}, [1, 2]),
        ({"DateUpdated": "2018-09-22"}, [2]),
        ({"DateUpdated<": "2018-09-22"}, [0, 1]),
        ({"DateUpdated>": "2018-09-22"}, []),
        ({"Colour": "red"}, [0, 1, 2]),
    ],
)
async def test_conferences_are_filtered(query: dict[str, str], found: list[int]) -> None:
    clock = Clock(SEPTEMBER)
    async with simulated(conferences=0, clock=clock) as peer:
        peer.space.add_conference(status="init")
        clock.now += DAY
        peer.space.add_conference(friendly_name="lobby")
        clock.now += DAY
        ended = peer.space.add_conference()
        clock.now += DAY
        peer.space.end_conference(ended)
        read = (await peer.get("Conferences", query=query)).json["conferences"]
        assert [one["sid"] for one in read] == [peer.space.conference_sids[place] for place in found]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"Status": "queued"}, [1]),
        ({"From": "+12015550100"}, [0]),
        ({"To": "+12015550101"}, [1, 2]),
        ({"ParentCallSid": "parent"}, [2]),
        ({"StartTime": "2018-09-19"}, [0]),
        ({"StartTime": "Wed, 19 Sep 2018 21:00:00 +0000"}, [0]),
        ({"StartTime>": "Wed, 19 Sep 2018 21:00:00 -0000"}, [2]),
        ({"StartTime<": "2018-09-20"}, [0]),
        ({"EndTime>": "2018-09-19"}, [2]),
    ],
)
async def test_calls_are_filtered(query: dict[str, str], found: list[int]) -> None:
    clock = Clock(SEPTEMBER)
    async with simulated(calls=0, clock=clock) as peer:
        peer.space.add_call(from_number="+12015550100", to_number="+12015550102")
        peer.space.add_call(status="queued", from_number="+12015550103", to_number="+12015550101")
        clock.now += DAY
        peer.space.end_call(peer.space.add_call(to_number="+12015550101", parent_call_sid="parent"))
        read = (await peer.get("Calls", query=query)).json["calls"]
        assert [one["sid"] for one in read] == [peer.space.call_sids[place] for place in found]


async def test_invalid_filter_of_calls_is_422() -> None:
    async with simulated() as peer:
        assert (await peer.get("Calls", query={"StartTime": "noon"})).status == 422
        assert (await peer.get("Calls", query={"Status": "init"})).status == 422


@pytest.mark.parametrize(
    ("query", "count"), [({"Muted": "false"}, 2), ({"Muted": "true"}, 0), ({"Hold": "False"}, 2), ({"Hold": "true"}, 0)]
)
async def test_participants_are_filtered(query: dict[str, str], count: int) -> None:
    async with simulated() as peer:
        segments = ("Conferences", peer.space.conference_sids[0], "Participants")
        assert len((await peer.get(*segments, query=query)).json["participants"]) == count
        assert (await peer.get(*segments, query={"Muted": "maybe"})).status == 422


async def test_page_uris_keep_the_filters() -> None:
    async with simulated(conferences=3, participants=0) as peer:
        peer.space.end_conference(peer.space.conference_sids[1])
        path = peer.path("Conferences") + "?Status=in-progress&DateCreated%3E=2000-01-01&PageSize=1"
        read = [one["conferences"][0]["sid"] async for one in _pages(peer, path)]
        assert read == [peer.space.conference_sids[0], peer.space.conference_sids[2]]


async def test_participants_call_legs_are_readable_but_not_listed() -> None:
    async with simulated(calls=3) as peer:
        seats = (await peer.get("Conferences", peer.space.conference_sids[0], "Participants")).json["participants"]
        assert (await peer.get("Calls", seats[0]["call_sid"])).json["direction"] == "inbound"
        listed = [call["sid"] for call in (await peer.get("Calls")).json["calls"]]
        assert listed == peer.space.call_sids
        assert len(listed) == 3
