"""Bodies that do not end, are too long or can't be unpacked, on real sockets: the status counts for what it says."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from signalwire_streams import (
    Clock,
    MalformedResponseError,
    StreamOutcomeUnknownError,
    StreamsClient,
    StreamsError,
    Timeouts,
    UnprocessableError,
)
from signalwire_streams.simulator import SimulatedSpace

pytestmark = pytest.mark.usefixtures("idle_clock")
URL = "wss://rx.example.com/audio"
SID = b'{"sid": "b3877c40-da60-4998-90ad-b792e98472cf"}'
REFUSAL = json.dumps({"code": 21402, "message": "Url is invalid", "padding": "x" * 70_000}).encode()
ENDLESS: dict[str, tuple[str, bytes]] = {
    "nothing of it": ("Content-Length: 10\r\n", b""),
    "a part of it": (f"Content-Length: {len(SID) + 1}\r\n", SID),
    "a chunk of it": ("Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n" % (len(SID), SID)),
}
SPOILED: dict[str, tuple[str, bytes]] = {
    "not packed as it says": (f"Content-Encoding: gzip\r\nContent-Length: {len(SID)}\r\n", SID),
    "larger than any answer": (f"Content-Length: {17 * 1024 * 1024}\r\n", b" " * 17 * 1024 * 1024),
}
each_bad_body = pytest.mark.parametrize(("head", "body"), (ENDLESS | SPOILED).values(), ids=ENDLESS | SPOILED)


@asynccontextmanager
async def answering(status: int, head: str, body: bytes, after: float = 0.0) -> AsyncIterator[str]:
    """Serve this response to each request after a delay, keep the connection open, and yield the server's address."""

    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(after)
            writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
            await writer.drain()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:  # from Python 3.12 on, the server waits until no connection is open
            writer.close()


@pytest.fixture
def client_of(client_for: Any, space: SimulatedSpace) -> Any:
    """Make clients of other addresses."""
    return lambda address: client_for(space, base_url=address)


async def error_of_a_start(client: StreamsClient) -> StreamsError:
    with pytest.raises(StreamsError) as caught:
        await client.conferences.start_stream("room", url=URL, unnamed=True)
    return caught.value


@each_bad_body
async def test_accepted_start_succeeds_whatever_its_body(head: str, body: bytes, client_of: Any) -> None:
    """A start that was accepted is held by its name where the body can't be read; without a name its id is lost."""
    async with answering(200, head, body) as address:
        client = client_of(address)
        stream = await client.conferences.start_stream("room", url=URL, name="mine")
        error = await error_of_a_start(client)

    assert (stream.sid, stream.name) == (None, "mine")
    assert isinstance(error, StreamOutcomeUnknownError)
    assert (error.accepted, error.status, error.attempts) == (True, 200, 1)


@pytest.mark.parametrize(("head", "body"), ENDLESS.values(), ids=ENDLESS)
async def test_read_timeout_applies_to_each_piece_of_body(
    head: str, body: bytes, client_for: Any, space: SimulatedSpace, idle_clock: Clock
) -> None:
    """Neither shorter nor longer, and from when the response began."""
    async with answering(200, head, body, after=2) as address:
        client = client_for(space, base_url=address, timeouts=Timeouts(read=3, attempt=30))
        began = idle_clock.now()
        await client.conferences.start_stream("room", url=URL)

    assert idle_clock.now() - began == pytest.approx(2 + 3, abs=0.1)


@pytest.mark.parametrize(("timeouts", "seconds"), [(Timeouts(read=3), 3), (Timeouts(attempt=2), 2)])
async def test_read_timeout_applies_to_missing_response(
    timeouts: Timeouts, seconds: int, client_for: Any, space: SimulatedSpace, idle_clock: Clock
) -> None:
    """A start that was sent once, and a read, which is tried three times."""
    space.faults.add("hang")
    client = client_for(space, timeouts=timeouts)
    began = idle_clock.now()
    assert isinstance(await error_of_a_start(client), StreamOutcomeUnknownError)
    assert idle_clock.now() - began == pytest.approx(seconds, abs=0.1)

    began = idle_clock.now()
    with pytest.raises(StreamsError):
        await client.conferences.get("room")
    assert idle_clock.now() - began == pytest.approx(3 * seconds, abs=0.1)


async def test_read_with_broken_body_is_retried(client_of: Any) -> None:
    """A read whose body does not end is tried three times, and then malformed."""
    async with answering(200, *ENDLESS["a part of it"]) as address:
        with pytest.raises(MalformedResponseError) as caught:
            await client_of(address).conferences.get("room")

    assert (caught.value.status, caught.value.sent, caught.value.attempts) == (200, "yes", 3)


@each_bad_body
async def test_rejection_is_error_whatever_its_body(head: str, body: bytes, client_of: Any) -> None:
    """A rejection whose body can't be read is final by its status alone."""
    async with answering(422, head, body) as address:
        error = await error_of_a_start(client_of(address))

    assert isinstance(error, UnprocessableError)
    assert (error.code, error.errors, error.attempts) == (None, (), 1)


async def test_rejection_body_is_read_up_to_limit(client_of: Any) -> None:
    """Of a rejection no more than 64 KiB are read, and what was cut off there is not believed."""
    async with answering(422, f"Content-Length: {len(REFUSAL)}\r\n", REFUSAL) as address:
        error = await error_of_a_start(client_of(address))

    assert isinstance(error, UnprocessableError)
    assert error.code is None
    assert f", {64 * 1024} bytes long" in str(error)
