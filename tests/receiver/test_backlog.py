"""What waits for a handler: bounded audio, every other event, in order."""

import asyncio

import pytest

from signalwire_streams import ClientStateError
from signalwire_streams.receiver._protocol import AudioEvent, DtmfEvent, MarkEvent, MediaEvent, UnknownEvent
from signalwire_streams.receiver._session import Backlog

pytestmark = pytest.mark.usefixtures("idle_clock")


def media(number: int) -> MediaEvent:
    return MediaEvent(track="inbound", payload=b"", chunk=number)


async def drained(backlog: Backlog) -> list[AudioEvent]:
    backlog.end()
    events = []
    while (event := await backlog.get()) is not None:
        events.append(event)
    return events


def add(backlog: Backlog, *events: MediaEvent | UnknownEvent | DtmfEvent | MarkEvent) -> list[AudioEvent | None]:
    """Add events as a session does; give what was dropped for each."""
    dropped: list[AudioEvent | None] = []
    for event in events:
        if isinstance(event, MediaEvent | UnknownEvent):
            dropped.append(backlog.put(event))
        else:
            assert backlog.keep(event)
    return dropped


async def test_events_come_in_their_order() -> None:
    backlog = Backlog(10)
    events = (media(1), DtmfEvent(digit="1"), media(2), UnknownEvent(name="b", document={}), MarkEvent(name="a"))
    add(backlog, *events)
    assert await drained(backlog) == list(events)
    assert await backlog.get() is None


async def test_the_oldest_audio_is_dropped_and_nothing_else() -> None:
    """Keys and marks stay where they are, also before the oldest audio."""
    backlog = Backlog(2)
    keys = [DtmfEvent(digit=digit) for digit in "12"]
    dropped = add(backlog, keys[0], media(1), keys[1], media(2), media(3))
    assert dropped == [None, None, media(1)]
    assert backlog.is_full
    assert await drained(backlog) == [keys[0], keys[1], media(2), media(3)]


async def test_what_is_unknown_is_dropped_as_audio_is() -> None:
    """A new event of the vendor's, fifty times a second, does not fill the memory."""
    backlog = Backlog(1)
    unknown = UnknownEvent(name="weather", document={})
    assert add(backlog, unknown, media(1)) == [None, unknown]
    assert await drained(backlog) == [media(1)]


async def test_keys_and_marks_are_bounded_too() -> None:
    """They are not dropped; that there are too many is told."""
    backlog = Backlog(2)
    add(backlog, DtmfEvent(digit="1"), MarkEvent(name="a"))
    assert not backlog.keep(DtmfEvent(digit="2"))
    assert await drained(backlog) == [DtmfEvent(digit="1"), MarkEvent(name="a")]


async def test_audio_is_bounded_in_bytes() -> None:
    """The oldest goes, as many as it takes; the newest one always has its place."""
    backlog = Backlog(100, 1000)
    large = [MediaEvent(track="inbound", payload=bytes(400), chunk=chunk) for chunk in range(5)]
    assert add(backlog, *large[:3]) == [None] * 3
    assert backlog.is_full
    assert add(backlog, large[3]) == [large[0]]
    assert backlog.shed() is None
    huge = UnknownEvent(name="a", document={}, memory=5000)
    assert add(backlog, huge) == [large[1]]
    assert add(backlog, large[4]) == [large[2]]
    assert [backlog.shed(), backlog.shed(), backlog.shed()] == [large[3], huge, None]
    assert not backlog.is_full
    assert await drained(backlog) == [large[4]]


async def test_keys_and_marks_are_bounded_in_bytes() -> None:
    """And taking one makes room for another."""
    backlog = Backlog(100, 1000)
    mark = MarkEvent(name="a", memory=600)
    assert [backlog.keep(mark) for _ in range(3)] == [True, True, False]
    assert await backlog.get() == mark
    assert backlog.keep(mark)


async def test_what_is_taken_makes_room() -> None:
    backlog = Backlog(1)
    backlog.put(media(1))
    assert backlog.is_full
    await backlog.get()
    assert not backlog.is_full


async def test_who_waits_is_woken() -> None:
    """An event, and the end, reach whoever waits for one."""
    backlog = Backlog(1)
    waiting = asyncio.ensure_future(backlog.get())
    await asyncio.sleep(0)
    backlog.put(media(1))
    backlog.put(media(2))
    assert await waiting == media(1)
    assert await backlog.get() == media(2)
    waiting = asyncio.ensure_future(backlog.get())
    await asyncio.sleep(0)
    backlog.end()
    assert await waiting is None


async def test_two_loops_are_one_too_many() -> None:
    """Two loops over one stream would each get half of it: the second is told."""
    backlog = Backlog(1)
    waiting = asyncio.ensure_future(backlog.get())
    await asyncio.sleep(0)
    with pytest.raises(ClientStateError, match="one loop at a time"):
        await backlog.get()
    waiting.cancel()
    await asyncio.wait([waiting])
    backlog.put(media(1))
    assert await backlog.get() == media(1)
