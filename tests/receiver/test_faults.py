"""Faults of streams, sockets and callbacks, as the receiver and `open` report them."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import pytest
from aiohttp import web

from signalwire_streams import OpenError, StreamsClient
from signalwire_streams.callbacks import CallbackEvent, CallbackReceiver, StreamStarted, StreamStopped
from signalwire_streams.receiver import EndReason, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.simulator import SimulatedSpace, Tone

from .conftest import Heard, until

pytestmark = pytest.mark.usefixtures("idle_clock")
SECONDS = 1.0
FRAMES = 50

Start: TypeAlias = Callable[..., Awaitable[StreamSession]]


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def callbacks_served(receiver: CallbackReceiver) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/callbacks", receiver.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks"
    finally:
        await receiver.aclose()
        await runner.cleanup()


@pytest.fixture
async def space(trust: ssl.SSLContext) -> AsyncIterator[SimulatedSpace]:
    """A Space that speaks for a second, as fast as it is heard, and never waits."""
    async with SimulatedSpace(
        conferences=1, audio=Tone(seconds=SECONDS), real_time=False, ssl_context=trust, callbacks=True, sleep=at_once
    ) as running:
        yield running


@pytest.fixture
def conference(space: SimulatedSpace) -> str:
    [sid] = space.conference_sids
    return sid


@pytest.fixture
async def client(space: SimulatedSpace, client_for: Any) -> StreamsClient:
    made: StreamsClient = client_for(space)
    return made


@pytest.fixture
async def url(receiver: MediaReceiver, serve: Any, certificate: ssl.SSLContext) -> str:
    served: str = await serve(receiver, ssl_context=certificate)
    return served


@pytest.fixture
def receiver(heard: Heard) -> MediaReceiver:
    return MediaReceiver(heard, bearer_tokens="t")


@pytest.fixture
def one_stream(client: StreamsClient, conference: str, url: str, heard: Heard) -> Start:
    """Start a stream of one track, and give its session once it has ended."""

    async def start() -> StreamSession:
        await client.conferences.start_stream(
            conference, url=url, authorization_bearer_token="t", track="inbound_track"
        )
        return await heard.end()

    return start


async def test_dropped_socket_ends_session_as_lost(space: SimulatedSpace, one_stream: Start) -> None:
    """The session ends as lost, after the events that arrived."""
    space.faults.add("connection-dropped", after=7)
    session = await one_stream()
    assert session.end_reason is EndReason.LOST
    assert session.statistics.of("inbound").frames == 7


async def test_stream_without_stop_event_ends_when_socket_closes(space: SimulatedSpace, one_stream: Start) -> None:
    """It is a normal end with a reason of its own."""
    space.faults.add("no-stop")
    session = await one_stream()
    assert session.end_reason is EndReason.CLOSED
    assert session.statistics.of("inbound").frames == FRAMES


async def test_lost_frames_are_counted_as_missing(space: SimulatedSpace, one_stream: Start) -> None:
    """Gaps are counted, and how many frames are missing."""
    space.faults.add("frames-lost", every=10)
    track = (await one_stream()).statistics.of("inbound")
    assert (track.frames, track.gaps, track.missing) == (45, 4, 4)  # nothing comes after the last one to tell of it
    assert (track.duplicates, track.out_of_order) == (0, 0)


async def test_duplicated_frames_are_counted(space: SimulatedSpace, one_stream: Start) -> None:
    space.faults.add("frames-duplicated", every=10)
    track = (await one_stream()).statistics.of("inbound")
    assert (track.frames, track.duplicates) == (55, 5)
    assert (track.missing, track.out_of_order) == (0, 0)


async def test_reordered_frames_are_counted_as_out_of_order(space: SimulatedSpace, one_stream: Start) -> None:
    """A frame that is overtaken is out of order, and not missing once it has come."""
    space.faults.add("frames-reordered", every=20)
    track = (await one_stream()).statistics.of("inbound")
    assert (track.frames, track.out_of_order) == (FRAMES, 2)
    assert (track.missing, track.duplicates) == (0, 0)


async def test_corrupted_frames_are_counted_as_malformed(space: SimulatedSpace, one_stream: Start) -> None:
    """A frame that can't be read is counted as malformed, and its audio as missing; the others come."""
    space.faults.add("frames-corrupted", every=10)
    session = await one_stream()
    track = session.statistics.of("inbound")
    assert (session.statistics.malformed, track.frames, track.missing) == (5, 45, 4)
    assert session.end_reason is EndReason.STOPPED


async def test_several_faults_of_one_stream_are_all_counted(space: SimulatedSpace, one_stream: Start) -> None:
    """A stream runs into all the faults that apply to it."""
    space.faults.add("frames-duplicated", every=10)
    space.faults.add("frames-in-bursts", frames=8)
    space.faults.add("no-stop")
    session = await one_stream()
    assert session.end_reason is EndReason.CLOSED
    assert (session.statistics.of("inbound").frames, session.statistics.of("inbound").duplicates) == (55, 5)


async def test_bursts_lose_no_frame(trust: ssl.SSLContext, client_for: Any, url: str, heard: Heard) -> None:
    """Frames that are held back arrive late, and nothing is lost."""
    async with SimulatedSpace(conferences=1, audio=Tone(seconds=0.4), ssl_context=trust) as space:
        space.faults.add("frames-in-bursts", frames=10)
        await client_for(space).conferences.start_stream(
            space.conference_sids[0], url=url, authorization_bearer_token="t", track="inbound_track"
        )
        session = await heard.end()
    track = session.statistics.of("inbound")
    assert (track.frames, track.missing) == (20, 0)
    # The first of ten frames is 180 ms older than the last, which sets the measure.
    assert track.max_delay_ms == pytest.approx(180, abs=60)
    assert track.jitter > 5


async def joined(receiver: MediaReceiver, client: StreamsClient, conference: str, url: str, **fields: Any) -> int:
    async with receiver.open(
        client.conferences, conference, url=url, track="inbound_track", **({"socket_timeout": 20} | fields)
    ) as session:
        return len([event async for event in session if isinstance(event, MediaEvent)])


@pytest.mark.parametrize(
    ("fault", "settings", "error"),
    [
        ("socket-refused", {}, "connection_refused"),
        ("tls-untrusted", {}, "connection_refused_timeout_or_ssl_error"),
        ("socket-slow", {"seconds": 60}, "connection_refused_timeout_or_ssl_error"),
    ],
)
async def test_open_fails_when_the_space_cannot_connect(
    space: SimulatedSpace,
    client: StreamsClient,
    receiver: MediaReceiver,
    url: str,
    conference: str,
    fault: str,
    settings: dict[str, Any],
    error: str,
) -> None:
    """The callback ends `open` at once; nothing runs and nothing is open."""
    space.faults.add(fault, **settings)
    async with callbacks_served(
        CallbackReceiver(receiver.handle_status_callback, keys=[space.signing_key])
    ) as callbacks:
        with pytest.raises(OpenError, match=error) as caught:
            await joined(receiver, client, conference, url, status_callback=callbacks)
        assert caught.value.stage == "callback"
        assert space.streams.active() == []
        assert receiver.sessions == set()


async def test_open_fails_by_timeout_when_no_callback_reports_failed_connection(
    space: SimulatedSpace, client: StreamsClient, receiver: MediaReceiver, url: str, conference: str
) -> None:
    """Without callbacks it takes the socket timeout; the error says what to check."""
    space.faults.add("socket-refused")
    with pytest.raises(OpenError, match="is the url reachable") as caught:
        await joined(receiver, client, conference, url, socket_timeout=0.05)
    assert caught.value.stage == "socket"


async def test_open_waits_for_slow_handshake(
    space: SimulatedSpace, client: StreamsClient, receiver: MediaReceiver, url: str, conference: str
) -> None:
    """One that comes in the end is a stream like any other."""
    space.faults.add("socket-slow", seconds=3)
    assert await joined(receiver, client, conference, url) == FRAMES


async def test_open_yields_session_before_start_is_answered(
    space: SimulatedSpace, client: StreamsClient, receiver: MediaReceiver, url: str, conference: str
) -> None:
    """The session is there before the start was answered."""
    space.faults.add("socket-first")
    assert await joined(receiver, client, conference, url) == FRAMES
    assert [request.fault for request in space.requests if request.created] == ["socket-first"]


class Told:
    """Callbacks as they were handed on."""

    def __init__(self) -> None:
        self.events: list[CallbackEvent] = []

    async def __call__(self, event: CallbackEvent) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[type[CallbackEvent]]:
        return [type(event) for event in self.events]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def listening(space: SimulatedSpace, told: Told) -> AsyncIterator[tuple[CallbackReceiver, str]]:
    async with AsyncExitStack() as stack:
        callbacks = CallbackReceiver(told, keys=[space.signing_key])
        yield callbacks, await stack.enter_async_context(callbacks_served(callbacks))


async def a_stream_with_callbacks(
    client: StreamsClient, conference: str, url: str, heard: Heard, callbacks: str
) -> StreamSession:
    await client.conferences.start_stream(
        conference, url=url, authorization_bearer_token="t", status_callback=callbacks
    )
    return await heard.end()


async def test_lost_callback_is_not_handled(
    space: SimulatedSpace, client: StreamsClient, url: str, conference: str, heard: Heard, listening: Any, told: Told
) -> None:
    """What never comes is not missed: the session itself has its end."""
    callbacks, address = listening
    space.faults.add("callback-lost", on="stream-stopped")
    session = await a_stream_with_callbacks(client, conference, url, heard, address)
    await until(lambda: callbacks.statistics.handled == 1)
    await callbacks.aclose()
    assert session.end_reason is EndReason.STOPPED
    assert told.kinds == [StreamStarted]


async def test_duplicated_callback_is_handled_once(
    space: SimulatedSpace, client: StreamsClient, url: str, conference: str, heard: Heard, listening: Any, told: Told
) -> None:
    """It is handed on once, and counted."""
    callbacks, address = listening
    space.faults.add("callback-duplicated")
    await a_stream_with_callbacks(client, conference, url, heard, address)
    await until(lambda: callbacks.statistics.received == 4)
    await callbacks.aclose()
    assert callbacks.statistics.duplicates == 2
    assert told.kinds == [StreamStarted, StreamStopped]


@pytest.mark.parametrize(("fault", "settings"), [("callback-reordered", {}), ("callback-delayed", {"seconds": 30})])
async def test_late_started_callback_is_not_handled(
    space: SimulatedSpace,
    client: StreamsClient,
    url: str,
    conference: str,
    heard: Heard,
    listening: Any,
    told: Told,
    fault: str,
    settings: dict[str, Any],
) -> None:
    """A "started" that comes after "stopped" revives nothing, and is counted as late."""
    callbacks, address = listening
    stopped = asyncio.Event()

    async def until_it_stopped(seconds: float) -> None:
        await stopped.wait()

    space.faults.add(fault, on="stream-started", **settings)
    sender = space._callback_sender
    assert sender is not None
    sender.sleep = until_it_stopped
    await a_stream_with_callbacks(client, conference, url, heard, address)
    await until(lambda: callbacks.statistics.handled == 1)
    stopped.set()
    await until(lambda: callbacks.statistics.late == 1)
    await callbacks.aclose()
    assert told.kinds == [StreamStopped]


async def test_callback_with_bad_signature_is_refused(
    space: SimulatedSpace, client: StreamsClient, url: str, conference: str, heard: Heard, listening: Any, told: Told
) -> None:
    """It is refused as often as it is tried, and never handed on."""
    callbacks, address = listening
    space.faults.add("callback-bad-signature", on="stream-started")
    await a_stream_with_callbacks(client, conference, url, heard, address)
    await until(lambda: callbacks.statistics.rejected == 3 and callbacks.statistics.handled == 1)
    assert told.kinds == [StreamStopped]


async def test_stream_faults_reject_settings_of_requests(space: SimulatedSpace) -> None:
    """The message says what to write instead."""
    for kind, wrong, match in (
        ("frames-lost", {"on": "start"}, "happens to a stream that is dialled: omit on"),
        ("frames-lost", {"every": 0}, "every must be a whole number from 1"),
        ("no-stop", {"executed": True}, "happens to a stream that is dialled: omit"),
        ("callback-lost", {"on": "start"}, "write one of any, stream-error, stream-started, stream-stopped"),
        ("callback-delayed", {}, "needs seconds="),
        ("socket-first", {"executed": False}, "happens to a start that is executed"),
        ("socket-first", {"on": "stop"}, "is not a scope of 'socket-first'"),
    ):
        with pytest.raises(ValueError, match=match):
            space.faults.add(kind, **wrong)
    assert len(space.faults) == 0
