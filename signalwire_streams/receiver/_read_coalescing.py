"""Reading several frames at once: the kernel wakes the event loop only when enough bytes have arrived.

After half a second of measurement, a socket's SO_RCVLOWAT is set to 85 % of the bytes that arrive within the time that
frames may wait: a little less than all, so that the loop does not wait for the last of them. If nothing was read from a
socket for that long, because less arrives or the stream is ending, the socket is read at once until something has
arrived. The end of a connection always wakes the loop.
"""

import asyncio
import contextlib
import socket

_SPAN = 0.5  # seconds of each measurement
_SHARE = 0.85
_CHECKS = 2  # in the time that frames may wait


class CoalescedReads:
    """Decides when one socket is read: at once if the system does not support the option."""

    def __init__(self, transport: asyncio.BaseTransport, seconds: float, members: "set[CoalescedReads]") -> None:
        self._transport = transport
        self._seconds = seconds
        self._members = members
        self._read_at = 0.0
        self._since = float("-inf")  # the time and the bytes of the current measurement
        self._bytes = 0
        self._wanted = self._low_water = 1
        self._has_ended = False

    def on_read(self, size: int, now: float) -> None:
        self._read_at = now
        self._bytes += size
        elapsed = now - self._since
        if elapsed >= _SPAN:
            self._wanted = max(1, int(_SHARE * self._seconds * self._bytes / elapsed))
            self._since, self._bytes = now, 0
        if not self._has_ended:
            self._set(self._wanted)

    def check(self, now: float) -> None:
        if now - self._read_at >= self._seconds:
            self.read_at_once()

    def read_at_once(self) -> None:
        """Read the next data as soon as it arrives, even a single byte."""
        self._set(1)

    def end(self) -> None:
        """Read at once from now on."""
        self._has_ended = True
        self._members.discard(self)
        self._set(1)

    def _set(self, low_water: int) -> None:
        if low_water == self._low_water:
            return
        self._low_water = low_water
        # The system may not know the option, and the socket may be closed: on uvloop that is a ValueError.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)


class Coalescer:
    """The sockets of a receiver, with a single timer for all of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._members: set[CoalescedReads] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.BaseTransport) -> CoalescedReads:
        """Coalesce the reads of a socket, until its `CoalescedReads.end`."""
        reads = CoalescedReads(transport, self._seconds, self._members)
        self._members.add(reads)
        if self._timer is None:
            self._schedule()
        return reads

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds / _CHECKS, self._check)

    def _check(self) -> None:
        if not self._members:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        for reads in self._members:
            reads.check(now)
        self._schedule()
