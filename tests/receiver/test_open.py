"""Starting a stream and receiving it as one: answer, socket and callback in any order, nothing left behind."""

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest

from signalwire_streams import (
    BulkOutcome,
    BulkStatus,
    ClientStateError,
    Clock,
    ConferenceStream,
    InvalidRequestError,
    OpenError,
    RetryPolicy,
    StartConferenceStream,
    StreamOutcomeUnknownError,
    StreamsClient,
)
from signalwire_streams.callbacks import StreamFailed, StreamStarted, StreamStopped
from signalwire_streams.errors import CircuitOpenError, NotFoundError, RateLimitedError, TransportError
from signalwire_streams.receiver import EndReason, MediaEvent, MediaReceiver
from signalwire_streams.simulator import SimulatedSpace, Tone

from .conftest import Heard, until
from .test_receiver import START

pytestmark = pytest.mark.usefixtures("idle_clock")


@pytest.fixture
async def space(trust: ssl.SSLContext) -> AsyncIterator[SimulatedSpace]:
    """A Space that dials, and speaks as fast as it is heard."""
    async with SimulatedSpace(
        conferences=3, calls=2, audio=Tone(seconds=0.2), real_time=False, ssl_context=trust
    ) as running:
        yield running


@pytest.fixture
async def endless(trust: ssl.SSLContext) -> AsyncIterator[SimulatedSpace]:
    """A Space that dials, and goes on speaking."""
    async with SimulatedSpace(conferences=3, calls=2, audio=Tone(), ssl_context=trust) as running:
        yield running


@pytest.fixture
def receiver(heard: Heard) -> MediaReceiver:
    return MediaReceiver(heard, bearer_tokens="nobody-elses")


async def test_open_starts_receives_and_stops_stream(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """Within the block its audio comes in; after it nothing runs and nothing is open."""
    url = await serve(receiver, ssl_context=certificate)
    client = client_for(endless)
    for streams, sid in ((client.conferences, endless.conference_sids[0]), (client.calls, endless.call_sids[0])):
        async with receiver.open(streams, sid, url=url, track="inbound_track") as session:
            assert len(endless.streams.alive_on(sid)) == 1
            media = [event async for event, _ in zip_first(session, 3)]
            assert [event.chunk for event in media if isinstance(event, MediaEvent)] == [1, 2, 3]
            assert session.end_reason is None
        assert session.end_reason is EndReason.STOPPED
        assert endless.streams.active() == []
        assert receiver.sessions == set()


async def zip_first(session: Any, most: int) -> AsyncIterator[Any]:
    number = 0
    async for event in session:
        number += 1
        yield event, number
        if number == most:
            return


async def test_concurrent_opens_receive_their_own_audio(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """Each block gets its own stream's audio, to its end; the Space had stopped it by itself, which is fine."""
    url = await serve(receiver, ssl_context=certificate)
    client = client_for(space)

    async def listen(sid: str) -> int:
        async with receiver.open(client.conferences, sid, url=url, codec="L16@16000h") as session:
            heard = [event async for event in session if isinstance(event, MediaEvent)]
            assert session.start.stream_sid in {stream.sid for stream in space.streams if stream.target_sid == sid}
            return sum(len(event.payload) for event in heard)

    assert await asyncio.gather(*map(listen, space.conference_sids)) == [2 * 6400] * 3
    assert space.streams.active() == []


async def test_open_raises_rejected_start_as_cause(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """The REST leg's own error is the cause, and nothing is stopped, since nothing runs."""
    url = await serve(receiver, ssl_context=certificate)
    with pytest.raises(OpenError, match="was not started") as caught:
        await receiver.open(client_for(space).conferences, "nowhere", url=url).__aenter__()
    assert caught.value.stage == "start"
    assert isinstance(caught.value.__cause__, NotFoundError)
    assert space.requests.count("stop-conference-stream") == 0


async def test_open_without_socket_fails_and_stops_the_stream(
    space: SimulatedSpace, client_for: Any, receiver: MediaReceiver, certificate: ssl.SSLContext
) -> None:
    """The error names the url as a possible cause, and the stream that runs is stopped."""
    async with SimulatedSpace(conferences=1) as silent:
        [sid] = silent.conference_sids
        with pytest.raises(OpenError, match=r"no connection arrived within 0\.01 s") as caught:
            async with receiver.open(
                client_for(silent).conferences, sid, url="wss://rx.example.com/a", socket_timeout=0.01
            ):
                raise AssertionError
        assert caught.value.stage == "socket"
        assert len(silent.streams) == 1
        assert silent.streams.active() == []


def told(kind: type[Any], sid: str, stream: str | None, name: str | None = "mine", **more: Any) -> Any:
    return kind(conference_sid=sid, stream_sid=stream, stream_name=name, **more)


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        (StreamFailed, {"error": "connection_refused"}, "connection_refused"),
        (StreamFailed, {}, "an error without a name"),
        (StreamStopped, {}, "it was stopped"),
    ],
)
async def test_failure_callback_fails_open_at_once(
    client_for: Any, receiver: MediaReceiver, kind: type[Any], more: dict[str, str], why: str
) -> None:
    """A status callback of that very stream ends the waiting; those of others do not."""
    async with SimulatedSpace(conferences=1) as silent:
        [sid] = silent.conference_sids
        opening = asyncio.ensure_future(
            receiver.open(client_for(silent).conferences, sid, url="wss://rx.example.com/a", name="mine").__aenter__()
        )
        await until(lambda: bool(silent.streams.active()))
        stream = silent.streams[0].sid
        await receiver.handle_status_callback(told(kind, sid, stream, "another", **more))
        await receiver.handle_status_callback(told(kind, "elsewhere", stream, **more))
        await receiver.handle_status_callback(told(kind, sid, "an earlier stream", **more))
        await receiver.handle_status_callback(told(StreamStarted, sid, stream))
        await receiver.handle_status_callback(told(kind, sid, stream, **more))
        await receiver.handle_status_callback(told(kind, sid, stream, **more))
        with pytest.raises(OpenError, match=why) as caught:
            await opening
        assert caught.value.stage == "callback"
        assert silent.streams.active() == []


async def test_callback_of_the_name_explains_missing_socket(client_for: Any, receiver: MediaReceiver) -> None:
    """A callback that may be about another stream is only used once no socket came."""
    async with SimulatedSpace(conferences=1) as silent:
        [sid] = silent.conference_sids
        silent.faults.add("reset", on="start", executed=True)
        client: StreamsClient = client_for(silent, retry=RetryPolicy(max_attempts=1, max_resends=0))
        opening = asyncio.ensure_future(
            receiver.open(
                client.conferences, sid, url="wss://rx.example.com/a", name="mine", socket_timeout=0.1
            ).__aenter__()
        )
        await until(lambda: bool(silent.streams.active()))
        await receiver.handle_status_callback(told(StreamFailed, sid, silent.streams[0].sid, error="codec_error"))
        with pytest.raises(OpenError, match="for a stream of that name: codec_error") as caught:
            await opening
        assert caught.value.stage == "callback"


async def test_open_with_duplicate_name_fails(client_for: Any, receiver: MediaReceiver) -> None:
    """When an attempt is repeated, the Space rejects the second stream; that says nothing against the first one."""
    async with SimulatedSpace(conferences=1) as silent:
        [sid] = silent.conference_sids
        silent.faults.add("reset", on="start", executed=True, times=1)
        opening = asyncio.ensure_future(
            receiver.open(
                client_for(silent).conferences, sid, url="wss://rx.example.com/a", name="mine", socket_timeout=0.1
            ).__aenter__()
        )
        await until(lambda: len(silent.streams) == 2)
        await receiver.handle_status_callback(
            told(StreamFailed, sid, silent.streams[1].sid, error="Duplicated stream name")
        )
        await asyncio.sleep(0)
        assert not opening.done()
        with pytest.raises(OpenError, match="Duplicated stream name"):
            await opening
        assert silent.streams.active() == []


async def test_socket_confirms_start_whose_response_was_lost(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """When the POST's response is lost, the socket proves that the stream runs, and it is stopped by name."""
    url = await serve(receiver, ssl_context=certificate)
    endless.faults.add("reset", on="start", executed=True)
    client: StreamsClient = client_for(endless, retry=RetryPolicy(max_attempts=1, max_resends=0))
    async with receiver.open(client.conferences, endless.conference_sids[0], url=url) as session:
        assert session.start.stream_sid == endless.streams.active()[0].sid
    assert endless.streams.active() == []


async def test_open_fails_without_response_and_socket(client_for: Any, receiver: MediaReceiver) -> None:
    """The outcome is unknown, so the stream is stopped by name in case it runs."""
    async with SimulatedSpace(conferences=1) as silent:
        silent.faults.add("reset", on="start", executed=True)
        client: StreamsClient = client_for(silent, retry=RetryPolicy(max_attempts=1, max_resends=0))
        with pytest.raises(OpenError, match="neither a response nor a socket arrived") as caught:
            async with receiver.open(
                client.conferences, silent.conference_sids[0], url="wss://rx.example.com/a", socket_timeout=0.01
            ):
                raise AssertionError
        assert isinstance(caught.value.__cause__, StreamOutcomeUnknownError)
        assert silent.streams.active() == []


async def test_open_does_not_wait_for_the_response(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """The block begins with the socket, however long the response takes."""
    url = await serve(receiver, ssl_context=certificate)
    endless.faults.add("hang", on="start", executed=True, times=1)
    client: StreamsClient = client_for(endless, retry=RetryPolicy(max_attempts=1, max_resends=0, deadline=0.4))
    await client.conferences.get(endless.conference_sids[0])  # from here on there is a connection
    async with receiver.open(client.conferences, endless.conference_sids[0], url=url) as session:
        assert session.end_reason is None
    assert endless.streams.active() == []


async def test_cancelled_open_stops_the_stream(client_for: Any, receiver: MediaReceiver) -> None:
    """A cancelled block still stops its stream."""
    async with SimulatedSpace(conferences=1) as silent:
        client = client_for(silent)
        opening = asyncio.ensure_future(
            receiver.open(client.conferences, silent.conference_sids[0], url="wss://rx.example.com/a").__aenter__()
        )
        await until(lambda: bool(silent.streams.active()))
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: not silent.streams.active())


async def test_open_rejects_name_that_is_open_on_the_target(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """The second one is rejected here: were it sent, its end would stop the first one by their common name."""
    url = await serve(receiver, ssl_context=certificate)
    streams, sid = client_for(endless).conferences, endless.conference_sids[0]
    async with receiver.open(streams, sid, url=url, name="mine") as session:
        with pytest.raises(InvalidRequestError, match="already has an open stream named 'mine' here"):
            await receiver.open(streams, sid, url=url, name="mine").__aenter__()
        assert session.end_reason is None
    assert len(endless.streams) == 1
    assert endless.streams.active() == []
    async with receiver.open(streams, sid, url=url, name="mine"):
        pass


async def test_duplicate_callback_does_not_fail_the_first_stream(client_for: Any, receiver: MediaReceiver) -> None:
    """It is not documented whose sid such a callback contains."""
    async with SimulatedSpace(conferences=1) as silent:
        [sid] = silent.conference_sids
        opening = asyncio.ensure_future(
            receiver.open(
                client_for(silent).conferences, sid, url="wss://rx.example.com/a", name="mine", socket_timeout=0.2
            ).__aenter__()
        )
        await until(lambda: bool(silent.streams.active()))
        await receiver.handle_status_callback(
            told(StreamFailed, sid, silent.streams[0].sid, error="Duplicated stream name")
        )
        await asyncio.sleep(0)
        assert not opening.done()
        with pytest.raises(OpenError, match="Duplicated stream name"):
            await opening


async def awaited(silent: SimulatedSpace, receiver: MediaReceiver, client_for: Any) -> tuple[Any, str]:
    """Open a stream whose Space does not dial; return the task and the token."""
    opening = asyncio.ensure_future(
        receiver.open(
            client_for(silent).conferences,
            silent.conference_sids[0],
            url="wss://rx.example.com/a",
            name="mine",
            socket_timeout=60,
        ).__aenter__()
    )
    await until(lambda: bool(silent.streams.active()))
    token = silent.streams[0].authorization_bearer_token
    assert token is not None
    return opening, token


@pytest.mark.parametrize("first", ["garbage", "nothing", "too long"])
async def test_open_fails_when_no_stream_begins_on_its_socket(
    client_for: Any, heard: Heard, serve: Any, dial: Any, first: str
) -> None:
    """There is no other socket to wait for, so it fails at once with the reason."""
    receiver = MediaReceiver(frame_limit=100)
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent:
        opening, token = await awaited(silent, receiver, client_for)
        peer = await dial(url, token)
        if first == "nothing":
            await peer.close()
        else:
            await peer.send_str("x" * (200 if first == "too long" else 10))
        with pytest.raises(OpenError, match="its socket connected, but no stream started on it") as caught:
            await opening
        assert caught.value.stage == "socket"
        assert silent.streams.active() == []


async def test_plain_request_does_not_use_up_the_token(
    client_for: Any, receiver: MediaReceiver, serve: Any, dial: Any
) -> None:
    url = await serve(receiver, ssl_context=None)
    async with SimulatedSpace(conferences=1) as silent, aiohttp.ClientSession() as http:
        opening, token = await awaited(silent, receiver, client_for)
        async with http.get(url.replace("ws", "http"), headers={"Authorization": f"Bearer {token}"}) as response:
            assert response.status == 400
        peer = await dial(url, token)
        await peer.send_json({"event": "start", "start": {"streamSid": "s"}})
        assert (await opening).stream_sid == "s"
        await peer.close()


async def test_failure_callback_after_the_upgrade_fails_open(
    client_for: Any, receiver: MediaReceiver, serve: Any, dial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is the callback's, and the socket is closed properly."""
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent:
        opening, token = await awaited(silent, receiver, client_for)
        peer = await dial(url, token)
        await receiver.handle_status_callback(told(StreamStopped, silent.conference_sids[0], silent.streams[0].sid))
        await peer.send_json({"event": "start", "start": {"streamSid": "s"}})
        assert (await peer.receive()).data == 1000
        with pytest.raises(OpenError, match="it was stopped"):
            await opening
    assert "failed" not in caplog.text


async def test_closed_receiver_rejects_open(endless: SimulatedSpace, client_for: Any) -> None:
    """Nothing is sent, and it serves no more either."""
    receiver = MediaReceiver()
    await receiver.aclose()
    client = client_for(endless)
    for context in (
        receiver.open(client.conferences, endless.conference_sids[0], url="wss://a.example/b"),
        receiver.open_many(client, []),
        receiver.serve(),
    ):
        with pytest.raises(ClientStateError, match="this receiver is closed: create a new MediaReceiver"):
            await context.__aenter__()
    assert len(endless.requests) == 0


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("connected", [False, True])
async def test_open_that_waits_ends_when_the_receiver_is_closed(
    client_for: Any, serve: Any, dial: Any, many: bool, connected: bool
) -> None:
    """No socket can come any more, so it fails at once, and its stream is stopped."""
    receiver = MediaReceiver(start_timeout=60)
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent:
        client, [sid] = client_for(silent), silent.conference_sids
        if many:
            requests = [StartConferenceStream(conference_sid=sid, url="wss://rx.example.com/a")]
            run = receiver.open_many(client, requests, socket_timeout=60)
            outcomes = aiter(await run.__aenter__())
            opening: Any = asyncio.ensure_future(anext(outcomes))
        else:
            opening = asyncio.ensure_future(
                receiver.open(client.conferences, sid, url="wss://rx.example.com/a", socket_timeout=60).__aenter__()
            )
        await until(lambda: bool(silent.streams.active()))
        if connected:
            await dial(url, silent.streams[0].authorization_bearer_token)
            await until(lambda: receiver.pending_sockets == 1)
        began = asyncio.get_running_loop().time()
        await receiver.aclose()
        outcome: Any = (await asyncio.gather(opening, return_exceptions=True))[0]
        error = outcome.error if many else outcome
        assert isinstance(error, OpenError)
        assert (str(error), error.stage) == (
            "the receiver was closed before the stream started on its socket",
            "socket",
        )
        assert asyncio.get_running_loop().time() - began < 1
        if many:
            await run.__aexit__(None, None, None)
        assert silent.requests.count("stop-conference-stream") == 1
        assert silent.streams.active() == []


async def test_open_many_of_a_closed_receiver_takes_no_further_requests(client_for: Any) -> None:
    """The iteration ends in an error, so that nobody takes the rest for started."""
    receiver, closed = MediaReceiver(), asyncio.Event()
    async with SimulatedSpace(conferences=2) as silent:
        first, second = silent.conference_sids

        async def requests() -> AsyncIterator[StartConferenceStream]:
            yield StartConferenceStream(conference_sid=first, url="wss://rx.example.com/a")
            await closed.wait()
            yield StartConferenceStream(conference_sid=second, url="wss://rx.example.com/a")

        async with receiver.open_many(client_for(silent), requests(), socket_timeout=60) as outcomes:
            await until(lambda: bool(silent.streams.active()))
            await receiver.aclose()
            closed.set()
            with pytest.raises(ClientStateError, match="this receiver is closed"):
                assert [type(outcome.error) async for outcome in outcomes] == [OpenError]
        assert {stream.target_sid for stream in silent.streams} == {first}
        assert silent.streams.active() == []


class Failing:
    """A client whose starts succeed, and whose stops fail once they are allowed to."""

    def __init__(self) -> None:
        self.stopping, self.stopped = asyncio.Event(), asyncio.Event()

    async def start_stream(self, sid: str, /, *, name: str, **fields: Any) -> Any:
        return ConferenceStream(conference_sid=sid, sid="stream", name=name)

    async def stop_stream(self, sid: str, stream: Any, /) -> Any:
        self.stopping.set()
        await self.stopped.wait()
        raise TransportError("no response", sent="maybe")

    def start_streams(self, requests: Any, *, concurrency: int | None) -> Any:
        self._requests = requests
        return self

    async def __aiter__(self) -> AsyncIterator[BulkOutcome[Any]]:
        async for request in self._requests:
            stream = await self.start_stream(request.target, name=request.name)
            yield BulkOutcome(index=0, item=request, status=BulkStatus.STARTED, stream=stream)

    def shutdown(self) -> None:
        pass

    async def stop_streams(self, streams: Any) -> AsyncIterator[BulkOutcome[Any]]:
        async for stream in streams:
            error: Any = (await asyncio.gather(self.stop_stream("", stream), return_exceptions=True))[0]
            yield BulkOutcome(index=0, item=stream, status=BulkStatus.UNKNOWN, error=error)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("cancel", ["twice", "from within"])
async def test_failed_stop_of_a_block_that_was_cancelled_during_it_is_logged(
    receiver: MediaReceiver, caplog: pytest.LogCaptureFixture, many: bool, cancel: str
) -> None:
    """Nobody waits for it any more, and the stream may still be running."""
    client: Any = Failing()
    request = StartConferenceStream(conference_sid="room", url="wss://a.example/b", name="mine")

    async def use() -> None:
        block: Any = (
            receiver.open_many(client, [request], socket_timeout=0.01)
            if many
            else receiver.open(client, "room", url="wss://a.example/b", name="mine", socket_timeout=0.01)
        )
        async with block as outcomes:
            await anext(aiter(outcomes))
            if cancel == "from within":
                using.cancel()

    using = asyncio.create_task(use())
    await client.stopping.wait()
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    client.stopped.set()
    await until(lambda: "stream 'mine' on room may still be running" in caplog.text)
    assert len(caplog.records) == 1


async def test_open_rejects_fields_of_its_own(endless: SimulatedSpace, client_for: Any) -> None:
    """Nothing is sent, and nothing is waited for."""
    receiver, streams, [sid, *_] = MediaReceiver(), client_for(endless).conferences, endless.conference_sids
    untyped: Any = receiver.open
    with pytest.raises(InvalidRequestError, match="omit authorization_bearer_token"):
        await untyped(streams, sid, url="wss://a.example/b", authorization_bearer_token="t").__aenter__()
    for name in ("unnamed", "may_be_running"):
        with pytest.raises(InvalidRequestError, match="omit unnamed and may_be_running"):
            await untyped(streams, sid, url="wss://a.example/b", **{name: True}).__aenter__()
    with pytest.raises(TypeError, match="bogus"):
        await untyped(streams, sid, url="wss://a.example/b", bogus=1).__aenter__()
    with pytest.raises(OpenError, match="can't be part of a path"):
        await receiver.open(streams, "a/b", url="wss://a.example/b").__aenter__()
    assert not receiver._pending_streams._by_name
    assert not receiver._pending_streams._by_token
    assert len(endless.requests) == 0


async def test_stop_does_not_wait_for_the_response_of_a_start_that_hangs(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """The stream is stopped by the sid of its socket while the start request is pending."""
    url = await serve(receiver, ssl_context=certificate)
    endless.faults.add("hang", on="start", executed=True, times=1)
    client: StreamsClient = client_for(endless, retry=RetryPolicy(max_attempts=1, max_resends=0, deadline=2))
    stopped_after = None

    async def watch() -> None:
        nonlocal stopped_after
        await until(lambda: bool(endless.streams) and not endless.streams.active())
        stopped_after = endless.requests.count("stop-conference-stream")

    watching = None
    async with receiver.open(client.conferences, endless.conference_sids[0], url=url):
        watching = asyncio.ensure_future(watch())
    await watching
    assert stopped_after == 1
    # Since the start's own fate stayed unknown, its name was stopped too, in case there was a second stream.
    assert endless.requests.count("stop-conference-stream") == 2


async def test_stream_of_a_response_after_the_stop_is_stopped_if_it_is_another_one(
    trust: ssl.SSLContext, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """If it names the stream that was stopped, nothing more is stopped."""
    url = await serve(receiver, ssl_context=certificate)

    async def until_it_stopped(seconds: float) -> None:
        await until(lambda: not held.streams.active())

    held = SimulatedSpace(conferences=1, audio=Tone(), ssl_context=trust, sleep=until_it_stopped)
    async with held as space:
        space.faults.add("latency", on="start", seconds=1)
        async with receiver.open(client_for(space).conferences, space.conference_sids[0], url=url):
            pass
        assert space.requests.count("stop-conference-stream") == 1


async def test_first_outcome_of_a_start_counts(client_for: Any, heard: Heard, serve: Any, dial: Any) -> None:
    """A callback that ended the waiting is not replaced by a socket that breaks after it."""
    receiver = MediaReceiver(start_timeout=60)
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent:
        opening, token = await awaited(silent, receiver, client_for)
        peer = await dial(url, token)
        await receiver.handle_status_callback(told(StreamStopped, silent.conference_sids[0], silent.streams[0].sid))
        await peer.close()
        with pytest.raises(OpenError, match="it was stopped"):
            await opening
    await until(lambda: not receiver.pending_sockets)


async def test_error_of_the_block_takes_precedence_over_failed_stop(
    endless: SimulatedSpace,
    client_for: Any,
    receiver: MediaReceiver,
    serve: Any,
    certificate: ssl.SSLContext,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stop that fails as well is noted with it and logged, since the stream may still be running."""
    url = await serve(receiver, ssl_context=certificate)
    endless.faults.add("status", on="stop", status=403)
    client = client_for(endless)

    async def use(error: BaseException) -> None:
        async with receiver.open(client.conferences, endless.conference_sids[0], url=url):
            raise error

    for error in (KeyError("mine"), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught:
            await use(error)
        assert "may still be running" in caught.value.__notes__[0]
        assert "may still be running" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("retry_after", "pause", "refusals"), [(None, 0.05, 2), (0.01, 0.05, 2), (7.0, 7.0, 2), (7.0, 7.0, 100)]
)
async def test_stop_is_retried_for_a_minute_while_the_space_rejects_it(
    receiver: MediaReceiver, idle_clock: Clock, retry_after: float | None, pause: float, refusals: int
) -> None:
    """After that the error says that the stream may be running."""
    stops: list[float] = []

    class Busy:
        async def start_stream(self, sid: str, /, **fields: Any) -> Any:
            return ConferenceStream(conference_sid=sid, sid="stream")

        async def stop_stream(self, sid: str, stream: Any, /) -> Any:
            stops.append(idle_clock.now())
            if len(stops) <= refusals:
                kind = RateLimitedError if len(stops) % 2 else CircuitOpenError
                raise kind("not accepted", retry_after=retry_after)

    with pytest.raises(OpenError, match="no connection arrived") as caught:
        await receiver.open(Busy(), "room", url="wss://a", socket_timeout=0.01).__aenter__()
    is_over = refusals > 2
    assert hasattr(caught.value, "__notes__") is is_over
    pauses = [later - earlier for earlier, later in itertools.pairwise(stops)]
    assert pauses == [pytest.approx(pause, abs=0.01)] * (len(pauses) if is_over else 2)
    if is_over:
        assert 60 - pause - 1 < stops[-1] - stops[0] <= 60


async def test_stopped_stream_whose_socket_stays_open_is_closed_after_two_seconds(
    receiver: MediaReceiver, serve: Any, dial: Any, idle_clock: Clock
) -> None:
    url, peers = await serve(receiver), list[Any]()

    class Silent:
        async def start_stream(self, sid: str, /, **fields: Any) -> Any:
            peers.append(await dial(url, fields["authorization_bearer_token"]))
            await peers[0].send_json(START)
            return ConferenceStream(conference_sid=sid, sid="MZ1")

        async def stop_stream(self, sid: str, stream: Any, /) -> Any:
            pass

    opening = receiver.open(Silent(), "room", url=url)
    session = await opening.__aenter__()
    ending = idle_clock.now()
    closed = asyncio.create_task(peers[0].receive())
    await opening.__aexit__(None, None, None)
    assert idle_clock.now() - ending == pytest.approx(2.0, abs=0.1)
    assert (await closed).data == 1000
    assert session.end_reason is EndReason.HANDLER_RETURNED


@pytest.mark.parametrize(
    ("refusal", "ended"),
    [
        ({"status": 404, "body": "api", "code": 20404}, True),
        ({"status": 404, "body": "html"}, False),
        ({"status": 400, "body": "api", "code": 21220, "executed": True}, True),
        ({"status": 400, "body": "api", "code": 10000}, False),
    ],
)
@pytest.mark.parametrize("many", [False, True])
async def test_open_counts_stream_as_stopped_that_ended_before_its_socket_came(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, refusal: dict[str, Any], ended: bool, many: bool
) -> None:
    """When the Space says so of the sid that it returned, only the failed join is raised."""
    endless.faults.add("status", on="stop", **refusal)
    client, sid = client_for(endless), endless.conference_sids[0]
    if many:
        request = StartConferenceStream(conference_sid=sid, url="wss://127.0.0.1:9/a")
        run = receiver.open_many(client, [request], socket_timeout=0.01)
        outcomes = await run.__aenter__()
        [outcome] = [outcome async for outcome in outcomes]
        assert outcome.error is not None
        assert "no connection arrived" in str(outcome.error)
        if ended:
            await run.__aexit__(None, None, None)
        else:
            with pytest.raises(ExceptionGroup, match="1 streams could not be stopped"):
                await run.__aexit__(None, None, None)
        return
    with pytest.raises(OpenError, match="no connection arrived") as caught:
        await receiver.open(client.conferences, sid, url="wss://127.0.0.1:9/a", socket_timeout=0.01).__aenter__()
    assert hasattr(caught.value, "__notes__") is not ended


@pytest.mark.parametrize("answer", ["ambiguous", "another sid", "unknown"])
async def test_second_stream_is_stopped_after_the_first_has_ended(
    answer: str, receiver: MediaReceiver, serve: Any, dial: Any
) -> None:
    """The session's stream ended by itself, but a later attempt of the start may have started another one."""
    stopped: list[object] = []

    class Streams:
        async def start_stream(self, sid: str, /, *, url: str, **options: Any) -> ConferenceStream:
            socket = await dial(url, options["authorization_bearer_token"])
            await socket.send_str('{"event": "start", "start": {"streamSid": "first"}}')
            await socket.send_str('{"event": "stop"}')
            if answer == "unknown":
                raise StreamOutcomeUnknownError("no answer", sent="maybe", name=options["name"])
            return ConferenceStream(
                conference_sid=sid, name=options["name"], sid="second", ambiguous=answer == "ambiguous"
            )

        async def stop_stream(self, _: str, stream: Any, /) -> Any:
            stopped.append(stream)
            return stream

    url = await serve(receiver)
    async with receiver.open(Streams(), "room", url=url, name="mine") as session:
        async for _ in session:
            pass
        await until(lambda: session.end_reason is EndReason.STOPPED)
        await asyncio.sleep(0)
    assert len(stopped) == 1


async def test_socket_that_ended_makes_rejected_stop_a_success(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """While the start has no response, the sid is known from the socket, and so is that the stream has ended."""
    url = await serve(receiver, ssl_context=certificate)
    sid = endless.conference_sids[0]
    endless.faults.add("hang", on="start", executed=True)
    endless.faults.add("no-stop")
    endless.faults.add("status", on="stop", status=404, body="api", code=20404)
    client = client_for(endless, retry=RetryPolicy(max_attempts=1, max_resends=0))
    async with receiver.open(client.conferences, sid, url=url, name="mine") as session:
        endless.streams.stop(endless.streams.active(), 0.0)
        await session.wait_closed()
        assert session.end_reason is not EndReason.STOPPED
    assert endless.requests.count("stop-conference-stream") == 2


async def test_cancelled_start_has_unknown_outcome(receiver: MediaReceiver) -> None:
    """A POST that somebody cancels may have been carried out: the stream is stopped by its name."""
    stopped: list[Any] = []

    class Cut:
        async def start_stream(self, sid: str, /, **fields: Any) -> Any:
            raise asyncio.CancelledError

        async def stop_stream(self, sid: str, stream: Any, /) -> Any:
            stopped.append(stream)

    with pytest.raises(OpenError, match="neither a response nor a socket"):
        await receiver.open(Cut(), "room", url="wss://a", name="mine", socket_timeout=0.01).__aenter__()
    assert stopped == ["mine"]


async def test_stream_that_cannot_be_stopped_raises_open_error(
    endless: SimulatedSpace, client_for: Any, receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext
) -> None:
    """It may still be running, so the block ends in the stop's own error."""
    url = await serve(receiver, ssl_context=certificate)
    endless.faults.add("status", on="stop", status=403)

    async def use() -> None:
        async with receiver.open(client_for(endless).conferences, endless.conference_sids[0], url=url):
            pass

    with pytest.raises(Exception, match="HTTP 403"):
        await use()
    assert endless.requests.count("stop-conference-stream") == 1
    assert receiver.sessions == set()  # its socket is closed all the same, which may end it, and may not


@pytest.mark.parametrize(("status", "is_told"), [(403, True), (500, True), (404, False)])
async def test_stream_whose_socket_broke_and_that_cannot_be_stopped_raises_open_error(
    client_for: Any, receiver: MediaReceiver, serve: Any, dial: Any, status: int, is_told: bool
) -> None:
    """The Space may not have noticed that the socket broke."""
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent, AsyncExitStack() as stack:
        fields: Any = {"url": "wss://rx.example.com/a", "socket_timeout": 5}
        opened = receiver.open(client_for(silent).conferences, silent.conference_sids[0], **fields)
        opening = asyncio.ensure_future(stack.enter_async_context(opened))
        await until(lambda: bool(silent.streams.active()))
        [stream] = silent.streams.active()
        peer = await dial(url, stream.authorization_bearer_token)
        await peer.send_json({"event": "start", "start": {"streamSid": stream.sid}})
        session = await opening
        peer.get_extra_info("socket")._sock.shutdown(socket.SHUT_RDWR)
        await session.wait_closed()
        assert session.end_reason is EndReason.LOST
        silent.faults.add("status", on="stop", status=status, body="api")
        with pytest.raises(OpenError, match="may still be running") if is_told else nullcontext():
            await stack.aclose()
        assert silent.requests.count("stop-conference-stream") >= 1
        assert silent.streams.active() == [stream]


async def test_token_admits_one_socket(
    client_for: Any, receiver: MediaReceiver, serve: Any, dial: Any, heard: Heard
) -> None:
    """The token of a joined start lets its own stream in, once, and is gone when the block is."""
    url = await serve(receiver)
    async with SimulatedSpace(conferences=1) as silent:
        client = client_for(silent)
        opening = asyncio.ensure_future(
            receiver.open(
                client.conferences, silent.conference_sids[0], url="wss://rx.example.com/a", socket_timeout=5
            ).__aenter__()
        )
        await until(lambda: bool(silent.streams.active()))
        token = silent.streams.active()[0].authorization_bearer_token
        peer = await dial(url, token)
        with pytest.raises(Exception, match="401"):
            await dial(url, token)
        await peer.send_json({"event": "start", "start": {"streamSid": "s"}})
        session = await opening
        assert session.stream_sid == "s"
        assert heard.sessions == []
        await peer.close()


async def test_more_streams_than_the_pool_size_are_opened(
    trust: ssl.SSLContext, client_for: Any, heard: Heard, serve: Any, certificate: ssl.SSLContext
) -> None:
    """The Space keeps as many calls out at once as there are streams."""
    receiver = MediaReceiver(heard, bearer_tokens="t")
    url = await serve(receiver, ssl_context=certificate)
    async with SimulatedSpace(conferences=120, participants=0, audio=Tone(), ssl_context=trust) as space:
        run = client_for(space).start_streams(
            StartConferenceStream(conference_sid=sid, url=url, authorization_bearer_token="t", track="inbound_track")
            for sid in space.conference_sids
        )
        assert (await run.report()).ok
        await until(lambda: len(receiver.sessions) == 120)


async def test_callback_of_the_end_before_the_response_ends_the_wait() -> None:
    """Which stream it is about is known from the response."""
    start: Any = asyncio.get_running_loop().create_future()
    pending = MediaReceiver()._pending_streams.add("conference", None)
    pending.begin(start, AsyncMock())
    callback: Any = SimpleNamespace(end_reason="connection refused", is_duplicate=False, stream_sid="its-sid")
    pending.on_callback(callback)
    await asyncio.sleep(0)
    assert not pending._arrival.done()
    start.set_result(SimpleNamespace(sid="its-sid", ambiguous=False))
    await asyncio.sleep(0)
    with pytest.raises(OpenError, match="ended before it arrived: connection refused"):
        await pending._arrival
