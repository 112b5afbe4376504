"""The bounded queue between a socket and its handler: audio may be dropped, every other event stays in order."""

import asyncio

import pytest

from signalwire_streams import ClientStateError
from signalwire_streams.receiver import AudioEvent, DtmfEvent, MarkEvent, MediaEvent, UnknownEvent
from signalwire_streams.receiver._session import Droppable, EventQueue, QueueLimits

pytestmark = pytest.mark.usefixtures("idle_clock")


def media(number: int, size: int = 0) -> MediaEvent:
    return MediaEvent(track="inbound", payload=bytes(size), chunk=number)


class Queue(EventQueue):
    """A queue that remembers the events that it dropped."""

    def __init__(self, max_events: int, max_bytes: int = 1 << 20) -> None:
        self.dropped: list[Droppable] = []
        super().__init__(QueueLimits(max_events, max_bytes), self.dropped.append)

    def add(self, *events: AudioEvent) -> None:
        for event in events:
            if isinstance(event, MediaEvent | UnknownEvent):
                self.put(event)
            else:
                assert self.keep(event)

    async def drain(self) -> list[AudioEvent]:
        self.close()
        return [event async for event in self]


async def test_events_are_yielded_in_order_of_arrival() -> None:
    queue = Queue(10)
    events = (media(1), DtmfEvent(digit="1"), media(2), UnknownEvent(name="b", document={}), MarkEvent(name="a"))
    queue.add(*events)
    assert await queue.drain() == list(events)
    assert await queue.drain() == []


async def test_overflow_drops_oldest_audio_only() -> None:
    """Keys and marks keep their places, even before the oldest audio."""
    queue = Queue(2)
    keys = [DtmfEvent(digit=digit) for digit in "12"]
    queue.add(keys[0], media(1), keys[1], media(2), media(3))
    assert queue.dropped == [media(1)]
    assert queue.is_full
    assert await queue.drain() == [keys[0], keys[1], media(2), media(3)]


async def test_unknown_events_are_dropped_like_audio() -> None:
    """A new event of the vendor's, fifty times a second, does not fill the memory."""
    queue = Queue(1)
    unknown = UnknownEvent(name="weather", document={})
    queue.add(unknown, media(1))
    assert queue.dropped == [unknown]
    assert await queue.drain() == [media(1)]


async def test_keys_and_marks_are_bounded_in_number() -> None:
    """They are not dropped; one too many is refused."""
    queue = Queue(2)
    queue.add(DtmfEvent(digit="1"), MarkEvent(name="a"))
    assert not queue.keep(DtmfEvent(digit="2"))
    assert await queue.drain() == [DtmfEvent(digit="1"), MarkEvent(name="a")]


async def test_audio_is_bounded_in_bytes() -> None:
    """As many of the oldest go as it takes; the newest always has its place."""
    queue = Queue(100, 1000)
    large = [media(chunk, 400) for chunk in range(5)]
    queue.add(*large[:3])
    assert queue.dropped == []
    assert queue.is_full
    queue.add(large[3])
    assert queue.dropped == [large[0]]
    huge = UnknownEvent(name="a", document={}, memory=5000)
    queue.add(huge)
    assert queue.dropped == large[:2]
    queue.add(large[4])
    assert queue.dropped == [*large[:4], huge]
    assert not queue.is_full
    assert await queue.drain() == [large[4]]


async def test_track_names_count_as_bytes() -> None:
    """A media event takes the memory of its track's name too, at four bytes a character."""
    queue = Queue(100, 1000)
    long = [MediaEvent(track=letter * 100, payload=b"") for letter in "abcd"]
    queue.add(*long)
    assert queue.dropped == long[:1]
    assert await queue.drain() == long[1:]


async def test_keys_and_marks_are_bounded_in_bytes() -> None:
    """And taking one makes room for another."""
    queue = Queue(100, 1000)
    mark = MarkEvent(name="a", memory=600)
    assert [queue.keep(mark) for _ in range(3)] == [True, True, False]
    assert await anext(queue) == mark
    assert queue.keep(mark)


async def test_taking_an_event_makes_room() -> None:
    queue = Queue(1)
    queue.put(media(1))
    assert queue.is_full
    await anext(queue)
    assert not queue.is_full


async def test_waiting_consumer_is_woken_by_events_and_by_the_end() -> None:
    queue = Queue(1)
    waiting = asyncio.ensure_future(anext(queue))
    await asyncio.sleep(0)
    queue.put(media(1))
    queue.put(media(2))
    queue.wake()
    assert await waiting == media(1)
    assert await anext(queue) == media(2)
    waiting = asyncio.ensure_future(anext(queue))
    await asyncio.sleep(0)
    queue.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert queue.dropped == []


async def test_second_consumer_is_refused() -> None:
    """Two loops over one stream would each get half of it."""
    queue = Queue(1)
    waiting = asyncio.ensure_future(anext(queue))
    await asyncio.sleep(0)
    with pytest.raises(ClientStateError, match="one loop at a time"):
        await anext(queue)
    waiting.cancel()
    await asyncio.wait([waiting])
    queue.put(media(1))
    assert await anext(queue) == media(1)
