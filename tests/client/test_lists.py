"""Reading conferences, calls and participants, page by page."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

import pytest
from aiohttp import web

from signalwire_streams import (
    AuthenticationError,
    CallStatus,
    Conference,
    ConferenceStatus,
    InvalidRequestError,
    MalformedResponseError,
    Page,
    Paginator,
    StreamsClient,
)
from signalwire_streams.simulator import SimulatedSpace


async def drained(pages: AsyncIterator[Page[Conference]]) -> list[Page[Conference]]:
    return [page async for page in pages]


async def test_listing_pages_by_itself(client_for: Any) -> None:
    """All conferences come, page after page, each page read once and only when it is needed."""
    async with SimulatedSpace(conferences=25) as space:
        client = client_for(space)
        listing = client.conferences.list(page_size=10, status="in-progress")
        sids = [conference.sid async for conference in listing]

        assert sids == space.conference_sids
        assert space.requests.count("list-conferences") == 3
        first = (await drained(listing.pages()))[0]
        assert (len(first.items), first.page, first.page_size) == (10, 0, 10)
        assert first.next_page_uri is not None
        async for _ in listing:
            break
        assert space.requests.count("list-conferences") == 7


async def test_conference_fields_have_python_names_and_types(space: SimulatedSpace, client: StreamsClient) -> None:
    """A conference has its fields under Python's names, dates among them."""
    conference = await client.conferences.get(space.conference_sids[0])

    assert conference.sid == space.conference_sids[0]
    assert conference.status is ConferenceStatus.IN_PROGRESS
    assert conference.account_sid == space.project
    assert isinstance(conference.date_created, datetime)
    assert isinstance(conference.date_updated, datetime)
    assert conference.extra == {}
    assert set(conference.subresource_uris) == {"participants", "recordings"}


async def test_call_fields_have_python_names_and_types(space: SimulatedSpace, client: StreamsClient) -> None:
    """A call has its fields under Python's names, ``from`` as ``from_``."""
    calls = [call async for call in client.calls.list(status="in-progress")]
    call = await client.calls.get(space.call_sids[0])

    assert {item.sid for item in calls} >= set(space.call_sids)
    assert call.status is CallStatus.IN_PROGRESS
    assert call.from_
    assert call.to
    assert isinstance(call.start_time, datetime)
    assert call.end_time is None
    assert isinstance(call.date_created, datetime)
    assert isinstance(call.date_updated, datetime)
    assert call.extra == {}


async def test_participants_lists_those_of_the_conference_with_dates(
    space: SimulatedSpace, client: StreamsClient
) -> None:
    """The participants of a conference can be listed."""
    sid = space.conference_sids[0]
    participants = [participant async for participant in client.conferences.participants(sid, muted=False)]

    assert len(participants) == 2
    assert {participant.conference_sid for participant in participants} == {sid}
    assert isinstance(participants[0].date_created, datetime)
    assert isinstance(participants[0].date_updated, datetime)
    assert participants[0].muted is False


async def test_filters_as_the_api_wants_them(space: SimulatedSpace, client: StreamsClient) -> None:
    """Days, moments and switches are written as each list documents them."""
    _ = [
        conference
        async for conference in client.conferences.list(
            friendly_name="sales", date_created_after=date(2018, 9, 25), date_updated_before="2030-01-01"
        )
    ]
    assert dict(space.requests[-1].query) == {
        "FriendlyName": "sales",
        "DateCreated>": "2018-09-25",
        "DateUpdated<": "2030-01-01",
    }
    _ = [
        call
        async for call in client.calls.list(
            from_="+15550100", start_time_after=datetime(2018, 9, 25, 20, tzinfo=UTC), page_size=5
        )
    ]
    assert dict(space.requests[-1].query) == {
        "From": "+15550100",
        "StartTime>": "Tue, 25 Sep 2018 20:00:00 GMT",
        "PageSize": "5",
    }
    for page_size in (0, 1001, True):
        with pytest.raises(InvalidRequestError, match="page_size"):
            client.conferences.list(page_size=page_size)
    with pytest.raises(InvalidRequestError, match="time zone"):
        client.calls.list(start_time=datetime(2018, 9, 25))  # noqa: DTZ001


async def test_list_with_the_wrong_token(space: SimulatedSpace, client_for: Any) -> None:
    """A wrong token is reported as such, with what to check."""
    client = client_for(space, token="wrong")

    with pytest.raises(AuthenticationError, match="check the project id"):
        async for _ in client.calls.list():
            pass


PAGES = [
    ({"conferences": [], "next_page_uri": "https://elsewhere.example/Conferences"}, "another host"),
    ({"conferences": [], "next_page_uri": "//elsewhere.example/Conferences"}, "another host"),
    ({"conferences": [], "next_page_uri": "/a b"}, "whitespace"),
    ({"conferences": [], "next_page_uri": "?Page=1"}, r"'\?Page=1' is not an absolute path"),
    ({"conferences": [], "next_page_uri": "null"}, "'null' is not an absolute path"),
    ({"conferences": [], "next_page_uri": 7}, "of type int, not text"),
    ({"conferences": [], "next_page_uri": False}, "of type bool, not text"),
    ({"conferences": [], "next_page_uri": ["/next"]}, "of type list, not text"),
    ({"conferences": [], "next_page_uri": {"uri": "/next"}}, "of type dict, not text"),
    ({"conferences": [], "next_page_uri": "/again#1"}, "loop"),
    ({"conferences": [], "next_page_uri": "/again"}, "loop"),
    ({"conferences": [{"status": "in-progress"}]}, "without sid"),
    ({"conferences": [7]}, "without sid"),
    ({"conferences": None}, "can't be parsed"),
    ({}, "can't be parsed"),
]


@pytest.mark.parametrize(("page", "words"), PAGES)
async def test_next_page_elsewhere_or_in_a_loop_is_malformed(
    page: dict[str, Any], words: str, space: SimulatedSpace, client_for: Any
) -> None:
    """A page on another host, without end or without sense ends in a typed error, and no request leaves the host."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.json_response(page)

    server = web.Server(answer)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        client = client_for(space, base_url=site.name)
        with pytest.raises(MalformedResponseError, match=words) as caught:
            async for _ in client.conferences.list():
                pass
        if words == "without sid" or "type" in words:  # of one page
            assert (caught.value.attempts, caught.value.status, caught.value.sent) == (len(asked), 200, "yes")
    finally:
        await runner.cleanup()
    assert len(asked) <= 3


@asynccontextmanager
async def serving(pages: Callable[[int], dict[str, Any]]) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve the pages by their number; yield the server's address and the requests that it received."""
    received: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        received.append(request.path_qs)
        return web.json_response(pages(len(received)))

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name, received
    finally:
        await runner.cleanup()


def endless(items: Callable[[int], list[dict[str, str]]]) -> Callable[[int], dict[str, Any]]:
    return lambda number: {"conferences": items(number), "next_page_uri": f"/next?PageToken=PA{number}"}


ENDLESS = {
    "empty": (endless(lambda _: []), 10, 0),
    "the same items": (endless(lambda _: [{"sid": "a"}, {"sid": "b"}]), 11, 22),
    "the same items in turn": (endless(lambda number: [{"sid": f"c{number % 3}"}]), 13, 13),
    "empty and known in turn": (endless(lambda number: [{"sid": "a"}] if number % 2 else []), 11, 6),
}


@pytest.mark.parametrize(("pages", "requests", "items"), ENDLESS.values(), ids=ENDLESS)
async def test_list_without_end_raises_after_ten_pages_without_new_item(
    pages: Callable[[int], dict[str, Any]], requests: int, items: int, space: SimulatedSpace, client_for: Any
) -> None:
    """Pages that lead on for ever under new addresses, and hold nothing new, end in an error."""
    listed: list[str] = []

    async def read(listing: Paginator[Conference]) -> None:
        async for conference in listing:
            listed.append(conference.sid)  # noqa: PERF401  (what came before the error counts)

    async with serving(pages) as (address, received):
        with pytest.raises(MalformedResponseError, match="loop") as caught:
            await read(client_for(space, base_url=address).conferences.list())
    assert (len(received), len(listed), caught.value.sent) == (requests, items, "yes")


async def test_participants_without_end_raise_as_well(space: SimulatedSpace, client_for: Any) -> None:
    """A participant is known by its call."""

    def pages(number: int) -> dict[str, Any]:
        return {"participants": [{"call_sid": "a"}], "next_page_uri": f"/next?PageToken=PA{number}"}

    async with serving(pages) as (address, received):
        with pytest.raises(MalformedResponseError, match="loop"):
            async for _ in client_for(space, base_url=address).conferences.participants("a"):
                pass
    assert len(received) == 11


async def test_long_list_with_empty_and_repeated_pages_is_read_to_its_end(
    space: SimulatedSpace, client_for: Any
) -> None:
    """Nine pages without a new item in a row are not a loop, and neither is a tenth that is the last."""

    def pages(number: int) -> dict[str, Any]:
        news, repeated = number % 10 == 0, number % 10 == 5 and number > 10
        items = [{"sid": f"c{number}"}] if news else [{"sid": "c10"}] if repeated else []
        return {"conferences": items, "next_page_uri": None if number == 110 else f"/next?PageToken=PA{number}"}

    async with serving(pages) as (address, received):
        listed = [conference.sid async for conference in client_for(space, base_url=address).conferences.list()]
    assert len(received) == 110
    assert set(listed) == {f"c{number}" for number in range(10, 111, 10)}


NEXT = "/n%65xt/%2f~%7E?PageToken=PA%20x+%41%2f%2C,~%7e&PageToken=&&Page"
"""In spellings that a library may take for others of the same address, but that a Space may have signed."""


async def test_absolute_next_page_on_the_same_host(space: SimulatedSpace, client_for: Any) -> None:
    """A next page with the same scheme and host is followed, byte for byte."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(request.raw_path)
        following = f"http://{request.host}{NEXT}" if len(asked) == 1 else None
        return web.json_response({"calls": [], "next_page_uri": following})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        client = client_for(space, base_url=f"{site.name}/prefix/")
        assert [call async for call in client.calls.list()] == []
    finally:
        await runner.cleanup()
    assert asked == [
        f"/prefix/api/laml/2010-04-01/Accounts/{space.project}/Calls",
        NEXT,
    ]
