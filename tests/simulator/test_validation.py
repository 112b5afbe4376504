"""The documented validation of starts and stops, with the shape of a 422 of each operation."""

import pytest

from .peer import URL, simulated
from .shapes import ERROR, ERROR_LIST, mismatches

# Wire fields (None takes one away), the code on calls, and what the sentence is about.
BROKEN: list[tuple[dict[str, str | None], int, str]] = [
    ({"Url": None}, 21402, "Url"),
    ({"Url": ""}, 21402, "Url"),
    ({"Url": "ws://rx.example.com/a"}, 21402, "Url"),
    ({"Url": "http://rx.example.com/a"}, 21402, "Url"),
    ({"Url": "wss:///a"}, 21402, "Url"),
    ({"Url": "wss://[::1/a"}, 21402, "Url"),
    ({"Url": "wss://rx.example.com/a b"}, 21402, "Url"),
    ({"Url": "wss://rx.example.com/a?tenant=1"}, 21402, "query string"),
    ({"Url": "rx.example.com/a"}, 21402, "Url"),
    ({"Name": " "}, 10000, "Name"),
    ({"Track": "both"}, 10000, "Track"),
    ({"StatusCallback": "app.example.com"}, 21456, "StatusCallback"),
    ({"StatusCallback": "wss://app.example.com"}, 21456, "StatusCallback"),
    ({"StatusCallbackMethod": "post"}, 10000, "StatusCallbackMethod"),
    ({"Parameter1.Name": "a"}, 10000, "Parameter1.Value"),
    ({"Parameter2.Value": "a"}, 10000, "Parameter2.Name"),
    ({"Parameter1.Name": "", "Parameter1.Value": "a"}, 10000, "Parameter1.Name"),
    ({"Parameter0.Name": "a", "Parameter0.Value": "a"}, 10000, "Parameter0.Name"),
    ({"Parameter01.Name": "a", "Parameter01.Value": "a"}, 10000, "Parameter01.Name"),
    ({"Parameter100.Name": "a", "Parameter100.Value": "a"}, 10000, "Parameter100.Name"),
    ({"Parameter1.name": "a"}, 10000, "Parameter1.name"),
    ({"name": "a"}, 10000, "name"),
    ({"Status": "stopped"}, 10000, "Status"),
]


def _fields(changes: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in {"Url": URL, **changes}.items() if value is not None}


@pytest.mark.parametrize(("changes", "_code", "about"), BROKEN)
async def test_invalid_start_on_a_conference_is_422_with_a_list(
    changes: dict[str, str | None], _code: int, about: str
) -> None:
    async with simulated() as peer:
        reply = await peer.post(_fields(changes), "Conferences", peer.space.conference_sids[0], "Streams")
        assert reply.status == 422
        assert mismatches(reply.json, ERROR_LIST) == []
        assert any(about in sentence for sentence in reply.json["errors"])
        assert list(peer.space.streams) == []


@pytest.mark.parametrize(
    ("changes", "code", "about"),
    [
        *BROKEN,
        ({"StreamCodec": "PCMU"}, 10000, "StreamCodec"),
        ({"StreamRealTime": "true"}, 10000, "StreamRealTime"),
    ],
)
async def test_invalid_start_on_a_call_is_422_with_a_code(
    changes: dict[str, str | None], code: int, about: str
) -> None:
    """Codec and real time exist on conferences only."""
    async with simulated() as peer:
        reply = await peer.post(_fields(changes), "Calls", peer.space.call_sids[0], "Streams")
        assert (reply.status, reply.json["status"], reply.json["code"]) == (422, 422, code)
        assert mismatches(reply.json, ERROR) == []
        assert about in reply.json["message"]
        assert list(peer.space.streams) == []


@pytest.mark.parametrize("changes", [{"StreamCodec": "OPUS"}, {"StreamRealTime": "True"}, {"StreamRealTime": "1"}])
async def test_conference_start_validates_codec_and_real_time(changes: dict[str, str]) -> None:
    async with simulated() as peer:
        reply = await peer.start(**changes)
        assert reply.status == 422
        assert mismatches(reply.json, ERROR_LIST) == []


async def test_conference_start_reports_every_problem() -> None:
    async with simulated() as peer:
        reply = await peer.start(Track="all", StatusCallbackMethod="PUT", Colour="red")
        assert len(reply.json["errors"]) == 3


async def test_relative_url_is_accepted_as_documented() -> None:
    async with simulated() as peer:
        assert (await peer.start(Url="/audio")).status == 200


@pytest.mark.parametrize(
    ("fields", "about"), [({}, "Status"), ({"Status": "paused"}, "Status"), ({"Status": "stopped", "X": ""}, "X")]
)
async def test_stop_requires_status_stopped_and_nothing_else(fields: dict[str, str], about: str) -> None:
    async with simulated() as peer:
        on_conference, on_call = await peer.start(), await peer.start_on_call()
        reply = await peer.send("POST", on_conference.json["uri"], _form(fields))
        assert reply.status == 422
        assert any(about in sentence for sentence in reply.json["errors"])
        reply = await peer.send("POST", on_call.json["uri"], _form(fields))
        assert reply.status == 422
        assert about in reply.json["message"]
        assert len(peer.space.streams.active()) == 2


def _form(fields: dict[str, str]) -> bytes:
    return "&".join(f"{name}={value}" for name, value in fields.items()).encode()
