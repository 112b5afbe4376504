"""Delivery of accepted callbacks to the user's function."""

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from signalwire_streams.callbacks import (
    CallbackEvent,
    CallbackHandler,
    StreamFailed,
    StreamStarted,
    StreamStopped,
    UnknownCallback,
    parse_callback,
)
from signalwire_streams.callbacks._receiver import Dispatcher

from .signing import fields

pytestmark = pytest.mark.usefixtures("nothing_left")


def event(kind: str, sid: str = "a", **others: str) -> CallbackEvent:
    return parse_callback(fields(f"stream-{kind}", sid, **others))


def dispatcher(handler: CallbackHandler, **options: Any) -> Dispatcher:
    settings: dict[str, Any] = {"max_pending": 100, "dedup_size": 100, "shutdown_timeout": 60.0}
    return Dispatcher(handler, **(settings | options))


def offer(serving: Dispatcher, event: CallbackEvent) -> bool:
    return serving.offer(event, repr((event, event.extra)).encode())


class Heard:
    """A handler that records its events, and blocks for some streams."""

    def __init__(self, *held: str) -> None:
        self.names: list[str] = []
        self.gates = {sid: asyncio.Event() for sid in held}

    async def __call__(self, event: CallbackEvent) -> None:
        gate = self.gates.get(event.stream_sid or "")
        if gate is not None:
            await gate.wait()
        self.names.append(f"{type(event).__name__.removeprefix('Stream')} {event.stream_sid}")


async def settled() -> None:
    """Run the event loop until every ready task has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_events_are_in_order_per_stream_and_concurrent_across_streams() -> None:
    """A slow stream keeps its own order and does not delay the others."""
    heard = Heard("slow")
    serving = dispatcher(heard)
    for kind in ("started", "error", "stopped"):
        for sid in ("slow", "quick"):
            assert offer(serving, event(kind, sid))
    await settled()

    assert heard.names == ["Started quick", "Failed quick", "Stopped quick"]
    heard.gates["slow"].set()
    await serving.aclose()
    assert heard.names[3:] == ["Started slow", "Failed slow", "Stopped slow"]
    assert serving.statistics.received == serving.statistics.handled == 6


async def test_stream_with_empty_queue_gets_further_events() -> None:
    heard = Heard()
    serving = dispatcher(heard)
    offer(serving, event("started"))
    await settled()
    offer(serving, event("stopped"))
    await serving.aclose()

    assert heard.names == ["Started a", "Stopped a"]


async def test_events_without_stream_are_handled_concurrently() -> None:
    gate, names = asyncio.Event(), []

    async def handler(event: CallbackEvent) -> None:
        if type(event) is StreamStarted:
            await gate.wait()
        names.append(type(event))

    serving = dispatcher(handler)
    for kind in ("started", "stopped", "error"):
        offer(serving, event(kind, ""))
    await settled()

    assert names == [StreamStopped, StreamFailed]
    gate.set()
    await serving.aclose()
    assert names[2:] == [StreamStarted]


async def test_repeated_event_is_handled_once() -> None:
    """Also if its timestamp differs."""
    heard = Heard()
    serving = dispatcher(heard)
    for again in (event("started"), event("started"), event("started", Timestamp="2026-11-21T10:15:03Z")):
        assert offer(serving, again)
    for error in ("general_error", "general_error", "codec_error"):
        assert offer(serving, event("error", StreamError=error))
    await serving.aclose()

    assert heard.names == ["Started a", "Failed a", "Failed a"]
    assert serving.statistics.duplicates == 3
    assert serving.statistics.received == 6


async def test_repeated_event_without_stream_is_known_by_its_fields() -> None:
    seen: list[CallbackEvent] = []

    async def handler(event: CallbackEvent) -> None:
        seen.append(event)

    serving = dispatcher(handler)
    for told in ({"X": "1"}, {"X": "1"}, {"X": "2"}):
        offer(serving, parse_callback(told))
        offer(serving, parse_callback(fields("stream-error", "", **told)))
    await serving.aclose()

    assert serving.statistics.duplicates == 2
    assert [type(event) for event in seen].count(UnknownCallback) == 2
    assert len(seen) == 4


async def test_oldest_events_are_forgotten_beyond_dedup_size() -> None:
    heard = Heard()
    serving = dispatcher(heard, dedup_size=2)
    for sid in ("a", "b", "c", "a", "c"):
        offer(serving, event("stopped", sid))
    offer(serving, event("started", "b"))
    await serving.aclose()

    assert sorted(heard.names) == ["Started b", "Stopped a", "Stopped a", "Stopped b", "Stopped c"]
    assert (serving.statistics.duplicates, serving.statistics.late) == (1, 0)


@pytest.mark.parametrize("end", ["stopped", "error"])
async def test_start_after_end_is_counted_as_late(end: str) -> None:
    """The handler does not get it."""
    heard = Heard()
    serving = dispatcher(heard)
    assert offer(serving, event(end))
    assert offer(serving, event("started"))
    assert offer(serving, event("started", "b"))
    await serving.aclose()

    assert heard.names[1:] == ["Started b"]
    assert serving.statistics.late == 1


async def test_duplicate_stream_error_does_not_end_the_stream() -> None:
    """It may carry the id of the stream that is running, whose start is still to come."""
    heard = Heard()
    serving = dispatcher(heard)
    offer(serving, event("error", StreamError="Duplicated stream ID"))
    offer(serving, event("started"))
    await serving.aclose()

    assert heard.names == ["Failed a", "Started a"]


async def test_end_without_stream_does_not_make_a_start_late() -> None:
    heard = Heard()
    serving = dispatcher(heard)
    offer(serving, event("stopped", ""))
    offer(serving, event("started", ""))
    await serving.aclose()

    assert sorted(heard.names) == ["Started None", "Stopped None"]


async def test_event_beyond_max_pending_is_rejected_until_there_is_room() -> None:
    heard = Heard("a", "b")
    serving = dispatcher(heard, max_pending=2)
    assert offer(serving, event("started", "a"))
    assert offer(serving, event("started", "b"))
    assert not offer(serving, event("started", "c"))
    assert not offer(serving, event("stopped", "a"))
    assert offer(serving, event("started", "a")), "a duplicate takes no place"
    heard.gates["b"].set()
    await settled()
    assert offer(serving, event("started", "c"))
    heard.gates["a"].set()
    await serving.aclose()

    assert sorted(heard.names) == ["Started a", "Started b", "Started c"]
    assert serving.statistics.overflowed == 2
    assert serving.statistics.handled == 3


async def test_handled_event_makes_room_for_one_event_of_its_size() -> None:
    heard = Heard("b")
    serving = dispatcher(heard, max_pending=1)
    large = bytes(8 * 1024 * 1024)
    assert serving.offer(event("started", "a"), large)
    await settled()
    assert offer(serving, event("started", "b"))
    assert not offer(serving, event("started", "c"))
    heard.gates["b"].set()
    await settled()
    assert not serving.offer(event("started", "c"), large + b"x")
    assert serving.offer(event("started", "c"), large)
    await serving.aclose()

    assert heard.names == ["Started a", "Started b", "Started c"]


async def test_dropped_events_make_room() -> None:
    """Also those behind the one whose queue was cancelled."""

    async def handler(event: CallbackEvent) -> None:
        if isinstance(event, StreamStarted):
            asyncio.get_running_loop().call_soon(next(iter(serving._tasks)).cancel)
            await asyncio.Event().wait()

    serving = dispatcher(handler, max_pending=2)
    assert offer(serving, event("started", "a"))
    assert offer(serving, event("stopped", "a"))
    await settled()
    assert offer(serving, event("stopped", "b"))
    assert offer(serving, event("stopped", "c"))
    assert not offer(serving, event("stopped", "d"))
    await serving.aclose()

    assert (serving.statistics.dropped, serving.statistics.handled) == (2, 2)


async def test_rejected_end_does_not_make_a_start_late() -> None:
    heard = Heard("a", "b")
    serving = dispatcher(heard, max_pending=1)
    offer(serving, event("started", "a"))
    assert not offer(serving, event("stopped", "b"))
    heard.gates["a"].set()
    await settled()
    assert offer(serving, event("started", "b"))
    heard.gates["b"].set()
    await serving.aclose()

    assert serving.statistics.late == 0


async def test_handler_error_is_logged_and_next_event_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def handler(event: CallbackEvent) -> None:
        seen.append(type(event).__name__)
        if len(seen) == 1:
            raise LookupError("no such call")

    serving = dispatcher(handler)
    offer(serving, event("started"))
    offer(serving, event("stopped"))
    await serving.aclose()

    assert seen == ["StreamStarted", "StreamStopped"]
    assert (serving.statistics.failed, serving.statistics.handled) == (1, 1)
    (record,) = [record for record in caplog.records if record.name == "signalwire_streams.callbacks"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "the callback handler failed for StreamStarted of stream 'a'"
    assert "no such call" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        pytest.fail.Exception("unexpected"),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("", [GeneratorExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_handler_that_raises_base_exception_loses_no_event(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Events accepted behind it are delivered."""
    heard = Heard()

    async def handler(event: CallbackEvent) -> None:
        await heard(event)
        if len(heard.names) == 1:
            raise error

    serving = dispatcher(handler)
    for kind in ("started", "error", "stopped"):
        assert offer(serving, event(kind))
    await serving.aclose()

    assert heard.names == ["Started a", "Failed a", "Stopped a"]
    assert (serving.statistics.failed, serving.statistics.handled, serving.statistics.dropped) == (1, 2, 0)
    assert type(error).__name__ in caplog.text


async def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def cancel_own_task_twice_and_wait() -> None:
    await cancel_own_task()
    await cancel_own_task()
    await asyncio.Event().wait()


async def cancel_own_task_and_raise() -> None:
    await cancel_own_task()
    raise LookupError


async def be_cancelled_later() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "action", [cancel_own_task, cancel_own_task_twice_and_wait, cancel_own_task_and_raise, be_cancelled_later]
)
async def test_handler_that_cancels_its_own_task_loses_no_event(action: Callable[[], Awaitable[None]]) -> None:
    """It counts as failed; events accepted behind it are delivered."""
    heard = Heard()

    async def handler(event: CallbackEvent) -> None:
        await heard(event)
        if len(heard.names) == 1:
            await action()

    serving = dispatcher(handler)
    for kind in ("started", "error", "stopped"):
        assert offer(serving, event(kind))
    await serving.aclose()

    assert heard.names == ["Started a", "Failed a", "Stopped a"]
    assert (serving.statistics.failed, serving.statistics.handled, serving.statistics.dropped) == (1, 2, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_leave_the_loop(error: type[BaseException]) -> None:
    """As from any task; pending events count as dropped."""
    servings: list[Dispatcher] = []
    tasks: list[asyncio.Task[None]] = []

    async def handler(_: CallbackEvent) -> None:
        raise error

    async def main() -> None:
        servings.append(dispatcher(handler))
        offer(servings[0], event("started"))
        offer(servings[0], event("stopped"))
        tasks.extend(servings[0]._tasks)
        await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(main())
    assert tasks[0].cancelled()
    statistics = servings[0].statistics
    assert (statistics.received, statistics.failed, statistics.dropped) == (2, 0, 2)


def test_keyboard_interrupt_leaves_the_loop_once() -> None:
    """The loop can be run again, to close what is open."""

    async def handler(_: CallbackEvent) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        serving = dispatcher(handler)
        offer(serving, event("started"))
        await settled()

    loop = asyncio.new_event_loop()
    running = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(running)
    loop.run_until_complete(running)
    loop.close()


def test_task_of_a_discarded_loop_ends_without_error(recwarn: pytest.WarningsRecorder) -> None:
    """Its handler has not failed."""
    heard = Heard("a")
    serving = dispatcher(heard)

    async def main() -> None:
        offer(serving, event("started"))
        await settled()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    serving._tasks.clear()
    heard.gates.clear()
    gc.collect()

    assert (serving.statistics.failed, serving.statistics.dropped) == (0, 1)
    assert not [warning for warning in recwarn if "ignored" in str(warning.message)]


async def test_dedup_memory_holds_no_documents_or_long_names() -> None:
    heard = Heard()
    serving = dispatcher(heard, max_pending=1_000, dedup_size=1_000)

    def accept(start: int) -> None:
        for number in range(start, start + 30):
            text = f"{number} {'x' * 60_000}"
            state = {"call_id": text, "control_id": text, "state": text}
            for told in (
                {"event_type": "new", "params": {"text": text, "items": [{}] * 1_000}},
                {"StreamEvent": "new", "StreamSid": text, "Other": text},
                dict(fields("stream-stopped", text)),
                dict(fields("stream-error", "a", StreamError=text)),
                {"event_type": "calling.call.stream", "params": state},
            ):
                assert serving.offer(parse_callback(told), f"{number} {sorted(told)}".encode())

    accept(0)
    await settled()
    heard.names.clear()
    tracemalloc.start()
    try:
        accept(30)
        for _ in range(10):
            await settled()
        assert serving.statistics.handled == serving.statistics.received == 300
        heard.names.clear()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
        await serving.aclose()


async def test_pending_events_are_bounded_in_bytes() -> None:
    """Also before there are `max_pending` of them."""
    heard = Heard("a")
    serving = dispatcher(heard)
    for number in range(8):
        assert serving.offer(event("error", "a", StreamError=str(number)), bytes(1024 * 1024))
    assert not serving.offer(event("stopped", "a"), b"x")
    heard.gates["a"].set()
    await settled()
    assert serving.offer(event("stopped", "a"), b"x")
    await serving.aclose()

    assert (serving.statistics.overflowed, serving.statistics.handled) == (1, 9)


async def test_handler_that_is_not_async_counts_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    serving = dispatcher(lambda _: None)  # type: ignore[arg-type,return-value]
    offer(serving, event("started"))
    await serving.aclose()

    assert serving.statistics.failed == 1
    assert "a NoneType, which can't be awaited: write async def handler(event)" in caplog.text


async def test_cancellation_inside_the_handler_counts_as_failed(caplog: pytest.LogCaptureFixture) -> None:
    """If what it awaits is cancelled, the handler has failed; the next event of the stream is handled."""
    seen: list[str] = []

    async def handler(event: CallbackEvent) -> None:
        seen.append(type(event).__name__)
        if len(seen) == 1:
            waited = asyncio.get_running_loop().create_future()
            waited.cancel()
            await waited

    serving = dispatcher(handler)
    offer(serving, event("started"))
    offer(serving, event("stopped"))
    await serving.aclose()

    assert seen == ["StreamStarted", "StreamStopped"]
    assert serving.statistics.failed == 1
    assert "CancelledError" in caplog.text


async def test_aclose_waits_for_pending_events_and_rejects_new_ones() -> None:
    heard = Heard("a")
    serving = dispatcher(heard)
    offer(serving, event("started"))
    offer(serving, event("stopped"))
    closing = asyncio.create_task(serving.aclose())
    await settled()
    assert not closing.done()
    assert not offer(serving, event("started", "b"))
    heard.gates["a"].set()
    await closing
    await serving.aclose()

    assert heard.names == ["Started a", "Stopped a"]
    assert (serving.statistics.dropped, serving.statistics.overflowed) == (0, 1)


async def test_aclose_cancels_and_drops_after_shutdown_timeout() -> None:
    """With the events queued behind it."""
    heard = Heard("a")
    serving = dispatcher(heard, shutdown_timeout=0.001)
    for kind in ("started", "error", "stopped"):
        offer(serving, event(kind))
    await serving.aclose()

    assert heard.names == []
    assert (serving.statistics.dropped, serving.statistics.failed, serving.statistics.handled) == (3, 0, 0)


async def test_cancelled_aclose_cancels_handlers_at_once() -> None:
    serving = dispatcher(Heard("a"))
    offer(serving, event("started"))
    closing = asyncio.create_task(serving.aclose())
    await settled()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await settled()

    assert serving.statistics.dropped == 1


@pytest.mark.usefixtures("idle_clock")
@pytest.mark.parametrize(("granted", "seconds"), [(0.25, 0.5), (60.0, 61.0)])
async def test_aclose_leaves_behind_handler_that_ignores_cancellation(granted: float, seconds: float) -> None:
    """After at most one second more; it is not called again."""
    clock = asyncio.get_running_loop().time
    stubborn = asyncio.Event()

    async def handler(_: CallbackEvent) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await stubborn.wait()

    serving = dispatcher(handler, shutdown_timeout=granted)
    offer(serving, event("started"))
    offer(serving, event("stopped"))
    began = clock()
    await serving.aclose()
    assert clock() - began == pytest.approx(seconds, abs=0.1)
    stubborn.set()
    await settled()

    assert (serving.statistics.handled, serving.statistics.dropped) == (1, 1)


async def test_handler_may_close_its_dispatcher() -> None:
    done: list[str] = []

    async def handler(event: CallbackEvent) -> None:
        await serving.aclose()
        done.append(type(event).__name__)

    serving = dispatcher(handler)
    offer(serving, event("stopped"))
    await settled()

    assert done == ["StreamStopped"]
