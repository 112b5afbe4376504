"""This package's receiver: typed events, through the bounded queue, checked tokens, statistics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from yarl import URL

from benchmarks.hearing.hall import Hall, heard
from benchmarks.hearing.speaking import TOKEN
from signalwire_streams.receiver import MediaEvent, MediaReceiver, StreamSession


@heard
@asynccontextmanager
async def sessions(hall: Hall) -> AsyncIterator[int]:
    """Serve as the README has it."""

    async def handler(session: StreamSession) -> None:
        with hall.ear(session.start.custom_parameters) as ear:
            async for event in session:
                if isinstance(event, MediaEvent):
                    ear.hear(event.timestamp or 0, event.payload)

    async with MediaReceiver(handler, bearer_tokens=TOKEN).serve() as url:
        yield URL(url).port or 0
