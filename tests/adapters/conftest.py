"""A Space that plays what it receives, and a session of one of its streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from signalwire_streams.receiver import MediaReceiver, StreamSession
from signalwire_streams.simulator import Certificates, Silence, SimulatedSpace, Sound, Stream
from tests.conftest import ClientFactory


class Conversation:
    """A Space, and a session with a stream of its conference."""

    def __init__(self, space: SimulatedSpace, session: StreamSession) -> None:
        self.space = space
        self.session = session
        session.playback.now = asyncio.get_running_loop().time

    @property
    def stream(self) -> Stream:
        return self.space.streams[-1]

    @property
    def played(self) -> float:
        """Seconds of audio that were played."""
        return len(self.stream.played_audio) / self.session.audio_format.bytes_in(1000)


Converse: TypeAlias = Callable[..., Awaitable[Conversation]]


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    return Certificates.make()


@pytest.fixture
async def converse(certificates: Certificates, client_for: ClientFactory) -> AsyncIterator[Converse]:
    """Start a stream that runs until the test ends."""
    async with AsyncExitStack() as stack:

        async def begin(*, audio: Sound | None = None, bidirectional: bool = True, **fields: Any) -> Conversation:
            receiver = MediaReceiver(bidirectional=bidirectional)
            url = await stack.enter_async_context(receiver.serve(ssl_context=certificates.server))
            space = SimulatedSpace(
                conferences=1, audio=audio or Silence(), ssl_context=certificates.trust, bidirectional=bidirectional
            )
            await stack.enter_async_context(space)
            conferences, [sid] = client_for(space).conferences, space.conference_sids
            fields = {"track": "inbound_track"} | fields
            return Conversation(
                space, await stack.enter_async_context(receiver.open(conferences, sid, url=url, **fields))
            )

        yield begin
