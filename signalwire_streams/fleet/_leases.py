"""A worker's leases on batches.

A lease is a key in Redis that expires. A worker that can't renew it assumes at 70 % of its lifetime that it is lost,
and cancels its starts in flight before the batch can pass to another worker.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define

from signalwire_streams.fleet._lua import ACQUIRE_LEASE, RELEASE_LEASE, RENEW_LEASE
from signalwire_streams.fleet._redis import Connection
from signalwire_streams.redis_rate_limit._store import decode

_RENEWALS = 4  # per lease
_CHECKS = 16  # per lease
_TRUSTED = 0.7  # of a lease, from when its renewal was sent


@define(eq=False)
class Lease:
    key: str
    owner: str
    cancel: Callable[[], None]  # cancels the starts in flight
    renewed_at: float  # when the last successful renewal was sent, on the loop's clock
    is_lost: bool = False  # True if another worker has it, or may have it

    def lose(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self.cancel()


class Leases:
    def __init__(self, connection: Connection, *, duration: float, heartbeat: Callable[[Any], object]) -> None:
        self.active: dict[str, Lease] = {}  # by owner
        self._connection = connection
        self._duration = duration
        self._milliseconds = round(duration * 1_000)
        self._heartbeat = heartbeat
        self._all_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Start renewing. The task ends only if Redis denies access, with the error."""
        self._renewing = asyncio.create_task(self._renew())
        self._check()
        return self._renewing

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def acquire(self, key: str, owner: str, cancel: Callable[[], None]) -> Lease | None:
        """Return the lease, or None if another worker has it."""
        asked_at = asyncio.get_running_loop().time()
        if await self._connection.script(ACQUIRE_LEASE, key, owner, self._milliseconds) != "ok":
            return None
        lease = self.active[owner] = Lease(key, owner, cancel, asked_at)
        if self._all_lost:
            lease.lose()
        return lease

    def lose_all(self) -> None:
        """Lose all leases, and those that are acquired later."""
        self._all_lost = True
        for lease in list(self.active.values()):
            lease.lose()

    async def release(self, lease: Lease) -> None:
        self.active.pop(lease.owner, None)
        await self._connection.script(RELEASE_LEASE, lease.key, lease.owner)

    async def _renew(self) -> None:
        while True:
            leases = [lease for lease in self.active.values() if not lease.is_lost]
            asked_at = asyncio.get_running_loop().time()

            def queue(pipe: Any, leases: Sequence[Lease] = leases) -> None:  # noqa: ANN401
                for lease in leases:
                    pipe.eval(RENEW_LEASE, 1, lease.key, lease.owner, str(self._milliseconds))
                self._heartbeat(pipe)

            replies = await self._connection.pipeline(queue)
            for lease, reply in zip(leases, replies, strict=False):  # the heartbeat has replies too
                if decode(reply) == "ok":
                    lease.renewed_at = asked_at
                else:
                    lease.lose()
            await asyncio.sleep(self._duration / _RENEWALS)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for lease in list(self.active.values()):
            if now - lease.renewed_at > self._duration * _TRUSTED:
                lease.lose()
        # A timer's callback runs before any task that a timer wakes: after a suspension it is the first to act.
        self._timer = loop.call_later(self._duration / _CHECKS, self._check)
