"""The public face as a type checker sees it. Checked by mypy, never run."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import assert_type

from signalwire_streams import (
    Attempt,
    Call,
    CallStream,
    Codec,
    Conference,
    ConferenceStream,
    Exchange,
    Listing,
    Outcome,
    Page,
    Participant,
    Send,
    StartConferenceStream,
    StreamsClient,
    StreamStatus,
    Track,
)
from signalwire_streams.simulator import SimulatedSpace


async def pass_on(exchange: Exchange, send: Send) -> Outcome:
    return await send(exchange)


def hear(attempt: Attempt) -> None:
    assert_type(attempt.status, int | None)


async def use(space: SimulatedSpace) -> None:
    async with StreamsClient(
        base_url=space.base_url, project=space.project, token=space.token, on_attempt=hear, middlewares=[pass_on]
    ) as client:
        assert_type(client, StreamsClient)
        stream = await client.conferences.start_stream("a", url="wss://b", track=Track.BOTH, codec="PCMU")
        assert_type(stream, ConferenceStream)
        assert_type(stream.sid, str | None)
        assert_type(stream.status, StreamStatus | str | None)
        assert_type(stream.date_updated, datetime | None)
        assert_type(await client.conferences.stop_stream("a", stream), ConferenceStream)
        assert_type(await client.conferences.stop_stream("a", "sid"), ConferenceStream)
        assert_type(await client.calls.start_stream("a", url="wss://b"), CallStream)
        await client.calls.start_stream("a", url="wss://b", codec=Codec.PCMU)  # type: ignore[arg-type]
        assert_type(await client.conferences.stop_stream(stream), ConferenceStream)
        assert_type((await client.conferences.stop_stream(stream)).already_ended, bool)
        await client.calls.stop_stream("a", stream)  # type: ignore[call-overload]
        await client.calls.stop_stream(stream)  # type: ignore[call-overload]
        await client.conferences.stop_stream("a")  # type: ignore[call-overload]
        assert_type(client.conferences.list(), Listing[Conference])
        assert_type(client.calls.list(), Listing[Call])
        assert_type(client.conferences.participants("a"), Listing[Participant])
        async for conference in client.conferences.list():
            assert_type(conference, Conference)
        pages = client.calls.list().pages()
        assert_type(pages, AsyncIterator[Page[Call]])
        request = StartConferenceStream(conference_sid="a", url="wss://b", codec="L16", realtime=True)
        assert_type(request.codec, Codec | None)
        StartConferenceStream(conference_sid="a", url=7)  # type: ignore[arg-type]
