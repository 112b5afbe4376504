"""A fixture that takes the waiting out of tests: an idle event loop's clock jumps to its next timer."""

import asyncio
from typing import Any

import pytest

from signalwire_streams import Clock

IN_TRANSIT = 0.002  # seconds that bytes may take from one end of a socket to the other
_LONG_WAIT = 0.05  # seconds; before the clock skips more, the sockets are checked again
_CHECKS = 10  # how often
_STUCK = 10.0  # real seconds after which a loop without timers and events counts as stuck
_MAX_WAIT = 600.0  # seconds of this clock that a test may take
_TURN = 0.000_01  # seconds that a turn of the loop takes, so that no wait is endless


@pytest.fixture
async def idle_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the loop's clock while there is something to do, and advance it to the next timer otherwise.

    So a wait takes no time, and a slow machine makes nothing late. It is for tests with both ends of their sockets in
    this process, where what was sent has arrived. A thread at work counts as something to do. The value is the same
    clock for a client, whose waits then last as long on it as they say.
    """
    return skip_idle_time(asyncio.get_running_loop(), monkeypatch)


def skip_idle_time(loop: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    select_events = loop._selector.select
    now = loop.time()
    end = now + _MAX_WAIT
    run, join, in_threads = loop.run_in_executor, loop.shutdown_default_executor, set[Any]()

    def run_in_executor(*work: Any) -> Any:
        future = run(*work)
        in_threads.add(future)
        future.add_done_callback(in_threads.discard)
        return future

    async def shutdown_default_executor(*timeout: float) -> None:
        in_threads.add(join)  # in one that the loop starts by itself, with a timeout from Python 3.12 on
        try:
            await join(*timeout)
        finally:
            in_threads.discard(join)

    def select(seconds: float | None) -> Any:
        nonlocal now, end
        events = select_events(_STUCK if seconds is None else min(seconds, IN_TRANSIT))
        checks = _CHECKS - 1 if seconds is not None and seconds > _LONG_WAIT else 0
        while not events and checks:  # a busy machine may deliver late
            checks -= 1
            events = select_events(IN_TRANSIT)
        assert events or seconds is not None, "nothing can happen any more, and something waits for it"
        now += seconds if seconds and not events and not in_threads else _TURN
        if now >= end:
            end = now + _MAX_WAIT  # so that the fixtures can still clean up
            raise AssertionError("a wait does not end")
        return events

    monkeypatch.setattr(loop._selector, "select", select)
    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    monkeypatch.setattr(loop, "shutdown_default_executor", shutdown_default_executor)
    return Clock(now=loop.time)
