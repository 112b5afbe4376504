"""Writing marks and outcomes: whatever waits goes to Redis in one go, and again until Redis has it."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

from attrs import define, field

from signalwire_streams.fleet.connection import Command, Connection, command

_AT_ONCE = 500

_Waiting: TypeAlias = tuple[Command, asyncio.Future[str]]


def script(source: str, keys: Sequence[str], *values: object) -> Command:
    """Spell the run of a script."""
    return command("eval", source, len(keys), *keys, *map(str, values))


def reply_of(reply: Any) -> str:  # noqa: ANN401  (Redis gives bytes or text)
    """Give the word that a script answered."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)


@define(eq=False)
class Writer:
    """Carries out scripts for many at once.

    While one load is on its way the next one gathers, so that a busy worker asks Redis no more often than an idle
    one, and nobody waits longer than for one answer before his turn.

    Attributes:
        connection: the way to Redis.
    """

    connection: Connection
    _waiting: list[_Waiting] = field(init=False, factory=list)
    _serving: asyncio.Task[None] | None = field(init=False, default=None)

    def later(self, one: Command) -> asyncio.Future[str]:
        """Carry out a script; the future has its answer. If that is cancelled before its turn, nothing is done."""
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, answered))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return answered

    async def idle(self) -> None:
        """Wait until nothing waits any more."""
        while self._serving is not None:
            await asyncio.wait([self._serving])

    async def close(self) -> None:
        """Give up what waits."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    async def _serve(self) -> None:
        load: Sequence[_Waiting] = ()
        try:
            while self._waiting:
                load = [entry for entry in self._waiting[:_AT_ONCE] if not entry[1].cancelled()]
                del self._waiting[:_AT_ONCE]
                if not load:
                    continue
                replies = await self.connection.all([one for one, _ in load])
                for (_, answered), reply in zip(load, replies, strict=True):
                    if not answered.done():
                        answered.set_result(reply_of(reply))
                load = ()
        except BaseException as error:
            # Whoever waits must hear of it, whatever it is: nobody else would wake him.
            waiting, self._waiting = [*load, *self._waiting], []
            for _, answered in waiting:
                if isinstance(error, asyncio.CancelledError):
                    answered.cancel()
                elif not answered.done():
                    answered.set_exception(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._serving = None
