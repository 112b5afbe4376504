"""The bounded queue between a socket and its handler: audio may be dropped, every other event stays in order."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from signalwire_streams import ClientStateError
from signalwire_streams.receiver import AudioEvent, DtmfEvent, MarkEvent, MediaEvent, UnknownEvent
from signalwire_streams.receiver._event_queue import EventQueue, QueueLimits

pytestmark = pytest.mark.usefixtures("idle_clock")


def media(number: int, size: int = 0) -> MediaEvent:
    return MediaEvent(track="inbound", payload=bytes(size), chunk=number)


class Queue(EventQueue):
    """A queue that remembers the events that it dropped."""

    def __init__(self, max_events: int, max_bytes: int = 1 << 20) -> None:
        self.dropped: list[AudioEvent] = []
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
    """They are not dropped; one too many is rejected."""
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


async def test_second_consumer_is_rejected() -> None:
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


async def consume(queue: EventQueue, taken: list[AudioEvent]) -> None:
    async for event in queue:
        taken.append(event)  # noqa: PERF401  (what was taken before it is cancelled counts)


async def started(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def in_a_callback(*steps: Callable[[], object]) -> None:
    """Do something where no task is running, as a socket's reads are."""
    done = asyncio.get_running_loop().create_future()

    def callback() -> None:
        done.set_result([step() for step in steps])

    asyncio.get_running_loop().call_soon(callback)
    await done


async def test_consumer_is_resumed_within_the_callback_that_wakes_it() -> None:
    """As often as it waits, with its own context and as its own task."""
    queue, taken = Queue(9), list[AudioEvent]()
    variable = ContextVar("variable", default="outer")
    names: list[object] = []

    async def consumer() -> None:
        variable.set("inner")
        async for event in queue:
            taken.append(event)
            names.append((variable.get(), asyncio.current_task()))

    task = await started(consumer())

    def add(number: int) -> list[AudioEvent]:
        queue.add(media(number), MarkEvent(name="a"))
        queue.wake()
        queue.wake()
        assert len(taken) == 2 * number
        return taken

    await in_a_callback(lambda: add(1), lambda: add(2))
    assert set(names) == {("inner", task)}
    assert variable.get() == "outer"
    queue.close()
    await task


async def test_consumer_is_resumed_later_while_a_task_runs() -> None:
    queue, taken = Queue(9), list[AudioEvent]()
    task = await started(consume(queue, taken))
    queue.put(media(1))
    queue.wake()
    queue.close()
    assert taken == []
    await task
    assert taken == [media(1)]


async def test_error_of_a_resumed_consumer_is_its_own() -> None:
    queue = Queue(9)

    async def consumer() -> None:
        async for _ in queue:
            raise ValueError

    task = await started(consumer())
    queue.put(media(1))
    await in_a_callback(queue.wake)
    with pytest.raises(ValueError, match=r"^$"):
        await task


@pytest.mark.parametrize("kind", [media(1), DtmfEvent(digit="1"), MarkEvent(name="a")], ids=lambda one: one.__class__)
@pytest.mark.parametrize("order", ["cancel", "put cancel", "cancel put", "put wake cancel", "cancel put wake", "close"])
async def test_cancelled_wait_loses_no_event(kind: AudioEvent, order: str) -> None:
    """Whatever happens first, and whether or not a task does it."""
    for is_task in (True, False):
        queue, taken = Queue(9), list[AudioEvent]()
        task = await started(consume(queue, taken))
        actions: dict[str, Callable[[], object]] = {
            "cancel": lambda task=task: task.cancel("enough"),  # type: ignore[misc]
            "put": lambda queue=queue: queue.add(kind),  # type: ignore[misc]
            "wake": queue.wake,
            "close": lambda task=task, queue=queue: (queue.close(), task.cancel("enough")),  # type: ignore[misc]
        }
        steps = [actions[word] for word in order.split()]
        if is_task:
            for step in steps:
                step()
        else:
            await in_a_callback(*steps)
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        assert taken + await queue.drain() == [kind] * ("put" in order)


async def test_another_wait_may_begin_where_one_is_cancelled() -> None:
    """At once; the cancelled one takes nothing from it, however often it is cancelled."""
    queue, taken = Queue(9), list[AudioEvent]()
    cancelled = await started(consume(queue, taken))
    cancelled.cancel("enough")

    def go_on() -> None:
        cancelled.cancel("enough")
        queue.put(media(1))
        queue.wake()

    asyncio.get_running_loop().call_soon(go_on)
    assert await anext(queue) == media(1)
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await cancelled
    assert taken == []


async def test_wait_that_is_cancelled_before_it_begins_loses_no_event() -> None:
    queue, taken = Queue(9), list[AudioEvent]()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(-1):
            await consume(queue, taken)
    queue.put(media(1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.ensure_future(consume(queue, taken)), 1)
    task = asyncio.create_task(consume(queue, taken))
    task.cancel()
    queue.put(media(2))
    await asyncio.wait([task])
    assert task.cancelled()
    assert taken + await queue.drain() == [media(1), media(2)]


async def test_time_limit_of_a_wait_passes() -> None:
    queue = Queue(9)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anext(queue)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(queue), 1)
    queue.put(media(1))
    queue.wake()
    assert await anext(queue) == media(1)
