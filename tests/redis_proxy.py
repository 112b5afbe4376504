"""A proxy in front of a Redis that spoils chosen scripts: it answers with an error, loses the answer, or dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path
from typing import Literal, TypeAlias

from attrs import define, field

ERRORS = {
    "BUSY": "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "MISCONF": "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "NOSCRIPT": "NOSCRIPT No matching script. Please use EVAL.",
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY": "READONLY You can't write against a read only replica.",
    "lost answer": "",
}
"""Errors of a Redis that may be all right again in a moment."""

Moment: TypeAlias = Literal["before", "after"]
_Ends: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@define(eq=False)
class Spoiling:
    """What happens to the next calls of a script.

    Attributes:
        error: the reply instead of carrying it out; an empty one to carry it out, and lose the reply.
        times: how many calls are left.
        seen: how many calls there were, spoiled or not.
    """

    error: str
    times: int
    seen: int = 0


@define(eq=False)
class RedisProxy:
    """The proxy's socket, and the scripts that it spoils.

    Attributes:
        open: the connections of clients.
        cut: set once all connections are lost and none is served any more, as if the clients' host had died.
    """

    socket: Path
    open: set[asyncio.StreamWriter] = field(factory=set)
    cut: asyncio.Event = field(factory=asyncio.Event)
    _spoiled: dict[bytes, Spoiling] = field(factory=dict)
    _cut_at: dict[bytes, Moment] = field(factory=dict)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def spoil(self, script: str, error: str, *, times: int = 1) -> Spoiling:
        spoiling = Spoiling(error, times)
        self._spoiled |= dict.fromkeys(_words_for(script), spoiling)
        return spoiling

    def cut_at(self, script: str, moment: Moment) -> None:
        """Lose all connections before the next call of a script reaches Redis, or once it is carried out."""
        self._cut_at |= dict.fromkeys(_words_for(script), moment)

    def spoiling_of(self, script: bytes) -> Spoiling | None:
        spoiling = self._spoiled.get(script)
        if spoiling is None:
            return None
        spoiling.seen += 1
        spoiling.times -= 1
        return spoiling if spoiling.times >= 0 else None

    def cuts(self, script: bytes, moment: Moment) -> bool:
        """Return whether to stop serving a connection now."""
        if self._cut_at.get(script) == moment:
            self.cut.set()
            for writer in self.open:
                writer.transport.abort()
        return self.cut.is_set()


def _words_for(script: str) -> tuple[bytes, bytes]:
    return script.encode(), sha1(script.encode()).hexdigest().encode()  # noqa: S324  (as EVALSHA has it)


@asynccontextmanager
async def redis_proxy(server: Path, socket: Path) -> AsyncIterator[RedisProxy]:
    """Relay a Redis' socket. The clients must have gone before the block ends."""
    proxy = RedisProxy(socket)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        proxy.open.add(writer)
        try:
            if not proxy.cut.is_set():
                await _relay(proxy, (reader, writer), await asyncio.open_unix_connection(str(server)))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # one of the ends has gone, or the test is over
        finally:
            writer.transport.abort()
            proxy.open.discard(writer)
            serving.discard(task)

    async with await asyncio.start_unix_server(serve, str(socket)):
        yield proxy
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


async def _relay(proxy: RedisProxy, client: _Ends, redis: _Ends) -> None:
    try:
        while True:
            raw, words = await read_command(client[0])
            script = words[1] if words[0].upper() in {b"EVAL", b"EVALSHA"} else b""
            spoiling = proxy.spoiling_of(script)
            if proxy.cuts(script, "before"):
                return
            if spoiling is not None and spoiling.error:
                client[1].write(f"-{spoiling.error}\r\n".encode())
                continue
            redis[1].write(raw)
            if words[0].upper() in {b"SUBSCRIBE", b"PSUBSCRIBE"}:
                await asyncio.gather(_pump(client[0], redis[1]), _pump(redis[0], client[1]))
                return
            reply = await _read_reply(redis[0])
            if proxy.cuts(script, "after") or spoiling is not None:
                return
            client[1].write(reply)
    finally:
        redis[1].transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def read_command(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    line = await reader.readuntil(b"\n")
    raw, words = [line], []
    for _ in range(int(line[1:])):
        head = await reader.readuntil(b"\n")
        body = await reader.readexactly(int(head[1:]) + 2)
        raw += [head, body]
        words.append(body[:-2])
    return b"".join(raw), words


async def _read_reply(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readuntil(b"\n")
    kind = line[:1]
    if kind in {b"$", b"=", b"!"}:
        length = int(line[1:])
        return line if length < 0 else line + await reader.readexactly(length + 2)
    if kind in {b"*", b"~", b">", b"%"}:
        count = int(line[1:]) * (2 if kind == b"%" else 1)
        return line + b"".join([await _read_reply(reader) for _ in range(count)])
    return line
