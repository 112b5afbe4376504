"""A clock that leaps over idle time, and that several processes on this machine share.

Nothing is late for want of CPU: time stands still until each process has nothing to do but wait. Before it leaps, the
first process asks each other one, which replies once it is idle. What was sent before the question has arrived by then,
since sockets on loopback are in order with it.
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from math import ceil, inf
from selectors import EVENT_READ
from typing import Any, TypeVar

from signalwire_streams import Clock

GRAIN = 0.25  # seconds: all that is due within them happens at once
_LONG_LEAP = 1.0  # seconds; before that, what a busy machine delivers late is waited for
_IN_TRANSIT = 0.002  # real seconds
_TIME = struct.Struct("d")
_ASK = b"?"

_T = TypeVar("_T")


class LeapingClock:
    """The time of an event loop. `run` makes the loop."""

    def __init__(self, link: socket.socket | None = None, now: float = 1_000_000.0) -> None:
        self.now, self.leaps = now, 0
        self._link = link  # to the first process, if this is another one
        self._others: list[socket.socket] = []
        self._is_asked = False
        self._in_threads: set[asyncio.Future[Any]] = set()
        self._select: Callable[[float | None], list[Any]]

    def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        with asyncio.Runner() as runner:
            loop: Any = runner.get_loop()
            self._select, run_in_executor = loop._selector.select, loop.run_in_executor
            join = loop.shutdown_default_executor
            if self._link is not None:
                loop._selector.register(self._link, EVENT_READ)

            def in_thread(*arguments: Any) -> Any:
                future = run_in_executor(*arguments)
                self._in_threads.add(future)
                future.add_done_callback(self._in_threads.discard)
                return future

            def shutdown_default_executor(*timeout: float) -> Any:
                self._in_threads.add(joined := loop.create_task(join(*timeout)))
                joined.add_done_callback(self._in_threads.discard)
                return joined

            loop.run_in_executor, loop.time = in_thread, self.time
            loop.shutdown_default_executor = shutdown_default_executor
            loop._selector.select = self._lead if self._link is None else self._follow
            try:
                return runner.run(work())
            finally:
                for other in self._others:
                    other.close()

    @property
    def is_shared(self) -> bool:
        """Whether another process is still there."""
        return bool(self._others)

    def time(self) -> float:
        return self.now

    def clock(self) -> Clock:
        return Clock(now=self.time, wall_time=self.time)

    def connect(self) -> socket.socket:
        """Return the link of another process, which shares the time from now on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._others.append(ours)
        return theirs

    def _lead(self, seconds: float | None) -> list[Any]:
        events = self._select(0.0)
        if events or (seconds is not None and seconds <= 0.0):
            return events
        if self._in_threads:
            return self._select(None)
        due = min([self.now + (inf if seconds is None else seconds), *self._ask_others()])
        events = self._select(_IN_TRANSIT if due > self.now + _LONG_LEAP else 0.0)
        if events:
            return events
        assert due < inf, "nothing can happen any more, and something waits for it"
        self.now, self.leaps = max(due, ceil(due / GRAIN) * GRAIN), self.leaps + 1
        for other in self._others:
            other.send(_TIME.pack(self.now))
        return []

    def _ask_others(self) -> list[float]:
        """Return when each is to be woken, once all are idle. One that has ended is forgotten."""
        for other in self._others:
            with suppress(OSError):
                other.send(_ASK)
        due: list[float] = []
        for other in tuple(self._others):
            reply = b""
            with suppress(OSError):
                reply = other.recv(_TIME.size)
            due += _TIME.unpack(reply) if reply else ()
            if not reply:
                self._others.remove(other)
                other.close()
        return due

    def _follow(self, seconds: float | None) -> list[Any]:
        link, blocks = self._link, seconds is None or seconds > 0.0
        assert link is not None
        due = self.now + (inf if seconds is None else seconds)
        while True:
            is_idle = self._is_asked and not self._in_threads
            events = self._select(None if blocks and not is_idle else 0.0)
            ready = [event for event in events if event[0].fileobj is not link]
            before = self.now
            if len(ready) < len(events):
                self._read(link)
            elif not ready and blocks and is_idle:
                self._is_asked = False
                link.send(_TIME.pack(due))
            if ready or not blocks or self.now > before:
                return ready

    def _read(self, link: socket.socket) -> None:
        message = link.recv(_TIME.size)
        if message == _ASK:
            self._is_asked = True
        elif message:
            [self.now] = _TIME.unpack(message)
        else:  # the first process has ended
            sys.stderr.flush()
            os._exit(1)
