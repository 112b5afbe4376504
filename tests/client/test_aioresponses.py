"""A service's own tests with `aioresponses` see our retry at work.

`aioresponses` 0.7.9 builds a ``ClientResponse`` without the ``stream_writer`` that aiohttp has wanted since 3.14
(https://github.com/pnuckowski/aioresponses/issues/289), so its response class is given one here.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

from signalwire_streams import Clock, ServerError, StreamOutcomeUnknownError, StreamsClient

PATH = "https://example.signalwire.com/api/laml/2010-04-01/Accounts/project/Conferences/room/Streams"
ANSWER = {"sid": "a-stream", "name": "audit", "status": "queued", "conference_sid": "room"}


class _Response(aiohttp.ClientResponse):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, stream_writer=Mock(output_size=0), **options)


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    monkeypatch.setattr("aioresponses.core.ClientResponse", _Response)
    with aioresponses() as mock:
        yield mock


def client() -> StreamsClient:
    return StreamsClient(space="example", project="project", token="token", clock=Clock.fake())


async def test_503_and_then_a_200(mocked: aioresponses) -> None:
    """The mocked 503 is followed by a second request with the same bytes, and the start succeeds."""
    mocked.post(PATH, status=503, payload={"code": 20503, "message": "busy", "more_info": "", "status": 503})
    mocked.post(PATH, status=200, payload=ANSWER)

    async with client() as streams:
        stream = await streams.conferences.start_stream("room", url="wss://rx.example.com/a", name="audit")

    assert stream.sid == "a-stream"
    [sent] = mocked.requests.values()
    assert len(sent) == 2
    assert [request.kwargs["data"].decode() for request in sent] == [
        "Url=wss%3A%2F%2Frx.example.com%2Fa&Name=audit"
    ] * 2


async def test_mocked_500_on_an_unnamed_start(mocked: aioresponses) -> None:
    """A start that must not be repeated is not repeated under a mock either."""
    mocked.post(PATH, status=500, repeat=True)

    async with client() as streams:
        with pytest.raises(StreamOutcomeUnknownError):
            await streams.conferences.start_stream("room", url="wss://rx.example.com/a", unnamed=True)

    [sent] = mocked.requests.values()
    assert len(sent) == 1


async def test_mocked_connection_error_is_retried_and_lasting_500_raises_server_error(mocked: aioresponses) -> None:
    """A mocked connection error is retried, and a read that keeps failing ends in a typed error."""
    mocked.post(PATH, exception=aiohttp.ServerDisconnectedError())
    mocked.post(PATH, status=200, payload=ANSWER)
    room = PATH.removesuffix("/Streams")
    mocked.get(room, status=500, repeat=True)

    async with client() as streams:
        assert (await streams.conferences.start_stream("room", url="wss://rx.example.com/a")).sid == "a-stream"
        with pytest.raises(ServerError):
            await streams.conferences.get("room")


@pytest.mark.parametrize("answer", [{}, {"sid": "x"}, {"status": "stopped"}])
async def test_mocks_with_as_little_as_possible(mocked: aioresponses, answer: dict[str, str]) -> None:
    """A start that is answered with a sid only, and a stop with next to nothing, succeed without ambiguity."""
    mocked.post(PATH, payload={"sid": "x"})
    mocked.post(f"{PATH}/x", payload=answer)

    async with client() as streams:
        stream = await streams.conferences.start_stream("room", url="wss://rx.example.com/a")
        assert (stream.sid, stream.ambiguous) == ("x", False)
        assert (await streams.conferences.stop_stream(stream)).sid == "x"
