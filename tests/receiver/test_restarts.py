"""Sessions whose streams are lost and started again, over a line that breaks, and a Space that counts the streams."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from signalwire_streams import Clock, InvalidRequestError, OpenError, StreamOutcomeUnknownError
from signalwire_streams.receiver import EndReason, GapEvent, MediaEvent, MediaReceiver, StreamSession
from signalwire_streams.receiver.audio import WavRecorder
from signalwire_streams.simulator import SimulatedSpace, Tone
from tests import waiting
from tests.uvicorn_server import for_each_server as pytest_generate_tests  # noqa: F401  (a hook of pytest)

from .lossy_line import LossyLine, lossy_line

pytestmark = [
    pytest.mark.usefixtures("idle_clock"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:websockets.legacy"),
]
until = partial(waiting.until, timeout=110.0, interval=0.01)  # on the clock that skips what is idle


class Setting:
    """A Space, a receiver, and a line between them."""

    def __init__(self, space: SimulatedSpace, receiver: MediaReceiver, line: LossyLine, client: Any) -> None:
        self.space, self.receiver, self.line, self.client = space, receiver, line, client
        self.conference, self.call = space.conference_sids[0], space.call_sids[0]
        self.events: list[Any] = []

    @asynccontextmanager
    async def open(self, *, call: bool = False, **fields: Any) -> AsyncIterator[StreamSession]:
        streams, sid = (self.client.calls, self.call) if call else (self.client.conferences, self.conference)
        fields = {"track": "inbound_track", "when_lost": "restart", "name": "mine"} | fields
        async with self.receiver.open(streams, sid, url=self.line.url, **fields) as session:
            await until(lambda: session.statistics.of("inbound").frames >= 3)
            yield session

    async def read(self, session: StreamSession) -> None:
        async for event in session:
            self.events.append(event)

    @property
    def gaps(self) -> list[GapEvent]:
        return [event for event in self.events if isinstance(event, GapEvent)]

    async def close_with(self, code: int) -> None:
        """Have the Space close its socket without a stop event."""
        [call] = self.space._dialer._calls.values()
        assert call.media is not None
        await call.media._socket.close(code=code)

    async def lose(self, how: str) -> None:
        match how:
            case "reset":
                self.line.reset()
            case "half-open":
                self.line.freeze()
            case _:
                await self.close_with(1011)


@pytest.fixture
async def make(trust: ssl.SSLContext, client_for: Any, serve: Any, certificate: ssl.SSLContext) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def make(*, real_time: bool = True, **options: Any) -> Setting:
            receiver = MediaReceiver(bidirectional=True, **{"heartbeat": 2.0} | options)
            line = await stack.enter_async_context(lossy_line(await serve(receiver, ssl_context=certificate)))
            space = SimulatedSpace(
                conferences=1,
                calls=1,
                participants=0,
                audio=Tone(),
                ssl_context=trust,
                bidirectional=True,
                real_time=real_time,
            )
            await stack.enter_async_context(space)
            return Setting(space, receiver, line, client_for(space))

        yield make


@pytest.mark.parametrize("how", ["reset", "half-open", "1011"])
@pytest.mark.parametrize("call", [False, True])
async def test_session_goes_on_over_a_new_socket(make: Any, how: str, call: bool) -> None:
    there: Setting = await make()
    async with there.open(call=call) as session:
        reading = asyncio.create_task(there.read(session))
        first = session.stream_sid
        await there.lose(how)
        await until(lambda: there.gaps)
        [gap] = there.gaps
        assert (gap.lost_stream_sid, gap.stream_sid) == (first, session.stream_sid)
        assert session.stream_sid != first
        assert session.label == first
        assert gap.seconds < (6 if how == "half-open" else 2)
        assert (session.statistics.restarts, session.statistics.gap_seconds) == (1, gap.seconds)
        frames = session.statistics.of("inbound").frames
        await until(lambda: session.statistics.of("inbound").frames >= frames + 5)
        assert session.end_reason is None
        assert there.receiver.sessions == {session}
        assert len(there.space.streams.active()) == 1
    await reading
    assert session.end_reason is EndReason.STOPPED
    assert there.space.streams.active() == there.space.streams.duplicates() == []
    media = [event for event in there.events if isinstance(event, MediaEvent)]
    assert [event.chunk for event in media] == sorted({event.chunk for event in media})
