"""Writing marks and outcomes: whatever waits goes to Redis in one go, and again until Redis has it."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias, cast

from attrs import define, field

from signalwire_streams.fleet._redis import Connection
from signalwire_streams.fleet.steps import Step, joined, reply_of

_AT_ONCE = 500
_GATHERS = 0.01  # seconds; less than an answer of the Space takes, and a load costs as much as thirty steps in it

_Waiting: TypeAlias = tuple[Step, asyncio.Future[str]]


@define(eq=False)
class Writer:
    """Carries out steps for many at once.

    The first step goes out at once. While it is on its way, and a moment longer, the next ones gather and then go
    out together, so that a busy worker asks Redis no more often than another.

    Attributes:
        connection: the way to Redis.
    """

    connection: Connection
    _waiting: list[_Waiting] = field(init=False, factory=list)
    _load: list[_Waiting] = field(init=False, factory=list)
    _serving: asyncio.Task[None] | None = field(init=False, default=None)

    def later(self, step: Step) -> asyncio.Future[str]:
        """Carry out a step; the future has its answer. If that is cancelled before its turn, nothing is done."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, answered))
        self._go_on()
        return answered

    async def idle(self) -> None:
        """Wait until nothing waits any more."""
        while self._serving is not None:
            await asyncio.wait([self._serving])
            await asyncio.sleep(0)  # its end is heard of in the loop's next turn

    async def close(self) -> None:
        """Give up what waits."""
        if self._serving is not None:
            self._serving.cancel()
            await self.idle()

    def _go_on(self) -> None:
        if self._serving is None and self._waiting:
            self._serving = asyncio.create_task(self._serve())
            self._serving.add_done_callback(self._ended)

    def _ended(self, serving: asyncio.Task[None]) -> None:
        # Not in the task itself, which never begins where it is cancelled at once: whoever waits must hear of it.
        self._serving = None
        if serving.cancelled() or serving.exception() is not None:
            left, self._load, self._waiting = [*self._load, *self._waiting], [], []
            for _, answered in left:
                if serving.cancelled():
                    answered.cancel()
                elif not answered.done():
                    answered.set_exception(cast("BaseException", serving.exception()))
        self._go_on()

    async def _serve(self) -> None:
        while self._waiting:
            self._load = [entry for entry in self._waiting[:_AT_ONCE] if not entry[1].cancelled()]
            del self._waiting[:_AT_ONCE]
            if self._load:
                await self._carry_out(self._load)
            self._load = []
            await asyncio.sleep(_GATHERS)

    async def _carry_out(self, load: Sequence[_Waiting]) -> None:
        commands = joined([step for step, _ in load])
        answers = await self.connection.all([command for command, _ in commands])
        for (_, places), replies in zip(commands, answers, strict=True):
            for place, reply in zip(places, replies, strict=True):
                answered = load[place][1]
                if not answered.done():
                    answered.set_result(reply_of(reply))
