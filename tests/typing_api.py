"""The public face as a type checker sees it. Checked by mypy, never run."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import assert_type

import signalwire_streams
from signalwire_streams import (
    Attempt,
    Call,
    CallStream,
    Codec,
    Conference,
    ConferenceStream,
    Page,
    Paginator,
    Participant,
    SignedTokens,
    StartConferenceStream,
    StreamsClient,
    StreamStatus,
    Track,
)
from signalwire_streams.middleware import Handler, Request, Result
from signalwire_streams.pytest_plugin import StreamReceiver
from signalwire_streams.receiver import MediaReceiver, StreamSession, TokenClaims
from signalwire_streams.simulator import SimulatedSpace


async def pass_on(request: Request, send: Handler) -> Result:
    return await send(request)


async def pass_by(_: StreamSession) -> None:
    pass


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
        await client.conferences.start_stream("a", url="wss://b", may_be_running=True, name="c")
        await client.calls.stop_stream("a", stream)  # type: ignore[call-overload]
        await client.calls.stop_stream(stream)  # type: ignore[call-overload]
        await client.conferences.stop_stream("a")  # type: ignore[call-overload]
        assert_type(await client.conferences.end("a"), Conference)
        assert_type(await client.calls.end("a", deadline=5), Call)
        assert_type(client.conferences.list(), Paginator[Conference])
        assert_type(client.calls.list(), Paginator[Call])
        assert_type(client.conferences.participants("a"), Paginator[Participant])
        async for conference in client.conferences.list():
            assert_type(conference, Conference)
        pages = client.calls.list().pages()
        assert_type(pages, AsyncIterator[Page[Call]])
        request = StartConferenceStream(conference_sid="a", url="wss://b", codec="L16", realtime=True)
        assert_type(request.codec, Codec | str | None)
        StartConferenceStream(conference_sid="a", url=7)  # type: ignore[arg-type]
        receiver = MediaReceiver()
        async with receiver.open(
            client.calls, "a", url="wss://b", track="inbound_track", when_lost="restart"
        ) as session:
            assert_type(session, StreamSession)
            assert_type(session.claims, TokenClaims | None)
        tokens = SignedTokens("key", claims=lambda request: {"to": request.target, "parameters": [*request.parameters]})
        await client.calls.start_stream("a", url="wss://b", authorization_bearer_token=tokens)
        StartConferenceStream(conference_sid="a", url="wss://b", authorization_bearer_token=tokens)
        MediaReceiver(pass_by, bearer_tokens=tokens)
        SignedTokens(b"key")  # type: ignore[arg-type]
        SignedTokens(["key"], ttl="1")  # type: ignore[arg-type]
        SignedTokens("key", claims=lambda _: 7)  # type: ignore[arg-type,return-value]
        await client.calls.start_stream("a", url="wss://b", authorization_bearer_token=b"t")  # type: ignore[arg-type]
        receiver.open(client.conferences, "a", url="wss://b", trak=Track.BOTH)  # type: ignore[call-arg]
        receiver.open(client.conferences, "a", url="wss://b", codec=7)  # type: ignore[arg-type]
        receiver.open(client.conferences, "a", url="wss://b", unnamed=True)  # type: ignore[call-arg]
        receiver.open(client.conferences, "a", url="wss://b", when_lost="start")  # type: ignore[arg-type]
    assert_type(StreamsClient.from_env(connections=4, clock=None), StreamsClient)
    StreamsClient.from_env(conections=4)  # type: ignore[call-arg]
    StreamsClient.from_env(connections="4")  # type: ignore[arg-type]
    StreamsClient.from_env(token="t")  # type: ignore[call-arg]
    assert_type(signalwire_streams.__version__, str)


def use_plugin(stream_receiver: StreamReceiver, client: StreamsClient) -> None:
    stream_receiver.open(client.conferences, "a", url="wss://b", name="c", socket_timeout=5.0, realtime=True)
    stream_receiver.open(client.conferences, "a", nam="c")  # type: ignore[call-arg]
