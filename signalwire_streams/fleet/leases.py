"""Which batches a worker has in hand, and that it lets go of them before somebody else may take them.

A lease is a key in Redis that expires by itself, on Redis's clock. While a worker lives it renews its leases. One that
was stopped (by SIGSTOP, a paused host, a blocked loop) or that lost its way to Redis can't, and by its own clock it
knows, before a lease is over, that it may be: then it cuts what is under way, before that does anything more.
"""

import asyncio
from collections.abc import Callable, Sequence

from attrs import define, field

from signalwire_streams.fleet._redis import Command, Connection
from signalwire_streams.fleet.scripts import HOLD, LET_GO, RENEW
from signalwire_streams.fleet.steps import reply_of, script

_MILLISECONDS = 1_000
_RENEWALS = 4  # per lease
_LOOKS = 16  # per lease
_TRUSTED = 0.7  # of a lease, from when its renewal was asked for


@define(eq=False)
class Lease:
    """One batch in hand.

    Attributes:
        key: the lease's key.
        owner: who has it.
        cut: lets go of what is under way.
        held_at: when it was last asked for with success, on the loop's clock.
        is_lost: whether it is not ours any more, or may not be.
    """

    key: str
    owner: str
    cut: Callable[[], None]
    held_at: float
    is_lost: bool = False

    def lose(self) -> None:
        """Let go of it, since it is or may be somebody else's."""
        if not self.is_lost:
            self.is_lost = True
            self.cut()


@define(eq=False)
class Leases:
    """The batches that a worker has in hand.

    Attributes:
        connection: the way to Redis.
        seconds: how long a lease lasts when it is not renewed.
        tell: what is to be written with each renewal.
    """

    connection: Connection
    seconds: float
    tell: Callable[[], Sequence[Command]]
    in_hand: dict[str, Lease] = field(init=False, factory=dict)
    _over: bool = field(init=False, default=False)
    _look: asyncio.TimerHandle | None = field(init=False, default=None)
    _renewing: asyncio.Task[None] | None = field(init=False, default=None)

    def begin(self) -> asyncio.Task[None]:
        """Renew from now on; the task ends only where Redis refuses that, with the error."""
        self._renewing = asyncio.create_task(self._renew())
        self._look_later()
        return self._renewing

    async def end(self) -> None:
        """Renew no more."""
        if self._look is not None:
            self._look.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def take(self, key: str, owner: str, cut: Callable[[], None]) -> Lease | None:
        """Take a batch in hand, unless somebody else has it."""
        asked = asyncio.get_running_loop().time()
        answer = reply_of(await self.connection.one(script(HOLD, (key,), owner, self._milliseconds)))
        if answer != "ok":
            return None
        lease = self.in_hand[owner] = Lease(key, owner, cut, asked)
        if self._over:
            lease.lose()
        return lease

    def lose_all(self) -> None:
        """Let go of all, and of whatever is taken from now on."""
        self._over = True
        for lease in list(self.in_hand.values()):
            lease.lose()

    async def give_back(self, lease: Lease) -> None:
        """Let go of a batch, so that somebody else can take it at once."""
        self.in_hand.pop(lease.owner, None)
        await self.connection.one(script(LET_GO, (lease.key,), lease.owner))

    @property
    def _milliseconds(self) -> int:
        return round(self.seconds * _MILLISECONDS)

    async def _renew(self) -> None:
        while True:
            leases = [lease for lease in self.in_hand.values() if not lease.is_lost]
            asked = asyncio.get_running_loop().time()
            renewals = [script(RENEW, (lease.key,), lease.owner, self._milliseconds) for lease in leases]
            answers = await self.connection.all([*renewals, *self.tell()])
            for lease, answer in zip(leases, answers, strict=False):  # what was told has answers too
                if reply_of(answer) == "ok":
                    lease.held_at = max(lease.held_at, asked)
                else:
                    lease.lose()
            await asyncio.sleep(self.seconds / _RENEWALS)

    def _look_later(self) -> None:
        # A timer's own call comes before anything that a timer wakes: after a pause it is the first to act.
        self._look = asyncio.get_running_loop().call_later(self.seconds / _LOOKS, self._look_now)

    def _look_now(self) -> None:
        now = asyncio.get_running_loop().time()
        for lease in list(self.in_hand.values()):
            if now - lease.held_at > self.seconds * _TRUSTED:
                lease.lose()
        self._look_later()
