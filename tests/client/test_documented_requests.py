"""Every request, held against the API as its vendor documents it.

The table below is our own spelling of https://signalwire.com/docs/compatibility-api/: methods, paths, query and
form fields, and the values that a field allows. Nothing that is sent may be missing from it.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from attrs import field, frozen

from signalwire_streams import Codec, ConferenceStatus, StreamsClient, Track
from signalwire_streams.simulator import SimulatedSpace

ROOT = "/api/laml/2010-04-01/Accounts/{AccountSid}"
ANYTHING = re.compile(r".*")
WSS = re.compile(r"wss://[^?]+")
DAY = re.compile(r"\d{4}-\d\d-\d\d")
RFC_2822 = re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
PAGE_SIZE = re.compile(r"[1-9]\d{0,2}|1000")
BOOLEAN = re.compile(r"true|false")
PARAMETERS = {f"Parameter{n}.{part}": ANYTHING for n in range(1, 100) for part in ("Name", "Value")}
START: dict[str, re.Pattern[str]] = {
    "Url": WSS,
    "Name": ANYTHING,
    "Track": re.compile(r"inbound_track|outbound_track|both_tracks"),
    "StatusCallback": re.compile(r"https?://.+"),
    "StatusCallbackMethod": re.compile(r"GET|POST"),
    "AuthorizationBearerToken": ANYTHING,
    **PARAMETERS,
}
START_ON_CONFERENCE = START | {
    "StreamCodec": re.compile(r"PCMU|PCMA|L16|L16@16000h|L16@24000h"),
    "StreamRealTime": BOOLEAN,
}
STOP = {"Status": re.compile(r"stopped")}
END = {"Status": re.compile(r"completed")}
PAGING = {"Page": re.compile(r"\d+"), "PageSize": PAGE_SIZE, "PageToken": re.compile(r"P[AB].*")}


@frozen
class Operation:
    method: str
    path: str
    query: dict[str, re.Pattern[str]] = field(factory=dict)
    form: dict[str, re.Pattern[str]] = field(factory=dict)
    required: tuple[str, ...] = ()


OPERATIONS = {
    "start-conference-stream": Operation(
        "POST", "/Conferences/{ConferenceSid}/Streams", form=START_ON_CONFERENCE, required=("Url",)
    ),
    "stop-conference-stream": Operation(
        "POST", "/Conferences/{ConferenceSid}/Streams/{Sid}", form=STOP, required=("Status",)
    ),
    "start-call-stream": Operation("POST", "/Calls/{CallSid}/Streams", form=START, required=("Url",)),
    "stop-call-stream": Operation("POST", "/Calls/{CallSid}/Streams/{Sid}", form=STOP, required=("Status",)),
    "end-conference": Operation("POST", "/Conferences/{Sid}", form=END, required=("Status",)),
    "end-call": Operation("POST", "/Calls/{Sid}", form=END, required=("Status",)),
    "get-conference": Operation("GET", "/Conferences/{Sid}"),
    "get-call": Operation("GET", "/Calls/{Sid}"),
    "list-conferences": Operation(
        "GET",
        "/Conferences",
        query={
            "Status": re.compile(r"init|in-progress|completed"),
            "FriendlyName": ANYTHING,
            **{f"Date{what}{sign}": DAY for what in ("Created", "Updated") for sign in ("", "<", ">")},
            **PAGING,
        },
    ),
    "list-participants": Operation(
        "GET", "/Conferences/{ConferenceSid}/Participants", query={"Muted": BOOLEAN, "Hold": BOOLEAN, **PAGING}
    ),
    "list-calls": Operation(
        "GET",
        "/Calls",
        query={
            "Status": re.compile(r"queued|ringing|in-progress|canceled|completed|busy|failed|no-answer"),
            "From": ANYTHING,
            "To": ANYTHING,
            "ParentCallSid": ANYTHING,
            **{f"{what}Time{sign}": RFC_2822 for what in ("Start", "End") for sign in ("", "<", ">")},
            **PAGING,
        },
    ),
}
DAYS = {f"date_{what}{when}": date(2026, 1, 1) for what in ("created", "updated") for when in ("", "_before", "_after")}
MOMENTS = {
    f"{what}_time{when}": datetime(2026, 1, 1, tzinfo=UTC)
    for what in ("start", "end")
    for when in ("", "_before", "_after")
}


async def drain(listing: Any) -> None:
    async for _ in listing:
        pass


async def everything(client: StreamsClient, space: SimulatedSpace) -> None:
    """Use every operation with every argument that it has."""
    conference, call = space.conference_sids[0], space.call_sids[0]
    common: dict[str, Any] = {
        "url": "wss://rx.example.com:8443/a%20b",
        "status_callback": "https://app.example.com/cb?x=1",
        "status_callback_method": "GET",
        "parameters": {f"näme {n}": "välue & more=" for n in range(99)},
        "authorization_bearer_token": "a.b-c",
    }
    for number, track in enumerate(Track):
        of_call = await client.calls.start_stream(call, name=f"call-{number}", track=track, **common)
        await client.calls.stop_stream(call, of_call)
    for number, codec in enumerate(Codec):
        stream = await client.conferences.start_stream(
            conference, name=f"n-{number}", track="both_tracks", codec=codec, realtime=bool(number % 2), **common
        )
        await client.conferences.stop_stream(conference, stream)
    await client.conferences.start_stream(conference, url="wss://rx.example.com")
    await client.conferences.get(conference)
    await client.calls.get(call)
    await client.conferences.end(space.conference_sids[1])
    await client.calls.end(space.call_sids[1])
    for status in ConferenceStatus:
        await drain(client.conferences.list(status=status, friendly_name="a b", page_size=1000, **DAYS))
    await drain(client.conferences.participants(conference, muted=True, hold=False, page_size=1))
    await drain(client.calls.list(status="busy", from_="+1", to="sip:a@b", parent_call_sid="c", page_size=2, **MOMENTS))
    await drain(client.conferences.list(page_size=1))
    await drain(client.calls.list(page_size=1))


def pattern_of(operation: Operation, space: SimulatedSpace) -> re.Pattern[str]:
    fill: Callable[[re.Match[str]], str] = lambda match: (  # noqa: E731
        space.project if match[0] == "{AccountSid}" else r"[^/?#]+"
    )
    return re.compile(re.sub(r"\{\w+\}", fill, ROOT + operation.path))


async def test_every_request_is_a_documented_one(space: SimulatedSpace, client: StreamsClient) -> None:
    """Methods, paths, fields and values of all that is sent are the documented ones, and all operations are used."""
    await everything(client, space)

    assert {request.operation for request in space.requests} == set(OPERATIONS)
    assert {request.status for request in space.requests} == {200}
    for request in space.requests:
        operation = OPERATIONS[request.operation]
        assert request.method == operation.method
        assert pattern_of(operation, space).fullmatch(request.path), request.path
        assert set(operation.required) <= set(request.fields)
        for given, allowed in ((request.fields, operation.form), (request.query, operation.query)):
            for name, value in given.items():
                assert allowed[name].fullmatch(value), (name, value)
        wanted = "application/x-www-form-urlencoded" if operation.method == "POST" else None
        assert request.headers.get("Content-Type") == wanted


@pytest.mark.parametrize("operation", ["list-conferences", "list-calls"])
async def test_every_documented_filter_is_there(space: SimulatedSpace, client: StreamsClient, operation: str) -> None:
    """No documented filter of a list is missing from the client."""
    await everything(client, space)

    sent = {name for request in space.requests if request.operation == operation for name in request.query}
    assert sent == set(OPERATIONS[operation].query)


async def test_every_documented_field_of_a_start_is_there(space: SimulatedSpace, client: StreamsClient) -> None:
    """No documented field of a start is missing from the client."""
    await everything(client, space)

    for operation in ("start-conference-stream", "start-call-stream"):
        sent = {name for request in space.requests if request.operation == operation for name in request.fields}
        assert sent == set(OPERATIONS[operation].form)
